"""Frames keep coming whatever the camera does."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from tests.daemon.desk import PASS, recipe
from tests.daemon.station import Station

from lineward.daemon import frames as frames_module
from lineward.daemon.answers import Judgement
from lineward.daemon.clock import DeadlineClock
from lineward.daemon.recipes import Switch
from lineward.daemon.states import State
from lineward.daemon.triggers import Stage
from lineward.drivers.camera import CameraSettingError
from lineward.drivers.lifecycle import LINK_TRANSITIONS, Link, Step, WrongStepError, follow

if TYPE_CHECKING:
    from pathlib import Path


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
    with closing(Station(tmp_path, rate_hz=30.0, faults=["stall@20:0.5s"])) as station:
        station.take(40)
        assert station.health.camera_openings == 1
    silent = {"silent_s": 0.5, "faults": ["stall@20:60s"], "memory": None}
    with closing(Station(tmp_path / "other", rate_hz=30.0, **silent)) as station:
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


def test_pictures_with_new_settings_are_never_judged_by_the_old_recipe(tmp_path: Path) -> None:
    """Rule: a loop that is held up just after the camera began again gives its pictures to the new recipe."""
    old, new = {"ExposureTime": 1000.0}, recipe(name="new", product="new", settings={"ExposureTime": 2000.0})
    with closing(Station(tmp_path, settings=old, silence_limit_s=20, rate_hz=100.0)) as station:
        station.begin()
        start, began = station.camera.start, list[int]()

        def start_and_be_held_up() -> None:
            start()
            began.append(time.monotonic_ns())
            time.sleep(0.2)

        station.camera.start = start_and_be_held_up  # type: ignore[method-assign]
        recipes = []
        for count, part in enumerate(station.parts):
            station.desk.answers.give(Judgement(part, PASS))
            if count == 10:
                station.desk.book.post(Switch(new, lambda _word, _text: None))
            if began and part.frame is not None and part.frame.received_ns > began[0]:
                recipes.append(None if part.recipe is None else part.recipe.name)
            if len(recipes) == 25:
                break
    assert recipes == ["new"] * 25


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
