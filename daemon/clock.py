"""The deadline clock: a part that is not judged in time is answered all the same, whatever the loop is doing."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from lineward.daemon.triggers import reason_of

if TYPE_CHECKING:
    from lineward.daemon.answers import Answers
    from lineward.daemon.triggers import TriggerBook

log = logging.getLogger("lineward.clock")

LOOK_S = 0.5


class DeadlineClock:
    """Answers `undecided` shortly before a deadline passes, from a thread of its own."""

    def __init__(self, book: TriggerBook, answers: Answers) -> None:
        self._book = book
        self._answers = answers
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="deadlines", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def close(self) -> None:
        """Stop watching; parts that are still open are answered by whoever closes the line."""
        self._stop.set()
        with self._book.changed:
            self._book.changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(1.0)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._book.wait_for_deadline(LOOK_S)
            for part in self._book.expired():
                try:
                    self._answers.undecided(part, reason_of(part))
                except Exception:  # whatever is wrong with one part, the next one's deadline counts
                    log.exception("a time-out could not be answered")
