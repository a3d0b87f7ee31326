"""Station states follow the table and nothing else."""

from __future__ import annotations

import itertools

import pytest

from lineward.daemon.states import TRANSITIONS, Event, State, StateMachine, Status, WrongEventError


def machine_in(state: State) -> StateMachine:
    machine = StateMachine(lambda _status: None)
    machine.status = Status(state, "", 0)
    return machine


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_what_the_table_does_not_allow_raises(state: State, event: Event) -> None:
    """Every pair of state and event is either in the table or a loud error that changes nothing."""
    machine = machine_in(state)
    if event in TRANSITIONS[state]:
        assert machine.handle(event).state is TRANSITIONS[state][event]
    else:
        with pytest.raises(WrongEventError, match=f"{event}.*{state}"):
            machine.handle(event)
        assert machine.status.state is state


def test_a_station_can_be_stopped_from_everywhere_and_stays_stopped() -> None:
    """SIGTERM may come at any time, twice."""
    for state in State:
        assert TRANSITIONS[state][Event.STOP] is State.HALTED
    assert set(TRANSITIONS[State.HALTED]) == {Event.STOP}


def test_only_a_station_with_model_and_camera_inspects() -> None:
    """There is no way from preoperational into execution that leaves out the model."""
    inspecting = {State.READY, State.CONTINUOUS_EXECUTION, State.SINGLE_EXECUTION}
    assert not inspecting & set(TRANSITIONS[State.PREOPERATIONAL].values())


def test_the_listener_hears_each_change_once() -> None:
    """Saying the same again is no change: the retained topic is not written for nothing."""
    heard: list[tuple[State, str]] = []
    machine = StateMachine(lambda status: heard.append((status.state, status.reason)))
    machine.handle(Event.MODEL_READY)
    machine.handle(Event.STREAMING)
    machine.handle(Event.FAULT, "camera_lost")
    machine.handle(Event.FAULT, "camera_lost")
    machine.handle(Event.FAULT, "no_model")
    machine.handle(Event.STREAMING)
    assert heard == [
        (State.INITIALIZED, ""),
        (State.CONTINUOUS_EXECUTION, ""),
        (State.ERROR, "camera_lost"),
        (State.ERROR, "no_model"),
        (State.CONTINUOUS_EXECUTION, ""),
    ]
