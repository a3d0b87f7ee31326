"""Small pictures of passed parts, in one file of their own that may be lost: what the line lets through, at a glance.

As files they would cost a disk more than what is in them, and the ledger a row each. Here they are rows of a small
database, the oldest of which go. Nothing else refers to them: where it is damaged it is begun anew.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lineward.daemon.ledger_file import is_damaged
from lineward.images import encode_jpeg

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger("lineward.review")

FILE = "thumbnails.sqlite3"
QUALITY = 80
VERSION = 1

CHUNK = 16
"""Thumbnails that go together when there is no room for one more."""

SLACK_PAGES = 64
"""Empty pages, of 4 KiB each, that stay in the file for what comes next."""

_TABLE = f"""
BEGIN;
CREATE TABLE thumbnails (
    at_ns INTEGER PRIMARY KEY,  -- of the trigger, wall clock, since 1970, UTC: numbers begin anew with a lost ledger
    seq INTEGER NOT NULL,       -- number of the answer
    product TEXT NOT NULL,
    jpeg BLOB NOT NULL
);
PRAGMA user_version = {VERSION};
COMMIT;
"""

_LET_GO = "DELETE FROM thumbnails WHERE at_ns IN (SELECT at_ns FROM thumbnails ORDER BY at_ns LIMIT ?)"


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A part that passed and has a small picture; the time is wall clock, nanoseconds since 1970, UTC."""

    at_ns: int
    seq: int
    product: str


class Thumbnails:
    """Keeps them below a quota of its own; for the thread that writes images, `close` included.

    Parameters
    ----------
    max_bytes
        Of the file, without its log (4 MB at most); 0: there is no such file.
    """

    def __init__(self, root: Path, *, max_bytes: int, most_px: int) -> None:
        self._path = root / FILE
        self._db: sqlite3.Connection | None = None
        self.max_bytes = max_bytes
        self.most_px = most_px

    def add(self, seq: int, at_ns: int, product: str, image: NDArray[np.uint8]) -> bool:
        """Keep a small copy of ``(H, W)`` or ``(H, W, 3)`` RGB uint8; False when there is no room for it.

        Raises
        ------
        OSError
            The disk does not take it.
        """
        data = encode_jpeg(image, self.most_px, QUALITY)
        with self._explained():
            db = self._open()
            if not self._make_room(db, len(data)):
                return False
            db.execute("INSERT OR REPLACE INTO thumbnails VALUES (?, ?, ?, ?)", (at_ns, seq, product, data))
        return True

    def fit(self) -> None:
        """Bring the file below a quota that may have become smaller; without one it goes. Never raises."""
        if not self.max_bytes:
            self.drop()
        else:
            with contextlib.suppress(OSError), self._explained():
                if self._path.exists():
                    self._make_room(self._open(), 0)

    def drop(self) -> None:
        """Let all of them go: the file is deleted, which needs no room on a full disk. Never raises."""
        self.close()
        for path in (self._path, *(self._path.with_name(f"{FILE}-{end}") for end in ("wal", "shm"))):
            with contextlib.suppress(OSError):  # who else writes there says what is wrong
                path.unlink()

    def close(self) -> None:
        """Close the file; the next thumbnail opens it again."""
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._db = None

    def _make_room(self, db: sqlite3.Connection, wanted: int) -> bool:
        """Let the oldest go until ``wanted`` more bytes fit, and give empty pages back to the disk."""
        page_bytes = _pragma(db, "page_size")
        while page_bytes * (_pragma(db, "page_count") - _pragma(db, "freelist_count")) + wanted > self.max_bytes:
            if not db.execute(_LET_GO, (CHUNK,)).rowcount:
                return False
        spare = _pragma(db, "freelist_count") - SLACK_PAGES
        if spare > 0:
            db.executescript(f"PRAGMA incremental_vacuum({spare})")  # `execute` ends after the first page
        return True

    def _open(self) -> sqlite3.Connection:
        if self._db is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self._path, timeout=2.0, isolation_level=None)
            self._db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # before there is a table, or it does nothing
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute("PRAGMA cache_size = -512")
            version = _pragma(self._db, "user_version")
            if not version:
                self._db.executescript(_TABLE)
            elif version != VERSION:
                raise sqlite3.DatabaseError("database disk image is malformed: another version's table")
        return self._db

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what SQLite says into `OSError`, and begin a damaged file anew."""
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:  # the words of a complaint may hold damaged bytes
            self.close()
            if isinstance(error, UnicodeDecodeError) or is_damaged(error) or _is_no_table_of_ours(error):
                log.warning("%s is damaged and begun anew; only small pictures of passed parts are lost", self._path)
                self.drop()
            raise OSError(str(error)) from error


def _is_no_table_of_ours(error: sqlite3.Error) -> bool:
    """Whether the file has other tables, columns or types than those made here, as opposed to a disk in trouble."""
    return getattr(error, "sqlite_errorname", "").startswith(("SQLITE_ERROR", "SQLITE_MISMATCH", "SQLITE_CONSTRAINT"))


def _pragma(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])


class ThumbnailReader:
    """Reads them from any process and thread. The file may be deleted at any time: each look opens it anew (0.2 ms)."""

    def __init__(self, root: Path) -> None:
        self._path = root / FILE

    def newest(self, count: int) -> list[Thumbnail]:
        """Return the newest thumbnails, newest first; none when the file is not there or cannot be read."""
        # A damaged file may hold any type anywhere.
        sql = "SELECT at_ns, CAST(seq AS INTEGER), CAST(product AS TEXT) FROM thumbnails ORDER BY at_ns DESC LIMIT ?"
        return [Thumbnail(*row) for row in self._select(sql, count)]

    def jpeg(self, at_ns: int) -> bytes | None:
        """Return the small picture of the part of a moment, or None when there is none (any more)."""
        rows = self._select("SELECT CAST(jpeg AS BLOB) FROM thumbnails WHERE at_ns = ?", at_ns)
        return rows[0][0] if rows else None

    def _select(self, sql: str, value: int) -> list[tuple[Any, ...]]:
        if not self._path.exists():
            return []
        uri = self._path.absolute().as_uri() + "?mode=ro"
        try:
            with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=1.0, isolation_level=None)) as db:
                return db.execute(sql, (value,)).fetchall()
        except (sqlite3.Error, UnicodeDecodeError, OverflowError):
            return []
