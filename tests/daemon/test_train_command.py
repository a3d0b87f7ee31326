"""`lineward train` as it is typed: wrong numbers, a cache that cannot be written, and an end in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lineward.daemon import cli
from lineward.drivers.simulated import write_dataset
from lineward.models.bundle import load_manifest
from lineward.models.naming import check_product, product_of
from lineward.models.records import Risk


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "parts", n_good=100, n_defect=0, width=160, height=128)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1)
    return err


@pytest.mark.parametrize("seed", ["-1", "99999999999"])
@pytest.mark.parametrize(
    "command", [("train", "--out", "m.lward"), ("dataset", "check"), ("models", "import", "m.onnx")]
)
def test_a_seed_that_no_generator_takes_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: tuple[str, ...], seed: str
) -> None:
    """Rule: one line that names the option and its range, before anything is read."""
    more = ("--out", "m.lward", "--kind", "softmax") if "import" in command else ()
    said = refused(capsys, *command, *more, "--data", tmp_path, "--seed", seed)
    assert "--seed" in said
    assert ("than or equal to 0" if seed == "-1" else "than or equal to 2147483647") in said


def test_a_cache_that_cannot_be_written_is_called_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, parts: Path
) -> None:
    """Rule: a file of Lineward's own that the system refuses is explained, and where to put it instead."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "lineward").write_text("a file where a folder is wanted")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    said = refused(capsys, "train", "--data", parts, "--out", tmp_path / "m.lward")
    assert "Not a directory; features of images are kept there: make it writable, or set XDG_CACHE_HOME" in said
    assert not (tmp_path / "m.lward").exists()


def test_a_training_that_is_told_to_end_leaves_nothing(tmp_path: Path, parts: Path) -> None:
    """Rule: a service manager does not fill the disk with what a training had put aside."""
    scratch, out = tmp_path / "scratch", tmp_path / "out"
    scratch.mkdir()
    out.mkdir()
    with subprocess.Popen(
        [
            Path(sys.executable).with_name("lineward"),
            "train",
            "--data",
            parts,
            "--out",
            out / "m.lward",
            "--synthetic",
            "200",
        ],
        env=os.environ | {"TMPDIR": str(scratch), "XDG_CACHE_HOME": str(tmp_path / "cache")},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        made_up = "lineward-made-up-*/*"
        until = time.monotonic() + 120
        while process.poll() is None and not any(scratch.glob(made_up)) and time.monotonic() < until:
            time.sleep(0.01)
        assert any(scratch.glob(made_up)), "the training puts pictures aside"
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 128 + signal.SIGTERM, said
        assert said == ""
    assert not list(scratch.iterdir())
    assert not list(out.iterdir())


@pytest.mark.parametrize("command", [("train",), ("models", "import", "m.onnx", "--kind", "softmax")])
@pytest.mark.parametrize("product", ["a b", "", "x" * 65, "../x"])
def test_a_product_that_no_store_takes_is_refused_at_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: tuple[str, ...], product: str
) -> None:
    """Rule: not after minutes of training, when the model is to be promoted."""
    said = refused(capsys, *command, "--data", tmp_path, "--out", tmp_path / "m.lward", "--product", product)
    assert f"the product {product!r} cannot be a name in the store; use letters, digits, _ and -" in said


@pytest.mark.parametrize(
    ("file", "product"),
    [("bracket.lward", "bracket"), ("my part.v2.lward", "my-part-v2"), ("---.lward", "product"), ("ü.lward", "ü")],
)
def test_the_name_of_a_file_is_made_fit_for_the_store(tmp_path: Path, file: str, product: str) -> None:
    """Rule: without --product the file names it, whatever it is called."""
    assert product_of(None, tmp_path / file) == product
    check_product(product)


@pytest.mark.parametrize("place", ["taken/m.lward", "folder"])
@pytest.mark.parametrize(
    "command",
    [
        ("train", "--tier", "quick", "--out"),
        ("models", "import", "m.onnx", "--kind", "softmax", "--out"),
        ("evaluate", "--model", "m.lward", "--html"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: tuple[str, ...], place: str
) -> None:
    """Rule: nobody waits for minutes to learn that the result has no place; nothing else is looked at before."""
    (tmp_path / "taken").touch()
    (tmp_path / "folder").mkdir()
    said = refused(capsys, *command, tmp_path / place, "--data", tmp_path / "no data")
    assert said.startswith(f"lineward: {tmp_path / place}: ")
    assert ("cannot be written" if place.startswith("taken") else "is a folder; give the name of a file in it") in said


def test_the_risk_is_stated_in_parts_of_a_thousand_and_kept_by_what_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rule: the thresholds keep what was asked on the parts that chose them; a retraining asks for the same again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first, later = (
        write_dataset(tmp_path / name, n_good=80, n_defect=30, width=160, height=128, seed=seed)
        for name, seed in (("first", 0), ("later", 7))
    )
    strict, usual, grown = (tmp_path / f"{name}.lward" for name in ("strict", "usual", "grown"))
    for out, options in (
        (usual, ()),
        (strict, ("--false-rejects", 0, "--escapes", 100, "--reviews", 400)),
        (grown, ("--escapes", 50)),
    ):
        data = ("--data", later, "--base", strict) if out is grown else ("--data", first)
        with pytest.raises(SystemExit) as ended:
            cli.main([str(word) for word in ("train", *data, "--out", out, "--product", "p", "--json", *options)])
        assert not ended.value.code
    capsys.readouterr()
    asked = {out: load_manifest(out).risk.asked for out in (strict, usual, grown)}
    assert (asked[strict].max_false_reject, asked[strict].max_escape, asked[strict].max_review) == (0.0, 0.1, 0.4)
    assert asked[usual] == Risk()
    assert asked[grown] == asked[strict].model_copy(update={"max_escape": 0.05})
    assert load_manifest(strict).risk.false_reject.value == 0.0
    assert load_manifest(strict).thresholds.fail_from >= load_manifest(usual).thresholds.fail_from
    assert "less than or equal to 1000" in refused(capsys, "train", "--data", first, "--out", usual, "--reviews", 1001)
