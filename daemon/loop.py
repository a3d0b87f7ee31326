"""The inspection loop: one frame, one verdict, one answer. Everything else in the daemon serves these lines."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from lineward.daemon.log import log_part
from lineward.daemon.result import CameraRef, Latency, Result
from lineward.models.verdict import Decision, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np
    from numpy.typing import NDArray

    from lineward.daemon.health import Alarms
    from lineward.daemon.ledger import Ledger
    from lineward.daemon.publish import Publisher
    from lineward.daemon.result import ModelRef
    from lineward.daemon.review import ReviewStore
    from lineward.drivers.camera import CameraInfo, Frame

    Judge = Callable[[NDArray[np.uint8]], Verdict]

log = logging.getLogger("lineward.loop")


class Pulse(Protocol):
    """What the loop tells after each part."""

    def beat(self, result: Result) -> None:
        """Count one answer; called last in a round, must not block or raise."""


@dataclass(frozen=True, slots=True)
class Station:
    """What every answer of a station says about itself.

    Attributes
    ----------
    deadline_ms
        Time from trigger to answer, in milliseconds.
    """

    product: str
    model: ModelRef
    camera: CameraInfo
    deadline_ms: float


def inspect(
    frames: Iterable[Frame],
    judge: Judge,
    station: Station,
    *,
    ledger: Ledger,
    results: Publisher,
    review: ReviewStore,
    health: Pulse,
    alarms: Alarms,
) -> None:
    """Answer every frame exactly once, in order, until the frames end."""
    for frame in frames:
        taken_ns = time.monotonic_ns()
        verdict = judge_safely(judge, frame, alarms)
        draft = draft_result(frame, verdict, station, taken_ns, image=review.claim(verdict))
        result = ledger.record(draft)  # first on disk ...
        result = results.publish(result)  # ... then to the line
        if result.image is not None:
            review.keep(frame.image, result)  # trouble here is reported, never stops the line
        log_part(result)
        alarms.set("storage", ledger.trouble, logged=True)
        results.beat()
        health.beat(result)


def judge_safely(judge: Judge, frame: Frame, alarms: Alarms) -> Verdict:
    """Judge one frame; a judge that fails makes this part undecided and raises an alarm, and the line goes on."""
    try:
        verdict = judge(frame.image)
    except Exception as error:  # whatever goes wrong in there, the part must get its answer
        log.debug("judging frame %d failed", frame.frame_id, exc_info=True)
        alarms.set(
            "model",
            f"a part could not be judged: {error}; if it lasts, name another model in inspection.model and restart",
        )
        return Verdict(Decision.UNDECIDED, "error", 0.0, 0.0, 0.0)
    alarms.set("model", "")
    return verdict


def draft_result(
    frame: Frame, verdict: Verdict, station: Station, taken_ns: int, *, image: str | None = None
) -> Result:
    """Put together the answer for one frame; the ledger adds its number.

    In free run the frame itself is the trigger. A part that is judged after its deadline is undecided: the line did
    not wait for it. In a replay nobody waits, so time starts when the loop takes the frame and there is no deadline.
    """
    camera = station.camera
    trigger_ns = frame.received_ns if camera.realtime else taken_ns
    now_ns = time.monotonic_ns()
    now_unix_ns = time.time_ns()
    total_ms = (now_ns - trigger_ns) / 1e6
    late = camera.realtime and total_ms > station.deadline_ms
    decision, reason = (Decision.UNDECIDED, "timeout") if late else (verdict.decision, verdict.reason)
    trigger_unix_ns = now_unix_ns - (now_ns - trigger_ns)
    return Result(
        seq=0,
        verdict=decision,
        reason=reason,
        confidence=0.0 if late else verdict.confidence,
        defect_probability=verdict.defect_probability,
        anomaly=verdict.anomaly,
        defect_type=verdict.defect_type,
        product=station.product,
        model=station.model,
        part_id=frame.source,
        trigger_id="" if frame.trigger_id is None else str(frame.trigger_id),
        camera=CameraRef(camera.name, camera.serial, frame.frame_id),
        trigger_unix_ns=trigger_unix_ns,
        received_unix_ns=now_unix_ns - (now_ns - frame.received_ns),
        published_unix_ns=now_unix_ns,
        exposure_device_ns=frame.device_ns,
        deadline_unix_ns=trigger_unix_ns + round(station.deadline_ms * 1e6) if camera.realtime else None,
        latency=Latency(
            grab=max(0, taken_ns - trigger_ns) / 1e6,
            prepare=verdict.prepare_ms,
            infer=verdict.infer_ms,
            decide=verdict.decide_ms,
            total=total_ms,
        ),
        simulated=camera.simulated,
        late=late,
        image=image,
    )
