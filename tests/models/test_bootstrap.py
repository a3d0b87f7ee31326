"""Training from good parts and made-up defects: the real ones are found, figures know no made-up picture."""

from __future__ import annotations

import shutil
from functools import partial
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest

from lineward.models.backbone import EfficientNetLite0
from lineward.models.bootstrap import Maker
from lineward.models.dataset import DatasetError, read_dataset
from lineward.models.evaluate import evaluate
from lineward.models.features import FeatureStore
from lineward.models.goodonly import fit_good_only
from lineward.models.metrics import auroc
from lineward.models.prepare import InputSpec
from lineward.models.quick import train_quick
from lineward.models.records import Risk
from lineward.models.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIDE = {"height": 96, "width": 96}
SPEC = InputSpec(**SIDE, channels=1, colour="mono")


@pytest.fixture(scope="module")
def good(make_parts: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_parts(tmp_path_factory.mktemp("good") / "data", good=60, defects={}, first=20_000)


@pytest.fixture(scope="module")
def similar(make_parts: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another product, whose spots are known."""
    return make_parts(tmp_path_factory.mktemp("similar") / "data", good=30, defects={"spot": 12}, first=21_000)


def test_real_defects_are_found_after_training_on_made_up_ones(
    good: Path, similar: Path, make_parts: Callable[..., Path], cache: Path, tmp_path: Path
) -> None:
    """Rule: real spots and scratches that nobody had labelled are told from good parts, not worse than without."""
    unseen = make_parts(tmp_path / "unseen", good=40, defects={"spot": 20, "scratch": 20}, first=22_000)
    found = {}
    for count in (0, 100):
        out = tmp_path / f"{count}.lward"
        overlays = similar if count else None
        report = train_quick(good, out, product="p", cache_dir=cache, synthetic=count, overlays=overlays, **SIDE)
        data = report.manifest.data
        assert (data.n_made_up, data.n_good, data.n_defect) == (count, 60, 0)
        assert (report.manifest.holdout.n_good, report.manifest.holdout.n_defect) == (60, 0)
        assert report.manifest.parity.verdicts_equal
        assert any(f"{count} made-up defects" in warning for warning in report.warnings) == bool(count)
        session = Session(out)
        found[count] = evaluate(session, unseen)
    before, after = found[0].auroc or 0.0, found[100].auroc or 0.0
    assert after > 0.9
    assert after > before - 0.02
    assert (found[100].false_reject_rate.value or 0.0) <= 0.05


def test_heads_learn_from_made_up_defects_what_real_ones_look_like(
    good: Path, make_parts: Callable[..., Path], cache: Path, tmp_path: Path
) -> None:
    """Rule: each head by itself, which knows made-up defects only, tells real ones from good parts."""
    unseen = read_dataset(make_parts(tmp_path / "unseen", good=40, defects={"spot": 20, "scratch": 20}, first=23_000))
    known = read_dataset(good, training=False)
    store = FeatureStore(EfficientNetLite0(), SPEC, cache)
    maker = Maker(100, None, 0, lambda _done, _of: None)
    model = fit_good_only(
        store,
        known.items,
        store.extract(known.sources),
        known.groups,
        risk=Risk(),
        seed=0,
        progress=lambda _done, _of: None,
        make_up=partial(maker.make, EfficientNetLite0(), SPEC, known.items, 2),
    )
    scaled = model.scaler(store.extract(unseen.sources))
    found = {name: auroc(unseen.labels, head.score(model.space, scaled)) for name, head in model.heads.items()}
    assert found.keys() == {"logistic", "kernel"}
    assert min(found.values()) > 0.9, found


def test_pictures_are_made_within_their_fold_and_the_same_again(good: Path, similar: Path) -> None:
    """Rule: no head learns from a picture that was made from a part it judges; a seed always gives the same."""
    items = read_dataset(good, training=False).items
    folds = np.arange(len(items)) % 3
    from lineward.models.backbone import EfficientNetLite0

    told: list[int] = []
    maker = Maker(31, similar, 0, lambda done, _of: told.append(done))
    made = maker.make(EfficientNetLite0(), SPEC, items, 2, folds)
    assert made.pooled.shape[0] == 31
    assert told[-1] == 31
    assert sorted(np.bincount(made.folds).tolist()) == [10, 10, 11]
    again = maker.make(EfficientNetLite0(), SPEC, items, 2, folds)
    assert np.array_equal(made.pooled, again.pooled)
    swapped = maker.make(EfficientNetLite0(), SPEC, [*items[1:], items[0]], 2, np.roll(folds, -1))
    of_fold_1 = swapped.pooled[swapped.folds == 1]
    assert np.array_equal(of_fold_1, made.pooled[made.folds == 1]), "other folds have no part in a fold's pictures"


def test_a_training_from_such_a_base_does_not_say_that_it_made_any_up(
    good: Path, similar: Path, cache: Path, tmp_path: Path
) -> None:
    """Rule: what is said of one training is not said of the next one that starts from its bundle."""
    first = train_quick(good, tmp_path / "1.lward", product="p", cache_dir=cache, synthetic=30, **SIDE)
    second = train_quick(similar, tmp_path / "2.lward", product="p", cache_dir=cache, base=first.model)
    assert second.manifest.data.n_made_up == 0
    assert second.manifest.data.n_defect == 12
    assert not any("made-up" in warning for warning in (*second.warnings, *second.manifest.data.warnings))


def test_made_up_defects_are_refused_beside_real_ones(similar: Path, cache: Path, tmp_path: Path) -> None:
    """Rule: real defects teach more; the message says how many there are and what to leave out."""
    out = tmp_path / "m.lward"
    with pytest.raises(DatasetError, match="there are 12 defective images; leave it out"):
        train_quick(similar, out, product="p", cache_dir=cache, synthetic=100, **SIDE)
    assert not out.exists()


def test_what_nothing_can_be_made_of_is_said(good: Path, similar: Path, cache: Path, tmp_path: Path) -> None:
    """Rule: too few, overlays without a defect or a good part are one line each; nearly black images are no fault."""
    out = tmp_path / "m.lward"
    without = tmp_path / "without"
    shutil.copytree(similar, without)
    shutil.rmtree(without / "defect" / "spot")
    lonely = tmp_path / "lonely"
    shutil.copytree(similar, lonely)
    shutil.rmtree(lonely / "good")
    (lonely / "good").mkdir()
    for count, overlays, words in (
        (5, None, "--synthetic 5: too few"),
        (30, without, "nothing stands out in its 0 defective images"),
        (30, lonely, "--overlays needs the good images of that product too"),
        (30, tmp_path / "nowhere", "no such folder"),
    ):
        with pytest.raises(DatasetError, match=words) as caught:
            train_quick(good, out, product="p", cache_dir=cache, synthetic=count, overlays=overlays, **SIDE)
        assert "\n" not in str(caught.value)
    black = tmp_path / "black"
    (black / "good").mkdir(parents=True)
    for number in range(20):
        pixels = np.zeros((96, 96), np.uint8)
        pixels[0, number] = 1
        cv2.imwrite(str(black / "good" / f"{number}.png"), pixels)
    table = "".join(f"good/{number}.png,{number}\n" for number in range(20))
    (black / "groups.csv").write_text("file,group\n" + table)
    report = train_quick(black, out, product="p", cache_dir=cache, synthetic=30, **SIDE)
    assert report.manifest.data.n_made_up == 30
