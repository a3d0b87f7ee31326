"""Divide images into folds, or into training and hold-out, so that each part is on one side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from lineward.models.dataset import DatasetError

if TYPE_CHECKING:
    from numpy.typing import NDArray

OTHER_SEEDS = 20
"""Tried after the one that was given, where folds leave nothing of a kind to fit on."""


def split_holdout(
    labels: NDArray[np.bool_], groups: NDArray[np.int64], share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide images into training and hold-out by group, with about ``share`` of both kinds held out.

    Returns
    -------
    tuple
        Indices of the training images and of the held-out images, rising.

    Raises
    ------
    DatasetError
        Too few parts for both kinds to be on both sides.
    """
    parts = _parts(labels, groups)
    folds = min(max(round(1 / share), 2), parts)
    if folds < 2:
        raise DatasetError("all good or all defective images show one and the same part; add images of other parts")
    splits = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(labels, labels, groups)
    for train, held in splits:
        if _parts(labels[train], groups[train]) >= 2 and 0 < labels[held].sum() < len(held):
            return train.astype(np.int64), held.astype(np.int64)
    raise DatasetError("too few different parts for a hold-out; add images of other good and defective parts")


def grouped_folds(labels: NDArray[np.bool_], groups: NDArray[np.int64], seed: int, most: int = 5) -> NDArray[np.int64]:
    """Return ``(n,)`` the fold of each image, with whole groups and both kinds in each as far as they go."""
    count = max(2, min(most, _parts(labels, groups)))
    fold = np.zeros(len(labels), np.int64)
    splits = StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(labels, labels, groups)
    for number, (_, held) in enumerate(splits):
        fold[held] = number
    return fold


def fitting_folds(labels: NDArray[np.bool_], groups: NDArray[np.int64], seed: int, most: int = 5) -> NDArray[np.int64]:
    """Return folds as `grouped_folds` does, and both kinds are left when one of them is taken out.

    Raises
    ------
    DatasetError
        A kind has too few parts or batches for that, with other seeds as well.
    """
    for attempt in range(OTHER_SEEDS + 1):
        folds = grouped_folds(labels, groups, seed + attempt, most)
        if _leaves_both(labels, folds):
            return folds
    for attempt in range(OTHER_SEEDS + 1):
        folds = _dealt(labels, groups, seed + attempt if attempt else None)
        if _leaves_both(labels, folds):
            return folds
    raise DatasetError(
        "too few different parts or batches with defects, or without: none are left to learn from when those of one "
        "fold are judged; add images of other parts, or divide batches that are large in groups.csv"
    )


def _leaves_both(labels: NDArray[np.bool_], folds: NDArray[np.int64]) -> bool:
    outside = (labels[folds != fold] for fold in range(int(folds.max()) + 1))
    return all(kinds.any() and not kinds.all() for kinds in outside)


def _dealt(labels: NDArray[np.bool_], groups: NDArray[np.int64], seed: int | None) -> NDArray[np.int64]:
    """Deal groups to two folds, each to the fold with the fewest images of its kind.

    Two batches with defects of very different sizes end in one fold with every seed of `grouped_folds`, which seeks an
    even share of good and defective images. Without a ``seed`` the most defective are dealt first.
    """
    fold = np.zeros(len(labels), np.int64)
    held = np.zeros((2, 2), np.int64)  # images by fold and kind
    names = np.unique(groups).tolist()
    sizes = {group: (int(labels[groups == group].sum()), int((groups == group).sum())) for group in names}
    names.sort(key=lambda group: sizes[group], reverse=True)
    for group in names if seed is None else np.random.default_rng(seed).permutation(names).tolist():
        defective, count = sizes[group]
        mine = int(held[:, 1 if defective else 0].argmin())
        held[mine] += count - defective, defective
        fold[groups == group] = mine
    return fold


def _parts(labels: NDArray[np.bool_], groups: NDArray[np.int64]) -> int:
    """Different parts of the rarer kind."""
    return min(len(set(groups[labels].tolist())), len(set(groups[~labels].tolist())))
