"""Until when an answer may reach a PLC. Reckoned from measured durations: a stepping wall clock changes nothing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lineward.daemon.result import Result


class Freshness:
    """Knows how long answers are useful.

    Parameters
    ----------
    deadline_s
        From trigger to answer, for answers that do not say it themselves.
    """

    def __init__(self, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        self._late_after_s = max(5.0, 2 * deadline_s)

    def allowed_s(self, result: Result) -> float:
        """Return how long this part's answer may take: recipes differ."""
        if result.deadline_unix_ns is None:
            return self.deadline_s
        return (result.deadline_unix_ns - result.trigger_unix_ns) / 1e9

    def useful_until_s(self, result: Result) -> float:
        """Return the monotonic time after which a PLC must not see this answer any more.

        A pass is good until its deadline; any other answer keeps the part back and may come up to one deadline after
        it was handed over.
        """
        now = time.monotonic()
        if result.verdict == "undecided":
            return now + self.allowed_s(result)
        if result.late:
            return now - 1  # this part has been answered with a time-out
        if result.deadline_unix_ns is None:
            return now + self._late_after_s
        spent_s = result.latency.total / 1000 if result.verdict == "pass" else 0.0
        return now + self.allowed_s(result) - spent_s
