"""The life of a camera connection as a table: which state may follow which, and on what."""

from __future__ import annotations

from enum import StrEnum


class Link(StrEnum):
    """Where a camera connection stands."""

    CLOSED = "closed"
    OPENING = "opening"
    CONFIGURED = "configured"  # open, settings written and read back
    STREAMING = "streaming"
    DEGRADED = "degraded"  # streaming, but frames are being lost
    LOST = "lost"  # gone, hung or refused; not closed yet
    BACKOFF = "backoff"  # closed, waits before the next try


class Step(StrEnum):
    """What can happen to a camera connection."""

    OPEN = "open"
    CONFIGURE = "configure"
    START = "start"
    LOSE_FRAMES = "lose_frames"
    RECOVER = "recover"
    FAIL = "fail"
    GIVE_UP = "give_up"  # the failed connection was closed
    CLOSE = "close"


_L, _S = Link, Step
LINK_TRANSITIONS: dict[Link, dict[Step, Link]] = {
    _L.CLOSED: {_S.OPEN: _L.OPENING, _S.CLOSE: _L.CLOSED},
    _L.OPENING: {_S.CONFIGURE: _L.CONFIGURED, _S.FAIL: _L.LOST, _S.CLOSE: _L.CLOSED},
    _L.CONFIGURED: {_S.START: _L.STREAMING, _S.FAIL: _L.LOST, _S.CLOSE: _L.CLOSED},
    _L.STREAMING: {_S.LOSE_FRAMES: _L.DEGRADED, _S.FAIL: _L.LOST, _S.CLOSE: _L.CLOSED},
    _L.DEGRADED: {
        _S.LOSE_FRAMES: _L.DEGRADED,
        _S.RECOVER: _L.STREAMING,
        _S.FAIL: _L.LOST,
        _S.CLOSE: _L.CLOSED,
    },
    _L.LOST: {_S.GIVE_UP: _L.BACKOFF, _S.CLOSE: _L.CLOSED},
    _L.BACKOFF: {_S.OPEN: _L.OPENING, _S.CLOSE: _L.CLOSED},
}


class WrongStepError(Exception):
    """A step that cannot happen in this state: a fault in our own logic, never swallowed."""

    def __init__(self, link: Link, step: Step) -> None:
        super().__init__(f"{step} cannot happen while the camera is {link}")
        self.link = link
        self.step = step


def follow(link: Link, step: Step) -> Link:
    """Return the state after a step; raises `WrongStepError` when the table has no such transition."""
    try:
        return LINK_TRANSITIONS[link][step]
    except KeyError:
        raise WrongStepError(link, step) from None
