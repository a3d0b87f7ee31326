"""`lineward models`, `lineward dataset` and `evaluate --html` as they are typed: output, exit codes, one clear line."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from lineward.daemon import cli
from lineward.drivers.simulated import write_dataset
from lineward.models.bundle import load_bundle, load_manifest, save_bundle
from lineward.models.quick import train_quick

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("parts") / "set", n_good=40, n_defect=24, width=160, height=128)


@pytest.fixture(scope="module")
def bundle(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "bracket.lward"
    train_quick(parts, out, product="bracket", version="v1", height=96, width=96)
    return out


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """Run a command and return its exit code, what it printed, and what it complained about."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def complaint(result: tuple[int, str, str], *words: str) -> None:
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    for word in words:
        assert word in err


def test_promote_list_show_rollback(call: Call, bundle: Path, tmp_path: Path) -> None:
    """A file is promoted, listed, shown with who did it; a rollback needs something to go back to."""
    root = ("--root", tmp_path / "data")
    assert "no models in" in call("models", "list", *root)[1]
    code, out, _ = call("models", "promote", bundle, *root)
    assert (code, out) == (0, "bracket: v1 judges now (before: none)\n")
    assert "was the current model already" in call("models", "promote", "bracket", "v1", *root)[1]
    (listed,) = json.loads(call("models", "list", *root, "--json")[1])
    assert (listed["product"], listed["version"], listed["current"], listed["ok"]) == ("bracket", "v1", True, True)
    assert "bracket" in call("models", "list", *root)[1]
    shown = json.loads(call("models", "show", "bracket", *root, "--json")[1])
    assert shown["history"] == ["v1"]
    assert [line["what"] for line in shown["audit"]] == ["add", "promote"]
    assert shown["manifest"]["product"] == "bracket"
    text = call("models", "show", "bracket", "v1", *root)[1]
    assert "(current)" in text
    assert "promote v1" in text
    complaint(call("models", "rollback", "bracket", *root), "nothing to roll back to")


def test_versions_are_never_cut_off(call: Call, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: what has to be typed again is readable on 80 columns; an unknown product is one line with the others."""
    manifest, graph = load_manifest(bundle), load_bundle(bundle).data
    for version in ("20261127-101112", "20261127-101113"):
        path = tmp_path / f"{version}.lward"
        save_bundle(path, graph[: manifest.graph_bytes], manifest.model_copy(update={"version": version}))
        assert call("models", "promote", path, "--root", tmp_path / "r")[0] == 0
    monkeypatch.setenv("COLUMNS", "80")
    out = call("models", "list", "--root", tmp_path / "r")[1]
    assert "20261127-101112" in out
    assert "20261127-101113" in out
    complaint(call("models", "list", "typo", "--root", tmp_path / "r"), "no product 'typo'", "models of bracket")


def test_longest_names_are_whole_and_no_markup(
    call: Call, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: names that are wider together than the terminal are not cut off, and brackets in a name are shown."""
    manifest, graph = load_manifest(bundle), load_bundle(bundle).data
    names = {"product": "p" * 64, "version": "1." + "0" * 62}
    save_bundle(tmp_path / "long.lward", graph[: manifest.graph_bytes], manifest.model_copy(update=names))
    assert call("models", "promote", tmp_path / "long.lward", "--root", tmp_path)[0] == 0
    odd = tmp_path / "models" / "[odd]" / "[red]1.lward"
    odd.parent.mkdir()
    odd.write_bytes(b"no bundle")
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = call("models", "list", "--root", tmp_path)
    assert code == 1
    assert names["product"] in out
    assert names["version"] in out
    assert "[odd] " in out
    assert "[red]1 " in out


def test_a_configuration_names_the_store(call: Call, bundle: Path, tmp_path: Path) -> None:
    """`--config` means the store of that station; without either option the remedy is told."""
    config = tmp_path / "line.toml"
    config.write_text('[camera]\ndriver = "simulated"\n[inspection]\nmodel = "bracket"\n[storage]\nroot = "store"\n')
    assert call("models", "promote", bundle, "--config", config)[0] == 0
    assert (tmp_path / "store" / "models" / "bracket" / "current").read_text() == "v1\n"
    complaint(call("models", "list", "--config", config, "--root", tmp_path), "give one of them")
    if not cli.DEFAULT_CONFIG.exists():
        complaint(call("models", "list"), "give --config FILE or --root FOLDER")


def test_damage_is_found_by_list(call: Call, bundle: Path, tmp_path: Path) -> None:
    """A damaged file in the store is named, and the exit code is 1."""
    root = ("--root", tmp_path / "data")
    call("models", "promote", bundle, *root)
    stored = tmp_path / "data" / "models" / "bracket" / "v1.lward"
    stored.write_bytes(stored.read_bytes()[:-1])
    for command in (("list",), ("show", "bracket")):
        code, out, _ = call("models", *command, *root)
        assert code == 1
        assert "v1.lward" in out
    complaint(call("models", "promote", "bracket", "v1", *root), "v1.lward", "damaged")


@pytest.mark.parametrize("words", [("a.lward", "b.lward"), ("bracket",), ("a", "b", "c"), ("a.lward", "v1")])
def test_promote_needs_a_file_or_product_and_version(call: Call, tmp_path: Path, words: tuple[str, ...]) -> None:
    """Anything else is answered with both ways to write it."""
    complaint(call("models", "promote", *words, "--root", tmp_path), "PRODUCT VERSION", "FILE.lward")


def test_import(call: Call, parts: Path, tmp_path: Path) -> None:
    """A foreign model is imported with its declaration, then evaluated and promoted like any other."""
    path = tmp_path / "net.onnx"
    nodes = [
        helper.make_node("AveragePool", ["x"], ["smooth"], kernel_shape=[9, 9], pads=[4, 4, 4, 4]),
        helper.make_node("Sub", ["x", "smooth"], ["d"]),
        helper.make_node("Mul", ["d", "d"], ["map"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 128, 160])],
        [helper.make_tensor_value_info("map", TensorProto.FLOAT, [1, 1, 128, 160])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    out = tmp_path / "net.lward"
    options = ("--kind", "anomaly", "--scaling", "unit")
    complaint(call("models", "import", path, "--out", out, *options), "--samples DIR")
    complaint(call("models", "import", path, "--out", out, "--kind", "magic"), "--kind magic", "anomaly")
    complaint(call("models", "import", path, "--out", out, *options, "--size", "12"), "--size 12", "224x224")
    complaint(call("models", "import", path, "--out", out, "--kind", "anomaly", "--mean", "a"), "--mean a")
    assert not out.exists()
    # The simulated set names batches, of which there are too few for a hold-out: parts are told by their likeness.
    labelled = shutil.copytree(parts, tmp_path / "labelled", ignore=shutil.ignore_patterns("groups.csv"))
    code, text, err = call("models", "import", path, "--out", out, *options, "--data", labelled, "--json")
    assert code == 0, err
    report = json.loads(text)
    assert report["parity"]["verdicts_equal"]
    assert report["calibrated"]
    assert call("models", "promote", out, "--root", tmp_path / "data")[0] == 0
    sampled = tmp_path / "sampled.lward"
    arguments = (path, "--out", sampled, *options, "--samples", parts, "--threshold", "0.01", "--product", "other")
    code, text, _ = call("models", "import", *arguments)
    assert code == 0
    assert "not calibrated" in text
    complaint(call("models", "promote", sampled, "--root", tmp_path / "data"), "never calibrated", "--force")
    assert call("models", "promote", sampled, "--force", "--root", tmp_path / "data")[0] == 0


def test_dataset_check(call: Call, parts: Path, tmp_path: Path) -> None:
    """A small set has something wrong: exit code 1, a table for people, one object for machines."""
    code, out, err = call("dataset", "check", "--data", parts, "--no-curve", "--json")
    assert (code, err) == (1, "")
    report = json.loads(out)
    assert report["fine"] is False
    assert (report["n_good"], report["n_defect"]) == (40, 24)
    assert {"id", "level", "text", "figures"} == set(report["findings"][0])
    code, out, _ = call("dataset", "check", "--data", parts)
    assert code == 1
    assert "FAIL" in out
    assert "wrong with this set" in out
    assert "told" in out or "AUROC" in out
    complaint(call("dataset", "check", "--data", tmp_path / "nowhere"), "nowhere", "no such folder")
    (tmp_path / "empty" / "good").mkdir(parents=True)
    complaint(call("dataset", "check", "--data", tmp_path / "empty"), "no images")


def test_evaluate_html(call: Call, bundle: Path, tmp_path: Path) -> None:
    """`evaluate --html` prints the same figures and writes a page."""
    fresh = write_dataset(tmp_path / "fresh", n_good=8, n_defect=6, width=160, height=128, seed=99)
    plain: dict[str, Any] = json.loads(call("evaluate", "--model", bundle, "--data", fresh, "--json")[1])
    page = tmp_path / "page.html"
    code, out, _ = call("evaluate", "--model", bundle, "--data", fresh, "--html", page, "--json")
    assert code == 0
    figures = json.loads(out)
    assert {**figures, "ms_per_image": 0} == {**plain, "ms_per_image": 0}
    assert "<svg" in page.read_text()
    cv2.imwrite(str(fresh / "good" / "x.png"), np.zeros((4, 4), np.uint8))
    (fresh / "good" / "x.png").write_text("no picture")
    complaint(call("evaluate", "--model", bundle, "--data", fresh, "--html", tmp_path / "other.html"), "x.png")
    assert not (tmp_path / "other.html").exists()


def test_the_list_is_whole_on_a_narrow_screen(
    call: Call, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: what has to be typed again stands on one line, in a pipe as on a terminal of 40 columns."""
    call("models", "promote", bundle, "--root", tmp_path / "data")
    monkeypatch.setenv("COLUMNS", "40")
    lines = call("models", "list", "--root", tmp_path / "data")[1].splitlines()
    (row,) = (line for line in lines if line.split()[:1] == ["bracket"])
    made = load_manifest(bundle)
    assert row.split()[:4] == ["bracket", "v1", made.created[:10], "quick"]
    assert row.split()[-1] == "current"
