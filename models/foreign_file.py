"""Read a model that somebody else's tool wrote, and see that what its maker declares about it fits the file."""

from __future__ import annotations

import ast
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, external_data_helper, version_converter

from lineward.models.foreign import ELEMENTS, GOOD_WORDS, SCALINGS, Foreign, ForeignModelError, first_line
from lineward.models.prepare import MAX_SIDE_PX, MIN_SIDE_PX

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from lineward.models.foreign import Declaration, Layout

MIN_OPSET = 13

_SCORES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)


def read_foreign(path: Path, declared: Declaration) -> Foreign:
    """Read a model, find its input and outputs, and see that the declaration fits.

    Raises
    ------
    ForeignModelError
        One line that names the file and says what to declare or how to export.
    """
    model = _load(path)
    zipped = _without_zipmaps(model)
    session = _open(path, model)
    initialised = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initialised]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise ForeignModelError(f"{path}: {len(inputs)} inputs ({names}); a model that takes one image is wanted")
    tensor = inputs[0].type.tensor_type
    if tensor.elem_type not in ELEMENTS:
        kind = TensorProto.DataType.Name(tensor.elem_type).lower()
        raise ForeignModelError(f"{path}: input {inputs[0].name!r} is {kind}; float or uint8 pixels are wanted")
    shape = [axis.dim_value if axis.HasField("dim_value") else 0 for axis in tensor.shape.dim]
    if shape and shape[0] > 1:
        raise ForeignModelError(f"{path}: takes {shape[0]} images at once; export it for a batch of 1 or a free one")
    layout, height, width, channels = _geometry(path, inputs[0].name, shape, declared)
    mean, deviation = _scaling(path, tensor.elem_type, channels, declared)
    if declared.colour == "bgr" and channels != 3:
        raise ForeignModelError(f"{path}: --colour bgr is for three channels, this model takes {channels}")
    scores, anomaly_map = _outputs(path, model, session, declared)
    classes, good = _classes(path, model, declared, zipped.get(scores or "", ()))
    draft = Foreign(
        path=path,
        model=model,
        kind=declared.kind,
        input=inputs[0].name,
        element=tensor.elem_type,
        layout=layout,
        height=height,
        width=width,
        channels=channels,
        bgr=declared.colour == "bgr",
        factor=max(1, ceil(MIN_SIDE_PX / min(height, width))),  # a smaller model takes the mean of blocks
        free_batch=not shape or shape[0] != 1,
        mean=mean,
        deviation=deviation,
        scores=scores,
        anomaly_map=anomaly_map,
        map_size=None,
        classes=classes,
        good=good,
        session=session,
    )
    spec = draft.height * draft.factor, draft.width * draft.factor
    if max(spec) > MAX_SIDE_PX:
        raise ForeignModelError(f"{path}: an input of {spec[0]} x {spec[1]}; at most {MAX_SIDE_PX} on a side are taken")
    return draft


def _load(path: Path) -> onnx.ModelProto:
    if path.suffix == ".lward":
        raise ForeignModelError(f"{path}: is a bundle already; use it as it is, or `lineward models promote {path}`")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except OSError as error:
        raise ForeignModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # protobuf's own errors, which are no common type
        raise ForeignModelError(f"{path}: not an ONNX file; export the model to ONNX first") from error
    if not model.graph.node:
        raise ForeignModelError(f"{path}: not an ONNX model: there is nothing in it; export the model to ONNX first")
    tensors = (tensor for part in (model.graph, *model.functions) for tensor in _tensors(part))
    if any(external_data_helper.uses_external_data(tensor) for tensor in tensors):
        raise ForeignModelError(
            f"{path}: its weights lie in other files; put all into one: "
            "python -c \"import onnx; onnx.save(onnx.load('IN.onnx'), 'OUT.onnx')\""
        )
    opset = next((entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), MIN_OPSET)
    if opset < MIN_OPSET:
        try:
            model = version_converter.convert_version(model, MIN_OPSET)
        except Exception as error:  # the converter raises RuntimeError, ValueError and its own
            raise ForeignModelError(
                f"{path}: of operator set {opset}, which cannot be brought up to {MIN_OPSET} "
                f"({first_line(error)}); export it with opset {MIN_OPSET} or newer"
            ) from error
    return model


def _tensors(part: onnx.GraphProto | onnx.FunctionProto) -> Iterator[TensorProto]:
    """Yield every tensor of a graph or function, also those of branches, loops and sparse weights."""
    attributes = [attribute for node in part.node for attribute in node.attribute]
    sparse: list[onnx.SparseTensorProto] = []
    if isinstance(part, onnx.GraphProto):
        yield from part.initializer
        sparse += part.sparse_initializer
    else:
        attributes += part.attribute_proto
    for attribute in attributes:
        yield attribute.t
        yield from attribute.tensors
        sparse += [attribute.sparse_tensor, *attribute.sparse_tensors]
        for graph in (attribute.g, *attribute.graphs):
            yield from _tensors(graph)
    for weights in sparse:
        yield weights.values
        yield weights.indices


def _without_zipmaps(model: onnx.ModelProto) -> dict[str, tuple[str, ...]]:
    """Take out what turns scikit-learn's scores into lists of dictionaries; return the class names it knew."""
    names: dict[str, tuple[str, ...]] = {}
    graph = model.graph
    for node in [node for node in graph.node if node.op_type == "ZipMap"]:
        for attribute in node.attribute:
            if attribute.name == "classlabels_strings":
                names[node.input[0]] = tuple(text.decode() for text in attribute.strings)
        for output in graph.output:
            if output.name == node.output[0]:
                output.CopyFrom(onnx.helper.make_tensor_value_info(node.input[0], TensorProto.FLOAT, None))
        graph.node.remove(node)
    return names


def _open(path: Path, model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises a dozen unrelated types
        why = first_line(error)
        remedy = "; export it without operators of its own" if "is not a registered function" in why else ""
        raise ForeignModelError(f"{path}: ONNX Runtime does not accept the model: {why}{remedy}") from error


def _geometry(path: Path, name: str, shape: list[int], declared: Declaration) -> tuple[Layout, int, int, int]:
    """Return layout, height, width and channels; 0 in ``shape`` is a free axis."""
    words = " x ".join(str(axis or "?") for axis in shape)
    given = {"mono": 1, "rgb": 3, "bgr": 3}.get(declared.colour or "", 0)
    if len(shape) == 2:
        return _flat_geometry(path, name, shape, declared, given)
    if len(shape) != 4:
        raise ForeignModelError(f"{path}: input {name!r} has the shape {words}; one of four axes is wanted, N C H W")
    layout = declared.layout
    if layout is None:
        first, last = shape[1] in {1, 3}, shape[3] in {1, 3}
        if first == last:
            raise ForeignModelError(f"{path}: input {name!r} of the shape {words}: say --layout nchw or nhwc")
        layout = "nchw" if first else "nhwc"
    channels, height, width = shape[1:] if layout == "nchw" else (shape[3], shape[1], shape[2])
    if layout == "flat" or (channels or given) not in {1, 3}:
        raise ForeignModelError(
            f"{path}: input {name!r} of the shape {words} as {layout} has {channels or 'any number of'} channels; 1 or "
            "3 are wanted: correct --layout, or give --colour"
        )
    if channels and given and channels != given:
        raise ForeignModelError(f"{path}: takes {channels} channels, which is not --colour {declared.colour}")
    if declared.size is None and not (height and width):
        raise ForeignModelError(f"{path}: input {name!r} of the shape {words} leaves the size open; give --size HxW")
    if declared.size is not None:
        fixed = height or declared.size[0], width or declared.size[1]
        if fixed != declared.size:
            raise ForeignModelError(
                f"{path}: takes {fixed[0]} x {fixed[1]}, not --size {declared.size[0]}x{declared.size[1]}"
            )
        height, width = declared.size
    return layout, height, width, channels or given


def _flat_geometry(
    path: Path, name: str, shape: list[int], declared: Declaration, given: int
) -> tuple[Layout, int, int, int]:
    """Find the picture in a row of numbers, as models of tables take it."""
    if declared.size is None:
        raise ForeignModelError(
            f"{path}: input {name!r} is a row of {shape[1] or 'any number of'} numbers; say of which --size HxW"
        )
    height, width = declared.size
    channels = given or (shape[1] // (height * width) if shape[1] else 1)
    if channels not in {1, 3} or (shape[1] and height * width * channels != shape[1]):
        raise ForeignModelError(
            f"{path}: input {name!r} takes {shape[1]} numbers, which is no picture of {height} x {width}; "
            "correct --size or --colour"
        )
    return "flat", height, width, channels


def _scaling(
    path: Path, element: int, channels: int, declared: Declaration
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    own = bool(declared.mean or declared.deviation)
    if declared.scaling is not None and own:
        raise ForeignModelError(f"{path}: --scaling and --mean/--std both say how pixels are scaled; give one of them")
    if element == TensorProto.UINT8:
        if own or declared.scaling not in {None, "raw"}:
            raise ForeignModelError(f"{path}: takes uint8 pixels, so they are not scaled; leave --scaling out")
        mean, deviation = SCALINGS["raw"]
    elif own:
        mean = tuple(255 * value for value in declared.mean or (0.0,))
        deviation = tuple(255 * value for value in declared.deviation or (1.0,))
    elif declared.scaling is None:
        raise ForeignModelError(
            f"{path}: takes float pixels, and the file does not say of which range; give --scaling unit (0..1), "
            "imagenet, symmetric (-1..1) or raw (0..255), or --mean and --std"
        )
    else:
        mean, deviation = SCALINGS[declared.scaling]
        if declared.scaling == "imagenet" and channels == 1:
            raise ForeignModelError(f"{path}: --scaling imagenet is for three channels; give --mean and --std")
    if {len(mean), len(deviation)} - {1, channels}:
        raise ForeignModelError(f"{path}: --mean and --std need one number, or {channels}, one for each channel")
    if not all(np.isfinite([*mean, *deviation])) or min(deviation) <= 0:
        raise ForeignModelError(f"{path}: --std must be above zero")
    order = slice(None, None, -1) if declared.colour == "bgr" and declared.scaling == "imagenet" else slice(None)
    return (
        np.broadcast_to(np.asarray(mean, np.float64)[order], (channels,)).copy(),
        np.broadcast_to(np.asarray(deviation, np.float64)[order], (channels,)).copy(),
    )


def _outputs(
    path: Path, model: onnx.ModelProto, session: onnxruntime.InferenceSession, declared: Declaration
) -> tuple[str | None, str | None]:
    """Find the names of scores and map: those that were named, else the only one of its form."""
    ranks = {output.name: len(output.shape) for output in session.get_outputs()}
    floats = [output.name for output in model.graph.output if output.type.tensor_type.elem_type in _SCORES]
    for option, name in (("--scores", declared.scores), ("--map", declared.anomaly_map)):
        if name is not None and name not in floats:
            raise ForeignModelError(f"{path}: no float output {name!r} for {option}; there are {', '.join(floats)}")
    if not floats:
        raise ForeignModelError(f"{path}: has no float output; a model that gives scores or a map is wanted")
    if declared.kind != "anomaly":
        return declared.scores or _only(path, "--scores", [name for name in floats if name != declared.anomaly_map]), (
            declared.anomaly_map
        )
    if declared.scores or declared.anomaly_map:
        return declared.scores, declared.anomaly_map
    if len(floats) == 1:
        return (None, floats[0]) if ranks[floats[0]] > 2 else (floats[0], None)
    flat, maps = [n for n in floats if ranks[n] <= 2], [n for n in floats if ranks[n] > 2]
    if len(flat) == 1 and len(maps) == 1:
        return flat[0], maps[0]
    raise ForeignModelError(
        f"{path}: has {len(floats)} outputs ({', '.join(floats)}); name the one to use with --scores, a map with --map"
    )


def _only(path: Path, option: str, names: list[str]) -> str:
    if not names:
        raise ForeignModelError(
            f"{path}: its only output is the one given with --map; a score for each class is wanted besides, or "
            "--kind anomaly for a map alone"
        )
    if len(names) != 1:
        raise ForeignModelError(
            f"{path}: has {len(names)} outputs ({', '.join(names)}); name the one to use with {option}"
        )
    return names[0]


def _classes(
    path: Path, model: onnx.ModelProto, declared: Declaration, zipped: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[bool, ...]]:
    if declared.kind == "anomaly":
        if declared.classes or declared.good:
            raise ForeignModelError(f"{path}: an anomaly model has no classes; leave --classes and --good out")
        return (), ()
    classes = declared.classes or zipped or _names_in_metadata(model)
    if not classes and declared.kind in {"sigmoid", "sigmoid-logits"}:
        classes = ("defect",)
    if not classes:
        raise ForeignModelError(
            f"{path}: which column is which? give --classes in the order of the columns, such as "
            "--classes good,scratch,dent"
        )
    if len(set(classes)) != len(classes):
        raise ForeignModelError(f"{path}: a name stands twice in --classes {','.join(classes)}")
    unknown = set(declared.good) - set(classes)
    if unknown:
        raise ForeignModelError(f"{path}: --good {','.join(sorted(unknown))} is none of {', '.join(classes)}")
    good = tuple(name in declared.good or (not declared.good and name.lower() in GOOD_WORDS) for name in classes)
    single = declared.kind.startswith("sigmoid")
    if not single and (all(good) or not any(good)):
        raise ForeignModelError(
            f"{path}: of {', '.join(classes)} {'all' if all(good) else 'none'} would be good; say which with --good"
        )
    return classes, good


def _names_in_metadata(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the class names that Ultralytics writes into its exports: ``names`` as the text of a dictionary."""
    for entry in model.metadata_props:
        if entry.key == "names":
            try:
                names = ast.literal_eval(entry.value)
            except (ValueError, SyntaxError):
                return ()
            if isinstance(names, dict) and sorted(names) == list(range(len(names))):
                return tuple(str(names[number]) for number in range(len(names)))
    return ()
