"""A broker for the demo, so that nothing has to be installed: rumqttd from the wheel `iotcore`, a child process."""

from __future__ import annotations

import signal
import socket
from typing import TYPE_CHECKING, Self

from iotcore import Broker

if TYPE_CHECKING:
    from types import TracebackType

TRIES = 5
"""A free port may be taken between looking and listening."""


class EmbeddedBroker:
    """MQTT 3.1.1 on 127.0.0.1; MQTT 5 clients are refused, and nothing is kept when it stops.

    Parameters
    ----------
    port
        TCP port; 0 takes a free one, to be read from `port` after `start`.
    """

    def __init__(self, port: int = 0) -> None:
        self._wanted = port
        self._broker: Broker | None = None
        self.port = port

    def start(self) -> Self:
        """Start and wait until it listens (0.2 s); raises `OSError` when the port is taken or it does not come up."""
        for attempt in range(TRIES):
            self.port = self._wanted or _free_port()
            broker = Broker(port=self.port, listen="127.0.0.1")
            try:
                _start_deaf_to_ctrl_c(broker)
            except (OSError, RuntimeError) as error:
                if self._wanted or attempt == TRIES - 1:
                    raise OSError(f"the embedded broker does not start on port {self.port}: {error}") from error
            else:
                self._broker = broker
                break
        return self

    def stop(self) -> None:
        """Stop it; safe to call twice."""
        if self._broker is not None:
            self._broker.stop()
            self._broker = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def broker_config(broker: EmbeddedBroker) -> dict[str, object]:
    """Return the section ``[mqtt]`` for the embedded broker, which speaks MQTT 3.1.1 only."""
    return {"host": "127.0.0.1", "port": broker.port, "protocol": "3.1.1"}


def _start_deaf_to_ctrl_c(broker: Broker) -> None:
    """Start the child with Ctrl-C blocked, which it inherits: it must still hear us say `stopped`."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        broker.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
