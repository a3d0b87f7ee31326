"""GenICam cameras through Aravis: GigE Vision and USB3 Vision without any vendor's software.

Aravis receives in native threads of its own and PyGObject lets go of the interpreter lock while it waits: no polling is
needed, and no GLib main loop runs here. What Aravis does not bound is bounded around it: a camera that is gone is
noticed by `gvcp.Pulse` after 1.6 s of silence, where Aravis takes 5 to 6 s.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from lineward.drivers import aravis_features as features
from lineward.drivers import aravis_library, gvcp, progress
from lineward.drivers.aravis_devices import Candidate, choose, listed
from lineward.drivers.aravis_stream import Incomplete, Stream
from lineward.drivers.camera import (
    CameraBusyError,
    CameraError,
    CameraHealth,
    CameraInfo,
    CameraLostError,
    CameraSettingError,
    Cause,
    Frame,
    NoFrame,
    NoFrameReason,
    Trigger,
)
from lineward.drivers.late import longest_s
from lineward.drivers.losses import FrameIds, Losses

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lineward.drivers.camera import Setting

_SLICE_S = 0.1  # how long a wait for a frame may take before the camera's pulse is felt
_LATE_SLICE_S = 0.02
_TEMPERATURE_EVERY_S = 10.0
_STRAY_S = 0.15  # one frame was seen within 0.1 s after the start, though trigger mode was on
_RELEASE_S = 0.5

SEARCH_S = 10.0
"""Aravis asks on all networks at once and waits 1 s, and each USB device may take its time-out."""

OPEN_STILL_S = 8.0
"""A camera that does not answer costs Aravis 2.5 s per question; three of them and it gives up by itself."""


def discover(address: str = "") -> list[CameraInfo]:
    """List the cameras on all networks and USB ports; takes 1 s, which is how long GigE Vision waits for answers."""
    return [replace(c.info, access=c.access()) for c in listed(address)]


class AravisCamera:
    """Any GigE Vision or USB3 Vision camera.

    Parameters
    ----------
    serial, user_id
        Which camera; both empty is right only when there is a single one. USB cameras are known by serial only.
    address
        IP address of a GigE Vision camera: opens it in 0.02 s without the search of 1 s, and across routers. A serial
        or user id that is given as well must fit.
    trigger
        ``free_run``, ``software`` or ``hardware``. The last needs ``TriggerSource`` among the settings.
    buffers
        Frames that may wait to be grabbed; 4 to 8 is usual.
    """

    def __init__(
        self,
        *,
        serial: str = "",
        user_id: str = "",
        address: str = "",
        trigger: str = Trigger.FREE_RUN,
        buffers: int = 6,
    ) -> None:
        if buffers < 2:
            raise ValueError(f"driver aravis: buffers = {buffers}; at least 2 are needed, 4 to 8 are usual")
        self._serial, self._user_id, self._address = str(serial), str(user_id), str(address)
        self._trigger_mode = Trigger(trigger)
        self._buffers = buffers
        self._label = "camera"
        self._camera: Any = None
        self._device: Any = None
        self._signal = 0
        self._control_lost = False
        self._pulse = gvcp.Pulse("")
        self._stream: Stream | None = None
        self._abandoned: Stream | None = None
        self._lost = False
        self._ids = FrameIds()
        self._losses = Losses()
        self._underran = False
        self._frames = 0
        self._trigger_id = 0
        self._outstanding: int | None = None
        self._given_at = self._late_until = 0.0
        self._temperature: tuple[float, float | None] = (-_TEMPERATURE_EVERY_S, None)

    # -- opening and settings ------------------------------------------------------------------------------------------

    def open(self) -> CameraInfo:
        """Find the camera and take control of it."""
        self.close()
        with progress.phase("searching for cameras", silent_s=SEARCH_S, still_s=SEARCH_S):
            candidate = choose(self._serial, self._user_id, self._address)
        info = candidate.info
        self._label = f"camera {info.vendor} {info.name} (serial {info.serial or 'none'})"
        with progress.phase("opening the camera", still_s=OPEN_STILL_S):
            self._connect(candidate)
        self._losses, self._frames, self._lost, self._control_lost = Losses(), 0, False, False
        self._temperature = (-_TEMPERATURE_EVERY_S, None)
        self._pulse = gvcp.Pulse(candidate.address)
        return info

    def _connect(self, candidate: Candidate) -> None:
        aravis, glib = aravis_library.load()
        try:
            self._camera = aravis.Camera.new(candidate.aravis_id)
        except glib.Error as error:
            if error.matches(aravis.device_error_quark(), aravis.DeviceError.PROTOCOL_ERROR_ACCESS_DENIED):
                raise CameraBusyError(f"{self._label} is open in another program; close that program") from error
            raise CameraLostError(
                f"{self._label} is listed but cannot be opened: {features.reason(error)}; check its cable and power"
            ) from error
        self._device = self._camera.get_device()
        if candidate.address and not self._device.is_controller():
            # Aravis opens such a camera all the same. Reading the control register first would be quicker, but Aravis'
            # simulated camera takes every reader's question for a heartbeat, and would stay taken as long as we ask.
            self.close()
            raise CameraBusyError(f"{self._label} is open in another program; close that program")
        self._signal = self._device.connect("control-lost", self._note_control_lost)
        self._camera.set_range_check_policy(aravis.RangeCheckPolicy.ENABLE)
        with suppress(glib.Error):
            # A process that was killed leaves its camera acquiring, with locked features and for a socket that is gone.
            self._camera.stop_acquisition()

    def _note_control_lost(self, _device: Any) -> None:
        """Set a flag and nothing else: this runs in Aravis' heartbeat thread."""
        self._control_lost = True

    def configure(self, settings: Mapping[str, Setting]) -> Mapping[str, Setting]:
        """Write the settings in their order, then the trigger mode, and read each back."""
        device = self._open_device("configure")
        if self._stream is not None:
            raise CameraError(f"{self._label}: configure was called while streaming; stop first")
        if "TriggerMode" in settings:
            raise CameraSettingError(
                f"{self._label}: TriggerMode follows from [camera] trigger; remove it from the settings"
            )
        with self._guarded("configuring"):
            before, after = self._own_settings(device)
            todo = before | dict(settings) | after
            applied = {name: features.write(device, name, value) for name, value in todo.items()}
            source = features.read(device, "TriggerSource") if self._trigger_mode is Trigger.HARDWARE else "not needed"
            if source in {None, "Software"}:
                raise CameraSettingError("set TriggerSource to the line that the part sensor is wired to")
            pixel_format = features.find(device, "PixelFormat")
            if pixel_format is not None:
                Stream.check_pixel_format(pixel_format.get_int_value())
        return {name: applied[name] for name in (*settings, *after)}

    def _own_settings(self, device: Any) -> tuple[dict[str, Setting], dict[str, Setting]]:
        """Return what is written before the user's settings, and after them."""
        before: dict[str, Setting] = {}
        after: dict[str, Setting] = {}
        if features.find(device, "AcquisitionMode") is not None:
            before["AcquisitionMode"] = "Continuous"
        if self._trigger_mode is not Trigger.FREE_RUN:
            if features.find(device, "TriggerSelector") is not None:
                before["TriggerSelector"] = "FrameStart"
            after["TriggerMode"] = "On"
        elif features.find(device, "TriggerMode") is not None:
            after["TriggerMode"] = "Off"
        if self._trigger_mode is Trigger.SOFTWARE:
            after["TriggerSource"] = "Software"
        return before, after

    # -- streaming -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin streaming into fresh buffers, through a fresh socket that no older frame can reach."""
        self._open_device("start")
        if self._stream is not None:
            return
        self._ids = FrameIds(skips_zero=self._camera.is_gv_device())
        self._outstanding, self._late_until, self._underran = None, 0.0, False
        with self._guarded("starting the stream"):
            self._stream = Stream(self._camera, self._buffers)
            self._camera.start_acquisition()
        self._pulse.heard()
        if self._trigger_mode is Trigger.SOFTWARE:
            self._discard_until(time.monotonic() + _STRAY_S)

    def stop(self) -> None:
        """Stop streaming and throw away what is in the buffers."""
        stream, self._stream = self._stream, None
        if stream is None:
            return
        self._outstanding = None
        if not self._is_lost():
            try:
                self._camera.stop_acquisition()
            except Exception:  # noqa: BLE001 - a lost camera cannot be stopped; close or the next call tells
                self._lost = True
        if self._is_lost():
            self._abandoned = stream  # ending it tells the camera so, which takes 3 s when it does not answer
        else:
            stream.close()
        self._losses.settle()

    def trigger(self) -> int:
        """Throw away what is waiting and execute TriggerSoftware."""
        if self._trigger_mode is not Trigger.SOFTWARE:
            raise CameraError(f"{self._label}: a trigger was given, but trigger = '{self._trigger_mode}'")
        if self._stream is None:
            raise CameraError(f"{self._label}: a trigger was given before start")
        if self._outstanding is not None:
            raise CameraError(f"{self._label}: trigger {self._outstanding} is still outstanding")
        # The frame of a trigger that was given up may still be on its way, and would pass for the answer to this one.
        while time.monotonic() < self._late_until:
            self._raise_if_lost()
            self._discard_until(min(self._late_until, time.monotonic() + _LATE_SLICE_S))
            progress.step()
        self.flush()
        device = self._open_device("trigger")
        with self._guarded("the software trigger"):
            device.execute_command("TriggerSoftware")
        self._given_at = time.monotonic()
        self._trigger_id += 1
        self._outstanding = self._trigger_id
        return self._trigger_id

    def grab(self, timeout_s: float) -> Frame | NoFrame:
        """Wait for the next whole frame, a tenth of a second at a time, and feel the camera's pulse in between."""
        deadline = time.monotonic() + max(timeout_s, 0.0)
        while True:
            self._raise_if_lost()
            remaining = max(0.0, deadline - time.monotonic())
            got = self._take(min(remaining, _SLICE_S))
            if got is not None:
                return got
            if time.monotonic() >= deadline:
                return NoFrame(NoFrameReason.TIMEOUT, "" if self._stream else f"{self._label} is not streaming")

    def flush(self) -> int:
        """Throw away waiting frames and an outstanding trigger; its frame is thrown away when it comes."""
        if self._outstanding is not None:
            self._outstanding = None
            self._losses.lose(Cause.TRIGGER_MISSED)
            device = self._open_device("flush")
            with self._guarded("asking for the exposure time"):
                self._late_until = self._given_at + longest_s(lambda name: features.read(device, name))
        return self._discard_until(0.0)

    def _take(self, wait_s: float) -> Frame | NoFrame | None:
        """Wait for one frame; None when there is none that may be delivered."""
        if self._stream is None:
            time.sleep(wait_s)
            return None
        if self._trigger_mode is Trigger.FREE_RUN and self._stream.is_full():
            # The caller was away: these are older than what was lost after them, and the next one is fresh.
            self._losses.lose(Cause.OVERRUN, self._discard_until(0.0), numbered=True)
        with self._guarded("reading a frame"):
            image = self._stream.pop(wait_s)
        if image is None:
            return None
        received_ns = time.monotonic_ns()
        self._pulse.heard()
        frame_id = self._account(image.raw_id)
        if self._trigger_mode is Trigger.SOFTWARE and self._outstanding is None:
            self._late_until = 0.0
            return None  # nobody asked for it: it belongs to no part
        trigger_id, self._outstanding = self._outstanding, None
        if isinstance(image, Incomplete):
            self._losses.lose(Cause.INCOMPLETE, numbered=True)
            return NoFrame(
                NoFrameReason.INCOMPLETE,
                f"{self._label}: {image.what} of frame {frame_id}; check cable, jumbo frames and receive buffers",
            )
        self._frames += 1
        return Frame(
            image=image.pixels,
            frame_id=frame_id,
            received_ns=received_ns,
            device_ns=image.device_ns,
            trigger_id=trigger_id,
            missing=self._losses.settle(),
        )

    def _account(self, raw_id: int) -> int:
        """Follow the frame's number, and name what is missing before it."""
        assert self._stream is not None
        frame_id, skipped = self._ids.follow(raw_id)
        self._underran |= self._stream.underran()  # known before the gap: older frames wait in front of it
        if skipped:
            self._losses.skip(skipped, Cause.UNDERRUN if self._underran else Cause.CAMERA_GAP)
            self._underran = False
        return frame_id

    def _discard_until(self, deadline: float) -> int:
        """Throw frames away undecoded until none waits and the time has come; return how many were whole."""
        number = 0
        if self._stream is None:
            return number
        for _ in range(4 * self._buffers):  # bounded: a fast camera fills them as we go
            got = self._stream.skip(max(0.0, deadline - time.monotonic()))
            if got is None:
                break
            self._pulse.heard()
            self._account(got.raw_id)
            number += got.whole
            self._late_until = 0.0  # nobody asked for it: it is what a given-up trigger still owed
        return number

    # -- health and the end --------------------------------------------------------------------------------------------

    def health(self) -> CameraHealth:
        """Report counters, and the temperature at most every ten seconds."""
        read_at, temperature = self._temperature
        if self._device is not None and not self._is_lost() and time.monotonic() - read_at >= _TEMPERATURE_EVERY_S:
            temperature = None
            with suppress(Exception):
                value = features.read(self._device, "DeviceTemperature")
                temperature = None if value is None else float(value)
            self._temperature = (time.monotonic(), temperature)
        return CameraHealth(frames=self._frames, missing=dict(self._losses.total), temperature_c=temperature)

    def close(self) -> None:
        """Let go of the camera, in the background when it does not answer."""
        self.stop()
        stream, self._abandoned = self._abandoned, None
        self._pulse.close()
        device, self._device, self._camera = self._device, None, None
        if device is None:
            return
        if self._signal:
            device.disconnect(self._signal)
            self._signal = 0
        held = [stream, device]
        del stream, device
        if self._is_lost():
            # Aravis says good-bye to a camera that is not there, which takes 8 s. When it is back meanwhile, control
            # given back this way frees it at once instead of after its own time-out, usually 3 s.
            releasing = threading.Thread(target=held.clear, name="aravis-release", daemon=True)
            releasing.start()
            releasing.join(_RELEASE_S)

    def _open_device(self, call: str) -> Any:
        if self._device is None:
            raise CameraError(f"{self._label}: {call} was called before open")
        self._raise_if_lost()
        return self._device

    def _is_lost(self) -> bool:
        return self._lost or self._control_lost

    def _raise_if_lost(self) -> None:
        if self._lost:
            self._fail("it was lost before")
        if self._control_lost:
            self._fail("control of it was lost")
        why = self._pulse.lost() if self._stream is not None else ""
        if why:
            self._fail(why)

    @contextmanager
    def _guarded(self, doing: str) -> Iterator[None]:
        _, glib = aravis_library.load()
        try:
            yield
        except CameraSettingError as error:
            raise CameraSettingError(f"{self._label}: {error}") from error
        except glib.Error as error:
            self._fail(f"{doing} failed: {features.reason(error)}", error)

    def _fail(self, what: str, cause: BaseException | None = None) -> NoReturn:
        self._lost = True
        raise CameraLostError(f"{self._label}: {what}; check its cable and power") from cause
