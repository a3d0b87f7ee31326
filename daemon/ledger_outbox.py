"""How much waits for the broker, in bytes, and what becomes of it when that is too much."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3

log = logging.getLogger("lineward.ledger")

ROW_BYTES = 230
"""What a row takes on the disk besides its payload, indexes included: measured with 20,000 rows."""

ALARM_SHARE = 0.8
CALM_SHARE = 0.7
"""The alarm is over below this share: a level that wavers must not ring at every answer."""

# Column `acked`: 0 waits, 1 the broker has it, 2 was given up: stays in the ledger and is not sent any more.
_SIZES = "SELECT count(*), coalesce(sum(length(payload)), 0) FROM results WHERE acked = 0"
_OLDEST = "SELECT seq, length(payload) FROM results WHERE acked = 0 ORDER BY seq LIMIT ?"
_GIVE_UP = "UPDATE results SET acked = 2 WHERE seq = ? AND acked = 0"
_ACK = "UPDATE results SET acked = 1 WHERE seq = ? AND acked != 1"


@dataclass(frozen=True, slots=True)
class Leaving:
    """Rows that leave the outbox once their transaction is through: how many, bytes, and how many as given up."""

    rows: int
    bytes: int
    given_up: int = 0
    first_seq: int = 0
    last_seq: int = 0


def measure(db: sqlite3.Connection) -> tuple[int, int]:
    """Return number and bytes of the rows on disk that wait: 0.5 us a row. Raises `sqlite3.Error`."""
    rows, size = db.execute(_SIZES).fetchone()
    return rows, size + rows * ROW_BYTES


class OutboxSize:
    """Counts what waits and keeps it below a bound. Every method but `watch` is called with the ledger's lock held.

    Parameters
    ----------
    limit_bytes
        At this size the oldest rows are given up. It is passed by what is recorded between two looks, a second apart.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.rows = 0
        self.bytes = 0
        self.given_up = 0
        """Rows that left the outbox because it was full, since the start, less those that the broker had after all."""
        self.trouble = ""
        self._first_given_up = 0
        self._last_given_up = 0

    def begin(self, rows: int, size: int) -> None:
        """Start with what is on the disk."""
        self.rows, self.bytes = rows, size

    def add(self, payload: bytes) -> None:
        """Count a row that has come."""
        self.rows += 1
        self.bytes += len(payload) + ROW_BYTES

    def remove(self, payload: bytes) -> None:
        """Count a row that has gone."""
        self.rows -= 1
        self.bytes -= len(payload) + ROW_BYTES

    @property
    def too_much(self) -> bool:
        """Whether rows have to be given up."""
        return self.bytes > self.limit_bytes

    def acknowledge(self, db: sqlite3.Connection, seqs: list[int]) -> Leaving:
        """Mark rows as acknowledged, within a transaction of the caller, who calls `settle` after it."""
        marks = ",".join("?" * len(seqs))
        rows, size = db.execute(f"{_SIZES} AND seq IN ({marks})", seqs).fetchone()
        changed = db.executemany(_ACK, [(seq,) for seq in seqs]).rowcount
        return Leaving(rows, size + rows * ROW_BYTES, given_up=rows - changed)

    def give_up(self, db: sqlite3.Connection, most: int) -> Leaving:
        """Give up the oldest rows, as many as are too many; transaction and `settle` as in `acknowledge`."""
        excess = self.bytes - self.limit_bytes
        gone: list[int] = []
        size = 0
        for seq, length in db.execute(_OLDEST, (most,)).fetchall():
            if size >= excess:
                break
            gone.append(seq)
            size += length + ROW_BYTES
        db.executemany(_GIVE_UP, [(seq,) for seq in gone])
        return Leaving(len(gone), size, len(gone), *((gone[0], gone[-1]) if gone else (0, 0)))

    def settle(self, gone: Leaving) -> None:
        """Count rows that have left the outbox for good."""
        self.rows -= gone.rows
        self.bytes -= gone.bytes
        self.given_up += gone.given_up
        if gone.first_seq:
            self._first_given_up = self._first_given_up or gone.first_seq
            self._last_given_up = gone.last_seq

    def watch(self) -> None:
        """Say whether somebody has to look after the broker: in `trouble`, and once in the log for rows given up."""
        share = self.bytes / self.limit_bytes
        limit = f"{self.limit_bytes / 1e6:.4g} MB"
        if self._first_given_up and share > CALM_SHARE:
            self.trouble = (
                f"the outbox is full ({limit} of results that the broker has not acknowledged): the oldest are given "
                "up and stay in the ledger only; bring the broker back, or raise storage.outbox_mb"
            )
        elif share >= ALARM_SHARE or (self.trouble and share > CALM_SHARE):
            self.trouble = (
                f"results that the broker has not acknowledged fill {ALARM_SHARE:.0%} of the outbox ({limit}): bring "
                "the broker back; once it is full, the oldest stay in the ledger only"
            )
        else:
            self.trouble = ""
            if self._first_given_up:
                log.error(
                    "outbox: results between number %d and %d were given up because it was full; the ledger has them",
                    *(self._first_given_up, self._last_given_up),
                )
                self._first_given_up = self._last_given_up = 0
