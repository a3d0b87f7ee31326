"""Where parts get their answers, all of it real; the broker is simply not there."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lineward.daemon.answers import Answers
from lineward.daemon.health import Alarms, Health
from lineward.daemon.ledger import Ledger
from lineward.daemon.publish import Endpoint, Publisher
from lineward.daemon.recipes import ActiveRecipe
from lineward.daemon.result import ModelRef
from lineward.daemon.review import Keeping, ReviewStore
from lineward.daemon.triggers import TriggerBook
from lineward.drivers.camera import CameraInfo, Frame
from lineward.models.verdict import Decision, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

CAMERA = CameraInfo(name="test", serial="T-1", driver="folder", realtime=True, simulated=True)
PASS = Verdict(Decision.PASS, "", 0.97, 0.03, 0.2, prepare_ms=1, infer_ms=2, decide_ms=3)


@dataclass
class Rule:
    """A judge that follows a rule of the test instead of a network."""

    judge: Callable[[NDArray[np.uint8]], Verdict] = lambda _image: PASS
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    missing_providers: tuple[str, ...] = field(default=())


def recipe(
    judge: Callable[[NDArray[np.uint8]], Verdict] = lambda _image: PASS,
    *,
    name: str = "default",
    product: str = "bracket",
    deadline_ms: float = 5000,
    settings: Mapping[str, str | int | float | bool] | None = None,
) -> ActiveRecipe:
    return ActiveRecipe(
        name, product, ModelRef(product, "1", "ab"), deadline_ms, settings or {}, Rule(judge), Path(f"{product}.lward")
    )


class Desk:
    """The loop's partners."""

    def __init__(
        self, root: Path, *, clock: Callable[[], int] = time.monotonic_ns, camera: CameraInfo = CAMERA, room: int = 64
    ) -> None:
        self.ledger = Ledger(root)
        self.results = Publisher(
            Endpoint("127.0.0.1", 9, "loop-test"), "lineward/a/b/c", deadline_ms=200, ledger=self.ledger
        )
        self.troubles: list[str] = []
        self.review = ReviewStore(
            root,
            self.ledger,
            Keeping(keep_per_hour=100, max_bytes=10**8, keep_fails=False),
            on_trouble=self.troubles.append,
        )
        self.health = Health(root)
        self.alarms = Alarms()
        self.book = TriggerBook(self.ledger.note_trigger, clock=clock, room=room)
        self.book.realtime = camera.realtime
        self.answers = Answers(
            self.book,
            ledger=self.ledger,
            results=self.results,
            review=self.review,
            pulse=self.health,
            alarms=self.alarms,
            clock=clock,
        )
        self.answers.camera = camera

    def rows(self) -> list[tuple[int, str, str, bool]]:
        return [(row.seq, row.verdict, row.reason, row.late) for row in self.ledger.rows()]

    def close(self) -> None:
        self.review.close()
        self.results.close()
        self.ledger.close()


def frame(frame_id: int = 1, *, age_s: float = 0.0) -> Frame:
    received_ns = time.monotonic_ns() - round(age_s * 1e9)
    return Frame(np.full((4, 4), frame_id, np.uint8), frame_id, received_ns, source=f"part {frame_id}")
