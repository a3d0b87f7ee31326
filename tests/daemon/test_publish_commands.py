from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from tests.broker import Mosquitto, Subscriber, needs_mosquitto, wait_until
from tests.daemon.results import make

from lineward.daemon.inbox import PER_TURN
from lineward.daemon.ledger import Ledger
from lineward.daemon.mqtt import COMMAND_BYTES
from lineward.daemon.publish import Endpoint, Publisher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BASE = "lineward/plant/line1/cam1"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    broker = Mosquitto(tmp_path, "allow_anonymous true", "max_queued_messages 0")
    yield broker
    broker.stop()


@pytest.fixture
def hear(broker: Mosquitto) -> Iterator[Subscriber]:
    subscriber = Subscriber(broker.port, BASE)
    yield subscriber
    subscriber.close()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "storage")
    yield ledger
    ledger.close()


class Plc:
    """Sends commands with QoS 1."""

    def __init__(self, port: int) -> None:
        self.client = paho.Client(CallbackAPIVersion.VERSION2)
        self.client.max_queued_messages_set(0)
        self.client.reconnect_delay_set(1, 1)
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()

    def command(self, name: str, payload: bytes, *, retain: bool = False) -> paho.MQTTMessageInfo:
        wait_until(self.client.is_connected)
        return self.client.publish(f"{BASE}/cmd/{name}", payload, qos=1, retain=retain)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def plc(broker: Mosquitto) -> Iterator[Plc]:
    plc = Plc(broker.port)
    yield plc
    plc.close()


class Station:
    """Acknowledges every command with its own payload, and remembers them."""

    def __init__(self, ledger: Ledger, port: int, **options: Any) -> None:
        self.commands: list[tuple[str, bytes, object]] = []
        self.threads: set[str] = set()
        endpoint = Endpoint("127.0.0.1", port, "cam1", protocol=options.pop("protocol", "5"))
        self.publisher = Publisher(
            endpoint,
            BASE,
            deadline_ms=options.pop("deadline_ms", 500),
            ledger=ledger,
            on_command=options.pop("on_command", self.obey),
        )
        self.publisher.start()
        assert self.publisher.wait_connected(5), self.publisher.trouble

    def obey(self, name: str, payload: bytes, retained: object) -> None:
        self.commands.append((name, payload, retained))
        self.threads.add(threading.current_thread().name)
        self.publisher.acknowledge_command(name, payload[:32])


@pytest.fixture
def station(ledger: Ledger) -> Iterator[Callable[..., Station]]:
    made: list[Station] = []

    def make_station(port: int, **options: Any) -> Station:
        made.append(Station(ledger, port, **options))
        return made[-1]

    yield make_station
    for each in made:
        each.publisher.close()


@needs_mosquitto
@pytest.mark.parametrize("protocol", ["3.1.1", "5"])
def test_each_command_is_handed_over_once_and_acknowledged_in_order(
    broker: Mosquitto, hear: Subscriber, plc: Plc, station: Callable[..., Station], protocol: str
) -> None:
    """Commands come in order, with their names, in the MQTT thread; acknowledgements go out in order, not retained."""
    here = station(broker.port, protocol=protocol)
    for number in range(100):
        plc.command("trigger" if number % 2 else "part", b"%d" % number)
    wait_until(lambda: len(hear.on("ack/trigger") + hear.on("ack/part")) == 100)
    assert here.commands == [("trigger" if n % 2 else "part", b"%d" % n, False) for n in range(100)]
    assert [heard.payload for heard in hear.heard if heard.topic.startswith("ack/")] == [b"%d" % n for n in range(100)]
    assert here.threads == {"mqtt"}
    assert here.publisher.counters()["commands"] == 100
    late = Subscriber(broker.port, BASE)
    time.sleep(0.2)
    assert not late.on("ack/trigger")
    late.close()


@needs_mosquitto
def test_commands_can_come_as_soon_as_online_is_said(
    broker: Mosquitto, hear: Subscriber, plc: Plc, station: Callable[..., Station]
) -> None:
    """Whoever sees `online` may command at once: the subscription stands by then, also after a restart."""
    here = station(broker.port)
    for number in range(1, 4):
        wait_until(lambda: [heard.payload for heard in hear.on("availability")].count(b"online") >= 1)
        plc.command("part", b"%d" % number).wait_for_publish(5)
        wait_until(lambda: len(here.commands) == number)  # noqa: B023 - called at once
        broker.stop()
        wait_until(lambda: not here.publisher.connected)
        broker.start()
        hear.heard.clear()
    assert [payload for _, payload, _ in here.commands] == [b"1", b"2", b"3"]


@needs_mosquitto
def test_a_command_that_the_broker_kept_is_told_apart(
    broker: Mosquitto, plc: Plc, station: Callable[..., Station]
) -> None:
    """A retained command is as old as it pleases: whoever obeys can see it."""
    plc.command("trigger", b"old", retain=True).wait_for_publish(5)
    here = station(broker.port)
    wait_until(lambda: here.commands)
    plc.command("trigger", b"new").wait_for_publish(5)
    wait_until(lambda: len(here.commands) == 2)
    assert here.commands == [("trigger", b"old", True), ("trigger", b"new", False)]


@needs_mosquitto
def test_with_mqtt_5_a_command_that_is_kept_is_known_while_we_listen(
    broker: Mosquitto, plc: Plc, station: Callable[..., Station]
) -> None:
    """Rule: sent as retained it is refused at once, and not only when it comes again after a restart."""
    here = station(broker.port, protocol="5")
    plc.command("trigger", b"first").wait_for_publish(5)
    wait_until(lambda: here.commands == [("trigger", b"first", False)])
    plc.command("trigger", b"kept", retain=True).wait_for_publish(5)
    wait_until(lambda: len(here.commands) == 2)
    assert here.commands[1] == ("trigger", b"kept", True)


@needs_mosquitto
def test_a_huge_command_is_cut_and_costs_nothing_else(
    broker: Mosquitto, hear: Subscriber, plc: Plc, ledger: Ledger, station: Callable[..., Station]
) -> None:
    """Of 10 MB the first 64 KiB and one byte are handed over, and answers go on."""
    here = station(broker.port)
    plc.command("trigger", b"x" * 10_000_000)
    plc.command("trigger", b"after")
    later = time.time_ns() + 20_000_000_000  # on a busy machine the broker takes its time for 10 MB
    for _ in range(50):
        here.publisher.publish(ledger.record(make(deadline_unix_ns=later)))
        time.sleep(0.005)
    wait_until(lambda: len(here.commands) == 2)
    assert [len(payload) for _, payload, _ in here.commands] == [COMMAND_BYTES + 1, 5]
    wait_until(lambda: ledger.outbox_size == 0)
    assert hear.seqs("result/plc") == list(range(1, 51))
    assert here.publisher.counters()["reconnects"] == 0


@needs_mosquitto
def test_a_bug_in_obeying_ends_nothing(
    broker: Mosquitto, plc: Plc, station: Callable[..., Station], caplog: pytest.LogCaptureFixture
) -> None:
    """An exception is logged with the topic; the next command is obeyed on the same connection."""
    seen: list[bytes] = []

    def obey(_name: str, payload: bytes, _retained: object) -> None:
        seen.append(payload)
        if payload == b"bad":
            raise ZeroDivisionError

    here = station(broker.port, on_command=obey)
    plc.command("trigger", b"bad")
    plc.command("trigger", b"good")
    wait_until(lambda: seen == [b"bad", b"good"])
    assert here.publisher.counters()["reconnects"] == 0
    assert any("cmd/trigger failed" in record.message for record in caplog.records)


@needs_mosquitto
def test_a_flood_of_commands_starves_no_answer(
    broker: Mosquitto, hear: Subscriber, plc: Plc, ledger: Ledger, station: Callable[..., Station]
) -> None:
    """Rule: while an answer waits no command is taken, and every command is acknowledged once, in order."""
    flooded = threading.Event()
    handled: list[bytes] = []

    def obey(name: str, payload: bytes, _retained: object) -> None:
        if payload == b"0":
            assert flooded.wait(20)
        handled.append(payload)
        here.publisher.acknowledge_command(name, payload)

    here = station(broker.port, on_command=obey, deadline_ms=30_000)
    commands = [b"%d" % number for number in range(2000)]
    for payload in commands:
        last = plc.command("trigger", payload)
    last.wait_for_publish(20)
    for _ in range(100):
        here.publisher.publish(ledger.record(make(deadline_unix_ns=time.time_ns() + 30_000_000_000)))
    flooded.set()
    wait_until(lambda: len(hear.on("ack/trigger")) == 2000, 30)
    wait_until(lambda: len(hear.on("result/plc")) == 100)
    assert hear.seqs("result/plc") == list(range(1, 101))
    order = [heard.topic for heard in hear.heard if heard.topic in {"result/plc", "ack/trigger"}]
    last_answer = len(order) - order[::-1].index("result/plc")
    assert order[:last_answer].count("ack/trigger") <= PER_TURN  # those that were taken together with the first
    assert handled == [heard.payload for heard in hear.on("ack/trigger")] == commands


@needs_mosquitto
def test_acknowledgements_go_before_a_backlog(
    broker: Mosquitto, hear: Subscriber, plc: Plc, ledger: Ledger, station: Callable[..., Station]
) -> None:
    """A command that comes while 5,000 old results drain is acknowledged before most of them are out."""
    for _ in range(5000):
        ledger.record(make(deadline_unix_ns=1))
    station(broker.port)
    wait_until(lambda: hear.on("result"))
    plc.command("trigger", b"1")
    wait_until(lambda: ledger.outbox_size == 0, 20)
    wait_until(lambda: len(hear.on("result")) == 5000)
    assert hear.on("ack/trigger")[0].at_s < hear.on("result")[4000].at_s


@needs_mosquitto
def test_an_acknowledgement_is_for_this_connection_or_never(
    broker: Mosquitto, plc: Plc, station: Callable[..., Station]
) -> None:
    """What was not acknowledged before the broker went away is not acknowledged when it is back: nobody waits."""
    here = station(broker.port)
    broker.stop()
    here.publisher.acknowledge_command("trigger", b"stale")
    wait_until(lambda: not here.publisher.connected)
    here.publisher.acknowledge_command("trigger", b"stale too")
    broker.start()
    second = Subscriber(broker.port, BASE)
    wait_until(lambda: here.publisher.connected)
    plc.command("trigger", b"fresh").wait_for_publish(5)
    wait_until(lambda: second.on("ack/trigger"))
    assert [heard.payload for heard in second.on("ack/trigger")] == [b"fresh"]
    second.close()
