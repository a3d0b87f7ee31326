from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lineward.images import ImageFileError, read_image
from lineward.models.dataset import DatasetError
from lineward.models.evaluate import Judged, evaluate, judge_folder, predict
from lineward.models.foreign import Declaration
from lineward.models.importing import import_model
from lineward.models.metrics import measure
from lineward.models.records import Risk
from lineward.models.report import page
from lineward.models.session import Session
from lineward.models.verdict import Decision

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_new_parts(session: Session, make_parts: Callable[..., Path], tmp_path: Path) -> None:
    """Figures over new parts have the agreed keys, count every image, and agree with single verdicts."""
    folder = make_parts(tmp_path, good=20, defects={"spot": 10}, first=2000)
    seen: list[tuple[int, int]] = []
    figures = evaluate(session, folder, progress=lambda done, total: seen.append((done, total))).to_json()
    json.dumps(figures, allow_nan=False)
    assert list(figures) == [
        "n_good",
        "n_defect",
        "auroc",
        "detection_at_2pct_fr",
        "false_reject_rate",
        "escape_rate",
        "review_share",
        "ece",
        "ms_per_image",
    ]
    said = predict(session, sorted(folder.rglob("*.png")), on_error=pytest.fail)
    reviews = sum(entry["verdict"] == "review" for entry in said)
    escapes = sum(entry["verdict"] == "pass" and "/defect/" in entry["file"] for entry in said)
    assert figures["review_share"] == pytest.approx(reviews / 30)
    assert figures["escape_rate"]["value"] == pytest.approx(escapes / 10)  # type: ignore[index]
    assert figures["auroc"] > 0.9  # type: ignore[operator]
    assert seen[-1] == (30, 30)


@pytest.mark.parametrize("suffix", [".tif", ".bmp"])
def test_a_training_image_that_was_saved_again_is_known(
    session: Session, data: Path, make_parts: Callable[..., Path], tmp_path: Path, suffix: str
) -> None:
    """Rule: no figures on what the model was fitted on, whatever the file is called and however it is written."""
    folder = make_parts(tmp_path, good=4, defects={"spot": 4}, first=2100)
    source = min((data / "good").rglob("*.png"))
    assert cv2.imwrite(str(folder / "good" / f"again{suffix}"), cv2.imread(str(source), cv2.IMREAD_UNCHANGED))
    with pytest.raises(DatasetError, match=rf"trained on 1 of these 9 images, such as good/again\{suffix}"):
        evaluate(session, folder)


def asked_of(judged: Judged, share: float) -> Judged:
    """The same figures beside a promise that they can prove."""
    asked = Risk(max_false_reject=share, max_escape=share)
    risk = judged.manifest.risk.model_copy(update={"asked": asked})
    return replace(judged, manifest=judged.manifest.model_copy(update={"risk": risk}))


def test_figures_without_a_table_of_parts_come_with_a_warning(
    session: Session, make_parts: Callable[..., Path], tmp_path: Path
) -> None:
    """Rule: intervals that may be too narrow are called so, on the terminal as on the page, and prove nothing."""
    folder = make_parts(tmp_path, good=20, defects={"spot": 10}, first=2200)
    known = asked_of(judge_folder(session, folder), 0.5)
    assert len(known.sentences()) == 3
    assert "these images prove it." in page(known)
    (folder / "groups.csv").unlink()
    judged = asked_of(judge_folder(session, folder), 0.5)
    notes = judged.sentences()[:-3]
    assert any("there is no groups.csv" in note for note in notes)
    assert "these images prove it, if each of them shows another part." in page(judged)
    assert notes[-1] == "Note: where several images show one part, the intervals below are too narrow."


def test_three_closing_sentences() -> None:
    """What it can do, what it misses and of which type most, and what to collect: those of the worst type first."""
    kinds = [None] * 200 + ["dent"] * 20 + ["crack"] * 20
    labels = np.array([kind is not None for kind in kinds])
    passes = {"good": 198, "dent": 1, "crack": 9}
    said = [Decision.PASS] * 198 + [Decision.FAIL, Decision.REVIEW]
    for kind in ("dent", "crack"):
        said += [Decision.PASS] * passes[kind] + [Decision.FAIL] * (20 - passes[kind])
    figures = measure(labels, labels * 0.9, said, 1.0, kinds, parts=np.arange(240))
    can_do, misses, collect = figures.sentences()
    assert "reject about 5 (" in can_do
    assert "about 25 would slip through" in misses
    assert "most of all crack (9 of 20 missed)" in misses
    assert collect == "Collect next: 20 to 50 pictures of other parts with crack."
    said = [Decision.PASS] * 200 + [Decision.FAIL] * 40
    none_missed = measure(
        labels, labels * 0.9, [Decision.PASS] * 200 + [Decision.FAIL] * 40, 1.0, kinds, parts=np.arange(240)
    ).sentences()
    assert none_missed[2] == "Collect next: 60 more defective parts: with so few the rates above stay wide."


def test_one_kind_alone(session: Session, make_parts: Callable[..., Path], tmp_path: Path) -> None:
    """Good parts alone give a false-reject rate; what needs both kinds is none, not a number."""
    evaluation = evaluate(session, make_parts(tmp_path, good=4, defects={}, first=3000))
    assert evaluation.false_reject_rate.n == 4
    assert evaluation.auroc is None
    assert evaluation.escape_rate.value is None
    assert (evaluation.escape_rate.low, evaluation.escape_rate.high) == (0, 1)
    can_do, misses, collect = evaluation.sentences()
    assert "seen on 4 images" in can_do
    assert "not known" in misses
    assert collect.startswith("Collect next: defective parts of every type")
    with pytest.raises(DatasetError, match="no such folder"):
        evaluate(session, tmp_path / "nothing")


def test_predict_keeps_order_and_goes_on(session: Session, make_parts: Callable[..., Path], tmp_path: Path) -> None:
    """A broken file is reported and undecided; those behind it are judged, in the order given."""
    good, bad = sorted(make_parts(tmp_path, good=2, defects={}, first=4000).rglob("*.png"))
    bad.write_bytes(bad.read_bytes()[:200])
    errors: list[ImageFileError] = []
    found = predict(session, [good, bad, tmp_path / "none.png", good], on_error=errors.append)
    assert [entry["file"] for entry in found] == [str(good), str(bad), str(tmp_path / "none.png"), str(good)]
    assert [entry["verdict"] == "undecided" for entry in found] == [False, True, True, False]
    assert [set(entry) for entry in found] == [{"file", "verdict", "confidence", "defect_probability", "ms"}] * 4
    assert [bad.name in str(errors[0]), "none.png" in str(errors[1])] == [True, True]
    assert found[1]["defect_probability"] is None
    verdict = session.judge(read_image(good))
    assert found[0]["defect_probability"] == found[3]["defect_probability"] == verdict.defect_probability
    assert found[0]["confidence"] == verdict.confidence
    assert found[0]["ms"] > 0


@pytest.fixture(scope="module")
def rootless(make_parts: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Session:
    """An imported model that takes the root of the mean brightness above 5 %: on darker pictures it gives no number."""
    folder = tmp_path_factory.mktemp("rootless")
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Sub", ["mean", "least"], ["above"]),
        helper.make_node("Sqrt", ["above"], ["score"]),
    ]
    graph = helper.make_graph(
        nodes,
        "rootless",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 32, 32])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"])],
        [numpy_helper.from_array(np.float32(0.05), "least")],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), folder / "rootless.onnx")
    bundle = folder / "rootless.lward"
    data = make_parts(folder / "data", good=40, defects={"spot": 20}, first=95_000)
    declared = Declaration(kind="anomaly", scaling="unit", colour="mono")
    import_model(folder / "rootless.onnx", bundle, declared, product="p", data=data, cache_dir=folder / "cache")
    return Session(bundle)


def test_a_model_that_gives_no_number_is_judged_all_the_same(
    rootless: Session, make_parts: Callable[..., Path], tmp_path: Path
) -> None:
    """Rule: figures, page and JSON are there; the image is a review, has no probability, and how many is said."""
    folder = make_parts(tmp_path, good=8, defects={"spot": 6}, first=96_000)
    dark = folder / "good" / "dark.png"
    cv2.imwrite(str(dark), np.random.default_rng(1).integers(0, 5, (96, 96), np.uint8))
    judged = judge_folder(rootless, folder)
    json.dumps(judged.metrics.to_json(), allow_nan=False)
    assert judged.metrics.n_good == 9
    said = "the model gives no number for 1 of 15 images, such as good/dark.png"
    assert any(said in sentence for sentence in judged.sentences()[:-3])
    text = page(judged)
    assert said in text
    assert "<td>AUROC</td>" in text
    assert not re.search(r'[">, ]nan[",<% ]', text)
    (found,) = predict(rootless, [dark], on_error=pytest.fail)
    json.dumps(found, allow_nan=False)
    assert (found["verdict"], found["confidence"], found["defect_probability"]) == ("review", 0.0, None)

    for path in folder.rglob("[0-9]*.png"):
        path.write_bytes(dark.read_bytes() + path.name.encode())
    nothing = judge_folder(rootless, folder)
    assert nothing.metrics.review_share == 1.0
    text = page(nothing)
    assert "no number for 15 of 15 images" in text
    assert "<td>calibration error (ECE)</td><td>-</td>" in text
