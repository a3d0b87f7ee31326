"""The parts around a frame source, for tests of what it makes of a camera."""

from __future__ import annotations

import itertools
import threading
import time
from typing import TYPE_CHECKING

from tests.daemon.desk import PASS, Desk, recipe

from lineward.daemon.answers import Judgement
from lineward.daemon.frames import FrameSource
from lineward.daemon.states import Event, State, StateMachine
from lineward.daemon.triggers import Reason
from lineward.drivers.process import CameraProcess
from lineward.drivers.simulation.device import DeviceMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from lineward.daemon.ledger_read import Row

PATIENT = {"silence_limit_s": 20.0}
"""For tests in which no camera hangs: a busy machine must not make it look so."""


class Station:
    """The parts around a frame source, all real."""

    def __init__(
        self,
        tmp_path: Path,
        *,
        memory_mb: float = 1024,
        silent_s: float = 10,
        silence_limit_s: float = 0.6,
        settings=None,
        driver: str = "simulated",
        trigger: str = "free_run",
        **options: object,
    ) -> None:
        self.line = tmp_path / "line"
        simulated = {"rate_hz": 100.0, "width": 128, "height": 96, "memory": str(self.line)}
        values = {"trigger": trigger, **(simulated if driver == "simulated" else {}), **options}
        self.camera = CameraProcess(driver, values, silence_limit_s=silence_limit_s)
        self.stop = threading.Event()
        self.desk = Desk(tmp_path / "storage")
        self.desk.book.activate(recipe(settings=settings))
        self.health, self.alarms = self.desk.health, self.desk.alarms
        self.changes: list[State] = []
        self.states = StateMachine(lambda status: self.changes.append(status.state))
        self.states.handle(Event.MODEL_READY)
        self.source = FrameSource(
            self.camera,
            settings or {},
            trigger=trigger,
            memory_mb=memory_mb,
            silent_s=silent_s,
            stop=self.stop,
            states=self.states,
            alarms=self.alarms,
            health=self.health,
            book=self.desk.book,
            answers=self.desk.answers,
            alive=lambda: self.look(),  # noqa: PLW0108 - a test may replace it
        )
        self.look: Callable[[], None] = lambda: None
        self.parts = iter(self.source)

    def close(self) -> None:
        self.source.close()
        self.desk.close()

    def take(self, count: int) -> list[int]:
        return [part.frame.frame_id for part in itertools.islice(self.source, count) if part.frame is not None]

    def begin(self, part_ids: Iterable[str] = ()) -> None:
        """Let the camera stream, then announce parts: ids that are announced without a camera are answered at once."""
        assert self.source.open()
        assert self.source.start()
        self.desk.book.announce("t", part_ids)

    def judge(self, count: int | None = None, *, takes_s: float = 0.0) -> list[int]:
        """Let so many parts, or all that come, pass; return their frames' numbers."""
        ids = []
        for part in itertools.islice(self.parts, count):
            assert part.frame is not None
            ids.append(part.frame.frame_id)
            time.sleep(takes_s)
            self.desk.answers.give(Judgement(part, PASS))
        return ids

    def rows_at_the_end(self) -> list[Row]:
        """Stop, answer what waits as a station that is stopped does, and return every answer."""
        self.source.close()
        for part in self.desk.book.close():
            self.desk.answers.undecided(part, Reason.ERROR)
        return list(self.desk.ledger.rows())

    def exposed(self) -> int:
        """Return how many frames the camera has exposed, as it remembers itself."""
        return DeviceMemory(self.line).read()[0]
