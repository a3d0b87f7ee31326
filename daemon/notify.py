"""Talking to systemd: ready, what we are doing in words, and a sign of life that only a working loop can give.

The protocol of sd_notify(3): a datagram of lines to the socket named in ``NOTIFY_SOCKET``. Without that variable
nothing is sent, so a line runs the same on a terminal.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

log = logging.getLogger("lineward.systemd")

SIGNS = 4
"""Signs of life in one watchdog interval: three may come late before systemd loses patience."""

STATUS_S = 2.0
"""How often the status line is renewed; each renewal wakes systemd up."""

PATIENCE_S = 30.0
"""While the camera is waited for, each sign of life asks systemd for so much more time to start."""


class Systemd:
    """The service manager that started us, or nobody. Called by the loop's thread, except `reloading` and `reloaded`.

    Parameters
    ----------
    environment
        ``NOTIFY_SOCKET`` is taken out of it: programs that we start must not speak for us.
    clock
        Monotonic seconds.
    """

    def __init__(
        self,
        environment: MutableMapping[str, str] = os.environ,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._address = environment.pop("NOTIFY_SOCKET", "")
        self._every_s = _interval_s(environment) / SIGNS
        self._signed_s = self._told_s = float("-inf")
        self._status = ""
        self.is_ready = False
        self._socket: socket.socket | None = None
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)  # a service manager that does not keep up must not stop a part

    def ready(self, status: str) -> None:
        """Say that the line inspects: what depends on it may start. Said once."""
        if not self.is_ready:
            self.is_ready = True
            self._status = status
            self._send("READY=1", f"STATUS={status}")

    def alive(self, status: Callable[[], str]) -> None:
        """Say that the loop moves; never blocks or raises. Call it from the loop, and from nothing that has a timer.

        Before `ready` it asks for more time instead: a camera that is switched on an hour later is no failed start.
        """
        now = self._clock()
        if self._socket is None or now - self._signed_s < min(self._every_s, STATUS_S):
            return
        self._signed_s = now
        lines = ["WATCHDOG=1"] if self.is_ready else [f"EXTEND_TIMEOUT_USEC={round(PATIENCE_S * 1e6)}"]
        if now - self._told_s >= STATUS_S:
            self._told_s = now
            text = status()
            if text != self._status:
                self._status = text
                lines.append(f"STATUS={text}")
        self._send(*lines)

    def reloading(self) -> None:
        """Say that the configuration is being read again."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def reloaded(self, status: str) -> None:
        """Say that this is over, however it went."""
        self._send("READY=1", f"STATUS={status}")

    def stopping(self) -> None:
        """Say that we are on the way out."""
        self._send("STOPPING=1", "STATUS=stopping")

    def close(self) -> None:
        """Say nothing more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> None:
        if self._socket is None:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        text = "\n".join(line.replace("\n", " ") for line in lines)
        try:
            self._socket.sendto(text.encode(), address)
        except OSError as error:
            log.debug("systemd was not told %s: %s", lines[0], error)


def _interval_s(environment: MutableMapping[str, str]) -> float:
    """Return the watchdog interval in seconds; infinity when there is none or it watches another process."""
    usec = environment.pop("WATCHDOG_USEC", "")
    pid = environment.pop("WATCHDOG_PID", "")
    if not usec.isdigit() or (pid and pid != str(os.getpid())):
        return float("inf")
    return int(usec) / 1e6
