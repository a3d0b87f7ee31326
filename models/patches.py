"""Where it looks defective: evidence per patch, learnt from good patches and the worst ones of defective images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lineward.models.features import FeatureStore, Layout, Source
    from lineward.models.graph import Graph

SHRINKAGE = 0.02
ROUNDS = 4
MAX_DEFECTIVE = 400
"""Defective images kept in memory for mining, 50 MB at 320 px; of more a random choice."""


@dataclass(frozen=True, slots=True)
class PatchModel:
    """Evidence ``patch @ weight + bias``, 0.5 after the logistic function where one good image in twenty gets to."""

    weight: NDArray[np.float32]
    bias: float

    def append(self, graph: Graph, patches: str, layout: Layout) -> str:
        """Add the heat-map ``(N, rows, columns)``, 0..1, to a graph."""
        evidence = graph.affine(patches, self.weight[:, None], np.array([self.bias], np.float32), hint="evidence")
        shape = graph.constant([-1, layout.rows, layout.columns], "heatmap_shape")
        return graph.op("Reshape", graph.op("Sigmoid", evidence), shape, hint="heat")


@dataclass(slots=True)
class _GoodStatistics:
    """Sums over good patches, by fold, so that any fold can be left out without reading them again."""

    count: NDArray[np.float64]
    first: NDArray[np.float64]
    second: NDArray[np.float64]

    def leave_out(self, fold: int | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        kept = np.arange(len(self.count)) != (-1 if fold is None else fold)
        count = self.count[kept].sum()
        mean = self.first[kept].sum(axis=0) / count
        covariance = self.second[kept].sum(axis=0) / count - np.outer(mean, mean)
        ridge = SHRINKAGE * np.trace(covariance) / len(mean)
        return mean, covariance + ridge * np.eye(len(mean))


@dataclass(frozen=True, slots=True)
class PatchFit:
    """The fitted model, and ``(n,)`` image scores of parts not fitted on: the mean of the strongest patches."""

    model: PatchModel
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
    patches it finds strongest take turns. Good patches are read one image at a time.
    """
    depth = store.layout.depth
    chosen = [index for index, label in enumerate(labels) if label]
    if len(chosen) > MAX_DEFECTIVE:
        chosen = sorted(np.random.default_rng(seed).choice(chosen, MAX_DEFECTIVE, replace=False).tolist())
    sound = [index for index, label in enumerate(labels) if not label]
    defective = [patches.astype(np.float16) for patches in store.patches([sources[index] for index in chosen])]
    number = int(folds.max()) + 1
    good = _GoodStatistics(np.zeros(number), np.zeros((number, depth)), np.zeros((number, depth, depth)))
    for index, patches in zip(sound, store.patches([sources[index] for index in sound]), strict=True):
        good.count[folds[index]] += len(patches)
        good.first[folds[index]] += patches.sum(axis=0)
        good.second[folds[index]] += patches.T @ patches
    # One column for each fold left out, and a last one fitted on everything.
    discriminants = [
        _discriminant(good.leave_out(fold), [p for p, i in zip(defective, chosen, strict=True) if folds[i] != fold])
        for fold in [*range(number), None]
    ]
    weights = np.stack([weight for weight, _ in discriminants], axis=1).astype(np.float32)
    offsets = np.array([offset for _, offset in discriminants])
    scores = np.empty(len(labels))
    for index, patches in enumerate(store.patches(sources)):
        scores[index] = _strongest(patches @ weights[:, folds[index]] + offsets[folds[index]])
    weight, offset = discriminants[-1]
    centre, scale = _display_range(scores[~labels])
    model = PatchModel((weight / scale).astype(np.float32), float((offset - centre) / scale))
    return PatchFit(model, scores)


def _discriminant(
    good: tuple[NDArray[np.float64], NDArray[np.float64]], defective: Sequence[NDArray[np.float16]]
) -> tuple[NDArray[np.float64], float]:
    mean, covariance = good
    inverse = np.linalg.inv(covariance)
    root = np.linalg.cholesky(inverse).astype(np.float32)
    mean32 = mean.astype(np.float32)
    centred = [patches.astype(np.float32) - mean32 for patches in defective]
    strength = [((patches @ root) ** 2).sum(axis=1) for patches in centred]
    weight = np.zeros(len(mean))
    for _ in range(ROUNDS):
        mined = np.concatenate([p[np.argsort(s)[-_few(len(s)) :]] for p, s in zip(centred, strength, strict=True)])
        shift = mined.mean(axis=0).astype(np.float64)
        spread = np.cov(mined.T, bias=True) if len(mined) > 1 else 0.0
        both = 0.5 * (covariance + spread)
        weight = np.linalg.solve(both + SHRINKAGE * np.trace(both) / len(mean) * np.eye(len(mean)), shift)
        strength = [patches @ weight.astype(np.float32) for patches in centred]
    return weight, float(-mean @ weight)


def _few(count: int) -> int:
    return max(1, min(5, count // 20))


def _strongest(evidence: NDArray[np.float32]) -> float:
    few = _few(len(evidence))
    return float(np.partition(evidence, len(evidence) - few)[-few:].mean())


def _display_range(good_scores: NDArray[np.float64]) -> tuple[float, float]:
    middle, high = np.quantile(good_scores, [0.5, 0.95])
    return float(high), max(float(high - middle) / 3, 1e-6)
