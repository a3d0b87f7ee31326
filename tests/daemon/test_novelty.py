"""The alarm that something new is on the belt: when it comes, when it goes, and that it outlives a restart."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import betabinom

from lineward.daemon.novelty import LOOK_BACK, RECENT, Novelty, rises

USUAL, NEW = 0.05, 0.5
"""Shares of parts that go to review."""


def answers(count: int, share: float, *, seed: int = 1, model: str = "a") -> list[tuple[str, str, str]]:
    reviews = np.random.default_rng(seed).random(count) < share
    return [(model, "review", "unlike_training") if review else (model, "pass", "") for review in reviews]


def watch(novelty: Novelty, rows: list[tuple[str, str, str]]) -> list[str]:
    """Return what was said after each answer."""
    said = []
    for row in rows:
        novelty.note(*row)
        said.append(novelty.text())
    return said


def test_many_more_reviews_than_before_are_said_within_sixty_parts() -> None:
    """Rule: soon after a new defect begins, the alarm says how many, before how many, and what to do."""
    novelty = Novelty()
    assert not any(watch(novelty, answers(300, USUAL)))
    text = next(text for text in watch(novelty, answers(RECENT, NEW)) if text)
    assert f"of {RECENT} parts went to review" in text
    assert "unlike anything in training; before, it was" in text
    assert "label some of them on the page Review and train a new model" in text


def test_few_parts_before_tell_little() -> None:
    """Rule: a share that is known from sixty parts must be exceeded by more than one that is known from thousands."""
    first = {before: next(n for n in range(RECENT) if rises(n, RECENT, before // 10, before)) for before in (60, 3000)}
    assert first[3000] == betabinom.isf(1e-6, RECENT, 301, 2701) + 1
    assert first[60] == betabinom.isf(1e-6, RECENT, 7, 55) + 1
    assert first[60] > first[3000] + 5


@pytest.mark.parametrize("share", [0.0, USUAL, 0.4])
def test_a_share_that_stays_is_nothing_new(share: float) -> None:
    """Rule: a line that has always sent so many parts to review raises no alarm in 5,000 parts."""
    assert not any(watch(Novelty(), answers(5000, share)))


def test_it_is_over_with_another_model_or_after_a_while() -> None:
    """Rule: a promoted model begins anew; without one the alarm ends when the share has long been usual again."""
    for rest, most in ((answers(1, 0.0, model="b"), 1), (answers(2 * LOOK_BACK, USUAL, seed=2), 2 * LOOK_BACK)):
        novelty = Novelty()
        watch(novelty, answers(300, USUAL) + answers(RECENT, NEW))
        assert novelty.text()
        said = watch(novelty, rest)
        assert said[-1] == ""
        assert len([text for text in said if text]) < most


def test_another_recipe_of_the_same_model_is_nothing_new() -> None:
    """Rule: stricter thresholds send more to review, and that is no new kind of defect."""
    novelty = Novelty()
    watch(novelty, answers(300, USUAL))
    novelty.begin_anew()
    assert not any(watch(novelty, answers(300, NEW)))


def test_parts_without_an_answer_say_nothing() -> None:
    """Rule: undecided parts, as while the camera is away, are neither usual nor new."""
    novelty = Novelty()
    watch(novelty, answers(300, USUAL))
    assert not any(watch(novelty, [("", "undecided", "no_image")] * 200))
    assert any(watch(novelty, answers(RECENT, NEW)))


def test_a_restart_forgets_nothing() -> None:
    """Rule: what the ledger knows of earlier parts counts after a restart, the alarm that was up too."""
    rows = answers(300, USUAL) + answers(RECENT, NEW) + answers(100, USUAL, seed=3)
    before, after = Novelty(), Novelty()
    watch(before, rows)
    after.recall(rows)
    assert "Perhaps a new kind of defect" in before.text()
    assert "Perhaps a new kind of defect" in after.text()
