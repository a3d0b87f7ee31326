"""A day of parts through the whole service at full speed: memory, descriptors, shared memory, and whether books agree.

`lineward run` replays a folder without end as fast as it judges; a subscriber counts what the broker gives it. 432,000
parts are 24 hours at 5 Hz. The resident size is compared with its value after the first twentieth of the parts.

    .venv/bin/python bench/soak.py                  # 432,000 parts; needs Mosquitto
    .venv/bin/python bench/soak.py --light --parts 20000
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import paho.mqtt.client as paho  # noqa: E402
from paho.mqtt.enums import CallbackAPIVersion  # noqa: E402
from tests.broker import DURABLE, Mosquitto, wait_until  # noqa: E402
from tests.system.line import BASE, Line, call, memory_mb, shared_memory  # noqa: E402

from lineward.daemon.ledger_read import LedgerReader  # noqa: E402
from lineward.daemon.reconcile import reconcile  # noqa: E402
from lineward.drivers.simulated import write_dataset  # noqa: E402
from lineward.models.bundle import load_bundle, save_bundle  # noqa: E402
from lineward.models.graph import Graph  # noqa: E402

DAY = 432_000
FIRST_SHARE = 0.05
LOOKS = 40


class Listener:
    """Counts results, checks their numbers, and keeps the last stats; keeps no payload."""

    def __init__(self, port: int) -> None:
        self.results = self.gaps = self.again = self.last = 0
        self.stats: dict[str, Any] = {}
        self._client = paho.Client(CallbackAPIVersion.VERSION2, "soak", clean_session=False)
        self._client.on_message = self._hear
        self._client.connect("127.0.0.1", port)
        self._client.subscribe([(f"{BASE}/result", 1), (f"{BASE}/stats", 1)])
        self._client.loop_start()

    def _hear(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        if message.topic.endswith("/stats"):
            self.stats = json.loads(message.payload)
            return
        head = message.payload[:60]
        seq = int(head[head.index(b'"seq":') + 6 : head.index(b",", head.index(b'"seq":'))])
        self.again += seq <= self.last
        self.gaps += seq > self.last + 1
        self.last = max(self.last, seq)
        self.results += 1

    def close(self) -> None:
        """Hang up."""
        self._client.disconnect()
        self._client.loop_stop()


@dataclass
class Look:
    """What the daemon uses at one moment."""

    parts: int
    daemon_mb: float
    camera_mb: float
    files: int
    camera_files: int
    threads: int
    shared: int
    disk_mb: float

    def __str__(self) -> str:
        return (
            f"{self.parts:8d} parts  daemon {self.daemon_mb:6.1f} MB  camera {self.camera_mb:6.1f} MB  "
            f"files {self.files}+{self.camera_files}  threads {self.threads}  shared memory {self.shared}  "
            f"storage {self.disk_mb:7.1f} MB"
        )


def look(line: Line, parts: int) -> Look:
    """Look at both processes."""
    camera = line.wait_camera_pid()
    threads = len(list(Path(f"/proc/{line.pid}/task").iterdir()))
    disk = sum(path.stat().st_size for path in line.storage.rglob("*") if path.is_file())
    return Look(
        parts,
        memory_mb(line.pid),
        memory_mb(camera),
        len(os.listdir(f"/proc/{line.pid}/fd")),  # noqa: PTH208 - names alone
        len(os.listdir(f"/proc/{camera}/fd")),  # noqa: PTH208
        threads,
        len(shared_memory()),
        disk / 1e6,
    )


def weightless(given: Path, goal: Path) -> Path:
    """Put a graph of a few additions into a bundle: the service is then all that takes time. Scores are anything."""
    manifest = load_bundle(given).manifest
    shape = manifest.input
    graph = Graph()
    image = graph.input("image", "uint8", ("N", shape.height, shape.width, shape.channels))
    mean = graph.op("ReduceMean", graph.op("Cast", image, to=1), axes=[1, 2, 3], keepdims=0)
    scaled = graph.op("Mul", mean, graph.constant(1000.0, "scale"))
    score = graph.op("Sub", scaled, graph.op("Floor", scaled))
    zero = graph.op("Mul", score, graph.constant(0.0, "zero"))
    graph.output("defect_probability", score, ["N"])
    graph.output("anomaly", zero, ["N"])
    graph.output("heatmap", graph.op("Reshape", zero, graph.constant([-1, 1, 1], "map")), ["N", 1, 1])
    types = len(manifest.defect_types)
    if types:
        columns = graph.op("Reshape", zero, graph.constant([-1, 1], "column"))
        graph.output("defect_type_scores", graph.op("Concat", *[columns] * types, axis=1), ["N", types])
    save_bundle(goal, bytes(graph.model("weightless", "0").SerializeToString()), manifest)
    return goal


def prepare(folder: Path) -> tuple[Path, Path]:
    """Train a small model; return it and a folder of parts, good and defective mixed."""
    dataset = write_dataset(folder / "dataset", n_good=60, n_defect=24, width=320, height=256)
    done = call(folder, "train", "--data", dataset, "--out", folder / "tiles.lward", timeout_s=600)
    if done.returncode:
        raise SystemExit(done.stderr)
    images = folder / "images"
    images.mkdir()
    for path in dataset.rglob("*.png"):
        shutil.copy(path, images / path.name)
    return folder / "tiles.lward", images


def run(parts: int, folder: Path, *, light: bool) -> dict[str, Any]:
    """Run the line for so many parts and return the figures."""
    model, images = prepare(folder)
    if light:
        model = weightless(model, folder / "light.lward")
    (folder / "broker").mkdir()
    broker = Mosquitto(folder / "broker", "allow_anonymous true", "max_queued_messages 0", DURABLE)
    listener = Listener(broker.port)
    line = Line(
        folder / "line",
        model=model,
        port=broker.port,
        camera={"driver": "folder", "folder": str(images), "loop": True},
        storage={"max_gb": 0.05, "thumbnails_gb": 0.002, "ledger_rows": 100_000_000},
        review={"keep_per_hour": 2000, "keep_fails": True, "audit_share": 0.01, "thumbnail_share": 0.1},
        log={"parts": False},
    )
    try:
        return watch(line, listener, parts)
    finally:
        line.kill()
        listener.close()
        broker.stop()


def watch(line: Line, listener: Listener, parts: int) -> dict[str, Any]:
    """Look at a running line at even distances, stop it, and hold the books against each other."""
    line.start()
    began = time.monotonic()
    looks: list[Look] = []
    marks = [max(1, round(parts * share / LOOKS)) for share in range(2, LOOKS + 1)]
    line.wait_log("ready after", 120)
    reader = LedgerReader(line.storage / "ledger.sqlite3")
    for mark in marks:
        wait_until(lambda mark=mark: reader.highest_seq() >= mark, 3600, f"{mark} parts")
        looks.append(look(line, reader.highest_seq()))
        print(looks[-1], flush=True)
    took_s = time.monotonic() - began
    code, stop_s = line.end()
    rows = reader.highest_seq()
    with closing(sqlite3.connect(f"file:{line.storage / 'ledger.sqlite3'}?mode=ro", uri=True)) as db:
        (count, waiting) = db.execute("SELECT count(*), sum(acked = 0) FROM results").fetchone()
        verdicts = dict(db.execute("SELECT verdict, count(*) FROM results GROUP BY verdict"))
    time.sleep(1.0)
    stats = listener.stats
    found = reconcile(reader)
    first = next(one for one in looks if one.parts >= FIRST_SHARE * parts)
    return {
        "parts": parts,
        "seconds": round(took_s, 1),
        "per_s": round(rows / took_s, 1),
        "exit": code,
        "stop_s": round(stop_s, 2),
        "rss_first_mb": round(first.daemon_mb, 1),
        "rss_last_mb": round(looks[-1].daemon_mb, 1),
        "rss_most_mb": round(max(one.daemon_mb for one in looks if one.parts >= first.parts), 1),
        "rss_change": round(looks[-1].daemon_mb / first.daemon_mb - 1, 4),
        "camera_rss_change": round(looks[-1].camera_mb / first.camera_mb - 1, 4),
        "files_change": looks[-1].files - first.files,
        "camera_files_change": looks[-1].camera_files - first.camera_files,
        "shared_memory_change": looks[-1].shared - first.shared,
        "threads_change": looks[-1].threads - first.threads,
        "ledger_rows": count,
        "highest_number": rows,
        "waiting": waiting,
        "stats_answers": stats.get("answers"),
        "verdicts_agree": stats.get("verdicts") == verdicts,
        "heard": listener.results,
        "heard_is_ledger_less_waiting": listener.results == count - waiting,
        "heard_gaps": listener.gaps,
        "heard_again": listener.again,
        "reconciled": found.fine,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--parts", type=int, default=DAY, help="how many parts; 432,000 are a day at 5 Hz")
    parser.add_argument("--light", action="store_true", help="a model that costs nothing: more parts in the same time")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lineward-soak-") as folder:
        print(json.dumps(run(wanted.parts, Path(folder), light=wanted.light), indent=1))


if __name__ == "__main__":
    main()
