"""Commands on their way in and their acknowledgements on the way out, at a pace that leaves answers their time."""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from lineward.daemon.mqtt import Connection

    OnCommand = Callable[[str, bytes, bool], None]

log = logging.getLogger("lineward.mqtt")

PER_TURN = 4
SHARE = 0.25
"""Of a processor, this much at most is spent on commands; in a flood the others wait at the broker."""
ACKS_KEPT = 1000


class Inbox:
    """Takes commands of ``<base>/cmd/+`` from a connection and sends ``<base>/ack/<name>``.

    Everything happens in the thread of the connection, except `acknowledge`.

    Parameters
    ----------
    base
        Base topic with its slash.
    on_command
        Called with the name after ``cmd/``, the payload (at most `mqtt.COMMAND_BYTES` + 1 bytes) and whether the
        broker had kept it. What it raises is logged, and the command stays without an acknowledgement.
    """

    def __init__(self, base: str, on_command: OnCommand) -> None:
        self._base = base
        self._on_command = on_command
        self._acks: deque[tuple[str, bytes]] = deque()
        self._next_s = 0.0
        self.received = 0
        self.acks_lost = 0
        """Acknowledgements that found no room, or whose connection was lost."""

    @property
    def topic_filter(self) -> str:
        """What to subscribe to."""
        return self._base + "cmd/+"

    def acknowledge(self, name: str, payload: bytes) -> None:
        """Queue the one acknowledgement of a command; it goes out on this connection or never."""
        if len(self._acks) >= ACKS_KEPT:
            if not self.acks_lost:
                log.warning("acknowledgements of commands find no room: %d wait already", ACKS_KEPT)
            self.acks_lost += 1
        else:
            self._acks.append((name, payload))

    @property
    def waiting(self) -> bool:
        """Whether there are acknowledgements to send."""
        return bool(self._acks)

    def forget(self) -> None:
        """Drop what belongs to a connection that is gone."""
        self.acks_lost += len(self._acks)
        self._acks.clear()

    def pause_s(self) -> float:
        """Return how long a command that has been received must wait, in seconds."""
        return max(0.0, self._next_s - time.monotonic())

    def obey(self, link: Connection) -> None:
        """Hand over a few commands and send the acknowledgements that wait. Raises `LostError`."""
        if link.received and time.monotonic() >= self._next_s:
            began_s = time.thread_time()
            for _ in range(PER_TURN):
                message = link.take()
                if message is None:
                    break
                self.received += 1
                try:
                    self._on_command(message.topic.removeprefix(self._base + "cmd/"), message.payload, message.retained)
                except Exception:
                    log.exception("command on %s failed", message.topic)
            self.send(link)
            self._next_s = time.monotonic() + (time.thread_time() - began_s) * (1 / SHARE - 1)
        else:
            self.send(link)

    def send(self, link: Connection) -> None:
        """Send the acknowledgements that wait, as far as the window goes. Raises `LostError`."""
        while self._acks and link.room > 0:
            name, payload = self._acks.popleft()
            link.publish(f"{self._base}ack/{name}", payload)
