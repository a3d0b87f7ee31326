"""What the line is doing, for the live page: from the ledger, and from the broker's retained topics where there is one.

Everything here only reads. It works while somebody looks; a few seconds after the last page is closed it lets go of the
broker and asks the ledger no more.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import secrets
import sqlite3
import threading
import time
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from lineward.daemon.endpoint import SecretError, endpoint_of
from lineward.daemon.novelty import BEFORE, LOOK_BACK, RECENT, in_words, rises

if TYPE_CHECKING:
    from lineward.daemon.config import Config
    from lineward.daemon.ledger_read import LedgerReader, Row
    from lineward.daemon.thumbnails import Thumbnail, ThumbnailReader

log = logging.getLogger("lineward.web.feed")

LATEST = 12
PASSED = 8
"""Small pictures of passed parts that are shown."""

FRESH_S = 0.9
FIGURES_S = 5.0
LET_GO_S = 6.0
MINUTE_NS, HOUR_NS = 60_000_000_000, 3_600_000_000_000
SILENT_S = 30.0
RETAINED_S = 3.0
"""By then a broker has sent what it keeps for whoever comes."""
LARGEST = 64 << 10


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something an operator should know: what it is and what to do, as the line or this page puts it."""

    name: str
    severity: str
    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One part as the live page shows it."""

    seq: int
    part_id: str
    verdict: str
    reason: str
    confidence: float
    defect_type: str
    at_ns: int
    ms: float
    image: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The line at one moment. Shares are 0..1, None without anything to count; times in milliseconds."""

    answers: list[Answer] = field(default_factory=list)
    per_minute: float = 0.0
    hour: dict[str, int] = field(default_factory=dict)
    p50_ms: float | None = None
    p99_ms: float | None = None
    running: str = ""
    camera: str = ""
    broker: str = ""
    product: str = ""
    model: str = ""
    watch: dict[str, Any] = field(default_factory=dict)
    passed: list[Thumbnail] = field(default_factory=list)
    troubles: list[Trouble] = field(default_factory=list)

    @property
    def passed_share(self) -> float | None:
        """Return the share of the last hour's parts that passed."""
        total = sum(self.hour.values())
        return self.hour.get("pass", 0) / total if total else None


class Feed:
    """One for all open pages. `snapshot` may be called from any thread."""

    def __init__(self, config: Config, ledger: LedgerReader, thumbnails: ThumbnailReader) -> None:
        self._config = config
        self._ledger = ledger
        self._thumbnails = thumbnails
        self._lock = threading.Lock()
        self._client: paho.Client | None = None
        self._topics: dict[str, Any] = {}
        self._connected = False
        self._broker_trouble = ""
        self._asked = 0.0
        self._known = Snapshot()
        self._known_at = float("-inf")
        self._figures: tuple[dict[str, int], float] = ({}, 0.0)
        self._figures_at = float("-inf")
        self._news = ""
        self._stop = threading.Event()

    def snapshot(self) -> Snapshot:
        """Return the line as it is now, at most a second old."""
        with self._lock:
            now = time.monotonic()
            self._asked = now
            if self._client is None:
                self._listen()
            if now - self._known_at >= FRESH_S:
                self._known = self._look()
                self._known_at = time.monotonic()
            return self._known

    def close(self) -> None:
        """Let go of the broker."""
        self._stop.set()
        with self._lock:
            self._hang_up()

    # ---- the broker

    def _listen(self) -> None:
        mqtt = self._config.mqtt
        try:
            endpoint = endpoint_of(mqtt, self._config.station)
            client = paho.Client(
                CallbackAPIVersion.VERSION2,
                client_id=f"lineward-page-{secrets.token_hex(6)}",  # at most 23 bytes are safe with any broker
                protocol=MQTTProtocolVersion.MQTTv5 if mqtt.protocol == "5" else MQTTProtocolVersion.MQTTv311,
            )
            client.username_pw_set(endpoint.username, endpoint.password)
            if endpoint.tls is not None:
                client.tls_set_context(endpoint.tls.context())
        except SecretError as error:
            self._broker_trouble = str(error)
            return
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.reconnect_delay_set(1, 30)
        client.connect_async(endpoint.host, endpoint.port, keepalive=60)
        client.loop_start()
        self._client = client
        self._stop.clear()
        threading.Thread(target=self._let_go, name="feed", daemon=True).start()

    def _let_go(self) -> None:
        while not self._stop.wait(LET_GO_S / 3):
            with self._lock:
                if time.monotonic() - self._asked > LET_GO_S:
                    self._hang_up()
                    return

    def _hang_up(self) -> None:
        if self._client is not None:
            self._client.disconnect()
            self._client.loop_stop()
        self._client, self._connected = None, False
        self._topics.clear()

    def _on_connect(self, client: paho.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self._broker_trouble = f"the broker refuses this page: {reason}; look at [mqtt] in the configuration"
            return
        self._connected, self._connected_at, self._broker_trouble = True, time.monotonic(), ""
        base = self._config.station.base_topic
        client.subscribe([(f"{base}/{name}", 0) for name in ("availability", "state", "alarm", "stats")])

    def _on_disconnect(self, *_: Any) -> None:
        self._connected = False

    def _on_message(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        name = message.topic.rsplit("/", 1)[-1]
        if len(message.payload) > LARGEST:
            return
        text = message.payload.decode("utf-8", "replace")
        if name == "availability":
            self._topics[name] = text
            return
        with contextlib.suppress(ValueError, RecursionError):
            self._topics[name] = json.loads(text)

    def _topic(self, name: str) -> dict[str, Any]:
        found = self._topics.get(name)
        return found if isinstance(found, dict) else {}

    # ---- the ledger

    def _look(self) -> Snapshot:
        troubles = self._alarms()
        try:
            images = {row.seq: row.image_id for row in self._ledger.images(newest=60)}
            rows = list(self._ledger.rows(newest=LATEST))[::-1]
            hour, per_minute = self._count()
        except sqlite3.Error as error:
            troubles.append(Trouble("page", "error", f"the line's book cannot be read: {error}; is the disk full?"))
            return Snapshot(troubles=troubles, broker=self._broker_words())
        answers = [_answer(row, images.get(row.seq, "")) for row in rows]
        state, stats = self._topic("state"), self._topic("stats")
        latency = _table(stats, "latency_ms")
        if not latency and answers:
            times = np.array([answer.ms for answer in answers])
            latency = {"p50": float(np.quantile(times, 0.5)), "p99": float(times.max())}
        if self._news and all(trouble.name != "novel" for trouble in troubles):  # the line itself may say it already
            troubles.append(Trouble("novel", "warning", self._news))
        silent_s = (time.time_ns() - rows[0].recorded_ns) / 1e9 if rows else None
        if not rows:
            troubles.append(Trouble("page", "warning", "no part has been judged yet; start `lineward run`"))
        camera = _table(stats, "camera")
        return Snapshot(
            answers=answers,
            per_minute=per_minute,
            hour=hour,
            p50_ms=_number(latency.get("p50")),
            p99_ms=_number(latency.get("p99")),
            running=self._running(state, silent_s),
            camera=str(camera.get("state") or ("" if silent_s is None or silent_s > SILENT_S else "gives pictures")),
            broker=self._broker_words(),
            product=str(state.get("product") or (rows[0].product if rows else "")),
            model=str(state.get("model") or ""),
            watch=_watch(_table(stats, "watch")),
            passed=self._thumbnails.newest(PASSED),
            troubles=troubles,
        )

    def _running(self, state: dict[str, Any], silent_s: float | None) -> str:
        if self._connected and self._topics.get("availability") in {"offline", "stopped"}:
            return "stopped" if self._topics["availability"] == "stopped" else "offline"
        if self._connected and state:
            return str(state.get("state") or "")
        if silent_s is None:
            return ""
        return "continuous_execution" if silent_s < SILENT_S else "silent"

    def _broker_words(self) -> str:
        return "connected" if self._connected else self._broker_trouble or "not reached"

    def _alarms(self) -> list[Trouble]:
        found = [
            Trouble(str(name), str(alarm.get("severity") or "error"), str(alarm.get("text") or name))
            for name, alarm in self._topic("alarm").items()
            if isinstance(alarm, dict) and alarm.get("raised")
        ]
        if self._connected and "alarm" not in self._topics and time.monotonic() - self._connected_at > RETAINED_S:
            base = self._config.station.base_topic
            found.append(
                Trouble(
                    "page",
                    "warning",
                    f"alarms are not known: the broker gives this page nothing on {base}/alarm; start `lineward run`, "
                    "or let the user of [mqtt] read there (access rules)",
                )
            )
        available = self._topics.get("availability")
        if self._connected and available == "offline":
            found.insert(
                0, Trouble("line", "error", "the inspection is gone without a word; look at `journalctl -u lineward`")
            )
        return found

    def _count(self) -> tuple[dict[str, int], float]:
        """Count the last hour by verdict, and the last minute; every few seconds, for that reads many rows."""
        if time.monotonic() - self._figures_at > FIGURES_S:
            now = time.time_ns()
            hour = dict(
                self._ledger.select(
                    "SELECT verdict, count(*) FROM results WHERE trigger_ns >= ? GROUP BY verdict", now - HOUR_NS
                )
            )
            minute = self._ledger.select("SELECT count(*) FROM results WHERE trigger_ns >= ?", now - MINUTE_NS)
            self._news = self._look_for_news()
            self._figures = ({str(name): int(n) for name, n in hour.items()}, float(minute[0][0]) if minute else 0.0)
            self._figures_at = time.monotonic()
        return self._figures

    def _look_for_news(self) -> str:
        """Say so when many more parts than before go to review: a new defect, another material, a lamp that ages."""
        rows = self._ledger.select(
            "SELECT verdict = 'review', reason = 'unlike_training', model_sha256 FROM results"
            " WHERE verdict != 'undecided' ORDER BY seq DESC LIMIT ?",  # those say nothing about what is usual
            RECENT + BEFORE,
        )
        same = [row for row in rows if row[2] == rows[0][2]]
        review = [0, *accumulate(row[0] for row in same)]
        unlike = [0, *accumulate(row[1] for row in same)]
        for start in range(0, min(LOOK_BACK, len(same) - 2 * RECENT) + 1, RECENT // 3):
            end = start + RECENT
            now, before = review[end] - review[start], review[-1] - review[end]
            if rises(now, RECENT, before, len(same) - end):
                ago = f" ({start} parts ago)" if start else ""
                return in_words(now, unlike[end] - unlike[start], before, len(same) - end, ago)
        return ""


def _answer(row: Row, image: str) -> Answer:
    try:
        record: dict[str, Any] = json.loads(row.payload)
    except ValueError:
        record = {}
    latency = record.get("latency_ms") or {}
    return Answer(
        row.seq,
        row.part_id,
        row.verdict,
        row.reason,
        row.confidence,
        str(record.get("defect_type") or ""),
        row.trigger_ns,
        _number(latency.get("total")) or 0.0,
        image,
    )


def _table(record: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a part of a record that came over the network, empty where it is none."""
    found = record.get(name)
    return found if isinstance(found, dict) else {}


def _number(value: Any) -> float | None:
    """Return a number as it is, or None for anything else, those that JSON cannot say among them."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    with contextlib.suppress(OverflowError):  # an integer of many digits
        return float(value) if math.isfinite(value) else None
    return None


def _watch(record: dict[str, Any]) -> dict[str, Any]:
    """Return the part `watch` of `stats` as the page shows it; what has another type than the line's is left out."""
    found: dict[str, Any] = {"state": str(record.get("state") or "")}
    for name in ("parts", "of", "wrong_products"):
        found[name] = int(_number(record.get(name)) or 0)
    for name in ("deviation", "limit"):
        numbers = {key: _number(value) for key, value in _table(record, name).items()}
        found[name] = {key: value for key, value in numbers.items() if value is not None}
    out = record.get("out")
    found["out"] = [name for name in out if isinstance(name, str)] if isinstance(out, list) else []
    return found
