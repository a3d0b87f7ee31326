"""What light does on metal and in a sensor: tool marks, lighting, the belt below, sensor noise; all 8 bit and seeded.

Everything here is drawn once when a scene is made; a frame only multiplies and adds slices of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from lineward.drivers.simulation.geometry import field

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from lineward.drivers.simulation.geometry import Field, Frustum, Grid

TEXTURE_ONE = 128
"""Value of a texture that leaves reflectance as it is."""

LIGHT_ONE = 180
"""Value of a light field at nominal brightness, so that a highlight may reach 1.4 times of it."""

NOISE_ONE = 40.0
"""Standard deviation of the noise bank around 128."""

STRIP_ROWS = 128
"""Rows drawn at a time: float intermediates of a 5 MP scene stay below 10 MB and in cache."""


def in_strips(
    frustum: Frustum, box: tuple[int, int, int, int], draw: Callable[[Grid], Field], one: float
) -> NDArray[np.uint8]:
    """Draw a rectangle of the picture strip by strip.

    Parameters
    ----------
    box
        ``(left, top, right, bottom)`` in pixels; may reach outside the picture.
    draw
        Called with a grid one pixel larger on each side, so that slopes are exact at the seams.
    one
        The 8-bit value of 1.0.

    Returns
    -------
    ``(bottom - top, right - left)`` uint8.
    """
    left, top, right, bottom = box
    picture = np.empty((bottom - top, right - left), np.uint8)
    for row in range(top, bottom, STRIP_ROWS):
        end = min(bottom, row + STRIP_ROWS)
        strip = draw(frustum.grid(left - 1, row - 1, right + 1, end + 1))[1:-1, 1:-1]
        picture[row - top : end - top] = np.clip(strip * np.float32(one) + np.float32(0.5), 0, 255)
    return picture


def wave(position: Field, table: NDArray[np.float32]) -> Field:
    """Values of a periodic table at fractional positions, linearly interpolated."""
    whole = np.floor(position)
    share = position - whole
    first = whole.astype(np.int32) % len(table)
    left = table[first]
    return field(left + (table[(first + 1) % len(table)] - left) * share)


def _grain(rng: np.random.Generator, shape: tuple[int, int], blur_px: float) -> Field:
    """Gaussian grain of standard deviation 1 and a given softness."""
    grain = rng.standard_normal(shape, dtype=np.float32)
    if blur_px > 0.3:
        # Wrapped round before blurring, so that repeating it shows no seam.
        edge = int(4 * blur_px) + 1
        wrapped = cv2.copyMakeBorder(grain, edge, edge, edge, edge, cv2.BORDER_WRAP)
        grain = field(cv2.GaussianBlur(wrapped, (0, 0), blur_px)[edge:-edge, edge:-edge])
        grain /= max(float(grain.std()), 1e-6)
    return grain


def _tiled(bank: Field, grid: Grid) -> Field:
    """Repeat a bank over the picture, at one pixel per pixel."""
    rows = np.round(grid.y[:, 0] / np.float32(grid.pixel)).astype(np.int64) % bank.shape[0]
    columns = np.round(grid.x[0] / np.float32(grid.pixel)).astype(np.int64) % bank.shape[1]
    return field(bank[rows[:, None], columns[None, :]])


def milled(rng: np.random.Generator) -> Callable[[Grid], Field]:
    """Face milling: arcs of a large cutter at the pitch of its feed, and the weaker ones its back edge leaves."""
    cutter, pitch = rng.uniform(0.55, 0.75), rng.uniform(0.010, 0.013)
    centre = rng.uniform(-0.12, 0.12)
    line = (1 + 0.45 * rng.standard_normal(257)).astype(np.float32)
    fine = rng.standard_normal(4099).astype(np.float32)
    back = rng.standard_normal(2053).astype(np.float32)

    def draw(grid: Grid) -> Field:
        dy = np.clip(grid.y - np.float32(centre), -0.98 * cutter, 0.98 * cutter)
        bow = np.sqrt(np.float32(cutter) ** 2 - dy * dy)
        front = field((grid.x + bow) / np.float32(pitch))
        cusp = np.abs(front - np.floor(front) - np.float32(0.5)) * 4 - 1
        marks = 0.050 * cusp * wave(front, line) + 0.034 * wave(field(front * 3.1), fine)
        marks += 0.030 * wave(field((grid.x - bow) / np.float32(0.4 * pitch)), back)
        return field(1 + marks)

    return draw


def turned(rng: np.random.Generator) -> Callable[[Grid], Field]:
    """Facing on a lathe: one spiral groove, with the waviness of the feed."""
    pitch = rng.uniform(0.0068, 0.0082)
    line = (1 + 0.5 * rng.standard_normal(131)).astype(np.float32)
    fine = rng.standard_normal(1021).astype(np.float32)
    slow = rng.standard_normal(61).astype(np.float32)

    def draw(grid: Grid) -> Field:
        radius = np.sqrt(grid.x * grid.x + grid.y * grid.y)
        # Only the whole groove may depend on the angle, or it would show a seam where the angle wraps round.
        rings = field(radius / np.float32(pitch))
        turns = rings + np.arctan2(grid.y, grid.x) / np.float32(2 * np.pi)
        cusp = np.abs(turns - np.floor(turns) - np.float32(0.5)) * 4 - 1
        marks = 0.050 * cusp * wave(rings, line) + 0.036 * wave(field(rings * 2.7), fine)
        marks += 0.02 * wave(field(rings * 0.31), slow)
        return field(1 + marks)

    return draw


def texture(
    frustum: Frustum, margin: int, marks: Callable[[Grid], Field], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Tool marks with the grain of the metal.

    Returns
    -------
    ``(H + 2 margin, W + 2 margin)`` uint8, `TEXTURE_ONE` in the mean.
    """
    grain_px = 0.0016 * frustum.scale
    bank = _grain(rng, (512, 509), grain_px)

    def draw(grid: Grid) -> Field:
        return field(marks(grid) + np.float32(0.022) * _tiled(bank, grid))

    box = (-margin, -margin, frustum.width + margin, frustum.height + margin)
    return in_strips(frustum, box, draw, TEXTURE_ONE)


def bar_light(frustum: Frustum, margin: int) -> NDArray[np.uint8]:
    """Light from a bar at the upper left: a gradient over the picture, a soft hot spot, and the lens's fall-off."""

    def draw(grid: Grid) -> Field:
        gradient = 0.98 - 0.17 * grid.x - 0.14 * grid.y
        spot = 0.16 * np.exp(-((grid.x + 0.2) ** 2 + (grid.y + 0.16) ** 2) / np.float32(0.09))
        return field((gradient + spot) * (1 - 0.22 * (grid.x**2 + grid.y**2)))

    return in_strips(frustum, (-margin, -margin, frustum.width + margin, frustum.height + margin), draw, LIGHT_ONE)


def ring_light(frustum: Frustum, margin: int) -> NDArray[np.uint8]:
    """Light of a ring on a turned face: the two bright fans which grooves reflect across the light's joints."""

    def draw(grid: Grid) -> Field:
        radius2 = grid.x**2 + grid.y**2
        along = (grid.x * np.float32(0.82) + grid.y * np.float32(0.57)) ** 2 / (radius2 + np.float32(0.004))
        fans = 0.42 * along**3 + 0.14 * (1 - along) ** 4
        return field((0.78 + fans - 0.05 * grid.y) * (1 - 0.20 * radius2))

    return in_strips(frustum, (-margin, -margin, frustum.width + margin, frustum.height + margin), draw, LIGHT_ONE)


def belt(frustum: Frustum, margin: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw the rubber belt below the part: dark, faintly woven, with lint."""
    lint = _grain(rng, (512, 509), 0.002 * frustum.scale)
    blotch = _grain(rng, (512, 509), 0.02 * frustum.scale)

    def draw(grid: Grid) -> Field:
        weave = np.sin(grid.x * np.float32(2 * np.pi / 0.021)) * np.sin(grid.y * np.float32(2 * np.pi / 0.013))
        spots, soft = _tiled(lint, grid), _tiled(blotch, grid)
        return field(0.085 + 0.008 * weave + 0.007 * spots + 0.006 * soft + 0.03 * np.maximum(spots - 2.6, 0))

    return in_strips(frustum, (-margin, -margin, frustum.width + margin, frustum.height + margin), draw, 255)


def sensor_noise(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.uint8]:
    """White noise around 128 with standard deviation `NOISE_ONE`; ``shape`` uint8."""
    bank = np.empty(shape, np.uint8)
    for row in range(0, shape[0], STRIP_ROWS):
        rows = bank[row : row + STRIP_ROWS]
        values = rng.standard_normal(rows.shape, dtype=np.float32) * np.float32(NOISE_ONE) + np.float32(128.5)
        rows[:] = np.clip(values, 0, 255)
    return bank
