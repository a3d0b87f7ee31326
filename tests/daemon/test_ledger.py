from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from tests.broker import wait_until
from tests.daemon.results import make

from lineward.daemon.ledger import Ledger, LedgerError, LedgerReader
from lineward.daemon.ledger_file import POWER_CUT_GAP

if TYPE_CHECKING:
    from pathlib import Path

WRITER = """
import sys
from pathlib import Path
from lineward.daemon.ledger import Ledger
from tests.daemon.results import make
ledger = Ledger(Path(sys.argv[1]))
while True:
    print(ledger.record(make()).seq, flush=True)
"""


def fill(ledger: Ledger, count: int) -> list[int]:
    return [ledger.record(make(part_id=f"P{i}")).seq for i in range(count)]


def test_numbers_go_on_after_a_restart(tmp_path: Path) -> None:
    """A station's numbers start at 1 and grow by one, across restarts too."""
    for expected in ([1, 2, 3], [4, 5, 6]):
        ledger = Ledger(tmp_path)
        assert fill(ledger, 3) == expected
        ledger.close()


def test_a_returned_result_is_already_on_disk(tmp_path: Path) -> None:
    """Nobody hears of a result before its row can be read by another process."""
    ledger = Ledger(tmp_path)
    result = ledger.record(make(part_id="A1183", verdict="review", reason="unsure"))
    with sqlite3.connect(tmp_path / "ledger.sqlite3") as db:
        (payload,) = db.execute("SELECT payload FROM results WHERE part_id = 'A1183' AND acked = 0").fetchone()
    db.close()
    assert json.loads(payload)["seq"] == result.seq == 1
    assert result.latency.record > 0
    ledger.close()


def test_a_row_leaves_the_outbox_when_it_is_acknowledged(tmp_path: Path) -> None:
    """An acknowledged row is never offered again, not even right after, and stays in the book."""
    ledger = Ledger(tmp_path)
    fill(ledger, 5)
    ledger.acknowledge([1, 2, 4])
    assert [row.seq for row in ledger.unacknowledged(0, 10)] == [3, 5]
    assert ledger.outbox_size == 2
    ledger.close()
    again = Ledger(tmp_path)
    assert [row.seq for row in again.unacknowledged(3, 10)] == [5]
    assert [row.seq for row in again.rows(acked=True)] == [1, 2, 4]
    again.close()


def test_rows_are_found_by_what_a_person_asks_for(tmp_path: Path) -> None:
    """Time, part, verdict and reason find rows, also from another process."""
    ledger = Ledger(tmp_path)
    fill(ledger, 1200)
    ledger.record(make(part_id="lost", verdict="undecided", reason="timeout", trigger_unix_ns=5))
    reader = LedgerReader(tmp_path / "ledger.sqlite3")
    assert [row.seq for row in reader.rows(part_id="P7")] == [8]
    assert [row.part_id for row in reader.rows(verdict="undecided", reason="timeout")] == ["lost"]
    assert [row.seq for row in reader.rows(until_ns=6)] == [1201]
    assert len(list(reader.rows())) == 1201
    assert reader.counts() == {"pass": 1200, "undecided": 1}
    reader.close()
    ledger.close()


def test_odd_values_are_recorded(tmp_path: Path) -> None:
    """Half a surrogate from a code reader, a 64-bit block id or a NaN from a model never cost a part its row."""
    ledger = Ledger(tmp_path)
    ledger.record(make(part_id="\ud800", confidence=float("nan"), camera=make().camera.__class__("c", "s", 2**64 - 1)))
    assert not ledger.trouble
    assert len(list(ledger.rows())) == 1
    ledger.close()


def test_the_limit_of_rows_holds_on_a_quick_line(tmp_path: Path) -> None:
    """Rule: rows beyond the limit go as quickly as others come; it was 128 a second whatever came."""
    ledger = Ledger(tmp_path, keep_rows=100)
    results = [ledger.record(make()).seq for _ in range(3000)]
    ledger.acknowledge(results)
    wait_until(lambda: sum(1 for _ in ledger.rows()) <= 228, 10, "the limit")
    ledger.close()


def test_old_acknowledged_rows_go_and_unacknowledged_ones_stay(tmp_path: Path) -> None:
    """The book is bounded, but nothing the broker has not got is ever deleted."""
    ledger = Ledger(tmp_path, keep_rows=10)
    fill(ledger, 50)
    ledger.acknowledge(range(2, 51))
    wait_until(lambda: len(list(ledger.rows())) == 11)
    assert [row.seq for row in ledger.rows()] == [1, *range(41, 51)]
    ledger.close()


def test_images_are_listed_oldest_first_and_summed(tmp_path: Path) -> None:
    """The keeper of images can hold its quota: total size, the oldest first, and removal."""
    ledger = Ledger(tmp_path)
    for i in range(3):
        ledger.add_image(f"i{i}", i, f"images/{i}.png", 100, "review")
    assert ledger.image_bytes() == 300
    assert [image.image_id for image in ledger.oldest_images(2)] == ["i0", "i1"]
    ledger.remove_image("i0")
    assert [image.path for image in ledger.images()] == ["images/2.png", "images/1.png"]
    ledger.close()


def test_sigkill_loses_and_repeats_nothing(tmp_path: Path) -> None:
    """Every number a killed process gave out is in the book, exactly once, and the next one follows without a gap."""
    last = 0
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        first = int(writer.stdout.readline())
        time.sleep(0.2)
        writer.kill()
        told = [first, *map(int, writer.stdout.read().split("\n")[:-1])]
        writer.wait()
        writer.stdout.close()
        assert told[0] == last + 1
        reader = LedgerReader(tmp_path / "ledger.sqlite3")
        seqs = [row.seq for row in reader.rows()]
        reader.close()
        assert seqs == list(range(1, len(seqs) + 1))
        assert len(seqs) >= told[-1]
        last = len(seqs)


def test_a_newer_schema_is_refused_in_one_line(tmp_path: Path) -> None:
    """An older version never touches a book it does not understand."""
    Ledger(tmp_path).close()
    with sqlite3.connect(tmp_path / "ledger.sqlite3") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(LedgerError, match=r"newer Lineward \(schema 99.*install"):
        Ledger(tmp_path)


def test_two_writers_are_refused(tmp_path: Path) -> None:
    """Two processes must not give out the same numbers."""
    ledger = Ledger(tmp_path)
    with pytest.raises(LedgerError, match="another Lineward writes here"):
        Ledger(tmp_path)
    ledger.close()


@pytest.mark.parametrize("last_words", ["lost", "kept"])
def test_a_damaged_file_is_moved_aside_and_numbers_go_on(
    tmp_path: Path, last_words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged book is kept under another name, said in one line, and no number is used twice."""
    ledger = Ledger(tmp_path)
    fill(ledger, 200)
    ledger.close()
    path = tmp_path / "ledger.sqlite3"
    data = bytearray(path.read_bytes())
    data[:100] = b"\0" * 90 + b"not a book"
    path.write_bytes(data)
    if last_words == "lost":
        (tmp_path / "ledger.seq").unlink()
    ledger = Ledger(tmp_path)
    assert not ledger.trouble
    assert fill(ledger, 1) == [201]
    ledger.close()
    (aside,) = tmp_path.glob("ledger.sqlite3.damaged-*")
    assert aside.read_bytes() == bytes(data)
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_damage_in_the_middle_saves_what_can_be_read(tmp_path: Path) -> None:
    """Unacknowledged results of a damaged book are still delivered as far as they can be read."""
    ledger = Ledger(tmp_path)
    fill(ledger, 400)
    ledger.close()
    path = tmp_path / "ledger.sqlite3"
    data = bytearray(path.read_bytes())
    start = len(data) * 3 // 4 // 4096 * 4096
    data[start : start + 8192] = b"\xff" * 8192
    path.write_bytes(data)
    ledger = Ledger(tmp_path)
    assert fill(ledger, 1) == [401]
    saved = [row.seq for row in ledger.unacknowledged(0, 1000)]
    assert saved[-1] == 401
    assert len(saved) > 100
    ledger.close()


def test_a_power_cut_leaves_a_gap_and_never_repeats_a_number(tmp_path: Path) -> None:
    """Rows of the last second may be gone after a power cut; their numbers must not come again."""
    Ledger(tmp_path).close()
    (tmp_path / "ledger.seq").write_text(f"{41:>18d} {'another-boot':<36s} {'open':<7s}\n")
    ledger = Ledger(tmp_path)
    assert fill(ledger, 2) == [42 + POWER_CUT_GAP, 43 + POWER_CUT_GAP]
    ledger.close()
    ledger = Ledger(tmp_path)
    assert fill(ledger, 1) == [44 + POWER_CUT_GAP]
    ledger.close()


def test_a_power_cut_leaves_its_gap_before_the_book_can_be_read(tmp_path: Path) -> None:
    """Rule: numbers that a power cut may have taken are left out once, whether or not the database can be opened."""
    (tmp_path / "ledger.seq").write_text(f"{41:>18d} {'another-boot':<36s} {'open':<7s}\n")
    (tmp_path / "ledger.sqlite3").mkdir()  # cannot be opened, and is not damaged either
    ledger = Ledger(tmp_path)
    assert ledger.trouble
    assert fill(ledger, 2) == [42 + POWER_CUT_GAP, 43 + POWER_CUT_GAP]
    (tmp_path / "ledger.sqlite3").rmdir()
    wait_until(lambda: not ledger.trouble, what="recovery")
    assert fill(ledger, 1) == [44 + POWER_CUT_GAP]
    ledger.close()
    ledger = Ledger(tmp_path)
    assert fill(ledger, 1) == [45 + POWER_CUT_GAP]
    assert [row.seq for row in ledger.rows()] == [POWER_CUT_GAP + number for number in (42, 43, 44, 45)]
    ledger.close()


def test_a_process_that_did_not_close_its_book_is_known(tmp_path: Path) -> None:
    """Rule: after a kill the next process knows that the one before was not stopped; after a stop it was."""
    source = (
        "import os, sys\nfrom pathlib import Path\nfrom lineward.daemon.ledger import Ledger\n"
        "ledger = Ledger(Path(sys.argv[1]))\nprint(ledger.was_killed)\nif sys.argv[2] == 'kill':\n"
        "    sys.stdout.flush(); os._exit(9)\nledger.close()\n"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", source, str(tmp_path), end], capture_output=True, text=True, check=False
        ).stdout.strip()
        for end in ("stop", "kill", "stop", "stop")
    ]
    assert found == ["False", "False", "True", "False"]


def test_the_log_beside_the_database_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: a line that never pauses gives SQLite no moment to begin its log anew; it is made to, by size."""
    monkeypatch.setattr("lineward.daemon.ledger_keeper.LARGEST_WAL", 1 << 20)
    monkeypatch.setattr("lineward.daemon.ledger_keeper.CHECKPOINT_COMMITS", 50)
    monkeypatch.setattr("lineward.daemon.ledger_keeper.TICK_S", 0.05)
    ledger = Ledger(tmp_path)
    wal = tmp_path / "ledger.sqlite3-wal"
    largest = anew = 0
    until = time.monotonic() + 60
    while time.monotonic() < until and anew < 3:
        for _ in range(20):
            ledger.acknowledge([ledger.record(make()).seq])
        size = wal.stat().st_size
        if largest > 1 << 20 and size < largest / 2:
            anew, largest = anew + 1, 0
        largest = max(largest, size)
    assert anew == 3, "it begins anew, again and again, while answers come without a pause"
    count = ledger.last_seq
    ledger.close()
    assert [row.seq for row in Ledger(tmp_path).rows()] == list(range(1, count + 1))


def test_a_schema_that_is_no_text_any_more_is_damage(tmp_path: Path) -> None:
    """Rule: SQLite's own complaint cannot be read then; the file is moved aside and the line goes on."""
    first = Ledger(tmp_path)
    first.record(make())
    first.close()
    path = tmp_path / "ledger.sqlite3"
    data = path.read_bytes()
    assert b"CREATE TABLE results" in data
    path.write_bytes(data.replace(b"CREATE TABLE results", b"CREATE \xeaABLE \xea\xeasults"))
    second = Ledger(tmp_path)
    assert second.record(make()).seq == 2
    assert len(list(tmp_path.glob("*.damaged-*"))) >= 1
    second.close()
