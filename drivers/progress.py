"""How far a driver has got within one call, so that a call that hangs is told from one that is only slow.

A native call that never returns either keeps the interpreter lock (harvesters, in every register access), and then no
thread of the camera process can give a sign of life; or it lets go of the lock (Aravis, `time.sleep`), and then signs
of life go on while this count stands still. The inspection process watches both: see `lineward.drivers.vigil`.

Drivers call `step` between native calls, and put a `phase` around what is known to take longer than a register
access. Outside a camera process nobody listens and both cost nothing.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Listener = Callable[[str, float, float], None]


class _Progress:
    """The camera process has one driver in one thread, hence one count."""

    def __init__(self) -> None:
        self.steps = 0
        self.listener: Listener | None = None


_own = _Progress()


def step() -> None:
    """Note that a call gets on: something between two native calls was reached."""
    _own.steps += 1


def steps() -> int:
    """Return how often something was noted."""
    return _own.steps


@contextmanager
def phase(doing: str, *, silent_s: float = 0.0, still_s: float = 0.0) -> Iterator[None]:
    """Announce what is begun and how long it may take beyond what any call may; phases are not nested.

    Parameters
    ----------
    doing
        For the message, should it hang.
    silent_s
        Seconds that one native call may keep the interpreter lock.
    still_s
        Seconds without a `step`.
    """
    announce(doing, silent_s, still_s)
    try:
        yield
    finally:
        announce("", 0.0, 0.0)


def announce(doing: str, silent_s: float, still_s: float) -> None:
    """Tell the listener what is begun."""
    step()
    if _own.listener is not None:
        _own.listener(doing, silent_s, still_s)


def listen(listener: Listener | None) -> None:
    """Let the camera process hear of each `phase`: what is done, ``silent_s``, ``still_s``; zeros when it is over."""
    _own.listener = listener
