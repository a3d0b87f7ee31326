"""Which input size: from the size of the images, and from what each candidate reaches on inner grouped folds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lineward.images import read_image
from lineward.models.folds import fitting_folds
from lineward.models.heads import fit_kernel, project_apart
from lineward.models.metrics import auroc, detection_at
from lineward.models.workers import workers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from lineward.models.features import Source

SAMPLE = 32
"""Images whose size is looked at."""
STEP = 32
"""Sizes are multiples of the coarsest stride."""
LARGE_PX, HUGE_PX = 600, 1000
"""Long side of an image from which an input of 512, and one of 640, is tried."""
FINEST = 800
"""Side of an input that is tried for such an image only when 640 was better than all below: a crack of one pixel in a
frame of 500 x 1240 is a fraction of one at 640. A part takes about 1.6 times as long. Measured in decision 0021."""
NEARLY_SQUARE = 1.4
"""Up to this aspect the input is square."""
MARGIN = 0.01
"""A larger input must be better by this much: it costs time on every part."""
USUAL_PX, USUAL_MARGIN = 320, -0.05
"""Up to this side, whose time every line has, a larger input may look worse by this much and is still taken.

On parts that were in no training 320 px was better than 224 in 16 of 20 splits of two sets, by 0.045 on average, while
the figures on inner folds scatter by 0.05 around it: they chose 224 in 12 of 20.
"""
WORKING_POINTS = (0.01, 0.02, 0.05)

Size = tuple[int, int]


def candidate_sizes(
    sources: Sequence[Source], roi: tuple[float, float, float, float] | None
) -> tuple[list[Size], Size | None]:
    """Return heights and widths worth trying, smallest first, and one that is worth it if the last of them is best.

    Long images keep their aspect.
    """
    step = max(len(sources) // SAMPLE, 1)
    shapes = np.array([read_image(source.path).shape[:2] for source in sources[::step]], float)
    if roi:
        shapes *= (roi[3], roi[2])
    height, width = np.median(shapes, axis=0)
    sides = [224, 320]
    if max(height, width) >= LARGE_PX:
        sides = [320, 512]
    finer = None
    if max(height, width) >= HUGE_PX:
        sides, finer = [320, 512, 640], FINEST
    aspect = float(np.median(shapes[:, 1] / shapes[:, 0]))
    if 1 / NEARLY_SQUARE <= aspect <= NEARLY_SQUARE:
        aspect = 1.0
    aspect = min(max(aspect, 0.25), 4.0)
    return [_input(side, aspect) for side in sides], None if finer is None else _input(finer, aspect)


def _input(side: int, aspect: float) -> Size:
    return _multiple(side / aspect**0.5), _multiple(side * aspect**0.5)


def _multiple(pixels: float) -> int:
    return max(round(pixels / STEP), 2) * STEP


def choose_size(
    pooled: Mapping[Size, NDArray[np.float32]],
    labels: NDArray[np.bool_],
    groups: NDArray[np.int64],
    seed: int,
    *,
    threads: int = 2,
) -> tuple[Size, dict[Size, float]]:
    """Compare sizes by a kernel head on inner grouped folds; returns the choice and each one's figure.

    The figure is AUROC plus mean detection at three shares of false rejects. Of nearly equal ones the larger is taken
    up to `USUAL_PX`, the smaller beyond.
    """
    folds = fitting_folds(labels, groups, seed)
    figures: dict[Size, float] = {}
    best: Size | None = None
    for size, features in pooled.items():
        scores = _cross_fitted(features, labels, folds, seed, threads)
        detection = float(np.mean([detection_at(labels, scores, point) for point in WORKING_POINTS]))
        figures[size] = auroc(labels, scores) + detection
        usual = size[0] * size[1] <= 1.2 * USUAL_PX**2  # sides are rounded
        if best is None or figures[size] > figures[best] + (USUAL_MARGIN if usual else MARGIN):
            best = size
    assert best is not None
    return best, figures


def _cross_fitted(
    features: NDArray[np.float32], labels: NDArray[np.bool_], folds: NDArray[np.int64], seed: int, threads: int
) -> NDArray[np.float64]:
    scores = np.empty(len(labels))

    def cross(fold: int) -> None:
        inside = folds != fold
        known, asked = project_apart(features[inside], features[~inside], seed)
        scores[~inside] = fit_kernel(known, labels[inside], seed).score_projected(asked)

    with workers(threads, "sizes") as pool:
        list(pool.map(cross, range(int(folds.max()) + 1)))
    return scores
