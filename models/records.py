"""The records a bundle carries: what it was made from, what it was measured to do, and what it promises."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from lineward.models.prepare import InputSpec
from lineward.models.verdict import Thresholds

FORMAT_VERSION = 1
"""Of the manifest; a bundle with another one is refused."""


DIGEST_DIGITS = 12
"""Of an image's SHA-256 in the manifest: among a million images two share them with a chance of 1 in 600."""


WANTED_GOOD, WANTED_DEFECT = 800, 100
LEAST_DEFECT = 20
FEW_OF_TYPE = 10
"""Images of a defect type below which nothing can be said about it."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Rate(_Part):
    """A share with its 95 % interval, for other parts (Korn-Graubard); ``value`` is none when nothing was counted."""

    value: float | None = Field(description="Observed share, 0..1.")
    low: float = Field(description="Lower end of the 95 % interval.")
    high: float = Field(description="Upper end of the 95 % interval.")
    n: int = Field(description="Images counted.")


class Metrics(_Part):
    """What `evaluate` reports; a review counts neither as false reject nor as escape."""

    n_good: int = Field(description="Good images judged.")
    n_defect: int = Field(description="Defective images judged.")
    auroc: float | None = Field(description="Area under the ROC curve over images; none when a class is missing.")
    detection_at_2pct_fr: float | None = Field(description="Share of defects above all but 2 % of the good images.")
    false_reject_rate: Rate = Field(description="Good images that fail.")
    escape_rate: Rate = Field(description="Defective images that pass.")
    review_share: float = Field(description="Images of either kind that go to review.")
    ece: float = Field(description="Expected calibration error of the defect probability, ten bins of equal width.")
    ms_per_image: float = Field(description="Prepare, infer and decide, mean.")

    missed_by_type: dict[str, Rate] = Field(
        default={}, description="Defective images that pass, by named type of defect."
    )

    def to_json(self) -> dict[str, object]:
        """Return plain numbers and dictionaries, ready for `json.dumps`."""
        return self.model_dump(exclude={"missed_by_type"})

    def sentences(self) -> list[str]:
        """Tell a person without a background in computer vision what it can do, what it misses, what to collect."""
        return [self._can_do(), self._will_miss(), self._collect_next()]

    def _can_do(self) -> str:
        rejects = self.false_reject_rate
        person = f"of 100 parts like these a person would have to look at about {100 * self.review_share:.0f}"
        if not self.n_good and not self.n_defect:
            return "Nothing is known about good parts, because none was tested."
        if rejects.value is None:
            return f"Nothing is known about good parts, because there were none; {person}."
        return (
            f"Of 1,000 good parts it would reject about {1000 * rejects.value:.0f} "
            f"(between {1000 * rejects.low:.0f} and {1000 * rejects.high:.0f}; seen on {rejects.n} images), "
            f"and {person}."
        )

    def _will_miss(self) -> str:
        escapes = self.escape_rate
        if escapes.value is None:
            return "Which defects would slip through is not known, because there were no defective parts."
        worst = self._worst_type()
        most = f", most of all {worst} ({_missed(self.missed_by_type[worst])})" if worst else ""
        return (
            f"Of 100 defective parts about {100 * escapes.value:.0f} would slip through "
            f"(between {100 * escapes.low:.0f} and {100 * escapes.high:.0f}; seen on {escapes.n} images){most}."
        )

    def _worst_type(self) -> str | None:
        missed = {name: rate.value or 0.0 for name, rate in self.missed_by_type.items()}
        worst = max(missed, key=lambda name: missed[name], default=None)
        return worst if worst is not None and missed[worst] > 0 else None

    def _collect_next(self) -> str:
        worst = self._worst_type()
        few = [name for name, rate in self.missed_by_type.items() if rate.n < FEW_OF_TYPE]
        if not self.n_defect:
            what = f"defective parts of every type, at least {LEAST_DEFECT}, each type in its own folder below defect/"
        elif not self.n_good:
            what = "good parts, with all the variation that the line shows"
        elif worst:
            what = f"20 to 50 pictures of other parts with {worst}"
            what += f", and more with {', '.join(few)}: too few to tell" if few and few != [worst] else ""
        elif few:
            what = f"more parts with {', '.join(few)}: too few to tell how many of them are missed"
        elif self.n_defect < WANTED_DEFECT:
            what = f"{WANTED_DEFECT - self.n_defect} more defective parts: with so few the rates above stay wide"
        elif self.n_good < WANTED_GOOD:
            what = f"{WANTED_GOOD - self.n_good} more good parts, with all the variation that the line shows"
        else:
            what = "the parts that go to review, with what a person says about them"
        return f"Collect next: {what}."


def _missed(rate: Rate) -> str:
    return f"{round((rate.value or 0.0) * rate.n)} of {rate.n} missed"


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

    asked: Risk = Field(description="The shares that were asked for.")
    false_reject: Rate = Field(description="Good training parts, judged out of fold, that fail.")
    escape: Rate = Field(description="Defective training parts, judged out of fold, that pass.")
    review_good: Rate = Field(description="Good training parts, judged out of fold, in the review band.")
    kept: bool = Field(description="Whether all three shares are as asked.")
    supported: bool = Field(description="Whether the upper ends of the intervals are as asked, too.")
    text: str = Field(description="The same in a sentence.")


class Bands(_Part):
    """Thresholds on calibrated scores; see `lineward.models.verdict.Thresholds`."""

    pass_below: float = Field(ge=0, le=1, description="A defect probability below this is a pass.")
    fail_from: float = Field(ge=0, le=1, description="A defect probability from this on is a fail.")
    review_anomaly_from: float = Field(ge=0, le=1, description="An anomaly from this on never passes unseen.")

    def thresholds(self) -> Thresholds:
        """Return them as the verdict wants them."""
        return Thresholds(self.pass_below, self.fail_from, self.review_anomaly_from)


class CalibrationRecord(_Part):
    """How scores became probabilities."""

    method: Literal["platt", "none"] = Field(
        default="platt", description="Platt scaling: a logistic curve over scores; none: trained without defects."
    )
    n: int = Field(description="Out-of-fold scores it was fitted on.")
    folds: int = Field(description="Grouped folds they come from.")
    defect_share: float = Field(description="Share of defects among them: the prior that the probabilities assume.")
    ece: float = Field(description="Expected calibration error on the same scores, 0..1.")


class DataRecord(_Part):
    """What the model was trained and tested on."""

    digest: str = Field(description="SHA-256 over names, labels and contents of all images.")
    n_good: int = Field(description="Good images in the set.")
    n_defect: int = Field(description="Defective images in the set.")
    n_good_train: int = Field(description="Good images the model was fitted on.")
    n_defect_train: int = Field(description="Defective images the model was fitted on.")
    n_made_up: int = Field(default=0, description="Made-up defects it learnt from as well, without any real one.")
    defect_types: dict[str, int] = Field(description="Images by type of defect.")
    groups: int = Field(description="Physical parts, or what had to pass for them.")
    groups_known: bool = Field(description="Whether groups.csv named the part on each image.")
    warnings: tuple[str, ...] = Field(default=(), description="What the figures should be read with.")
    trained_on: tuple[str, ...] = Field(
        default=(), description="First 12 hexadecimal digits of the SHA-256 of each image the model was fitted on."
    )
    trained_pixels: tuple[str, ...] = Field(
        default=(),
        description="The same of the decoded pixels, so that a picture saved in another format is known again.",
    )
    figures: Literal["holdout", "crossfit"] = Field(
        default="holdout",
        description="Where the figures under holdout come from: parts kept apart, or, of each part, a model fitted "
        "without it (crossfit; the model itself is then fitted on all of them).",
    )


class ModelRecord(_Part):
    """What the graph consists of."""

    backbone: str = Field(description="Name of the pretrained network.")
    backbone_digest: str = Field(description="SHA-256 of its weights, in int8 of its ranges as well.")
    precision: Literal["fp32", "int8"] = Field(default="fp32", description="Arithmetic of the pretrained network.")
    head: str = Field(
        description="What gives the score; `stacked`: all heads weighed together, perhaps with a tuned network; "
        "`good-only`: distances from good parts, perhaps with heads that learnt from made-up defects."
    )
    candidates: dict[str, dict[str, float]] = Field(description="Each candidate's figures on the inner folds.")
    tuning_epochs: int = Field(default=0, description="Epochs that the tuned network was trained for; 0: none.")
    sizes_tried: dict[str, float] = Field(
        default={}, description="Input sizes compared on inner folds: AUROC plus detection of a kernel head."
    )
    heatmap: Literal["anomaly", "evidence"] = Field(description="What the heat-map shows.")


class ParityRecord(_Part):
    """The exported graph against the trained model, image by image."""

    n: int = Field(description="Images compared.")
    n_whole: int | None = Field(
        default=None,
        description="Of them: run from the image file on, the others behind their features. Older bundles: not known.",
    )
    max_abs_diff: float = Field(description="Largest difference between trained model and exported graph.")
    verdicts_equal: bool = Field(description="Whether every verdict was the same; a bundle is not written otherwise.")
    auroc_fp32: float | None = Field(
        default=None, description="In int8: cross-fitted AUROC of the same model in float32, at most 0.005 higher."
    )


class Manifest(_Part):
    """Everything about a model that is not in its graph."""

    format_version: Literal[1] = Field(default=1, description="Version of the bundle format.")
    product: str = Field(description="What is inspected.")
    version: str = Field(description="Version of the model, by default its time of making.")
    created: str = Field(description="RFC 3339, UTC.")
    tier: Literal["quick", "full", "imported"] = Field(
        description="How it was trained; imported: by another tool, and wrapped."
    )
    input: InputSpec = Field(description="Size, colour, resize rule and region of interest.")
    thresholds: Bands = Field(description="Where pass, review and fail lie.")
    risk: Promise = Field(description="What the thresholds were chosen for, and what the data support.")
    calibration: CalibrationRecord = Field(description="How scores became probabilities.")
    classes: tuple[str, str] = Field(
        default=("good", "defect"), description="What defect_probability tells apart: 0 is the first, 1 the second."
    )
    defect_types: tuple[str, ...] = Field(description="Names of the columns of defect_type_scores.")
    data: DataRecord = Field(description="What it was trained on.")
    model: ModelRecord = Field(description="Backbone and head.")
    holdout: Metrics = Field(description="Figures on parts that the training never saw.")
    parity: ParityRecord = Field(description="Trained model against exported graph.")
    parent: str | None = Field(default=None, description="SHA-256 of the bundle it was started from.")
    parent_version: str | None = Field(default=None, description="Its version.")
    old_parts: Metrics | None = Field(default=None, description="Cross-fitted figures on the parent's parts alone.")
    promotable: bool = Field(default=True, description="False when it is worse than its parent on the parent's parts.")
    not_promotable: str = Field(default="", description="Why not, in a sentence; empty when it is promotable.")
    tools: dict[str, str] = Field(description="Versions of what it was made with.")
    graph_bytes: int = Field(default=0, description="Size of the ONNX graph in the file.")
    graph_sha256: str = Field(default="", description="SHA-256 of these bytes.")
