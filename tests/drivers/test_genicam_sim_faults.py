"""Faults of a camera in mid-run: the line goes on, no stale or torn frame is judged, every missing one is counted."""

import pytest

from gentl_sim.station import FAULTS, Station, is_torn
from lineward.drivers.camera import Frame
from lineward.drivers.process import CameraProcess

pytest_plugins = ["gentl_sim.fixtures"]


@pytest.mark.parametrize("fault", FAULTS)
def test_the_line_goes_on_and_judges_nothing_wrong(sim, fault):
    """Whatever befalls the camera: inspection resumes by itself, and nothing is left behind."""
    got = Station(sim.file, sim.control).suffer(FAULTS[fault], 2)
    assert len(got.resumed_s) == 2
    assert (got.torn, got.stale, got.disordered, got.unexplained) == (0, 0, 0, 0)
    assert (got.processes_left, got.descriptors_left, got.memory_left) == (0, 0, 0)


def test_full_frames_at_200_fps_come_whole_and_in_order(sim):
    """Each pixel carries its frame's number, through the producer, two processes and shared memory."""
    camera = CameraProcess("genicam", {"producers": [str(sim.file)], "serial": "SIM-A", "buffers": 16})
    camera.open()
    camera.configure({"TestPattern": "FrameId", "ExposureTime": 100.0, "AcquisitionFrameRate": 200.0})
    camera.start()
    before = None
    for _ in range(1500):
        frame = camera.grab(5.0)
        assert isinstance(frame, Frame)
        assert not is_torn(frame)
        if before is not None:  # only a machine that is too busy loses any, and it says so
            assert sum(frame.missing.values()) == frame.frame_id - before - 1
        before = frame.frame_id
    camera.close()
