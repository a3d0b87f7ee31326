"""Slow is not hung: which silence, and which standstill, ends a camera process. Time is a number here."""

import pytest

from lineward.drivers.vigil import BIRTH_S, ORDER_GRACE_S, Vigil

LIMIT_S = 2.0
JUST = 0.01


@pytest.fixture
def vigil():
    """A process that has beaten once, at 0 s."""
    made = Vigil(LIMIT_S, 0.0)
    made.beat(1, 0.0)
    return made


def beats(vigil, *, steps, since, until):
    """Beat five times a second; ``steps`` is how far the process gets between two beats."""
    now, count = since, 1
    while now < until:
        now, count = now + 0.2, count + steps
        vigil.beat(count, now)
    return now


def test_a_process_that_beats_and_gets_on_lives(vigil):
    """However long it streams."""
    now = beats(vigil, steps=1, since=0.0, until=3600.0)
    assert vigil.verdict(now) == ""


def test_a_native_call_that_keeps_the_lock_is_found_by_its_silence(vigil):
    """No thread of the camera process can beat meanwhile."""
    assert vigil.verdict(LIMIT_S - JUST) == ""
    assert vigil.verdict(LIMIT_S + JUST) == "gave no sign of life for 2 s"


def test_a_call_that_lets_go_of_the_lock_is_found_by_its_standstill(vigil):
    """The beat goes on, and says that nothing else does."""
    now = beats(vigil, steps=0, since=0.0, until=LIMIT_S + JUST)
    assert "gave no sign of life" in vigil.verdict(now)


def test_an_order_may_stand_still_a_little_longer_but_not_be_silent(vigil):
    """A step of an order may be several questions to a camera that answers at the third try."""
    vigil.order("configure", 10.0)
    now = beats(vigil, steps=0, since=10.0, until=10.0 + LIMIT_S + JUST)
    assert vigil.verdict(now) == ""
    now = beats(vigil, steps=0, since=now, until=10.0 + LIMIT_S + ORDER_GRACE_S + JUST)
    assert vigil.verdict(now) == "gave no sign of life for 3.5 s in 'configure'"
    vigil.order("start", 20.0)
    assert vigil.verdict(20.0 + LIMIT_S + JUST) == "gave no sign of life for 2 s in 'start'"


def test_any_number_of_slow_steps_is_no_hang(vigil):
    """A hundred registers of half a second each: the order takes a minute, and is waited for."""
    vigil.order("configure", 0.0)
    for register in range(100):
        now = 0.5 * register
        assert vigil.verdict(now) == ""
        vigil.beat(2 + register, now)


def test_a_phase_has_the_time_it_announced_and_then_no_more(vigil):
    """Searching for cameras takes seconds; what comes after it does not."""
    vigil.order("open", 0.0)
    vigil.phase("searching for cameras", 10.0, 30.0)
    assert vigil.verdict(10.0 - JUST) == ""
    assert vigil.verdict(10.0 + JUST) == "gave no sign of life for 10 s in 'open' while searching for cameras"
    vigil.moved(9.0)
    vigil.phase("", 0.0, 0.0)
    assert vigil.verdict(9.0 + LIMIT_S + JUST) == "gave no sign of life for 2 s in 'open'"


def test_a_phase_ends_with_its_order(vigil):
    """A driver that fails in the middle of its search leaves no longer limits behind."""
    vigil.order("open", 0.0)
    vigil.phase("searching for cameras", 10.0, 30.0)
    vigil.order("", 1.0)
    assert vigil.verdict(1.0 + LIMIT_S + JUST) != ""


def test_a_process_may_take_its_time_to_be_born():
    """An interpreter starts slowly from a cold disk; no camera code runs before the first beat."""
    unborn = Vigil(LIMIT_S, 0.0)
    unborn.order("open", 0.0)
    assert unborn.verdict(BIRTH_S - JUST) == ""
    assert unborn.verdict(BIRTH_S + JUST) != ""
    unborn.beat(0, BIRTH_S)
    assert unborn.verdict(BIRTH_S + LIMIT_S + JUST) != ""


def test_any_message_is_a_sign_of_progress(vigil):
    """Frames that come are proof enough."""
    vigil.moved(5.0)
    assert vigil.verdict(5.0 + LIMIT_S - JUST) == ""
