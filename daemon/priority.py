"""Work that must not disturb the line beside it."""

from __future__ import annotations

import os
from contextlib import suppress


def step_back() -> None:
    """Let everything else on this machine go first, for as long as this process lives; disk by way of `ionice`."""
    with suppress(OSError):
        os.nice(19)
    with suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
