"""Start from an older bundle: find its training images again, add the new ones, and see whether anything was lost.

A training set travels by digest. Every training leaves a list of its images (digest, label, part) in the cache, under
the digest of the set, which is in the manifest; features are in the cache by the digest of each image. Together they
rebuild a model without the image files.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lineward.models.dataset import (
    CONTENT,
    MIN_DEFECT,
    MIN_GOOD,
    Dataset,
    DatasetError,
    Item,
    mixed_colour,
    read_dataset,
    too_few,
)
from lineward.models.features import Source, is_there, write_whole
from lineward.models.metrics import design_effect, measure, rate
from lineward.models.records import DIGEST_DIGITS

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from lineward.models.bundle import Bundle
    from lineward.models.fit import Crossfit
    from lineward.models.records import Manifest

    Progress = Callable[[int, int], None]


def read_training_set(  # noqa: PLR0917 - one caller
    data: Path, base: Manifest | None, base_data: Path | None, cache: Path, threads: int, progress: Progress
) -> Dataset:
    """Read what to train on: a folder, or a base's images and the new ones of a folder.

    Raises
    ------
    DatasetError
        Too few images, one part under both labels, or a base whose images cannot be found again.
    """
    if base is None:
        dataset = read_dataset(data, cache_dir=cache, progress=progress, threads=threads, training=False)
    else:
        if not base.data.trained_on:
            raise DatasetError("--base: an imported model has no training images to start from; train without --base")
        new = _read_new(data, cache, threads, progress)
        dataset = join(_find_base(base, base_data, cache, threads, new), new)
    _check_counts(dataset)
    return dataset


def _check_counts(dataset: Dataset) -> None:
    labels = dataset.labels
    defect, good = int(labels.sum()), int((~labels).sum())
    if good < MIN_GOOD or 0 < defect < MIN_DEFECT:
        raise too_few(dataset.folder, good, defect)


def _read_new(data: Path, cache: Path, threads: int, progress: Progress) -> Dataset:
    """Read new images; unlike a first training set they may be of one kind only, such as ``defect/`` alone."""
    if (data / "good").is_dir() or not data.is_dir():
        return read_dataset(data, cache_dir=cache, progress=progress, threads=threads, training=False)
    with tempfile.TemporaryDirectory(prefix="lineward-new-") as folder:
        view = Path(folder)
        (view / "good").mkdir()
        for name in ("defect", "groups.csv"):
            if (data / name).exists():
                (view / name).symlink_to((data / name).resolve())
        try:
            found = read_dataset(view, cache_dir=cache, progress=progress, threads=threads, training=False)
        except DatasetError as error:
            raise DatasetError(str(error).replace(str(view), str(data))) from error
    items = tuple(_moved(item, data / item.file) for item in found.items)
    return Dataset(data, items, found.groups_known, found.warnings, found.digest)


def _moved(item: Item, path: Path) -> Item:
    return Item(item.file, Source(path, item.source.digest), item.defect_type, item.group, item.mono)


def _find_base(base: Manifest, base_data: Path | None, cache: Path, threads: int, new: Dataset) -> Dataset:
    """Find the base's images; what is among the new ones is there, whatever the folder of the base has."""
    if base_data is not None:
        found = read_dataset(base_data, cache_dir=cache, threads=threads, training=False)
    else:
        found = _recall(cache, base.data.digest)
    present = {item.source.digest[:DIGEST_DIGITS] for item in (*found.items, *new.items)}
    missing = set(base.data.trained_on) - present
    if missing:
        raise DatasetError(
            f"{found.folder}: {len(missing)} of the {len(base.data.trained_on)} images that the base was trained on "
            "are not there; give the folder it was trained from with --base-data"
        )
    return found


def require_files(dataset: Dataset) -> None:
    """Refuse a set with images of a base that were moved or overwritten since: the full tier reads all of them again.

    Raises
    ------
    DatasetError
        Images are gone, or others lie in their place.
    """
    gone = [item.source.path for item in dataset.items if not is_there(item.source)]
    if gone:
        raise DatasetError(
            f"{gone[0]}: {len(gone)} of {len(dataset.items)} images are not there any more or have changed, and "
            "--tier full reads them again; put them back, give the folder that the base was trained from with "
            "--base-data, or use --tier quick"
        )


def remember_training_set(cache: Path, dataset: Dataset) -> None:
    """Keep the list of images under the digest of the set."""
    record = {
        "folder": str(dataset.folder),
        "groups_known": dataset.groups_known,
        "warnings": dataset.warnings,
        "items": [
            [item.file, str(item.source.path.absolute()), item.source.digest, item.defect_type, item.group, item.mono]
            for item in dataset.items
        ],
    }
    write_whole(_record_path(cache, dataset.digest), json.dumps(record).encode())


def _recall(cache: Path, digest: str) -> Dataset:
    path = _record_path(cache, digest)
    try:
        record = json.loads(path.read_bytes())
        items = tuple(
            Item(file, Source(Path(place), content), kind, group, mono)
            for file, place, content, kind, group, mono in record["items"]
        )
        return Dataset(Path(record["folder"]), items, bool(record["groups_known"]), tuple(record["warnings"]), digest)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"{path}: the list of the base's training images is not there; give the folder that the base was trained "
            "from with --base-data"
        ) from error


def _record_path(cache: Path, digest: str) -> Path:
    return cache / "sets" / f"{digest}.json"


def join(old: Dataset, new: Dataset) -> Dataset:
    """Put two sets together; an image that both have counts once, with the new label if the labels differ.

    A part keeps its name in both, so that images of a known part join its group, and so does an image of the old set
    whose part the new one does not name.
    """
    before = {item.source.digest: item for item in old.items}
    again = {item.source.digest: item for item in new.items}
    corrected = sum(item.defective != before[digest].defective for digest, item in again.items() if digest in before)
    known = (before.get(item.source.digest) for item in new.items)
    added = tuple(
        replace(item, group=other.group) if other and item.group.startswith(CONTENT) else item
        for item, other in zip(new.items, known, strict=True)
    )
    items = tuple(item for item in old.items if item.source.digest not in again) + added
    mixture = mixed_colour([item.mono for item in items])
    warnings = dict.fromkeys((*old.warnings, *new.warnings, *mixture))
    if corrected:
        warnings[f"{corrected} images of the base were given the other label"] = None
    return Dataset(
        new.folder,
        items,
        old.groups_known and new.groups_known,
        tuple(warnings),
        _digest(items),
    )


def _digest(items: tuple[Item, ...]) -> str:
    digest = hashlib.sha256()
    for item in items:
        digest.update(f"{item.file}\t{item.defect_type}\t{item.group}\t{item.source.digest}\n".encode())
    return digest.hexdigest()


def compare_with_parent(
    manifest: Manifest,
    parent: Bundle,
    dataset: Dataset,
    said: Crossfit,
    groups: NDArray[np.int64],
    *,
    judged: NDArray[np.bool_] | None = None,
) -> Manifest:
    """Judge the candidate on the parent's parts; what is worse beyond the parent's interval is not promotable.

    Both sides are cross-fitted: neither model was fitted on a part when it was judged for these figures.
    ``judged`` tells, ``(n,)``, which images have such figures; all of them when it is not given.
    """
    known = set(parent.manifest.data.trained_on)
    old = np.array([item.source.digest[:DIGEST_DIGITS] in known for item in dataset.items])
    if judged is not None:
        old &= judged
    before = parent.manifest.holdout
    decisions = [decision for decision, kept in zip(said.decisions, old, strict=True) if kept]
    now = measure(dataset.labels[old], said.probabilities[old], decisions, 0.0, parts=groups[old])
    reasons = []
    for words, was, found in (
        ("false rejects", before.false_reject_rate, now.false_reject_rate),
        ("escapes", before.escape_rate, now.escape_rate),
    ):
        if was.value is not None and found.value is not None and found.value > was.high:
            reasons.append(f"{words} on the old parts rose from {was.value:.1%} to {found.value:.1%}")
    was_found, is_found = before.detection_at_2pct_fr, now.detection_at_2pct_fr
    if was_found is not None and is_found is not None:
        defects = old & dataset.labels
        effect = design_effect(said.probabilities[defects], groups[defects])
        low = rate(round(was_found * before.n_defect), before.n_defect, effect).low
        if is_found < low:
            reasons.append(
                f"detection at 2 % false rejects on the old parts fell from {was_found:.0%} to {is_found:.0%}"
            )
    text = f"{'; '.join(reasons)} (n={now.n_good} good, {now.n_defect} defective)" if reasons else ""
    return manifest.model_copy(
        update={
            "parent": parent.sha256,
            "parent_version": parent.manifest.version,
            "promotable": not reasons,
            "not_promotable": text,
            "old_parts": now,
        }
    )
