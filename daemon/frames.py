"""Parts with their pictures for the loop, whatever the camera does.

The camera is opened, configured, started, and opened anew when it is lost. A part whose picture will not come is
answered here, so that the loop sees only parts that can be judged.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import TYPE_CHECKING

from lineward.daemon.lost_frames import LostFrames
from lineward.daemon.retry import Outage, delay_s
from lineward.daemon.states import Event, State
from lineward.daemon.triggers import Part, Reason
from lineward.drivers.camera import (
    CameraError,
    CameraLostError,
    CameraSettingError,
    Cause,
    Frame,
    NoFrame,
    NoFrameReason,
    Trigger,
)
from lineward.drivers.inbox import MAX_WAITING
from lineward.drivers.lifecycle import Link, Step, follow

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

    from lineward.daemon.answers import Answers
    from lineward.daemon.health import Alarms, Health
    from lineward.daemon.recipes import Switch
    from lineward.daemon.states import StateMachine
    from lineward.daemon.triggers import TriggerBook
    from lineward.drivers.camera import CameraInfo, Setting
    from lineward.drivers.process import CameraProcess

log = logging.getLogger("lineward.camera")

GRAB_S = 0.1
"""How long one look for a frame may take; the answer to SIGTERM waits at most this long."""

LONGEST_BACKOFF_S = 1.0
"""A line that stands still because of a plug must not wait for us once the plug is in again."""

LOOK_EVERY_S = 5.0

MOST_NAMED = 1000
"""Missing frames of one gap that get an answer each; beyond that a camera has been reset, and the count says it."""

_ANSWER_FOR = {Cause.INCOMPLETE: Reason.INCOMPLETE, Cause.OVERRUN: Reason.QUEUE_FULL}
"""What a missing frame is answered with; any other cause is `no_image`."""


class FrameSource:
    """Yields parts with their frames from one camera until told to stop or, in a replay, until the last file.

    Parameters
    ----------
    camera
        The camera in its process.
    settings
        Written at every opening, in order, until a recipe brings others.
    trigger
        What starts an exposure; waiting for a software trigger is READY, anything else CONTINUOUS_EXECUTION.
    memory_mb
        Resident size, in megabytes, from which the camera process is replaced between two parts.
    silent_s
        Seconds without a frame, in free run, after which the camera is opened anew.
    book, answers
        Where triggers come from, and where a part goes that cannot be judged.
    alive
        Called at least once a second while no frame comes.
    """

    def __init__(
        self,
        camera: CameraProcess,
        settings: Mapping[str, Setting],
        *,
        trigger: str,
        memory_mb: float,
        silent_s: float,
        stop: threading.Event,
        states: StateMachine,
        alarms: Alarms,
        health: Health,
        book: TriggerBook,
        answers: Answers,
        alive: Callable[[], None],
    ) -> None:
        self._camera = camera
        self._settings = settings
        self._triggered = trigger == Trigger.SOFTWARE
        self._free_run = trigger == Trigger.FREE_RUN
        self._silent_s = silent_s
        self._memory_mb = memory_mb
        self._stop = stop
        self._states = states
        self._alarms = alarms
        self._health = health
        self._book = book
        self._answers = answers
        self._alive = alive
        self._outage = Outage(log, "link")
        self._attempt = 0
        self._error = CameraError("not opened yet")
        self._applied: Mapping[str, Setting] = {}
        self._losses = LostFrames(health, alarms)
        self._looked_at = self._frame_at = 0.0
        self._waiting: deque[tuple[Part, Reason | None]] = deque()
        """Parts whose frames came and that are not judged yet, the oldest first. Behind them, with their answer, those
        whose frames are known to be missing: answers go out in the order of the frames."""
        self.link = Link.CLOSED
        self.info: CameraInfo | None = None

    def open(self) -> bool:
        """Open and configure the camera once, without streaming; return whether that worked.

        Raises
        ------
        CameraSettingError
            At the first opening: the configuration is wrong and waiting will not mend it.
        """
        self._go(Step.OPEN)
        try:
            info = self._camera.open()
            self._losses.opened()
            self._applied = self._camera.configure(self._settings)
        except CameraError as error:
            if isinstance(error, CameraSettingError) and self.info is None:
                self.close()
                raise
            self._fail(error)
            return False
        self.info = self._answers.camera = info
        self._book.realtime = info.realtime
        self._go(Step.CONFIGURE)
        return True

    def start(self) -> bool:
        """Let the opened camera stream; return whether it does."""
        assert self.info is not None
        try:
            self._camera.start()
        except CameraError as error:
            self._fail(error)
            return False
        self._go(Step.START)
        self._attempt = 0
        self._looked_at = self._frame_at = time.monotonic()
        self._health.camera_openings += 1
        self._outage.over()
        self._alarms.set("camera", "", logged=True)
        settings = ", ".join(f"{name}={value}" for name, value in self._applied.items())
        log.info("%s (serial %s) streams%s", self.info.name, self.info.serial, f"; {settings}" if settings else "")
        if self._states.status.state in {State.INITIALIZED, State.ERROR}:
            self._states.handle(Event.ARMED if self._triggered else Event.STREAMING)
        self._book.camera_up = True
        return True

    def wait_open(self) -> bool:
        """Try until the camera is open; False when told to stop before."""
        while self.link is not Link.CONFIGURED and not self._stop.is_set():
            if not self.open():
                self._back_off()
        return self.link is Link.CONFIGURED

    def __iter__(self) -> Iterator[Part]:
        """Yield parts with their frames; each frame is valid until the next part is asked for."""
        while not self._stop.is_set():
            if self.link not in {Link.STREAMING, Link.DEGRADED}:
                if self.link is Link.CONFIGURED or self.open():
                    self.start()
                if self.link not in {Link.STREAMING, Link.DEGRADED}:
                    self._back_off()
                continue
            try:
                if self._is_too_large():
                    yield from self._replace_process()
                elif (yield from self._next_triggered() if self._triggered else self._next_frame()):
                    return
            except CameraError as error:
                self._fail(error)

    def _next_frame(self) -> Generator[Part, None, bool]:
        """Look once for a frame that came by itself; return whether it was the end of a replay."""
        switch = self._book.wanted_switch()
        if switch is not None:
            try:
                yield from self._frames_before(switch)
            except CameraError as error:
                switch.done("camera_lost", str(error))
                raise
            self._change_over(switch)
        ended = self._gather(GRAB_S) is NoFrameReason.END
        yield from self._judge_one()
        while ended and self._waiting:
            yield from self._judge_one()
        return ended

    def _gather(self, timeout_s: float) -> NoFrameReason | None:
        """Take what came by itself, so that the deadline of each part that waits is known; wait only if none does.

        Returns why there is nothing more, or None when there may be.
        """
        for _ in range(2 * MAX_WAITING if self._book.realtime else 1):  # the next file of a replay waits without harm
            try:
                got = self._camera.take(0.0 if self._waiting else timeout_s)
                self._watch_silence(got)
            except CameraError:
                if self._waiting:  # they came whole, and their parts passed
                    return None
                raise
            if isinstance(got, Frame):
                self._take_in(got)
                continue
            if got.reason is NoFrameReason.INCOMPLETE:
                self._take_in_pieces(got)
                timeout_s = 0.0
                continue
            if got.reason is NoFrameReason.BROKEN_FILE:
                self._losses.broken_file(got.detail)
            elif got.reason is not NoFrameReason.END and not self._waiting:
                self._alive()
            return got.reason
        if not self._waiting:
            self._alive()
        return None

    def _judge_one(self) -> Iterator[Part]:
        """Yield the part that has waited longest, unless its time is over; then give its frame back."""
        if not self._waiting:
            return
        part, _ = self._waiting.popleft()
        try:
            if self._book.turn(part):
                yield part
            else:  # at once, if the deadline clock has not done so: those behind it may have their answers already
                self._answers.undecided(part, Reason.TIMEOUT)
        finally:
            assert part.frame is not None
            self._camera.release(part.frame)
            self._answer_due()

    def _answer_due(self) -> None:
        """Answer the parts without a frame before which none waits to be judged: the oldest that waits has a frame."""
        while self._waiting and (reason := self._waiting[0][1]) is not None:
            self._answers.undecided(self._waiting.popleft()[0], reason)

    def _answer_missed(self, frame_id: int | None, reason: Reason) -> None:
        """Answer a part whose frame is missing as soon as those before it have their answers."""
        self._waiting.append((self._book.missed(frame_id), reason))
        self._answer_due()

    def _take_in(self, frame: Frame) -> None:
        """Answer the frames that are missing before this one, then let this one's part wait; the oldest makes room."""
        lost = self._losses.before(frame)
        self._show_spell()
        self._answer_lost(lost, frame.frame_id - len(lost))
        self._waiting.append((self._book.from_frame(frame), None))
        if sum(reason is None for _, reason in self._waiting) > MAX_WAITING:
            oldest, _ = self._waiting.popleft()
            self._answers.undecided(oldest, Reason.QUEUE_FULL)
            self._losses.given_up()
            self._show_spell()
            assert oldest.frame is not None
            self._camera.release(oldest.frame)
            self._answer_due()

    def _take_in_pieces(self, got: NoFrame) -> None:
        """Answer the part whose frame is incomplete now: the next whole one may come long after the deadline."""
        frame_id = self._losses.incomplete(got.detail)
        self._show_spell()
        if self._book.realtime:
            self._answer_missed(frame_id, Reason.INCOMPLETE)

    def _answer_lost(self, lost: Sequence[Cause], first_id: int | None, stopped: Reason = Reason.CAMERA_LOST) -> None:
        """Answer the parts whose frames are missing; each uses up the id that was announced for it."""
        if not self._book.realtime or self._triggered:
            return  # nobody waits for an answer, or the part that was asked for gets one by its own number
        for place, cause in enumerate(lost[:MOST_NAMED]):
            frame_id = None if first_id is None or first_id + place < 0 else first_id + place
            reason = stopped if cause is Cause.STOPPED else _ANSWER_FOR.get(cause, Reason.NO_IMAGE)
            self._answer_missed(frame_id, reason)

    def _answer_rest(self, stopped: Reason) -> None:
        """Count and answer what was lost after the last frame of a stream that has ended."""
        self._answer_lost(self._losses.after_all(self._camera.health().missing), None, stopped)

    def _next_triggered(self) -> Generator[Part, None, bool]:
        """Wait a little for a trigger, expose, and yield the part with its frame; return whether a replay has ended."""
        item = self._book.next(GRAB_S)
        if item is None:
            got = self._camera.grab(0.0)  # nothing was asked for, but a camera that went away says so here
            self._alive()
            return isinstance(got, NoFrame) and got.reason is NoFrameReason.END
        if not isinstance(item, Part):
            self._change_over(item)
            return False
        exposed = self._expose(item)
        if isinstance(exposed, Frame):
            self._losses.before(exposed)
            self._show_spell()
            yield self._book.imaged(item, exposed)
        return exposed is NoFrameReason.END

    def _expose(self, part: Part) -> Frame | NoFrameReason | None:
        """Take the picture of one part; when there is none the part has its answer, and the camera's reason is told."""
        recipe = part.recipe
        if recipe is None or dict(recipe.settings) != dict(self._settings):
            self._answers.undecided(part, Reason.WRONG_PRODUCT)  # the camera is set up for the next product already
            return None
        try:
            number = self._camera.trigger()
            while part.seq is None:
                got = self._camera.grab(GRAB_S)
                if isinstance(got, Frame):
                    if got.trigger_id == number:
                        return got
                elif got.reason is not NoFrameReason.TIMEOUT:
                    self._answer_without(part, got)
                    return got.reason
                self._alive()
                if self._stop.is_set():
                    return None
            self._camera.flush()  # its time is over: a frame that comes now must not be taken for the next part's;
            # the driver counts it as missing, and says so with the next whole frame
        except CameraError:
            self._answers.undecided(part, Reason.CAMERA_LOST)
            raise
        return None

    def _answer_without(self, part: Part, got: NoFrame) -> None:
        """Answer a part whose frame came in pieces, whose file is broken, or that comes after the last file."""
        reason = Reason.NO_IMAGE
        if got.reason is NoFrameReason.INCOMPLETE:
            reason = Reason.INCOMPLETE
            self._losses.incomplete(got.detail)
            self._show_spell()
        elif got.reason is NoFrameReason.BROKEN_FILE:
            self._losses.broken_file(got.detail)
        self._answers.undecided(part, reason)

    def _frames_before(self, switch: Switch) -> Iterator[Part]:
        """Yield the parts whose frames came before a change of recipe was asked for: the old recipe judges them."""
        if dict(switch.recipe.settings) == dict(self._settings) or not self._book.realtime:
            return  # nothing is thrown away, and the book knows by the time of a frame which recipe it belongs to
        yield from self._use_up(Reason.WRONG_PRODUCT)

    def _use_up(self, flushed: Reason) -> Iterator[Part]:
        """Yield the parts whose frames are here, and answer those whose frames the camera still holds."""
        self._gather(0.0)
        while self._waiting:
            yield from self._judge_one()
        for _ in range(self._camera.flush()):
            self._answers.undecided(self._book.missed(None), flushed)

    def _replace_process(self) -> Iterator[Part]:
        """Let go of the camera between two parts. Nobody can know which announced parts pass by meanwhile."""
        if self._triggered or not self._book.realtime:
            self._let_go()  # triggers wait for the next process, and so do files
            return
        yield from self._use_up(Reason.CAMERA_LOST)
        self._let_go()
        for part in self._book.camera_went():
            self._answers.undecided(part, Reason.CAMERA_LOST)

    def _change_over(self, switch: Switch) -> None:
        """Put another recipe in force; when the camera refuses its settings the old one stays.

        A picture that was taken with the new settings is never judged by the old recipe.
        """
        since_ns = None
        if dict(switch.recipe.settings) != dict(self._settings):
            try:
                self._camera.stop()
                self._answer_rest(Reason.WRONG_PRODUCT)
                self._applied = self._camera.configure(switch.recipe.settings)
                since_ns = self._book.now_ns()
                self._camera.start()
            except CameraSettingError as error:
                switch.done("setting_refused", str(error))
                self._applied = self._camera.configure(self._settings)
                self._camera.start()
                return
            except CameraError as error:
                switch.done("camera_lost", str(error))
                raise
            self._settings = switch.recipe.settings
            self._frame_at = time.monotonic()
        self._book.activate(switch.recipe, since_ns=since_ns)
        switch.done("", "")

    def close(self) -> None:
        """Stop and let go of the camera; never raises. What is lost by now is counted; the station says `stopped`."""
        self._book.camera_up = False
        self._camera.stop()
        self._losses.after_all(self._camera.health().missing)
        self._camera.close()
        self._go(Step.CLOSE)
        for part, reason in self._waiting:
            if reason is not None:
                self._answers.undecided(part, reason)

    def _let_go(self) -> None:
        self._camera.stop()
        self._answer_rest(Reason.CAMERA_LOST)
        self._camera.close()
        self._go(Step.CLOSE)

    def _go(self, step: Step) -> None:
        self.link = follow(self.link, step)
        self._health.camera_state = self.link

    def _fail(self, error: CameraError) -> None:
        """Close what failed, and say so once per outage."""
        self._go(Step.FAIL)
        self._outage.failed(error)
        self._error = error.with_traceback(None)  # a traceback would keep the last frame's shared memory
        self._alarms.set("camera", f"camera: {error}", logged=True)
        if self._states.status.state is not State.PREOPERATIONAL:  # while the model loads, that is the reason
            self._states.handle(Event.FAULT, "camera_lost")
        self._camera.stop()
        self._answer_rest(Reason.CAMERA_LOST)
        for part in self._book.camera_went():
            self._answers.undecided(part, Reason.CAMERA_LOST)
        self._camera.close()
        self._go(Step.GIVE_UP)

    def _back_off(self) -> None:
        """Wait before the next try; the first try after a loss comes at once."""
        self._attempt += 1
        until = time.monotonic() + min(LONGEST_BACKOFF_S, delay_s(self._error, self._attempt))
        while not self._stop.is_set() and (left := until - time.monotonic()) > 0:
            switch = self._book.wanted_switch()
            if switch is not None and dict(switch.recipe.settings) == dict(self._settings):
                self._change_over(switch)  # a promotion, say: the camera's part stays as it is
            elif switch is not None:
                switch.done("camera_lost", "there is no camera to try its settings on")
            self._stop.wait(min(left, 0.2))
            self._alive()

    def _watch_silence(self, got: Frame | NoFrame) -> None:
        """Raise when a camera that runs freely has sent nothing for too long; a triggered one may be silent."""
        now = time.monotonic()
        if isinstance(got, Frame) or got.reason is NoFrameReason.INCOMPLETE or not self._free_run:
            self._frame_at = now
        elif now - self._frame_at > self._silent_s:
            raise CameraLostError(f"sent no frame for {self._silent_s:g} s although it runs freely; opened anew")

    def _is_too_large(self) -> bool:
        """Tell a camera process beyond its budget: vendors' producers leak, and one that is replaced does not crash."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_EVERY_S:
            return False
        self._looked_at = now
        self._health.temperature_c = self._camera.health().temperature_c
        resident_mb = self._camera.resident_mb()
        if resident_mb <= self._memory_mb:
            return False
        log.info("the camera process has %.0f MB (budget %.0f MB): replaced", resident_mb, self._memory_mb)
        self._health.camera_recycles += 1
        return True

    def _show_spell(self) -> None:
        """Let the state of the connection say whether frames are being lost."""
        if self._losses.lasting:
            self._go(Step.LOSE_FRAMES)
        elif self.link is Link.DEGRADED:
            self._go(Step.RECOVER)
