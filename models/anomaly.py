"""How unlike good parts an image is, from good parts alone: it speaks where the classifier never saw the defect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lineward.models.calibrate import Ranks
    from lineward.models.graph import Graph

SHRINKAGE = 0.03


@dataclass(frozen=True, slots=True)
class AnomalyModel:
    """Mahalanobis distance to the good parts in the subspace: ``|projected @ whiten + offset|``.

    ``whiten`` is ``(k, d)`` with as many directions ``d`` as are looked at, ``offset`` ``(d,)``, float32.
    """

    whiten: NDArray[np.float32]
    offset: NDArray[np.float32]

    def __call__(self, projected: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return ``(n,)`` distances of ``(n, k)`` projections."""
        white = projected.astype(np.float64) @ self.whiten.astype(np.float64) + self.offset
        return np.asarray(np.sqrt((white**2).sum(axis=1)), np.float64)

    def append(self, graph: Graph, projected: str) -> str:
        """Add the distance, ``(N, 1)``, to a graph."""
        white = graph.affine(projected, self.whiten, self.offset, hint="whitened")
        squared = graph.op("ReduceSum", graph.op("Mul", white, white), graph.constant([1], "axis"), keepdims=1)
        return graph.op("Sqrt", squared, hint="good_distance")


def fit_anomaly(projected: NDArray[np.float32], directions: int | None = None) -> AnomalyModel:
    """Fit on the projections ``(n, k)`` of good parts; the covariance is shrunk towards a sphere.

    ``directions`` is how many of the ``k`` are looked at. A model of few images has fewer, and in more of them new
    parts lie further out: distances are comparable when as many are looked at.
    """
    points = projected[:, :directions].astype(np.float64)
    mean = points.mean(axis=0)
    covariance = np.cov(points.T, bias=True).reshape(len(mean), len(mean))
    sphere = np.trace(covariance) / len(mean)
    values, vectors = np.linalg.eigh((1 - SHRINKAGE) * covariance + SHRINKAGE * sphere * np.eye(len(mean)))
    whiten = vectors / np.sqrt(np.maximum(values, 1e-12))
    rest = np.zeros((projected.shape[1] - len(mean), len(mean)))
    return AnomalyModel(np.concatenate([whiten, rest]).astype(np.float32), (-mean @ whiten).astype(np.float32))


def append_ranks(graph: Graph, scores: str, ranks: Ranks) -> str:
    """Add a piecewise linear map of ``(N, 1)`` scores: a sum of ramps, each between two knots."""
    widths = np.diff(ranks.knots)
    ramps = graph.op("Sub", scores, graph.constant(ranks.knots[:-1].astype(np.float32), "knots"))
    ramps = graph.op("Div", ramps, graph.constant(widths.astype(np.float32), "widths"))
    ramps = graph.clip(ramps, 0.0, 1.0, hint="ramps")
    rises = np.diff(ranks.levels).astype(np.float32)[:, None]
    level = graph.affine(ramps, rises, ranks.levels[:1].astype(np.float32), hint="rank")
    return graph.clip(level, 0.0, 1.0, hint="anomaly_rank")
