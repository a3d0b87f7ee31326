"""From the trigger on the wire to the answer on the wire: what the station adds to camera and network.

`lineward run` with a software-triggered camera of 640x512 talks to Mosquitto through a relay that notes when a trigger
goes in and when its `result/plc` comes out. From this time the camera's part (trigger to frame) and `session.run` are
taken off. "The machine itself" is how late a process beside them wakes that only sleeps, six times in a row, as a part
wakes six threads and processes on its way: what is not the station's.

The model looks at half the width and height: at full size two cores cannot judge 20 parts a second. First without
anything else, then while 10,000 old results drain, then at 80 % and at 150 % of what the station can judge.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import re
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import paho.mqtt.client as paho  # noqa: E402
from ledger import draft, quantiles  # noqa: E402
from paho.mqtt.enums import CallbackAPIVersion  # noqa: E402
from relay import Relay  # noqa: E402
from tests.broker import Mosquitto, Subscriber, wait_until  # noqa: E402
from tests.system.line import BASE, Line, call, children  # noqa: E402

from lineward.daemon.ledger import Ledger  # noqa: E402
from lineward.drivers.simulated import write_dataset  # noqa: E402

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

OLD_ROWS = 10_000
DEADLINE_MS = 250
WAKES = 6
"""Of threads and processes from wire to wire: relay, MQTT thread, loop, camera process, loop, MQTT thread."""
WIDTH, HEIGHT = 640, 512
THREADS = max(1, (os.cpu_count() or 2) - 1)
"""Of the judge: one core stays free, else its threads keep answers waiting for one."""


@dataclass
class Wire:
    """When triggers went in and answers came out, by part id, in seconds."""

    triggered: dict[str, float]
    answered: dict[str, float]
    tails: dict[bool, bytes]

    def ms(self, part: str) -> float:
        """Return the time of one part from wire to wire."""
        return (self.answered[part] - self.triggered[part]) * 1e3

    def tap(self, from_station: bool, data: bytes) -> None:  # noqa: FBT001 - as the relay calls it
        """Note the part ids in a piece of the stream."""
        now = time.perf_counter()
        data = self.tails.get(from_station, b"") + data  # a message may come in two pieces
        self.tails[from_station] = data[-400:]
        if from_station:
            for part in re.findall(rb'/result/plc.*?"id":"(L\d+)"', data, re.DOTALL):
                self.answered.setdefault(part.decode(), now)
        else:
            for part in re.findall(rb'"part_id":"(L\d+)"', data):
                self.triggered.setdefault(part.decode(), now)


def relay_process(pipe: Connection, port: int) -> None:
    """Serve as the relay, in a process of its own so that nobody else's work is measured."""
    wire = Wire({}, {}, {})
    relay = Relay(port, wire.tap)
    relay.hole()
    pipe.send(relay.port)
    while (word := pipe.recv()) != "stop":
        if word == "heal":
            relay.heal()
        else:
            pipe.send(wire)
    relay.close()


def sleeper_process(pipe: Connection) -> None:
    """Sleep for a millisecond, again and again, and note how late the end comes; in milliseconds, of six together."""
    late_ms: list[float] = []
    while not pipe.poll(0):
        late_s = 0.0
        for _ in range(WAKES):
            began = time.perf_counter()
            time.sleep(0.001)
            late_s += time.perf_counter() - began - 0.001
        late_ms.append(late_s * 1e3)
        time.sleep(0.02)
    pipe.recv()
    pipe.send(late_ms)


def hurry(pid: int | None, priority: int) -> None:
    """Let a process go before everything else on this machine, with all its threads; needs root."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setscheduler(int(task.name), os.SCHED_FIFO, os.sched_param(priority))


class Bench:
    """A station, its broker, and somebody who triggers."""

    realtime = False

    def __init__(self, folder: Path, model: Path, *, old_rows: int) -> None:
        folder.mkdir()
        self.broker = Mosquitto(folder, "allow_anonymous true", "max_queued_messages 0", "set_tcp_nodelay true")
        self.pipe, theirs = multiprocessing.Pipe()
        self.relay = multiprocessing.Process(target=relay_process, args=(theirs, self.broker.port))
        self.relay.start()
        self.sleeper, at_sleeper = multiprocessing.Pipe()
        self.sleep = multiprocessing.Process(target=sleeper_process, args=(at_sleeper,))
        self.hear = Subscriber(self.broker.port, BASE)
        self.line = Line(
            folder / "line",
            model=model,
            port=self.pipe.recv(),
            camera={
                "driver": "simulated",
                "trigger": "software",
                "width": WIDTH,
                "height": HEIGHT,
                "prerender": 16,
                "defect_rate": 0,
            },
            inspection={"deadline_ms": DEADLINE_MS, "threads": THREADS},
            log={"parts": False},
        )
        ledger = Ledger(self.line.storage)
        for number in range(old_rows):
            ledger.record(draft(number))
        ledger.close()
        self.line.start().wait_log("ready after", 120)
        self.sleep.start()
        if self.realtime:
            (broker,) = [
                pid for pid in children(os.getpid()) if b"mosquitto" in Path(f"/proc/{pid}/cmdline").read_bytes()
            ]
            for pid, priority in ((self.relay.pid, 30), (self.sleep.pid, 30), (broker, 25), (self.line.pid, 20)):
                hurry(pid, priority)
            hurry(self.line.camera_pid(), 15)
            hurry(os.getpid(), 10)  # triggers must come at their pace
        self.client = paho.Client(CallbackAPIVersion.VERSION2)
        self.client.connect("127.0.0.1", self.broker.port)
        self.client.loop_start()
        self.sent = 0
        self.next_s = 0.0
        self.pipe.send("heal")
        wait_until(lambda: any(heard.payload == b"online" for heard in self.hear.on("availability")), 30, "online")

    def wire(self) -> Wire:
        """Return what the relay has seen."""
        self.pipe.send("wire")
        seen: Wire = self.pipe.recv()
        return seen

    def trigger(self, every_s: float, count: int) -> list[str]:
        """Send triggers at a steady pace; return the part ids."""
        parts = [f"L{self.sent + number}" for number in range(count)]
        self.sent += count
        self.next_s = max(self.next_s, time.perf_counter())
        for part in parts:
            while (left := self.next_s - time.perf_counter()) > 0:
                time.sleep(left)
            self.next_s += every_s
            self.client.publish(
                f"{BASE}/cmd/trigger", json.dumps({"id": part, "part_id": part}, separators=(",", ":")), qos=1
            )
        return parts

    def wait_answered(self, parts: list[str]) -> dict[str, dict[str, Any]]:
        """Wait for `result` of every part, at most 30 s; return all there are, by part id."""
        with contextlib.suppress(AssertionError):
            wait_until(lambda: set(parts) <= set(self.results()), 30)
        return self.results()

    def results(self) -> dict[str, dict[str, Any]]:
        """Return every `result` of a triggered part."""
        return {heard.json["part_id"]: heard.json for heard in list(self.hear.on("result")) if b'"L' in heard.payload}

    def machine_ms(self) -> list[float]:
        """Return how late the sleeper woke, six times together, in milliseconds."""
        self.sleeper.send("stop")
        late: list[float] = self.sleeper.recv()
        self.sleep.join()
        return late

    def close(self) -> None:
        """Take everything down."""
        if self.sleep.is_alive():
            self.sleep.kill()
        self.client.disconnect()
        self.client.loop_stop()
        self.line.kill()
        self.hear.close()
        self.pipe.send("stop")
        self.relay.join()
        self.broker.stop()


def tell(bench: Bench, parts: list[str], what: dict[str, list[float]]) -> None:
    """Add the times of parts that were judged, in milliseconds."""
    results, wire = bench.wait_answered(parts), bench.wire()
    free_at = 0.0
    for part in parts:
        met_another = wire.triggered.get(part, 0.0) < free_at
        free_at = wire.answered.get(part, free_at)
        if part not in results or part not in wire.answered or not results[part]["latency_ms"]["infer"]:
            continue
        spent, whole = results[part]["latency_ms"], wire.ms(part)
        known = sum(spent[name] for name in ("grab", "prepare", "infer", "decide"))
        camera = spent["total"] - spent["record"] - spent["publish"] - known
        for name, ms in {
            "wire to wire": whole,
            "camera, trigger to frame": camera,
            "session.run": spent["infer"],
            "what the station adds": whole - camera - spent["infer"],
            "  waiting for its turn": spent["grab"],
            "  prepare and decide": spent["prepare"] + spent["decide"],
            "  record": spent["record"],
            "  in and out": whole - spent["total"],
        }.items():
            what.setdefault(name, []).append(ms)
            if name == "what the station adds" and not met_another:
                what.setdefault("  same, line was free", []).append(ms)


def drain(folder: Path, model: Path, rounds: int, old_rows: int) -> None:
    """Measure 20 triggers a second, during drains unless there are no old rows."""
    times: dict[str, list[float]] = {}
    for number in range(rounds):
        bench = Bench(folder / f"drain{old_rows}-{number}", model, old_rows=old_rows)
        parts: list[str] = []
        began = time.monotonic()
        while time.monotonic() - began < (60 if old_rows else 5) and len(bench.hear.on("result")) < (old_rows or 1e9):
            parts += bench.trigger(0.05, 4)
        took_s = time.monotonic() - began
        tell(bench, parts, times)
        times.setdefault("the machine itself", []).extend(bench.machine_ms())
        print(f"{len(parts)} triggers, {old_rows / took_s:.0f} old results a second", flush=True)
        bench.close()
    for name, values in times.items():
        print(f"{name:26}", quantiles(values), flush=True)


def load(folder: Path, model: Path, seconds: float) -> None:
    """Measure deadlines at 80 % and 150 % of what the station can judge."""
    bench = Bench(folder / "load", model, old_rows=0)
    bench.wait_answered(bench.trigger(0.1, 20))
    paces = []
    for _ in range(20):
        parts = bench.trigger(0.0, 5)  # faster than it can: the pace of the answers is the station's own
        bench.wait_answered(parts)
        answered = sorted(bench.wire().answered[part] for part in parts)
        paces.append((answered[-1] - answered[0]) / (len(answered) - 1))
    service_s = statistics.median(paces)
    print(f"capacity: {1 / service_s:.1f} parts/s")
    time.sleep(1)
    for share in (0.8, 1.5):
        parts = bench.trigger(service_s / share, round(seconds * share / service_s))
        results, wire = bench.wait_answered(parts), bench.wire()
        given = [part for part in parts if part in results]
        undecided = [part for part in given if results[part]["verdict"] == "undecided"]
        timeouts = [part for part in undecided if results[part]["reason"] == "timeout"]
        told = [part for part in given if part in wire.answered]
        over = [wire.ms(part) - DEADLINE_MS for part in told]
        timeout_over = [wire.ms(part) - DEADLINE_MS for part in timeouts if part in wire.answered]
        print(
            f"load {share:.0%}: {len(parts)} triggers, {len(parts) - len(given)} without an answer, "
            f"{len(given) - len(told)} not told to the PLC, {len(undecided)} undecided ({len(timeouts)} timeout), "
            f"{sum(ms > 0 for ms in over)} after the deadline on the wire, {sum(ms > 5 for ms in over)} by more than "
            "5 ms",
            flush=True,
        )
        if timeout_over:
            print("  time-outs, from the deadline:", quantiles(timeout_over), flush=True)
        time.sleep(1)
    bench.close()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="drains of 10,000 old results")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each load")
    parser.add_argument("--only", choices=["quiet", "drain", "load"], help="measure this and nothing else")
    parser.add_argument("--model", type=Path, help="a bundle, instead of training one")
    parser.add_argument("--realtime", action="store_true", help="on a busy machine: go before everything else (root)")
    arguments = parser.parse_args()
    Bench.realtime = arguments.realtime
    with tempfile.TemporaryDirectory(prefix="lineward-latency-") as name:
        folder = Path(name)
        model = arguments.model.absolute() if arguments.model else train(folder)
        if arguments.only in {None, "quiet"}:
            drain(folder, model, 1, 0)
        if arguments.only in {None, "drain"}:
            drain(folder, model, arguments.rounds, OLD_ROWS)
        if arguments.only in {None, "load"}:
            load(folder, model, arguments.seconds)


def train(folder: Path) -> Path:
    """Make a model for half the width and height."""
    data = write_dataset(folder / "parts", n_good=60, n_defect=24, width=WIDTH // 2, height=HEIGHT // 2)
    done = call(folder, "train", "--data", data, "--out", folder / "bracket.lward", "--json", timeout_s=300)
    assert done.returncode == 0, done.stderr
    return folder / "bracket.lward"


if __name__ == "__main__":
    main()
