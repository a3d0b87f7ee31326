"""Frames that were never judged: each counted once under its cause, and told to the operator while losses last."""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import TYPE_CHECKING

from lineward.drivers.camera import Cause

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lineward.daemon.health import Alarms, Health
    from lineward.drivers.camera import Frame

log = logging.getLogger("lineward.camera")

RECOVERED_S = 10.0
"""After so long without a lost frame the connection counts as sound again."""

_REMEDY = {
    Cause.CAMERA_GAP: "the camera itself left frames out: lower its frame rate or check the link's bandwidth",
    Cause.INCOMPLETE: "data was lost on the way: check cable, switch, MTU and receive buffers",
    Cause.UNDERRUN: "the producer had no free buffer: the machine is too busy or the frame rate too high",
    Cause.OVERRUN: "inspection is slower than the camera: lower the frame rate or take a faster model",
    Cause.TRIGGER_MISSED: "a trigger gave no frame: triggers come faster than exposure and readout allow",
}


class LostFrames:
    """Counts what a camera process tells of losses, which may be before, with, or without a frame that follows.

    An incomplete frame is told at once, and told again by the next whole frame; what is lost after the last frame of a
    stream is told by none, only by the camera's own counters.
    """

    def __init__(self, health: Health, alarms: Alarms) -> None:
        self._health = health
        self._alarms = alarms
        self._spell: Counter[Cause] = Counter()  # of the present spell of losses
        self._lost_at = 0.0
        self._told: Counter[Cause] = Counter()  # counted here since the camera was opened
        self._ahead = 0  # incomplete frames counted since the last whole one
        self._next_id: int | None = None

    @property
    def lasting(self) -> bool:
        """Say whether frames are being lost at present."""
        return bool(self._spell)

    def opened(self) -> None:
        """Begin anew with a camera that counts from nothing."""
        self._told.clear()
        self._end_stream()

    def incomplete(self, detail: str) -> int | None:
        """Count a frame that came in pieces; return its number, as far as can be told from the frame before it."""
        self._ahead += 1
        self._told[Cause.INCOMPLETE] += 1
        self._count({Cause.INCOMPLETE: 1}, detail)
        number = self._next_id
        if number is not None:
            self._next_id = number + 1
        return number

    def before(self, frame: Frame) -> list[Cause]:
        """Count what a frame says is missing before it and was not told yet; return the cause of each."""
        fresh = _nameless(frame.missing)
        fresh[Cause.INCOMPLETE] -= min(self._ahead, fresh[Cause.INCOMPLETE])
        self._end_stream()
        self._next_id = frame.frame_id + 1
        self._told.update(fresh)
        self._count(+fresh)
        return list(fresh.elements())

    def given_up(self) -> None:
        """Count a whole frame that had to make room in the daemon's own queue."""
        self._count({Cause.OVERRUN: 1})

    def broken_file(self, detail: str) -> None:
        """Count a file of a replay that cannot be read; it is named, and no alarm."""
        self._health.missing[Cause.BROKEN_FILE] += 1
        log.warning("skipped: %s", detail)

    def after_all(self, total: Mapping[Cause, int]) -> list[Cause]:
        """Count what no frame will tell any more, when a stream has ended; return the cause of each.

        Parameters
        ----------
        total
            What the camera counted since it was opened.
        """
        left = _nameless(total) - self._told
        self._told.update(left)
        self._health.missing.update(left)
        self._end_stream()
        lost = Counter[Cause](left)
        del lost[Cause.STOPPED]  # thrown away on purpose
        if lost:
            log.info("frames were not inspected when the camera stopped, %s (all are counted in stats)", _words(lost))
        return list(left.elements())

    def _end_stream(self) -> None:
        self._ahead, self._next_id = 0, None

    def _count(self, lost: Mapping[Cause, int], detail: str = "") -> None:
        """One warning when losses begin, or begin to have a detail; one line when they are over."""
        now = time.monotonic()
        if lost:
            is_new = not self._spell or (detail and not lost.keys() <= self._spell.keys())
            self._lost_at = now
            self._spell.update(lost)
            self._health.missing.update(lost)
            if is_new:
                text = "; ".join(f"{n} by {cause}: {detail or _REMEDY.get(cause, '')}" for cause, n in lost.items())
                log.warning("frames were not inspected, %s (all are counted in stats)", text)
                self._alarms.set("frames", f"frames are lost, {text}", severity="warning", logged=True)
        elif self._spell and now - self._lost_at > RECOVERED_S:
            log.info("no frame was lost for %.0f s; the spell cost %s", RECOVERED_S, _words(self._spell))
            self._spell.clear()
            self._alarms.set("frames", "", logged=True)


def _nameless(missing: Mapping[Cause, int]) -> Counter[Cause]:
    """Leave out broken files: each was named and counted when its turn came."""
    return Counter({cause: n for cause, n in missing.items() if cause is not Cause.BROKEN_FILE})


def _words(lost: Mapping[Cause, int]) -> str:
    return ", ".join(f"{n} by {cause}" for cause, n in lost.items())
