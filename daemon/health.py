"""How the line is doing: counters by cause, latency quantiles, alarms an operator can act on."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lineward.daemon.novelty import Novelty
from lineward.daemon.result import rfc3339

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from lineward.daemon.result import Result

log = logging.getLogger("lineward.health")

WINDOW = 2000
"""Answers over which latency quantiles and the rate are taken."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """One alarm: what is wrong and what to do, and since when (nanoseconds since 1970, UTC)."""

    raised: bool
    severity: str
    text: str
    since_unix_ns: int

    def to_json(self) -> dict[str, Any]:
        """Return the form published on the topic ``alarm``."""
        return {
            "raised": self.raised,
            "severity": self.severity,
            "text": self.text,
            "since": rfc3339(self.since_unix_ns),
        }


class Alarms:
    """The alarms of a station by id. Each change is logged once and told to the listener; any thread may call.

    Parameters
    ----------
    on_change
        Called with all alarms, in the order of the changes. A lock is held: it returns at once and asks nothing here.
    """

    def __init__(self, on_change: Callable[[Mapping[str, dict[str, Any]]], None] = lambda _alarms: None) -> None:
        self._alarms: dict[str, Alarm] = {}
        self._lock = threading.Lock()
        self.on_change = on_change

    def set(self, alarm_id: str, text: str, *, severity: str = "error", logged: bool = False) -> None:
        """Raise an alarm, or clear it when ``text`` is empty. Saying the same again does nothing.

        ``logged``: the caller has written its own line already, so this one goes to DEBUG.
        """
        with self._lock:
            known = self._alarms.get(alarm_id)
            raised = bool(text)
            if known is None and not raised:
                return
            if known is not None and known.raised == raised and (not raised or known.text == text):
                return
            was_raised = known is not None and known.raised
            since = known.since_unix_ns if known is not None and was_raised and raised else time.time_ns()
            kept = text or (known.text if known is not None else "")
            severity = severity if raised or known is None else known.severity
            self._alarms[alarm_id] = Alarm(raised, severity, kept, since)
            # Within the lock, or an older state could be told after a newer one and stay on the retained topic.
            self.on_change({name: alarm.to_json() for name, alarm in self._alarms.items()})
        extra = {"fields": {"ALARM": alarm_id}}
        if raised and not was_raised:
            log.log(logging.DEBUG if logged else logging.WARNING, "alarm %s: %s", alarm_id, text, extra=extra)
        elif not raised and known is not None:
            lasted_s = (time.time_ns() - known.since_unix_ns) / 1e9
            log.log(
                logging.DEBUG if logged else logging.INFO,
                "alarm %s is over after %.1f s",
                alarm_id,
                lasted_s,
                extra=extra,
            )

    def raised(self) -> dict[str, Alarm]:
        """Return the alarms that are up now."""
        with self._lock:
            return {name: alarm for name, alarm in self._alarms.items() if alarm.raised}


class Health:
    """Counts answers and missing frames. One thread at a time writes; `stats` may be called from any."""

    def __init__(self, storage: Path) -> None:
        self._storage = storage
        self._started = time.monotonic()
        self._window: deque[tuple[float, float]] = deque(maxlen=WINDOW)  # (monotonic s, total ms)
        self.novelty = Novelty()
        self.verdicts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.missing: Counter[str] = Counter()
        self.camera_openings = 0
        self.camera_recycles = 0
        self.camera_state = "closed"
        self.temperature_c: float | None = None

    def count(self, result: Result) -> None:
        """Count one answer."""
        self.verdicts[result.verdict] += 1
        if result.reason:
            self.reasons[result.reason] += 1
        self._window.append((time.monotonic(), result.latency.total))
        self.novelty.note(result.model.sha256, result.verdict, result.reason)

    @property
    def answers(self) -> int:
        """Number of answers given since the start."""
        return sum(self.verdicts.values())

    def latency_ms(self) -> dict[str, float]:
        """Return p50, p99 and maximum of the time from trigger to answer, in milliseconds."""
        window = list(self._window)
        if not window:
            return {}
        totals = np.array([total for _, total in window])
        p50, p99 = np.quantile(totals, [0.5, 0.99])
        return {"p50": round(float(p50), 2), "p99": round(float(p99), 2), "max": round(float(totals.max()), 2)}

    def rate_hz(self) -> float:
        """Return answers per second over the last ten seconds."""
        now = time.monotonic()
        span = min(10.0, max(now - self._started, 0.1))
        return round(sum(1 for at, _ in list(self._window) if at > now - span) / span, 2)

    def stats(self) -> dict[str, Any]:
        """Return the payload of the topic ``stats``."""
        try:
            usage = shutil.disk_usage(self._storage)
            disk: dict[str, float] | None = {
                "free_gb": round(usage.free / 1e9, 3),
                "used_share": round(1 - usage.free / usage.total, 4),
            }
        except OSError:
            disk = None
        return {
            "time": rfc3339(time.time_ns()),
            "uptime_s": round(time.monotonic() - self._started, 1),
            "rate_hz": self.rate_hz(),
            "answers": self.answers,
            "verdicts": dict(self.verdicts),
            "reasons": dict(self.reasons),
            "missing_frames": dict(self.missing),
            "camera": {
                "state": self.camera_state,
                "openings": self.camera_openings,
                "recycles": self.camera_recycles,
                "temperature_c": self.temperature_c,
            },
            "latency_ms": self.latency_ms(),
            "disk": disk,
        }
