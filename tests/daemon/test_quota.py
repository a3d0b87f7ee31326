"""Room on the disk: quotas by class, emergency, and what happens to images and rows that do not agree."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.broker import wait_until
from tests.disks import fill_up, small_disk

from lineward.daemon import quota as quotas
from lineward.daemon.adopt import GRACE_S, Sweep, sweep
from lineward.daemon.ledger import Ledger
from lineward.daemon.ledger_file import POWER_CUT_GAP
from lineward.daemon.quota import LOOK_S, Quota
from lineward.daemon.review import Keeping, ReviewStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from lineward.daemon.ledger_read import ImageRow
    from lineward.daemon.result import Result


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path)
    yield ledger
    ledger.close()


def keep(root: Path, ledger: Ledger, result: Result, kind: str, number: int) -> ImageRow:
    """Keep one image of about 2.5 kB as the station does, whatever the quota says."""
    keeping = Keeping(keep_per_hour=9, max_bytes=10**9, keep_fails=True)
    store = ReviewStore(root, ledger, keeping, on_trouble=lambda _text: None)
    recorded = ledger.record(replace(result, seq=0, verdict=kind, image=f"{time.time_ns():x}"))
    store.keep(np.random.default_rng(number).integers(0, 256, (40, 60), np.uint8), recorded)
    store.close()
    return next(row for row in ledger.images() if row.seq == recorded.seq)


def sweep_all(root: Path, ledger: Ledger, **options: float) -> Sweep:
    return list(sweep(root, ledger, **options))[-1]


def without_times(payload: bytes) -> dict[str, object]:
    """The record without `latency_ms`: the ledger's own copy was written before these were over."""
    return {name: value for name, value in json.loads(payload).items() if name != "latency_ms"}


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in (root / "images").rglob("*") if path.is_file()}


def test_the_random_sample_has_a_quota_of_its_own(
    tmp_path: Path, ledger: Ledger, make_result: Callable[..., Result]
) -> None:
    """Rule: passed parts push out the oldest passed parts, never what somebody should look at."""
    flagged = keep(tmp_path, ledger, make_result(), "review", 0)
    passed = [keep(tmp_path, ledger, make_result(), "pass", 1 + i) for i in range(3)]
    quota = Quota(tmp_path, ledger, max_bytes=10**9, audit_bytes=3 * passed[0].bytes)
    assert quota.make_room("pass", 1000)
    assert {row.image_id for row in ledger.images()} == {flagged.image_id, *(row.image_id for row in passed[1:])}
    assert not (tmp_path / passed[0].path).exists()
    assert not quota.make_room("pass", 4 * passed[0].bytes), "an image beyond the whole quota finds no room"


def test_the_oldest_is_the_one_with_the_lowest_number(
    tmp_path: Path, ledger: Ledger, make_result: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: images of a wall clock that was ahead, and was set back later, are not the newest for ever."""
    true_ns = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: true_ns() + 10 * 365 * 86_400 * 10**9)
    ahead = keep(tmp_path, ledger, make_result(), "review", 0)
    monkeypatch.setattr(time, "time_ns", true_ns)
    now = keep(tmp_path, ledger, make_result(), "review", 1)
    assert ahead.created_ns > now.created_ns
    assert [row.seq for row in ledger.images()] == [now.seq, ahead.seq]
    quota = Quota(tmp_path, ledger, max_bytes=now.bytes + 10, audit_bytes=0)
    assert quota.make_room("review", 5)
    assert [row.seq for row in ledger.images()] == [now.seq]


def test_a_disk_that_is_nearly_full_costs_the_sample_first_and_no_label(
    tmp_path: Path, ledger: Ledger, make_result: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: from 95 % on nothing is kept and the oldest go, the sample first; below 93 % all is well."""
    flagged = [keep(tmp_path, ledger, make_result(), "review", i) for i in range(4)]
    passed = keep(tmp_path, ledger, make_result(), "pass", 9)
    (tmp_path / "labelled").mkdir()
    labelled = tmp_path / "labelled" / "a.png"
    os.link(tmp_path / flagged[0].path, labelled)
    said: list[str] = []
    now = [0.0]
    share = [0.96]
    monkeypatch.setattr(quotas, "used_share", lambda _folder: share[0])  # the disk of this machine is not ours to fill
    most = 20 * flagged[0].bytes  # a tenth of it is two images
    quota = Quota(tmp_path, ledger, max_bytes=most, audit_bytes=most, on_trouble=said.append, clock=lambda: now[0])
    assert not quota.make_room("review", 10)
    assert "95 % full" in said[-1]
    left = [row.image_id for row in ledger.images()]
    assert passed.image_id not in left
    assert left == [flagged[3].image_id, flagged[2].image_id][: len(left)]
    assert labelled.exists()
    share[0], now[0] = 0.94, 10.0
    assert not quota.make_room("review", 10), "it does not come and go"
    share[0], now[0] = 0.5, 20.0
    assert quota.make_room("review", 10)
    assert said[-1] == ""


def test_a_real_disk_that_runs_full(tmp_path: Path, make_result: Callable[..., Result]) -> None:
    """Rule: on a file system of 2 MB images make room for what else fills it."""
    with small_disk(tmp_path / "disk", "2m") as disk:
        ledger = Ledger(disk)
        rows = [keep(disk, ledger, make_result(), "review", i) for i in range(6)]
        quota = Quota(disk, ledger, max_bytes=2 * rows[0].bytes, audit_bytes=0)
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        (disk / "filler").write_bytes(bytes(free - 40_000))
        quota.watch()
        assert quota.emergency
        assert len(ledger.images()) < 6
        assert ledger.record(make_result()).seq > 6, "answers are written all the same"
        ledger.close()


def test_a_disk_without_a_byte_left_is_said_and_cleared(tmp_path: Path, make_result: Callable[..., Result]) -> None:
    """Rule: the alarm comes first, and files go even while the ledger cannot forget them; it does so afterwards."""
    with small_disk(tmp_path / "disk", "2m") as disk:
        ledger = Ledger(disk)
        rows = [keep(disk, ledger, make_result(), "review", i) for i in range(6)]
        said: list[str] = []
        now = [0.0]
        most = 2 * rows[0].bytes
        quota = Quota(disk, ledger, max_bytes=most, audit_bytes=0, on_trouble=said.append, clock=lambda: now[0])
        fill_up(disk / "filler")
        while not ledger.trouble:
            ledger.record(make_result())
        quota.watch()
        assert "95 % full" in said[0]
        assert sum((disk / row.path).exists() for row in rows) == 0
        assert len(ledger.images()) == len(rows), "the ledger cannot forget them yet"
        (disk / "filler").unlink()
        wait_until(lambda: not ledger.trouble, 20, "recovery")
        now[0] = LOOK_S
        quota.watch()
        assert ledger.images() == []
        assert (quota.emergency, said[-1]) == (False, "")
        assert sweep_all(disk, ledger).forgotten == 0
        ledger.close()


def test_a_lost_ledger_is_made_again_from_the_side_cars(
    tmp_path: Path, ledger: Ledger, make_result: Callable[..., Result]
) -> None:
    """Rule: rows come back as they were, nothing is sent twice, and no number is used twice."""
    kept = [keep(tmp_path, ledger, make_result(part_id=f"A{i}"), kind, i) for i, kind in enumerate(["review", "fail"])]
    ledger.acknowledge([row.seq for row in kept])
    before = {row.seq: without_times(row.payload) for row in ledger.rows()}
    ledger.close()
    for path in tmp_path.glob("ledger.*"):
        path.unlink()
    with_new = Ledger(tmp_path)
    done = sweep_all(tmp_path, with_new)
    assert (done.adopted, done.forgotten, done.deleted) == (2, 0, 0)
    rows = {row.seq: row for row in with_new.rows()}
    assert {seq: without_times(row.payload) for seq, row in rows.items()} == before
    assert all(row.acked for row in rows.values())
    assert with_new.unacknowledged(0, 10) == []
    assert {(row.image_id, row.seq, row.path, row.bytes, row.kind) for row in with_new.images()} == {
        (row.image_id, row.seq, row.path, row.bytes, row.kind) for row in kept
    }
    assert with_new.record(make_result()).seq == max(rows) + POWER_CUT_GAP + 1
    with_new.close()


def test_what_is_not_known_stays_a_week_and_what_is_not_ours_for_ever(
    tmp_path: Path, ledger: Ledger, make_result: Callable[..., Result]
) -> None:
    """Rule: nothing unknown is deleted before its grace period is over; a file with another name never."""
    kept = keep(tmp_path, ledger, make_result(), "review", 1)
    folder = (tmp_path / kept.path).parent
    (folder / "9-ab.png").write_bytes(b"\x89PNG cut off")
    (folder / "9-ab.json").write_text("{}")
    (folder / "10-cd.json.part").write_bytes(b"")
    (folder / "notes.txt").write_text("of a person")
    (folder / "holiday.png").write_bytes(b"x")
    before = files(tmp_path)
    done = sweep_all(tmp_path, ledger)
    assert (done.adopted, done.deleted) == (0, 0)
    assert files(tmp_path) == before
    done = sweep_all(tmp_path, ledger, now_s=time.time() + GRACE_S + 60)
    sweep_all(tmp_path, ledger, now_s=time.time() + GRACE_S + 60)  # the side-car goes after its picture
    own = {kept.path, kept.path.replace(".png", ".json")}
    assert files(tmp_path) == own | {
        (folder / name).relative_to(tmp_path).as_posix() for name in ("notes.txt", "holiday.png")
    }
    assert done.deleted >= 2


def test_a_row_without_its_whole_image_is_forgotten(
    tmp_path: Path, ledger: Ledger, make_result: Callable[..., Result]
) -> None:
    """Rule: after a power cut a file may be gone or cut off: neither is shown to anybody."""
    gone, cut, whole = (keep(tmp_path, ledger, make_result(), "review", i) for i in range(3))
    (tmp_path / gone.path).unlink()
    (tmp_path / cut.path).write_bytes((tmp_path / cut.path).read_bytes()[:100])
    assert sweep_all(tmp_path, ledger).forgotten == 2
    assert [row.image_id for row in ledger.images()] == [whole.image_id]
    assert files(tmp_path) == {whole.path, whole.path.replace(".png", ".json")}


def test_an_image_kept_while_all_are_compared_is_no_stranger(
    tmp_path: Path, ledger: Ledger, make_result: Callable[..., Result]
) -> None:
    """Rule: the comparison goes on beside the line; what the line keeps meanwhile is known and not taken in again."""
    gone, _ = (keep(tmp_path, ledger, make_result(), "review", i) for i in range(2))
    (tmp_path / gone.path).unlink()
    sweeping = sweep(tmp_path, ledger)
    next(sweeping)
    assert next(sweeping).forgotten == 1
    later = keep(tmp_path, ledger, make_result(), "review", 3)
    for done in sweeping:
        assert done.adopted == 0
    assert later in ledger.images()


@pytest.mark.parametrize(
    "change",
    [
        {"seq": 5},
        {"seq": "1"},
        {"verdict": "certainly"},
        {"times": {}},
        {"times": None},
        {"camera": []},
        {"confidence": "x"},
        {"image": "other"},
        {"model": None},
        {"part_id": "\ud800"},
    ],
    ids=ascii,
)
def test_a_side_car_that_is_none_makes_no_row(
    tmp_path: Path, ledger: Ledger, make_result: Callable[..., Result], change: dict[str, object]
) -> None:
    """Rule: a damaged record is left alone; it neither raises nor becomes an answer."""
    kept = keep(tmp_path, ledger, make_result(), "review", 1)
    side_car = (tmp_path / kept.path).with_suffix(".json")
    side_car.write_text(json.dumps({**json.loads(side_car.read_text()), **change}))
    ledger.remove_image(kept.image_id)
    assert sweep_all(tmp_path, ledger).adopted == 0
    assert (tmp_path / kept.path).exists()
