"""A camera in a process of its own may hang, crash or vanish; the inspection side sees one error and goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from tests.broker import wait_until

from lineward.drivers.camera import (
    CameraError,
    CameraLostError,
    CameraNotFoundError,
    CameraSettingError,
    Cause,
    Frame,
    NoFrame,
    NoFrameReason,
)
from lineward.drivers.process import MAX_WAITING, CameraProcess
from lineward.drivers.simulation.device import DeviceMemory

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Forty files; file i is i + 1 pixels wide and full of the value i."""
    for i in range(40):
        cv2.imwrite(str(tmp_path / f"{i:03d}.png"), np.full((8, i + 1), i, np.uint8))
    return tmp_path


@pytest.fixture
def replay(images: Path) -> Iterator[CameraProcess]:
    camera = CameraProcess("folder", {"folder": str(images)})
    yield camera
    camera.close()


SHM = Path("/dev/shm")  # noqa: S108 - looked at, not written


def simulated(**options: object) -> CameraProcess:
    return CameraProcess("simulated", {"rate_hz": 100.0, "width": 128, "height": 96, **options}, silence_limit_s=0.6)


def take(camera: CameraProcess) -> Frame:
    got = camera.grab(5.0)
    assert isinstance(got, Frame), got
    return got


def exhaust(camera: CameraProcess) -> None:
    """Take frames until the camera says that it is lost."""
    exhaust_into([], camera)


def exhaust_into(frames: list[int], camera: CameraProcess) -> None:
    """Take frames until the camera says that it is lost; their numbers are in ``frames``."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        got = camera.grab(0.1)
        if isinstance(got, Frame):
            frames.append(got.frame_id)


def is_gone(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"


def test_frames_come_whole_in_order_and_once(replay: CameraProcess) -> None:
    """Every file arrives with its own pixels, although the ring is much shorter than the replay."""
    replay.open()
    replay.start()
    for i in range(40):
        frame = take(replay)
        assert frame.frame_id == i
        assert frame.image.shape == (8, i + 1)
        assert (frame.image == i).all()
    assert replay.grab(1.0) == NoFrame(NoFrameReason.END, f"{replay.info.serial}: all 40 files are replayed")


def test_a_frame_stays_valid_until_the_next_is_asked_for(images: Path) -> None:
    """The child reads ahead but never writes into memory that this side still looks at, even for a larger ring."""
    cv2.imwrite(str(images / "005.png"), np.full((2000, 2000), 5, np.uint8))
    camera = CameraProcess("folder", {"folder": str(images)})
    camera.open()
    camera.start()
    for i in range(10):
        frame = take(camera)
        time.sleep(0.02)  # the child has long filled every other slot
        assert (frame.image == i).all()
        assert not frame.image.flags.writeable
    camera.close()
    assert (frame.image == 9).all(), "a frame outlives its process"


def test_a_killed_process_is_one_camera_lost_error_with_the_signals_name(replay: CameraProcess) -> None:
    """SIGKILL of the camera process is noticed at once; what it had delivered is still judged."""
    replay.open()
    replay.start()
    take(replay)
    assert replay.pid is not None
    os.kill(replay.pid, signal.SIGKILL)
    with pytest.raises(CameraLostError, match="SIGKILL"):
        exhaust(replay)
    with pytest.raises(CameraLostError):
        replay.grab(0.1)


def test_a_replay_goes_on_where_it_was_after_its_process_died(replay: CameraProcess) -> None:
    """No file is judged twice or left out when the camera process is killed at any moment."""
    seen: list[int] = []
    replay.open()
    replay.start()
    kills = 0
    while True:
        try:
            got = replay.grab(5.0)
        except CameraLostError:
            replay.close()
            replay.open()
            replay.start()
            continue
        if not isinstance(got, Frame):
            break
        seen.append(got.frame_id)
        if len(seen) % 13 == 0 and kills < 3 and replay.pid is not None:
            kills += 1
            os.kill(replay.pid, signal.SIGKILL)
    assert kills == 3
    assert seen == list(range(40))


def test_a_process_that_stops_answering_is_killed_by_pid() -> None:
    """A frozen child (SIGSTOP) is found out by its silence, killed, and a new one takes over."""
    camera = simulated()
    camera.open()
    camera.start()
    take(camera)
    pid = camera.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(CameraLostError, match=f"pid {pid}.*no sign of life"):
        exhaust(camera)
    assert is_gone(pid)
    camera.close()
    camera.open()
    camera.start()
    take(camera)
    assert camera.pid != pid
    camera.close()


def test_a_native_call_that_never_returns_costs_the_process_not_the_line() -> None:
    """The simulated camera hangs inside grab at frame 5; the supervisor's limit ends it."""
    camera = simulated(faults=["hang@5"])
    camera.open()
    camera.start()
    with pytest.raises(CameraLostError, match="no sign of life"):
        exhaust(camera)
    camera.close()


def test_a_segmentation_fault_in_the_driver_is_named() -> None:
    """A crash in native camera code says SIGSEGV, which points at the vendor's producer."""
    camera = simulated(faults=["crash@5"])
    camera.open()
    camera.start()
    with pytest.raises(CameraLostError, match="SIGSEGV"):
        exhaust(camera)
    camera.close()


def test_a_slow_reader_gets_fresh_frames_and_an_exact_count_of_the_others() -> None:
    """In free run the oldest waiting frames are given up, and frame ids and `missing` add up."""
    camera = simulated()
    camera.open()
    camera.start()
    previous = take(camera).frame_id
    lost = 0
    paused_ns = time.monotonic_ns()
    for _ in range(4):
        before_ns, paused_ns = paused_ns, time.monotonic_ns()
        time.sleep(0.3)
        frame = take(camera)
        gap = frame.frame_id - previous - 1
        assert sum(frame.missing.values()) == gap
        assert set(frame.missing) <= {Cause.OVERRUN, Cause.CAMERA_GAP}
        previous = frame.frame_id
        lost += gap
        assert frame.received_ns > before_ns - MAX_WAITING * 10e6, "never older than the pause before and what may wait"
    assert lost > 0
    camera.close()


def test_errors_of_the_driver_cross_with_their_kind(tmp_path: Path) -> None:
    """The four camera errors mean the same on both sides, and a failed open leaves no process."""
    camera = CameraProcess("folder", {"folder": str(tmp_path / "nowhere")})
    with pytest.raises(CameraNotFoundError, match="nowhere"):
        camera.open()
    assert camera.pid is None
    other = simulated()
    other.open()
    with pytest.raises(CameraSettingError, match="Gama"):
        other.configure({"Gama": 1})
    other.close()
    with pytest.raises(CameraSettingError, match="no_such_option"):
        CameraProcess("folder", {"folder": str(tmp_path), "no_such_option": 1}).open()


def test_calls_before_open_and_after_close_are_camera_errors() -> None:
    """Nothing hangs and nothing else is raised when there is no process."""
    camera = simulated()
    for call in (camera.start, camera.trigger, camera.flush):
        with pytest.raises(CameraError):
            call()
    camera.stop()
    camera.close()
    camera.close()


def test_nothing_is_left_behind_when_the_inspection_process_is_killed() -> None:
    """SIGKILL of the parent takes the camera process along, and shared memory has no name that could stay."""
    shm_before = set(SHM.iterdir())
    script = (
        "from lineward.drivers.process import CameraProcess\n"
        "import time\n"
        "c = CameraProcess('simulated', {'rate_hz': 50.0, 'width': 128, 'height': 96, 'faults': ['hang@5']},"
        " silence_limit_s=60.0)\n"
        "c.open(); c.start(); print(c.pid, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        time.sleep(0.3)  # now it hangs in grab and would never read its socket
        parent.kill()
    deadline = time.monotonic() + 5
    while not is_gone(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert is_gone(child)
    assert set(SHM.iterdir()) <= shm_before


def test_files_and_memory_do_not_grow_over_many_openings() -> None:
    """Thirty camera processes in a row leave no descriptor behind."""
    camera = simulated()
    counts = []
    for _ in range(30):
        camera.open()
        camera.start()
        take(camera)
        camera.close()
        counts.append(len(list(Path("/proc/self/fd").iterdir())))
    assert counts[-1] == counts[1]


def until(camera: CameraProcess, frames: int, missing: int = 0) -> None:
    """Wait, without taking anything, until the camera says that it has delivered and lost so many frames."""
    deadline = time.monotonic() + 30
    while (health := camera.health()).frames < frames or sum(health.missing.values()) < missing:
        assert time.monotonic() < deadline, health
        time.sleep(0.01)


def test_an_incomplete_frame_is_told_in_its_place_among_the_others() -> None:
    """After the frames before it, before the frame that tells it again: so it can be answered, and not twice."""
    camera = simulated(rate_hz=20.0, faults=["incomplete@2"], limit=5)
    camera.open()
    camera.start()
    until(camera, 4)
    told = [camera.grab(1.0) for _ in range(6)]
    kinds = [got.frame_id if isinstance(got, Frame) else got.reason for got in told]
    assert kinds == [0, 1, NoFrameReason.INCOMPLETE, 3, 4, NoFrameReason.END]
    assert [dict(got.missing) for got in told if isinstance(got, Frame)] == [{}, {}, {Cause.INCOMPLETE: 1}, {}]
    camera.close()


def test_a_full_ring_keeps_the_cause_of_each_loss() -> None:
    """What the camera lost while there was no room is the camera's fault, whatever else was dropped meanwhile."""
    camera = simulated(rate_hz=20.0, faults=["drop@16:3", "incomplete@22:2"])
    camera.open()
    camera.start()
    held = [camera.take(5.0) for _ in range(12)]  # as many as there are places
    assert all(isinstance(got, Frame) for got in held)
    until(camera, 25, 5)
    lost: Counter[Cause] = Counter()
    frame = held[-1]
    while not isinstance(frame, Frame) or frame.frame_id < 30:  # the first grab gives the held places back
        frame = camera.grab(5.0)
        lost.update(frame.missing if isinstance(frame, Frame) else {})
    assert lost[Cause.CAMERA_GAP] == 3
    assert lost[Cause.INCOMPLETE] == 2
    camera.close()


def test_stopping_counts_what_it_throws_away_and_what_no_frame_told() -> None:
    """A stop ends a stream, not the count: `health` has every frame that was exposed and not delivered."""
    camera = simulated(rate_hz=30.0, faults=["drop@6:2"], limit=8)
    camera.open()
    camera.start()
    until(camera, 6, 2)
    first = take(camera)
    camera.stop()
    missing = camera.health().missing
    assert missing[Cause.CAMERA_GAP] == 2
    assert first.frame_id + 1 + sum(missing.values()) == 8
    assert set(missing) <= {Cause.STOPPED, Cause.CAMERA_GAP, Cause.OVERRUN}
    assert missing[Cause.STOPPED] >= 1
    camera.close()
    assert camera.health().missing == {}


def test_a_process_that_crashes_has_told_what_it_had_no_room_for() -> None:
    """The last frame before a crash may be one that found no place: no other frame and no beat will tell it."""
    crash_at = 20  # a ring has 12 places, and nobody gives one back
    with closing(simulated(rate_hz=40.0, faults=[f"crash@{crash_at}"])) as camera:
        camera.open()
        camera.start()
        pid = camera.pid
        assert pid is not None
        wait_until(lambda: is_gone(pid), 30, "its end")
        with pytest.raises(CameraLostError):
            exhaust_into(delivered := [], camera)
        assert len(delivered) + camera.health().missing[Cause.OVERRUN] == crash_at


@pytest.mark.parametrize("unread", [True, False], ids=["with_a_message_unread", "then_given_back"])
def test_what_a_process_sent_before_it_died_is_delivered(tmp_path: Path, *, unread: bool) -> None:
    """Frames that came whole are judged, whatever the dead process had not read, or is sent after its death."""
    memory = tmp_path / "camera"
    with closing(simulated(rate_hz=40.0, limit=9, memory=str(memory))) as camera:
        camera.open()
        camera.start()
        first = take(camera)
        pid = camera.pid
        assert pid is not None
        wait_until(lambda: DeviceMemory(memory).read()[0] == 9, 30, "the last frame is exposed")
        time.sleep(0.5)  # and sent; nothing is read here meanwhile
        os.kill(pid, signal.SIGSTOP)
        if unread:
            camera.release(first)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: is_gone(pid), 30, "its end")
        if not unread:
            camera.release(first)
        delivered: list[int] = []
        with pytest.raises(CameraLostError, match="SIGKILL"):
            exhaust_into(delivered, camera)
        assert [first.frame_id, *delivered] == list(range(9))


def test_a_triggered_replay_says_its_end_without_a_trigger(images: Path) -> None:
    """After the last file nothing can be waited for, and what a flush throws away is said again."""
    camera = CameraProcess("folder", {"folder": str(images), "trigger": "software", "start_index": 39})
    camera.open()
    camera.start()
    camera.trigger()
    assert take(camera).frame_id == 39
    for _ in range(2):
        got = camera.grab(5.0)
        assert isinstance(got, NoFrame)
        assert got.reason is NoFrameReason.END
        camera.flush()
    camera.close()
