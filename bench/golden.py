"""A rule-based judge as engineers build it with OpenCV: golden template, tolerance for each pixel, largest blob.

The part is turned and shifted onto the template, compared with the mean of good parts within a tolerance that was
learnt for each pixel, and fails when what is beyond forms a blob of some area. Tolerance and area are tuned on
labelled images.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

SMALL = 4
"""Registration works on a copy that is so many times smaller."""

TOLERANCES = (3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
"""Standard deviations of a pixel that may be tried."""

LEAST_GREY = 4.0
"""Grey levels that are added to every pixel's standard deviation."""


@dataclass
class Golden:
    """A golden template with its tolerances; ``normalise``: every picture is brought to the template's brightness."""

    normalise: bool
    template: NDArray[np.float32]
    spread: NDArray[np.float32]
    inside: NDArray[np.bool_]
    tolerance: float = 5.0
    area: float = 20.0

    @classmethod
    def learn(cls, good: Sequence[NDArray[np.uint8]], *, normalise: bool) -> Golden:
        """Learn mean and spread of each pixel from good parts."""
        first = good[0].astype(np.float32)
        golden = cls(normalise, first, np.ones_like(first), np.ones(first.shape, bool))
        for _ in range(2):  # the second time onto the mean, which is nobody's own pose
            placed = np.stack([golden.place(image) for image in good])
            golden.template, golden.spread = placed.mean(axis=0), placed.std(axis=0) + LEAST_GREY
        border = np.zeros(first.shape, bool)
        border[8:-8, 8:-8] = True
        golden.inside = border
        return golden

    def place(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Turn and shift a picture onto the template."""
        height, width = image.shape
        size = (width // SMALL, height // SMALL)
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.float32)
        golden = cv2.resize(self.template, size, interpolation=cv2.INTER_AREA)
        warp = np.eye(2, 3, dtype=np.float32)
        stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 60, 1e-4)
        with contextlib.suppress(cv2.error):  # it does not look like the template: it will not fit and fail
            _, warp = cv2.findTransformECC(golden, small, warp, cv2.MOTION_EUCLIDEAN, stop, None, 5)
        warp[:, 2] *= SMALL
        placed = cv2.warpAffine(
            image, warp, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE
        ).astype(np.float32)
        if self.normalise:
            placed *= self.template.mean() / max(placed.mean(), 1.0)
        return placed

    def areas(self, image: NDArray[np.uint8], tolerances: Sequence[float]) -> list[float]:
        """Return the largest blob beyond each tolerance, in pixels."""
        away = np.abs(self.place(image) - self.template) / self.spread
        away[~self.inside] = 0
        found = []
        for tolerance in tolerances:
            _, _, stats, _ = cv2.connectedComponentsWithStats((away > tolerance).astype(np.uint8))
            found.append(float(stats[1:, cv2.CC_STAT_AREA].max()) if len(stats) > 1 else 0.0)
        return found

    def tune(self, good: Sequence[NDArray[np.uint8]], bad: Sequence[NDArray[np.uint8]]) -> float:
        """Choose tolerance and area with the best balanced accuracy; return that."""
        fine = np.array([self.areas(image, TOLERANCES) for image in good])
        faulty = np.array([self.areas(image, TOLERANCES) for image in bad])
        best = 0.0
        for column, tolerance in enumerate(TOLERANCES):
            for area in np.unique(np.concatenate([fine[:, column], faulty[:, column]])):
                right = ((fine[:, column] <= area).mean() + (faulty[:, column] > area).mean()) / 2
                if right > best:
                    best, self.tolerance, self.area = float(right), tolerance, float(area)
        return best

    def fails(self, image: NDArray[np.uint8]) -> bool:
        """Judge one picture."""
        return self.areas(image, [self.tolerance])[0] > self.area
