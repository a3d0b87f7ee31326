"""Results to test with."""

from __future__ import annotations

import time
from typing import Any

from lineward.daemon.result import CameraRef, Latency, ModelRef, Result


def make(**changes: Any) -> Result:
    now = time.time_ns()
    fields: dict[str, Any] = {
        "seq": 1,
        "verdict": "pass",
        "reason": "",
        "confidence": 0.9931,
        "defect_probability": 0.01,
        "anomaly": 0.1,
        "product": "tiles",
        "model": ModelRef("tiles", "1", "ab" * 32),
        "camera": CameraRef("cam", "s1", 7),
        "trigger_unix_ns": now - 20_000_000,
        "received_unix_ns": now - 15_000_000,
        "published_unix_ns": now,
        "latency": Latency(total=24.2),
        "part_id": "A1183",
        "deadline_unix_ns": now + 480_000_000,
    }
    return Result(**(fields | changes))
