"""`mosquitto_sub`, the client everybody has, reads what the station sends; what it recorded is fit for every PLC."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from tests.broker import wait_until
from tests.system.line import BASE, call

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.broker import Mosquitto
    from tests.system.line import Line

SUB = shutil.which("mosquitto_sub")

pytestmark = [pytest.mark.system, pytest.mark.skipif(SUB is None, reason="mosquitto_sub is not installed")]


def test_mosquitto_sub_reads_bare_values_and_json(
    line: Callable[..., Line], images: Path, broker: Mosquitto, tmp_path: Path
) -> None:
    """Rule: each answer comes as one bare word, as a bare part id and as JSON, in order, and every PLC can read it."""
    heard = tmp_path / "heard.txt"
    with heard.open("wb") as out:
        subscriber = subprocess.Popen(
            [str(SUB), "-h", "127.0.0.1", "-p", str(broker.port), "-q", "1", "-v", "-t", f"{BASE}/#"],
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            folder = line(
                port=broker.port,
                camera={"driver": "folder", "folder": str(images), "rate_hz": 40},
                inspection={"deadline_ms": 5000},
            ).start()
            assert folder.wait(60) == 0, folder.log
            wait_until(lambda: f"{BASE}/availability stopped" in heard.read_text(), what="the end of the recording")
        finally:
            subscriber.terminate()
            subscriber.wait(10)
    said: dict[str, list[str]] = {}
    for text in heard.read_text().splitlines():
        topic, _, payload = text.partition(" ")
        said.setdefault(topic.removeprefix(f"{BASE}/"), []).append(payload)
    rows = folder.rows()
    assert len(rows) == len(list(images.iterdir()))
    assert said["result/verdict"] == [row["verdict"] for row in rows]
    assert said["result/part_id"] == [row["part_id"].replace(" ", "_") for row in rows]
    assert [json.loads(text)["seq"] for text in said["result/plc"]] == [row["seq"] for row in rows]
    assert [json.loads(text)["verdict"] for text in said["result"]] == [row["verdict"] for row in rows]
    assert all(text.isdecimal() for text in said["heartbeat"])
    assert said["availability"] == ["online", "stopped"]
    checked = call(tmp_path, "plc-check", "--json", heard)
    report = json.loads(checked.stdout)
    faults = [
        (payload["topic"], reader["objections"])
        for payload in report["payloads"]
        for reader in payload["readers"].values()
        if reader["must"] and not reader["reads"]
    ]
    assert (checked.returncode, faults) == (0, [])
