"""The page beside a running line: whatever becomes of the page, each part gets its answer."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest
from tests.broker import Mosquitto, free_port, needs_mosquitto, wait_until
from tests.system.line import Line
from tests.web.kit import SIZE, ReviewPage

if TYPE_CHECKING:
    from pathlib import Path

    from tests.system.line import Service
    from tests.web.kit import FirstModel

CLIENTS = 12
"""Each asks for the next page as soon as it has the last one: several times what the page can do."""

PAGES = ("/", "/review", "/conflicts", "/data", "/improve")
MORE = 50

pytestmark = [pytest.mark.system, needs_mosquitto]


def test_a_page_overloaded_stopped_and_killed_costs_the_line_nothing(
    tmp_path: Path, first: FirstModel, services: list[Service]
) -> None:
    """Rule: while the page is flooded, does not answer at all, or is gone, the ledger goes on and has no gap."""
    broker = Mosquitto(tmp_path)
    line = Line(
        tmp_path / "line",
        model=first.model,
        port=broker.port,
        camera={"driver": "simulated", **SIZE, "rate_hz": 10},
        review={"port": free_port(), "keep_per_hour": 20_000, "keep_fails": True},
    )
    page = ReviewPage(tmp_path / "page", line.config).add_people()
    services += [line, page]
    line.start()
    page.start()
    stop = threading.Event()
    with page.client("tom") as client, ThreadPoolExecutor(CLIENTS) as flood:
        asked = [flood.submit(ask_on, page.url, dict(client.cookies), stop) for _ in range(CLIENTS)]
        wait_for_more(line)
        os.kill(page.pid, signal.SIGSTOP)
        wait_for_more(line)
        os.kill(page.pid, signal.SIGCONT)
        wait_for_more(line)
        stop.set()
        answered = sum(answers.result() for answers in asked)
        assert client.get("/").status_code == 200
    assert answered > 2 * CLIENTS
    page.kill()
    wait_for_more(line)
    line.end()
    broker.stop()
    rows = line.rows()
    assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
    steps = np.diff([row["frame_id"] for row in rows])
    assert (steps > 0).all()
    assert (steps == 1).all() or line.lines("frames were not inspected")  # on a busy machine; never in silence
    assert {row["reason"] for row in rows if row["verdict"] == "undecided"} <= {"timeout"}


def ask_on(url: str, cookies: dict[str, str], stop: threading.Event) -> int:
    """Ask for one page after the other; return how many were answered."""
    answered = 0
    with httpx.Client(base_url=url, cookies=cookies, timeout=60) as client:
        for path in itertools.cycle(PAGES):
            if stop.is_set():
                return answered
            with suppress(httpx.TransportError):
                answered += client.get(path).status_code == 200
    return answered


def wait_for_more(line: Line) -> None:
    """Wait until the line has judged some more parts."""
    before = len(line.rows())
    wait_until(lambda: len(line.rows()) >= before + MORE, 180, f"{MORE} more parts")
