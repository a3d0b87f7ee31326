"""The states a station can be in, in the words of OPC 40100-1, and the table of what may follow what."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class State(StrEnum):
    """Station states of OPC 40100-1."""

    PREOPERATIONAL = "preoperational"  # starting: no model yet
    HALTED = "halted"  # stopped on purpose
    ERROR = "error"  # cannot inspect; the reason says why
    INITIALIZED = "initialized"  # model loaded and warm, no camera yet
    READY = "ready"  # waiting for a trigger
    SINGLE_EXECUTION = "single_execution"  # one trigger in work
    CONTINUOUS_EXECUTION = "continuous_execution"  # the camera sets the pace


class Event(StrEnum):
    """What can happen to a station."""

    MODEL_READY = "model_ready"
    STREAMING = "streaming"  # camera delivers at its own pace
    ARMED = "armed"  # camera waits for triggers
    TRIGGERED = "triggered"
    ANSWERED = "answered"
    FAULT = "fault"
    STOP = "stop"


_S, _E = State, Event
TRANSITIONS: dict[State, dict[Event, State]] = {
    _S.PREOPERATIONAL: {_E.MODEL_READY: _S.INITIALIZED, _E.FAULT: _S.ERROR, _E.STOP: _S.HALTED},
    _S.INITIALIZED: {
        _E.STREAMING: _S.CONTINUOUS_EXECUTION,
        _E.ARMED: _S.READY,
        _E.FAULT: _S.ERROR,
        _E.STOP: _S.HALTED,
    },
    _S.READY: {_E.TRIGGERED: _S.SINGLE_EXECUTION, _E.FAULT: _S.ERROR, _E.STOP: _S.HALTED},
    _S.SINGLE_EXECUTION: {_E.ANSWERED: _S.READY, _E.FAULT: _S.ERROR, _E.STOP: _S.HALTED},
    _S.CONTINUOUS_EXECUTION: {_E.FAULT: _S.ERROR, _E.STOP: _S.HALTED},
    _S.ERROR: {
        _E.STREAMING: _S.CONTINUOUS_EXECUTION,
        _E.ARMED: _S.READY,
        _E.FAULT: _S.ERROR,
        _E.STOP: _S.HALTED,
    },
    _S.HALTED: {_E.STOP: _S.HALTED},
}


class WrongEventError(Exception):
    """An event that cannot happen in this state: a fault in our own logic, never swallowed."""

    def __init__(self, state: State, event: Event) -> None:
        super().__init__(f"{event} cannot happen in state {state}")
        self.state = state
        self.event = event


@dataclass(frozen=True, slots=True)
class Status:
    """A snapshot of the station: its state, why, and since when (nanoseconds since 1970, UTC)."""

    state: State
    reason: str
    since_unix_ns: int


class StateMachine:
    """Holds the status and tells one listener of each change. Called from the loop's thread only."""

    def __init__(self, on_change: Callable[[Status], None]) -> None:
        self._on_change = on_change
        self.status = Status(State.PREOPERATIONAL, "starting", time.time_ns())

    def handle(self, event: Event, reason: str = "") -> Status:
        """Follow the table; tell the listener when state or reason changed.

        Raises
        ------
        WrongEventError
            The table has no such transition.
        """
        try:
            state = TRANSITIONS[self.status.state][event]
        except KeyError:
            raise WrongEventError(self.status.state, event) from None
        if (state, reason) != (self.status.state, self.status.reason):
            self.status = Status(state, reason, time.time_ns())
            self._on_change(self.status)
        return self.status
