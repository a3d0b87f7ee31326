"""The full tier: the quick tier, and beside it a tuned network that has to earn its weight on parts it never saw.

The quick tier's out-of-fold score and the score of networks that did not know a part are compared at the working point,
and the weight of the tuned network is chosen; nothing is its weight when it does not help. Docs/decisions/0013 has what
was measured.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from lineward.models.backbone import EfficientNetLite0
from lineward.models.bundle import check_output, load_bundle, save_bundle
from lineward.models.cache import trim_cache
from lineward.models.dataset import DatasetError
from lineward.models.export import build_graph, check_export
from lineward.models.features import FLIPS
from lineward.models.fit import fit_quick
from lineward.models.incremental import (
    compare_with_parent,
    read_training_set,
    remember_training_set,
    require_files,
)
from lineward.models.manifest import draft_manifest
from lineward.models.metrics import measure
from lineward.models.quick import TrainReport, prepare_features, silent, training_warnings
from lineward.models.records import Risk
from lineward.models.tuned_net import TunedNet, early_maps, load_tail
from lineward.models.tuning import Tuning, keep_from_tuning, plan_tuning, tuning_key
from lineward.models.weighing import weigh
from lineward.models.workers import limit_threads

if TYPE_CHECKING:
    from lineward.models.quick import Progress

TUNING_S = 360.0
"""What tuning may take: with everything around it ten minutes for 1,000 images on two cores."""


def train_full(  # noqa: PLR0915 - one step after the other
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
    base: Path | None = None,
    base_data: Path | None = None,
    tuning_s: float = TUNING_S,
) -> TrainReport:
    """Train both tiers and weigh them; see `lineward.models.quick.train_quick` for what is not here.

    Parameters
    ----------
    progress
        Called with stage, done and total: ``read``, ``features``, ``fit``, ``maps``, ``tune``,
        ``tune on all``, ``check``.
    tuning_s
        Seconds that tuning may take.

    Raises
    ------
    TorchMissingError
        Torch is not installed; said before anything else is done.
    DatasetError
        As for the quick tier; and when there are no defects, from which alone a network could be tuned.
    """
    tail = load_tail()
    check_output(out)
    started = perf_counter()
    report = progress or silent
    with tempfile.TemporaryDirectory(prefix="lineward-train-") as scratch, limit_threads(threads):
        tail.use_threads(threads)
        cache = cache_dir or Path(scratch)
        parent = load_bundle(base) if base else None
        dataset = read_training_set(
            data, parent.manifest if parent else None, base_data, cache, threads, partial(report, "read")
        )
        read = dataset
        if not dataset.labels.any():
            raise DatasetError(f"{data}: no defective images, so nothing to tune a network with; use --tier quick")
        if parent:
            require_files(dataset)
        if parent and height is None and width is None:
            usual = parent.manifest.input
            height, width, roi = usual.height, usual.width, roi or usual.roi
        backbone = EfficientNetLite0()
        prepared = prepare_features(
            dataset,
            backbone,
            cache,
            size=(height or width or 0, width or height or 0) if height or width else None,
            roi=roi,
            seed=seed,
            threads=threads,
            progress=partial(report, "features"),
        )
        dataset = replace(dataset, warnings=prepared.warnings)
        asked = risk or (parent.manifest.risk.asked if parent else Risk())
        quick = fit_quick(
            prepared.store,
            dataset.items,
            prepared.pooled,
            prepared.groups,
            risk=asked,
            seed=seed,
            progress=partial(report, "fit"),
        )
        labels = dataset.labels
        held = keep_from_tuning(labels, prepared.groups, seed)
        if held is None:
            raise DatasetError(
                f"{data}: too few parts that can be told apart for --tier full, which keeps at least two good and two "
                "defective ones away from tuning; name the parts in groups.csv, add others, or use --tier quick"
            )
        device = tail.pick_device()
        untuned = tail.start(backbone.tensors, device=device)
        maps = early_maps(
            backbone, prepared.spec, dataset.sources, Path(scratch), list(FLIPS), threads, partial(report, "maps")
        )
        key = tuning_key(dataset.digest, prepared.groups, prepared.spec, seed, tuning_s)
        tuning = Tuning(maps, labels, untuned, device, seed, cache / "tuning", key)
        step_s = tuning.step_seconds()
        plan = plan_tuning(held, labels, prepared.groups, seed, step_s=step_s, seconds=tuning_s, batch=tail.BATCH)
        scores, deployed, epochs = tuning.run(plan, report)
        held = plan.judged
        model, figures = weigh(quick, scores[held], held, labels, prepared.groups, asked, seed)
        if model is not quick:
            model = replace(model, tuned=TunedNet.of(deployed(), backbone, prepared.spec, device))
        manifest = draft_manifest(
            dataset,
            prepared.spec,
            backbone,
            model,
            groups=prepared.groups,
            product=product,
            version=version,
            tier="full",
        )
        exported = build_graph(backbone, prepared.spec, model)
        progress_of_check = partial(report, "check")
        checked = check_export(
            out, exported, manifest, model, prepared, dataset=dataset, seed=seed, progress=progress_of_check
        )
        if model is quick:  # as it is, with its figures of all parts
            held = np.ones(len(labels), bool)
        said = model.crossfit
        decisions = [decision for decision, kept in zip(said.decisions, held, strict=True) if kept]
        kinds = [kind for kind, kept in zip(dataset.kinds, held, strict=True) if kept]
        holdout = measure(
            labels[held],
            said.probabilities[held],
            decisions,
            checked.milliseconds,
            kinds,
            parts=prepared.groups[held],
        )
        record = manifest.model.model_copy(
            update={"sizes_tried": prepared.tried, "candidates": quick.candidates | figures, "tuning_epochs": epochs}
        )
        manifest = manifest.model_copy(update={"holdout": holdout, "parity": checked.parity, "model": record})
        if model is not quick:
            calibration = manifest.calibration.model_copy(
                update={
                    "n": int(held.sum()),
                    "folds": len(plan.apart),
                    "defect_share": float(labels[held].mean()),
                }
            )
            figures_from = manifest.data.model_copy(update={"figures": "crossfit" if plan.crossed else "holdout"})
            manifest = manifest.model_copy(update={"calibration": calibration, "data": figures_from})
        if parent:
            manifest = compare_with_parent(manifest, parent, dataset, said, prepared.groups, judged=held)
        remember_training_set(cache, read)
        sha256 = save_bundle(out, exported.graph, manifest)
        tuning.forget()
        trim_cache(cache, {source.digest for source in dataset.sources})
    return TrainReport(out, sha256, manifest, perf_counter() - started, training_warnings(dataset, manifest))
