"""Models that cannot be wrapped are refused in one line that names the remedy, and nothing is written."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.models.foreign import UNIT, classifier, far, wrapped

from lineward.models.dataset import DatasetError
from lineward.models.foreign import Declaration, ForeignModelError
from lineward.models.importing import import_model

if TYPE_CHECKING:
    from pathlib import Path


# ---- refusals


def refused(path: Path, declared: Declaration, samples: Path | None, **options: Any) -> str:
    out = path.parent / "out" / "a.lward"
    out.parent.mkdir(exist_ok=True)
    with pytest.raises(ForeignModelError) as caught:
        import_model(path, out, declared, product="p", samples=samples, **options)
    assert not list(out.parent.iterdir())
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        (replace(UNIT, scaling=None), "float pixels, and the file does not say"),
        (replace(UNIT, scaling="imagenet"), "three channels"),
        (replace(UNIT, mean=(0.5,)), "both say how pixels are scaled"),
        (replace(UNIT, scaling=None, mean=(0.5, 0.5), deviation=(1.0,)), "one number"),
        (replace(UNIT, scaling=None, mean=(0.5,), deviation=(0.0,)), "above zero"),
        (replace(UNIT, colour="rgb"), "takes 1 channels"),
        (replace(UNIT, size=(32, 32)), "takes 64 x 64, not --size 32x32"),
        (replace(UNIT, classes=()), "give --classes"),
        (replace(UNIT, classes=("good", "good")), "stands twice"),
        (replace(UNIT, classes=("a", "b")), "none would be good"),
        (replace(UNIT, good=("c",)), "none of good, spot"),
        (replace(UNIT, classes=("good", "a", "b")), "2 columns, and 3 classes"),
        (replace(UNIT, kind="logits"), "use --kind softmax"),
        (replace(UNIT, scores="nothing"), "no float output 'nothing'"),
        (Declaration("anomaly", classes=("good",), scaling="unit"), "no classes"),
        (Declaration("anomaly", scaling="unit", threshold=1.0), "has 2 numbers"),
        (Declaration("anomaly", scaling="unit", anomaly_map="scores"), "no map"),
    ],
)
def test_declarations_that_do_not_fit(data: Path, tmp_path: Path, declared: Declaration, words: str) -> None:
    """What the file says and what is declared must agree; one line says which option to mend."""
    path = classifier(tmp_path, 2, function="Softmax", bias=[0.0, 1.0])
    assert words in refused(path, declared, data)


def test_logits_are_no_softmax(data: Path, tmp_path: Path) -> None:
    """Scores that do not add up to one are not taken for shares."""
    path = classifier(tmp_path, 2, function=None, bias=[0.0, 3.0])
    assert "try --kind logits" in refused(path, UNIT, data)


def simple(
    folder: Path, shape: list[Any], *, inputs: int = 1, outputs: int = 1, element: int = TensorProto.FLOAT
) -> Path:
    names = [f"in{number}" for number in range(inputs)]
    node = helper.make_node("Sum" if inputs > 1 else "Identity", names, ["out0"])
    more = [helper.make_node("Identity", ["out0"], [f"out{number}"]) for number in range(1, outputs)]
    graph = helper.make_graph(
        [node, *more],
        "simple",
        [helper.make_tensor_value_info(name, element, shape) for name in names],
        [helper.make_tensor_value_info(f"out{number}", element, shape) for number in range(outputs)],
    )
    path = folder / "simple.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize(
    ("shape", "options", "words"),
    [
        ([1, 1, 64, 64], {"inputs": 2}, "2 inputs (in0, in1)"),
        ([1, 1, 64, 64], {"outputs": 2}, "2 outputs (out0, out1); name the one"),
        ([1, 1, "h", "w"], {}, "leaves the size open; give --size"),
        ([8, 1, 64, 64], {}, "takes 8 images at once"),
        ([1, 5, 64, 64], {}, "say --layout"),
        ([1, 3, 64, 3], {}, "say --layout"),
        ([1, 1, 4096, 4096], {}, "at most 2048"),
        ([1, 64, 64], {}, "four axes"),
        ([1, 100], {}, "say of which --size"),
        ([1, 1, 64, 64], {"element": TensorProto.INT64}, "int64; float or uint8"),
    ],
)
def test_models_that_take_no_image(
    data: Path, tmp_path: Path, shape: list[Any], options: dict[str, int], words: str
) -> None:
    """Wrong inputs and outputs are refused with the remedy."""
    path = simple(tmp_path, shape, **options)
    assert words in refused(path, Declaration("softmax", classes=("good", "a"), scaling="unit"), data)


def test_external_data(data: Path, tmp_path: Path) -> None:
    """Weights in another file would be lost: refused, with the command that joins them."""
    path = classifier(tmp_path, 2, function="Softmax", bias=[0.0, 1.0])
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert "its weights lie in other files" in refused(path, UNIT, data)


def elsewhere() -> onnx.TensorProto:
    """One number, 1, that lies in the file weights.bin."""
    tensor = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "weights.bin"), ("offset", "0"), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def branched(folder: Path) -> onnx.ModelProto:
    """A classifier that multiplies its scores, in a branch, with a number from another file."""
    (folder / "weights.bin").write_bytes(np.ones(1, np.float32).tobytes())
    model = onnx.load(classifier(folder, 2, function="Softmax", bias=[0.0, 1.0]))
    model.graph.node[-1].output[0] = "shares"
    scores = [helper.make_tensor_value_info("branch_scores", TensorProto.FLOAT, None)]
    multiply = helper.make_node("Mul", ["shares", "w"], ["branch_scores"])
    leave = helper.make_node("Identity", ["shares"], ["branch_scores"])
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
    model.graph.node.append(
        helper.make_node(
            "If",
            ["always"],
            ["scores"],
            then_branch=helper.make_graph([multiply], "then", [], scores, [elsewhere()]),
            else_branch=helper.make_graph([leave], "else", [], scores),
        )
    )
    return model


def test_external_data_of_a_branch(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle must not depend on a file that no digest covers; joined as the message says, the model is taken."""
    path = tmp_path / "net.onnx"
    onnx.save(branched(tmp_path), path)
    monkeypatch.chdir(tmp_path)  # ONNX Runtime looks for the file of a model without a path there
    assert "its weights lie in other files" in refused(path, UNIT, data)
    onnx.save(onnx.load(path), path)
    (tmp_path / "weights.bin").unlink()
    wrapped(path, tmp_path / "a.lward", UNIT, samples=data)


@pytest.mark.parametrize("place", ["branch in a branch", "list of graphs", "tensor", "tensors", "sparse", "function"])
def test_external_data_at_any_depth(data: Path, tmp_path: Path, place: str) -> None:
    """Wherever ONNX lets a tensor be, one that lies in another file is found."""
    model = branched(tmp_path)
    outer = model.graph.node[-1]
    (branch,) = [attribute.g for attribute in outer.attribute if attribute.name == "then_branch"]
    inner = onnx.GraphProto.FromString(branch.SerializeToString())
    del branch.initializer[:]
    match place:
        case "branch in a branch":
            branch.node.append(helper.make_node("If", ["always"], ["deep"], then_branch=inner))
        case "list of graphs":
            outer.attribute.append(helper.make_attribute("graphs", [inner]))
        case "tensor":
            branch.node.append(helper.make_node("Constant", [], ["w"], value=elsewhere()))
        case "tensors":
            branch.node.append(helper.make_node("Constant", [], ["w"], values=[elsewhere()]))
        case "sparse":
            indices = numpy_helper.from_array(np.zeros(1, np.int64))
            branch.sparse_initializer.append(helper.make_sparse_tensor(elsewhere(), indices, [4]))
        case _:
            node = helper.make_node("Constant", [], ["w"], value=elsewhere())
            model.functions.append(helper.make_function("any", "f", [], ["w"], [node], model.opset_import))
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    assert "its weights lie in other files" in refused(path, UNIT, data)


@pytest.mark.parametrize(("factor", "threshold"), [(1.0, 1e300), (1.0, float("inf")), (0.0, float("inf"))])
def test_a_threshold_that_no_score_can_reach(data: Path, tmp_path: Path, factor: float, threshold: float) -> None:
    """A limit that float32 cannot hold is refused in one line, whether the scores differ or not."""
    declared = Declaration("anomaly", scaling="unit", threshold=threshold)
    assert "too large or too small" in refused(far(tmp_path, 0.0, factor), declared, data)


def test_scores_that_are_not_numbers(data: Path, tmp_path: Path) -> None:
    """A model that gives NaN is refused with the picture it failed on."""
    path = classifier(tmp_path, 2, function="Log", bias=[-1000.0, -1000.0])
    message = refused(path, replace(UNIT, kind="logits"), data)
    assert "not a number for" in message
    assert ".png" in message


@pytest.mark.parametrize("content", [b"", b"hello, I am no model", b"\x08\x07"])
def test_files_that_are_no_models(data: Path, tmp_path: Path, content: bytes) -> None:
    """A text called .onnx, an empty file, a model without a graph."""
    path = tmp_path / "text.onnx"
    path.write_bytes(content)
    assert "not an ONNX" in refused(path, UNIT, data)


def test_a_bundle_is_not_wrapped_again(data: Path, trained: Any, tmp_path: Path) -> None:
    """A .lward file needs no import."""
    path = tmp_path / "a.lward"
    shutil.copy(trained.model, path)
    assert "is a bundle already" in refused(path, UNIT, data)


def test_operators_that_nobody_knows(data: Path, tmp_path: Path) -> None:
    """An operator of another runtime is refused in ONNX Runtime's words, in one line."""
    path = classifier(tmp_path, 2, function="Softmax", bias=[0.0, 1.0])
    model = onnx.load(path)
    model.graph.node[-1].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    onnx.save(model, path)
    assert "ONNX Runtime does not accept" in refused(path, UNIT, data)


def test_reversed_classes_are_noticed(data: Path, from_onnx_helper: Path, tmp_path: Path) -> None:
    """A model that puts good parts above defective ones was declared wrongly, and is not written."""
    model = onnx.load(from_onnx_helper)
    model.graph.node.append(helper.make_node("Neg", ["pred_score"], ["goodness"]))
    model.graph.output.append(helper.make_tensor_value_info("goodness", TensorProto.FLOAT, [1]))
    path = tmp_path / "reversed.onnx"
    onnx.save(model, path)
    declared = Declaration("anomaly", scaling="unit", scores="goodness")
    assert "puts good images above defective ones" in refused(path, declared, data, data=data)


def test_pictures_are_needed(from_onnx_helper: Path, tmp_path: Path) -> None:
    """Without a picture nothing can be checked; a folder without one is named."""
    path = tmp_path / "a.onnx"
    shutil.copy(from_onnx_helper, path)
    declared = Declaration("anomaly", scaling="unit", threshold=1.0)
    assert "--samples" in refused(path, declared, None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ForeignModelError, match="no images there"):
        import_model(path, tmp_path / "x.lward", declared, product="p", samples=tmp_path / "empty")
    with pytest.raises(DatasetError, match="no such folder"):
        import_model(
            path, tmp_path / "x.lward", replace(declared, threshold=None), product="p", data=tmp_path / "nowhere"
        )
    assert not (tmp_path / "x.lward").exists()


@pytest.mark.parametrize(
    ("kind", "labelled", "why"), [("anomaly", True, "choose the limit"), ("softmax", False, "of an anomaly score")]
)
def test_a_threshold_without_effect_is_refused(
    from_onnx_helper: Path, tmp_path: Path, kind: str, why: str, *, labelled: bool
) -> None:
    """Rule: an option that would be ignored is an error, not a surprise."""
    declared = Declaration(kind, scaling="unit", threshold=1.0)
    with pytest.raises(ForeignModelError, match=f"--threshold would change nothing.*{why}.*leave it out"):
        import_model(
            from_onnx_helper,
            tmp_path / "x.lward",
            declared,
            product="p",
            **{"data" if labelled else "samples": tmp_path},
        )
    assert not (tmp_path / "x.lward").exists()
