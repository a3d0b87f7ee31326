"""Frames keep coming whatever the camera does, and every gap is counted by cause and said once."""

from __future__ import annotations

import itertools
import json
import logging
import os
import signal
import threading
import time
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from tests.daemon.desk import PASS, Desk, recipe

from lineward.daemon import frames as frames_module
from lineward.daemon import lost_frames
from lineward.daemon.answers import Judgement
from lineward.daemon.clock import DeadlineClock
from lineward.daemon.frames import FrameSource
from lineward.daemon.recipes import Switch
from lineward.daemon.states import Event, State, StateMachine
from lineward.daemon.triggers import Reason, Stage
from lineward.drivers.camera import CameraSettingError
from lineward.drivers.lifecycle import LINK_TRANSITIONS, Link, Step, WrongStepError, follow
from lineward.drivers.process import CameraProcess
from lineward.drivers.simulation.device import DeviceMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from lineward.daemon.ledger_read import Row

PATIENT = {"silence_limit_s": 20.0}
"""For tests in which no camera hangs: a busy machine must not make it look so."""


class Station:
    """The parts around a frame source, all real."""

    def __init__(
        self,
        tmp_path: Path,
        *,
        memory_mb: float = 1024,
        silent_s: float = 10,
        silence_limit_s: float = 0.6,
        settings=None,
        driver: str = "simulated",
        trigger: str = "free_run",
        **options: object,
    ) -> None:
        self.line = tmp_path / "line"
        simulated = {"rate_hz": 100.0, "width": 128, "height": 96, "memory": str(self.line)}
        values = {"trigger": trigger, **(simulated if driver == "simulated" else {}), **options}
        self.camera = CameraProcess(driver, values, silence_limit_s=silence_limit_s)
        self.stop = threading.Event()
        self.desk = Desk(tmp_path / "storage")
        self.desk.book.activate(recipe(settings=settings))
        self.health, self.alarms = self.desk.health, self.desk.alarms
        self.changes: list[State] = []
        self.states = StateMachine(lambda status: self.changes.append(status.state))
        self.states.handle(Event.MODEL_READY)
        self.source = FrameSource(
            self.camera,
            settings or {},
            trigger=trigger,
            memory_mb=memory_mb,
            silent_s=silent_s,
            stop=self.stop,
            states=self.states,
            alarms=self.alarms,
            health=self.health,
            book=self.desk.book,
            answers=self.desk.answers,
            alive=lambda: self.look(),  # noqa: PLW0108 - a test may replace it
        )
        self.look: Callable[[], None] = lambda: None
        self.parts = iter(self.source)

    def close(self) -> None:
        self.source.close()
        self.desk.close()

    def take(self, count: int) -> list[int]:
        return [part.frame.frame_id for part in itertools.islice(self.source, count) if part.frame is not None]

    def begin(self, part_ids: Iterable[str] = ()) -> None:
        """Let the camera stream, then announce parts: ids that are announced without a camera are answered at once."""
        assert self.source.open()
        assert self.source.start()
        self.desk.book.announce("t", part_ids)

    def judge(self, count: int | None = None, *, takes_s: float = 0.0) -> list[int]:
        """Let so many parts, or all that come, pass; return their frames' numbers."""
        ids = []
        for part in itertools.islice(self.parts, count):
            assert part.frame is not None
            ids.append(part.frame.frame_id)
            time.sleep(takes_s)
            self.desk.answers.give(Judgement(part, PASS))
        return ids

    def rows_at_the_end(self) -> list[Row]:
        """Stop, answer what waits as a station that is stopped does, and return every answer."""
        self.source.close()
        for part in self.desk.book.close():
            self.desk.answers.undecided(part, Reason.ERROR)
        return list(self.desk.ledger.rows())

    def exposed(self) -> int:
        """Return how many frames the camera has exposed, as it remembers itself."""
        return DeviceMemory(self.line).read()[0]


@pytest.mark.parametrize(("link", "step"), list(itertools.product(Link, Step)))
def test_a_connection_follows_its_table(link: Link, step: Step) -> None:
    """What the table does not allow is a loud error."""
    if step in LINK_TRANSITIONS[link]:
        assert follow(link, step) is LINK_TRANSITIONS[link][step]
    else:
        with pytest.raises(WrongStepError, match=f"{step}.*{link}"):
            follow(link, step)


@pytest.mark.parametrize("fault", ["disconnect@20:1s", "crash@20", "hang@20"])
def test_the_line_resumes_by_itself_and_no_part_is_judged_twice(
    tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A pulled plug, a crash, a hang: one warning, one alarm that clears, and the next part follows the last."""
    with closing(Station(tmp_path, faults=[fault])) as station, caplog.at_level(logging.INFO, "lineward"):
        ids = station.take(60)
        assert ids == sorted(set(ids))
        missing = sum(station.health.missing.values())
        assert ids[-1] - ids[0] + 1 - len(ids) <= missing + 8, "at most the frames that waited in a dead process"
        outages = [record for record in caplog.records if record.levelno == logging.WARNING and "camera" in record.name]
        assert len([record for record in outages if "frames were" not in record.getMessage()]) == 1
        assert "camera" not in station.alarms.raised()
        assert station.health.camera_openings == 2
        assert station.changes == [
            State.INITIALIZED,
            State.CONTINUOUS_EXECUTION,
            State.ERROR,
            State.CONTINUOUS_EXECUTION,
        ]


def test_a_silent_camera_that_runs_freely_is_opened_anew(tmp_path: Path) -> None:
    """A camera process that is well but gets no frames is no reason to wait for ever; a short stall is no outage."""
    with closing(Station(tmp_path, faults=["stall@20:0.5s"])) as station:
        station.take(40)
        assert station.health.camera_openings == 1
    with closing(Station(tmp_path / "other", silent_s=0.5, faults=["stall@20:60s"], memory=None)) as station:
        ids = station.take(40)
        assert station.health.camera_openings == 2
        assert ids == list(range(40))


def test_a_camera_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    """A daemon that starts before its camera has power says so and goes on when it comes."""
    folder = tmp_path / "images"
    with closing(Station(tmp_path, driver="folder", folder=str(folder))) as station:
        assert not station.source.open()
        assert str(folder) in station.alarms.raised()["camera"].text
        assert station.source.link is Link.BACKOFF
        station.stop.set()
        assert not station.source.wait_open(), "told to stop while waiting"


def test_a_wrong_setting_is_told_at_the_first_opening_and_not_retried(tmp_path: Path) -> None:
    """Waiting will not mend a configuration."""
    with (
        closing(Station(tmp_path, settings={"ExposureTime": -5})) as station,
        pytest.raises(CameraSettingError, match="ExposureTime"),
    ):
        station.source.open()
    assert station.camera.pid is None


def test_lost_frames_are_counted_by_cause_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand lost frames are one warning with a remedy, one line when it is over, and an exact count."""
    monkeypatch.setattr(lost_frames, "RECOVERED_S", 0.2)
    faults = ["drop@10:2", "drop@20:3", "drop@25:1"]
    with closing(Station(tmp_path, faults=faults)) as station, caplog.at_level(logging.INFO, "lineward"):
        seen = []
        for frame in station.source:
            seen.append(frame.frame_id)
            if len(seen) >= 80 and station.source.link is Link.STREAMING:
                break
            if station.source.link is Link.DEGRADED and "frames" not in station.alarms.raised():
                pytest.fail("an alarm stands as long as the connection is degraded")
        gaps = seen[-1] - seen[0] + 1 - len(seen)
        assert sum(station.health.missing.values()) == gaps >= 6
        assert station.health.missing["camera_gap"] == 6
        texts = [record.getMessage() for record in caplog.records]
        spells = [text for text in texts if text.startswith("frames were not inspected")]
        assert len(spells) == len([text for text in texts if "the spell cost" in text]) >= 1
        assert "check the link's bandwidth" in spells[0]
        assert station.source.link is Link.STREAMING


def test_frames_that_wait_behind_a_slow_judge_are_answered_by_the_clock(tmp_path: Path) -> None:
    """The deadline of a frame that waits is watched; what has its answer is not judged; each frame has one answer."""
    with closing(Station(tmp_path, rate_hz=50.0)) as station:
        station.desk.book.activate(recipe(deadline_ms=60))
        clock = DeadlineClock(station.desk.book, station.desk.answers)
        clock.start()
        judged = []
        for part in itertools.islice(station.source, 6):
            assert part.frame is not None
            assert part.stage is Stage.JUDGING
            judged.append(part.frame.frame_id)
            time.sleep(0.15)
            station.desk.answers.give(Judgement(part, PASS))
        clock.close()
        rows = list(station.desk.ledger.rows())
    answered = sorted(row.frame_id for row in rows if row.frame_id is not None)
    assert answered == sorted(set(answered)), "one answer for each frame"
    assert set(range(judged[0], judged[-1] + 1)) <= set(answered), "and for every one"
    assert len({row.frame_id for row in rows if row.reason == "timeout"} - set(judged)) >= 5
    assert not any(row.verdict == "pass" for row in rows)


def test_the_last_frames_of_a_camera_that_ends_are_judged(tmp_path: Path) -> None:
    """A simulated camera with a limit ends while frames wait behind the judge; they passed the line all the same."""
    with closing(Station(tmp_path, rate_hz=50.0, limit=10)) as station:
        ids = []
        for part in station.source:
            assert part.frame is not None
            ids.append(part.frame.frame_id)
            time.sleep(0.05)
        assert ids[-1] == 9


def test_a_camera_process_beyond_its_memory_budget_is_replaced_between_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leaking producer costs a planned change of process, not a crash: no outage, no alarm, no part twice."""
    monkeypatch.setattr(frames_module, "LOOK_EVERY_S", 0.1)
    with closing(Station(tmp_path, memory_mb=1)) as station:
        ids = station.take(40)
        assert ids == sorted(set(ids))
        assert station.health.camera_recycles >= 1
        assert station.health.camera_openings == station.health.camera_recycles + 1
        assert station.changes == [State.INITIALIZED, State.CONTINUOUS_EXECUTION]
        assert not station.alarms.raised()


def test_the_loop_is_told_to_stop_within_a_look(tmp_path: Path) -> None:
    """SIGTERM must not wait for a part that does not come."""
    with closing(Station(tmp_path, faults=["stall@5:60s"])) as station:
        station.begin()
        threading.Timer(0.5, station.stop.set).start()
        began = time.monotonic()
        assert station.take(100)
        assert time.monotonic() - began < 10, "a stalled camera would have lasted a minute"


def test_a_killed_camera_process_is_an_outage_of_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """SIGKILL from outside, five times: five outages, five warnings, no part twice."""
    with closing(Station(tmp_path)) as station, caplog.at_level(logging.INFO, "lineward"):
        ids = []
        for _ in range(5):
            ids += station.take(10)
            assert station.camera.pid is not None
            os.kill(station.camera.pid, signal.SIGKILL)
        ids += station.take(30)
        assert ids == sorted(set(ids))
        warnings = [record for record in caplog.records if "SIGKILL" in record.getMessage() and record.levelno == 30]
        assert len([record for record in warnings if record.name == "lineward.camera"]) == 5
        assert station.health.camera_openings == 6


def test_an_incomplete_frame_is_answered_once_and_keeps_ids_with_their_parts(tmp_path: Path) -> None:
    """It is told twice, alone and with the next whole frame: one answer, one count, one announced id."""
    faults = ["incomplete@10", "incomplete@14:2", "drop@20:2", "incomplete@22"]
    with closing(Station(tmp_path, rate_hz=30.0, faults=faults, **PATIENT)) as station:
        station.begin(f"P{number}" for number in range(100))
        station.judge(30)
        rows = station.rows_at_the_end()
        named = [row for row in rows if row.part_id and row.reason != "error"]
        assert [row.part_id for row in rows if row.part_id] == list(dict.fromkeys(row.part_id for row in rows))
        assert {row.part_id for row in named if row.verdict == "pass"} == {
            f"P{row.frame_id}" for row in rows if row.verdict == "pass"
        }
        damaged = {row.part_id for row in named if row.reason == "incomplete"}
        assert {"P10", "P14", "P15"} <= damaged
        assert len(damaged) == station.health.missing["incomplete"] == 4
        assert sum(row.reason == "no_image" for row in named) == station.health.missing["camera_gap"] == 2


@pytest.mark.parametrize("trigger", ["free_run", "hardware"])
def test_frames_that_all_come_incomplete_are_answered_counted_and_told(
    tmp_path: Path, trigger: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A bad cable: no whole frame ever tells what was lost, and opening the camera anew would mend nothing."""
    options = {"rate_hz": 20.0, "trigger": trigger, "silent_s": 1.0, "faults": ["incomplete@0:100000"], **PATIENT}
    with closing(Station(tmp_path, **options)) as station, caplog.at_level(logging.INFO, "lineward"):
        station.begin(["P0", "P1"])
        alarms: list[str] = []

        def look() -> None:
            alarms[:] = [alarm.text for alarm in station.alarms.raised().values()]
            if station.health.missing["incomplete"] >= 40:
                station.stop.set()

        station.look = look
        assert station.judge() == []
        rows = list(station.desk.ledger.rows())
        assert {(row.verdict, row.reason) for row in rows} == {("undecided", "incomplete")}
        assert [row.part_id for row in rows[:3]] == ["P0", "P1", ""]
        assert len(rows) == station.health.missing["incomplete"]
        assert station.health.camera_openings == 1
        assert len(alarms) == 1
        assert "lost packets" in alarms[0], "what the driver says of it"
        told = [record for record in caplog.records if "lost packets" in record.getMessage()]
        assert len(told) == 1


def test_an_incomplete_frame_of_a_software_trigger_is_counted_at_once_and_once(tmp_path: Path) -> None:
    """The next whole frame may come tomorrow; when it comes it tells the same loss again."""
    with closing(Station(tmp_path, trigger="software", faults=["incomplete@1"], **PATIENT)) as station:
        station.begin()
        for number in range(2):
            station.desk.book.accept(f"t{number}", "")
        station.look = lambda: station.stop.set() if len(list(station.desk.ledger.rows())) == 2 else None
        station.judge()
        assert station.health.missing == {"incomplete": 1}
        station.stop.clear()
        station.parts = iter(station.source)
        station.desk.book.accept("t2", "")
        station.judge(1)
        assert station.health.missing == {"incomplete": 1}
        rows = station.desk.ledger.rows()
        assert [(json.loads(row.payload)["trigger_id"], row.reason) for row in rows] == [
            ("t0", ""),
            ("t1", "incomplete"),
            ("t2", ""),
        ]


def test_a_planned_change_of_process_answers_every_frame_and_shifts_no_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits behind a slow judge came whole and is judged; the ids of parts that pass meanwhile are taken back."""
    monkeypatch.setattr(frames_module, "LOOK_EVERY_S", 0.1)
    with closing(Station(tmp_path, memory_mb=1, **PATIENT)) as station:
        station.begin(f"P{number}" for number in range(100))
        station.judge(40, takes_s=0.03)
        rows = station.rows_at_the_end()
        assert station.health.camera_recycles >= 1
        withdrawn = [row for row in rows if row.part_id and row.reason == "camera_lost" and row.frame_id is None]
        assert withdrawn
        assert sorted(row.part_id for row in rows if row.part_id) == sorted(f"P{number}" for number in range(100))
        assert all(row.part_id in {"", f"P{row.frame_id}"} for row in rows if row.verdict == "pass")
        flushed = len(rows) - station.exposed()
        assert 0 < flushed <= len(withdrawn), "the parts that were announced and never came have answers as well"


@pytest.mark.parametrize("change", ["recycle", "settings", "stop"])
def test_every_frame_that_was_exposed_has_one_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Frames that wait when the camera is stopped, and those lost after the last one that came, are no exception.

    What is lost when the service itself is stopped is counted only.
    """
    if change == "recycle":
        monkeypatch.setattr(frames_module, "LOOK_EVERY_S", 0.1)
    memory_mb = 1 if change == "recycle" else 4096
    faults = [
        f"{fault}@{at + offset}:2" for at in range(0, 2000, 20) for fault, offset in (("drop", 7), ("incomplete", 17))
    ]
    with closing(Station(tmp_path, memory_mb=memory_mb, faults=faults, **PATIENT)) as station:
        words: list[str] = []
        for number in range(4):
            station.judge(15, takes_s=0.02)
            if change == "settings":
                other = recipe(settings={"ExposureTime": 1000.0 + number})
                station.desk.book.post(Switch(other, lambda word, _text: words.append(word)))
        station.judge(15, takes_s=0.02)
        missing = Counter(station.health.missing)
        rows = station.rows_at_the_end()
        assert words == [""] * 4 * (change == "settings")
        at_the_end = Counter(station.health.missing) - missing
        assert len(rows) + sum(at_the_end.values()) == station.exposed()
        ids = [row.frame_id for row in rows if row.frame_id is not None]
        assert len(ids) == len(set(ids))
        answered = Counter(row.reason for row in rows)
        assert answered["incomplete"] == missing["incomplete"] > 0
        assert answered["no_image"] == missing["camera_gap"] > 0


def test_answers_go_out_in_the_order_of_the_frames(tmp_path: Path) -> None:
    """A PLC that counts must not take the answer of a lost part for that of an older one which waits to be judged."""
    faults = [
        f"{fault}@{at + offset}" for at in range(0, 200, 10) for fault, offset in (("drop", 4), ("incomplete", 8))
    ]
    with closing(Station(tmp_path, faults=faults, **PATIENT)) as station:
        station.judge(30, takes_s=0.02)
        rows = list(station.desk.ledger.rows())
        ids = [row.frame_id for row in rows]
        assert ids == list(range(len(ids)))
        assert {"", "no_image", "incomplete"} <= {row.reason for row in rows}


@pytest.mark.parametrize("end", ["limit", "disconnect"])
def test_what_is_lost_after_the_last_frame_is_counted_and_answered(tmp_path: Path, end: str) -> None:
    """No frame follows that could tell it, when the line ends or the plug is pulled; the camera's own counters do."""
    ending = {"limit": {"faults": ["drop@5:4"], "limit": 9}, "disconnect": {"faults": ["drop@5:4", "disconnect@9:60s"]}}
    with closing(Station(tmp_path, rate_hz=30.0, **PATIENT, **ending[end])) as station:
        station.look = lambda: station.stop.set() if "camera" in station.alarms.raised() else None
        assert station.judge() == list(range(5))
        rows = station.rows_at_the_end()
        told = ["no_image"] * 4 if end == "disconnect" else []  # a station that stops says so instead
        assert [row.reason for row in rows] == [""] * 5 + told
        assert station.health.missing == {"camera_gap": 4}


def test_a_change_of_recipe_is_answered_when_the_camera_is_lost_before_it(tmp_path: Path) -> None:
    """Whoever asked for the change hears of it, even if the camera dies while its last frames are taken."""
    with closing(Station(tmp_path)) as station:
        station.take(3)
        words: list[str] = []
        station.desk.book.post(
            Switch(recipe(settings={"ExposureTime": 1000.0}), lambda word, _text: words.append(word))
        )
        assert station.camera.pid is not None
        os.kill(station.camera.pid, signal.SIGKILL)
        station.take(10)
        assert words == ["camera_lost"]


@pytest.mark.parametrize(("settings", "word"), [({}, ""), ({"ExposureTime": 1000.0}, "camera_lost")])
def test_without_a_camera_only_what_it_must_be_asked_about_is_refused(
    tmp_path: Path, settings: dict[str, float], word: str
) -> None:
    """A model that is promoted at night, with the camera switched off, judges the first part of the morning."""
    with closing(Station(tmp_path, faults=["disconnect@3:3s"])) as station:
        told: list[tuple[str, bool]] = []
        asked: list[Switch] = []

        def away() -> bool:
            return "camera" in station.alarms.raised()

        def look() -> None:
            if away() and not asked:
                asked.append(
                    Switch(recipe(name="new", settings=settings), lambda said, _text: told.append((said, away())))
                )
                station.desk.book.post(asked[0])

        station.look = look
        station.take(10)
        assert told == [(word, True)]
        assert station.desk.book.active is not None
        assert (station.desk.book.active.name == "new") == (not word)


@pytest.fixture
def three_files(tmp_path: Path) -> Path:
    """Make a folder of which the second file is broken."""
    folder = tmp_path / "files"
    folder.mkdir()
    for number in (1, 3):
        cv2.imwrite(str(folder / f"{number}.png"), np.full((8, 8), number, np.uint8))
    (folder / "2.png").write_text("no picture")
    return folder


def test_a_triggered_replay_answers_a_broken_file_and_its_end_at_once(
    tmp_path: Path, three_files: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody waits for a deadline when it is known that no picture comes; after the last file the run ends."""
    with closing(Station(tmp_path, driver="folder", folder=str(three_files), trigger="software", **PATIENT)) as station:
        station.begin()
        for number in range(4):
            station.desk.book.accept(f"t{number}", "")
        assert station.judge() == [0, 2]
        assert [row.reason for row in station.rows_at_the_end()] == ["", "no_image", "", "no_image"]
        assert station.health.missing == {"broken_file": 1}
        assert len([record for record in caplog.records if record.getMessage().startswith("skipped: ")]) == 1


def test_a_triggered_replay_ends_without_another_trigger(tmp_path: Path, three_files: Path) -> None:
    """Nothing more can come after the last file, whether it is asked for or not."""
    with closing(Station(tmp_path, driver="folder", folder=str(three_files), trigger="software", **PATIENT)) as station:
        station.begin()
        for number in range(3):
            station.desk.book.accept(f"t{number}", "")
        assert station.judge() == [0, 2]
        assert [row.reason for row in station.rows_at_the_end()] == ["", "no_image", ""]
