"""What a row of the ledger holds, and how it is written."""

from __future__ import annotations

import contextlib
import math
import sqlite3
import time
from typing import TYPE_CHECKING, Any

from lineward.daemon.ledger_file import COLUMNS
from lineward.daemon.ledger_read import OutboxRow

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lineward.daemon.result import Result

Values = tuple[Any, ...]
PAYLOAD = 14
"""Its place among the values of a row."""

INSERT = f"INSERT INTO results VALUES ({', '.join('?' * COLUMNS)})"  # noqa: S608 - only question marks
INSERT_TRIGGER = "INSERT OR IGNORE INTO triggers VALUES (?, ?, ?, ?, ?, ?)"


def probe(db: sqlite3.Connection) -> None:
    """Write something real and small, to learn whether the disk takes writes again."""
    with transaction(db):
        db.execute("INSERT OR REPLACE INTO images VALUES ('', 0, '', 0, '', 0)")
        db.execute("DELETE FROM images WHERE id = ''")


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All of it or nothing; what goes wrong is raised."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise


def values_of(result: Result) -> Values:
    """Return the columns of an answer."""
    frame_id = result.camera.frame_id
    return (
        result.seq,
        result.trigger_unix_ns,
        time.time_ns(),
        result.deadline_unix_ns,
        str(result.verdict),
        text_of(result.reason),
        text_of(result.part_id),
        None if frame_id is None else frame_id & 0x7FFF_FFFF_FFFF_FFFF,  # block ids may use all 64 bits
        text_of(result.camera.serial),
        text_of(result.product),
        result.model.sha256,
        finite(result.confidence),
        result.late,
        0,
        result.payload(),
        result.trigger_no,
    )


def finite(value: float) -> float:
    """Return a number that JSON and SQLite take; 0 for one that is none."""
    return value if math.isfinite(value) else 0.0


def text_of(text: str) -> str:
    """Make text that SQLite takes: a part id from a broken code reader may hold half of a surrogate pair."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def outbox_row(values: Values) -> OutboxRow:
    """Return what the outbox needs of a row in memory."""
    return OutboxRow(values[0], values[3], values[2], bool(values[12]), values[PAYLOAD])
