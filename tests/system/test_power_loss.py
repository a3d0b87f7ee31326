"""The storage folder as a kill or a power cut leaves it at random moments of a line at work: all of it is usable."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import textwrap
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.broker import wait_until
from tests.system.line import LONG, figure

from lineward.daemon.adopt import sweep
from lineward.daemon.ledger import Ledger
from lineward.daemon.ledger_file import POWER_CUT_GAP
from lineward.daemon.ledger_read import LedgerReader
from lineward.daemon.reconcile import reconcile
from lineward.daemon.thumbnails import FILE, ThumbnailReader, Thumbnails
from lineward.images import decode_image
from lineward.models import store
from lineward.models.bundle import load_bundle, save_bundle

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.broker import Mosquitto, Subscriber
    from tests.system.line import Line

pytestmark = [pytest.mark.system, pytest.mark.timeout(3600 if LONG else 300)]

SNAPSHOTS = 200 if LONG else 8
UNSYNCED_BYTES = 300_000
"""What a power cut may take of the write-ahead log: it is forced to the disk once a second."""

CAMERA: dict[str, Any] = {"driver": "simulated", "width": 320, "height": 256, "rate_hz": 25, "defect_rate": 0.5}
REVIEW: dict[str, Any] = {"keep_per_hour": 100_000, "keep_fails": True, "audit_share": 0.3, "thumbnail_share": 1.0}
STORAGE: dict[str, Any] = {"max_gb": 0.01, "audit_gb": 0.003, "thumbnails_gb": 0.0005}
"""Reached after half a minute: from then on old images go at every moment too, and a snapshot does not grow."""


PROMOTES = """
    import sys, time
    from pathlib import Path
    from lineward.models import store
    while True:
        for version in ("2", "1"):
            store.promote(Path(sys.argv[1]), "bracket", version, force=True)
        time.sleep(0.05)
"""


def snapshot(storage: Path, writers: Sequence[int], goal: Path) -> None:
    """Copy the folder while not one instruction of who writes there runs: what a kill at this moment would leave."""
    for pid in writers:
        os.kill(pid, signal.SIGSTOP)
    try:
        for pid in writers:
            wait_until(lambda pid=pid: stands_still(pid), 10, "all threads stopped")
        shutil.copytree(storage, goal, symlinks=True, ignore=shutil.ignore_patterns("*.sock", "control*"))
    finally:
        for pid in writers:
            os.kill(pid, signal.SIGCONT)


def stands_still(pid: int) -> bool:
    threads = Path(f"/proc/{pid}/task").glob("*/stat")
    return all(thread.read_text().rpartition(")")[2].split()[0] == "T" for thread in threads)


def cut_power(folder: Path, draw: random.Random) -> str:
    """Take from a snapshot what had not been forced to the disk: the end of the log, whole or in shreds."""
    how = draw.choice(["gone", "zeros", "shreds"])
    lost = cut_off(folder / "ledger.sqlite3-wal", how, UNSYNCED_BYTES, draw)
    cut_off(folder / f"{FILE}-wal", how, unforced_bytes(folder / f"{FILE}-wal"), draw)
    seq = folder / "ledger.seq"
    text = seq.read_text()
    boot = text.split()[1]
    seq.write_text(text.replace(boot, "0" * len(boot)))  # another start of the machine
    return f"{lost} bytes {how}"


def unforced_bytes(wal: Path) -> int:
    """Return how much of the small pictures' log may be lost: it is forced to the disk before a checkpoint, no sooner.

    What the last checkpoint took on stands in the index beside the log, as `nBackfillAttempted`:
    https://www.sqlite.org/walformat.html
    """
    index = wal.with_name(wal.name.removesuffix("-wal") + "-shm")
    if not wal.exists() or not index.exists():
        return 0
    (forced_frames,) = struct.unpack_from("=I", index.read_bytes(), 128)
    return max(0, wal.stat().st_size - 32 - forced_frames * (24 + 4096))


def cut_off(wal: Path, how: str, most: int, draw: random.Random) -> int:
    """Take the end of a log, at most so many bytes, whole or in shreds; return how many."""
    size = wal.stat().st_size if wal.exists() else 0
    lost = draw.randint(0, min(most, size))
    if size:
        with wal.open("r+b") as file:
            file.truncate(size - lost)
            if how != "gone":
                file.seek(size - lost)
                file.write(bytes(lost) if how == "zeros" else draw.randbytes(lost))
    wal.with_name(wal.name.removesuffix("-wal") + "-shm").unlink(missing_ok=True)
    return lost


def check_thumbnails(folder: Path) -> int:
    """Hold the small pictures against the rule that nothing is half there; return how many there are."""
    if not (folder / FILE).exists():
        return 0
    with closing(sqlite3.connect(folder / FILE)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    reader = ThumbnailReader(folder)
    found = reader.newest(100_000)  # none where the power was cut before the table was on the disk
    for one in found:
        jpeg = reader.jpeg(one.at_ns)
        assert jpeg is not None
        assert decode_image(jpeg, "thumbnail.jpg").shape == (128, 160)
    thumbnails = Thumbnails(folder, max_bytes=10**6, most_px=160)
    assert thumbnails.add(1, 1 << 62, "bracket", np.zeros((256, 320), np.uint8)), "the next one is kept"
    thumbnails.close()
    return len(found)


def check(folder: Path, heard: set[int], acked: set[int], *, gap: int) -> None:
    """Open everything, as the next start does, and hold it against what the broker had got by then."""
    ledger = Ledger(folder)
    try:
        assert not list(folder.glob("*.damaged-*")), "the ledger is not even damaged"
        with closing(sqlite3.connect(f"file:{folder / 'ledger.sqlite3'}?mode=ro", uri=True)) as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = {row.seq: row for row in ledger.rows()}
        if not gap:
            assert heard <= set(rows), "what was published is in the ledger"
            assert sorted(rows) == list(range(1, len(rows) + 1))
        waiting = [row.seq for row in ledger.unacknowledged(0, 1_000_000)]
        assert waiting == [seq for seq, row in rows.items() if not row.acked], "the outbox resumes"
        assert {seq for seq, row in rows.items() if row.acked} <= acked, "only what the broker has is out of it"
        found = reconcile(LedgerReader(folder / "ledger.sqlite3"))
        # A daemon that stands still for a copy of its folder misses frames: that is not what is tested here.
        assert not [fault for fault in found.faults if fault.kind != "frame_gap"], found.faults
        list(sweep(folder, ledger))
        images = ledger.images(newest=-1)
        on_disk = {path.relative_to(folder).as_posix(): path for path in (folder / "images").rglob("*.png")}
        assert {row.path for row in images} == set(on_disk), "images and rows agree"
        assert all(on_disk[row.path].stat().st_size == row.bytes for row in images)
        assert all(path.with_suffix(".json").is_file() for path in on_disk.values())
        last = max([*heard, *rows])
        assert ledger.last_seq >= last + gap, "no number is used twice"
    finally:
        ledger.close()
    path = store.current(folder, "bracket")
    assert path is not None
    load_bundle(path)


def test_any_moment_may_be_the_last(
    line: Callable[..., Line], bundle: Path, broker: Mosquitto, hear: Subscriber, tmp_path: Path
) -> None:
    """Rule: after a kill or a power cut at any point ledger, outbox, images and models are whole and agree."""
    draw = random.Random(7)
    made = line(port=broker.port, camera=CAMERA, review=REVIEW, storage=STORAGE, model="bracket")
    given = load_bundle(bundle)
    for version in ("1", "2"):
        manifest = given.manifest.model_copy(update={"version": version, "product": "bracket"})
        save_bundle(tmp_path / f"{version}.lward", given.data[: given.manifest.graph_bytes], manifest)
        store.add(made.storage, tmp_path / f"{version}.lward")
    store.promote(made.storage, "bracket", "1", force=True)
    made.start()
    made.wait_log("#20 ", 60)
    promoting = subprocess.Popen([sys.executable, "-c", textwrap.dedent(PROMOTES), str(made.storage)])
    lost = small = 0
    try:
        for number in range(SNAPSHOTS):
            time.sleep(draw.uniform(0.02, 0.4))
            folder = tmp_path / f"snapshot{number}"
            heard = set(hear.seqs())
            snapshot(made.storage, (made.pid, promoting.pid), folder)
            later = set(hear.seqs())  # acknowledged before the stop, heard a moment after
            is_cut = number % 2 == 1
            said = cut_power(folder, draw) if is_cut else ""
            wait_until(lambda later=later: set(hear.seqs()) > later, 20, "the line goes on")
            check(folder, heard, set(hear.seqs()), gap=POWER_CUT_GAP if is_cut else 0)
            small = max(small, check_thumbnails(folder))
            lost += bool(said)
            if number != SNAPSHOTS - 1:
                shutil.rmtree(folder)
        assert promoting.poll() is None
    finally:
        promoting.kill()
        promoting.wait()
    assert made.end()[0] == 0
    assert small, "there were thumbnails to lose"
    figure(f"{SNAPSHOTS} snapshots, {lost} of them power cuts, all whole; {len(made.rows())} answers")
    # The last one is started for real.
    shutil.rmtree(made.storage)
    shutil.move(tmp_path / f"snapshot{SNAPSHOTS - 1}", made.storage)
    made.start()
    count = len(made.rows())
    made.wait_log("ready after", 60, times=2)
    wait_until(lambda: len(made.rows()) > count, 20, "answers")
    assert made.end()[0] == 0
