"""Housekeeping of a ledger in a thread of its own: acknowledgements, the disk, and trouble with it."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
import threading
import time
from typing import TYPE_CHECKING

from lineward.daemon.ledger_file import LedgerError
from lineward.daemon.ledger_outbox import Leaving
from lineward.daemon.ledger_rows import INSERT, PAYLOAD, probe, transaction

if TYPE_CHECKING:
    from lineward.daemon.ledger_rows import Values
    from lineward.daemon.ledger_store import LedgerStore

log = logging.getLogger("lineward.ledger")

TICK_S = 1.0
"""How often rows are forced to the disk, and how often a disk in trouble is tried again."""

GATHER_S = 0.02
"""How long acknowledgements are gathered before they are written together."""

CHUNK = 64
"""Rows written under one hold of the lock: 0.3 ms that the loop may have to wait."""

CHECKPOINT_COMMITS = 2000
"""Commits between two checkpoints. The first commit after one waits for the disk once (1-5 ms): one in 2000 does."""

LARGEST_WAL = 64 << 20
"""Bytes of the log from which on it is made to begin anew, while the loop waits some milliseconds. By itself it does so
only at a moment when all of it is in the database, and on a fast line there is none: 845 MB after 16,000 answers."""

PRUNE_ROUNDS = 32
"""Chunks of rows that go in a second at most: 4,000 answers."""
_OLDEST = "FROM results WHERE seq <= ? AND acked != 0 ORDER BY seq LIMIT ?"
PRUNE = (  # a trigger goes with its answer: one that stayed behind would look as if it had none
    f"DELETE FROM triggers WHERE no IN (SELECT trigger_no {_OLDEST})",  # noqa: S608 - all of it is ours
    f"DELETE FROM late_verdicts WHERE seq IN (SELECT seq {_OLDEST})",  # noqa: S608
    f"DELETE FROM results WHERE seq IN (SELECT seq {_OLDEST})",  # noqa: S608
)


class Keeper:
    """Brings rows to the disk once a second, writes acknowledgements together, and tries a disk in trouble again.

    Parameters
    ----------
    keep_rows
        Rows kept on disk; the oldest beyond that go, unless they wait for the broker.
    """

    def __init__(self, store: LedgerStore, *, keep_rows: int) -> None:
        self._store = store
        self._keep_rows = keep_rows
        self._blind: list[int] = []  # numbers of kept rows that had been used before
        self._gone = False
        self._stop = threading.Event()
        self._work = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Say that there are acknowledgements to write."""
        self._work.set()

    def close(self) -> None:
        """Write what waits, and end."""
        self._stop.set()
        self._work.set()
        self._thread.join()

    def _run(self) -> None:
        forced = time.monotonic()
        wal: int | None = None
        try:
            while not self._stop.is_set():
                self._work.wait(TICK_S)
                self._stop.wait(GATHER_S)
                self._work.clear()
                wal = self._tidy(wal, force=time.monotonic() - forced >= TICK_S)
                self._store.outbox.watch()
                if time.monotonic() - forced >= TICK_S:
                    forced = time.monotonic()
            wal = self._tidy(wal, force=True)
        finally:
            if wal is not None:
                os.close(wal)

    def _tidy(self, wal: int | None, *, force: bool) -> int | None:
        """Do one round; ``wal`` is the open write-ahead log. Whatever goes wrong with the disk becomes trouble."""
        try:
            if self._store.trouble:
                if not force:
                    return wal
                if wal is not None:
                    os.close(wal)
                    wal = None
                self._repair()
            if force:
                self._see_it_is_there(wal)
            self._write_acks()
            self._give_up()
            if force and self._store.commits != self._store.forced:
                self._store.forced = self._store.commits
                if wal is None:
                    wal = os.open(f"{self._store.path}-wal", os.O_RDONLY | os.O_CLOEXEC)
                self._force(wal)
        except LedgerError as error:
            self._store.outage.failed(error)
        except (OSError, sqlite3.Error) as error:
            with self._store.lock:
                self._store.fail(error)
        except Exception:  # a bug here must not end the thread that empties the outbox
            log.exception("ledger: housekeeping failed")
        return wal

    def _see_it_is_there(self, wal: int | None) -> None:
        """Raise when somebody has deleted the files that we write, which nothing else would tell."""
        self._gone = self._store.is_gone() or (wal is not None and os.fstat(wal).st_nlink == 0)
        if self._gone:
            raise FileNotFoundError(errno.ENOENT, "deleted while it was open", str(self._store.path))

    def _repair(self) -> None:
        """Try the disk again: open anew, write the rows that waited, in order, then let the loop write directly."""
        if self._store.seq_file is None or not self._store.seq_file.writable:
            if self._store.seq_file is not None:
                self._store.seq_file.close()
                self._store.seq_file = None
            self._store.open_seq_file()
        self._store.reader.close()
        if self._gone:
            self._store.rescue()
            self._gone = False
        if self._store.db is not None:  # the loop does not touch it while there is trouble
            self._store.db.close()
            self._store.db = None
        if self._store.damaged:
            self._store.damaged = False
            if self._store.path.exists():
                self._store.replace_damaged().close()
        db = self._store.open()
        while True:
            with self._store.lock:
                if not self._write_some(db):
                    probe(db)
                    self._store.trouble = ""
                    self._store.commits += 1
                    self._store.rereads += 1
                    self._store.outage.over(
                        f"{self._store.waited} results waited in memory, {self._store.lost} were lost"
                    )
                    self._store.waited = 0
                    break
            time.sleep(0.001)  # the lock is not fair: let the loop have it
        if self._blind:
            log.error(
                "ledger %s: %d results, number %d to %d, were given out before it could be read, and it had used these "
                "numbers already: they are lost to it, look for them in the log",
                *(self._store.path, len(self._blind), self._blind[0], self._blind[-1]),
            )
            self._blind.clear()

    def _write_some(self, db: sqlite3.Connection) -> bool:
        """Write the next of the rows that waited, with the lock held; False when there is none."""
        rows = [self._store.kept[i] for i in range(min(CHUNK, len(self._store.kept)))]
        if not rows:
            return False
        with transaction(db):
            without = [row for row in rows if not self._write_kept(db, row)]
        for _ in rows:
            self._store.kept.popleft()
        for row in without:
            self._store.lose(row)
            self._blind.append(row[0])
        return True

    def _write_kept(self, db: sqlite3.Connection, row: Values) -> bool:
        """Write one of them; False when its number is that of another answer, which stays."""
        if row[0] > self._store.used_before:
            return db.execute(INSERT.replace("INSERT", "INSERT OR IGNORE"), row).rowcount == 1
        same = "SELECT 1 FROM results WHERE seq = ? AND payload = ?"  # written by a try that failed at its end
        return db.execute(same, (row[0], row[PAYLOAD])).fetchone() is not None

    def _write_acks(self) -> None:
        with self._store.lock:
            waiting = list(self._store.to_ack)
        waiting.sort()  # neighbours share pages
        for start in range(0, len(waiting), CHUNK):
            some = waiting[start : start + CHUNK]
            with self._store.lock:
                if self._store.db is None or self._store.trouble:
                    return
                with transaction(self._store.db):
                    gone = self._store.outbox.acknowledge(self._store.db, some)
                self._store.to_ack.difference_update(some)
                self._store.outbox.settle(gone)
                self._store.commits += 1
            time.sleep(0.001)  # the lock is not fair: let the loop have it

    def _give_up(self) -> None:
        """Let the oldest rows go that the outbox has no room for."""
        gone = Leaving(1, 0)
        while self._store.outbox.too_much and gone.rows:
            with self._store.lock:
                if self._store.db is None or self._store.trouble:
                    return
                with transaction(self._store.db):
                    gone = self._store.outbox.give_up(self._store.db, CHUNK)
                self._store.outbox.settle(gone)
                self._store.commits += 1
            time.sleep(0.001)  # the lock is not fair: let the loop have it

    def _force(self, wal: int) -> None:
        """Bring rows to the disk, now and then from the log into the database, and let the oldest rows go."""
        os.fsync(wal)
        if self._store.seq_file is not None:
            self._store.seq_file.sync()
        if self._store.commits >= CHECKPOINT_COMMITS:
            self._store.commits = self._store.forced = 0
            with contextlib.closing(sqlite3.connect(self._store.path, timeout=0.05, isolation_level=None)) as db:
                db.execute("PRAGMA wal_checkpoint(PASSIVE)")
                if os.fstat(wal).st_size > LARGEST_WAL:
                    db.execute("PRAGMA wal_checkpoint(PASSIVE)")  # what came meanwhile: little is left for the next
                    with self._store.lock:
                        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        if self._store.last_seq > self._keep_rows:
            self._let_oldest_go()

    def _let_oldest_go(self) -> None:
        """Let rows beyond the limit go, so many at a time that the loop hardly waits, and as many as may have come."""
        for _ in range(PRUNE_ROUNDS):
            gone = 0
            with self._store.lock:
                if self._store.db is not None:
                    for sql in PRUNE:
                        many = (self._store.last_seq - self._keep_rows, 2 * CHUNK)
                        gone = self._store.db.execute(sql, many).rowcount
            if gone < 2 * CHUNK:
                return
            time.sleep(0.001)  # the lock is not fair: let the loop have it
