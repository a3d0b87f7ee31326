"""Every answer, on disk before anybody hears of it. A row is its own outbox entry until the broker acknowledged it.

What is safe when: a killed process loses nothing that `Ledger.record` returned. A power cut may take the rows of the
last second, and the line goes on with a number that was certainly not used. A full, read-only or broken disk never
stops the line: rows wait in memory, are published from there, and are written when the disk is back.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lineward.daemon.ledger_file import LedgerError, explain
from lineward.daemon.ledger_keeper import Keeper
from lineward.daemon.ledger_read import ImageRow, LedgerReader, OutboxRow, Row, TriggerRow
from lineward.daemon.ledger_rows import INSERT, INSERT_TRIGGER, PAYLOAD, finite, outbox_row, text_of, values_of
from lineward.daemon.ledger_store import LedgerStore

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from lineward.daemon.ledger_rows import Values
    from lineward.daemon.result import Result
    from lineward.models.verdict import Verdict

__all__ = ["ImageRow", "Ledger", "LedgerError", "LedgerReader", "OutboxRow", "Row", "TriggerRow"]


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
        self._store = LedgerStore(root, memory_rows=memory_rows, outbox_bytes=outbox_bytes)
        self._reader = self._store.reader
        self._unread = False
        self._store.start()
        self._keeper = Keeper(self._store, keep_rows=keep_rows)

    @property
    def path(self) -> Path:
        """Return where the database is."""
        return self._store.path

    @property
    def trouble(self) -> str:
        """What keeps rows from being written and what to do about it, in one line; empty when all is well."""
        return self._store.trouble

    @property
    def lost(self) -> int:
        """Rows that found no room in memory while the disk was in trouble."""
        return self._store.lost

    @property
    def rereads(self) -> int:
        """Grows when rows that could not be read became readable: time to read the outbox from its beginning."""
        return self._store.rereads

    @property
    def was_killed(self) -> bool:
        """Whether the process before us ended without `close`."""
        return self._store.was_killed

    @property
    def last_seq(self) -> int:
        """The highest number that was given out."""
        return self._store.last_seq

    # ---- the loop's side

    def record(self, draft: Result) -> Result:
        """Give an answer its number and write it down; ``draft.seq`` is 0.

        Never raises for trouble with the disk. Returns the answer with ``seq`` and ``latency.record`` filled in and
        ``latency.total`` grown by it (milliseconds).
        """
        store = self._store
        began_ns = time.perf_counter_ns()
        with store.lock:
            seq = store.last_seq + 1
            values = values_of(replace(draft, seq=seq))
            if store.db is None or store.trouble:
                store.keep(values)
            else:
                try:
                    store.db.execute(INSERT, values)
                    store.commits += 1
                except sqlite3.Error as error:
                    store.fail(error)
                    store.keep(values)
            store.last_seq = seq
            store.outbox.add(values[PAYLOAD])
            if store.seq_file is not None:  # after the row: a kill in between must not leave a gap
                store.seq_file.write(seq)
        record_ms = (time.perf_counter_ns() - began_ns) / 1e6
        latency = replace(draft.latency, record=record_ms, total=draft.latency.total + record_ms)
        return replace(draft, seq=seq, latency=latency)

    def note_trigger(self, trigger_id: str, part_id: str, source: str, deadline_s: float | None) -> int:
        """Write down what is asked for before anybody hears that it was accepted; return its number.

        Never raises: while the disk is in trouble the number is given out all the same. ``deadline_s`` is seconds from
        now.
        """
        store = self._store
        now = time.time_ns()
        deadline = None if deadline_s is None else now + round(deadline_s * 1e9)
        with store.lock:
            store.last_trigger += 1
            if store.db is not None and not store.trouble:
                values = (store.last_trigger, text_of(trigger_id), text_of(part_id), source, now, deadline)
                try:
                    store.db.execute(INSERT_TRIGGER, values)
                    store.commits += 1
                except sqlite3.Error as error:
                    store.fail(error)
            return store.last_trigger

    def note_late(self, seq: int, verdict: Verdict) -> None:
        """Write down a verdict that came after answer ``seq`` was given without it; never raises."""
        values = (
            *(seq, str(verdict.decision), finite(verdict.confidence), finite(verdict.defect_probability)),
            *(finite(verdict.anomaly), verdict.defect_type, time.time_ns()),
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
        return max(0, self._store.outbox.rows - len(self._store.to_ack))

    @property
    def outbox_bytes(self) -> int:
        """What these results take, on the disk and in memory, in bytes."""
        return self._store.outbox.bytes

    @property
    def outbox_trouble(self) -> str:
        """Whether results are, or soon will be, given up, and what to do about it, in one line; empty: all is well."""
        return self._store.outbox.trouble

    def unacknowledged(self, after_seq: int, limit: int) -> list[OutboxRow]:
        """Return unacknowledged results above ``after_seq``, lowest first, those in memory included. Never raises."""
        store = self._store
        with store.lock:
            acked = {seq for seq in store.to_ack if seq > after_seq}
            kept = [outbox_row(v) for v in store.kept if v[0] > after_seq] if store.kept else []
        try:
            rows = self._reader.outbox(after_seq, limit + len(acked))
        except sqlite3.Error as error:
            with store.lock:
                self._unread = True
                if not store.trouble:
                    store.fail(error)
            rows = []
        else:
            if self._unread:
                self._unread = False
                store.rereads += 1
        # A kept row may have been written between the two looks; numbers are unique and rows on disk come first.
        highest = rows[-1].seq if rows else after_seq
        whole = rows if len(rows) == limit + len(acked) else rows + [row for row in kept if row.seq > highest]
        return [row for row in whole if row.seq not in acked][:limit]

    def acknowledge(self, seqs: Iterable[int]) -> None:
        """Take results out of the outbox: the broker has them. Returns at once; written together soon after."""
        with self._store.lock:
            self._store.to_ack.update(seqs)
        self._keeper.wake()

    # ---- looking things up

    def rows(self, **filters: Any) -> Iterator[Row]:
        """Iterate over rows on disk; filters as in `LedgerReader.rows`."""
        return self._reader.rows(**filters)

    def counts(self) -> dict[str, int]:
        """Return ``last_seq``, ``outbox``, ``given_up``, ``in_memory`` and ``lost``."""
        store = self._store
        return {
            "last_seq": store.last_seq,
            "outbox": self.outbox_size,
            "given_up": store.outbox.given_up,
            "in_memory": len(store.kept),
            "lost": store.lost,
        }

    # ---- kept images

    def add_image(self, image_id: str, seq: int, path: str, size: int, kind: str) -> None:
        """Note a kept image; ``path`` is relative to the storage root, ``size`` in bytes. Raises `LedgerError`."""
        values = (image_id, seq, path, size, kind, time.time_ns())
        self._write("INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?, ?, ?)", *values)

    def remove_image(self, image_id: str) -> None:
        """Forget an image whose file is gone. Raises `LedgerError`."""
        self._write("DELETE FROM images WHERE id = ?", image_id)

    def adopt(self, image: ImageRow, values: Values) -> None:
        """Take in an image that the ledger does not know, and its answer when that is lost too; see `daemon/adopt.py`.

        Raises `LedgerError`.
        """
        self._write(INSERT.replace("INSERT", "INSERT OR IGNORE"), *values)
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
            raise LedgerError(explain(error, self._store.path)) from error

    def _write(self, sql: str, *values: Any) -> None:
        with self._store.lock, self._explained():
            if self._store.db is None or self._store.trouble:
                raise LedgerError(self._store.trouble or f"{self._store.path} is closed")
            self._store.db.execute(sql, values)
            self._store.commits += 1

    def close(self) -> None:
        """Write what waits and close the files; rows that a disk in trouble does not take are named as lost."""
        self._keeper.close()
        self._store.abandon()
