"""Fit the quick tier's model on pooled features: head, calibration, anomaly, heat-map, types, each on grouped folds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from sklearn.linear_model import LogisticRegression

from lineward.models.anomaly import append_ranks, fit_anomaly
from lineward.models.calibrate import choose_thresholds, fit_platt, fit_ranks
from lineward.models.dataset import grouped_folds
from lineward.models.heads import COMPONENTS, fit_kernel, fit_logistic, fit_scaler, fit_subspace
from lineward.models.metrics import auroc, calibration_error, detection_at
from lineward.models.patches import fit_patches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from lineward.models.anomaly import AnomalyModel
    from lineward.models.calibrate import Platt, Ranks
    from lineward.models.dataset import Item
    from lineward.models.features import FeatureStore, FeatureTensors
    from lineward.models.graph import Graph
    from lineward.models.heads import Head, Scaler, Subspace
    from lineward.models.patches import PatchModel
    from lineward.models.records import Promise, Risk
    from lineward.models.verdict import Thresholds

CANDIDATES: dict[str, tuple[str, ...]] = {
    "logistic": ("logistic",),
    "kernel": ("kernel",),
    "patch": ("patch",),
    "pooled": ("logistic", "kernel"),
    "pooled+patch": ("logistic", "kernel", "patch"),
    "pooled+anomaly": ("logistic", "kernel", "anomaly"),
    "all": ("logistic", "kernel", "patch", "anomaly"),
}
"""Name of a candidate to the components whose standardised scores it adds up."""

WORKING_POINTS = (0.01, 0.02, 0.05)
"""Heads are compared by detection at these shares of false rejects: 2 % alone hangs on two or three good images."""


@dataclass(frozen=True, slots=True)
class TypeModel:
    """Which defect it is, ``softmax(projected @ weight + bias)``; ``weight`` ``(k, types)``, ``bias`` ``(types,)``."""

    names: tuple[str, ...]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def append(self, graph: Graph, projected: str) -> str:
        """Add the scores ``(N, types)``, which add up to one, to a graph."""
        return graph.op("Softmax", graph.affine(projected, self.weight, self.bias, hint="types"), axis=1)


@dataclass(frozen=True, slots=True)
class Blend:
    """A sum of components, each brought to mean zero and deviation one on scores of parts it was not fitted on."""

    centres: dict[str, float]
    scales: dict[str, float]

    def __call__(self, scores: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """Add up ``(n,)`` scores by component; components that do not take part are ignored."""
        parts = [(scores[name] - centre) / self.scales[name] for name, centre in self.centres.items()]
        return np.asarray(np.sum(parts, axis=0), np.float64)

    def append(self, graph: Graph, scores: dict[str, str]) -> str:
        """Add the same to a graph, from tensors ``(N, 1)`` by component."""
        total = ""
        for name, centre in self.centres.items():
            part = graph.op("Sub", scores[name], graph.constant(centre, "centre"))
            part = graph.op("Div", part, graph.constant(self.scales[name], "scale"))
            total = graph.op("Add", total, part, hint="blend") if total else part
        return total


@dataclass(frozen=True, slots=True)
class QuickModel:
    """Everything behind the backbone, as fitted."""

    scaler: Scaler
    space: Subspace
    heads: dict[str, Head]
    blend: Blend
    head_name: str
    candidates: dict[str, dict[str, float]]
    platt: Platt
    anomaly: AnomalyModel
    ranks: Ranks
    patches: PatchModel
    types: TypeModel | None
    thresholds: Thresholds
    promise: Promise
    folds: int
    ece: float

    def judge(
        self, pooled: NDArray[np.float32], patches: Iterable[NDArray[np.float32]]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return defect probability and anomaly, ``(n,)`` each, 0..1, of ``(n, d)`` pooled features and patches."""
        scaled = self.scaler(pooled)
        distance = self.anomaly(self.space(scaled))
        scores = {name: head.score(self.space, scaled) for name, head in self.heads.items()}
        scores["anomaly"] = np.log1p(distance)
        scores["patch"] = np.array([self.patches.score(image) for image in patches])
        return self.platt(self.blend(scores)), self.ranks(distance)

    def append(self, graph: Graph, tensors: FeatureTensors) -> None:
        """Add the same, with heat-map and types, to a graph, and declare its outputs."""
        scaled = self.scaler.append(graph, tensors.pooled)
        basis = self.space.basis[:, :COMPONENTS] * np.float32(self.space.unit)
        projected = graph.op("MatMul", scaled, graph.constant(basis, "subspace"), hint="projected")
        distance = self.anomaly.append(graph, projected)
        patch_score, heat = self.patches.append(graph, tensors.patches, tensors.layout)
        above_zero = graph.op("Add", distance, graph.constant(1.0, "one"))
        scores = {"patch": patch_score, "anomaly": graph.op("Log", above_zero)}
        for name in self.heads.keys() & self.blend.centres.keys():
            scores[name] = self.heads[name].append(graph, self.space, scaled, projected)
        score = self.blend.append(graph, scores)
        slope, offset = graph.constant(self.platt.slope, "slope"), graph.constant(self.platt.offset, "offset")
        probability = graph.op("Sigmoid", graph.op("Add", graph.op("Mul", score, slope), offset), hint="probability")
        flat = graph.constant([-1], "flat")
        graph.output("defect_probability", graph.op("Reshape", probability, flat), ["N"])
        anomaly = append_ranks(graph, distance, self.ranks)
        graph.output("anomaly", graph.op("Reshape", anomaly, flat), ["N"])
        layout = tensors.layout
        graph.output("heatmap", heat, ["N", layout.rows, layout.columns])
        if self.types:
            graph.output("defect_type_scores", self.types.append(graph, projected), ["N", len(self.types.names)])


def fit_quick(
    store: FeatureStore,
    items: Sequence[Item],
    pooled: NDArray[np.float32],
    groups: NDArray[np.int64],
    *,
    risk: Risk,
    seed: int,
    progress: Callable[[int, int], None],
) -> QuickModel:
    """Fit on training images only.

    Parameters
    ----------
    store
        Gives the patches of the images.
    items
        The images with their labels.
    pooled
        ``(n, d)`` float32, their pooled features.
    groups
        ``(n,)`` the part on each image.
    risk
        What the thresholds are asked to keep.
    seed
        Decides the folds.
    progress
        Called with steps done and total.
    """
    labels = np.array([item.defective for item in items], bool)
    folds = grouped_folds(labels, groups, seed)
    number = int(folds.max()) + 1
    steps = number + 2
    scores = {name: np.empty(len(labels)) for name in ("logistic", "kernel")}
    distances = np.empty(len(labels))
    for fold in range(number):
        inside, outside = folds != fold, folds == fold
        scaler, space, heads = _fit_heads(pooled[inside], labels[inside], seed)
        scaled = scaler(pooled[outside])
        for name, head in heads.items():
            scores[name][outside] = head.score(space, scaled)
        good = space(scaler(pooled[inside & ~labels]))
        distances[outside] = fit_anomaly(good)(space(scaled))
        progress(fold + 1, steps)
    patches = fit_patches(store, [item.source for item in items], labels, folds, seed)
    progress(number + 1, steps)
    scores |= {"patch": patches.scores, "anomaly": np.log1p(distances)}
    blends = {name: _fit_blend(scores, parts) for name, parts in CANDIDATES.items()}
    candidates = {name: _figures(labels, blend(scores)) for name, blend in blends.items()}
    best = max(candidates, key=lambda name: candidates[name]["detection"] + candidates[name]["auroc"])
    blended = blends[best](scores)
    platt = fit_platt(blended, labels)
    probabilities = platt(blended)
    thresholds, promise = choose_thresholds(probabilities, labels, risk)
    scaler, space, heads = _fit_heads(pooled, labels, seed)
    projected = space(scaler(pooled))
    progress(steps, steps)
    return QuickModel(
        scaler=scaler,
        space=space,
        heads=heads,
        blend=blends[best],
        head_name=best,
        candidates=candidates,
        platt=platt,
        anomaly=fit_anomaly(projected[~labels]),
        ranks=fit_ranks(distances[~labels]),
        patches=patches.model,
        types=_fit_types(projected, [item.defect_type for item in items]),
        thresholds=thresholds,
        promise=promise,
        folds=number,
        ece=calibration_error(labels, probabilities),
    )


def _fit_heads(
    pooled: NDArray[np.float32], labels: NDArray[np.bool_], seed: int
) -> tuple[Scaler, Subspace, dict[str, Head]]:
    scaler = fit_scaler(pooled)
    scaled = scaler(pooled)
    space = fit_subspace(scaled, seed)
    logistic = fit_logistic(space, scaled, labels)
    return scaler, space, {"logistic": logistic, "kernel": fit_kernel(space, scaled, labels, seed)}


def _fit_blend(scores: dict[str, NDArray[np.float64]], parts: Sequence[str]) -> Blend:
    centres = {name: float(scores[name].mean()) for name in parts}
    return Blend(centres, {name: float(scores[name].std()) or 1.0 for name in parts})


def _figures(labels: NDArray[np.bool_], scores: NDArray[np.float64]) -> dict[str, float]:
    detection = float(np.mean([detection_at(labels, scores, point) for point in WORKING_POINTS]))
    return {"auroc": auroc(labels, scores), "detection": detection}


def _fit_types(projected: NDArray[np.float32], kinds: Sequence[str | None]) -> TypeModel | None:
    """Fit the likeliest type by multinomial logistic regression on defective images whose type has a name."""
    named = [(index, kind) for index, kind in enumerate(kinds) if kind]
    names = tuple(sorted({kind for _, kind in named}))
    if not names:
        return None
    depth = projected.shape[1]
    if len(names) == 1:
        return TypeModel(names, np.zeros((depth, 1), np.float32), np.zeros(1, np.float32))
    model = LogisticRegression(C=10.0, class_weight="balanced", max_iter=300, tol=1e-3)
    model.fit(projected[[index for index, _ in named]].astype(np.float64), [kind for _, kind in named])
    weight, bias = model.coef_.T, model.intercept_
    if len(names) == 2:  # scikit-learn gives one column for two classes
        weight, bias = np.concatenate([-weight, weight], axis=1) / 2, np.array([-bias[0], bias[0]]) / 2
    return TypeModel(names, weight.astype(np.float32), bias.astype(np.float32))
