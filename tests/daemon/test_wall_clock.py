from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lineward.daemon.wall_clock import STEP_S, TOLD_S, WallClock


@given(st.integers(-86_400, 86_400).filter(lambda step: abs(step) > STEP_S))
def test_a_clock_that_was_set_is_told_for_a_minute(step_s: int) -> None:
    """Rule: a step of the wall clock is told with its size and direction, and is over a minute later."""
    now = [50.0, 1e9]
    clock = WallClock(wall=lambda: now[1], monotonic=lambda: now[0])
    assert clock.trouble() == ""
    now[1] += step_s
    assert f"set {abs(step_s)} s {'ahead' if step_s > 0 else 'back'}" in clock.trouble()
    for each in (0, 1):
        now[each] += TOLD_S - 1
    assert clock.trouble()
    for each in (0, 1):
        now[each] += 2
    assert clock.trouble() == ""


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(-0.5, 0.5)), max_size=20))
def test_a_clock_that_is_steered_is_not_told(looks: list[tuple[float, float]]) -> None:
    """Rule: what a time service corrects in passing is no trouble, however often."""
    now = [50.0, 1e9]
    clock = WallClock(wall=lambda: now[1], monotonic=lambda: now[0])
    for passed_s, steered_s in looks:
        now[0] += passed_s
        now[1] += passed_s + steered_s
        assert clock.trouble() == ""
