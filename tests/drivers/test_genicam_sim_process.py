"""The genicam driver in its process on the simulated producer: calls that hang, crashes, and a line that goes on."""

import signal
import time
from pathlib import Path

import pytest

from gentl_sim.gentl_sim import Crash, Hang
from gentl_sim.taking import grab_for, own_frame
from lineward.drivers.camera import (
    CameraBusyError,
    CameraLostError,
    CameraNotFoundError,
    CameraSettingError,
)
from lineward.drivers.genicam import GenicamCamera, discover
from lineward.drivers.process import CameraProcess
from lineward.drivers.vigil import ORDER_GRACE_S

pytest_plugins = ["gentl_sim.fixtures"]

FAST = {"TestPattern": "FrameId", "ExposureTime": 100.0, "AcquisitionFrameRate": 200.0}
SILENCE_S = 0.6


@pytest.fixture
def make(sim):
    """Make a camera in its process, open it, set features and start it."""
    made = []

    def begin(serial="SIM-A", *, settings=FAST, start=True, silence_limit_s=SILENCE_S, **options):
        driver = {"producers": [str(sim.file)], "serial": serial, **options}
        camera = CameraProcess("genicam", driver, silence_limit_s=silence_limit_s)
        made.append(camera)
        camera.open()
        camera.configure(settings)
        if start:
            camera.start()
        return camera

    yield begin
    for device in sim.control.devices.values():
        device.heal()
    for camera in made:
        camera.close()


def lose(camera, timeout_s):
    """Grab until the camera is lost; return the error. Frames of before may still come."""
    with pytest.raises(CameraLostError) as caught:
        grab_for(camera, timeout_s)
    return str(caught.value)


def is_gone(pid):
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"


def goes_on(camera):
    """Open anew and stream: what happened before must have left nothing behind."""
    camera.close()
    camera.open()
    camera.configure(FAST)
    camera.start()
    return own_frame(camera)


def test_frames_carry_their_numbers_through_shared_memory(make):
    """From the sensor through two processes: no frame is torn, swapped or lost without a word."""
    camera = make(buffers=8)
    before = own_frame(camera)
    for _ in range(100):
        frame = own_frame(camera)
        assert sum(frame.missing.values()) == frame.frame_id - before.frame_id - 1
        assert frame.device_ns <= frame.received_ns
        before = frame


@pytest.mark.parametrize("where", [Hang.EVENT, Hang.READ])
def test_a_hung_call_in_mid_stream_costs_a_process_and_no_more(make, sim, where):
    """Found by its silence, killed by its pid, and opened anew once the camera answers again."""
    camera = make()
    own_frame(camera)
    pid = camera.pid
    if where is Hang.READ:  # registers are read only when no frame comes
        sim["SIM-A"].silence()
    sim["SIM-A"].hang(where)
    assert f"pid {pid}" in lose(camera, 5.0)
    sim["SIM-A"].heal()
    assert is_gone(pid)
    goes_on(camera)
    assert camera.pid != pid


@pytest.mark.parametrize("call", ["open", "configure", "start", "trigger"])
def test_a_hung_call_on_command_is_found_like_any_other(make, sim, call):
    """Opening, setting, starting and triggering may hang in the producer: no order waits for ever."""
    camera = make(trigger="software", start=call == "trigger")
    pid = camera.pid
    if call == "open":
        camera.close()
    sim["SIM-A"].hang({"open": Hang.OPEN, "start": Hang.START}.get(call, Hang.WRITE))
    with pytest.raises(CameraLostError, match=rf"gave no sign of life for [\d.]+ s in '{call}'.*it was killed"):
        camera.configure(FAST) if call == "configure" else getattr(camera, call)()
    sim["SIM-A"].heal()
    camera.close()
    assert is_gone(pid)
    camera.open()
    camera.configure(FAST)
    camera.start()
    camera.trigger()
    own_frame(camera)


def test_many_slow_registers_are_not_cut_off(make, sim):
    """Half a second for each register, far longer than the limit together: the camera is slow, and is opened."""
    camera = make(start=False, silence_limit_s=2.0)
    pid = camera.pid
    sim["SIM-A"].slow(0.5)
    began = time.monotonic()
    assert camera.configure(FAST | {"Gain": 2.0})["Gain"] == 2.0
    took_s = time.monotonic() - began
    sim["SIM-A"].slow(0)
    assert took_s > 2.0 + ORDER_GRACE_S, "the register accesses were not slow enough to tell"
    assert camera.pid == pid


def test_a_slow_search_for_cameras_is_not_cut_off(make, sim):
    """A producer asks on each network and waits for answers: that takes longer than any single register may."""
    camera = make(start=False)
    camera.close()
    sim["SIM-A"].slow_search(3 * SILENCE_S)
    assert camera.open().serial == "SIM-A"


@pytest.mark.parametrize("where", [Crash.AT_FRAME, Crash.AT_READ])
def test_a_crash_is_named_and_the_camera_opens_again(make, sim, where):
    """SIGSEGV points at the producer; the camera is free as soon as its process is gone."""
    camera = make()
    own_frame(camera)
    if where is Crash.AT_READ:
        sim["SIM-A"].silence()
    sim["SIM-A"].crash(where)
    assert signal.Signals.SIGSEGV.name in lose(camera, 5.0)
    sim["SIM-A"].heal()
    goes_on(camera)
    assert sim["SIM-A"].opens == 2


def test_a_lost_camera_comes_back_in_a_new_process(make, sim):
    """Between loss and return every opening fails by name; after it, streaming goes on."""
    camera = make()
    own_frame(camera)
    sim["SIM-A"].lose()
    assert "SIM-A" in lose(camera, 5.0)
    camera.close()
    with pytest.raises(CameraLostError, match="unreachable"):
        camera.open()
    sim["SIM-A"].unplug()
    with pytest.raises(CameraNotFoundError, match="no camera with serial 'SIM-A' answers"):
        camera.open()
    sim["SIM-A"].come_back()
    goes_on(camera)


def test_losing_a_camera_again_and_again_leaves_nothing_behind(make, sim):
    """Neither a process nor a handle nor a buffer is left, however often the plug is pulled."""
    camera, pids = make(), []
    for _ in range(3):
        own_frame(camera)
        pids.append(camera.pid)
        sim["SIM-A"].lose()
        camera.close()
        sim["SIM-A"].come_back()
        assert (sim["SIM-A"].owner, sim["SIM-A"].announced) == (0, 0)
        goes_on(camera)
    assert all(is_gone(pid) for pid in pids)
    assert sim["SIM-A"].opens - sim["SIM-A"].closes == 1


def test_a_camera_in_another_process_is_busy_here(make, sim):
    """One camera, one user: a second one is told so, and discovery shows it."""
    make()
    assert {info.serial: info.access for info in discover([str(sim.file)])}["SIM-A"] == "in use"
    second = GenicamCamera(producers=[str(sim.file)], serial="SIM-A")
    with pytest.raises(CameraBusyError, match="SIM-A"):
        second.open()


def test_a_slow_register_does_not_make_the_process_look_hung(make, sim):
    """Half a second for one register is slow, not dead: the process is kept, and frames come as soon as they can."""
    camera = make(silence_limit_s=2.0)
    own_frame(camera)
    pid = camera.pid
    sim["SIM-A"].silence()
    sim["SIM-A"].slow(0.5, "PayloadSize")
    reads = sim["SIM-A"].reads
    grab_for(camera, 2.8)
    assert sim["SIM-A"].reads > reads
    sim["SIM-A"].heal()
    own_frame(camera)
    assert camera.pid == pid


def test_a_container_ends_the_stream_with_its_name(make, sim):
    """What cannot be judged is a matter of settings: the error says which."""
    camera = make()
    own_frame(camera)
    sim["SIM-A"].payload(11)
    with pytest.raises(CameraSettingError, match="PAYLOAD_TYPE_GENDC"):
        grab_for(camera, 5.0)
    sim["SIM-A"].payload(0)
    goes_on(camera)


def test_hardware_triggers_reach_the_line(make, sim):
    """Edges fired at the camera come out as frames, one each, in their order."""
    camera = make(trigger="hardware", settings=FAST | {"TriggerSource": "Line1"})
    for number in range(5):
        sim["SIM-A"].pulse()
        assert own_frame(camera).frame_id == number


def test_three_cameras_stream_side_by_side(make, sim):
    """Each in its process: one that hangs costs the others nothing."""
    settings = FAST | {"AcquisitionFrameRate": 30.0}
    cameras = {serial: make(serial, settings=settings) for serial in ("SIM-A", "SIM-B", "SIM-C")}
    before = {serial: own_frame(camera).frame_id for serial, camera in cameras.items()}
    sim["SIM-B"].hang(Hang.EVENT)
    for _ in range(10):
        for serial in ("SIM-A", "SIM-C"):
            frame = own_frame(cameras[serial])
            assert sum(frame.missing.values()) == frame.frame_id - before[serial] - 1
            before[serial] = frame.frame_id
    lose(cameras["SIM-B"], 5.0)
