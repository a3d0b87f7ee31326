"""Every frame gets exactly one answer, and nothing but a judgement in time is a pass."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from lineward.daemon.health import Alarms, Health
from lineward.daemon.ledger import Ledger
from lineward.daemon.loop import Station, draft_result, inspect
from lineward.daemon.publish import Endpoint, Publisher
from lineward.daemon.result import ModelRef
from lineward.daemon.review import ReviewStore
from lineward.drivers.camera import CameraInfo, Frame
from lineward.models.verdict import Decision, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CAMERA = CameraInfo(name="test", serial="T-1", driver="folder", realtime=True, simulated=True)
STATION = Station("bracket", ModelRef("bracket", "1", "ab"), CAMERA, deadline_ms=5000)
PASS = Verdict(Decision.PASS, "", 0.97, 0.03, 0.2, prepare_ms=1, infer_ms=2, decide_ms=3)


class Line:
    """The loop's partners, all real; the broker is simply not there."""

    def __init__(self, root: Path) -> None:
        self.ledger = Ledger(root)
        self.results = Publisher(
            Endpoint("127.0.0.1", 9, "loop-test"), "lineward/a/b/c", deadline_ms=200, ledger=self.ledger
        )
        self.troubles: list[str] = []
        self.review = ReviewStore(
            root, self.ledger, keep_per_hour=100, max_bytes=10**8, keep_fails=False, on_trouble=self.troubles.append
        )
        self.health = Health(root)
        self.alarms = Alarms()

    def inspect(self, frames: list[Frame], judge: Callable[..., Verdict], station: Station = STATION) -> None:
        inspect(
            frames,
            judge,
            station,
            ledger=self.ledger,
            results=self.results,
            review=self.review,
            health=self.health,
            alarms=self.alarms,
        )

    def rows(self) -> list[tuple[int, str, str, bool]]:
        return [(row.seq, row.verdict, row.reason, row.late) for row in self.ledger.rows()]


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    line = Line(tmp_path)
    yield line
    line.review.close()
    line.results.close()
    line.ledger.close()


def frame(frame_id: int = 1, *, age_s: float = 0.0) -> Frame:
    received_ns = time.monotonic_ns() - round(age_s * 1e9)
    return Frame(np.full((4, 4), frame_id, np.uint8), frame_id, received_ns, source=f"part {frame_id}")


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


def test_a_replay_has_no_deadline(line: Line) -> None:
    """Files wait in the ring for as long as it takes; their time starts when they are taken."""
    replay = replace(STATION, camera=replace(CAMERA, realtime=False))
    line.inspect([frame(0, age_s=6)], lambda _image: PASS, replay)
    assert line.rows() == [(1, "pass", "", False)]


def test_times_are_consistent() -> None:
    """Stages come from the verdict, totals run from the trigger, wall clock and monotonic clock agree."""
    result = draft_result(frame(3, age_s=0.1), PASS, STATION, time.monotonic_ns())
    assert (result.latency.prepare, result.latency.infer, result.latency.decide) == (1, 2, 3)
    assert 100 <= result.latency.grab <= result.latency.total
    assert result.deadline_unix_ns == result.trigger_unix_ns + 5_000_000_000
    answered_unix_ns = result.trigger_unix_ns + result.latency.total * 1e6
    assert answered_unix_ns == pytest.approx(result.published_unix_ns, abs=1e6)
    assert (result.part_id, result.camera.frame_id, result.simulated) == ("part 3", 3, True)
