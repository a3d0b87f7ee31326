from __future__ import annotations

import contextlib
import os
import resource
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.broker import wait_until
from tests.daemon.results import make
from tests.disks import fill_up, mount, small_disk

from lineward.daemon.ledger import Ledger
from lineward.daemon.ledger_seq import beside_the_disk, boot_id

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "1m") as folder:
        yield folder


def record_many(ledger: Ledger, count: int) -> None:
    for _ in range(count):
        ledger.record(make())


def test_a_full_disk_never_stops_the_line(disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    """On a full disk rows wait in memory, are offered for publishing, and are written in order once there is room."""
    ledger = Ledger(disk)
    record_many(ledger, 20)
    fill_up(disk / "ballast")
    record_many(ledger, 100)
    assert "is full: free some space" in ledger.trouble
    assert ledger.counts()["in_memory"] > 0
    assert [row.seq for row in ledger.unacknowledged(0, 1000)] == list(range(1, 121))
    ledger.acknowledge(range(1, 61))
    (disk / "ballast").unlink()
    wait_until(lambda: not ledger.trouble, what="recovery")
    record_many(ledger, 1)
    assert [row.seq for row in ledger.rows()] == list(range(1, 122))
    assert [row.seq for row in ledger.unacknowledged(0, 1000)] == list(range(61, 122))
    ledger.close()
    assert sum(record.levelname == "WARNING" for record in caplog.records) == 1


def test_numbers_survive_a_kill_while_the_disk_is_full(disk: Path) -> None:
    """Numbers of rows that never reached the disk are not used again after a restart."""
    ledger = Ledger(disk)
    record_many(ledger, 5)
    fill_up(disk / "ballast")
    record_many(ledger, 100)
    in_place = (disk / "ledger.seq").read_bytes()
    ledger.close()
    (disk / "ledger.seq").write_bytes(in_place)  # as a kill before the close would have left it
    (disk / "ballast").unlink()
    ledger = Ledger(disk)
    assert ledger.record(make()).seq == 106
    ledger.close()


BEFORE_A_KILL = """
import os, sys
from pathlib import Path
from tests.daemon.results import make
from tests.disks import fill_up
from lineward.daemon.ledger import Ledger
from lineward.daemon.ledger_seq import beside_the_disk, boot_id

disk = Path(sys.argv[1])
ledger = Ledger(disk)
for _ in range(5):
    ledger.record(make())
fill_up(disk / "ballast")
reading = os.open(disk / "ledger.seq", os.O_RDONLY)
os.dup2(reading, ledger._store.seq_file._fd)  # what is written from now on is refused, as on a disk that failed
for _ in range(100):
    ledger.record(make())
if sys.argv[2] == "end":
    ledger.close()
os._exit(0)
"""


@pytest.mark.parametrize("how", ["kill", "end"])
def test_numbers_survive_the_process_while_the_disk_takes_nothing(
    disk: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Rule: a disk that became read-only under the line costs no number twice; what was lost is named at the start."""
    subprocess.run([sys.executable, "-c", BEFORE_A_KILL, disk, how], check=True, cwd=Path(__file__).parents[2])
    (disk / "ballast").unlink()
    aside = beside_the_disk(disk / "ledger.seq")
    assert aside.exists()
    ledger = Ledger(disk)
    assert ledger.record(make()).seq == 106
    ledger.close()
    assert not aside.exists()
    lost = "100 results, number 6 to 105, were given out, and the disk did not take them before the service ended"
    assert sum(lost in record.message for record in caplog.records if record.levelname == "ERROR") == 1
    caplog.clear()
    ledger = Ledger(disk)
    assert ledger.record(make()).seq == 107
    ledger.close()
    assert not caplog.records


def test_a_number_that_somebody_else_put_there_is_not_believed(tmp_path: Path) -> None:
    """Rule: the memory that all share may hold a link or a pipe of another user; none is followed or waited for."""
    aside = beside_the_disk(tmp_path / "ledger.seq")
    boot = boot_id()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text(f"{41:>18d} {boot:<36s} {'open':<7s}\n")
    for put in (lambda: aside.symlink_to(elsewhere), lambda: os.mkfifo(aside)):
        put()
        try:
            ledger = Ledger(tmp_path)
            ledger.close()
        finally:
            aside.unlink()
        assert ledger.last_seq == 0


def test_a_read_only_disk_never_stops_the_line(disk: Path) -> None:
    """A folder that is read-only at the start gives results numbers that follow, and rows once it can be written."""
    ledger = Ledger(disk)
    record_many(ledger, 3)
    ledger.close()
    mount("-o", "remount,ro", str(disk))
    ledger = Ledger(disk)
    assert "cannot be written: check" in ledger.trouble
    assert ledger.record(make()).seq == 4
    assert 4 in [row.seq for row in ledger.unacknowledged(0, 10)]
    mount("-o", "remount,rw", str(disk))
    wait_until(lambda: not ledger.trouble, what="recovery")
    assert [row.seq for row in ledger.rows()] == [1, 2, 3, 4]
    ledger.close()


def test_a_limit_on_file_size_never_stops_the_line(tmp_path: Path) -> None:
    """An input/output error is trouble with a remedy, and rows are written when it is over."""
    ledger = Ledger(tmp_path)
    record_many(ledger, 3)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "ledger.sqlite3-wal").stat().st_size, hard))
    try:
        record_many(ledger, 50)
        assert "check the disk and its limits" in ledger.trouble
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    wait_until(lambda: not ledger.trouble, what="recovery")
    assert [row.seq for row in ledger.rows()] == list(range(1, 54))
    ledger.close()


def test_memory_is_bounded_and_what_is_lost_is_counted(tmp_path: Path) -> None:
    """A storage root that cannot exist costs the oldest rows beyond the bound, and their number is told."""
    (tmp_path / "file").write_text("")
    ledger = Ledger(tmp_path / "file" / "root", memory_rows=10)
    record_many(ledger, 25)
    assert ledger.counts() == {"last_seq": 25, "outbox": 10, "given_up": 0, "in_memory": 10, "lost": 15}
    ledger.close()


def test_somebody_who_locks_the_ledger_stalls_no_answer(tmp_path: Path) -> None:
    """Rule: a shell that writes to the ledger for seconds costs no part its time, and in the end every row is there."""
    ledger = Ledger(tmp_path)
    ledger.record(make())
    slowest = 0.0
    with contextlib.closing(sqlite3.connect(ledger.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        until = time.monotonic() + 5
        while time.monotonic() < until:
            began = time.monotonic()
            ledger.record(make())
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.02)
        other.execute("ROLLBACK")
    last = ledger.record(make()).seq
    wait_until(lambda: [row.seq for row in ledger.rows()] == list(range(1, last + 1)), 20, "rows that waited")
    ledger.close()
    assert slowest < 1.0, "it was 2 s, again and again"


def test_storage_that_comes_after_the_start_keeps_its_own_answers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Rule: answers that got numbers of a ledger which could not be read yet are named as lost, and touch no other."""
    root, away = tmp_path / "root", tmp_path / "away"
    ledger = Ledger(root)
    for part in ("old 1", "old 2", "old 3"):
        ledger.record(make(part_id=part))
    ledger.close()
    root.rename(away)
    root.write_text("a file where the folder should be")
    ledger = Ledger(root)
    assert [ledger.record(make(part_id=part)).seq for part in ("new 1", "new 2")] == [1, 2]
    ledger.acknowledge([1])
    root.unlink()
    away.rename(root)
    wait_until(lambda: not ledger.trouble, what="recovery")
    assert ledger.record(make(part_id="new 3")).seq == 4
    assert [row.part_id for row in ledger.rows()] == ["old 1", "old 2", "old 3", "new 3"]
    assert [row.seq for row in ledger.unacknowledged(0, 10)] == [1, 2, 3, 4], "the broker has none of these"
    assert ledger.counts() == {"last_seq": 4, "outbox": 4, "given_up": 0, "in_memory": 0, "lost": 2}
    assert [
        "2 results, number 1 to 2" in record.message for record in caplog.records if record.levelname == "ERROR"
    ] == [True]
    ledger.close()


def test_damage_while_running_is_repaired_aside(tmp_path: Path) -> None:
    """A file that breaks under a running line is moved aside, and the line goes on with the next number."""
    ledger = Ledger(tmp_path)
    record_many(ledger, 50)
    for name in ("ledger.sqlite3", "ledger.sqlite3-wal"):
        path = tmp_path / name
        with path.open("r+b") as file:
            file.write(b"\xff" * path.stat().st_size)
    ledger._reader.close()
    ledger.unacknowledged(0, 10)
    end = time.monotonic() + 10
    while not list(tmp_path.glob("*.damaged-*")) and time.monotonic() < end:
        ledger.record(make())
        time.sleep(0.01)
    wait_until(lambda: not ledger.trouble, what="repair")
    last = ledger.last_seq
    assert ledger.record(make()).seq == last + 1
    assert ledger.unacknowledged(last, 10)[0].seq == last + 1
    ledger.close()


@pytest.mark.parametrize("gone", [("", "-wal", "-shm"), ("",), ("-wal",)], ids=["all", "database", "log"])
def test_a_ledger_that_is_deleted_under_the_line_comes_back_whole(
    tmp_path: Path, gone: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """Rule: whoever deletes the open ledger costs no answer: alarm, then all of it is there again, and goes on."""
    ledger = Ledger(tmp_path)
    record_many(ledger, 50)
    ledger.acknowledge(range(1, 11))
    wait_until(lambda: ledger.outbox_size == 40, what="acknowledged")
    time.sleep(1.2)  # forced to the disk once: the log is open
    for tail in gone:
        (tmp_path / f"ledger.sqlite3{tail}").unlink()
    record_many(ledger, 5)
    wait_until(lambda: "was deleted while the service runs" in caplog.text, what="it is noticed and written anew")
    wait_until(lambda: not ledger.trouble, what="recovery")
    record_many(ledger, 1)
    ledger.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.sqlite3")) as db:
        assert [seq for (seq,) in db.execute("SELECT seq FROM results")] == list(range(1, 57))
        assert db.execute("SELECT count(*) FROM results WHERE acked = 0").fetchone() == (46,)
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert not list(tmp_path.glob("*rescued*"))


def test_a_disk_that_is_taken_away_is_waited_for(tmp_path: Path) -> None:
    """Rule: no second ledger begins below the mount point; what came meanwhile is written when the disk is back."""
    root = tmp_path / "storage"
    with small_disk(tmp_path / "disk", "4m") as disk:
        root.mkdir()
        mount("--bind", str(disk), str(root))
        ledger = Ledger(root)
        record_many(ledger, 5)
        subprocess.run(["umount", "--lazy", root], check=True)
        try:
            wait_until(lambda: ledger.trouble, what="it is noticed")
            record_many(ledger, 5)
            time.sleep(2.5)  # tried again twice
            assert "exists, is mounted for writing" in ledger.trouble
            assert not list(root.iterdir())
            mount("--bind", str(disk), str(root))
            wait_until(lambda: not ledger.trouble, what="recovery")
            record_many(ledger, 1)
            assert [row.seq for row in ledger.rows()] == list(range(1, 12))
        finally:
            ledger.close()
            subprocess.run(["umount", "--lazy", root], check=False)


def test_a_ledger_that_is_replaced_under_the_line_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Rule: a copy that is put back while the service runs is gone on with, and what that costs is one ERROR."""
    ledger = Ledger(tmp_path)
    record_many(ledger, 5)
    other = tmp_path / "other"
    copy = Ledger(other)
    record_many(copy, 2)
    copy.close()
    (other / "ledger.sqlite3").replace(tmp_path / "ledger.sqlite3")
    record_many(ledger, 1)
    wait_until(lambda: "was replaced by another file" in caplog.text, what="it is told")
    wait_until(lambda: not ledger.trouble, what="it goes on")
    assert ledger.record(make()).seq == 7
    ledger.close()
