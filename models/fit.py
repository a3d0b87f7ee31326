"""Fit the quick tier's model on pooled features: head, calibration, anomaly, heat-map, types, each on grouped folds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from lineward.models.anomaly import append_ranks, fit_anomaly
from lineward.models.calibrate import choose_thresholds, fit_platt, fit_ranks
from lineward.models.folds import fitting_folds
from lineward.models.heads import (
    COMPONENTS,
    fit_kernel,
    fit_logistic,
    fit_scaler,
    fit_subspace,
    project,
    project_apart,
    separate,
)
from lineward.models.local import GRIDS, fit_local
from lineward.models.metrics import auroc, calibration_error, detection_at
from lineward.models.patches import fit_patches
from lineward.models.verdict import Decision, decide
from lineward.models.workers import each, workers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from lineward.models.anomaly import AnomalyModel
    from lineward.models.calibrate import Platt, Ranks
    from lineward.models.dataset import Item
    from lineward.models.features import FeatureStore, FeatureTensors, Source
    from lineward.models.graph import Graph
    from lineward.models.heads import Head, Scaler, Subspace
    from lineward.models.local import LocalModel
    from lineward.models.patches import PatchDistance, PatchModel
    from lineward.models.records import Promise, Risk
    from lineward.models.verdict import Thresholds

COMPONENT_NAMES = ("logistic", "kernel", "local", "deep", "patch", "anomaly")
"""What is weighed: see `lineward.models.heads`, `local`, `patches` and `anomaly`."""
STACKED = "stacked"
STACK_PULL = 0.02
"""How strongly weights are pulled towards each other; docs/decisions/0012."""

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
    """A weighted sum of components, each centred on scores of parts it was not fitted on.

    ``scales`` holds their deviations divided by their weights.
    """

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


class ExtraNet(Protocol):
    """A network beside the frozen one, with a score of its own; see `lineward.models.finetune`."""

    def score(self, sources: Sequence[Source]) -> NDArray[np.float64]:
        """Return ``(n,)`` raw scores of images."""
        ...

    def append(self, graph: Graph, tensors: FeatureTensors) -> str:
        """Add the score ``(N, 1)`` to a graph."""
        ...


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
    patches: PatchModel | PatchDistance
    locals: dict[str, LocalModel]
    types: TypeModel | None
    thresholds: Thresholds
    promise: Promise
    folds: int
    ece: float
    crossfit: Crossfit
    out_of_fold: NDArray[np.float64]
    tuned: ExtraNet | None = None

    def judge(
        self, store: FeatureStore, sources: Sequence[Source], pooled: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return defect probability and anomaly, ``(n,)`` each, 0..1, of ``n`` images with ``(n, d)`` features."""
        scaled = self.scaler(pooled)
        distance = self.anomaly(self.space(scaled))
        scores = {name: head.score(self.space, scaled) for name, head in self.heads.items()}
        scores["anomaly"] = np.log1p(distance)
        with workers(store.threads, "judge") as pool:
            scorers: dict[str, tuple[Callable[[NDArray[np.float32]], NDArray[np.float64]], bool]] = {
                "patch": (self.patches.score, False),
                **{name: (model.score, model.grid.deep) for name, model in self.locals.items()},
            }
            for name, (score, deep) in scorers.items():
                scores[name] = np.array(each(pool, _on_cells(store, score, deep=deep), sources))
        if self.tuned:
            scores["tuned"] = self.tuned.score(sources)
        return self.platt(self.blend(scores)), self.ranks(distance)

    def append(self, graph: Graph, tensors: FeatureTensors) -> None:
        """Add the same, with heat-map and types, to a graph, and declare its outputs."""
        scaled = self.scaler.append(graph, tensors.pooled)
        projected = project(graph, self.space, scaled)
        distance = self.anomaly.append(graph, projected)
        patch_score, heat = self.patches.append(graph, tensors.patches, tensors.layout)
        above_zero = graph.op("Add", distance, graph.constant(1.0, "one"))
        scores = {"patch": patch_score, "anomaly": graph.op("Log", above_zero)}
        for name in self.blend.centres:
            if name in self.heads:
                scores[name] = self.heads[name].append(graph, self.space, scaled, projected)
            elif name in self.locals:
                scores[name] = self.locals[name].append(graph, tensors)
            elif self.tuned and name == "tuned":
                scores[name] = self.tuned.append(graph, tensors)
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


def _on_cells(
    store: FeatureStore, score: Callable[[NDArray[np.float32]], NDArray[np.float64]], *, deep: bool
) -> Callable[[Sequence[Source]], NDArray[np.float64]]:
    return lambda sources: score(store.cells(sources, deep=deep))


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
    sources = [item.source for item in items]
    folds = fitting_folds(labels, groups, seed)
    number = int(folds.max()) + 1
    steps = number + 5
    scores = {name: np.empty(len(labels)) for name in ("logistic", "kernel")}
    distances = np.empty(len(labels))

    def cross(fold: int) -> int:
        inside, outside = folds != fold, folds == fold
        known, asked = project_apart(pooled[inside], pooled[outside], seed)
        scores["logistic"][outside] = separate(known, labels[inside]).decision_function(asked.astype(np.float64))
        scores["kernel"][outside] = fit_kernel(known, labels[inside], seed).score_projected(asked)
        distances[outside] = fit_anomaly(known[~labels[inside], :COMPONENTS])(asked[:, :COMPONENTS])
        return fold

    with workers(store.threads, "heads") as pool:
        whole = pool.submit(_fit_pooled, pooled, labels, seed)
        for fold in pool.map(cross, range(number)):
            progress(fold + 1, steps)
        scaler, space, heads, projected = whole.result()
    anomaly = fit_anomaly(projected[~labels, :COMPONENTS])
    patches = fit_patches(store, sources, labels, folds, seed)
    progress(number + 2, steps)
    found: dict[str, LocalModel] = {}
    for name, grid in GRIDS.items():
        fitted = fit_local(store, sources, labels, folds, seed, grid=grid)
        found[name], scores[name] = fitted.model, fitted.scores
        progress(number + 2 + len(found), steps)
    scores |= {"patch": patches.scores, "anomaly": np.log1p(distances)}
    decided = decide_on_scores(scores, labels, folds, distances, risk, groups=groups)
    projected = space(scaler(pooled))
    progress(steps, steps)
    used = decided.blend.centres.keys()
    return QuickModel(
        scaler=scaler,
        space=space,
        heads={name: head for name, head in heads.items() if name in used},
        blend=decided.blend,
        head_name=decided.name,
        candidates=decided.candidates,
        platt=decided.platt,
        anomaly=anomaly,
        ranks=decided.ranks,
        patches=patches.model,
        locals={name: model for name, model in found.items() if name in used},
        types=_fit_types(projected, [item.defect_type for item in items]),
        thresholds=decided.thresholds,
        promise=decided.promise,
        folds=number,
        ece=decided.ece,
        crossfit=decided.crossfit,
        out_of_fold=decided.blend(scores),
    )


@dataclass(frozen=True, slots=True)
class Crossfit:
    """What models that saw neither an image nor its part say: the figures that are reported, ``(n,)`` each."""

    probabilities: NDArray[np.float64]
    anomalies: NDArray[np.float64]
    decisions: tuple[Decision, ...]


@dataclass(frozen=True, slots=True)
class Decided:
    """What follows from out-of-fold scores: which candidate, its probabilities and its thresholds."""

    name: str
    candidates: dict[str, dict[str, float]]
    blend: Blend
    platt: Platt
    ranks: Ranks
    thresholds: Thresholds
    promise: Promise
    ece: float
    crossfit: Crossfit


def decide_on_scores(
    scores: dict[str, NDArray[np.float64]],
    labels: NDArray[np.bool_],
    folds: NDArray[np.int64],
    distances: NDArray[np.float64],
    risk: Risk,
    *,
    groups: NDArray[np.int64],
) -> Decided:
    """Choose candidate, calibration and thresholds on out-of-fold scores; once for use, once per fold for the figures.

    The figures of a fold come from what the other folds chose: neither heads nor candidate, calibration or thresholds
    have seen its labels when it is judged.
    """
    probabilities, anomalies = np.empty(len(labels)), np.empty(len(labels))
    decisions: list[Decision] = [Decision.REVIEW] * len(labels)
    for fold in range(int(folds.max()) + 1):
        inside, outside = folds != fold, np.flatnonzero(folds == fold)
        if labels[inside].all() or not labels[inside].any():
            inside = np.ones(len(labels), bool)  # a kind with a single part: there is no other way to learn it
        _, blend, platt = _choose({name: part[inside] for name, part in scores.items()}, labels[inside])
        known = platt(blend({name: part[inside] for name, part in scores.items()}))
        bands, _ = choose_thresholds(known, labels[inside], risk, groups[inside])
        ranks = fit_ranks(distances[inside & ~labels])
        probabilities[outside] = platt(blend({name: part[outside] for name, part in scores.items()}))
        anomalies[outside] = ranks(distances[outside])
        for index in outside.tolist():
            decisions[index] = decide(float(probabilities[index]), float(anomalies[index]), bands)[0]
    candidates, blend, platt = _choose(scores, labels)
    final = platt(blend(scores))
    thresholds, promise = choose_thresholds(final, labels, risk, groups)
    return Decided(
        name=STACKED,
        candidates=candidates,
        blend=blend,
        platt=platt,
        ranks=fit_ranks(distances[~labels]),
        thresholds=thresholds,
        promise=promise,
        ece=calibration_error(labels, final),
        crossfit=Crossfit(probabilities, anomalies, tuple(decisions)),
    )


def _choose(
    scores: dict[str, NDArray[np.float64]], labels: NDArray[np.bool_]
) -> tuple[dict[str, dict[str, float]], Blend, Platt]:
    blend = _fit_blend(scores, labels)
    candidates = {name: working_figures(labels, part) for name, part in scores.items()}
    blended = blend(scores)
    return candidates | {STACKED: working_figures(labels, blended)}, blend, fit_platt(blended, labels)


def _fit_pooled(
    pooled: NDArray[np.float32], labels: NDArray[np.bool_], seed: int
) -> tuple[Scaler, Subspace, dict[str, Head], NDArray[np.float32]]:
    scaler = fit_scaler(pooled)
    space, projected = fit_subspace(scaler(pooled), seed)
    heads: dict[str, Head] = {
        "logistic": fit_logistic(space, projected, labels),
        "kernel": fit_kernel(projected, labels, seed),
    }
    return scaler, space, heads, projected


def _fit_blend(scores: dict[str, NDArray[np.float64]], labels: NDArray[np.bool_]) -> Blend:
    """Weigh standardised scores by logistic regression, all weights above zero and pulled towards one value.

    Picking the best candidate instead chases the noise of a few dozen parts: 0.907 / 0.52 against 0.918 / 0.57.
    """
    names = [name for name in COMPONENT_NAMES if name in scores]
    centres = {name: float(scores[name].mean()) for name in names}
    spreads = {name: float(scores[name].std()) or 1.0 for name in names}
    rows = np.stack([(scores[name] - centres[name]) / spreads[name] for name in names], axis=1)
    usual = np.log(3 / len(names))

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights = np.exp(parameters[:-1])
        logit = rows @ weights + parameters[-1]
        residual = expit(logit) - labels
        away = parameters[:-1] - usual
        value = np.mean(np.logaddexp(0, logit) - labels * logit) + STACK_PULL * np.sum(away**2)
        slope = rows.T @ residual / len(labels) * weights + 2 * STACK_PULL * away
        return float(value), np.append(slope, residual.mean())

    start = np.append(np.full(len(names), usual), 0.0)
    weights = np.exp(minimize(loss, start, jac=True, method="L-BFGS-B").x[:-1])
    return Blend(centres, {name: spreads[name] / float(weight) for name, weight in zip(names, weights, strict=True)})


def working_figures(labels: NDArray[np.bool_], scores: NDArray[np.float64]) -> dict[str, float]:
    """Return AUROC, and the mean detection at the working points."""
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
