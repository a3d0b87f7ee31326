"""Watches over a camera process: tells one that hangs from one that is slow. Times are monotonic seconds.

Two signs are watched. A beat comes five times a second from a thread of its own: it stops while a native call holds
the interpreter lock. The progress that a beat carries stands still while a call hangs that has let go of the lock.

================ =============================== ==============================================================
while            the beat may be silent for      progress may stand still for
================ =============================== ==============================================================
streaming        ``limit_s``                     ``limit_s``
an order         ``limit_s``                     ``limit_s`` + `ORDER_GRACE_S`
a phase of it    what it announced, if longer    what it announced, if longer
process starts   `BIRTH_S`                       `BIRTH_S`
================ =============================== ==============================================================

With the 2 s of the configuration a call that never returns is found after 2 to 3.5 s; while a camera is opened after
`lineward.drivers.genicam.OPEN_SILENT_S`, and while producers are loaded and search for cameras after 10 s, because
that may take a producer seconds. Registers of half a second each are never cut off, however many there are.
"""

from __future__ import annotations

ORDER_GRACE_S = 1.5
"""A step of an order may be several accesses to a camera that answers each at its third try."""

BIRTH_S = 20.0
"""Until the first beat: an interpreter on a cold disk. No camera code runs before it."""


class Vigil:
    """The signs of life of one camera process.

    Parameters
    ----------
    limit_s
        Seconds without a sign of life after which it counts as hung.
    """

    def __init__(self, limit_s: float, now: float) -> None:
        self.limit_s = limit_s
        self._born = False
        self._heard_at = self._moved_at = now
        self._steps = -1
        self._order = ""
        self._phase = ("", 0.0, 0.0)

    def beat(self, steps: int, now: float) -> None:
        """Take a beat with the number of steps done."""
        self._born = True
        self._heard_at = now
        if steps != self._steps:
            self._steps, self._moved_at = steps, now

    def moved(self, now: float) -> None:
        """Take any other message: only a process that gets on sends one."""
        self._born = True
        self._heard_at = self._moved_at = now

    @property
    def waits(self) -> bool:
        """Say whether an order is being waited for."""
        return bool(self._order)

    def phase(self, doing: str, silent_s: float, still_s: float) -> None:
        """Take what the driver announces to be about to do."""
        self._phase = (doing, silent_s, still_s)

    def order(self, name: str, now: float) -> None:
        """Begin to wait for the answer to an order; an empty name ends it."""
        self._heard_at = self._moved_at = now
        self._order, self._phase = name, ("", 0.0, 0.0)

    def verdict(self, now: float) -> str:
        """Say why the process counts as hung, or nothing while it does not."""
        doing, silent_s, still_s = self._phase
        if not self._born:
            silent_s = still_s = BIRTH_S
        grace_s = ORDER_GRACE_S if self._order else 0.0
        limit_s = 0.0
        for since, allowed_s in (
            (self._heard_at, max(self.limit_s, silent_s)),
            (self._moved_at, max(self.limit_s + grace_s, still_s)),
        ):
            if now - since > allowed_s:
                limit_s = allowed_s
                break
        if not limit_s:
            return ""
        during = " while ".join(part for part in (self._order and f" in {self._order!r}", doing) if part)
        return f"gave no sign of life for {limit_s:g} s{during}"
