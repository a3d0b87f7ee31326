"""Triggers, part ids and changes of recipe as a PLC uses them: over a real broker, against the installed command."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from tests.broker import wait_until
from tests.system.line import BASE, LONG, call, figure, memory_mb

from lineward.drivers.simulated import write_dataset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.broker import Mosquitto, Subscriber
    from tests.system.line import Line

CAMERA = {"driver": "simulated", "trigger": "software", "width": 320, "height": 256}


@pytest.fixture(scope="session")
def flange(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the other product."""
    folder = tmp_path_factory.mktemp("flange")
    data = write_dataset(folder / "data", product="flange", n_good=60, n_defect=24, width=320, height=256)
    done = call(folder, "train", "--data", data, "--out", folder / "flange.lward", "--product", "flange", "--json")
    assert done.returncode == 0, done.stderr
    return folder / "flange.lward"


class Plc:
    """A PLC that asks, waits for the acknowledgement, and remembers what it was told."""

    def __init__(self, port: int, hear: Subscriber) -> None:
        self._hear = hear
        self._client = paho.Client(CallbackAPIVersion.VERSION2)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        self._ids = 0
        self.parts: list[str] = []

    def say(self, name: str, **content: Any) -> str:
        self._ids += 1
        self._client.publish(f"{BASE}/cmd/{name}", json.dumps({"id": f"c{self._ids}", **content}), qos=1)
        return f"c{self._ids}"

    def ask(self, name: str, *, timeout_s: float = 20.0, **content: Any) -> dict[str, Any]:
        number = self.say(name, **content)
        wait_until(lambda: bool(self.acks(name, number)), timeout_s, f"ack/{name} {number}")
        (ack,) = self.acks(name, number)
        return ack

    def acks(self, name: str, number: str) -> list[dict[str, Any]]:
        return [heard.json for heard in self._hear.on(f"ack/{name}") if heard.json["id"] == number]

    def trigger(self, **content: Any) -> str:
        part = f"P{len(self.parts)}"
        self.parts.append(part)
        self.say("trigger", part_id=part, **content)
        return part

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def station(line: Callable[..., Line], broker: Mosquitto) -> Callable[..., Line]:
    """Start a software-triggered station with time enough for a busy machine."""

    def make(**sections: Any) -> Line:
        sections = {"camera": CAMERA, "inspection": {"deadline_ms": 3000}, **sections}
        made = line(port=broker.port, **sections).start()
        made.wait_log("ready after")
        return made

    return make


@pytest.fixture
def plc(broker: Mosquitto, hear: Subscriber) -> Iterator[Plc]:
    plc = Plc(broker.port, hear)
    yield plc
    plc.close()


def answers(hear: Subscriber) -> dict[str, dict[str, Any]]:
    """Every answer by its part id; a part with two is a failure."""
    given = [heard.json for heard in hear.on("result")]
    by_part = {answer["part_id"]: answer for answer in given}
    assert len(by_part) == len(given), "a part was answered twice"
    return by_part


def test_every_trigger_has_one_answer(station: Callable[..., Line], hear: Subscriber, plc: Plc) -> None:
    """Named parts, announced parts and nameless ones; the ledger agrees with the line."""
    made = station()
    for _ in range(20):
        plc.trigger()
        time.sleep(0.03)
    assert plc.ask("part", part_ids=["X1", "X2"])["ok"] == 1
    assert plc.ask("trigger")["ok"] == 1
    assert plc.ask("trigger")["ok"] == 1
    wait_until(lambda: len(hear.on("result")) == 22, 20, "22 answers")
    given = answers(hear)
    assert list(given) == [*plc.parts, "X1", "X2"]
    assert {answer["verdict"] for answer in given.values()} <= {"pass", "fail", "review"}
    assert made.end()[0] == 0
    reconciled = call(made.folder, "ledger", "reconcile", "--config", made.config)
    assert reconciled.returncode == 0, reconciled.stdout + reconciled.stderr


def test_what_a_kill_left_open_is_named(station: Callable[..., Line], hear: Subscriber, plc: Plc) -> None:
    """SIGKILL between trigger and answer: the part is undecided in the ledger, flagged late, and no PLC acts on it."""
    exposure = {"ExposureTime": 900_000.0}  # leaves time for the kill
    made = station(**{"camera.settings": exposure}, inspection={"deadline_ms": 5000})
    plc.trigger()
    wait_until(lambda: bool(hear.on("ack/trigger")), 10, "acknowledgement")
    made.kill()
    made.start()
    wait_until(lambda: "P0" in answers(hear), 20, "the answer of the next process")
    answer = answers(hear)["P0"]
    assert (answer["verdict"], answer["reason"], answer["late"]) == ("undecided", "error", True)
    assert not hear.on("result/plc")


def test_a_changeover_loses_no_trigger_and_judges_none_by_the_wrong_model(
    station: Callable[..., Line], hear: Subscriber, plc: Plc, flange: Path
) -> None:
    """The PLC changes back and forth as its handshake says; camera settings and model belong together."""
    station(
        **{
            "camera.settings": {"Product": "bracket"},
            "recipes.flange": {"model": str(flange)},
            "recipes.flange.settings": {"Product": "flange"},
        }
    )
    expected: dict[str, str] = {}
    product = "tiles"
    for _ in range(4):
        for _ in range(6):
            expected[plc.trigger()] = product
            time.sleep(0.02)
        wanted = "flange" if product == "tiles" else "default"
        assert plc.ask("recipe", recipe=wanted)["ok"] == 1
        product = "flange" if product == "tiles" else "tiles"
    expected[plc.trigger(product=product)] = product
    stranger = plc.trigger(product="something else")
    wait_until(lambda: len(hear.on("result")) == len(expected) + 1, 20, "all answers")
    given = answers(hear)
    assert {part: given[part]["product"] for part in expected} == expected
    assert {given[part]["verdict"] for part in expected} <= {"pass", "fail", "review"}
    assert (given[stranger]["verdict"], given[stranger]["reason"]) == ("undecided", "wrong_product")
    states = [heard.json for heard in hear.on("state")]
    assert states[-1]["product"] == product


def test_a_recipe_that_cannot_be_used_leaves_the_old_one_running(
    station: Callable[..., Line], hear: Subscriber, plc: Plc, bundle: Path, tmp_path: Path
) -> None:
    """A damaged bundle, a refused setting, a missing file, an unknown name: one word each, and parts go on."""
    damaged = tmp_path / "damaged.lward"
    data = bytearray(bundle.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    station(
        **{
            "camera.settings": {"ExposureTime": 5000.0},
            "recipes.damaged": {"model": str(damaged)},
            "recipes.missing": {"model": str(tmp_path / "nowhere.lward")},
            "recipes.refused": {"model": str(bundle)},
            "recipes.refused.settings": {"ExposureTime": 1e12},
        }
    )
    words = {"damaged": "preparation_failed", "missing": "preparation_failed", "refused": "setting_refused"}
    for name, word in {**words, "nope": "unknown_recipe"}.items():
        ack = plc.ask("recipe", recipe=name)
        assert (ack["ok"], ack["reason"]) == (0, word)
        plc.trigger()
    wait_until(lambda: len(hear.on("result")) == 4, 20, "all answers")
    assert {answer["verdict"] for answer in answers(hear).values()} <= {"pass", "fail", "review"}
    alarm = hear.on("alarm")[-1].json["recipe"]
    assert "refused" in alarm["text"]
    assert "default stays in force" in alarm["text"]


def test_the_recipe_in_force_survives_a_kill(
    station: Callable[..., Line], hear: Subscriber, plc: Plc, flange: Path
) -> None:
    """A line must not go back to another product by itself; the same from the command line."""
    made = station(**{"recipes.second": {"model": str(flange)}})
    done = call(made.folder, "recipe", "flange", "--config", made.config)
    assert (done.returncode, done.stdout) == (0, "flange is in force\n")
    made.kill()
    made.start()
    made.wait_log("ready after", times=2)
    plc.trigger()
    wait_until(lambda: bool(hear.on("result")), 20, "an answer")
    assert hear.on("result")[-1].json["product"] == "flange"
    assert made.end()[0] == 0
    gone = call(made.folder, "recipe", "flange", "--config", made.config)
    assert gone.returncode == 2
    assert "no station runs here" in gone.stderr


def test_a_promotion_is_in_force_without_a_missed_part(
    station: Callable[..., Line], hear: Subscriber, plc: Plc, bundle: Path, tmp_path: Path
) -> None:
    """Promote and roll back in the store: the running station follows by itself."""
    root = tmp_path / "store"
    done = call(tmp_path, "models", "promote", bundle, "--root", root)
    assert done.returncode == 0, done.stderr
    (first,) = (path.stem for path in (root / "models" / "tiles").glob("*.lward"))
    made = station(inspection={"model": "tiles", "deadline_ms": 3000}, storage={"root": str(root)})
    plc.trigger()
    retrained = tmp_path / "retrained.lward"
    data = tmp_path / "more"
    write_dataset(data, n_good=60, n_defect=24, width=320, height=256)
    trained = call(tmp_path, "train", "--data", data, "--out", retrained, "--product", "tiles")
    assert trained.returncode == 0, trained.stderr
    done = call(tmp_path, "models", "promote", retrained, "--root", root)
    assert done.returncode == 0, done.stderr
    made.wait_log("is in force after", 30)
    plc.trigger()
    done = call(tmp_path, "models", "rollback", "tiles", "--root", root)
    assert done.returncode == 0, done.stderr
    made.wait_log("is in force after", 30, times=2)
    plc.trigger()
    wait_until(lambda: len(hear.on("result")) == 3, 20, "three answers")
    used = [heard.json["model"]["version"] for heard in hear.on("result")]
    assert used[0] == used[2] == first
    assert used[1] != first


@pytest.mark.timeout(1200 if LONG else 120)
def test_many_changes_of_recipe_leave_memory_flat(
    station: Callable[..., Line], hear: Subscriber, plc: Plc, bundle: Path
) -> None:
    """ONNX Runtime keeps what it once took; a station is changed over for years. `LINEWARD_LONG=1`: 500 times."""
    made = station(**{"recipes.again": {"model": str(bundle)}})
    changes = 500 if LONG else 24
    sizes = []
    for number in range(changes):
        assert plc.ask("recipe", recipe="again" if number % 2 == 0 else "default")["ok"] == 1
        plc.trigger()
        sizes.append(memory_mb(made.pid))
    wait_until(lambda: len(hear.on("result")) == changes, 20, "all answers")
    settled, last = max(sizes[changes // 4 : changes // 2]), max(sizes[-changes // 4 :])
    figure(f"{changes} changes of recipe: {sizes[0]:.0f} MB first, {settled:.0f} MB settled, {last:.0f} MB at the end")
    assert last < settled * 1.02
