"""Pictures in: ZIP files and folders with labels, checked through and through before anything is taken over."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import lzma
import os
import stat
import struct
import tempfile
import zipfile
import zlib
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from lineward.daemon.label_records import FAIL, FOLDER, LABELLED, PASS, LabelError, Part, as_spelled, clean_type
from lineward.daemon.web import flagged
from lineward.daemon.web.scratch import IMPORT, AtWork
from lineward.images import SUFFIXES, ImageFileError, decode_image

if TYPE_CHECKING:
    from collections.abc import Callable

    from lineward.daemon.labels import LabelStore

MOST_FILES = 20_000
MOST_BYTES = 20 << 30
MOST_FILE_BYTES = 256 << 20
MOST_GROUPS_BYTES = 16 << 20
MOST_RATIO = 200
"""A picture does not shrink to a two-hundredth; what does is a bomb."""

MOST_SIDE_PX = 16_384
MOST_PIXELS = 64_000_000
LONGEST_NAME = 200

_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, struct.error, OSError)
_NOT_OF_A_DISK = {None, errno.EINVAL}
"""What a damaged ZIP file raises; an `OSError` with another number than bz2's and a seek below 0 is a disk's."""


class TransferError(ValueError):
    """An import or export is refused; the message names the file, what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import brought: pictures that were new or said something new, and those that were there already."""

    new: int
    known: int


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    size: int
    decision: str
    defect_type: str


def import_zip(
    labels: LabelStore, path: Path, product: str, who: str, *, escaped: bool = False, correct: bool = False
) -> Imported:
    """Take in the labelled pictures of a ZIP file with ``good/`` and ``defect/<type>/``: all or none.

    A ``groups.csv`` beside these folders says which part is on each picture.

    ``escaped``: these parts were found defective after the line had let them through ("never again").
    ``correct``: what it says holds, whatever a picture is known as.

    Raises
    ------
    TransferError
        Something in it is not as it should be; nothing was changed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            infos = {info.filename: info for info in archive.infolist() if not info.is_dir()}
            _check_total(len(archive.infolist()), sum(info.file_size for info in infos.values()))
            for info in infos.values():
                _check_info(info)
            files = [(info.filename, info.file_size) for info in infos.values()]

            def read(entry: _Entry) -> bytes:
                with archive.open(infos[entry.name]) as stream:
                    return stream.read(entry.size + 1)

            return _take_in(labels, files, read, product, who, escaped=escaped, correct=correct)
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.errno not in _NOT_OF_A_DISK:
            raise
        raise TransferError(f"this is not a whole ZIP file ({error}); make it again, nothing was changed") from error


def import_folder(
    labels: LabelStore, folder: Path, product: str, who: str, *, escaped: bool = False, correct: bool = False
) -> Imported:
    """Take in the labelled pictures of a folder with ``good/`` and ``defect/<type>/``: all or none; as `import_zip`."""
    found: list[tuple[str, int]] = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise TransferError(f"{path}: is a link; copy the picture itself into the folder, nothing was changed")
        if path.is_file():
            found.append((path.relative_to(folder).as_posix(), path.stat().st_size))
    if not found:
        raise TransferError(f"{folder}: no such folder, or it is empty; give one that holds good/ and defect/TYPE/")
    _check_total(len(found), sum(size for _, size in found))

    def read(entry: _Entry) -> bytes:
        return (folder / entry.name).read_bytes()

    return _take_in(labels, found, read, product, who, escaped=escaped, correct=correct)


def _check_total(count: int, size: int) -> None:
    if count > MOST_FILES:
        raise TransferError(f"{count} files are too many; at most {MOST_FILES} at a time, nothing was changed")
    if size > MOST_BYTES:
        raise TransferError(
            f"{size / 1e9:.0f} GB unpacked is too much; at most {MOST_BYTES / 1e9:.0f}, nothing was changed"
        )


def _check_info(info: zipfile.ZipInfo) -> None:
    name = _shown(info.filename)
    if info.flag_bits & 1:
        raise TransferError(f"{name}: is encrypted; make the ZIP file without a password, nothing was changed")
    if stat.S_ISLNK(info.external_attr >> 16):
        raise TransferError(f"{name}: is a link; put the picture itself into the ZIP file, nothing was changed")
    if info.file_size > 1 << 20 and info.file_size > MOST_RATIO * max(1, info.compress_size):
        raise TransferError(f"{name}: grows {MOST_RATIO} times and more when unpacked; refused, nothing was changed")


def _entries(files: list[tuple[str, int]]) -> list[_Entry]:
    """Look at every name; only pictures below ``good`` and ``defect`` count, and no name leads anywhere else."""
    found = []
    for name, size in files:
        parts = name.replace("\\", "/").split("/")  # as old programs on Windows wrote them
        shown = _shown(name)
        if name.startswith(("/", "\\")) or ":" in parts[0] or any(part in {"", ".", ".."} for part in parts):
            raise TransferError(f"{shown}: this name leads out of the folder; refused, nothing was changed")
        if not name.isprintable() or any(c in "<>\"'&`|*?$" for c in name) or len(name) > LONGEST_NAME:
            raise TransferError(
                f"{shown}: this name has signs that no picture's name needs; use letters, digits, - _ . and spaces, "
                "nothing was changed"
            )
        if parts[-1].startswith(".") or parts[0] == "__MACOSX" or Path(parts[-1]).suffix.lower() not in SUFFIXES:
            continue
        if size > MOST_FILE_BYTES:
            raise TransferError(
                f"{shown}: {size >> 20} MB is too large; at most {MOST_FILE_BYTES >> 20}, nothing was changed"
            )
        found.append(_entry(parts, name, size, shown))
    if not found:
        raise TransferError("no pictures below good/ or defect/TYPE/ are in it; nothing was changed")
    return found


def _as_spelled(entries: list[_Entry], in_use: list[str]) -> list[_Entry]:
    """Let a defect type have one spelling: that in use, else the one that comes first."""
    known, found = list(in_use), []
    for entry in entries:
        kind = as_spelled(entry.defect_type, known)
        known += [kind] if kind and kind not in known else []
        found.append(replace(entry, defect_type=kind))
    return found


def _entry(parts: list[str], name: str, size: int, shown: str) -> _Entry:
    below = next((parts[number:] for number in (0, 1) if parts[number : number + 1] in (["good"], ["defect"])), None)
    if below is None or len(below) < 2:
        raise TransferError(
            f"{shown}: lies neither below good/ nor below defect/TYPE/; move it there, nothing was changed"
        )
    if below[0] == "good":
        return _Entry(name, size, PASS, "")
    try:
        return _Entry(name, size, FAIL, clean_type(below[1]) if len(below) > 2 else "")
    except LabelError as error:
        raise TransferError(f"{shown}: {error}; nothing was changed") from error


def _parts(files: list[tuple[str, int]], read: Callable[[_Entry], bytes]) -> dict[str, str]:
    """Return which part is on each picture, as ``groups.csv`` says; a row whose group is blank says nothing."""
    found: dict[str, str] = {}
    for name, size in files:
        folder, _, last = name.replace("\\", "/").rpartition("/")
        if last != "groups.csv" or "/" in folder:
            continue
        if size > MOST_GROUPS_BYTES:
            raise TransferError(
                f"{name}: {size >> 20} MB is too large; at most {MOST_GROUPS_BYTES >> 20}, nothing was changed"
            )
        try:
            text = read(_Entry(name, size, "", "")).decode("utf-8-sig")
            rows = [
                (row["file"].replace("\\", "/"), (row["group"] or "").strip())
                for row in csv.DictReader(io.StringIO(text))
            ]
        except (KeyError, AttributeError, UnicodeDecodeError, csv.Error) as error:
            raise TransferError(
                f"{name}: needs columns file and group, separated by commas, in UTF-8; nothing was changed"
            ) from error
        for file, group in rows:
            if not group.isprintable() or len(group) > LONGEST_NAME:
                raise TransferError(
                    f"{name}: {_shown(group)!r} cannot name a part; use letters, digits and at most {LONGEST_NAME} "
                    "signs, nothing was changed"
                )
            if group:
                found[f"{folder}/{file}" if folder else file] = group
    return found


def _take_in(
    labels: LabelStore,
    files: list[tuple[str, int]],
    read: Callable[[_Entry], bytes],
    product: str,
    who: str,
    *,
    escaped: bool,
    correct: bool,
) -> Imported:
    entries = _as_spelled(_entries(files), [] if correct else labels.defect_types(product))
    part_ids = _parts(files, read)
    now = int(datetime.now(UTC).timestamp() * 1e9)
    rows: list[tuple[Part, str, str]] = []
    seen: dict[str, _Entry] = {}
    folder = labels.root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with closing(AtWork(labels.root)), tempfile.TemporaryDirectory(dir=folder, prefix=IMPORT) as scratch:
        for entry in entries:
            data = read(entry)
            check_picture(data, entry.name)
            digest = hashlib.sha256(data).hexdigest()
            if (other := seen.get(digest)) is not None:
                if (other.decision, other.defect_type) != (entry.decision, entry.defect_type):
                    raise TransferError(
                        f"{_shown(entry.name)}: the same picture as {_shown(other.name)}, which has another label; "
                        "remove one of them, nothing was changed"
                    )
                continue
            seen[digest] = entry
            image = f"i{digest[:20]}"
            suffix = Path(entry.name).suffix.lower()
            (Path(scratch) / f"{image}{suffix}").write_bytes(data)
            part = _imported(
                image, suffix, entry, product, part_ids.get(entry.name.replace("\\", "/"), ""), now, escaped=escaped
            )
            if not correct and (otherwise := labels.known_otherwise(part, entry.decision, entry.defect_type)):
                raise TransferError(f"{_shown(entry.name)}: {otherwise}; nothing was changed")
            rows.append((part, entry.decision, entry.defect_type))
        for part, _, _ in rows:
            name = Path(part.path).name
            os.replace(Path(scratch) / name, folder / name)  # noqa: PTH105 - the same bytes under the same name
        new = labels.add_labelled(rows, who, correct=correct)
    return Imported(new, len(rows) - new)


def _imported(  # noqa: PLR0917 - one caller
    image: str, suffix: str, entry: _Entry, product: str, part_id: str, now: int, *, escaped: bool
) -> Part:
    return Part(
        image=image,
        path=f"{FOLDER}/{image}{suffix}",
        product=product,
        part_id=part_id,
        seq=0,
        created_ns=now,
        origin="import",
        camera="import",
        verdict="",
        reason="",
        confidence=0.0,
        defect_probability=0.0,
        anomaly=0.0,
        defect_type="",
        model_version="",
        model_sha256="",
        why=flagged.ESCAPED if escaped else "",
        urgency=0.0,
        escaped=int(escaped and entry.decision == FAIL),
        status=LABELLED,
    )


def check_picture(data: bytes, name: str) -> None:
    """See that a picture can be decoded whole, and how large it is before it is.

    Raises
    ------
    TransferError
        It is cut off, too large, or no picture.
    """
    shown = _shown(name)
    size = header_size(data)
    if size is not None and (max(size) > MOST_SIDE_PX or size[0] * size[1] > MOST_PIXELS):
        raise TransferError(
            f"{shown}: {size[0]} x {size[1]} pixels are too many; at most {MOST_SIDE_PX} on a side and "
            f"{MOST_PIXELS // 1_000_000} million together, nothing was changed"
        )
    if size is None or min(size) < 1:
        raise TransferError(f"{shown}: not an image that Lineward reads (PNG, JPEG, TIFF or BMP); nothing was changed")
    try:
        decode_image(data, shown)
    except ImageFileError as error:
        raise TransferError(f"{error}; nothing was changed") from error


def header_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height as the head of a PNG, JPEG, BMP or TIFF file says, or None."""
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return struct.unpack(">II", data[16:24])
        if data.startswith(b"BM"):
            width, height = struct.unpack("<ii", data[18:26])
            return abs(width), abs(height)
        if data.startswith(b"\xff\xd8"):
            return _jpeg_size(data)
        if data[:4] in {b"II*\x00", b"MM\x00*"}:
            return _tiff_size(data)
    except struct.error:
        return None
    return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    position = 2
    while position + 9 < len(data):
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
        elif 0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}:
            height, width = struct.unpack(">HH", data[position + 5 : position + 9])
            return width, height
        else:
            position += 2 + struct.unpack(">H", data[position + 2 : position + 4])[0]
    return None


def _tiff_size(data: bytes) -> tuple[int, int] | None:
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack(order + "I", data[4:8])
    (count,) = struct.unpack(order + "H", data[start : start + 2])
    sizes: dict[int, int] = {}
    for number in reversed(range(count)):  # of a tag that comes twice the first counts, as it does when it is read
        at = start + 2 + 12 * number
        tag, kind = struct.unpack(order + "HH", data[at : at + 4])
        if tag in {256, 257}:
            form = "H" if kind == 3 else "I"
            (sizes[tag],) = struct.unpack(order + form, data[at + 8 : at + 8 + struct.calcsize(form)])
    return (sizes[256], sizes[257]) if len(sizes) == 2 else None


def _shown(name: str) -> str:
    """Write a name from outside so that it does no harm in a log or on a terminal."""
    return "".join(c if c.isprintable() else "?" for c in name)[:120]
