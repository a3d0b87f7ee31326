"""The records a bundle carries: what it was made from, what it was measured to do, and what it promises."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from lineward.models.prepare import InputSpec
from lineward.models.verdict import Thresholds

FORMAT_VERSION = 1
"""Of the manifest; a bundle with another one is refused."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Rate(_Part):
    """A share with its 95 % Clopper-Pearson interval; ``value`` is none when there was nothing to count."""

    value: float | None = Field(description="Observed share, 0..1.")
    low: float = Field(description="Lower end of the 95 % interval.")
    high: float = Field(description="Upper end of the 95 % interval.")
    n: int = Field(description="Images counted.")


class Metrics(_Part):
    """What `evaluate` reports; a review counts neither as false reject nor as escape."""

    n_good: int
    n_defect: int
    auroc: float | None = Field(description="Area under the ROC curve over images; none when a class is missing.")
    detection_at_2pct_fr: float | None = Field(description="Share of defects above all but 2 % of the good images.")
    false_reject_rate: Rate = Field(description="Good images that fail.")
    escape_rate: Rate = Field(description="Defective images that pass.")
    review_share: float = Field(description="Images of either kind that go to review.")
    ece: float = Field(description="Expected calibration error of the defect probability, ten bins of equal width.")
    ms_per_image: float = Field(description="Prepare, infer and decide, mean.")

    def to_json(self) -> dict[str, object]:
        """Return plain numbers and dictionaries, ready for `json.dumps`."""
        return self.model_dump()

    def sentences(self) -> list[str]:
        """Say the same to a person without a background in computer vision."""
        rejects, escapes = self.false_reject_rate, self.escape_rate
        lines = []
        if rejects.value is not None:
            lines.append(
                f"Of 1,000 good parts it would reject about {1000 * rejects.value:.0f} "
                f"(between {1000 * rejects.low:.0f} and {1000 * rejects.high:.0f}; seen on {rejects.n} images)."
            )
        if escapes.value is not None:
            lines.append(
                f"Of 100 defective parts about {100 * escapes.value:.0f} would slip through "
                f"(between {100 * escapes.low:.0f} and {100 * escapes.high:.0f}; seen on {escapes.n} images)."
            )
        lines.append(f"Of 100 parts like these a person would have to look at about {100 * self.review_share:.0f}.")
        return lines


class Risk(_Part):
    """What is asked of the thresholds; every share is between 0 and 1."""

    max_false_reject: float = Field(default=0.01, ge=0, le=0.5, description="Share of good parts that may fail.")
    max_escape: float = Field(default=0.02, ge=0, le=0.5, description="Share of defective parts that may pass.")
    max_review: float = Field(default=0.10, ge=0, le=1, description="Share of good parts that may go to review.")
    max_unlike_training: float = Field(
        default=0.01, ge=0, le=0.5, description="Share of good parts that may go to review for their anomaly alone."
    )


class Promise(_Part):
    """What was asked, and what the out-of-fold scores support at the chosen thresholds."""

    asked: Risk
    false_reject: Rate = Field(description="Good training parts, judged out of fold, that fail.")
    escape: Rate = Field(description="Defective training parts, judged out of fold, that pass.")
    review_good: Rate = Field(description="Good training parts, judged out of fold, in the review band.")
    kept: bool = Field(description="Whether all three shares are as asked.")
    supported: bool = Field(description="Whether the upper ends of the intervals are as asked, too.")
    text: str = Field(description="The same in a sentence.")


class Bands(_Part):
    """Thresholds on calibrated scores; see `lineward.models.verdict.Thresholds`."""

    pass_below: float = Field(ge=0, le=1)
    fail_from: float = Field(ge=0, le=1)
    review_anomaly_from: float = Field(ge=0, le=1)

    def thresholds(self) -> Thresholds:
        """Return them as the verdict wants them."""
        return Thresholds(self.pass_below, self.fail_from, self.review_anomaly_from)


class CalibrationRecord(_Part):
    """How scores became probabilities."""

    method: Literal["platt"] = "platt"
    n: int = Field(description="Out-of-fold scores it was fitted on.")
    folds: int = Field(description="Grouped folds they come from.")
    defect_share: float = Field(description="Share of defects among them: the prior that the probabilities assume.")
    ece: float = Field(description="Expected calibration error on the same scores, 0..1.")


class DataRecord(_Part):
    """What the model was trained and tested on."""

    digest: str = Field(description="SHA-256 over names, labels and contents of all images.")
    n_good: int
    n_defect: int
    n_good_train: int
    n_defect_train: int
    defect_types: dict[str, int] = Field(description="Images by type of defect.")
    groups: int = Field(description="Physical parts, or what had to pass for them.")
    groups_known: bool = Field(description="Whether groups.csv named the part on each image.")
    warnings: tuple[str, ...] = ()


class ModelRecord(_Part):
    """What the graph consists of."""

    backbone: str
    backbone_digest: str
    head: str = Field(description="The classifier that inner folds chose.")
    candidates: dict[str, dict[str, float]] = Field(description="Each candidate's figures on the inner folds.")
    heatmap: Literal["anomaly", "evidence"] = Field(description="What the heat-map shows.")


class ParityRecord(_Part):
    """The exported graph against the trained model, on every held-out image."""

    n: int
    max_abs_diff: float
    verdicts_equal: bool


class Manifest(_Part):
    """Everything about a model that is not in its graph."""

    format_version: Literal[1] = 1
    product: str
    version: str
    created: str = Field(description="RFC 3339, UTC.")
    tier: Literal["quick", "full"]
    input: InputSpec
    thresholds: Bands
    risk: Promise
    calibration: CalibrationRecord
    defect_types: tuple[str, ...] = Field(description="Names of the columns of defect_type_scores.")
    data: DataRecord
    model: ModelRecord
    holdout: Metrics
    parity: ParityRecord
    parent: str | None = None
    tools: dict[str, str] = Field(description="Versions of what it was made with.")
    graph_bytes: int = 0
    graph_sha256: str = ""
