"""The command line as a person meets it: help, version, wrong usage, the log, and the demo."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import time
from typing import TYPE_CHECKING

import httpx
import pytest
from tests.broker import free_port, wait_until
from tests.system.line import LONG, Service, call, figure, session_pids, toml

from lineward.models.bundle import load_manifest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.broker import Mosquitto
    from tests.system.line import Line

pytestmark = pytest.mark.system

COMMANDS = ["demo", "run", "check", "cameras", "train", "evaluate", "predict", "bench"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(tmp_path: Path, command: str) -> None:
    """`--help` explains a command and shows how it is typed."""
    done = call(tmp_path, command, "--help")
    assert done.returncode == 0, done.stderr
    assert "Example" in done.stdout
    assert f"lineward {command}" in done.stdout


def test_the_version(tmp_path: Path) -> None:
    """`--version` says who answers, and the list of commands is complete."""
    from lineward import __version__

    assert call(tmp_path, "--version").stdout == f"lineward {__version__}\n"
    told = call(tmp_path, "--help").stdout
    assert all(command in told for command in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["predict"], "IMAGE"),
        (["run", "--confg", "x"], "confg"),
        (["inspect"], "inspect"),
        (["demo", "--parts", "many"], "parts"),
        (["demo", "--product", "nope", "--headless"], "no such simulated product; there are bracket, flange"),
        (["demo", "--product", "", "--headless"], "--product '': there is no such simulated product"),
        (["train", "--data", ".", "--out", "x.lward", "--tier", "best"], "tier"),
        (["train", "--data", ".", "--out", "x.lward", "--overlays", "."], "say how many with --synthetic"),
        (
            ["train", "--data", ".", "--out", "x.lward", "--synthetic", "200", "--tier", "full"],
            "goes with --tier quick",
        ),
        (["train", "--data", ".", "--out", "x.lward", "--size", "224"], "--size 224: height and width"),
        (["train", "--data", ".", "--out", "x.lward", "--size", "224x9999"], "from 64 to 2048"),
        (["train", "--data", ".", "--out", "x.lward", "--size", "32x320"], "from 64 to 2048"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else None,
)
def test_wrong_usage_ends_with_2_and_one_line(tmp_path: Path, arguments: list[str], word: str) -> None:
    """Wrong usage is one clear line on stderr that names what is wrong, and exit code 2."""
    done = call(tmp_path, *arguments)
    assert done.returncode == 2
    assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_product_without_defects_learns_from_made_up_ones(dataset: Path, tmp_path: Path) -> None:
    """Rule: `--synthetic N` trains on good images alone and says what it did; beside real defects it is one line."""
    good = tmp_path / "good-only"
    shutil.copytree(dataset / "good", good / "good")
    out = tmp_path / "tiles.lward"
    done = call(tmp_path, "train", "--data", good, "--out", out, "--synthetic", "40", "--overlays", dataset)
    assert done.returncode == 0, done.stderr
    assert "Note: 40 made-up defects were learnt from; none stands where figures are taken." in done.stdout.splitlines()
    assert load_manifest(out).data.n_made_up == 40
    refused = call(tmp_path, "train", "--data", dataset, "--out", tmp_path / "x.lward", "--synthetic", "40")
    assert refused.returncode == 2
    assert "there are 24 defective images; leave it out" in refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.7"], ids=["taken", "not ours"])
def test_a_page_that_cannot_listen_is_one_line(tmp_path: Path, host: str) -> None:
    """Rule: a port that is taken, or an address of another machine: exit code 2, and not a word that the page is up."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        sections = {
            "camera": {"driver": "simulated"},
            "inspection": {"model": "bracket"},
            "storage": {"root": "data"},
            "review": {"host": host, "port": port},
        }
        (tmp_path / "line.toml").write_text(toml(sections))
        done = call(tmp_path, "review", "--config", "line.toml")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"lineward: review.host = '{host}', review.port = {port}: nobody can listen there: ")
    assert len(done.stderr.splitlines()) == 1
    assert "the review page is at" not in done.stderr


@pytest.mark.parametrize("parts", [True, False], ids=["parts", "no_parts"])
def test_one_line_per_part_unless_turned_off(line: Callable[..., Line], broker: Mosquitto, *, parts: bool) -> None:
    """The log has one line per part with number, part, verdict, confidence and time; a setting turns them off."""
    camera = {"driver": "simulated", "width": 320, "height": 256, "rate_hz": 0, "limit": 25}
    made = line(port=broker.port, camera=camera, log={"parts": parts}).start()
    assert made.wait(30) == 0, made.log
    told = made.lines(r" #\d+ +frame \d+ +(PASS|FAIL|REVIEW) +\d+\.\d% +\d+\.\d ms")
    assert len(told) == (25 if parts else 0)
    assert len(made.rows()) == 25
    assert made.lines("ready after")
    assert made.lines("stopped after 25 answers")
    assert "\x1b[" not in made.log


def test_an_outage_of_the_broker_is_told_once(line: Callable[..., Line], broker: Mosquitto) -> None:
    """One WARNING when the broker is lost, however often it is tried again, and one line when it is back."""
    camera = {"driver": "simulated", "width": 320, "height": 256, "rate_hz": 10}
    made = line(port=broker.port, camera=camera, log={"parts": False}).start()
    made.wait_log(r"\) streams")
    broker.stop(gently=True)
    made.wait_log("WARNING mqtt")
    began = time.monotonic()
    away_s = 60 if LONG else 5
    wait_until(lambda: time.monotonic() - began > away_s, away_s + 5, "several tries")
    broker.start()
    made.wait_log("back after", 20)
    assert len(made.lines("WARNING")) == 1, made.log
    assert len(made.lines("mqtt|broker")) == 2, made.log
    assert made.end()[0] == 0


def test_a_start_without_a_broker_is_told_once(line: Callable[..., Line]) -> None:
    """A broker that was never there is one WARNING too, with its address and what to look at."""
    camera = {"driver": "simulated", "width": 320, "height": 256, "rate_hz": 10, "limit": 40}
    port = free_port()
    made = line(port=port, camera=camera, arguments=["--drain-s", 0]).start()
    assert made.wait(30) == 0, made.log
    assert len(made.lines("WARNING")) == 1, made.log
    assert made.lines(f"WARNING mqtt: broker 127.0.0.1:{port}: .*is the broker running")


def signs_in(url: str, name: str, password: str) -> bool:
    try:
        answer = httpx.post(f"{url}/login", data={"name": name, "password": password}, headers={"origin": url})
    except httpx.TransportError:
        return False
    return answer.status_code == 303


@pytest.mark.timeout(300)
def test_the_demo_ends_by_itself_and_ctrl_c_ends_it_cleanly(
    tmp_path: Path, bundle: Path, services: list[Service]
) -> None:
    """`demo` trains on first use, shows its parts and sums up; the second starts at once, and Ctrl-C is no error."""
    from lineward import __version__
    from lineward.daemon.demo import DEFECTIVE, GOOD, INPUT_WIDTH

    if not LONG:  # the first use trains for a minute: here a model lies where the demo would have put its own
        models = tmp_path / "cache" / "lineward" / "demo" / "models"
        models.mkdir(parents=True)
        shutil.copy(bundle, models / f"bracket-{__version__}-{GOOD}-{DEFECTIVE}-{INPUT_WIDTH}.lward")
    began = time.monotonic()
    done = call(tmp_path, "demo", "--parts", "30", "--headless", "--rate", "20", timeout_s=280)
    figure(f"first demo, training {'' if LONG else 'not '}included: {time.monotonic() - began:.1f} s")
    assert done.returncode == 0, done.stdout + done.stderr
    told = done.stdout  # what the demo shows is its result: `demo >file` has it, and stderr is for what is wrong
    assert not done.stderr
    assert "30 parts, 30 answers" in told
    assert "escaped" in told
    assert sum(re.match(r"\S+ +#\d+ ", text) is not None for text in told.splitlines()) == 30
    assert "\x1b[" not in told
    began = time.monotonic()
    second = Service(tmp_path, "demo", "--rate", "10")
    services.append(second)
    second.start()
    second.wait_log(r" #\d+ ", 30)
    page, password = re.findall(r"review page: (\S+), sign in as demo with password (\S+)", second.log)[0]
    wait_until(lambda: signs_in(page, "demo", password), 30, "the review page lets demo in")
    figure(f"second demo: first part after {time.monotonic() - began:.1f} s")
    session = second.pid
    code, seconds = second.end(signal.SIGINT)
    assert code == 0, second.log
    assert seconds < 4, second.log
    assert "Traceback" not in second.log
    assert "answers:" in second.log, "what was inspected until then is summed up"
    wait_until(lambda: not session_pids(session), 3, "no process left behind")
    assert not list((tmp_path / "tmp").iterdir())
