"""The quick tier: frozen backbone, light head, calibration, all in one graph, in seconds on two cores."""

from __future__ import annotations

import hashlib
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
from lineward.models.bundle import load_bundle, save_bundle
from lineward.models.cache import trim_cache
from lineward.models.dataset import DatasetError
from lineward.models.duplicates import group_near_duplicates
from lineward.models.evaluate import milliseconds
from lineward.models.features import FeatureStore, append_features
from lineward.models.fit import fit_quick
from lineward.models.goodonly import fit_good_only
from lineward.models.graph import Graph
from lineward.models.incremental import compare_with_parent, read_training_set, remember_training_set
from lineward.models.manifest import draft_manifest
from lineward.models.metrics import measure
from lineward.models.prepare import InputSpec
from lineward.models.records import (
    Manifest,
    ParityRecord,
    Risk,
)
from lineward.models.session import Session
from lineward.models.sizes import candidate_sizes, choose_size
from lineward.models.verdict import decide

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from lineward.models.backbone import Backbone
    from lineward.models.dataset import Dataset
    from lineward.models.features import Source
    from lineward.models.fit import QuickModel
    from lineward.models.sizes import Size
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
        """Say what was reached to a person without a background in computer vision; see `Metrics.sentences`."""
        data, holdout = self.manifest.data, self.manifest.holdout
        first = (
            f"Trained on {data.n_good_train} good and {data.n_defect_train} defective images in {self.seconds:.0f} s; "
            f"tested on {holdout.n_good} and {holdout.n_defect} images, each by a model that never saw its part."
        )
        return [first, *(f"Note: {warning}." for warning in self.warnings), *holdout.sentences()]

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
    height: int | None = None,
    width: int | None = None,
    roi: tuple[float, float, float, float] | None = None,
    risk: Risk | None = None,
    version: str | None = None,
    threads: int = 2,
    backbone: Backbone | None = None,
    base: Path | None = None,
    base_data: Path | None = None,
) -> TrainReport:
    """Train a model from a folder and write it as a bundle, whole or not at all.

    The model is fitted on every image. The figures come from cross-fitting: each part is judged by a model that was
    fitted, calibrated and given thresholds without it (docs/decisions/0012).

    Parameters
    ----------
    data
        Folder with ``good/**``, ``defect/<type>/**`` and, better, ``groups.csv``. Without any defect the model knows
        good parts only. With ``base``: the new images alone.
    out
        The bundle file; replaced in one step, after everything else has succeeded.
    product
        Name of the product, for the manifest.
    cache_dir
        Where features and the lists of training images are kept by content; a second training computes only what is
        new. None: nothing is kept.
    progress
        Called with stage, done and total: ``read``, ``features``, ``fit``, ``check``.
    seed
        Decides every split; the same data and seed give the same model.
    height, width
        Model input in pixels; chosen from the data when not given.
    roi
        Region of interest x, y, width, height as fractions of the image.
    risk
        What the thresholds are asked to keep.
    version
        Version of the model; the time of training if not given.
    threads
        Cores to use.
    backbone
        Another pretrained network.
    base
        A bundle to start from: its training images are found again by their digests and used together with the new
        ones, its input size and region of interest are kept.
    base_data
        The folder the base was trained from, for when the cache no longer knows it.

    Raises
    ------
    DatasetError, WeightsError, BundleError
        One line each that names what is wrong and what to do.
    ParityError
        The exported model differs from the trained one.
    """
    started = perf_counter()
    report = progress or silent
    with tempfile.TemporaryDirectory(prefix="lineward-train-") as scratch, threadpool_limits(threads):
        cache = cache_dir or Path(scratch)
        parent = load_bundle(base) if base else None
        dataset = read_training_set(
            data,
            parent.manifest if parent else None,
            base_data,
            cache,
            threads,
            lambda done, total: report("read", done, total),
        )
        if parent and height is None and width is None:
            spec_of = parent.manifest.input
            height, width, roi = spec_of.height, spec_of.width, roi or spec_of.roi
        backbone = backbone or EfficientNetLite0()
        prepared = prepare_features(
            dataset,
            backbone,
            cache,
            size=(height or width or 0, width or height or 0) if height or width else None,
            roi=roi,
            seed=seed,
            threads=threads,
            progress=lambda done, total: report("features", done, total),
        )
        fit = fit_quick if dataset.labels.any() else fit_good_only
        model = fit(
            prepared.store,
            dataset.items,
            prepared.pooled,
            prepared.groups,
            risk=risk or Risk(),
            seed=seed,
            progress=lambda done, total: report("fit", done, total),
        )
        manifest = draft_manifest(
            dataset, prepared.spec, backbone, model, groups=prepared.groups, product=product, version=version
        )
        trial = Path(scratch) / "trial.lward"
        graph = build_graph(backbone, prepared.spec, model)
        save_bundle(trial, graph, manifest)
        checked = parity_images(dataset, seed)
        sources = [dataset.items[index].source for index in checked]
        verdicts = judge_with_bundle(trial, sources, threads, lambda done, total: report("check", done, total))
        trained = model.judge(prepared.store, sources, prepared.pooled[checked])
        parity = require_parity(out, trained, model.thresholds, verdicts)
        said = model.crossfit
        milliseconds_each = float(np.mean([milliseconds(verdict) for verdict in verdicts]))
        figures = measure(dataset.labels, said.probabilities, said.decisions, milliseconds_each, dataset.kinds)
        manifest = manifest.model_copy(
            update={
                "holdout": figures,
                "parity": parity,
                "model": manifest.model.model_copy(update={"sizes_tried": prepared.tried}),
            }
        )
        if parent:
            manifest = compare_with_parent(manifest, parent, dataset, said)
        sha256 = save_bundle(out, graph, manifest)
        remember_training_set(cache, dataset)
        trim_cache(cache, {source.digest for source in dataset.sources})
    return TrainReport(
        out, sha256, manifest, perf_counter() - started, (*dataset.warnings, *training_warnings(manifest))
    )


PARITY_IMAGES = 200
"""At most so many images, of both kinds, are judged by the exported graph and compared."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Features of a data set at the input size that was given or chosen."""

    spec: InputSpec
    store: FeatureStore
    pooled: NDArray[np.float32]
    groups: NDArray[np.int64]
    tried: dict[str, float]


def prepare_features(
    dataset: Dataset,
    backbone: Backbone,
    cache: Path,
    *,
    size: Size | None,
    roi: tuple[float, float, float, float] | None,
    seed: int,
    threads: int,
    progress: Callable[[int, int], None],
) -> Prepared:
    """Compute features at each candidate size, choose one, and group images that look the same if nobody has."""
    channels = 1 if dataset.mono else 3
    colour = "mono" if dataset.mono else "rgb"
    labels = dataset.labels
    sizes = [size] if size else candidate_sizes(dataset.sources, roi)
    if not labels.any():
        sizes = sizes[-1:]  # without defects there is nothing to compare by; what is finer can only show more
    found: dict[Size, tuple[InputSpec, FeatureStore, NDArray[np.float32]]] = {}
    total = len(sizes) * len(dataset.items)
    for number, (height, width) in enumerate(sizes):
        spec = InputSpec(height=height, width=width, channels=channels, colour=colour, roi=roi)
        store = FeatureStore(backbone, spec, cache, threads=threads)
        ticked = _from(progress, number * len(dataset.items), total)
        pooled = store.extract(dataset.sources, progress=ticked)
        found[height, width] = spec, store, pooled
    groups = dataset.groups
    if not dataset.groups_known:
        groups = group_near_duplicates(next(iter(found.values()))[2], groups, labels)
    _check_parts(labels, groups)
    chosen = sizes[0]
    figures: dict[Size, float] = {}
    if len(sizes) > 1:
        chosen, figures = choose_size({size: entry[2] for size, entry in found.items()}, labels, groups, seed)
    spec, store, pooled = found[chosen]
    return Prepared(spec, store, pooled, groups, {f"{h}x{w}": figure for (h, w), figure in figures.items()})


def _from(progress: Callable[[int, int], None], before: int, total: int) -> Callable[[int, int], None]:
    """Go on counting where the last size ended."""
    return lambda done, _: progress(before + done, total)


def _check_parts(labels: NDArray[np.bool_], groups: NDArray[np.int64]) -> None:
    for name, kind in (("good", ~labels), ("defective", labels)):
        if kind.any() and len(set(groups[kind].tolist())) < 2:
            raise DatasetError(f"all {name} images show one and the same part; add images of other parts")


def parity_images(dataset: Dataset, seed: int) -> NDArray[np.int64]:
    """Choose the images on which the exported graph is compared with the trained model.

    Images of a base may have been moved or overwritten since; only files that still have their content are compared.
    """
    order = np.random.default_rng(seed).permutation(len(dataset.items)).tolist()
    most = min(PARITY_IMAGES, max(len(order) // 5, 20))
    found: list[int] = []
    for index in order:
        if len(found) == most:
            break
        if _is_there(dataset.items[index].source):
            found.append(index)
    if not found:
        raise DatasetError(f"{dataset.folder}: no image can be read any more, so the model cannot be checked")
    return np.array(sorted(found), np.int64)


def _is_there(source: Source) -> bool:
    try:
        return hashlib.sha256(source.path.read_bytes()).hexdigest() == source.digest
    except OSError:
        return False


def require_parity(
    out: Path,
    trained: tuple[NDArray[np.float64], NDArray[np.float64]],
    thresholds: Thresholds,
    verdicts: Sequence[Verdict],
) -> ParityRecord:
    """Compare exported with trained model, or refuse to go on."""
    parity = _compare(trained, thresholds, verdicts)
    if not parity.verdicts_equal or parity.max_abs_diff > PARITY_LIMIT:
        raise ParityError(
            f"{out}: not written: the exported model differs from the trained one on {parity.n} images "
            f"(probabilities by up to {parity.max_abs_diff:.2g}); please report this with the data"
        )
    return parity


def silent(_stage: str, _done: int, _total: int) -> None:
    """Report no progress."""


def training_warnings(manifest: Manifest) -> Sequence[str]:
    """Say what the data does not support, and whether the model may be promoted."""
    said = [] if manifest.risk.supported else [manifest.risk.text]
    if not manifest.promotable:
        said.append(f"not promotable: {manifest.not_promotable}")
    return said


def build_graph(backbone: Backbone, spec: InputSpec, model: QuickModel) -> bytes:
    """Put backbone, head, calibration, anomaly, heat-map and types into one graph; returns the serialised model."""
    graph = Graph()
    tensors = append_features(graph, backbone, spec)
    model.append(graph, tensors)
    return bytes(graph.model("lineward", __version__).SerializeToString())


def judge_with_bundle(
    bundle: Path, sources: Sequence[Source], threads: int, progress: Callable[[int, int], None]
) -> list[Verdict]:
    """Judge files with an exported bundle, several at a time, each on one core."""
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
