from __future__ import annotations

import logging
import sqlite3
from typing import TYPE_CHECKING

from tests.broker import wait_until
from tests.daemon.results import make

from lineward.daemon.ledger import Ledger
from lineward.daemon.ledger_outbox import ROW_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

ROW = len(make(seq=100, part_id="P100").payload()) + ROW_BYTES


def fill(ledger: Ledger, count: int) -> list[int]:
    return [ledger.record(make(part_id="P100")).seq for _ in range(count)]


def near(size: int, rows: int) -> bool:
    return abs(size - rows * ROW) < rows * 8  # numbers and times of other lengths


def test_the_alarm_comes_before_anything_is_given_up(tmp_path: Path) -> None:
    """At 80 % of the bound somebody is told to bring the broker back, and everything still waits."""
    ledger = Ledger(tmp_path, outbox_bytes=100 * ROW)
    fill(ledger, 70)
    ledger.acknowledge([])
    assert near(ledger.outbox_bytes, 70)
    assert not ledger.outbox_trouble
    fill(ledger, 15)
    wait_until(lambda: "bring the broker back" in ledger.outbox_trouble)
    assert "fill 80% of the outbox" in ledger.outbox_trouble
    assert ledger.counts()["given_up"] == 0
    assert ledger.outbox_size == 85
    ledger.acknowledge(range(1, 11))
    wait_until(lambda: near(ledger.outbox_bytes, 75))
    assert ledger.outbox_trouble  # a level that wavers does not ring again
    ledger.acknowledge(range(11, 31))
    wait_until(lambda: not ledger.outbox_trouble)
    ledger.close()


def test_at_the_bound_the_oldest_leave_the_outbox_and_stay_in_the_book(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A full outbox gives up its oldest rows: they are counted, marked, still in the ledger, and not sent any more."""
    ledger = Ledger(tmp_path, outbox_bytes=100 * ROW)
    fill(ledger, 250)
    wait_until(lambda: ledger.outbox_bytes <= 100 * ROW)
    wait_until(lambda: "the outbox is full" in ledger.outbox_trouble)
    waiting = [row.seq for row in ledger.unacknowledged(0, 1000)]
    given_up = [row.seq for row in ledger.rows() if row.given_up]
    assert given_up == list(range(1, len(given_up) + 1))
    assert waiting == list(range(len(given_up) + 1, 251))
    assert 98 <= len(waiting) <= 100
    assert ledger.outbox_size == len(waiting)
    assert ledger.counts()["given_up"] == len(given_up)
    assert not any(row.acked for row in ledger.rows())
    assert len(list(ledger.rows(acked=False))) == 250
    ledger.acknowledge(waiting[:60])
    with caplog.at_level(logging.ERROR, "lineward.ledger"):
        wait_until(lambda: not ledger.outbox_trouble)
    assert f"between number 1 and {given_up[-1]} were given up" in caplog.text
    ledger.close()


def test_a_row_that_the_broker_had_after_all_counts_as_acknowledged(tmp_path: Path) -> None:
    """An acknowledgement that comes after a row was given up is believed, and the outbox still adds up."""
    ledger = Ledger(tmp_path, outbox_bytes=10 * ROW)
    fill(ledger, 20)
    wait_until(lambda: ledger.counts()["given_up"] >= 10)
    before = ledger.counts()
    ledger.acknowledge([1, 2, 20])
    wait_until(lambda: ledger.counts()["given_up"] == before["given_up"] - 2)
    assert ledger.outbox_size == before["outbox"] - 1
    assert [row.seq for row in ledger.rows(acked=True)] == [1, 2, 20]
    ledger.close()


def test_the_bound_holds_across_a_restart(tmp_path: Path) -> None:
    """What waits is measured again at the start; a smaller bound takes effect at once."""
    ledger = Ledger(tmp_path)
    fill(ledger, 200)
    size = ledger.outbox_bytes
    ledger.close()
    ledger = Ledger(tmp_path)
    assert ledger.outbox_bytes == size
    ledger.close()
    ledger = Ledger(tmp_path, outbox_bytes=50 * ROW)
    wait_until(lambda: ledger.outbox_bytes <= 50 * ROW)
    ledger.close()
    ledger = Ledger(tmp_path)
    assert 48 <= ledger.outbox_size <= 50
    ledger.close()


def test_rows_in_memory_count_as_well(tmp_path: Path) -> None:
    """While the disk is in trouble, what waits in memory is measured, and what finds no room there is taken off."""
    root = tmp_path / "gone"
    root.write_text("a file where the folder should be")
    ledger = Ledger(root, memory_rows=50)
    fill(ledger, 80)
    assert near(ledger.outbox_bytes, 50)
    assert ledger.outbox_size == 50
    root.unlink()
    root.mkdir()
    wait_until(lambda: not ledger.trouble)
    assert near(ledger.outbox_bytes, 50)
    ledger.acknowledge(range(31, 81))
    wait_until(lambda: ledger.outbox_bytes == 0)
    ledger.close()


def test_old_rows_that_were_given_up_make_room_like_the_others(tmp_path: Path) -> None:
    """The ledger itself stays bounded: beyond `keep_rows`, what was given up goes like what was acknowledged."""
    ledger = Ledger(tmp_path, keep_rows=50, outbox_bytes=20 * ROW)
    fill(ledger, 300)
    wait_until(lambda: sum(1 for _ in ledger.rows()) <= 50 or not fill(ledger, 1))
    ledger.close()
    with sqlite3.connect(tmp_path / "ledger.sqlite3") as db:
        assert db.execute("SELECT count(*) FROM results WHERE acked = 0").fetchone()[0] <= 21
    db.close()
