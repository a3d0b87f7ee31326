"""What the daemon's tests share."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from lineward.daemon.result import CameraRef, Latency, ModelRef, Result

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def make_result() -> Callable[..., Result]:
    """Make a plausible answer; any field can be given."""

    def make(**fields: object) -> Result:
        now = time.time_ns()
        values: dict[str, Any] = {
            "seq": 1,
            "verdict": "pass",
            "reason": "",
            "confidence": 0.98,
            "defect_probability": 0.02,
            "anomaly": 0.1,
            "product": "bracket",
            "model": ModelRef("bracket", "1", "ab" * 32),
            "camera": CameraRef("sim", "SIM-0", 7),
            "trigger_unix_ns": now,
            "received_unix_ns": now,
            "published_unix_ns": now,
            "latency": Latency(total=12.0),
            **fields,
        }
        return Result(**values)

    return make
