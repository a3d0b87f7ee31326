"""What this machine says to a station, in every wrong way: lines on the control socket, and files of commissioning."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
from typing import TYPE_CHECKING, Any

import numpy as np
from tests.daemon.desk import Desk, recipe

from lineward.daemon.changeover import Changeover
from lineward.daemon.commands import LARGEST_BYTES, Commands
from lineward.daemon.config import Config
from lineward.daemon.control import NAME, ControlSocket, send
from lineward.daemon.recipes import Recipes
from lineward.daemon.watch.chart import Charts
from lineward.daemon.watch.measure import compare, measure
from lineward.daemon.watch.reference import Key, Sample, commission
from lineward.daemon.watch.reference_file import ReferenceFileError, load, save

if TYPE_CHECKING:
    from pathlib import Path

CASES = 10_000 if os.environ.get("LINEWARD_LONG") == "1" else 300
SCRAPS = (b"NaN", b"1e999", b"-1", b"null", b"[]", b'"x"', b"{", b"9" * 400, b"\x00", b"\xff\xfe", b"true", b"[" * 2000)


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Change one to four places of some bytes."""
    out = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(out) + 1)
        match draw.randrange(4):
            case 0:
                out[at : at + 1] = draw.randbytes(1)
            case 1:
                del out[at : at + draw.randint(1, 60)]
            case 2:
                out[at:at] = draw.choice(SCRAPS)
            case 3:
                del out[at:]
    return bytes(out)


def say(path: Path, line: bytes) -> dict[str, Any]:
    """Send one line as any program could; return the answer."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(path))
        with contextlib.suppress(BrokenPipeError):  # it hangs up on what is too long
            connection.sendall(line)
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionResetError):  # the same
            while chunk := connection.recv(65536):
                answer += chunk
    if not answer and len(line) > LARGEST_BYTES:
        return {"id": "", "ok": 0, "reason": "hung up"}
    acknowledged: dict[str, Any] = json.loads(answer)
    return acknowledged


def test_every_line_on_the_control_socket_gets_one_answer(tmp_path: Path) -> None:
    """Rule: whatever a local program sends, it gets one answer in one word, and the next one is heard."""
    draw = random.Random(7)
    desk = Desk(tmp_path)
    desk.book.activate(recipe())
    config = Config.model_validate({"camera": {"driver": "simulated"}, "inspection": {"model": "x.lward"}})
    changeover = Changeover(Recipes(config), desk.book, desk.alarms, lambda _recipe: None)
    ticks = iter(range(10**9))  # a second for each command, so that none is refused as a flood
    commands = Commands(
        desk.book, desk.answers, changeover, desk.alarms, trigger="software", clock=lambda: float(next(ticks))
    )
    control = ControlSocket(
        tmp_path, lambda name, payload, ack: commands.handle(name, payload, retained=False, acknowledge=ack)
    )
    control.start()
    whole = [
        {"command": "trigger", "id": "1", "part_id": "A1"},
        {"command": "part", "id": 2, "part_ids": ["A", "B"]},
        {"command": "ping", "id": "x"},
    ]
    words = set()
    for number in range(CASES):
        line = damaged(json.dumps(draw.choice(whole)).encode(), draw).replace(b"\n", b" ")
        if number % 50 == 0:
            line += b" " * (LARGEST_BYTES + number)
        answer = say(tmp_path / NAME, line + b"\n")
        assert set(answer) == {"id", "ok", "reason"}, line
        words.add(answer["reason"])
    assert {"malformed", "unknown_command"} <= words
    assert send(tmp_path, "ping", {}, timeout_s=10)["reason"] == "unknown_command"
    control.close()
    desk.close()


def test_every_damaged_file_of_commissioning_is_told_in_one_line(tmp_path: Path) -> None:
    """Rule: what was learnt at commissioning is read whole or refused in one line that names file and remedy."""
    draw, random_ = random.Random(8), np.random.default_rng(0)
    scene = random_.integers(20, 230, (64, 64))
    measured = [measure(np.asarray(scene + random_.integers(-5, 5, scene.shape), np.uint8)) for _ in range(60)]
    reference = commission([Sample(each, (0.9, 0.1, 0.5), True) for each in measured], 1.7e9)
    key = Key("bracket", "ab" * 32, "settings")
    path = key.file(tmp_path)
    save(path, key, reference, Charts(reference.limits, 1.7e9))
    whole, refused = path.read_bytes(), list[str]()
    for _ in range(CASES):
        path.write_bytes(damaged(whole, draw))
        try:
            found = load(path)
        except ReferenceFileError as error:
            refused.append(str(error))
        else:
            assert found is not None
            likeness = compare(measured[0].small, found[0].template)
            found[1].see(found[0].figures(measured[0], likeness, (0.9, 0.1, 0.5)), 1.8e9)
            assert np.isfinite(found[1].deviation).all()
    assert len(refused) > CASES / 2
    for message in set(refused):
        assert str(path) in message
        assert "lineward watch reset" in message
        assert "\n" not in message
