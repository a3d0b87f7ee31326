"""A network between the station and its broker that can turn into a black hole."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Relay:
    """Passes TCP on to ``port``; while it is a hole, connections are accepted and nothing gets through either way.

    ``tap`` sees every piece of data before it is passed on: whether it comes from the station, and the bytes.
    """

    def __init__(self, port: int, tap: Callable[[bool, bytes], None] = lambda _from_station, _data: None) -> None:
        self._tap = tap
        self._stations: set[socket.socket] = set()
        self._to = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._open = threading.Event()
        self._open.set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._thread.start()

    def hole(self) -> None:
        """Swallow everything from now on."""
        self._open.clear()

    def heal(self) -> None:
        """Pass on what comes from now on, and what waits in the buffers of the kernel."""
        self._open.set()

    def close(self) -> None:
        """Hang up."""
        self._stop.set()
        self._open.set()
        self._thread.join()

    def _run(self) -> None:
        pairs: dict[socket.socket, socket.socket] = {}
        while not self._stop.is_set():
            watched = [self._server, *(pairs if self._open.is_set() else ())]
            for sock in select.select(watched, [], [], 0.02)[0]:
                if sock is self._server:
                    taken, _ = self._server.accept()
                    with contextlib.suppress(OSError):
                        onward = socket.create_connection(("127.0.0.1", self._to), 1)
                        for each in (taken, onward):
                            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                        pairs[taken], pairs[onward] = onward, taken
                        self._stations.add(taken)
                        continue
                    taken.close()
                elif sock in pairs:
                    self._pass_on(sock, pairs)
        for sock in [self._server, *pairs]:
            sock.close()

    def _pass_on(self, sock: socket.socket, pairs: dict[socket.socket, socket.socket]) -> None:
        other = pairs[sock]
        with contextlib.suppress(OSError):
            data = sock.recv(65536)
            if data:
                self._tap(sock in self._stations, data)
                other.sendall(data)
                return
        for each in (sock, other):
            pairs.pop(each, None)
            self._stations.discard(each)
            each.close()
