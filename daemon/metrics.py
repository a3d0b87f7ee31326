"""The figures of `stats` for Prometheus, on ``http://127.0.0.1:PORT/metrics`` when ``metrics.port`` is set."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from lineward import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from prometheus_client.core import Metric

    from lineward.daemon.config import Config
    from lineward.daemon.health import Alarms

log = logging.getLogger("lineward.metrics")


class StationCollector(Collector):
    """Turns `stats` and alarms into metrics, at each visit of Prometheus.

    Parameters
    ----------
    stats
        Returns the payload of the topic ``stats``; called from the server's thread.
    """

    def __init__(self, station: str, stats: Callable[[], Mapping[str, Any]], alarms: Alarms) -> None:
        self._station = station
        self._stats = stats
        self._alarms = alarms

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that registering does not ask for figures yet."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield every figure."""
        stats = self._stats()
        info = GaugeMetricFamily("lineward_info", "Station and version; always 1.", labels=["station", "version"])
        info.add_metric([self._station, __version__], 1)
        yield info
        yield _gauge("lineward_uptime_seconds", "Seconds since the start.", stats["uptime_s"])
        yield _gauge("lineward_rate_hertz", "Answers per second over the last ten seconds.", stats["rate_hz"])
        yield _counters("lineward_answers", "Answers by verdict.", "verdict", stats["verdicts"])
        yield _counters("lineward_reasons", "Answers by reason.", "reason", stats["reasons"])
        yield _counters("lineward_missing_frames", "Frames never judged, by cause.", "cause", stats["missing_frames"])
        latency = GaugeMetricFamily(
            "lineward_latency_seconds", "Trigger to answer over the last 2,000 answers.", labels=["quantile"]
        )
        for name, value in stats["latency_ms"].items():
            latency.add_metric([{"p50": "0.5", "p99": "0.99", "max": "1"}.get(name, name)], value / 1000)
        yield latency
        yield from _camera(stats["camera"])
        if stats["disk"] is not None:
            yield _gauge(
                "lineward_disk_free_bytes", "Free on the storage folder's disk.", stats["disk"]["free_gb"] * 1e9
            )
            yield _gauge("lineward_disk_used_ratio", "Used share of that disk.", stats["disk"]["used_share"])
        mqtt = stats["mqtt"]
        yield _gauge("lineward_mqtt_connected", "1 while the broker is there.", float(mqtt["connected"]))
        yield _gauge("lineward_outbox_results", "Results the broker has not acknowledged.", mqtt["outbox"])
        yield _counter("lineward_mqtt_reconnects", "Connections after the first.", mqtt["reconnects"])
        yield _counter("lineward_images_kept", "Images kept for review.", stats["images"]["kept"])
        yield _counter("lineward_images_dropped", "Images there was no room or time for.", stats["images"]["dropped"])
        yield _counter("lineward_thumbnails_kept", "Small pictures of passed parts.", stats["images"]["thumbnails"])
        yield _counter(
            "lineward_thumbnails_dropped",
            "Those there was no room or time for.",
            stats["images"]["thumbnails_dropped"],
        )
        yield _gauge("lineward_triggers_waiting", "Triggers without an answer yet.", stats["triggers_waiting"])
        yield from _watch(stats["watch"])
        alarms = GaugeMetricFamily("lineward_alarm", "1 for each alarm that is up.", labels=["id", "severity"])
        for name, alarm in self._alarms.raised().items():
            alarms.add_metric([name, alarm.severity], 1)
        yield alarms


def _camera(camera: Mapping[str, Any]) -> Iterator[Metric]:
    streams = camera["state"] in {"streaming", "degraded"}
    yield _gauge("lineward_camera_streaming", "1 while the camera sends frames.", float(streams))
    yield _counter("lineward_camera_openings", "How often the camera began to stream.", camera["openings"])
    yield _counter("lineward_camera_recycles", "How often its process was replaced for its size.", camera["recycles"])
    if camera["temperature_c"] is not None:
        yield _gauge("lineward_camera_temperature_celsius", "Of the camera.", camera["temperature_c"])


def _watch(watch: Mapping[str, Any]) -> Iterator[Metric]:
    yield _gauge("lineward_watch_commissioned", "1 when pictures are watched.", float(watch["state"] == "watching"))
    if "wrong_products" in watch:
        yield _counter("lineward_wrong_products", "Pictures of another product.", watch["wrong_products"])
    for name, text in (
        ("deviation", "Slow mean of each figure, relative to commissioning."),
        ("limit", "How far it may be."),
    ):
        family = GaugeMetricFamily(f"lineward_watch_{name}", text, labels=["figure"])
        for figure, value in watch.get(name, {}).items():
            family.add_metric([figure], value)
        yield family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _counters(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for key, value in dict(values).items():
        family.add_metric([str(key)], value)
    return family


def serve(config: Config, stats: Callable[[], Mapping[str, Any]], alarms: Alarms) -> Callable[[], None]:
    """Serve the figures in a thread of its own; return what ends that. A port that is taken is an alarm, no more."""
    host, port = config.metrics.host, config.metrics.port
    registry = CollectorRegistry()
    registry.register(StationCollector(config.station.base_topic, stats, alarms))
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        alarms.set(
            "metrics",
            f"no figures for Prometheus: {host}:{port}: {error.strerror or error}; set metrics.port to a free one",
            severity="warning",
        )
        return lambda: None
    log.info("figures for Prometheus: http://%s:%d/metrics", host, port)

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join(1.0)

    return close
