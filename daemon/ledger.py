"""Every answer, on disk before anybody hears of it. A row is its own outbox entry until the broker acknowledged it.

What is safe when: a killed process loses nothing that `Ledger.record` returned. A power cut may take the rows of the
last second, and the line goes on with a number that was certainly not used. A full, read-only or broken disk never
stops the line: rows wait in memory, are published from there, and are written when the disk is back.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sqlite3
import threading
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lineward.daemon.ledger_file import (
    COLUMNS,
    POWER_CUT_GAP,
    LedgerError,
    SeqFile,
    explain,
    highest_seq_of_images,
    is_damaged,
    move_aside,
    open_writer,
    salvage_outbox,
    salvage_seq,
)
from lineward.daemon.ledger_outbox import Leaving, OutboxSize, measure
from lineward.daemon.ledger_read import HIGHEST_TRIGGER, ImageRow, LedgerReader, OutboxRow, Row, TriggerRow
from lineward.daemon.retry import Outage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from lineward.daemon.result import Result
    from lineward.models.verdict import Verdict

__all__ = ["ImageRow", "Ledger", "LedgerError", "LedgerReader", "OutboxRow", "Row", "TriggerRow"]

log = logging.getLogger("lineward.ledger")

TICK_S = 1.0
"""How often rows are forced to the disk, and how often a disk in trouble is tried again."""

GATHER_S = 0.02
"""How long acknowledgements are gathered before they are written together."""

CHUNK = 64
"""Rows written under one hold of the lock: 0.3 ms that the loop may have to wait."""

CHECKPOINT_COMMITS = 2000
"""Commits between two checkpoints. The first commit after one waits for the disk once (1-5 ms): one in 2000 does."""

_INSERT = f"INSERT INTO results VALUES ({', '.join('?' * COLUMNS)})"  # noqa: S608 - only question marks
_INSERT_TRIGGER = "INSERT OR IGNORE INTO triggers VALUES (?, ?, ?, ?, ?, ?)"
_OLDEST = "FROM results WHERE seq <= ? AND acked != 0 ORDER BY seq LIMIT ?"
_PRUNE = (  # a trigger goes with its answer: one that stayed behind would look as if it had none
    f"DELETE FROM triggers WHERE no IN (SELECT trigger_no {_OLDEST})",  # noqa: S608 - all of it is ours
    f"DELETE FROM late_verdicts WHERE seq IN (SELECT seq {_OLDEST})",  # noqa: S608
    f"DELETE FROM results WHERE seq IN (SELECT seq {_OLDEST})",  # noqa: S608
)

_Values = tuple[Any, ...]
PAYLOAD = 14
"""Its place among the values of a row."""


class Ledger:
    """The book of one station. One process may write it; any thread may call.

    Parameters
    ----------
    root
        Storage folder; the database is ``ledger.sqlite3`` in it.
    keep_rows
        Rows kept on disk (about 1.2 kB each); the oldest beyond that, unless they wait for the broker, are deleted.
    memory_rows
        Rows kept in memory while the disk is in trouble (about 2 kB each); beyond that the oldest are lost and counted.
    outbox_bytes
        What may wait for the broker; beyond that the oldest rows are given up: they stay, and are not sent any more.

    Raises
    ------
    LedgerError
        The file was written by a newer version, or another process writes to the folder. Nothing else is raised: a
        folder that cannot be written is `trouble`, not an end.
    """

    def __init__(
        self,
        root: Path,
        *,
        keep_rows: int = 2_000_000,
        memory_rows: int = 10_000,
        outbox_bytes: int = 512_000_000,
    ) -> None:
        self.path = root / "ledger.sqlite3"
        self._root = root
        self._keep_rows = keep_rows
        self._memory_rows = memory_rows
        self._lock = threading.Lock()  # one writer: SQLite's own lock would make the loop poll for milliseconds
        self._db: sqlite3.Connection | None = None
        self._seq_file: SeqFile | None = None
        self._reader = LedgerReader(self.path)
        self._kept: deque[_Values] = deque()
        self._to_ack: set[int] = set()
        self._outage = Outage(log, f"ledger {self.path}")
        self._damaged = False
        self._commits = 0  # since the last checkpoint
        self._forced = 0  # of these, already on the disk
        self._outbox = OutboxSize(outbox_bytes)
        self._waited = 0
        self.trouble = ""
        """What keeps rows from being written and what to do about it, in one line; empty when all is well."""
        self.lost = 0
        """Rows that found no room in memory while the disk was in trouble."""
        self.rereads = 0
        """Grows when rows that could not be read became readable: time to read the outbox from its beginning."""
        self._unread = False
        self.was_killed = False
        """The process before us ended without `close`."""
        self.last_seq = 0
        self._last_trigger = 0
        self._start()
        self._stop = threading.Event()
        self._acks_wait = threading.Event()
        self._keeper = threading.Thread(target=self._housekeeping, name="ledger", daemon=True)
        self._keeper.start()

    # ---- the loop's side

    def record(self, draft: Result) -> Result:
        """Give an answer its number and write it down; ``draft.seq`` is 0.

        Never raises for trouble with the disk. Returns the answer with ``seq`` and ``latency.record`` filled in and
        ``latency.total`` grown by it (milliseconds).
        """
        began_ns = time.perf_counter_ns()
        with self._lock:
            seq = self.last_seq + 1
            values = _values(replace(draft, seq=seq))
            if self._db is None or self.trouble:
                self._keep(values)
            else:
                try:
                    self._db.execute(_INSERT, values)
                    self._commits += 1
                except sqlite3.Error as error:
                    self._fail(error)
                    self._keep(values)
            self.last_seq = seq
            self._outbox.add(values[PAYLOAD])
            if self._seq_file is not None:  # after the row: a kill in between must not leave a gap
                self._seq_file.write(seq)
        record_ms = (time.perf_counter_ns() - began_ns) / 1e6
        latency = replace(draft.latency, record=record_ms, total=draft.latency.total + record_ms)
        return replace(draft, seq=seq, latency=latency)

    def note_trigger(self, trigger_id: str, part_id: str, source: str, deadline_s: float | None) -> int:
        """Write down what is asked for before anybody hears that it was accepted; return its number.

        Never raises: while the disk is in trouble the number is given out all the same. ``deadline_s`` is seconds from
        now.
        """
        now = time.time_ns()
        deadline = None if deadline_s is None else now + round(deadline_s * 1e9)
        with self._lock:
            self._last_trigger += 1
            if self._db is not None and not self.trouble:
                values = (self._last_trigger, _text(trigger_id), _text(part_id), source, now, deadline)
                try:
                    self._db.execute(_INSERT_TRIGGER, values)
                    self._commits += 1
                except sqlite3.Error as error:
                    self._fail(error)
            return self._last_trigger

    def note_late(self, seq: int, verdict: Verdict) -> None:
        """Write down a verdict that came after answer ``seq`` was given without it; never raises."""
        values = (
            *(seq, str(verdict.decision), _finite(verdict.confidence), _finite(verdict.defect_probability)),
            *(_finite(verdict.anomaly), verdict.defect_type, time.time_ns()),
        )
        with contextlib.suppress(LedgerError):  # trouble with the disk is told elsewhere
            self._write("INSERT OR REPLACE INTO late_verdicts VALUES (?, ?, ?, ?, ?, ?, ?)", *values)

    def open_triggers(self) -> list[TriggerRow]:
        """Return what an earlier process accepted and did not answer; empty when the disk cannot tell."""
        try:
            return self._reader.open_triggers()
        except sqlite3.Error:
            return []

    # ---- the outbox

    @property
    def outbox_size(self) -> int:
        """Number of results that the broker has not acknowledged."""
        return max(0, self._outbox.rows - len(self._to_ack))

    @property
    def outbox_bytes(self) -> int:
        """What these results take, on the disk and in memory, in bytes."""
        return self._outbox.bytes

    @property
    def outbox_trouble(self) -> str:
        """Whether results are, or soon will be, given up, and what to do about it, in one line; empty: all is well."""
        return self._outbox.trouble

    def unacknowledged(self, after_seq: int, limit: int) -> list[OutboxRow]:
        """Return unacknowledged results above ``after_seq``, lowest first, those in memory included. Never raises."""
        with self._lock:
            acked = {seq for seq in self._to_ack if seq > after_seq}
            kept = [_outbox_row(v) for v in self._kept if v[0] > after_seq] if self._kept else []
        try:
            rows = self._reader.outbox(after_seq, limit + len(acked))
        except sqlite3.Error as error:
            with self._lock:
                self._unread = True
                if not self.trouble:
                    self._fail(error)
            rows = []
        else:
            if self._unread:
                self._unread = False
                self.rereads += 1
        # A kept row may have been written between the two looks; numbers are unique and rows on disk come first.
        highest = rows[-1].seq if rows else after_seq
        whole = rows if len(rows) == limit + len(acked) else rows + [row for row in kept if row.seq > highest]
        return [row for row in whole if row.seq not in acked][:limit]

    def acknowledge(self, seqs: Iterable[int]) -> None:
        """Take results out of the outbox: the broker has them. Returns at once; written together soon after."""
        with self._lock:
            self._to_ack.update(seqs)
        self._acks_wait.set()

    # ---- looking things up

    def rows(self, **filters: Any) -> Iterator[Row]:
        """Iterate over rows on disk; filters as in `LedgerReader.rows`."""
        return self._reader.rows(**filters)

    def counts(self) -> dict[str, int]:
        """Return ``last_seq``, ``outbox``, ``given_up``, ``in_memory`` and ``lost``."""
        return {
            "last_seq": self.last_seq,
            "outbox": self.outbox_size,
            "given_up": self._outbox.given_up,
            "in_memory": len(self._kept),
            "lost": self.lost,
        }

    # ---- kept images

    def add_image(self, image_id: str, seq: int, path: str, size: int, kind: str) -> None:
        """Note a kept image; ``path`` is relative to the storage root, ``size`` in bytes. Raises `LedgerError`."""
        values = (image_id, seq, path, size, kind, time.time_ns())
        self._write("INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?, ?, ?)", *values)

    def remove_image(self, image_id: str) -> None:
        """Forget an image whose file is gone. Raises `LedgerError`."""
        self._write("DELETE FROM images WHERE id = ?", image_id)

    def adopt(self, image: ImageRow, values: _Values) -> None:
        """Take in an image that the ledger does not know, and its answer when that is lost too; see `daemon/adopt.py`.

        Raises `LedgerError`.
        """
        self._write(_INSERT.replace("INSERT", "INSERT OR IGNORE"), *values)
        row = (image.image_id, image.seq, image.path, image.bytes, image.kind, image.created_ns)
        self._write("INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?, ?, ?)", *row)

    def image_bytes(self, kind: str | None = None) -> int:
        """Return the size of all kept images together, or of a kind, in bytes. Raises `LedgerError`."""
        with self._explained():
            return self._reader.image_bytes(kind)

    def oldest_images(self, count: int, kind: str | None = None) -> list[ImageRow]:
        """Return the oldest kept images, of a kind or of all, oldest first. Raises `LedgerError`."""
        with self._explained():
            return self._reader.oldest_images(count, kind)

    def images(self, *, newest: int = 100, kind: str | None = None) -> list[ImageRow]:
        """Return the newest kept images, newest first. Raises `LedgerError`."""
        with self._explained():
            return self._reader.images(newest=newest, kind=kind)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise LedgerError(explain(error, self.path)) from error

    def _write(self, sql: str, *values: Any) -> None:
        with self._lock, self._explained():
            if self._db is None or self.trouble:
                raise LedgerError(self.trouble or f"{self.path} is closed")
            self._db.execute(sql, values)
            self._commits += 1

    # ---- opening and closing

    def _start(self) -> None:
        """Open the files and find the number to go on with; a disk in trouble leaves rows in memory."""
        with contextlib.suppress(OSError):
            self._root.mkdir(parents=True, exist_ok=True)
        try:
            self._open_seq_file()
            self.was_killed = self._seq_file is not None and self._seq_file.not_closed
            self._open()
        except LedgerError:
            self._abandon()
            raise
        except (OSError, sqlite3.Error) as error:
            self._fail(error)
            with contextlib.suppress(sqlite3.Error):  # a folder mounted read-only can still be read
                self.last_seq = max(self.last_seq, self._reader.highest_seq())

    def _open_seq_file(self) -> None:
        self._seq_file = SeqFile(self._root / "ledger.seq")
        self.last_seq = max(self.last_seq, self._seq_file.last)
        if self.last_seq == 0 and not self.path.exists():  # new, or all is lost but the images
            kept = highest_seq_of_images(self._root)
            self.last_seq = kept + POWER_CUT_GAP if kept else 0

    def _open(self) -> sqlite3.Connection:
        """Open the database, moving a damaged one aside, and learn the highest number and the size of the outbox."""
        try:
            db = open_writer(self.path)
        except sqlite3.DatabaseError as error:
            if not is_damaged(error):
                raise
            db = self._replace_damaged()
        try:
            highest = db.execute("SELECT coalesce(max(seq), 0) FROM results").fetchone()[0]
            highest_trigger = db.execute(HIGHEST_TRIGGER).fetchone()[0]
            waiting = measure(db)
        except sqlite3.Error as error:
            db.close()
            if not is_damaged(error):
                raise
            db = self._replace_damaged()
            highest, highest_trigger, waiting = 0, 0, measure(db)
        seq_file = self._seq_file
        with self._lock:
            self._db = db
            self._last_trigger = max(self._last_trigger, highest_trigger)
            self._outbox.begin(*waiting)
            for values in self._kept:
                self._outbox.add(values[PAYLOAD])
            self.last_seq = max(self.last_seq, highest)
            if seq_file is not None and seq_file.power_cut:
                seq_file.power_cut = False
                self.last_seq += POWER_CUT_GAP
                log.warning(
                    "ledger: the machine was switched off while the line ran; numbers go on at %d, none is used twice",
                    self.last_seq + 1,
                )
            if seq_file is not None:
                seq_file.write(self.last_seq)
        return db

    def _replace_damaged(self) -> sqlite3.Connection:
        """Move the damaged database aside, start a new one, and save what can be saved."""
        self._reader.close()
        aside = move_aside(self.path)
        if self.last_seq == 0:
            self.last_seq = salvage_seq(aside)
        db = open_writer(self.path)
        saved = salvage_outbox(aside, db)
        log.error(
            "ledger %s was damaged: kept as %s, a new one begins at number %d; %d unacknowledged results were saved",
            *(self.path, aside.name, self.last_seq + 1, saved),
        )
        return db

    def close(self) -> None:
        """Write what waits and close the files; rows that a disk in trouble does not take are named as lost."""
        self._stop.set()
        self._acks_wait.set()
        self._keeper.join()
        self._abandon()

    def _abandon(self) -> None:
        with self._lock:
            self._reader.close()
            if self._db is not None:
                with contextlib.suppress(sqlite3.Error):
                    self._db.close()
                self._db = None
            if self._seq_file is not None:
                if not self._kept:
                    self._seq_file.write(self.last_seq, "clean")
                self._seq_file.close()
                self._seq_file = None
            if self._kept:
                log.error(
                    "ledger: %d results, number %d to %d, could not be written and are lost to the ledger: %s",
                    *(len(self._kept), self._kept[0][0], self._kept[-1][0], self.trouble),
                )

    # ---- trouble (the lock is held where noted)

    def _fail(self, error: BaseException) -> None:
        """Note trouble; with the lock held, or before there are threads."""
        self.trouble = explain(error, self.path) + "; results are kept in memory meanwhile"
        self._damaged = self._damaged or is_damaged(error)
        self._outage.failed(self.trouble)

    def _keep(self, values: _Values) -> None:
        """Keep a row in memory, with the lock held."""
        self._kept.append(values)
        self._waited += 1
        if len(self._kept) > self._memory_rows:
            gone = self._kept.popleft()
            self._to_ack.discard(gone[0])
            self._outbox.remove(gone[PAYLOAD])
            self.lost += 1

    # ---- housekeeping, in a thread of its own

    def _housekeeping(self) -> None:
        forced = time.monotonic()
        wal: int | None = None
        try:
            while not self._stop.is_set():
                self._acks_wait.wait(TICK_S)
                self._stop.wait(GATHER_S)
                self._acks_wait.clear()
                wal = self._tidy(wal, force=time.monotonic() - forced >= TICK_S)
                self._outbox.watch()
                if time.monotonic() - forced >= TICK_S:
                    forced = time.monotonic()
            wal = self._tidy(wal, force=True)
        finally:
            if wal is not None:
                os.close(wal)

    def _tidy(self, wal: int | None, *, force: bool) -> int | None:
        """Do one round; ``wal`` is the open write-ahead log. Whatever goes wrong with the disk becomes trouble."""
        try:
            if self.trouble:
                if not force:
                    return wal
                if wal is not None:
                    os.close(wal)
                    wal = None
                self._repair()
            self._write_acks()
            self._give_up()
            if force and self._commits != self._forced:
                self._forced = self._commits
                if wal is None:
                    wal = os.open(f"{self.path}-wal", os.O_RDONLY | os.O_CLOEXEC)
                self._force(wal)
        except LedgerError as error:
            self._outage.failed(error)
        except (OSError, sqlite3.Error) as error:
            with self._lock:
                self._fail(error)
        except Exception:  # a bug here must not end the thread that empties the outbox
            log.exception("ledger: housekeeping failed")
        return wal

    def _repair(self) -> None:
        """Try the disk again: open anew, write the rows that waited, in order, then let the loop write directly."""
        if self._seq_file is None or not self._seq_file.writable:
            if self._seq_file is not None:
                self._seq_file.close()
                self._seq_file = None
            self._open_seq_file()
        self._reader.close()
        if self._db is not None:  # the loop does not touch it while there is trouble
            self._db.close()
            self._db = None
        if self._damaged:
            self._damaged = False
            if self.path.exists():
                self._replace_damaged().close()
        db = self._open()
        while True:
            with self._lock:
                rows = [self._kept[i] for i in range(min(CHUNK, len(self._kept)))]
                if rows:
                    with _transaction(db):
                        db.executemany(_INSERT.replace("INSERT", "INSERT OR IGNORE"), rows)
                    for _ in rows:
                        self._kept.popleft()
                else:
                    _probe(db)
                    self.trouble = ""
                    self._commits += 1
                    self.rereads += 1
                    self._outage.over(f"{self._waited} results waited in memory, {self.lost} were lost")
                    self._waited = 0
                    return
            time.sleep(0.001)  # the lock is not fair: let the loop have it

    def _write_acks(self) -> None:
        with self._lock:
            waiting = list(self._to_ack)
        waiting.sort()  # neighbours share pages
        for start in range(0, len(waiting), CHUNK):
            some = waiting[start : start + CHUNK]
            with self._lock:
                if self._db is None or self.trouble:
                    return
                with _transaction(self._db):
                    gone = self._outbox.acknowledge(self._db, some)
                self._to_ack.difference_update(some)
                self._outbox.settle(gone)
                self._commits += 1
            time.sleep(0.001)  # the lock is not fair: let the loop have it

    def _give_up(self) -> None:
        """Let the oldest rows go that the outbox has no room for."""
        gone = Leaving(1, 0)
        while self._outbox.too_much and gone.rows:
            with self._lock:
                if self._db is None or self.trouble:
                    return
                with _transaction(self._db):
                    gone = self._outbox.give_up(self._db, CHUNK)
                self._outbox.settle(gone)
                self._commits += 1
            time.sleep(0.001)  # the lock is not fair: let the loop have it

    def _force(self, wal: int) -> None:
        """Bring rows to the disk, now and then from the log into the database, and let the oldest rows go."""
        os.fsync(wal)
        if self._seq_file is not None:
            self._seq_file.sync()
        if self._commits >= CHECKPOINT_COMMITS:
            self._commits = self._forced = 0
            with contextlib.closing(sqlite3.connect(self.path, timeout=2.0, isolation_level=None)) as db:
                db.execute("PRAGMA wal_checkpoint(PASSIVE)")
        if self.last_seq > self._keep_rows:
            with self._lock:
                if self._db is not None:
                    for sql in _PRUNE:
                        self._db.execute(sql, (self.last_seq - self._keep_rows, 2 * CHUNK))


def _probe(db: sqlite3.Connection) -> None:
    """Write something real and small, to learn whether the disk takes writes again."""
    with _transaction(db):
        db.execute("INSERT OR REPLACE INTO images VALUES ('', 0, '', 0, '', 0)")
        db.execute("DELETE FROM images WHERE id = ''")


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise


def _values(result: Result) -> _Values:
    frame_id = result.camera.frame_id
    return (
        result.seq,
        result.trigger_unix_ns,
        time.time_ns(),
        result.deadline_unix_ns,
        str(result.verdict),
        _text(result.reason),
        _text(result.part_id),
        None if frame_id is None else frame_id & 0x7FFF_FFFF_FFFF_FFFF,  # block ids may use all 64 bits
        _text(result.camera.serial),
        _text(result.product),
        result.model.sha256,
        _finite(result.confidence),
        result.late,
        0,
        result.payload(),
        result.trigger_no,
    )


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _text(text: str) -> str:
    """Make text that SQLite takes: a part id from a broken code reader may hold half of a surrogate pair."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _outbox_row(values: _Values) -> OutboxRow:
    return OutboxRow(values[0], values[3], values[2], bool(values[12]), values[PAYLOAD])
