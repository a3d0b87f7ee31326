"""Trouble by script: what each fault does, once, and how a wrong script is refused."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from lineward.drivers.camera import CameraLostError, CameraNotFoundError, Cause, Frame, NoFrameReason
from lineward.drivers.simulated import SimulatedCamera
from lineward.drivers.simulation.defects import Defect
from lineward.drivers.simulation.faults import FaultScript
from lineward.drivers.simulation.scene import Renderer

SMALL = {"width": 160, "height": 128}


def streaming(faults, *, rate_hz=0.0, **options):
    camera = SimulatedCamera(faults=faults, rate_hz=rate_hz, **SMALL, **options)
    camera.open()
    camera.start()
    return camera


def frames(camera, count):
    got = [camera.grab(2.0) for _ in range(count)]
    assert all(isinstance(frame, Frame) for frame in got)
    return got


def test_dropped_frames_leave_a_gap_that_is_named():
    """After a drop, frame ids jump by what the next frame says is missing."""
    camera = streaming(["drop@3:5"])
    got = frames(camera, 5)
    assert [frame.frame_id for frame in got] == [0, 1, 2, 8, 9]
    assert [dict(frame.missing) for frame in got] == [{}, {}, {}, {Cause.CAMERA_GAP: 5}, {}]
    assert camera.health().missing == {Cause.CAMERA_GAP: 5}


def test_incomplete_frames_are_said_and_counted():
    """A frame that lost packets is reported when it happens and counted in the next whole frame."""
    camera = streaming(["incomplete@1:2"])
    frames(camera, 1)
    assert [camera.grab(1.0).reason for _ in range(2)] == [NoFrameReason.INCOMPLETE] * 2
    (frame,) = frames(camera, 1)
    assert (frame.frame_id, dict(frame.missing)) == (3, {Cause.INCOMPLETE: 2})


@pytest.mark.parametrize("rate_hz", [0.0, 20.0])
def test_stall_is_silence_and_loses_nothing(rate_hz):
    """During a stall grab times out; afterwards the line goes on where it was."""
    camera = streaming(["stall@2:0.4s"], rate_hz=rate_hz)
    frames(camera, 2)
    began = time.monotonic()
    assert camera.grab(0.1).reason is NoFrameReason.TIMEOUT
    (frame,) = frames(camera, 1)
    assert time.monotonic() - began > 0.3
    assert frame.frame_id == 2
    assert not frame.missing


def test_disconnect_and_return():
    """Unplugged, the camera is lost, then not found, then back; its frame ids go on and nothing is counted twice."""
    camera = streaming(["disconnect@2:0.8s"])
    frames(camera, 2)
    with pytest.raises(CameraLostError, match="unplugged by script at frame 2"):
        camera.grab(1.0)
    with pytest.raises(CameraLostError):
        camera.grab(1.0)
    camera.close()
    with pytest.raises(CameraNotFoundError, match="back in"):
        camera.open()
    time.sleep(0.85)
    camera.open()
    camera.start()
    assert [frame.frame_id for frame in frames(camera, 3)] == [2, 3, 4]


def test_disconnect_is_remembered_by_the_device(tmp_path):
    """Another driver on the same memory finds the camera unplugged, and later goes on without the fault."""
    options = {"memory": tmp_path / "camera"}
    first = streaming(["disconnect@2:0.8s"], **options)
    frames(first, 2)
    with pytest.raises(CameraLostError):
        first.grab(1.0)
    second = SimulatedCamera(faults=["disconnect@2:0.8s"], rate_hz=0, **SMALL, **options)
    with pytest.raises(CameraNotFoundError):
        second.open()
    time.sleep(0.85)
    second.open()
    second.start()
    assert [frame.frame_id for frame in frames(second, 2)] == [2, 3]


CRASH = """
import sys
from lineward.drivers.simulated import SimulatedCamera
camera = SimulatedCamera(width=64, height=64, rate_hz=0, faults=["crash@3"], memory=sys.argv[1], limit=6)
camera.open(); camera.start()
while hasattr(frame := camera.grab(1.0), "frame_id"):
    print(frame.frame_id, flush=True)
"""


def test_crash_kills_the_process_once(tmp_path):
    """A crash is a SIGSEGV; a new process on the same memory continues behind it."""
    command = [sys.executable, "-c", CRASH, str(tmp_path / "camera")]
    first = subprocess.run(command, capture_output=True, text=True, check=False)
    assert first.returncode == -signal.SIGSEGV
    assert first.stdout.split() == ["0", "1", "2"]
    second = subprocess.run(command, capture_output=True, text=True, check=True)
    assert second.stdout.split() == ["3", "4", "5"]


def test_hang_never_returns():
    """A hanging grab ends only with its process."""
    code = (
        "from lineward.drivers.simulated import SimulatedCamera\n"
        "c = SimulatedCamera(width=64, height=64, rate_hz=0, faults=['hang@1']); c.open(); c.start()\n"
        "print(c.grab(0.1).frame_id, flush=True); c.grab(0.1); print('back', flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "0\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.6)
        process.kill()
        assert process.stdout.read() == ""


def test_a_camera_that_resumes_at_a_frame_has_met_its_fault():
    """Without a memory file, start_index says where to go on, and the fault at that frame is not met again."""
    camera = streaming(["disconnect@5:9s", "drop@7"], start_index=5)
    assert [frame.frame_id for frame in frames(camera, 3)] == [5, 6, 8]


def test_lamp_ages_and_stays_dim():
    """The lamp falls evenly to its last brightness and stays there."""
    camera = streaming(["lamp:0.5@2..6"])
    plain = streaming([])
    ratio = []
    for old, new in zip(frames(camera, 9), frames(plain, 9), strict=True):
        metal = new.image > 90
        ratio.append((old.image[metal] - 3.0).mean() / (new.image[metal] - 3.0).mean())
    assert ratio == pytest.approx([1, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.5, 0.5], abs=0.02)


def test_blur_lasts_as_long_as_it_says():
    """Frames out of focus have lost their fine detail; the next one has it again."""
    camera, plain = streaming(["blur:2.0@1:2"]), streaming([])
    same = []
    for blurred, sharp in zip(frames(camera, 4), frames(plain, 4), strict=True):
        detail = [np.abs(np.diff(frame.image.astype(int), axis=1)).mean() for frame in (blurred, sharp)]
        same.append(detail[0] == detail[1])
        assert same[-1] or detail[0] < 0.8 * detail[1]
    assert same == [True, False, False, True]


def test_shift_moves_the_part_to_the_right():
    """Metal lies so many pixels further right."""
    camera, plain = streaming(["shift:20@0"]), streaming([])
    (moved,), (nominal,) = frames(camera, 1), frames(plain, 1)
    left = [int(np.argmax((frame.image > 80).sum(axis=0) > 30)) for frame in (moved, nominal)]
    assert left[0] - left[1] == pytest.approx(20, abs=1)


@pytest.mark.parametrize("script", ["wrong_product@1:1", "wrong_product:flange@1:1"])
def test_wrong_product_comes_along_and_truth_knows(script):
    """For one frame a flange lies where a bracket should."""
    camera = streaming([script])
    got = frames(camera, 3)
    assert [camera.truth(frame.frame_id).product for frame in got] == ["bracket", "flange", "bracket"]
    assert np.array_equal(got[1].image, Renderer("flange", **SMALL).render(1)[0])


def test_a_new_defect_is_on_no_part_before_its_frame_and_on_every_second_good_one_after():
    """From a frame on half of the good parts have it, clearly visible; parts with other defects stay as they are."""
    camera, plain = (SimulatedCamera(faults=faults, defect_rate=0.3) for faults in (["new_defect:stain@400:400"], []))
    found, usual = ([camera_.truth(index) for index in range(1200)] for camera_ in (camera, plain))
    new = [known for known in found if known.defect_type is Defect.STAIN]
    assert {400 <= known.index < 800 for known in new} == {True}
    assert all(known.severity >= 0.85 for known in new if usual[known.index].good)
    good = [known.index for known in usual if known.good and 400 <= known.index < 800]
    assert sum(found[index].defect_type is Defect.STAIN for index in good) / len(good) == pytest.approx(0.5, abs=0.1)
    others = [known for known in usual if known.defect_type not in {None, Defect.STAIN}]
    assert [found[known.index] for known in others] == others


def test_a_part_with_a_new_defect_is_drawn_with_it():
    """The picture is that of the part with this defect; good parts look as they did."""
    camera = streaming(["new_defect:dent@0"], defect_rate=0.0)
    renderer = Renderer(**SMALL)
    kinds = set()
    for frame in frames(camera, 6):
        known = camera.truth(frame.frame_id)
        kinds.add(known.defect_type)
        forced = {"defect": known.defect_type, "severity": known.severity} if known.defect_type else {"defect": "none"}
        assert np.array_equal(frame.image, renderer.render(frame.frame_id, **forced)[0])
    assert kinds == {None, Defect.DENT}


def test_tables_say_the_same_as_strings():
    """A fault may be written as a table."""
    text = FaultScript(["stall@5:2.5s", "lamp:0.6@10..20", "drop@3:2"])
    table = FaultScript(
        [
            {"fault": "stall", "at": 5, "seconds": 2.5},
            {"fault": "lamp", "strength": 0.6, "at": 10, "until": 20},
            {"fault": "drop", "at": 3, "frames": 2},
        ]
    )
    assert text.once == table.once
    assert [text.lost(i) for i in range(6)] == [table.lost(i) for i in range(6)]
    assert text.view(15, exposure=1, gain=1) == table.view(15, exposure=1, gain=1)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("drop", "not of the form"),
        ("drop@x", "not of the form"),
        ("explode@3", "no fault 'explode'; there are drop, incomplete"),
        ("stall@3", 'needs its seconds; write it like "stall@200:3s"'),
        ("stall@3:5", "takes no frames"),
        ("drop@3:2s", "takes no seconds"),
        ("drop:2@3", "takes no strength"),
        ("lamp@3", "needs its strength"),
        ("lamp:7@3", "strength must be a number within 0.02..1, not '7'"),
        ("lamp:0.5@9..4", "until must be a number at least 10, not '4'"),
        ("wrong_product:gear@3", "no product 'gear'; there are bracket, flange"),
        ("crash@3:2", "takes no frames"),
        ("new_defect@3", "needs a type of defect: scratch, dent, crack, stain, missing_feature, burr; write it like"),
        ("new_defect:rust@3", "needs a type of defect"),
        ({"fault": "drop", "when": 3}, "no key 'when'"),
        ({"fault": "drop"}, "at must be a number at least 0, not None"),
        ({"fault": "drop", "at": True}, "at must be a number"),
        ({"fault": "drop", "at": 1.5}, "whole number"),
        ({"fault": "lamp", "strength": 0.5, "at": 1, "until": 3, "frames": 2}, "exclude each other"),
        (3, "neither a string nor a table"),
    ],
)
def test_a_wrong_item_is_named(item, words):
    """One clear error names the item by its place and text and says what is wrong."""
    with pytest.raises(ValueError) as caught:
        FaultScript(["drop@1", item])
    assert str(caught.value).startswith(f"camera.faults[1] = {item!r}: ")
    assert words in str(caught.value).replace(f"{item!r}: at", "at").replace(f"{item!r}", "")
    assert "\n" not in str(caught.value)


def test_a_script_is_a_list():
    """A single string instead of a list is a common slip and says so."""
    with pytest.raises(ValueError, match="must be a list"):
        FaultScript("drop@1")
