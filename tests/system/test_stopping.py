"""SIGTERM and Ctrl-C end the daemon within two seconds, whatever it is doing, and leave nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.broker import free_port, wait_until
from tests.models import foreign
from tests.system.line import Line, call, heard_in_order, session_pids, shared_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.broker import Mosquitto, Subscriber

pytestmark = pytest.mark.system

STOP_S = 2.0
SIGNALS = [signal.SIGTERM, signal.SIGINT]
SIMULATED: dict[str, Any] = {"driver": "simulated", "width": 320, "height": 256, "rate_hz": 20}


def assert_ends_cleanly(line: Line, number: signal.Signals, known: set[str]) -> None:
    session = line.pid
    code, seconds = line.end(number)
    assert code == 0, line.log
    assert seconds < STOP_S, f"took {seconds:.1f} s\n{line.log}"
    assert "Traceback" not in line.log
    assert line.lines("stopped after"), line.log
    assert not session_pids(session), "no process is left behind"
    assert shared_memory() <= known, "no shared memory is left behind"
    assert not list((line.folder / "tmp").iterdir()), "no temporary file is left behind"


def assert_stopped_is_told(hear: Subscriber) -> None:
    wait_until(lambda: hear.on("availability") and hear.on("availability")[-1].payload == b"stopped", what="stopped")
    assert hear.on("state")[-1].json["state"] == "halted"


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A broker that accepts connections and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        yield int(listener.getsockname()[1])


@pytest.mark.parametrize("number", SIGNALS)
def test_while_streaming(
    line: Callable[..., Line], broker: Mosquitto, hear: Subscriber, number: signal.Signals
) -> None:
    """A line at work stops at once and says `stopped`; every answer it gave has arrived."""
    known = shared_memory()
    made = line(port=broker.port, camera=SIMULATED).start()
    made.wait_log("#5 ")
    assert_ends_cleanly(made, number, known)
    assert_stopped_is_told(hear)
    heard_in_order(hear, made.rows())


@pytest.mark.parametrize("number", SIGNALS)
def test_while_the_camera_is_not_there(
    line: Callable[..., Line], broker: Mosquitto, hear: Subscriber, tmp_path: Path, number: signal.Signals
) -> None:
    """Waiting for a camera is no reason to keep anybody waiting."""
    known = shared_memory()
    made = line(port=broker.port, camera={"driver": "folder", "folder": str(tmp_path / "nowhere")}).start()
    made.wait_log("WARNING camera: .*there is no such folder")
    wait_until(lambda: any(heard.json["state"] == "error" for heard in hear.on("state")), what="state error")
    assert_ends_cleanly(made, number, known)
    assert_stopped_is_told(hear)
    assert hear.on("alarm")[-1].json["camera"]["raised"] is True


@pytest.mark.parametrize("number", SIGNALS[:1])
def test_while_the_genicam_camera_is_not_there(
    line: Callable[..., Line], broker: Mosquitto, hear: Subscriber, number: signal.Signals
) -> None:
    """The same behind a producer that looks for a camera which is unplugged."""
    known = shared_memory()
    camera = {"driver": "genicam", "producers": ["viky"], "serial": "none-such"}
    made = line(port=broker.port, camera=camera).start()
    made.wait_log("WARNING camera: ")
    assert_ends_cleanly(made, number, known)
    assert_stopped_is_told(hear)


@pytest.mark.parametrize("number", SIGNALS)
def test_while_the_model_loads(line: Callable[..., Line], broker: Mosquitto, number: signal.Signals) -> None:
    """The first second of a start, with model and camera process on their way, can be interrupted."""
    known = shared_memory()
    made = line(port=broker.port, camera=SIMULATED).start()
    made.wait_camera_pid()
    assert_ends_cleanly(made, number, known)


@pytest.mark.parametrize("number", SIGNALS)
def test_while_there_is_no_broker(line: Callable[..., Line], number: signal.Signals) -> None:
    """Without a broker the results stay in the outbox, and the end does not wait for it."""
    known = shared_memory()
    made = line(port=free_port(), camera=SIMULATED).start()
    made.wait_log("#5 ")
    assert_ends_cleanly(made, number, known)
    assert f"{len(made.rows())} stay in the outbox" in made.log


@pytest.mark.parametrize("number", SIGNALS)
def test_while_a_replay_that_has_ended_waits_for_its_broker(
    line: Callable[..., Line], images: Path, number: signal.Signals
) -> None:
    """The time that a replay gives the broker ends when somebody asks for the end."""
    known = shared_memory()
    camera = {"driver": "folder", "folder": str(images)}
    made = line(port=free_port(), camera=camera, arguments=["--drain-s", 60]).start()
    made.wait_log(f"#{len(list(images.iterdir()))} ", 60)
    wait_until(lambda: made.camera_pid() is None, 20, "the end of the replay")
    assert_ends_cleanly(made, number, known)
    assert f"{len(made.rows())} stay in the outbox" in made.log


@pytest.mark.parametrize("number", SIGNALS[:1])
def test_while_the_broker_says_nothing(line: Callable[..., Line], silent_port: int, number: signal.Signals) -> None:
    """A broker that accepts and is silent delays neither the parts nor the end."""
    known = shared_memory()
    made = line(port=silent_port, camera=SIMULATED).start()
    made.wait_log("#5 ")
    assert_ends_cleanly(made, number, known)
    assert made.rows()


@pytest.mark.parametrize("number", SIGNALS[:1])
def test_while_the_broker_hangs(line: Callable[..., Line], broker: Mosquitto, number: signal.Signals) -> None:
    """A broker that stops answering in mid-run delays the end no longer either."""
    known = shared_memory()
    made = line(port=broker.port, camera=SIMULATED).start()
    made.wait_log("#5 ")
    broker.freeze()
    try:
        made.wait_log("#20 ")
        assert_ends_cleanly(made, number, known)
    finally:
        broker.thaw()


@pytest.mark.parametrize("number", SIGNALS[:1])
def test_while_the_camera_process_hangs(
    line: Callable[..., Line], broker: Mosquitto, hear: Subscriber, number: signal.Signals
) -> None:
    """Native camera code that never returns is ended with the daemon, without anybody waiting for it."""
    known = shared_memory()
    made = line(port=broker.port, camera=SIMULATED).start()
    made.wait_log("#5 ")
    os.kill(made.wait_camera_pid(), signal.SIGSTOP)
    assert_ends_cleanly(made, number, known)
    assert_stopped_is_told(hear)


@pytest.mark.parametrize("number", SIGNALS[:1])
def test_while_the_camera_process_hangs_in_opening(
    line: Callable[..., Line], broker: Mosquitto, hear: Subscriber, number: signal.Signals
) -> None:
    """A driver that hangs while it looks for its camera holds nobody up."""
    known = shared_memory()
    made = line(port=broker.port, camera=SIMULATED).start()
    os.kill(made.wait_camera_pid(), signal.SIGSTOP)
    wait_until(lambda: any(heard.payload == b"online" for heard in hear.on("availability")), what="online")
    assert_ends_cleanly(made, number, known)
    assert_stopped_is_told(hear)


@pytest.mark.parametrize("number", SIGNALS)
def test_while_a_genicam_camera_streams(
    line: Callable[..., Line], broker: Mosquitto, hear: Subscriber, number: signal.Signals
) -> None:
    """The GenICam library puts its own signal handlers in place; ours must still be the ones that count."""
    known = shared_memory()
    made = line(port=broker.port, camera={"driver": "genicam", "producers": ["viky"], "serial": "0"}).start()
    made.wait_log("#20 ")
    assert_ends_cleanly(made, number, known)
    assert_stopped_is_told(hear)


def test_sigterm_to_every_process_at_once(line: Callable[..., Line], broker: Mosquitto, hear: Subscriber) -> None:
    """systemd sends SIGTERM to the whole control group: the camera process must not turn that into trouble."""
    known = shared_memory()
    made = line(port=broker.port, camera=SIMULATED).start()
    made.wait_log("#5 ")
    for pid in session_pids(made.pid):
        if pid != made.pid:
            os.kill(pid, signal.SIGTERM)
    assert_ends_cleanly(made, signal.SIGTERM, known)
    assert_stopped_is_told(hear)
    assert not [text for text in made.lines("WARNING") if "frames were not inspected" not in text], made.log


def test_while_a_promoted_model_is_being_prepared(
    line: Callable[..., Line], bundle: Path, images: Path, tmp_path: Path
) -> None:
    """A library at work in another thread does not turn the end into a crash, and is not waited for."""
    root = tmp_path / "store"
    assert call(tmp_path, "models", "promote", bundle, "--root", root).returncode == 0
    slow = tmp_path / "slow.lward"
    few = tmp_path / "few"
    few.mkdir()
    for image in sorted(images.iterdir())[:2]:
        shutil.copy(image, few)
    foreign.wrapped(foreign.slow(tmp_path, 16), slow, foreign.UNIT, product="tiles", samples=few)
    known = shared_memory()
    made = line(port=free_port(), camera=SIMULATED, inspection={"model": "tiles"}, storage={"root": str(root)}).start()
    made.wait_log("#5 ")
    assert call(tmp_path, "models", "promote", slow, "--force", "--root", root).returncode == 0
    made.wait_log("recipe default is being prepared")
    time.sleep(0.3)  # into one of its runs
    assert "is in force after" not in made.log
    assert_ends_cleanly(made, signal.SIGTERM, known)
