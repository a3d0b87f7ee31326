"""What each fault around the station costs the line, counted by part: `lineward run` with a software-triggered camera.

A PLC sends triggers with unique part ids while the fault happens and for some seconds after. "Lost" are parts whose
trigger was acknowledged and for which no result ever came. "Wrong" are parts that the PLC let through and that the
ledger does not hold as a pass in time, and parts with two answers. "Stale" are passes that came more than the deadline
after the trigger was sent: a trigger that waits at the broker is young for the station, so a PLC needs its own timer.
"Back" are seconds from the end of the fault to the first answer in time. "offline" is the broker's last will.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import paho.mqtt.client as paho  # noqa: E402
from paho.mqtt.enums import CallbackAPIVersion  # noqa: E402
from relay import Relay  # noqa: E402
from tests.broker import DURABLE, Mosquitto, Subscriber, wait_until  # noqa: E402
from tests.system.line import BASE, Line, call  # noqa: E402

from lineward.drivers.simulated import write_dataset  # noqa: E402
from plc import Plc  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEADLINE_MS = 500
EVERY_S = 0.1
GCC = shutil.which("gcc")


@dataclass
class Scene:
    """Everything a fault can act upon."""

    line: Line
    broker: Mosquitto
    relay: Relay
    folder: Path

    def run_for(self, seconds: float) -> None:
        """Let the line run."""
        time.sleep(seconds)

    @contextlib.contextmanager
    def client(self, client_id: str = "") -> Iterator[paho.Client]:
        """Connect to the broker as somebody else."""
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id, reconnect_on_failure=not client_id)
        client.max_queued_messages_set(0)
        client.connect("127.0.0.1", self.broker.port)
        client.loop_start()
        wait_until(client.is_connected)
        yield client
        client.disconnect()
        client.loop_stop()


# ---- the faults: each returns when it is over


def nothing(scene: Scene) -> None:
    """Run without a fault."""
    scene.run_for(5)


def broker_down(seconds: float) -> Callable[[Scene], None]:
    """Stop the broker in order, so that it keeps what it has acknowledged."""

    def fault(scene: Scene) -> None:
        scene.broker.stop(gently=True)
        time.sleep(seconds)
        scene.broker.start()

    return fault


def broker_frozen(scene: Scene) -> None:
    """Let it accept connections and say nothing for 5 s."""
    scene.broker.freeze()
    time.sleep(5)
    scene.broker.thaw()


def black_hole(scene: Scene) -> None:
    """Let the network swallow everything for 8 s: from a living connection first, then before CONNACK."""
    scene.relay.hole()
    time.sleep(8)
    scene.relay.heal()


def kills(scene: Scene) -> None:
    """Kill the daemon five times at random moments, as systemd would start it again."""
    moments = random.Random(4)
    for _ in range(5):
        time.sleep(moments.uniform(0.5, 2.0))
        scene.line.kill()
        scene.line.start()
        scene.line.wait_log("ready after", times=scene.line.log.count("ready after") + 1)


def disk_full(scene: Scene) -> None:
    """Fill the disk of ledger and outbox for 5 s."""
    ballast = scene.line.storage / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(65536))
    with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
        while True:
            file.write(b"0")
    time.sleep(5)
    ballast.unlink()


def clock_stepped(scene: Scene) -> None:
    """Set the wall clock an hour ahead, two back, and right again; monotonic time goes on."""
    for offset_s in (3600, -3600, 0):
        set_clock(scene.folder, offset_s)
        scene.run_for(3)


def same_id(scene: Scene) -> None:
    """Let a stranger with the station's client id connect again and again for 6 s."""
    end = time.monotonic() + 6
    while time.monotonic() < end:
        with contextlib.suppress(OSError, AssertionError), scene.client("lineward-plant-line1-cam1"):
            time.sleep(0.3)


def ten_megabytes(scene: Scene) -> None:
    """Send three commands of 10 MB."""
    with scene.client() as client:
        for _ in range(3):
            client.publish(f"{BASE}/cmd/trigger", b"x" * 10_000_000, qos=1).wait_for_publish(10)
    scene.run_for(2)


def flood(scene: Scene) -> None:
    """Send 5,000 commands a second for 4 s, from a process of its own; every second one is a real trigger."""
    source = (
        "import sys, time, paho.mqtt.client as paho\n"
        "from paho.mqtt.enums import CallbackAPIVersion\n"
        "client = paho.Client(CallbackAPIVersion.VERSION2); client.max_inflight_messages_set(0)\n"
        "client.connect('127.0.0.1', int(sys.argv[1])); client.loop_start(); began = time.monotonic(); sent = 0\n"
        "while (now := time.monotonic() - began) < 4:\n"
        "    while sent < now * 5000:\n"
        '        body = b\'{"id":"f%d","part_id":"F%d"}\' % (sent, sent) if sent % 2 else b\'{}\'\n'
        f"        client.publish('{BASE}/cmd/trigger', body, qos=1); sent += 1\n"
        "    time.sleep(0.002)\n"
        "time.sleep(2); print(sent)\n"
    )
    done = subprocess.run([sys.executable, "-c", source, str(scene.broker.port)], capture_output=True, check=True)
    print(f"{'':18}({int(done.stdout)} commands in the flood)")
    scene.run_for(3)


FAULTS: dict[str, Callable[[Scene], None]] = {
    "none": nothing,
    "broker 0.1 s": broker_down(0.1),
    "broker 1 s": broker_down(1),
    "broker 10 s": broker_down(10),
    "broker 60 s": broker_down(60),
    "broker frozen": broker_frozen,
    "black hole": black_hole,
    "SIGKILL x5": kills,
    "disk full": disk_full,
    "clock +-1 h": clock_stepped,
    "same client id": same_id,
    "10 MB command": ten_megabytes,
    "flood 5,000/s": flood,
}


# ---- one run


@contextlib.contextmanager
def storage(folder: Path, *, small: bool) -> Iterator[Path]:
    """Make the storage folder; ``small`` is a file system of its own of 12 MB, which needs root."""
    root = folder / "line" / "storage"
    root.mkdir(parents=True)
    if small:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(root)], check=True)
    try:
        yield root
    finally:
        if small:
            subprocess.run(["umount", "-l", str(root)], check=False)


def set_clock(folder: Path, offset_s: int) -> None:
    """Set the daemon's wall clock so many seconds ahead of the true one."""
    with (folder / "clock").open("r+b") as file:
        file.write(struct.pack("=i", offset_s))


@contextlib.contextmanager
def clock(folder: Path, *, fake: bool) -> Iterator[None]:
    """Let the daemon that is started meanwhile read a wall clock of its own; its monotonic clock stays true."""
    if not fake:
        yield
        return
    (folder / "clock").write_bytes(bytes(4))
    library = folder / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run([str(GCC), "-O2", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    os.environ |= {"LD_PRELOAD": str(library), "LINEWARD_CLOCK": str(folder / "clock")}
    try:
        yield
    finally:
        for name in ("LD_PRELOAD", "LINEWARD_CLOCK"):
            del os.environ[name]


def row(name: str, fault: Callable[[Scene], None], model: Path) -> bool:
    """Run one fault, print its row, and say whether nothing was lost or passed wrongly."""
    with tempfile.TemporaryDirectory(prefix="lineward-faults-") as temporary, contextlib.ExitStack() as stack:
        folder = Path(temporary)
        stack.enter_context(storage(folder, small=fault is disk_full))
        broker = Mosquitto(folder, "allow_anonymous true", "max_queued_messages 0", DURABLE)
        stack.callback(broker.stop)
        relay = Relay(broker.port)
        stack.callback(relay.close)
        hear = Subscriber(broker.port, BASE, session="listener")
        stack.callback(hear.close)
        line = Line(
            folder / "line",
            model=model,
            port=relay.port,
            camera={"driver": "simulated", "trigger": "software", "width": 320, "height": 256},
            inspection={"deadline_ms": DEADLINE_MS},
        )
        with clock(folder, fake=fault is clock_stepped):
            line.start()
        stack.callback(line.kill)
        line.wait_log("ready after", 60)
        plc = Plc(broker.port, BASE, deadline_ms=DEADLINE_MS, every_s=EVERY_S).start()
        try:
            time.sleep(2)
            fault(Scene(line, broker, relay, folder))
            over_s = time.monotonic()
            with contextlib.suppress(AssertionError):
                wait_until(lambda: plc.first_answer_s(over_s) is not None, 30)
            time.sleep(3)
        finally:
            plc.stop()
        return count(name, plc, line, hear, over_s)


def count(name: str, plc: Plc, line: Line, hear: Subscriber, over_s: float) -> bool:
    """Wait until the outbox is empty, stop the line, and compare the PLC's books with the ledger's."""
    acknowledged = {part.part_id for part in plc.parts.values() if any(ack["ok"] == 1 for ack in part.acks)}
    refused = sum(any(ack["ok"] == 0 for ack in part.acks) for part in plc.parts.values())
    doubled_acks = sum(len(part.acks) > 1 for part in plc.parts.values())

    def results() -> dict[str, set[int]]:
        found: dict[str, set[int]] = {}
        for heard in list(hear.on("result")):
            found.setdefault(heard.json["part_id"], set()).add(heard.json["seq"])
        return found

    with contextlib.suppress(AssertionError):
        wait_until(lambda: acknowledged <= set(results()), 30)
    with contextlib.suppress(AssertionError):
        wait_until(lambda: all(each["acked"] for each in line.rows()), 30)
    with contextlib.suppress(AssertionError):
        line.end(signal.SIGTERM)
    rows = line.rows()
    by_part: dict[str, list[dict[str, Any]]] = {}
    for each in rows:
        by_part.setdefault(each["part_id"], []).append(each)
    heard = results()
    time.sleep(0.5)
    lost = {part for part in acknowledged if part not in heard} | {
        each["part_id"] for each in rows if each["seq"] not in heard.get(each["part_id"], set())
    }
    wrong = sum(len(found) > 1 for part, found in by_part.items() if part)
    for part in plc.parts.values():
        told = by_part.get(part.part_id, [])
        wrong += plc.let_through(part) and [(each["verdict"], each["late"]) for each in told] != [("pass", 0)]
    wrong += sum(answer["v"] == 1 and not answer["id"].startswith("F") for answer in plc.unknown)
    alarms: dict[str, None] = {}
    for message in hear.on("alarm"):
        alarms.update(dict.fromkeys(name for name, alarm in message.json.items() if alarm["raised"]))
    alarms.update(dict.fromkeys("offline" for message in hear.on("availability") if message.payload == b"offline"))
    in_time = sum(bool(plc.fresh(part)) for part in plc.parts.values())
    first_s = plc.first_answer_s(over_s)
    back = "never" if first_s is None else f"{first_s - over_s:.1f}"
    through = sum(plc.let_through(part) for part in plc.parts.values())
    print(
        f"{name:16}{len(plc.parts):6}{len(acknowledged):7}{refused:9}{doubled_acks:6}{in_time:9}{through:9}{len(rows):9}"
        f"{plc.stale():7}{wrong:7}{len(lost):6}{back:>7}   {', '.join(alarms) or '-'}",
        flush=True,
    )
    if wrong or lost:
        keep = Path(tempfile.gettempdir()) / f"lineward-faults-{name.replace(' ', '-').replace('/', '-')}.log"
        shutil.copy(line.folder / "stderr.log", keep)
        print(f"{'':18}lost: {sorted(lost)[:8]}; log: {keep}")
    return not (wrong or lost)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fault", action="append", choices=FAULTS, help="only this one; may be repeated")
    arguments = parser.parse_args()
    fine = True
    with tempfile.TemporaryDirectory(prefix="lineward-faults-model-") as name:
        folder = Path(name)
        data = write_dataset(folder / "parts", n_good=60, n_defect=24, width=320, height=256)
        done = call(folder, "train", "--data", data, "--out", folder / "bracket.lward", "--json")
        assert done.returncode == 0, done.stderr
        print(json.dumps({"deadline_ms": DEADLINE_MS, "trigger_every_s": EVERY_S}))
        print(
            f"{'fault':16}{'sent':>6}{'acked':>7}{'refused':>9}{'twice':>6}{'in time':>9}{'through':>9}{'ledger':>9}"
            f"{'stale':>7}{'wrong':>7}{'lost':>6}{'back':>7}   alarms"
        )
        for fault in arguments.fault or FAULTS:
            if FAULTS[fault] is disk_full and os.geteuid() != 0:
                print(f"{fault:16}needs root, for a small file system")
            elif FAULTS[fault] is clock_stepped and GCC is None:
                print(f"{fault:16}needs gcc")
            else:
                fine &= row(fault, FAULTS[fault], folder / "bracket.lward")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
