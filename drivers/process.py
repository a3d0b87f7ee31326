"""A camera in a process of its own: the driver may hang or crash, the line sees a `CameraLostError` and goes on."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from contextlib import suppress
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
from lineward.drivers.child import Child
from lineward.drivers.inbox import MAX_WAITING, Inbox
from lineward.drivers.vigil import Vigil

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lineward.drivers.camera import Setting

__all__ = ["MAX_WAITING", "CameraProcess"]

LONGEST_ORDER_S = 120.0
"""However well it gets on. A hung order is found by the `Vigil`, after seconds."""

CLOSE_LIMIT_S = 1.0
HURRY_S = 0.5
LOOK_S = 0.1  # how soon a waiting call notices that it has to hurry
REPLAY_PATIENCE = 5  # one very large file may take seconds to decode

_ERRORS: dict[str, type[CameraError]] = {
    name: getattr(errors, name)
    for name in ("CameraError", "CameraNotFoundError", "CameraBusyError", "CameraSettingError", "CameraLostError")
}


class CameraProcess:
    """Keeps the `Camera` protocol from the inspection side; the driver runs in a child process.

    Frames come through shared memory without a copy on this side. A child that hangs, in a call that never returns or
    otherwise, is found by `Vigil` and killed by its pid; the call that waits for it, or the next one, raises
    `CameraLostError`. `open` starts a new process. The thread that calls `open` must live on: see `Child`.

    Parameters
    ----------
    driver, options
        Name and keyword arguments for `registry.create`.
    silence_limit_s
        Seconds without a sign of life after which a streaming child counts as hung; see `Vigil` for orders. A replay
        gets five times as much.
    hurry
        Once it is set, a call that waits for the child gives up after half a second and kills it.
    alive
        Called several times a second while an order is waited for that gets on; must not raise.
    """

    def __init__(
        self,
        driver: str,
        options: Mapping[str, Any],
        *,
        silence_limit_s: float = 2.0,
        hurry: threading.Event | None = None,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self._driver = driver
        self._options = dict(options)
        self._silence_limit_s = silence_limit_s
        self._hurry = hurry or threading.Event()
        self._alive = alive
        self._child: Child | None = None
        self._vigil = Vigil(silence_limit_s, 0.0)
        self._inbox = Inbox(self._release)
        self._replies: deque[tuple[Any, ...]] = deque()
        self._resume_at = 0
        self._triggered = options.get("trigger") == Trigger.SOFTWARE
        self._outstanding = False  # a trigger whose frame this side has not taken yet
        self._lost = ""  # why no frame will come any more; the child may still be there to close the camera
        self._lost_error: type[CameraError] = CameraLostError
        self._dead = False  # the child is gone or hung
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
        return 0.0 if self._child is None else self._child.resident_mb()

    def open(self) -> CameraInfo:
        """Start a camera process and open the camera in it."""
        self.close()
        self._child = Child()
        self._vigil = Vigil(self._silence_limit_s, time.monotonic())
        self._lost, self._dead = "", False
        try:
            info = self._ask(LONGEST_ORDER_S, wire.OPEN, self._driver, self._driver_options())
        except CameraError:
            self.close()
            raise
        assert isinstance(info, CameraInfo)
        self.info = info
        if self._is_replay():
            self._vigil.limit_s = self._silence_limit_s * REPLAY_PATIENCE
        return info

    def _driver_options(self) -> dict[str, Any]:
        """Let a replay or a simulation go on where it was: a part must not pass twice because a process died."""
        if self._resume_at and self.info is not None and (self.info.simulated or not self.info.realtime):
            return {**self._options, "start_index": self._resume_at}
        return self._options

    def configure(self, settings: Mapping[str, Setting]) -> Mapping[str, Setting]:
        """Write settings while stopped, also between two recipes, and return them as read back.

        After a `CameraSettingError` the camera is open and usable: the settings before the refused one are written,
        those after it are not. Configure it anew, then start.
        """
        applied: Mapping[str, Setting] = self._ask(LONGEST_ORDER_S, wire.CONFIGURE, dict(settings))
        return applied

    def start(self) -> None:
        """Begin streaming."""
        self._forget_frames()
        self._ask(LONGEST_ORDER_S, wire.START)
        self._streaming, self._stopped = True, False

    def stop(self) -> None:
        """Stop streaming; never raises. Frames that still wait here are counted as `Cause.STOPPED`.

        From now on `health` knows every loss, also those after the last frame, which no other frame will tell.
        """
        self._streaming, self._stopped = False, True
        if self._child is not None and not self._lost:
            with suppress(CameraError):
                self._health = self._ask(LONGEST_ORDER_S, wire.STOP)
        self._outstanding = False
        if self._is_replay():
            self._forget_frames()
        else:
            self._inbox.stop()

    def trigger(self) -> int:
        """Start one exposure in software mode; at most one is outstanding, until its answer was grabbed or `flush`.

        Takes a millisecond or two. Only the first trigger after one that was given up waits until the late frame has
        come or cannot come any more, so that it is never taken for this trigger's: at most exposure + readout + the
        time of one frame at 40 MB/s + 0.25 s, counted from the trigger that was given up.
        """
        if self._outstanding:
            raise CameraError("a trigger is still outstanding")
        number = self._ask(LONGEST_ORDER_S, wire.TRIGGER)
        assert isinstance(number, int)
        self._outstanding = True
        return number

    def flush(self) -> int:
        """Throw away frames that wait here and in the driver, give up an outstanding trigger; return how many.

        The way to give up a trigger whose deadline has passed: it is counted as `Cause.TRIGGER_MISSED`, its frame is
        never delivered, and the next `trigger` is allowed. Takes at most 20 ms (the slice of a grab that the order
        may wait behind) and the driver's own time, a few register accesses; it never waits for the late frame.
        """
        self._raise_if_lost()  # what waits came whole and is still delivered
        outstanding = self._outstanding
        waiting = self._forget_frames()
        count: int = self._ask(LONGEST_ORDER_S, wire.FLUSH)
        # What the child had already sent before it flushed is stale as well.
        waiting += self._forget_frames()
        if outstanding and waiting:  # the frame was on its way, so that the driver knows of no missed trigger
            self._inbox.lose(Cause.TRIGGER_MISSED)
        return waiting + count

    def grab(self, timeout_s: float) -> Frame | NoFrame:
        """Wait for the next frame; gives the memory of all frames before back to the camera process."""
        self._inbox.release_held()
        return self.take(timeout_s)

    def release(self, frame: Frame) -> None:
        """Give the memory of a frame back to the camera process; its image must not be looked at any more."""
        self._inbox.release(frame)

    def take(self, timeout_s: float) -> Frame | NoFrame:
        """Wait for the next frame and hold it until `release`, or until all are given back by `grab` or `stop`.

        Each held frame takes a place that the camera process cannot write to; there are 3 to 12.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            self._drain(0.0)
            got = None if self._stopped else self._inbox.take()
            if got is not None:
                self._outstanding = False
                if isinstance(got, Frame):
                    self._resume_at = got.frame_id + 1
                return got
            self._raise_if_lost()
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return NoFrame(NoFrameReason.TIMEOUT)
            self._drain(min(remaining, LOOK_S))

    def health(self) -> CameraHealth:
        """Report what the child said last, plus what was given up on this side."""
        self._drain(0.0, watch=False)
        missing = Counter(self._health.missing) + self._inbox.lost
        return CameraHealth(self._health.frames, dict(missing), self._health.temperature_c)

    def close(self) -> None:
        """End the camera process: asked first, killed after a second. Idempotent, never raises."""
        self._streaming = False
        if self._child is not None and not self._dead:
            self._lost = ""  # a lost camera is closed in an orderly way as well, or it stays taken for its time-out
            with suppress(CameraError):
                self._ask(CLOSE_LIMIT_S, wire.CLOSE)
        self._end_child()
        self._outstanding = False
        self._inbox.close()
        self._health = CameraHealth()

    def _ask(self, limit_s: float, *message: Any) -> Any:
        """Send an order and wait for its one reply; frames that come meanwhile are kept."""
        self._raise_if_lost()
        if self._child is None:
            raise CameraError("the camera is not open")
        self._replies.clear()
        self._vigil.order(message[0], time.monotonic())
        try:
            kind, _name, *value = self._reply_to(message, limit_s)
        finally:
            self._vigil.order("", time.monotonic())
        if kind == wire.FAILED:
            error_name, text = value
            raise _ERRORS.get(error_name, CameraError)(text)
        return value[0]

    def _reply_to(self, message: tuple[Any, ...], limit_s: float) -> tuple[Any, ...]:
        assert self._child is not None
        with suppress(wire.PeerGoneError):  # found when all that it sent is read
            self._child.wire.send(*message)
        deadline = time.monotonic() + limit_s
        while not self._replies:
            self._raise_if_lost()
            if self._hurry.is_set() and limit_s > HURRY_S:
                limit_s = HURRY_S
                deadline = min(deadline, time.monotonic() + HURRY_S)
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                self._kill_hung(f"did not answer {message[0]!r} within {limit_s:g} s")
                continue
            self._drain(min(remaining, LOOK_S))
            self._alive()  # what hangs was found by `_drain`: who waits here is not hung either
        return self._replies.popleft()

    def _drain(self, wait_s: float, *, watch: bool = True) -> None:
        """Read every message that is there, after waiting at most ``wait_s`` for the first."""
        if self._child is None or self._dead:
            return
        try:
            received = self._child.wire.receive(wait_s)
            while received is not None:
                self._note(*received)
                received = self._child.wire.receive(0.0)
        except wire.PeerGoneError:
            self._mark_dead(self._child.obituary())
            return
        if watch and (self._streaming or (self._vigil.waits and not self._replies)):
            why = self._vigil.verdict(time.monotonic())
            if why:
                self._kill_hung(why)

    def _is_replay(self) -> bool:
        return self.info is not None and not self.info.realtime

    def _note(self, message: tuple[Any, ...], fd: int | None) -> None:
        now = time.monotonic()
        if message[0] == wire.BEAT:
            _, steps, frames, missing, temperature = message
            self._vigil.beat(steps, now)
            missing = dict(Counter(missing) | Counter(self._health.missing))  # a beat may be older than an answer
            self._health = CameraHealth(frames, missing, temperature)
            return
        self._vigil.moved(now)
        match message:
            case (wire.FRAME, place, shape, fields):
                self._inbox.put(place, shape, fields, bounded=not self._is_replay())
            case (wire.NO_FRAME, reason, detail):
                self._inbox.note(NoFrame(NoFrameReason(reason), detail))
            case (wire.PHASE, doing, silent_s, still_s):
                self._vigil.phase(doing, silent_s, still_s)
            case (wire.RING, generation, slots, slot_bytes) if fd is not None:
                self._inbox.use_ring(fd, generation, slots, slot_bytes)
            case (wire.LOST, error_name, text):
                self._mark_lost(text, _ERRORS.get(error_name, CameraLostError))
            case (wire.REPLY | wire.FAILED, *_):
                self._replies.append(message)

    def _release(self, slot: int, generation: int) -> None:
        if self._child is None or self._dead:
            return
        with suppress(wire.PeerGoneError):  # found when all that it sent is read
            self._child.wire.send(wire.RELEASE, slot, generation)

    def _forget_frames(self) -> int:
        """Drop what waits; the files of a replay that nobody triggers are not stale, so they stay."""
        self._outstanding = False
        if self._is_replay() and not self._triggered:
            return 0
        return self._inbox.forget()

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

    def _end_child(self) -> None:
        if self._child is not None:
            self._child.end(0.0 if self._dead else CLOSE_LIMIT_S)
            self._child = None
