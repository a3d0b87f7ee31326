"""Classifier heads on pooled features: fitted in numpy, deployed as a few nodes of the same graph.

All heads see the features standardised and then limited to ``CLIP`` deviations. That limit matters more than the choice
of the head: without it single runaway features decide, and detection at 2 % false rejects was 0.37 instead of 0.48 on
one real set and 0.57 instead of 0.69 on another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from sklearn.linear_model import LogisticRegression

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lineward.models.graph import Graph

CLIP = 3.0
COMPONENTS = 256
"""Dimensions of the subspace in which kernels and types are computed: 8 MB in the bundle."""
LOGISTIC_COMPONENTS = 512
LOGISTIC_C = 10.0
RBF_WIDTH = 1.0
RBF_RIDGE = 0.05
MAX_SUPPORT = 2048
"""Most images a kernel head keeps; of a larger set all defects first, then good ones at random."""


@dataclass(frozen=True, slots=True)
class Scaler:
    """Standardise and limit features: ``clip((x - mean) / deviation)``; both ``(d,)`` float32."""

    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]

    def __call__(self, pooled: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map ``(n, d)`` features to ``(n, d)`` float32 in ``-CLIP..CLIP``."""
        scaled = (pooled - self.mean) / self.deviation
        return np.clip(scaled, -CLIP, CLIP, out=scaled)

    def append(self, graph: Graph, pooled: str) -> str:
        """Add the same to a graph."""
        centred = graph.op("Sub", pooled, graph.constant(self.mean, "feature_mean"))
        scaled = graph.op("Div", centred, graph.constant(self.deviation, "feature_deviation"))
        return graph.clip(scaled, -CLIP, CLIP, hint="standardised")


def fit_scaler(pooled: NDArray[np.float32]) -> Scaler:
    """Fit mean and deviation; a feature that never varies is left at zero rather than blown up."""
    mean, deviation = pooled.mean(axis=0), pooled.std(axis=0)
    floor = 1e-3 * float(np.median(deviation)) + 1e-6
    return Scaler(mean.astype(np.float32), np.maximum(deviation, floor).astype(np.float32))


@dataclass(frozen=True, slots=True)
class Subspace:
    """Directions along which the training images differ most: ``basis`` ``(d, k)`` float32, orthonormal, best first.

    Deviations along them are in ``scale`` ``(k,)``.
    """

    basis: NDArray[np.float32]
    scale: NDArray[np.float64]

    def __call__(self, scaled: NDArray[np.float32], components: int = COMPONENTS) -> NDArray[np.float32]:
        """Project ``(n, d)`` scaled features to ``(n, components)``, divided by a common length near one."""
        return np.asarray(scaled @ self.basis[:, :components] * np.float32(self.unit), np.float32)

    @property
    def unit(self) -> float:
        """The common factor: it makes the mean squared length of a projection one."""
        return float(1 / np.sqrt((self.scale**2).sum()))


def fit_subspace(scaled: NDArray[np.float32], seed: int) -> tuple[Subspace, NDArray[np.float32]]:
    """Fit a subspace by way of the smaller matrix of products: between images, or between features.

    Returns
    -------
    tuple
        The subspace, and ``scaled`` projected to all of its directions, ``(n, k)``; the first `COMPONENTS` of them are
        what the subspace itself gives.
    """
    rows = scaled
    if len(rows) > MAX_SUPPORT:
        rows = rows[np.sort(np.random.default_rng(seed).choice(len(rows), MAX_SUPPORT, replace=False))]
    between_images = len(rows) < rows.shape[1]
    lengths, vectors = _principal(rows @ rows.T if between_images else rows.T @ rows)
    basis = rows.T @ (vectors / lengths) if between_images else vectors
    space = Subspace(np.asarray(basis, np.float32), lengths.astype(np.float64) / np.sqrt(len(rows)))
    if between_images and rows is scaled:
        return space, np.asarray(vectors * (lengths * np.float32(space.unit)), np.float32)
    return space, space(scaled, LOGISTIC_COMPONENTS)


def _principal(products: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return lengths ``(k,)``, longest first, and directions ``(n, k)`` of a matrix of products."""
    values, vectors = np.linalg.eigh(products)
    kept = np.flatnonzero(values > 1e-5 * values[-1])[::-1][:LOGISTIC_COMPONENTS]
    return np.sqrt(values[kept]), vectors[:, kept]


def project_apart(
    known: NDArray[np.float32], asked: NDArray[np.float32], seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Standardise features and project them to the directions along which the known ones differ most.

    What `fit_scaler` and `fit_subspace` give, for scores alone: while there are fewer images than features, products
    between images are enough, and the directions themselves, half of the work, are not needed.

    Parameters
    ----------
    known
        ``(n, d)`` features of the images that a head is fitted on.
    asked
        ``(m, d)`` features of those that it judges.

    Returns
    -------
    tuple
        Both projected, ``(n, k)`` and ``(m, k)``; kernels and distances use the first `COMPONENTS` of ``k``.
    """
    scaler = fit_scaler(known)
    rows, others = scaler(known), scaler(asked)
    if len(rows) > MAX_SUPPORT or len(rows) >= rows.shape[1]:
        space, projected = fit_subspace(rows, seed)
        return projected, space(others, LOGISTIC_COMPONENTS)
    lengths, vectors = _principal(rows @ rows.T)
    unit = np.sqrt(np.float32(len(rows)) / (lengths**2).sum())
    return vectors * (lengths * unit), (others @ rows.T) @ (vectors * (unit / lengths))


def project(graph: Graph, space: Subspace, scaled: str) -> str:
    """Add the projection ``(N, COMPONENTS)`` of scaled features to a graph."""
    basis = space.basis[:, :COMPONENTS] * np.float32(space.unit)
    return graph.op("MatMul", scaled, graph.constant(basis, "subspace"), hint="projected")


class Head(Protocol):
    """A fitted classifier."""

    def score(self, space: Subspace, scaled: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return ``(n,)`` raw scores of ``(n, d)`` scaled features, the higher the more defective."""
        ...

    def append(self, graph: Graph, space: Subspace, scaled: str, projected: str) -> str:
        """Add the same to a graph, from the tensors of scaled features and their projection; gives ``(N, 1)``."""
        ...


@dataclass(frozen=True, slots=True)
class Linear:
    """``scaled @ weight + bias``; ``weight`` ``(d,)``."""

    weight: NDArray[np.float32]
    bias: float

    def score(self, space: Subspace, scaled: NDArray[np.float32]) -> NDArray[np.float64]:
        """See `Head`."""
        del space
        return np.asarray(scaled @ self.weight, np.float64) + self.bias

    def append(self, graph: Graph, space: Subspace, scaled: str, projected: str) -> str:
        """See `Head`."""
        del space, projected
        return graph.affine(scaled, self.weight[:, None], np.array([self.bias], np.float32), hint="linear_head")


@dataclass(frozen=True, slots=True)
class Kernel:
    """A sum of Gaussians around training images: ``support`` ``(m, k)``, ``weight`` ``(m,)``, ``gamma``, ``bias``."""

    support: NDArray[np.float32]
    weight: NDArray[np.float32]
    gamma: float
    bias: float

    def score(self, space: Subspace, scaled: NDArray[np.float32]) -> NDArray[np.float64]:
        """See `Head`."""
        return self.score_projected(space(scaled))

    def score_projected(self, projected: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return ``(n,)`` raw scores of projections ``(n, k)``; the first `COMPONENTS` are used."""
        points = projected[:, :COMPONENTS].astype(np.float64)
        kernel = np.exp(-self.gamma * _squared_distances(points, self.support.astype(np.float64)))
        return np.asarray(kernel @ self.weight.astype(np.float64), np.float64) + self.bias

    def append(self, graph: Graph, space: Subspace, scaled: str, projected: str) -> str:
        """See `Head`."""
        del space, scaled
        squared = graph.op("ReduceSum", graph.op("Mul", projected, projected), graph.constant([1], "axis"), keepdims=1)
        cross = graph.op("MatMul", projected, graph.constant(self.support.T * np.float32(-2), "support"), hint="cross")
        lengths = graph.constant((self.support.astype(np.float64) ** 2).sum(axis=1).astype(np.float32), "lengths")
        distance = graph.op("Add", graph.op("Add", cross, squared), lengths, hint="distance")
        kernel = graph.op("Exp", graph.op("Mul", distance, graph.constant(-self.gamma, "gamma")), hint="kernel")
        return graph.affine(kernel, self.weight[:, None], np.array([self.bias], np.float32), hint="kernel_head")


def fit_logistic(space: Subspace, projected: NDArray[np.float32], labels: NDArray[np.bool_]) -> Linear:
    """Fit logistic regression on projections to all directions and fold the projection into one vector."""
    model = separate(projected, labels)
    weight = space.basis.astype(np.float64) @ model.coef_[0] * space.unit
    return Linear(weight.astype(np.float32), float(model.intercept_[0]))


def separate(projected: NDArray[np.float32], labels: NDArray[np.bool_]) -> LogisticRegression:
    """Fit logistic regression on projections ``(n, k)`` to all directions."""
    model = LogisticRegression(C=LOGISTIC_C, class_weight="balanced", max_iter=500, tol=1e-3)
    return model.fit(projected.astype(np.float64), labels)


def fit_kernel(projected: NDArray[np.float32], labels: NDArray[np.bool_], seed: int) -> Kernel:
    """Fit kernel ridge regression with Gaussians as wide as typical distances between training images.

    Of the projections ``(n, k)`` the first `COMPONENTS` are used.
    """
    chosen = _support(labels, seed)
    support = projected[chosen, :COMPONENTS].astype(np.float64)
    target = np.where(labels[chosen], 1.0, -1.0)
    distances = _squared_distances(support, support)
    # Where most images are equal the median is nothing, and Gaussians without width overflow.
    gamma = RBF_WIDTH / max(float(np.median(distances)), 0.01 * float(distances.mean()), 1e-9)
    gram = np.exp(-gamma * distances)
    gram[np.diag_indices_from(gram)] += RBF_RIDGE
    bias = float(target.mean())
    weight = np.linalg.solve(gram, target - bias)
    return Kernel(support.astype(np.float32), weight.astype(np.float32), gamma, bias)


def _support(labels: NDArray[np.bool_], seed: int) -> NDArray[np.int64]:
    if len(labels) <= MAX_SUPPORT:
        return np.arange(len(labels))
    random = np.random.default_rng(seed)
    defect = random.permutation(np.flatnonzero(labels))[: MAX_SUPPORT // 2]
    good = random.permutation(np.flatnonzero(~labels))[: MAX_SUPPORT - len(defect)]
    return np.sort(np.concatenate([defect, good]))


def _squared_distances(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2 * a @ b.T
    return np.asarray(np.maximum(squared, 0.0), np.float64)
