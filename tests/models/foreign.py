"""Models as other tools write them, and what is declared about them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lineward.models.foreign import Declaration
from lineward.models.importing import import_model

if TYPE_CHECKING:
    from pathlib import Path

    from lineward.models.importing import ImportReport

UNIT = Declaration("softmax", classes=("good", "spot"), scaling="unit")


def autoencoder(folder: Path) -> Path:
    """Reconstruction error as an autoencoder gives it: a map of squared differences to a blurred picture, and a score.

    Older operator set, a map at half size, and a mask that is no float, as anomalib exports have it.
    """
    blur = helper.make_tensor("blur", TensorProto.FLOAT, (1, 1, 31, 31), np.full(961, 1 / 961, np.float32))
    nodes = [
        helper.make_node("Pad", ["image", "margin"], ["wider"], mode="reflect"),
        helper.make_node("Conv", ["wider", "blur"], ["smooth"]),
        helper.make_node("Sub", ["image", "smooth"], ["difference"]),
        helper.make_node("Mul", ["difference", "difference"], ["squared"]),
        helper.make_node("AveragePool", ["squared"], ["anomaly_map"], kernel_shape=[9, 9], strides=[2, 2]),
        helper.make_node("ReduceMax", ["anomaly_map"], ["pred_score"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Greater", ["anomaly_map", "limit"], ["pred_mask"]),
    ]
    graph = helper.make_graph(
        nodes,
        "autoencoder",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 160, 160])],
        [
            helper.make_tensor_value_info("pred_score", TensorProto.FLOAT, [1]),
            helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, [1, 1, 76, 76]),
            helper.make_tensor_value_info("pred_mask", TensorProto.BOOL, [1, 1, 76, 76]),
        ],
        [
            blur,
            helper.make_tensor("limit", TensorProto.FLOAT, [], [0.1]),
            helper.make_tensor("margin", TensorProto.INT64, [8], [0, 0, 15, 15, 0, 0, 15, 15]),
        ],
    )
    path = folder / "autoencoder.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6), path)
    return path


def classifier(folder: Path, columns: int, *, function: str | None, bias: list[float], factor: float = 1.0) -> Path:
    """Scores that depend on the mean brightness only: ``function(factor * column * mean + bias)``."""
    weight = np.arange(columns, dtype=np.float32)[None] * factor
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["mean"]),
        helper.make_node("Gemm", ["mean", "weight", "bias"], ["linear"]),
        helper.make_node(function or "Identity", ["linear"], ["scores"]),
    ]
    constants = [
        numpy_helper.from_array(weight, "weight"),
        numpy_helper.from_array(np.array(bias, np.float32), "bias"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, 64, 64])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", columns])],
        constants,
    )
    path = folder / "classifier.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def slow(folder: Path, products: int) -> Path:
    """A classifier by brightness that multiplies large matrices first, of which nothing is left in its scores."""
    side = 1024
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["mean"]),
        helper.make_node("Mul", ["mean", "one"], ["m0"]),
        *[helper.make_node("MatMul", [f"m{number}", "one"], [f"m{number + 1}"]) for number in range(products)],
        helper.make_node("ReduceMax", [f"m{products}"], ["most"], keepdims=0),
        helper.make_node("Mul", ["most", "zero"], ["nothing"]),
        helper.make_node("Add", ["mean", "nothing"], ["same"]),
        helper.make_node("Gemm", ["same", "weight"], ["linear"]),
        helper.make_node("Softmax", ["linear"], ["scores"]),
    ]
    constants = [
        numpy_helper.from_array(np.eye(side, dtype=np.float32), "one"),
        numpy_helper.from_array(np.zeros((), np.float32), "zero"),
        numpy_helper.from_array(np.array([[0, 1]], np.float32), "weight"),
    ]
    graph = helper.make_graph(
        nodes,
        "slow",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 64, 64])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 2])],
        constants,
    )
    path = folder / "slow.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def far(folder: Path, offset: float, factor: float = 1.0) -> Path:
    """An anomaly map, half the size of the picture, of ``factor * darkness + offset``."""
    nodes = [
        helper.make_node("AveragePool", ["image"], ["small"], kernel_shape=[9, 9], strides=[2, 2]),
        helper.make_node("Mul", ["small", "factor"], ["stretched"]),
        helper.make_node("Sub", ["offset", "stretched"], ["anomaly_map"]),
    ]
    constants = [
        helper.make_tensor("factor", TensorProto.FLOAT, [], [factor]),
        helper.make_tensor("offset", TensorProto.FLOAT, [], [offset]),
    ]
    graph = helper.make_graph(
        nodes,
        "far",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 96, 96])],
        [helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, [1, 1, 44, 44])],
        constants,
    )
    path = folder / "far.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def wrapped(path: Path, out: Path, declared: Declaration, **options: Any) -> ImportReport:
    report = import_model(path, out, declared, **{"product": "plates", **options})
    assert report.manifest.parity.verdicts_equal
    assert report.manifest.parity.max_abs_diff <= 1e-3
    return report
