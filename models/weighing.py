"""The weight of a tuned network beside the quick tier's sum, chosen on parts that the network never saw."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from lineward.models.calibrate import choose_thresholds, fit_platt
from lineward.models.fit import Blend, Crossfit, working_figures
from lineward.models.folds import grouped_folds
from lineward.models.metrics import calibration_error
from lineward.models.tuned_net import TUNED
from lineward.models.verdict import decide

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lineward.models.fit import QuickModel
    from lineward.models.records import Risk
    from lineward.models.verdict import Decision

WEIGHTS = (0.0, 0.5, 1.0, 2.0, 4.0)
"""Of the tuned network against the quick tier's score, both standardised."""
USUAL_WEIGHT, GAIN = 1.0, 0.04
"""Another weight than the usual one must be better by this much in AUROC plus detection: as much varies by chance."""
MOST_OF_FOLD = 1.0
"""Where only one fold judges, its few parts must not give one network more weight than everything else together."""


def weigh(  # noqa: PLR0917 - one caller
    quick: QuickModel,
    tuned: NDArray[np.float64],
    held: NDArray[np.bool_],
    labels: NDArray[np.bool_],
    groups: NDArray[np.int64],
    risk: Risk,
    seed: int,
) -> tuple[QuickModel, dict[str, dict[str, float]]]:
    """Choose the tuned network's weight, and calibrate the sum.

    Parameters
    ----------
    quick
        The quick tier's model, which comes back as it is when the tuned network does not help.
    tuned
        ``(m,)`` scores of networks that did not know the part.
    held
        ``(n,)`` bool, the ``m`` images that have such a score.
    labels, groups
        ``(n,)``.
    risk, seed
        As for the quick tier.

    Returns
    -------
    model
        Its network is still to be set. Its figures come from folds of the parts that judge: each is judged with the
        weight, calibration and thresholds that the others chose.
    figures
        What each weight reaches.
    """
    blended = quick.out_of_fold[held]
    truth = labels[held]
    crossed = bool(held.all())
    weight, figures = choose_weight(blended, tuned, truth, crossed=crossed)
    if not weight:  # calibrated anew on one fold, the same scores had an ECE of 0.097 instead of 0.050
        return quick, figures
    parts = groups[held]
    folds = grouped_folds(truth, parts, seed, most=5 if crossed else 2)
    probabilities = np.zeros(len(labels))
    decisions: list[Decision] = list(quick.crossfit.decisions)
    places = np.flatnonzero(held)
    for fold in range(int(folds.max()) + 1):
        inside, outside = folds != fold, folds == fold
        if truth[inside].all() or not truth[inside].any():
            inside = np.ones(len(truth), bool)
        part, _ = choose_weight(blended[inside], tuned[inside], truth[inside], crossed=crossed)
        total = _add(blended, tuned, part, blended[inside], tuned[inside])
        platt = fit_platt(total[inside], truth[inside])
        bands, _ = choose_thresholds(platt(total[inside]), truth[inside], risk, parts[inside])
        probabilities[places[outside]] = platt(total[outside])
        for index in places[outside].tolist():
            decisions[index] = decide(float(probabilities[index]), float(quick.crossfit.anomalies[index]), bands)[0]
    total = _add(blended, tuned, weight, blended, tuned)
    platt = fit_platt(total, truth)
    thresholds, promise = choose_thresholds(platt(total), truth, risk, parts)
    spread = float(blended.std()) or 1.0
    # The quick sum's own centre only shifts the total, and the calibration takes it out again.
    centres, scales = dict(quick.blend.centres), {name: scale * spread for name, scale in quick.blend.scales.items()}
    centres[TUNED], scales[TUNED] = float(tuned.mean()), (float(tuned.std()) or 1.0) / weight
    shift = float(blended.mean()) / spread
    model = replace(
        quick,
        blend=Blend(centres, scales),
        head_name=f"stacked + {weight:g} x tuned",
        platt=replace(platt, offset=platt.offset - platt.slope * shift),
        thresholds=thresholds,
        promise=promise,
        ece=calibration_error(truth, platt(total)),
        crossfit=Crossfit(probabilities, quick.crossfit.anomalies, tuple(decisions)),
    )
    return model, figures


def choose_weight(
    blended: NDArray[np.float64], tuned: NDArray[np.float64], labels: NDArray[np.bool_], *, crossed: bool
) -> tuple[float, dict[str, dict[str, float]]]:
    """Compare weights of a network by ``(m,)`` scores of both on parts that neither knew.

    ``crossed``: all parts judge, not a fold of them. Returns the weight, and what each one reaches.
    """
    weights = [weight for weight in WEIGHTS if crossed or weight <= MOST_OF_FOLD]
    found = {weight: working_figures(labels, _add(blended, tuned, weight, blended, tuned)) for weight in weights}
    value = {
        weight: sum(figures.values()) - (0 if weight == USUAL_WEIGHT else GAIN) for weight, figures in found.items()
    }
    best = max(weights, key=lambda weight: value[weight])
    return best, {f"stacked + {weight:g} x tuned": figures for weight, figures in found.items()}


def _add(
    blended: NDArray[np.float64],
    tuned: NDArray[np.float64],
    weight: float,
    usual_blended: NDArray[np.float64],
    usual_tuned: NDArray[np.float64],
) -> NDArray[np.float64]:
    first = (blended - usual_blended.mean()) / (usual_blended.std() or 1.0)
    second = (tuned - usual_tuned.mean()) / (usual_tuned.std() or 1.0)
    return np.asarray(first + weight * second, np.float64)
