from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
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


def test_a_single_batch_with_defects_is_refused() -> None:
    """Rule: when nothing of a kind is left to learn from, that is said, with what to do."""
    with pytest.raises(DatasetError, match="too few different parts or batches with defects") as caught:
        fitting_folds(*batches([19, 10, 7, 3], [0, 6, 0, 0]), 0)
    assert "groups.csv" in str(caught.value)


@given(st.lists(st.tuples(st.integers(0, 40), st.one_of(st.just(0), st.integers(1, 20))), min_size=2, max_size=6))
@example([(19, 0), (10, 6), (7, 2), (3, 0)])  # an even share of kinds puts both batches with defects in one fold
@settings(max_examples=150, deadline=None, derandomize=True)
def test_what_can_be_divided_is_divided(counts: list[tuple[int, int]]) -> None:
    """Rule: a set is refused only if there is no way to leave both kinds in each of two folds."""
    there = [batch for batch in counts if batch != (0, 0)]
    assume(len(there) > 1)
    labels, groups = batches([good for good, _ in there], [defects for _, defects in there])
    assume(min(labels.sum(), (~labels).sum()) >= 3)  # with fewer a set is not read at all
    halves = itertools.product([False, True], repeat=len(there))
    sides = (
        [[batch for batch, at in zip(there, half, strict=True) if at is side] for side in (False, True)]
        for half in halves
    )
    possible = any(
        all(any(good for good, _ in side) and any(bad for _, bad in side) for side in both) for both in sides
    )
    try:
        folds = fitting_folds(labels, groups, 0)
    except DatasetError:
        assert not possible
    else:
        for fold in set(folds.tolist()):
            assert 0 < labels[folds != fold].sum() < (folds != fold).sum()
