"""GenICam cameras through harvesters; the only file that imports it.

What harvesters does to the process around it was measured and is contained here. The driver waits by looking at the
length of the buffer queue, because ``fetch`` holds the interpreter lock while it waits: measured on viky at 20 fps, a
1 ms loop in another thread runs 888 times a second beside this driver, and 153 times beside ``fetch``.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import threading
import time
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from lineward.drivers import features
from lineward.drivers.buffers import OptionalValues, check_pixel_format, device_ns, image_of
from lineward.drivers.camera import (
    CameraBusyError,
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
from lineward.drivers.losses import FrameIds, Losses

with warnings.catch_warnings():  # harvesters sets the filter "once" for the whole process when it is imported
    warnings.simplefilter("ignore")
    from genicam import gentl
    from harvesters.core import Callback, Harvester, ParameterKey, ParameterSet

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lineward.drivers.camera import Setting

for _name in [name for name in logging.root.manager.loggerDict if name.startswith("harvesters")]:
    # It writes to stderr by handlers of its own, one warning per incomplete frame. All of it is reported by us.
    logging.getLogger(_name).handlers.clear()
    logging.getLogger(_name).propagate = True
    logging.getLogger(_name).setLevel(logging.CRITICAL)

_POLL_S = 0.001
_SILENCE_S = 2.0  # after this long without a frame the camera is asked whether it is still there
_TEMPERATURE_EVERY_S = 10.0
_IN_USE = (gentl.ResourceInUseException, gentl.AccessDeniedException, gentl.BusyException)
_NOACCESS = gentl.DEVICE_ACCESS_STATUS_LIST.DEVICE_ACCESS_STATUS_NOACCESS
_ACCESS = {1: "available", 2: "read-only", 3: "unreachable", 4: "in use", 5: "open here", 6: "open here, read-only"}
_KILL = gentl.ACQ_STOP_FLAGS_LIST.ACQ_STOP_FLAGS_KILL


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Put back what harvesters replaces in its process: the handler of Ctrl-C and the warning filters."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


def find_producers(producers: Sequence[str]) -> list[Path]:
    """Turn configured producers into files: ``viky`` is the one inside the genicam package, none means the environment.

    Raises
    ------
    CameraNotFoundError
        A file is missing, or the environment names none.
    """
    if not producers:
        folders = [Path(part) for part in os.environ.get("GENICAM_GENTL64_PATH", "").split(os.pathsep) if part]
        found = sorted(file for folder in folders for file in folder.glob("*.cti"))
        if not found:
            raise CameraNotFoundError(
                "no GenTL producer: GENICAM_GENTL64_PATH names no folder with .cti files; install the camera vendor's "
                "GenTL producer or name its file in [camera] producers"
            )
        return found
    files = []
    for producer in producers:
        file = _viky() if producer == "viky" else Path(producer)
        if not file.is_file():
            raise CameraNotFoundError(f"GenTL producer {file}: there is no such file; correct [camera] producers")
        files.append(file.resolve())
    return files


def _viky() -> Path:
    spec = importlib.util.find_spec("genicam")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).with_name("viky.cti")


def discover(producers: Sequence[str] = ()) -> list[CameraInfo]:
    """List the cameras that the producers see; cameras that are open in this process stay open."""
    return [_describe(producer, device) for producer in _load(producers) for device in producer.devices()]


class _Producer:
    """One GenTL producer, loaded once per process: a second Harvester on the same file would see no devices."""

    _loaded: ClassVar[dict[Path, _Producer]] = {}

    def __init__(self, file: Path) -> None:
        self.file = file
        self.harvester = Harvester()
        self.shaken = False  # a camera was lost: updating or resetting now was seen to end in SIGSEGV
        try:
            self.harvester.add_file(str(file), check_existence=True, check_validity=True)
        except OSError as error:
            raise CameraNotFoundError(f"GenTL producer {file} cannot be loaded: {error}; install it anew") from error

    @classmethod
    def load(cls, file: Path) -> _Producer:
        if file not in cls._loaded:
            with _undisturbed():
                cls._loaded[file] = cls(file)
        return cls._loaded[file]

    def devices(self) -> list[Any]:
        """Enumerate devices anew, unless that would destroy a camera that is open: then those known before."""
        if not self.harvester.image_acquirers and not self.shaken:
            with _undisturbed():
                self.harvester.update()
        return list(self.harvester.device_info_list)


def _load(producers: Sequence[str]) -> list[_Producer]:
    return [_Producer.load(file) for file in find_producers(producers)]


def _describe(producer: _Producer, device: Any) -> CameraInfo:
    def text(name: str) -> str:
        try:
            return str(getattr(device, name) or "")
        except NATIVE_ERRORS:
            return ""

    status = text("access_status")
    return CameraInfo(
        name=text("model"),
        serial=text("serial_number"),
        driver="genicam",
        vendor=text("vendor"),
        user_id=text("user_defined_name"),
        transport=text("tl_type"),
        producer=str(producer.file),
        access=_ACCESS.get(int(status), "unknown") if status.isdigit() else "unknown",
    )


class _Counter(Callback):  # type: ignore[misc]
    """Counts incomplete buffers, and nothing else: a callback that raises ends the process."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def emit(self, context: object = None) -> None:  # noqa: ARG002 - harvesters passes it by name
        """Count one."""
        self.count += 1


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
        self._producer: _Producer | None = None
        self._device: Any = None
        self._acquirer: Any = None
        self._queue: Any = None  # the new-buffer event of the only data stream
        self._streaming = False
        self._lost = False
        self._values = OptionalValues()
        self._incomplete = _Counter()
        self._incomplete_seen = 0
        self._underruns_seen = 0
        self._was_full = False
        self._ids = FrameIds()
        self._losses = Losses()
        self._frames = 0
        self._heard_at = 0.0
        self._trigger_id = 0
        self._outstanding: int | None = None
        self._temperature: tuple[float, float | None] = (-_TEMPERATURE_EVERY_S, None)

    # -- opening and settings ------------------------------------------------------------------------------------------

    def open(self) -> CameraInfo:
        """Find the camera by serial number or user id and take exclusive control of it."""
        self.close()
        producer, device, info = self._choose()
        self._label = f"camera {info.vendor} {info.name} (serial {info.serial or 'none'})"
        config = ParameterSet({ParameterKey.ENABLE_AUTO_CHUNK_DATA_UPDATE: False})
        try:
            with _undisturbed():
                self._acquirer = producer.harvester.create(device, config=config)
        except _IN_USE as error:
            raise CameraBusyError(f"{self._label} is open in another program; close that program") from error
        except NATIVE_ERRORS as error:
            raise CameraLostError(
                f"{self._label} is listed ({info.access}) but cannot be opened: {reason(error)}"
            ) from error
        self._producer, self._device = producer, device
        queues = list(self._acquirer._new_buffer_event_monitor_dict.values())  # noqa: SLF001 - the only way to wait
        if len(queues) != 1:
            self.close()
            raise CameraError(f"{self._label} has {len(queues)} data streams; Lineward takes cameras with exactly one")
        self._queue = queues[0]
        self._incomplete, self._incomplete_seen = _Counter(), 0
        self._acquirer.add_callback(self._acquirer.Events.INCOMPLETE_BUFFER, self._incomplete)
        self._acquirer.num_buffers = max(self._buffers, self._acquirer.min_num_buffers)
        self._losses, self._frames, self._values, self._lost = Losses(), 0, OptionalValues(), False
        self._temperature = (-_TEMPERATURE_EVERY_S, None)
        return info

    def _wanted(self) -> str:
        wishes = [f"serial {self._serial!r}"] if self._serial else []
        wishes += [f"user id {self._user_id!r}"] if self._user_id else []
        return "camera with " + " and ".join(wishes) if wishes else "camera"

    def _choose(self) -> tuple[_Producer, Any, CameraInfo]:
        there = [(p, device, _describe(p, device)) for p in _load(self._producers) for device in p.devices()]
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
            raise CameraNotFoundError(f"several cameras fit; name one by [camera] serial. Seen: {seen}")
        raise CameraNotFoundError(
            f"no {self._wanted()} answers; check its power and cable, or correct [camera]. Seen: {seen}"
        )

    def configure(self, settings: Mapping[str, Setting]) -> Mapping[str, Setting]:
        """Write the settings in their order, then the trigger mode, and read each back."""
        nodes = self._node_map("configure")
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
        self._node_map("start")
        if self._streaming:
            return
        self._ids = FrameIds(skips_zero=self._values.ask(self._device, "tl_type") == "GEV")
        self._outstanding, self._was_full = None, False
        with self._guarded("starting the stream"):
            self._acquirer.start()
        self._streaming = True
        self._underruns_seen = self._values.ask(self._acquirer.data_streams[0], "num_underrun") or 0
        self._heard_at = time.monotonic()

    def stop(self) -> None:
        """Stop streaming and throw away what is in the buffers."""
        if self._streaming:
            self._streaming = False
            self._outstanding = None
            try:
                self._acquirer.stop()
            except Exception:  # noqa: BLE001 - a lost camera cannot be stopped; close or the next call tells
                self._lost = True
            self._losses.settle()

    def trigger(self) -> int:
        """Throw away what is waiting and execute TriggerSoftware."""
        if self._trigger_mode is not Trigger.SOFTWARE:
            raise CameraError(f"{self._label}: a trigger was given, but trigger = '{self._trigger_mode}'")
        if not self._streaming:
            raise CameraError(f"{self._label}: a trigger was given before start")
        if self._outstanding is not None:
            raise CameraError(f"{self._label}: trigger {self._outstanding} is still outstanding")
        self.flush()
        with self._guarded("the software trigger"):
            self._acquirer.remote_device.node_map.TriggerSoftware.execute()
        self._trigger_id += 1
        self._outstanding = self._trigger_id
        return self._trigger_id

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
            if now >= deadline:
                return NoFrame(NoFrameReason.TIMEOUT, "" if self._streaming else f"{self._label} is not streaming")
            if self._streaming and now - self._heard_at >= _SILENCE_S:
                self._check_alive()
                self._heard_at = now
            time.sleep(min(_POLL_S if self._streaming else 0.05, deadline - now))

    def flush(self) -> int:
        """Throw away waiting frames and an outstanding trigger."""
        if self._outstanding is not None:
            self._outstanding = None
            self._losses.lose(Cause.TRIGGER_MISSED)
        return self._discard() if self._streaming else 0

    def _take(self) -> Frame | NoFrame | None:
        """Fetch one buffer if there is one; None when there is none that may be delivered."""
        with self._guarded("looking for a frame"):
            waiting = self._queue.num_in_queue
        if not waiting:
            return None
        self._heard_at = time.monotonic()
        if waiting >= self._acquirer.num_buffers:
            self._was_full = True
            if self._trigger_mode is Trigger.FREE_RUN:
                self._losses.lose(Cause.OVERRUN, self._discard(), numbered=True)
                return None
        if self._trigger_mode is Trigger.SOFTWARE and self._outstanding is None:
            self._discard()  # nobody asked for it: it belongs to no part
            return None
        with self._guarded("fetching a frame"):
            buffer = self._acquirer.try_fetch(timeout=0.05, is_raw=True)
        received_ns = time.monotonic_ns()
        if buffer is None:
            return self._count_incomplete()
        try:
            return self._read(buffer, received_ns)
        finally:
            self._requeue(buffer)

    def _read(self, buffer: Any, received_ns: int) -> Frame | NoFrame:
        """Decode a buffer while it is ours: once it is queued again its content changes."""
        with self._guarded("reading a frame"):
            image = image_of(buffer, self._acquirer.remote_device.node_map, self._values)
            exposed_ns = device_ns(buffer, self._acquirer.device, self._values)
        frame_id = self._account(buffer)
        trigger_id, self._outstanding = self._outstanding, None
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

    def _count_incomplete(self) -> NoFrame | None:
        number = self._incomplete.count - self._incomplete_seen
        if not number:
            return None
        self._incomplete_seen = self._incomplete.count
        self._losses.lose(Cause.INCOMPLETE, number)
        self._outstanding = None
        return NoFrame(
            NoFrameReason.INCOMPLETE, f"{self._label}: packets were lost; check cable, jumbo frames and receive buffers"
        )

    def _account(self, buffer: Any) -> int:
        """Follow the frame's number, and name what is missing before it."""
        with self._guarded("reading a frame's number"):
            underruns = self._values.ask(self._acquirer.data_streams[0], "num_underrun") or 0
            raw_id = self._values.ask(buffer, "frame_id")
        self._losses.lose(Cause.UNDERRUN, underruns - self._underruns_seen)
        self._underruns_seen = underruns
        frame_id, skipped = self._ids.follow(raw_id)
        if skipped:
            # Not every producer counts underruns (viky never does), but ids that jump behind a full queue are that.
            self._losses.skip(skipped, Cause.UNDERRUN if self._was_full else Cause.CAMERA_GAP)
            self._was_full = False
        return frame_id

    def _discard(self) -> int:
        """Queue every waiting buffer again unread and return how many whole frames were in them."""
        number = 0
        with self._guarded("flushing frames"):
            for _ in range(2 * self._acquirer.num_buffers):  # bounded: a fast camera fills them as we go
                if not self._queue.num_in_queue:
                    break
                buffer = self._acquirer.try_fetch(timeout=0.05, is_raw=True)
                if buffer is None:
                    self._count_incomplete()
                    continue
                self._account(buffer)
                self._requeue(buffer)
                number += 1
        return number

    def _requeue(self, buffer: Any) -> None:
        with self._guarded("returning a buffer"):
            buffer.parent.queue_buffer(buffer)

    # -- health and the end --------------------------------------------------------------------------------------------

    def health(self) -> CameraHealth:
        """Report counters, and the temperature at most every ten seconds."""
        read_at, temperature = self._temperature
        if self._acquirer is not None and not self._lost and time.monotonic() - read_at >= _TEMPERATURE_EVERY_S:
            temperature = None
            with suppress(*NATIVE_ERRORS):
                value = features.read(self._acquirer.remote_device.node_map, "DeviceTemperature")
                temperature = None if value is None else float(value)
            self._temperature = (time.monotonic(), temperature)
        return CameraHealth(frames=self._frames, missing=dict(self._losses.total), temperature_c=temperature)

    def close(self) -> None:
        """Let go of the camera, in the one order that leaves it openable after a loss too."""
        self.stop()
        acquirer, self._acquirer, self._queue = self._acquirer, None, None
        producer, self._producer, self._device = self._producer, None, None
        if acquirer is None or producer is None:
            return
        if self._lost:
            for stream in list(acquirer.data_streams):
                with suppress(Exception):
                    stream.stop_acquisition(_KILL)  # harvesters never does after a failed stop: ResourceInUse for ever
            producer.shaken = True
            producer.harvester._finalizer.detach()  # noqa: SLF001 - its reset at exit was seen to end in SIGSEGV
        try:
            acquirer.destroy()
        except Exception:  # noqa: BLE001 - a lost camera cannot be let go of in good order
            producer.shaken = True
        with suppress(Exception):
            acquirer._finalizer.detach()  # noqa: SLF001 - it would keep the acquirer alive until the process ends
        with suppress(ValueError):
            producer.harvester.image_acquirers.remove(acquirer)

    def _node_map(self, call: str) -> Any:
        if self._acquirer is None:
            raise CameraError(f"{self._label}: {call} was called before open")
        if self._lost:
            self._fail("it was lost before")
        return self._acquirer.remote_device.node_map

    def _check_alive(self) -> None:
        """Ask the camera itself, past every cache; `CameraLostError` when it does not answer."""
        if self._values.ask(self._device, "access_status") == _NOACCESS:
            self._fail("it is not reachable any more")
        nodes = self._acquirer.remote_device.node_map
        node = features.find(nodes, "PayloadSize") or features.find(nodes, "Width")
        if node is not None:
            with self._guarded("asking for a sign of life"):
                node.get_value(False, True)  # verify, ignore_cache

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
