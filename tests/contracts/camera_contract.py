"""What every camera must do, whatever is behind it. Inherit `CameraContract` and say how to make one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest

from lineward.drivers import registry
from lineward.drivers.camera import (
    CameraError,
    CameraInfo,
    CameraNotFoundError,
    CameraSettingError,
    Cause,
    Frame,
    NoFrame,
    NoFrameReason,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lineward.drivers.camera import Camera

LATE_S = 1.0  # how much longer than asked an answer may take on a busy machine before the rule counts as broken
PATIENCE_S = 5.0  # for a frame that must come


def next_frame(camera: Camera) -> Frame:
    """Grab until a whole frame comes; a camera may lose some on the way."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        got = camera.grab(0.5)
        if isinstance(got, Frame):
            return got
    raise AssertionError(f"no frame within {PATIENCE_S} s; the last answer was {got}")


def triggered_frame(camera: Camera) -> tuple[int, Frame]:
    """Trigger until the answer is a whole frame: an incomplete one, or a broken file, uses up its trigger."""
    for _ in range(5):
        number = camera.trigger()
        deadline = time.monotonic() + PATIENCE_S
        got: Frame | NoFrame = NoFrame(NoFrameReason.TIMEOUT)
        while isinstance(got, NoFrame) and got.reason is NoFrameReason.TIMEOUT and time.monotonic() < deadline:
            got = camera.grab(0.5)
        if isinstance(got, Frame):
            return number, got
    raise AssertionError(f"five triggers gave no frame; the last answer was {got}")


class CameraContract:
    """The rules. A subclass sets ``driver`` and ``options``; one for another host overrides ``build``."""

    driver: ClassVar[str]
    settings: ClassVar[dict[str, Any]] = {}  # features that the camera takes, with values that it can read back
    software_trigger: ClassVar[bool] = True
    realtime: ClassVar[bool] = True

    @pytest.fixture
    def options(self) -> dict[str, Any]:
        """Options that make a camera which gives at least ten frames in free run."""
        raise NotImplementedError

    @pytest.fixture
    def absent(self, options) -> dict[str, Any]:
        """Options that choose a camera which is not there."""
        raise NotImplementedError

    def build(self, driver: str, options: dict[str, Any]) -> Camera:
        """Make a camera that is not open. A camera in a process of its own overrides this."""
        return registry.create(driver, options)

    @pytest.fixture
    def make_camera(self, options) -> Iterator[Callable[..., Camera]]:
        made: list[Camera] = []

        def make(**changes: Any) -> Camera:
            made.append(self.build(self.driver, options | changes))
            return made[-1]

        yield make
        for camera in made:
            camera.close()

    @pytest.fixture
    def ready(self, make_camera) -> Camera:
        camera = make_camera()
        camera.open()
        camera.configure(self.settings)
        return camera

    @pytest.fixture
    def streaming(self, ready) -> Camera:
        ready.start()
        return ready

    @pytest.fixture
    def triggered(self, make_camera) -> Camera:
        if not self.software_trigger:
            pytest.skip("this camera has no software trigger")
        camera = make_camera(trigger="software")
        camera.open()
        camera.configure(self.settings)
        camera.start()
        return camera

    # -- opening and settings

    def test_open_says_who_the_camera_is(self, make_camera):
        """A result must name the camera that took the image, by serial number."""
        info = make_camera().open()
        assert isinstance(info, CameraInfo)
        assert info.serial
        assert info.name
        assert info.driver == self.driver
        assert info.realtime is self.realtime

    def test_a_camera_that_is_not_there_is_not_found(self, absent):
        """The operator is told that no camera answers, not that something went wrong."""
        camera = self.build(self.driver, absent)
        with pytest.raises(CameraNotFoundError) as caught:
            camera.open()
        camera.close()
        assert len(str(caught.value)) > 20

    def test_settings_come_back_as_read_from_the_camera(self, ready):
        """What the camera was told and what it does must be the same, and known."""
        applied = ready.configure(self.settings)
        for name, value in self.settings.items():
            assert applied[name] == pytest.approx(value) if isinstance(value, float) else applied[name] == value

    def test_an_unknown_feature_is_refused_by_name(self, ready):
        """A misspelt setting must not be ignored."""
        with pytest.raises(CameraSettingError, match="NoSuchFeature"):
            ready.configure({"NoSuchFeature": 1})

    def test_a_refused_setting_leaves_a_camera_that_works(self, ready):
        """A wrong setting is an answer, not a broken camera."""
        with pytest.raises(CameraSettingError):
            ready.configure({"NoSuchFeature": 1})
        ready.configure(self.settings)
        ready.start()
        assert next_frame(ready)

    def test_reconfigure_between_two_parts(self, streaming):
        """Another recipe, another exposure: stop, configure, start, on a camera that stays open, again and again."""
        for _ in range(3):
            assert next_frame(streaming)
            streaming.stop()
            applied = streaming.configure(self.settings)
            assert applied.keys() >= self.settings.keys()
            streaming.start()
        assert next_frame(streaming)

    def test_a_recipe_whose_setting_is_refused_leaves_the_old_one_possible(self, streaming):
        """The changeover is refused, and the line goes on with the product it had."""
        assert next_frame(streaming)
        streaming.stop()
        with pytest.raises(CameraSettingError):
            streaming.configure(self.settings | {"NoSuchFeature": 1})
        streaming.configure(self.settings)
        streaming.start()
        assert next_frame(streaming)

    # -- frames

    def test_a_frame_is_a_read_only_uint8_image(self, streaming):
        """The model takes uint8, mono or RGB, row after row; nobody may paint over what was judged."""
        image = next_frame(streaming).image
        assert image.dtype == np.uint8
        assert image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
        assert image.size
        assert image.flags.c_contiguous
        assert not image.flags.writeable

    def test_frame_ids_rise_and_every_gap_is_explained(self, streaming):
        """No frame is lost silently: the ids that are missing are counted, by cause, in the frame that follows."""
        before = next_frame(streaming)
        for _ in range(9):
            frame = next_frame(streaming)
            assert frame.frame_id > before.frame_id
            assert all(isinstance(cause, Cause) and number > 0 for cause, number in frame.missing.items())
            assert sum(frame.missing.values()) >= frame.frame_id - before.frame_id - 1
            before = frame

    def test_received_is_a_monotonic_time_that_never_falls(self, streaming):
        """Latency is reckoned from `received_ns`; it lies between start and now, and rises from frame to frame."""
        last = 0
        for _ in range(5):
            frame = next_frame(streaming)
            assert last <= frame.received_ns <= time.monotonic_ns()
            last = frame.received_ns

    def test_a_frame_stays_as_it_is_until_the_next_call(self, streaming):
        """An image may not change while it is judged, though the camera goes on filling its buffers."""
        frame = next_frame(streaming)
        before = frame.image.copy()
        time.sleep(0.2)
        assert np.array_equal(frame.image, before)

    def test_free_run_frames_carry_no_trigger(self, streaming):
        """A frame that nobody asked for must not answer a trigger."""
        assert next_frame(streaming).trigger_id is None

    # -- time

    def test_grab_without_a_stream_answers_in_time(self, ready):
        """Before `start` there is no frame: the answer is TIMEOUT, after the time and not for ever."""
        self.assert_times_out(ready)

    def test_grab_after_stop_answers_in_time(self, streaming):
        """After `stop` there is no frame, not even one that was already waiting."""
        next_frame(streaming)
        streaming.stop()
        self.assert_times_out(streaming)

    def test_grab_with_no_time_answers_at_once(self, streaming):
        """A loop may look for a frame without waiting for it."""
        began = time.monotonic()
        assert isinstance(streaming.grab(0.0), Frame | NoFrame)
        assert time.monotonic() - began < LATE_S

    def assert_times_out(self, camera: Camera) -> None:
        began = time.monotonic()
        got = camera.grab(0.2)
        took = time.monotonic() - began
        assert isinstance(got, NoFrame)
        assert got.reason is NoFrameReason.TIMEOUT
        assert 0.15 < took < 0.2 + LATE_S

    # -- stopping, starting, closing

    def test_stop_and_close_never_raise_in_any_order(self, make_camera):
        """Cleaning up must be possible from any state, twice, without a thought."""
        camera = make_camera()
        for call in (camera.close, camera.stop, camera.close, camera.stop):
            call()
        camera.open()
        for call in (camera.stop, camera.stop, camera.close, camera.stop, camera.close):
            call()
        camera.open()
        camera.configure(self.settings)
        camera.start()
        for call in (camera.close, camera.close, camera.stop):
            call()

    def test_the_stream_can_be_started_again(self, ready):
        """Changing a setting means stop, configure, start."""
        for _ in range(3):
            ready.start()
            assert next_frame(ready)
            ready.stop()

    def test_no_frame_from_before_start(self, ready):
        """A part that was in front of the camera before the line started is not this part."""
        for _ in range(2):
            began = time.monotonic_ns()
            ready.start()
            received_ns = next_frame(ready).received_ns
            assert received_ns >= began or not self.realtime  # the files of a replay do not go stale
            ready.stop()
            time.sleep(0.1)

    def test_a_closed_camera_opens_again(self, make_camera):
        """Reconnecting after a loss uses the same object."""
        camera = make_camera()
        for _ in range(2):
            info = camera.open()
            camera.configure(self.settings)
            camera.start()
            assert next_frame(camera)
            camera.close()
        assert info.serial

    def test_using_a_closed_camera_is_an_error_not_a_crash(self, make_camera):
        """A wrong order of calls is told as a `CameraError`, which every caller is ready for."""
        camera = make_camera()
        with pytest.raises(CameraError):
            camera.configure({})
        with pytest.raises(CameraError):
            camera.start()

    # -- triggers, flush, health

    def test_a_trigger_in_free_run_is_refused(self, streaming):
        """A trigger that cannot be answered must not be taken."""
        with pytest.raises(CameraError):
            streaming.trigger()

    def test_each_trigger_gives_one_frame_with_its_number(self, triggered):
        """The answer to a part belongs to that part's trigger."""
        numbers = []
        for _ in range(4):
            number, frame = triggered_frame(triggered)
            assert frame.trigger_id == number
            numbers.append(number)
        assert numbers == sorted(set(numbers))

    def test_no_trigger_no_frame(self, triggered):
        """In software mode nothing is exposed on its own, and nothing twice."""
        self.assert_times_out(triggered)
        triggered_frame(triggered)
        self.assert_times_out(triggered)

    def test_only_one_trigger_is_outstanding(self, triggered):
        """Two triggers in flight could swap their images: the second is refused, the first still answered."""
        number = triggered.trigger()
        with pytest.raises(CameraError):
            triggered.trigger()
        assert next_frame(triggered).trigger_id == number

    def test_flush_gives_up_an_outstanding_trigger(self, triggered):
        """When a trigger's deadline has passed, the next part must not wait for the last one's image."""
        given_up = triggered.trigger()
        triggered.flush()
        number, frame = triggered_frame(triggered)
        assert frame.trigger_id == number != given_up

    def test_a_missed_trigger_is_counted_once(self, triggered):
        """A part that was given up is no part that was inspected: it has its place in the count of what is missing."""
        for given_up in (1, 2):
            triggered.trigger()
            triggered.flush()
            triggered.flush()
            number, frame = triggered_frame(triggered)
            assert frame.trigger_id == number
            deadline = time.monotonic() + PATIENCE_S  # a camera process reports now and then
            while self.missed(triggered) < given_up and time.monotonic() < deadline:
                time.sleep(0.05)
            assert self.missed(triggered) == given_up

    @staticmethod
    def missed(camera: Camera) -> int:
        return camera.health().missing.get(Cause.TRIGGER_MISSED, 0)

    def test_triggers_may_be_given_up_again_and_again(self, triggered):
        """A line that is faster than its camera misses parts, and never judges one for another."""
        numbers = []
        for _ in range(4):
            numbers.append(triggered.trigger())
            triggered.flush()
            number, frame = triggered_frame(triggered)
            assert frame.trigger_id == number
            numbers.append(number)
        assert numbers == sorted(set(numbers))

    def test_flush_says_how_many_frames_it_threw_away(self, streaming):
        """Nothing is thrown away uncounted, and what comes after is fresh."""
        next_frame(streaming)
        time.sleep(0.15)
        thrown = streaming.flush()
        assert isinstance(thrown, int)
        assert thrown >= 0
        flushed_ns = time.monotonic_ns()
        if self.realtime:
            assert next_frame(streaming).received_ns >= flushed_ns

    def test_health_counts_frames(self, streaming):
        """Rates and losses are shown to people: they never fall while the camera is open."""
        before = streaming.health()
        for _ in range(3):
            next_frame(streaming)
        deadline = time.monotonic() + PATIENCE_S  # a camera process reports now and then
        while streaming.health().frames < before.frames + 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        after = streaming.health()
        assert after.frames >= before.frames + 3
        assert all(after.missing.get(cause, 0) >= number for cause, number in before.missing.items())

    def test_health_is_there_at_any_time(self, make_camera):
        """The page asks for health whatever state the camera is in."""
        camera = make_camera()
        assert camera.health().frames == 0
        camera.open()
        assert camera.health().frames == 0
        camera.close()
        camera.health()
