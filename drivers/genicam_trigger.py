"""Software triggers: which exposure answers which one, also when a frame comes later than anybody waited for it."""

from __future__ import annotations

import time
from typing import Any

from lineward.drivers import features


def latch_ns(nodes: Any) -> int | None:
    """Return the camera's own time in nanoseconds, or None when it does not tell."""
    latch, value = features.find(nodes, "TimestampLatch"), features.find(nodes, "TimestampLatchValue")
    if latch is None or value is None:
        return None
    latch.execute()
    return int(features.fresh(value)) or None


class Triggers:
    """Numbers the software triggers and tells their frames from those of triggers that were given up.

    A trigger is given up while its exposure may still run. Its frame comes, if it comes, at any moment until
    `late_until`; the next trigger waits for one or the other. Where the camera has a clock, a frame that comes even
    later is known by its time.
    """

    def __init__(self) -> None:
        self._number = 0
        self.outstanding: int | None = None
        """The trigger that waits for its frame."""
        self.owed = 0
        """Frames of given-up triggers that have not come."""
        self.late_until = 0.0
        """Monotonic time until which they may come."""
        self._given_at = 0.0
        self._since_ns: int | None = None  # on the camera's clock; frames from before belong to nobody

    def restart(self) -> None:
        """Forget all but the numbering: no frame from before a start is ever delivered."""
        self.outstanding, self.owed, self._since_ns = None, 0, None

    def give(self, since_ns: int | None) -> int:
        """Note a trigger as given; ``since_ns`` is a time on the camera's clock before it, if frames are still owed."""
        self._number += 1
        self.outstanding, self._given_at, self._since_ns = self._number, time.monotonic(), since_ns
        if since_ns is None:  # whatever comes now is taken for the answer
            self.owed = 0
        return self._number

    def give_up(self, longest_s: float) -> None:
        """Expect the frame of the outstanding trigger later, and throw it away then."""
        self.outstanding = None
        self.owed += 1
        self.late_until = max(self.late_until, self._given_at + longest_s)

    def came(self, number: int = 1) -> int:
        """Note frames that came while no trigger was outstanding; return how many of them were owed."""
        late = min(number, self.owed)
        self.owed -= late
        return late

    def is_late(self, device_ns: int | None) -> bool:
        """Tell whether a frame was exposed before the outstanding trigger, as one of those that are owed."""
        if not self.owed or self._since_ns is None or device_ns is None or device_ns >= self._since_ns:
            return False
        self.owed -= 1
        return True

    def answer(self) -> int | None:
        """Return the number of the trigger that a frame answers, or an incomplete one has used up."""
        answered, self.outstanding = self.outstanding, None
        return answered
