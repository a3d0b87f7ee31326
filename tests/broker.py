"""A real Mosquitto on an ephemeral port of 127.0.0.1, and a subscriber that remembers everything it heard."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")

DURABLE = "persistence true"

needs_mosquitto = pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_until(condition: Callable[[], object], timeout_s: float = 10.0, what: str = "condition") -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"{what} not reached within {timeout_s} s"
        time.sleep(0.01)


class Mosquitto:
    """Keeps its port across restarts, and nothing else: persistence is off, as a broker that lost its power.

    With `DURABLE` among the lines and ``stop(gently=True)`` it keeps sessions and what waits for them as well.
    """

    def __init__(self, folder: Path, *lines: str) -> None:
        assert MOSQUITTO is not None
        self.port = free_port()
        self._config = folder / f"mosquitto-{self.port}.conf"
        settings = list(lines) or ["allow_anonymous true"]
        if DURABLE not in settings:
            settings.append("persistence false")
        else:  # an absolute user and folder: started by root it would turn into a user who owns nothing here
            settings += [f"persistence_location {folder}/", f"user {pwd.getpwuid(os.getuid()).pw_name}"]
        self._config.write_text("\n".join([f"listener {self.port} 127.0.0.1", *settings, ""]))
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        assert self._process is None
        self._process = subprocess.Popen(
            [str(MOSQUITTO), "-c", str(self._config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(self._listens, what="mosquitto listening")

    def _listens(self) -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self, *, gently: bool = False) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM if gently else signal.SIGKILL)
            self._process.wait(10)
            self._process = None

    def reload(self) -> None:
        """Let it read its files again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


@dataclass(frozen=True)
class Heard:
    topic: str
    payload: bytes
    retain: bool
    expiry_s: int | None
    at_s: float

    @property
    def json(self) -> Any:
        return json.loads(self.payload)


class Subscriber:
    """Listens to everything with QoS 1 and reconnects by itself; `heard` is in order of arrival.

    With a ``session`` name, the broker keeps what comes while it is away. What a broker that stops has not seen
    acknowledged it sends once more when it is back, as it had it, and marks it: that is its word and not the
    publisher's (the mark is never passed on), so what is known already is left out.
    """

    open: ClassVar[set[Subscriber]] = set()
    """Those that nobody has closed; `close_all` does after each test, so that none disturbs the next one."""

    def __init__(self, port: int, base: str, *, session: str = "") -> None:
        self._base = base
        self.heard: list[Heard] = []
        self._ready = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, session, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.on_connect = self._subscribe
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.on_message = self._hear
        self._client.reconnect_delay_set(1, 1)
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 3600 if session else 0
        self._client.connect("127.0.0.1", port, clean_start=not session, properties=properties)
        self._client.loop_start()
        self.open.add(self)
        assert self._ready.wait(5)

    def _subscribe(self, client: paho.Client, *_: Any) -> None:
        client.subscribe(self._base + "/#", qos=1)

    def _hear(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        expiry = getattr(message.properties, "MessageExpiryInterval", None)
        topic = message.topic.removeprefix(self._base + "/")
        if message.dup and any(heard.payload == message.payload for heard in self.on(topic)):
            return
        self.heard.append(Heard(topic, message.payload, message.retain, expiry, time.monotonic()))

    def on(self, topic: str) -> list[Heard]:
        return [heard for heard in self.heard if heard.topic == topic]

    def seqs(self, topic: str = "result") -> list[int]:
        return [heard.json["seq"] for heard in self.on(topic)]

    def close(self) -> None:
        self.open.discard(self)
        self._client.disconnect()
        self._client.loop_stop()

    @classmethod
    def close_all(cls) -> None:
        for subscriber in list(cls.open):
            subscriber.close()
