"""Evidence per patch: what it is fitted on, whatever the folds and the pictures are like."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest

from lineward.models import patches
from lineward.models.dataset import DatasetError
from lineward.models.folds import fitting_folds
from lineward.models.patches import fit_patch_distance, fit_patches
from lineward.models.quick import train_quick

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray


class Kept:
    """A store that holds its patches ``(n, cells, depth)`` in memory; a source is its number."""

    threads = 2

    def __init__(self, cells: NDArray[np.float32]) -> None:
        self._cells = cells

    def cells(self, sources: Sequence[Any], *, deep: bool) -> NDArray[np.float32]:
        return self._cells[[source.number for source in sources]].copy()

    def sources(self) -> list[Any]:
        return [SimpleNamespace(number=number, path=f"{number}.png") for number in range(len(self._cells))]


@pytest.mark.parametrize("seed", range(3))
def test_every_fold_is_fitted_on_defects_of_the_others(seed: int) -> None:
    """Rule: a batch with nearly all defects leaves the few of another batch to fit on when it is taken out."""
    batches = [(200, 1500), (200, 4), (100, 0), (100, 0)]
    labels = np.concatenate([np.arange(good + bad) >= good for good, bad in batches])
    groups = np.repeat(np.arange(4), [good + bad for good, bad in batches])
    folds = fitting_folds(labels, groups, seed)
    cells = np.random.default_rng(0).normal(size=(len(labels), 20, 8)).astype(np.float32)
    cells[labels, 3] += 4
    store = Kept(cells)
    found = fit_patches(store, store.sources(), labels, folds, seed)  # type: ignore[arg-type]
    assert np.isfinite(found.scores).all()
    assert np.median(found.scores[labels]) > np.quantile(found.scores[~labels], 0.99)


def test_a_choice_of_defects_takes_all_of_folds_with_few_and_as_many_of_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rule: no image twice, all when they are few, and the same ones again with the same seed."""
    monkeypatch.setattr(patches, "MAX_DEFECTIVE", 60)
    folds = np.repeat([0, 1, 2], [500, 7, 100])
    drawn = patches._draw(np.arange(607), folds, 0)
    assert np.bincount(folds[drawn]).tolist() == [27, 7, 26]
    assert drawn == sorted(set(drawn)) == patches._draw(np.arange(607), folds, 0)
    assert drawn != patches._draw(np.arange(607), folds, 1)
    assert patches._draw(np.arange(480, 520), folds, 0) == list(range(480, 520))


@pytest.mark.parametrize("defects", [8, 0], ids=["with_defects", "good_only"])
def test_good_images_without_any_difference_are_refused(tmp_path: Path, defects: int) -> None:
    """Rule: one picture under many names is no training set, and the line that says so names it and the remedy."""
    grey = cv2.imencode(".png", np.full((64, 64), 128, np.uint8))[1].tobytes()
    random = np.random.default_rng(0)
    for number in range(20):
        path = tmp_path / "data" / "good" / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(grey + bytes([number]))
    for number in range(defects):
        path = tmp_path / "data" / "defect" / "spot" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), random.integers(0, 255, (64, 64), np.uint8))
    kinds = [("good", 20), ("defect/spot", defects)]
    rows = [
        f"{kind}/{path.name},{kind}{path.name}"
        for kind, n in kinds
        if n
        for path in (tmp_path / "data" / kind).iterdir()
    ]
    (tmp_path / "data" / "groups.csv").write_text("\n".join(["file,group", *rows]))
    with pytest.raises(DatasetError, match=r"good/00\.png: all 20 good images show this same picture.*camera"):
        train_quick(tmp_path / "data", tmp_path / "m.lward", product="p", height=64, width=64)
    assert not (tmp_path / "m.lward").exists()


def test_one_good_image_that_differs_is_a_difference() -> None:
    """Rule: images are not refused for what most of them have in common."""
    cells = np.ones((12, 20, 8), np.float32)
    cells[11, 3] += 1
    store = Kept(cells)
    found = fit_patch_distance(store, store.sources(), np.arange(12) % 3)  # type: ignore[arg-type]
    assert np.isfinite(found.scores).all()
