"""The heartbeat of a camera process: a thread of its own, which stops when a native call holds the interpreter lock."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from lineward.drivers import progress, wire
from lineward.drivers.camera import CameraHealth

if TYPE_CHECKING:
    from lineward.drivers.wire import Wire

BEAT_S = 0.2


class Beat(threading.Thread):
    """Sends what is stored here; it never asks the driver, whose calls belong to one thread.

    A datagram goes out whole or not at all, so this thread and the worker's send on the same socket without a lock.
    """

    def __init__(self, channel: Wire) -> None:
        super().__init__(name="beat", daemon=True)
        self._wire = channel
        self._ends = threading.Event()
        self.health = CameraHealth()
        """What the driver last said; the worker replaces it as a whole."""

    def run(self) -> None:
        """Beat until the other side is gone."""
        while not self._ends.wait(BEAT_S):
            try:
                self.send()
            except wire.PeerGoneError:
                return

    def send(self) -> None:
        """Send one beat, unless the other side is so busy that it would have to wait."""
        health = self.health
        self._wire.send_if_room(wire.BEAT, progress.steps(), health.frames, dict(health.missing), health.temperature_c)

    def stop(self) -> None:
        """End the thread."""
        self._ends.set()
