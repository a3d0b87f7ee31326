"""Frames that a camera process has put into shared memory and nobody has judged yet, in the order they came."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lineward.drivers.camera import Cause, Frame, NoFrame
from lineward.drivers.ring import Ring, RingShape

if TYPE_CHECKING:
    from collections.abc import Callable

    Place = tuple[int, int]
    """A slot, and the generation of the ring it is in."""

MAX_WAITING = 8
"""Frames that may wait for inspection; beyond, the oldest is given up and counted as `Cause.OVERRUN`. At 200 frames a
second this bridges 40 ms in which the machine gives us no processor."""


class Inbox:
    """Holds the rings, what waits in them, and what the caller looks at.

    Parameters
    ----------
    release
        Gives a place back to the camera process.
    """

    def __init__(self, release: Callable[[int, int], None]) -> None:
        self._release = release
        self._rings: dict[int, Ring] = {}
        self._queue: deque[tuple[Place, Frame] | NoFrame] = deque()  # in the order in which they were announced
        self._held: list[tuple[Place, Frame]] = []
        self._given_up: Counter[Cause] = Counter()  # lost since the last delivered frame
        self.lost: Counter[Cause] = Counter()
        """Frames given up here since the camera was opened, by cause."""

    def use_ring(self, fd: int, generation: int, slots: int, slot_bytes: int) -> None:
        """Take a new ring; frames in the old one stay valid."""
        for old in self._rings.values():
            old.close()
        self._rings = {generation: Ring(fd, RingShape(slots, slot_bytes), writable=False)}

    def put(self, place: Place, shape: tuple[int, ...], fields: tuple[Any, ...], *, bounded: bool) -> None:
        """Take a frame as it was announced; ``bounded`` unless it is a replay's, which waits for room."""
        slot, generation = place
        self._queue.append((place, Frame(self._rings[generation].view(slot, shape), *fields)))
        frames = [item for item in self._queue if not isinstance(item, NoFrame)] if bounded else []
        if len(frames) > MAX_WAITING:
            oldest, frame = frames[0]
            self._queue.remove(frames[0])
            self._given_up.update(frame.missing)
            self.lose(Cause.OVERRUN)
            self._release(*oldest)

    def lose(self, cause: Cause) -> None:
        """Count a frame that is given up on this side; the next one that is delivered tells it."""
        self.lost[cause] += 1
        self._given_up[cause] += 1

    def note(self, notice: NoFrame) -> None:
        """Take the news that a frame will not come; it is told after the frames before it and before those after."""
        self._queue.append(notice)

    def take(self) -> Frame | NoFrame | None:
        """Return the oldest frame, which the caller holds from now on, or a notice, or None."""
        if not self._queue:
            return None
        item = self._queue.popleft()
        if isinstance(item, NoFrame):
            return item
        place, frame = item
        if self._given_up:
            self._given_up.update(frame.missing)
            frame = replace(frame, missing=dict(self._given_up))
            self._given_up = Counter()
        self._held.append((place, frame))
        return frame

    def release(self, frame: Frame) -> None:
        """Give back a frame that the caller held; nothing if it was given back already."""
        for number, (place, held) in enumerate(self._held):
            if held is frame:
                del self._held[number]
                self._release(*place)
                return

    def release_held(self) -> None:
        """Give back all frames that the caller held."""
        while self._held:
            self._release(*self._held.pop(0)[0])

    def forget(self) -> int:
        """Drop all that waits and return how many frames that were; what was lost before them is told all the same."""
        frames = [item for item in self._queue if not isinstance(item, NoFrame)]
        self._queue.clear()
        for place, frame in frames:
            self._given_up.update(frame.missing)
            self._release(*place)
        self.release_held()
        return len(frames)

    def stop(self) -> None:
        """Drop all that waits, each frame of it as one that was lost; no frame will tell it, only `lost` does."""
        self.lost[Cause.STOPPED] += self.forget()
        self._given_up.clear()

    def close(self) -> None:
        """Drop all, the memory too, once nobody looks at it any more."""
        self.forget()
        for ring in self._rings.values():
            ring.close()
        self._rings.clear()
        self._given_up, self.lost = Counter(), Counter()
