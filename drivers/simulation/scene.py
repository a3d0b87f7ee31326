"""Draws frame ``i`` of a simulated line: always the same picture, whatever was drawn before.

A frame is the part's reflectance times tool marks, plus a defect, moved to its pose, laid on the belt, lit, and seen by
a sensor. What does not change is drawn once; a frame of 640 x 512 then takes seven passes over 8-bit arrays.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np

from lineward.drivers.simulation import surfaces
from lineward.drivers.simulation.defects import Defect, Patch, draw, harmless
from lineward.drivers.simulation.geometry import Frustum
from lineward.drivers.simulation.products import PRODUCTS

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCH_PARTS = 40
"""Parts of one batch: same bar stock, same tool wear, same tone."""

VISIBLE_LEVELS = 2
"""A pixel belongs to a defect's mask when its reflectance differs by so many of 255 levels."""

_POSE, _DEFECT, _SHAPE, _BATCH, _SCENE, _CHANCE = range(6)
"""Random streams of one frame. They are apart so that forcing a defect changes nothing else in the picture."""

_BLACK = 3.0
_READ_NOISE, _SHOT_NOISE = 0.9, 1.3
_VARIANTS = 2


@dataclass(frozen=True)
class Truth:
    """What is really on frame ``index``.

    Attributes
    ----------
    batch
        Number of the batch the part comes from.
    defect_type
        None for a good part.
    severity
        0..1; 0 for a good part. About 0.2 is hard to see, 1 is obvious.
    """

    index: int
    product: str
    batch: int
    defect_type: Defect | None
    severity: float

    @property
    def good(self) -> bool:
        """Whether the part is free of defects."""
        return self.defect_type is None


@dataclass(frozen=True)
class View:
    """How the camera looks at the part; the default is a healthy camera at nominal exposure.

    Attributes
    ----------
    exposure
        Light collected relative to nominal; an ageing lamp lowers it too.
    gain
        Amplification of signal and noise, linear.
    blur_px
        Sigma of a lens out of focus.
    shift_px
        How far the part lies to the right of its place.
    """

    exposure: float = 1.0
    gain: float = 1.0
    blur_px: float = 0.0
    shift_px: float = 0.0


def truth(
    index: int,
    *,
    product: str,
    seed: int,
    defect_rate: float,
    defect: Defect | str | None = None,
    severity: float | None = None,
) -> Truth:
    """Say what is on a frame without drawing it.

    Parameters
    ----------
    defect_rate
        Share 0..1 of parts with a defect when ``defect`` is None.
    defect
        None: by chance; ``"none"``: a good part; else that defect on the part.
    severity
        0..1 to force a severity; None: by chance, from barely visible to obvious.

    Raises
    ------
    ValueError
        No such defect, or a severity out of range.
    """
    if severity is not None and not 0 <= severity <= 1:
        raise ValueError(f"severity {severity} is not within 0..1")
    rng = _stream(product, seed, _DEFECT, index)
    is_defect, chosen, by_chance = (
        rng.random() < defect_rate,
        list(Defect)[int(rng.integers(6))],
        rng.uniform(0.12, 1.0),
    )
    kind: Defect | None = chosen if is_defect else None
    if defect == "none":
        kind = None
    elif defect is not None:
        if defect not in list(Defect):
            raise ValueError(f"no defect {str(defect)!r}; there are: none, {', '.join(Defect)}")
        kind = Defect(defect)
    amount = 0.0 if kind is None else float(by_chance if severity is None else severity)
    return Truth(index, product, index // BATCH_PARTS, kind, amount)


def chance(index: int, *, product: str, seed: int) -> tuple[float, float]:
    """Two numbers 0..1 that belong to a part and to nothing else in its picture: for what a script does to it."""
    first, second = _stream(product, seed, _CHANCE, index).random(2)
    return float(first), float(second)


class Renderer:
    """Draws the frames of one product at one size.

    Parameters
    ----------
    product
        A name of `PRODUCTS`.
    seed
        Another seed is another line: other batches, poses and defects.
    width, height
        Picture size in pixels, at least 32 x 32.
    defect_rate
        Share 0..1 of parts with a defect.
    pixel_format
        ``Mono8`` or ``RGB8``.

    Raises
    ------
    ValueError
        A parameter is out of range.
    """

    def __init__(
        self,
        product: str = "bracket",
        *,
        seed: int = 0,
        width: int = 640,
        height: int = 512,
        defect_rate: float = 0.1,
        pixel_format: Literal["Mono8", "RGB8"] = "Mono8",
    ) -> None:
        if product not in PRODUCTS:
            raise ValueError(f"no product {product!r}; there are: {', '.join(PRODUCTS)}")
        if min(width, height) < 32:
            raise ValueError(f"a picture of {width} x {height} is too small; at least 32 x 32")
        if not 0 <= defect_rate <= 1:
            raise ValueError(f"defect_rate {defect_rate} is not within 0..1")
        if seed < 0:
            raise ValueError(f"seed {seed} is negative")
        self.product, self.seed, self.defect_rate, self.pixel_format = product, seed, defect_rate, pixel_format
        self._part = PRODUCTS[product]
        self._frustum = Frustum(width, height)
        self._margin = max(4, int(0.05 * self._frustum.scale))
        rng = _stream(product, seed, _SCENE, 0)
        picture = (0, 0, width, height)
        self._shape = surfaces.in_strips(self._frustum, picture, self._part.reflectance, 255)
        reach = 0 if self._part.marks_follow_part else self._margin
        self._textures = [surfaces.texture(self._frustum, reach, self._part.marks(rng), rng) for _ in range(_VARIANTS)]
        self._light = self._part.light(self._frustum, self._margin)
        self._belt = surfaces.belt(self._frustum, self._margin, rng)
        self._noise = surfaces.sensor_noise((height + 64, width + 64), rng)
        self._batch_marks: tuple[int, NDArray[np.uint8]] | None = None
        self._tint = _tint(self._part.tint)
        self._canvas = np.empty((height, width), np.uint8)
        self._moved = np.empty((height, width), np.uint8)

    def truth(self, index: int, *, defect: Defect | str | None = None, severity: float | None = None) -> Truth:
        """Say what is on a frame without drawing it; parameters and errors as in `truth`."""
        return truth(
            index,
            product=self.product,
            seed=self.seed,
            defect_rate=self.defect_rate,
            defect=defect,
            severity=severity,
        )

    def render(
        self, index: int, *, defect: Defect | str | None = None, severity: float | None = None, view: View | None = None
    ) -> tuple[NDArray[np.uint8], Truth]:
        """Draw one frame.

        Parameters
        ----------
        index
            Number of the part, 0 or more.
        defect, severity
            Force what is on it, see `truth`; everything else in the picture stays as it is.

        Returns
        -------
        ``(H, W)`` or ``(H, W, 3)`` uint8 in RGB order, a new array, and the truth about it.
        """
        known = self.truth(index, defect=defect, severity=severity)
        seen = view or View()
        rng = _stream(self.product, self.seed, _POSE, index)
        pose, shift = self._pose(rng, seen.shift_px)
        self._draw_part(known, rng)
        cv2.warpAffine(self._canvas, pose, (self._frustum.width, self._frustum.height), dst=self._moved)
        cv2.max(self._moved, self._slice(self._belt, rng.uniform(-1, 1), rng.uniform(-1, 1)), dst=self._moved)
        light = self._slice(self._light, *self._light_offset(known.batch, shift))
        # `exposure` waits until the noise is added, so that a highlight saturates in the sensor and not before it.
        cv2.multiply(self._moved, light, dst=self._moved, scale=1 / surfaces.LIGHT_ONE)
        if seen.blur_px > 0:
            cv2.GaussianBlur(self._moved, (0, 0), seen.blur_px, dst=self._moved)
        return self._expose(seen, rng), known

    def mask(
        self, index: int, *, defect: Defect | str | None = None, severity: float | None = None
    ) -> NDArray[np.uint8]:
        """Where the defect of a frame is visible.

        Returns
        -------
        ``(H, W)`` uint8, 255 on the defect and 0 elsewhere; all 0 for a good part.
        """
        known = self.truth(index, defect=defect, severity=severity)
        rng = _stream(self.product, self.seed, _POSE, index)
        pose, _ = self._pose(rng, 0.0)
        changed = self._draw_part(known, rng)
        picture = np.zeros((self._frustum.height, self._frustum.width), np.uint8)
        if changed is None:
            return picture
        (left, top, right, bottom), area = changed
        picture[top:bottom, left:right] = area
        warped = cv2.warpAffine(picture, pose, (self._frustum.width, self._frustum.height))
        return np.where(warped > 64, np.uint8(255), np.uint8(0))

    def _pose(self, rng: np.random.Generator, shift_px: float) -> tuple[NDArray[np.float64], tuple[float, float]]:
        """Rotation about the middle and shift: the 2 x 3 matrix, and the shift in pixels."""
        width, height = self._frustum.width, self._frustum.height
        angle = float(rng.uniform(-1, 1)) * self._part.turn_deg
        reach = self._part.shift * self._frustum.scale
        dx, dy = float(rng.uniform(-reach, reach)) + shift_px, float(rng.uniform(-reach, reach))
        matrix = np.asarray(cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0), np.float64)
        matrix[:, 2] += np.array((dx, dy))
        return matrix, (dx, dy)

    def _draw_part(
        self, known: Truth, rng: np.random.Generator
    ) -> tuple[tuple[int, int, int, int], NDArray[np.uint8]] | None:
        """Fill the canvas with the part before pose and light; returns box and mask of its defect."""
        marks = self._marks(known.batch)
        tone = _batch_tone(self.product, self.seed, known.batch) * float(rng.normal(1.0, 0.008))
        if not self._part.marks_follow_part:
            marks = self._slice(marks, rng.uniform(-1, 1), rng.uniform(-1, 1))
        cv2.multiply(self._shape, marks, dst=self._canvas, scale=tone / surfaces.TEXTURE_ONE)
        for _ in range(int(rng.poisson(2.0))):
            self._apply(harmless(self._part, self._frustum, rng), marks, tone)
        if known.defect_type is None:
            return None
        shape = _stream(self.product, self.seed, _SHAPE, known.index)
        patch = draw(known.defect_type, self._part, self._frustum, known.severity, shape)
        return patch.box, self._apply(patch, marks, tone)

    def _apply(self, patch: Patch, marks: NDArray[np.uint8], tone: float) -> NDArray[np.uint8]:
        """Change the canvas where a patch says so and return the mask of what became visible."""
        left, top, right, bottom = patch.box
        old = self._canvas[top:bottom, left:right]
        new = old * patch.gain
        if patch.cover is not None and patch.level is not None:
            other = patch.level * marks[top:bottom, left:right] * np.float32(255 * tone / surfaces.TEXTURE_ONE)
            new += (other - new) * patch.cover
        after = np.clip(new + np.float32(0.5), 0, 255).astype(np.uint8)
        visible = np.where(cv2.absdiff(after, old) >= VISIBLE_LEVELS, np.uint8(255), np.uint8(0))
        old[:] = after
        return visible

    def _marks(self, batch: int) -> NDArray[np.uint8]:
        """Tool marks of a batch: one of the variants, stronger or weaker as the tool wears."""
        if self._batch_marks is None or self._batch_marks[0] != batch:
            rng = _stream(self.product, self.seed, _BATCH, batch)
            variant = self._textures[int(rng.integers(_VARIANTS))]
            contrast = float(rng.uniform(0.7, 1.3))
            marks = cv2.convertScaleAbs(variant, alpha=contrast, beta=surfaces.TEXTURE_ONE * (1 - contrast))
            self._batch_marks = (batch, np.asarray(marks, np.uint8))
        return self._batch_marks[1]

    def _light_offset(self, batch: int, shift: tuple[float, float]) -> tuple[float, float]:
        """Where the light lies, -1..1 of the margin: adjusted by hand at each batch, moved by a mirror-like part."""
        rng = _stream(self.product, self.seed, _BATCH, batch)
        x, y = float(rng.uniform(-0.5, 0.5)), float(rng.uniform(-0.5, 0.5))
        if self._part.marks_follow_part:
            x, y = 0.3 * x - shift[0] / self._margin, 0.3 * y - shift[1] / self._margin
        return max(-1.0, min(1.0, x)), max(-1.0, min(1.0, y))

    def _slice(self, field: NDArray[np.uint8], x: float, y: float) -> NDArray[np.uint8]:
        """Cut a picture out of a field with margins; x and y are -1..1 of the margin."""
        left, top = round((1 + x) * self._margin), round((1 + y) * self._margin)
        return field[top : top + self._frustum.height, left : left + self._frustum.width]

    def _expose(self, view: View, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Sensor: signal, shot and read noise (taken at mid grey), gain, black level, saturation at 255."""
        top, left = (int(n) for n in rng.integers(0, 64, 2))
        noise = self._noise[top : top + self._frustum.height, left : left + self._frustum.width]
        sigma = view.gain * math.sqrt(_READ_NOISE**2 + _SHOT_NOISE**2 * view.exposure) / surfaces.NOISE_ONE
        grey = np.empty_like(self._moved)
        cv2.addWeighted(self._moved, view.exposure * view.gain, noise, sigma, _BLACK - 128 * sigma, dst=grey)
        if self.pixel_format == "Mono8":
            return grey
        return np.asarray(cv2.LUT(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), self._tint), np.uint8)


def _stream(product: str, seed: int, stream: int, index: int) -> np.random.Generator:
    """Random numbers that depend on these four and nothing else."""
    return np.random.default_rng([seed, zlib.crc32(product.encode()), stream, index])


def _batch_tone(product: str, seed: int, batch: int) -> float:
    """Brightness of a batch relative to nominal."""
    return float(_stream(product, seed, _BATCH, batch).uniform(0.93, 1.07, 4)[3])


def _tint(tint: tuple[float, float, float]) -> NDArray[np.uint8]:
    """Colour of the metal where it is bright, none in the dark: ``(1, 256, 3)`` uint8, RGB."""
    grey = np.arange(256, dtype=np.float32)[:, None]
    metal = np.clip((grey - 25) / 60, 0, 1)
    table = grey * (1 + metal * (np.array(tint, np.float32) - 1))
    return np.clip(table + np.float32(0.5), 0, 255).astype(np.uint8)[None]
