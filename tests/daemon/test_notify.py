"""What systemd is told, heard on a real socket of its kind."""

from __future__ import annotations

import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import pytest

from lineward.daemon.notify import PATIENCE_S, Systemd
from lineward.daemon.service import in_background, patiently
from lineward.models.bundle import BundleError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Manager:
    """The receiving end of sd_notify, and a clock that is set by hand."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.setblocking(False)
        self.now = 100.0
        self.connected: list[Systemd] = []

    def connect(self, address: str, **environment: str) -> Systemd:
        self.connected.append(Systemd({"NOTIFY_SOCKET": address, **environment}, clock=lambda: self.now))
        return self.connected[-1]

    def close(self) -> None:
        self.socket.close()
        for systemd in self.connected:
            systemd.close()

    def heard(self) -> list[list[str]]:
        said = []
        while True:
            try:
                said.append(self.socket.recv(4096).decode().split("\n"))
            except BlockingIOError:
                return said


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(str(tmp_path / "notify"))
    yield manager
    manager.close()


def connect(manager: Manager, tmp_path: Path, **environment: str) -> Systemd:
    return manager.connect(str(tmp_path / "notify"), **environment)


def test_the_watchdog_hears_the_loop_and_nothing_else(manager, tmp_path):
    """Rule: a sign of life is sent by `alive` alone, four in an interval however often it is called, and no timer."""
    systemd = connect(manager, tmp_path, WATCHDOG_USEC="4000000", WATCHDOG_PID=str(os.getpid()))
    systemd.ready("inspecting")
    assert manager.heard() == [["READY=1", "STATUS=inspecting"]]
    for _ in range(1000):
        systemd.alive(lambda: "inspecting")
        manager.now += 0.01
    assert len([lines for lines in manager.heard() if "WATCHDOG=1" in lines]) == pytest.approx(10, abs=1)
    manager.now += 1000
    assert manager.heard() == []


def test_before_ready_it_asks_for_time_instead(manager, tmp_path):
    """Rule: while the camera is away, systemd neither takes the start for failed nor watches the loop."""
    systemd = connect(manager, tmp_path, WATCHDOG_USEC="4000000")
    systemd.alive(lambda: "waiting for the camera")
    (lines,) = manager.heard()
    assert lines == [f"EXTEND_TIMEOUT_USEC={PATIENCE_S * 1e6:.0f}", "STATUS=waiting for the camera"]


def test_a_model_that_loads_slowly_is_no_failed_start(manager, tmp_path):
    """Rule: signs of life while the model loads, none for one that never ends, and what it raised comes through."""
    systemd = connect(manager, tmp_path)
    heard: list[list[str]] = []
    release, stop = threading.Event(), threading.Event()

    def sign() -> None:
        manager.now += 1.0
        systemd.alive(lambda: "loading the model")
        heard.extend(manager.heard())
        if len(heard) == 3:
            release.set()

    with ThreadPoolExecutor(1) as pool:
        assert patiently(pool.submit(lambda: release.wait(30)), sign, stop=stop, sign_s=0.01)
        assert heard[0] == [f"EXTEND_TIMEOUT_USEC={PATIENCE_S * 1e6:.0f}", "STATUS=loading the model"]
        release.clear()
        hung = pool.submit(release.wait, 30)
        ended = threading.Timer(0.5, release.set)
        ended.start()
        count = len(heard)
        assert patiently(hung, sign, stop=stop, sign_s=0.01, most_s=0.0)
        assert len(heard) == count
        with pytest.raises(BundleError, match="cannot be used"):
            patiently(pool.submit(refuse), sign, stop=stop, sign_s=0.01)


def test_a_stop_is_heard_while_the_model_loads() -> None:
    """Rule: SIGTERM does not wait for a disk that hangs; the work that is left behind holds up no end."""
    stop, release = threading.Event(), threading.Event()
    work = in_background(partial(release.wait, 30), "load-model")
    threading.Timer(0.2, stop.set).start()
    assert patiently(work, lambda: None, stop=stop) is None
    assert not work.done()
    release.set()
    assert work.result(10)
    with pytest.raises(BundleError, match="cannot be used"):
        patiently(in_background(refuse, "load-model"), lambda: None, stop=threading.Event())


def refuse() -> None:
    raise BundleError("m.lward: cannot be used")


def test_ready_is_said_once(manager, tmp_path):
    """Rule: a camera that comes back is no second start."""
    systemd = connect(manager, tmp_path)
    systemd.ready("a")
    systemd.ready("b")
    assert len(manager.heard()) == 1


def test_a_text_cannot_smuggle_in_another_message(manager, tmp_path):
    """Rule: a line break in a status does not become a line of the protocol."""
    systemd = connect(manager, tmp_path)
    systemd.ready("inspecting\nMAINPID=1")
    assert manager.heard() == [["READY=1", "STATUS=inspecting MAINPID=1"]]


def test_children_do_not_inherit_the_socket(tmp_path):
    """Rule: the camera process cannot speak for the station, and a watchdog of another process is not ours."""
    environment = {
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
        "WATCHDOG_USEC": "1000000",
        "WATCHDOG_PID": str(os.getpid() + 1),
    }
    Systemd(environment).close()
    assert environment == {}


def test_an_abstract_address_works():
    """Rule: systemd may name a socket that is in no file system."""
    address = f"lineward-test-{os.getpid()}"
    manager = Manager("\0" + address)
    manager.connect("@" + address).ready("x")
    assert manager.heard() == [["READY=1", "STATUS=x"]]
    manager.close()


def test_without_a_manager_nothing_happens(tmp_path):
    """Rule: on a terminal, and with a manager that went away, the line runs the same."""
    Systemd({}).ready("x")
    gone = Systemd({"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    gone.ready("x")
    gone.alive(lambda: "x")
    gone.close()
    gone.stopping()
