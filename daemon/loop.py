"""The inspection loop: one part, one picture, one verdict, one answer. Everything else in the daemon serves it.

A part whose picture does not come, or whose time is over, is answered elsewhere: `daemon/frames.py` and
`daemon/clock.py`. Whoever is first has the word, `daemon/answers.py` sees to that.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from lineward.daemon.answers import Judgement
from lineward.daemon.triggers import Reason
from lineward.models.verdict import Decision, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lineward.daemon.answers import Answers
    from lineward.daemon.health import Alarms
    from lineward.daemon.review import ReviewStore
    from lineward.daemon.triggers import Part
    from lineward.daemon.watch.watcher import Watch

log = logging.getLogger("lineward.loop")


class Heart(Protocol):
    """What shows the line that the loop is alive."""

    def beat(self) -> None:
        """Note that a part is done; called after each, must not block or raise."""


def inspect(
    parts: Iterable[Part],
    answers: Answers,
    *,
    review: ReviewStore,
    heart: Heart,
    alarms: Alarms,
    watch: Watch | None = None,
) -> None:
    """Judge every part that has a picture, in order, until they end."""
    for part in parts:
        verdict = None if watch is None else watch.refusal(part)  # another product is never judged
        if verdict is None:
            verdict = judge_safely(part, alarms)
            if watch is not None:
                watch.note(verdict)
        result = answers.give(Judgement(part, verdict))  # on disk first, then to the line; None: its time was over
        if result is not None and part.frame is not None:
            review.keep(part.frame.image, result)  # trouble here is reported, never stops the line
        heart.beat()


def judge_safely(part: Part, alarms: Alarms) -> Verdict:
    """Judge a part's own picture; a judge that fails makes this part undecided and raises an alarm, nothing more."""
    if part.recipe is None:
        return Verdict(Decision.UNDECIDED, Reason.NO_MODEL, 0.0, 0.0, 0.0)
    if part.frame is None:
        return Verdict(Decision.UNDECIDED, Reason.NO_IMAGE, 0.0, 0.0, 0.0)
    try:
        verdict = part.recipe.session.judge(part.frame.image)
    except Exception as error:  # whatever goes wrong in there, the part must get its answer
        log.debug("judging frame %d failed", part.frame.frame_id, exc_info=True)
        alarms.set(
            "model",
            f"a part could not be judged: {error}; if it lasts, name another model in inspection.model and restart",
        )
        return Verdict(Decision.UNDECIDED, Reason.ERROR, 0.0, 0.0, 0.0)
    alarms.set("model", "")
    return verdict
