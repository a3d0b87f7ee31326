"""A verdict: what the model says about one image, and the rule that turns two scores into pass, fail or review."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Decision(StrEnum):
    """What is said about a part. `UNDECIDED` is never a model's word: it means there was no judgement in time."""

    PASS = "pass"  # noqa: S105 - not a password
    FAIL = "fail"
    REVIEW = "review"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Where the bands lie, on calibrated scores in 0..1.

    Attributes
    ----------
    pass_below
        A defect probability below this is a pass.
    fail_from
        A defect probability from this on is a fail. Between the two lies the review band.
    review_anomaly_from
        An anomaly from this on is unlike anything in training and never passes unseen, whatever the classifier says.
    """

    pass_below: float
    fail_from: float
    review_anomaly_from: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the model says about one image.

    Attributes
    ----------
    reason
        Empty for a plain pass or fail; ``low_confidence`` or ``unlike_training`` for a review.
    confidence
        Calibrated probability, 0..1, that pass (or fail) is right; for a review, of the likelier of the two.
    defect_probability
        Calibrated probability, 0..1, that the part is defective.
    anomaly
        Share, 0..1, of good training parts that look more usual than this one.
    defect_type
        The likeliest named defect of a part that does not pass, or None.
    heatmap
        ``(h, w)`` float32, 0..1, where the image looks defective, coarse, covering the region of interest; or None.
    """

    decision: Decision
    reason: str
    confidence: float
    defect_probability: float
    anomaly: float
    defect_type: str | None = None
    heatmap: NDArray[np.float32] | None = None
    prepare_ms: float = 0.0
    infer_ms: float = 0.0
    decide_ms: float = 0.0

    @property
    def needs_review(self) -> bool:
        """Whether a person should look at this image."""
        return self.decision is Decision.REVIEW


def decide(defect_probability: float, anomaly: float, thresholds: Thresholds) -> tuple[Decision, str, float]:
    """Turn two calibrated scores into decision, reason and confidence.

    A score that is not a number is not a judgement: it becomes a review with confidence 0.
    """
    if not (0.0 <= defect_probability <= 1.0 and 0.0 <= anomaly <= 1.0):
        return Decision.REVIEW, "score_out_of_range", 0.0
    confidence = max(defect_probability, 1.0 - defect_probability)
    if defect_probability >= thresholds.fail_from:
        return Decision.FAIL, "", defect_probability
    if defect_probability >= thresholds.pass_below:
        return Decision.REVIEW, "low_confidence", confidence
    if anomaly >= thresholds.review_anomaly_from:
        return Decision.REVIEW, "unlike_training", confidence
    return Decision.PASS, "", 1.0 - defect_probability
