"""Reading the ledger: the outbox, rows by time, part, verdict or reason, and kept images; from any process."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGE = 500
"""Rows per read: a long read would keep the write-ahead log from being reused."""


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """A result that the broker has not acknowledged yet.

    Attributes
    ----------
    deadline_ns, recorded_ns
        Wall clock, nanoseconds since 1970, UTC; no deadline for a replay.
    late
        Whether it was late when it was recorded.
    payload
        JSON of the topic ``result``.
    """

    seq: int
    deadline_ns: int | None
    recorded_ns: int
    late: bool
    payload: bytes


@dataclass(frozen=True, slots=True)
class Row:
    """One answer as the ledger keeps it; times are wall clock, nanoseconds since 1970, UTC."""

    seq: int
    trigger_ns: int
    recorded_ns: int
    deadline_ns: int | None
    verdict: str
    reason: str
    part_id: str
    frame_id: int | None
    camera_serial: str
    product: str
    model_sha256: str
    confidence: float
    late: bool
    acked: bool
    payload: bytes


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One kept image; ``path`` is relative to the storage root, ``kind`` is the verdict it was kept for."""

    image_id: str
    seq: int
    path: str
    bytes: int
    kind: str
    created_ns: int


class LedgerReader:
    """Read-only view of a ledger; safe to use from several threads, and while another process writes.

    Every method raises `sqlite3.Error` when the file cannot be read. A missing file reads as an empty ledger.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None

    def _fetch(self, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        with self._lock:
            if self._db is None:
                if not self._path.exists():
                    return []
                uri = self._path.absolute().as_uri() + "?mode=ro"
                self._db = sqlite3.connect(uri, uri=True, timeout=2.0, isolation_level=None, check_same_thread=False)
            try:
                return self._db.execute(sql, values).fetchall()
            except sqlite3.Error:
                self._drop()
                raise

    def _drop(self) -> None:
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._db = None

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        with self._lock:
            self._drop()

    def outbox(self, after_seq: int, limit: int) -> list[OutboxRow]:
        """Return unacknowledged rows above ``after_seq``, lowest first."""
        rows = self._fetch(
            "SELECT seq, deadline_ns, recorded_ns, late, payload FROM results WHERE acked = 0 AND seq > ?"
            " ORDER BY seq LIMIT ?",
            (after_seq, limit),
        )
        return [OutboxRow(seq, deadline, recorded, bool(late), data) for seq, deadline, recorded, late, data in rows]

    def rows(
        self,
        *,
        after_seq: int = 0,
        since_ns: int | None = None,
        until_ns: int | None = None,
        part_id: str | None = None,
        verdict: str | None = None,
        reason: str | None = None,
        product: str | None = None,
        acked: bool | None = None,
    ) -> Iterator[Row]:
        """Iterate over the answers that match every given filter, lowest number first.

        ``since_ns`` is included and ``until_ns`` is not; both are trigger times on the wall clock, in nanoseconds.
        """
        wanted = {
            "trigger_ns >= ?": since_ns,
            "trigger_ns < ?": until_ns,
            "part_id = ?": part_id,
            "verdict = ?": verdict,
            "reason = ?": reason,
            "product = ?": product,
            "acked = ?": acked,
        }
        given = {clause: value for clause, value in wanted.items() if value is not None}
        where = " AND ".join(["seq > ?", *given])
        sql = f"SELECT * FROM results WHERE {where} ORDER BY seq LIMIT {PAGE}"  # noqa: S608 - clauses are ours
        while True:
            page = self._fetch(sql, (after_seq, *given.values()))
            for row in page:
                yield replace(Row(*row), late=bool(row[12]), acked=bool(row[13]))  # SQLite has no truth values
            if len(page) < PAGE:
                return
            after_seq = page[-1][0]

    def highest_seq(self) -> int:
        """Return the highest number on disk; 0 when there is none."""
        rows = self._fetch("SELECT coalesce(max(seq), 0) FROM results")
        return int(rows[0][0]) if rows else 0

    def counts(self) -> dict[str, int]:
        """Return the number of answers by verdict. Reads every row: for reports, not for the line."""
        return dict(self._fetch("SELECT verdict, count(*) FROM results GROUP BY verdict"))

    def image_bytes(self) -> int:
        """Return the size of all kept images together, in bytes."""
        rows = self._fetch("SELECT coalesce(sum(bytes), 0) FROM images")
        return int(rows[0][0]) if rows else 0

    def oldest_images(self, count: int) -> list[ImageRow]:
        """Return the oldest kept images, oldest first."""
        sql = "SELECT id, seq, path, bytes, kind, created_ns FROM images ORDER BY created_ns, id LIMIT ?"
        return [ImageRow(*row) for row in self._fetch(sql, (count,))]

    def images(self, *, newest: int = 100, kind: str | None = None) -> list[ImageRow]:
        """Return the newest kept images, newest first."""
        sql = (
            "SELECT id, seq, path, bytes, kind, created_ns FROM images WHERE ? IS NULL OR kind = ?"
            " ORDER BY created_ns DESC, id DESC LIMIT ?"
        )
        return [ImageRow(*row) for row in self._fetch(sql, (kind, kind, newest))]
