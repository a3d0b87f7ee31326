"""How memory is asked for: sparingly where a process runs for years, once and for all where it trains and ends."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX = -1, -2, -3, -4
"""What may be set, from glibc's malloc.h."""

LARGE_BYTES = 262_144
"""Blocks from this size on go back to the system when they are freed.

glibc raises its threshold to the largest block that was ever freed, up to 32 MiB; from then on the weights of each
model leave holes that the next one does not fit. 60 models loaded one after the other: 194 to 376 MB as glibc does it,
171 to 182 MB with this; trimming after each load keeps less and stalls every other thread for up to 29 ms.
"""

AHEAD_BYTES = 64 * 2**20
"""What a training asks the system for at once."""


def keep_flat() -> None:
    """Set the threshold once, at the start of a process; does nothing where the C library has none."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, LARGE_BYTES)


def keep_freed() -> None:
    """Keep what is freed for what is needed next, in a process that tunes a network and then ends.

    A step of tuning frees and asks for a gigabyte in blocks that glibc hands back to the system each time, which then
    clears every page of them anew. On a virtual machine, where that is dear, a step of 32 images at 320 px took 2.5 to
    3.3 s as glibc does it and 1.9 to 2.0 s with this. Not for the quick tier: it gains little, and needs 750 MB
    instead of 650.
    """
    with suppress(OSError, AttributeError):
        c = ctypes.CDLL(None)
        for option, value in ((MMAP_MAX, 0), (TRIM_THRESHOLD, 2**31 - 1), (TOP_PAD, AHEAD_BYTES)):
            c.mallopt(option, value)


def settle() -> None:
    """Leave what a started service consists of out of Python's search for cycles, which stops every thread.

    A whole search takes 40 ms with the 50,000 objects of a station that is ready, and 2 us with what comes after them.
    """
    gc.collect()
    gc.freeze()
