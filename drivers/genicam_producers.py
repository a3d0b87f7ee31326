"""GenTL producers and the cameras behind them, through harvesters; the only file that imports it.

What harvesters does to the process around it was measured and is contained here. A driver waits by looking at the
length of the buffer queue, because ``fetch`` holds the interpreter lock while it waits: measured on viky at 20 fps, a
1 ms loop in another thread runs 888 times a second beside `Connection.waiting`, and 153 times beside ``fetch``.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import signal
import threading
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lineward.drivers import progress
from lineward.drivers.camera import CameraBusyError, CameraError, CameraInfo, CameraLostError, CameraNotFoundError
from lineward.drivers.features import NATIVE_ERRORS, reason

with warnings.catch_warnings():  # harvesters sets the filter "once" for the whole process when it is imported
    warnings.simplefilter("ignore")
    from genicam import gentl
    from harvesters.core import Callback, Harvester, ParameterKey, ParameterSet

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

for _name in [name for name in logging.root.manager.loggerDict if name.startswith("harvesters")]:
    # It writes to stderr by handlers of its own, one warning per incomplete frame. All of it is reported by us.
    logging.getLogger(_name).handlers.clear()
    logging.getLogger(_name).propagate = True
    logging.getLogger(_name).setLevel(logging.CRITICAL)

_IN_USE = (gentl.ResourceInUseException, gentl.AccessDeniedException, gentl.BusyException)
_ACCESS = {1: "available", 2: "read-only", 3: "unreachable", 4: "in use", 5: "open here", 6: "open here, read-only"}
_FUNCTIONS = ("GCInitLib", "TLOpen", "TLGetNumInterfaces")
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
        if not folders:
            raise CameraNotFoundError(
                "no GenTL producer: GENICAM_GENTL64_PATH is not set here; a service does not see your shell's "
                "variables: name the file in [camera] producers"
            )
        found = sorted({file.resolve() for folder in folders for file in folder.glob("*.cti")})
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
    return list(dict.fromkeys(files))


def _viky() -> Path:
    spec = importlib.util.find_spec("genicam")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).with_name("viky.cti")


def _require_functions(file: Path) -> None:
    """See that a library is a GenTL producer: harvesters calls what is not there, which ends the process by SIGSEGV.

    Raises
    ------
    CameraNotFoundError
        It has not the functions that GenTL asks for.
    OSError
        It cannot be loaded at all.
    """
    library = ctypes.CDLL(str(file))
    missing = [name for name in _FUNCTIONS if not hasattr(library, name)]
    if missing:
        raise CameraNotFoundError(
            f"GenTL producer {file}: it is a library, but no GenTL producer, for it has no {missing[0]}; name the .cti "
            "file of the camera's maker"
        )


class Producer:
    """One GenTL producer, loaded once per process: a second Harvester on the same file would see no devices."""

    _loaded: ClassVar[dict[Path, Producer]] = {}

    def __init__(self, file: Path) -> None:
        self.file = file
        self.harvester = Harvester()
        self.shaken = False  # a camera was lost: updating or resetting now was seen to end in SIGSEGV
        try:
            _require_functions(file)
            self.harvester.add_file(str(file), check_existence=True, check_validity=True)
        except OSError as error:
            raise CameraNotFoundError(f"GenTL producer {file} cannot be loaded: {error}; install it anew") from error

    @classmethod
    def load(cls, file: Path) -> Producer:
        """Return the one producer of this file."""
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


def load(producers: Sequence[str]) -> tuple[list[Producer], str]:
    """Load each producer, once per process; also return what is wrong with those that were left out.

    A configured producer must load. One that only lies in a folder of the environment is left out: another camera's
    producer that is damaged, or built for another machine, must not hide this camera.
    """
    loaded, troubles = [], []
    for file in find_producers(producers):
        try:
            loaded.append(Producer.load(file))
        except CameraNotFoundError as error:
            if producers:
                raise
            troubles.append(str(error))
    return loaded, "; ".join(troubles)


def describe(producer: Producer, device: Any) -> CameraInfo:
    """Say what enumeration knows of a device; what a producer cannot tell stays empty."""

    def text(name: str) -> str:
        progress.step()
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


class Connection:
    """One camera that is open, and its only data stream.

    Raises
    ------
    CameraBusyError, CameraLostError, CameraError
        Another program has the camera open; it is listed and cannot be opened; it has not exactly one data stream.
    """

    def __init__(self, producer: Producer, device: Any, info: CameraInfo, label: str, *, buffers: int) -> None:
        config = ParameterSet({ParameterKey.ENABLE_AUTO_CHUNK_DATA_UPDATE: False})
        try:
            with _undisturbed():
                self._acquirer = producer.harvester.create(device, config=config)
        except _IN_USE as error:
            raise CameraBusyError(f"{label} is open in another program; close that program") from error
        except NATIVE_ERRORS as error:
            raise CameraLostError(f"{label} is listed ({info.access}) but cannot be opened: {reason(error)}") from error
        self._producer = producer
        self._incomplete = _Counter()
        queues = list(self._acquirer._new_buffer_event_monitor_dict.values())  # noqa: SLF001 - the only way to wait
        if len(queues) != 1:
            self.close(lost=False)
            raise CameraError(f"{label} has {len(queues)} data streams; Lineward takes cameras with exactly one")
        self._queue = queues[0]
        self._acquirer.add_callback(self._acquirer.Events.INCOMPLETE_BUFFER, self._incomplete)
        self._acquirer.num_buffers = max(buffers, self._acquirer.min_num_buffers)
        self.listed = device
        """The device as enumeration lists it: it tells the access status, whatever became of the camera."""

    @property
    def nodes(self) -> Any:
        """The features of the camera."""
        return self._acquirer.remote_device.node_map

    @property
    def device(self) -> Any:
        """The opened device on this side of the link."""
        return self._acquirer.device

    @property
    def stream(self) -> Any:
        """The only data stream."""
        return self._acquirer.data_streams[0]

    @property
    def buffers(self) -> int:
        """Return how many frames the producer may hold."""
        return int(self._acquirer.num_buffers)

    @property
    def incomplete(self) -> int:
        """Return how many incomplete frames `fetch` has met since the camera was opened."""
        return self._incomplete.count

    def start(self) -> None:
        """Announce fresh buffers and begin streaming."""
        self._acquirer.start()

    def stop(self) -> None:
        """Stop streaming."""
        self._acquirer.stop()

    def waiting(self) -> int:
        """Return how many filled buffers wait, without waiting for one."""
        return int(self._queue.num_in_queue)

    def fetch(self) -> Any | None:
        """Take the oldest of the buffers that wait; None when it is incomplete, which `incomplete` counts."""
        return self._acquirer.try_fetch(timeout=0.05, is_raw=True)

    @staticmethod
    def give_back(buffer: Any) -> None:
        """Let the producer fill a buffer again: what it holds changes from now on."""
        buffer.parent.queue_buffer(buffer)

    def close(self, *, lost: bool) -> None:
        """Let go of the camera, in the one order that leaves it openable after a loss too; never raises."""
        if lost:
            for stream in list(self._acquirer.data_streams):
                with suppress(Exception):
                    stream.stop_acquisition(_KILL)  # harvesters never does after a failed stop: ResourceInUse for ever
            self._producer.shaken = True
            self._producer.harvester._finalizer.detach()  # noqa: SLF001 - its reset at exit was seen to end in SIGSEGV
        try:
            self._acquirer.destroy()
        except Exception:  # noqa: BLE001 - a lost camera cannot be let go of in good order
            self._producer.shaken = True
        with suppress(Exception):
            self._acquirer._finalizer.detach()  # noqa: SLF001 - it would keep the acquirer alive until the process ends
        with suppress(ValueError):
            self._producer.harvester.image_acquirers.remove(self._acquirer)
