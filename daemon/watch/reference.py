"""What a product looked like at commissioning: learnt from the first parts, kept in the storage folder.

Kept for each product, model and set of camera settings, so that promoting another model begins anew.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lineward.daemon.review import write_whole
from lineward.daemon.watch.chart import Charts, Limits, Values, learn
from lineward.daemon.watch.measure import FLAT, SIDE, ZONES, compare

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from lineward.daemon.recipes import ActiveRecipe
    from lineward.daemon.watch.measure import Likeness, Measurement
    from lineward.models.verdict import Verdict

FOLDER = "commissioning"
FORMAT = 1

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
        Of all `FIGURES`, in their order.
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


# ---- on disk


class ReferenceFileError(ValueError):
    """A file of commissioning cannot be used; the message names it and says what to do."""


def save(path: Path, key: Key, reference: Reference, charts: Charts) -> None:
    """Write a reference and where its charts stand; raises `OSError`."""
    content = {
        "format": FORMAT,
        "product": key.product,
        "model": key.model,
        "parts": reference.parts,
        "made_s": reference.made_s,
        "template": base64.b64encode(reference.template.tobytes()).decode(),
        "zones": reference.zones.ravel().tolist(),
        "sharpness": reference.sharpness,
        "unlike_from": reference.unlike_from,
        "figures": {
            name: {
                "centre": float(reference.limits.centre[i]),
                "limit": float(reference.limits.limit[i]),
                "deviation": float(charts.deviation[i]),
                "out": bool(charts.out[i]),
                "began_s": float(charts.began_s[i]),
            }
            for i, name in enumerate(FIGURES)
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content, indent=1).encode())


def load(path: Path) -> tuple[Reference, Charts] | None:
    """Read what `save` wrote; None when there is none.

    Raises
    ------
    ReferenceFileError
        The file is damaged or of another version; commission anew.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ReferenceFileError(f"{path}: {error.strerror}; commission anew with `lineward watch reset`") from error
    try:
        return _parsed(json.loads(text))
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        raise ReferenceFileError(
            f"{path}: is damaged or of another version; commission anew with `lineward watch reset`"
        ) from error


def _parsed(content: Any) -> tuple[Reference, Charts]:
    """Raise `ValueError`, `TypeError` or `KeyError` for anything that `save` did not write."""
    if content["format"] != FORMAT or set(content["figures"]) != set(FIGURES):
        raise ValueError("another version")

    def column(name: str) -> Values:
        values = np.array([float(content["figures"][figure][name]) for figure in FIGURES])
        if not np.isfinite(values).all():
            raise ValueError(name)
        return values

    template = np.frombuffer(base64.b64decode(content["template"], validate=True), np.uint8).reshape(SIDE, SIDE)
    zones = np.array(content["zones"], np.float64).reshape(ZONES, ZONES)
    unlike = None if content["unlike_from"] is None else float(content["unlike_from"])
    limits = Limits(column("centre"), column("limit"))
    numbers = [float(content["sharpness"]), float(content["made_s"]), *zones.ravel(), unlike or 0.0]
    if not np.isfinite(numbers).all() or (limits.limit <= 0).any() or (zones < 0).any():
        raise ValueError("out of range")
    reference = Reference(template, zones, numbers[0], unlike, limits, int(content["parts"]), numbers[1])
    charts = Charts(limits, reference.made_s)
    charts.resume(column("deviation"), column("out").astype(bool), column("began_s"))
    return reference, charts
