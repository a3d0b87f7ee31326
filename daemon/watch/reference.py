"""What a product looked like at commissioning, and how the model judged it: learnt from the first parts.

Pictures belong to product and camera settings, scores to the model as well: after a promotion the pictures are watched
as before, and only the new model's scores are learnt.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lineward.daemon.watch.chart import Charts, Limits, Values, learn
from lineward.daemon.watch.measure import FLAT, compare

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from lineward.daemon.recipes import ActiveRecipe
    from lineward.daemon.watch.measure import Likeness, Measurement
    from lineward.models.verdict import Verdict

FOLDER = "commissioning"

ZONE_NAMES = tuple(
    f"{row} {column}".replace("middle middle", "middle")
    for row in ("top", "middle", "bottom")
    for column in ("left", "middle", "right")
)

FLOORS: Mapping[str, float] = {
    "brightness": 0.04,  # an LED that warms up by ten kelvins loses 3 %
    **{f"zone {name}": 0.15 for name in ZONE_NAMES},
    "sharpness": 0.20,
    "right": 0.01,
    "down": 0.01,
    "confidence": 0.03,
    "defect_probability": 0.05,
    "anomaly": 0.10,
}
"""Every figure that has a chart, and the change that matters in practice: brightness and sharpness relative to
commissioning, a zone relative to the whole picture, shifts as shares of the picture, the model's scores as they are."""

FIGURES = tuple(FLOORS)

SCORES = 3
"""So many figures, the last ones, are the model's."""

UNLIKE_FROM = 0.2
"""A distance that is never taken for another product. Simulated parts reach 0.06, the other product begins at 0.36."""
UNLIKE_FACTOR = 2.5
"""The limit is so many times the largest distance at commissioning."""
UNLIKE_MOST = 0.75
"""With a limit above, pictures differ too much for the guard to tell a product: it is off."""


class Sample(NamedTuple):
    """One part of commissioning."""

    measurement: Measurement
    scores: tuple[float, float, float]
    passed: bool


@dataclass(frozen=True, slots=True)
class Key:
    """For what a reference holds."""

    product: str
    model: str
    settings: str

    def file(self, root: Path) -> Path:
        """Return where it is kept."""
        folder = re.sub(r"[^A-Za-z0-9_.-]", "_", self.product).lstrip(".") or "_"
        return root / FOLDER / folder / f"{self.model[:16] or 'none'}-{self.settings}.json"

    def files(self, root: Path) -> list[Path]:
        """Return the files of the same product and settings, of this model and of others, newest first."""
        found = []
        for path in self.file(root).parent.glob(f"*-{self.settings}.json"):
            with contextlib.suppress(OSError):  # gone meanwhile
                found.append((path.stat().st_mtime_ns, path))
        return [path for _, path in sorted(found, reverse=True)]


def key_of(recipe: ActiveRecipe) -> Key:
    """Say for what the reference of a recipe holds."""
    text = json.dumps(dict(recipe.settings), sort_keys=True, default=str)
    return Key(recipe.product, recipe.model.sha256, hashlib.sha256(text.encode()).hexdigest()[:8])


def scores_of(verdict: Verdict) -> tuple[float, float, float]:
    """Return confidence, defect probability and anomaly."""
    return verdict.confidence, verdict.defect_probability, verdict.anomaly


@dataclass(frozen=True, slots=True)
class Reference:
    """What is normal.

    Attributes
    ----------
    template
        ``(64, 64)`` uint8: the mean of parts that passed.
    zones, sharpness
        Their means, to which the figures are relative.
    unlike_from
        Distance from which on a picture is of another product; None: the pictures differ too much to tell.
    limits
        Of all `FIGURES`, in their order; those of a model whose scores are not learnt yet are infinite.
    made_s
        When commissioning was over, seconds since 1970.
    """

    template: NDArray[np.uint8]
    zones: Values
    sharpness: float
    unlike_from: float | None
    limits: Limits
    parts: int
    made_s: float

    @property
    def knows_scores(self) -> bool:
        """Whether the scores of the model have been learnt."""
        return bool(np.isfinite(self.limits.limit).all())

    def figures(self, measurement: Measurement, likeness: Likeness, scores: tuple[float, float, float]) -> Values:
        """Return the figures of one part, ``(figures,)``."""
        ratios = measurement.zones / np.maximum(self.zones, 1e-6)
        ratio = max(float(np.median(ratios)), 1e-6)  # a shadow in one corner is not the lamp
        zones = ratios / ratio - 1
        sharp = measurement.sharpness / self.sharpness - 1 if self.sharpness else 0.0
        seen = likeness.distance < (self.unlike_from or math.inf)
        place = (likeness.right, likeness.down) if seen else (math.nan, math.nan)
        return np.array([ratio - 1, *zones.ravel(), sharp, *place, *scores])

    def is_unlike(self, likeness: Likeness) -> bool:
        """Tell whether a picture does not show the product of commissioning."""
        return self.unlike_from is not None and likeness.distance > self.unlike_from


def commission(samples: Sequence[Sample], now_s: float) -> Reference:
    """Learn what is normal from the first parts; takes about a third of a millisecond for each."""
    smalls = np.stack([sample.measurement.small for sample in samples])
    passed = np.array([sample.passed for sample in samples])
    shown = smalls[passed] if passed.sum() >= len(samples) / 4 else smalls
    template = np.rint(shown.mean(axis=0)).astype(np.uint8)
    likenesses = [compare(small, template) for small in smalls]
    zones = np.mean([sample.measurement.zones for sample in samples], axis=0)
    sharpness = float(np.mean([sample.measurement.sharpness for sample in samples]))
    # One stray picture must not open the guard: the 98 % quantile with its distance to the median doubled.
    distances = np.array([likeness.distance for likeness in likenesses])
    middle, high = np.quantile(distances, [0.5, 0.98])
    unlike = max(UNLIKE_FROM, UNLIKE_FACTOR * min(float(distances.max()), float(2 * high - middle)))
    tells = unlike <= UNLIKE_MOST and float(template.std()) > FLAT
    nothing = Limits(np.zeros(len(FIGURES)), np.ones(len(FIGURES)))
    draft = Reference(template, zones, sharpness, unlike if tells else None, nothing, len(samples), now_s)
    rows = [
        draft.figures(sample.measurement, likeness, sample.scores)
        for sample, likeness in zip(samples, likenesses, strict=True)
    ]
    figures = np.array(rows)
    figures = np.where(np.isfinite(figures), figures, np.nan_to_num(np.nanmean(figures, axis=0)))
    limits = learn(figures, np.array(list(FLOORS.values())))
    return Reference(template, zones, sharpness, draft.unlike_from, limits, len(samples), now_s)


def learn_scores(
    samples: Sequence[tuple[float, float, float]], known: Reference, charts: Charts, now_s: float
) -> tuple[Reference, Charts]:
    """Learn how a new model judges, and go on with the pictures as they stand."""
    learnt = learn(np.array(samples), np.array(list(FLOORS.values()))[-SCORES:])
    return with_scores(known, charts, learnt, Charts(learnt, now_s))


def without_scores(known: Reference, charts: Charts) -> tuple[Reference, Charts]:
    """Keep what is known of pictures; the scores were those of another model."""
    nothing = Limits(np.zeros(SCORES), np.full(SCORES, np.inf))
    return with_scores(known, charts, nothing, Charts(nothing, known.made_s))


def with_scores(known: Reference, charts: Charts, limits: Limits, scores: Charts) -> tuple[Reference, Charts]:
    """Put limits and charts of scores, ``(SCORES,)`` each, beside those of the pictures."""

    def joined(ours: NDArray[Any], theirs: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([ours[:-SCORES], theirs])

    both = Limits(joined(known.limits.centre, limits.centre), joined(known.limits.limit, limits.limit))
    fresh = Charts(both, known.made_s)
    fresh.resume(
        joined(charts.deviation, scores.deviation),
        joined(charts.out, scores.out),
        joined(charts.began_s, scores.began_s),
    )
    return replace(known, limits=both), fresh
