"""What delivery costs the loop: with a live broker, and while 10,000 old results drain."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from ledger import draft, quantiles  # noqa: E402
from tests.broker import Mosquitto, wait_until  # noqa: E402

from lineward.daemon.ledger import Ledger  # noqa: E402
from lineward.daemon.publish import Endpoint, Publisher  # noqa: E402

OLD_ROWS = 10_000


def answer(ledger: Ledger, publisher: Publisher, record_ms: list[float], publish_ms: list[float]) -> None:
    """Do what the loop does with one answer, and take the times."""
    began = time.perf_counter()
    result = ledger.record(draft(0))
    recorded = time.perf_counter()
    publisher.publish(result)
    record_ms.append((recorded - began) * 1e3)
    publish_ms.append((time.perf_counter() - recorded) * 1e3)


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="lineward-bench-") as name:
        folder = Path(name)
        broker = Mosquitto(folder, "allow_anonymous true", "max_queued_messages 0")
        ledger = Ledger(folder)
        endpoint = Endpoint("127.0.0.1", broker.port, "lineward-bench")
        publisher = Publisher(endpoint, "lineward/a/b/c", deadline_ms=500, ledger=ledger).start()
        publisher.wait_connected(5)
        record_ms: list[float] = []
        publish_ms: list[float] = []
        for _ in range(1000):
            answer(ledger, publisher, record_ms, publish_ms)
            time.sleep(0.005)
        print("live at 200 Hz, record(): ", quantiles(record_ms))
        print("live at 200 Hz, publish():", quantiles(publish_ms))
        wait_until(lambda: ledger.outbox_size == 0)
        broker.stop()
        wait_until(lambda: not publisher.connected)
        for number in range(OLD_ROWS):
            ledger.record(draft(number))
        broker.start()
        wait_until(lambda: publisher.connected, 20)
        began = time.monotonic()
        record_ms, publish_ms = [], []
        while ledger.outbox_size > 50:
            answer(ledger, publisher, record_ms, publish_ms)
            time.sleep(0.002)
        print(f"drain: {OLD_ROWS / (time.monotonic() - began):.0f} rows/s")
        print("during the drain, record(): ", quantiles(record_ms))
        print("during the drain, publish():", quantiles(publish_ms))
        publisher.close(0)
        ledger.close()
        broker.stop()


if __name__ == "__main__":
    main()
