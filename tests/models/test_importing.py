"""Models made by other tools: wrapped they say what they said before, and what cannot be wrapped is refused by name."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tests.models.foreign import UNIT, classifier, far, wrapped

from lineward.images import read_image
from lineward.models.foreign import Declaration, ForeignModelError
from lineward.models.importing import import_model
from lineward.models.session import Session
from lineward.models.store import not_promotable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray


# ---- three exports by three tools


def thumbnails(folder: Path, side: int) -> tuple[NDArray[np.float32], list[str]]:
    """Small pictures as rows of numbers 0..255, and the name of the folder they lie in."""
    files = sorted(folder.rglob("*.png"))
    pictures = [cv2.resize(read_image(path), (side, side), interpolation=cv2.INTER_AREA) for path in files]
    return np.stack(pictures).reshape(len(files), -1).astype(np.float32), [path.parent.name for path in files]


@pytest.fixture(scope="module")
def from_sklearn(make_parts: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of scikit-learn, trained on other parts and exported with its defaults: labels and dictionaries."""
    from skl2onnx import to_onnx

    folder = tmp_path_factory.mktemp("sklearn")
    train = make_parts(folder / "data", good=150, defects={"spot": 60, "scratch": 60}, first=9000)
    rows, labels = thumbnails(train, 24)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1e-2, max_iter=2000)).fit(rows, labels)
    exported = to_onnx(model, rows[:1])
    path = folder / "pipeline.onnx"
    path.write_bytes(exported.SerializeToString())
    return path


@pytest.fixture(scope="module")
def from_torch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network of torch, logits of three classes, three channels, height and width left open."""
    if not torch_is_there():
        pytest.skip("torch is not installed: `pip install torch` and run again")
    path = tmp_path_factory.mktemp("torch") / "net.onnx"
    script = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
from torch import nn
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 8, 5, 2, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.Hardswish(),
                    nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()
torch.onnx.export(net, torch.zeros(1, 3, 96, 96), sys.argv[1], input_names=["image"], output_names=["logits"],
                  dynamic_axes={"image": {0: "n", 2: "h", 3: "w"}}, opset_version=17, dynamo=False)
"""
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return path


def torch_is_there() -> bool:
    command = [sys.executable, "-W", "ignore", "-c", "import torch.onnx"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_scikit_learn_pipeline(from_sklearn: Path, data: Path, tmp_path: Path) -> None:
    """A table model with dictionaries as output becomes a bundle: shares as the original's, class names found."""
    declared = Declaration("softmax", scaling="raw", size=(24, 24))
    report = wrapped(from_sklearn, tmp_path / "a.lward", declared, data=data)
    assert report.calibrated
    assert report.manifest.defect_types == ("scratch", "spot")
    assert (report.manifest.input.height, report.manifest.input.width) == (48, 48), "blocks of four are one pixel"
    assert report.manifest.holdout.n_good > 10
    # Against the library itself: what onnxruntime makes of the original file, with pictures prepared by hand.
    image = read_image(next((data / "defect" / "spot").iterdir()))
    session = Session(report.model)
    small = session.prepare(image).astype(np.float32).reshape(24, 2, 24, 2).mean(axis=(1, 3)).reshape(1, -1)
    original = onnxruntime.InferenceSession(str(from_sklearn), providers=["CPUExecutionProvider"])
    (shares,) = original.run(["output_probability"], {"X": small})[0]
    given = session.run(session.prepare(image))
    assert given.defect_type_scores is not None
    np.testing.assert_allclose(given.defect_type_scores[0], [shares["scratch"], shares["spot"]], atol=1e-5)
    assert session.judge(image).heatmap is not None


def test_torch_network(from_torch: Path, data: Path, tmp_path: Path) -> None:
    """A network with open size and logits becomes a bundle for the declared size and scaling."""
    declared = Declaration("logits", classes=("good", "spot", "scratch"), scaling="imagenet", size=(96, 96))
    report = wrapped(from_torch, tmp_path / "a.lward", declared, samples=data)
    assert report.manifest.input.channels == 3
    image = read_image(next((data / "good").iterdir()))
    pixels = np.repeat(image[:, :, None], 3, axis=2) / 255
    batch = ((pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0, 1)[None].astype(np.float32)
    original = onnxruntime.InferenceSession(str(from_torch), providers=["CPUExecutionProvider"])
    (logits,) = original.run(None, {"image": batch})[0]
    shares = np.exp(logits) / np.exp(logits).sum()
    assert Session(report.model).judge(image).defect_probability == pytest.approx(shares[1:].sum(), abs=1e-5)


def test_anomaly_map(from_onnx_helper: Path, data: Path, tmp_path: Path, defect_place: Any) -> None:
    """An anomaly model is calibrated on labelled parts; score and map find their outputs, the map shows the defect."""
    report = wrapped(from_onnx_helper, tmp_path / "a.lward", Declaration("anomaly", scaling="unit"), data=data)
    held = report.manifest.holdout
    assert held.auroc is not None
    assert held.auroc > 0.9
    assert not_promotable(report.manifest) == ""
    session = Session(report.model)
    verdicts = [session.judge(read_image(path)) for path in sorted((data / "defect" / "spot").iterdir())]
    hits = 0
    for path, verdict in zip(sorted((data / "defect" / "spot").iterdir()), verdicts, strict=True):
        assert verdict.heatmap is not None
        rows, columns = verdict.heatmap.shape
        assert max(rows, columns) <= 64
        row, column = np.unravel_index(verdict.heatmap.argmax(), verdict.heatmap.shape)
        x, y = defect_place(int(path.stem))
        hits += abs((column + 0.5) / columns * 96 - x) < 12 and abs((row + 0.5) / rows * 96 - y) < 12
    assert hits >= 0.8 * len(verdicts)
    good = [session.judge(read_image(path)).anomaly for path in sorted((data / "good").iterdir())]
    assert np.mean([verdict.anomaly for verdict in verdicts]) > 0.95 > np.mean(good)


def test_a_map_alone_is_enough(from_onnx_helper: Path, data: Path, tmp_path: Path) -> None:
    """Without a score the largest value of the map is the score."""
    both = wrapped(from_onnx_helper, tmp_path / "a.lward", Declaration("anomaly", scaling="unit"), data=data)
    declared = Declaration("anomaly", scaling="unit", anomaly_map="anomaly_map")
    alone = wrapped(from_onnx_helper, tmp_path / "b.lward", declared, data=data)
    assert alone.manifest.holdout.auroc == both.manifest.holdout.auroc


def test_without_labels_nothing_is_promised(from_onnx_helper: Path, data: Path, tmp_path: Path) -> None:
    """An import on samples only needs the maker's threshold, says that it is not calibrated, and is not promotable."""
    declared = Declaration("anomaly", scaling="unit")
    with pytest.raises(ForeignModelError, match="--threshold"):
        import_model(from_onnx_helper, tmp_path / "a.lward", declared, product="p", samples=data)
    assert not list(tmp_path.iterdir())
    report = wrapped(from_onnx_helper, tmp_path / "a.lward", replace(declared, threshold=0.02), samples=data)
    assert not report.calibrated
    assert "never calibrated" in not_promotable(report.manifest)
    assert any("not calibrated" in sentence for sentence in report.sentences())
    assert json.dumps(report.to_json())


def test_samples_that_all_fail_are_said(from_onnx_helper: Path, data: Path, tmp_path: Path) -> None:
    """Rule: an import without labels says what it does with the samples, and doubts a limit that fails most of them."""
    found = {}
    for threshold in (-100.0, 100.0):
        declared = Declaration("anomaly", scaling="unit", threshold=threshold)
        (note,) = wrapped(from_onnx_helper, tmp_path / "a.lward", declared, samples=data).warnings
        found[threshold] = note
    assert "of the 96 sample images 96 fail, 0 pass and 0 go to review, so look at --threshold" in found[-100]
    assert "of the 96 sample images 0 fail, 96 pass and 0 go to review; import it again with --data" in found[100]


def test_the_original_is_not_overwritten(from_onnx_helper: Path, data: Path, tmp_path: Path) -> None:
    """Rule: an --out that is the model itself, by whatever name, is refused, and the model stays."""
    model = tmp_path / "mine.onnx"
    shutil.copy(from_onnx_helper, model)
    before = model.read_bytes()
    (tmp_path / "link.lward").symlink_to(model)
    declared = Declaration("anomaly", scaling="unit", threshold=0.02)
    for out in (model, tmp_path / "link.lward"):
        with pytest.raises(ForeignModelError, match="--out names the model itself"):
            import_model(model, out, declared, product="p", samples=data)
    assert model.read_bytes() == before


# ---- preparation: every declaration, against arithmetic by hand


def probe(folder: Path, *, shape: list[Any], element: int = TensorProto.FLOAT, opset: int = 17, pick: int = 0) -> Path:
    """A model whose score is the value at one place of its input, so that layout, colour and scaling show."""
    nodes = [
        helper.make_node("Cast", ["x"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["float", "row"], ["flat"]),
        helper.make_node("Gather", ["flat", "pick"], ["score"], axis=1),
    ]
    constants = [
        numpy_helper.from_array(np.array([1, -1], np.int64), "row"),
        numpy_helper.from_array(np.array([pick], np.int64), "pick"),
    ]
    graph = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info("x", element, shape)],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, None)],
        constants,
    )
    path = folder / "probe.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


@pytest.mark.parametrize("opset", [9, 13, 17, 21])
@pytest.mark.parametrize("element", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.UINT8])
def test_types_and_operator_sets(tmp_path: Path, element: int, opset: int) -> None:
    """Float of any width and uint8, old and new operator sets: the declared value arrives."""
    check_probe(tmp_path, shape=[1, 3, 40, 48], element=element, opset=opset, colour="rgb", at=(7, 9, 1))


@pytest.mark.parametrize("colour", ["rgb", "bgr"])
@pytest.mark.parametrize("shape", [[1, 3, 40, 48], ["N", 40, 48, 3], [1, 3, 20, 24], ["N", 16, 12, 3], [1, 1728]])
def test_layouts_colours_and_sizes(tmp_path: Path, shape: list[Any], colour: str) -> None:
    """NCHW, NHWC, rows of numbers, small inputs and both colour orders: the declared pixel arrives."""
    check_probe(tmp_path, shape=shape, element=TensorProto.FLOAT, opset=17, colour=colour, at=(3, 5, 2))


def check_probe(
    folder: Path, *, shape: list[Any], element: int, opset: int, colour: str, at: tuple[int, int, int]
) -> None:
    if len(shape) == 2:
        height, width = 24, 24
    else:
        height, width = (shape[2], shape[3]) if shape[1] == 3 else (shape[1], shape[2])
    row, column, channel = at
    place = [channel, row, column] if len(shape) == 4 and shape[1] == 3 else [row, column, channel]
    sizes = [3, height, width] if len(shape) == 4 and shape[1] == 3 else [height, width, 3]
    pick = int(np.ravel_multi_index(place, sizes))
    path = probe(folder, shape=shape, element=element, opset=opset, pick=pick)
    scaled = element != TensorProto.UINT8
    declared = Declaration(
        "anomaly",
        mean=(0.1, 0.2, 0.3) if scaled else (),
        deviation=(0.5, 0.4, 0.8) if scaled else (),
        colour=colour,  # type: ignore[arg-type]
        size=(24, 24) if len(shape) == 2 else None,
        threshold=0.0 if scaled else 128.0,
    )
    factor = -(-32 // min(height, width))
    picture = np.random.default_rng(3).integers(0, 256, (height * factor, width * factor, 3), np.uint8)
    cv2.imwrite(str(folder / "picture.png"), picture[:, :, ::-1])
    report = import_model(path, folder / "a.lward", declared, product="p", samples=folder / "picture.png")
    block = picture[row * factor : (row + 1) * factor, column * factor : (column + 1) * factor].mean(axis=(0, 1))
    expected = (block[::-1] if colour == "bgr" else block)[channel]
    if scaled:
        expected = (expected / 255 - (0.1, 0.2, 0.3)[channel]) / (0.5, 0.4, 0.8)[channel]
    width_of = (abs(declared.threshold or 0) / 4) or 1.0
    given = Session(report.model).judge(picture).defect_probability
    limit = declared.threshold or 0.0
    assert given == pytest.approx(1 / (1 + np.exp(-(expected - limit) / width_of)), abs=2e-3)


# ---- classifiers: what a column means


def judged(path: Path, declared: Declaration, brightness: int) -> tuple[float, Session]:
    folder = path.parent
    cv2.imwrite(str(folder / "grey.png"), np.full((64, 64), brightness, np.uint8))
    report = import_model(path, folder / "a.lward", declared, product="p", samples=folder / "grey.png")
    session = Session(report.model)
    return session.judge(np.full((64, 64), brightness, np.uint8)).defect_probability, session


@pytest.mark.parametrize("function", ["Softmax", None])
def test_softmax_and_logits(tmp_path: Path, function: str | None) -> None:
    """The defect probability is the sum over all defect classes, before or behind the softmax."""
    path = classifier(tmp_path, 4, function=function, bias=[1.0, 0.5, -0.5, 0.0])
    kind = "softmax" if function else "logits"
    declared = Declaration(kind, classes=("ok", "a", "also_ok", "b"), good=("ok", "also_ok"), scaling="unit")
    logits = np.arange(4) * 0.8 + [1.0, 0.5, -0.5, 0.0]
    shares = np.exp(logits) / np.exp(logits).sum()
    given, session = judged(path, declared, 204)
    assert given == pytest.approx(shares[1] + shares[3], abs=1e-5)
    assert session.manifest.defect_types == ("a", "b")


@pytest.mark.parametrize(("name", "sign"), [("defect", 1), ("good", -1)])
@pytest.mark.parametrize("function", ["Sigmoid", None])
def test_one_sigmoid(tmp_path: Path, function: str | None, name: str, sign: int) -> None:
    """A single column says how defective or how good, as its name declares."""
    path = classifier(tmp_path, 1, function=function, bias=[0.7])
    declared = Declaration("sigmoid" if function else "sigmoid-logits", classes=(name,), scaling="unit")
    assert judged(path, declared, 204)[0] == pytest.approx(1 / (1 + np.exp(-sign * 0.7)), abs=1e-5)


def test_several_sigmoids(tmp_path: Path) -> None:
    """Of several sigmoids the likeliest defect decides, and it is named."""
    path = classifier(tmp_path, 3, function="Sigmoid", bias=[2.0, -1.0, -3.0])
    declared = Declaration("sigmoid", classes=("good", "scratch", "dent"), scaling="unit")
    given, session = judged(path, declared, 255)
    assert given == pytest.approx(0.5, abs=1e-5)
    assert session.judge(np.full((64, 64), 255, np.uint8)).defect_type == "scratch"


def test_certain_shares_stay_finite(tmp_path: Path) -> None:
    """Shares of exactly 0 and 1 are judged, not turned into infinity."""
    path = classifier(tmp_path, 2, function="Softmax", bias=[0.0, 0.0], factor=500.0)
    assert judged(path, UNIT, 255)[0] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("offset", [0.0, 1e3, -1e4, 1e5])
@pytest.mark.parametrize("labelled", [True, False])
def test_scores_far_from_zero(data: Path, tmp_path: Path, offset: float, *, labelled: bool) -> None:
    """Log-likelihoods of any size are wrapped as exactly as small scores: probability, rank and heat-map."""
    declared = Declaration("anomaly", scaling="unit", threshold=None if labelled else offset - 0.3)
    options = {"data" if labelled else "samples": data}
    report = wrapped(far(tmp_path, offset), tmp_path / "a.lward", declared, **options)
    assert report.manifest.parity.max_abs_diff < 1e-5
