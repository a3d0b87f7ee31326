"""The files of a ledger, and what waits in memory while they cannot be written: shared by `Ledger` and its keeper."""

from __future__ import annotations

import contextlib
import errno
import logging
import sqlite3
import threading
from collections import deque
from typing import TYPE_CHECKING

from lineward.daemon.ledger_file import (
    POWER_CUT_GAP,
    LedgerError,
    explain,
    highest_seq_of_images,
    is_damaged,
    move_aside,
    open_writer,
    rescue,
    salvage_outbox,
    salvage_seq,
)
from lineward.daemon.ledger_outbox import OutboxSize, measure
from lineward.daemon.ledger_read import HIGHEST_TRIGGER, LedgerReader
from lineward.daemon.ledger_rows import PAYLOAD, Values
from lineward.daemon.ledger_seq import CLEAN, GAP, OPEN, SeqFile
from lineward.daemon.retry import Outage

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger("lineward.ledger")


class LedgerStore:
    """One open ledger. Whoever writes holds ``lock``.

    Attributes
    ----------
    lock
        One writer: SQLite's own lock would make the loop poll for milliseconds.
    db
        None while the file cannot be opened; not used while there is `trouble`.
    kept
        Rows that wait in memory for the disk.
    to_ack
        Numbers that the broker has and the file does not know of yet.
    used_before
        The highest number that the files knew of when they were opened; a row that was kept before they could be read
        may have one of these too.
    commits, forced
        Commits since the last checkpoint, and how many of these are on the disk already.
    """

    def __init__(self, root: Path, *, memory_rows: int, outbox_bytes: int) -> None:
        self.path = root / "ledger.sqlite3"
        self.root = root
        self._memory_rows = memory_rows
        self.lock = threading.Lock()
        self.db: sqlite3.Connection | None = None
        self.seq_file: SeqFile | None = None
        self.reader = LedgerReader(self.path)
        self.kept: deque[Values] = deque()
        self.to_ack: set[int] = set()
        self.outage = Outage(log, f"ledger {self.path}")
        self.damaged = False
        self.commits = 0
        self.forced = 0
        self.outbox = OutboxSize(outbox_bytes)
        self.waited = 0
        self.trouble = ""
        self.lost = 0
        self.rereads = 0
        self.used_before = 0
        self.was_killed = False
        self._opened = self._numbered = False
        self._file: tuple[int, int] | None = None
        self.last_seq = 0
        self.last_trigger = 0

    def start(self) -> None:
        """Open the files and find the number to go on with; a disk in trouble leaves rows in memory."""
        try:
            self.open_seq_file()
            self.was_killed = self.seq_file is not None and self.seq_file.mark != CLEAN
            self.open()
        except LedgerError:
            self.abandon()
            raise
        except (OSError, sqlite3.Error) as error:
            self.fail(error)
            with contextlib.suppress(sqlite3.Error):  # a folder mounted read-only can still be read
                self.last_seq = max(self.last_seq, self.reader.highest_seq())

    def open_seq_file(self) -> None:
        """Take hold of the folder; raises `LedgerError` when another process has it, and `OSError`.

        It is made when it is not there: at a start on a disk that was in trouble it could not be.
        """
        with contextlib.suppress(OSError):
            self.root.mkdir(parents=True, exist_ok=True)
        seq_file = self.seq_file = SeqFile(self.root / "ledger.seq", again=self._numbered)
        self._numbered = True
        if seq_file.power_cut:  # now, and not with the database, which may be out of reach for hours
            seq_file.last += POWER_CUT_GAP
        if max(self.last_seq, seq_file.last) == 0 and not self.path.exists():  # new, or all is lost but the images
            kept = highest_seq_of_images(self.root)
            seq_file.last = kept + POWER_CUT_GAP if kept else 0
        with self.lock:  # of a repair: the loop gives out numbers meanwhile
            known = self.last_seq >= seq_file.last
            self.last_seq = max(self.last_seq, seq_file.last)
            if not seq_file.power_cut:
                return
            seq_file.write(self.last_seq, GAP)
        with contextlib.suppress(OSError):
            seq_file.sync()  # or a second power cut could take the gap with it
        if not known:
            log.warning(
                "ledger: the machine was switched off while the line ran; numbers go on above %d, none is used twice",
                self.last_seq,
            )

    def open(self) -> sqlite3.Connection:
        """Open the database, moving a damaged one aside, and learn the highest number and the size of the outbox."""
        replaced = False
        try:
            db = open_writer(self.path)
        except sqlite3.DatabaseError as error:
            if not is_damaged(error):
                raise
            db, replaced = self.replace_damaged(), True
        try:
            highest = db.execute("SELECT coalesce(max(seq), 0) FROM results").fetchone()[0]
            highest_trigger = db.execute(HIGHEST_TRIGGER).fetchone()[0]
            waiting = measure(db)
        except sqlite3.Error as error:
            db.close()
            if not is_damaged(error):
                raise
            db, replaced = self.replace_damaged(), True
            highest, highest_trigger, waiting = 0, 0, measure(db)
        seq_file = self.seq_file
        if seq_file is not None and not (replaced or self._opened or seq_file.power_cut):
            self._tell_missing(highest, seq_file)
        self._opened = True
        found = self.path.stat()
        with self.lock:
            self.db = db
            self._file = (found.st_dev, found.st_ino)
            self.last_trigger = max(self.last_trigger, highest_trigger)
            self.outbox.begin(*waiting)
            for values in self.kept:
                self.outbox.add(values[PAYLOAD])
            if seq_file is not None and seq_file.power_cut and self.last_seq == seq_file.last:
                self.last_seq = max(self.last_seq, highest + POWER_CUT_GAP)  # the database may know of one or two more
            self.last_seq = max(self.last_seq, highest)
            self.used_before = max(highest, 0 if seq_file is None else seq_file.last)
            if seq_file is not None:
                left_out = seq_file.last > highest and (seq_file.power_cut or seq_file.mark == GAP)
                seq_file.power_cut = False
                seq_file.write(self.last_seq, GAP if left_out else OPEN)
        return db

    def _tell_missing(self, highest: int, seq_file: SeqFile) -> None:
        """Name the answers that waited in memory for the disk when the process before us ended."""
        if seq_file.mark == OPEN and highest < seq_file.last:
            log.error(
                "ledger: %d results, number %d to %d, were given out, and the disk did not take them before the "
                "service ended: they are lost to the ledger, look for them in the log",
                *(seq_file.last - highest, highest + 1, seq_file.last),
            )

    def is_gone(self) -> bool:
        """Tell whether somebody deleted the database, or put another in its place, while we have it open."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return True
        return self._file != (found.st_dev, found.st_ino)

    def rescue(self) -> None:
        """Put the database that was deleted under us back; raises `OSError` or `sqlite3.Error`."""
        if self.db is None or self._file is None:
            return
        if self.path.exists() and self.is_gone():
            if self.path.stat().st_ino != self._file[1]:  # the same on another device: its disk was mounted again
                log.error(
                    "ledger %s was replaced by another file while the service runs: that one is gone on with, and what "
                    "only the old one held is lost; stop the service before you put a copy back",
                    self.path,
                )
            return
        disk, below = self.root.stat().st_dev, self.root.resolve().parent.stat().st_dev
        if disk != self._file[0] and disk == below:
            raise FileNotFoundError(errno.ENOENT, "its disk is not mounted any more", str(self.path))
        rescue(self.db, self.path)
        log.warning("ledger %s was deleted while the service runs: it is back, with all its results", self.path)

    def replace_damaged(self) -> sqlite3.Connection:
        """Move the damaged database aside, start a new one, and save what can be saved."""
        self.reader.close()
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

    def abandon(self) -> None:
        """Close the files; rows that a disk in trouble did not take are named as lost."""
        with self.lock:
            self.reader.close()
            if self.db is not None:
                with contextlib.suppress(sqlite3.Error):
                    self.db.close()
                self.db = None
            if self.seq_file is not None:
                if not self.kept:
                    self.seq_file.write(self.last_seq, CLEAN)
                self.seq_file.close()
                self.seq_file = None
            if self.kept:
                log.error(
                    "ledger: %d results, number %d to %d, could not be written and are lost to the ledger: %s",
                    *(len(self.kept), self.kept[0][0], self.kept[-1][0], self.trouble),
                )

    def fail(self, error: BaseException) -> None:
        """Note trouble; with the lock held, or before there are threads."""
        self.trouble = explain(error, self.path) + "; results are kept in memory meanwhile"
        self.damaged = self.damaged or is_damaged(error)
        self.outage.failed(self.trouble)

    def keep(self, values: Values) -> None:
        """Keep a row in memory, with the lock held."""
        self.kept.append(values)
        self.waited += 1
        if len(self.kept) > self._memory_rows:
            self.lose(self.kept.popleft())

    def lose(self, values: Values) -> None:
        """Count a kept row that will not be written, with the lock held."""
        self.to_ack.discard(values[0])
        self.outbox.remove(values[PAYLOAD])
        self.lost += 1
