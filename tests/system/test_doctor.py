"""`lineward doctor` as a person and a monitoring system call it: findings with remedies, and an exit code."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from tests.broker import free_port, wait_until
from tests.system.line import call

from lineward.daemon.config import Config
from lineward.daemon.doctor import transports
from lineward.daemon.ledger import Ledger
from lineward.drivers.camera import CameraInfo

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.broker import Mosquitto
    from tests.system.line import Line

pytestmark = pytest.mark.system

CAMERA: dict[str, Any] = {"driver": "simulated", "width": 320, "height": 256, "rate_hz": 20}


def examine(line: Line) -> tuple[int, dict[str, dict[str, str]]]:
    """Exit code, and findings by name."""
    done = call(line.folder, "doctor", "--config", line.config, "--json")
    found = json.loads(done.stdout)
    assert done.returncode == int(any(finding["level"] == "fault" for finding in found)), found
    assert all(finding["mend"] for finding in found if finding["level"] == "fault"), found
    return done.returncode, {finding["what"]: finding for finding in found}


def test_everything_is_looked_at_and_a_running_station_is_left_alone(
    line: Callable[..., Line], broker: Mosquitto
) -> None:
    """Rule: camera, model, broker, disk, owner, clock and heat are looked at; the line keeps its camera and link."""
    made = line(port=broker.port, camera=CAMERA).start()
    made.wait_log("#5 ")
    camera = made.camera_pid()
    _, found = examine(made)
    assert {"config", "service", "camera", "model", "broker", "disk space", "disk speed", "owner", "clock"} <= set(
        found
    )
    assert "thermal" in found
    assert {found[what]["level"] for what in ("config", "service", "camera", "model", "broker", "owner")} == {"ok"}
    assert "was not opened" in found["camera"]["text"]
    count = len(made.rows())
    wait_until(lambda: len(made.rows()) > count + 5, 20, "more answers")
    assert made.camera_pid() == camera
    assert made.end()[0] == 0
    assert not made.lines(" WARNING +(command|publish|mqtt)"), made.log


def test_each_fault_comes_with_what_mends_it(line: Callable[..., Line], bundle: Path) -> None:
    """Rule: a broker that is away, a damaged model, a secret for everybody and a foreign folder are named; exit 1."""
    made = line(
        port=free_port(),
        camera=CAMERA,
        inspection={"model": "damaged.lward"},
        mqtt={"username": "u", "password_file": "password.txt"},
    )
    damaged = bytearray(bundle.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (made.folder / "damaged.lward").write_bytes(damaged)
    (made.folder / "password.txt").write_text("hidden-from-others\n")
    (made.folder / "password.txt").chmod(0o644)
    made.storage.mkdir()
    made.storage.chmod(0o777)
    code, found = examine(made)
    assert code == 1
    assert {what for what in ("broker", "model", "secrets", "owner") if found[what]["level"] == "fault"} == {
        *("broker", "model", "secrets", "owner")
    }, found
    assert found["secrets"]["mend"] == f"sudo chmod o-rwx {made.folder / 'password.txt'}"
    assert (
        found["model"]["mend"]
        == f"copy {made.folder / 'damaged.lward'} here again, or name another model in inspection.model"
    )
    assert found["broker"]["mend"].startswith("sudo systemctl start mosquitto")
    assert found["owner"]["mend"] == f"sudo chmod o-w {made.storage}"
    assert found["camera"]["level"] == "ok"
    assert found["service"]["level"] == "hint"
    told = call(made.folder, "doctor", "--config", made.config)
    assert told.returncode == 1
    assert f"mend: sudo chmod o-w {made.storage}" in told.stdout
    assert "hidden-from-others" not in told.stdout + told.stderr


SEEN = (
    CameraInfo("a", "1", "genicam", transport="GEV"),
    CameraInfo("b", "2", "genicam", user_id="top", transport="U3V"),
)


@pytest.mark.parametrize(
    ("camera", "seen", "expected"),
    [
        ({"driver": "genicam", "serial": "1"}, SEEN, {"GEV"}),
        ({"driver": "genicam", "user_id": "top"}, SEEN, {"U3V"}),
        ({"driver": "genicam", "serial": "3"}, SEEN, {"GEV", "U3V"}),
        ({"driver": "genicam", "serial": "1"}, [CameraInfo("c", "1", "genicam", transport="Custom")], {"Custom"}),
        ({"driver": "aravis", "address": "10.0.0.2"}, [], {"GEV"}),
        ({"driver": "simulated"}, [], set()),
    ],
)
def test_the_machine_is_asked_for_what_the_camera_needs(
    camera: dict[str, Any], seen: list[CameraInfo], expected: set[str]
) -> None:
    """Rule: memory for USB is no matter of a GigE camera, nor packets of one on USB; a camera not seen: both."""
    config = Config.model_validate({"camera": camera, "inspection": {"model": "x.lward"}})
    assert transports(config.camera, seen) == expected


def test_a_camera_of_neither_kind_has_no_fault_of_either(line: Callable[..., Line]) -> None:
    """Rule: the simulator of the genicam package is no camera on a network or on USB."""
    made = line(port=free_port(), camera={"driver": "genicam", "producers": ["viky"], "serial": "0"})
    _, found = examine(made)
    assert found["producers"]["level"] == "ok"
    assert not {"receive buffers", "MTU", "usbfs memory", "USB access"} & set(found)


def test_a_faulty_configuration_is_wrong_usage(line: Callable[..., Line]) -> None:
    """Rule: exit 2 and the fault's place; there is nothing to examine."""
    made = line(port=free_port(), camera={**CAMERA, "hight": 3})
    done = call(made.folder, "doctor", "--config", made.config)
    assert done.returncode == 2
    assert "camera.hight = 3: no such key; did you mean height?" in done.stderr


@pytest.mark.parametrize(("change", "said"), [("newer", "written by a newer Lineward"), ("damaged", "cannot be read")])
def test_a_ledger_that_cannot_go_on_is_told_and_left_alone(line: Callable[..., Line], change: str, said: str) -> None:
    """Rule: before a start the doctor says what the ledger's fault is; it changes not one byte."""
    made = line(port=free_port(), camera=CAMERA)
    Ledger(made.storage).close()
    _, found = examine(made)
    assert (found["ledger"]["level"], found["ledger"]["text"][:2]) == ("ok", "0 ")
    path = made.storage / "ledger.sqlite3"
    if change == "newer":
        with closing(sqlite3.connect(path)) as db:
            db.execute("PRAGMA user_version = 99")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    else:
        path.write_bytes(b"\xff" * path.stat().st_size)
    before = path.read_bytes()
    code, found = examine(made)
    assert code == 1
    assert said in found["ledger"]["text"]
    assert path.read_bytes() == before
