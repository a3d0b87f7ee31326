"""What `dataset check` says after looking at the pictures: which are alike, and how light and position vary."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from math import ceil
from typing import TYPE_CHECKING

import cv2
import numpy as np

from lineward.images import read_image
from lineward.models.duplicates import alike_pairs, near_pairs
from lineward.models.findings import Finding, number_of, some

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from lineward.models.dataset import Dataset
    from lineward.models.findings import Level

NEAR = 0.90
"""Cosine of standardised features from which two pictures are nearly the same. Pictures of one solar cell in pieces
have 0.81, pictures of one tile 0.62 at the median; of different parts, one pair in 100,000 has more than this."""
COPY = 0.965
"""Correlation of the finest structure from which two files are one shot, saved once more: of 420 solar cells and 190
simulated parts no two reach it, of 949 pictures of tiles one pair does, at 0.993."""
STEADY_BRIGHTNESS = 0.02
"""Spread of the brightness of good images, against its mean, below which no change of light is in the set."""
STEADY_POSITION = 0.003
POSITION_SIDE = 128
LINE_PICTURES = 300
"""At most so many pictures from the line are looked at."""
CLEAR_SHIFT = 0.25
"""Response of the phase correlation below which pictures have nothing in common that could have moved."""


def find_likeness(dataset: Dataset, pooled: NDArray[np.float32]) -> Iterator[Finding]:
    """Find copies and near copies, under both labels and across parts."""
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
            f"{number_of(len(torn), 'pair')} of images nearly the same, with different labels: {some(shown)}; look at "
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
                f"{len(torn_images)} images look nearly like an image of another part: {some(shown)}; if they show "
                "one part, give it one group in groups.csv, else training and test share it",
                {
                    "images": len(torn_images),
                    "pairs": [[names[a], names[b], round(alike, 3)] for a, b, alike in across][:100],
                },
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


def find_coverage(dataset: Dataset, production: Sequence[Path] | None) -> Iterator[Finding]:
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
    means: list[float] = []
    small: list[NDArray[np.float32]] = []
    for path in production[:: ceil(len(production) / LINE_PICTURES)]:  # one picture in memory at a time
        image = read_image(path)
        means.append(float(_grey(image).mean()))
        small.append(_small(image))
    low, high = brightness
    levels = np.array(means)
    outside = float(((levels < low) | (levels > high)).mean())
    figures: dict[str, object] = {"outside": outside, "n": len(means), "low": low, "high": high}
    text = (
        f"{outside:.0%} of {len(means)} pictures from the line are darker or brighter than all but 2 % of the good "
        f"images (mean grey level {low:.0f} to {high:.0f})"
    )
    if outside > 0.1:
        yield Finding("exposure_coverage", "problem", text + "; label some of them and add them", figures)
    else:
        yield Finding("exposure_coverage", "ok", text, figures)
    theirs = _shifts(small, reference)
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
