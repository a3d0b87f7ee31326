"""Every frame gets exactly one answer, and nothing but a judgement in time is a pass."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.daemon.desk import CAMERA, PASS, Desk, frame, recipe

from lineward.daemon.answers import draft_result
from lineward.daemon.loop import inspect
from lineward.models.verdict import Decision, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy as np

    from lineward.drivers.camera import Frame


class Line(Desk):
    """A loop over frames that are already there."""

    def inspect(self, frames: list[Frame], judge: Callable[..., Verdict]) -> None:
        self.book.activate(recipe(judge))
        parts = (self.book.from_frame(each) for each in frames)
        inspect(parts, self.answers, review=self.review, heart=self.results, alarms=self.alarms)


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    with closing(Line(tmp_path)) as line:
        yield line


def test_every_frame_has_one_row_in_order_whatever_the_verdict(line: Line) -> None:
    """Answers are numbered without a gap, and health counts the same."""
    verdicts = [PASS, replace(PASS, decision=Decision.FAIL), replace(PASS, decision=Decision.REVIEW, reason="x")]
    line.inspect([frame(i) for i in range(9)], lambda image: verdicts[int(image[0, 0]) % 3])
    assert [row[:2] for row in line.rows()] == [(i + 1, ("pass", "fail", "review")[i % 3]) for i in range(9)]
    assert line.health.verdicts == {"pass": 3, "fail": 3, "review": 3}
    line.review.close()
    assert line.review.kept == 3


def test_a_judge_that_fails_makes_the_part_undecided_and_the_line_goes_on(line: Line) -> None:
    """One alarm while it lasts, cleared by the next judgement; never a pass."""

    def judge(image: np.ndarray) -> Verdict:
        if image[0, 0] in (1, 2):
            raise RuntimeError("ONNX Runtime fell over")
        return PASS

    raised = []
    line.alarms.on_change = lambda alarms: raised.append(alarms["model"]["raised"])
    line.inspect([frame(i) for i in range(4)], judge)
    assert [row[1:3] for row in line.rows()] == [
        ("pass", ""),
        ("undecided", "error"),
        ("undecided", "error"),
        ("pass", ""),
    ]
    assert raised == [True, False]


def test_a_verdict_after_the_deadline_is_undecided_and_late(line: Line) -> None:
    """The line did not wait: a late pass must not let a part through."""
    line.inspect([frame(0), frame(1, age_s=6)], lambda _image: PASS)
    assert line.rows() == [(1, "pass", "", False), (2, "undecided", "timeout", True)]


def test_a_replay_has_no_deadline(tmp_path: Path) -> None:
    """Files wait in the ring for as long as it takes; their time starts when they are taken."""
    with closing(Line(tmp_path, camera=replace(CAMERA, realtime=False))) as line:
        line.inspect([frame(0, age_s=6)], lambda _image: PASS)
        assert line.rows() == [(1, "pass", "", False)]


def test_times_are_consistent(line: Line) -> None:
    """Stages come from the verdict, totals run from the trigger, wall clock and monotonic clock agree."""
    line.book.activate(recipe())
    part = line.book.from_frame(frame(3, age_s=0.1))
    assert line.book.turn(part)
    result = draft_result(part, PASS, CAMERA, time.monotonic_ns())
    assert (result.latency.prepare, result.latency.infer, result.latency.decide) == (1, 2, 3)
    assert 100 <= result.latency.grab <= result.latency.total
    assert result.deadline_unix_ns == result.trigger_unix_ns + 5_000_000_000
    answered_unix_ns = result.trigger_unix_ns + result.latency.total * 1e6
    assert answered_unix_ns == pytest.approx(result.published_unix_ns, abs=1e6)
    assert (result.part_id, result.camera.frame_id, result.simulated) == ("part 3", 3, True)
