"""The camera process: one driver, one loop, frames into the ring. Started by `process.py`, never by hand."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import time
from collections import Counter
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from lineward.drivers import progress, registry, wire
from lineward.drivers.beat import BEAT_S, Beat
from lineward.drivers.camera import (
    CameraError,
    CameraHealth,
    CameraLostError,
    CameraSettingError,
    Cause,
    Frame,
    NoFrame,
    NoFrameReason,
    Trigger,
)
from lineward.drivers.ring import Ring, RingShape

if TYPE_CHECKING:
    from lineward.drivers.camera import Camera, CameraInfo

GRAB_SLICE_S = 0.02  # how long a command may wait behind a grab
IDLE_S = 0.1
ASK_S = 0.5
IMPORT_S = 20.0  # our own code and its libraries, from a cold disk; nothing of a camera's maker yet
_PR_SET_PDEATHSIG = 1


class Worker:
    """Serves one driver to the inspection process until told to close or left alone."""

    def __init__(self, channel: wire.Wire, beat: Beat) -> None:
        self._wire = channel
        self._beat = beat
        self._camera: Camera | None = None
        self._info: CameraInfo | None = None
        self._streaming = False
        self._software = False
        self._outstanding = False  # a software trigger waits for its frame
        self._ended = False
        self._ring: Ring | None = None
        self._generation = 0
        self._free: list[int] = []
        self._dropped: Counter[Cause] = Counter()  # lost since the last frame that went through
        self._overrun = 0
        self._looked_at = self._asked_at = 0.0

    def run(self) -> None:
        """Answer commands and deliver frames until the other side is gone."""
        progress.listen(lambda *phase: self._wire.send(wire.PHASE, *phase))
        while True:
            progress.step()
            message = self._wire.receive(0.0 if self._ready_to_grab() else IDLE_S)
            while message is not None:
                self._obey(message[0])
                message = self._wire.receive(0.0)
            if self._ready_to_grab():
                self._grab(GRAB_SLICE_S)
            if time.monotonic() - self._looked_at >= BEAT_S:
                self._look_after_health()
            if self._idles() and time.monotonic() - self._asked_at >= ASK_S:
                self._grab(0.0)  # a camera that went away, or a replay that ended, says so before the next trigger

    def _ready_to_grab(self) -> bool:
        if not self._streaming or self._ended or (self._software and not self._outstanding):
            return False
        # A replay waits for room; a camera is read even without, or it would deliver stale frames later.
        return bool(self._free) or self._ring is None or not self._is_replay()

    def _idles(self) -> bool:
        return self._streaming and self._software and not self._outstanding and not self._ended

    def _is_replay(self) -> bool:
        return self._info is not None and not self._info.realtime

    def _look_after_health(self) -> None:
        """Leave what the driver says about itself for the next beat."""
        self._looked_at = time.monotonic()
        if self._camera is None:
            return
        health = self._camera.health()
        missing = dict(health.missing)
        if self._overrun:
            missing[Cause.OVERRUN] = missing.get(Cause.OVERRUN, 0) + self._overrun
        self._beat.health = CameraHealth(health.frames, missing, health.temperature_c)

    def _tell_losses(self) -> None:
        """Say what was lost until now, without waiting for the next frame or beat."""
        self._look_after_health()
        self._beat.send()

    def _obey(self, message: tuple[Any, ...]) -> None:
        name, *arguments = message
        if name == wire.RELEASE:
            slot, generation = arguments
            if generation == self._generation:
                self._free.append(slot)
            return
        try:
            value = self._call(name, arguments)
        except CameraError as error:
            self._wire.send(wire.FAILED, name, type(error).__name__, str(error))
        except ValueError as error:  # an impossible option: trying again will not mend it
            self._wire.send(wire.FAILED, name, CameraSettingError.__name__, str(error))
        except Exception as error:  # noqa: BLE001 - a driver's fault is the parent's to report
            self._wire.send(wire.FAILED, name, CameraLostError.__name__, f"the driver failed: {error!r}")
        else:
            self._wire.send(wire.REPLY, name, value)

    def _call(self, name: str, arguments: list[Any]) -> object:
        if name == wire.OPEN:
            driver, options = arguments
            with progress.phase("loading the driver", silent_s=IMPORT_S, still_s=IMPORT_S):
                self._camera = registry.create(driver, options)
            self._software = options.get("trigger") == Trigger.SOFTWARE
            self._info = self._camera.open()
            return self._info
        if name == wire.CLOSE:
            self._leave()
        camera = self._camera
        if camera is None:
            raise CameraError("the camera is not open")
        match name:
            case wire.CONFIGURE:
                return dict(camera.configure(arguments[0]))
            case wire.START:
                camera.start()
                self._streaming, self._outstanding, self._ended, self._dropped = True, False, False, Counter()
                return None
            case wire.STOP:
                self._streaming = False
                camera.stop()
                self._look_after_health()
                return self._beat.health
            case wire.TRIGGER:
                trigger_id = camera.trigger()
                self._outstanding = True
                return trigger_id
            case wire.FLUSH:
                self._outstanding = False
                self._ended = False  # the news of a replay's end may be among what is thrown away
                return camera.flush()
            case _:
                raise CameraError(f"unknown command {name!r}")

    def _leave(self) -> None:
        if self._camera is not None:
            self._camera.close()
        self._wire.send(wire.REPLY, wire.CLOSE, None)
        raise SystemExit(0)

    def _grab(self, timeout_s: float) -> None:
        camera = self._camera
        assert camera is not None
        self._asked_at = time.monotonic()
        try:
            got = camera.grab(timeout_s)
        except CameraError as error:
            self._streaming = False
            self._tell_losses()  # no frame will tell them
            self._wire.send(wire.LOST, type(error).__name__, str(error))
            return
        if isinstance(got, Frame):
            self._outstanding = False
            self._deliver(got)
        else:
            self._report(got)

    def _report(self, got: NoFrame) -> None:
        if got.reason is NoFrameReason.TIMEOUT:
            return
        self._outstanding = False  # an incomplete frame or a broken file has used up the trigger
        if got.reason is NoFrameReason.END:
            self._ended = True
        self._wire.send(wire.NO_FRAME, got.reason, got.detail)

    def _deliver(self, frame: Frame) -> None:
        image = frame.image
        if self._ring is None or image.nbytes > self._ring.shape.slot_bytes:
            self._replace_ring(image.nbytes)
        assert self._ring is not None
        if not self._free:
            self._dropped.update(frame.missing)
            self._dropped[Cause.OVERRUN] += 1
            self._overrun += 1
            self._tell_losses()  # at once: a process that crashes next tells nothing any more
            return
        slot = self._free.pop()
        np.copyto(self._ring.view(slot, image.shape), image)
        missing = dict(self._dropped + Counter(frame.missing))
        self._dropped.clear()
        self._wire.send(
            wire.FRAME,
            (slot, self._generation),
            image.shape,
            (frame.frame_id, frame.received_ns, frame.device_ns, frame.trigger_id, missing, frame.source),
        )

    def _replace_ring(self, frame_bytes: int) -> None:
        """Make a ring for larger frames; the old one lives on in the parent until its last frame is judged."""
        if self._ring is not None:
            self._ring.close()
        self._ring = Ring.create(RingShape.for_frames(frame_bytes))
        self._generation += 1
        self._free = list(range(self._ring.shape.slots))
        shape = self._ring.shape
        self._wire.send(wire.RING, self._generation, shape.slots, shape.slot_bytes, fd=self._ring.fd)


def main(arguments: list[str]) -> int:
    """Serve the socket whose descriptor is the first argument; the second is the parent's pid."""
    descriptor, parent = int(arguments[0]), int(arguments[1])
    # Ctrl-C reaches the whole terminal group, systemd's SIGTERM the whole unit; the parent says when to go. Its death
    # takes us along, even out of a native call that never returns.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return 0
    channel = wire.Wire(socket.socket(fileno=descriptor))
    with closing(channel), suppress(wire.PeerGoneError):
        beat = Beat(channel)
        beat.start()
        try:
            Worker(channel, beat).run()
        finally:
            beat.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
