"""Figures about a judge: how well it ranks, how often it errs, whether its confidence is true, and how sure that is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import beta, rankdata

from lineward.models.records import Metrics, Rate
from lineward.models.verdict import Decision

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def measure(
    labels: NDArray[np.bool_],
    probabilities: NDArray[np.float64],
    decisions: Sequence[Decision],
    ms_per_image: float,
    kinds: Sequence[str | None] = (),
    *,
    parts: NDArray[np.int64],
) -> Metrics:
    """Compute all figures.

    Parameters
    ----------
    labels
        ``(n,)``, true for defective.
    probabilities
        ``(n,)`` float64, 0..1, calibrated defect probability. An image whose probability is not finite counts with
        what was said about it, and is left out of AUROC, detection and calibration error.
    decisions
        What was said about each image.
    ms_per_image
        Mean time of a judgement in milliseconds.
    kinds
        Type of the defect on each image, where it has a name.
    parts
        ``(n,)`` the part on each image: ten pictures of one part say less about others than pictures of ten.
    """
    failed = np.array([decision is Decision.FAIL for decision in decisions], bool)
    passed = np.array([decision is Decision.PASS for decision in decisions], bool)
    n_defect = int(labels.sum())
    n_good = len(labels) - n_defect
    known = np.isfinite(probabilities)
    marks, stated = labels[known], probabilities[known]
    both = bool(marks.any() and not marks.all())
    good, bad = ~labels, labels
    return Metrics(
        n_good=n_good,
        n_defect=n_defect,
        auroc=auroc(marks, stated) if both else None,
        detection_at_2pct_fr=detection_at(marks, stated, 0.02) if both else None,
        false_reject_rate=rate_of_parts(failed[good], probabilities[good], parts[good]),
        escape_rate=rate_of_parts(passed[bad], probabilities[bad], parts[bad]),
        review_share=float((~failed & ~passed).mean()) if len(labels) else 0.0,
        ece=calibration_error(marks, stated),
        ms_per_image=ms_per_image,
        missed_by_type=_missed_by_type(passed, probabilities, parts, kinds),
    )


def _missed_by_type(
    passed: NDArray[np.bool_], probabilities: NDArray[np.float64], parts: NDArray[np.int64], kinds: Sequence[str | None]
) -> dict[str, Rate]:
    found: dict[str, Rate] = {}
    for name in sorted({kind for kind in kinds if kind}):
        those = np.array([kind == name for kind in kinds], bool)
        found[name] = rate_of_parts(passed[those], probabilities[those], parts[those])
    return found


def rate(count: int, n: int, effect: float = 1.0) -> Rate:
    """Return ``count / n`` with its exact 95 % interval (Clopper-Pearson): it never promises too much at small n.

    ``effect`` images are worth one; see `rate_of_parts`.
    """
    if n == 0:
        return Rate(value=None, low=0.0, high=1.0, n=0)
    hits, misses = count / effect, (n - count) / effect
    low = 0.0 if count == 0 else float(beta.ppf(0.025, hits, misses + 1))
    high = 1.0 if count == n else float(beta.ppf(0.975, hits + 1, misses))
    return Rate(value=count / n, low=low, high=high, n=n)


def rate_of_parts(hits: NDArray[np.bool_], scores: NDArray[np.float64], parts: NDArray[np.int64]) -> Rate:
    """Return the share of hits among images with a 95 % interval for other parts, not for other pictures of these.

    Images of one part resemble each other, so the interval is that of fewer images: their number is divided by the
    design effect of the scores (Kish), and the exact interval is taken at that number (Korn and Graubard 1998). A
    few odd parts may carry all hits while the scores of the others hardly resemble each other: the larger effect is
    taken.
    """
    effect = design_effect(scores, parts)
    if 0 < hits.sum() < len(hits):
        effect = max(effect, design_effect(hits.astype(np.float64), parts))
    return rate(int(hits.sum()), len(hits), effect)


def design_effect(scores: NDArray[np.float64], parts: NDArray[np.int64]) -> float:
    """Return how many images are worth one: 1 when pictures of a part differ as parts do, their number when not at all.

    ``1 + (m - 1) * icc`` with the mean number ``m`` of pictures that an image's part has, and the correlation within
    parts from a one-way analysis of variance of the ranks of ``(n,)`` scores. One that is not a number ranks as 0.5,
    between good and defective.
    """
    _, part, sizes = np.unique(parts, return_inverse=True, return_counts=True)
    n, number = len(parts), len(sizes)
    if number == n:  # also when there are none
        return 1.0
    most = float((sizes.astype(float) ** 2).sum() / n)
    if number == 1:
        return most
    ranks = rankdata(np.nan_to_num(scores, nan=0.5))
    means = np.bincount(part, ranks) / sizes
    between = float((sizes * (means - ranks.mean()) ** 2).sum() / (number - 1))
    within = float(((ranks - means[part]) ** 2).sum() / (n - number))
    usual = (n - most) / (number - 1)
    total = between + (usual - 1) * within
    alike = min(max((between - within) / total, 0.0), 1.0) if total > 0 else 1.0
    return 1 + (most - 1) * alike


def auroc(labels: NDArray[np.bool_], scores: NDArray[np.float64]) -> float:
    """Return the probability that a random defect scores above a random good image; ties count half."""
    n_defect = int(labels.sum())
    n_good = len(labels) - n_defect
    ranks = rankdata(scores)
    return float((ranks[labels].sum() - n_defect * (n_defect + 1) / 2) / (n_defect * n_good))


def detection_at(labels: NDArray[np.bool_], scores: NDArray[np.float64], false_rejects: float) -> float:
    """Return the share of defects that score above all but the share ``false_rejects`` of the good images."""
    good = np.sort(scores[~labels])
    allowed = int(false_rejects * len(good))
    return float((scores[labels] > good[len(good) - 1 - allowed]).mean())


def calibration_error(labels: NDArray[np.bool_], probabilities: NDArray[np.float64], bins: int = 10) -> float:
    """Return the expected calibration error: mean distance of stated and observed defect share over the bins."""
    if len(labels) == 0:
        return 0.0
    index = np.minimum((probabilities * bins).astype(int), bins - 1)
    stated = np.bincount(index, probabilities, bins)
    observed = np.bincount(index, labels, bins)
    return float(np.abs(stated - observed).sum() / len(labels))
