"""Node-RED, a program of other people, runs the shipped flow as the PLC of a whole line: its count is the ledger's.

Node-RED is installed once, with npm, into `.cache/` of the working tree; nothing of it is committed or shipped.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import signal
import subprocess
import time
from collections import Counter
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.broker import Subscriber, free_port, wait_until
from tests.system.line import LONG, call, figure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.broker import Mosquitto
    from tests.system.line import Line

ROOT = Path(__file__).resolve().parents[2]
FLOW = ROOT / "docs" / "plc" / "node-red-flow.json"
VERSION = "4.1.8"
CACHE = ROOT / ".cache" / f"node-red-{VERSION}"
REPORT = "plc/plant/line1/cam1"
PARTS = 2000 if LONG else 200
DEADLINE_MS = 3000
"""Long, because a machine that runs tests is busy; a part that is late all the same is counted as such."""

pytestmark = [pytest.mark.system, pytest.mark.timeout(1500 if LONG else 420)]


@pytest.fixture(scope="session")
def node_red() -> Path:
    """The folder of an installed Node-RED."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("Node-RED is not tried: node and npm are not installed")
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (CACHE / ".complete").exists():
            (CACHE / "package.json").write_text('{"private": true}\n')
            quiet = ["--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
            try:
                done = subprocess.run(
                    [npm, "install", *quiet, "--save-exact", f"node-red@{VERSION}"],
                    cwd=CACHE,
                    capture_output=True,
                    text=True,
                    timeout=300,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                pytest.skip("Node-RED is not tried: npm did not install it within 300 s")
            if done.returncode != 0:
                pytest.skip(f"Node-RED is not tried: npm cannot install it: {done.stderr.strip()[-300:]}")
            (CACHE / ".complete").touch()
    return CACHE


@pytest.fixture(scope="session")
def second_model(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of another product, made from the same images: whose recipe is in force shows in the product only."""
    folder = tmp_path_factory.mktemp("second")
    done = call(folder, "train", "--data", dataset, "--out", folder / "flange.lward", "--product", "flange", "--json")
    assert done.returncode == 0, done.stderr
    return folder / "flange.lward"


class NodeRed:
    """A headless Node-RED with the shipped flow; only the environment variables of its tab are ours."""

    def __init__(self, installed: Path, folder: Path, **settings: object) -> None:
        folder.mkdir()
        flow = json.loads(FLOW.read_text())
        tab = next(node for node in flow if node["type"] == "tab")
        known = {entry["name"]: entry for entry in tab["env"]}
        for name, value in settings.items():
            known[name]["value"] = str(value)
        (folder / "flow.json").write_text(json.dumps(flow))
        options = {
            "uiHost": "127.0.0.1",
            "uiPort": free_port(),
            "disableEditor": True,
            "httpAdminRoot": False,
            "httpNodeRoot": False,
            "credentialSecret": False,
            "mqttReconnectTime": 500,
            "telemetry": {"enabled": False, "updateNotification": False},
            "logging": {"console": {"level": "info", "metrics": False, "audit": False}},
        }
        (folder / "settings.js").write_text(f"module.exports = {json.dumps(options)};\n")
        self._log = folder / "log.txt"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *("node", "--max-old-space-size=256", installed / "node_modules" / "node-red" / "red.js"),
                    *("--userDir", folder, "--settings", folder / "settings.js", folder / "flow.json"),
                ],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._process.kill()
        self._process.wait(10)


@pytest.fixture
def plc_says(broker: Mosquitto) -> Iterator[Subscriber]:
    subscriber = Subscriber(broker.port, REPORT, session="counts")
    yield subscriber
    subscriber.close()


@pytest.fixture
def flow(node_red: Path, tmp_path: Path, broker: Mosquitto) -> Iterator[Callable[..., NodeRed]]:
    started: list[NodeRed] = []

    def start(**settings: object) -> NodeRed:
        made = NodeRed(node_red, tmp_path / f"node-red-{len(started)}", PORT=broker.port, REPORT=REPORT, **settings)
        started.append(made)
        return made

    yield start
    for each in started:
        each.stop()


class Watch:
    """Follows the counts that the flow publishes twice a second."""

    def __init__(self, says: Subscriber, red: NodeRed, line: Line) -> None:
        self._says, self._red, self._line = says, red, line

    @property
    def counts(self) -> dict[str, Any]:
        heard = self._says.on("counts")
        return heard[-1].json if heard else {"parts": 0, "done": False, "book_seq": 0}

    def until(self, reached: Callable[[dict[str, Any]], object], what: str, timeout_s: float = 120.0) -> dict[str, Any]:
        try:
            wait_until(lambda: not self._red.running or reached(self.counts), timeout_s, what)
        except AssertionError as error:
            raise AssertionError(
                f"{error}\n{self.counts}\n{self._red.log[-3000:]}\n{self._line.log[-3000:]}"
            ) from error
        assert self._red.running, self._red.log
        return self.counts


def restart(broker: Mosquitto, away_s: float) -> None:
    broker.stop(gently=True)
    time.sleep(away_s)
    broker.start()


def test_node_red_counts_what_the_ledger_counts(
    line: Callable[..., Line],
    second_model: Path,
    broker: Mosquitto,
    plc_says: Subscriber,
    flow: Callable[..., NodeRed],
) -> None:
    """Rule: through broker restarts, a killed daemon and a change of recipe, PLC and ledger count the same parts.

    A part is let through only where the ledger says pass, under the recipe that the PLC had asked for. Each answer of
    the ledger reaches the PLC's book exactly once. What the PLC did not hear in time it rejected.
    """
    station = line(
        port=broker.port,
        camera={"driver": "simulated", "trigger": "software", "width": 320, "height": 256},
        inspection={"deadline_ms": DEADLINE_MS},
        **{"recipes.flange": {"model": str(second_model)}},
    ).start()
    station.wait_log("ready after")
    protocol = station.folder / "protocol.jsonl"
    red = flow(
        PARTS=PARTS,
        PACE_MIN_MS=20,
        PACE_MAX_MS=120,
        TIMEOUT_MS=DEADLINE_MS + 500,
        NEXT_RECIPE="flange",
        NEXT_RECIPE_AFTER=PARTS * 6 // 10,
        PROTOCOL=protocol,
    )
    watch = Watch(plc_says, red, station)
    longest_s = 600.0 if LONG else 120.0
    watch.until(lambda counts: counts["parts"] >= PARTS * 2 // 10, "a fifth of the parts", longest_s)
    restart(broker, 1.0)
    watch.until(lambda counts: counts["parts"] >= PARTS * 4 // 10, "two fifths of the parts", longest_s)
    station.kill()
    station.start()
    watch.until(lambda counts: counts["recipe_changes"] == 1, "the change of recipe", longest_s)
    watch.until(lambda counts: counts["parts"] >= PARTS * 8 // 10, "four fifths of the parts", longest_s)
    restart(broker, 2.0)
    watch.until(lambda counts: counts["done"], "all parts", longest_s)
    rows = station.rows()
    counts = watch.until(lambda counts: counts["book_seq"] >= rows[-1]["seq"], "the whole book", 60.0)
    rows = station.rows()

    # The book: every answer of the ledger, exactly once.
    by_verdict = Counter(row["verdict"] for row in rows)
    assert {name: counts["book"][name] for name in ("pass", "fail", "review", "undecided")} == {
        name: by_verdict[name] for name in ("pass", "fail", "review", "undecided")
    }
    assert counts["book"]["answers"] == len(rows)
    assert counts["gaps"] == 0

    # The parts: one answer each, and nobody let through whom the ledger does not pass.
    answers = {row["part_id"]: row for row in rows}
    assert len(answers) == len(rows), "one answer per part"
    actuated = {entry["part_id"]: entry for entry in map(json.loads, protocol.read_text().splitlines())}
    assert len(actuated) == counts["parts"] == PARTS
    assert set(answers) <= set(actuated)
    for part_id, entry in actuated.items():
        row = answers.get(part_id)
        assert row is not None or not entry["accepted"], f"{part_id} was accepted and is not in the ledger"
        assert entry["through"] == (entry["outcome"] == "pass")
        if entry["outcome"] not in {"timeout", "refused"}:
            assert row is not None
            assert entry["outcome"] == row["verdict"]
            assert (row["product"] == "flange") == (entry["recipe"] == "flange")
    outcomes = Counter(entry["outcome"] for entry in actuated.values())
    assert all(counts[name] == outcomes[name] for name in outcomes)
    unheard = {part_id for part_id, entry in actuated.items() if entry["outcome"] in {"timeout", "refused"}}
    missed = [answers[part_id] for part_id in unheard & set(answers)]
    for name, number in by_verdict.items():
        assert outcomes[name] + sum(row["verdict"] == name for row in missed) == number
    assert counts["let_through"] == outcomes["pass"]
    assert len(unheard) < PARTS // 4, "the line was hardly running"

    # One change of recipe, and no way back.
    products = [product for product, _ in groupby(row["product"] for row in rows if row["product"])]
    assert products == ["tiles", "flange"]
    checked = call(station.folder, "ledger", "reconcile", "--root", station.storage, "--json")
    assert checked.returncode == 0, checked.stdout
    figure(
        f"{PARTS} parts: {counts['let_through']} through, {counts['rejected']} rejected ({dict(outcomes)}); ledger "
        f"{len(rows)} answers {dict(by_verdict)}, {len(missed)} of them not heard in time, {counts['stale']} stale"
    )
