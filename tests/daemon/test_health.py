"""Alarms are said once and carry a remedy; counters and quantiles are exact."""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from lineward.daemon.health import Alarms, Health
from lineward.daemon.result import Latency

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import pytest

    from lineward.daemon.result import Result


def test_an_alarm_is_told_once_until_it_changes(caplog: pytest.LogCaptureFixture) -> None:
    """A camera that is away for an hour is one warning and one message on the topic, not one per frame."""
    told: list[dict[str, dict[str, object]]] = []
    alarms = Alarms(lambda snapshot: told.append(dict(snapshot)))
    with caplog.at_level(logging.INFO, "lineward"):
        alarms.set("camera", "")  # nothing was wrong: nothing to say
        for _ in range(5):
            alarms.set("camera", "camera SIM-0 does not answer; check its cable")
        alarms.set("camera", "camera SIM-0 is not there; check its power")
        alarms.set("camera", "")
        alarms.set("camera", "")
    assert [snapshot["camera"]["raised"] for snapshot in told] == [True, True, False]
    assert told[0]["camera"]["since"] == told[1]["camera"]["since"], "it is still the same trouble"
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert alarms.raised() == {}


def test_the_last_that_is_told_is_what_holds() -> None:
    """Rule: alarms are told in the order of their changes, so the retained topic never ends with an older state."""
    told: list[list[str]] = []
    other = threading.Thread(target=lambda: alarms.set("broker", "the broker is away"))

    def tell(snapshot: Mapping[str, dict[str, object]]) -> None:
        if not told and other.ident is None:
            other.start()
            other.join(0.2)  # the other change gets its chance to be told before this one
        told.append(sorted(snapshot))

    alarms = Alarms(tell)
    alarms.set("camera", "the camera is away")
    other.join()
    assert told == [["camera"], ["broker", "camera"]]


def test_stats_are_json_and_add_up(tmp_path: Path, make_result: Callable[..., Result]) -> None:
    """What `stats` says equals what was answered."""
    health = Health(tmp_path)
    for i in range(200):
        verdict = ("pass", "pass", "fail", "review")[i % 4]
        reason = "low_confidence" if verdict == "review" else ""
        health.count(replace(make_result(verdict=verdict, reason=reason), latency=Latency(total=float(i))))
    stats = json.loads(json.dumps(health.stats(), allow_nan=False))
    assert stats["answers"] == 200
    assert stats["verdicts"] == {"pass": 100, "fail": 50, "review": 50}
    assert stats["reasons"] == {"low_confidence": 50}
    assert stats["latency_ms"] == {"p50": 99.5, "p99": 197.01, "max": 199.0}
    assert stats["disk"]["free_gb"] > 0


def test_stats_survive_a_storage_folder_that_is_gone(tmp_path: Path) -> None:
    """A disk in trouble is said in `stats`, it does not break them."""
    stats = Health(tmp_path / "gone").stats()
    assert stats["disk"] is None
    assert stats["latency_ms"] == {}
