"""Build an ONNX graph node by node, with names that read well in Netron."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

OPSET = 17
"""Old enough for the ONNX Runtimes that vision controllers ship, new enough for everything used here."""
IR_VERSION = 8

ELEMENT = {"float16": TensorProto.FLOAT16, "float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8}


class Graph:
    """A graph under construction: every method adds nodes and returns the name of the new tensor."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._names: dict[str, int] = {}

    def input(self, name: str, dtype: str, shape: Sequence[int | str]) -> str:
        """Declare a graph input; a word in ``shape`` is a free axis."""
        self._inputs.append(helper.make_tensor_value_info(name, ELEMENT[dtype], list(shape)))
        return name

    def output(self, name: str, tensor: str, shape: Sequence[int | str]) -> None:
        """Give ``tensor`` out of the graph as float32 ``name``."""
        self._nodes.append(helper.make_node("Identity", [tensor], [name], name=name))
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))

    def constant(self, value: NDArray[np.generic] | float | Sequence[int], hint: str) -> str:
        """Add a constant: a float becomes float32, a list of integers int64, an array stays what it is."""
        if isinstance(value, np.ndarray):
            array = value
        else:
            array = np.asarray(value, np.float32 if isinstance(value, float) else np.int64)
        name = self._fresh(hint)
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def op(self, kind: str, *inputs: str, hint: str = "", **attributes: Any) -> str:
        """Add one operator with a single output."""
        name = self._fresh(hint or kind.lower())
        self._nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def conv(
        self,
        tensor: str,
        weight: NDArray[np.float32],
        bias: NDArray[np.float32],
        *,
        stride: int,
        pads: Sequence[int],
        group: int,
        relu6: bool,
        hint: str,
    ) -> str:
        """Add a convolution, followed by ReLU6 where asked; ``pads`` is top, left, bottom, right."""
        out = self.op(
            "Conv",
            tensor,
            self.constant(weight, hint + ".weight"),
            self.constant(bias, hint + ".bias"),
            hint=hint,
            kernel_shape=list(weight.shape[2:]),
            strides=[stride, stride],
            pads=list(pads),
            group=group,
        )
        return self.clip(out, 0.0, 6.0, hint=hint + ".relu6") if relu6 else out

    def top(self, tensor: str, count: int, hint: str) -> str:
        """Take the ``count`` largest values along the last axis, in no particular order."""
        values, places = self._fresh(hint), self._fresh(hint + ".index")
        inputs = [tensor, self.constant([count], hint + ".count")]
        self._nodes.append(helper.make_node("TopK", inputs, [values, places], name=values, axis=-1, sorted=0))
        return values

    def clip(self, tensor: str, low: float, high: float, hint: str) -> str:
        """Limit a tensor to ``low..high``."""
        return self.op("Clip", tensor, self.constant(low, hint), self.constant(high, hint), hint=hint)

    def affine(self, tensor: str, weight: NDArray[np.float32], bias: NDArray[np.float32], hint: str) -> str:
        """Add ``tensor @ weight + bias`` on the last axis."""
        product = self.op("MatMul", tensor, self.constant(weight, hint + ".weight"), hint=hint)
        return self.op("Add", product, self.constant(bias, hint + ".bias"), hint=hint)

    def model(self, name: str, version: str) -> onnx.ModelProto:
        """Close the graph and check it."""
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, self._constants)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="lineward",
            producer_version=version,
        )
        onnx.checker.check_model(model, full_check=True)
        return model

    def _fresh(self, hint: str) -> str:
        count = self._names.get(hint, 0)
        self._names[hint] = count + 1
        return hint if count == 0 else f"{hint}_{count}"
