"""A thread that wants to run every 2 ms, and by how much it came too late: here, or in a process of its own.

Run as a program it ticks until its standard input ends, then prints its figures. Side by side, the two tell what held
up the threads of one process from what the machine does to all. Where it may, the thread takes real-time priority:
other programs then do not hold it up, and what is left is the interpreter lock.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress


class Ticker(threading.Thread):
    """Stands for what else runs in the inspection process, a deadline clock above all."""

    PERIOD_S = 0.002

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._ends = threading.Event()
        self._late_ms: list[float] = []

    def run(self) -> None:
        """Tick until stopped."""
        with suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))  # 0: this thread
        due = time.monotonic()
        while not self._ends.is_set():
            due = max(due + self.PERIOD_S, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
            self._late_ms.append((time.monotonic() - due) * 1e3)

    def stop(self) -> list[float]:
        """Return by how many milliseconds each tick came too late."""
        self._ends.set()
        self.join()
        return self._late_ms


class Neighbour:
    """A ticker in a process of its own: it shares the machine with us, and no interpreter lock."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def stop(self) -> list[float]:
        """Return by how many milliseconds each of its ticks came too late."""
        late_ms: list[float] = json.loads(self._process.communicate(timeout=30)[0])
        return late_ms


def main() -> None:
    """Tick until standard input ends."""
    ticker = Ticker()
    ticker.start()
    sys.stdin.read()
    json.dump(ticker.stop(), sys.stdout)


if __name__ == "__main__":
    main()
