"""The quick tier: frozen backbone, light head, calibration, all in one graph, in seconds on two cores."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from lineward.models.backbone import EfficientNetLite0
from lineward.models.bootstrap import LEAST, Maker
from lineward.models.bundle import check_output, load_bundle, save_bundle
from lineward.models.cache import trim_cache
from lineward.models.check_set import find_files
from lineward.models.dataset import DatasetError
from lineward.models.duplicates import parts_of
from lineward.models.export import build_graph, check_export, require_like_float
from lineward.models.features import FeatureStore
from lineward.models.fit import fit_quick
from lineward.models.goodonly import fit_good_only
from lineward.models.incremental import compare_with_parent, read_training_set, remember_training_set
from lineward.models.int8 import Int8Lite0, int8_backbone
from lineward.models.manifest import draft_manifest
from lineward.models.metrics import measure
from lineward.models.prepare import InputSpec
from lineward.models.records import (
    Manifest,
    Risk,
)
from lineward.models.sizes import candidate_sizes, choose_size
from lineward.models.workers import limit_threads

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from lineward.models.backbone import Backbone
    from lineward.models.dataset import Dataset
    from lineward.models.fit import QuickModel
    from lineward.models.sizes import Size

    Progress = Callable[[str, int, int], None]


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
    int8: bool = False,
    synthetic: int = 0,
    overlays: Path | None = None,
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
        What the thresholds are asked to keep; without it what the base was asked for, or the usual.
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
    int8
        Quantise the backbone, and fit on what the quantised one gives; a base in int8 stays so.
    synthetic, overlays
        How many made-up defects to learn from besides good images alone, and the training folder of a similar product
        whose defects are pasted; see `lineward.models.bootstrap`.

    Raises
    ------
    DatasetError, WeightsError, BundleError
        One line each that names what is wrong and what to do.
    ParityError
        The exported model differs from the trained one, or the one in int8 is worse than in float32.
    """
    check_output(out)
    started = perf_counter()
    report = progress or silent
    with tempfile.TemporaryDirectory(prefix="lineward-train-") as scratch, limit_threads(threads):
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
        read = dataset  # what is found out about this training is no word about the next one's images
        _check_synthetic(dataset, synthetic, based=parent is not None)
        if parent and height is None and width is None:
            spec_of = parent.manifest.input
            height, width, roi = spec_of.height, spec_of.width, roi or spec_of.roi
        asked = risk or (parent.manifest.risk.asked if parent else Risk())
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
        dataset = replace(dataset, warnings=prepared.warnings)
        if synthetic:
            note = f"{synthetic} made-up defects were learnt from; none stands where figures are taken"
            dataset = replace(dataset, warnings=(*dataset.warnings, note))
        maker = Maker(synthetic, overlays, seed, partial(report, "making up defects")) if synthetic else None

        def fitted(on: Prepared, network: Backbone, stage: str) -> QuickModel:
            make_up = partial(maker.make, network, on.spec, dataset.items, threads) if maker else None
            fit = fit_quick if dataset.labels.any() else partial(fit_good_only, make_up=make_up)
            return fit(
                on.store,
                dataset.items,
                on.pooled,
                on.groups,
                risk=asked,
                seed=seed,
                progress=lambda done, total: report(stage, done, total),
            )

        model = fitted(prepared, backbone, "fit")
        auroc_fp32 = None
        if int8 or (parent and parent.manifest.model.precision == "int8"):
            known = parent.manifest.model.backbone_digest if parent else ""
            backbone = int8_backbone(
                backbone, prepared.spec, dataset, cache, known, lambda done, total: report("ranges", done, total)
            )
            store = FeatureStore(backbone, prepared.spec, cache, threads=threads)
            pooled = store.extract(
                dataset.sources, progress=lambda done, total: report("features in int8", done, total)
            )
            prepared = replace(prepared, store=store, pooled=pooled)
            full, model = model, fitted(prepared, backbone, "fit in int8")
            auroc_fp32 = require_like_float(out, dataset.labels, full.crossfit, model.crossfit)
        manifest = draft_manifest(
            dataset, prepared.spec, backbone, model, groups=prepared.groups, product=product, version=version
        )
        exported = build_graph(backbone, prepared.spec, model)
        progress_of_check = partial(report, "check")
        checked = check_export(
            out, exported, manifest, model, prepared, dataset=dataset, seed=seed, progress=progress_of_check
        )
        said = model.crossfit
        figures = measure(
            dataset.labels,
            said.probabilities,
            said.decisions,
            checked.milliseconds,
            dataset.kinds,
            parts=prepared.groups,
        )
        manifest = manifest.model_copy(
            update={
                "holdout": figures,
                "data": manifest.data.model_copy(update={"n_made_up": synthetic}),
                "parity": checked.parity.model_copy(update={"auroc_fp32": auroc_fp32}),
                "model": manifest.model.model_copy(
                    update={
                        "sizes_tried": prepared.tried,
                        "precision": "int8" if isinstance(backbone, Int8Lite0) else "fp32",
                    }
                ),
            }
        )
        if parent:
            manifest = compare_with_parent(manifest, parent, dataset, said, prepared.groups)
        remember_training_set(cache, read)
        sha256 = save_bundle(out, exported.graph, manifest)
        trim_cache(cache, {source.digest for source in dataset.sources})
    return TrainReport(out, sha256, manifest, perf_counter() - started, training_warnings(dataset, manifest))


def _check_synthetic(dataset: Dataset, count: int, *, based: bool) -> None:
    real = int(dataset.labels.sum())
    if count and real:
        raise DatasetError(
            f"{dataset.folder}: --synthetic is for a product without any defect, and there are {real} defective "
            f"images{' with those of --base' if based else ''}; leave it out: beside real defects made-up ones brought "
            "nothing"
        )
    if 0 < count < LEAST:
        raise DatasetError(f"--synthetic {count}: too few to learn from; at least {LEAST}, better 200 to 400")


@dataclass(frozen=True, slots=True)
class Prepared:
    """Features of a data set at the input size that was given or chosen, and what is to be said about its groups."""

    spec: InputSpec
    store: FeatureStore
    pooled: NDArray[np.float32]
    groups: NDArray[np.int64]
    tried: dict[str, float]
    warnings: tuple[str, ...]


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
    sizes, finer = ([size], None) if size else candidate_sizes(dataset.sources, roi)
    if not labels.any():
        sizes, finer = sizes[-1:], None  # without defects there is nothing to compare by; what is finer can show more
    found: dict[Size, tuple[InputSpec, FeatureStore, NDArray[np.float32]]] = {}

    def extract(size: Size) -> NDArray[np.float32]:
        spec = InputSpec(height=size[0], width=size[1], channels=channels, colour=colour, roi=roi)
        store = FeatureStore(backbone, spec, cache, threads=threads)
        count = len(dataset.items)
        ticked = _from(progress, len(found) * count, max(len(sizes), len(found) + 1) * count)
        found[size] = spec, store, store.extract(dataset.sources, progress=ticked)
        return found[size][2]

    def compare() -> tuple[Size, dict[Size, float]]:
        if len(found) == 1:
            return sizes[0], {}
        pooled = {size: entry[2] for size, entry in found.items()}
        return choose_size(pooled, labels, groups, seed, threads=threads)

    groups, warnings = parts_of(dataset, extract(sizes[0]))
    _check_parts(labels, groups)
    for other in sizes[1:]:
        extract(other)
    chosen, figures = compare()
    if finer is not None and chosen == sizes[-1]:
        extract(finer)
        chosen, figures = compare()
    spec, store, pooled = found[chosen]
    tried = {f"{h}x{w}": figure for (h, w), figure in figures.items()}
    return Prepared(spec, store, pooled, groups, tried, warnings)


def _from(progress: Callable[[int, int], None], before: int, total: int) -> Callable[[int, int], None]:
    """Go on counting where the last size ended."""
    return lambda done, _: progress(before + done, total)


def _check_parts(labels: NDArray[np.bool_], groups: NDArray[np.int64]) -> None:
    for name, kind in (("good", ~labels), ("defective", labels)):
        if kind.any() and len(set(groups[kind].tolist())) < 2:
            raise DatasetError(f"all {name} images show one and the same part; add images of other parts")


def silent(_stage: str, _done: int, _total: int) -> None:
    """Report no progress."""


def training_warnings(dataset: Dataset, manifest: Manifest) -> tuple[str, ...]:
    """Say what is odd about the files, what the data does not support, and whether the model may be promoted."""
    said = list(dataset.warnings)
    odd = (found for found in find_files(dataset) if found.level != "ok" and found.id != "channels")  # said by the set
    said += [found.text for found in odd]
    said += [] if manifest.risk.supported else [manifest.risk.text]
    if not manifest.promotable:
        said.append(f"not promotable: {manifest.not_promotable}")
    return tuple(said)
