"""Brokers that misbehave: silent, narrow, killed, or shared with a stranger who has our name."""

from __future__ import annotations

import contextlib
import getpass
import socket
import threading
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import pytest
from tests.broker import DURABLE, Mosquitto, Subscriber, needs_mosquitto, wait_until
from tests.daemon.results import make

from lineward.daemon.health import Alarms
from lineward.daemon.ledger import Ledger
from lineward.daemon.publish import Endpoint, Publisher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from lineward.daemon.result import Result

BASE = "lineward/plant/line1/cam1"
CONNACK = {"3.1.1": bytes([0x20, 2, 0, 0]), "5": bytes([0x20, 3, 0, 0, 0])}
DYNAMIC_SECURITY = "/usr/lib/x86_64-linux-gnu/mosquitto_dynamic_security.so"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "storage")
    yield ledger
    ledger.close()


@pytest.fixture
def start(ledger: Ledger) -> Iterator[Callable[..., Publisher]]:
    started: list[Publisher] = []

    def start(port: int, *, protocol: str = "5", wait: bool = True, **options: Any) -> Publisher:
        endpoint = Endpoint("127.0.0.1", port, "cam1", protocol=protocol)
        publisher = Publisher(endpoint, BASE, **{"deadline_ms": 500, "ledger": ledger, **options})
        started.append(publisher.start())
        assert not wait or publisher.wait_connected(5), publisher.trouble
        return publisher

    yield start
    for publisher in started:
        publisher.close()


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Callable[..., Mosquitto]]:
    started: list[Mosquitto] = []

    def mosquitto(*lines: str) -> Mosquitto:
        started.append(Mosquitto(tmp_path, *(lines or ("allow_anonymous true", "max_queued_messages 0"))))
        return started[-1]

    yield mosquitto
    for broker in started:
        broker.stop()


def send(ledger: Ledger, publisher: Publisher, count: int = 1, **changes: Any) -> list[Result]:
    return [publisher.publish(ledger.record(make(part_id=f"P{i}", **changes))) for i in range(count)]


class Mute:
    """Takes connections, answers CONNECT when it is told how, and says nothing ever after."""

    def __init__(self, answer: bytes) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._answer = answer
        self._taken: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                self._taken.append(connection)
                connection.sendall(self._answer)

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(5)
        for connection in self._taken:
            connection.close()


class Slow:
    """A way to a broker on which everything takes so long, in both directions, and nothing else happens."""

    def __init__(self, broker: int, delay_s: float) -> None:
        self._broker, self._delay_s = broker, delay_s
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.create_connection(("127.0.0.1", self._broker))
                for source, goal in ((near, far), (far, near)):
                    way: SimpleQueue[tuple[float, bytes]] = SimpleQueue()
                    threading.Thread(target=self._take, args=(source, way), daemon=True).start()
                    threading.Thread(target=self._give, args=(goal, way), daemon=True).start()

    def _take(self, source: socket.socket, way: SimpleQueue[tuple[float, bytes]]) -> None:
        data = b"?"
        while data:
            try:
                data = source.recv(65536)
            except OSError:
                data = b""
            way.put((time.monotonic() + self._delay_s, data))

    def _give(self, goal: socket.socket, way: SimpleQueue[tuple[float, bytes]]) -> None:
        with contextlib.suppress(OSError), goal:
            while True:
                due, data = way.get()
                time.sleep(max(0.0, due - time.monotonic()))
                if not data:
                    return
                goal.sendall(data)

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


@pytest.mark.parametrize("protocol", ["3.1.1", "5"])
def test_a_broker_that_acknowledges_nothing_is_noticed(start: Any, ledger: Ledger, protocol: str) -> None:
    """A broker that accepts us and then says nothing is trouble within seconds; nothing leaves the outbox."""
    mute = Mute(CONNACK[protocol])
    publisher = start(mute.port, protocol=protocol)
    send(ledger, publisher, 100)
    wait_until(lambda: "acknowledges nothing" in publisher.trouble, 8)
    began = time.monotonic()
    send(ledger, publisher, 100)
    assert publisher.close(0) == 200
    assert time.monotonic() - began < 3
    mute.close()


@pytest.mark.parametrize("protocol", ["3.1.1", "5"])
def test_a_broker_that_ignores_a_subscription_is_noticed(start: Any, protocol: str) -> None:
    """Without an answer to our subscription we are not `online`: a PLC would command into the void."""
    mute = Mute(CONNACK[protocol])
    publisher = start(mute.port, protocol=protocol, wait=False, on_command=lambda *_: None)
    wait_until(lambda: "says nothing to a subscription" in publisher.trouble, 8)
    assert not publisher.connected
    publisher.close()
    mute.close()


@needs_mosquitto
@pytest.mark.parametrize("window", [1, 2, 3, 5])
def test_a_narrow_broker_gets_everything(mosquitto: Any, start: Any, ledger: Ledger, window: int) -> None:
    """However few messages a broker takes at a time, old results and fresh answers arrive, and nobody is thrown out."""
    for _ in range(300):
        ledger.record(make(deadline_unix_ns=1))
    broker = mosquitto(
        *("allow_anonymous true", "set_tcp_nodelay true", "max_queued_messages 0", f"max_inflight_messages {window}")
    )
    hear = Subscriber(broker.port, BASE)
    publisher = start(broker.port, stats=lambda: {"x": 1})
    publisher.set_state({"state": "ready"})
    publisher.set_alarms({"disk": {"raised": True}})
    fresh = []
    for _ in range(50):
        fresh += send(ledger, publisher)
        time.sleep(0.01)
    wait_until(lambda: ledger.outbox_size == 0, 20)
    wait_until(lambda: len(hear.on("result")) == 350)
    assert hear.seqs() == list(range(1, 351))
    assert hear.seqs("result/plc") == [result.seq for result in fresh]
    assert publisher.counters()["reconnects"] == 0
    publisher.close()
    hear.close()


@needs_mosquitto
@pytest.mark.parametrize("gently", [True, False], ids=["restart", "kill"])
def test_restarts_of_a_broker_lose_nothing(mosquitto: Any, start: Any, ledger: Ledger, *, gently: bool) -> None:
    """Through restarts in the middle of a stream every number arrives, and `result/plc` never goes back.

    A broker that is killed may take with it what it had acknowledged and not passed on yet, no more than its window.
    """
    broker = mosquitto("allow_anonymous true", "max_queued_messages 0", *([DURABLE] if gently else []))
    publisher = start(broker.port)
    ears = [Subscriber(broker.port, BASE, session="listener" if gently else "")]
    for _ in range(3):
        assert publisher.wait_connected(15)
        for _ in range(100):
            send(ledger, publisher)
            time.sleep(0.003)
        broker.stop(gently=gently)
        send(ledger, publisher, 20)
        broker.start()
        if not gently:
            ears.append(Subscriber(broker.port, BASE))
    wait_until(lambda: ledger.outbox_size == 0, 15)
    wait_until(lambda: 360 in ears[-1].seqs(), 15)
    heard = {seq for ear in ears for seq in ear.seqs()}
    for ear in ears:
        plc = ear.seqs("result/plc")
        assert plc == sorted(set(plc))
        ear.close()
    missing = set(range(1, 361)) - heard
    assert len(missing) <= (0 if gently else 3 * 20), missing


@needs_mosquitto
def test_what_a_broker_drops_for_a_slow_reader_is_a_gap_that_the_ledger_fills(
    mosquitto: Any, start: Any, ledger: Ledger
) -> None:
    """Rule: a queue of the broker that is full drops results without a word; `seq` shows it, the ledger has them."""
    broker = mosquitto("allow_anonymous true", "max_queued_messages 10")
    publisher = start(broker.port)
    Subscriber(broker.port, BASE, session="slow").close()  # away, and its session stays
    sent = send(ledger, publisher, 100)
    wait_until(lambda: ledger.outbox_size == 0)
    reader = Subscriber(broker.port, BASE, session="slow")
    wait_until(lambda: send(ledger, publisher) and any(seq > sent[-1].seq for seq in reader.seqs()))
    heard = reader.seqs()
    reader.close()
    assert heard == sorted(set(heard))
    gap = {result.seq for result in sent} - set(heard)
    assert len(gap) >= 80
    wait_until(lambda: gap <= {row.seq for row in ledger.rows(acked=True)})


@needs_mosquitto
@pytest.mark.parametrize("protocol", ["3.1.1", "5"])
def test_a_take_over_becomes_an_alarm_that_the_line_can_read(
    mosquitto: Any, tmp_path: Path, start: Any, ledger: Ledger, protocol: str
) -> None:
    """Whoever watches `trouble` can raise an alarm that names our client id, and it is published between two fights."""
    broker = mosquitto()
    hear = Subscriber(broker.port, BASE)
    ours = start(broker.port, protocol=protocol)
    alarms = Alarms(ours.set_alarms)
    other = Ledger(tmp_path / "other")
    theirs = start(broker.port, protocol=protocol, ledger=other)

    def alarmed() -> bool:
        alarms.set("broker", ours.trouble)
        return any("client id 'cam1'" in heard.json["broker"]["text"] for heard in hear.on("alarm") if heard.json)

    wait_until(alarmed, 30)
    theirs.close()
    wait_until(lambda: ours.connected, 15)
    assert "give every station an id of its own" in ours.trouble  # still told for a while
    send(ledger, ours, 10)
    wait_until(lambda: ledger.outbox_size == 0)
    hear.close()
    other.close()


@needs_mosquitto
def test_lateness_does_not_look_at_the_wall_clock(mosquitto: Any, start: Any, ledger: Ledger) -> None:
    """With a clock that was set by an hour, either way: in time is in time, and what an outage delayed is late.

    The clock shows in what results say about themselves: an hour ahead before it is set back, an hour behind before
    it is set forward.
    """
    hour = 3600 * 10**9
    for shift in (-hour, hour):  # of an earlier process
        now = time.time_ns() + shift
        ledger.record(make(trigger_unix_ns=now, deadline_unix_ns=now + 500_000_000))
    broker = mosquitto()
    hear = Subscriber(broker.port, BASE)
    publisher = start(broker.port)
    for shift in (-hour, hour):
        now = time.time_ns() + shift
        send(
            ledger, publisher, 300, trigger_unix_ns=now, deadline_unix_ns=now + 60_000_000_000
        )  # past the queue of 256
    wait_until(lambda: len(hear.on("result")) == 602)
    assert [heard.json["late"] for heard in hear.on("result")] == [True] * 2 + [False] * 600
    broker.stop()
    wait_until(lambda: not publisher.connected)
    for shift in (-hour, hour):
        now = time.time_ns() + shift
        send(ledger, publisher, 1, trigger_unix_ns=now, deadline_unix_ns=now + 60_000_000_000)
    hear.heard.clear()
    broker.start()
    second = Subscriber(broker.port, BASE)
    wait_until(lambda: len(second.on("result")) == 2, 15)
    assert [heard.json["late"] for heard in second.on("result")] == [True, True]
    second.close()
    hear.close()


@needs_mosquitto
def test_a_forbidden_subscription_is_told(mosquitto: Any, tmp_path: Path, start: Any) -> None:
    """A broker that does not let us read commands is trouble that names the topic and the remedy."""
    broker = mosquitto(
        *(f"plugin {DYNAMIC_SECURITY}", f"plugin_opt_config_file {tmp_path}/security.json"),
        *("per_listener_settings false", "allow_anonymous true"),
    )
    publisher = start(broker.port, wait=False, on_command=lambda *_: None)
    wait_until(lambda: publisher.trouble)
    assert f"does not let us read {BASE}/cmd/+" in publisher.trouble
    assert "let this user subscribe there" in publisher.trouble


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try what was refused again soon."""
    monkeypatch.setattr("lineward.daemon.publish.AGAIN_S", 0.5)


@needs_mosquitto
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("topic", ["stats", "result/verdict", "result"])
def test_a_topic_that_is_forbidden_costs_nothing_but_itself(
    mosquitto: Any, tmp_path: Path, start: Any, ledger: Ledger, topic: str
) -> None:
    """Rule: the PLC goes on hearing its answers, the trouble names the topic, and answers wait until they are taken."""
    rules = tmp_path / "rules"
    rules.write_text(f"topic deny {BASE}/{topic}\ntopic readwrite #\n")
    # Started by root it would turn into a user who may not read the rules.
    broker = mosquitto("allow_anonymous true", f"acl_file {rules}", f"user {getpass.getuser()}")
    hear = Subscriber(broker.port, BASE)
    publisher = start(broker.port, stats=lambda: {"x": 1})
    sent = send(ledger, publisher, 5)
    wait_until(lambda: f"refuses {BASE}/{topic}: Not authorized; let this user publish there" in publisher.trouble, 10)
    for _ in range(5):
        sent += send(ledger, publisher)
        time.sleep(0.2)
    numbers = [result.seq for result in sent]
    wait_until(lambda: hear.seqs("result/plc") == numbers, 10)
    assert publisher.counters()["reconnects"] == 0
    assert ledger.outbox_size == (10 if topic == "result" else 0)
    rules.write_text("topic readwrite #\n")
    broker.reload()
    wait_until(lambda: sorted(hear.seqs()) == numbers, 15)
    wait_until(lambda: ledger.outbox_size == 0 and (topic != "result" or not publisher.trouble), 10)
    assert [heard.json["late"] for heard in hear.on("result")] == [False] * 10, "the PLC had been told"
    assert hear.seqs() == numbers
    publisher.close()
    hear.close()


@needs_mosquitto
def test_a_broker_that_takes_small_messages_only_is_named_and_keeps_the_plc(
    mosquitto: Any, start: Any, ledger: Ledger
) -> None:
    """Rule: an answer larger than the broker's limit is no reason to lose the connection, and the limit is named."""
    broker = mosquitto("allow_anonymous true", "max_packet_size 700")
    hear = Subscriber(broker.port, BASE)
    publisher = start(broker.port)
    sent = send(ledger, publisher, 5)
    wait_until(lambda: "takes messages of at most 700 bytes" in publisher.trouble, 10)
    assert f"one on {BASE}/result has " in publisher.trouble
    assert publisher.trouble.endswith("; raise its max_packet_size")
    sent += send(ledger, publisher, 5)
    wait_until(lambda: hear.seqs("result/plc") == [result.seq for result in sent], 10)
    assert publisher.counters()["reconnects"] == 0
    assert ledger.outbox_size == 10
    publisher.close()
    hear.close()


@needs_mosquitto
def test_a_broker_that_hangs_up_at_each_answer_is_not_only_suspected_of_another_client(
    mosquitto: Any, start: Any, ledger: Ledger
) -> None:
    """Rule: with MQTT 3.1.1 a broker does not say why it hangs up: both causes are named."""
    broker = mosquitto("allow_anonymous true", "max_packet_size 700")
    publisher = start(broker.port, protocol="3.1.1")
    send(ledger, publisher, 1)
    wait_until(lambda: "the broker does not take our messages (its limit of size)" in publisher.trouble, 20)
    publisher.close()


@needs_mosquitto
def test_behind_a_slow_link_late_means_that_the_plc_was_not_told(mosquitto: Any, start: Any, ledger: Ledger) -> None:
    """Rule: an answer that a slow link keeps from `result/plc` says so; one with a longer deadline is told."""
    broker = mosquitto("allow_anonymous true", "set_tcp_nodelay true")
    with contextlib.closing(Slow(broker.port, 0.12)) as slow:
        hear = Subscriber(broker.port, BASE)
        publisher = start(slow.port, deadline_ms=100)
        now = time.time_ns()
        sent = []
        for number in range(20):
            allowed_ms = 3000 if number % 2 else 150
            sent += send(ledger, publisher, trigger_unix_ns=now, deadline_unix_ns=now + allowed_ms * 1_000_000)
            time.sleep(0.05)
        wait_until(lambda: len(hear.on("result")) == 20, 20)
        late = {heard.json["seq"]: heard.json["late"] for heard in hear.on("result")}
        told = set(hear.seqs("result/plc"))
        assert {seq for seq, is_late in late.items() if not is_late} == told
        assert {result.seq for result in sent[1::2]} <= told
        publisher.close()
        hear.close()
