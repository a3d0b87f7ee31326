"""Which images probably show the same part, when nobody has said so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from lineward.models.heads import fit_scaler

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lineward.models.dataset import Dataset

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Mean cosine of standardised features within a group: the first level at which no group is too large is taken."""
MAX_SHARE = 0.1
"""Largest share of the set that one group may make up: beyond it images are alike because the product is."""
MIN_GROUPS = 5
"""Groups of each kind there is that must be left, so that folds and a hold-out can still be made."""
MAX_IMAGES = 6000
"""Of more images the table of distances would fill the memory (150 MB); content alone decides then."""

GUESSED = "which images show the same part is guessed from their likeness; the figures may be too good or too bad"
UNKNOWN = (
    "likeness does not tell which images show the same part either, so each that groups.csv does not list counts as a "
    "part of its own: where several show one part, the figures are too good; write groups.csv"
)


def parts_of(dataset: Dataset, pooled: NDArray[np.float32]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return ``(n,)`` the part on each image, guessed where nobody has said it, and the set's warnings with that."""
    named = dataset.groups
    if dataset.groups_known:
        return named, dataset.warnings
    found = group_near_duplicates(pooled, named, dataset.labels)
    others = tuple(warning for warning in dataset.warnings if warning not in {GUESSED, UNKNOWN})
    return found, (*others, UNKNOWN if found is named else GUESSED)


def group_near_duplicates(
    pooled: NDArray[np.float32], groups: NDArray[np.int64], labels: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Put images that look the same into one group (average linkage; chains of pairs would join everything).

    Grouping too much makes the reported figures a little too bad, grouping too little makes them lie: on magnetic
    tiles, each taken six times, the same head shows an AUROC of 0.99 split by image, 0.92 split by these groups and
    0.89 split by the true parts; on solar cells, each taken once, 0.95 by image, 0.89 by these groups.

    Parameters
    ----------
    pooled
        ``(n, d)`` float32 features.
    groups
        ``(n,)`` what is known to belong together: images with the same content.
    labels
        ``(n,)``, true for defective.

    Returns
    -------
    numpy.ndarray
        ``(n,)`` numbers of groups; ``groups`` itself when no level fits.
    """
    if not 2 < len(pooled) <= MAX_IMAGES:
        return groups
    distance = np.maximum(1 - _likeness(pooled), 0)
    distance[groups[:, None] == groups[None]] = 0
    tree = linkage(squareform(distance, checks=False), "average")
    largest = max(8, int(MAX_SHARE * len(pooled)), int(np.bincount(groups).max()))
    for level in LEVELS:
        found = np.asarray(fcluster(tree, 1 - level, "distance") - 1, np.int64)
        left = min(len(set(found[kind].tolist())) for kind in (labels, ~labels) if kind.any())
        if np.bincount(found).max() <= largest and left >= MIN_GROUPS:
            return found
    return groups


def near_pairs(pooled: NDArray[np.float32], level: float) -> list[tuple[int, int, float]] | None:
    """Return pairs of images ``(a, b, likeness)`` whose features are so alike, the most alike first; None if too many.

    ``likeness`` is the cosine of standardised features.
    """
    return alike_pairs(fit_scaler(pooled)(pooled), level, centred=True)


def alike_pairs(
    rows: NDArray[np.floating[Any]], level: float, *, centred: bool = False
) -> list[tuple[int, int, float]] | None:
    """Return pairs of ``(n, d)`` rows ``(a, b, likeness)`` with at least this cosine about the mean, highest first.

    None if there are more than `MAX_IMAGES`.
    """
    if len(rows) > MAX_IMAGES:
        return None
    values = rows.astype(np.float32)
    if not centred:
        values -= values.mean(axis=0)
    alike = np.triu(_cosines(values), 1)
    found = [(int(a), int(b), float(alike[a, b])) for a, b in np.argwhere(alike >= level)]
    return sorted(found, key=lambda pair: -pair[2])


def _likeness(pooled: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return ``(n, n)`` cosines of standardised features."""
    return _cosines(fit_scaler(pooled)(pooled))


def _cosines(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    return rows @ rows.T
