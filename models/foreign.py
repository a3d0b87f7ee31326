"""A model that somebody else's tool wrote: what it takes, what it gives, and what its maker has to tell us about both.

An ONNX file says neither how pixels were scaled nor which column means good. Whoever imports it declares that
(`Declaration`); what the file does say is read from it and must agree (`lineward.models.foreign_file`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
from onnx import TensorProto

from lineward.models.prepare import InputSpec, prepare

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import onnxruntime
    from numpy.typing import NDArray

Kind = Literal["softmax", "logits", "sigmoid", "sigmoid-logits", "anomaly"]
Layout = Literal["nchw", "nhwc", "flat"]

SCALINGS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "raw": ((0.0,), (1.0,)),
    "unit": ((0.0,), (255.0,)),
    "symmetric": ((127.5,), (127.5,)),
    "imagenet": ((0.485 * 255, 0.456 * 255, 0.406 * 255), (0.229 * 255, 0.224 * 255, 0.225 * 255)),
}
"""Name to mean and deviation in grey levels 0..255: `raw` 0..255, `unit` 0..1, `symmetric` -1..1, `imagenet`."""

GOOD_WORDS = frozenset({"good", "ok", "pass", "normal"})
UNTYPED_WORDS = frozenset({"defect", "defective", "bad", "anomaly", "anomalous", "nok", "ng", "fail"})
"""Names of a class that say no more than that something is wrong."""

ELEMENTS: dict[int, np.dtype[Any]] = {
    TensorProto.FLOAT: np.dtype("float32"),
    TensorProto.FLOAT16: np.dtype("float16"),
    TensorProto.DOUBLE: np.dtype("float64"),
    TensorProto.UINT8: np.dtype("uint8"),
}


class ForeignModelError(ValueError):
    """A model cannot be imported; the message names the file, what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """What the file does not say.

    Attributes
    ----------
    kind
        What the scores are: ``softmax`` or ``sigmoid`` shares of 1, the same before the last function (``logits``,
        ``sigmoid-logits``), or an ``anomaly`` score of any range, higher for worse.
    classes, good
        Names of the columns in their order, and which of them are good parts. A single column is named by what a high
        value means.
    scaling, mean, deviation
        A key of `SCALINGS`, or mean and deviation for pixels 0..1, one number or one for each channel.
    colour
        Order of the channels the model was trained with.
    size, layout
        Height and width, and the order of axes, where the file leaves them open.
    scores, anomaly_map
        Names of outputs, where there are several.
    threshold
        The maker's own limit of an anomaly score, for an import without labelled images.
    """

    kind: Kind
    classes: tuple[str, ...] = ()
    good: tuple[str, ...] = ()
    scaling: str | None = None
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    colour: Literal["rgb", "bgr", "mono"] | None = None
    size: tuple[int, int] | None = None
    layout: Layout | None = None
    scores: str | None = None
    anomaly_map: str | None = None
    threshold: float | None = None


@dataclass(frozen=True, slots=True)
class Foreign:
    """A model whose file and declaration agree.

    ``mean`` and ``deviation`` are ``(channels,)`` float64 in grey levels; ``factor`` is the side of the blocks whose
    mean is a pixel of the model; ``map_size`` rows and columns of the anomaly map, or None.
    """

    path: Path
    model: onnx.ModelProto
    kind: Kind
    input: str
    element: int
    layout: Layout
    height: int
    width: int
    channels: int
    bgr: bool
    factor: int
    free_batch: bool
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    scores: str | None
    anomaly_map: str | None
    map_size: tuple[int, int] | None
    classes: tuple[str, ...]
    good: tuple[bool, ...]
    session: onnxruntime.InferenceSession

    @property
    def spec(self) -> InputSpec:
        """The input of the bundle that will be made."""
        return InputSpec(
            height=self.height * self.factor,
            width=self.width * self.factor,
            channels=1 if self.channels == 1 else 3,
            colour="mono" if self.channels == 1 else "rgb",
        )

    @property
    def defect_types(self) -> tuple[str, ...]:
        """Names of the classes that say what is wrong."""
        bad = tuple(name for name, good in zip(self.classes, self.good, strict=True) if not good)
        return () if len(bad) == 1 and bad[0].lower() in UNTYPED_WORDS else bad

    def declared_input(self, image: NDArray[np.uint8]) -> NDArray[np.generic]:
        """Prepare one image as its maker declared it, in plain numpy: the reference that the wrapped graph must meet.

        Parameters
        ----------
        image
            ``(H, W)`` or ``(H, W, 3)`` RGB uint8.

        Returns
        -------
        numpy.ndarray
            A batch of one, in the layout and of the type that the model takes.
        """
        pixels = prepare(image, self.spec).astype(np.float64)
        k = self.factor
        pixels = pixels.reshape(self.height, k, self.width, k, self.channels).mean(axis=(1, 3))
        if self.bgr:
            pixels = pixels[:, :, ::-1]
        pixels = (pixels - self.mean) / self.deviation
        dtype = ELEMENTS[self.element]
        if dtype == np.uint8:
            pixels = np.rint(pixels)
        axes = pixels.transpose(2, 0, 1) if self.layout == "nchw" else pixels
        batch = axes[np.newaxis] if self.layout != "flat" else axes.reshape(1, -1)
        return np.ascontiguousarray(batch, dtype)

    def run(self, image: NDArray[np.uint8], name: str) -> tuple[float, NDArray[np.float64], NDArray[np.float64] | None]:
        """Judge one image with the original model.

        Returns
        -------
        tuple
            The raw score, higher for worse; the shares of the classes ``(classes,)``, empty for an anomaly model; and
            the anomaly map ``(h, w)`` or None.

        Raises
        ------
        ForeignModelError
            It gives something that is not a number, or not what was declared; ``name`` names the image.
        """
        wanted = [output for output in (self.scores, self.anomaly_map) if output is not None]
        values = dict(zip(wanted, self._given(wanted, image, name), strict=True))
        anomaly_map = None
        if self.anomaly_map is not None:
            found = values[self.anomaly_map]
            sides = [side for side in found.shape if side > 1]
            if len(sides) != 2 or (self.map_size is not None and tuple(sides) != self.map_size):
                raise ForeignModelError(f"{self.path}: output {self.anomaly_map!r} is no map: shape {found.shape}")
            anomaly_map = found.reshape(sides)
        if self.kind == "anomaly":
            if self.scores is None:
                return (0.0 if anomaly_map is None else float(anomaly_map.max())), np.empty(0), anomaly_map
            column = values[self.scores].ravel()
            if column.size != 1:
                raise ForeignModelError(
                    f"{self.path}: output {self.scores!r} has {column.size} numbers for one image; an anomaly score "
                    "has one: name the right output with --scores, or a map with --map"
                )
            return float(column[0]), np.empty(0), anomaly_map
        column = values[self.scores or ""].ravel()
        if column.size != len(self.classes):
            raise ForeignModelError(
                f"{self.path}: output {self.scores!r} has {column.size} columns, and {len(self.classes)} classes are "
                f"declared ({', '.join(self.classes)}); give the name of each column with --classes"
            )
        score, shares = self._classified(column)
        return score, shares, anomaly_map

    def _given(self, wanted: list[str], image: NDArray[np.uint8], name: str) -> Iterator[NDArray[np.float64]]:
        try:
            given = self.session.run(wanted, {self.input: self.declared_input(image)})
        except Exception as error:  # ONNX Runtime raises a dozen unrelated types
            raise ForeignModelError(
                f"{self.path}: does not run on a picture of {self.height} x {self.width}: {first_line(error)}"
            ) from error
        for output, value in zip(wanted, given, strict=True):
            array = np.asarray(value, np.float64)
            if not np.isfinite(array).all():
                raise ForeignModelError(
                    f"{self.path}: output {output!r} is not a number for {name}; the model is damaged, or --scaling is "
                    "not the one it was trained with"
                )
            yield array

    def _classified(self, column: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        within = bool((column >= -1e-4).all() and (column <= 1 + 1e-4).all())
        adds_up = bool(abs(column.sum() - 1) < 1e-3)
        if self.kind in {"softmax", "sigmoid"} and not (within and (adds_up or self.kind == "sigmoid")):
            what = f"adds up to {column.sum():.3g}" if within else f"lies in {column.min():.3g} to {column.max():.3g}"
            raise ForeignModelError(
                f"{self.path}: output {self.scores!r} {what}, so it is no {self.kind}; "
                f"try --kind {'logits' if self.kind == 'softmax' else 'sigmoid-logits'}"
            )
        if self.kind == "logits" and within and adds_up:
            raise ForeignModelError(
                f"{self.path}: output {self.scores!r} adds up to 1, so it is a softmax already; use --kind softmax"
            )
        good = np.array(self.good)
        if self.kind in {"softmax", "logits"}:
            if self.kind == "logits":
                column = np.exp(column - column.max())
                column /= column.sum()
            return log_ratio(column[~good].sum(), column[good].sum()), column
        is_odds = self.kind == "sigmoid-logits"
        odds = column if is_odds else np.array([log_ratio(value, 1 - value) for value in column])
        shares = 1 / (1 + np.exp(-odds))
        if good.all():
            return float(-odds.max()), shares
        return float(odds[~good].max()), shares


EPSILON = 1e-7
"""Shares below this are one and the same: float32 near one has no finer steps."""


def log_ratio(defect: float, good: float) -> float:
    """Return the logarithm of the odds, finite for shares of exactly 0 and 1."""
    return float(np.log(max(defect, EPSILON)) - np.log(max(good, EPSILON)))


def first_line(error: object) -> str:
    """Return the first line of what a library said."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip()[:300] if lines else type(error).__name__
