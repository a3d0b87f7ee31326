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

COMMANDS_PER_S = 500
"""What is taken of a flood; the others wait at the broker. A command costs 0.2 ms of Python's lock."""
BURST = 32
PER_TURN = 4
ACKS_KEPT = 1000
FLOOD_S = 1.0
"""A flood is told after so long ..."""
CALM_S = 3.0
"""... and over when nothing had to wait for so long."""


class Inbox:
    """Takes commands of ``<base>/cmd/+`` from a connection and sends ``<base>/ack/<name>``.

    Everything happens in the thread of the connection, except `acknowledge` and `trouble`.

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
        self._credit = float(BURST)
        self._credit_s = time.monotonic()
        self._flood_began_s: float | None = None
        self._flood_seen_s = float("-inf")
        self.received = 0
        self.failed = 0
        """Commands that ended in an exception of ours."""
        self.acks_lost = 0
        """Acknowledgements that found no room, or whose connection was lost."""

    @property
    def topic_filter(self) -> str:
        """What to subscribe to."""
        return self._base + "cmd/+"

    @property
    def trouble(self) -> str:
        """What is wrong with the commands that come and what to do about it, in one line; empty when all is well."""
        began_s = self._flood_began_s
        if began_s is None or self._flood_seen_s - began_s < FLOOD_S:
            return ""
        return (
            f"more than {COMMANDS_PER_S} commands a second come on {self.topic_filter}, so that each has to wait: find "
            "the client that sends them in the broker's log, and let only the PLC write there"
        )

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
        self._refill()
        return max(0.0, (1 - self._credit) / COMMANDS_PER_S)

    def obey(self, link: Connection) -> None:
        """Hand over a few commands, and look whether there are too many. Raises `LostError`."""
        if link.received:
            self._refill()
            for _ in range(min(PER_TURN, int(self._credit))):
                message = link.take()
                if message is None:
                    break
                self._credit -= 1
                self.received += 1
                try:
                    self._on_command(message.topic.removeprefix(self._base + "cmd/"), message.payload, message.retained)
                except Exception:
                    self.failed += 1
                    log.exception("command on %s failed", message.topic)
        now = time.monotonic()
        if link.received and self._credit < 1:
            self._flood_seen_s = now
            if self._flood_began_s is None:
                self._flood_began_s = now
        elif self._flood_began_s is not None and now - self._flood_seen_s > CALM_S:
            self._flood_began_s = None

    def send(self, link: Connection) -> None:
        """Send the acknowledgements that wait, as far as the window goes. Raises `LostError`."""
        while self._acks and link.room > 0:
            name, payload = self._acks.popleft()
            link.publish(f"{self._base}ack/{name}", payload)

    def _refill(self) -> None:
        now = time.monotonic()
        self._credit = min(BURST, self._credit + (now - self._credit_s) * COMMANDS_PER_S)
        self._credit_s = now
