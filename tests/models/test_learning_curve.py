"""The learning curve is true where the truth is known, and silent where it cannot be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lineward.models.learning_curve import MAX_HALF_WIDTH, _nested, _power_law, learning_curve

if TYPE_CHECKING:
    from numpy.typing import NDArray


def world(seed: int, good: int, defects: dict[str, tuple[int, float]]) -> tuple[NDArray[np.float32], list[str | None]]:
    """Points in 40 dimensions; each type of defect lies in a direction of its own, at its distance."""
    random = np.random.default_rng(seed)
    rows = [random.normal(0, 1, (good, 40))]
    kinds: list[str | None] = [None] * good
    for number, (name, (count, distance)) in enumerate(defects.items()):
        cloud = random.normal(0, 1, (count, 40))
        cloud[:, 5 * number : 5 * number + 3] += distance
        rows.append(cloud)
        kinds += [name] * count
    return np.concatenate(rows).astype(np.float32), kinds


def test_the_forecast_holds_what_more_images_really_brought() -> None:
    """Told from 300 images, the interval for 900 holds what 900 images of the same world then reach."""
    sizes = {"crack": (30, 2.0), "dent": (30, 2.5)}
    pooled, kinds = world(1, 240, sizes)
    labels = np.array([kind is not None for kind in kinds])
    few = learning_curve(pooled, labels, np.arange(len(labels)), kinds, target=900)
    assert few.now is not None
    assert few.target is not None, few.reason
    assert few.now.low <= few.now.value <= few.now.high
    assert few.target.value > few.now.value
    more, names = world(2, 720, {name: (90, distance) for name, (_, distance) in sizes.items()})
    marks = np.array([kind is not None for kind in names])
    truth = learning_curve(more, marks, np.arange(len(marks)), names, target=900).points[-1]
    assert few.target.low <= truth.auroc <= few.target.high
    assert few.target.high - few.target.low <= 2 * MAX_HALF_WIDTH
    assert "900 images would give" in " ".join(few.sentences())


def test_the_rare_and_hard_type_is_asked_for() -> None:
    """Of a plentiful easy defect and a rare hard one, more of the rare one is asked for, by name and number."""
    pooled, kinds = world(3, 400, {"stain": (80, 4.0), "crack": (16, 1.9)})
    labels = np.array([kind is not None for kind in kinds])
    curve = learning_curve(pooled, labels, np.arange(len(labels)), kinds, splits=10)
    best = curve.best_need()
    assert best is not None
    assert best.kind == "crack"
    assert any("20 more crack would help most" in line for line in curve.sentences())


def test_no_winner_is_named_among_equals() -> None:
    """Rule: of types that are alike none is asked for; in eight sets at most one is named by chance."""
    named = 0
    for seed in range(8):
        pooled, kinds = world(seed, 400, dict.fromkeys(("a", "b", "c", "d"), (25, 2.5)))
        labels = np.array([kind is not None for kind in kinds])
        named += learning_curve(pooled, labels, np.arange(len(labels)), kinds, splits=8).best_need() is not None
    assert named <= 1


def test_what_cannot_be_told_is_said() -> None:
    """With noise for features there is no forecast, from a handful of images no curve: in words."""
    random = np.random.default_rng(5)
    labels = np.arange(60) < 10
    kinds = ["crack" if label else None for label in labels]
    noise = learning_curve(random.normal(0, 1, (60, 40)).astype(np.float32), labels, np.arange(60), kinds)
    assert noise.target is None
    assert noise.reason
    assert noise.best_need() is None or noise.best_need() in noise.needs
    tiny = learning_curve(random.normal(0, 1, (14, 8)).astype(np.float32), labels[:14], np.arange(14), kinds[:14])
    assert tiny.target is None
    assert tiny.sentences()
    one = learning_curve(random.normal(0, 1, (60, 8)).astype(np.float32), labels, labels.astype(int), kinds)
    assert "cannot be told" in one.sentences()[0]


def test_subsets_are_nested_and_keep_parts_whole() -> None:
    """A larger share holds every smaller one, and no part is divided."""
    groups = np.repeat(np.arange(50), 4)
    labels = groups < 15
    train = np.flatnonzero(groups % 3 != 0)
    before: set[int] = set()
    for share in (0.2, 0.5, 1.0):
        chosen = set(_nested(train, labels, groups, share, seed=1).tolist())
        assert before <= chosen
        assert all({i for i in train if groups[i] == groups[index]} <= chosen for index in chosen)
        before = chosen
    assert before == set(train.tolist())


def test_a_known_power_law_is_found() -> None:
    """Errors made by a law give the law back."""
    sizes = np.array([50.0, 100, 200, 400])
    scale, power = _power_law(sizes, 0.02 + 1.5 * sizes**-0.6, floor=0.02)
    assert abs(power - 0.6) < 1e-3
    assert abs(scale - 1.5) < 1e-2
