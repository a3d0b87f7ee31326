"""What holds for every test."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from tests.broker import Subscriber

if TYPE_CHECKING:
    from collections.abc import Iterator


PRIORITY = os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)


@pytest.fixture(autouse=True)
def _nobody_stays_behind() -> Iterator[None]:
    """A training steps back behind the line; the tests after it, and their lines, must not stay there with it."""
    yield
    nice, policy = PRIORITY
    if (os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)) != PRIORITY:
        with suppress(PermissionError):  # only root may step forward again
            os.sched_setscheduler(0, policy, os.sched_param(0))
            os.setpriority(os.PRIO_PROCESS, 0, nice)


@pytest.fixture(autouse=True)
def _nobody_listens_on() -> Iterator[None]:
    """A test that failed leaves no client that tries to reach a broker for ever, beside the tests after it."""
    yield
    Subscriber.close_all()
