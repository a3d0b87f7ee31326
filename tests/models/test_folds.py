from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lineward.models.dataset import DatasetError
from lineward.models.folds import fitting_folds, grouped_folds, split_holdout


@given(st.integers(0, 10_000), st.integers(6, 40), st.integers(4, 20), st.integers(1, 6))
@settings(max_examples=80, deadline=None)
def test_a_part_is_never_on_both_sides(seed: int, good: int, defect: int, largest: int) -> None:
    """Neither hold-out nor folds ever split a group, and both sides of the hold-out hold both kinds."""
    random = np.random.default_rng(seed)
    labels, groups = [], []
    for group, label in enumerate([False] * good + [True] * defect):
        size = int(random.integers(1, largest + 1))
        labels += [label] * size
        groups += [group] * size
    marks, parts = np.array(labels), np.array(groups)
    train, held = split_holdout(marks, parts, 0.2, seed)
    assert not set(parts[train]) & set(parts[held])
    assert sorted([*train, *held]) == list(range(len(marks)))
    assert 0 < marks[held].sum() < len(held)
    assert 0 < marks[train].sum() < len(train)
    folds = grouped_folds(marks, parts, seed)
    assert all(len(set(folds[parts == part])) == 1 for part in set(groups))


def test_one_part_only_cannot_be_split() -> None:
    """When all defects are of one part there is no honest hold-out, and that is said."""
    labels = np.array([False] * 10 + [True] * 5)
    with pytest.raises(DatasetError, match="same part"):
        split_holdout(labels, np.array([*range(10), *[99] * 5]), 0.2, 0)


def batches(good: list[int], defects: list[int]) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """Return labels and batches of images, from how many of both kinds each batch has."""
    labels = [[False] * some + [True] * others for some, others in zip(good, defects, strict=True)]
    return np.concatenate(labels), np.repeat(np.arange(len(good)), [len(kinds) for kinds in labels])


def test_folds_to_fit_on_are_those_of_the_seed_where_these_will_do() -> None:
    """Rule: a set whose folds leave both kinds is divided as ever; where they do not, the next seed decides."""
    labels, groups = batches([10] * 12, [3] * 12)
    assert (fitting_folds(labels, groups, 0) == grouped_folds(labels, groups, 0)).all()
    labels, groups = batches([27, 51, 42, 57, 45, 57], [0, 0, 0, 0, 1, 6])
    assert len(set(grouped_folds(labels, groups, 0)[labels])) == 1, "all defects in one fold"
    folds = fitting_folds(labels, groups, 0)
    assert (folds == grouped_folds(labels, groups, 1)).all()
    assert len(set(folds[labels])) == 2


def test_defects_that_stay_together_with_every_seed_are_refused() -> None:
    """Rule: when nothing of a kind is left to learn from, that is said, with what to do."""
    with pytest.raises(DatasetError, match="too few different parts or batches with defects") as caught:
        fitting_folds(*batches([19, 10, 7, 3], [0, 6, 2, 0]), 0)
    assert "groups.csv" in str(caught.value)
