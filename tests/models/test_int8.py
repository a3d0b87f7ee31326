from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest

from lineward.images import read_image
from lineward.models.backbone import EfficientNetLite0
from lineward.models.bundle import load_bundle
from lineward.models.dataset import read_dataset
from lineward.models.evaluate import evaluate
from lineward.models.export import ParityError, require_like_float
from lineward.models.features import FeatureStore
from lineward.models.fit import Crossfit
from lineward.models.graph import Graph
from lineward.models.int8 import Int8Lite0, int8_backbone
from lineward.models.prepare import InputSpec, prepare
from lineward.models.quick import train_quick
from lineward.models.session import Session
from lineward.models.store import add, promote, resolve_model
from lineward.models.verdict import Decision

if TYPE_CHECKING:
    from collections.abc import Callable

    from lineward.models.quick import TrainReport

SIDE = 96
SPEC = InputSpec(height=SIDE, width=SIDE, channels=1, colour="mono")


@pytest.fixture(scope="module")
def int8(data: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainReport:
    out = tmp_path_factory.mktemp("int8") / "plates.lward"
    return train_quick(data, out, product="plates", cache_dir=cache, height=SIDE, width=SIDE, version="8", int8=True)


def quantised(data: Path, cache: Path, known: str = "") -> Int8Lite0:
    return int8_backbone(EfficientNetLite0(), SPEC, read_dataset(data), cache, known, lambda _done, _total: None)


def test_manifest_says_int8_and_both_figures(int8: TrainReport, trained: TrainReport) -> None:
    """Rule: a bundle says in which precision its network runs, and what float32 would have reached."""
    manifest = load_bundle(int8.model).manifest
    assert (manifest.model.precision, trained.manifest.model.precision) == ("int8", "fp32")
    assert manifest.model.backbone_digest != trained.manifest.model.backbone_digest
    assert manifest.parity.verdicts_equal
    assert manifest.parity.auroc_fp32 == pytest.approx(trained.manifest.holdout.auroc, abs=1e-6)
    assert manifest.holdout.auroc is not None
    assert manifest.parity.auroc_fp32 is not None
    assert manifest.holdout.auroc >= manifest.parity.auroc_fp32 - 0.005


def test_network_runs_in_8_bits(int8: TrainReport, trained: TrainReport) -> None:
    """Rule: every convolution of the bundle takes 8-bit maps and weights, and the file is smaller by megabytes."""
    graph = onnx.load(str(int8.model)).graph
    makers = {node.output[0]: node for node in graph.node}
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 49
    for node in convolutions:
        assert [makers[name].op_type for name in node.input] == ["DequantizeLinear"] * 3
        weight = constants[makers[node.input[1]].input[0]]
        assert weight.dtype == np.int8
    assert int8.model.stat().st_size < trained.model.stat().st_size - 8_000_000


def test_no_processor_overflows(int8: TrainReport) -> None:
    """Rule: two neighbouring products fit into 16 bits, because processors without VNNI add them there."""
    graph = onnx.load(str(int8.model)).graph
    makers = {node.output[0]: node for node in graph.node}
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    checked = 0
    for node in graph.node:
        if node.op_type != "Conv":
            continue
        weight = np.abs(constants[makers[node.input[1]].input[0]].astype(np.int64))
        groups = next(attribute.i for attribute in node.attribute if attribute.name == "group")
        if groups > 1:
            continue
        if weight.shape[2:] == (1, 1):
            pairs = weight[:, 0::2, 0, 0] + weight[:, 1::2, 0, 0]
        else:
            pairs = 2 * weight.reshape(len(weight), -1)
        assert 255 * pairs.max() < 2**15
        checked += 1
    assert checked == 33


def test_onnx_runtime_fuses_every_convolution(int8: TrainReport, tmp_path: Path) -> None:
    """Rule: ONNX Runtime turns the nodes into integer kernels; a pattern it does not know would run in float32."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(int8.model), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert kinds.count("QLinearConv") == 49
    assert "Conv" not in kinds


def test_features_stay_close_to_float(data: Path, cache: Path) -> None:
    """Rule: the quantised network sees the same things: pooled features follow those of float32."""
    sources = read_dataset(data).sources
    full = FeatureStore(EfficientNetLite0(), SPEC, cache).extract(sources)
    small = FeatureStore(quantised(data, cache), SPEC, cache).extract(sources)
    varied = full.std(axis=0) > 1e-2
    first, second = (part[:, varied] - part[:, varied].mean(axis=0) for part in (full, small))
    likeness = (first * second).sum(axis=0) / np.sqrt((first**2).sum(axis=0) * (second**2).sum(axis=0) + 1e-12)
    assert np.median(likeness) > 0.9


def test_pixels_enter_exactly(data: Path, cache: Path) -> None:
    """Rule: 8 bits hold a pixel; the first layer is fed what float32 is fed."""
    graph = Graph()
    image = graph.input("image", "uint8", ("N", SIDE, SIDE, 1))
    backbone = quantised(data, cache)
    backbone.append(graph, image, height=SIDE, width=SIDE, channels=1)
    graph.output("entered", "normalised.real", ("N", 1, SIDE, SIDE))
    session = onnxruntime.InferenceSession(
        graph.model("entered", "0").SerializeToString(), providers=["CPUExecutionProvider"]
    )
    picture = prepare(read_image(read_dataset(data).sources[0].path), SPEC)
    (entered,) = session.run(["entered"], {"image": picture[None]})
    np.testing.assert_array_equal(entered[0, 0], (picture[:, :, 0].astype(np.float32) - 127) / 128)


def test_bundle_is_used_like_any_other(int8: TrainReport, make_parts: Callable[..., Path], tmp_path: Path) -> None:
    """Rule: a bundle in int8 is evaluated, promoted and loaded by the same code, and finds defects it never saw."""
    new = make_parts(tmp_path / "new", good=20, defects={"spot": 10, "scratch": 10}, first=5000)
    figures = evaluate(Session(int8.model), new)
    assert figures.auroc is not None
    assert figures.auroc > 0.9
    add(tmp_path, int8.model)
    promote(tmp_path, "plates", "8")
    assert Session(resolve_model(tmp_path, Path("plates"))).manifest.model.precision == "int8"


def test_base_in_int8_stays_in_int8_with_its_features(
    int8: TrainReport, cache: Path, make_parts: Callable[..., Path], tmp_path: Path
) -> None:
    """Rule: adding images to a model in int8 keeps its ranges, so that features of old images are not made again."""
    new = make_parts(tmp_path / "new", good=4, defects={"spot": 6}, first=7000)
    counted: dict[str, int] = {}

    def progress(stage: str, _done: int, total: int) -> None:
        counted[stage] = total

    report = train_quick(
        new, tmp_path / "more.lward", product="plates", cache_dir=cache, base=int8.model, progress=progress
    )
    assert report.manifest.model.precision == "int8"
    assert report.manifest.model.backbone_digest == int8.manifest.model.backbone_digest
    assert "ranges" not in counted


def test_other_images_give_other_ranges(
    data: Path, cache: Path, make_parts: Callable[..., Path], tmp_path: Path
) -> None:
    """Rule: ranges belong to the images they were measured on; another set is measured for itself, once."""
    first = quantised(data, cache)
    other = make_parts(tmp_path / "other", good=20, defects={"spot": 5}, first=9000)
    second = quantised(other, cache)
    assert second.digest != first.digest
    assert quantised(other, cache).digest == second.digest
    assert quantised(other, cache, known=first.digest).digest == first.digest


def test_damaged_ranges_are_measured_again(data: Path, tmp_path: Path) -> None:
    """Rule: a kept file that cannot be read costs time, never the training."""
    first = quantised(data, tmp_path)
    (path,) = (tmp_path / "int8").rglob("*.json")
    for broken in (b"", b"{", b"[]", b'{"ranges": {"a": 1}, "images": []}'):
        path.write_bytes(broken)
        assert quantised(data, tmp_path).digest == first.digest


def test_good_parts_alone(make_parts: Callable[..., Path], cache: Path, tmp_path: Path) -> None:
    """Rule: a set without any defect can be trained in int8 as well; there is no AUROC to compare."""
    folder = make_parts(tmp_path / "good", good=24, defects={}, first=11000)
    report = train_quick(folder, tmp_path / "m.lward", product="p", cache_dir=cache, height=SIDE, width=SIDE, int8=True)
    assert report.manifest.model.precision == "int8"
    assert report.manifest.parity.auroc_fp32 is None
    assert report.manifest.parity.verdicts_equal


def test_worse_than_float_is_not_written(tmp_path: Path) -> None:
    """Rule: int8 may cost 0.005 of AUROC; beyond it one line says both figures and what to do."""
    labels = np.array([False] * 10 + [True] * 10)

    def said(scores: list[float]) -> Crossfit:
        return Crossfit(np.array(scores), np.zeros(20), (Decision.REVIEW,) * 20)

    right = [0.1] * 10 + [0.9] * 10
    assert require_like_float(tmp_path / "m.lward", labels, said(right), said(right)) == 1.0
    with pytest.raises(ParityError, match=r"m\.lward: not written: .*AUROC 0\.900 instead of 1\.000.*without --int8"):
        require_like_float(tmp_path / "m.lward", labels, said(right), said([*right[:9], 0.95, *right[10:]]))
