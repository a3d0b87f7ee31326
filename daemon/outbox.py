"""What of the ledger still has to reach `result`: in order, each until the broker has acknowledged it."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from lineward.daemon.result import mark_late

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lineward.daemon.ledger import Ledger, OutboxRow

READ_ROWS = 32
MOST_REMEMBERED = 4096
"""Answers of this process whose end is known; an older one is late."""


class Spans:
    """Numbers that come in rising order and leave in the same order, as spans: a day of them is a few."""

    def __init__(self) -> None:
        self._spans: deque[list[int]] = deque()  # first and last of each

    def add(self, number: int) -> None:
        """Take in a number; it is above all others."""
        if self._spans and self._spans[-1][1] == number - 1:
            self._spans[-1][1] = number
        else:
            self._spans.append([number, number])

    def take(self, number: int) -> bool:
        """Tell whether a number is among them, and let go of it and of all below."""
        while self._spans and self._spans[0][1] < number:
            self._spans.popleft()
        if not self._spans or self._spans[0][0] > number:
            return False
        self._spans[0][0] = number + 1
        if self._spans[0][0] > self._spans[0][1]:
            self._spans.popleft()
        return True

    def clear(self) -> None:
        """Let go of all."""
        self._spans.clear()

    def __len__(self) -> int:
        """Return the number of spans: what they cost."""
        return len(self._spans)


class Outbox:
    """Walks through the unacknowledged rows of a ledger. For the thread that sends, except `expect` and `look_again`.

    Whether a row is late is reckoned in monotonic time, from what `expect` was told: a wall clock may step by an hour.
    Rows of an earlier process, and those that were recorded during an outage, are late.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._rows: deque[OutboxRow] = deque()
        self._useful_until_s: dict[int, float] = {}  # monotonic
        self._sent_seq = 0
        self._behind = True
        self._rereads = 0
        self._in_flight: dict[int, bool] = {}  # number -> whether it went out as late
        self._told = Spans()
        self._refused_in_time: set[int] = set()

    # ---- told by whoever makes the results

    def expect(self, seq: int, useful_until_s: float) -> None:
        """Say until when (monotonic seconds) a row that is delivered from here is not late."""
        known = self._useful_until_s
        known[seq] = useful_until_s
        if len(known) > MOST_REMEMBERED:
            del known[next(iter(known))]

    def look_again(self) -> None:
        """Say that there are rows which nobody handed over."""
        self._behind = True

    # ---- the sending thread

    @property
    def waiting(self) -> bool:
        """Whether there is, or may be, something to send."""
        return self._behind or bool(self._rows)

    def restart(self) -> None:
        """Begin at the oldest row: a new connection knows nothing of what was sent before."""
        self._in_flight.clear()
        self._told.clear()
        self._refused_in_time.clear()
        self._begin_anew()

    def lost(self) -> None:
        """Say that the connection is gone: what was not delivered by now is late for the line."""
        self._useful_until_s = {}
        self._in_flight.clear()
        self._told.clear()
        self._refused_in_time.clear()

    def is_next(self, seq: int) -> bool:
        """Whether everything before a row is out, so that it can go without a look at the ledger."""
        return seq == self._sent_seq + 1 and not self.waiting

    def overtaken(self, seq: int, *, told: bool = False) -> None:
        """Say that a row was not sent directly; its turn comes, and it is not late if the PLC was told in time."""
        if seq > self._sent_seq:
            self._behind = True
            if told:
                self._told.add(seq)

    def sent(self, seq: int, *, late: bool) -> None:
        """Say that a row is on its way, and whether as late."""
        self._in_flight[seq] = late
        self._sent_seq = seq

    def acknowledged(self, seqs: Sequence[int]) -> None:
        """Take rows out of the outbox: the broker has them."""
        for seq in seqs:
            self._in_flight.pop(seq, None)
        self._ledger.acknowledge(seqs)

    def refused(self, seq: int) -> None:
        """Say that the broker did not take a row: it is the next again, before those that follow it."""
        if not self._in_flight.pop(seq, True):
            self._refused_in_time.add(seq)
        self._begin_anew()

    def refresh(self) -> None:
        """Begin anew when the ledger can read what it could not."""
        if self._rereads != self._ledger.rereads:
            self._rereads = self._ledger.rereads
            self._begin_anew()

    def _begin_anew(self) -> None:
        self._rows.clear()
        self._sent_seq = 0
        self._behind = True

    def next(self) -> tuple[int, bytes, bool] | None:
        """Return number and payload of the next row and whether it is late; None when the direct way is open again."""
        while self._rows or self._read():
            row = self._rows.popleft()
            if row.seq not in self._in_flight:
                told = self._told.take(row.seq) or row.seq in self._refused_in_time
                self._refused_in_time.discard(row.seq)
                late = not told and time.monotonic() > self._useful_until_s.get(row.seq, float("-inf"))
                return row.seq, mark_late(row.payload) if late else row.payload, late
            self._sent_seq = max(self._sent_seq, row.seq)  # or the next look finds the same rows, and so for ever
        return None

    def _read(self) -> bool:
        self._behind = False  # before looking: whoever sets it from now on wants another look
        known = self._ledger.last_seq
        self._rows.extend(self._ledger.unacknowledged(self._sent_seq, READ_ROWS))
        if self._rows:
            self._behind = True
            return True
        self._sent_seq = max(self._sent_seq, known)
        return False
