"""Every frame that is not judged has its answer, is counted by cause, and is told once."""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from tests.daemon.desk import PASS, recipe
from tests.daemon.station import PATIENT, Station

from lineward.daemon import frames as frames_module
from lineward.daemon import lost_frames
from lineward.daemon.answers import Judgement
from lineward.daemon.clock import DeadlineClock
from lineward.daemon.recipes import Switch
from lineward.drivers.lifecycle import Link

if TYPE_CHECKING:
    from pathlib import Path


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


def test_answers_keep_their_order_when_the_judge_is_too_slow(tmp_path: Path) -> None:
    """Frames that can no longer be judged in time and frames that had to make room are answered in their turn."""
    faults = [f"drop@{at}:2" for at in range(15, 2000, 15)]
    with closing(Station(tmp_path, rate_hz=100.0, faults=faults, **PATIENT)) as station:
        station.desk.book.activate(recipe(deadline_ms=120))
        clock = DeadlineClock(station.desk.book, station.desk.answers)
        clock.start()
        for part in itertools.islice(station.source, 30):
            time.sleep(0.05)
            station.desk.answers.give(Judgement(part, PASS))
            station.desk.book.judged(part)
        clock.close()
        rows = list(station.desk.ledger.rows())
    ids = [row.frame_id for row in rows]
    assert ids == list(range(len(ids)))
    assert {"timeout", "queue_full", "no_image"} <= {row.reason for row in rows}


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
