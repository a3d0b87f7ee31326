from __future__ import annotations

import logging
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.broker import Mosquitto, Subscriber, needs_mosquitto, wait_until
from tests.daemon.results import make

from lineward.daemon.broker import EmbeddedBroker
from lineward.daemon.ledger import Ledger
from lineward.daemon.publish import Endpoint, Publisher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from lineward.daemon.result import Result

BASE = "lineward/plant/line1/cam1"

WRITER = f"""
import sys, time
from pathlib import Path
from lineward.daemon.ledger import Ledger
from lineward.daemon.publish import Endpoint, Publisher
from tests.daemon.results import make
ledger = Ledger(Path(sys.argv[1]))
publisher = Publisher(Endpoint("127.0.0.1", int(sys.argv[2]), "cam1"), "{BASE}", deadline_ms=500, ledger=ledger).start()
publisher.wait_connected(5)
for _ in range(int(sys.argv[3])):
    publisher.publish(ledger.record(make()))
    time.sleep(0.002)
left = publisher.close(5)
ledger.close()
sys.exit(left)
"""


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


@pytest.fixture
def start(ledger: Ledger) -> Iterator[Callable[..., Publisher]]:
    started: list[Publisher] = []

    def start(port: int, *, protocol: str = "5", wait: bool = True, **options: Any) -> Publisher:
        endpoint = Endpoint("127.0.0.1", port, options.pop("client_id", "cam1"), protocol=protocol)
        publisher = Publisher(endpoint, BASE, deadline_ms=options.pop("deadline_ms", 500), ledger=ledger, **options)
        started.append(publisher.start())
        assert not wait or publisher.wait_connected(5), publisher.trouble
        return publisher

    yield start
    for publisher in started:
        publisher.close()


def send(ledger: Ledger, publisher: Publisher, count: int = 1, **changes: Any) -> list[Result]:
    return [publisher.publish(ledger.record(make(part_id=f"P{i}", **changes))) for i in range(count)]


@needs_mosquitto
@pytest.mark.parametrize("protocol", ["3.1.1", "5"])
def test_results_arrive_once_in_order_on_every_topic(
    broker: Mosquitto, hear: Subscriber, ledger: Ledger, start: Any, protocol: str
) -> None:
    """While the connection holds, every answer comes exactly once on each topic, in order and without a gap."""
    publisher = start(broker.port, protocol=protocol)
    for _ in range(200):
        send(ledger, publisher)
        time.sleep(0.001)
    wait_until(lambda: ledger.outbox_size == 0)  # what is waiting there goes first, at this rate perhaps all of them
    send(ledger, publisher)
    assert publisher.close(5) == 0
    wait_until(lambda: len(hear.on("result")) >= 201)
    assert hear.seqs() == hear.seqs("result/plc") == list(range(1, 202))
    assert [heard.payload for heard in hear.on("result/verdict")] == [b"pass"] * 201
    assert [heard.payload for heard in hear.on("result/part_id")] == [b"P0"] * 201
    assert not any(heard.json["late"] for heard in hear.on("result"))
    assert hear.on("result")[-1].json["latency_ms"]["record"] > 0
    expiries = {heard.expiry_s for heard in hear.on("result/plc")}
    # The broker counts whole seconds down, and leaves the property away in the last one.
    assert expiries <= {None, 0, 1}
    assert (1 in expiries) == (protocol == "5")


@needs_mosquitto
def test_an_outage_loses_nothing_and_tells_a_plc_nothing_stale(
    broker: Mosquitto, hear: Subscriber, ledger: Ledger, start: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """After an outage every result comes on `result`, old ones late and in order; `result/plc` gets only fresh ones."""
    publisher = start(broker.port)
    before = [result.seq for result in send(ledger, publisher, 50)]
    wait_until(lambda: ledger.outbox_size == 0)
    wait_until(lambda: len(hear.on("result/part_id")) == 50)
    broker.stop()
    wait_until(lambda: not publisher.connected)
    missed = []
    end = time.monotonic() + 2.6
    while time.monotonic() < end:
        missed += [result.seq for result in send(ledger, publisher)]
        time.sleep(0.01)
    assert "nothing listens there" in publisher.trouble
    time.sleep(0.6)  # the last of them is beyond its deadline now, and the third try comes after 3.5 s at the soonest
    broker.start()
    second = Subscriber(broker.port, BASE)
    assert not publisher.connected
    wait_until(lambda: publisher.connected)
    after = [result.seq for result in send(ledger, publisher, 50)]
    wait_until(lambda: ledger.outbox_size == 0)
    wait_until(lambda: len(second.on("result")) == len(missed) + 50)
    assert publisher.counters()["reconnects"] == 1
    assert not publisher.trouble
    assert hear.seqs()[:50] == hear.seqs("result/plc")[:50] == before
    assert second.seqs() == missed + after
    assert [heard.json["late"] for heard in second.on("result")] == [True] * len(missed) + [False] * 50
    assert second.seqs("result/plc") == after
    second.close()
    warnings = [record for record in caplog.records if record.name == "lineward.mqtt" and record.levelname == "WARNING"]
    assert len(warnings) == 1


@needs_mosquitto
def test_every_result_of_an_outage_is_heard(broker: Mosquitto, hear: Subscriber, ledger: Ledger, start: Any) -> None:
    """10,000 results recorded without a broker all arrive, exactly once, in order; a fresh answer does not queue."""
    for _ in range(10_000):
        ledger.record(make(deadline_unix_ns=1))
    publisher = start(broker.port)
    (fresh,) = send(ledger, publisher)
    wait_until(lambda: len(hear.on("result")) == 10_001, 20, "drain")
    assert hear.seqs() == list(range(1, 10_002))
    assert hear.seqs("result/plc") == [fresh.seq]
    plc_at = hear.on("result/plc")[0].at_s
    assert plc_at < hear.on("result")[5_000].at_s
    assert all(heard.json["late"] for heard in hear.on("result")[:10_000])
    assert not hear.on("result")[-1].json["late"]  # the PLC was told in time: behind the backlog it is not late


@needs_mosquitto
def test_sigkill_in_mid_run_loses_nothing(broker: Mosquitto, hear: Subscriber, tmp_path: Path) -> None:
    """After kills and restarts, ledger and subscriber agree on every result."""
    storage = tmp_path / "storage"
    for count in (10_000, 10_000, 20):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(storage), str(broker.port), str(count)])
        if count == 20:
            assert writer.wait(20) == 0
        else:
            time.sleep(1.2)
            writer.send_signal(signal.SIGKILL)
            writer.wait(5)
    ledger = Ledger(storage)
    seqs = [row.seq for row in ledger.rows()]
    assert ledger.outbox_size == 0
    ledger.close()
    wait_until(lambda: len(set(hear.seqs())) == len(seqs))
    assert seqs == list(range(1, len(seqs) + 1)) == list(dict.fromkeys(hear.seqs()))
    assert [heard.payload for heard in hear.on("availability") if not heard.retain] == [
        b"online", b"offline", b"online", b"offline", b"online", b"stopped"
    ]  # fmt: skip


@needs_mosquitto
def test_state_comes_before_online_and_stopped_fires_no_last_will(
    broker: Mosquitto, hear: Subscriber, start: Any
) -> None:
    """`online` follows the state at every connect; a clean exit says `stopped` and nothing after."""
    publisher = start(broker.port, wait=False, stats=lambda: {"rate_hz": 1.5})

    def alarms() -> list[Any]:
        return [heard.json for heard in hear.on("alarm") if heard.json]  # the first one may say that there are none

    publisher.set_state({"state": "ready"})
    publisher.set_alarms({"disk": {"raised": True, "severity": "error", "text": "full", "since": "now"}})
    wait_until(lambda: hear.on("stats"))
    publisher.set_alarms({})
    publisher.set_state({"state": "continuous_execution"})
    wait_until(lambda: len(alarms()) == 2 and len(hear.on("state")) == 2)
    publisher.close()
    wait_until(lambda: hear.on("availability")[-1].payload == b"stopped")
    time.sleep(0.2)
    assert [heard.payload for heard in hear.on("availability")] == [b"online", b"stopped"]
    assert [alarm["disk"]["raised"] for alarm in alarms()] == [True, False]
    late = Subscriber(broker.port, BASE)
    wait_until(lambda: len(late.heard) == 4)
    assert {heard.topic for heard in late.heard if heard.retain} == {"availability", "state", "stats", "alarm"}
    late.close()


@needs_mosquitto
def test_an_alarm_that_was_left_raised_is_over_when_the_next_process_has_none(broker: Mosquitto, start: Any) -> None:
    """Rule: what was mended while the station was down does not stay raised on the broker."""
    first = start(broker.port)
    first.set_alarms({"camera": {"raised": True, "severity": "error", "text": "gone", "since": "now"}})
    wait_until(lambda: retained(broker).get("camera", {}).get("raised"))
    first.close()
    assert retained(broker)["camera"]["raised"]
    start(broker.port)
    wait_until(lambda: retained(broker) == {})


def retained(broker: Mosquitto) -> Any:
    """What the broker tells of alarms to whoever comes now."""
    hear = Subscriber(broker.port, BASE)
    try:
        wait_until(lambda: hear.on("alarm"))
        return hear.on("alarm")[0].json
    finally:
        hear.close()


@needs_mosquitto
def test_heartbeat_beats_only_with_the_loop(broker: Mosquitto, hear: Subscriber, start: Any) -> None:
    """A daemon whose loop hangs has no heartbeat, though its connection is fine."""
    publisher = start(broker.port, alive_s=0.5)
    time.sleep(1.2)
    assert not hear.on("heartbeat")
    for _ in range(25):
        publisher.beat()
        time.sleep(0.1)
    wait_until(lambda: len(hear.on("heartbeat")) >= 2)
    assert [heard.payload for heard in hear.on("heartbeat")][:2] == [b"1", b"2"]


@needs_mosquitto
def test_a_late_verdict_is_no_answer_and_a_timeout_is(
    broker: Mosquitto, hear: Subscriber, ledger: Ledger, start: Any
) -> None:
    """A PLC hears of a time-out at once, and never of a pass that came after its deadline."""
    publisher = start(broker.port)
    now = time.time_ns()
    send(ledger, publisher, verdict="pass", trigger_unix_ns=now - 10**9, deadline_unix_ns=now - 5 * 10**8,
         latency=make().latency.__class__(total=1000.0))  # fmt: skip
    send(ledger, publisher, verdict="pass", late=True)
    send(ledger, publisher, verdict="undecided", reason="timeout", late=True)
    wait_until(lambda: ledger.outbox_size == 0 and len(hear.on("result")) == 3)
    assert [heard.json["late"] for heard in hear.on("result")] == [True, True, True]
    assert [(heard.json["seq"], heard.json["v"]) for heard in hear.on("result/plc")] == [(3, 0)]


@needs_mosquitto
def test_a_frozen_broker_is_noticed_and_gets_nothing_stale(
    broker: Mosquitto, hear: Subscriber, ledger: Ledger, start: Any
) -> None:
    """A broker that stops answering is dropped within 2 s, and answers for the PLC do not pile up in front of it."""
    publisher = start(broker.port)
    broker.freeze()
    end = time.monotonic() + 6
    sent = []
    while publisher.connected and time.monotonic() < end:
        sent += send(ledger, publisher)
        time.sleep(0.05)
    assert not publisher.connected
    broker.thaw()
    wait_until(lambda: publisher.connected)
    wait_until(lambda: ledger.outbox_size == 0)
    wait_until(lambda: len(set(hear.seqs())) == len(sent))
    assert len(hear.seqs("result/plc")) <= len(sent) // 2


def test_a_black_hole_is_noticed(start: Any, ledger: Ledger) -> None:
    """A broker that accepts TCP and says nothing is trouble after 3 s; publishing and stopping do not wait for it."""
    with socket.create_server(("127.0.0.1", 0)) as hole:
        publisher = start(hole.getsockname()[1], wait=False)
        send(ledger, publisher, 10)
        wait_until(lambda: "then says nothing" in publisher.trouble, 6)
        began = time.monotonic()
        assert publisher.close(0) == 10
        assert time.monotonic() - began < 2


@needs_mosquitto
@pytest.mark.parametrize("protocol", ["3.1.1", "5"])
def test_a_second_client_with_our_id_is_named(broker: Mosquitto, start: Any, protocol: str) -> None:
    """Two clients with one id throw each other out for ever: the trouble says so and how to end it."""
    first = start(broker.port, protocol=protocol)
    second = start(broker.port, protocol=protocol)
    wait_until(lambda: "another client seems to use our client id 'cam1'" in first.trouble + second.trouble, 20)


@needs_mosquitto
def test_a_wrong_password_is_told(tmp_path: Path, start: Any) -> None:
    """A refusal names what to check."""
    broker = Mosquitto(tmp_path, "allow_anonymous false")
    publisher = start(broker.port, wait=False)
    wait_until(lambda: "check user name, password" in publisher.trouble)
    broker.stop()


def test_the_embedded_broker_serves_a_demo(capfd: pytest.CaptureFixture[str], ledger: Ledger, start: Any) -> None:
    """The demo's broker starts on a free port, keeps retained messages, passes results, and is quiet."""
    with EmbeddedBroker() as broker:
        publisher = start(broker.port, protocol="3.1.1")
        publisher.set_state({"state": "ready"})
        send(ledger, publisher, 100)
        wait_until(lambda: ledger.outbox_size == 0)
        assert publisher.close(1) == 0
    with pytest.raises(OSError, match="refused"), socket.create_connection(("127.0.0.1", broker.port), 1):
        pass
    assert capfd.readouterr().err == ""


def test_starting_without_a_broker_warns_once(start: Any, ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    """A missing broker is one WARNING, not one per try or per result."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with caplog.at_level(logging.DEBUG, "lineward.mqtt"):
            publisher = start(taken.getsockname()[1], wait=False)
            send(ledger, publisher, 20)
            time.sleep(2)
            publisher.close()
    assert [record.levelname for record in caplog.records].count("WARNING") == 1
