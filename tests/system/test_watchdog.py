"""The sign of life for systemd: it comes from the loop, goes on through slow camera orders, and ends with the loop."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from tests.broker import free_port, wait_until
from tests.system.line import environment

pytest_plugins = ["gentl_sim.fixtures"]
pytestmark = pytest.mark.system

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.system.line import Line

    from gentl_sim.fixtures import Sim

WATCHDOG_S = 3.0
SIMULATED: dict[str, Any] = {"driver": "simulated", "width": 320, "height": 256, "rate_hz": 20}
SETTINGS: dict[str, Any] = {
    "TestPattern": "FrameId",
    "ExposureTime": 100.0,
    "AcquisitionFrameRate": 20.0,
    "Gain": 1.0,
    "Width": 64,
    "Height": 64,
}


class Systemd:
    """The receiving end of sd_notify; keeps what it hears with its time."""

    def __init__(self, path: Path) -> None:
        self.heard: list[tuple[float, list[str]]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(0.2)
        self._ends = False
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while not self._ends:
            try:
                self.heard.append((time.monotonic(), self._socket.recv(4096).decode().split("\n")))
            except TimeoutError:
                continue

    def times(self, word: str) -> list[float]:
        return [at for at, lines in list(self.heard) if word in lines]

    def close(self) -> None:
        self._ends = True
        self._thread.join()
        self._socket.close()


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    listening = Systemd(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", str(round(WATCHDOG_S * 1e6)))
    yield listening
    listening.close()


HANGS = """
    import sys, threading
    from lineward.daemon import cli, loop
    judge, parts = loop.judge_safely, []
    def hang(part, alarms):
        parts.append(part)
        if len(parts) == 20:
            threading.Event().wait()  # as a model that never comes back; every other thread goes on
        return judge(part, alarms)
    loop.judge_safely = hang
    cli.main(["run", "--config", sys.argv[1]])
"""


def test_a_hung_loop_gives_no_sign_of_life_while_all_threads_go_on(
    line: Callable[..., Line], systemd: Systemd, tmp_path: Path
) -> None:
    """Rule: the watchdog is fed by the loop and by nothing else; parts are answered by the clock meanwhile."""
    made = line(port=free_port(), camera=SIMULATED)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(HANGS), str(made.config)],
            env=environment(made.folder),
            stdout=log,
            stderr=log,
        )
    try:
        wait_until(lambda: systemd.times("READY=1"), 30, "ready")
        wait_until(lambda: b"timeout" in (tmp_path / "log").read_bytes(), 30, "the hung part answered by the clock")
        count = len(systemd.times("WATCHDOG=1"))
        time.sleep(WATCHDOG_S)  # as long as systemd would wait
        assert len(systemd.times("WATCHDOG=1")) == count
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_a_slow_camera_order_does_not_trip_the_watchdog(line: Callable[..., Line], systemd: Systemd, sim: Sim) -> None:
    """Rule: an order that gets on may take longer than the watchdog's interval; signs of life go on meanwhile."""
    camera = {"driver": "genicam", "producers": [str(sim.file)], "serial": "SIM-A"}
    made = line(port=free_port(), camera=camera, **{"camera.settings": SETTINGS}).start()
    made.wait_log("ready after", 60)
    sim["SIM-A"].slow(0.5)
    text = made.config.read_text().replace("ExposureTime = 100.0", "ExposureTime = 120.0")
    made.config.write_text(text)
    began = time.monotonic()
    os.kill(made.pid, 1)
    made.wait_log("was read again|the configuration is as it was", 100)
    ended = time.monotonic()
    sim["SIM-A"].slow(0)
    assert made.lines("in force: camera.settings"), made.log
    assert ended - began > WATCHDOG_S, "the order was not slow enough to tell"
    signs = [began, *(at for at in systemd.times("WATCHDOG=1") if began < at < ended), ended]
    assert max(later - earlier for earlier, later in pairwise(signs)) < WATCHDOG_S
    made.end()
