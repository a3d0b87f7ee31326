"""Where it looks defective: evidence per patch, learnt from good patches and the worst ones of defective images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from lineward.models.dataset import DatasetError
from lineward.models.features import widen
from lineward.models.workers import GROUP, each, sum_by_fold, workers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import ThreadPoolExecutor

    from numpy.typing import NDArray

    from lineward.models.features import FeatureStore, Layout, Source
    from lineward.models.graph import Graph

SHRINKAGE = 0.02
ROUNDS = 4
PRIOR_IMAGES = 20
"""A place's own mean and spread count as much as the frame's at this many good images."""
MAX_DEFECTIVE = 400
"""Defective images kept in memory for mining, 50 MB at 320 px; of more a random choice out of every fold."""


@dataclass(frozen=True, slots=True)
class Places:
    """What is usual at each place of the frame: ``mean`` and ``deviation``, ``(rows * columns, depth)`` float32.

    Without it the corners win in every picture: a network sees its padding there, and parts end near the border.
    """

    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]

    def __call__(self, patches: NDArray[np.float32]) -> NDArray[np.float32]:
        """Standardise patches, ``(..., rows * columns, depth)``."""
        seen = patches - self.mean
        seen /= self.deviation  # one new array instead of two: asking for its memory takes longer than the sum
        return seen


@dataclass(frozen=True, slots=True)
class PatchModel:
    """Evidence ``places(patch) @ weight + bias``; its logistic is 0.5 where one good image in 20 gets to."""

    places: Places
    weight: NDArray[np.float32]
    bias: float

    def score(self, patches: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return ``(n,)`` means of the strongest evidence in images, from ``(n, rows * columns, depth)`` patches."""
        return _strongest(self.places(patches) @ self.weight + np.float32(self.bias))

    def append(self, graph: Graph, patches: str, layout: Layout) -> tuple[str, str]:
        """Add the score ``(N, 1)`` and the heat-map ``(N, rows, columns)``, 0..1, to a graph."""
        centred = graph.op("Sub", patches, graph.constant(self.places.mean, "place_mean"))
        scaled = graph.op("Div", centred, graph.constant(self.places.deviation, "place_deviation"))
        evidence = graph.affine(scaled, self.weight[:, None], np.array([self.bias], np.float32), hint="evidence")
        shape = graph.constant([-1, layout.rows, layout.columns], "heatmap_shape")
        heat = graph.op("Reshape", graph.op("Sigmoid", evidence), shape, hint="heat")
        count = layout.rows * layout.columns
        flat = graph.op("Reshape", evidence, graph.constant([-1, count], "evidence_shape"))
        strongest = graph.top(flat, _few(count), hint="strongest")
        return graph.op("ReduceMean", strongest, axes=[1], keepdims=1, hint="patch_score"), heat


@dataclass(frozen=True, slots=True)
class PatchDistance:
    """Evidence without any defect: how far a patch is from good ones, ``|places(patch) @ whiten|``, on a scale.

    Its logistic is 0.5 where one good image in 20 gets to.
    """

    places: Places
    whiten: NDArray[np.float32]
    centre: float
    scale: float

    def score(self, patches: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return ``(n,)`` means of the largest distances in images, from ``(n, rows * columns, depth)`` patches."""
        return (_strongest(self.distances(patches)) - self.centre) / self.scale

    def distances(self, patches: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the distance of each patch, ``(n, rows * columns)``."""
        white = self.places(patches) @ self.whiten
        return np.asarray(np.sqrt((white**2).sum(axis=-1)), np.float32)

    def append(self, graph: Graph, patches: str, layout: Layout) -> tuple[str, str]:
        """Add the score ``(N, 1)`` and the heat-map ``(N, rows, columns)``, 0..1, to a graph."""
        centred = graph.op("Sub", patches, graph.constant(self.places.mean, "place_mean"))
        scaled = graph.op("Div", centred, graph.constant(self.places.deviation, "place_deviation"))
        white = graph.op("MatMul", scaled, graph.constant(self.whiten, "patch_whiten"), hint="patch_white")
        squared = graph.op("ReduceSum", graph.op("Mul", white, white), graph.constant([2], "axis"), keepdims=0)
        distance = graph.op("Sqrt", squared, hint="patch_distance")
        shifted = graph.op("Sub", distance, graph.constant(self.centre, "centre"))
        evidence = graph.op("Div", shifted, graph.constant(self.scale, "scale"), hint="evidence")
        shape = graph.constant([-1, layout.rows, layout.columns], "heatmap_shape")
        heat = graph.op("Reshape", graph.op("Sigmoid", evidence), shape, hint="heat")
        strongest = graph.top(evidence, _few(layout.rows * layout.columns), hint="strongest")
        return graph.op("ReduceMean", strongest, axes=[1], keepdims=1, hint="patch_score"), heat


@dataclass(frozen=True, slots=True)
class PatchFit:
    """The fitted model, and ``(n,)`` image scores of parts not fitted on: the mean of the strongest patches."""

    model: PatchModel | PatchDistance
    scores: NDArray[np.float64]


def fit_patches(
    store: FeatureStore,
    sources: Sequence[Source],
    labels: NDArray[np.bool_],
    folds: NDArray[np.int64],
    seed: int,
) -> PatchFit:
    """Fit patch evidence by multiple instances: a defective image has some defective patches, nobody says which.

    The first guess is the patches furthest from the good ones (Mahalanobis); then a linear discriminant and the
    patches it finds strongest take turns. Good patches are read a few images at a time.

    Raises
    ------
    DatasetError
        All good images show the same picture.
    """
    chosen = _draw(np.flatnonzero(labels), folds, seed)
    sound = np.flatnonzero(~labels)
    _require_difference(store, [sources[index] for index in sound.tolist()])
    number = int(folds.max()) + 1

    def read(indices: Sequence[int]) -> NDArray[np.float32]:
        return store.cells([sources[index] for index in indices], deep=False)

    with workers(store.threads, "patches") as pool:
        all_places = _fit_all_places(read, sound, folds, pool)
        places = all_places[-1]

        def standardise(indices: Sequence[int]) -> Sequence[NDArray[np.float16]]:
            return list(places(read(indices)).astype(np.float16))

        defective = np.stack(each(pool, standardise, chosen))
        count, products = _multiply(read, places, sound, folds, pool)

        def fit(column: int) -> NDArray[np.float32]:
            kept = np.arange(number) != column
            covariance = products[kept].sum(axis=0) / count[kept].sum()
            return _discriminant(_shrunk(covariance), defective[folds[chosen] != column]).astype(np.float32)

        weights = list(pool.map(fit, range(number + 1)))  # one for each fold left out, the last fitted on everything

        def score(fold: int, indices: Sequence[int]) -> NDArray[np.float64]:
            return _strongest(all_places[fold](read(indices)) @ weights[fold])

        scores = _score_by_fold(pool, score, folds)
    centre, scale = _display_range(scores[~labels])
    model = PatchModel(places, (weights[-1] / scale).astype(np.float32), -centre / scale)
    return PatchFit(model, (scores - centre) / scale)


def fit_patch_distance(store: FeatureStore, sources: Sequence[Source], folds: NDArray[np.int64]) -> PatchFit:
    """Fit the distance from good patches alone; all sources are good. Raises what `fit_patches` raises."""
    _require_difference(store, sources)
    number = int(folds.max()) + 1
    everything = np.arange(len(sources))

    def read(indices: Sequence[int]) -> NDArray[np.float32]:
        return store.cells([sources[index] for index in indices], deep=False)

    with workers(store.threads, "patches") as pool:
        all_places = _fit_all_places(read, everything, folds, pool)
        count, products = _multiply(read, all_places[-1], everything, folds, pool)
        models = []
        for column, places in enumerate(all_places):
            kept = np.arange(number) != column
            covariance = _shrunk(products[kept].sum(axis=0) / count[kept].sum())
            whiten = np.linalg.cholesky(np.linalg.inv(covariance)).astype(np.float32)
            models.append(PatchDistance(places, whiten, 0.0, 1.0))

        def score(fold: int, indices: Sequence[int]) -> NDArray[np.float64]:
            return models[fold].score(read(indices))

        scores = _score_by_fold(pool, score, folds)
    centre, scale = _display_range(scores)
    final = PatchDistance(models[-1].places, models[-1].whiten, centre, scale)
    return PatchFit(final, (scores - centre) / scale)


def _draw(defective: NDArray[np.int64], folds: NDArray[np.int64], seed: int) -> list[int]:
    """Choose at most `MAX_DEFECTIVE`: all of a fold with few, and as many of each other fold.

    So those that are left when a fold is taken out are never none, however large its batch is.
    """
    order = np.random.default_rng(seed).permutation(defective)
    turn = np.empty(len(order), np.int64)
    for fold in np.unique(folds[order]):
        mine = folds[order] == fold
        turn[mine] = np.arange(mine.sum())
    return sorted(order[np.argsort(turn, kind="stable")[:MAX_DEFECTIVE]].tolist())


def _require_difference(store: FeatureStore, good: Sequence[Source]) -> None:
    """Refuse good images without any difference: nothing can be learnt from them about what is usual."""
    first = store.cells(good[:1], deep=False)
    if all(np.array_equal(store.cells([source], deep=False), first) for source in good[1:]):
        raise DatasetError(
            f"{good[0].path}: all {len(good)} good images show this same picture, so what is usual cannot be learnt; "
            "remove the copies, check that the camera gives a new picture for each part, and add images of other good "
            "parts"
        )


def _score_by_fold(
    pool: ThreadPoolExecutor,
    score: Callable[[int, Sequence[int]], NDArray[np.float64]],
    folds: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Score each image by the model that did not see its fold."""
    scores = np.empty(len(folds))
    for fold in range(int(folds.max()) + 1):
        mine = np.flatnonzero(folds == fold)
        scores[mine] = each(pool, partial(score, fold), mine.tolist())
    return scores


def _fit_all_places(
    read: Callable[[Sequence[int]], NDArray[np.float32]],
    sound: NDArray[np.int64],
    folds: NDArray[np.int64],
    pool: ThreadPoolExecutor,
) -> list[Places]:
    """Fit what is usual at each place without each fold, and last on every fold."""

    def squares(indices: Sequence[int]) -> NDArray[np.float32]:
        patches = read(indices)
        return np.stack([patches.sum(axis=0), np.einsum("nij,nij->ij", patches, patches)])

    number = int(folds.max()) + 1
    sums = sum_by_fold(pool, squares, sound, folds)
    counts = np.bincount(folds[sound], minlength=number)

    def fit(column: int) -> Places:
        kept = np.arange(number) != column
        first, second = sums[kept].sum(axis=0)
        return _fit_places(first, second, int(counts[kept].sum()))

    return list(pool.map(fit, range(number + 1)))


def _multiply(
    read: Callable[[Sequence[int]], NDArray[np.float32]],
    places: Places,
    sound: NDArray[np.int64],
    folds: NDArray[np.int64],
    pool: ThreadPoolExecutor,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Count patches and add up their products ``(depth, depth)``, standardised, by fold."""

    def multiply(indices: Sequence[int]) -> NDArray[np.float32]:
        usual = places(read(indices)).reshape(-1, places.mean.shape[1])
        return usual.T @ usual

    counts = np.bincount(folds[sound], minlength=int(folds.max()) + 1) * len(places.mean)
    return counts, sum_by_fold(pool, multiply, sound, folds)


def _fit_places(first: NDArray[np.float64], second: NDArray[np.float64], n: int) -> Places:
    """Fit on the sums of values and of squares at each place over ``n`` images."""
    mean, square = first / n, second / n
    frame_mean, frame_square = mean.mean(axis=0), square.mean(axis=0)
    own = n / (n + PRIOR_IMAGES)
    mean = own * mean + (1 - own) * frame_mean
    variance = own * square + (1 - own) * frame_square - mean**2
    floor = 0.05 * (frame_square - frame_mean**2) + 1e-9  # a place that never varies must not cry at the first change
    return Places(mean.astype(np.float32), np.sqrt(np.maximum(variance, floor)).astype(np.float32))


def _shrunk(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    depth = len(covariance)
    return np.asarray(covariance + SHRINKAGE * np.trace(covariance) / depth * np.eye(depth), np.float64)


def _discriminant(covariance: NDArray[np.float64], defective: NDArray[np.float16]) -> NDArray[np.float64]:
    """Fit a direction ``(depth,)`` on the patches ``(n, patches, depth)`` that stand out in defective images."""
    root = np.linalg.cholesky(np.linalg.inv(covariance)).astype(np.float32)
    count, depth = defective.shape[1:]
    patches = np.empty(defective.shape, np.float32)
    strength = np.empty(defective.shape[:2], np.float32)
    for start in range(0, len(patches), GROUP):
        some = slice(start, start + GROUP)
        patches[some] = widen(defective[some].reshape(-1, count * depth)).reshape(-1, count, depth)
        white = patches[some] @ root
        np.einsum("nij,nij->ni", white, white, out=strength[some])
    weight = np.zeros(len(covariance))
    for _ in range(ROUNDS):
        places = np.argpartition(strength, count - _few(count), axis=1)[:, -_few(count) :, np.newaxis]
        mined = np.take_along_axis(patches, places, axis=1).reshape(-1, depth)
        spread = np.cov(mined.T, bias=True) if len(mined) > 1 else covariance
        weight = np.linalg.solve(_shrunk(0.5 * (covariance + spread)), mined.mean(axis=0).astype(np.float64))
        strength = patches @ weight.astype(np.float32)
    return weight


def _few(count: int) -> int:
    return max(1, min(5, count // 20))


def _strongest(evidence: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return ``(n,)`` means of the strongest of ``(n, patches)``."""
    few = _few(evidence.shape[-1])
    kept = np.partition(evidence, evidence.shape[-1] - few, axis=-1)[..., -few:]
    return np.asarray(kept.mean(axis=-1), np.float64)


def _display_range(good_scores: NDArray[np.float64]) -> tuple[float, float]:
    middle, high = np.quantile(good_scores, [0.5, 0.95])
    return float(high), max(float(high - middle) / 2, 1e-6)
