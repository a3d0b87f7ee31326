"""Can something that is not the part tell good from defective? Then a model may learn that instead of the defect.

Each probe predicts the label from one fact about the files, on parts it was not fitted on, and says how well: an AUROC
with its 95 % interval over parts. The session probe goes one step further: where a recording session gives the label
away, it asks whether the session shows in the pictures of good parts. On one real set it did, with an AUROC of 0.98.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier

from lineward.models.filefacts import time_in_name
from lineward.models.folds import grouped_folds
from lineward.models.heads import COMPONENTS, project_apart
from lineward.models.metrics import auroc

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from lineward.models.dataset import Dataset

Nature = Literal["file", "picture", "hearsay"]
"""What a fact is about: the ``file``, which no defect changes; the ``picture``, which a defect may change; or
``hearsay``, which copying and renaming files changes as well."""

SURE_FROM = {"file": 0.65, "picture": 0.85, "hearsay": 1.01}
"""Lower end of the interval from which a probe is something wrong; below, from 0.6 on, it is worth a look."""
LOOK_FROM = 0.60
BOOTSTRAPS = 300
MAX_CATEGORIES = 30
SESSION_GAP_S = 3600.0
MIN_SESSION = 8


@dataclass(frozen=True, slots=True)
class Probe:
    """How well one fact predicts the label: AUROC with interval, on ``n`` images of parts not fitted on."""

    name: str
    words: str
    nature: Nature
    auroc: float
    low: float
    high: float
    n: int

    @property
    def level(self) -> Literal["ok", "note", "problem"]:
        """How serious it is."""
        if self.low >= SURE_FROM[self.nature]:
            return "problem"
        return "note" if self.low >= LOOK_FROM else "ok"


@dataclass(frozen=True, slots=True)
class Sessions:
    """Recording sessions, and whether they show in the pictures of good parts (AUROC with interval, or None).

    ``defect_share`` is the smallest and the largest share of defective images in one session.
    """

    source: str
    count: int
    defect_share: tuple[float, float]
    auroc: float | None
    low: float
    high: float
    n: int


def probe_facts(dataset: Dataset, groups: NDArray[np.int64], seed: int) -> list[Probe]:
    """Try every fact that varies; see `Probe`."""
    labels = dataset.labels
    found = []
    for name, words, nature, values in _facts(dataset):
        if len(np.unique(values, axis=0)) < 2:
            continue
        scores = _crossed(values, labels, groups, seed)
        area, low, high = area_with_interval(labels, scores, groups, seed)
        found.append(Probe(name, words, nature, area, low, high, len(labels)))
    return sorted(found, key=lambda probe: -probe.low)


def probe_sessions(
    dataset: Dataset, pooled: NDArray[np.float32], groups: NDArray[np.int64], seed: int
) -> Sessions | None:
    """Find sessions by time, camera or file name, and ask whether good parts show which one they are from."""
    labels = dataset.labels
    for source, words in _sessions(dataset):
        names = [name for name, count in Counter(words).items() if count >= MIN_SESSION]
        if len(names) < 2:
            continue
        number = np.array([names.index(word) if word in names else -1 for word in words])
        shares = [float(labels[number == index].mean()) for index in range(len(names))]
        if max(shares) - min(shares) < 0.2:
            continue
        # Sessions with more defects than usual against the others: does a good part show which kind it is from?
        rich = np.isin(number, [index for index, share in enumerate(shares) if share > float(labels.mean())])
        good = ~labels & (number >= 0)
        marks, parts = rich[good], groups[good]
        few = min(len(set(parts[marks].tolist())), len(set(parts[~marks].tolist())))
        if few < 5:
            return Sessions(source, len(names), (min(shares), max(shares)), None, 0.0, 1.0, int(good.sum()))
        scores = _linear(pooled[good], marks, parts, seed)
        area, low, high = area_with_interval(marks, scores, parts, seed)
        return Sessions(source, len(names), (min(shares), max(shares)), area, low, high, int(good.sum()))
    return None


def area_with_interval(
    labels: NDArray[np.bool_], scores: NDArray[np.float64], groups: NDArray[np.int64], seed: int
) -> tuple[float, float, float]:
    """Return the AUROC and its 95 % interval, by drawing whole parts again and again.

    Drawing two batches again and again never shows how far a third may lie off: with few parts of a kind the interval
    is widened by Student's distribution and the missing degree of freedom, as for a mean of so few.
    """
    random = np.random.default_rng(seed)
    numbers, inverse = np.unique(groups, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    bounds = np.searchsorted(inverse[order], np.arange(len(numbers) + 1))
    members = [order[bounds[index] : bounds[index + 1]] for index in range(len(numbers))]
    areas = []
    for _ in range(BOOTSTRAPS):
        drawn = np.concatenate([members[index] for index in random.integers(0, len(numbers), len(numbers))])
        if 0 < labels[drawn].sum() < len(drawn):
            areas.append(auroc(labels[drawn], scores[drawn]))
    area = auroc(labels, scores)
    if not areas:
        return area, 0.0, 1.0
    few = max(2, min(len(np.unique(groups[labels])), len(np.unique(groups[~labels]))))
    wider = float(student.ppf(0.975, few - 1) / norm.ppf(0.975)) * (few / (few - 1)) ** 0.5
    low, high = np.quantile(areas, [0.025, 0.975])
    return area, max(0.0, area - (area - float(low)) * wider), min(1.0, area + (float(high) - area) * wider)


# ---- facts


def _facts(dataset: Dataset) -> list[tuple[str, str, Nature, NDArray[np.float64]]]:
    items = dataset.items
    facts = [item.facts for item in items if item.facts is not None]
    if len(facts) != len(items):
        return []

    def numbers(*columns: Callable[[int], float]) -> NDArray[np.float64]:
        return np.array([[column(index) for column in columns] for index in range(len(items))], np.float64)

    def words(values: Sequence[str]) -> NDArray[np.float64]:
        common = [word for word, _ in Counter(values).most_common(MAX_CATEGORIES)]
        return np.array([[float(value == word) for word in common] for value in values])

    found: list[tuple[str, str, Nature, NDArray[np.float64]]] = [
        ("format", "the file format", "file", words([item.source.path.suffix.lower() for item in items])),
        ("depth", "the number of channels or bits", "file", words([f"{fact.channels} {fact.bits}" for fact in facts])),
        (
            "dimensions",
            "the size in pixels",
            "file",
            numbers(lambda i: facts[i].width, lambda i: facts[i].height, lambda i: facts[i].width / facts[i].height),
        ),
        (
            "file_size",
            "the size of the file",
            "picture",
            numbers(lambda i: facts[i].bytes, lambda i: facts[i].bytes / (facts[i].width * facts[i].height)),
        ),
        (
            "exposure",
            "the exposure (brightness of the frame)",
            "picture",
            numbers(lambda i: facts[i].dark, lambda i: facts[i].bright),
        ),
    ]
    cameras = [fact.camera for fact in facts]
    if any(cameras):
        found.append(("camera", "the camera that EXIF names", "file", words(cameras)))
    times = capture_times(dataset)
    if times is not None:
        found.append(("time", "the time of taking (EXIF or file name)", "file", times[:, None]))
    else:
        touched = np.array([item.source.path.stat().st_mtime for item in items])
        found.append(("file_time", "the time stamp of the file", "hearsay", touched[:, None]))
    found.append(("name", "the file name", "hearsay", words(name_stems(dataset))))
    return found


def capture_times(dataset: Dataset) -> NDArray[np.float64] | None:
    """Return ``(n,)`` seconds since 1970, from EXIF or from the names, when all images have one."""
    exif = np.array([item.facts.taken if item.facts else 0.0 for item in dataset.items])
    if exif.all():
        return exif
    named = np.array([time_in_name(item.source.path.name) for item in dataset.items])
    return named if named.all() else None


def name_stems(dataset: Dataset) -> list[str]:
    """Return what names begin with, before their running number; words that are the label itself are left out.

    ``cam2_good_0001.png`` below ``good/`` gives ``cam2``: a label in a name does no harm, no model sees it.
    """
    taken = {"good", "ok", "pass", "defect", "defective", "bad", "nok", "ng", "fail"}
    taken |= {part.lower() for kind in dataset.defect_types for part in [kind, *re.split(r"[^A-Za-z]+", kind)] if part}
    stems = []
    for item in dataset.items:
        pieces = [piece for piece in re.split(r"[^A-Za-z0-9]+", item.source.path.stem) if piece]
        kept = [piece for piece in pieces if re.sub(r"\d+$", "", piece.lower()) not in taken]
        stems.append(kept[0] if len(kept) > 1 else "")
    return stems


def _sessions(dataset: Dataset) -> list[tuple[str, list[str]]]:
    found: list[tuple[str, list[str]]] = []
    times = capture_times(dataset)
    if times is not None:
        order = np.argsort(times, kind="stable")
        breaks = np.concatenate([[0], np.cumsum(np.diff(times[order]) > SESSION_GAP_S)])
        number = np.empty(len(times), np.int64)
        number[order] = breaks
        found.append(("breaks of more than an hour between pictures", [str(value) for value in number]))
    cameras = [item.facts.camera if item.facts else "" for item in dataset.items]
    found.append(("the camera that EXIF names", cameras))
    stems = name_stems(dataset)
    if len(set(stems)) <= max(MAX_CATEGORIES, len(stems) // 20):
        found.append(("what file names begin with", stems))
    return found


# ---- predictions on parts that were not fitted on


def _crossed(
    values: NDArray[np.float64], labels: NDArray[np.bool_], groups: NDArray[np.int64], seed: int
) -> NDArray[np.float64]:
    folds = grouped_folds(labels, groups, seed)
    scores = np.full(len(labels), float(labels.mean()))
    for fold in range(int(folds.max()) + 1):
        inside, outside = folds != fold, folds == fold
        if outside.any() and 0 < labels[inside].sum() < inside.sum():
            leaf = max(5, int(inside.sum()) // 50)
            tree = DecisionTreeClassifier(
                max_depth=4, min_samples_leaf=leaf, class_weight="balanced", random_state=seed
            )
            scores[outside] = tree.fit(values[inside], labels[inside]).predict_proba(values[outside])[:, 1]
    return scores


def _linear(
    pooled: NDArray[np.float32], marks: NDArray[np.bool_], groups: NDArray[np.int64], seed: int
) -> NDArray[np.float64]:
    folds = grouped_folds(marks, groups, seed, most=3)
    scores = np.zeros(len(marks))
    for fold in range(int(folds.max()) + 1):
        inside, outside = folds != fold, folds == fold
        if not outside.any() or not 0 < marks[inside].sum() < inside.sum():
            continue
        known, asked = project_apart(pooled[inside], pooled[outside], seed)
        model = LogisticRegression(C=1.0, class_weight="balanced", max_iter=300, tol=1e-3)
        model.fit(known[:, :COMPONENTS].astype(np.float64), marks[inside])
        scores[outside] = model.decision_function(asked[:, :COMPONENTS].astype(np.float64))
    return scores
