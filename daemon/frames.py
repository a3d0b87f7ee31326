"""Whole frames for the loop, whatever the camera does: opened, configured, started, and opened anew when it is lost."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from lineward.daemon.retry import Outage, delay_s
from lineward.daemon.states import Event, State
from lineward.drivers.camera import CameraError, CameraSettingError, Cause, Frame, NoFrameReason

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator, Mapping

    from lineward.daemon.health import Alarms, Health
    from lineward.daemon.states import StateMachine
    from lineward.drivers.camera import Camera, CameraInfo, Setting

log = logging.getLogger("lineward.camera")

GRAB_S = 0.1
"""How long one look for a frame may take; the answer to SIGTERM waits at most this long."""

OVERRUN_QUIET_S = 60.0
"""Frames given up are said once, then at most this often while it goes on."""


class FrameSource:
    """Yields frames from one camera until told to stop or, in a replay, until the last file.

    Parameters
    ----------
    camera
        Usually a `CameraProcess`; anything that keeps the `Camera` protocol.
    settings
        Written at every opening, in order.
    triggered
        Whether the camera waits for triggers, which makes the station READY instead of CONTINUOUS_EXECUTION.
    alive
        Called at least once a second while no frame comes.
    """

    def __init__(
        self,
        camera: Camera,
        settings: Mapping[str, Setting],
        *,
        triggered: bool,
        stop: threading.Event,
        states: StateMachine,
        alarms: Alarms,
        health: Health,
        alive: Callable[[], None],
    ) -> None:
        self._camera = camera
        self._settings = settings
        self._streaming_event = Event.ARMED if triggered else Event.STREAMING
        self._stop = stop
        self._states = states
        self._alarms = alarms
        self._health = health
        self._alive = alive
        self._outage = Outage(log, "camera")
        self._attempt = 0
        self._error = CameraError("not opened yet")
        self._applied: Mapping[str, Setting] = {}
        self._opened = False
        self._overrun_said_at = float("-inf")
        self.info: CameraInfo | None = None

    def open(self) -> bool:
        """Open and configure the camera once, without streaming; return whether that worked.

        Raises
        ------
        CameraSettingError
            At the first opening: the configuration is wrong and waiting will not mend it.
        """
        try:
            info = self._camera.open()
            self._applied = self._camera.configure(self._settings)
        except CameraError as error:
            self._camera.close()
            if isinstance(error, CameraSettingError) and self.info is None:
                raise
            self._lost(error)
            return False
        self.info = info
        self._opened = True
        return True

    def start(self) -> bool:
        """Let the opened camera stream; return whether it does."""
        assert self.info is not None
        self._opened = False
        try:
            self._camera.start()
        except CameraError as error:
            self._camera.close()
            self._lost(error)
            return False
        self._attempt = 0
        self._health.camera_openings += 1
        self._outage.over()
        self._alarms.set("camera", "")
        settings = ", ".join(f"{name}={value}" for name, value in self._applied.items())
        log.info("%s (serial %s) streams%s", self.info.name, self.info.serial, f"; {settings}" if settings else "")
        self._states.handle(self._streaming_event)
        return True

    def wait_open(self) -> bool:
        """Try until the camera is open; False when told to stop before."""
        while not self._opened and not self._stop.is_set():
            if not self.open():
                self._back_off()
        return self._opened

    def __iter__(self) -> Iterator[Frame]:
        """Yield whole frames; each is valid until the next is asked for."""
        streaming = False
        while not self._stop.is_set():
            if not streaming:
                streaming = self.wait_open() and self.start()
                continue
            try:
                got = self._camera.grab(GRAB_S)
            except CameraError as error:
                self._camera.close()
                self._lost(error)
                streaming = False
                continue
            if isinstance(got, Frame):
                self._count(got.missing)
                yield got
            elif got.reason is NoFrameReason.END:
                return
            elif got.reason is NoFrameReason.BROKEN_FILE:
                self._health.missing[Cause.BROKEN_FILE] += 1
                log.warning("skipped: %s", got.detail)
            else:  # an incomplete frame is counted with the next whole one
                self._alive()

    def close(self) -> None:
        """Stop and let go of the camera; never raises."""
        self._camera.stop()
        self._camera.close()

    def _lost(self, error: CameraError) -> None:
        self._outage.failed(error)
        self._error = error
        self._alarms.set("camera", f"camera: {error}")
        if self._states.status.state is not State.PREOPERATIONAL:  # while the model loads, that is the reason
            self._states.handle(Event.FAULT, "camera_lost")

    def _back_off(self) -> None:
        """Wait before the next try."""
        self._attempt += 1
        until = time.monotonic() + delay_s(self._error, self._attempt)
        while time.monotonic() < until and not self._stop.wait(0.2):
            self._alive()

    def _count(self, missing: Mapping[Cause, int]) -> None:
        lost = {cause: n for cause, n in missing.items() if cause is not Cause.BROKEN_FILE}  # those were named already
        for cause, count in lost.items():
            self._health.missing[cause] += count
        if not lost or time.monotonic() - self._overrun_said_at < OVERRUN_QUIET_S:
            return
        self._overrun_said_at = time.monotonic()
        text = ", ".join(f"{n} by {cause}" for cause, n in lost.items())
        log.warning("frames were not inspected: %s (all are counted in stats; next notice in a minute)", text)
