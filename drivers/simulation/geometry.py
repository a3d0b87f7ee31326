"""Signed distances and edge shading of machined parts, in part units.

One part unit is the height of the picture (for pictures narrower than 5:4, four fifths of its width); the origin is the
picture's centre, x to the right and y down. Distances are negative inside, in the tradition of signed distance fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Field: TypeAlias = "NDArray[np.float32]"

LIGHT = (-0.6, -0.8)
"""Where the light comes from in the picture: the upper left, as on a drawing."""


@dataclass(frozen=True)
class Grid:
    """The pixel centres of a rectangle of the picture.

    Attributes
    ----------
    x, y
        Part coordinates, float32, broadcastable to ``(h, w)``: x is ``(1, w)`` and y is ``(h, 1)``.
    pixel
        Size of one pixel in part units.
    """

    x: Field
    y: Field
    pixel: float


@dataclass(frozen=True)
class Frustum:
    """How pixels and part units belong together in a picture of one size.

    Attributes
    ----------
    width, height
        Picture size in pixels.
    """

    width: int
    height: int

    @property
    def scale(self) -> float:
        """Pixels per part unit."""
        return min(float(self.height), self.width * 0.8)

    def grid(self, left: int, top: int, right: int, bottom: int) -> Grid:
        """Part coordinates of the pixels ``[top:bottom, left:right]``; the rectangle may reach outside the picture."""
        x = (np.arange(left, right, dtype=np.float32) + np.float32(0.5 - self.width / 2)) / np.float32(self.scale)
        y = (np.arange(top, bottom, dtype=np.float32) + np.float32(0.5 - self.height / 2)) / np.float32(self.scale)
        return Grid(x[None, :], y[:, None], 1.0 / self.scale)

    def box(self, x: float, y: float, reach: float) -> tuple[int, int, int, int]:
        """``(left, top, right, bottom)`` in pixels of a square around a point, cut to the picture, never empty."""
        column, row = x * self.scale + self.width / 2, y * self.scale + self.height / 2
        half = reach * self.scale + 2
        left, top = max(0, min(self.width - 1, int(column - half))), max(0, min(self.height - 1, int(row - half)))
        right, bottom = min(self.width, int(column + half) + 1), min(self.height, int(row + half) + 1)
        return left, top, max(left + 1, right), max(top + 1, bottom)


@dataclass(frozen=True)
class Opening:
    """A hole or slot with its countersink.

    Attributes
    ----------
    x, y, radius, chamfer
        Part units; the chamfer lies outside the radius.
    length
        Half length of a slot along y; 0 for a round hole.
    threaded
        A tapped hole shows the rings of its thread.
    """

    x: float
    y: float
    radius: float
    chamfer: float
    length: float = 0.0
    threaded: bool = False

    @property
    def reach(self) -> float:
        """Radius of the circle around everything that belongs to it."""
        return self.radius + self.chamfer + self.length

    def distance(self, grid: Grid) -> tuple[Field, Field, Field]:
        """Signed distance to the rim and the unit vector that points away from the opening."""
        dx = grid.x - np.float32(self.x)
        dy = grid.y - np.float32(self.y)
        dy = dy - np.clip(dy, -self.length, self.length).astype(np.float32)
        away = np.sqrt(dx * dx + dy * dy)
        inverse = 1.0 / np.maximum(away, np.float32(1e-6))
        return away - np.float32(self.radius), dx * inverse, dy * inverse


def field(values: object) -> Field:
    """Make sure of float32: half the memory of float64, and what the masters are drawn in."""
    return np.asarray(values, np.float32)


def rounded_box(grid: Grid, half_x: float, half_y: float, corner: float) -> Field:
    """Signed distance to a rectangle with round corners around the origin."""
    qx = np.abs(grid.x) - np.float32(half_x - corner)
    qy = np.abs(grid.y) - np.float32(half_y - corner)
    outside = np.sqrt(np.maximum(qx, 0) ** 2 + np.maximum(qy, 0) ** 2)
    return field(outside + np.minimum(np.maximum(qx, qy), 0) - np.float32(corner))


def inside(distance: Field, pixel: float) -> Field:
    """Coverage 0..1 of a pixel by a shape, from the signed distance of its centre."""
    return field(np.clip(0.5 - distance / np.float32(pixel), 0, 1))


def towards_light(nx: Field, ny: Field) -> Field:
    """Cosine -1..1 between a direction in the picture and the light."""
    return field(nx * np.float32(LIGHT[0]) + ny * np.float32(LIGHT[1]))


def slope(distance: Field, pixel: float) -> tuple[Field, Field]:
    """Gradient of a distance: the direction away from the shape. Needs at least 2 x 2 pixels."""
    dy, dx = np.gradient(distance, np.float32(pixel))
    return field(dx), field(dy)


def mix(below: Field, above: Field | float, share: Field) -> Field:
    """Linear blend: ``below`` where the share is 0, ``above`` where it is 1."""
    return below + (above - below) * share


def sink(level: Field, opening: Opening, grid: Grid, *, face: float, contrast: float) -> Field:
    """Cut an opening into a face: countersink, the lit inner wall, darkness below.

    Parameters
    ----------
    level
        ``(h, w)`` float32 reflectance 0..1 of the face.
    face
        Mean reflectance of the countersink.
    contrast
        How much the countersink's brightness follows the light; 0 under a ring light.
    """
    rim, nx, ny = opening.distance(grid)
    lit = towards_light(nx, ny)
    if opening.chamfer > 0:
        # The countersink falls towards the hole, so its far side from the light is the bright one.
        flank = face * (1 - contrast * lit)
        level = mix(level, flank, inside(rim - opening.chamfer, grid.pixel))
        edge = np.exp(-(((rim - opening.chamfer) / (1.1 * grid.pixel + 0.0006)) ** 2))
        level = level * (1 + 0.16 * edge)
    # Under a ring light walls are lit alike all round, so that nothing turns with the part.
    shine = np.maximum(-lit, 0) if contrast > 0 else np.full_like(lit, 0.4)
    wall = 0.42 * shine * np.exp(np.minimum(rim, 0) / np.float32(min(0.03, 0.35 * opening.radius) + 0.002))
    if opening.threaded:
        wall = (wall + 0.12) * (1 + 0.8 * np.sin(rim * np.float32(2 * np.pi / 0.0065)))
        wall = wall * np.exp(np.minimum(rim, 0) / np.float32(0.5 * opening.radius))
    return mix(level, wall.astype(np.float32), inside(rim, grid.pixel))
