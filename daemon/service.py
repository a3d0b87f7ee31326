"""`lineward run`: put the station together, run the loop, and take everything down again in order."""

from __future__ import annotations

import faulthandler
import logging
import signal
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeVar

from lineward.daemon import allocator
from lineward.daemon.line import STOP_DRAIN_S, Line
from lineward.daemon.loop import inspect
from lineward.daemon.reload import Reloader, answer_nobody

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from lineward.daemon.config import Config
    from lineward.daemon.health import Health
    from lineward.daemon.reload import Answer

T = TypeVar("T")

log = logging.getLogger("lineward.run")

SWITCH_S = 0.0005
"""How long the MQTT thread may keep Python's lock while the loop waits for it; Python's own 5 ms is a deadline lost."""

SIGN_S = 1.0
"""How often systemd hears that the model is still being loaded."""

LOADING_S = 600.0
"""After so long it hears nothing more, and takes the start for failed: a disk that hangs is not only slow."""


def run(
    config: Config,
    stop: threading.Event,
    *,
    drain_s: float = 10.0,
    path: Path | None = None,
    reloads: SimpleQueue[Answer | None] | None = None,
) -> Health:
    """Inspect until ``stop`` is set or a replay has ended; return the counters.

    Call it from the main thread: the camera process is bound to the life of the thread that starts it.

    Parameters
    ----------
    drain_s
        Seconds given to the broker to acknowledge everything after a replay has ended.
    path, reloads
        The file that the configuration came from, and where requests to read it again come in; without them it is
        read once.

    Raises
    ------
    ConfigError
        The password file cannot be read.
    BundleError
        The model cannot be used; waiting would not mend it.
    CameraSettingError
        The camera refuses a setting of the configuration.
    """
    started = time.monotonic()
    sys.setswitchinterval(SWITCH_S)
    with suppress(OSError, ValueError):  # stderr may be no file
        faulthandler.enable()  # systemd's watchdog ends a hung loop with SIGABRT: where it hung is in the log then
    allocator.keep_flat()
    with ExitStack() as stack:
        line = Line(config, stop, stack)
        line.reloads = reloads
        loading = stack.enter_context(ThreadPoolExecutor(1, "load-model")).submit(line.recipes.prepare, line.recipe)
        line.start()
        line.source.open()  # the camera process starts while the model loads
        recipe = patiently(loading, lambda: line.systemd.alive(lambda: "loading the model"))
        line.use(recipe)
        allocator.settle()
        if path is not None and reloads is not None:
            reloader = Reloader(
                path,
                config,
                reloads,
                changeover=line.changeover,
                review=line.review,
                alarms=line.alarms,
                systemd=line.systemd,
                status=line.in_words,
            )
            stack.callback(reloader.start().close)
        if line.source.wait_open() and line.source.start():
            took_s = time.monotonic() - started
            log.info("ready after %.1f s: %s, model %s", took_s, recipe.product, recipe.model.version)
        inspect(line.source, line.answers, review=line.review, heart=line, alarms=line.alarms, watch=line.watch)
        line.drain_s = STOP_DRAIN_S if stop.is_set() else drain_s
        return line.health


def patiently(work: Future[T], alive: Callable[[], None], *, sign_s: float = SIGN_S, most_s: float = LOADING_S) -> T:
    """Wait for work in another thread and give signs of life meanwhile: a slow disk is no start that failed.

    Parameters
    ----------
    sign_s, most_s
        Seconds between two signs, and after which there are no more of them; the work is waited for all the same.

    Raises
    ------
    Exception
        Whatever the work raised.
    """
    until = time.monotonic() + most_s
    while not wait([work], timeout=sign_s).done and time.monotonic() < until:
        alive()
    return work.result()


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Turn SIGTERM and SIGINT into an event; a second SIGINT forces the way out."""
    stop = threading.Event()

    def ask(number: int, _frame: object) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def reload_on_hangup(stop: threading.Event) -> Iterator[SimpleQueue[Answer | None]]:
    """Turn SIGHUP into a request to read the configuration again; on a terminal it means that somebody closed it."""
    reloads: SimpleQueue[Answer | None] = SimpleQueue()  # its `put` is safe in a signal handler
    terminal = sys.stderr.isatty()

    def ask(_number: int, _frame: object) -> None:
        if terminal:
            stop.set()
        else:
            reloads.put(answer_nobody)

    before = signal.signal(signal.SIGHUP, ask)
    try:
        yield reloads
    finally:
        signal.signal(signal.SIGHUP, before)
