"""The aravis driver on a GigE Vision camera behind a network cable: what breaks in the field is named and bounded."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from gige import GigeCamera, plugged_in
from lineward.drivers import aravis_library, gvcp, registry
from lineward.drivers.aravis import AravisCamera
from lineward.drivers.camera import (
    CameraBusyError,
    CameraError,
    CameraLostError,
    CameraNotFoundError,
    CameraSettingError,
    Cause,
    Frame,
    NoFrameReason,
)
from lineward.drivers.process import CameraProcess
from lineward.extras import how_to_add

FAST = {"PixelFormat": "Mono8", "Width": 320, "Height": 240, "AcquisitionFrameRate": 100.0, "ExposureTimeAbs": 1000.0}
USER_ID = 0xE8  # the bootstrap register that holds the user-defined name


@pytest.fixture(scope="module")
def gige():
    camera = plugged_in()
    yield camera
    camera.remove()


@pytest.fixture
def make(gige):
    made = []

    def build(kind=AravisCamera, **options):
        options = {"address": gige.address} | options
        made.append(kind(**options) if kind is AravisCamera else kind("aravis", options))
        return made[-1]

    yield build
    for camera in made:
        camera.close()


@pytest.fixture
def camera(make):
    opened = make()
    opened.open()
    opened.configure(FAST)
    return opened


def first_frame(camera, patience_s=5.0):
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        got = camera.grab(0.5)
        if isinstance(got, Frame):
            return got
    raise AssertionError(f"no frame within {patience_s} s: {got}")


def lose(camera, patience_s=10.0):
    """Grab until the camera is reported lost."""
    deadline = time.monotonic() + patience_s
    with pytest.raises(CameraLostError) as caught:  # noqa: PT012 - whichever call notices it
        while time.monotonic() < deadline:
            camera.grab(0.5)
    return str(caught.value)


def reopen(camera, patience_s=10.0):
    """Come back as the service does: close, open, until the camera is there and free."""
    deadline = time.monotonic() + patience_s
    while True:
        camera.close()
        try:
            camera.open()
            camera.configure(FAST)
            camera.start()
            return first_frame(camera)
        except CameraError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def test_discover_lists_cameras_by_serial(gige):
    """A camera is chosen by what is printed on it."""
    found = registry.discover("aravis", {"serial": "any"})
    assert [(i.name, i.vendor, i.transport, i.access) for i in found if i.serial == gige.serial] == [
        ("Fake", "Aravis", "GEV", "available")
    ]
    assert [i.serial for i in registry.discover("aravis", {"address": gige.address})] == [gige.serial]


def test_discover_leaves_an_open_camera_alone(gige, camera):
    """Listing cameras during the shift must not end the stream."""
    camera.start()
    first_frame(camera)
    assert [i.access for i in registry.discover("aravis", {}) if i.serial == gige.serial] == ["in use"]
    camera.flush()
    assert isinstance(camera.grab(1), Frame)


def test_open_by_serial_number(gige, make):
    """Which address a camera has may change; its serial number does not."""
    assert make(address="", serial=gige.serial).open().serial == gige.serial


def test_open_by_user_id(gige, make):
    """A camera that was given a name is found by it, and only by it."""
    named = make()
    named.open()
    named._device.write_register(USER_ID, int.from_bytes(b"left"))
    named.close()
    try:
        assert make(user_id="left").open().user_id == "left"
        make(user_id="left").close()
        with pytest.raises(CameraNotFoundError, match=r"no camera with user id 'right' .* user id 'left'"):
            make(user_id="right").open()
    finally:
        gige.switch_off()
        gige.switch_on()


@pytest.mark.usefixtures("gige")
def test_without_a_serial_an_ambiguous_choice_is_refused():
    """Never an index: which camera answers first changes from search to search."""
    second = GigeCamera("LW0002")
    try:
        with pytest.raises(CameraNotFoundError, match=r"several cameras fit; name one by .* serial 'LW000"):
            AravisCamera().open()
    finally:
        second.remove()


def test_a_camera_that_is_open_elsewhere_is_busy(camera, make):
    """The operator is told to close the other program, and that program's stream goes on."""
    camera.start()
    with pytest.raises(CameraBusyError, match="open in another program"):
        make().open()
    camera.flush()
    first_frame(camera)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("Width", 99999, r"Width = 99999 is refused: .* possible: integers 1\.\.2048 in steps of 1"),
        ("AcquisitionFrameRate", 5000.0, r"possible: 0\.1\.\.1000"),
        ("PixelFormat", "Mono9", r"possible: .*Mono8.*Mono16"),
        ("Width", "wide", r"wrong type; possible: integers"),
        ("Width", 320.5, r"wrong type"),
        ("AcquisitionFrameRate", float("nan"), r"wrong type"),
        ("SensorWidth", 3, r"can only be read \(it is 2048\)"),
        ("TriggerMode", "On", r"follows from \[camera\] trigger"),
        ("TriggerSoftware", False, r"possible: true, which executes it"),
    ],
)
def test_a_refused_setting_says_what_is_possible(camera, name, value, says):
    """The engineer reads in the message what the camera would have taken."""
    with pytest.raises(CameraSettingError, match=says):
        camera.configure({name: value})


def test_the_camera_still_has_what_a_refused_setting_did_not_change(camera):
    """Aravis writes to read-only features when it is let: SensorWidth = 3 left the camera with a width of 3."""
    with pytest.raises(CameraSettingError):
        camera.configure({"SensorWidth": 3})
    assert camera.configure({"SensorWidth": 2048, "Width": 2048})["Width"] == 2048


def test_a_hardware_trigger_needs_its_line(make):
    """A camera that waits for a line that nobody named would wait for ever."""
    camera = make(trigger="hardware")
    camera.open()
    with pytest.raises(CameraSettingError, match="TriggerSource"):
        camera.configure({"TriggerSource": "Software"})
    assert camera.configure({"TriggerSource": "Line0"})["TriggerMode"] == "On"


def test_a_colour_camera_gives_three_channels(camera):
    """Whether the camera sends RGB or a Bayer mosaic, the model gets RGB."""
    camera.configure(FAST | {"PixelFormat": "RGB8"})
    camera.start()
    colour = first_frame(camera).image
    camera.stop()
    assert colour.shape == (240, 320, 3)
    camera.configure(FAST | {"PixelFormat": "BayerRG8"})
    camera.start()
    assert first_frame(camera).image.shape == (240, 320, 3)


def test_frame_ids_go_on_when_16_bits_are_full(camera):
    """GigE Vision numbers frames up to 65535 and begins anew at 1: no frame is missing there."""
    camera.configure({"AcquisitionFrameRate": 500.0, "Width": 64, "Height": 64})
    for _ in range(3):  # the camera's count goes on over starts; it begins shortly before its end
        camera.start()
        frames = [first_frame(camera) for _ in range(250)]
        camera.stop()
        steps = np.diff([frame.frame_id for frame in frames])
        lost = sum(sum(frame.missing.values()) for frame in frames[1:])
        assert steps.min() >= 1
        assert (steps - 1).sum() == lost


def test_after_a_pause_the_next_frame_is_fresh_and_the_lost_ones_are_counted(camera):
    """A caller who was away gets no old part; each frame it did not get is counted once."""
    camera.start()
    before = first_frame(camera)
    time.sleep(0.5)
    called_ns = time.monotonic_ns()
    after = first_frame(camera)
    assert after.received_ns >= called_ns
    assert after.frame_id - before.frame_id > 20
    assert sum(after.missing.values()) == after.frame_id - before.frame_id - 1
    assert after.missing[Cause.OVERRUN] == 6
    assert after.missing.keys() == {Cause.OVERRUN, Cause.UNDERRUN}


def test_waiting_for_a_frame_leaves_other_threads_alone(make):
    """No call of the library may hold the interpreter: the camera process has to show signs of life meanwhile."""
    camera = make(trigger="software")
    camera.open()
    camera.configure(FAST)
    camera.start()
    done = threading.Event()

    def take_turns():
        for _ in range(100):
            time.sleep(0.001)
        done.set()

    thread = threading.Thread(target=take_turns)
    thread.start()
    assert camera.grab(1.0).reason is NoFrameReason.TIMEOUT
    assert done.is_set()
    thread.join()


def test_lost_packets_are_counted_and_never_judged(gige, make):
    """A frame with a hole in it is said to be incomplete, and no frame vanishes without a cause."""
    gige.switch_off()
    gige.switch_on(lost_per_thousand=5)
    try:
        camera = make()
        camera.open()
        camera.configure(FAST)
        camera.start()
        first = last = first_frame(camera)
        before = camera.health().missing.get(Cause.INCOMPLETE, 0)
        told = incomplete = 0
        while last.frame_id < first.frame_id + 150:
            got = camera.grab(1.0)
            if isinstance(got, Frame):
                last, told = got, told + sum(got.missing.values())
            else:
                assert got.reason is NoFrameReason.INCOMPLETE
                assert "check cable, jumbo frames and receive buffers" in got.detail
                incomplete += 1
        whole = camera.health().frames
        missing = camera.health().missing
        camera.close()
    finally:
        gige.switch_off()
        gige.switch_on()
    assert incomplete > 5
    assert missing[Cause.INCOMPLETE] == before + incomplete
    assert told == last.frame_id - first.frame_id + 1 - whole


@pytest.mark.parametrize(
    ("kind", "fault", "repair"),
    [
        (AravisCamera, "switch_off", "switch_on"),
        (AravisCamera, "freeze", "thaw"),
        (AravisCamera, "unplug", "plug_in"),
        (CameraProcess, "switch_off", "switch_on"),
        (CameraProcess, "freeze", "thaw"),
        (CameraProcess, "unplug", "plug_in"),
    ],
)
def test_a_camera_that_went_away_is_lost_and_comes_back(gige, make, kind, fault, repair):
    """Power, a hung camera and a pulled cable: each is named within seconds and mended by opening again."""
    camera = make(kind)
    camera.open()
    camera.configure(FAST)
    camera.start()
    first_frame(camera)
    getattr(gige, fault)()
    try:
        message = lose(camera)
        camera.close()
    finally:
        getattr(gige, repair)()
    assert gige.serial in message
    assert "check its cable and power" in message
    reopen(camera)


def test_a_camera_that_was_switched_off_and_on_is_lost(gige, camera):
    """It answers again, but has forgotten its settings and us."""
    camera.start()
    first_frame(camera)
    gige.switch_off()
    gige.switch_on()
    assert re.search("was restarted|control of it was lost", lose(camera))
    reopen(camera)


def test_a_silent_camera_that_answers_is_not_lost(make):
    """Between two parts a triggered camera is silent for as long as it likes."""
    camera = make(trigger="software")
    camera.open()
    camera.configure(FAST)
    camera.start()
    assert camera.grab(2.5).reason is NoFrameReason.TIMEOUT
    number = camera.trigger()
    assert first_frame(camera).trigger_id == number


def test_aravis_own_signal_of_lost_control_is_heeded(camera):
    """USB cameras are not asked for their pulse: Aravis says when one is gone."""
    camera.start()
    first_frame(camera)
    camera._device.emit("control-lost")
    with pytest.raises(CameraLostError, match="control of it was lost"):
        camera.grab(1.0)


def test_a_camera_that_a_killed_process_left_running_is_opened(make):
    """The next process must not depend on the last one's good manners."""
    killed = make(CameraProcess)
    killed.open()
    killed.configure(FAST)
    killed.start()
    first_frame(killed)
    os.kill(killed.pid, signal.SIGKILL)
    lose(killed)
    reopen(killed)


def test_nothing_is_left_behind(gige):
    """Threads, sockets and memory of a camera end with it: a line opens its camera again for years."""
    program = f"""
import os
from lineward.drivers.aravis import AravisCamera
from lineward.drivers.camera import Frame
def count():
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
camera = AravisCamera(address={gige.address!r})
counts = []
for _ in range(5):
    camera.open()
    camera.start()
    assert isinstance(camera.grab(2), Frame)
    camera.close()
    counts.append(count())
assert counts[1] == counts[-1], counts
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=30)


def test_nobody_at_an_address_is_asked_three_times():
    """An address of the configuration that is wrong costs three short time-outs, and not minutes."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as dumb:
        dumb.bind(("127.0.0.77", gvcp.PORT))
        dumb.settimeout(0.0)
        assert gvcp.identify("127.0.0.77") is None
        assert not gvcp.in_use("127.0.0.77")
        for _ in range(6):
            dumb.recv(1024)
        with pytest.raises(BlockingIOError):
            dumb.recv(1024)


def test_a_missing_library_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch):
    """The driver is optional: who chooses it without the library is told what to type."""
    monkeypatch.delitem(sys.modules, "gi", raising=False)
    with pytest.raises(CameraNotFoundError, match=r"sudo apt-get install gir1\.2-aravis-0\.8 python3-gi"):
        aravis_library._bindings([tmp_path])
    package = tmp_path / "gi"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "_gi.cpython-27-x86_64-linux-gnu.so").touch()
    with pytest.raises(CameraNotFoundError, match=r"built for another Python \(_gi\.cpython-27") as caught:
        aravis_library._bindings([tmp_path])
    assert str(caught.value).endswith(how_to_add("'pygobject<3.52'")), "an installed station has no pip of its own"


@pytest.mark.usefixtures("gige")
def test_the_system_folder_stays_out_of_the_search_path():
    """Only PyGObject is taken from the system: its other packages may be older than ours."""
    aravis_library.load()
    assert not {str(folder) for folder in aravis_library.SYSTEM_FOLDERS} & set(sys.path)


def test_fewer_than_two_buffers_are_refused():
    """With one buffer the camera has nowhere to write while a frame is read."""
    with pytest.raises(ValueError, match="buffers = 1"):
        registry.create("aravis", {"buffers": 1})
