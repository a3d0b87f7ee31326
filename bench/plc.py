"""A PLC as a program: it triggers parts by name, lets one through for a fresh pass only, and keeps books."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion


@dataclass
class Sent:
    """One part at the inspection station."""

    part_id: str
    sent_s: float
    acks: list[dict[str, Any]] = field(default_factory=list)
    answers: list[tuple[float, dict[str, Any]]] = field(default_factory=list)


class Plc:
    """Sends ``cmd/trigger`` at a pace and reads ``result/plc``; never queues anything while there is no broker.

    A client library that repeats a trigger after a reconnect would trigger for a part that is gone: each connection is
    a client of its own, with a clean session.
    """

    def __init__(self, port: int, base: str, *, deadline_ms: float, every_s: float) -> None:
        self._port = port
        self._base = base
        self._deadline_s = deadline_ms / 1000
        self._every_s = every_s
        self.parts: dict[str, Sent] = {}
        self.unknown: list[dict[str, Any]] = []
        """Answers for parts that were never sent."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="plc")

    def start(self) -> Plc:
        """Begin to send."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Send no more, and listen for one second longer."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            ready = threading.Event()
            gone = threading.Event()
            client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5,
                                 reconnect_on_failure=False)  # fmt: skip
            client.on_connect = lambda link, *_: link.subscribe(
                [(f"{self._base}/result/plc", 1), (f"{self._base}/ack/trigger", 1)]
            )
            client.on_subscribe = lambda *_, ready=ready: ready.set()
            client.on_disconnect = lambda *_, gone=gone: gone.set()
            client.on_message = self._hear
            with contextlib.suppress(OSError):
                client.connect("127.0.0.1", self._port)
                client.loop_start()
                ready.wait(2)
                while ready.is_set() and not gone.is_set() and not self._stop.wait(self._every_s):
                    self._send(client)
                if not gone.is_set():
                    time.sleep(1 + self._deadline_s)
                client.disconnect()
                client.loop_stop()
            self._stop.wait(0.1)

    def _send(self, client: paho.Client) -> None:
        part_id = f"P{len(self.parts) + 1}"
        self.parts[part_id] = Sent(part_id, time.monotonic())
        command = {"id": f"t{len(self.parts)}", "part_id": part_id}
        client.publish(f"{self._base}/cmd/trigger", json.dumps(command), qos=1)

    def _hear(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        content = json.loads(message.payload)
        if message.topic.endswith("/ack/trigger"):
            part = self.parts.get(f"P{str(content['id'])[1:]}") if str(content["id"]).startswith("t") else None
            if part is not None:
                part.acks.append(content)
        elif content["id"] in self.parts:
            self.parts[content["id"]].answers.append((time.monotonic(), content))
        elif content["id"]:
            self.unknown.append(content)

    # ---- the books

    def fresh(self, part: Sent) -> list[dict[str, Any]]:
        """Return the answers that came while the part was still at the gate."""
        return [answer for at_s, answer in part.answers if at_s - part.sent_s <= self._deadline_s + 0.05]

    def first_answer_s(self, since_s: float) -> float | None:
        """Return when the first answer in time came for a part that was sent after ``since_s`` (monotonic)."""
        times = [
            at_s
            for part in list(self.parts.values())
            if part.sent_s >= since_s
            for at_s, _ in part.answers
            if at_s - part.sent_s <= self._deadline_s
        ]
        return min(times, default=None)

    def let_through(self, part: Sent) -> bool:
        """Whether the gate opened."""
        return any(answer["v"] == 1 for answer in self.fresh(part))

    def stale(self) -> int:
        """Count passes that came when the part was gone, and did not open the gate."""
        return sum(
            answer["v"] == 1 and answer not in self.fresh(part)
            for part in self.parts.values()
            for _, answer in part.answers
        )
