"""Judge files and folders with a bundle, as a user would: every file gets an entry, every figure its interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from lineward.images import ImageFileError, read_image
from lineward.models.dataset import DatasetError, read_dataset
from lineward.models.metrics import measure
from lineward.models.records import DIGEST_DIGITS, Metrics
from lineward.models.verdict import Decision

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from numpy.typing import NDArray

    from lineward.models.dataset import Dataset
    from lineward.models.filefacts import Facts
    from lineward.models.records import Manifest
    from lineward.models.session import Session
    from lineward.models.verdict import Verdict


class Prediction(TypedDict):
    """What `predict` says about one file."""

    file: str
    verdict: str
    confidence: float
    defect_probability: float | None
    ms: float


@dataclass(frozen=True, slots=True)
class Judged:
    """A labelled folder with what a bundle said about each image, in the same order."""

    manifest: Manifest
    dataset: Dataset
    verdicts: tuple[Verdict, ...]
    metrics: Metrics

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """``(n,)`` defect probabilities; not finite where the model gave no number."""
        return np.array([verdict.defect_probability for verdict in self.verdicts], np.float64)

    def sentences(self) -> list[str]:
        """Say what `Metrics.sentences` says, and before it what the figures have to be read with."""
        notes = [f"Note: {warning}." for warning in self.dataset.warnings]
        if not self.dataset.groups_known:
            notes.append("Note: where several images show one part, the intervals below are too narrow.")
        numbers = np.isfinite(self.probabilities)
        if not numbers.all():
            example = self.dataset.items[int(numbers.argmin())].file
            notes.append(
                f"Note: the model gives no number for {int((~numbers).sum())} of {len(numbers)} images, such as "
                f"{example}: each counts as a review and is left out of AUROC, detection and calibration error."
            )
        return [*notes, *self.metrics.sentences()]


def evaluate(session: Session, data: Path, *, progress: Callable[[int, int], None] | None = None) -> Metrics:
    """Return the figures of `judge_folder` alone; raises what it raises."""
    return judge_folder(session, data, progress=progress).metrics


def judge_folder(session: Session, data: Path, *, progress: Callable[[int, int], None] | None = None) -> Judged:
    """Judge every image below ``good`` and ``defect`` and compare with the label.

    One kind alone is accepted; figures that need both are then none.

    Raises
    ------
    DatasetError
        The folder cannot be used, holds a broken file, or an image that the model was trained on.
    """
    dataset = read_dataset(data, training=False)
    _refuse_known(session, dataset)
    verdicts: list[Verdict] = []
    for done, item in enumerate(dataset.items, 1):
        verdicts.append(session.judge(read_image(item.source.path)))
        if progress and (done % 16 == 0 or done == len(dataset.items)):
            progress(done, len(dataset.items))
    metrics = measure(
        dataset.labels,
        np.array([verdict.defect_probability for verdict in verdicts]),
        [verdict.decision for verdict in verdicts],
        float(np.mean([milliseconds(verdict) for verdict in verdicts])),
        dataset.kinds,
        parts=dataset.groups,
    )
    return Judged(session.manifest, dataset, tuple(verdicts), metrics)


class Known:
    """The images that models were trained on: by the bytes of their files, and by their pixels."""

    def __init__(self, *manifests: Manifest) -> None:
        self._files = {digest for manifest in manifests for digest in manifest.data.trained_on}
        self._pixels = {digest for manifest in manifests for digest in manifest.data.trained_pixels}

    def has(self, facts: Facts) -> bool:
        """Tell whether an image is one of them, also when it was saved again since."""
        return facts.digest[:DIGEST_DIGITS] in self._files or facts.pixels in self._pixels


def _refuse_known(session: Session, dataset: Dataset) -> None:
    """Figures on images that the model was fitted on flatter it."""
    known = Known(session.manifest)
    found = [item.file for item in dataset.items if item.facts is not None and known.has(item.facts)]
    if found:
        raise DatasetError(
            f"{dataset.folder}: the model was trained on {len(found)} of these {len(dataset.items)} images, such as "
            f"{found[0]}; evaluate on other parts (figures on the training parts are in the bundle, cross-fitted)"
        )


def predict(session: Session, paths: Iterable[Path], *, on_error: Callable[[ImageFileError], None]) -> list[Prediction]:
    """Judge files in the order given; a broken one never hides the others.

    Parameters
    ----------
    session
        The judge.
    paths
        Image files.
    on_error
        Called with each file that cannot be read; its entry says ``undecided``, confidence 0, no probability. Nor has
        an entry one where the model gives no finite number.
    """
    found: list[Prediction] = []
    for path in paths:
        try:
            verdict = session.judge(read_image(path))
        except ImageFileError as error:
            on_error(error)
            found.append(
                {
                    "file": str(path),
                    "verdict": Decision.UNDECIDED.value,
                    "confidence": 0.0,
                    "defect_probability": None,
                    "ms": 0.0,
                }
            )
            continue
        found.append(
            {
                "file": str(path),
                "verdict": verdict.decision.value,
                "confidence": verdict.confidence,
                "defect_probability": verdict.defect_probability if math.isfinite(verdict.defect_probability) else None,
                "ms": milliseconds(verdict),
            }
        )
    return found


def milliseconds(verdict: Verdict) -> float:
    """Return what preparing, inferring and deciding took together."""
    return verdict.prepare_ms + verdict.infer_ms + verdict.decide_ms
