"""A camera in a process of its own: the driver may hang or crash, the line sees a `CameraLostError` and goes on."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lineward.drivers import camera as errors
from lineward.drivers import wire
from lineward.drivers.camera import (
    CameraError,
    CameraHealth,
    CameraInfo,
    CameraLostError,
    Cause,
    Frame,
    NoFrame,
    NoFrameReason,
    Trigger,
)
from lineward.drivers.ring import Ring, RingShape

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lineward.drivers.camera import Setting

OPEN_LIMIT_S = 20.0  # discovery of a network camera takes seconds
CALL_LIMIT_S = 10.0
START_LIMIT_S = 30.0
CLOSE_LIMIT_S = 1.0
HURRY_S = 0.5
LOOK_S = 0.1  # how soon a waiting call notices that it has to hurry
MAX_WAITING = 4
"""Frames that may wait for inspection; beyond, the oldest is given up and counted as `Cause.OVERRUN`."""

_ERRORS: dict[str, type[CameraError]] = {
    name: getattr(errors, name)
    for name in ("CameraError", "CameraNotFoundError", "CameraBusyError", "CameraSettingError", "CameraLostError")
}


class CameraProcess:
    """Keeps the `Camera` protocol from the inspection side; the driver runs in a child process.

    Frames come through shared memory without a copy on this side. The child beats five times a second; when it is
    silent for ``silence_limit_s`` it is killed by its pid and the next call raises `CameraLostError`. `open` starts a
    new process. The process that calls `open` must keep that thread alive: the kernel kills the child when the thread
    that started it ends (PR_SET_PDEATHSIG), so that none is ever left behind.

    Parameters
    ----------
    driver, options
        Name and keyword arguments for `registry.create`.
    silence_limit_s
        Seconds without a sign of life after which a streaming child counts as hung. A replay gets five times as much:
        one very large file may take seconds to decode.
    hurry
        Once it is set, a call that waits for the child gives up after half a second and kills it.
    """

    def __init__(
        self,
        driver: str,
        options: Mapping[str, Any],
        *,
        silence_limit_s: float = 2.0,
        hurry: threading.Event | None = None,
    ) -> None:
        self._driver = driver
        self._options = dict(options)
        self._silence_limit_s = silence_limit_s
        self._hurry = hurry or threading.Event()
        self._child: subprocess.Popen[bytes] | None = None
        self._wire: wire.Wire | None = None
        self._rings: dict[int, Ring] = {}
        self._waiting: deque[tuple[tuple[int, int], Frame]] = deque()
        self._notices: deque[NoFrame] = deque()
        self._replies: deque[tuple[Any, ...]] = deque()
        self._held: tuple[int, int] | None = None
        self._given_up: dict[Cause, int] = {}  # lost since the last delivered frame
        self._overrun = 0
        self._resume_at = 0
        self._triggered = options.get("trigger") == Trigger.SOFTWARE
        self._outstanding = False  # a trigger whose frame this side has not taken yet
        self._lost = ""  # why no frame will come any more; the child may still be there to close the camera
        self._lost_error: type[CameraError] = CameraLostError
        self._dead = False  # the child is gone or hung
        self._alive_at = 0.0
        self._streaming = False
        self._stopped = True  # unlike a lost camera, a stopped one gives nothing of what waits
        self._health = CameraHealth()
        self.info: CameraInfo | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the camera process, or None when there is none."""
        return None if self._child is None else self._child.pid

    def resident_mb(self) -> float:
        """Return the resident size of the camera process in megabytes, 0 when there is none."""
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1])
        except (OSError, IndexError):
            return 0.0
        return pages * mmap.PAGESIZE / 1e6

    def open(self) -> CameraInfo:
        """Start a camera process and open the camera in it."""
        self.close()
        ours, theirs = wire.Wire.pair()
        with theirs:
            command = [sys.executable, "-m", "lineward.drivers.worker", str(theirs.fileno()), str(os.getpid())]
            self._child = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=(theirs.fileno(),)
            )
        self._wire = ours
        self._lost, self._dead = "", False
        try:
            info = self._ask(OPEN_LIMIT_S, wire.OPEN, self._driver, self._driver_options())
        except CameraError:
            self.close()
            raise
        assert isinstance(info, CameraInfo)
        self.info = info
        return info

    def _driver_options(self) -> dict[str, Any]:
        """Let a replay or a simulation go on where it was: a part must not pass twice because a process died."""
        if self._resume_at and self.info is not None and (self.info.simulated or not self.info.realtime):
            return {**self._options, "start_index": self._resume_at}
        return self._options

    def configure(self, settings: Mapping[str, Setting]) -> Mapping[str, Setting]:
        """Write settings and return them as read back."""
        applied: Mapping[str, Setting] = self._ask(CALL_LIMIT_S, wire.CONFIGURE, dict(settings))
        return applied

    def start(self) -> None:
        """Begin streaming."""
        self._forget_frames()
        self._ask(START_LIMIT_S, wire.START)
        self._streaming, self._stopped = True, False

    def stop(self) -> None:
        """Stop streaming; never raises."""
        self._streaming, self._stopped = False, True
        if self._wire is not None and not self._lost:
            with suppress(CameraError):
                self._ask(CALL_LIMIT_S, wire.STOP)
        self._forget_frames()

    def trigger(self) -> int:
        """Start one exposure in software mode."""
        if self._outstanding:
            raise CameraError("a trigger is still outstanding")
        number = self._ask(CALL_LIMIT_S, wire.TRIGGER)
        assert isinstance(number, int)
        self._outstanding = True
        return number

    def flush(self) -> int:
        """Throw away frames that wait here and in the driver; return how many."""
        waiting = self._forget_frames()
        count: int = self._ask(CALL_LIMIT_S, wire.FLUSH)
        # What the child had already sent before it flushed is stale as well.
        return waiting + count + self._forget_frames()

    def grab(self, timeout_s: float) -> Frame | NoFrame:
        """Wait for the next frame; gives the previous frame's memory back to the camera process."""
        self._release_held()
        deadline = time.monotonic() + timeout_s
        while True:
            self._drain(0.0)
            if not self._stopped and self._waiting:
                return self._take()
            if not self._stopped and self._notices:
                self._outstanding = False
                return self._notices.popleft()
            self._raise_if_lost()
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return NoFrame(NoFrameReason.TIMEOUT)
            self._drain(min(remaining, 0.1))

    def health(self) -> CameraHealth:
        """Report what the child said last, plus what was given up on this side."""
        self._drain(0.0, watch_silence=False)
        missing = dict(self._health.missing)
        if self._overrun:
            missing[Cause.OVERRUN] = missing.get(Cause.OVERRUN, 0) + self._overrun
        return CameraHealth(self._health.frames, missing, self._health.temperature_c)

    def close(self) -> None:
        """End the camera process: asked first, killed after a second. Idempotent, never raises."""
        self._streaming = False
        if self._wire is not None and not self._dead:
            self._lost = ""  # a lost camera is closed in an orderly way as well, or it stays taken for its time-out
            with suppress(CameraError):
                self._ask(CLOSE_LIMIT_S, wire.CLOSE)
        self._end_child()
        self._forget_frames(ending=True)
        self._held = None
        for ring in self._rings.values():
            ring.close()
        self._rings.clear()
        self._health, self._overrun, self._given_up = CameraHealth(), 0, {}

    def _ask(self, limit_s: float, *message: Any) -> Any:
        """Send a command and wait for its one reply; frames that come meanwhile are kept."""
        self._raise_if_lost()
        if self._wire is None:
            raise CameraError("the camera is not open")
        self._replies.clear()
        try:
            self._wire.send(*message)
        except wire.PeerGoneError:
            self._mark_dead(self._obituary())
        deadline = time.monotonic() + limit_s
        while not self._replies:
            self._raise_if_lost()
            if self._hurry.is_set():
                deadline = min(deadline, time.monotonic() + HURRY_S) if limit_s > HURRY_S else deadline
                limit_s = min(limit_s, HURRY_S)
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                self._kill_hung(f"did not answer {message[0]!r} within {limit_s:g} s")
                continue
            self._drain(min(remaining, LOOK_S), watch_silence=False)
        kind, _name, *value = self._replies.popleft()
        if kind == wire.FAILED:
            error_name, text = value
            raise _ERRORS.get(error_name, CameraError)(text)
        return value[0]

    def _drain(self, wait_s: float, *, watch_silence: bool = True) -> None:
        """Read every message that is there, after waiting at most ``wait_s`` for the first."""
        if self._wire is None or self._dead:
            return
        try:
            received = self._wire.receive(wait_s)
            while received is not None:
                self._alive_at = time.monotonic()
                self._note(*received)
                received = self._wire.receive(0.0)
        except wire.PeerGoneError:
            self._mark_dead(self._obituary())
            return
        if watch_silence and self._streaming and time.monotonic() - self._alive_at > self._silence_limit():
            self._kill_hung(f"gave no sign of life for {self._silence_limit():g} s")

    def _silence_limit(self) -> float:
        return self._silence_limit_s * (5 if self._is_replay() else 1)

    def _is_replay(self) -> bool:
        return self.info is not None and not self.info.realtime

    def _note(self, message: tuple[Any, ...], fd: int | None) -> None:
        match message:
            case (wire.FRAME, place, shape, fields):
                self._waiting.append((place, self._frame(place, shape, fields)))
                self._bound_waiting()
            case (wire.NO_FRAME, reason, detail):
                self._notices.append(NoFrame(NoFrameReason(reason), detail))
            case (wire.BEAT, frames, missing, temperature):
                self._health = CameraHealth(frames, missing, temperature)
            case (wire.RING, generation, slots, slot_bytes) if fd is not None:
                for old in self._rings.values():
                    old.close()
                self._rings = {generation: Ring(fd, RingShape(slots, slot_bytes), writable=False)}
            case (wire.LOST, error_name, text):
                self._mark_lost(text, _ERRORS.get(error_name, CameraLostError))
            case (wire.REPLY | wire.FAILED, *_):
                self._replies.append(message)

    def _frame(self, place: tuple[int, int], shape: tuple[int, ...], fields: tuple[Any, ...]) -> Frame:
        slot, generation = place
        frame_id, received_ns, device_ns, trigger_id, missing, source = fields
        image = self._rings[generation].view(slot, shape)
        return Frame(image, frame_id, received_ns, device_ns, trigger_id, missing, source)

    def _bound_waiting(self) -> None:
        if self._is_replay():
            return  # the child waits for room, so a replay never overruns
        while len(self._waiting) > MAX_WAITING:
            place, frame = self._waiting.popleft()
            self._overrun += 1
            self._carry({**frame.missing, Cause.OVERRUN: frame.missing.get(Cause.OVERRUN, 0) + 1})
            self._release(place)

    def _carry(self, missing: Mapping[Cause, int]) -> None:
        for cause, count in missing.items():
            self._given_up[cause] = self._given_up.get(cause, 0) + count

    def _take(self) -> Frame:
        self._held, frame = self._waiting.popleft()
        self._resume_at = frame.frame_id + 1
        self._outstanding = False
        if not self._given_up:
            return frame
        self._carry(frame.missing)
        missing, self._given_up = self._given_up, {}
        return Frame(
            frame.image,
            frame.frame_id,
            frame.received_ns,
            frame.device_ns,
            frame.trigger_id,
            missing,
            frame.source,
        )

    def _release_held(self) -> None:
        if self._held is not None:
            place, self._held = self._held, None
            self._release(place)

    def _release(self, place: tuple[int, int]) -> None:
        if self._wire is None or self._dead:
            return
        try:
            self._wire.send(wire.RELEASE, *place)
        except wire.PeerGoneError:
            self._mark_dead(self._obituary())

    def _forget_frames(self, *, ending: bool = False) -> int:
        """Drop what waits; the files of a replay that nobody triggers are not stale, so they stay until the end."""
        self._outstanding = False
        if self._is_replay() and not self._triggered and not ending:
            return 0
        count = len(self._waiting)
        while self._waiting:
            self._release(self._waiting.popleft()[0])
        self._notices.clear()
        self._release_held()
        return count

    def _raise_if_lost(self) -> None:
        if self._lost:
            raise self._lost_error(self._lost)

    def _mark_lost(self, why: str, error: type[CameraError] = CameraLostError) -> None:
        if not self._lost:
            self._lost, self._lost_error = why, error
        self._streaming = False

    def _mark_dead(self, why: str) -> None:
        self._mark_lost(why)
        self._dead = True

    def _kill_hung(self, what: str) -> None:
        self._mark_dead(f"the camera process (pid {self.pid}) {what}; it was killed")
        self._end_child()

    def _obituary(self) -> str:
        """Say how the child ended, with the signal's name: SIGSEGV points at the vendor's producer."""
        if self._child is None:
            return "the camera process is gone"
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(1.0)
        code = self._child.returncode
        if code is not None and code < 0:
            return f"the camera process (pid {self._child.pid}) was ended by {signal.Signals(-code).name}"
        return f"the camera process (pid {self._child.pid}) ended with exit code {code}"

    def _end_child(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None
        if self._child is not None:
            try:
                self._child.wait(0.0 if self._dead else CLOSE_LIMIT_S)
            except subprocess.TimeoutExpired:
                self._child.kill()
                with suppress(subprocess.TimeoutExpired):  # a process in uninterruptible sleep stays behind; go on
                    self._child.wait(1.0)
            self._child = None
