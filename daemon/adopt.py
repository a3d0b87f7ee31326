"""Images and ledger brought to agree: rows without files, files without rows, and a ledger that was lost.

Beside each kept image lies the record of its answer. From these the rows of a lost ledger are made again; the broker
had them, so they are not sent twice. What nothing can be made of is deleted after a week at the earliest, and only
files that carry a name of ours.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from lineward.daemon.ledger_file import IMAGE_NAME
from lineward.daemon.ledger_read import ImageRow
from lineward.daemon.quota import remove_image_file
from lineward.daemon.result import encode_record

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lineward.daemon.ledger import Ledger

log = logging.getLogger("lineward.review")

GRACE_S = 7 * 86400.0
"""A file that nothing is known of stays so long after it was last changed in any way."""


@dataclass(slots=True)
class Sweep:
    """What one look at the images did.

    Attributes
    ----------
    adopted
        Files that got their row again.
    forgotten
        Rows whose file was gone or cut off.
    deleted
        Files of no use, older than the grace period.
    waiting
        Such files that are younger.
    """

    adopted: int = 0
    forgotten: int = 0
    deleted: int = 0
    waiting: int = 0

    def __str__(self) -> str:
        return (
            f"{self.adopted} images were taken into the ledger again, {self.forgotten} rows had no whole image, "
            f"{self.deleted} files of no use were deleted, {self.waiting} are too young for that"
        )


def sweep(root: Path, ledger: Ledger, *, now_s: float | None = None) -> Iterator[Sweep]:
    """Bring images and rows to agree, a file at each step; the same object comes each time.

    Raises `OSError` when disk or ledger cannot be read or written.
    """
    done = Sweep()
    yield done
    now_s = time.time() if now_s is None else now_s
    known = {row.path: row for row in ledger.images(newest=-1)}
    for name, row in known.items():
        path = root / name
        if not path.is_file() or path.stat().st_size != row.bytes:
            remove_image_file(path)
            ledger.remove_image(row.image_id)
            done.forgotten += 1
            yield done
    known = {row.path: row for row in ledger.images(newest=-1)}  # images were kept meanwhile
    for path in _strangers(root, known):
        if path.name.endswith(".png") and _adopt(root, path, ledger):
            done.adopted += 1
        elif path.exists():
            _let_go(path, now_s, done)
        yield done


def _strangers(root: Path, known: dict[str, ImageRow]) -> Iterator[Path]:
    """Yield files with names of ours that belong to no row, oldest day first."""
    for path in sorted((root / "images").glob("*/*/*")):
        name = path.relative_to(root).as_posix()
        image = name.removesuffix(".part").rpartition(".")[0] + ".png"
        if IMAGE_NAME.match(path.name) and not path.is_symlink() and (image not in known or name.endswith(".part")):
            yield path


def _adopt(root: Path, path: Path, ledger: Ledger) -> bool:
    """Give a file its row again; False when its side-car does not belong to it or its picture is cut off."""
    name = IMAGE_NAME.match(path.name)
    if name is None or not _is_whole(path):
        return False
    try:
        record = json.loads(path.with_suffix(".json").read_bytes())
        values = row_of(record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return False
    if (values[0], record.get("image")) != (int(name[1]), name[2]):
        return False
    size = path.stat().st_size
    image = ImageRow(name[2], values[0], path.relative_to(root).as_posix(), size, values[4], values[2])
    try:
        ledger.adopt(image, values)
    except (ValueError, OverflowError):  # words or numbers that no ledger of ours has written
        return False
    return True


def _is_whole(path: Path) -> bool:
    """Whether a PNG file has its beginning and its end."""
    try:
        with path.open("rb") as file:
            if file.read(8) != b"\x89PNG\r\n\x1a\n":
                return False
            file.seek(-8, 2)
            return file.read(4) == b"IEND"
    except OSError:
        return False


def _let_go(path: Path, now_s: float, done: Sweep) -> None:
    status = path.stat()
    if path.name.endswith(".json") and path.with_suffix(".png").exists():
        return  # its picture decides about both
    if now_s - max(status.st_mtime, status.st_ctime) < GRACE_S:
        done.waiting += 1
        return
    path.unlink(missing_ok=True)
    done.deleted += 1


def row_of(record: dict[str, Any]) -> tuple[Any, ...]:
    """Make the ledger's row of a side-car. Raises what a record that is none raises: `ValueError` and its kin."""
    times, camera = record["times"], record["camera"]
    seq, frame_id = record["seq"], camera["frame_id"]
    if not isinstance(seq, int) or not 0 < seq < 1 << 62 or record["verdict"] not in {"pass", "fail", "review"}:
        raise ValueError("no record of an answer")
    if frame_id is not None and not isinstance(frame_id, int):
        raise ValueError("no frame number")
    return (
        seq,
        _unix_ns(times["trigger"]),
        _unix_ns(times["published"]),
        None,
        str(record["verdict"]),
        str(record["reason"]),
        str(record["part_id"]),
        None if frame_id is None else frame_id & 0x7FFF_FFFF_FFFF_FFFF,
        str(camera["serial"]),
        str(record["product"]),
        str(record["model"]["sha256"]),
        float(record["confidence"]),
        bool(record["late"]),
        1,
        encode_record(record),
        None,
    )


def _unix_ns(text: str) -> int:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time without its zone")
    return round(moment.timestamp() * 1000) * 1_000_000
