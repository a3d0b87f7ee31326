"""The genicam driver on viky, the producer inside the genicam package: each known trap of harvesters is contained."""

import itertools
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import pytest
from pydantic_core import _pydantic_core

from lineward.drivers import registry
from lineward.drivers.camera import (
    CameraBusyError,
    CameraLostError,
    CameraNotFoundError,
    CameraSettingError,
    Cause,
    Frame,
    NoFrameReason,
)
from lineward.drivers.genicam import GenicamCamera, discover
from lineward.drivers.genicam_producers import find_producers
from lineward.drivers.losses import FrameIds, Losses, Underruns

SMALL = {"PixelFormat": "Mono8", "Width": 320, "Height": 240}


@pytest.fixture
def camera():
    made = GenicamCamera(producers=["viky"], serial="2")
    made.open()
    yield made
    made.close()


def test_discover_lists_cameras_by_serial():
    """A camera is chosen by what is printed on it."""
    found = registry.discover("genicam", {"producers": ["viky"], "serial": "1"})
    assert [info.serial for info in found] == ["0", "1", "2"]
    assert {info.producer for info in found} == {str(find_producers(["viky"])[0])}
    assert {(info.name, info.access) for info in found} == {("Viky", "available")}


def test_discover_leaves_an_open_camera_alone(camera):
    """Listing cameras during the shift must not end the stream: `update` would destroy it."""
    camera.configure(SMALL)
    camera.start()
    assert isinstance(camera.grab(1), Frame)
    assert [info.access for info in discover(["viky"])] == ["available", "available", "open here"]
    assert isinstance(camera.grab(1), Frame)


def test_two_cameras_of_one_producer_in_one_process(camera):
    """A second Harvester would see no devices: the producer is loaded once."""
    other = GenicamCamera(producers=["viky"], serial="1")
    assert other.open().serial == "1"
    for each in (camera, other):
        each.configure(SMALL)
        each.start()
    assert all(isinstance(each.grab(1), Frame) for each in (camera, other))
    other.close()
    assert isinstance(camera.grab(1), Frame)


def test_a_camera_that_is_open_elsewhere_is_busy(camera):
    """The operator is told to close the other program."""
    with pytest.raises(CameraBusyError, match="open in another program"):
        GenicamCamera(producers=["viky"], serial="2").open()
    camera.close()
    again = GenicamCamera(producers=["viky"], serial="2")
    again.open()
    again.close()


def test_without_a_serial_an_ambiguous_choice_is_refused():
    """Never an index: which camera comes first changes when a plug is pulled."""
    with pytest.raises(CameraNotFoundError, match=r"several cameras fit; name one by .* serial '0' .* serial '1'"):
        GenicamCamera(producers=["viky"]).open()
    with pytest.raises(CameraNotFoundError, match="user id 'left'"):
        GenicamCamera(producers=["viky"], user_id="left").open()


def test_missing_producers_are_not_found(tmp_path, monkeypatch):
    """Each message says what to install or correct."""
    with pytest.raises(CameraNotFoundError, match=r"nope\.cti: there is no such file; correct"):
        GenicamCamera(producers=[str(tmp_path / "nope.cti")], serial="0").open()
    (tmp_path / "text.cti").write_text("no library")
    with pytest.raises(CameraNotFoundError, match=r"text\.cti cannot be loaded"):
        GenicamCamera(producers=[str(tmp_path / "text.cti")], serial="0").open()
    monkeypatch.setenv("GENICAM_GENTL64_PATH", str(tmp_path / "empty"))
    with pytest.raises(CameraNotFoundError, match=r"no folder with \.cti files; install the camera vendor's"):
        GenicamCamera(serial="0").open()
    monkeypatch.delenv("GENICAM_GENTL64_PATH")
    with pytest.raises(CameraNotFoundError, match="not set here; a service does not see your shell's variables: name"):
        GenicamCamera(serial="0").open()


def test_a_library_that_is_no_producer_is_named(monkeypatch, tmp_path):
    """Another .so that was renamed or linked by mistake: harvesters would end the process with SIGSEGV."""
    file = tmp_path / "other.cti"
    file.symlink_to(_pydantic_core.__file__)
    said = r"it is a library, but no GenTL producer, for it has no GCInitLib; name the \.cti file of the camera's maker"
    with pytest.raises(CameraNotFoundError, match=said):
        GenicamCamera(producers=[str(file)], serial="0").open()
    monkeypatch.setenv("GENICAM_GENTL64_PATH", f"{tmp_path}{os.pathsep}{find_producers(['viky'])[0].parent}")
    assert len(discover()) == 3


def test_producers_come_from_the_environment(monkeypatch):
    """Vendors' installers set this variable; then nothing needs to be configured."""
    viky = find_producers(["viky"])[0]
    monkeypatch.setenv("GENICAM_GENTL64_PATH", f"/nowhere{os.pathsep}{viky.parent}")
    assert find_producers([]) == [viky]


def test_a_producer_that_is_named_twice_lists_each_camera_once(monkeypatch, tmp_path):
    """Two installers may name one folder; each camera is there once all the same."""
    viky = find_producers(["viky"])[0]
    (tmp_path / "link").symlink_to(viky.parent)
    monkeypatch.setenv("GENICAM_GENTL64_PATH", os.pathsep.join(map(str, (viky.parent, viky.parent, tmp_path / "link"))))
    assert [info.serial for info in discover()] == ["0", "1", "2"]
    assert find_producers(["viky", str(viky)]) == [viky]


def test_a_producer_that_cannot_be_loaded_hides_no_camera_of_another(monkeypatch, tmp_path):
    """It lies in the folder of somebody else's camera; it is named only where it may be the reason."""
    viky = find_producers(["viky"])[0]
    (tmp_path / "text.cti").write_text("no library")
    monkeypatch.setenv("GENICAM_GENTL64_PATH", f"{tmp_path}{os.pathsep}{viky.parent}")
    camera = GenicamCamera(serial="0")
    assert camera.open().serial == "0"
    camera.close()
    with pytest.raises(CameraNotFoundError, match=r"no camera with serial '7' answers.*text\.cti cannot be loaded"):
        GenicamCamera(serial="7").open()
    monkeypatch.setenv("GENICAM_GENTL64_PATH", str(tmp_path))
    with pytest.raises(CameraNotFoundError, match=r"no camera is seen; .*text\.cti cannot be loaded"):
        discover()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"Nope": 1}, "no feature 'Nope'"),
        ({"Width": 99_999}, r"Width = 99999 is refused: .*; possible: integers 100\.\.800 in steps of 1"),
        ({"Width": "wide"}, r"wrong type; possible: integers 100\.\.800"),
        ({"Width": True}, "wrong type"),
        ({"PixelFormat": "Mono99"}, "possible: RGBa8, Mono8"),
        ({"PixelFormat": 1}, "wrong type; possible: RGBa8, Mono8"),
        ({"AcquisitionFrameRate": 1e9}, r"possible: 1\.\.200 Hz"),
        ({"AcquisitionFrameRate": float("nan")}, "wrong type"),
        ({"PayloadSize": 7}, "PayloadSize can only be read"),
        ({"AcquisitionStop": False}, "possible: true, which executes it"),
        ({"TriggerMode": "On"}, "follows from"),
        ({"poll": 1}, "no feature 'poll'"),  # a method of the binding, not a feature of the camera
    ],
)
def test_a_refused_setting_says_what_is_possible(camera, settings, words):
    """The engineer corrects the file without a manual."""
    with pytest.raises(CameraSettingError, match=words) as caught:
        camera.configure(settings)
    assert "serial 2" in str(caught.value)
    assert camera.configure({"Width": 200}) == {"Width": 200}


def test_a_camera_without_triggers_refuses_trigger_modes():
    """A line that waits for triggers the camera cannot take would be silent for ever."""
    for trigger in ("software", "hardware"):
        camera = GenicamCamera(producers=["viky"], serial="2", trigger=trigger)
        camera.open()
        with pytest.raises(CameraSettingError, match="TriggerMode"):
            camera.configure({})
        camera.close()


@pytest.mark.parametrize(("pixel_format", "shape"), [("Mono8", (240, 320)), ("RGBa8", (240, 320, 3))])
def test_frames_have_the_configured_size_and_change(camera, pixel_format, shape):
    """The picture comes from the buffer's own geometry, and each frame is a new one."""
    camera.configure(SMALL | {"PixelFormat": pixel_format, "AcquisitionFrameRate": 100.0})
    camera.start()
    frames = [camera.grab(1) for _ in range(20)]
    assert {frame.image.shape for frame in frames} == {shape}
    # On a busy machine frames may be lost; then the next one says so.
    for before, after in itertools.pairwise(frames):
        assert after.frame_id == before.frame_id + 1 + sum(after.missing.values())
    assert len({frame.image.tobytes() for frame in frames}) > 10
    assert all(frame.device_ns is None for frame in frames)  # viky has no clock: asking it raises


def test_a_genicam_container_is_refused_not_misread(camera):
    """GenDC would come out as a garbled image: an unknown payload is never judged."""
    camera.configure({"GenDCStreamingMode": "On"})
    camera.start()
    with pytest.raises(CameraSettingError, match=r"payload type 11 \(PAYLOAD_TYPE_GENDC\)"):
        camera.grab(1)
    camera.stop()
    camera.configure({"GenDCStreamingMode": "Off"})
    camera.start()
    assert isinstance(camera.grab(1), Frame)


def test_no_stale_frame_after_a_pause(camera):
    """Full buffers hold the oldest frames: they are given up, counted, and the next one is fresh."""
    camera.configure(SMALL | {"AcquisitionFrameRate": 100.0})
    camera.start()
    before = camera.grab(1)
    time.sleep(0.5)
    after = camera.grab(1)
    assert after.missing[Cause.OVERRUN] >= 6
    assert after.missing[Cause.UNDERRUN] > 10
    assert sum(after.missing.values()) == after.frame_id - before.frame_id - 1
    assert camera.health().missing == after.missing


def test_flush_counts_what_it_throws_away(camera):
    """And what was flushed on purpose is not reported as lost."""
    camera.configure(SMALL | {"AcquisitionFrameRate": 100.0})
    camera.start()
    before = camera.grab(1)
    time.sleep(0.035)
    thrown = camera.flush()
    after = camera.grab(1)
    assert thrown >= 2
    assert after.frame_id == before.frame_id + thrown + 1 + sum(after.missing.values())


def test_waiting_lets_other_threads_run(camera):
    """The interpreter lock is not held while waiting: in harvesters' own fetch a thread gets two turns meanwhile."""
    camera.configure(SMALL | {"AcquisitionFrameRate": 1.0})
    camera.start()
    camera.grab(2)
    done = threading.Event()

    def take_turns():
        for _ in range(50):
            time.sleep(0.001)
        done.set()

    thread = threading.Thread(target=take_turns)
    thread.start()
    assert camera.grab(0.8).reason is NoFrameReason.TIMEOUT
    assert done.is_set()
    thread.join()


def test_ctrl_c_and_warnings_are_left_as_they_were():
    """Creating an acquirer replaces the handler of Ctrl-C, importing harvesters the warning filters."""
    code = """
import signal, sys, warnings
import cv2, numpy
handler, filters = signal.getsignal(signal.SIGINT), list(warnings.filters)
from lineward.drivers.genicam import GenicamCamera
camera = GenicamCamera(producers=["viky"], serial="0")
camera.open(); camera.configure({}); camera.start(); camera.grab(1)
assert signal.getsignal(signal.SIGINT) is handler
assert warnings.filters == filters, warnings.filters
camera.close()
assert signal.getsignal(signal.SIGINT) is handler
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def test_a_process_with_an_open_stream_ends_by_itself():
    """Leaving without closing must neither hang nor crash: the camera process may be ended at any time."""
    code = "from lineward.drivers.genicam import GenicamCamera as C; c = C(producers=['viky'], serial='0');"
    code += "c.open(); c.configure({}); c.start(); c.grab(1)"
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=30, capture_output=True, text=True)
    assert done.stderr == ""


def test_harvesters_does_not_write_to_stderr():
    """It logs by handlers of its own; operators would see its lines between ours."""
    ours = [name for name in logging.root.manager.loggerDict if name.startswith("harvesters")]
    assert ours
    assert not any(logging.getLogger(name).handlers for name in ours)


def test_a_camera_whose_stream_breaks_is_lost_and_opens_again():
    """The teardown that works: after an error in mid-stream the same object opens the camera anew."""
    camera = GenicamCamera(producers=["viky"], serial="0")
    camera.open()
    camera.configure(SMALL)
    camera.start()
    assert isinstance(camera.grab(1), Frame)
    camera._connection.device.close()  # as if another layer had let go of it
    with pytest.raises(CameraLostError, match="serial 0"):
        camera.grab(3)
    with pytest.raises(CameraLostError):
        camera.grab(0.1)
    camera.close()
    camera.open()
    camera.close()


def test_frame_numbers_wrap_at_sixteen_bits():
    """After 65,536 frames a GigE camera begins again: nothing was lost, and the number goes on rising."""
    ids = FrameIds()
    assert [ids.follow(raw) for raw in (65534, 65535, 0, 1, 4)] == [
        (65534, 0),
        (65535, 0),
        (65536, 0),
        (65537, 0),
        (65540, 2),
    ]


def test_gige_numbers_skip_zero():
    """Block id 0 is reserved in GigE Vision 1.x: its absence is no gap."""
    ids = FrameIds(skips_zero=True)
    assert [ids.follow(raw)[1] for raw in (65534, 65535, 1, 2, 5)] == [0, 0, 0, 0, 2]


def test_a_loss_across_the_wrap_is_counted():
    """Ten frames lost while the number wraps are ten, not sixty-five thousand."""
    ids = FrameIds()
    ids.follow(65530)
    assert ids.follow(5)[1] == 10


def test_numbers_beyond_sixteen_bits_and_resets():
    """A 64-bit number does not wrap; one that is set back begins anew without a loss; none at all is counted by us."""
    ids = FrameIds()
    assert [ids.follow(raw) for raw in (70_000, 70_001, 1, 2)] == [(70_000, 0), (70_001, 0), (70_002, 0), (70_003, 0)]
    silent = FrameIds()
    assert [silent.follow(None) for _ in range(2)] == [(1, 0), (2, 0)]


def test_each_loss_is_told_once():
    """An incomplete frame is announced, and then its number is missing: that is one loss, not two."""
    losses = Losses()
    losses.lose(Cause.INCOMPLETE)
    losses.skip(3, Cause.CAMERA_GAP)
    assert losses.settle() == {Cause.INCOMPLETE: 1, Cause.CAMERA_GAP: 2}
    assert losses.settle() == {}
    losses.skip(1, Cause.CAMERA_GAP)
    assert losses.settle() == {Cause.CAMERA_GAP: 1}
    assert losses.total == {Cause.INCOMPLETE: 1, Cause.CAMERA_GAP: 3}


def test_what_was_announced_before_a_frame_explains_no_later_gap():
    """An incomplete frame before the first number of all must not hide ten dropped ones an hour later."""
    losses = Losses()
    losses.lose(Cause.INCOMPLETE, 2)
    losses.skip(0, Cause.CAMERA_GAP)
    losses.skip(10, Cause.CAMERA_GAP)
    assert losses.settle() == {Cause.INCOMPLETE: 2, Cause.CAMERA_GAP: 10}


def test_underruns_are_told_where_they_happened():
    """Two older frames wait when the producer's count rises: the third shows the gap, and nothing is told twice."""
    underruns = Underruns()
    underruns.note(4, waiting=2)
    assert [underruns.follow(skipped) for skipped in (0, 0, 0, 4, 3)] == [(0, 0), (0, 0), (0, 0), (4, 0), (0, 0)]


def test_underruns_of_a_camera_without_numbers_are_told_too():
    """Where no number shows the gap, the first frame that can have come after it says so."""
    underruns = Underruns(total=7)
    underruns.note(9, waiting=1)
    assert [underruns.follow(0) for _ in range(4)] == [(0, 0), (0, 0), (0, 2), (0, 0)]


def test_a_gap_behind_full_buffers_is_an_underrun_though_nobody_counted():
    """And one that comes long after is the camera's own."""
    underruns = Underruns()
    underruns.suspect(waiting=2)
    assert [underruns.follow(skipped) for skipped in (0, 0, 5, 5)] == [(0, 0), (0, 0), (5, 0), (0, 0)]
    underruns.suspect(waiting=2)
    assert [underruns.follow(skipped) for skipped in (0, 0, 0, 5)] == [(0, 0), (0, 0), (0, 0), (0, 0)]


def test_creating_a_camera_outside_the_main_thread():
    """Signal handlers belong to the main thread; elsewhere they are left alone."""
    result = []

    def work():
        camera = GenicamCamera(producers=["viky"], serial="1")
        result.append(camera.open())
        camera.close()

    handler = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    with warnings.catch_warnings():
        thread.start()
        thread.join()
    assert result[0].serial == "1"
    assert signal.getsignal(signal.SIGINT) is handler
