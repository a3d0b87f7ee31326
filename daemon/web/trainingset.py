"""Labelled pictures as folders: what a model is trained on, and what it is tested on and never sees.

A physical part is wholly on one side. Which side follows from its name alone, so it never changes between trainings.
"""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lineward.daemon.label_records import FAIL, LABELLED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from lineward.daemon.label_records import Part
    from lineward.daemon.labels import LabelStore

HELD_OUT = 5
"""One part in so many is kept for testing."""


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """What `write_sets` wrote: folder, and how many pictures there are from the page and from the base data.

    ``base_out`` pictures of the base data are left out: their part is kept for testing.
    """

    folder: Path
    labelled: int
    base: int
    base_out: int
    held_out: list[Part]


def is_held_out(part: Part) -> bool:
    """Tell whether a part is for testing by its name alone; see `held_out`."""
    digest = hashlib.sha256(f"{part.product}/{part.group}".encode()).digest()
    return digest[0] % HELD_OUT == 0


def held_out(labels: LabelStore, product: str) -> list[Part]:
    """Return the labelled pictures for testing. An escape is always trained on: it must never happen again."""
    escapes = {part.image for part in labels.escapes(product)}
    parts = labels.parts(product, status=LABELLED)
    return [part for part in parts if is_held_out(part) and part.image not in escapes]


def write_sets(labels: LabelStore, product: str, folder: Path, base: Path | None) -> TrainingSet:
    """Write ``good/``, ``defect/<type>/`` and ``groups.csv`` of a product below ``folder``, with links where possible.

    A picture of the base data that is held out, and with it every other one of its part, is left out. One that is
    labelled here counts once, with the label that it has here, and its part is one part with what the base has of it.

    Raises
    ------
    OSError
        The folder cannot be written to.
    DatasetError
        A folder of the base data cannot be read.
    """
    held = held_out(labels, product)
    out = {part.image for part in held}
    parts = labels.parts(product, status=LABELLED)
    groups: list[tuple[str, str, str]] = []
    (folder / "good").mkdir(parents=True, exist_ok=True)
    used = [part for part in parts if part.image not in out]
    count = _write_parts(labels, used, folder, groups)
    known = {labels.file(part): part.group for part in used}
    from_base, base_out = 0, 0
    if base is not None:
        from_base, base_out = _link_base(base, folder, groups, [labels.file(part) for part in held], known)
    write_groups(folder, groups)
    return TrainingSet(folder, count, from_base, base_out, held)


def place(part: Part) -> str:
    """Return where a labelled picture lies in a training folder."""
    suffix = "." + part.path.rsplit(".", 1)[-1]
    below = "good" if part.label != FAIL else f"defect/{part.label_type}" if part.label_type else "defect"
    return f"{below}/{part.image}{suffix}"


def write_groups(folder: Path, rows: Iterable[tuple[str, str, str]]) -> None:
    """Write ``groups.csv``: file, group, label."""
    with (folder / "groups.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("file", "group", "label"))
        writer.writerows(rows)


def _write_parts(labels: LabelStore, parts: Iterable[Part], folder: Path, groups: list[tuple[str, str, str]]) -> int:
    count = 0
    for part in parts:
        source = labels.file(part)
        if not source.is_file():
            continue
        name = place(part)
        link(source, folder / name)
        groups.append((name, part.group, "good" if part.label != FAIL else part.label_type or "defect"))
        count += 1
    return count


def _link_base(
    base: Path, folder: Path, groups: list[tuple[str, str, str]], held: Iterable[Path], used: Mapping[Path, str]
) -> tuple[int, int]:
    """Link what the base has besides ``held`` parts and ``used`` pictures, whose parts are given; count both."""
    from lineward.models.dataset import find_images  # noqa: PLC0415 - brings ONNX Runtime, which the page does without

    named = _base_groups(base)
    pictures = [*find_images(base / "defect"), *find_images(base / "good")]
    out = _copies(pictures, held)
    twins = _copies(pictures, used)
    parts_out = {named.get(path.relative_to(base).as_posix()) for path in out} - {None}
    same_part = {named.get(path.relative_to(base).as_posix()): used[twin] for path, twin in twins.items()}
    count, left_out = 0, 0
    for path in pictures:
        file = path.relative_to(base)
        group = named.get(file.as_posix())
        if path in twins and path not in out:
            continue
        if path in out or group in parts_out:
            left_out += 1
            continue
        # Below a folder of its own, so that no name meets one of ours; the defect type stays the first folder.
        head = 1 if file.parts[0] == "good" or len(file.parts) == 2 else 2
        name = "/".join(
            (*file.parts[:head], *(["base"] if head > 1 or file.parts[0] == "good" else []), *file.parts[head:])
        )
        link(path, folder / name)
        if group is not None:
            groups.append(
                (name, same_part.get(group, f"base/{group}"), "good" if file.parts[0] == "good" else "defect")
            )
        count += 1
    return count, left_out


def _base_groups(base: Path) -> dict[str, str]:
    """Return which part is on each picture; a row whose group is blank says nothing."""
    table = base / "groups.csv"
    if not table.is_file():
        return {}
    with table.open(newline="", encoding="utf-8-sig") as stream:
        rows = [(str(row.get("file", "")), str(row.get("group") or "").strip()) for row in csv.DictReader(stream)]
    return {file.replace("\\", "/"): group for file, group in rows if group}


def _copies(pictures: Iterable[Path], of: Iterable[Path]) -> dict[Path, Path]:
    """Return the pictures with the bytes of others, and which; only those of the same size are read."""
    by_size: dict[int, list[Path]] = {}
    for path in of:
        if path.is_file():
            by_size.setdefault(path.stat().st_size, []).append(path)
    digests: dict[int, dict[bytes, Path]] = {}
    found = {}
    for path in pictures:
        size = path.stat().st_size
        if size not in by_size:
            continue
        if size not in digests:
            digests[size] = {_digest(other): other for other in by_size[size]}
        twin = digests[size].get(_digest(path))
        if twin is not None:
            found[path] = twin
    return found


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def link(source: Path, goal: Path) -> None:
    """Give a file a second name; a copy where that cannot be."""
    goal.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, goal)
    except FileExistsError:
        return
    except OSError:
        shutil.copyfile(source, goal)
