"""Notices that the machine's wall clock was set: answers do not depend on it, but the times in the ledger do."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

STEP_S = 1.0
"""A smaller change is what a time service does in passing."""
TOLD_S = 60.0


class WallClock:
    """Compares the wall clock with the monotonic one.

    Parameters
    ----------
    wall, monotonic
        Seconds.
    """

    def __init__(
        self, *, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._ahead_s = wall() - monotonic()
        self._told_until_s = float("-inf")
        self._text = ""

    def trouble(self) -> str:
        """Look again, and say for a minute that the clock was set, by how much and what to do; empty: it was not."""
        now = self._monotonic()
        ahead_s = self._wall() - now
        step_s = ahead_s - self._ahead_s
        self._ahead_s = ahead_s
        if abs(step_s) > STEP_S:
            self._told_until_s = now + TOLD_S
            self._text = (
                f"the clock of this machine was set {abs(step_s):.0f} s {'ahead' if step_s > 0 else 'back'}: answers "
                "are in time all the same, times in the ledger jump here; look at `timedatectl`, and let a time "
                "service keep the clock"
            )
        return self._text if now < self._told_until_s else ""
