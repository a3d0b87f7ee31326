"""A running station: everything it consists of, made in the order in which one part needs the other."""

from __future__ import annotations

import json
import logging
import sqlite3
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lineward.daemon.answers import Answers
from lineward.daemon.changeover import Changeover
from lineward.daemon.clock import DeadlineClock
from lineward.daemon.commands import Commands
from lineward.daemon.config import ConfigError
from lineward.daemon.control import ControlSocket
from lineward.daemon.endpoint import SecretError, endpoint_of
from lineward.daemon.frames import FrameSource
from lineward.daemon.health import Alarms, Health
from lineward.daemon.ledger import Ledger
from lineward.daemon.ledger_read import LedgerReader
from lineward.daemon.notify import Systemd
from lineward.daemon.novelty import NEWEST, REMEMBERED
from lineward.daemon.publish import Publisher
from lineward.daemon.recipes import Recipes
from lineward.daemon.reload import answer_on_socket
from lineward.daemon.result import rfc3339
from lineward.daemon.review import Keeping, ReviewStore
from lineward.daemon.states import Event, State, StateMachine, Status
from lineward.daemon.triggers import Part, Reason, TriggerBook
from lineward.daemon.wall_clock import WallClock
from lineward.daemon.watch.watcher import Watch
from lineward.drivers.process import CameraProcess

if TYPE_CHECKING:
    import threading
    from contextlib import ExitStack
    from queue import SimpleQueue

    from lineward.daemon.commands import Acknowledge
    from lineward.daemon.config import Config
    from lineward.daemon.endpoint import Endpoint
    from lineward.daemon.ledger import TriggerRow
    from lineward.daemon.recipes import ActiveRecipe
    from lineward.daemon.reload import Answer

log = logging.getLogger("lineward.run")

STOP_DRAIN_S = 0.4
"""After SIGTERM the broker gets this long to acknowledge; what is left stays in the outbox for the next start. A replay
that has ended and waits for the broker hears it too."""

KILLED_S = 60.0
"""So long after a start the alarm stays that the service had not been stopped in order."""

LOOK_S = 0.5
"""How often the loop looks at what others have to say."""


class Line:
    """Everything a running station consists of; taken down in the opposite order by ``stack``."""

    _recipe_before = ""

    def __init__(self, config: Config, stop: threading.Event, stack: ExitStack) -> None:
        root = config.storage.root
        self.drain_s = STOP_DRAIN_S
        self._stop = stop
        self._looked_at = float("-inf")
        self._started_at = time.monotonic()
        self._wall_clock = WallClock()
        self.systemd = Systemd()
        stack.callback(self.systemd.close)
        self.reloads: SimpleQueue[Answer | None] | None = None
        self.health = Health(root)
        self.alarms = Alarms()
        self.ledger = Ledger(
            root, keep_rows=config.storage.ledger_rows, outbox_bytes=round(config.storage.outbox_mb * 1e6)
        )
        stack.callback(self.ledger.close)
        self._recall_reviews(root)
        self.recipes = Recipes(config)
        self.book = TriggerBook(self.ledger.note_trigger)
        self.publisher = Publisher(
            endpoint(config),
            config.station.base_topic,
            deadline_ms=config.inspection.deadline_ms,
            ledger=self.ledger,
            stats=self._stats,
            on_command=self._obey,
        )
        self.alarms.on_change = self.publisher.set_alarms
        stack.callback(self._close_publisher)
        self.alarms.set("storage", self.ledger.trouble, logged=True)
        self.review = ReviewStore(
            root,
            self.ledger,
            Keeping.of(config),
            on_trouble=lambda text: self.alarms.set("images", text),
            on_disk=lambda text: self.alarms.set("disk", text),
        )
        stack.callback(self.review.close)
        self.watch: Watch | None = None
        if config.watch.enabled:
            self.watch = Watch(root, self.alarms, parts=config.watch.commission_parts, guard=config.watch.guard)
            stack.callback(self.watch.close)
        self.answers = Answers(
            self.book,
            ledger=self.ledger,
            results=self.publisher,
            review=self.review,
            pulse=self.health,
            alarms=self.alarms,
        )
        self._answer_what_was_left()
        stack.callback(self._answer_what_waits)
        self.clock = DeadlineClock(self.book, self.answers)
        stack.callback(self.clock.close)
        self.changeover = Changeover(self.recipes, self.book, self.alarms, self._changed_over)
        stack.callback(self.changeover.close)
        camera = config.camera
        self.commands = Commands(self.book, self.answers, self.changeover, self.alarms, trigger=camera.trigger)
        self.control = ControlSocket(root, self._obey_local)
        stack.callback(self.control.close)
        if config.metrics.port:
            from lineward.daemon.metrics import serve  # noqa: PLC0415 - costs 30 ms and is off by default

            stack.callback(serve(config, self._stats, self.alarms))
        self.states = StateMachine(self._show_state)
        self._show_state(self.states.status)
        self.recipe = self.recipes.remembered(self.alarms)
        options = camera.driver_options()
        if camera.driver == "simulated":  # its line goes on while its process is replaced, as a real one would
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="lineward-camera-"))
            options["memory"] = str(Path(folder) / "line")
        self.camera = CameraProcess(
            camera.driver, options, silence_limit_s=camera.silence_s, hurry=stop, alive=self.beat
        )
        self.source = FrameSource(
            self.camera,
            self.recipe.settings,
            trigger=camera.trigger,
            memory_mb=camera.memory_mb,
            silent_s=camera.silent_s,
            stop=stop,
            states=self.states,
            alarms=self.alarms,
            health=self.health,
            book=self.book,
            answers=self.answers,
            alive=self.beat,
        )
        stack.callback(self.source.close)

    def _recall_reviews(self, root: Path) -> None:
        """Remember what went to review before the restart; without it, it is learnt anew."""
        reader = LedgerReader(root / "ledger.sqlite3")
        with suppress(sqlite3.Error):
            self.health.novelty.recall(reversed(reader.select(NEWEST, REMEMBERED)))
        reader.close()

    def start(self) -> None:
        """Connect to the broker and take commands; a trigger is answered from now on, a model or not."""
        self.clock.start()
        self.publisher.start()
        self.control.start()

    def use(self, recipe: ActiveRecipe) -> None:
        """Take the first recipe into service."""
        self.book.activate(recipe)
        self._tell_provider(recipe)
        if self.watch is not None:
            self.watch.use(recipe)
        self._recipe_before = recipe.name
        self.states.handle(Event.MODEL_READY)
        self.changeover.start()

    def _in_force(self, recipe: ActiveRecipe) -> None:
        self._tell_provider(recipe)
        if self.watch is not None:
            self.watch.use(recipe)
        self._show_state(self.states.status)

    def _changed_over(self, recipe: ActiveRecipe) -> None:
        if recipe.name != self._recipe_before:
            self.health.novelty.begin_anew()  # it may ask a person at other scores
        self._recipe_before = recipe.name
        self._in_force(recipe)

    def _tell_provider(self, recipe: ActiveRecipe) -> None:
        session = recipe.session
        missing = ", ".join(session.missing_providers)
        self.alarms.set(
            "provider",
            f"{missing} is not available, {session.providers[0]} judges instead; install the matching onnxruntime"
            if missing
            else "",
            severity="warning",
        )

    def _obey(self, name: str, payload: bytes, retained: bool) -> None:  # noqa: FBT001 - as the publisher calls it
        self.commands.handle(name, payload, retained=retained, acknowledge=self.publisher.acknowledge_command)

    def _obey_local(self, name: str, payload: bytes, acknowledge: Acknowledge) -> None:
        if name == "reload" and self.reloads is not None:
            self.reloads.put(answer_on_socket(acknowledge))
            return
        local = {"stats": self._local_stats, "watch_reset": self._watch_reset}.get(name)
        if local is not None:
            acknowledge(name, json.dumps(local()).encode())
            return
        self.commands.handle(name, payload, retained=False, acknowledge=acknowledge)

    def _local_stats(self) -> dict[str, Any]:
        """Return everything that is known of the station: for `lineward top` and `lineward support-bundle`."""
        alarms = {name: alarm.to_json() for name, alarm in self.alarms.raised().items()}
        return {"ok": 1, "reason": "", "status": self.in_words(), "alarms": alarms, "stats": self._stats()}

    def _watch_reset(self) -> dict[str, Any]:
        done = self.watch is not None and self.watch.reset()
        return {"ok": int(done), "reason": "" if done else "off" if self.watch is None else "not_ready"}

    def _answer_what_was_left(self) -> None:
        """Answer what an earlier process accepted and did not live to answer: late, so no PLC sees it."""
        left = self.ledger.open_triggers()
        for row in left:
            self.answers.undecided(_part_of(row), Reason.ERROR, late=True)
        if left:
            log.warning(
                "%d parts were asked for before the last stop and never inspected: answered as undecided", len(left)
            )
        if self.ledger.was_killed:
            self.alarms.set(
                "killed",
                "the service ended without being stopped: it was killed, it crashed, or the power failed; parts asked "
                f"for and not inspected: {len(left)}; look at `journalctl -u lineward`",
                severity="warning",
            )

    def _answer_what_waits(self) -> None:
        """Answer the triggers that the loop did not come to before it was told to stop."""
        for part in self.book.close():
            self.answers.undecided(part, Reason.ERROR)

    def beat(self) -> None:
        """Say that the loop is well, after each part and at least once a second without one; never blocks or raises."""
        self.publisher.beat()
        self.systemd.alive(self.in_words)
        now = time.monotonic()
        if now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        self.commands.look()
        self.alarms.set("broker", self.publisher.trouble, severity="warning", logged=True)
        self.alarms.set("storage", self.ledger.trouble, logged=True)
        self.alarms.set("outbox", self.ledger.outbox_trouble, severity="warning")
        self.alarms.set("clock", self._wall_clock.trouble(), severity="warning")
        self.alarms.set("novel", self.health.novelty.text(), severity="warning")
        if now - self._started_at > KILLED_S:
            self.alarms.set("killed", "")

    def _show_state(self, status: Status) -> None:
        active = self.book.active
        if status.state in {State.READY, State.CONTINUOUS_EXECUTION}:
            self.systemd.ready(self.in_words())
        self.publisher.set_state(
            {
                "state": status.state,
                "reason": status.reason,
                "product": "" if active is None else active.product,
                "model": "" if active is None else active.model.version,
                "recipe": "" if active is None else active.name,
                "since": rfc3339(status.since_unix_ns),
            }
        )

    def in_words(self) -> str:
        """Say what the station does: for a person who asks `systemctl status`."""
        status, active = self.states.status, self.book.active
        words = [str(status.state).replace("_", " ")]
        if status.reason:
            words.append(status.reason.replace("_", " "))
        if active is not None:
            words.append(f"{active.product}, model {active.model.version}")
        words.append(f"{self.health.rate_hz():.1f} parts/s, {self.health.answers} answers")
        raised = self.alarms.raised()
        if raised:
            words.append("alarms: " + ", ".join(sorted(raised)))
        return "; ".join(words)

    def _stats(self) -> dict[str, Any]:
        stats = self.health.stats()
        stats["mqtt"] = self.publisher.counters()
        stats["images"] = {
            "kept": self.review.kept,
            "dropped": self.review.dropped,
            "deleted": self.review.quota.let_go,
            "thumbnails": self.review.thumbnails_kept,
            "thumbnails_dropped": self.review.thumbnails_dropped,
        }
        stats["triggers_waiting"] = self.book.waiting
        stats["watch"] = {"state": "off"} if self.watch is None else self.watch.stats()
        return stats

    def _close_publisher(self) -> None:
        self.systemd.stopping()
        self.states.handle(Event.STOP, "stopped")
        # Without a broker there is nothing to wait for when we are told to stop; after a replay it may come back.
        wait = self.drain_s > STOP_DRAIN_S or self.publisher.connected
        left = self.publisher.close(self.drain_s if wait else 0.0, hurry=self._stop, hurried_s=STOP_DRAIN_S)
        log.info("stopped after %d answers%s", self.health.answers, f"; {left} stay in the outbox" if left else "")


def _part_of(row: TriggerRow) -> Part:
    """Make a part of what an earlier process wrote down; its age is reckoned on the wall clock, for want of another."""
    age_ns = max(0, time.time_ns() - row.given_ns)
    return Part(row.part_id, row.trigger_id, time.monotonic_ns() - age_ns, None, None, trigger_no=row.no)


def endpoint(config: Config) -> Endpoint:
    """Say where the broker is and who we are there.

    Raises
    ------
    ConfigError
        The password file cannot be read.
    """
    try:
        return endpoint_of(config.mqtt, config.station)
    except SecretError as error:
        raise ConfigError(str(error)) from error
