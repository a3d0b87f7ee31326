"""Parts with ids told ahead and electrical triggers: whatever befalls the camera, the ledger names each part."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from tests.broker import wait_until
from tests.daemon.desk import PASS, Desk, recipe

from gentl_sim.gentl_sim import Crash
from lineward.daemon.frames import FrameSource
from lineward.daemon.loop import inspect
from lineward.daemon.states import Event, StateMachine
from lineward.drivers.process import CameraProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from gentl_sim.fixtures import Sim
    from gentl_sim.gentl_sim import SimDevice

pytest_plugins = ["gentl_sim.fixtures"]

SETTINGS = {"TestPattern": "FrameId", "ExposureTime": 100.0, "TriggerSource": "Line1"}
BEFORE = AFTER = 4
DURING = 3


class Line(Desk):
    """A loop in a thread of its own, and the PLC beside it."""

    def __init__(self, folder: Path, producer: Path, device: SimDevice) -> None:
        super().__init__(folder)
        self.device = device
        self.book.activate(recipe(settings=SETTINGS, deadline_ms=60_000))
        self.stop = threading.Event()
        states = StateMachine(lambda _status: None)
        states.handle(Event.MODEL_READY)
        options = {"producers": [str(producer)], "serial": "SIM-A", "trigger": "hardware"}
        self.source = FrameSource(
            CameraProcess("genicam", options),
            SETTINGS,
            trigger="hardware",
            memory_mb=4096,
            silent_s=10,
            stop=self.stop,
            states=states,
            alarms=self.alarms,
            health=self.health,
            book=self.book,
            answers=self.answers,
            alive=lambda: None,
        )
        self.parts: list[str] = []
        self._loop = threading.Thread(target=self._run)
        self._loop.start()
        wait_until(lambda: self.book.camera_up, 20, "camera")

    def _run(self) -> None:
        inspect(self.source, self.answers, review=self.review, heart=self.results, alarms=self.alarms)
        self.source.close()

    def pass_by(self, count: int = 1) -> list[str]:
        """Let parts pass: each is announced, then the light barrier gives its edge."""
        passed = []
        for _ in range(count):
            part = f"P{len(self.parts)}"
            self.parts.append(part)
            passed.append(part)
            self.book.announce(part, [part])
            self.device.pulse()
            threading.Event().wait(0.03)
        return passed

    def answers_of(self) -> dict[str, tuple[str, str]]:
        rows = list(self.ledger.rows())
        given = {row.part_id: (row.verdict, row.reason) for row in rows if row.part_id}
        assert len(given) == len([row for row in rows if row.part_id]), "a part was answered twice"
        return given

    def wait_named(self, parts: list[str]) -> None:
        wait_until(lambda: set(parts) <= set(self.answers_of()), 30, f"answers for {parts}")

    def close(self) -> None:
        self.stop.set()
        self._loop.join(20)
        super().close()


@pytest.fixture
def line(sim: Sim, tmp_path: Path) -> Iterator[Line]:
    line = Line(tmp_path / "storage", sim.file, sim.control["SIM-A"])
    yield line
    line.close()


FAULTS: dict[str, tuple[Callable[[SimDevice], None], set[str]]] = {
    "dropped": (lambda device: device.drop(DURING), {"no_image"}),
    "incomplete": (lambda device: device.incomplete(DURING), {"incomplete"}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_frame_that_is_lost_costs_its_own_part_and_shifts_none(line: Line, fault: str) -> None:
    """The part after a gap gets its own picture's verdict: the missing frames have used up their parts' ids."""
    provoke, reasons = FAULTS[fault]
    before = line.pass_by(BEFORE)
    line.wait_named(before)
    provoke(line.device)
    during = line.pass_by(DURING)
    after = line.pass_by(AFTER)
    line.wait_named(line.parts)
    given = line.answers_of()
    assert {given[part] for part in before + after} == {(PASS.decision, "")}
    assert {given[part][0] for part in during} == {"undecided"}
    assert {given[part][1] for part in during} == reasons
    frames = {row.part_id: row.frame_id or 0 for row in line.ledger.rows()}
    first = frames[line.parts[0]]
    assert [frames[part] - first for part in line.parts] == list(range(len(line.parts))), "each id its own frame"
    assert sum(line.health.missing.values()) == DURING, "each is counted once, however often it is told"


def test_an_incomplete_frame_is_answered_although_no_other_comes(line: Line) -> None:
    """On a slow line the next part may be an hour away, and with a bad cable no whole frame comes at all."""
    before = line.pass_by(BEFORE)
    line.wait_named(before)
    line.device.incomplete(2)
    for _ in range(2):
        (lost,) = line.pass_by(1)
        line.wait_named([lost])
        assert line.answers_of()[lost] == ("undecided", "incomplete")
    assert line.health.missing == {"incomplete": 2}
    assert "packets were lost; check cable, jumbo frames" in line.alarms.raised()["frames"].text
    after = line.pass_by(AFTER)
    line.wait_named(line.parts)
    assert {line.answers_of()[part] for part in after} == {(PASS.decision, "")}
    assert line.health.missing == {"incomplete": 2}


def test_a_camera_that_crashes_names_the_parts_that_were_announced(line: Line) -> None:
    """Nobody can know which of them passed by meanwhile, so none of their ids is given to a later frame."""
    before = line.pass_by(BEFORE)
    line.wait_named(before)
    line.device.crash(Crash.AT_FRAME)
    lost = line.pass_by(1)
    line.wait_named(lost)
    wait_until(lambda: line.book.camera_up, 30, "camera back")
    after = line.pass_by(AFTER)
    line.wait_named(after)
    given = line.answers_of()
    assert [given[part] for part in lost] == [("undecided", "camera_lost")]
    assert {given[part][0] for part in after} == {PASS.decision}
