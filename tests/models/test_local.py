from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy.special import expit

from lineward.models import local
from lineward.models.backbone import EfficientNetLite0
from lineward.models.dataset import read_dataset
from lineward.models.features import FeatureStore
from lineward.models.fit import COMPONENT_NAMES, decide_on_scores
from lineward.models.folds import fitting_folds
from lineward.models.local import fit_local, local_features
from lineward.models.metrics import calibration_error
from lineward.models.prepare import InputSpec
from lineward.models.records import Risk
from lineward.models.sizes import choose_size

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from lineward.models.features import Source


def test_one_odd_patch_is_an_extreme() -> None:
    """A single patch that differs shows as an extreme of its direction; brightness of the whole image does not."""
    random = np.random.default_rng(0)
    cells = random.normal(0, 1, (100, 8)).astype(np.float32)
    odd = cells.copy()
    odd[17, 3] += 30
    eye = np.eye(8, dtype=np.float32)
    ((plain, found, brighter),) = local_features(np.stack([cells, odd, cells + 5]), eye, 1)
    assert np.argmax(np.abs(found - plain)) == 3
    assert np.allclose(brighter, plain, atol=1e-4)
    assert found.shape == (24,)


def test_rotations_and_images_do_not_meet() -> None:
    """Several images along several rotations at once are what each image is along each rotation."""
    random = np.random.default_rng(0)
    cells = random.normal(0, 1, (3, 20, 5)).astype(np.float32)
    rotations = [np.linalg.qr(random.normal(0, 1, (5, 5)))[0].astype(np.float32) for _ in range(2)]
    together = local_features(cells, np.concatenate(rotations, axis=1), 1)
    assert together.shape == (2, 3, 15)
    for image, rotation in itertools.product(range(3), range(2)):
        turned = (cells[image] - cells[image].mean(axis=0)) @ rotations[rotation]
        alone = np.concatenate([turned.max(axis=0), -turned.min(axis=0), turned.std(axis=0)])
        assert together[rotation, image] == pytest.approx(alone, abs=1e-5)


def test_the_strongest_few_are_averaged_along_the_channels() -> None:
    """Without directions the channels are looked at; three odd patches count as their mean, of few patches all."""
    random = np.random.default_rng(0)
    cells = random.normal(0, 1, (2, 30, 4)).astype(np.float32)
    ((found, _),) = local_features(cells, None, 3)
    seen = np.sort(cells[0] - cells[0].mean(axis=0), axis=0)
    expected = np.concatenate([seen[-3:].mean(axis=0), -seen[:3].mean(axis=0), seen.std(axis=0)])
    assert found == pytest.approx(expected, abs=1e-5)
    ((few, _),) = local_features(cells[:, :2], None, 3)
    assert few[:8] == pytest.approx(np.zeros(8), abs=1e-5)


@pytest.mark.parametrize("many", [1, 10_000], ids=["directions_of_several_folds", "directions_of_each_fold"])
def test_a_score_knows_nothing_of_its_fold(data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, many: int) -> None:
    """Whatever the other images of its fold show, neither directions nor head have seen them when it is judged."""
    monkeypatch.setattr(local, "MANY_GOOD", many)
    dataset = read_dataset(data)
    folds = fitting_folds(dataset.labels, dataset.groups, 0)
    spec = InputSpec(height=64, width=64, channels=1, colour="mono")
    store = FeatureStore(EfficientNetLite0(), spec, cache)
    sources = list(dataset.sources)
    stranger = sources[int(np.flatnonzero(dataset.labels)[0])]

    def scores(changed: list[Source]) -> NDArray[np.float64]:
        return fit_local(store, changed, dataset.labels, folds, 0, grid=local.GRIDS["deep"]).scores

    before = scores(sources)
    for fold in range(int(folds.max()) + 1):
        kept, *others = np.flatnonzero((folds == fold) & ~dataset.labels).tolist()
        after = scores([stranger if index in others else source for index, source in enumerate(sources)])
        assert after[kept] == pytest.approx(before[kept], abs=1e-6)
        assert after[others] != pytest.approx(before[others], abs=1e-3)


def scored(n: int, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """Give components of which one is informative, labels, and folds that are groups."""
    random = np.random.default_rng(seed)
    truth = random.normal(0, 2, n)
    labels = random.random(n) < expit(1.5 * truth - 1)
    scores = {name: random.normal(0, 1, n) for name in COMPONENT_NAMES}
    scores["patch"] = truth
    return scores, labels, np.arange(n) % 5


def test_the_informative_component_is_weighed_most() -> None:
    """Weights are pulled towards each other, but evidence wins; and noise does not spoil the sum."""
    scores, labels, folds = scored(2000)
    decided = decide_on_scores(scores, labels, folds, np.abs(scores["anomaly"]), Risk(), groups=np.arange(len(labels)))
    weights = {name: float(scores[name].std()) / scale for name, scale in decided.blend.scales.items()}
    assert max(weights, key=lambda name: weights[name]) == "patch"
    assert decided.candidates["stacked"]["auroc"] > decided.candidates["patch"]["auroc"] - 0.02
    assert calibration_error(labels, decided.crossfit.probabilities) < 0.05


def test_a_fold_is_judged_by_what_the_others_chose() -> None:
    """The label of an image never reaches its own cross-fitted probability: turned labels leave it."""
    scores, labels, folds = scored(400)
    distances = np.abs(scores["anomaly"])
    honest = decide_on_scores(
        scores, labels, folds, distances, Risk(), groups=np.arange(len(labels))
    ).crossfit.probabilities
    turned = np.where(folds == 2, ~labels, labels)
    other = decide_on_scores(
        scores, turned, folds, distances, Risk(), groups=np.arange(len(labels))
    ).crossfit.probabilities
    assert other[folds == 2] == pytest.approx(honest[folds == 2])
    assert not np.allclose(other[folds != 2], honest[folds != 2])


def test_of_nearly_equal_sizes_the_larger_is_taken_up_to_320_px() -> None:
    """Equal evidence takes 320 px, and beyond that the cheaper input; a size that alone shows the defect is taken."""
    random = np.random.default_rng(1)
    labels = np.arange(80) % 4 == 0
    groups = np.arange(80)
    blind = random.normal(0, 1, (80, 30)).astype(np.float32)
    seeing = blind.copy()
    seeing[labels, :6] += 4
    small, usual, large = (224, 224), (320, 320), (512, 512)
    assert choose_size({small: seeing, usual: seeing}, labels, groups, 0)[0] == usual
    assert choose_size({usual: seeing, large: seeing}, labels, groups, 0)[0] == usual
    assert choose_size({small: seeing, usual: blind}, labels, groups, 0)[0] == small
    assert choose_size({usual: blind, large: seeing}, labels, groups, 0)[0] == large
