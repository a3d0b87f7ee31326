"""Commands from this machine, over a Unix socket in the storage folder: they work without a broker.

One connection carries one command, a line of JSON ``{"command": "recipe", ...}``, and brings back its acknowledgement
as one line. Who may write to the storage folder may command the station.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from lineward.daemon.commands import LARGEST_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Handle = Callable[[str, bytes, Callable[[str, bytes], None]], None]

log = logging.getLogger("lineward.control")

NAME = "control"
READ_S = 2.0
MOST_WAITING = 16
LOOK_S = 2.0
"""How often it is looked whether the socket is still there, or a folder takes one now."""
BUSY_PAUSE_S = 0.2
"""Between two questions whether another changeover is over."""


class ControlError(OSError):
    """The station cannot be reached; the message says what to do."""


class ControlSocket:
    """Listens in a thread of its own; a command whose answer comes later keeps its connection until then.

    Parameters
    ----------
    handle
        Called with the name of the command, its JSON, and where its acknowledgement goes.
    """

    def __init__(self, root: Path, handle: Handle) -> None:
        self._handle = handle
        self._path = root / NAME
        self._socket: socket.socket | None = None
        self._inode = 0
        self._said = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)

    def start(self) -> None:
        """Begin to listen. A folder that does not take a socket is said, tried again and leaves the line alone."""
        self._listen()
        self._thread.start()

    def _listen(self) -> None:
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            with contextlib.suppress(FileNotFoundError):  # left by a killed process: the ledger's lock is ours
                self._path.unlink()
            _with_short_name(self._path, listening.bind)
            self._path.chmod(0o660)
            listening.listen(MOST_WAITING)
            self._inode = self._path.stat().st_ino
        except OSError as error:
            listening.close()
            said = f"no commands from this machine: {self._path}: {error.strerror or error}"
            if said != self._said:
                log.warning("%s", said)
            self._said = said
            return
        listening.settimeout(LOOK_S)
        self._socket = listening
        if self._said:
            log.info("commands from this machine are taken again: %s", self._path)
        self._said = ""

    def close(self) -> None:
        """Stop listening and remove the socket."""
        self._stop.set()
        with contextlib.suppress(OSError):
            _with_short_name(self._path, _knock)  # it waits for a visitor, and shutting the socket does not wake it
        if self._thread.is_alive():
            self._thread.join(1.0)
        if self._socket is not None:
            self._socket.close()
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _is_there(self) -> bool:
        """Tell whether whoever looks for us finds us: somebody may have deleted the socket."""
        with contextlib.suppress(OSError):
            return self._socket is not None and self._path.stat().st_ino == self._inode
        return False

    def _run(self) -> None:
        while not self._stop.is_set():
            if not self._is_there():
                if self._socket is not None:
                    self._socket.close()
                    self._socket = None
                self._listen()
            if self._socket is None:
                self._stop.wait(LOOK_S)
                continue
            try:
                connection, _ = self._socket.accept()
            except OSError:  # nobody for a while
                continue
            if self._stop.is_set():
                connection.close()
                return
            try:
                self._serve(connection)
            except Exception:  # one visitor must not end the thread
                log.debug("a local command failed", exc_info=True)
                connection.close()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(READ_S)
        line = _read_line(connection)
        try:
            content = json.loads(line)
            name = content.pop("command")
        except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
            name, content = "unknown", {}

        def acknowledge(_name: str, payload: bytes) -> None:
            with contextlib.suppress(OSError), connection:
                connection.sendall(payload + b"\n")

        self._handle(str(name), json.dumps(content).encode(), acknowledge)


def _knock(name: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as visitor:
        visitor.connect(name)


def send(root: Path, command: str, content: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
    """Send one command to the station whose storage folder this is and wait for its acknowledgement.

    Raises
    ------
    ControlError
        Nobody listens, or the answer does not come in time.
    """
    path = root / NAME
    message = json.dumps({"command": command, "id": os.urandom(8).hex(), **content}).encode() + b"\n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        connection.settimeout(timeout_s)
        try:
            _with_short_name(path, connection.connect)
            connection.sendall(message)
            answer: dict[str, Any] = json.loads(_read_line(connection))
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise ControlError(f"{path}: no station runs here; start it with `lineward run`") from error
        except PermissionError as error:
            raise ControlError(f"{path}: not allowed; use the account that runs the station") from error
        except (OSError, ValueError) as error:
            raise ControlError(f"{path}: the station gave no answer within {timeout_s:g} s; look at its log") from error
    return answer


def change_over(root: Path, recipe: str, *, timeout_s: float) -> dict[str, Any]:
    """Send a change of recipe and wait until it is in force; while another one is not over, ask again.

    Returns the acknowledgement. Raises as `send`.
    """
    until = time.monotonic() + timeout_s
    while True:
        left = until - time.monotonic()
        answer = send(root, "recipe", {"recipe": recipe}, timeout_s=max(left, BUSY_PAUSE_S))
        if answer["reason"] != "busy" or left <= BUSY_PAUSE_S:
            return answer
        time.sleep(BUSY_PAUSE_S)


def _read_line(connection: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\n") and len(data) <= LARGEST_BYTES:
        some = connection.recv(4096)
        if not some:
            break
        data += some
    return data


def _with_short_name(path: Path, use: Callable[[str], None]) -> None:
    """Bind or connect to a path of any length: a socket's name may have 107 bytes, a folder's may have more."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        use(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)
