"""What a folder of labelled images lacks, before anybody trains on it: each finding a sentence with its remedy."""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from lineward.images import SUFFIXES, read_image
from lineward.models.backbone import EfficientNetLite0
from lineward.models.dataset import DatasetError, read_dataset
from lineward.models.duplicates import alike_pairs, group_near_duplicates, near_pairs
from lineward.models.features import FeatureStore
from lineward.models.learning_curve import LearningCurve, are_batches, learning_curve
from lineward.models.prepare import InputSpec
from lineward.models.shortcuts import probe_facts, probe_sessions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from lineward.models.backbone import Backbone
    from lineward.models.dataset import Dataset

    Progress = Callable[[str, int, int], None]

Level = Literal["ok", "note", "problem"]

NEAR = 0.90
"""Cosine of standardised features from which two pictures are nearly the same. Pictures of one solar cell in pieces
have 0.81, pictures of one tile 0.62 at the median; of different parts, one pair in 100,000 has more than this."""
COPY = 0.965
"""Correlation of the finest structure from which two files are one shot, saved once more: of 420 solar cells and 190
simulated parts no two reach it, of 949 pictures of tiles one pair does, at 0.993."""
WANTED_GOOD, WANTED_DEFECT = 800, 100
LEAST_GOOD, LEAST_DEFECT = 80, 20
LEAST_PARTS = 10
"""Parts of a defect type below which its detection hangs on luck; 7-16 parts brought a new type to 0.75."""
LARGE_PIXELS = 30_000_000
STEADY_BRIGHTNESS = 0.02
"""Spread of the brightness of good images, against its mean, below which no change of light is in the set."""
STEADY_POSITION = 0.003
POSITION_SIDE = 128
CLEAR_SHIFT = 0.25
"""Response of the phase correlation below which pictures have nothing in common that could have moved."""
MAX_NAMES = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: ``id``, how it is, a sentence, and the figures behind it."""

    id: str
    level: Level
    text: str
    figures: dict[str, object] = field(default_factory=dict)


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
    with tempfile.TemporaryDirectory(prefix="lineward-check-") as scratch, threadpool_limits(threads):
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
        named = dataset.groups
        groups = named if dataset.groups_known else group_near_duplicates(pooled, named, labels)
        report("look", 0, 3)
        findings = [
            *_amounts(dataset, groups),
            *_labels(dataset),
            *_likeness(dataset, pooled),
            *_files(dataset),
        ]
        report("look", 1, 3)
        findings += _shortcuts(dataset, pooled, groups, seed)
        report("look", 2, 3)
        findings += _coverage(dataset, _pictures(production) if production else None)
        report("look", 3, 3)
        found = None
        if curve:
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
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise DatasetError(f"{folder}: no images there; give a folder with pictures from the line")
    return found


# ---- amounts and labels


def _amounts(dataset: Dataset, groups: NDArray[np.int64]) -> Iterator[Finding]:
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
    if n_good < LEAST_GOOD or n_defect < LEAST_DEFECT:
        level: Level = "problem"
        text += f": too few to trust any figure; collect {' and '.join(missing)}"
    elif missing:
        level = "note"
        text += f"; what a product is promised to need is 800-900 and 100-200: {' and '.join(missing)} to go"
    else:
        level = "ok"
    yield Finding("amounts", level, text, figures)
    if not dataset.groups_known:
        yield Finding(
            "groups",
            "note",
            f"which images show the same part is not known (no complete groups.csv); guessed from likeness: "
            f"{len(set(groups.tolist()))} parts. Write groups.csv, else figures may be too good",
            {"parts": len(set(groups.tolist()))},
        )
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
            f"{_count(len(parts), 'type')}; the rarest, {least}, has {parts[least]} parts",
            counted,
        )


def _labels(dataset: Dataset) -> Iterator[Finding]:
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
            f"{len(torn)} images stand under both labels: {_some(pairs)}; remove the wrong ones",
            {"images": pairs},
        )
    if dataset.groups_known:
        groups = np.array([item.group for item in dataset.items])
        both = sorted(set(groups[labels]) & set(groups[~labels]))
        if both:
            yield Finding(
                "part_both_labels",
                "note",
                f"{len(both)} parts or batches have good and defective images: {_some(both)}; right for batches, and "
                "where the defect is not in every picture, else a wrong label",
                {"parts": list(map(str, both))},
            )
    if not torn:
        yield Finding("labels", "ok", "no image stands under both labels")


def _likeness(dataset: Dataset, pooled: NDArray[np.float32]) -> Iterator[Finding]:
    pairs = near_pairs(pooled, NEAR)
    shots = alike_pairs(_fingerprints(dataset), COPY) if pairs is not None else None
    if pairs is None or shots is None:
        text = "too many images to compare each with each: likeness was not looked at"
        yield Finding("near_duplicates", "note", text)
        return
    saved_again = {(a, b) for a, b, _ in shots}
    pairs = [*shots, *(pair for pair in pairs if pair[:2] not in saved_again)]
    labels, groups = dataset.labels, dataset.groups
    names = [item.file for item in dataset.items]
    digests = [item.source.digest for item in dataset.items]
    same = [(a, b) for a, b, _ in pairs if digests[a] == digests[b]]
    near = [(a, b, alike) for a, b, alike in pairs if digests[a] != digests[b]]
    if same:
        text = f"{len({i for pair in same for i in pair})} images are exact copies of others: they teach nothing new"
        yield Finding("copies", "note", text, {"pairs": [[names[a], names[b]] for a, b in same][:100]})
    torn = [(a, b, alike) for a, b, alike in near if labels[a] != labels[b]]
    if torn:
        shown = [f"{names[a]} ~ {names[b]} ({alike:.2f})" for a, b, alike in torn]
        yield Finding(
            "near_duplicates_both_labels",
            "problem" if any((a, b) in saved_again for a, b, _ in torn) else "note",
            f"{_count(len(torn), 'pair')} of images nearly the same, with different labels: {_some(shown)}; look at "
            "them",
            {"pairs": [[names[a], names[b], round(alike, 3)] for a, b, alike in torn][:100]},
        )
    involved = {i for a, b, _ in near for i in (a, b)}
    share = len(involved) / len(names)
    figures: dict[str, object] = {
        "images": len(involved),
        "pairs": [[names[a], names[b], round(alike, 3)] for a, b, alike in near][:100],
    }
    if dataset.groups_known:
        across = [(a, b, alike) for a, b, alike in near if groups[a] != groups[b]]
        torn_images = {i for a, b, _ in across for i in (a, b)}
        if across:
            shown = [f"{names[a]} ~ {names[b]} ({alike:.2f})" for a, b, alike in across]
            yield Finding(
                "groups_across_split",
                "problem" if sum((a, b) in saved_again for a, b, _ in across) > max(2, 0.01 * len(names)) else "note",
                f"{len(torn_images)} images look nearly like an image of another part: {_some(shown)}; if they show "
                "one part, give it one group in groups.csv, else training and test share it",
                {"images": len(torn_images), "pairs": figures["pairs"]},
            )
        else:
            yield Finding("groups_across_split", "ok", "no two parts look like one: the groups hold")
    if share > 0.3 and not dataset.groups_known:
        yield Finding(
            "near_duplicates",
            "problem",
            f"{share:.0%} of the images have a near copy: the set is smaller than it looks, and without groups.csv "
            "figures will be too good; take fewer pictures of more parts",
            figures,
        )
    else:
        text = f"{len(involved)} of {len(names)} images ({share:.0%}) look nearly like another"
        yield Finding("near_duplicates", "note" if share > 0.1 else "ok", text, figures)


def _fingerprints(dataset: Dataset) -> NDArray[np.float16]:
    """Return ``(n, d)`` float16: the finest structure of each picture, which noise and texture make its own."""

    def one(path: Path) -> NDArray[np.float16]:
        small = _small(read_image(path))
        return (small - cv2.GaussianBlur(small, (0, 0), 1.0)).astype(np.float16).ravel()

    with ThreadPoolExecutor(2, thread_name_prefix="fingerprints") as pool:
        return np.stack(list(pool.map(one, (item.source.path for item in dataset.items))))


# ---- files, shortcuts


def _files(dataset: Dataset) -> Iterator[Finding]:
    facts = [(item.file, item.facts) for item in dataset.items if item.facts]
    sizes = Counter((fact.width, fact.height) for _, fact in facts)
    (width, height), _ = sizes.most_common(1)[0]
    large = [name for name, fact in facts if fact.width * fact.height > max(LARGE_PIXELS, 8 * width * height)]
    if large:
        text = f"much larger than the others: {_some(large)}; take all images with the line's camera and settings"
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


def _shortcuts(
    dataset: Dataset, pooled: NDArray[np.float32], groups: NDArray[np.int64], seed: int
) -> Iterator[Finding]:
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


# ---- coverage


def _coverage(dataset: Dataset, production: Sequence[Path] | None) -> Iterator[Finding]:
    """Look at how far light and position vary among good images, or how far the line goes beyond them."""
    good = [item for item in dataset.items if not item.defective and item.facts is not None]
    brightness = np.array([item.facts.brightness for item in good if item.facts])
    small = [_small(read_image(item.source.path)) for item in good[:: max(1, len(good) // 200)]]
    reference = np.mean(small, axis=0)
    shifts = _shifts(small, reference)
    low, high = np.quantile(brightness, [0.01, 0.99])
    spread = float(brightness.std() / max(brightness.mean(), 1.0))
    figures: dict[str, object] = {"low": float(low), "high": float(high), "spread": spread}
    if production is not None:
        yield from _against_line(production, (float(low), float(high)), shifts, reference)
        return
    if spread < STEADY_BRIGHTNESS:
        yield Finding(
            "exposure_coverage",
            "note",
            f"all good images are equally bright (mean grey level {low:.0f} to {high:.0f} of 255): a lamp that ages or "
            "a cloudy day is not in the set; add good parts at 80 % and 120 % exposure, or compare with --production",
            figures,
        )
    else:
        text = f"good images range from a mean grey level of {low:.0f} to {high:.0f} of 255"
        yield Finding("exposure_coverage", "ok", text, figures)
    if shifts is None:
        yield Finding("position_coverage", "ok", "the parts have no common outline, so position says nothing here")
        return
    reach = np.quantile(np.abs(shifts), 0.95, axis=0)
    where: dict[str, object] = {"x": float(reach[0]), "y": float(reach[1])}
    if float(reach.max()) < STEADY_POSITION:
        yield Finding(
            "position_coverage",
            "note",
            "every part lies in the same place to a third of a percent of the frame: a feeder that is off is not in "
            "the set; add good parts at the limits of their place",
            where,
        )
    else:
        text = f"19 of 20 good parts lie within {reach[0]:.1%} of the width and {reach[1]:.1%} of the height"
        yield Finding("position_coverage", "ok", text, where)


def _against_line(
    production: Sequence[Path],
    brightness: tuple[float, float],
    shifts: NDArray[np.float64] | None,
    reference: NDArray[np.float32],
) -> Iterator[Finding]:
    chosen = production[:: max(1, len(production) // 300)]
    images = [read_image(path) for path in chosen]
    low, high = brightness
    levels = np.array([float(_grey(image).mean()) for image in images])
    outside = float(((levels < low) | (levels > high)).mean())
    figures: dict[str, object] = {"outside": outside, "n": len(images), "low": low, "high": high}
    text = (
        f"{outside:.0%} of {len(images)} pictures from the line are darker or brighter than all but 2 % of the good "
        f"images (mean grey level {low:.0f} to {high:.0f})"
    )
    if outside > 0.1:
        yield Finding("exposure_coverage", "problem", text + "; label some of them and add them", figures)
    else:
        yield Finding("exposure_coverage", "ok", text, figures)
    theirs = _shifts([_small(image) for image in images], reference)
    if shifts is None or theirs is None:
        return
    limit = np.quantile(np.abs(shifts), 0.99, axis=0) + 0.005
    away = float((np.abs(theirs) > limit).any(axis=1).mean())
    text = f"{away:.0%} of the pictures from the line show the part where no good image has it"
    level: Level = "problem" if away > 0.1 else "ok"
    yield Finding(
        "position_coverage", level, text + ("; label some of them" if level == "problem" else ""), {"away": away}
    )


def _grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8) if image.ndim == 3 else image


def _small(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Reduce a picture to a small one of mean 0 and deviation 1."""
    side = (POSITION_SIDE, POSITION_SIDE)
    small = np.asarray(cv2.resize(_grey(image), side, interpolation=cv2.INTER_AREA), np.float32)
    return np.asarray((small - small.mean()) / max(float(small.std()), 1e-3), np.float32)


def _shifts(small: Sequence[NDArray[np.float32]], reference: NDArray[np.float32]) -> NDArray[np.float64] | None:
    """Return ``(n, 2)`` shifts x, y against the mean picture, as shares of the frame; None without a common outline."""
    if float(reference.std()) < 0.3:
        return None
    window = cv2.createHanningWindow((POSITION_SIDE, POSITION_SIDE), cv2.CV_32F)
    mean = np.asarray(reference, np.float32)
    # OpenCV multiplies its arguments by the window in place when their size is a good one for the transform.
    found = [cv2.phaseCorrelate(mean.copy(), picture.copy(), window) for picture in small]
    if float(np.median([clear for _, clear in found])) < CLEAR_SHIFT:
        return None
    return np.array([place for place, _ in found], np.float64) / POSITION_SIDE


def _count(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")


def _some(names: Sequence[object]) -> str:
    shown = ", ".join(str(name) for name in names[:MAX_NAMES])
    return shown + (f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else "")
