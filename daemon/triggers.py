"""Parts on their way through the station: what was asked for, in which order, until when, and whether it was answered.

Nothing here looks at a picture or talks to anybody. One lock guards it all, and time comes from a monotonic clock that
tests replace.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lineward.daemon.recipes import ActiveRecipe, Switch
    from lineward.drivers.camera import Frame

ROOM = 64
"""Triggers that may wait; the next one is answered `undecided/queue_full` at once."""

MOST_ANNOUNCED = 1000
"""Part ids that may wait for their frame."""

MARGIN_NS = 2_000_000
"""The time-out of a part is answered so long before its deadline, to be on the wire by then."""


MOST_SKIPPED = 10
"""Parts in a row that are not judged because their time would be over before; see `TriggerBook`."""


class Reason(StrEnum):
    """Why a part is undecided."""

    TIMEOUT = "timeout"  # not judged in time
    NO_IMAGE = "no_image"  # the camera sent no picture of it
    INCOMPLETE = "incomplete"  # the picture was damaged on the way
    CAMERA_LOST = "camera_lost"
    NO_MODEL = "no_model"
    QUEUE_FULL = "queue_full"  # parts come faster than they are judged
    ERROR = "error"  # the judge failed, or the program was killed meanwhile
    WRONG_PRODUCT = "wrong_product"  # another recipe is in force, or the picture shows another product


class Stage(StrEnum):
    """How far a part has come."""

    WAITING = "waiting"  # for its turn
    EXPOSING = "exposing"  # for its picture
    JUDGING = "judging"


class TooManyError(Exception):
    """No room for so many part ids; the message says how many there is room for."""


@dataclass(eq=False, slots=True)
class Part:
    """One part and the one answer it will get.

    Attributes
    ----------
    trigger_no
        Number in the ledger of what was asked for, or None when the frame itself is the trigger.
    given_ns, deadline_ns
        Monotonic; no deadline in a replay, where nobody waits.
    recipe
        In force when the part came; None before the first model is loaded.
    frame
        The picture of this part and of no other.
    seq
        Number of the answer, once it is given.
    """

    part_id: str
    trigger_id: str
    given_ns: int
    deadline_ns: int | None
    recipe: ActiveRecipe | None
    trigger_no: int | None = None
    frame: Frame | None = None
    frame_id: int | None = None
    stage: Stage = Stage.WAITING
    taken_ns: int = 0
    seq: int | None = None


@dataclass(frozen=True, slots=True)
class Announced:
    """A part id that waits for the next frame."""

    trigger_no: int
    trigger_id: str
    part_id: str


class TriggerBook:
    """Who waits for an answer. Any thread may call.

    Parameters
    ----------
    note
        Writes down a trigger before it is accepted and returns its number: trigger id, part id, source, deadline in
        seconds or None.
    realtime
        False for a replay: its parts have no deadline.
    clock
        Monotonic nanoseconds.
    """

    def __init__(
        self,
        note: Callable[[str, str, str, float | None], int],
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        room: int = ROOM,
    ) -> None:
        self._note = note
        self._clock = clock
        self._room = room
        self.changed = threading.Condition()
        """Held while the book is read or written; notified when something was asked for or a deadline came nearer."""
        self._queue: deque[Part | Switch] = deque()
        self._open: dict[int, Part] = {}  # by identity: those whose deadline is watched
        self._announced: deque[Announced] = deque()
        self._previous: tuple[int, ActiveRecipe] | None = None
        self._skipped = 0  # parts in a row that there was no time for
        self._took_ns: deque[int] = deque(maxlen=8)  # from a part's turn to its verdict, with the recipe in force
        self.active: ActiveRecipe | None = None
        self.camera_up = False
        self.realtime = True

    # ---- what is asked for

    def accept(self, trigger_id: str, part_id: str, product: str | None = None) -> tuple[Part, Reason | None]:
        """Take a software trigger; a reason means that it is to be answered at once, without a picture.

        ``product`` is what the sender takes to be in force: a product or the name of a recipe.
        """
        with self.changed:
            recipe = self.active
            if not part_id and self._announced:
                part_id = self._announced[0].part_id
                announced: Announced | None = self._announced.popleft()
            else:
                announced = None
            limit_s = None if recipe is None else recipe.deadline_ms / 1000
            now = self._clock()
            # An announced id has its number already: the answer closes that one, and one is enough.
            number = announced.trigger_no if announced else self._note(trigger_id, part_id, "command", limit_s)
            part = Part(
                part_id,
                trigger_id,
                given_ns=now,
                deadline_ns=None if limit_s is None else now + round(limit_s * 1e9),
                recipe=recipe,
                trigger_no=number,
            )
            refused = self._refusal(product)
            if refused is None:
                self._queue.append(part)
                self._open[id(part)] = part
                self.changed.notify_all()
            return part, refused

    def _refusal(self, product: str | None) -> Reason | None:
        if self.active is None:
            return Reason.NO_MODEL
        if product is not None and product not in {self.active.product, self.active.name}:
            return Reason.WRONG_PRODUCT
        if not self.camera_up:
            return Reason.CAMERA_LOST
        if len(self._queue) >= self._room:
            return Reason.QUEUE_FULL
        return None

    def announce(self, trigger_id: str, part_ids: Iterable[str], *, for_frames: bool = True) -> list[Part]:
        """Take the ids of the next parts, in order; return the parts that are to be answered at once as `camera_lost`.

        ``for_frames``: the next frames use them up. While there is no camera these parts pass by without a frame, and
        an id that waited would be given to the frame of a later part. A software trigger takes its id along in any
        case.

        Raises
        ------
        TooManyError
            Nothing was taken.
        """
        wanted = list(part_ids)
        with self.changed:
            self._require_room(len(wanted))
        # Written down without holding the book: a thousand of them take tens of milliseconds on the disk.
        noted = [Announced(self._note(trigger_id, part_id, "part", None), trigger_id, part_id) for part_id in wanted]
        with self.changed:
            self._announced += noted
            return [] if self.camera_up or not for_frames else self.withdraw()

    def _require_room(self, wanted: int) -> None:
        if len(self._announced) + wanted > MOST_ANNOUNCED:
            raise TooManyError(f"{len(self._announced)} part ids wait already, {MOST_ANNOUNCED} may")

    def withdraw(self) -> list[Part]:
        """Take back every id that waits for a frame, as parts that will not be inspected."""
        with self.changed:
            now = self._clock()
            parts = [
                Part(each.part_id, each.trigger_id, now, None, self.active, trigger_no=each.trigger_no)
                for each in self._announced
            ]
            self._announced.clear()
            return parts

    def post(self, switch: Switch) -> None:
        """Ask for another recipe, after everything that was asked for before."""
        with self.changed:
            self._queue.append(switch)
            self.changed.notify_all()

    # ---- the loop's side

    def next(self, timeout_s: float) -> Part | Switch | None:
        """Wait for the next trigger that has no answer yet, or for a change of recipe; None when there is neither."""
        deadline = time.monotonic() + timeout_s
        with self.changed:
            while True:
                while self._queue:
                    item = self._queue.popleft()
                    if not isinstance(item, Part):
                        return item
                    if item.seq is None and not self._in_vain(item):
                        item.stage, item.taken_ns = Stage.EXPOSING, self._clock()
                        return item
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                self.changed.wait(left)

    def wanted_switch(self) -> Switch | None:
        """Take the next change of recipe where frames are the triggers."""
        with self.changed:
            for item in self._queue:
                if not isinstance(item, Part):
                    self._queue.remove(item)
                    return item
            return None

    def imaged(self, part: Part, frame: Frame) -> Part:
        """Give a triggered part its picture."""
        with self.changed:
            part.frame, part.frame_id, part.stage = frame, frame.frame_id, Stage.JUDGING
            return part

    def from_frame(self, frame: Frame) -> Part:
        """Make the part that a frame of a free-running or electrically triggered camera shows; it waits for `turn`."""
        with self.changed:
            recipe = self._recipe_at(frame.received_ns)
            now = self._clock()
            given = frame.received_ns if self.realtime else now
            part = self._with_id(given, recipe, frame.source)
            part.frame, part.frame_id = frame, frame.frame_id
            if not part.trigger_id and frame.trigger_id is not None:
                part.trigger_id = str(frame.trigger_id)
            if self.realtime and recipe is not None:
                part.deadline_ns = given + round(recipe.deadline_ms * 1e6)
                self._open[id(part)] = part
                self.changed.notify_all()
            return part

    def turn(self, part: Part) -> bool:
        """Say that a part is judged from now on; False if it has its answer, or if judging it is in vain."""
        with self.changed:
            if part.seq is not None or self._in_vain(part):
                return False
            part.stage, part.taken_ns = Stage.JUDGING, self._clock()
            return True

    def judged(self, part: Part) -> None:
        """Note how long a part took from its turn, in time or not."""
        with self.changed:
            self._took_ns.append(self._clock() - part.taken_ns)

    def _in_vain(self, part: Part) -> bool:
        """Tell a part that cannot be judged in time even if it takes as little as the quickest of the last ones.

        When parts come faster than they are judged, each would be judged too late otherwise, and none in time. Now and
        then one is judged all the same: the judge may have become quicker.
        """
        quickest_ns = min(self._took_ns, default=0)
        self._skipped += 1
        if (
            part.deadline_ns is None
            or self._clock() + quickest_ns < part.deadline_ns - MARGIN_NS
            or self._skipped > MOST_SKIPPED
        ):
            self._skipped = 0
        return self._skipped > 0

    def missed(self, frame_id: int | None) -> Part:
        """Make the part whose frame is known to be missing; it uses up the id that was announced for it."""
        with self.changed:
            recipe = self.active if self._previous is None else self._previous[1]  # no later frame was seen yet
            part = self._with_id(self._clock(), recipe, "")
            part.frame_id = frame_id
            return part

    def _with_id(self, given_ns: int, recipe: ActiveRecipe | None, part_id: str) -> Part:
        if not self._announced:
            return Part(part_id, "", given_ns, None, recipe)
        told = self._announced.popleft()
        return Part(told.part_id, told.trigger_id, given_ns, None, recipe, trigger_no=told.trigger_no)

    def _recipe_at(self, received_ns: int) -> ActiveRecipe | None:
        """Return the recipe that was in force when a frame came; the one before goes once a later frame was seen."""
        if self._previous is not None:
            since_ns, before = self._previous
            if self.realtime and received_ns < since_ns:
                return before
            self._previous = None
        return self.active

    def now_ns(self) -> int:
        """Return the time of the clock that deadlines and frames are measured by."""
        return self._clock()

    def activate(self, recipe: ActiveRecipe, *, since_ns: int | None = None) -> None:
        """Put a recipe in force for every part that comes from now on, or whose frame was received since then."""
        with self.changed:
            if self.active is not None:
                self._previous = (self._clock() if since_ns is None else since_ns, self.active)
            self._took_ns.clear()
            self.active = recipe

    def camera_went(self) -> list[Part]:
        """Note that there is no camera; return the triggers that wait, and the parts announced, for their answer."""
        with self.changed:
            self.camera_up = False
            parts = [item for item in self._queue if isinstance(item, Part)]
            for part in parts:
                self._queue.remove(part)
        return [*parts, *self.withdraw()]

    def close(self) -> list[Part]:
        """Take nothing more; return every part that has no answer, in the order in which they came."""
        parts = self.camera_went()
        with self.changed:
            for item in self._queue:
                if not isinstance(item, Part):
                    item.done("stopping", "the service is being stopped")
            self._queue.clear()
            waiting = {id(part) for part in parts}
            return [*(part for part in self._open.values() if id(part) not in waiting), *parts]

    # ---- answers

    def claim(self, part: Part) -> bool:
        """Take the right to answer a part; only the first caller gets it."""
        with self.changed:
            if part.seq is not None:
                return False
            part.seq = 0
            self._open.pop(id(part), None)
            return True

    def expired(self) -> list[Part]:
        """Return the parts whose time is over, the oldest deadline first."""
        with self.changed:
            now = self._clock() + MARGIN_NS
            over = [part for part in self._open.values() if part.deadline_ns is not None and part.deadline_ns <= now]
            return sorted(over, key=_deadline)

    def wait_for_deadline(self, longest_s: float) -> None:
        """Wait until the next deadline is due, something new is asked for, or ``longest_s`` is over."""
        with self.changed:
            deadlines = [part.deadline_ns for part in self._open.values() if part.deadline_ns is not None]
            wait_s = (min(deadlines) - MARGIN_NS - self._clock()) / 1e9 if deadlines else longest_s
            if wait_s > 0:
                self.changed.wait(min(wait_s, longest_s))

    @property
    def waiting(self) -> int:
        """Number of parts that have no answer yet."""
        with self.changed:
            return len(self._open)


def _deadline(part: Part) -> int:
    return part.deadline_ns or 0


def reason_of(part: Part) -> Reason:
    """Say why a part whose time is over has no answer."""
    return Reason.NO_IMAGE if part.stage is Stage.EXPOSING else Reason.TIMEOUT
