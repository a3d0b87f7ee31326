"""GenICam cameras: settings, triggers, frames and their numbers, and what went missing between them."""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn

from genicam import gentl

from lineward.drivers import features, progress
from lineward.drivers.buffers import OptionalValues, check_pixel_format, device_ns, image_of
from lineward.drivers.camera import (
    CameraError,
    CameraHealth,
    CameraInfo,
    CameraLostError,
    CameraNotFoundError,
    CameraSettingError,
    Cause,
    Frame,
    NoFrame,
    NoFrameReason,
    Trigger,
)
from lineward.drivers.features import NATIVE_ERRORS, reason
from lineward.drivers.genicam_producers import Connection, Producer, describe, load
from lineward.drivers.genicam_trigger import Triggers, latch_ns
from lineward.drivers.late import longest_s
from lineward.drivers.losses import FrameIds, Losses, Underruns

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lineward.drivers.camera import Setting

_POLL_S = 0.001
_SILENCE_S = 0.5
"""After this long without a frame the camera is asked whether it is still there. The question costs 1 ms; a camera that
lost its power for a blink must be opened anew within two seconds."""

SEARCH_S = 10.0
"""Loading a producer and its search for cameras: one native call may wait a second for each network interface."""

OPEN_SILENT_S, OPEN_STILL_S = 3.0, 30.0
"""Opening a camera: one native call reads its description, at most a megabyte, through the control channel. harvesters
makes many such calls in a row; it holds the interpreter lock in each, so that one that hangs is found by its silence.
"""

_TEMPERATURE_EVERY_S = 10.0
_NOACCESS = gentl.DEVICE_ACCESS_STATUS_LIST.DEVICE_ACCESS_STATUS_NOACCESS


def discover(producers: Sequence[str] = ()) -> list[CameraInfo]:
    """List the cameras that the producers see; cameras that are open in this process stay open."""
    loaded, trouble = load(producers)
    found = [describe(producer, device) for producer in loaded for device in producer.devices()]
    if trouble and not found:
        raise CameraNotFoundError(f"no camera is seen; {trouble}")
    return found


class GenicamCamera:
    """Any camera with a GenTL producer (GigE Vision, USB3 Vision, CoaXPress and others).

    Frames come in order. In free run, a caller who was away until all buffers were full gets none of them: they are
    older than what was lost after them. They are given up, counted as `Cause.OVERRUN`, and the next fresh frame is
    delivered. Calls are bounded in time as far as the producer's are.

    Parameters
    ----------
    producers
        Files of GenTL producers; ``viky`` is the one inside the genicam package. Empty: GENICAM_GENTL64_PATH.
    serial, user_id
        Which camera; both empty is right only when there is a single one.
    trigger
        ``free_run``, ``software`` or ``hardware``. The last needs ``TriggerSource`` among the settings.
    buffers
        Frames that the producer may hold; 4 to 8 is usual.
    """

    def __init__(
        self,
        *,
        producers: Sequence[str] = (),
        serial: str = "",
        user_id: str = "",
        trigger: str = Trigger.FREE_RUN,
        buffers: int = 6,
    ) -> None:
        if buffers < 2:
            raise ValueError(f"driver genicam: buffers = {buffers}; at least 2 are needed, 4 to 8 are usual")
        self._producers = [producers] if isinstance(producers, str) else list(producers)
        self._serial, self._user_id = str(serial), str(user_id)
        self._trigger_mode = Trigger(trigger)
        self._buffers = buffers
        self._label = self._wanted()
        self._connection: Connection | None = None
        self._streaming = False
        self._lost = False
        self._values = OptionalValues()
        self._incomplete_seen = 0
        self._underruns = Underruns()
        self._ids = FrameIds()
        self._losses = Losses()
        self._frames = 0
        self._heard_at = 0.0
        self._triggers = Triggers()
        self._temperature: tuple[float, float | None] = (-_TEMPERATURE_EVERY_S, None)

    # -- opening and settings ------------------------------------------------------------------------------------------

    def open(self) -> CameraInfo:
        """Find the camera by serial number or user id and take exclusive control of it."""
        self.close()
        producer, device, info = self._choose()
        self._label = f"camera {info.vendor} {info.name} (serial {info.serial or 'none'})"
        with progress.phase("opening the camera", silent_s=OPEN_SILENT_S, still_s=OPEN_STILL_S):
            self._connection = Connection(producer, device, info, self._label, buffers=self._buffers)
        self._incomplete_seen = 0
        self._losses, self._frames, self._values, self._lost = Losses(), 0, OptionalValues(), False
        self._temperature = (-_TEMPERATURE_EVERY_S, None)
        return info

    def _wanted(self) -> str:
        wishes = [f"serial {self._serial!r}"] if self._serial else []
        wishes += [f"user id {self._user_id!r}"] if self._user_id else []
        return "camera with " + " and ".join(wishes) if wishes else "camera"

    def _choose(self) -> tuple[Producer, Any, CameraInfo]:
        with progress.phase("searching for cameras", silent_s=SEARCH_S, still_s=3 * SEARCH_S):
            loaded, trouble = load(self._producers)
            there = [(p, device, describe(p, device)) for p in loaded for device in p.devices()]
        fitting = [
            found
            for found in there
            if self._serial in {"", found[2].serial} and self._user_id in {"", found[2].user_id}
        ]
        if len(fitting) == 1:
            return fitting[0]
        seen = (
            ", ".join(f"{i.vendor} {i.name} serial {i.serial!r} user id {i.user_id!r}" for _, _, i in there) or "none"
        )
        if fitting:
            raise CameraNotFoundError(self._ambiguous([info for _, _, info in fitting], seen))
        raise CameraNotFoundError(
            f"no {self._wanted()} answers; check its power and cable, or correct [camera]. Seen: {seen}"
            + (f"; {trouble}" if trouble else "")
        )

    def _ambiguous(self, fitting: Sequence[CameraInfo], seen: str) -> str:
        producers = sorted({info.producer for info in fitting})
        if len(producers) == len(fitting) and len({(info.serial, info.user_id) for info in fitting}) == 1:
            return (
                f"{self._wanted()} is seen by several producers: {', '.join(producers)}; name one in [camera] producers"
            )
        return f"several cameras fit; name one by [camera] serial. Seen: {seen}"

    def configure(self, settings: Mapping[str, Setting]) -> Mapping[str, Setting]:
        """Write the settings in their order, then the trigger mode, and read each back."""
        nodes = self._opened("configure").nodes
        if self._streaming:
            raise CameraError(f"{self._label}: configure was called while streaming; stop first")
        if "TriggerMode" in settings:
            raise CameraSettingError(
                f"{self._label}: TriggerMode follows from [camera] trigger; remove it from the settings"
            )
        before: dict[str, Setting] = {}
        if features.find(nodes, "AcquisitionMode") is not None:
            before["AcquisitionMode"] = "Continuous"
        if self._trigger_mode is not Trigger.FREE_RUN and features.find(nodes, "TriggerSelector") is not None:
            before["TriggerSelector"] = "FrameStart"
        after: dict[str, Setting] = {}
        if self._trigger_mode is not Trigger.FREE_RUN:
            after["TriggerMode"] = "On"
        elif features.find(nodes, "TriggerMode") is not None:
            after["TriggerMode"] = "Off"
        if self._trigger_mode is Trigger.SOFTWARE:
            after["TriggerSource"] = "Software"
        applied = {name: self._set(nodes, name, value) for name, value in (before | dict(settings) | after).items()}
        if self._trigger_mode is Trigger.HARDWARE and features.read(nodes, "TriggerSource") in {None, "Software"}:
            raise CameraSettingError(f"{self._label}: set TriggerSource to the line that the part sensor is wired to")
        with self._guarded("reading PixelFormat"):
            check_pixel_format(nodes.PixelFormat.get_int_value())
        return {name: applied[name] for name in (*settings, *after)}

    def _set(self, nodes: Any, name: str, value: Setting) -> Setting:
        try:
            return features.write(nodes, name, value)
        except CameraSettingError as error:
            raise CameraSettingError(f"{self._label}: {error}") from error
        except NATIVE_ERRORS as error:
            self._check_alive()
            raise CameraSettingError(f"{self._label}: {name} = {value!r} is refused: {reason(error)}") from error

    # -- streaming -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Announce fresh buffers and begin streaming."""
        connection = self._opened("start")
        if self._streaming:
            return
        self._triggers.restart()
        progress.step()
        with self._guarded("starting the stream"):
            self._ids = FrameIds(skips_zero=self._values.ask(connection.listed, "tl_type") == "GEV")
            connection.start()
            self._underruns = Underruns(self._values.ask(connection.stream, "num_underrun") or 0)
        self._streaming = True
        self._heard_at = time.monotonic()

    def stop(self) -> None:
        """Stop streaming and throw away what is in the buffers."""
        if self._streaming and self._connection is not None:
            self._streaming = False
            self._triggers.restart()
            try:
                self._connection.stop()
            except Exception:  # noqa: BLE001 - a lost camera cannot be stopped; close or the next call tells
                self._lost = True
            self._losses.settle()

    def trigger(self) -> int:
        """Throw away what is waiting or still owed, and execute TriggerSoftware.

        After a trigger was given up this waits until its frame has come or cannot come any more: exposure, readout and
        a quarter of a second. A camera takes no trigger during an exposure anyway.
        """
        if self._trigger_mode is not Trigger.SOFTWARE:
            raise CameraError(f"{self._label}: a trigger was given, but trigger = '{self._trigger_mode}'")
        if not self._streaming:
            raise CameraError(f"{self._label}: a trigger was given before start")
        if self._triggers.outstanding is not None:
            raise CameraError(f"{self._label}: trigger {self._triggers.outstanding} is still outstanding")
        nodes = self._opened("trigger").nodes
        self._discard()
        while self._triggers.owed and time.monotonic() < self._triggers.late_until:
            time.sleep(_POLL_S)
            progress.step()
            self._discard()
        with self._guarded("the software trigger"):
            since_ns = latch_ns(nodes) if self._triggers.owed else None
            nodes.TriggerSoftware.execute()
        return self._triggers.give(since_ns)

    def grab(self, timeout_s: float) -> Frame | NoFrame:
        """Wait for the next whole frame without holding the interpreter lock."""
        deadline = time.monotonic() + max(timeout_s, 0.0)
        if self._lost:
            self._fail("it was lost before")
        while True:
            got = self._take() if self._streaming else None
            if got is not None:
                return got
            now = time.monotonic()
            if self._streaming and now - self._heard_at >= _SILENCE_S:
                self._check_alive()
                self._heard_at = now
            if now >= deadline:
                return NoFrame(NoFrameReason.TIMEOUT, "" if self._streaming else f"{self._label} is not streaming")
            time.sleep(min(_POLL_S if self._streaming else 0.05, deadline - now))

    def flush(self) -> int:
        """Throw away waiting frames and an outstanding trigger; its frame is thrown away when it comes."""
        if self._triggers.outstanding is not None and self._streaming:
            with self._guarded("asking for the exposure time"):
                nodes = self._opened("flush").nodes
                self._triggers.give_up(longest_s(lambda name: features.read(nodes, name)))
            self._losses.lose(Cause.TRIGGER_MISSED)
        return self._discard() if self._streaming else 0

    def _take(self) -> Frame | NoFrame | None:
        """Fetch one buffer if there is one; None when there is none that may be delivered."""
        connection = self._opened("grab")
        with self._guarded("looking for a frame"):
            waiting = connection.waiting()
        if not waiting:
            return None
        self._heard_at = time.monotonic()
        if waiting >= connection.buffers:
            self._underruns.suspect(waiting)
            if self._trigger_mode is Trigger.FREE_RUN:
                self._losses.lose(Cause.OVERRUN, self._discard(), numbered=True)
                return None
        if self._trigger_mode is Trigger.SOFTWARE and self._triggers.outstanding is None:
            self._discard()  # nobody asked for it: it belongs to no part
            return None
        with self._guarded("fetching a frame"):
            buffer = connection.fetch()
        received_ns = time.monotonic_ns()
        if buffer is None:
            return self._use_up() if self._count_incomplete() else None
        try:
            return self._read(buffer, received_ns)
        finally:
            if not self._lost:  # or the reason of the loss would be replaced by what fails here
                self._requeue(buffer)

    def _read(self, buffer: Any, received_ns: int) -> Frame | NoFrame | None:
        """Decode a buffer while it is ours: once it is queued again its content changes."""
        connection = self._opened("grab")
        frame_id = self._account(buffer)  # first: a frame that is refused has used its number as well
        with self._guarded("reading a frame"):
            exposed_ns = device_ns(buffer, connection.device, self._values)
            if self._triggers.is_late(exposed_ns):
                return None
            trigger_id = self._triggers.answer()
            image = image_of(buffer, connection.nodes, self._values)
        if image is None:
            self._losses.lose(Cause.INCOMPLETE, numbered=True)
            return NoFrame(NoFrameReason.INCOMPLETE, f"{self._label}: a part of frame {frame_id} did not come")
        self._frames += 1
        return Frame(
            image=image,
            frame_id=frame_id,
            received_ns=received_ns,
            device_ns=exposed_ns,
            trigger_id=trigger_id,
            missing=self._losses.settle(),
        )

    def _use_up(self) -> NoFrame:
        """Say that the frame which was due came in pieces."""
        self._triggers.answer()
        return NoFrame(
            NoFrameReason.INCOMPLETE, f"{self._label}: packets were lost; check cable, jumbo frames and receive buffers"
        )

    def _count_incomplete(self) -> int:
        """Count the incomplete frames that were fetched since the last call, less those of given-up triggers."""
        connection = self._opened("grab")
        number = connection.incomplete - self._incomplete_seen
        self._incomplete_seen += number
        if self._triggers.outstanding is None:
            number -= self._triggers.came(number)  # their triggers were counted as missed
        self._losses.lose(Cause.INCOMPLETE, number)
        return number

    def _account(self, buffer: Any) -> int:
        """Follow the frame's number, and name what is missing before it."""
        connection = self._opened("grab")
        with self._guarded("reading a frame's number"):
            underruns = self._values.ask(connection.stream, "num_underrun") or 0
            self._underruns.note(underruns, connection.waiting())
            raw_id = self._values.ask(buffer, "frame_id")
        frame_id, skipped = self._ids.follow(raw_id)
        rest = self._losses.unexplained(skipped)
        explained, unnumbered = self._underruns.follow(rest)
        self._losses.lose(Cause.UNDERRUN, explained + unnumbered, numbered=True)
        self._losses.lose(Cause.CAMERA_GAP, rest - explained, numbered=True)
        return frame_id

    def _discard(self) -> int:
        """Queue every waiting buffer again unread and return how many whole frames were in them."""
        connection = self._opened("flush")
        number = 0
        with self._guarded("flushing frames"):
            for _ in range(2 * connection.buffers):  # bounded: a fast camera fills them as we go
                if not connection.waiting():
                    break
                buffer = connection.fetch()
                if buffer is None:
                    self._count_incomplete()
                    continue
                self._account(buffer)
                self._triggers.came()
                self._requeue(buffer)
                number += 1
        return number

    def _requeue(self, buffer: Any) -> None:
        with self._guarded("returning a buffer"):
            Connection.give_back(buffer)

    # -- health and the end --------------------------------------------------------------------------------------------

    def health(self) -> CameraHealth:
        """Report counters, and the temperature at most every ten seconds."""
        read_at, temperature = self._temperature
        if self._connection is not None and not self._lost and time.monotonic() - read_at >= _TEMPERATURE_EVERY_S:
            temperature = None
            with suppress(*NATIVE_ERRORS):
                value = features.read(self._connection.nodes, "DeviceTemperature")
                temperature = None if value is None else float(value)
            self._temperature = (time.monotonic(), temperature)
        return CameraHealth(frames=self._frames, missing=dict(self._losses.total), temperature_c=temperature)

    def close(self) -> None:
        """Let go of the camera."""
        self.stop()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close(lost=self._lost)

    def _opened(self, call: str) -> Connection:
        if self._connection is None:
            raise CameraError(f"{self._label}: {call} was called before open")
        if self._lost:
            self._fail("it was lost before")
        return self._connection

    def _check_alive(self) -> None:
        """Ask the camera itself, past every cache; `CameraLostError` when it does not answer."""
        connection = self._opened("grab")
        with self._guarded("asking for a sign of life"):
            if self._values.ask(connection.listed, "access_status") == _NOACCESS:
                self._fail("it is not reachable any more")
            node = features.find(connection.nodes, "PayloadSize") or features.find(connection.nodes, "Width")
            if node is not None:
                features.fresh(node)

    @contextmanager
    def _guarded(self, doing: str) -> Iterator[None]:
        try:
            yield
        except CameraSettingError as error:
            raise CameraSettingError(f"{self._label}: {error}") from error
        except CameraError:
            raise
        except NATIVE_ERRORS as error:
            self._fail(f"{doing} failed: {reason(error)}", error)

    def _fail(self, what: str, cause: BaseException | None = None) -> NoReturn:
        self._lost = True
        raise CameraLostError(f"{self._label}: {what}; check its cable and power") from cause
