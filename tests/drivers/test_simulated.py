"""The simulated camera as a camera: rhythm, triggers, lost frames, settings, identity."""

import time
from collections import Counter

import numpy as np
import pytest

from lineward.drivers.camera import (
    CameraError,
    CameraNotFoundError,
    CameraSettingError,
    Cause,
    Frame,
    NoFrameReason,
)
from lineward.drivers.simulated import SimulatedCamera, discover
from lineward.drivers.simulation.device import DeviceMemory, Rhythm
from lineward.drivers.simulation.scene import Renderer

SMALL = {"width": 160, "height": 128}


def opened(**options):
    camera = SimulatedCamera(**{**SMALL, **options})
    camera.open()
    return camera


def streaming(settings=None, **options):
    camera = opened(**options)
    camera.configure(settings or {})
    camera.start()
    return camera


def frame_of(camera, timeout_s=2.0):
    got = camera.grab(timeout_s)
    assert isinstance(got, Frame), got
    return got


def test_frames_are_those_of_the_scene():
    """Frame id i shows frame i of the scene, read-only, whatever the rate."""
    camera, scene = streaming(rate_hz=0, seed=4), Renderer(seed=4, **SMALL)
    for index in range(4):
        frame = frame_of(camera)
        assert frame.frame_id == index
        assert not frame.image.flags.writeable
        assert np.array_equal(frame.image, scene.render(index)[0])
        assert camera.truth(frame.frame_id) == scene.truth(index)


def test_free_run_keeps_its_rate():
    """Exposures are one period apart on the device's own clock; frames carry no trigger id."""
    camera = streaming(rate_hz=50)
    got = [frame_of(camera) for _ in range(6)]
    steps = np.diff([frame.device_ns for frame in got])
    assert np.allclose(steps, np.diff([frame.frame_id for frame in got]) * 20e6, rtol=1e-4)
    assert all(frame.trigger_id is None for frame in got)
    assert all(frame.received_ns <= time.monotonic_ns() for frame in got)


def test_nothing_comes_before_it_is_due():
    """A grab that ends before the next exposure times out, and the frame is still to come."""
    camera = streaming(rate_hz=2)
    frame_of(camera)
    assert camera.grab(0.05).reason is NoFrameReason.TIMEOUT
    answered_ns = time.monotonic_ns()
    frame = frame_of(camera)
    assert frame.frame_id == 1
    assert answered_ns < frame.received_ns


def test_lost_frames_add_up_when_the_caller_is_slow():
    """Each due frame is delivered or counted as an overrun: ids and missing frames add up exactly."""
    camera = streaming(rate_hz=200, faults=["drop@9:2"])
    missing, previous = Counter(), -1
    for n in range(12):
        if n in (3, 7):
            time.sleep(0.15)
        frame = frame_of(camera)
        assert frame.frame_id - previous - 1 == sum(frame.missing.values())
        previous = frame.frame_id
        missing.update(frame.missing)
    assert missing[Cause.OVERRUN] > 30
    assert camera.health().missing == missing
    assert camera.health().frames == 12
    assert previous == 12 + missing.total() - 1


def test_a_short_delay_is_buffered():
    """The camera keeps a few frames: being late by two of them loses nothing."""
    camera = streaming(rate_hz=8)
    first = frame_of(camera).frame_id
    time.sleep(0.26)
    assert [frame_of(camera).frame_id for _ in range(3)] == [first + 1, first + 2, first + 3]
    assert not camera.health().missing


def test_flush_throws_away_what_waits():
    """Flush says how many frames were waiting, and none of them comes afterwards."""
    camera = streaming(rate_hz=10)
    assert frame_of(camera).frame_id == 0
    time.sleep(0.22)
    flushed = camera.flush()
    assert 1 <= flushed <= 4
    assert frame_of(camera).frame_id == flushed + 1


def test_parts_wait_while_the_camera_is_stopped():
    """Stopped, nothing goes by: the next start continues with the next frame, and nothing is missing."""
    camera = streaming(rate_hz=20)
    assert frame_of(camera).frame_id == 0
    camera.stop()
    camera.stop()
    time.sleep(0.3)
    camera.start()
    frame = frame_of(camera)
    assert (frame.frame_id, dict(frame.missing)) == (1, {})


def test_software_trigger_gives_one_frame_each():
    """A trigger's number is on its frame; there is none without a trigger, and only one may be outstanding."""
    camera = streaming({"ExposureTime": 300_000}, trigger="software")
    assert camera.grab(0.02).reason is NoFrameReason.TIMEOUT
    first = camera.trigger()
    with pytest.raises(CameraError, match="still outstanding"):
        camera.trigger()
    assert camera.grab(0.005).reason is NoFrameReason.TIMEOUT
    frame = frame_of(camera)
    assert frame.trigger_id == first
    assert camera.trigger() == first + 1


def test_a_flushed_trigger_is_never_answered():
    """After a flush the old exposure is gone: the next frame belongs to the next trigger."""
    camera = streaming(trigger="software")
    old = camera.trigger()
    assert camera.flush() == 1
    assert camera.flush() == 0
    new = camera.trigger()
    assert new > old
    frame = frame_of(camera)
    assert (frame.trigger_id, dict(frame.missing)) == (new, {Cause.TRIGGER_MISSED: 1})
    assert camera.grab(0.02).reason is NoFrameReason.TIMEOUT


def test_a_trigger_whose_frame_is_lost_times_out():
    """A dropped frame leaves its trigger unanswered; the next frame says what is missing."""
    camera = streaming(trigger="software", faults=["drop@0"])
    camera.trigger()
    assert camera.grab(0.1).reason is NoFrameReason.TIMEOUT
    assert camera.flush() == 0
    number = camera.trigger()
    frame = frame_of(camera)
    assert (frame.trigger_id, dict(frame.missing)) == (number, {Cause.CAMERA_GAP: 1})


def test_hardware_triggers_are_numbered_and_refused_from_software():
    """The sensor at the belt triggers: consecutive numbers, uneven spacing, no software trigger."""
    camera = streaming(trigger="hardware", rate_hz=20)
    got = [frame_of(camera) for _ in range(8)]
    assert [frame.trigger_id for frame in got] == list(range(1, 9))
    steps = np.diff([frame.device_ns for frame in got]) / 1e6
    assert steps.std() > 1
    assert np.all(steps > 0)
    with pytest.raises(CameraError, match="needs trigger = software"):
        camera.trigger()


@pytest.mark.parametrize("jitter", [0.0, 0.15])
def test_rhythm_knows_its_newest_frame(jitter):
    """The newest frame is the last one whose exposure has started, at any moment."""
    rhythm = Rhythm(5, 1_000, 100, jitter=jitter, seed=3)
    assert rhythm.newest(-10_000) == 4
    for now in range(700, 3000, 7):
        newest = rhythm.newest(now)
        assert newest == max([4, *(i for i in range(5, 40) if rhythm.starts_ns(i) <= now)])


def test_settings_are_read_back_in_order():
    """Settings come back as stored, in the order given, and show in the picture."""
    camera = opened(rate_hz=5)
    wanted = {"PixelFormat": "RGB8", "Width": 200, "Height": 100, "ExposureTime": 2500, "AcquisitionFrameRate": 20}
    applied = camera.configure(wanted)
    assert list(applied.items()) == list(wanted.items())
    camera.start()
    got = [frame_of(camera) for _ in range(2)]
    assert got[0].image.shape == (100, 200, 3)
    assert got[1].device_ns - got[0].device_ns == pytest.approx(50e6, rel=1e-4)


def test_exposure_brightens_the_picture_and_bounds_the_rate():
    """Twice the exposure is twice the light; an exposure longer than the period sets the period."""
    dim, bright = (frame_of(streaming({"ExposureTime": t}, rate_hz=100)).image for t in (2000, 4000))
    metal = dim > 45
    assert (bright[metal] - 3.0).mean() / (dim[metal] - 3.0).mean() == pytest.approx(2, abs=0.05)
    slow = streaming({"ExposureTime": 50_000}, rate_hz=100)
    assert -(frame_of(slow).device_ns - frame_of(slow).device_ns) == pytest.approx(50e6, rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ExposureTme": 5}, "no feature 'ExposureTme'; there are Width, Height, PixelFormat, ExposureTime"),
        ({"ExposureTime": 1}, "ExposureTime cannot be 1; its range is 20..1e"),
        ({"ExposureTime": "long"}, "its range is 20"),
        ({"ExposureTime": float("nan")}, "its range is 20"),
        ({"Gain": True}, "Gain cannot be True; its range is 0..24 dB"),
        ({"Width": 100.5}, "whole numbers in 32..8192 px"),
        ({"PixelFormat": "Mono12"}, "PixelFormat cannot be 'Mono12'; its entries are Mono8, RGB8"),
        ({"Product": "gear"}, "Product cannot be 'gear'; its entries are bracket, flange"),
        ({"AcquisitionFrameRate": 0}, "its range is 0.1..1000 Hz"),
    ],
)
def test_refused_settings_name_feature_and_range(settings, words):
    """A refusal says which feature it was and what it would take."""
    with pytest.raises(CameraSettingError, match="SIM-0: ") as caught:
        opened(rate_hz=5).configure(settings)
    assert words in str(caught.value)


def test_settings_are_locked_while_streaming():
    """Nothing changes under a running stream."""
    with pytest.raises(CameraSettingError, match="stop first"):
        streaming().configure({"Gain": 3})


def test_the_line_ends_at_its_limit():
    """After the last frame grab says END, again and again."""
    camera = streaming(rate_hz=0, limit=2)
    assert [frame_of(camera).frame_id for _ in range(2)] == [0, 1]
    assert [camera.grab(0.1).reason for _ in range(2)] == [NoFrameReason.END] * 2


def test_prerendered_frames_are_shown_in_turn():
    """A bench camera shows the same few pictures over and over, under running frame ids, and truth follows."""
    camera = streaming(rate_hz=0, prerender=3, defect_rate=0.5)
    got = [frame_of(camera) for _ in range(5)]
    assert [frame.frame_id for frame in got] == [0, 1, 2, 3, 4]
    assert got[3].image is got[0].image
    assert camera.truth(4).defect_type == camera.truth(1).defect_type


def test_identity():
    """The camera says who it is; only a line without a rate is no real-time source."""
    info = opened(seed=7, rate_hz=5).open()
    assert (info.name, info.serial, info.driver) == ("bracket", "SIM-7", "simulated")
    assert info.simulated
    assert info.realtime
    assert not opened(rate_hz=0).open().realtime
    assert [found.serial for found in discover()] == ["SIM-0"]
    assert opened(serial="left").open().serial == "left"


def test_unknown_product_is_a_camera_that_is_not_there():
    """The error lists the products there are."""
    with pytest.raises(CameraNotFoundError, match="product 'gear'; there are bracket, flange"):
        SimulatedCamera(product="gear").open()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"trigger": "magic"}, "trigger 'magic' is not one of free_run, software, hardware"),
        ({"rate_hz": -1}, "rate_hz -1"),
        ({"trigger": "hardware", "rate_hz": 0}, "needs rate_hz above 0"),
        ({"defect_rate": 2}, "defect_rate 2"),
        ({"width": 3}, "Width cannot be 3"),
        ({"pixel_format": "Bayer"}, "PixelFormat"),
        ({"limit": -1}, "limit -1"),
        ({"start_index": -1}, "start_index -1"),
        ({"prerender": 4, "faults": ["blur:2@3"]}, "need prerender = 0"),
        ({"faults": ["boom@1"]}, "no fault 'boom'"),
    ],
)
def test_impossible_options_are_refused(options, words):
    """An option out of range is refused before anything is opened."""
    with pytest.raises(ValueError) as caught:
        SimulatedCamera(**options)
    assert words in str(caught.value)


def test_memory_outlives_its_object(tmp_path):
    """What one device object wrote, the next one on the same file reads."""
    first = DeviceMemory(tmp_path / "device")
    assert not first.used
    first.write(12, 3, 456)
    second = DeviceMemory(tmp_path / "device")
    assert second.used
    assert second.read() == (12, 3, 456)


def test_the_product_is_a_setting():
    """A recipe changes what passes by; a changeover back shows the first product again, and truth knows each part."""
    camera, recipes = streaming(rate_hz=0), ("bracket", "flange", "bracket")
    seen = []
    for product in recipes:
        camera.stop()
        assert camera.configure({"Product": product}) == {"Product": product}
        camera.start()
        frame = frame_of(camera)
        seen.append((frame.frame_id, frame.image.copy()))
    for (frame_id, image), product in zip(seen, recipes, strict=True):
        assert camera.truth(frame_id).product == product
        assert np.array_equal(image, Renderer(product, **SMALL).render(frame_id)[0])
