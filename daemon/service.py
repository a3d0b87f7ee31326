"""`lineward run`: put the station together, run the loop, and take everything down again in order."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeVar

from lineward.daemon import allocator
from lineward.daemon.changeover import CHANGEOVER
from lineward.daemon.line import STOP_DRAIN_S, Line
from lineward.daemon.loop import inspect
from lineward.daemon.recipes import DEFAULT
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

STOP_SOON_S = 0.1
"""How often a start that waits for its model looks whether it is to end."""

LOAD_END_S = 3.0
"""What an end that was not asked for waits for a model that is still being loaded, when everything else is down."""

LOADER = "load-model"

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
    with ExitStack() as last, ExitStack() as stack:
        line = Line(config, stop, stack)
        line.reloads = reloads
        loading = in_background(partial(line.recipes.prepare, line.recipe), LOADER)
        last.callback(lambda: stop.is_set() or wait([loading], timeout=LOAD_END_S))  # `leave` says why
        line.start()
        line.source.open()  # the camera process starts while the model loads
        recipe = patiently(loading, lambda: line.systemd.alive(lambda: "loading the model"), stop=stop)
        if recipe is None:
            return line.health
        line.use(recipe)
        if recipe.too_slow:
            log.warning("%s", recipe.too_slow)
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
            name = "" if recipe.name == DEFAULT else f"recipe {recipe.name}, "
            log.info("ready after %.1f s: %s%s, model %s", took_s, name, recipe.product, recipe.model.version)
        inspect(line.source, line.answers, review=line.review, heart=line, alarms=line.alarms, watch=line.watch)
        line.drain_s = STOP_DRAIN_S if stop.is_set() else drain_s
        return line.health


def leave() -> None:
    """End the process when a model is still being loaded in another thread.

    Python would wait for nobody, and a library that is at work while it ends takes the process down with SIGABRT.
    """
    if any(thread.name in {LOADER, CHANGEOVER} for thread in threading.enumerate()):
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0)


def in_background(work: Callable[[], T], name: str) -> Future[T]:
    """Do work in a thread that does not hold up the end of the program, as one of a pool would."""
    future: Future[T] = Future()

    def carry_out() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - whoever waits for it gets it
            future.set_exception(error)

    threading.Thread(target=carry_out, name=name, daemon=True).start()
    return future


def patiently(
    work: Future[T],
    alive: Callable[[], None],
    *,
    stop: threading.Event,
    sign_s: float = SIGN_S,
    most_s: float = LOADING_S,
) -> T | None:
    """Wait for work in another thread and give signs of life meanwhile: a slow disk is no start that failed.

    Parameters
    ----------
    stop
        When it is set nobody waits any longer, and the answer is None.
    sign_s, most_s
        Seconds between two signs, and after which there are no more of them; the work is waited for all the same.

    Raises
    ------
    Exception
        Whatever the work raised.
    """
    began = time.monotonic()
    signed = 0
    while not wait([work], timeout=min(sign_s, STOP_SOON_S)).done:
        if stop.is_set():
            return None
        waited_s = time.monotonic() - began
        if signed < int(waited_s / sign_s) and waited_s < most_s:
            signed = int(waited_s / sign_s)
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
