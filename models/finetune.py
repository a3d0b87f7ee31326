"""The full tier: the quick tier, and beside it a tuned network that has to earn its weight on parts it never saw.

One fold of parts is kept from the tuning. There the quick tier's out-of-fold score and the tuned network's score are
compared at the working point, and the weight of the tuned network is chosen; nothing is its weight when it does not
help. Docs/decisions/0013 has what was measured.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from lineward import __version__
from lineward.images import read_image
from lineward.models.backbone import LITE0_SHA256, EfficientNetLite0
from lineward.models.bundle import load_bundle, save_bundle
from lineward.models.cache import trim_cache
from lineward.models.calibrate import choose_thresholds, fit_platt
from lineward.models.dataset import DatasetError, grouped_folds
from lineward.models.evaluate import milliseconds
from lineward.models.export import build_graph, judge_with_bundle, parity_images, require_parity
from lineward.models.features import FLIPS, append_features
from lineward.models.fit import Blend, Crossfit, fit_quick, working_figures
from lineward.models.graph import Graph
from lineward.models.incremental import compare_with_parent, read_training_set, remember_training_set
from lineward.models.manifest import draft_manifest
from lineward.models.metrics import calibration_error, measure
from lineward.models.prepare import prepare
from lineward.models.quick import Prepared, TrainReport, prepare_features, silent, training_warnings
from lineward.models.records import Risk
from lineward.models.verdict import decide

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from lineward.models.dataset import Dataset
    from lineward.models.features import FeatureTensors, Source
    from lineward.models.fit import QuickModel
    from lineward.models.prepare import InputSpec
    from lineward.models.quick import Progress
    from lineward.models.verdict import Decision

TUNED = "tuned"
WEIGHTS = (0.0, 0.5, 1.0, 2.0)
"""Of the tuned network against the quick tier's score, both standardised."""
USUAL_WEIGHT, GAIN = 1.0, 0.02
"""Another weight than the usual one must be better by this much in AUROC plus detection: a fold has few parts."""
TUNING_S = 360.0
"""What tuning may take: with everything around it ten minutes for 1,000 images on two cores."""
PROBE_C = 0.01


class TorchMissingError(ValueError):
    """The full tier needs torch."""


def _tail() -> Any:
    try:
        from lineward.models import tail  # noqa: PLC0415 - torch is an extra
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] == "torch":
            raise TorchMissingError(
                "--tier full needs torch, which is not installed; install it with `pip install 'lineward[train]'`, "
                "or use --tier quick"
            ) from error
        raise
    return tail


@dataclass(frozen=True, slots=True)
class TunedNet:
    """The tuned network: tensors by name, head ``(centre, spread, weight)`` on mean and maximum, and its bias."""

    backbone: EfficientNetLite0
    spec: InputSpec
    tensors: dict[str, NDArray[np.generic]]
    head: tuple[NDArray[np.float32], ...]
    bias: float
    trained: Any
    device: str

    def score(self, sources: Sequence[Source]) -> NDArray[np.float64]:
        """Return raw scores as torch gives them."""
        maps = _early_maps(self.backbone, self.spec, sources, None, ["none"], 2, lambda _done, _total: None)
        return np.asarray(_tail().scores(self.trained, maps[0], range(len(sources)), device=self.device))

    def append(self, graph: Graph, tensors: FeatureTensors) -> str:
        """Add the network to a graph behind the stride-4 map that the frozen one computes as well; gives ``(N, 1)``."""
        early = next(tap for tap in tensors.taps if tap.name == "stride4")
        tap = self.backbone.append_tail(graph, early, self.tensors, _tail().FIRST_BLOCK)
        mean = graph.op("ReduceMean", tap.tensor, axes=[2, 3], keepdims=0, hint="tuned.mean")
        highest = graph.op("ReduceMax", tap.tensor, axes=[2, 3], keepdims=0, hint="tuned.max")
        pooled = graph.op("Concat", mean, highest, axis=1, hint="tuned.pooled")
        centre, spread, weight = self.head
        scaled = graph.op("Sub", pooled, graph.constant(centre, "tuned.centre"))
        scaled = graph.op("Div", scaled, graph.constant(spread, "tuned.spread"))
        return graph.affine(scaled, weight[:, None], np.array([self.bias], np.float32), hint="tuned_head")


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
        Called with stage, done and total: ``read``, ``features``, ``fit``, ``maps``, ``tune``, ``check``.
    tuning_s
        Seconds that tuning may take.

    Raises
    ------
    TorchMissingError
        Torch is not installed; said before anything else is done.
    DatasetError
        As for the quick tier; and when there are no defects, from which alone a network could be tuned.
    """
    tail = _tail()
    started = perf_counter()
    report = progress or silent
    with tempfile.TemporaryDirectory(prefix="lineward-train-") as scratch, threadpool_limits(threads):
        tail.use_threads(threads)
        cache = cache_dir or Path(scratch)
        parent = load_bundle(base) if base else None
        dataset = read_training_set(
            data, parent.manifest if parent else None, base_data, cache, threads, _stage(report, "read")
        )
        if not dataset.labels.any():
            raise DatasetError(f"{data}: no defective images, so nothing to tune a network with; use --tier quick")
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
            progress=_stage(report, "features"),
        )
        asked = risk or Risk()
        quick = fit_quick(
            prepared.store,
            dataset.items,
            prepared.pooled,
            prepared.groups,
            risk=asked,
            seed=seed,
            progress=_stage(report, "fit"),
        )
        labels = dataset.labels
        held = keep_from_tuning(labels, prepared.groups, seed)
        if held is None:
            raise DatasetError(
                f"{data}: too few parts that can be told apart for --tier full, which keeps at least two good and two "
                "defective ones away from tuning; name the parts in groups.csv, add others, or use --tier quick"
            )
        maps = _early_maps(
            backbone, prepared.spec, dataset.sources, Path(scratch), list(FLIPS), threads, _stage(report, "maps")
        )
        device = tail.pick_device()
        checkpoint = _checkpoint(cache, dataset, prepared, seed, tuning_s)
        trained, epochs = tail.tune(
            tail.start(backbone.tensors, device=device),
            maps,
            labels,
            np.flatnonzero(~held),
            seed=seed,
            seconds=tuning_s,
            progress=_stage(report, "tune"),
            device=device,
            probe=_probe,
            checkpoint=checkpoint,
        )
        tensors, head, bias = tail.to_numpy(trained)
        net = TunedNet(backbone, prepared.spec, tensors, head, bias, trained, device)
        scores = np.asarray(tail.scores(trained, maps[0], np.flatnonzero(held), device=device))
        model, figures = weigh(quick, net, scores, held, labels, prepared.groups, asked, seed)
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
        graph = build_graph(backbone, prepared.spec, model)
        trial = Path(scratch) / "trial.lward"
        save_bundle(trial, graph, manifest)
        checked = parity_images(dataset, seed)
        sources = [dataset.items[index].source for index in checked]
        verdicts = judge_with_bundle(trial, sources, threads, _stage(report, "check"))
        parity = require_parity(
            out, model.judge(prepared.store, sources, prepared.pooled[checked]), model.thresholds, verdicts
        )
        if model.tuned is None:  # the quick tier as it is, with its figures of all parts
            held = np.ones(len(labels), bool)
        said = model.crossfit
        each_ms = float(np.mean([milliseconds(verdict) for verdict in verdicts]))
        decisions = [decision for decision, kept in zip(said.decisions, held, strict=True) if kept]
        kinds = [kind for kind, kept in zip(dataset.kinds, held, strict=True) if kept]
        holdout = measure(
            labels[held], said.probabilities[held], decisions, each_ms, kinds, parts=prepared.groups[held]
        )
        record = manifest.model.model_copy(
            update={"sizes_tried": prepared.tried, "candidates": quick.candidates | figures, "tuning_epochs": epochs}
        )
        manifest = manifest.model_copy(update={"holdout": holdout, "parity": parity, "model": record})
        if model.tuned is not None:
            calibration = manifest.calibration.model_copy(
                update={"n": int(held.sum()), "folds": 1, "defect_share": float(labels[held].mean())}
            )
            figures_from = manifest.data.model_copy(update={"figures": "holdout"})
            manifest = manifest.model_copy(update={"calibration": calibration, "data": figures_from})
        if parent:
            manifest = compare_with_parent(manifest, parent, dataset, said, prepared.groups, judged=held)
        sha256 = save_bundle(out, graph, manifest)
        checkpoint.unlink(missing_ok=True)
        remember_training_set(cache, dataset)
        trim_cache(cache, {source.digest for source in dataset.sources})
    return TrainReport(out, sha256, manifest, perf_counter() - started, training_warnings(dataset, manifest))


def keep_from_tuning(labels: NDArray[np.bool_], groups: NDArray[np.int64], seed: int) -> NDArray[np.bool_] | None:
    """Choose a fold of parts, or more where one has fewer than two parts of either kind: its halves judge each other.

    Returns ``(n,)`` bool, or None when nothing would be left to tune with.
    """
    folds = grouped_folds(labels, groups, seed)
    for count in range(1, int(folds.max()) + 1):
        held = folds < count
        kinds = (labels, ~labels)
        if all(len(set(groups[held & kind].tolist())) >= 2 and (kind & ~held).any() for kind in kinds):
            return held
    return None


def _checkpoint(cache: Path, dataset: Dataset, prepared: Prepared, seed: int, tuning_s: float) -> Path:
    """Name the file that a killed tuning goes on from: the same for the same images, parts, recipe and time only."""
    parts = hashlib.sha256(prepared.groups.tobytes()).hexdigest()
    recipe = f"{__version__}|{LITE0_SHA256}|{prepared.spec.model_dump_json()}|{seed}|{tuning_s}"
    key = hashlib.sha256(f"{dataset.digest}|{parts}|{recipe}".encode()).hexdigest()[:24]
    return cache / "tuning" / f"{key}.pt"


def _stage(report: Progress, name: str) -> Callable[[int, int], None]:
    return lambda done, total: report(name, done, total)


def _probe(features: NDArray[np.float32], labels: NDArray[np.bool_]) -> tuple[NDArray[np.float32], float]:
    model = LogisticRegression(C=PROBE_C, class_weight="balanced", max_iter=300)
    model.fit(features.astype(np.float64), labels)
    return model.coef_[0].astype(np.float32), float(model.intercept_[0])


def weigh(  # noqa: PLR0917 - one caller
    quick: QuickModel,
    net: TunedNet,
    tuned: NDArray[np.float64],
    held: NDArray[np.bool_],
    labels: NDArray[np.bool_],
    groups: NDArray[np.int64],
    risk: Risk,
    seed: int,
) -> tuple[QuickModel, dict[str, dict[str, float]]]:
    """Choose the tuned network's weight on the fold that it was not tuned on, and calibrate the sum there.

    The reported figures come from halves of that fold: each half is judged with the weight, calibration and
    thresholds that the other one chose.
    """
    blended = quick.out_of_fold[held]
    truth = labels[held]
    weight, figures = _choose_weight(blended, tuned, truth)
    if not weight:  # calibrated anew on one fold, the same scores had an ECE of 0.097 instead of 0.050
        return quick, figures
    parts = groups[held]
    halves = grouped_folds(truth, parts, seed, most=2)
    probabilities = np.zeros(len(labels))
    decisions: list[Decision] = list(quick.crossfit.decisions)
    places = np.flatnonzero(held)
    for half in range(2):
        inside, outside = halves != half, halves == half
        if truth[inside].all() or not truth[inside].any():
            inside = np.ones(len(truth), bool)
        part, _ = _choose_weight(blended[inside], tuned[inside], truth[inside])
        total = _add(blended, tuned, part, blended[inside], tuned[inside])
        platt = fit_platt(total[inside], truth[inside])
        bands, _ = choose_thresholds(platt(total[inside]), truth[inside], risk, parts[inside])
        probabilities[places[outside]] = platt(total[outside])
        for index in places[outside].tolist():
            decisions[index] = decide(float(probabilities[index]), float(quick.crossfit.anomalies[index]), bands)[0]
    total = _add(blended, tuned, weight, blended, tuned)
    platt = fit_platt(total, truth)
    thresholds, promise = choose_thresholds(platt(total), truth, risk, parts)
    spread = float(blended.std()) or 1.0
    # The quick sum's own centre only shifts the total, and the calibration takes it out again.
    centres, scales = dict(quick.blend.centres), {name: scale * spread for name, scale in quick.blend.scales.items()}
    centres[TUNED], scales[TUNED] = float(tuned.mean()), (float(tuned.std()) or 1.0) / weight
    shift = float(blended.mean()) / spread
    model = replace(
        quick,
        blend=Blend(centres, scales),
        head_name=f"stacked + {weight:g} x tuned",
        platt=replace(platt, offset=platt.offset - platt.slope * shift),
        thresholds=thresholds,
        promise=promise,
        ece=calibration_error(truth, platt(total)),
        tuned=net,
        crossfit=Crossfit(probabilities, quick.crossfit.anomalies, tuple(decisions)),
    )
    return model, figures


def _choose_weight(
    blended: NDArray[np.float64], tuned: NDArray[np.float64], labels: NDArray[np.bool_]
) -> tuple[float, dict[str, dict[str, float]]]:
    found = {weight: working_figures(labels, _add(blended, tuned, weight, blended, tuned)) for weight in WEIGHTS}
    value = {
        weight: sum(figures.values()) - (0 if weight == USUAL_WEIGHT else GAIN) for weight, figures in found.items()
    }
    best = max(WEIGHTS, key=lambda weight: value[weight])
    return best, {f"stacked + {weight:g} x tuned": figures for weight, figures in found.items()}


def _add(
    blended: NDArray[np.float64],
    tuned: NDArray[np.float64],
    weight: float,
    usual_blended: NDArray[np.float64],
    usual_tuned: NDArray[np.float64],
) -> NDArray[np.float64]:
    first = (blended - usual_blended.mean()) / (usual_blended.std() or 1.0)
    second = (tuned - usual_tuned.mean()) / (usual_tuned.std() or 1.0)
    return np.asarray(first + weight * second, np.float64)


def _early_maps(  # noqa: PLR0917 - numbers and places
    backbone: EfficientNetLite0,
    spec: InputSpec,
    sources: Sequence[Source],
    scratch: Path | None,
    views: Sequence[str],
    threads: int,
    progress: Callable[[int, int], None],
) -> NDArray[np.float16]:
    """Return ``(views, n, channels, h, w)`` stride-4 maps, in a file when a folder is given: 0.6 to 1.2 GB."""
    graph = Graph()
    tensors = append_features(graph, backbone, spec)
    early = next(tap for tap in tensors.taps if tap.name == "stride4")
    graph.output("early", early.tensor, ("N", early.channels, early.height, early.width))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    model = graph.model("early", __version__).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    shape = (len(views), len(sources), early.channels, early.height, early.width)
    maps: NDArray[np.float16] = np.empty(shape, np.float16) if scratch is None else _unnamed(scratch, shape)
    for index, source in enumerate(sources):
        image = prepare(read_image(source.path), spec)
        batch = np.stack([np.flip(image, FLIPS[view]) if FLIPS[view] else image for view in views])
        maps[:, index] = session.run(["early"], {"image": batch})[0]
        if (index + 1) % 16 == 0 or index + 1 == len(sources):
            progress(index + 1, len(sources))
    return maps


def _unnamed(folder: Path, shape: tuple[int, ...]) -> NDArray[np.float16]:
    """Map a file that has no name any more: a killed training must not leave a gigabyte behind."""
    path = folder / "early.maps"
    maps = np.memmap(path, np.float16, "w+", shape=shape)
    path.unlink()
    return maps
