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

SINCE_TRIGGERS = 2
"""The schema that brought triggers and late verdicts. An older file is brought up to it when the station starts."""

_LATE = "(late = 1 OR EXISTS (SELECT 1 FROM late_verdicts AS l WHERE l.seq = results.seq)) = ?"

HIGHEST_TRIGGER = (
    "SELECT max(coalesce((SELECT max(no) FROM triggers), 0),"
    " coalesce((SELECT max(trigger_no) FROM results WHERE trigger_no IS NOT NULL), 0))"
)


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
    trigger_no: int | None = None
    given_up: bool = False


@dataclass(frozen=True, slots=True)
class TriggerRow:
    """What was asked for: a trigger command, or a part id announced for the next frame.

    Attributes
    ----------
    source
        ``command`` or ``part``.
    given_ns, deadline_ns
        Wall clock, nanoseconds since 1970, UTC; without a deadline the time runs from the frame.
    """

    no: int
    trigger_id: str
    part_id: str
    source: str
    given_ns: int
    deadline_ns: int | None


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One kept image; ``path`` is relative to the storage root, ``kind`` is the verdict it was kept for."""

    image_id: str
    seq: int
    path: str
    bytes: int
    kind: str
    created_ns: int


@dataclass(frozen=True, slots=True)
class LateRow:
    """A verdict that came after the part had been answered without it; time as in `Row`."""

    seq: int
    verdict: str
    confidence: float
    defect_probability: float
    anomaly: float
    defect_type: str | None
    recorded_ns: int


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
                self._db = self._open()
            try:
                return self._db.execute(sql, values).fetchall()
            except sqlite3.Error:
                self._drop()
                raise

    def _open(self) -> sqlite3.Connection:
        """Open the file; where nobody writes it and we may not either, as one that does not change.

        SQLite reads a file in WAL mode only with an index beside it, which it makes when it may.
        """
        uri = self._path.absolute().as_uri() + "?mode=ro"
        db = sqlite3.connect(uri, uri=True, timeout=2.0, isolation_level=None, check_same_thread=False)
        try:
            db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()
        except sqlite3.OperationalError:
            db.close()
            if self._path.with_name(self._path.name + "-wal").exists():
                raise
            uri += "&immutable=1"
            return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
        except sqlite3.Error:
            db.close()
            raise
        return db

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
        newest: int | None = None,
        since_ns: int | None = None,
        until_ns: int | None = None,
        part_id: str | None = None,
        verdict: str | None = None,
        reason: str | None = None,
        product: str | None = None,
        acked: bool | None = None,
        late: bool | None = None,
    ) -> Iterator[Row]:
        """Iterate over the answers that match every given filter, lowest number first; only the ``newest`` so many.

        ``since_ns`` is included and ``until_ns`` is not; both are trigger times on the wall clock, in nanoseconds.
        ``late``: the answer was late, or a verdict came after it.
        """
        wanted: dict[str, Any] = {
            # The plus signs keep SQLite from sorting the whole window anew for each page.
            "+trigger_ns >= ?": since_ns,
            "+trigger_ns < ?": until_ns,
            "part_id = ?": part_id,
            "verdict = ?": verdict,
            "reason = ?": reason,
            "product = ?": product,
            "(acked = 1) = ?": acked,
            _LATE if self.schema() >= SINCE_TRIGGERS else "late = ?": late,
        }
        given = {clause: value for clause, value in wanted.items() if value is not None}
        values = tuple(given.values())
        if part_id:
            given["part_id != ''"] = None  # the index of part ids leaves out the empty ones
        first, last = 0, (1 << 63) - 1
        if since_ns is not None or until_ns is not None:
            first, last = self._seqs_between(since_ns, until_ns)
        after_seq = max(after_seq, first - 1)
        where = " AND ".join(["seq > ?", "seq <= ?", *given])
        if newest is not None:
            found = self._fetch(
                f"SELECT seq FROM results WHERE {where} ORDER BY seq DESC LIMIT 1 OFFSET ?",  # noqa: S608 - ours
                (after_seq, last, *values, newest - 1),
            )
            after_seq = found[0][0] - 1 if found else after_seq
        sql = f"SELECT * FROM results WHERE {where} ORDER BY seq LIMIT {PAGE}"  # noqa: S608 - clauses are ours
        while True:
            page = self._fetch(sql, (after_seq, last, *values))
            for row in page:
                yield replace(Row(*row), late=bool(row[12]), acked=row[13] == 1, given_up=row[13] == 2)
            if len(page) < PAGE:
                return
            after_seq = page[-1][0]

    def _seqs_between(self, since_ns: int | None, until_ns: int | None) -> tuple[int, int]:
        """Return lowest and highest number within a time, from the index alone; (1, 0) when there is none."""
        window = (-(1 << 63) if since_ns is None else since_ns, (1 << 63) - 1 if until_ns is None else until_ns)
        sql = "SELECT min(seq), max(seq) FROM results WHERE trigger_ns >= ? AND trigger_ns < ?"
        rows = self._fetch(sql, window)
        return (rows[0][0], rows[0][1]) if rows and rows[0][0] is not None else (1, 0)

    def late_verdicts(self, first_seq: int, last_seq: int) -> dict[int, LateRow]:
        """Return the verdicts that came too late for the answers of a range of numbers."""
        if self.schema() < SINCE_TRIGGERS:
            return {}
        rows = self._fetch("SELECT * FROM late_verdicts WHERE seq BETWEEN ? AND ?", (first_seq, last_seq))
        return {row[0]: LateRow(*row) for row in rows}

    def schema(self) -> int:
        """Return the version of the tables; 0 for a file that is missing or empty."""
        rows = self._fetch("PRAGMA user_version")
        return int(rows[0][0]) if rows else 0

    def select(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Read what no other method reads, for reports."""
        return self._fetch(sql, values)

    def open_triggers(self) -> list[TriggerRow]:
        """Return what was asked for and has no answer, lowest number first."""
        sql = (
            "SELECT no, trigger_id, part_id, source, given_ns, deadline_ns FROM triggers AS t"
            " WHERE NOT EXISTS (SELECT 1 FROM results WHERE trigger_no = t.no) ORDER BY no"
        )
        return [TriggerRow(*row) for row in self._fetch(sql)]

    def highest_trigger(self) -> int:
        """Return the highest trigger number on disk; 0 when there is none."""
        rows = self._fetch(HIGHEST_TRIGGER)
        return int(rows[0][0]) if rows else 0

    def highest_seq(self) -> int:
        """Return the highest number on disk; 0 when there is none."""
        rows = self._fetch("SELECT coalesce(max(seq), 0) FROM results")
        return int(rows[0][0]) if rows else 0

    def counts(self) -> dict[str, int]:
        """Return the number of answers by verdict. Reads every row: for reports, not for the line."""
        return dict(self._fetch("SELECT verdict, count(*) FROM results GROUP BY verdict"))

    def image_bytes(self, kind: str | None = None) -> int:
        """Return the size of all kept images together, or of those of a kind, in bytes."""
        rows = self._fetch("SELECT coalesce(sum(bytes), 0) FROM images WHERE ? IS NULL OR kind = ?", (kind, kind))
        return int(rows[0][0]) if rows else 0

    def oldest_images(self, count: int, kind: str | None = None) -> list[ImageRow]:
        """Return the oldest kept images, of a kind or of all, oldest first."""
        sql = (
            "SELECT id, seq, path, bytes, kind, created_ns FROM images WHERE ? IS NULL OR kind = ?"
            " ORDER BY seq, id LIMIT ?"
        )
        return [ImageRow(*row) for row in self._fetch(sql, (kind, kind, count))]

    def images(self, *, newest: int = 100, kind: str | None = None) -> list[ImageRow]:
        """Return the newest kept images, newest first."""
        sql = (
            "SELECT id, seq, path, bytes, kind, created_ns FROM images WHERE ? IS NULL OR kind = ?"
            " ORDER BY seq DESC, id DESC LIMIT ?"
        )
        return [ImageRow(*row) for row in self._fetch(sql, (kind, kind, newest))]
