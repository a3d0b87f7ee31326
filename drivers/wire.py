"""The messages between the inspection process and a camera process: one datagram each, so never half a message."""

from __future__ import annotations

import pickle
import select
import socket
from typing import Any

MAX_MESSAGE = 64 * 1024

OPEN, CONFIGURE, START, STOP, TRIGGER, FLUSH, RELEASE, CLOSE = (
    "open",
    "configure",
    "start",
    "stop",
    "trigger",
    "flush",
    "release",
    "close",
)
REPLY, FAILED, RING, FRAME, NO_FRAME, LOST, BEAT, PHASE = (
    "reply",
    "failed",
    "ring",
    "frame",
    "no_frame",
    "lost",
    "beat",
    "phase",
)


class PeerGoneError(Exception):
    """The other process has ended or closed its side."""


class Wire:
    """One end of the connection. Both ends run our own code; pickle never sees anybody else's bytes."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    @staticmethod
    def pair() -> tuple[Wire, socket.socket]:
        """Make a connection: our end, and the socket the child inherits."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return Wire(ours), theirs

    def fileno(self) -> int:
        """Return the descriptor, for `select`."""
        return self._sock.fileno()

    def send(self, *message: Any, fd: int | None = None) -> None:
        """Send one message, with an open file when there is one.

        Raises
        ------
        PeerGoneError
            The other side is gone.
        """
        data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        try:
            if fd is None:
                self._sock.send(data)
            else:
                socket.send_fds(self._sock, [data], [fd])
        except OSError as error:
            raise PeerGoneError from error

    def send_if_room(self, *message: Any) -> None:
        """Send a message that nobody misses when the other side is busy: a heartbeat."""
        try:
            self._sock.send(pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            raise PeerGoneError from error

    def receive(self, timeout_s: float) -> tuple[tuple[Any, ...], int | None] | None:
        """Wait at most ``timeout_s`` for a message; return it with its file descriptor, or None when none came.

        Raises
        ------
        PeerGoneError
            The other side is gone and everything it sent has been read.
        """
        if not self._poll.poll(max(0.0, timeout_s) * 1000):
            return None
        try:
            try:
                data, fds, _flags, _address = socket.recv_fds(self._sock, MAX_MESSAGE, 1)
            except ConnectionResetError:
                # The other side ended before it read all of ours. Linux says so once; what it sent is still there.
                data, fds, _flags, _address = socket.recv_fds(self._sock, MAX_MESSAGE, 1)
        except OSError as error:
            raise PeerGoneError from error
        if not data:
            raise PeerGoneError
        return pickle.loads(data), fds[0] if fds else None  # noqa: S301 - our own child over an inherited socket

    def close(self) -> None:
        """Close this end. Idempotent."""
        self._sock.close()
