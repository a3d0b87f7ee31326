"""A folder of labelled images: what is in it, and what is wrong with it."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from lineward.images import SUFFIXES, ImageFileError
from lineward.models.features import Source, write_whole
from lineward.models.filefacts import FACTS_VERSION, Facts, find_facts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

MIN_GOOD = 10
MIN_DEFECT = 4
"""Below these, grouped folds with both kinds in each cannot be made, let alone a hold-out."""
CONTENT = "content "
"""Begins the group of an image whose part nobody has named; the digest of its bytes follows."""


class DatasetError(ValueError):
    """A data folder cannot be used; the message names the folder or file, what is wrong and what to do."""


class UnreadableError(DatasetError):
    """There are images in it that cannot be read.

    Attributes
    ----------
    files
        All of them.
    """

    def __init__(self, text: str, files: tuple[Path, ...]) -> None:
        super().__init__(text)
        self.files = files


@dataclass(frozen=True, slots=True)
class Item:
    """One labelled image: its ``file`` below the folder with forward slashes, content, label and part."""

    file: str
    source: Source
    defect_type: str | None
    group: str
    mono: bool | None
    facts: Facts | None = field(default=None, compare=False)

    @property
    def defective(self) -> bool:
        """Whether it lies under ``defect/``."""
        return self.defect_type is not None


@dataclass(frozen=True, slots=True)
class Dataset:
    """A folder that was read completely and found usable.

    ``groups_known`` tells whether ``groups.csv`` named the part on each image; ``warnings`` are sentences for the user.
    """

    folder: Path
    items: tuple[Item, ...]
    groups_known: bool
    warnings: tuple[str, ...] = ()
    digest: str = field(default="", compare=False)

    @property
    def labels(self) -> NDArray[np.bool_]:
        """``(n,)``, true for defective."""
        return np.array([item.defective for item in self.items], bool)

    @property
    def groups(self) -> NDArray[np.int64]:
        """``(n,)``, the number of the part on each image."""
        numbers = {group: number for number, group in enumerate(sorted({item.group for item in self.items}))}
        return np.array([numbers[item.group] for item in self.items], np.int64)

    @property
    def sources(self) -> list[Source]:
        """The image files with their digests."""
        return [item.source for item in self.items]

    @property
    def kinds(self) -> list[str | None]:
        """The type of the defect on each image; none for good ones, and empty where a defect's type has no name."""
        return [item.defect_type for item in self.items]

    @property
    def defect_types(self) -> Counter[str]:
        """Images by type of defect; a defect directly below ``defect/`` has no type."""
        return Counter(item.defect_type for item in self.items if item.defect_type)

    @property
    def mono(self) -> bool:
        """Whether to train on brightness alone: as soon as one file is mono, colour would tell files, not parts."""
        return any(item.mono for item in self.items) or not any(item.mono is False for item in self.items)


def read_dataset(
    folder: Path,
    *,
    cache_dir: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    threads: int = 2,
    training: bool = True,
    conflicts: Literal["refuse", "keep"] = "refuse",
) -> Dataset:
    """Read ``good/**``, ``defect/<type>/**`` and ``groups.csv`` (file,group,label; only file and group are used).

    A file with an image's suffix that cannot be decoded is refused, not skipped: what was labelled is what is trained
    on. Files with other suffixes are ignored. Without ``groups.csv`` images with the same bytes form a part.

    Parameters
    ----------
    folder
        The data folder.
    cache_dir
        Keeps what decoding found out, by content; a second reading decodes nothing.
    progress
        Called with how many of how many files are read, from this thread.
    training
        Whether to insist on enough images: of good parts, and of defective ones unless there are none.
    conflicts
        What to do about one content under both labels: `dataset check` keeps them, to name them all.

    Raises
    ------
    DatasetError
        No such folder, no ``good``, too few, broken files, or one content under two labels.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; give one that holds good/ and defect/<type>/")
    files = _labelled_files(folder)
    _check_counts(folder, files, training=training)
    facts: list[Facts] = []
    broken: dict[Path, str] = {}
    with ThreadPoolExecutor(threads, thread_name_prefix="dataset") as pool:
        found = pool.map(lambda path: facts_of(path, cache_dir), (path for path, _ in files))
        for done, ((path, _), fact) in enumerate(zip(files, found, strict=True), 1):
            if isinstance(fact, ImageFileError):
                broken[path] = str(fact)
            else:
                facts.append(fact)
            if progress and (done % 16 == 0 or done == len(files)):
                progress(done, len(files))
    if broken:
        first, *others = broken.values()
        more = f" (and {len(others)} more broken files)" if others else ""
        raise UnreadableError(f"{first}{more}; replace or remove what cannot be read", tuple(broken))
    if conflicts == "refuse":
        _check_conflicts(files, facts)
    groups, known, warnings = _groups(folder, files, facts)
    warnings += mixed_colour([fact.mono for fact in facts])
    items = tuple(
        Item(path.relative_to(folder).as_posix(), Source(path, fact.digest), kind, group, fact.mono, fact)
        for (path, kind), fact, group in zip(files, facts, groups, strict=True)
    )
    return Dataset(folder, items, known, tuple(warnings), _digest(items))


def mixed_colour(mono: Sequence[bool | None]) -> list[str]:
    """Say in one sentence, or none, that some images are in colour and others are not."""
    count, colour = sum(kind is True for kind in mono), sum(kind is False for kind in mono)
    return [f"{count} images are mono and {colour} in colour: all are used as mono"] if count and colour else []


def _labelled_files(folder: Path) -> list[tuple[Path, str | None]]:
    """Image files in a fixed order, with their defect type, "" for a defect without a type and None for good."""
    good, defect = folder / "good", folder / "defect"
    if not good.is_dir():
        raise DatasetError(f"{folder}: there is no folder good/ in it; put the images of good parts there")
    found: list[tuple[Path, str | None]] = [(path, None) for path in find_images(good)]
    for path in find_images(defect):
        below = path.relative_to(defect).parts
        found.append((path, below[0] if len(below) > 1 else ""))
    for path, _ in found:
        try:
            str(path.relative_to(folder)).encode()
        except UnicodeEncodeError as error:
            raise DatasetError(f"{str(path)!r}: the name is not in UTF-8; rename the file or its folder") from error
    return found


def find_images(folder: Path) -> list[Path]:
    """Return image files anywhere below a folder, sorted, none when it does not exist; what is hidden is left out.

    Links to folders are followed, each folder is read once: a link that leads back to where it lies is no loop.

    Raises
    ------
    DatasetError
        A folder cannot be read, or a link leads nowhere.
    """
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    real: list[Path] = [folder] if os.path.lexists(folder) else []
    linked: list[Path] = []
    while real or linked:
        place = real.pop() if real else linked.pop(linked.index(min(linked)))  # what is no link keeps its name
        try:
            status = place.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(place) as entries:
                for entry in entries:
                    path = place / entry.name
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        (linked if entry.is_symlink() else real).append(path)
                    elif entry.is_file():
                        found += [path] if path.suffix.lower() in SUFFIXES else []
                    elif entry.is_symlink():
                        linked.append(path)  # to what is gone or not mounted now: opening it says so
        except OSError as error:
            reason = f"cannot be read: {error.strerror or error}"
            raise DatasetError(f"{error.filename or place}: {reason}; make it readable or remove it") from error
    return sorted(found)


def _check_counts(folder: Path, files: list[tuple[Path, str | None]], *, training: bool) -> None:
    good = sum(kind is None for _, kind in files)
    defect = len(files) - good
    if not files:
        raise DatasetError(f"{folder}: no images in good/ or defect/ ({', '.join(sorted(SUFFIXES))})")
    if not training:
        return
    if good < MIN_GOOD or 0 < defect < MIN_DEFECT:
        raise too_few(folder, good, defect)


def too_few(folder: Path, good: int, defect: int) -> DatasetError:
    """Return the error that says how many images are needed."""
    return DatasetError(
        f"{folder}: {good} good and {defect} defective images are too few; at least {MIN_GOOD} good ones "
        f"are needed, and {MIN_DEFECT} defective ones or none at all (then it learns good parts only); 800 to 900 "
        "and 100 to 200 are recommended"
    )


def facts_of(path: Path, cache_dir: Path | None) -> Facts | ImageFileError:
    """Return what is known of a file, from the cache where it is there, or why it cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        return ImageFileError(f"{path}: cannot be read: {error.strerror or error}")
    digest = hashlib.sha256(data).hexdigest()
    note = cache_dir / "facts" / digest[:2] / f"{digest}.{FACTS_VERSION}.json" if cache_dir else None
    if note is not None and note.exists():
        try:
            return Facts(**json.loads(note.read_text()))
        except (ValueError, TypeError, OSError):
            pass  # half-written by a crash of the machine: found out again
    try:
        found = find_facts(data, digest, str(path))
    except ImageFileError as error:
        return error
    if note is not None:
        write_whole(note, json.dumps(asdict(found)).encode())
    return found


def _check_conflicts(files: list[tuple[Path, str | None]], facts: list[Facts]) -> None:
    seen: dict[str, tuple[Path, str | None]] = {}
    for (path, kind), fact in zip(files, facts, strict=True):
        other, other_kind = seen.setdefault(fact.digest, (path, kind))
        if (kind is None) != (other_kind is None):
            raise DatasetError(f"{path}: the same image as {other}, which has the other label; remove one of them")


def _groups(
    folder: Path, files: list[tuple[Path, str | None]], facts: list[Facts]
) -> tuple[list[str], bool, list[str]]:
    table = folder / "groups.csv"
    warnings: list[str] = []
    named: dict[str, str] = {}
    if table.exists():
        try:
            with table.open(newline="", encoding="utf-8-sig") as stream:
                for row in csv.DictReader(stream):
                    if group := (row["group"] or "").strip():
                        file = row["file"].replace("\\", "/").strip()
                        if named.setdefault(file, group) != group:
                            raise DatasetError(
                                f"{table}: {file} has two groups, {named[file]} and {group}; leave one of the rows"
                            )
        except OSError as error:
            reason = f"cannot be read: {error.strerror or error}"
            raise DatasetError(f"{table}: {reason}; make it readable or remove it") from error
        except (KeyError, AttributeError, UnicodeDecodeError, csv.Error) as error:
            raise DatasetError(f"{table}: needs columns file and group, separated by commas, in UTF-8") from error
        missing = [path for path, _ in files if _below(folder, path).strip() not in named]
        if missing:
            warnings.append(f"groups.csv does not list {len(missing)} images, such as {_below(folder, missing[0])}")
    else:
        warnings.append("there is no groups.csv, so nobody has said which images show the same part")
    own = [
        named.get(_below(folder, path).strip(), CONTENT + fact.digest)
        for (path, _), fact in zip(files, facts, strict=True)
    ]
    groups = _with_copies(own, [fact.digest for fact in facts])
    return groups, table.exists() and not warnings, warnings


def _below(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def _with_copies(groups: list[str], digests: list[str]) -> list[str]:
    """Unite groups that hold copies of one image, whatever the table says; a name of the table stays one."""
    leader: dict[str, str] = {group: group for group in groups}

    def lead(group: str) -> str:
        while leader[group] != group:
            group = leader[group]
        return group

    first: dict[str, str] = {}
    for group, digest in zip(groups, digests, strict=True):
        mine, other = lead(group), lead(first.setdefault(digest, group))
        if mine != other:
            keep, give = sorted((mine, other), key=lambda name: (name.startswith(CONTENT), name))
            leader[give] = keep
    return [lead(group) for group in groups]


def _digest(items: tuple[Item, ...]) -> str:
    digest = hashlib.sha256()
    for item in items:
        digest.update(f"{item.file}\t{item.defect_type}\t{item.group}\t{item.source.digest}\n".encode())
    return digest.hexdigest()
