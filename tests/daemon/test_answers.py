"""Fail-safe by construction: no sequence of faults lets a part through that was not judged, itself, in time."""

from __future__ import annotations

import tempfile
import threading
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.broker import wait_until
from tests.daemon.desk import CAMERA, PASS, Desk, recipe
from tests.daemon.results import make as make_result

from lineward.daemon.answers import Judgement
from lineward.daemon.clock import DeadlineClock
from lineward.daemon.frames import FrameSource
from lineward.daemon.ledger import Ledger
from lineward.daemon.loop import inspect
from lineward.daemon.recipes import Switch
from lineward.daemon.states import Event, StateMachine
from lineward.daemon.triggers import Part, Reason, reason_of
from lineward.drivers.camera import (
    CameraHealth,
    CameraInfo,
    CameraLostError,
    Cause,
    Frame,
    NoFrame,
    NoFrameReason,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lineward.daemon.recipes import ActiveRecipe
    from lineward.daemon.result import Result
    from lineward.drivers.process import CameraProcess

MS = 1_000_000
ROOM = 4


@dataclass
class Asked:
    """What the test knows about one part by itself."""

    at_ns: int
    deadline_ns: int | None
    model: str


class Station(RuleBasedStateMachine):
    """Triggers, frames, faults, changes of recipe and time in any order; time is the test's own."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 10**12
        self._folder = tempfile.TemporaryDirectory()
        self.desk = Desk(Path(self._folder.name), clock=lambda: self.now, room=ROOM)
        self.recipes = [
            recipe(name="a", product="a", deadline_ms=50),
            recipe(name="b", product="b", deadline_ms=20),
        ]
        self.asked: dict[str, Asked] = {}
        self.answers: list[Result] = []
        self.in_hand: Part | None = None
        self.judged: set[str] = set()  # parts whose own picture was judged
        self.frames = 0

    def note(self, result: Result | None) -> None:
        if result is not None:
            self.answers.append(result)

    @rule(named=st.booleans())
    def trigger(self, named: bool) -> None:  # noqa: FBT001 - drawn by Hypothesis
        name = f"T{len(self.asked)}"
        active = self.desk.book.active
        part, refused = self.desk.book.accept(name, name if named else "")
        deadline = None if active is None else self.now + round(active.deadline_ms * MS)
        self.asked[name] = Asked(self.now, deadline, "" if active is None else active.model.name)
        if refused is not None:
            self.note(self.desk.answers.undecided(part, refused))

    @rule(count=st.integers(0, 3))
    def announce(self, count: int) -> None:
        if not count:
            for part in self.desk.book.withdraw():
                self.note(self.desk.answers.undecided(part, Reason.NO_IMAGE))
        else:
            for part in self.desk.book.announce("announced", [f"P{self.frames}-{i}" for i in range(count)]):
                self.note(self.desk.answers.undecided(part, Reason.CAMERA_LOST))

    @precondition(lambda self: self.in_hand is None)
    @rule()
    def take(self) -> None:
        item = self.desk.book.next(0)
        if isinstance(item, Part):
            self.in_hand = item
        elif item is not None:
            self.desk.book.activate(item.recipe)
            item.done("", "")

    @precondition(lambda self: self.in_hand is None and self.desk.book.active is not None)
    @rule(age_ms=st.integers(0, 60))
    def frame(self, age_ms: int) -> None:
        self.frames += 1
        part = self.desk.book.from_frame(self.picture(self.now - age_ms * MS))
        part.trigger_id = part.trigger_id or f"F{self.frames}"
        self.in_hand = part

    def picture(self, at_ns: int) -> Frame:
        return Frame(np.zeros((2, 2), np.uint8), self.frames, at_ns)

    @precondition(lambda self: self.in_hand is not None)
    @rule(outcome=st.sampled_from(["pass", "no picture", "incomplete", "judge fails"]))
    def finish(self, outcome: str) -> None:
        part = self.in_hand
        assert part is not None
        self.in_hand = None
        if outcome == "no picture":
            return  # the clock has the last word
        if outcome == "incomplete":
            self.note(self.desk.answers.undecided(part, Reason.INCOMPLETE))
            return
        if part.frame is None:
            part = self.desk.book.imaged(part, self.picture(self.now))
        if outcome == "judge fails":
            self.note(self.desk.answers.undecided(part, Reason.ERROR))
            return
        if self.now <= (part.deadline_ns or self.now):
            self.judged.add(f"{part.trigger_id}/{part.part_id}")
        self.note(self.desk.answers.give(Judgement(part, PASS)))

    @rule(ms=st.integers(0, 60), clock_runs=st.booleans())
    def time_passes(self, ms: int, clock_runs: bool) -> None:  # noqa: FBT001 - drawn by Hypothesis
        self.now += ms * MS
        for part in self.desk.book.expired() if clock_runs else []:
            self.note(self.desk.answers.undecided(part, reason_of(part)))

    @rule(which=st.integers(0, 1))
    def change_over(self, which: int) -> None:
        if self.desk.book.active is None:
            self.desk.book.activate(self.recipes[which])
        else:
            self.desk.book.post(Switch(self.recipes[which], lambda _word, _text: None))

    @rule()
    def camera_back(self) -> None:
        self.desk.book.camera_up = True

    @rule()
    def camera_gone(self) -> None:
        for part in self.desk.book.camera_went():
            self.note(self.desk.answers.undecided(part, Reason.CAMERA_LOST))

    @invariant()
    def a_pass_was_judged_itself_and_in_time(self) -> None:
        for result in self.answers:
            if result.verdict != "pass":
                continue
            assert f"{result.trigger_id}/{result.part_id}" in self.judged
            asked = self.asked.get(result.trigger_id)
            if asked is not None:
                assert result.model.name == asked.model, "judged by the recipe that was in force when it was asked for"

    @invariant()
    def numbers_have_no_gap_and_no_trigger_two_answers(self) -> None:
        assert [result.seq for result in self.answers] == list(range(1, len(self.answers) + 1))
        given = Counter(result.trigger_id for result in self.answers if result.trigger_id.startswith("T"))
        assert all(count == 1 for count in given.values())

    def teardown(self) -> None:
        self.now += 10**12
        for part in self.desk.book.expired():
            self.note(self.desk.answers.undecided(part, reason_of(part)))
        for part in self.desk.book.close():
            self.note(self.desk.answers.undecided(part, Reason.ERROR))
        answered = {result.trigger_id for result in self.answers}
        assert set(self.asked) <= answered, "every trigger has its answer"
        rows = list(self.desk.ledger.rows())
        assert [(row.seq, row.verdict) for row in rows] == [(each.seq, each.verdict) for each in self.answers]
        assert not self.desk.ledger.open_triggers()
        self.desk.close()
        self._folder.cleanup()


Station.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestStation = Station.TestCase


class ScriptedCamera:
    """A camera that does to each trigger what the script says; a picture shows which trigger it was exposed for."""

    def __init__(self, script: list[str]) -> None:
        self.script = script
        self.number = 0
        self.frames = 0
        self.coming: list[tuple[int, str]] = []
        self.held: list[tuple[int, str]] = []

    def open(self) -> CameraInfo:
        return CAMERA

    def configure(self, wanted: Mapping[str, object]) -> Mapping[str, object]:
        return wanted

    def start(self) -> None:
        self.coming.clear()

    def stop(self) -> None:
        self.coming.clear()

    def trigger(self) -> int:
        self.number += 1
        fate = self.script[(self.number - 1) % len(self.script)]
        if fate == "lost":
            raise CameraLostError("unplugged")
        self.coming += [*self.held, (self.number, fate)]
        self.held.clear()
        return self.number

    def grab(self, timeout_s: float) -> Frame | NoFrame:
        if self.coming:
            number, fate = self.coming.pop(0)
            if fate == "incomplete":
                return NoFrame(NoFrameReason.INCOMPLETE)
            if fate == "late":  # comes when the next one is waited for
                self.held.append((number, "stale"))
            if fate in {"good", "stale"}:
                self.frames += 1
                image = np.full((2, 2), number % 251, np.uint8)
                missing = {Cause.INCOMPLETE: 1} if fate == "stale" else {}
                return Frame(image, self.frames, time.monotonic_ns(), None, number, missing)
            if fate == "lost later":
                raise CameraLostError("unplugged while exposing")
        threading.Event().wait(min(timeout_s, 0.002))
        return NoFrame(NoFrameReason.TIMEOUT)

    def flush(self) -> int:
        return 0  # throws nothing away: the loop must know a late frame by its number

    def health(self) -> CameraHealth:
        return CameraHealth()

    def resident_mb(self) -> float:
        return 0.0

    def close(self) -> None:
        self.coming.clear()


FATES = st.sampled_from(["good", "incomplete", "late", "never", "lost", "lost later"])


@given(script=st.lists(FATES, min_size=1, max_size=8))
@settings(max_examples=15, deadline=None)
def test_whatever_the_camera_does_a_pass_is_about_the_part_that_was_asked_for(script: list[str]) -> None:
    """Late, damaged and missing pictures, a plug pulled at any moment: each trigger one answer, and no stranger's."""
    with tempfile.TemporaryDirectory() as folder, closing(Desk(Path(folder))) as desk:
        camera = ScriptedCamera(script)
        seen: list[int] = []
        active: ActiveRecipe = recipe(lambda image: seen.append(int(image[0, 0])) or PASS, deadline_ms=25)
        desk.book.activate(active)
        stop = threading.Event()
        states = StateMachine(lambda _status: None)
        states.handle(Event.MODEL_READY)
        source = FrameSource(
            cast("CameraProcess", camera),  # keeps the protocol, runs in this process
            {},
            trigger="software",
            memory_mb=1e6,
            silent_s=10,
            stop=stop,
            states=states,
            alarms=desk.alarms,
            health=desk.health,
            book=desk.book,
            answers=desk.answers,
            alive=lambda: None,
        )
        clock = DeadlineClock(desk.book, desk.answers)
        clock.start()
        loop = threading.Thread(
            target=inspect,
            args=(source, desk.answers),
            kwargs={"review": desk.review, "heart": desk.results, "alarms": desk.alarms},
        )
        loop.start()
        while not desk.book.camera_up:
            threading.Event().wait(0.001)
        count = 2 * len(script)
        for number in range(count):
            part, refused = desk.book.accept(f"{number}", f"P{number}")
            if refused is not None:
                desk.answers.undecided(part, refused)
            threading.Event().wait(0.004)
        while len(list(desk.ledger.rows())) < count:
            threading.Event().wait(0.005)
        stop.set()
        loop.join()
        clock.close()
        source.close()
        rows = list(desk.ledger.rows())
        assert sorted(row.trigger_no or 0 for row in rows) == list(range(1, count + 1)), "one answer each"
        passed = [row for row in rows if row.verdict == "pass"]
        assert len(passed) <= len(seen)
        good = [n for n in range(1, camera.number + 1) if script[(n - 1) % len(script)] == "good"]
        assert set(seen) <= {n % 251 for n in good}, "a picture that came late or damaged was judged"


def test_a_trigger_beyond_the_room_is_answered_at_once(tmp_path: Path) -> None:
    """A queue that is full is an answer, not a silence."""
    with closing(Desk(tmp_path, room=2)) as desk:
        desk.book.activate(recipe())
        desk.book.camera_up = True
        refused = [desk.book.accept(f"{i}", "")[1] for i in range(4)]
        assert refused == [None, None, Reason.QUEUE_FULL, Reason.QUEUE_FULL]


@pytest.mark.parametrize("clock_first", [True, False])
def test_a_late_verdict_is_written_down_and_is_no_answer(tmp_path: Path, clock_first: bool) -> None:  # noqa: FBT001
    """Whoever is first has the word; what the model said too late is kept for the technician."""
    now = [10**12]
    with closing(Desk(tmp_path, clock=lambda: now[0])) as desk:
        desk.book.activate(recipe(deadline_ms=10))
        part = desk.book.from_frame(Frame(np.zeros((2, 2), np.uint8), 1, now[0]))
        now[0] += 50 * MS
        if clock_first:
            assert desk.answers.undecided(desk.book.expired()[0], Reason.TIMEOUT) is not None
        result = desk.answers.give(Judgement(part, PASS))
        assert (result is None) == clock_first
        assert [row[1:3] for row in desk.rows()] == [("undecided", "timeout")]
        late = desk.ledger._reader._fetch("SELECT seq, verdict FROM late_verdicts")
        assert late == [(1, "pass")]


def test_what_a_killed_process_left_open_is_named(tmp_path: Path) -> None:
    """A trigger that was accepted before a SIGKILL gets its answer from the next process."""
    with closing(Desk(tmp_path)) as desk:
        desk.book.activate(recipe())
        desk.book.camera_up = True
        desk.book.accept("17", "A1")
        desk.book.announce("18", ["A2"])
    with closing(Desk(tmp_path)) as desk:
        assert [(row.trigger_id, row.part_id, row.source) for row in desk.ledger.open_triggers()] == [
            ("17", "A1", "command"),
            ("18", "A2", "part"),
        ]
        assert desk.book.active is None
        assert desk.book.accept("19", "A3")[1] is Reason.NO_MODEL


def test_an_old_trigger_goes_with_its_answer(tmp_path: Path) -> None:
    """Pruning must not make an answered trigger look open: the next process would answer it again."""
    ledger = Ledger(tmp_path, keep_rows=10)
    for index in range(20):
        number = ledger.note_trigger(f"t{index}", f"A{index}", "command", 1.0)
        ledger.record(make_result(trigger_no=number))
    for _ in range(20):
        ledger.record(make_result())
    ledger.acknowledge(range(1, 41))
    wait_until(lambda: len(list(ledger.rows())) <= 10, 20, "pruning")
    assert not ledger.open_triggers()
    ledger.close()
