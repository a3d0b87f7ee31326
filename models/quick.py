"""The quick tier: frozen backbone, light head, calibration, all in one graph, in seconds on two cores."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from lineward import __version__
from lineward.images import read_image
from lineward.models.backbone import EfficientNetLite0
from lineward.models.bundle import save_bundle
from lineward.models.dataset import read_dataset, split_holdout
from lineward.models.duplicates import group_near_duplicates
from lineward.models.evaluate import milliseconds
from lineward.models.features import FeatureStore, append_features
from lineward.models.fit import fit_quick
from lineward.models.graph import Graph
from lineward.models.manifest import draft_manifest
from lineward.models.metrics import measure
from lineward.models.prepare import InputSpec
from lineward.models.records import (
    Manifest,
    ParityRecord,
    Risk,
)
from lineward.models.session import Session
from lineward.models.verdict import decide

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from lineward.models.backbone import Backbone
    from lineward.models.features import Source
    from lineward.models.fit import QuickModel
    from lineward.models.records import Metrics
    from lineward.models.verdict import Thresholds, Verdict

    Progress = Callable[[str, int, int], None]

PARITY_LIMIT = 1e-3
"""Largest difference of a probability between trained and exported model; float32 sums differ by about 1e-5."""


class ParityError(RuntimeError):
    """The exported graph does not say what the trained model says; nothing was written."""


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What a training gave."""

    model: Path
    sha256: str
    manifest: Manifest
    seconds: float
    warnings: tuple[str, ...]

    def sentences(self) -> list[str]:
        """Say what was reached to a person without a background in computer vision, warnings last."""
        data, holdout = self.manifest.data, self.manifest.holdout
        first = (
            f"Trained on {data.n_good_train} good and {data.n_defect_train} defective images in {self.seconds:.0f} s; "
            f"tested on {holdout.n_good} and {holdout.n_defect} images of other parts."
        )
        return [first, *holdout.sentences(), *(f"Note: {warning}." for warning in self.warnings)]

    def to_json(self) -> dict[str, object]:
        """Return what `lineward train --json` prints."""
        data, parity = self.manifest.data, self.manifest.parity
        return {
            "model": str(self.model),
            "tier": self.manifest.tier,
            "n_good": data.n_good,
            "n_defect": data.n_defect,
            "seconds": self.seconds,
            "holdout": self.manifest.holdout.to_json(),
            "parity": {"max_abs_diff": parity.max_abs_diff, "verdicts_equal": parity.verdicts_equal},
        }


def train_quick(
    data: Path,
    out: Path,
    *,
    product: str,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    seed: int = 0,
    height: int = 320,
    width: int = 320,
    roi: tuple[float, float, float, float] | None = None,
    risk: Risk | None = None,
    holdout_share: float = 0.2,
    version: str | None = None,
    threads: int = 2,
    backbone: Backbone | None = None,
) -> TrainReport:
    """Train a model from a folder and write it as a bundle, whole or not at all.

    Parameters
    ----------
    data
        Folder with ``good/**``, ``defect/<type>/**`` and, better, ``groups.csv``.
    out
        The bundle file; replaced in one step, after everything else has succeeded.
    product
        Name of the product, for the manifest.
    cache_dir
        Where features are kept by content; a second training computes only what is new. None: nothing is kept.
    progress
        Called with stage, done and total: ``read``, ``features``, ``fit``, ``check``.
    seed
        Decides every split; the same data and seed give the same model.
    height, width
        Model input in pixels.
    roi
        Region of interest x, y, width, height as fractions of the image.
    risk
        What the thresholds are asked to keep.
    holdout_share
        Share of the parts that are never fitted on and give the reported figures.
    version
        Version of the model; the time of training if not given.
    threads
        Cores to use.
    backbone
        Another pretrained network.

    Raises
    ------
    DatasetError, WeightsError, BundleError
        One line each that names what is wrong and what to do.
    ParityError
        The exported model differs from the trained one.
    """
    started = perf_counter()
    report = progress or _silent
    with tempfile.TemporaryDirectory(prefix="lineward-train-") as scratch, threadpool_limits(threads):
        cache = cache_dir or Path(scratch)
        dataset = read_dataset(
            data, cache_dir=cache, progress=lambda done, total: report("read", done, total), threads=threads
        )
        channels = 1 if dataset.mono else 3
        spec = InputSpec(
            height=height, width=width, channels=channels, colour="mono" if dataset.mono else "rgb", roi=roi
        )
        backbone = backbone or EfficientNetLite0()
        store = FeatureStore(backbone, spec, cache, threads=threads)
        pooled = store.extract(dataset.sources, progress=lambda done, total: report("features", done, total))
        groups = dataset.groups
        if not dataset.groups_known:
            groups = group_near_duplicates(pooled, groups, dataset.labels)
        train, held = split_holdout(dataset.labels, groups, holdout_share, seed)
        model = fit_quick(
            store,
            [dataset.items[index] for index in train],
            pooled[train],
            groups[train],
            risk=risk or Risk(),
            seed=seed,
            progress=lambda done, total: report("fit", done, total),
        )
        graph = build_graph(backbone, spec, model)
        draft = draft_manifest(dataset, train, spec, backbone, model, groups=groups, product=product, version=version)
        trial = Path(scratch) / "trial.lward"
        save_bundle(trial, graph, draft)
        held_sources = [dataset.items[index].source for index in held]
        verdicts = _judge(trial, held_sources, threads, lambda done, total: report("check", done, total))
        parity = _compare(model.judge(pooled[held], store.patches(held_sources)), model.thresholds, verdicts)
        if not parity.verdicts_equal or parity.max_abs_diff > PARITY_LIMIT:
            raise ParityError(
                f"{out}: not written: the exported model differs from the trained one on {parity.n} held-out images "
                f"(probabilities by up to {parity.max_abs_diff:.2g}); please report this with the data"
            )
        manifest = draft.model_copy(update={"holdout": _measure(dataset.labels[held], verdicts), "parity": parity})
        sha256 = save_bundle(out, graph, manifest)
    return TrainReport(out, sha256, manifest, perf_counter() - started, (*dataset.warnings, *_warnings(manifest)))


def _silent(_stage: str, _done: int, _total: int) -> None:
    pass


def _warnings(manifest: Manifest) -> Sequence[str]:
    return () if manifest.risk.supported else (manifest.risk.text,)


def build_graph(backbone: Backbone, spec: InputSpec, model: QuickModel) -> bytes:
    """Put backbone, head, calibration, anomaly, heat-map and types into one graph; returns the serialised model."""
    graph = Graph()
    tensors = append_features(graph, backbone, spec)
    model.append(graph, tensors)
    return bytes(graph.model("lineward", __version__).SerializeToString())


def _judge(
    bundle: Path, sources: Sequence[Source], threads: int, progress: Callable[[int, int], None]
) -> list[Verdict]:
    session = Session(bundle, intra_op_threads=1)
    verdicts: list[Verdict] = []
    with ThreadPoolExecutor(threads, thread_name_prefix="check") as pool:
        for verdict in pool.map(lambda source: session.judge(read_image(source.path)), sources):
            verdicts.append(verdict)
            progress(len(verdicts), len(sources))
    return verdicts


def _compare(
    trained: tuple[NDArray[np.float64], NDArray[np.float64]], thresholds: Thresholds, verdicts: Sequence[Verdict]
) -> ParityRecord:
    """Compare the exported graph with the trained model computed in numpy, image by image."""
    probabilities, anomalies = trained
    given = np.array([[verdict.defect_probability, verdict.anomaly] for verdict in verdicts])
    difference = np.abs(given - np.stack(trained, axis=1)).max()
    expected = [
        decide(float(probability), float(anomaly), thresholds)[0]
        for probability, anomaly in zip(probabilities, anomalies, strict=True)
    ]
    equal = expected == [verdict.decision for verdict in verdicts]
    return ParityRecord(n=len(verdicts), max_abs_diff=float(difference), verdicts_equal=equal)


def _measure(labels: NDArray[np.bool_], verdicts: Sequence[Verdict]) -> Metrics:
    return measure(
        labels,
        np.array([verdict.defect_probability for verdict in verdicts]),
        [verdict.decision for verdict in verdicts],
        float(np.mean([milliseconds(verdict) for verdict in verdicts])),
    )
