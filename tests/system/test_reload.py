"""`lineward reload` on a line that runs: what can change does, between two parts, and a fault changes nothing."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
from tests.broker import wait_until
from tests.system.line import call, heard_in_order

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.broker import Mosquitto, Subscriber
    from tests.system.line import Line

pytestmark = pytest.mark.system

CAMERA: dict[str, Any] = {"driver": "simulated", "width": 320, "height": 256, "rate_hz": 5, "defect_rate": 0.5}
INSPECTION = {"deadline_ms": 8000}
"""Beside other tests a part may wait for a second, and at a higher rate the ring drops some without a reload."""


def answers_after(made: Line) -> int:
    """Wait for some more answers; returns how many there are."""
    count = len(made.rows())
    wait_until(lambda: len(made.rows()) >= count + 6, 30, "more answers")
    return len(made.rows())


def test_no_part_is_missed_while_the_configuration_changes(
    line: Callable[..., Line], broker: Mosquitto, hear: Subscriber
) -> None:
    """Rule: a good file, a faulty one and a SIGHUP leave no frame without verdict; the log says what is in force."""
    made = line(port=broker.port, camera=CAMERA, inspection=INSPECTION).start()
    made.wait_log("#6 ")
    text = made.config.read_text(encoding="utf-8")
    changed = text.replace("deadline_ms = 8000", "deadline_ms = 9000\nthreads = 1")
    quotas = changed.replace('root = "storage"', 'root = "storage"\nmax_gb = 3\nledger_rows = 5000')
    made.config.write_text(quotas, encoding="utf-8")
    done = call(made.folder, "reload", "--config", made.config)
    assert done.returncode == 0, done.stderr
    made.wait_log(
        "in force: inspection.deadline_ms, inspection.threads, storage.max_gb; restart Lineward for storage.le"
    )
    answers_after(made)
    made.config.write_text(changed.replace("deadline_ms", "deadline"), encoding="utf-8")
    done = call(made.folder, "reload", "--config", made.config)
    assert done.returncode != 0
    assert "inspection.deadline = 9000: no such key; did you mean deadline_ms?" in done.stderr + done.stdout
    answers_after(made)
    made.config.write_text(changed.replace("threads = 1", "threads = 2"), encoding="utf-8")
    for _ in range(3):  # those that come while the first is being put in force are for what the file says then
        os.kill(made.pid, signal.SIGHUP)
    made.config.write_text(changed.replace("threads = 1", "threads = 2").replace("9000", "9500"), encoding="utf-8")
    os.kill(made.pid, signal.SIGHUP)
    made.wait_log("in force: .*inspection.threads")
    answers_after(made)
    done = call(made.folder, "reload", "--config", made.config)
    assert "in force: nothing new" in done.stdout, "the last edit was in force already"
    assert "the configuration is as it was: the changeover" not in made.log
    answers_after(made)
    assert made.end()[0] == 0
    rows = made.rows()
    frames = [row["frame_id"] for row in rows]
    assert frames == list(range(frames[0], frames[0] + len(frames)))
    assert {row["reason"] for row in rows} <= {"", "low_confidence", "anomaly", "unlike_training"}
    heard_in_order(hear, rows)
