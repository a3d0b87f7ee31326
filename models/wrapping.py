"""The graph of an imported model: preparation before it, calibration behind it, the foreign nodes untouched."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, inf
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.compose import add_prefix

from lineward import __version__
from lineward.models.anomaly import append_ranks
from lineward.models.foreign import EPSILON, ForeignModelError, first_line
from lineward.models.graph import IR_VERSION, OPSET, Graph

if TYPE_CHECKING:
    from lineward.models.calibrate import Platt, Ranks
    from lineward.models.foreign import Foreign
    from lineward.models.records import Bands

HEATMAP_SIDE = 64
"""Longest side of a heat-map in the bundle: of larger maps the maximum over blocks is kept."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What turns the raw score and the map of a foreign model into what a bundle says.

    ``ranks`` is None for a classifier, which knows nothing of anomaly; the heat-map is
    ``1 / (1 + exp(-(map - heat_centre) / heat_width))``.
    """

    platt: Platt
    ranks: Ranks | None
    heat_centre: float
    heat_width: float
    bands: Bands


class _Wrapped(Graph):
    """A graph under construction with a foreign one in its middle, whose names all begin with ``model/``."""

    def __init__(self, foreign: onnx.ModelProto) -> None:
        super().__init__()
        self._foreign: onnx.ModelProto = add_prefix(foreign, "model/")

    def insert(self, tensor: str, name: str) -> None:
        """Feed ``tensor`` to the foreign input ``name`` and add the foreign nodes."""
        self._nodes.append(helper.make_node("Identity", [tensor], [f"model/{name}"], name="model_input"))
        self._nodes.extend(self._foreign.graph.node)
        self._constants.extend(self._foreign.graph.initializer)

    def close(self) -> onnx.ModelProto:
        """Close the graph and check it; operator sets and functions are those of the foreign model."""
        graph = helper.make_graph(self._nodes, "lineward", self._inputs, self._outputs, self._constants)
        graph.sparse_initializer.extend(self._foreign.graph.sparse_initializer)
        opsets = {entry.domain if entry.domain != "ai.onnx" else "": entry for entry in self._foreign.opset_import}
        opsets.setdefault("", helper.make_opsetid("", OPSET))
        model = helper.make_model(
            graph,
            opset_imports=list(opsets.values()),
            ir_version=max(IR_VERSION, self._foreign.ir_version),
            functions=list(self._foreign.functions),
            producer_name="lineward",
            producer_version=__version__,
        )
        onnx.checker.check_model(model)
        return model


def wrap(foreign: Foreign, calibration: Calibration) -> bytes:
    """Put preparation, the foreign model and calibration into one graph; returns the serialised model.

    Only operators that mean the same in every operator set from 13 on are used around it.

    Raises
    ------
    ForeignModelError
        Its scores are no numbers that can be calibrated, or the graph as a whole is not valid.
    """
    graph = _Wrapped(foreign.model)
    batch = "N" if foreign.free_batch else 1
    spec = foreign.spec
    image = graph.input("image", "uint8", (batch, spec.height, spec.width, spec.channels))
    graph.insert(_append_input(graph, image, foreign), foreign.input)
    anomaly_map = _append_map(graph, foreign)
    score, shares = _append_score(graph, foreign, anomaly_map)
    flat = graph.constant([-1], "flat")
    platt = calibration.platt
    centre = -platt.offset / platt.slope if platt.slope else inf
    if not abs(centre) <= float(np.finfo(np.float32).max):  # also refuses NaN
        raise ForeignModelError(f"{foreign.path}: its scores, or --threshold, are too large or too small")
    score = _minus(graph, score, centre)
    slope = graph.constant(platt.slope, "slope")
    probability = graph.op("Sigmoid", graph.op("Mul", score, slope), hint="probability")
    graph.output("defect_probability", graph.op("Reshape", probability, flat), [batch])
    if calibration.ranks is None:
        anomaly = graph.op("Mul", probability, graph.constant(0.0, "none"), hint="no_anomaly")
    else:
        knots = calibration.ranks.knots - centre
        anomaly = append_ranks(graph, score, replace(calibration.ranks, knots=knots))
    graph.output("anomaly", graph.op("Reshape", anomaly, flat), [batch])
    if anomaly_map is None:
        heat = graph.op("Mul", probability, graph.constant(0.0, "none"), hint="no_map")
        heat = graph.op("Reshape", heat, graph.constant([-1, 1, 1], "heatmap_shape"))
        rows = columns = 1
    else:
        heat, rows, columns = _append_heat(graph, anomaly_map, foreign, calibration)
    graph.output("heatmap", heat, [batch, rows, columns])
    if foreign.defect_types and shares:
        columns_of = [index for index, good in enumerate(foreign.good) if not good]
        picked = graph.op("Gather", shares, graph.constant(columns_of, "defect_columns"), axis=1)
        graph.output("defect_type_scores", picked, [batch, len(columns_of)])
    try:
        return bytes(graph.close().SerializeToString())
    except onnx.checker.ValidationError as error:
        raise ForeignModelError(f"{foreign.path}: cannot be wrapped: {first_line(error)}") from error


def _append_input(graph: Graph, image: str, foreign: Foreign) -> str:
    """Add what `Foreign.declared_input` does after resizing."""
    pixels = graph.op("Cast", image, to=TensorProto.FLOAT, hint="pixels")
    pixels = graph.op("Transpose", pixels, perm=[0, 3, 1, 2], hint="pixels_nchw")
    if foreign.factor > 1:
        side = [foreign.factor, foreign.factor]
        pixels = graph.op("AveragePool", pixels, kernel_shape=side, strides=side, hint="blocks")
    if foreign.bgr:
        pixels = graph.op("Gather", pixels, graph.constant([2, 1, 0], "bgr"), axis=1)
    if foreign.mean.any() or (foreign.deviation != 1).any():
        shape = (1, foreign.channels, 1, 1)
        mean = graph.constant(foreign.mean.astype(np.float32).reshape(shape), "mean")
        deviation = graph.constant(foreign.deviation.astype(np.float32).reshape(shape), "deviation")
        pixels = graph.op("Div", graph.op("Sub", pixels, mean), deviation, hint="scaled")
    if foreign.element == TensorProto.UINT8 and foreign.factor > 1:
        pixels = graph.op("Round", pixels)
    if foreign.layout != "nchw":
        pixels = graph.op("Transpose", pixels, perm=[0, 2, 3, 1], hint="pixels_nhwc")
    if foreign.layout == "flat":
        count = foreign.height * foreign.width * foreign.channels
        pixels = graph.op("Reshape", pixels, graph.constant([-1, count], "row"))
    return graph.op("Cast", pixels, to=foreign.element, hint="model_pixels")


def _append_map(graph: Graph, foreign: Foreign) -> str | None:
    if foreign.anomaly_map is None or foreign.map_size is None:
        return None
    values = graph.op("Cast", f"model/{foreign.anomaly_map}", to=TensorProto.FLOAT, hint="map")
    return graph.op("Reshape", values, graph.constant([-1, 1, *foreign.map_size], "map_shape"))


def _append_score(graph: Graph, foreign: Foreign, anomaly_map: str | None) -> tuple[str, str | None]:
    """Add the raw score ``(N, 1)``, and the shares of the classes ``(N, classes)`` or None."""
    column_shape = graph.constant([-1, max(len(foreign.classes), 1)], "columns")
    if foreign.scores is None:
        return graph.op("Reshape", graph.op("GlobalMaxPool", anomaly_map or ""), column_shape), None
    column = graph.op("Cast", f"model/{foreign.scores}", to=TensorProto.FLOAT, hint="scores")
    column = graph.op("Reshape", column, column_shape)
    if foreign.kind == "anomaly":
        return column, None
    good = np.array(foreign.good)
    if foreign.kind in {"softmax", "logits"}:
        shares = graph.op("Softmax", column, axis=1) if foreign.kind == "logits" else column
        pick = np.stack([~good, good], axis=1).astype(np.float32)
        sums = graph.op("MatMul", shares, graph.constant(pick, "kinds"), hint="defect_good")
        return _odds(graph, sums), shares
    if foreign.kind == "sigmoid-logits":
        shares, odds = graph.op("Sigmoid", column, hint="shares"), column
    else:
        rest = graph.op("Sub", graph.constant(1.0, "one"), column)
        odds = graph.op("Sub", _log(graph, column), _log(graph, rest), hint="odds")
        shares = column
    if good.all():
        odds = graph.op("Neg", _largest(graph, odds, len(good)))
        return odds, shares
    bad = [index for index, is_good in enumerate(good) if not is_good]
    odds = graph.op("Gather", odds, graph.constant(bad, "defects"), axis=1)
    return _largest(graph, odds, len(bad)), shares


def _odds(graph: Graph, sums: str) -> str:
    """Turn shares ``(N, 2)`` of defect and good into the logarithm of their ratio, ``(N, 1)``."""
    difference = np.array([[1.0], [-1.0]], np.float32)
    return graph.op("MatMul", _log(graph, sums), graph.constant(difference, "difference"), hint="log_odds")


def _log(graph: Graph, shares: str) -> str:
    return graph.op("Log", graph.op("Max", shares, graph.constant(EPSILON, "epsilon")))


def _minus(graph: Graph, values: str, centre: float) -> str:
    """Subtract a number that float32 cannot hold, in two parts: near it the first difference is exact."""
    rounded = float(np.float32(centre))
    near = graph.op("Sub", values, graph.constant(rounded, "centre"), hint="near")
    return graph.op("Sub", near, graph.constant(centre - rounded, "centre_rest"), hint="centred")


def _largest(graph: Graph, values: str, count: int) -> str:
    """Take the largest of each row: ``(N, count)`` to ``(N, 1)``."""
    if count == 1:
        return values
    rows = graph.op("Reshape", values, graph.constant([-1, 1, count], "rows"))
    return graph.op("Reshape", graph.op("GlobalMaxPool", rows), graph.constant([-1, 1], "row"))


def heat_blocks(foreign: Foreign) -> tuple[int, int, int]:
    """Return side of the blocks, rows and columns of the heat-map."""
    rows, columns = foreign.map_size or (1, 1)
    side = max(1, ceil(max(rows, columns) / HEATMAP_SIDE))
    return side, ceil(rows / side), ceil(columns / side)


def _append_heat(graph: Graph, anomaly_map: str, foreign: Foreign, calibration: Calibration) -> tuple[str, int, int]:
    side, rows, columns = heat_blocks(foreign)
    height, width = foreign.map_size or (1, 1)
    if side > 1:
        pads = [0, 0, rows * side - height, columns * side - width]
        anomaly_map = graph.op(
            "MaxPool", anomaly_map, kernel_shape=[side, side], strides=[side, side], pads=pads, hint="map_blocks"
        )
    centred = _minus(graph, anomaly_map, calibration.heat_centre)
    heat = graph.op("Sigmoid", graph.op("Div", centred, graph.constant(calibration.heat_width, "heat_width")))
    return graph.op("Reshape", heat, graph.constant([-1, rows, columns], "heatmap_shape")), rows, columns
