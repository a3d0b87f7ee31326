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
from lineward.images import SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from lineward.daemon.label_records import Part
    from lineward.daemon.labels import LabelStore

HELD_OUT = 5
"""One part in so many is kept for testing."""


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """What `write_sets` wrote: folder, and how many pictures there are from the page and from the base data."""

    folder: Path
    labelled: int
    base: int
    held_out: list[Part]


def is_held_out(part: Part) -> bool:
    """Tell whether a part is for testing. An escape is always trained on: it must never happen again."""
    digest = hashlib.sha256(f"{part.product}/{part.group}".encode()).digest()
    return digest[0] % HELD_OUT == 0


def write_sets(labels: LabelStore, product: str, folder: Path, base: Path | None) -> TrainingSet:
    """Write ``good/``, ``defect/<type>/`` and ``groups.csv`` of a product below ``folder``, with links where possible.

    Raises
    ------
    OSError
        The folder cannot be written to.
    """
    escapes = {part.image for part in labels.escapes(product)}
    parts = labels.parts(product, status=LABELLED)
    held = [part for part in parts if is_held_out(part) and part.image not in escapes]
    out = {part.image for part in held}
    groups: list[tuple[str, str, str]] = []
    (folder / "good").mkdir(parents=True, exist_ok=True)
    count = _write_parts(labels, [part for part in parts if part.image not in out], folder, groups)
    from_base = _link_base(base, folder, groups) if base is not None else 0
    write_groups(folder, groups)
    return TrainingSet(folder, count, from_base, held)


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


def _link_base(base: Path, folder: Path, groups: list[tuple[str, str, str]]) -> int:
    named: dict[str, str] = {}
    table = base / "groups.csv"
    if table.is_file():
        with table.open(newline="", encoding="utf-8-sig") as stream:
            named = {
                str(row.get("file", "")).replace("\\", "/"): str(row.get("group", "")) for row in csv.DictReader(stream)
            }
    count = 0
    for path in sorted((*(base / "good").rglob("*"), *(base / "defect").rglob("*"))):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith(".") or not path.is_file():
            continue
        file = path.relative_to(base)
        # Below a folder of its own, so that no name meets one of ours; the defect type stays the first folder.
        head = 1 if file.parts[0] == "good" or len(file.parts) == 2 else 2
        name = "/".join(
            (*file.parts[:head], *(["base"] if head > 1 or file.parts[0] == "good" else []), *file.parts[head:])
        )
        link(path, folder / name)
        if (group := named.get(file.as_posix())) is not None:
            groups.append((name, f"base/{group}", "good" if file.parts[0] == "good" else "defect"))
        count += 1
    return count


def link(source: Path, goal: Path) -> None:
    """Give a file a second name; a copy where that cannot be."""
    goal.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, goal)
    except FileExistsError:
        return
    except OSError:
        shutil.copyfile(source, goal)
