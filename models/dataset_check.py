"""What a folder of labelled images lacks, before anybody trains on it: each finding a sentence with its remedy."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lineward.models.backbone import EfficientNetLite0
from lineward.models.check_pictures import find_coverage, find_likeness
from lineward.models.check_set import find_amounts, find_files, find_labels, find_shortcuts
from lineward.models.dataset import DatasetError, find_images, read_dataset
from lineward.models.duplicates import parts_of
from lineward.models.features import FeatureStore
from lineward.models.learning_curve import LearningCurve, learning_curve
from lineward.models.prepare import InputSpec
from lineward.models.workers import limit_threads

if TYPE_CHECKING:
    from collections.abc import Callable

    from lineward.models.backbone import Backbone
    from lineward.models.findings import Finding

    Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Everything that was found out about a data folder."""

    folder: Path
    n_good: int
    n_defect: int
    parts: int
    groups_known: bool
    findings: tuple[Finding, ...]
    curve: LearningCurve | None

    @property
    def fine(self) -> bool:
        """Whether nothing is wrong; what is merely worth a look does not count."""
        return all(finding.level != "problem" for finding in self.findings)

    def to_json(self) -> dict[str, object]:
        """Return what `lineward dataset check --json` prints."""
        return {
            "data": str(self.folder),
            "fine": self.fine,
            "n_good": self.n_good,
            "n_defect": self.n_defect,
            "parts": self.parts,
            "groups_known": self.groups_known,
            "findings": [asdict(finding) for finding in self.findings],
            "learning_curve": self.curve.to_json() if self.curve else None,
            "forecast": self.curve.sentences() if self.curve else [],
        }


def check_dataset(
    folder: Path,
    *,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    seed: int = 0,
    threads: int = 2,
    production: Path | None = None,
    curve: bool = True,
    backbone: Backbone | None = None,
) -> CheckReport:
    """Look at a data folder from every side.

    Parameters
    ----------
    folder
        As for training.
    cache_dir
        Where features and facts are kept by content; training uses the same.
    progress
        Called with stage, done and total.
    seed
        Decides folds and splits.
    threads
        Cores to use.
    production
        Pictures from the line without labels, to compare exposure and position with.
    curve
        Whether to fit the learning curve, which takes most of the time.
    backbone
        Another pretrained network.

    Raises
    ------
    DatasetError
        The folder cannot be used at all; one line with the name and the remedy.
    """
    report: Progress = progress or (lambda _stage, _done, _total: None)
    with tempfile.TemporaryDirectory(prefix="lineward-check-") as scratch, limit_threads(threads):
        cache = cache_dir or Path(scratch)
        dataset = read_dataset(
            folder,
            cache_dir=cache,
            progress=lambda done, of: report("read", done, of),
            threads=threads,
            conflicts="keep",
        )
        labels = dataset.labels
        mono = dataset.mono
        spec = InputSpec(height=320, width=320, channels=1 if mono else 3, colour="mono" if mono else "rgb")
        store = FeatureStore(backbone or EfficientNetLite0(), spec, cache, threads=threads)
        pooled = store.extract(dataset.sources, progress=lambda done, of: report("features", done, of))
        groups, warnings = parts_of(dataset, pooled)
        dataset = replace(dataset, warnings=warnings)
        report("look", 0, 3)
        findings = [
            *find_amounts(dataset, groups),
            *find_labels(dataset),
            *find_likeness(dataset, pooled),
            *find_files(dataset),
        ]
        report("look", 1, 3)
        if labels.any():
            findings += find_shortcuts(dataset, pooled, groups, seed)
        report("look", 2, 3)
        findings += find_coverage(dataset, _pictures(production) if production else None)
        report("look", 3, 3)
        found = None
        if curve and labels.any():
            found = learning_curve(
                pooled,
                labels,
                groups,
                [item.defect_type for item in dataset.items],
                seed=seed,
                progress=lambda done, of: report("learning curve", done, of),
            )
    order = {"problem": 0, "note": 1, "ok": 2}
    findings.sort(key=lambda finding: order[finding.level])
    n_defect = int(labels.sum())
    return CheckReport(
        folder,
        len(labels) - n_defect,
        n_defect,
        len(set(groups.tolist())),
        dataset.groups_known,
        tuple(findings),
        found,
    )


def _pictures(folder: Path) -> list[Path]:
    found = find_images(folder)
    if not found:
        raise DatasetError(f"{folder}: no images there; give a folder with pictures from the line")
    return found
