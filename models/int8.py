"""The backbone in int8: weights and maps in 8 bits, ranges from images of the training set, as QDQ nodes in the graph.

A head fitted on float32 features breaks on quantised ones, so the backbone is quantised first, and features, head,
calibration and thresholds come from what will run (docs/decisions/0019).

Processors without VNNI add the products of two neighbouring inputs in 16 bits, where large weights overflow without a
word. Steps are chosen so that no two neighbours can, and every machine gives the same numbers.
"""

from __future__ import annotations

import hashlib
import json
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime

from lineward import __version__
from lineward.models.backbone import PIXEL_MEAN, PIXEL_SCALE, EfficientNetLite0, Layers
from lineward.models.dataset import DatasetError
from lineward.models.features import is_there, read_source, write_whole
from lineward.models.graph import Graph
from lineward.models.prepare import prepare

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from lineward.models.backbone import Backbone, Tap
    from lineward.models.dataset import Dataset
    from lineward.models.features import Source
    from lineward.models.prepare import InputSpec

INT8_VERSION = 1
"""Part of the digest: raise it when the same ranges give another network."""
CALIBRATION_GOOD, CALIBRATION_DEFECT = 48, 16
"""Images whose maps give the ranges."""
WEIGHT_STEPS = 127
RELU6 = 6.0

Ranges = dict[str, tuple[float, float]]
"""Lowest and highest value of each map, by its name in the graph."""


class Int8Lite0:
    """EfficientNet-Lite0 in int8; another set of ranges is another backbone with a digest of its own."""

    name = "efficientnet-lite0-int8"

    def __init__(self, backbone: EfficientNetLite0, ranges: Ranges) -> None:
        self._float = backbone
        self.ranges = ranges
        key = json.dumps([INT8_VERSION, backbone.digest, sorted(ranges.items())])
        self.digest = hashlib.sha256(key.encode()).hexdigest()

    def append(self, graph: Graph, image: str, *, height: int, width: int, channels: int) -> Sequence[Tap]:
        """Add the network behind ``image``; see `lineward.models.backbone.Backbone`."""
        layers = _Int8Layers(graph, self._float.tensors, height, width, self.ranges)
        return self._float.append_layers(layers, image, channels)


class _Int8Layers(Layers):
    """Every tensor that goes from layer to layer is the output of a DequantizeLinear with a known step."""

    def __init__(
        self, graph: Graph, tensors: dict[str, NDArray[np.generic]], height: int, width: int, ranges: Ranges
    ) -> None:
        super().__init__(graph, tensors, height, width)
        self._ranges = ranges
        self._steps: dict[str, float] = {}

    def enter(self, image: str) -> str:
        """Take pixels as they are: 8 bits hold ``(pixel - 127) / 128`` exactly."""
        planes = self.graph.op("Transpose", image, perm=[0, 3, 1, 2], hint="planes")
        return self._real(planes, PIXEL_SCALE, int(PIXEL_MEAN), "normalised")

    def add(self, x: str, shortcut: str, hint: str) -> str:
        """Add in 8 bits."""
        return self._quantised(super().add(x, shortcut, hint), *self._ranges[hint], hint=hint)

    def write(
        self,
        x: str,
        weight: NDArray[np.float32],
        bias: NDArray[np.float32],
        *,
        stride: int,
        pads: Sequence[int],
        group: int,
        relu6: bool,
        hint: str,
    ) -> str:
        """Write one convolution; ReLU6 is the end of the range of what follows, so it needs no node."""
        step = self._steps[x]
        wanted = _weight_steps(weight, depthwise=group > 1)
        wanted = np.maximum(wanted, np.abs(bias) / (step * 2.0**30))  # the bias must fit into 32 bits
        scales = np.maximum(wanted, 1e-12).astype(np.float32)
        rounded = np.rint(weight / scales[:, None, None, None]).astype(np.int8)
        offsets = np.rint(bias / (scales.astype(np.float64) * np.float32(step))).astype(np.int32)
        zeros = np.zeros(len(weight), np.int8)
        out = self.graph.op(
            "Conv",
            x,
            self._constant(rounded, scales, zeros, hint + ".weight"),
            self._constant(offsets, scales * np.float32(step), zeros.astype(np.int32), hint + ".bias"),
            hint=hint,
            kernel_shape=list(weight.shape[2:]),
            strides=[stride, stride],
            pads=list(pads),
            group=group,
        )
        low, high = self._ranges[hint]
        return self._quantised(out, 0.0 if relu6 else low, min(high, RELU6) if relu6 else high, hint=hint)

    def _constant(
        self, values: NDArray[np.generic], scales: NDArray[np.float32], zeros: NDArray[np.generic], hint: str
    ) -> str:
        inputs = [self.graph.constant(part, hint) for part in (values, scales, zeros)]
        return self.graph.op("DequantizeLinear", *inputs, axis=0, hint=hint + ".real")

    def _quantised(self, x: str, low: float, high: float, *, hint: str) -> str:
        low, high = min(low, 0.0), max(high, 1e-6)
        step = float(np.float32((high - low) / 255))
        zero = round(-low / step)
        inputs = [self.graph.constant(step, hint + ".step"), self.graph.constant(np.array(zero, np.uint8), "zero")]
        return self._real(self.graph.op("QuantizeLinear", x, *inputs, hint=hint + ".int8"), step, zero, hint)

    def _real(self, x: str, step: float, zero: int, hint: str) -> str:
        inputs = [self.graph.constant(step, hint + ".step"), self.graph.constant(np.array(zero, np.uint8), "zero")]
        out = self.graph.op("DequantizeLinear", x, *inputs, hint=hint + ".real")
        self._steps[out] = step
        return out


def _weight_steps(weight: NDArray[np.float32], *, depthwise: bool) -> NDArray[np.float64]:
    """Return the step of each output channel's weights, ``(channels,)``.

    255 * (127 + 1) is the largest sum of two products that 16 bits hold. Depthwise kernels add up in 32 bits.
    """
    rows = np.abs(weight).astype(np.float64)
    highest = rows.reshape(len(rows), -1).max(axis=1)
    if depthwise:
        return np.asarray(highest / WEIGHT_STEPS)
    if weight.shape[2:] != (1, 1):  # which inputs are neighbours depends on how the kernel unrolls its window
        return np.asarray(2 * highest / WEIGHT_STEPS)
    pairs = rows[:, 0::2, 0, 0].copy()
    pairs[:, : rows.shape[1] // 2] += rows[:, 1::2, 0, 0]
    return np.asarray(pairs.max(axis=1) / WEIGHT_STEPS)


class _WatchedLayers(Layers):
    """Float32 layers that remember which map is which."""

    def __init__(self, graph: Graph, tensors: dict[str, NDArray[np.generic]], height: int, width: int) -> None:
        super().__init__(graph, tensors, height, width)
        self.maps: dict[str, str] = {}

    def add(self, x: str, shortcut: str, hint: str) -> str:
        self.maps[hint] = super().add(x, shortcut, hint)
        return self.maps[hint]

    def write(
        self,
        x: str,
        weight: NDArray[np.float32],
        bias: NDArray[np.float32],
        *,
        stride: int,
        pads: Sequence[int],
        group: int,
        relu6: bool,
        hint: str,
    ) -> str:
        out = super().write(x, weight, bias, stride=stride, pads=pads, group=group, relu6=relu6, hint=hint)
        self.maps[hint] = out
        return out


def measure_ranges(
    backbone: EfficientNetLite0, spec: InputSpec, sources: Sequence[Source], progress: Callable[[int, int], None]
) -> Ranges:
    """Run the float32 network on images and return the range of every map: the mean of the images' own extremes."""
    graph = Graph()
    image = graph.input("image", "uint8", ("N", spec.height, spec.width, spec.channels))
    layers = _WatchedLayers(graph, backbone.tensors, spec.height, spec.width)
    backbone.append_layers(layers, image, spec.channels)
    for name, tensor in layers.maps.items():
        high = graph.op("ReduceMax", tensor, keepdims=0, hint=name + ".high")
        low = graph.op("ReduceMin", tensor, keepdims=0, hint=name + ".low")
        graph.output(f"{name}|low", low, ())
        graph.output(f"{name}|high", high, ())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    model = graph.model("ranges", __version__).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    found = []
    for done, source in enumerate(sources, 1):
        found.append(session.run(None, {"image": prepare(read_source(source), spec)[np.newaxis]}))
        progress(done, len(sources))
    lows_highs = np.array(found, np.float64).mean(axis=0).reshape(-1, 2)
    return {name: (float(low), float(high)) for name, (low, high) in zip(layers.maps, lows_highs.tolist(), strict=True)}


def int8_backbone(  # noqa: PLR0917 - one caller
    backbone: Backbone,
    spec: InputSpec,
    dataset: Dataset,
    cache: Path,
    known: str,
    progress: Callable[[int, int], None],
) -> Int8Lite0:
    """Quantise once and keep the ranges: other ranges would make every kept feature useless.

    Ranges are used again for the backbone digest ``known``, that of a base, and for a set that holds all the images
    that they were measured on.

    Raises
    ------
    DatasetError
        No image can be read any more, or the backbone is not one that can be quantised.
    """
    if not isinstance(backbone, EfficientNetLite0):
        raise DatasetError(f"{dataset.folder}: {backbone.name} cannot be run in int8; train without --int8")
    key = hashlib.sha256(f"{INT8_VERSION}|{backbone.digest}|{spec.model_dump_json()}".encode()).hexdigest()[:24]
    folder = cache / "int8" / key
    present = {source.digest for source in dataset.sources}
    for path in sorted(folder.glob("*.json")):
        kept = _read_ranges(path)
        if kept is not None and (path.stem == known or kept[1] <= present):
            return Int8Lite0(backbone, kept[0])
    sources = _calibration_images(dataset)
    found = Int8Lite0(backbone, measure_ranges(backbone, spec, sources, progress))
    record = {"ranges": found.ranges, "images": [source.digest for source in sources]}
    write_whole(folder / f"{found.digest}.json", json.dumps(record).encode())
    return found


def _read_ranges(path: Path) -> tuple[Ranges, set[str]] | None:
    try:
        record = json.loads(path.read_bytes())
        ranges = {str(name): (float(low), float(high)) for name, (low, high) in record["ranges"].items()}
        return ranges, set(record["images"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # it is measured again


def _calibration_images(dataset: Dataset) -> list[Source]:
    """Choose images of both kinds by their digests: the same ones whatever the order of the files."""
    chosen: list[Source] = []
    for defective, most in ((False, CALIBRATION_GOOD), (True, CALIBRATION_DEFECT)):
        items = (item.source for item in dataset.items if item.defective == defective)
        there = (source for source in sorted(items, key=lambda source: source.digest) if is_there(source))
        chosen += islice(there, most)
    if not chosen:
        raise DatasetError(f"{dataset.folder}: no image can be read any more, so nothing can be measured for int8")
    return chosen
