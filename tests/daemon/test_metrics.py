"""Prometheus gets the figures of `stats`, and an endpoint in trouble is an alarm and no more."""

from __future__ import annotations

import socket
import urllib.request
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.broker import free_port

from lineward.daemon.config import Config
from lineward.daemon.health import Alarms, Health
from lineward.daemon.metrics import serve
from lineward.daemon.watch.watcher import Watch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lineward.daemon.result import Result


def config(port: int) -> Config:
    return Config.model_validate(
        {"camera": {"driver": "simulated"}, "inspection": {"model": "a.lward"}, "metrics": {"port": port}}
    )


def read(port: int) -> dict[tuple[str, str], float]:
    """Fetch and parse as Prometheus does; by name and labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_figure_of_stats_is_served(tmp_path: Path, make_result: Callable[..., Result]) -> None:
    """Rule: what Prometheus reads is what `stats` says, by verdict, reason, cause, figure and alarm."""
    health, alarms, port = Health(tmp_path), Alarms(), free_port()
    for verdict, reason in (("pass", ""), ("pass", ""), ("fail", ""), ("undecided", "timeout")):
        health.count(make_result(verdict=verdict, reason=reason))
    health.missing["camera_gap"] += 3
    health.temperature_c = 41.5
    alarms.set("brightness", "lamp 18 % darker", severity="warning")

    def stats() -> dict[str, Any]:
        return {
            **health.stats(),
            "mqtt": {"connected": True, "outbox": 7, "reconnects": 2},
            "images": {"kept": 5, "dropped": 1, "thumbnails": 9, "thumbnails_dropped": 2},
            "triggers_waiting": 4,
            "watch": watch.stats(),
        }

    with closing(Watch(tmp_path, alarms)) as watch, ExitStack() as stack:
        stack.callback(serve(config(port), stats, alarms))
        found = read(port)
        watch_state = found["lineward_watch_commissioned", ""]
    assert found["lineward_answers_total", "pass"] == 2
    assert found["lineward_answers_total", "fail"] == 1
    assert found["lineward_reasons_total", "timeout"] == 1
    assert found["lineward_missing_frames_total", "camera_gap"] == 3
    assert found["lineward_latency_seconds", "0.5"] == pytest.approx(0.012)
    assert found["lineward_camera_temperature_celsius", ""] == 41.5
    assert found["lineward_outbox_results", ""] == 7
    assert found["lineward_images_dropped_total", ""] == 1
    assert found["lineward_thumbnails_kept_total", ""] == 9
    assert found["lineward_thumbnails_dropped_total", ""] == 2
    assert found["lineward_triggers_waiting", ""] == 4
    assert found["lineward_alarm", "brightness,warning"] == 1
    assert found["lineward_disk_free_bytes", ""] > 0
    assert watch_state == 0
    with pytest.raises(OSError, match="refused"):
        read(port)


def test_a_port_that_is_taken_is_an_alarm() -> None:
    """Rule: the endpoint never keeps the station from running."""
    alarms = Alarms()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        close = serve(config(taken.getsockname()[1]), dict, alarms)
    close()
    assert "set metrics.port to a free one" in alarms.raised()["metrics"].text


def test_it_is_off_and_on_this_machine_only_unless_told_otherwise() -> None:
    """Rule: nobody finds a port open that nobody asked for."""
    default = Config.model_validate({"camera": {"driver": "simulated"}, "inspection": {"model": "a.lward"}}).metrics
    assert (default.port, default.host) == (0, "127.0.0.1")
