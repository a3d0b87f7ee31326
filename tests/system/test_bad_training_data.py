"""Folders that nobody can learn from, or that are odd: one clear line each from `train`, and nothing half-written."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from tests.system.line import call

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.system


@pytest.fixture
def folder(dataset: Path, tmp_path: Path) -> Path:
    return shutil.copytree(dataset, tmp_path / "parts")


def keep_three(folder: Path) -> None:
    for path in sorted(folder.rglob("*.png"))[3:]:
        path.unlink()


def some_defect(folder: Path) -> Path:
    return next((folder / "defect").rglob("*.png"))


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "defects alone": (lambda folder: shutil.rmtree(folder / "good"), "no folder good/ in it; put the images of good"),
    "three images": (keep_three, "are too few; at least 10 good ones are needed"),
    "a text called .png": (
        lambda folder: (folder / "good" / "note.png").write_text("no picture"),
        "good/note.png: not an image that Lineward reads (PNG, JPEG, TIFF or BMP); replace or remove",
    ),
    "an empty file": (lambda folder: (folder / "good" / "nil.png").touch(), "good/nil.png: the file is empty"),
    "half a file": (
        lambda folder: (folder / "good" / "half.png").write_bytes(some_defect(folder).read_bytes()[:2000]),
        "good/half.png: the PNG file is cut off; copy it again",
    ),
    "two labels": (
        lambda folder: shutil.copy(some_defect(folder), folder / "good" / "copy.png"),
        "which has the other label; remove one of them",
    ),
    "nothing": (shutil.rmtree, "no such folder; give one that holds good/ and defect/<type>/"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_folder_that_cannot_be_learnt_from(folder: Path, tmp_path: Path, name: str) -> None:
    """Rule: exit code 2, one line that names the place and the remedy, no model and no remains of one."""
    spoil, words = SPOILT[name]
    spoil(folder)
    done = call(tmp_path, "train", "--data", folder, "--out", tmp_path / "out" / "x.lward")
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.startswith(f"lineward: {folder}")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.rglob("*.lward")) + list(tmp_path.rglob("*partial*"))


def test_odd_pictures_are_learnt_from_and_named(folder: Path, tmp_path: Path) -> None:
    """Sizes, channels and depths that differ, one picture of 100 megapixels: each is one note beside the figures."""
    random = np.random.default_rng(0)
    good = folder / "good"
    cv2.imwrite(str(good / "long.png"), random.integers(60, 200, (64, 400), np.uint8))
    cv2.imwrite(str(good / "colour.png"), random.integers(60, 200, (256, 320, 3), np.uint8))
    cv2.imwrite(str(good / "deep.png"), random.integers(60, 200, (256, 320)).astype(np.uint16) * 257)
    cv2.imwrite(str(good / "huge.png"), np.full((10_000, 10_000), 90, np.uint8))
    done = call(tmp_path, "train", "--data", folder, "--out", tmp_path / "x.lward")
    assert done.returncode == 0, done.stderr
    notes = [line for line in done.stdout.splitlines() if line.startswith("Note: ")]
    for words in (
        "much larger than the others: good/huge.png",
        "3 different sizes (320 x 256 the most frequent",
        "87 images are mono and 1 in colour: all are used as mono",
        "1 images have 16 bits: their upper 8 are used; the other 87 have 8",
    ):
        assert sum(words in note for note in notes) == 1, done.stdout
    assert (tmp_path / "x.lward").exists()
