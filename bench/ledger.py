"""What one answer costs in the ledger: alone, and while acknowledgements are written beside it."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from lineward.daemon.ledger import Ledger
from lineward.daemon.result import CameraRef, Latency, ModelRef, Result

ROWS = 10_000


def draft(number: int) -> Result:
    """Make a plausible answer that has no number yet."""
    now = time.time_ns()
    return Result(
        seq=0,
        verdict="pass",
        reason="",
        confidence=0.99,
        defect_probability=0.01,
        anomaly=0.1,
        product="tiles",
        model=ModelRef("tiles", "1", "ab" * 32),
        camera=CameraRef("camera", "S1", number),
        trigger_unix_ns=now - 20_000_000,
        received_unix_ns=now,
        published_unix_ns=now,
        latency=Latency(total=20.0),
        part_id=f"A{number}",
        deadline_unix_ns=now + 480_000_000,
    )


def quantiles(times_ms: list[float]) -> str:
    """Write p50, p99 and the largest in milliseconds."""
    p50, p99 = np.quantile(times_ms, [0.5, 0.99])
    return f"p50 {p50:.3f} ms, p99 {p99:.3f} ms, max {max(times_ms):.2f} ms (n={len(times_ms)})"


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="lineward-bench-", dir=".") as folder:
        ledger = Ledger(Path(folder))
        alone = []
        for number in range(ROWS):
            began = time.perf_counter()
            ledger.record(draft(number))
            alone.append((time.perf_counter() - began) * 1e3)
            if number % 10 == 0:
                time.sleep(0.001)
        print("record() alone:                 ", quantiles(alone))
        beside = []
        for number in range(0, ROWS, 10):
            began = time.perf_counter()
            ledger.record(draft(number))
            beside.append((time.perf_counter() - began) * 1e3)
            ledger.acknowledge(range(number + 1, number + 11))
            time.sleep(0.001)
        print("record() beside acknowledgements:", quantiles(beside))
        ledger.close()


if __name__ == "__main__":
    main()
