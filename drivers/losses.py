"""What was lost between two frames, each under one cause: frame numbers that jump, wrap or start over."""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lineward.drivers.camera import Cause

_WRAP_16 = 0x10000
_HALF = 0x8000


class FrameIds:
    """Follows a camera's frame number through its wraps.

    A number of at most 16 bits that falls by more than half its range has wrapped. One that falls by less, or does not
    move, was set back by the camera: counting goes on from there and nothing is taken for lost.

    Parameters
    ----------
    skips_zero
        GigE Vision 1.x block ids run from 1 to 65535: 0 is reserved.
    """

    def __init__(self, *, skips_zero: bool = False) -> None:
        self._range = _WRAP_16 - 1 if skips_zero else _WRAP_16
        self._raw: int | None = None
        self._id = 0

    def follow(self, raw: int | None) -> tuple[int, int]:
        """Take the number of the frame that came; return it unwrapped, and how many were skipped before it.

        None stands for a camera that does not number its frames: they count from 1 and none is ever missing.
        """
        if raw is None:
            self._id += 1
            return self._id, 0
        if self._raw is None:
            self._raw = self._id = raw
            return raw, 0
        step = raw - self._raw
        if step < -_HALF and self._raw < _WRAP_16:
            step += self._range
        if step <= 0:
            step = 1
        self._raw = raw
        self._id += step
        return self._id, step - 1


class Underruns:
    """Finds the place of losses that the producer only counts: frames that found no buffer to be written to.

    When the count rises, the frames that wait are older than those it speaks of. These are told with the frame whose
    number shows the gap. Where no gap follows, because the camera does not number its frames or numbers only those
    that are delivered, they are told with the first frame that can have been exposed after them.
    """

    def __init__(self, total: int = 0) -> None:
        self._total = total
        self._open: deque[list[int]] = deque()  # [frames lost, frames that may come before their gap]
        self._counts = False
        self._full = 0  # frames that may come before the gap of a full queue

    def suspect(self, waiting: int) -> None:
        """Note that every buffer waits: some producers, viky is one, offer the count and leave it at 0."""
        if not self._counts:
            self._full = waiting + 1

    def note(self, total: int, waiting: int) -> None:
        """Take the producer's count, read before ``waiting`` filled buffers were counted."""
        if total > self._total:
            self._open.append([total - self._total, waiting + 1])
            self._counts = True
        self._total = total

    def follow(self, skipped: int) -> tuple[int, int]:
        """Take the frame numbers skipped before a frame; return how many of them, and how many more, are underruns."""
        explained = 0
        while self._open and explained < skipped:
            taken = min(self._open[0][0], skipped - explained)
            explained += taken
            self._open[0][0] -= taken
            if not self._open[0][0]:
                self._open.popleft()
        unnumbered = 0
        while self._open and not self._open[0][1]:
            unnumbered += self._open.popleft()[0]
        for entry in self._open:
            entry[1] = max(0, entry[1] - 1)
        if self._full and not self._counts:
            explained = skipped
            self._full = 0 if skipped else self._full - 1
        return explained, unnumbered


class Losses:
    """Counts lost frames, in total and since the last whole frame, so that each loss is told once and under one cause.

    Some losses are known before the frame number shows them: an incomplete frame is announced by itself, and the next
    frame then skips its number. `lose` takes the first, `skip` the second, and does not count it again.
    """

    def __init__(self) -> None:
        self.total: Counter[Cause] = Counter()
        self._since: Counter[Cause] = Counter()
        self._announced = 0

    def lose(self, cause: Cause, number: int = 1, *, numbered: bool = False) -> None:
        """Count losses of a known cause; ``numbered`` when their frame numbers were followed."""
        if number > 0:
            self.total[cause] += number
            self._since[cause] += number
            self._announced += 0 if numbered else number

    def unexplained(self, skipped: int) -> int:
        """Return how many of the numbers skipped before a frame `lose` has not explained.

        Called for every frame with a number, the first one and those without a gap too: what was announced before it
        explains no later gap.
        """
        rest, self._announced = max(0, skipped - self._announced), 0
        return rest

    def skip(self, number: int, cause: Cause) -> None:
        """Count skipped frame numbers under ``cause``, less those that `lose` has already explained."""
        self.lose(cause, self.unexplained(number), numbered=True)

    def settle(self) -> dict[Cause, int]:
        """Return what was lost since the last whole frame, and begin anew."""
        since, self._since, self._announced = dict(self._since), Counter(), 0
        return since
