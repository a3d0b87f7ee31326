"""What training reaches on real images, split by part: quick and full tier, several sizes, and added defect types.

Outer splits: 70 % of the parts of each kind train, the rest are judged; everything else is chosen inside the training
part. With `--folds K` the parts are divided into K instead, and each is judged once by a training on the others.
Beside it the peers' way without labels: distance to the nearest good image in feature space.

The tiers `good-only` and `made-up` train on good images alone, and with made-up defects beside them.

Run `.venv/bin/python bench/learning.py --sets mtd,elpv --seeds 5`; images are looked for in $LINEWARD_DATA, else in
../shared/data. `--types` holds each defect type out and adds 30 images of it. With `--json` the rows are printed, which
`--rows` puts into one table with those of other runs and `bench/curve.py` draws.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lineward.daemon.allocator import keep_freed
from lineward.images import read_image
from lineward.models.backbone import EfficientNetLite0
from lineward.models.dataset import Dataset, read_dataset
from lineward.models.features import FeatureStore
from lineward.models.finetune import train_full
from lineward.models.heads import fit_scaler
from lineward.models.metrics import auroc, calibration_error, detection_at, measure
from lineward.models.quick import train_quick
from lineward.models.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from lineward.models.prepare import InputSpec
    from lineward.models.quick import TrainReport
    from lineward.models.records import Metrics, Promise
    from lineward.models.verdict import Decision

SIZES: dict[str, tuple[int, int]] = {"80+20": (80, 20), "250+50": (250, 50), "all": (10**9, 10**9)}
TEST_SHARE = 0.3
ADDED = 30
"""Images of a held-out type that are added."""
GOOD_ONLY, MADE_UP = "good-only", "made-up"
"""Tiers that train without the defective images; the second one learns from this many made-up defects."""
SYNTHETIC = 300


@dataclass
class Row:
    """One training judged on one outer test part."""

    set: str
    size: str
    tier: str
    seed: int
    n_train: str
    n_test: str
    auroc: float
    det2: float
    det5: float
    ece: float
    ece_floor: float
    review: float
    errors: float
    false_reject: float
    escape: float
    kept: float
    seconds: float
    ms: float
    input: str
    judged: list[tuple[float, bool]]
    """Probability and truth of each test image: splits are put together for one ECE with more images in each bin."""


def outer_split(dataset: Dataset, seed: int) -> tuple[list[int], list[int]]:
    """Divide by part, 30 % of the parts of each kind for the test."""
    return _divided(dataset, seed, lambda parts: parts[: round(TEST_SHARE * len(parts))])


def fold_split(dataset: Dataset, fold: int, folds: int) -> tuple[list[int], list[int]]:
    """Divide by part into ``folds`` tests that hold every part once; ``fold`` is the test of this one."""
    return _divided(dataset, 500, lambda parts: parts[fold::folds])


def _divided(dataset: Dataset, seed: int, take: Callable[[list[int]], list[int]]) -> tuple[list[int], list[int]]:
    random = np.random.default_rng(seed)
    labels, groups = dataset.labels, dataset.groups
    test: set[int] = set()
    for kind in (False, True):
        parts = sorted({g for g in groups.tolist() if (labels[groups == g].mean() > 0.5) == kind})
        test |= set(take(random.permutation(parts).tolist()))
    inside = [i for i, g in enumerate(groups.tolist()) if g not in test]
    return inside, [i for i, g in enumerate(groups.tolist()) if g in test]


def limited(dataset: Dataset, indices: list[int], good: int, defect: int, seed: int) -> list[int]:
    """Take at most so many images of either kind, at random."""
    order = np.random.default_rng(1000 + seed).permutation(indices).tolist()
    sound = [i for i in order if not dataset.items[i].defective][:good]
    return sorted(sound + [i for i in order if dataset.items[i].defective][:defect])


def link(dataset: Dataset, indices: list[int], folder: Path) -> Path:
    """Make a data folder of some of the images, without copying them."""
    (folder / "good").mkdir(parents=True)
    rows = ["file,group"]
    for index in indices:
        item = dataset.items[index]
        place = folder / item.file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(item.source.path.resolve())
        rows.append(f"{item.file},{item.group}")
    if dataset.groups_known:
        (folder / "groups.csv").write_text("\n".join(rows) + "\n")
    return folder


def judge(
    bundle: Path, dataset: Dataset, indices: list[int]
) -> tuple[NDArray[np.bool_], NDArray[np.float64], list[Decision], float]:
    """Judge images with a bundle on two threads, as the line does."""
    session = Session(bundle, intra_op_threads=2)
    session.warm_up()
    verdicts = [session.judge(read_image(dataset.items[index].source.path)) for index in indices]
    probabilities = np.array([verdict.defect_probability for verdict in verdicts])
    ms = float(np.median([verdict.prepare_ms + verdict.infer_ms for verdict in verdicts]))
    return dataset.labels[indices], probabilities, [verdict.decision for verdict in verdicts], ms


def floor(probabilities: NDArray[np.float64]) -> float:
    """Return the ECE that a perfectly calibrated judge would show on so many images."""
    random = np.random.default_rng(0)
    draws = (random.random(len(probabilities)) < probabilities for _ in range(200))
    return float(np.mean([calibration_error(draw, probabilities) for draw in draws]))


def nearest_good(
    dataset: Dataset, train: list[int], test: list[int], cache: Path, spec: InputSpec
) -> tuple[float, ...]:
    """Judge by the distance to the nearest good training image, as anomaly detection without labels does."""
    store = FeatureStore(EfficientNetLite0(), spec, cache)
    known = store.extract([dataset.items[i].source for i in train if not dataset.items[i].defective])
    asked = store.extract([dataset.items[i].source for i in test])
    scaler = fit_scaler(known)
    a, b = scaler(asked), scaler(known)
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    scores = np.asarray(squared.min(axis=1), np.float64)
    labels = dataset.labels[test]
    return auroc(labels, scores), detection_at(labels, scores, 0.02), detection_at(labels, scores, 0.05)


def run_split(
    dataset: Dataset, name: str, size: str, tier: str, *, seed: int, cache: Path, folds: int = 0
) -> list[Row]:
    """Train on one outer split and judge its test part; with the baseline beside the quick tier."""
    inside, outside = fold_split(dataset, seed, folds) if folds else outer_split(dataset, seed)
    chosen = limited(dataset, inside, *SIZES[size], seed)
    if tier in {GOOD_ONLY, MADE_UP}:
        chosen = [i for i in chosen if not dataset.items[i].defective]
    others: dict[str, Callable[..., TrainReport]] = {
        "full": train_full,
        MADE_UP: partial(train_quick, synthetic=SYNTHETIC),
    }
    train = others.get(tier, train_quick)
    if tier == "full":
        keep_freed()
    with tempfile.TemporaryDirectory(prefix="lineward-bench-") as scratch:
        folder = link(dataset, chosen, Path(scratch) / "train")
        report = train(folder, Path(scratch) / "m.lward", product=name, cache_dir=cache, seed=0)
        labels, probabilities, decisions, ms = judge(report.model, dataset, outside)
    said = measure(labels, probabilities, decisions, ms, parts=dataset.groups[outside])
    wrong = sum(
        (str(decision) == "fail" and not label) or (str(decision) == "pass" and label)
        for decision, label in zip(decisions, labels, strict=True)
    )
    counts = f"{sum(not dataset.items[i].defective for i in chosen)}+{sum(dataset.items[i].defective for i in chosen)}"
    spec = report.manifest.input
    row = Row(
        set=name,
        size=size,
        tier=tier,
        seed=seed,
        n_train=counts,
        n_test=f"{said.n_good}+{said.n_defect}",
        auroc=said.auroc or 0.0,
        det2=said.detection_at_2pct_fr or 0.0,
        det5=detection_at(labels, probabilities, 0.05),
        ece=said.ece,
        ece_floor=floor(probabilities),
        review=said.review_share,
        errors=wrong / len(labels),
        false_reject=said.false_reject_rate.value or 0.0,
        escape=said.escape_rate.value or 0.0,
        kept=float(_kept(report.manifest.risk, said)),
        seconds=report.seconds,
        ms=ms,
        input=f"{spec.height}x{spec.width}",
        judged=list(zip(probabilities.tolist(), labels.tolist(), strict=True)),
    )
    if tier != "quick":
        return [row]
    found = nearest_good(dataset, chosen, outside, cache, spec)
    unknown = dict.fromkeys(NUMBERS, float("nan"))
    named = dict(zip(("auroc", "det2", "det5"), found, strict=True))
    return [row, replace(row, tier="nearest good", judged=[], **(unknown | named))]


NUMBERS = (
    "auroc",
    "det2",
    "det5",
    "ece",
    "ece_floor",
    "review",
    "errors",
    "false_reject",
    "escape",
    "kept",
    "seconds",
    "ms",
)


def _kept(promise: Promise, said: Metrics) -> bool:
    """Tell whether new parts stay within the bounds, upper ends at 95 %, that the training stated."""
    return (said.false_reject_rate.value or 0.0) <= promise.false_reject.high and (
        said.escape_rate.value or 0.0
    ) <= promise.escape.high


def table(rows: list[Row]) -> list[str]:
    """Return mean and standard deviation over the outer splits, as Markdown."""
    cases: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        cases[row.set, row.size, row.tier].append(row)
    lines = [
        "| set | training | tier | splits | " + " | ".join(NUMBERS) + " | splits together: auroc, det2, det5, ece |",
        "| --- " * (5 + len(NUMBERS)) + "|",
    ]
    for (name, size, tier), found in cases.items():
        cells = []
        for number in NUMBERS:
            values = np.array([getattr(row, number) for row in found], float)
            if np.isnan(values).all():
                cells.append("-")
            elif number in {"seconds", "ms"}:
                cells.append(f"{np.median(values):.1f}")
            else:
                cells.append(f"{values.mean():.3f} ± {values.std():.3f}")
        judged = [pair for row in found for pair in row.judged]
        cells.append(_together(*_columns(judged)) if judged else "-")
        lines.append(f"| {name} | {size} | {tier} | {len(found)} | " + " | ".join(cells) + " |")
    return lines


def _together(labels: NDArray[np.bool_], probabilities: NDArray[np.float64]) -> str:
    found = [auroc(labels, probabilities), *(detection_at(labels, probabilities, limit) for limit in (0.02, 0.05))]
    return ", ".join(f"{value:.3f}" for value in [*found, calibration_error(labels, probabilities)])


def _columns(judged: list[tuple[float, bool]]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    return np.array([truth for _, truth in judged], bool), np.array([probability for probability, _ in judged])


def run_types(dataset: Dataset, name: str, seed: int, cache: Path) -> list[dict[str, object]]:
    """Hold each defect type out of the training, then add 30 images of it; detection before and after."""
    inside, outside = outer_split(dataset, seed)
    found: list[dict[str, object]] = []
    for kind in sorted(dataset.defect_types):
        other = [i for i in inside if dataset.items[i].defect_type != kind]
        # Whole parts of the type that are not in the test part; "added" are at most 30 images of them.
        of_type = [i for i in inside if dataset.items[i].defect_type == kind]
        added = sorted(np.random.default_rng(seed).permutation(of_type)[:ADDED].tolist())
        with tempfile.TemporaryDirectory(prefix="lineward-bench-") as scratch:
            place = Path(scratch)
            base = train_quick(
                link(dataset, other, place / "a"), place / "a.lward", product=name, cache_dir=cache, seed=0
            )
            began = time.perf_counter()
            grown = train_quick(
                link(dataset, added, place / "b"), place / "b.lward", product=name, cache_dir=cache, base=base.model
            )
            seconds = time.perf_counter() - began
            row: dict[str, object] = {"set": name, "seed": seed, "type": kind, "added": len(added), "seconds": seconds}
            row["promotable"] = grown.manifest.promotable
            kinds = np.array([dataset.items[i].defect_type for i in outside], object)
            for when, bundle in (("before", base.model), ("after", grown.model)):
                labels, probabilities, _, _ = judge(bundle, dataset, outside)
                good = np.sort(probabilities[~labels])
                limit = good[len(good) - 1 - int(0.02 * len(good))]
                row[f"type_{when}"] = (
                    float((probabilities[kinds == kind] > limit).mean()) if (kinds == kind).any() else None
                )
                row[f"others_{when}"] = float((probabilities[labels & (kinds != kind)] > limit).mean())
        found.append(row)
        print(json.dumps(row), file=sys.stderr)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default="mtd,elpv")
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--tiers", default="quick", help="quick, full, good-only, made-up")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--folds", type=int, default=0, help="Judge each part once, in so many trainings.")
    parser.add_argument("--types", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "lineward-bench-features")
    parser.add_argument("--rows", nargs="+", type=Path, help="Print the table of rows that --json has printed before.")
    asked = parser.parse_args()
    if asked.rows:
        found = [Row(**row) for path in asked.rows for row in json.loads(path.read_bytes())["rows"]]
        print("\n".join(table(found)))
        return
    root = Path(os.environ.get("LINEWARD_DATA", Path(__file__).parents[2] / "shared" / "data"))
    rows: list[Row] = []
    types: list[dict[str, object]] = []
    for name in asked.sets.split(","):
        dataset = read_dataset(root / name, cache_dir=asked.cache)
        for seed in range(asked.folds or asked.seeds):
            if asked.types:
                types += run_types(dataset, name, seed, asked.cache)
                continue
            for size in asked.sizes.split(","):
                for tier in asked.tiers.split(","):
                    rows += run_split(dataset, name, size, tier, seed=seed, cache=asked.cache, folds=asked.folds)
                    done = rows[-1 if tier != "quick" else -2]
                    print(json.dumps(asdict(done) | {"judged": len(done.judged)}), file=sys.stderr, flush=True)
    if asked.json:
        print(json.dumps({"rows": [asdict(row) for row in rows], "types": types}))
        return
    for line in table(rows) if rows else []:
        print(line)
    if types:
        print_types(types)


def print_types(types: list[dict[str, object]]) -> None:
    """Print detection before and after by type, and the means over types that the promise is about."""
    print("| set | type | added | detected before | after | others before | after | seconds |\n" + "| --- " * 8 + "|")
    kinds = sorted({(str(row["set"]), str(row["type"])) for row in types})
    keys = ("added", "type_before", "type_after", "others_before", "others_after", "seconds")
    means = []
    for name, kind in kinds:
        found = [row for row in types if (row["set"], row["type"]) == (name, kind)]
        values = [float(np.mean([row[key] for row in found if row[key] is not None])) for key in keys]
        means.append(values)
        print(f"| {name} | {kind} | {values[0]:.0f} | " + " | ".join(f"{value:.2f}" for value in values[1:]) + " |")
    mean = np.mean(means, axis=0)
    print(f"| | mean | {mean[0]:.0f} | " + " | ".join(f"{value:.2f}" for value in mean[1:]) + " |")


if __name__ == "__main__":
    main()
