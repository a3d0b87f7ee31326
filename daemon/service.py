"""`lineward run`: put the station together, run the loop, and take everything down again in order."""

from __future__ import annotations

import logging
import signal
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lineward.daemon.config import ConfigError
from lineward.daemon.frames import FrameSource
from lineward.daemon.health import Alarms, Health
from lineward.daemon.ledger import Ledger
from lineward.daemon.loop import Station, inspect
from lineward.daemon.publish import Endpoint, Publisher, Tls
from lineward.daemon.result import ModelRef, rfc3339
from lineward.daemon.review import ReviewStore
from lineward.daemon.states import Event, StateMachine, Status
from lineward.drivers.process import CameraProcess
from lineward.models.session import Session
from lineward.models.store import resolve_model

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lineward.daemon.config import Config

log = logging.getLogger("lineward.run")

SWITCH_S = 0.0005
"""How long the MQTT thread may keep Python's lock while the loop waits for it; Python's own 5 ms is a deadline lost."""

STOP_DRAIN_S = 0.4
"""After SIGTERM the broker gets this long to acknowledge; what is left stays in the outbox for the next start."""


def run(config: Config, stop: threading.Event, *, drain_s: float = 10.0) -> Health:
    """Inspect until ``stop`` is set or a replay has ended; return the counters.

    Call it from the main thread: the camera process is bound to the life of the thread that starts it.

    Parameters
    ----------
    drain_s
        Seconds given to the broker to acknowledge everything after a replay has ended.

    Raises
    ------
    ConfigError
        The configuration asks for what this version cannot do.
    BundleError
        The model cannot be used; waiting would not mend it.
    CameraSettingError
        The camera refuses a setting of the configuration.
    """
    refuse_unsupported(config)
    started = time.monotonic()
    sys.setswitchinterval(SWITCH_S)
    with ExitStack() as stack:
        line = Line(config, stop, stack)
        loading = stack.enter_context(ThreadPoolExecutor(1, "load-model")).submit(load_session, config)
        line.publisher.start()
        line.source.open()  # the camera process starts while the model loads
        session = loading.result()
        line.use(session)
        if line.source.wait_open():
            if line.source.start():
                took_s = time.monotonic() - started
                log.info("ready after %.1f s: %s, model %s", took_s, session.manifest.product, session.manifest.version)
            assert line.source.info is not None
            inspect(
                line.source,
                session.judge,
                Station(session.manifest.product, line.model, line.source.info, config.inspection.deadline_ms),
                ledger=line.ledger,
                results=line.publisher,
                review=line.review,
                health=line.health,
                alarms=line.alarms,
            )
        line.drain_s = STOP_DRAIN_S if stop.is_set() else drain_s
        return line.health


class Line:
    """Everything a running station consists of, made in the order in which they need each other."""

    def __init__(self, config: Config, stop: threading.Event, stack: ExitStack) -> None:
        root = config.storage.root
        self.drain_s = STOP_DRAIN_S
        self.model = ModelRef("", "", "")
        self.health = Health(root)
        self.alarms = Alarms()
        self.ledger = Ledger(root)
        stack.callback(self.ledger.close)
        self.alarms.set("storage", self.ledger.trouble, logged=True)
        self.publisher = Publisher(
            endpoint(config),
            config.station.base_topic,
            deadline_ms=config.inspection.deadline_ms,
            ledger=self.ledger,
            stats=self._stats,
        )
        self.alarms.on_change = self.publisher.set_alarms
        stack.callback(self._close_publisher)
        self.review = ReviewStore(
            root,
            self.ledger,
            keep_per_hour=config.review.keep_per_hour,
            max_bytes=round(config.storage.max_gb * 1e9),
            keep_fails=config.review.keep_fails,
            on_trouble=lambda text: self.alarms.set("images", text),
        )
        stack.callback(self.review.close)
        self._product = ""
        self.states = StateMachine(self._show_state)
        self._show_state(self.states.status)
        camera = config.camera
        options = camera.driver_options()
        if camera.driver == "simulated":  # its line goes on while its process is replaced, as a real one would
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="lineward-camera-"))
            options["memory"] = str(Path(folder) / "line")
        self.camera = CameraProcess(camera.driver, options, silence_limit_s=camera.silence_s, hurry=stop)
        self.source = FrameSource(
            self.camera,
            camera.settings,
            trigger=camera.trigger,
            memory_mb=camera.memory_mb,
            silent_s=camera.silent_s,
            stop=stop,
            states=self.states,
            alarms=self.alarms,
            health=self.health,
            alive=self._alive,
        )
        stack.callback(self.source.close)

    def use(self, session: Session) -> None:
        """Take a loaded and warm model into service."""
        manifest = session.manifest
        self.model = ModelRef(manifest.product, manifest.version, session.sha256)
        self._product = manifest.product
        missing = ", ".join(session.missing_providers)
        self.alarms.set(
            "provider",
            f"{missing} is not available, {session.providers[0]} judges instead; install the matching onnxruntime"
            if missing
            else "",
            severity="warning",
        )
        self.states.handle(Event.MODEL_READY)

    def _alive(self) -> None:
        """Say that the loop is well although no part came: the heartbeat depends on it."""
        self.health.alive()
        self.publisher.beat()

    def _show_state(self, status: Status) -> None:
        self.publisher.set_state(
            {
                "state": status.state,
                "reason": status.reason,
                "product": self._product,
                "model": self.model.version,
                "since": rfc3339(status.since_unix_ns),
            }
        )

    def _stats(self) -> dict[str, Any]:
        stats = self.health.stats()
        stats["mqtt"] = self.publisher.counters()
        stats["images"] = {"kept": self.review.kept, "dropped": self.review.dropped}
        return stats

    def _close_publisher(self) -> None:
        self.states.handle(Event.STOP, "stopped")
        # Without a broker there is nothing to wait for when we are told to stop; after a replay it may come back.
        wait = self.drain_s > STOP_DRAIN_S or self.publisher.connected
        left = self.publisher.close(self.drain_s if wait else 0.0)
        log.info("stopped after %d answers%s", self.health.answers, f"; {left} stay in the outbox" if left else "")


def refuse_unsupported(config: Config) -> None:
    """Raise `ConfigError` for what a configuration may say and this version cannot do."""
    if config.camera.trigger == "software":
        raise ConfigError(
            'camera.trigger = "software": this version has no trigger command yet, so no part would ever be inspected; '
            'use "hardware" or "free_run"'
        )


def endpoint(config: Config) -> Endpoint:
    """Say where the broker is and who we are there.

    Raises
    ------
    ConfigError
        The password file cannot be read.
    """
    mqtt, station = config.mqtt, config.station
    password = None
    if mqtt.password_file is not None:
        try:
            password = mqtt.password_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"mqtt.password_file = {str(mqtt.password_file)!r}: cannot be read: {error}") from error
    return Endpoint(
        host=mqtt.host,
        port=mqtt.port,
        client_id=mqtt.client_id or f"lineward-{station.site}-{station.line}-{station.name}",
        username=mqtt.username,
        password=password,
        tls=None if mqtt.tls is None else Tls(mqtt.tls.ca_file, mqtt.tls.cert_file, mqtt.tls.key_file),
        protocol=mqtt.protocol,
        keepalive_s=mqtt.keepalive_s,
    )


def load_session(config: Config) -> Session:
    """Load and warm the configured model.

    Raises
    ------
    BundleError
        The bundle cannot be used; the message names it and the remedy.
    """
    path = resolve_model(config.storage.root, config.inspection.model)
    session = Session(path, providers=config.inspection.providers, intra_op_threads=config.inspection.threads)
    session.warm_up()
    return session


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
