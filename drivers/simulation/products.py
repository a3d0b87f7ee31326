"""The parts on the line: a milled aluminium bracket and a turned brass flange."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lineward.drivers.simulation import surfaces
from lineward.drivers.simulation.geometry import (
    Opening,
    field,
    inside,
    mix,
    rounded_box,
    sink,
    slope,
    towards_light,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from lineward.drivers.simulation.geometry import Field, Frustum, Grid


@dataclass(frozen=True)
class Product:
    """One kind of part.

    Attributes
    ----------
    openings
        All holes and slots; the first `drilled` of them are the ones a drill can miss.
    body
        ``grid -> (level, edge)``: reflectance 0..1 of the part without openings, and the signed distance to its
        outline, negative inside.
    marks, light
        The tool marks of one batch, and the lighting.
    turn_deg, shift
        How far parts lie from their nominal pose: half ranges in degrees and part units.
    marks_follow_part
        True where tool marks are fixed to the part's geometry, as on a lathe; else they begin anywhere.
    countersink
        Mean reflectance of countersinks, and how much it follows the light.
    tint
        Red, green and blue of the metal relative to its grey value.
    rims
        Openings at which burrs stay and cracks begin.
    """

    name: str
    title: str
    openings: tuple[Opening, ...]
    drilled: int
    body: Callable[[Grid], tuple[Field, Field]]
    marks: Callable[[np.random.Generator], Callable[[Grid], Field]]
    light: Callable[[Frustum, int], NDArray[np.uint8]]
    turn_deg: float
    shift: float
    marks_follow_part: bool
    countersink: tuple[float, float]
    tint: tuple[float, float, float]
    rims: tuple[Opening, ...]

    def reflectance(self, grid: Grid, openings: Sequence[Opening] | None = None) -> Field:
        """Reflectance 0..1 before tool marks and light, ``(h, w)`` float32; 0 where one sees the belt.

        Parameters
        ----------
        openings
            What is drilled; by default everything on the drawing.
        """
        level, edge = self.body(grid)
        face, contrast = self.countersink
        for opening in self.openings if openings is None else openings:
            level = sink(level, opening, grid, face=face, contrast=contrast)
        return mix(np.zeros_like(level), level, inside(edge, grid.pixel))

    def clearance(self, grid: Grid) -> Field:
        """Distance of each point to the nearest edge, chamfer or opening; positive on the plain face."""
        _, edge = self.body(grid)
        free = -edge - np.float32(0.02)
        for opening in self.openings:
            rim, _, _ = opening.distance(grid)
            free = np.minimum(free, rim - np.float32(opening.chamfer))
        return field(free)


def _chamfered(level: Field, edge: Field, grid: Grid, *, width: float, face: float, contrast: float) -> Field:
    """Give an outline its chamfer and the bright line where chamfer and face meet."""
    nx, ny = slope(edge, grid.pixel)
    flank = face * (1 + contrast * towards_light(nx, ny))
    level = mix(level, flank, inside(-edge - np.float32(width), grid.pixel))
    meet = np.exp(-(((edge + width) / (1.1 * grid.pixel + 0.0006)) ** 2))
    return field(level * (1 + 0.20 * meet))


def _bracket_body(grid: Grid) -> tuple[Field, Field]:
    plate = rounded_box(grid, 0.50, 0.385, 0.05)
    # One corner is cut at 45 degrees, so that nobody mounts it the wrong way round.
    plate = np.maximum(plate, (grid.x - grid.y - np.float32(0.79)) * np.float32(math.sqrt(0.5)))
    level = np.full(plate.shape, 0.62, np.float32)
    level = _chamfered(level, plate, grid, width=0.013, face=0.60, contrast=0.45)
    # A seat is milled around the bore: a shallow step whose wall catches or loses the light.
    dx, dy = grid.x - np.float32(_BORE.x), grid.y - np.float32(_BORE.y)
    away = np.sqrt(dx * dx + dy * dy)
    seat = away - np.float32(0.205)
    level = mix(level, 0.545, inside(seat, grid.pixel))
    lit = towards_light(dx, dy) / np.maximum(away, np.float32(1e-6))
    level = level * (1 - 0.40 * lit * np.exp(-((seat / (0.9 * grid.pixel + 0.0024)) ** 2)))
    return level, plate


def _flange_body(grid: Grid) -> tuple[Field, Field]:
    radius = np.sqrt(grid.x * grid.x + grid.y * grid.y)
    edge = radius - np.float32(0.455)
    level = np.full(radius.shape, 0.60, np.float32)
    # Rotation must not move shadows, so every step on this part is drawn as a ring light shows it: dark flanks.
    for at, width, depth in ((0.435, 0.010, 0.42), (0.262, 0.007, 0.50), (0.245, 0.004, -0.18), (0.408, 0.004, 0.30)):
        level = level * (1 - depth * np.exp(-(((radius - np.float32(at)) / (width + 0.6 * grid.pixel)) ** 2)))
    level = mix(level, level * 1.12, inside(radius - np.float32(0.250), grid.pixel))
    level = mix(level * 0.80, level, inside(radius - np.float32(0.436), grid.pixel))
    return level, edge


_BORE = Opening(-0.17, 0.03, 0.135, 0.012)
_SLOT = Opening(0.255, 0.01, 0.042, 0.007, length=0.13)
_CORNERS = tuple(
    Opening(x, y, 0.034, 0.020) for x, y in ((-0.415, -0.30), (0.365, -0.30), (-0.415, 0.30), (0.415, 0.30))
)
_TAPPED = (Opening(0.115, -0.235, 0.022, 0.006, threaded=True), Opening(0.115, 0.235, 0.022, 0.006, threaded=True))
_BOLTS = tuple(
    Opening(0.335 * math.cos(a), 0.335 * math.sin(a), 0.036, 0.011)
    for a in (math.radians(30 + 60 * k) for k in range(6))
)
_FLANGE_BORE = Opening(0.0, 0.0, 0.150, 0.010)
_KEYWAY = Opening(0.0, -0.170, 0.026, 0.0, length=0.010)

PRODUCTS = {
    product.name: product
    for product in (
        Product(
            name="bracket",
            title="milled aluminium bracket",
            openings=(*_CORNERS, *_TAPPED, _BORE, _SLOT),
            drilled=6,
            body=_bracket_body,
            marks=surfaces.milled,
            light=surfaces.bar_light,
            turn_deg=2.5,
            shift=0.018,
            marks_follow_part=False,
            countersink=(0.60, 0.45),
            tint=(0.97, 1.0, 1.03),
            rims=(*_CORNERS, _BORE),
        ),
        Product(
            name="flange",
            title="turned brass flange",
            openings=(*_BOLTS, _FLANGE_BORE, _KEYWAY),
            drilled=6,
            body=_flange_body,
            marks=surfaces.turned,
            light=surfaces.ring_light,
            turn_deg=180.0,
            shift=0.012,
            marks_follow_part=True,
            countersink=(0.40, 0.0),
            tint=(1.13, 0.98, 0.62),
            rims=(*_BOLTS, _FLANGE_BORE),
        ),
    )
}
"""Every product the simulated line can make, by name."""
