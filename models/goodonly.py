"""Training without any real defect: what is unusual goes to review, what is far outside fails, no more is promised.

Heads that learnt from made-up defects can speak beside the good parts; what fails is decided on good parts alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.special import logit
from sklearn.model_selection import GroupKFold

from lineward.models.anomaly import fit_anomaly
from lineward.models.calibrate import Platt, fit_ranks
from lineward.models.fit import Blend, Crossfit, QuickModel
from lineward.models.heads import (
    COMPONENTS,
    fit_kernel,
    fit_logistic,
    fit_scaler,
    fit_subspace,
    project_apart,
    separate,
)
from lineward.models.metrics import rate, rate_of_parts
from lineward.models.patches import fit_patch_distance
from lineward.models.records import Promise, Risk
from lineward.models.verdict import Decision, Thresholds, decide

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from lineward.models.bootstrap import MadeUp
    from lineward.models.dataset import Item
    from lineward.models.features import FeatureStore
    from lineward.models.heads import Head

FAIL_PROBABILITY, MIDDLE_PROBABILITY = 0.5, 0.02
"""What is stated where a part fails, and for the middle of the good ones; a ramp lies between. Not calibrated."""
MADE_UP_WEIGHT = 0.5
"""Of each head that learnt from made-up defects, against the distances from good parts; docs/decisions/0022."""


def fit_good_only(
    store: FeatureStore,
    items: Sequence[Item],
    pooled: NDArray[np.float32],
    groups: NDArray[np.int64],
    *,
    risk: Risk,
    seed: int,
    progress: Callable[[int, int], None],
    make_up: Callable[[NDArray[np.int64]], MadeUp] | None = None,
) -> QuickModel:
    """Fit on good images; thresholds come from the scores of good parts by models that did not see them.

    ``make_up`` gives pictures with made-up defects for the folds, ``(n,)``, of the good ones.

    A part fails that lies further out than the furthest good one by half the distance between it and the median.
    A part goes to review that is more unusual than ``1 - max_unlike_training`` of the good ones.
    """
    number = max(2, min(5, len(set(groups.tolist()))))
    folds = np.zeros(len(groups), np.int64)
    splits = GroupKFold(number, shuffle=True, random_state=seed).split(pooled, groups=groups)
    for fold, (_, held) in enumerate(splits):
        folds[held] = fold
    made = make_up(folds) if make_up else None
    names = ("anomaly", "logistic", "kernel") if made else ("anomaly",)
    scores = {name: np.empty(len(pooled)) for name in names}
    distances = np.empty(len(pooled))
    directions = COMPONENTS
    for fold in range(number):
        inside = folds != fold
        known = _with_made_up(pooled[inside], made, made.folds != fold if made else None)
        there, asked = project_apart(known, pooled[~inside], seed)
        directions = min(directions, there.shape[1])
        distances[~inside] = fit_anomaly(there[: inside.sum(), :COMPONENTS])(asked[:, :COMPONENTS])
        if made:
            defective = np.arange(len(known)) >= inside.sum()
            scores["logistic"][~inside] = separate(there, defective).decision_function(asked.astype(np.float64))
            scores["kernel"][~inside] = fit_kernel(there, defective, seed).score_projected(asked)
        progress(fold + 1, number + 1)
    patches = fit_patch_distance(store, [item.source for item in items], folds)
    scores |= {"anomaly": np.log1p(distances), "patch": patches.scores}
    centres = {name: float(np.median(part)) for name, part in scores.items()}
    weights = {name: MADE_UP_WEIGHT if name in {"logistic", "kernel"} else 1.0 for name in scores}
    blend = Blend(centres, {name: (float(part.std()) or 1.0) / weights[name] for name, part in scores.items()})
    blended = blend(scores)
    probabilities = np.empty(len(pooled))
    anomalies = np.empty(len(pooled))
    decisions = [decide(0.0, 0.0, Thresholds(0.5, 0.5, 0.99))[0]] * len(pooled)
    for fold in range(number):
        inside, outside = folds != fold, np.flatnonzero(folds == fold)
        ramp, bands = _bands(blended[inside], risk)
        ranks = fit_ranks(distances[inside])
        probabilities[outside], anomalies[outside] = ramp(blended[outside]), ranks(distances[outside])
        for index in outside.tolist():
            decisions[index] = decide(float(probabilities[index]), float(anomalies[index]), bands)[0]
    ramp, bands = _bands(blended, risk)
    known = _with_made_up(pooled, made)
    scaler = fit_scaler(known)
    space, projected = fit_subspace(scaler(known), seed)
    heads: dict[str, Head] = {}
    if made:
        defective = np.arange(len(known)) >= len(pooled)
        heads["logistic"] = fit_logistic(space, projected, defective)
        heads["kernel"] = fit_kernel(projected, defective, seed)
    progress(number + 1, number + 1)
    return QuickModel(
        scaler=scaler,
        space=space,
        heads=heads,
        blend=blend,
        head_name="good-only + made-up defects" if made else "good-only",
        candidates={},
        platt=ramp,
        anomaly=fit_anomaly(projected[: len(pooled), :COMPONENTS], directions),
        ranks=fit_ranks(distances),
        patches=patches.model,
        locals={},
        types=None,
        thresholds=bands,
        promise=_promise(ramp(blended), decisions, bands, risk, groups),
        folds=number,
        ece=0.0,
        crossfit=Crossfit(probabilities, anomalies, tuple(decisions)),
        out_of_fold=blended,
    )


def _with_made_up(
    pooled: NDArray[np.float32], made: MadeUp | None, chosen: NDArray[np.bool_] | None = None
) -> NDArray[np.float32]:
    """Put features of made-up defects, or of ``chosen`` ``(m,)`` ones, behind those of good images."""
    if made is None:
        return pooled
    return np.concatenate([pooled, made.pooled if chosen is None else made.pooled[chosen]])


def _bands(scores: NDArray[np.float64], risk: Risk) -> tuple[Platt, Thresholds]:
    middle, most = float(np.median(scores)), float(scores.max())
    far = most + 0.5 * max(most - middle, 1e-6)
    slope = float(logit(FAIL_PROBABILITY) - logit(MIDDLE_PROBABILITY)) / (far - middle)
    ramp = Platt(slope, float(logit(FAIL_PROBABILITY)) - slope * far)
    unusual = float(np.quantile(scores, 1 - risk.max_unlike_training))
    return ramp, Thresholds(float(ramp(np.array(unusual))), FAIL_PROBABILITY, 1.0 - risk.max_unlike_training)


def _promise(
    probabilities: NDArray[np.float64],
    decisions: list[Decision],
    bands: Thresholds,
    risk: Risk,
    groups: NDArray[np.int64],
) -> Promise:
    n = len(probabilities)
    false_reject = rate_of_parts(probabilities >= bands.fail_from, probabilities, groups)
    sent = np.array([decision is Decision.REVIEW for decision in decisions])
    review = rate_of_parts(sent, probabilities, groups)
    text = (
        f"trained without any defective part: nothing is known about escapes; what is more unusual than "
        f"{1 - risk.max_unlike_training:.0%} of the good parts goes to review (good parts sent there: "
        f"{review.value or 0:.1%}, n={n}), what is far outside fails, and the defect probability is a ramp and not "
        "calibrated"
    )
    return Promise(
        asked=risk,
        false_reject=false_reject,
        escape=rate(0, 0),
        review_good=review,
        kept=False,
        supported=False,
        text=text,
    )
