"""How long to wait before the next try, and how to speak about an outage: once when it begins, once when it is over."""

from __future__ import annotations

import random
import ssl
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

SHORTEST_S = 0.5
LONGEST_S = 2.0
"""What is back must not wait for us: parts go by."""
PATIENT_S = 10.0

# Time alone rarely cures these: somebody has to change a password, a certificate or the rights of a folder.
_NEEDS_A_HAND = (PermissionError, ssl.SSLError)


def delay_s(error: BaseException, attempt: int, *, jitter: Callable[[], float] = random.random) -> float:
    """Return the seconds to wait after a failed attempt.

    Parameters
    ----------
    error
        What the attempt failed with. A refusal (rights, password, certificate) waits 5 s to 10 s from the start.
    attempt
        1 after the first failure, one more for each further one.
    jitter
        Gives a number in 0..1: stations that lost the same broker must not all come back in the same moment.

    Returns
    -------
    float
        0.5 s to 2 s, the upper end first 1, then 2; after a refusal 5 s to 10 s.
    """
    longest = PATIENT_S if isinstance(error, _NEEDS_A_HAND) else min(LONGEST_S, float(max(attempt, 1)))
    return max(SHORTEST_S, longest * (0.5 + 0.5 * jitter()))


class Outage:
    """Tells about one kind of trouble: WARNING when it begins, DEBUG while it lasts, INFO when it is over.

    One that begins otherwise and turns out to need a hand (a password, rights) is a second WARNING.

    Parameters
    ----------
    logger
        Where the lines go.
    what
        The subject of the lines, as in "broker 10.0.0.5:1883".
    clock
        Monotonic seconds.
    """

    def __init__(self, logger: logging.Logger, what: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._what = what
        self._clock = clock
        self._began_s: float | None = None
        self._past_s = 0.0
        self._asked_for_a_hand = False
        self.failures = 0
        """Failures of the present outage; 0 when there is none."""
        self.count = 0
        """Outages since the start, the present one included."""

    @property
    def active(self) -> bool:
        """Whether an outage lasts."""
        return self._began_s is not None

    @property
    def lasted_s(self) -> float:
        """Seconds since the present outage began; 0 when there is none."""
        return 0.0 if self._began_s is None else self._clock() - self._began_s

    @property
    def total_s(self) -> float:
        """Seconds of all outages together, the present one included."""
        return self._past_s + self.lasted_s

    def failed(self, reason: object, error: BaseException | None = None) -> None:
        """Count a failure and say why: the first of an outage as WARNING, the others as DEBUG.

        ``error`` tells whether somebody has to act: the first such failure is a WARNING as well.
        """
        self.failures += 1
        by_hand = isinstance(error, _NEEDS_A_HAND) and not self._asked_for_a_hand
        self._asked_for_a_hand = self._asked_for_a_hand or by_hand
        if self._began_s is None:
            self._began_s = self._clock()
            self.count += 1
            self._logger.warning("%s: %s", self._what, reason)
        elif by_hand:
            self._logger.warning("%s: after %.1f s: %s", self._what, self.lasted_s, reason)
        else:
            self._logger.debug("%s: still in trouble after %.1f s: %s", self._what, self.lasted_s, reason)

    def over(self, note: str = "") -> None:
        """Say that the outage is over, how long it was and how many failures it had; nothing when there was none."""
        if self._began_s is None:
            return
        tail = f"; {note}" if note else ""
        failures = "1 failure" if self.failures == 1 else f"{self.failures} failures"
        self._logger.info("%s: back after %.1f s and %s%s", self._what, self.lasted_s, failures, tail)
        self._past_s += self.lasted_s
        self._began_s = None
        self._asked_for_a_hand = False
        self.failures = 0
