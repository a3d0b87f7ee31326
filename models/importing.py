"""Wrap anybody's ONNX image model into a bundle: declared, checked on pictures, calibrated where labels are given."""

from __future__ import annotations

import hashlib
import platform
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
from scipy.special import expit

from lineward import __version__
from lineward.images import read_image
from lineward.models.backbone import EfficientNetLite0
from lineward.models.bundle import check_output, save_bundle
from lineward.models.dataset import DatasetError, find_images, read_dataset
from lineward.models.duplicates import parts_of
from lineward.models.evaluate import milliseconds
from lineward.models.features import FeatureStore
from lineward.models.foreign import ForeignModelError
from lineward.models.foreign_calibration import Fitted, Heard, calibrated, hear, uncalibrated
from lineward.models.foreign_file import read_foreign
from lineward.models.manifest import fitted_on
from lineward.models.metrics import measure
from lineward.models.prepare import InputSpec
from lineward.models.records import (
    DataRecord,
    Manifest,
    ModelRecord,
    ParityRecord,
    Risk,
)
from lineward.models.session import Session
from lineward.models.verdict import Decision, decide
from lineward.models.wrapping import Calibration, wrap

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from lineward.models.dataset import Dataset
    from lineward.models.foreign import Declaration, Foreign
    from lineward.models.verdict import Verdict

    Progress = Callable[[str, int, int], None]

PARITY_LIMIT = 1e-3
"""Largest difference of a probability between the original under ONNX Runtime and the bundle."""
MAX_SAMPLES = 200
"""Pictures of `--samples` that are judged twice; more would only take time."""
UNCALIBRATED_REASON = "its confidence was never calibrated, because it was imported without labelled images"


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import gave."""

    model: Path
    sha256: str
    manifest: Manifest
    calibrated: bool
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Return what `lineward models import --json` prints."""
        manifest = self.manifest
        return {
            "model": str(self.model),
            "sha256": self.sha256,
            "product": manifest.product,
            "version": manifest.version,
            "kind": manifest.model.head,
            "input": {"height": manifest.input.height, "width": manifest.input.width, "colour": manifest.input.colour},
            "calibrated": self.calibrated,
            "holdout": manifest.holdout.to_json() if self.calibrated else None,
            "parity": {
                "n": manifest.parity.n,
                "max_abs_diff": manifest.parity.max_abs_diff,
                "verdicts_equal": manifest.parity.verdicts_equal,
            },
            "warnings": list(self.warnings),
        }

    def sentences(self) -> list[str]:
        """Say the same to a person."""
        manifest = self.manifest
        lines = [
            (
                f"{self.model}: on {manifest.parity.n} pictures it says what the original says "
                f"(difference at most {manifest.parity.max_abs_diff:.1g})."
            )
        ]
        if self.calibrated:
            data, held = manifest.data, manifest.holdout
            lines.append(
                f"Calibrated on {data.n_good_train} good and {data.n_defect_train} defective images; tested on "
                f"{held.n_good} and {held.n_defect} images of other parts."
            )
        lines += [f"Note: {warning}." for warning in self.warnings]
        return lines + (manifest.holdout.sentences() if self.calibrated else [])


def import_model(
    path: Path,
    out: Path,
    declared: Declaration,
    *,
    product: str,
    samples: Path | None = None,
    data: Path | None = None,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    seed: int = 0,
    risk: Risk | None = None,
    version: str | None = None,
) -> ImportReport:
    """Wrap a model and write it as a bundle, whole or not at all.

    Parameters
    ----------
    path, declared
        The ONNX file, and what it does not say.
    out
        The bundle file; replaced in one step, after everything else has succeeded.
    product, version
        For the manifest; the version is the time if not given.
    samples
        A picture, or a folder of pictures, on which the bundle must say what the original says.
    data
        Labelled images like those of a training: calibrates the confidence and chooses the thresholds. They should not
        be those that the model was trained on.
    cache_dir
        Where features are kept, which tell images of the same part where ``groups.csv`` does not.
    progress
        Called with stage, done and total.
    seed
        Decides the splits.
    risk
        What the thresholds are asked to keep.

    Raises
    ------
    ForeignModelError, DatasetError, ImageFileError, BundleError
        One line each that names what is wrong and what to do.
    """
    report: Progress = progress or (lambda _stage, _done, _total: None)
    _check_request(path, out, declared, samples=samples, data=data)
    foreign = read_foreign(path, declared)
    dataset = None
    if data is not None:
        dataset = read_dataset(data, cache_dir=cache_dir, progress=lambda done, of: report("read", done, of))
        if not dataset.labels.any():
            raise DatasetError(f"{data}: no defective images to calibrate with; give good ones alone as --samples")
    files = [item.source.path for item in dataset.items] if dataset else []
    pictures = [*files, *(_pictures(samples) if samples else [])]
    foreign, heard = hear(foreign, pictures, lambda done: report("original", done, len(pictures)))
    warnings: list[str] = []
    with tempfile.TemporaryDirectory(prefix="lineward-import-") as scratch:
        if dataset is not None:
            groups, found = _groups(dataset, cache_dir or Path(scratch), report)
            dataset = replace(dataset, warnings=found)
            fitted = calibrated(foreign, dataset, groups, heard, risk=risk or Risk(), seed=seed)
            warnings += dataset.warnings
            warnings.append(
                "the figures hold only if the model was not trained on these images, which an import cannot know"
            )
        else:
            fitted = uncalibrated(foreign, declared, heard)
        graph = wrap(foreign, fitted.calibration)
        draft = _manifest(foreign, fitted, dataset, product=product, version=version, warnings=tuple(warnings))
        trial = Path(scratch) / "trial.lward"
        save_bundle(trial, graph, draft)
        session = Session(trial)
        verdicts: list[Verdict] = []
        for done, file in enumerate(pictures, 1):
            verdicts.append(session.judge(read_image(file)))
            report("check", done, len(pictures))
    parity = _compare(fitted.calibration, heard, verdicts)
    if not parity.verdicts_equal or parity.max_abs_diff > PARITY_LIMIT:
        raise ForeignModelError(
            f"{path}: not written: wrapped it differs from the original on {parity.n} pictures (probabilities by up "
            f"to {parity.max_abs_diff:.2g}); please report this with the model"
        )
    update: dict[str, object] = {"parity": parity}
    if dataset is None:
        warnings.append(_uncalibrated_note(foreign, [verdict.decision for verdict in verdicts]))
        update["data"] = draft.data.model_copy(update={"warnings": tuple(warnings)})
    if dataset is not None and fitted.held is not None and fitted.groups is not None:
        shown = [verdicts[index] for index in fitted.held]
        update["holdout"] = measure(
            dataset.labels[fitted.held],
            np.array([verdict.defect_probability for verdict in shown]),
            [verdict.decision for verdict in shown],
            float(np.mean([milliseconds(verdict) for verdict in shown])),
            [dataset.kinds[index] for index in fitted.held],
            parts=fitted.groups[fitted.held],
        )
        if not draft.risk.supported:
            warnings.append(draft.risk.text)
    manifest = draft.model_copy(update=update)
    sha256 = save_bundle(out, graph, manifest)
    return ImportReport(out, sha256, manifest, dataset is not None, tuple(warnings))


def _check_request(path: Path, out: Path, declared: Declaration, *, samples: Path | None, data: Path | None) -> None:
    if declared.threshold is not None and (data is not None or declared.kind != "anomaly"):
        instead = "labelled images choose the limit" if data is not None else "it is the limit of an anomaly score"
        raise ForeignModelError(f"{path}: --threshold would change nothing, {instead}; leave it out")
    if samples is None and data is None:
        raise ForeignModelError(f"{path}: pictures to try it on are needed; give --samples DIR, better --data DIR")
    if out.exists() and path.exists() and out.samefile(path):
        raise ForeignModelError(f"{path}: --out names the model itself, which would be lost; give another file")
    check_output(out)


def _uncalibrated_note(foreign: Foreign, decisions: Sequence[Decision]) -> str:
    """Say what an import without labels does with the samples, most of which are good as a rule."""
    count = Counter(decisions)
    failed, passed = count[Decision.FAIL], count[Decision.PASS]
    doubt = "--threshold, --scaling" if foreign.kind == "anomaly" else "--classes, --good, --scaling"
    review = len(decisions) - failed - passed
    return (
        "not calibrated, for want of labelled images: its confidence means nothing yet; of the "
        f"{len(decisions)} sample images {failed} fail, {passed} pass and {review} go to review"
        + (f", so look at {doubt} again" if failed > len(decisions) / 2 else "")
        + "; import it again with --data before it judges"
    )


def _pictures(samples: Path) -> list[Path]:
    if samples.is_file():
        return [samples]
    found = find_images(samples)
    if not found:
        raise ForeignModelError(f"{samples}: no images there; give a folder with pictures of the product")
    step = ceil(len(found) / MAX_SAMPLES)
    return found[::step]


def _groups(dataset: Dataset, cache: Path, report: Progress) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    if dataset.groups_known:
        return dataset.groups, dataset.warnings
    spec = InputSpec(height=320, width=320, channels=1 if dataset.mono else 3, colour="mono" if dataset.mono else "rgb")
    store = FeatureStore(EfficientNetLite0(), spec, cache)
    pooled = store.extract(dataset.sources, progress=lambda done, of: report("likeness", done, of))
    return parts_of(dataset, pooled)


def _compare(
    calibration: Calibration,
    heard: Heard,
    verdicts: Sequence[Verdict],
) -> ParityRecord:
    """Compare the bundle with the original run by ONNX Runtime and calibrated in numpy, picture by picture."""
    bands = calibration.bands.thresholds()
    probabilities = calibration.platt(heard.scores)
    anomalies = calibration.ranks(heard.scores) if calibration.ranks else np.zeros(len(heard.scores))
    worst, equal = 0.0, True
    for blocks, probability, anomaly, verdict in zip(heard.blocks, probabilities, anomalies, verdicts, strict=True):
        worst = max(worst, abs(verdict.defect_probability - probability), abs(verdict.anomaly - anomaly))
        equal &= decide(float(probability), float(anomaly), bands)[0] is verdict.decision
        if blocks is not None and verdict.heatmap is not None:
            heat = expit((blocks - calibration.heat_centre) / calibration.heat_width)
            worst = max(worst, float(np.abs(heat - verdict.heatmap).max()))
    return ParityRecord(n=len(verdicts), max_abs_diff=float(worst), verdicts_equal=bool(equal))


def _manifest(
    foreign: Foreign,
    fitted: Fitted,
    dataset: Dataset | None,
    *,
    product: str,
    version: str | None,
    warnings: tuple[str, ...],
) -> Manifest:
    created = datetime.now(UTC)
    labels = dataset.labels if dataset else np.zeros(0, bool)
    train = labels[fitted.train] if fitted.train is not None else labels
    nothing = measure(np.zeros(0, bool), np.zeros(0), [], 0.0, parts=np.zeros(0, np.int64))
    return Manifest(
        product=product,
        version=version or created.strftime("%Y%m%d-%H%M%S"),
        created=created.isoformat(timespec="seconds").replace("+00:00", "Z"),
        tier="imported",
        input=foreign.spec,
        thresholds=fitted.calibration.bands,
        risk=fitted.promise,
        calibration=fitted.record,
        defect_types=foreign.defect_types,
        data=DataRecord(
            digest=dataset.digest if dataset else "",
            n_good=int((~labels).sum()),
            n_defect=int(labels.sum()),
            n_good_train=int((~train).sum()),
            n_defect_train=int(train.sum()),
            defect_types=dict(sorted(dataset.defect_types.items())) if dataset else {},
            groups=0 if fitted.groups is None else len(set(fitted.groups.tolist())),
            groups_known=dataset.groups_known if dataset else False,
            warnings=warnings,
            **fitted_on(dataset.items[index] for index in fitted.train) if dataset and fitted.train is not None else {},
        ),
        model=ModelRecord(
            backbone=f"imported: {foreign.path.name}",
            backbone_digest=_digest(foreign.path),
            head=foreign.kind,
            candidates={},
            heatmap="anomaly" if foreign.anomaly_map else "evidence",
        ),
        holdout=nothing,
        parity=ParityRecord(n=0, max_abs_diff=0.0, verdicts_equal=False),
        promotable=dataset is not None,
        not_promotable="" if dataset is not None else UNCALIBRATED_REASON,
        tools={
            "lineward": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
            "producer": f"{foreign.model.producer_name} {foreign.model.producer_version}".strip() or "unknown",
        },
    )


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
