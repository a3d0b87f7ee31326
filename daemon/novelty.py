"""Something new on the belt: many more parts than before go to review, and the model itself cannot say why.

A new kind of defect, another material, a process that has changed. Chance alone does this once in a million looks.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

RECENT, BEFORE = 60, 3000
"""Parts among which something new is looked for, and those before them that say what is usual."""

LOOK_BACK = 1200
"""So many parts after the last sign it stays said, unless another model judges by then."""

REMEMBERED = RECENT + BEFORE
NEWEST = "SELECT model_sha256, verdict, reason FROM results WHERE verdict != 'undecided' ORDER BY seq DESC LIMIT ?"
"""The answers, newest first, that `Novelty.recall` is for."""


class Novelty:
    """Watches how many parts of one model go to review. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begin("")

    def _begin(self, model: str) -> None:
        self._model = model
        self._recent: deque[tuple[int, int]] = deque()  # went to review, was unlike anything in training
        self._before: deque[int] = deque()
        self._reviews = self._unlike = self._reviews_before = 0
        self._text, self._parts_since = "", 0

    def begin_anew(self) -> None:
        """Forget what was usual: another recipe asks for a person at other scores."""
        with self._lock:
            self._begin(self._model)

    def recall(self, rows: Iterable[tuple[str, str, str]]) -> None:
        """Take in model, verdict and reason of earlier answers, oldest first, as after a restart."""
        for number, row in enumerate(rows):
            self.note(*row)
            if number % (RECENT // 3) == 0:
                self.text()

    def note(self, model: str, verdict: str, reason: str) -> None:
        """Take in one answer; another model begins anew."""
        if verdict == "undecided":
            return
        with self._lock:
            if model != self._model:
                self._begin(model)
            review, unlike = int(verdict == "review"), int(reason == "unlike_training")
            self._recent.append((review, unlike))
            self._reviews += review
            self._unlike += unlike
            self._parts_since += 1
            if len(self._recent) > RECENT:
                old, old_unlike = self._recent.popleft()
                self._reviews -= old
                self._unlike -= old_unlike
                self._before.append(old)
                self._reviews_before += old
                if len(self._before) > BEFORE:
                    self._reviews_before -= self._before.popleft()

    def text(self) -> str:
        """Say what is new and what to do, empty when nothing is."""
        with self._lock:
            if rises(self._reviews, len(self._recent), self._reviews_before, len(self._before)):
                self._text = self._text or in_words(
                    self._reviews, self._unlike, self._reviews_before, len(self._before)
                )
                self._parts_since = 0
            elif self._parts_since > LOOK_BACK:
                self._text = ""
            return self._text


def rises(now: int, of_now: int, before: int, of_before: int) -> bool:
    """Tell whether a count is so much higher than before that chance does this once in a million looks or less.

    What the share was before is known only as well as so many parts tell it: the count is beta-binomial.
    """
    if of_now < RECENT or of_before < RECENT:
        return False
    reviews, others = before + 1, of_before - before + 1
    whole = _log_beta(reviews, others)
    tail = (
        math.comb(of_now, n) * math.exp(_log_beta(n + reviews, of_now - n + others) - whole)
        for n in range(now, of_now + 1)
    )
    return sum(tail) < 1e-6


def _log_beta(a: int, b: int) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def in_words(now: int, unlike: int, before: int, of_before: int, ago: str = "") -> str:
    """Say how many parts went to review, and what to do about it."""
    return (
        f"{now} of {RECENT} parts{ago} went to review, {unlike} of them unlike anything in training; before, it was "
        f"{before} of {of_before}. Perhaps a new kind of defect: label some of them on the page Review and train a "
        "new model"
    )
