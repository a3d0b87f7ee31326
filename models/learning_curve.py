"""What more images would bring, for this product: accuracy over the number of images, fitted and carried on.

Heads are fitted on nested parts of the data, each larger one holding the smaller, and judge parts that none of them
has seen. Their error follows ``a * n ** -b + c`` as a rule; how far that can be carried on is what the interval says.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import least_squares

from lineward.models.dataset import DatasetError
from lineward.models.folds import split_holdout
from lineward.models.heads import fit_kernel, project_apart
from lineward.models.metrics import auroc, detection_at

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Progress = Callable[[int, int], None]

SPLITS = 6
HOLDOUT_SHARE = 0.3
SHARES = (0.2, 0.35, 0.55, 0.75, 1.0)
"""Parts of the training parts that are fitted on."""
TARGET = 1000
"""Images that a product is promised to need."""
BOOTSTRAPS = 400
MIN_DEFECTS = 4
"""Defective images in the smallest subset; a smaller one says nothing."""
MIN_HELD = 3
"""Defects of a type in a hold-out; of fewer no share is found."""
MAX_HALF_WIDTH = 0.05
"""A forecast less sure than this to either side is not worth a sentence with a number."""
MAX_REACH = 4.0
"""How many times as many images as there are a forecast may speak of."""
REJECTS = 0.05
"""Share of false rejects at which detection by type is compared: 2 % hangs on too few good images here."""


@dataclass(frozen=True, slots=True)
class Point:
    """Mean over splits: ``n`` images fitted on, AUROC and detection at 2 % false rejects on parts never seen."""

    n: int
    auroc: float
    detection: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """Accuracy with ``n`` images, 0..1, and its 95 % interval."""

    n: int
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Need:
    """What half of the images of one kind is worth.

    ``kind`` is a type of defect or "good"; ``detection`` with all, ``detection_half`` with half of its parts (for good:
    of all defects); ``lost`` is the difference and ``spread`` its standard error over splits.
    """

    kind: str
    images: int
    parts: int
    detection: float
    detection_half: float
    lost: float
    spread: float


@dataclass(frozen=True, slots=True)
class LearningCurve:
    """The measured curve, where it is now, where it would be at `TARGET`, and what helps most.

    ``now`` and ``target`` are None when they cannot be told; ``reason`` says why.
    """

    points: tuple[Point, ...]
    now: Forecast | None
    target: Forecast | None
    needs: tuple[Need, ...]
    reason: str

    def to_json(self) -> dict[str, object]:
        """Return plain numbers for `json.dumps`."""
        return asdict(self)

    def sentences(self) -> list[str]:
        """Say it to a person who decides whether to collect more images."""
        lines = []
        if self.now is not None and self.now.high - self.now.low > 4 * MAX_HALF_WIDTH:
            lines.append(f"Where you are with {self.now.n} images cannot be told: there are too few different parts.")
        elif self.now is not None:
            lines.append(
                f"At {self.now.n} images you are at {_share(self.now.low)}-{_share(self.now.high)} % "
                "(AUROC: how often a defective part scores above a good one)."
            )
        if self.target is not None:
            half = (self.target.high - self.target.low) / 2
            lines.append(
                f"{self.target.n:,} images would give {100 * self.target.value:.1f} ± {100 * half:.1f} %, if the new "
                "ones are of the same kinds as these."
            )
        if self.reason:
            lines.append(self.reason)
        best = self.best_need()
        if best is not None and best.kind == "good":
            lines.append(
                f"More good parts would help most: half of them less cost {100 * best.lost:.0f} points of detection."
            )
        elif best is not None:
            lines.append(
                f"{_more(best)} more {best.kind} would help most: with half of its parts "
                f"{100 * best.detection_half:.0f} % of them were found instead of {100 * best.detection:.0f} %."
            )
        elif self.needs:
            lines.append("Which kind of image would help most cannot be told from this set: the differences are noise.")
        return lines

    def best_need(self) -> Need | None:
        """Return what would help most, when that can be told from noise."""
        if not self.needs:
            return None
        first, *others = sorted(self.needs, key=lambda need: -need.lost)
        if first.lost <= max(0.02, 2 * first.spread):
            return None
        # What the next one loses may be as much: a winner is named when the two differ by more than their noise.
        close = [need for need in others if first.lost - need.lost <= 2 * math.hypot(first.spread, need.spread)]
        return None if close else first


def _share(value: float) -> str:
    return f"{100 * value:.1f}".removesuffix(".0")


def _more(need: Need) -> int:
    """Return how many more images to ask for: half of what there is, rounded to tens, between 20 and 50."""
    return int(min(50, max(20, round(need.images / 20) * 10)))


def learning_curve(
    pooled: NDArray[np.float32],
    labels: NDArray[np.bool_],
    groups: NDArray[np.int64],
    kinds: Sequence[str | None],
    *,
    seed: int = 0,
    target: int = TARGET,
    splits: int = SPLITS,
    progress: Progress | None = None,
) -> LearningCurve:
    """Measure and carry on.

    Parameters
    ----------
    pooled, labels, groups
        ``(n, d)`` float32 features; ``(n,)`` defective or not; ``(n,)`` the part on each image.
    kinds
        Type of defect of each image, "" without a type, None for good.
    target
        Number of images to speak of.
    splits
        How often to divide the parts anew; each costs five fits, and one for each type of defect.
    progress
        Called with steps done and total.
    """
    rows: list[list[tuple[int, float, float]]] = []
    types = _types(labels, groups, kinds)
    losses: dict[str, list[tuple[float, float]]] = {kind: [] for kind in types}
    for number in range(splits):
        try:
            train, held = split_holdout(labels, groups, HOLDOUT_SHARE, seed + number)
        except DatasetError as error:
            return LearningCurve((), None, None, (), f"What more images would bring cannot be told: {error}.")
        row, whole = [], np.zeros(len(held))
        for share in SHARES:
            chosen = _nested(train, labels, groups, share, seed + number)
            if labels[chosen].sum() < MIN_DEFECTS or (~labels[chosen]).sum() < MIN_DEFECTS:
                continue
            whole = _scores(pooled, labels, chosen, held, seed)
            row.append((len(chosen), auroc(labels[held], whole), detection_at(labels[held], whole, 0.02)))
        rows.append(row)
        for kind, named in types.items():
            wanted = labels[held] if kind == "good" else named[held]
            fewer = _half_of(named, groups, train, seed + number)
            if fewer is not None and wanted.sum() >= MIN_HELD:
                half = _scores(pooled, labels, fewer, held, seed)
                losses[kind].append(_detections(wanted, ~labels[held], whole, half))
        if progress:
            progress(number + 1, splits)
    needs = tuple(_need(kind, types[kind], groups, pairs) for kind, pairs in losses.items() if len(pairs) >= 3)
    count = min(len(row) for row in rows)
    if count < 3:
        return LearningCurve((), None, None, needs, "There are too few images to see a curve: collect more first.")
    table = np.array([row[-count:] for row in rows])
    points = tuple(Point(round(n), float(a), float(d)) for n, a, d in table.mean(axis=0))
    errors = np.clip(1 - table[:, :, 1], 1e-4, 0.6)
    spread = _spread(1 - float(errors[:, -1].mean()), labels, groups)
    now, then, reason = _carry_on(table[:, :, 0].mean(axis=0), errors, spread, len(labels), target, seed=seed)
    return LearningCurve(points, now, then, needs, reason)


def _types(
    labels: NDArray[np.bool_], groups: NDArray[np.int64], kinds: Sequence[str | None]
) -> dict[str, NDArray[np.bool_]]:
    """Return which images are of each kind that has enough parts to halve, good ones included."""
    names = sorted({kind for kind in kinds if kind})
    masks = {name: np.array([kind == name for kind in kinds]) for name in names} | {"good": ~labels}
    return {name: mask for name, mask in masks.items() if len(set(groups[mask].tolist())) >= 6}


def _nested(
    train: NDArray[np.int64], labels: NDArray[np.bool_], groups: NDArray[np.int64], share: float, seed: int
) -> NDArray[np.int64]:
    """Take a share of the parts of each label; a larger share holds every smaller one of the same seed."""
    random = np.random.default_rng(seed)
    chosen = np.zeros(len(train), bool)
    for kind in (False, True):
        mine = labels[train] == kind
        parts = random.permutation(np.unique(groups[train][mine]))
        taken = parts[: max(2, round(share * len(parts)))]
        chosen |= mine & np.isin(groups[train], taken)
    return train[chosen]


def _scores(
    pooled: NDArray[np.float32],
    labels: NDArray[np.bool_],
    chosen: NDArray[np.int64],
    held: NDArray[np.int64],
    seed: int,
) -> NDArray[np.float64]:
    known, asked = project_apart(pooled[chosen], pooled[held], seed)
    return fit_kernel(known, labels[chosen], seed).score_projected(asked)


def _half_of(
    named: NDArray[np.bool_], groups: NDArray[np.int64], train: NDArray[np.int64], seed: int
) -> NDArray[np.int64] | None:
    """Take half of the parts of one kind out of the training images; None when there are too few to halve."""
    mine = named[train]
    parts = np.random.default_rng(seed).permutation(np.unique(groups[train][mine]))
    return train[~mine | np.isin(groups[train], parts[: len(parts) // 2])] if len(parts) >= 4 else None


def _detections(
    wanted: NDArray[np.bool_], good: NDArray[np.bool_], whole: NDArray[np.float64], half: NDArray[np.float64]
) -> tuple[float, float]:
    """Return which share of the ``wanted`` defects is found among good parts, by two scores."""
    judged = wanted | good
    return (
        detection_at(wanted[judged], whole[judged], REJECTS),
        detection_at(wanted[judged], half[judged], REJECTS),
    )


def _need(kind: str, named: NDArray[np.bool_], groups: NDArray[np.int64], pairs: list[tuple[float, float]]) -> Need:
    found = np.array(pairs)
    lost = found[:, 0] - found[:, 1]
    spread = float(lost.std(ddof=1) / np.sqrt(len(lost)))
    parts = len(set(groups[named].tolist()))
    detection, half = found.mean(axis=0)
    return Need(kind, int(named.sum()), parts, float(detection), float(half), float(lost.mean()), spread)


def are_batches(labels: NDArray[np.bool_], groups: NDArray[np.int64]) -> bool:
    """Tell whether groups are batches of parts rather than parts: most of those with defects have good images, too."""
    defective, good = set(groups[labels].tolist()), set(groups[~labels].tolist())
    return len(defective & good) > len(defective) / 2


def _spread(area: float, labels: NDArray[np.bool_], groups: NDArray[np.int64]) -> float:
    """Return the standard error of ``1 - area`` for having no other parts than these, relative to it.

    After Hanley and McNeil, 1982, counting parts: several pictures of one part are hardly more than one. In batches
    each picture shows a part of its own.
    """
    if are_batches(labels, groups):
        n, m = int(labels.sum()), int((~labels).sum())
    else:
        n, m = (len(set(groups[mask].tolist())) for mask in (labels, ~labels))
    both, twice = area / (2 - area), 2 * area**2 / (1 + area)
    variance = (area * (1 - area) + (n - 1) * (both - area**2) + (m - 1) * (twice - area**2)) / (n * m)
    return float(np.sqrt(variance) / (1 - area))


def _carry_on(
    sizes: NDArray[np.float64], errors: NDArray[np.float64], spread: float, n: int, target: int, *, seed: int
) -> tuple[Forecast | None, Forecast | None, str]:
    """Fit the power law to errors drawn again and again; ``errors`` is ``(splits, sizes)``, ``spread`` relative."""
    splits = len(errors)
    random = np.random.default_rng(seed)
    now, then = [], []
    for _ in range(BOOTSTRAPS):
        # Two things are left to chance: how the parts were divided, and which parts there are in the first place.
        mean = errors[random.integers(0, splits, splits)].mean(axis=0)
        mean = np.clip(mean * np.exp(random.normal(0, spread)), 1e-4, 0.6)
        # Nobody knows the floor below which more images do not help: anything up to the present error may be it.
        floor = float(random.uniform(0, mean[-1]))
        scale, power = _power_law(sizes, mean, floor)
        now.append(floor + scale * n**-power)
        then.append(floor + scale * target**-power)
    here = _forecast(n, np.array(now))
    if target < 1.1 * n:
        return here, None, f"{target:,} images, which is what a product is promised to need, are there already."
    if target > MAX_REACH * n:
        least = round(target / MAX_REACH)
        return here, None, f"What {target:,} images would bring cannot be told from {n}: ask again with {least}."
    there = _forecast(target, np.array(then))
    if there.high - there.low > 2 * MAX_HALF_WIDTH:
        return here, None, f"What {target:,} images would bring cannot be told: the curve is too uneven to carry on."
    return here, there, ""


def _power_law(sizes: NDArray[np.float64], errors: NDArray[np.float64], floor: float) -> tuple[float, float]:
    """Fit ``errors = floor + scale * n ** -power``; errors do not grow with more images, so ``power`` is at least 0."""
    reference = float(sizes[-1])

    def residual(parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        expected = floor + np.exp(parameters[0]) * (sizes / reference) ** -parameters[1]
        return np.asarray(np.log(expected) - np.log(errors), np.float64)

    start = [np.log(max(errors[-1] - floor, 1e-6)), 0.3]
    found = least_squares(residual, start, bounds=([-20.0, 0.0], [1.0, 2.0]))
    power = float(found.x[1])
    return float(np.exp(found.x[0]) * reference**power), power


def _forecast(n: int, errors: NDArray[np.float64]) -> Forecast:
    low, middle, high = np.quantile(errors, [0.025, 0.5, 0.975])
    return Forecast(n, float(1 - middle), float(1 - high), float(1 - low))
