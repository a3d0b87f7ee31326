"""The two questions of the GigE Vision control protocol that any program may put to a camera, open or not.

Aravis asks on the same channel, but waits 2.5 s for each answer and 5.2 s before it calls a camera lost.
"""

from __future__ import annotations

import socket
import struct
import time
from contextlib import suppress
from dataclasses import dataclass

PORT = 3956
CONTROL_PRIVILEGE = 0x0A00
"""The register that says whether a program controls the camera: 0 when none does."""

_COMMAND, _ACK_REQUIRED = 0x42, 0x01
_DISCOVERY, _READ_REGISTER = 0x0002, 0x0080
_ACCESS_DENIED = 0x8006
_VENDOR, _MODEL, _SERIAL, _USER_ID = slice(0x48, 0x68), slice(0x68, 0x88), slice(0xD8, 0xE8), slice(0xE8, 0xF8)
_PATIENCE_S = 0.2  # a camera answers within milliseconds; switches and a busy camera add some
_TRIES = 3


@dataclass(frozen=True, slots=True)
class Identity:
    """What a camera says about itself to anybody."""

    vendor: str
    model: str
    serial: str
    user_id: str


def identify(address: str) -> Identity | None:
    """Ask who is at an address; None when nobody answers within 0.6 s."""
    answer = _ask(address, _DISCOVERY)
    if answer is None or len(answer) < 8 + 0xF8:
        return None
    data = answer[8:]
    return Identity(*(_text(data[field]) for field in (_VENDOR, _MODEL, _SERIAL, _USER_ID)))


def in_use(address: str) -> bool:
    """Say whether a program controls the camera at an address; False as well when nobody answers within 0.6 s."""
    answer = _ask(address, _READ_REGISTER, struct.pack(">I", CONTROL_PRIVILEGE))
    return answer is not None and _privilege(answer) != 0


class Pulse:
    """Watches a silent camera without ever waiting for it.

    Silence is normal for a triggered camera, and an open network socket says nothing of the other end. After a second
    without a frame the camera is asked whether we still control it. Three questions without an answer, 0.2 s each, or
    the answer that nobody controls it (it was switched off and on), and it is lost.

    Parameters
    ----------
    address
        The camera's; empty for a camera that is not on the network, which is never asked.
    """

    SILENCE_S = 1.0

    def __init__(self, address: str) -> None:
        self._socket: socket.socket | None = None
        if address:
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
            with suppress(OSError):
                self._socket.connect((address, PORT))
        self._asked = 0
        self._next_at = time.monotonic() + self.SILENCE_S

    def heard(self) -> None:
        """Note that the camera has just been heard."""
        self._asked, self._next_at = 0, time.monotonic() + self.SILENCE_S

    def lost(self) -> str:
        """Say why the camera is lost, or nothing while it is not known to be; takes microseconds."""
        if self._socket is None or (not self._asked and time.monotonic() < self._next_at):
            return ""
        privilege = self._listen()
        if privilege is not None:
            self.heard()
            return "" if privilege else "it answers, but was restarted or gave control to nobody"
        if time.monotonic() >= self._next_at:
            if self._asked >= _TRIES:
                return f"it has been silent for {self.SILENCE_S:g} s and answers no question"
            self._asked += 1
            self._next_at = time.monotonic() + _PATIENCE_S
            with suppress(OSError):  # no route to the camera any more: that is no answer either
                self._socket.send(_packet(_READ_REGISTER, self._asked, struct.pack(">I", CONTROL_PRIVILEGE)))
        return ""

    def _listen(self) -> int | None:
        assert self._socket is not None
        try:
            while True:
                privilege = _privilege(self._socket.recv(1024))
                if privilege is not None:
                    return privilege
        except OSError:
            return None

    def close(self) -> None:
        """Close the socket. Idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _packet(command: int, number: int, payload: bytes = b"") -> bytes:
    return struct.pack(">BBHHH", _COMMAND, _ACK_REQUIRED, command, len(payload), number) + payload


def _ask(address: str, command: int, payload: bytes = b"") -> bytes | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(_PATIENCE_S)
        for number in range(1, _TRIES + 1):
            try:
                sock.connect((address, PORT))
                sock.send(_packet(command, number, payload))
                return sock.recv(1024)
            except OSError:
                continue
    return None


def _privilege(answer: bytes) -> int | None:
    """Read the control register from an answer. A camera that refuses the question is under exclusive control."""
    if len(answer) < 8:
        return None
    status, command = struct.unpack_from(">HH", answer)
    if command != _READ_REGISTER + 1:
        return None
    if status == _ACCESS_DENIED:
        return 1
    return struct.unpack_from(">I", answer, 8)[0] & 0x3 if len(answer) >= 12 else None


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("latin-1").strip()
