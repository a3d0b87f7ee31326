from __future__ import annotations

import importlib.util
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from lineward.models.bundle import load_bundle, load_manifest, save_bundle
from lineward.models.dataset import DatasetError, read_dataset
from lineward.models.evaluate import evaluate
from lineward.models.finetune import train_full
from lineward.models.fit import Crossfit
from lineward.models.incremental import compare_with_parent, join
from lineward.models.quick import train_quick
from lineward.models.session import Session
from lineward.models.verdict import Decision

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lineward.models.quick import TrainReport


@pytest.fixture(scope="module")
def base(make_parts: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainReport, Path, Path]:
    """A model of plates with spots only, its data and its cache."""
    place = tmp_path_factory.mktemp("base")
    data = make_parts(place / "data", good=50, defects={"spot": 16}, first=5000)
    cache = place / "cache"
    report = train_quick(data, place / "base.lward", product="plates", cache_dir=cache, height=96, width=96)
    return report, data, cache


def test_a_new_type_is_added_without_the_old_images(
    base: tuple[TrainReport, Path, Path], make_parts: Callable[..., Path], tmp_path: Path
) -> None:
    """The new folder holds one new type and no good part; the old images come from the cache, even when moved away."""
    report, data, cache = base
    new = make_parts(tmp_path / "new", good=0, defects={"scratch": 12}, first=6000)
    (new / "good").rmdir()
    hidden = data.rename(data.with_name("hidden"))
    try:
        grown = train_quick(
            new, tmp_path / "grown.lward", product="plates", cache_dir=cache, base=report.model
        ).manifest
    finally:
        hidden.rename(data)
    assert (grown.parent, grown.parent_version) == (report.sha256, report.manifest.version)
    assert (grown.data.n_good, grown.data.n_defect) == (50, 28)
    assert grown.defect_types == ("scratch", "spot")
    assert grown.input == report.manifest.input
    assert grown.promotable, grown.not_promotable
    assert grown.old_parts is not None
    assert (grown.old_parts.n_good, grown.old_parts.n_defect) == (50, 16)


def test_a_base_that_is_not_known_here_needs_its_folder(
    base: tuple[TrainReport, Path, Path], make_parts: Callable[..., Path], tmp_path: Path
) -> None:
    """On another machine the base's folder is asked for by name of the option; another folder is not taken for it."""
    report, data, _ = base
    new = make_parts(tmp_path / "new", good=4, defects={"scratch": 6}, first=7000)
    other = tmp_path / "cache"
    out = tmp_path / "g.lward"
    with pytest.raises(DatasetError, match="--base-data"):
        train_quick(new, out, product="p", cache_dir=other, base=report.model)
    with pytest.raises(DatasetError, match="66 of the 66 images"):
        train_quick(new, out, product="p", cache_dir=other, base=report.model, base_data=new)
    assert not out.exists()
    grown = train_quick(new, out, product="p", cache_dir=other, base=report.model, base_data=data)
    assert grown.manifest.data.n_good == 54


def test_a_base_of_a_base_is_found_again_in_two_folders(
    base: tuple[TrainReport, Path, Path], make_parts: Callable[..., Path], tmp_path: Path
) -> None:
    """Rule: without the cache, images that lie in the new folder need not lie in the one of --base-data as well."""
    report, data, cache = base
    new = make_parts(tmp_path / "new", good=4, defects={"scratch": 6}, first=7500)
    grown = train_quick(new, tmp_path / "1.lward", product="plates", cache_dir=cache, base=report.model)
    again = train_quick(
        new, tmp_path / "2.lward", product="plates", cache_dir=tmp_path / "lost", base=grown.model, base_data=data
    )
    assert set(again.manifest.data.trained_on) == set(grown.manifest.data.trained_on)


def test_an_imported_model_is_no_base(base: tuple[TrainReport, Path, Path], tmp_path: Path) -> None:
    """Rule: what was not trained here has no images to start from; that is said instead of training from nothing."""
    report, data, cache = base
    imported = report.manifest.model_copy(
        update={"tier": "imported", "data": report.manifest.data.model_copy(update={"trained_on": ()})}
    )
    bundle = load_bundle(report.model)
    path = tmp_path / "imported.lward"
    save_bundle(path, bundle.data[: bundle.manifest.graph_bytes], imported)
    with pytest.raises(DatasetError, match="--base: an imported model has no training images"):
        train_quick(data, tmp_path / "m.lward", product="plates", cache_dir=cache, base=path)


def test_a_corrected_label_leaves_an_image_with_its_part(make_parts: Callable[..., Path], tmp_path: Path) -> None:
    """Rule: an image of the base that comes again without a named part stays with the other images of its part."""
    old = read_dataset(make_parts(tmp_path / "old", good=20, defects={"spot": 8}))
    first, sister = (item for item in old.items if item.group == "good-0")
    (tmp_path / "new" / "good").mkdir(parents=True)
    (tmp_path / "new" / "defect" / "dent").mkdir(parents=True)
    shutil.copy(first.source.path, tmp_path / "new" / "defect" / "dent" / "0.png")
    joined = join(old, read_dataset(tmp_path / "new", training=False))
    groups = {item.source.digest: item.group for item in joined.items}
    assert groups[first.source.digest] == groups[sister.source.digest] == "good-0"
    assert "1 images of the base were given the other label" in joined.warnings


def test_colour_that_is_lost_to_mono_images_is_said(make_parts: Callable[..., Path], tmp_path: Path) -> None:
    """Rule: mono images beside a base in colour make the model a mono one, and a warning names how many there are."""
    old = read_dataset(make_parts(tmp_path / "old", good=20, defects={"spot": 8}))
    coloured = replace(old, items=tuple(replace(item, mono=False) for item in old.items))
    new = read_dataset(make_parts(tmp_path / "new", good=12, defects={"spot": 4}, first=900))
    joined = join(coloured, new)
    assert joined.mono
    assert "16 images are mono and 28 in colour: all are used as mono" in joined.warnings


def test_worse_on_the_old_parts_is_not_promotable(base: tuple[TrainReport, Path, Path]) -> None:
    """A candidate that lets the old defects pass is marked, with the reason and the n."""
    report, data, _ = base
    dataset = read_dataset(data)
    n = len(dataset.items)
    blind = Crossfit(np.full(n, 0.1), np.zeros(n), (Decision.PASS,) * n)
    marked = compare_with_parent(report.manifest, load_bundle(report.model), dataset, blind, dataset.groups)
    assert not marked.promotable
    assert "escapes on the old parts rose" in marked.not_promotable
    assert "n=50 good, 16 defective" in marked.not_promotable


@pytest.mark.parametrize(("of_each_part", "promotable"), [(2, True), (1, False)])
def test_missed_pictures_count_by_their_parts(
    base: tuple[TrainReport, Path, Path], of_each_part: int, *, promotable: bool
) -> None:
    """Rule: 4 of 16 defects not found are too many for chance if each is of another part, not if they are two parts."""
    report, data, _ = base
    dataset = read_dataset(data)
    labels = dataset.labels
    groups = np.arange(len(labels)) // of_each_part
    probabilities = np.where(labels, 0.8 + groups / 1000, 0.2)
    probabilities[np.flatnonzero(labels)[:4]] = 0.1
    decisions = tuple(Decision.REVIEW if label else Decision.PASS for label in labels)
    parent = load_bundle(report.model)
    found_all = parent.manifest.holdout.model_copy(update={"detection_at_2pct_fr": 1.0})
    parent = replace(parent, manifest=parent.manifest.model_copy(update={"holdout": found_all}))
    said = Crossfit(probabilities, np.zeros(len(labels)), decisions)
    marked = compare_with_parent(report.manifest, parent, dataset, said, groups)
    assert marked.promotable == promotable, marked.not_promotable
    assert ("detection at 2 % false rejects" in marked.not_promotable) != promotable


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch (extra train) is missing")
@pytest.mark.parametrize("fate", ["moved away", "overwritten"])
def test_the_full_tier_asks_for_all_images_before_it_works(
    base: tuple[TrainReport, Path, Path], make_parts: Callable[..., Path], tmp_path: Path, fate: str
) -> None:
    """Rule: images of the base that are gone, or others by now, are named with what to do; no minute is lost."""
    report, data, cache = base
    new = make_parts(tmp_path / "new", good=4, defects={"scratch": 6}, first=7500)
    image = sorted((data / "good").iterdir())[3]
    content = image.read_bytes()
    stages = set()
    try:
        if fate == "overwritten":
            image.write_bytes(min((new / "good").iterdir()).read_bytes())
        else:
            image.unlink()
        with pytest.raises(DatasetError, match="1 of 76 images are not there any more or have changed") as caught:
            train_full(
                new,
                tmp_path / "m.lward",
                product="p",
                cache_dir=cache,
                base=report.model,
                progress=lambda stage, _done, _total: stages.add(stage),
            )
    finally:
        image.write_bytes(content)
    assert image.name in str(caught.value)
    assert "--base-data" in str(caught.value)
    assert stages == {"read"}


def test_good_parts_alone(make_parts: Callable[..., Path], tmp_path: Path) -> None:
    """Without a defect a model is made that promises nothing about escapes, and yet sees plain spots."""
    data = make_parts(tmp_path / "data", good=40, defects={}, first=8000)
    report = train_quick(data, tmp_path / "m.lward", product="p", cache_dir=tmp_path / "cache", height=96, width=96)
    manifest = load_manifest(report.model)
    assert manifest.calibration.method == "none"
    assert manifest.risk.escape.n == 0
    assert not manifest.risk.supported
    assert any("without any defective part" in warning for warning in report.warnings)
    assert manifest.holdout.auroc is None
    assert manifest.parity.verdicts_equal
    found = evaluate(Session(report.model), make_parts(tmp_path / "t", good=30, defects={"spot": 20}, first=9000))
    assert found.auroc is not None
    assert found.auroc > 0.9
    assert found.escape_rate.value is not None
    assert found.escape_rate.value < 0.5


def test_figures_on_training_images_are_refused(base: tuple[TrainReport, Path, Path]) -> None:
    """What a model was fitted on says nothing about it, whatever the files are called."""
    report, data, _ = base
    with pytest.raises(DatasetError, match="trained on 66 of these 66 images"):
        evaluate(Session(report.model), data)
