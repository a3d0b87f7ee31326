"""Watching a running station: the live view, Prometheus, image health with another product on the belt, the bundle."""

from __future__ import annotations

import json
import tarfile
import urllib.request
from typing import TYPE_CHECKING

import pytest
from tests.broker import free_port, wait_until
from tests.system.line import call

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.broker import Mosquitto
    from tests.system.line import Line

pytestmark = pytest.mark.system

PARTS = 60
CAMERA = {"driver": "simulated", "width": 320, "height": 256, "rate_hz": 0, "faults": ["wrong_product@100:20"]}


def test_a_station_is_watched_without_a_broker_in_between(line: Callable[..., Line], broker: Mosquitto) -> None:
    """Rule: what runs can be seen from outside; parts of another product are all undecided; secrets stay at home."""
    port = free_port()
    station = line(
        camera=CAMERA,
        port=broker.port,
        watch={"commission_parts": PARTS},
        metrics={"port": port},
        mqtt={"username": "cam1", "password_file": "password"},
    )
    (station.folder / "password").write_text("correct horse battery")
    station.start().wait_log("ready after", 60)
    config = ("--config", station.config)
    wait_until(lambda: len(station.rows()) > 130, 90, "the other product to have passed")
    rows = {row["frame_id"]: row for row in station.rows()}
    strange = [rows[index] for index in range(100, 120) if index in rows]
    assert strange
    assert {(row["verdict"], row["reason"]) for row in strange} == {("undecided", "wrong_product")}
    assert all(row["reason"] != "wrong_product" for index, row in rows.items() if not 100 <= (index or 0) < 120)

    shown = call(station.folder, "top", "--once", *config)
    assert shown.returncode == 0, shown.stderr
    assert "parts/s" in shown.stdout
    seen = json.loads(call(station.folder, "top", "--json", *config).stdout)
    assert seen["stats"]["watch"]["wrong_products"] == len(strange)
    assert "brightness" in call(station.folder, "watch", *config).stdout

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    assert f"lineward_wrong_products_total {len(strange)}.0" in text

    out = station.folder / "support.tar.gz"
    made = call(station.folder, "support-bundle", "--out", out, *config)
    assert made.returncode == 0, made.stderr
    with tarfile.open(out) as archive:
        files = {name: archive.extractfile(name).read() for name in archive.getnames()}  # type: ignore[union-attr]
    names = {name.removeprefix("lineward-support/") for name in files}
    assert {"versions.json", "config.toml", "stats.json", "doctor.json", "ledger.json", "storage.txt"} <= names
    assert not [name for name in names if name.startswith("images/")]
    assert not [name for name, data in files.items() if b"correct horse" in data]
    assert json.loads(files["lineward-support/stats.json"])["ok"] == 1

    reset = call(station.folder, "watch", "reset", *config)
    assert reset.returncode == 0, reset.stderr
    assert station.end()[0] == 0
    gone = call(station.folder, "top", "--once", *config)
    assert gone.returncode == 1
    assert "no station runs here" in " ".join(gone.stdout.split())
