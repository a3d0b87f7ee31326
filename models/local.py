"""What stands out within one image: extremes and spread of its patches, seen from the image's own mean.

A maximum over channels of the backbone mixes the defect with everything else these channels see; less so what is left
when the image's own mean is taken away. On the fine grid the channels themselves are looked at, and the strongest three
patches are averaged, because one alone is often noise. On the coarsest grid it is one patch along the principal
directions of good ones (docs/decisions/0021).

Directions are fitted on good images that the head knows as well, never on the ones that are scored: fitted on all good
ones they made good parts under test look more usual than new ones, and showed 0.97 where 0.90 was true.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lineward.models.heads import fit_kernel, fit_scaler, fit_subspace, project
from lineward.models.workers import each, sum_by_fold, workers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import ThreadPoolExecutor

    from numpy.typing import NDArray

    from lineward.models.features import FeatureStore, FeatureTensors, Source
    from lineward.models.graph import Graph
    from lineward.models.heads import Kernel, Scaler, Subspace


@dataclass(frozen=True, slots=True)
class Grid:
    """How the patches of a grid are looked at.

    ``deep``: the coarsest grid of the backbone, else the fine one. ``turned``: along principal directions of good
    patches, else along the channels. ``few``: so many of the strongest are averaged.
    """

    deep: bool
    turned: bool
    few: int


GRIDS = {"local": Grid(deep=False, turned=False, few=3), "deep": Grid(deep=True, turned=True, few=1)}
"""Components by their name."""

FEW_TURNS, MANY_GOOD = 3, 400
"""With so many good images directions are fitted three times instead of once without each fold: looking along them is
the dearest step of a fit on kept features. With 60, good parts look more usual to the deployed model, whose directions
know all of them, than to one whose directions know three fifths (docs/decisions/0012)."""


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A kernel head on highest, lowest and deviation along ``rotation``, ``(depth, depth)``, or along the channels."""

    grid: Grid
    rotation: NDArray[np.float32] | None
    scaler: Scaler
    space: Subspace
    head: Kernel

    def score(self, cells: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return ``(n,)`` raw scores of images from their ``(n, cells, depth)`` patches."""
        return self.score_features(local_features(cells, self.rotation, self.grid.few)[0])

    def score_features(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return ``(n,)`` raw scores of ``(n, 3 * depth)`` features."""
        return self.head.score(self.space, self.scaler(features))

    def append(self, graph: Graph, tensors: FeatureTensors) -> str:
        """Add the score ``(N, 1)`` to a graph."""
        cells, count = tensors.patches, tensors.layout.rows * tensors.layout.columns
        if self.grid.deep:
            cells, count = tensors.deep, tensors.layout.deep_cells
        if self.rotation is not None:
            cells = graph.op("MatMul", cells, graph.constant(self.rotation, "rotation"), hint="turned")
        mean = graph.op("ReduceMean", cells, axes=[1], keepdims=1, hint="local.mean")
        centred = graph.op("Sub", cells, mean, hint="local.centred")
        squared = graph.op("ReduceMean", graph.op("Mul", centred, centred), axes=[1], keepdims=0, hint="local.var")
        few = min(self.grid.few, count)
        high, low = (_strongest(graph, seen, few) for seen in (centred, graph.op("Neg", centred)))
        features = graph.op("Concat", high, low, graph.op("Sqrt", squared), axis=1, hint="local_features")
        scaled = self.scaler.append(graph, features)
        return self.head.append(graph, self.space, scaled, project(graph, self.space, scaled))


def _strongest(graph: Graph, seen: str, few: int) -> str:
    if few == 1:
        return graph.op("ReduceMax", seen, axes=[1], keepdims=0, hint="local.strongest")
    columns = graph.op("Transpose", seen, perm=[0, 2, 1], hint="local.columns")
    return graph.op(
        "ReduceMean", graph.top(columns, few, hint="local.top"), axes=[2], keepdims=0, hint="local.strongest"
    )


def local_features(cells: NDArray[np.float32], rotations: NDArray[np.float32] | None, few: int) -> NDArray[np.float32]:
    """Return highest, lowest and deviation of patches along each rotation's directions, or along the channels.

    Parameters
    ----------
    cells
        ``(n, cells, depth)``.
    rotations
        ``(depth, rotations * depth)``, side by side: one product instead of many small ones. None: the channels.
    few
        So many of the highest and of the lowest are averaged.

    Returns
    -------
    numpy.ndarray
        ``(rotations, n, 3 * depth)`` float32; of the channels ``(1, n, 3 * depth)``.
    """
    n, count, depth = cells.shape
    few = min(few, count)
    width = depth if rotations is None else rotations.shape[1]
    high, low, squared = np.empty((3, n, width), np.float32)
    for image, found in enumerate(cells):  # one at a time stays in the processor's cache
        seen = found - found.mean(axis=0)
        if rotations is not None:
            seen = seen @ rotations
        np.einsum("ij,ij->j", seen, seen, out=squared[image])
        if few > 1:
            columns = np.ascontiguousarray(seen.T)
            columns.sort(axis=1)  # quicker than a partition at two places
            columns[:, count - few :].mean(axis=1, out=high[image])
            columns[:, :few].mean(axis=1, out=low[image])
        else:
            seen.max(axis=0, out=high[image])
            seen.min(axis=0, out=low[image])
    parts = (high, -low, np.sqrt(squared / count))
    return np.concatenate([part.reshape(n, -1, depth).swapaxes(0, 1) for part in parts], axis=2, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class LocalFit:
    """The model fitted on everything, and ``(n,)`` scores by models that did not see the image's fold."""

    model: LocalModel
    scores: NDArray[np.float64]


def fit_local(
    store: FeatureStore,
    sources: Sequence[Source],
    labels: NDArray[np.bool_],
    folds: NDArray[np.int64],
    seed: int,
    *,
    grid: Grid,
) -> LocalFit:
    """Fit directions, where the grid has them, and head once without each fold and once on everything."""
    number = int(folds.max()) + 1
    depth = store.layout.deep_depth if grid.deep else store.layout.depth
    scores = np.empty(len(labels))
    turns = np.zeros(number + 1, np.int64)  # which directions a model looks along; the last one is fitted on everything
    with workers(store.threads, "local") as pool:
        rotations = None
        if grid.turned:
            turns = np.arange(number + 1)
            if number > FEW_TURNS and np.count_nonzero(~labels) >= MANY_GOOD:
                turns = turns * FEW_TURNS // number
            rotations = _fit_directions(store, sources, labels, turns[folds], grid=grid, pool=pool)
        features = np.empty((len(rotations) if rotations else 1, len(labels), 3 * depth), np.float32)
        side_by_side = np.concatenate(rotations, axis=1) if rotations else None

        def describe(indices: Sequence[int]) -> Sequence[int]:
            cells = store.cells([sources[index] for index in indices], deep=grid.deep)
            features[:, indices] = local_features(cells, side_by_side, grid.few)
            return indices

        each(pool, describe, range(len(labels)))

        def fit(column: int) -> LocalModel:
            inside = folds != column  # all of them for the last one
            turn = turns[column]
            mine = features[turn]
            scaler = fit_scaler(mine[inside])
            space, projected = fit_subspace(scaler(mine[inside]), seed)
            head = fit_kernel(projected, labels[inside], seed)
            model = LocalModel(grid, rotations[turn] if rotations else None, scaler, space, head)
            if column < number:
                scores[~inside] = model.score_features(mine[~inside])
            return model

        *_, model = pool.map(fit, range(number + 1))
    return LocalFit(model, scores)


def _fit_directions(
    store: FeatureStore,
    sources: Sequence[Source],
    labels: NDArray[np.bool_],
    folds: NDArray[np.int64],
    *,
    grid: Grid,
    pool: ThreadPoolExecutor,
) -> list[NDArray[np.float32]]:
    """Fit principal directions of good patches without each fold, and last on every fold.

    Their lengths do not matter, because every one is standardised afterwards.
    """

    def products(indices: Sequence[int]) -> NDArray[np.float32]:
        cells = store.cells([sources[index] for index in indices], deep=grid.deep)
        cells -= cells.mean(axis=1, keepdims=True)
        flat = cells.reshape(-1, cells.shape[2])
        return flat.T @ flat

    def directions(scatter: NDArray[np.float64]) -> NDArray[np.float32]:
        return np.asarray(np.linalg.eigh(scatter)[1], np.float32)

    number = int(folds.max()) + 1
    scatter = sum_by_fold(pool, products, np.flatnonzero(~labels), folds)
    apart = [scatter[np.arange(number) != column].sum(axis=0) for column in range(number + 1)]
    return list(pool.map(directions, apart))
