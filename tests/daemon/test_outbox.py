"""What the outbox remembers of answers that the PLC had before their turn in `result` came."""

from __future__ import annotations

import random

from lineward.daemon.outbox import Spans


def test_numbers_are_remembered_until_their_turn() -> None:
    """Rule: whichever numbers come, each is told apart from those that did not, in rising order."""
    for seed in range(200):
        draw = random.Random(seed)
        spans, known, asked = Spans(), set[int](), 0
        for number in range(1, 400):
            if draw.random() < 0.7:
                spans.add(number)
                known.add(number)
            while asked < number and draw.random() < 0.5:
                asked += draw.choice((1, 1, 1, 5))
                assert spans.take(asked) == (asked in known)
                known = {other for other in known if other > asked}


def test_a_day_of_told_answers_costs_no_more_than_one() -> None:
    """Rule: what a long backlog makes it remember does not grow with the parts that pass meanwhile."""
    spans = Spans()
    for number in range(5, 100_005):
        spans.add(number)
    assert len(spans) == 1
    assert not spans.take(4)
    assert all(spans.take(number) for number in range(5, 100_005))
    assert len(spans) == 0
    spans.add(200_000)
    spans.clear()
    assert not spans.take(200_000)
