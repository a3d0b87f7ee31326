"""Turn raw scores into probabilities and choose thresholds for a stated risk, on scores of parts not fitted on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from lineward.models.metrics import rate_of_parts
from lineward.models.records import Promise, Rate, Risk
from lineward.models.verdict import Thresholds

if TYPE_CHECKING:
    from numpy.typing import NDArray

ANOMALY_KNOTS = 64
STEEPEST = 1e-3
"""Least width of a step between two knots, in distances from the median to the most unusual part."""


@dataclass(frozen=True, slots=True)
class Platt:
    """``probability = 1 / (1 + exp(-(slope * score + offset)))``."""

    slope: float
    offset: float

    def __call__(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map raw scores, any shape, to probabilities 0..1."""
        return np.asarray(expit(self.slope * scores + self.offset), np.float64)


def fit_platt(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> Platt:
    """Fit Platt's scaling on out-of-fold scores, with his softened targets, which keep it finite on separable data.

    The slope is held above zero: a higher score never means a smaller probability.
    """
    n_defect = int(labels.sum())
    n_good = len(labels) - n_defect
    targets = np.where(labels, (n_defect + 1) / (n_defect + 2), 1 / (n_good + 2))
    centre, scale = float(scores.mean()), float(scores.std()) or 1.0
    z = (scores - centre) / scale

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        slope = np.exp(parameters[0])
        logit = slope * z + parameters[1]
        value = float(np.mean(np.logaddexp(0, logit) - targets * logit))
        residual = expit(logit) - targets
        return value, np.array([np.mean(residual * z) * slope, np.mean(residual)])

    start = np.array([0.0, np.log((n_defect + 1) / (n_good + 1))])
    result = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(-6.0, 6.0), (-50.0, 50.0)])
    slope = float(np.exp(result.x[0])) / scale
    return Platt(slope, float(result.x[1]) - slope * centre)


@dataclass(frozen=True, slots=True)
class Ranks:
    """A rising piecewise linear map from raw anomaly to the share, 0..1, of good parts that look more usual."""

    knots: NDArray[np.float64]
    levels: NDArray[np.float64]

    def __call__(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map raw anomaly scores, any shape, to 0..1."""
        return np.asarray(np.interp(scores, self.knots, self.levels), np.float64)


def fit_ranks(scores: NDArray[np.float64]) -> Ranks:
    """Fit the map on out-of-fold scores of good parts.

    Parts with the same score are not more unusual than each other: it stands for the share strictly below it. Beyond
    the most unusual of ``n`` parts the share goes on from ``1 - 1 / 2n`` to 1 over the distance between that part and
    the median: a part slightly more unusual than all is not certain to be foreign.
    """
    ordered = np.sort(scores)
    n = len(ordered)
    levels = np.unique(np.concatenate([np.linspace(0, 1, ANOMALY_KNOTS // 2), 1 - np.geomspace(0.5 / n, 0.5, 32)]))
    knots = np.quantile(ordered, levels)
    shares = np.clip(levels, 0.0, 1 - 0.5 / n)
    reach = max(float(ordered[-1] - np.median(ordered)), 1e-9 + 1e-6 * abs(float(ordered[-1])))
    beyond = knots[-1] + reach
    rising = [0]  # of knots that are nearly equal the first counts: on a steep step float32 ends on the other side
    for place, knot in enumerate(knots):
        if knot - knots[rising[-1]] > STEEPEST * reach:
            rising.append(place)
    knots, shares = knots[rising], shares[rising]
    if shares[-1] < 1 - 0.5 / n:  # several parts share the largest score: just above it all look more usual
        knots, shares = np.append(knots, knots[-1] + 10 * STEEPEST * reach), np.append(shares, 1 - 0.5 / n)
    return Ranks(np.append(knots, beyond), np.append(shares, 1.0))


def choose_thresholds(
    probabilities: NDArray[np.float64], labels: NDArray[np.bool_], risk: Risk, parts: NDArray[np.int64]
) -> tuple[Thresholds, Promise]:
    """Choose the bands on calibrated out-of-fold probabilities.

    ``fail_from`` keeps false rejects within the asked share, ``pass_below`` keeps escapes within theirs unless that
    would send more good parts to review than asked: then the review cap wins, and the promise says so. Neither crosses
    0.5, so that a pass or a fail is never less likely than its opposite. ``parts`` ``(n,)`` is the part on each image.
    """
    good, defect = np.sort(probabilities[~labels]), np.sort(probabilities[labels])
    allowed = int(risk.max_false_reject * len(good))
    fail_from = max(_just_above(good[len(good) - 1 - allowed], probabilities), 0.5)
    escapes = int(risk.max_escape * len(defect))
    pass_below = min(_just_below(defect[escapes], probabilities), 0.5)
    in_band = int(np.sum((good >= pass_below) & (good < fail_from)))
    most = int(risk.max_review * len(good))
    if in_band > most:
        waiting = good[good < fail_from]
        pass_below = min(_just_above(waiting[len(waiting) - 1 - most], probabilities), 0.5, fail_from)
    thresholds = Thresholds(pass_below, fail_from, 1.0 - risk.max_unlike_training)
    return thresholds, _promise(probabilities, labels, thresholds, risk, parts)


def _promise(
    probabilities: NDArray[np.float64],
    labels: NDArray[np.bool_],
    bands: Thresholds,
    risk: Risk,
    parts: NDArray[np.int64],
) -> Promise:
    good, defect = probabilities[~labels], probabilities[labels]
    sound, bad = parts[~labels], parts[labels]
    false_reject = rate_of_parts(good >= bands.fail_from, good, sound)
    escape = rate_of_parts(defect < bands.pass_below, defect, bad)
    review = rate_of_parts((good >= bands.pass_below) & (good < bands.fail_from), good, sound)
    pairs = ((false_reject, risk.max_false_reject), (escape, risk.max_escape), (review, risk.max_review))
    kept = all(found.value is not None and found.value <= asked for found, asked in pairs)
    supported = all(found.high <= asked for found, asked in pairs)
    verdict = (
        "as asked, and the data supports it"
        if supported
        else "as asked, but too few images to promise it"
        if kept
        else "not as asked, since the scores of good and defective parts overlap too much"
    )
    text = (
        f"on the scores that chose the thresholds: false rejects {_words(false_reject, risk.max_false_reject)}, "
        f"escapes {_words(escape, risk.max_escape)}, "
        f"review of good parts {_words(review, risk.max_review)}: {verdict}"
    )
    return Promise(
        asked=risk,
        false_reject=false_reject,
        escape=escape,
        review_good=review,
        kept=kept,
        supported=supported,
        text=text,
    )


def _words(found: Rate, asked: float) -> str:
    return f"{found.value or 0:.1%} (95 %: {found.low:.1%} to {found.high:.1%}, n={found.n}; asked {asked:.1%})"


def _just_above(value: float, among: NDArray[np.float64]) -> float:
    """Return the middle between a score and the next higher one: no score lies on a threshold."""
    higher = among[among > value]
    return float((value + higher.min()) / 2) if higher.size else float(min((value + 1.0) / 2, 1.0))


def _just_below(value: float, among: NDArray[np.float64]) -> float:
    lower = among[among < value]
    return float((value + lower.max()) / 2) if lower.size else float(value / 2)
