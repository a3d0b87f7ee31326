"""A disk that is full or read-only: results still go out, one alarm, one warning, and rows are written afterwards."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from tests.broker import wait_until
from tests.disks import fill_up, mount, small_disk
from tests.system.line import heard_in_order

from lineward.daemon.thumbnails import ThumbnailReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.broker import Mosquitto, Subscriber
    from tests.system.line import Line

pytestmark = pytest.mark.system

CAMERA: dict[str, Any] = {"driver": "simulated", "width": 320, "height": 256, "rate_hz": 20, "defect_rate": 0.5}


@pytest.fixture
def disk_mb() -> int:
    """Size of the small disk; a test may ask for another."""
    return 2


@pytest.fixture
def disk(tmp_path: Path, disk_mb: int) -> Iterator[Path]:
    """A file system of a few megabytes."""
    with small_disk(tmp_path / "disk", f"{disk_mb}m") as folder:
        yield folder


def changes(hear: Subscriber, name: str) -> list[bool]:
    """Raised or cleared, each change once."""
    told = [heard.json[name]["raised"] for heard in hear.on("alarm") if name in heard.json]
    return [raised for n, raised in enumerate(told) if n == 0 or told[n - 1] != raised]


@pytest.mark.parametrize("keep_per_hour", [0, 200], ids=["results", "results_and_images"])
def test_a_full_disk_does_not_stop_the_line(
    line: Callable[..., Line], disk: Path, broker: Mosquitto, hear: Subscriber, keep_per_hour: int
) -> None:
    """With no byte left every part is still answered; with room again all rows are written and the alarm is cleared."""
    review = {"keep_per_hour": keep_per_hour}
    made = line(port=broker.port, camera=CAMERA, storage={"root": str(disk)}, review=review).start()
    made.wait_log("#5 ")
    fill_up(disk / "filler")
    wait_until(lambda: changes(hear, "storage") == [True], 30, "alarm storage")
    assert "full" in hear.on("alarm")[-1].json["storage"]["text"]
    count = len(hear.on("result"))
    wait_until(lambda: len(hear.on("result")) >= count + 40, 20, "results with a full disk")
    (disk / "filler").unlink()
    if keep_per_hour:  # the images may have filled the little disk themselves
        shutil.rmtree(disk / "images", ignore_errors=True)
    wait_until(lambda: changes(hear, "storage")[:2] == [True, False], 20, "alarm cleared")
    code, _ = made.end()
    assert code == 0, made.log
    assert "Traceback" not in made.log
    rows = made.rows()
    assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1)), "rows that waited were written"
    heard_in_order(hear, rows)
    frames = [row["frame_id"] for row in rows]
    assert frames == sorted(set(frames))
    assert len(made.lines("WARNING .*the disk of")) <= changes(hear, "storage").count(True), made.log


@pytest.mark.parametrize("disk_mb", [200])
def test_at_95_percent_images_make_room_and_inspection_goes_on(
    line: Callable[..., Line], disk: Path, broker: Mosquitto, hear: Subscriber
) -> None:
    """Rule: an alarm is raised before the disk is full, small pictures go at once, and answers are still written."""
    camera = {**CAMERA, "rate_hz": 5}  # a part takes some 15 kB until the log begins anew: the room lasts for minutes
    made = line(port=broker.port, camera=camera, storage={"root": str(disk)}, review={"thumbnail_share": 1.0})
    made.start()
    reader = ThumbnailReader(disk)
    wait_until(lambda: reader.newest(1) != [], 60, "a small picture")
    usage = os.statvfs(disk)
    with (disk / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, (usage.f_bavail - usage.f_blocks * 3 // 100) * usage.f_frsize)
    wait_until(lambda: changes(hear, "disk") == [True], 30, "alarm disk")
    assert "make room there, or lower storage.max_gb" in hear.on("alarm")[-1].json["disk"]["text"]
    wait_until(lambda: reader.newest(1) == [], what="no small picture")
    count = len(hear.on("result"))
    wait_until(lambda: len(hear.on("result")) >= count + 10, 30, "results on a disk that is nearly full")
    assert reader.newest(1) == []
    assert changes(hear, "storage") == [], "the ledger has room"
    (disk / "filler").unlink()
    wait_until(lambda: changes(hear, "disk") == [True, False], 30, "alarm cleared")
    wait_until(lambda: reader.newest(1) != [], 30, "small pictures again")
    assert made.end()[0] == 0
    rows = made.rows()
    assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
    heard_in_order(hear, rows)


def test_a_read_only_folder_does_not_stop_the_line(
    line: Callable[..., Line], disk: Path, broker: Mosquitto, hear: Subscriber
) -> None:
    """A folder that cannot be written from the start: answers go out, one alarm says what to do, one warning."""
    mount("-o", "remount,ro", str(disk))
    made = line(port=broker.port, camera={**CAMERA, "limit": 40}, storage={"root": str(disk / "deep")}).start()
    assert made.wait(30) == 0, made.log
    assert "Traceback" not in made.log
    wait_until(lambda: len(hear.on("result")) == 40, what="all results")
    assert hear.seqs() == list(range(1, 41))
    assert changes(hear, "storage") == [True]
    alarm = hear.on("alarm")[-1].json["storage"]
    assert str(disk) in alarm["text"]
    assert "check" in alarm["text"], "it says what to do"
    assert len(made.lines(f"WARNING .*{disk}.*cannot be written")) == 1, made.log


def test_trouble_from_the_start_on_is_told_before_any_part(
    line: Callable[..., Line], tmp_path: Path, broker: Mosquitto, hear: Subscriber
) -> None:
    """Rule: an alarm that was raised before the broker was known is told at the first connect."""
    (tmp_path / "file").write_text("not a folder")
    camera = {**CAMERA, "trigger": "software"}
    storage = {"root": str(tmp_path / "file" / "deep")}
    made = line(port=broker.port, camera=camera, storage=storage, watch={"enabled": False}).start()
    made.wait_log("ready after")
    wait_until(lambda: changes(hear, "storage") == [True], 5, "alarm storage")
    assert made.end()[0] == 0, made.log


def test_an_idle_station_hears_that_the_disk_is_well_again(
    line: Callable[..., Line], disk: Path, broker: Mosquitto, hear: Subscriber
) -> None:
    """Rule: the alarm goes with the trouble, and not with the next part, which may be hours away."""
    mount("-o", "remount,ro", str(disk))
    camera = {**CAMERA, "trigger": "software"}
    made = line(port=broker.port, camera=camera, storage={"root": str(disk / "deep")}, watch={"enabled": False}).start()
    wait_until(lambda: changes(hear, "storage") == [True], 30, "alarm storage")
    mount("-o", "remount,rw", str(disk))
    wait_until(lambda: changes(hear, "storage") == [True, False], 30, "the end of the alarm")
    assert not hear.on("result")
    assert made.end()[0] == 0, made.log


def test_a_storage_root_that_is_a_file_does_not_stop_the_line(
    line: Callable[..., Line], tmp_path: Path, broker: Mosquitto, hear: Subscriber
) -> None:
    """The same where the folder's name belongs to a file."""
    (tmp_path / "occupied").write_text("not a folder")
    root = str(tmp_path / "occupied")
    made = line(port=broker.port, camera={**CAMERA, "limit": 20}, storage={"root": root}).start()
    assert made.wait(30) == 0, made.log
    assert "Traceback" not in made.log
    wait_until(lambda: len(hear.on("result")) == 20, what="all results")
    assert changes(hear, "storage") == [True]
