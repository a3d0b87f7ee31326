"""What is measured of every picture: a small copy of it, brightness by zone, sharpness. About 0.4 ms on a core of 2023.

A large picture is read in steps, so that its measurement costs the same as that of a small one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIDE = 64
"""Pixels on a side of the small copy, whatever the picture's own shape."""

ZONES = 3
"""The picture is read in 3 x 3 zones: a lamp fails at one end, a lens tilts to one side."""

REACH = 6
"""A part is looked for so many pixels of the small copy around its place: 9 % of the picture."""

LARGE = 800
"""A side beyond which a picture is read in steps, so that about `READ` of its pixels are left."""
READ = 400

CROP = 512
"""Side of the middle part, at full resolution, on which sharpness is measured."""

FLAT = 1.0
"""Grey levels of standard deviation below which a picture shows nothing."""

_EDGES = [round(SIDE * i / ZONES) for i in range(ZONES + 1)]


@dataclass(frozen=True, slots=True)
class Measurement:
    """One picture in figures.

    Attributes
    ----------
    small
        ``(64, 64)`` uint8, grey.
    zones
        ``(3, 3)`` float64, mean grey value 0..255.
    sharpness
        Detail of a few pixels relative to brightness, no unit: compare it only on the same scene. 0 without any.
    """

    small: NDArray[np.uint8]
    zones: NDArray[np.float64]
    sharpness: float


def measure(image: NDArray[np.uint8]) -> Measurement:
    """Measure ``(H, W)`` or ``(H, W, 3)`` RGB uint8.

    Raises
    ------
    ValueError
        The array is not such an image.
    """
    if image.dtype != np.uint8 or image.ndim not in {2, 3} or min(image.shape[:2]) < 1:
        raise ValueError(f"not a picture: shape {image.shape}, {image.dtype}")
    height, width = image.shape[:2]
    steps = image[:: _step(height), :: _step(width)]
    grey = _grey(np.ascontiguousarray(steps))
    top, left = max(0, (height - CROP) // 2), max(0, (width - CROP) // 2)
    middle = grey if grey.shape == (height, width) else _grey(image[top : top + CROP, left : left + CROP])
    half = _halved(middle)
    brightness = cv2.mean(half)[0]
    detail = float(cv2.norm(cv2.Laplacian(half, cv2.CV_16S))) / np.sqrt(half.size)
    while min(grey.shape) >= 4 * SIDE:
        grey = _halved(grey)
    small = np.asarray(cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.uint8)
    rows = np.add.reduceat(small, _EDGES[:-1], axis=0, dtype=np.int64)
    sums = np.add.reduceat(rows, _EDGES[:-1], axis=1)
    sizes = np.diff(_EDGES)
    return Measurement(small, sums / np.outer(sizes, sizes), detail / brightness if brightness > 0 else 0.0)


def _step(side: int) -> int:
    return 1 if side <= LARGE else -(-side // READ)


def _grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if image.ndim == 2:
        return image
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)


def _halved(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Halve both sides; cheap, and it takes the sensor's noise away."""
    size = (max(1, grey.shape[1] // 2), max(1, grey.shape[0] // 2))
    return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.uint8)


@dataclass(frozen=True, slots=True)
class Likeness:
    """How much a picture looks like the template.

    Attributes
    ----------
    distance
        0: the same but for brightness and contrast; 1: nothing in common; up to 2.
    right, down
        Where the part lies against the template, as shares of width and height; -0.09..0.09.
    """

    distance: float
    right: float
    down: float


def compare(small: NDArray[np.uint8], template: NDArray[np.uint8]) -> Likeness:
    """Compare two small copies at the place where they fit best; brightness and contrast do not matter."""
    if float(cv2.meanStdDev(small)[1][0, 0]) < FLAT:
        return Likeness(1.0, 0.0, 0.0)  # of a picture without contrast OpenCV says that it fits
    room = cv2.copyMakeBorder(small, REACH, REACH, REACH, REACH, cv2.BORDER_REPLICATE)
    fits = cv2.matchTemplate(room, template, cv2.TM_CCOEFF_NORMED)
    _, best, _, (x, y) = cv2.minMaxLoc(fits)
    right = x - REACH + _summit(fits[y, max(0, x - 1) : x + 2])
    down = y - REACH + _summit(fits[max(0, y - 1) : y + 2, x])
    return Likeness(1.0 - float(best), right / SIDE, down / SIDE)


def _summit(values: NDArray[Any]) -> float:
    """Return where a parabola through three values is highest, -0.5..0.5 from the middle one; 0 at an edge."""
    if len(values) != 3:
        return 0.0
    before, middle, after = (float(value) for value in values)
    bend = before - 2 * middle + after
    return 0.0 if bend >= 0 else 0.5 * (before - after) / bend
