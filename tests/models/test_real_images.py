from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from lineward.models.dataset import read_dataset
from lineward.models.evaluate import evaluate
from lineward.models.quick import train_quick
from lineward.models.session import Session

if TYPE_CHECKING:
    from lineward.models.dataset import Dataset

DATA = Path(os.environ.get("LINEWARD_DATA", Path(__file__).parents[3] / "shared" / "data"))


def link(dataset: Dataset, indices: list[int], folder: Path) -> Path:
    """Make a data folder of some images of another one, without copying them."""
    for index in indices:
        item = dataset.items[index]
        place = folder / item.file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(item.source.path.resolve())
    (folder / "groups.csv").write_bytes((dataset.folder / "groups.csv").read_bytes())
    return folder


@pytest.mark.skipif(not (DATA / "elpv").is_dir(), reason=f"no real images in {DATA} (set LINEWARD_DATA)")
def test_real_cells_are_told_apart(tmp_path: Path) -> None:
    """On real solar cells of other modules the quick tier ranks well; the bound leaves room for one unlucky split."""
    dataset = read_dataset(DATA / "elpv")
    assert dataset.groups_known
    parts = np.random.default_rng(0).permutation(sorted(set(dataset.groups.tolist())))
    outer = set(parts[: len(parts) * 3 // 10].tolist())
    inside = [index for index, group in enumerate(dataset.groups.tolist()) if group not in outer]
    outside = [index for index, group in enumerate(dataset.groups.tolist()) if group in outer]
    report = train_quick(
        link(dataset, inside, tmp_path / "train"),
        tmp_path / "cells.lward",
        product="cells",
        cache_dir=tmp_path / "cache",
        height=224,
        width=224,
    )
    assert report.manifest.parity.verdicts_equal
    evaluation = evaluate(Session(report.model), link(dataset, outside, tmp_path / "test"))
    assert evaluation.auroc is not None
    assert evaluation.auroc > 0.85
