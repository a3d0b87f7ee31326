"""When parts come faster than they can be judged, as many as possible get their verdict, and the rest an answer."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
from tests.daemon.desk import recipe

from lineward.daemon.triggers import MOST_ANNOUNCED, Part, TooManyError, TriggerBook
from lineward.drivers.camera import Frame

MS = 1_000_000


def overloaded(*, every_ms: int, judge_ms: int, deadline_ms: int, parts: int) -> tuple[int, int]:
    """Let triggers come at a pace, on a clock of our own; return how many were judged in time, how many too late."""
    now = [0]
    book = TriggerBook(lambda *_: 1, clock=lambda: now[0])
    book.activate(recipe(deadline_ms=deadline_ms))
    book.camera_up = True
    coming = [number * every_ms * MS for number in range(parts)]

    def let_come(until: int) -> None:
        while coming and coming[0] <= until:
            now[0] = coming.pop(0)
            book.accept("", "")
        now[0] = until
        for part in book.expired():
            book.claim(part)

    in_time = late = 0
    while True:
        part = book.next(0)
        if part is None and not coming:
            return in_time, late
        if part is None:
            let_come(coming[0])
            continue
        assert isinstance(part, Part)
        let_come(now[0] + judge_ms * MS)
        book.judged(part)
        if book.claim(part):
            in_time += 1
        else:
            late += 1


@pytest.mark.parametrize("every_ms", [20, 50, 67, 90])
@pytest.mark.parametrize("deadline_ms", [110, 130, 250, 500])
def test_under_overload_the_judge_is_not_wasted_on_parts_that_come_too_late(every_ms: int, deadline_ms: int) -> None:
    """At any overload nearly every judgement is in time: those without a chance are left to the deadline clock."""
    parts = 200
    in_time, late = overloaded(every_ms=every_ms, judge_ms=100, deadline_ms=deadline_ms, parts=parts)
    # Without time to wait, a part is judged only if it comes while the judge is free.
    possible = parts * every_ms / 100 if deadline_ms > 200 else parts / math.ceil(100 / every_ms)
    assert in_time >= 0.85 * possible
    assert late <= 1 + parts / 10  # before it is known how long a judgement takes, and now and then


def test_a_judge_that_became_quick_is_seen() -> None:
    """A judge that is too slow for the deadline is tried again and again, or nobody would see that it became quick."""
    in_time, late = overloaded(every_ms=400, judge_ms=300, deadline_ms=100, parts=100)
    assert in_time == 0
    assert 5 <= late <= 20


def test_parts_are_announced_without_holding_up_anybody() -> None:
    """Rule: while a list of part ids is written down, triggers and deadlines go on; a full book takes none of them."""
    free: list[bool] = []

    def note(*_trigger: object) -> int:
        def look() -> None:
            free.append(book.changed.acquire(timeout=1))
            if free[-1]:
                book.changed.release()

        other = threading.Thread(target=look)
        other.start()
        other.join()
        return len(free)

    book = TriggerBook(note)
    book.camera_up = True
    assert book.announce("t", [f"P{number}" for number in range(20)]) == []
    assert free == [True] * 20
    with pytest.raises(TooManyError):
        book.announce("t", ["Q"] * MOST_ANNOUNCED)
    assert len(free) == 20
    assert [book.missed(None).part_id for _ in range(20)] == [f"P{number}" for number in range(20)]


def test_a_lost_frame_before_a_changeover_belongs_to_the_recipe_of_then() -> None:
    """Rule: frames that were lost before another model came into force do not name it, nor do those behind them."""
    book = TriggerBook(lambda *_: 1)
    picture = np.zeros((4, 4), np.uint8)
    old, new = recipe(name="old"), recipe(name="new")
    book.activate(old)
    book.camera_up = True
    book.activate(new, since_ns=1_000)
    assert book.missed(7).recipe is old
    assert book.from_frame(Frame(picture, 8, 500)).recipe is old
    assert book.from_frame(Frame(picture, 9, 2_000)).recipe is new
    assert book.missed(10).recipe is new
