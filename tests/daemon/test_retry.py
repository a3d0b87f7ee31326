from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from lineward.daemon.retry import LONGEST_S, PATIENT_S, SHORTEST_S, Outage, delay_s

if TYPE_CHECKING:
    import pytest

LOG = logging.getLogger("lineward.test")


@given(st.integers(-3, 10**9), st.sampled_from([OSError(), ConnectionRefusedError(), PermissionError()]))
def test_delay_stays_between_its_bounds(attempt: int, error: OSError) -> None:
    """Rule: however long an outage lasts, the next try comes within 2 s, 10 s after a refusal, never within 0.5 s."""
    assert SHORTEST_S <= delay_s(error, attempt) <= (PATIENT_S if isinstance(error, PermissionError) else LONGEST_S)


def test_delay_grows_and_a_refusal_is_patient_from_the_start() -> None:
    """A broker that is only restarting is back within a second; a wrong password does not hammer it."""
    upper = [delay_s(OSError(), attempt, jitter=lambda: 1.0) for attempt in range(1, 7)]
    assert upper == [1.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    assert delay_s(PermissionError(), 1, jitter=lambda: 0.0) == 5.0


def test_an_outage_warns_once_and_tells_its_length(caplog: pytest.LogCaptureFixture) -> None:
    """Trouble is one WARNING per outage, not one per try, and its end says how long it was."""
    now = [100.0]
    outage = Outage(LOG, "broker", clock=lambda: now[0])
    with caplog.at_level(logging.DEBUG, LOG.name):
        for _ in range(3):
            outage.failed("refused")
            now[0] += 2
        assert outage.active
        assert outage.failures == 3
        outage.over("12 results waiting")
        outage.over()
    levels = [record.levelname for record in caplog.records]
    assert levels == ["WARNING", "DEBUG", "DEBUG", "INFO"]
    assert caplog.messages[-1] == "broker: back after 6.0 s and 3 failures; 12 results waiting"
    assert (outage.active, outage.count, outage.total_s) == (False, 1, 6.0)


def test_an_outage_that_turns_out_to_need_a_hand_warns_again(caplog: pytest.LogCaptureFixture) -> None:
    """Rule: a broker that comes back with another password is told once, also when the outage began otherwise."""
    outage = Outage(LOG, "broker", clock=lambda: 7.0)
    with caplog.at_level(logging.DEBUG, LOG.name):
        for _ in range(2):
            outage.failed("connection lost", ConnectionError())
            outage.failed("not authorized", PermissionError())
            outage.failed("not authorized", PermissionError())
            outage.over()
    levels = [record.levelname for record in caplog.records]
    assert levels == ["WARNING", "WARNING", "DEBUG", "INFO"] * 2
    assert caplog.messages[1] == "broker: after 0.0 s: not authorized"
