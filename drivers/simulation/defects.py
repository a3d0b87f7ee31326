"""Six defects of graded severity, each a pure function of a random stream, the severity, and the part it is on.

A defect is drawn on the part itself, before pose, light and sensor, so that it moves and shines with the part. Severity
0 would be invisible; about 0.2 is what inspectors argue about; 1 is seen from across the room.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

import cv2
import numpy as np

from lineward.drivers.simulation.geometry import Frustum, field, inside, towards_light
from lineward.drivers.simulation.products import PRODUCTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lineward.drivers.simulation.geometry import Field, Opening
    from lineward.drivers.simulation.products import Product

Points = list[tuple[float, float]]


class Defect(StrEnum):
    """What can be wrong with a part; the values name the folders of a training set."""

    SCRATCH = "scratch"
    DENT = "dent"
    CRACK = "crack"
    STAIN = "stain"
    MISSING_FEATURE = "missing_feature"
    BURR = "burr"


@dataclass(frozen=True)
class Patch:
    """What a defect does to a rectangle of the part: ``new = old * gain * (1 - cover) + level * cover``.

    Attributes
    ----------
    box
        ``(left, top, right, bottom)`` in pixels of the part's picture.
    gain
        ``(h, w)`` float32, factor on reflectance; 1 where nothing changes.
    cover
        ``(h, w)`` float32 0..1, how much other material is seen instead.
    level
        ``(h, w)`` float32 reflectance 0..1 of that material, before tool marks.
    """

    box: tuple[int, int, int, int]
    gain: Field
    cover: Field | None = None
    level: Field | None = None


def draw(defect: Defect, product: Product, frustum: Frustum, severity: float, rng: np.random.Generator) -> Patch:
    """Draw one defect.

    Parameters
    ----------
    severity
        0..1.
    rng
        Decides place and shape; the same stream at another severity gives the same defect, weaker or stronger.
    """
    return _DRAW[defect](product, frustum, severity, rng)


def harmless(product: Product, frustum: Frustum, rng: np.random.Generator) -> Patch:
    """Draw a speck of dust or a hairline from handling: what good parts carry, and a strict model must pass."""
    x, y = _place(product, rng, 0.02)
    if rng.random() < 0.55:
        patch = _blob(frustum, (x, y), float(rng.uniform(0.0025, 0.006)), 0.25, rng)
        return Patch(patch.box, 1 - np.float32(rng.uniform(0.10, 0.22)) * (1 - patch.gain))
    heading, length = rng.uniform(0, math.tau), rng.uniform(0.02, 0.07)
    line = [(x, y), (x + length * math.cos(heading), y + length * math.sin(heading))]
    box = frustum.box(x, y, length)
    return Patch(box, 1 + np.float32(rng.uniform(0.04, 0.09)) * _stroke(frustum, box, line, 0.0014))


def _ramp(severity: float, least: float, most: float) -> float:
    """From barely there to obvious; the exponent keeps the lower half of the scale hard."""
    return least + (most - least) * math.pow(severity, 1.3)


@cache
def _free(product: str) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Where a part has plain face: x, y and clearance of a coarse grid of points, in part units."""
    grid = Frustum(150, 120).grid(0, 0, 150, 120)
    x, y = np.broadcast_arrays(grid.x, grid.y)
    return x.ravel(), y.ravel(), PRODUCTS[product].clearance(grid).ravel()


def _place(product: Product, rng: np.random.Generator, clearance: float) -> tuple[float, float]:
    """Choose a point on the plain face with so much room around it."""
    x, y, free = _free(product.name)
    candidates = np.flatnonzero(free > min(clearance, 0.9 * float(free.max())))
    chosen = candidates[int(rng.integers(len(candidates)))]
    return float(x[chosen] + rng.uniform(-0.004, 0.004)), float(y[chosen] + rng.uniform(-0.004, 0.004))


def _stroke(
    frustum: Frustum,
    box: tuple[int, int, int, int],
    line: Points,
    width: float,
    strength: Sequence[float] | None = None,
) -> Field:
    """Coverage 0..1 of a polyline of a width in part units, finer than a pixel where need be."""
    left, top, right, bottom = box
    finer = max(1, min(4, round(2048 / frustum.scale)))
    canvas = np.zeros(((bottom - top) * finer, (right - left) * finer), np.uint8)
    points = (np.array(line, np.float64) * frustum.scale + (frustum.width / 2 - left, frustum.height / 2 - top)) * finer
    corners = np.round(points * 16).astype(np.int32)
    thickness = width * frustum.scale * finer
    for n, (start, end) in enumerate(pairwise(corners)):
        value = 255.0 * (1.0 if strength is None else strength[n]) * min(1.0, thickness)
        begin, finish = (int(start[0]), int(start[1])), (int(end[0]), int(end[1]))
        cv2.line(canvas, begin, finish, (value,), max(1, round(thickness)), cv2.LINE_AA, 4)
    size = (right - left, bottom - top)
    smaller = canvas if finer == 1 else cv2.resize(canvas, size, interpolation=cv2.INTER_AREA)
    if thickness > 3 * finer:
        # A wide stroke would show where its segments meet.
        smaller = cv2.GaussianBlur(smaller, (0, 0), 0.3 * thickness / finer)
    return field(smaller.astype(np.float32) / np.float32(255))


def _blob(frustum: Frustum, at: tuple[float, float], radius: float, rough: float, rng: np.random.Generator) -> Patch:
    """Draw a blot of irregular outline whose gain falls from 1 outside to 0 in the middle."""
    x, y = at
    box = frustum.box(x, y, 1.7 * radius)
    grid = frustum.grid(*box)
    dx, dy = grid.x - np.float32(x), grid.y - np.float32(y)
    angle = np.arctan2(dy, dx)
    outline = np.ones_like(angle)
    for k in range(2, 7):
        outline += np.float32(rough * rng.normal() / k) * np.cos(k * angle + np.float32(rng.uniform(0, math.tau)))
    stretch = rng.uniform(0.7, 1.0)
    away = np.sqrt(dx * dx + dy * dy / np.float32(stretch**2)) / (np.float32(radius) * np.clip(outline, 0.35, 1.6))
    return Patch(box, 1 - np.clip((1.15 - away) / 0.35, 0, 1).astype(np.float32))


def _scratch(product: Product, frustum: Frustum, severity: float, rng: np.random.Generator) -> Patch:
    """Something hard slid over the face: a thin bright groove with a shaded flank, uneven in depth."""
    x, y = _place(product, rng, 0.035)
    heading, bend = rng.uniform(0, math.tau), rng.normal(0, 1.2)
    waver = rng.normal(0, 0.05, 24)
    depth = np.clip(0.75 + 0.35 * np.sin(np.arange(24) * rng.uniform(0.3, 0.9)) + 0.15 * rng.normal(size=24), 0.25, 1)
    step = _ramp(severity, 0.09, 0.36) / 24
    line = [(x, y)]
    for n in range(24):
        angle = heading + bend * n * step + waver[n]
        line.append((line[-1][0] + step * math.cos(angle), line[-1][1] + step * math.sin(angle)))
    width = _ramp(severity, 0.0018, 0.0062)
    box = _around(frustum, line, 3 * width)
    depth *= np.minimum(1, np.minimum(np.arange(24) + 1.0, 24.0 - np.arange(24)) / 5)
    groove = _stroke(frustum, box, line, width, depth.tolist())
    flank = _stroke(frustum, box, [(px + 0.9 * width, py + 0.9 * width) for px, py in line], width, depth.tolist())
    strength = _ramp(severity, 0.10, 0.75)
    return Patch(box, (1 + strength * groove - 0.75 * strength * flank * (1 - groove)).astype(np.float32))


def _dent(product: Product, frustum: Frustum, severity: float, rng: np.random.Generator) -> Patch:
    """Something fell on the face: a hollow that is dark towards the light, bright on its far side."""
    x, y = _place(product, rng, 0.035)
    squeeze, turn, skew = rng.uniform(0.65, 1.0), rng.uniform(0, math.pi), rng.normal(0, 0.2)
    radius = _ramp(severity, 0.013, 0.040)
    box = frustum.box(x, y, 2.6 * radius)
    grid = frustum.grid(*box)
    dx, dy = grid.x - np.float32(x), grid.y - np.float32(y)
    along, across = dx * math.cos(turn) + dy * math.sin(turn), dy * math.cos(turn) - dx * math.sin(turn)
    away2 = (along**2 + (across / squeeze) ** 2 + skew * along * across) / np.float32(radius**2)
    slope = np.exp(-(away2**1.5))
    lit = -towards_light(dx, dy) / np.float32(radius)
    depth = _ramp(severity, 0.09, 0.75)
    rim = np.exp(-((np.sqrt(np.maximum(away2, 0)) - 1.15) ** 2) / np.float32(0.03))
    gain = 1 + depth * (1.25 * lit - 0.25) * slope + 0.18 * depth * rim
    return Patch(box, np.maximum(gain, np.float32(0.12)).astype(np.float32))


def _crack(product: Product, frustum: Frustum, severity: float, rng: np.random.Generator) -> Patch:
    """Draw a dark jagged line that starts at an opening and runs into the face, forked when it is bad."""
    opening = product.rims[int(rng.integers(len(product.rims)))]
    out = math.atan2(-opening.y, -opening.x) if abs(opening.x) + abs(opening.y) > 0.2 else rng.uniform(0, math.tau)
    heading = out + rng.uniform(-0.9, 0.9)
    turns, steps, fork = rng.normal(0, 0.45, 30), rng.uniform(0.6, 1.4, 30), int(rng.integers(10, 18))
    side = rng.choice([-1, 1]) * rng.uniform(0.4, 0.8)
    step = _ramp(severity, 0.045, 0.24) / 30
    reach = opening.radius + opening.chamfer
    line = [(opening.x + reach * math.cos(heading), opening.y + reach * math.sin(heading))]
    branch: Points = []
    for n in range(30):
        angle = heading + turns[n]
        line.append((line[-1][0] + step * steps[n] * math.cos(angle), line[-1][1] + step * steps[n] * math.sin(angle)))
        if n >= fork:
            start = branch[-1] if branch else line[-2]
            angle += side
            branch.append((start[0] + step * math.cos(angle), start[1] + step * math.sin(angle)))
    width = _ramp(severity, 0.0012, 0.0044)
    box = _around(frustum, line + branch, 3 * width)
    fade = [1.0 - 0.6 * n / 30 for n in range(30)]
    dark = _stroke(frustum, box, line, width, fade)
    if severity > 0.5:
        dark = np.maximum(dark, 0.8 * _stroke(frustum, box, branch, 0.7 * width))
    lip = _stroke(frustum, box, [(px + width, py + width) for px, py in line], width, fade)
    strength = _ramp(severity, 0.22, 0.90)
    return Patch(box, ((1 - strength * dark) * (1 + 0.25 * strength * lip * (1 - dark))).astype(np.float32))


def _stain(product: Product, frustum: Frustum, severity: float, rng: np.random.Generator) -> Patch:
    """Dried coolant: a soft darker blot with a rim, and a few drops beside it."""
    x, y = _place(product, rng, 0.03)
    radius = _ramp(severity, 0.022, 0.085)
    blot = _blob(frustum, (x, y), radius, 0.5, rng)
    spread = 1 - blot.gain
    soft = cv2.GaussianBlur(spread, (0, 0), max(0.6, 0.10 * radius * frustum.scale))
    rim = np.clip(1 - np.abs(soft - 0.5) * 3.2, 0, 1)
    cloud = cv2.resize(
        rng.normal(0.75, 0.16, (7, 7)).astype(np.float32), soft.shape[::-1], interpolation=cv2.INTER_CUBIC
    )
    strength = _ramp(severity, 0.055, 0.46)
    gain = 1 - strength * np.clip(soft * cloud + 0.38 * rim, 0, 1)
    return Patch(blot.box, gain.astype(np.float32))


def _missing(product: Product, frustum: Frustum, severity: float, rng: np.random.Generator) -> Patch:
    """Draw a hole that is not on the part as drawn: no countersink, then undersized, then not drilled at all."""
    chosen = int(rng.integers(product.drilled))
    drawn = product.openings[chosen]
    made: list[Opening] = list(product.openings)
    shrink = float(np.interp(severity, (0.0, 0.3, 0.8), (1.0, 0.97, 0.45)))
    bevel = float(np.interp(severity, (0.0, 0.45), (1.0, 0.0)))
    if severity > 0.8:
        del made[chosen]
    else:
        made[chosen] = replace(drawn, radius=drawn.radius * shrink, chamfer=drawn.chamfer * bevel)
    box = frustum.box(drawn.x, drawn.y, drawn.reach + 0.006)
    left, top, right, bottom = box
    level = product.reflectance(frustum.grid(left - 1, top - 1, right + 1, bottom + 1), made)[1:-1, 1:-1]
    grid = frustum.grid(*box)
    rim, _, _ = drawn.distance(grid)
    cover = inside(rim - np.float32(drawn.chamfer + 0.003), grid.pixel)
    return Patch(box, np.ones_like(level), cover.astype(np.float32), level.astype(np.float32))


def _burr(product: Product, frustum: Frustum, severity: float, rng: np.random.Generator) -> Patch:
    """Torn metal that the tool left standing on a rim: a ragged bright lip over the opening, shaded behind."""
    opening = product.rims[int(rng.integers(len(product.rims)))]
    middle, seed = rng.uniform(0, math.tau), rng.normal(size=97)
    box = frustum.box(opening.x, opening.y, opening.reach + 0.01)
    grid = frustum.grid(*box)
    rim, nx, ny = opening.distance(grid)
    angle = np.arctan2(ny, nx)
    # An arc in part units, so that a small hole and a bore carry burrs of like size.
    half = min(2.2, _ramp(severity, 0.016, 0.085) / opening.radius)
    apart = np.abs(np.angle(np.exp(1j * (angle - middle)))).astype(np.float32)
    taper = np.clip(1.25 * (1 - apart / half), 0, 1)
    at = (angle + math.pi) * (opening.radius / 0.0060)
    ragged = np.interp(at.ravel() % 97, np.arange(97), seed).reshape(at.shape).astype(np.float32)
    height = _ramp(severity, 0.0032, min(0.024, 0.6 * opening.radius)) * taper * np.clip(0.8 + 0.3 * ragged, 0.15, 1.5)
    lip = inside(-rim - height, grid.pixel) * inside(rim - 0.5 * height - 0.0006, grid.pixel) * (taper > 0)
    level = np.float32(_ramp(severity, 0.52, 0.86)) * (1 + 0.12 * ragged) * (1 + 0.2 * towards_light(nx, ny))
    behind = np.exp(-(((rim - opening.chamfer * 0.5) / (0.006 + 0.5 * opening.chamfer)) ** 2)) * (rim > 0) * taper
    gain = 1 - np.float32(_ramp(severity, 0.05, 0.45)) * behind
    return Patch(box, gain.astype(np.float32), lip.astype(np.float32), np.clip(level, 0, 1).astype(np.float32))


def _around(frustum: Frustum, line: Points, margin: float) -> tuple[int, int, int, int]:
    """Box around a polyline, cut to the picture, never empty."""
    points = np.array(line)
    low, high = points.min(axis=0) - margin, points.max(axis=0) + margin
    left, top, _, _ = frustum.box(float(low[0]), float(low[1]), 0.0)
    _, _, right, bottom = frustum.box(float(high[0]), float(high[1]), 0.0)
    return left, top, max(right, left + 1), max(bottom, top + 1)


_DRAW = {
    Defect.SCRATCH: _scratch,
    Defect.DENT: _dent,
    Defect.CRACK: _crack,
    Defect.STAIN: _stain,
    Defect.MISSING_FEATURE: _missing,
    Defect.BURR: _burr,
}
