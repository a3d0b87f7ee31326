"""What `dataset check` says about amounts, labels, files and shortcuts of a set."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from lineward.models.duplicates import UNKNOWN
from lineward.models.findings import Finding, number_of, some
from lineward.models.learning_curve import are_batches
from lineward.models.records import LEAST_DEFECT, WANTED_DEFECT, WANTED_GOOD
from lineward.models.shortcuts import probe_facts, probe_sessions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lineward.models.dataset import Dataset
    from lineward.models.findings import Level

LEAST_GOOD = 80
LEAST_PARTS = 10
"""Parts of a defect type below which its detection hangs on luck; 7-16 parts brought a new type to 0.75."""
LARGE_PIXELS = 30_000_000


def find_amounts(dataset: Dataset, groups: NDArray[np.int64]) -> Iterator[Finding]:
    """Find how many images and parts there are of each kind and type."""
    labels = dataset.labels
    n_defect = int(labels.sum())
    n_good = len(labels) - n_defect
    good_parts, defect_parts = len(set(groups[~labels].tolist())), len(set(groups[labels].tolist()))
    figures: dict[str, object] = {
        "n_good": n_good,
        "n_defect": n_defect,
        "good_parts": good_parts,
        "defect_parts": defect_parts,
    }
    batches = are_batches(labels, groups)
    unit = "batches" if batches else "parts"
    text = f"{n_good} good images of {good_parts} {unit} and {n_defect} defective ones of {defect_parts}"
    missing = [
        f"{wanted - there} more {kind}"
        for there, wanted, kind in ((n_good, WANTED_GOOD, "good"), (n_defect, WANTED_DEFECT, "defective"))
        if there < wanted
    ]
    if n_defect == 0:
        level: Level = "problem"
        text = (
            f"{n_good} good images of {good_parts} {unit} and no defective ones: training will know good parts only "
            f"and promise nothing about escapes; collect {LEAST_DEFECT} defective parts or more"
        )
    elif n_good < LEAST_GOOD or n_defect < LEAST_DEFECT:
        level = "problem"
        text += f": too few to trust any figure; collect {' and '.join(missing)}"
    elif missing:
        level = "note"
        text += f"; what a product is promised to need is 800-900 and 100-200: {' and '.join(missing)} to go"
    else:
        level = "ok"
    yield Finding("amounts", level, text, figures)
    if not dataset.groups_known:
        count = len(set(groups.tolist()))
        text = UNKNOWN
        if UNKNOWN not in dataset.warnings:
            text = (
                f"which images show the same part is not known (no complete groups.csv); guessed from likeness: "
                f"{count} parts. Write groups.csv, else figures may be too good"
            )
        yield Finding("groups", "note", text, {"parts": count})
    kinds = np.array([item.defect_type or "" for item in dataset.items])
    # In a batch each picture shows a part of its own.
    parts = {
        kind: dataset.defect_types[kind] if batches else len(set(groups[kinds == kind].tolist()))
        for kind in sorted(dataset.defect_types)
    }
    few = {kind: count for kind, count in parts.items() if count < LEAST_PARTS}
    counted: dict[str, object] = {"parts": parts, "images": dict(sorted(dataset.defect_types.items()))}
    if few:
        names = ", ".join(f"{kind} ({count} parts, {dataset.defect_types[kind]} images)" for kind, count in few.items())
        text = f"too few parts to learn from: {names}; at least {LEAST_PARTS} of each, better 20"
        yield Finding("defect_types", "problem", text, counted)
    elif parts:
        least = min(parts, key=lambda kind: parts[kind])
        yield Finding(
            "defect_types",
            "ok",
            f"{number_of(len(parts), 'type')}; the rarest, {least}, has {parts[least]} parts",
            counted,
        )


def find_labels(dataset: Dataset) -> Iterator[Finding]:
    """Find contents and parts under both labels."""
    by_content: dict[str, list[int]] = defaultdict(list)
    for index, item in enumerate(dataset.items):
        by_content[item.source.digest].append(index)
    labels = dataset.labels
    torn = [indices for indices in by_content.values() if len({bool(labels[index]) for index in indices}) == 2]
    if torn:
        pairs = [" = ".join(dataset.items[index].file for index in indices) for indices in torn]
        yield Finding(
            "same_content_both_labels",
            "problem",
            f"{len(torn)} images stand under both labels: {some(pairs)}; remove the wrong ones",
            {"images": pairs},
        )
    if dataset.groups_known:
        groups = np.array([item.group for item in dataset.items])
        both = sorted(set(groups[labels]) & set(groups[~labels]))
        if both:
            yield Finding(
                "part_both_labels",
                "note",
                f"{len(both)} parts or batches have good and defective images: {some(both)}; right for batches, and "
                "where the defect is not in every picture, else a wrong label",
                {"parts": list(map(str, both))},
            )
    if not torn:
        yield Finding("labels", "ok", "no image stands under both labels")


def find_files(dataset: Dataset) -> Iterator[Finding]:
    """Find mixed sizes, channels and bit depths."""
    facts = [(item.file, item.facts) for item in dataset.items if item.facts]
    if not facts:
        return
    sizes = Counter((fact.width, fact.height) for _, fact in facts)
    (width, height), _ = sizes.most_common(1)[0]
    large = [name for name, fact in facts if fact.width * fact.height > max(LARGE_PIXELS, 8 * width * height)]
    if large:
        text = f"much larger than the others: {some(large)}; take all images with the line's camera and settings"
        yield Finding("large_images", "problem", text, {"files": large})
    aspects = [fact.width / fact.height for _, fact in facts]
    figures: dict[str, object] = {"sizes": {f"{w}x{h}": n for (w, h), n in sizes.most_common(20)}}
    if len(sizes) > 1:
        yield Finding(
            "sizes",
            "note",
            f"{len(sizes)} different sizes ({width} x {height} the most frequent, aspect {min(aspects):.2f} to "
            f"{max(aspects):.2f}): each is stretched to the model's input, so take all with one camera and crop",
            figures,
        )
    else:
        yield Finding("sizes", "ok", f"all images are {width} x {height}", figures)
    mono = sum(fact.channels == 1 for _, fact in facts)
    if 0 < mono < len(facts):
        text = f"{mono} images are mono and {len(facts) - mono} in colour: all are used as mono; save all alike"
        yield Finding("channels", "note", text, {"mono": mono, "colour": len(facts) - mono})
    deep = [(name, fact) for name, fact in facts if fact.bits == 16]
    if deep:
        dim = [name for name, fact in deep if fact.brightest < 4096]
        brightest = max(fact.brightest for _, fact in deep)
        if len(dim) == len(deep):
            yield Finding(
                "depth",
                "problem",
                f"{len(deep)} images have 16 bits and no sample above {brightest}: 10 or 12 bits stored unshifted are "
                "nearly black to the model; save them shifted to 16 bits, or with 8",
                {"files": [name for name, _ in deep][:100], "brightest": brightest},
            )
        else:
            text = f"{len(deep)} images have 16 bits: their upper 8 are used"
            if len(deep) < len(facts):
                text += f"; the other {len(facts) - len(deep)} have 8"
            yield Finding("depth", "note", text, {"files": len(deep), "brightest": brightest})


def find_shortcuts(
    dataset: Dataset, pooled: NDArray[np.float32], groups: NDArray[np.int64], seed: int
) -> Iterator[Finding]:
    """Find what tells the label without showing the defect."""
    probes = probe_facts(dataset, groups, seed)
    for probe in probes:
        figures = {key: value for key, value in asdict(probe).items() if key not in {"name", "words"}}
        area = f"AUROC {probe.auroc:.2f}, 95 %: {probe.low:.2f} to {probe.high:.2f}, n={probe.n}"
        if probe.level == "ok":
            yield Finding(
                f"shortcut_{probe.name}", "ok", f"{probe.words} does not give the label away ({area})", figures
            )
            continue
        remedy = {
            "file": "a model may learn that instead of the defect; take good and defective parts in the same way",
            "picture": "right if the defect itself does that, else the two kinds were taken in different light",
            "hearsay": "harmless if it comes from sorting or copying, else they were taken at different times",
        }[probe.nature]
        text = f"{probe.words} alone tells good from defective ({area}): {remedy}"
        yield Finding(f"shortcut_{probe.name}", probe.level, text, figures)
    sessions = probe_sessions(dataset, pooled, groups, seed)
    if sessions is None:
        yield Finding("sessions", "ok", "no recording sessions with different shares of defects are known")
        return
    low, high = sessions.defect_share
    what = (
        f"{sessions.count} recording sessions (by {sessions.source}) hold between {low:.0%} and {high:.0%} "
        "defective images"
    )
    figures = asdict(sessions)
    if sessions.auroc is None:
        text = f"{what}, and have too few good parts to see whether they differ: take good parts in every session"
        yield Finding("sessions", "problem" if high - low > 0.5 else "note", text, figures)
    elif sessions.low > 0.7:
        yield Finding(
            "sessions",
            "problem",
            f"{what}, and good parts show which session they are from (AUROC {sessions.auroc:.2f}, 95 %: "
            f"{sessions.low:.2f} to {sessions.high:.2f}, n={sessions.n}): a model may learn the session instead of the "
            "defect; take good and defective parts in every session",
            figures,
        )
    else:
        yield Finding(
            "sessions", "note", f"{what}, but good parts do not clearly show which one they are from", figures
        )
