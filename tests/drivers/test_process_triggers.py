"""Software triggers and changeovers through a camera process, as the daemon gives them: one part, one picture."""

import time

import numpy as np
import pytest

from gentl_sim.taking import grab_for
from lineward.drivers.camera import CameraError, CameraLostError, CameraSettingError, Cause, Frame, NoFrameReason
from lineward.drivers.process import CameraProcess

pytest_plugins = ["gentl_sim.fixtures"]

RATE_HZ = 20.0
SIMULATED = {"trigger": "software", "width": 160, "height": 128}


@pytest.fixture
def begin():
    """Open a camera in its process, set it up and start it."""
    made = []

    def start(driver="simulated", settings=None, **options):
        camera = CameraProcess(driver, SIMULATED | options if driver == "simulated" else options)
        made.append(camera)
        camera.open()
        camera.configure(settings or {})
        camera.start()
        return camera

    yield start
    for camera in made:
        camera.close()


def answer(camera, number):
    """Return the frame of a trigger; any other would be another part's."""
    got = camera.grab(5.0)
    assert isinstance(got, Frame), got
    assert got.trigger_id == number
    return got


def test_twenty_parts_a_second_get_their_own_frames(begin):
    """Each trigger is answered by one frame with its number, none is left over."""
    camera = begin()
    began = time.monotonic()
    for part in range(40):
        time.sleep(max(0.0, began + part / RATE_HZ - time.monotonic()))
        frame = answer(camera, camera.trigger())
        assert (frame.frame_id, dict(frame.missing)) == (part, {})
    assert camera.grab(0.1).reason is NoFrameReason.TIMEOUT


def test_a_trigger_is_given_up_by_a_flush(begin):
    """After its deadline the part has its answer: the next trigger is allowed, and the missed one is counted."""
    camera = begin(settings={"ExposureTime": 500_000.0})
    camera.trigger()
    with pytest.raises(CameraError, match="still outstanding"):
        camera.trigger()
    assert camera.grab(0.1).reason is NoFrameReason.TIMEOUT
    camera.flush()
    frame = answer(camera, camera.trigger())
    assert frame.missing == {Cause.TRIGGER_MISSED: 1}


def test_a_frame_that_came_and_was_given_up_is_counted_as_well(begin):
    """It waits in shared memory when its part's time is over: the driver knows of no loss, this side does."""
    camera = begin()
    camera.trigger()
    deadline = time.monotonic() + 5
    while camera.health().frames < 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert camera.flush() == 1
    frame = answer(camera, camera.trigger())
    assert frame.missing == {Cause.TRIGGER_MISSED: 1}
    assert camera.health().missing == {Cause.TRIGGER_MISSED: 1}


def test_a_late_frame_is_never_the_next_parts(begin, sim):
    """The exposure runs on after its part was given up; the frame that answers was exposed after its own trigger."""
    settings = {"TestPattern": "FrameId", "ExposureTime": 200_000.0}
    camera = begin("genicam", settings, producers=[str(sim.file)], serial="SIM-A", trigger="software")
    for _ in range(3):
        given_up = sim["SIM-A"].triggers
        camera.trigger()
        sim["SIM-A"].wait(lambda device, given_up=given_up: device.triggers > given_up)
        camera.flush()
        triggered_ns = time.monotonic_ns()
        frame = answer(camera, camera.trigger())
        assert frame.device_ns >= triggered_ns
        assert (frame.image.view("<u4") == frame.frame_id).all()
        assert frame.missing == {Cause.TRIGGER_MISSED: 1}


def test_a_camera_that_goes_away_between_two_parts_is_lost_before_the_next(begin, sim):
    """Nothing is exposed, nothing is expected: the plug is noticed all the same."""
    camera = begin("genicam", producers=[str(sim.file)], serial="SIM-A", trigger="software")
    answer(camera, camera.trigger())
    sim["SIM-A"].lose()
    with pytest.raises(CameraLostError, match="not reachable any more"):
        grab_for(camera, 10.0)


def test_a_changeover_on_the_open_camera(begin):
    """Stop, other settings, start: the same process shows the other product, and after a refusal the old one again."""
    camera = begin(settings={"Product": "bracket"})
    pid = camera.pid
    bracket = answer(camera, camera.trigger()).image.copy()
    camera.stop()
    assert camera.configure({"Product": "flange", "ExposureTime": 4000.0}) == {
        "Product": "flange",
        "ExposureTime": 4000.0,
    }
    camera.start()
    flange = answer(camera, camera.trigger()).image.copy()
    assert np.abs(flange.astype(int) - bracket).mean() > 5
    camera.stop()
    with pytest.raises(CameraSettingError, match="its entries are bracket, flange"):
        camera.configure({"ExposureTime": 8000.0, "Product": "gear"})
    camera.configure({"Product": "flange", "ExposureTime": 4000.0})
    camera.start()
    again = answer(camera, camera.trigger()).image
    assert np.abs(again.astype(int) - flange).mean() < np.abs(flange.astype(int) - bracket).mean()
    assert camera.pid == pid
