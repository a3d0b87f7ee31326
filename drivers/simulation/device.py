"""What a simulated camera keeps to itself: its clock, its memory, and the rhythm in which parts pass."""

from __future__ import annotations

import mmap
import struct
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path


class DeviceClock:
    """A clock of its own, as in a real camera: another start, and some millionths faster or slower."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 0xC10C])
        self._offset_ns = int(rng.integers(10**12, 10**15))
        self._drift = float(rng.uniform(-30e-6, 30e-6))

    def at(self, monotonic_ns: int) -> int:
        """Device time in nanoseconds at a moment of the host's monotonic clock."""
        return self._offset_ns + monotonic_ns + round(monotonic_ns * self._drift)


class DeviceMemory:
    """What outlives the program that uses the camera: the frame counter, faults already met, how long it is unplugged.

    Parameters
    ----------
    file
        Where to keep it. A camera process that is started anew on the same file continues where the dead one stopped.
        None keeps it as long as this object lives.
    """

    _FORM = struct.Struct("<8s3q")
    _MAGIC = b"LWSIM\0\0\1"

    def __init__(self, file: Path | None) -> None:
        self._buffer: mmap.mmap | bytearray = bytearray(self._FORM.size)
        self.used = False
        if file is None:
            return
        with file.open("a+b") as handle:
            handle.truncate(self._FORM.size)
            self._buffer = mmap.mmap(handle.fileno(), self._FORM.size)
        self.used = self._FORM.unpack_from(self._buffer)[0] == self._MAGIC

    def read(self) -> tuple[int, int, int]:
        """Next frame index, number of single faults met, and when it is plugged in again (`time.time_ns`)."""
        _, index, met, back_ns = self._FORM.unpack_from(self._buffer)
        return index, met, back_ns

    def write(self, index: int, met: int, back_ns: int) -> None:
        """Keep the three values of `read`."""
        self._FORM.pack_into(self._buffer, 0, self._MAGIC, index, met, back_ns)


class Rhythm:
    """When each frame's exposure starts while nobody asks for one: a fixed rate, or parts on a belt.

    Parameters
    ----------
    first
        Index of the frame exposed at ``start_ns``.
    period_ns
        Mean time between two frames.
    jitter
        Share of the period by which a part may come early or late; below 0.5, so that parts keep their order.
    """

    def __init__(self, first: int, start_ns: int, period_ns: int, *, jitter: float, seed: int) -> None:
        self._first, self._start_ns, self._period_ns = first, start_ns, period_ns
        self._jitter, self._seed = jitter, seed

    def starts_ns(self, index: int) -> int:
        """Start of exposure of a frame on the monotonic clock."""
        return self._start_ns + (index - self._first) * self._period_ns + self._early_or_late_ns(index)

    def newest(self, now_ns: int) -> int:
        """Find the latest frame whose exposure started by now; one before the first when there is none."""
        guess = self._first + (now_ns - self._start_ns) // self._period_ns + 1
        while guess >= self._first and self.starts_ns(guess) > now_ns:
            guess -= 1
        return max(guess, self._first - 1)

    def pause(self, pause_ns: int) -> None:
        """Let everything from now on come later."""
        self._start_ns += pause_ns

    def _early_or_late_ns(self, index: int) -> int:
        if not self._jitter:
            return 0
        # A multiplicative hash: a random generator per frame would cost more than the frame's bookkeeping.
        mixed = ((index + 1) * 0x9E3779B97F4A7C15 ^ (self._seed + 1) * 0xD6E8FEB86659FD93) & (2**64 - 1)
        mixed = (mixed ^ (mixed >> 29)) * 0xBF58476D1CE4E5B9 & (2**64 - 1)
        return round(((mixed >> 11) / 2**53 * 2 - 1) * self._jitter * self._period_ns)
