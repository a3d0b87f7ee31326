"""One answer for each part: given once, written down first, then told to the line; the only way an answer gets out."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from lineward.daemon.log import log_part
from lineward.daemon.result import CameraRef, Latency, ModelRef, Result
from lineward.daemon.triggers import Reason
from lineward.models.verdict import Decision, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from lineward.daemon.health import Alarms
    from lineward.daemon.ledger import Ledger
    from lineward.daemon.publish import Publisher
    from lineward.daemon.review import ReviewStore
    from lineward.daemon.triggers import Part, TriggerBook
    from lineward.drivers.camera import CameraInfo

log = logging.getLogger("lineward.answers")

NO_MODEL = ModelRef("", "", "")
GRACE_NS = 5_000_000
"""An answer that is so much later than its deadline is marked as late."""


class Pulse(Protocol):
    """What is told after each part."""

    def count(self, result: Result) -> None:
        """Count one answer; must not block or raise."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict, and the part whose own picture it is about."""

    part: Part
    verdict: Verdict


class Answers:
    """Gives answers. Any thread may call; numbers and messages leave in one order.

    A pass gets out of here only for the part whose own frame was judged by the recipe in force when the part came, and
    before its deadline. Everything else becomes `undecided`.
    """

    def __init__(
        self,
        book: TriggerBook,
        *,
        ledger: Ledger,
        results: Publisher,
        review: ReviewStore,
        pulse: Pulse,
        alarms: Alarms,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._book = book
        self._ledger = ledger
        self._results = results
        self._review = review
        self.pulse = pulse
        self._alarms = alarms
        self._clock = clock
        self._lock = threading.Lock()
        self.camera: CameraInfo | None = None

    def give(self, judgement: Judgement) -> Result | None:
        """Answer a judged part; None when its time was over and it has been answered without the verdict."""
        part, verdict = judgement.part, judgement.verdict
        self._book.judged(part)
        with self._lock:
            if not self._book.claim(part):
                given = None
            else:
                in_time = part.deadline_ns is None or self._clock() <= part.deadline_ns
                image = self._review.claim(verdict) if in_time else None
                given = self._send(part, verdict if in_time else _timed_out(verdict), image=image)
        if given is None:
            self._note_late(part, verdict)
            return None
        if not in_time:
            self._note_late(part, verdict)
        log_part(given)
        return given

    def undecided(self, part: Part, reason: Reason, *, late: bool = False) -> Result | None:
        """Answer a part that was not judged; None when it has its answer already."""
        with self._lock:
            if not self._book.claim(part):
                return None
            result = self._send(part, Verdict(Decision.UNDECIDED, reason, 0.0, 0.0, 0.0), late=late)
        log_part(result)
        return result

    def _send(self, part: Part, verdict: Verdict, *, image: str | None = None, late: bool = False) -> Result:
        draft = draft_result(part, verdict, self.camera, self._clock(), image=image)
        if late:
            draft = replace(draft, late=True)
        result = self._ledger.record(draft)  # first on disk ...
        result = self._results.publish(result)  # ... then to the line
        part.seq = result.seq
        self.pulse.count(result)
        return result

    def _note_late(self, part: Part, verdict: Verdict) -> None:
        if part.seq:
            self._ledger.note_late(part.seq, verdict)
            log.info("the verdict of #%d came after its deadline: %s", part.seq, verdict.decision)


def _timed_out(verdict: Verdict) -> Verdict:
    return replace(verdict, decision=Decision.UNDECIDED, reason=Reason.TIMEOUT, confidence=0.0)


def draft_result(
    part: Part, verdict: Verdict, camera: CameraInfo | None, now_ns: int, *, image: str | None = None
) -> Result:
    """Put together the answer for one part; the ledger adds its number.

    Times on the wall clock are reckoned back from now by monotonic spans, so that a clock that is set meanwhile cannot
    make an answer older or younger than it is.
    """
    recipe, frame = part.recipe, part.frame
    realtime = camera is None or camera.realtime
    now_unix_ns = time.time_ns()
    trigger_unix_ns = now_unix_ns - (now_ns - part.given_ns)
    received_ns = part.given_ns if frame is None else frame.received_ns
    return Result(
        seq=0,
        verdict=verdict.decision,
        reason=str(verdict.reason),
        confidence=verdict.confidence,
        defect_probability=verdict.defect_probability,
        anomaly=verdict.anomaly,
        defect_type=verdict.defect_type,
        product="" if recipe is None else recipe.product,
        model=NO_MODEL if recipe is None else recipe.model,
        part_id=part.part_id,
        trigger_id=part.trigger_id,
        trigger_no=part.trigger_no,
        camera=CameraRef("", "", None) if camera is None else CameraRef(camera.name, camera.serial, part.frame_id),
        trigger_unix_ns=trigger_unix_ns,
        received_unix_ns=now_unix_ns - (now_ns - received_ns),
        published_unix_ns=now_unix_ns,
        exposure_device_ns=None if frame is None else frame.device_ns,
        deadline_unix_ns=_deadline_unix_ns(part, trigger_unix_ns, realtime=realtime),
        latency=Latency(
            grab=0.0 if frame is None else max(0, part.taken_ns - part.given_ns) / 1e6,
            prepare=verdict.prepare_ms,
            infer=verdict.infer_ms,
            decide=verdict.decide_ms,
            total=(now_ns - part.given_ns) / 1e6,
        ),
        simulated=camera is not None and camera.simulated,
        late=part.deadline_ns is not None and now_ns > part.deadline_ns + GRACE_NS,
        image=image,
    )


def _deadline_unix_ns(part: Part, trigger_unix_ns: int, *, realtime: bool) -> int | None:
    if part.deadline_ns is not None:
        return trigger_unix_ns + part.deadline_ns - part.given_ns
    if realtime and part.recipe is not None:
        return trigger_unix_ns + round(part.recipe.deadline_ms * 1e6)
    return None
