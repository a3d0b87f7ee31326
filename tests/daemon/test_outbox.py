"""What the outbox remembers of answers that the PLC had before their turn in `result` came."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING

from tests.broker import wait_until
from tests.daemon.results import make

from lineward.daemon.ledger import Ledger
from lineward.daemon.outbox import READ_ROWS, Outbox, Spans

if TYPE_CHECKING:
    from pathlib import Path


def test_numbers_are_remembered_until_their_turn() -> None:
    """Rule: whichever numbers come, each is told apart from those that did not, in rising order."""
    for seed in range(200):
        draw = random.Random(seed)
        spans, known, asked = Spans(), set[int](), 0
        for number in range(1, 400):
            if draw.random() < 0.7:
                spans.add(number)
                known.add(number)
            while asked < number and draw.random() < 0.5:
                asked += draw.choice((1, 1, 1, 5))
                assert spans.take(asked) == (asked in known)
                known = {other for other in known if other > asked}


def test_a_day_of_told_answers_costs_no_more_than_one() -> None:
    """Rule: what a long backlog makes it remember does not grow with the parts that pass meanwhile."""
    spans = Spans()
    for number in range(5, 100_005):
        spans.add(number)
    assert len(spans) == 1
    assert not spans.take(4)
    assert all(spans.take(number) for number in range(5, 100_005))
    assert len(spans) == 0
    spans.add(200_000)
    spans.clear()
    assert not spans.take(200_000)


def test_rows_in_flight_do_not_hold_up_a_fresh_start(tmp_path: Path) -> None:
    """Rule: when a mended disk is read from its beginning, rows whose acknowledgement is on its way are passed by."""
    (tmp_path / "root").write_text("a file where the folder should be")
    ledger = Ledger(tmp_path / "root")
    outbox = Outbox(ledger)
    count = 2 * READ_ROWS
    for _ in range(count):
        ledger.record(make())
    for _ in range(count):
        row = outbox.next()
        assert row is not None
        outbox.sent(row[0], late=row[2])
    (tmp_path / "root").unlink()
    (tmp_path / "root").mkdir()
    wait_until(lambda: not ledger.trouble, what="recovery")
    outbox.refresh()
    found: list[object] = []
    look = threading.Thread(target=lambda: found.append(outbox.next()))
    look.start()
    look.join(5)
    endless = look.is_alive()
    ledger.acknowledge(range(1, count + 1))  # which ends the look in any case
    look.join()
    assert not endless
    assert found == [None]
    assert ledger.record(make()).seq == count + 1
    assert outbox.is_next(count + 1)
    ledger.close()
