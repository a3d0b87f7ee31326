"""The file of the ledger: schema, opening, and a damaged one."""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import re
import sqlite3
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger("lineward.ledger")

SCHEMA = 2
"""Version of the tables, kept in SQLite's ``user_version``."""

COLUMNS = 16
"""Of the table of results."""

POWER_CUT_GAP = 10_000
"""Numbers left out after a power cut, which may have taken the rows of the last second or two with it."""

BUSY_MS = 30
"""What a write waits for somebody else's; then its row waits in memory, as on a disk in trouble."""

CHECKED_AT_START_BYTES = 64 << 20
"""Files up to this size are checked page by page at the start: 0.1 s per 64 MiB from cache."""

_TABLES = """
CREATE TABLE results (
    seq INTEGER PRIMARY KEY,
    trigger_ns INTEGER NOT NULL,   -- wall clock, nanoseconds since 1970, UTC
    recorded_ns INTEGER NOT NULL,
    deadline_ns INTEGER,           -- null: nobody waits (replay)
    verdict TEXT NOT NULL,
    reason TEXT NOT NULL,
    part_id TEXT NOT NULL,
    frame_id INTEGER,
    camera_serial TEXT NOT NULL,
    product TEXT NOT NULL,
    model_sha256 TEXT NOT NULL,
    confidence REAL NOT NULL,
    late INTEGER NOT NULL,
    acked INTEGER NOT NULL DEFAULT 0,
    payload BLOB NOT NULL,         -- JSON of the topic `result`
    trigger_no INTEGER             -- null: the frame itself was the trigger
);
CREATE INDEX outbox ON results (seq) WHERE acked = 0;
CREATE INDEX by_trigger ON results (trigger_ns);
CREATE INDEX by_part ON results (part_id) WHERE part_id != '';
CREATE TABLE images (
    id TEXT PRIMARY KEY,
    seq INTEGER NOT NULL,
    path TEXT NOT NULL,            -- relative to the storage root
    bytes INTEGER NOT NULL,
    kind TEXT NOT NULL,
    created_ns INTEGER NOT NULL
) WITHOUT ROWID;
"""

_IMAGES_BY_NUMBER = "CREATE INDEX IF NOT EXISTS images_by_number ON images (seq);"
"""Oldest first by number: a wall clock is set back and forth, and on a machine without a battery begins anew."""

_SINCE_2 = """
CREATE TABLE triggers (            -- what was asked for; one without a row in `results` was never answered
    no INTEGER PRIMARY KEY,
    trigger_id TEXT NOT NULL,
    part_id TEXT NOT NULL,
    source TEXT NOT NULL,          -- command: a trigger; part: an id announced for the next frame
    given_ns INTEGER NOT NULL,     -- wall clock, nanoseconds since 1970, UTC
    deadline_ns INTEGER            -- null: starts with the frame
);
CREATE INDEX by_trigger_no ON results (trigger_no) WHERE trigger_no IS NOT NULL;
CREATE TABLE late_verdicts (       -- a verdict that came after its trigger had been answered without it
    seq INTEGER PRIMARY KEY,       -- the answer that was given
    verdict TEXT NOT NULL,
    confidence REAL NOT NULL,
    defect_probability REAL NOT NULL,
    anomaly REAL NOT NULL,
    defect_type TEXT,
    recorded_ns INTEGER NOT NULL
);
"""


_NO_WAY_IN = {"SQLITE_CANTOPEN", "EROFS", "EACCES", "EPERM", "ENOENT", "ENOTDIR"}

IMAGE_NAME = re.compile(r"^(\d{1,18})-([0-9a-f]{1,32})\.(png|json)(\.part)?$")
"""Of kept images and their side-cars: number of the answer, id of the image."""


class LedgerError(OSError):
    """The ledger cannot do what was asked; the message says what to do."""


def open_writer(path: Path) -> sqlite3.Connection:
    """Open the database for writing, creating it when it is missing.

    Raises
    ------
    LedgerError
        The file was written by a newer version.
    sqlite3.Error
        It is damaged, or its folder cannot be written.
    """
    db = sqlite3.connect(path, timeout=2.0, isolation_level=None, check_same_thread=False)
    try:
        _prepare(db, path)
    except UnicodeDecodeError as error:  # the words of SQLite's complaint hold damaged bytes
        db.close()
        raise sqlite3.DatabaseError("database disk image is malformed") from error
    except BaseException:
        db.close()
        raise
    db.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
    return db


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA:
        raise LedgerError(
            f"{path}: written by a newer Lineward (schema {version}, this one knows {SCHEMA}); "
            "install that version, or name another storage root"
        )
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("PRAGMA wal_autocheckpoint = 0")  # never in the loop's thread: it would wait for the disk
    if version == 0:
        db.executescript(f"BEGIN; {_TABLES} {_IMAGES_BY_NUMBER} {_SINCE_2} PRAGMA user_version = {SCHEMA}; COMMIT;")
        return
    if version == 1:
        db.executescript(
            f"BEGIN; ALTER TABLE results ADD COLUMN trigger_no INTEGER; {_SINCE_2} PRAGMA user_version = 2; COMMIT;"
        )
    with contextlib.suppress(sqlite3.OperationalError):  # without room for it the oldest are found all the same
        db.execute(_IMAGES_BY_NUMBER)
    if path.stat().st_size <= CHECKED_AT_START_BYTES:
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(f"database disk image is malformed: {verdict}")


def is_damaged(error: BaseException) -> bool:
    """Tell whether an error means that the file itself is broken, so that trying again cannot help."""
    if not isinstance(error, sqlite3.DatabaseError):
        return False
    name = getattr(error, "sqlite_errorname", "")
    return name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")) or "malformed" in str(error)


def move_aside(path: Path) -> Path:
    """Rename a damaged database with its companions and return the new name; nothing is deleted."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    aside = path.with_name(f"{path.name}.damaged-{stamp}")
    for number in range(2, 1000):
        if not aside.exists():
            break
        aside = path.with_name(f"{path.name}.damaged-{stamp}-{number}")
    for tail in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + tail).rename(aside.with_name(aside.name + tail))
    return aside


def salvage_seq(aside: Path) -> int:
    """Find the highest number in a damaged database by looking for payloads in its bytes; 0 when there is none."""
    highest = 0
    for name in (aside, aside.with_name(aside.name + "-wal")):
        with (
            contextlib.suppress(OSError, ValueError),
            name.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            for match in re.finditer(rb'\{"schema_version":\d+,"seq":(\d{1,18}),', data):
                highest = max(highest, int(match[1]))
    return highest


def highest_seq_of_images(root: Path) -> int:
    """Return the highest number among the names of kept images, 0 when there is none: 0.3 s for 100,000 files."""
    names = (IMAGE_NAME.match(path.name) for path in (root / "images").glob("*/*/*"))
    return max((int(name[1]) for name in names if name is not None), default=0)


def salvage_outbox(aside: Path, db: sqlite3.Connection) -> int:
    """Copy what can still be read of the unacknowledged rows of a damaged database; return how many."""
    copied = 0
    with contextlib.suppress(sqlite3.Error, UnicodeDecodeError), contextlib.closing(sqlite3.connect(aside)) as old:
        for found in old.execute("SELECT * FROM results WHERE acked = 0 ORDER BY seq"):
            row = (*found, *[None] * (COLUMNS - len(found)))  # an older file has fewer
            copied += db.execute(f"INSERT OR IGNORE INTO results VALUES ({','.join('?' * len(row))})", row).rowcount  # noqa: S608 - only question marks
    return copied


def rescue(db: sqlite3.Connection, path: Path) -> None:
    """Write a database anew whose file was deleted while it was open: the connection still reaches all of it.

    Raises `OSError` or `sqlite3.Error`; then nothing stands under its name, and it can be tried again.
    """
    made = path.with_name(f"{path.name}.rescued")
    made.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(made, isolation_level=None)) as copy:
        db.backup(copy, pages=256)
    for tail in ("-wal", "-shm"):  # they belong to the file that is gone, and all that they hold is in the copy
        path.with_name(path.name + tail).unlink(missing_ok=True)
    made.replace(path)


def explain(error: BaseException, path: Path) -> str:
    """Say in one line what keeps the ledger from being written and what to do about it."""
    name = getattr(error, "sqlite_errorname", "") or errno.errorcode.get(getattr(error, "errno", None) or 0, "")
    if name in {"SQLITE_FULL", "ENOSPC", "EDQUOT"}:
        return f"the disk of {path.parent} is full: free some space"
    if name.startswith("SQLITE_READONLY") or name in _NO_WAY_IN:
        return f"{path} cannot be written: check that {path.parent} exists, is mounted for writing and belongs to us"
    if is_damaged(error):
        return f"{path} is damaged: it is being moved aside"
    if name.startswith("SQLITE_IOERR") or name in {"EIO", "EFBIG"}:
        return f"{path} cannot be written (input/output error): check the disk and its limits"
    return f"{path} cannot be written ({error}): check the disk"
