"""What long work needs beside itself: progress bars on a terminal, a folder for derived data, a tidy end by SIGTERM."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def cache_dir() -> Path:
    """Return the folder for features and demo models: $XDG_CACHE_HOME/lineward, by default ~/.cache/lineward."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lineward"


@contextmanager
def progress_bar(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Show steps ``(what, done, of)`` as bars with the remaining time on stderr; nothing when quiet or no terminal.

    SIGTERM ends the work inside as Ctrl-C does, so that what it had put aside for itself is removed.
    """
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        with _tidy_end():
            yield lambda _what, _done, _of: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with _tidy_end(), Progress(*columns, console=console) as bars:
        tasks: dict[str, Any] = {}

        def step(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=of)
            bars.update(tasks[what], completed=done, total=of)

        yield step


@contextmanager
def _tidy_end() -> Iterator[None]:
    """Leave by way of every ``finally`` on SIGTERM, unless somebody else answers it already."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
