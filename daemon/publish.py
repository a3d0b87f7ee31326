"""Results on their way to the line: `Publisher` hands them to the broker from a thread of its own.

Two streams leave here. `result` carries every answer in order, out of the ledger's outbox whenever the direct way was
not open, and an answer leaves the outbox only when the broker has acknowledged it. `result/plc`, `result/verdict` and
`result/part_id` carry an answer now or never: a PLC must not act on a part that is gone. Commands come in by the same
connection and are acknowledged on it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lineward.daemon.broker_trouble import QUICK_LOSS_S, BrokerTrouble
from lineward.daemon.endpoint import Endpoint, Tls
from lineward.daemon.freshness import Freshness
from lineward.daemon.inbox import Inbox
from lineward.daemon.mqtt import Connection
from lineward.daemon.outbox import Outbox
from lineward.daemon.result import plc_string
from lineward.daemon.retry import delay_s
from lineward.daemon.standing import Standing, to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lineward.daemon.inbox import OnCommand
    from lineward.daemon.ledger import Ledger
    from lineward.daemon.result import Result

__all__ = ["Endpoint", "Publisher", "Tls"]

log = logging.getLogger("lineward.mqtt")

HEARTBEAT_S = 1.0
STATS_S = 10.0
CONNECT_S = 3.0
FRESH_QUEUE = 256
"""Answers that may wait for this thread; beyond that they come from the ledger, late for a PLC."""
ANSWER_MESSAGES = 4
"""What one answer is on the wire: `result/plc`, `result/verdict`, `result/part_id`, `result`."""
FULL_PAUSE_S = 0.005
KEPT_FREE = 8
"""Places of the window that a backlog may not take."""
BURST_ROWS = 8
BUSY_ROWS = 2
BUSY_SHARE = 0.1
"""Of this thread's time, so much goes to a backlog while parts are being answered: they need processor and broker. At
full pace 20 parts a second waited for each other, 100 ms each."""
BUSY_S = 1.0
BREATH_S = 0.0002
"""After so many rows of a backlog the thread sleeps so long. Without it the loop waits for Python's lock: `record` took
4.8 ms at p99 during a drain."""
AGAIN_S = 10.0
"""How long an answer waits that the broker did not take, for access rules or its limits; those for the PLC go on."""
GIVE_UP_S = 0.8
"""The longest a stop waits for a thread that may hang in a TCP connect."""


@dataclass(frozen=True, slots=True)
class _Handed:
    result: Result
    useful_until_s: float  # monotonic


class Publisher:
    """Talks to the broker for one station. Every method returns at once, except `close` and `wait_connected`.

    Parameters
    ----------
    endpoint
        The broker.
    base_topic
        ``lineward/<site>/<line>/<station>``.
    deadline_ms
        Time from trigger to answer, in milliseconds.
    ledger
        Where unacknowledged results are read from and acknowledged.
    stats
        Gives the payload of `stats`, every 10 s; called in this thread.
    alive_s
        `heartbeat` is published only while the last `beat` is younger than this, in seconds.
    on_command
        Called in this thread for each command, as `Inbox` describes; without it nothing is subscribed to.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        base_topic: str,
        *,
        deadline_ms: float,
        ledger: Ledger,
        stats: Callable[[], Mapping[str, Any]] | None = None,
        alive_s: float = 3.0,
        on_command: OnCommand | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._base = base_topic.rstrip("/") + "/"
        self._freshness = Freshness(deadline_ms / 1000)
        self._ledger = ledger
        self._stats = stats
        self._alive_s = alive_s
        self._fresh: deque[_Handed] = deque()
        self._outbox = Outbox(ledger)
        self._inbox = None if on_command is None else Inbox(self._base, on_command)
        self._standing = Standing(self._wake)
        self._beat_s = float("-inf")
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._awake = False
        self._stop = threading.Event()
        self._up = threading.Event()
        self._trouble = BrokerTrouble(endpoint)
        self._handed_s = float("-inf")
        self._backlog_s = 0.0  # when the next rows of a backlog may go
        self._heartbeat = 0
        self._due = {"heartbeat": 0.0, "stats": 0.0}
        self.published = 0
        """Messages sent on `result`, repetitions included."""
        self.acknowledged = 0
        self.connections = 0
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)

    def start(self) -> Publisher:
        """Start the thread; it connects, and reconnects, by itself."""
        self._thread.start()
        return self

    # ---- called by the loop and by others

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted us and our `online`."""
        return self._up.is_set()

    @property
    def trouble(self) -> str:
        """What is wrong with the broker and what to do about it, in one line; empty when all is well."""
        return self._trouble.text(connected=self.connected)

    def counters(self) -> dict[str, int | float | bool]:
        """Return what `stats` says about MQTT; ``outage_s`` is seconds without a broker since the start."""
        return {
            "connected": self.connected,
            "published": self.published,
            "acknowledged": self.acknowledged,
            "reconnects": max(0, self.connections - 1),
            "outage_s": round(self._trouble.outage_s, 1),
            "outbox": self._ledger.outbox_size,
            "commands": 0 if self._inbox is None else self._inbox.received,
            "acknowledgements_lost": 0 if self._inbox is None else self._inbox.acks_lost,
        }

    def wait_connected(self, timeout_s: float) -> bool:
        """Wait until the broker has accepted us; False when the time is over."""
        return self._up.wait(timeout_s)

    def publish(self, result: Result) -> Result:
        """Hand over a recorded result; never blocks and never fails.

        Returns the result with ``latency.publish`` filled in and ``latency.total`` grown by it (milliseconds).
        """
        began_ns = time.perf_counter_ns()
        up = self._up.is_set()
        self._handed_s = time.monotonic()
        useful_until_s = self._freshness.useful_until_s(result)
        if up or result.deadline_unix_ns is None:
            self._outbox.expect(result.seq, useful_until_s)
        if up and len(self._fresh) < FRESH_QUEUE:
            self._fresh.append(_Handed(result, useful_until_s))
        else:
            self._outbox.look_again()  # the ledger has it
        self._wake()
        publish_ms = (time.perf_counter_ns() - began_ns) / 1e6
        latency = result.latency
        return replace(result, latency=replace(latency, publish=publish_ms, total=latency.total + publish_ms))

    def acknowledge_command(self, name: str, payload: bytes) -> None:
        """Publish the acknowledgement of a command on ``ack/<name>``, from any thread; never blocks and never fails.

        Acknowledgements keep their order and go before results of the outbox. Like an answer for the PLC they go out
        on this connection or never.
        """
        if self._inbox is not None and self._up.is_set():
            self._inbox.acknowledge(name, payload)
            self._wake()

    def beat(self) -> None:
        """Say that the inspection loop is alive, judging or waiting for a part; without it `heartbeat` stops."""
        self._beat_s = time.monotonic()

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Publish the retained `state`, now and at every connect."""
        self._standing.set("state", state)

    def set_alarms(self, alarms: Mapping[str, Mapping[str, Any]]) -> None:
        """Publish the retained `alarm`: one object, alarm id -> {raised, since, severity, text}.

        A raised alarm that is missing from ``alarms`` is published once more as cleared, until the next change.
        """
        self._standing.set_alarms(alarms)

    def close(self, drain_s: float = 0.0, *, hurry: threading.Event | None = None, hurried_s: float = 0.0) -> int:
        """Wait until the outbox is empty, at most ``drain_s``; then say `stopped` and hang up.

        Once ``hurry`` is set it is waited for ``hurried_s`` at most. Returns how many results stay in the outbox. Takes
        at most 1 s longer than it waits.
        """
        end = time.monotonic() + drain_s
        while self._thread.is_alive() and self._ledger.outbox_size and time.monotonic() < end:
            time.sleep(0.005)
            if hurry is not None and hurry.is_set():
                hurry, end = None, min(end, time.monotonic() + hurried_s)
        self._stop.set()
        self._wake()
        if self._thread.is_alive():
            self._thread.join(GIVE_UP_S)
        if self._thread.is_alive():
            log.warning("broker %s: still connecting, not waited for", self._endpoint)
        else:
            with self._standing.lock:
                if self._wake_fd >= 0:
                    os.close(self._wake_fd)
                self._wake_fd = -1
        return self._ledger.outbox_size

    # ---- helpers of both sides

    def _wake(self) -> None:
        if not self._awake and self._wake_fd >= 0:
            self._awake = True
            os.eventfd_write(self._wake_fd, 1)

    # ---- the thread

    def _run(self) -> None:
        attempt = 0
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                self._live()
            except OSError as error:
                lived_s = time.monotonic() - began if self._up.is_set() else 0.0
                attempt = 1 if lived_s > QUICK_LOSS_S else attempt + 1
                self._lost(error, lived_s)
            except Exception as error:  # a bug here must not silence the station for good
                log.exception("broker %s: unexpected trouble", self._endpoint)
                attempt += 1
                self._lost(OSError(str(error)), 0.0)
            else:
                return
            finally:
                self._up.clear()
                self._fresh.clear()
                self._outbox.lost()
                if self._inbox is not None:
                    self._inbox.forget()
            self._stop.wait(delay_s(self._last_error, attempt))

    _last_error: OSError = OSError()

    def _lost(self, error: OSError, lived_s: float) -> None:
        self._last_error = error
        self._trouble.lost(error, lived_s)

    def _live(self) -> None:
        """Live through one connection; returns only when asked to stop."""
        silence_s = max(2.0, 2 * self._freshness.deadline_s)
        link = Connection(
            self._endpoint, self._base + "availability", b"offline", timeout_s=CONNECT_S, silence_s=silence_s
        )
        try:
            self._greet(link)
            while not self._stop.is_set():
                self._awake = False
                self._take(link.step(self._pause_s(link), self._wake_fd))
                self._note_refusals(link)
                self._read_wake()
                self._obey(link)
                self._answer(link)
                self._deliver(link)
                self._tick(link)
            self._tick(link)
            self._publish_stats(link)  # the retained figures must be the final ones
            link.publish(self._base + "availability", b"stopped", retain=True)
            self._take(link.finish(0.6))
        finally:
            link.abort()

    def _greet(self, link: Connection) -> None:
        """Subscribe, publish the state and, after it, `online`: the broker may hold the `offline` of our last will."""
        self._fresh.clear()
        self._outbox.restart()
        if self._inbox is not None:
            link.subscribe([self._inbox.topic_filter], timeout_s=CONNECT_S)
        for name, payload in self._standing.everything().items():
            link.publish(self._base + name, payload, retain=True)
        link.publish(self._base + "availability", b"online", retain=True)
        self.connections += 1
        self._due["stats"] = 0.0
        self._trouble.over(f"{self._ledger.outbox_size} results waiting")
        self._up.set()

    def _read_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)

    def _pause_s(self, link: Connection) -> float:
        """Return how long the next step may wait: not at all while there is something to send and room for it."""
        if self._fresh:
            return 0.0 if link.room >= _answer_room(link) else FULL_PAUSE_S
        if self._standing.changed or self._stop.is_set():
            return 0.0
        now = time.monotonic()
        pause_s = max(0.0, min(self._due.values()) - now)
        if self._outbox.waiting and link.room > _kept_free(link):
            pause_s = min(pause_s, max(0.0, self._backlog_s - now))
        if self._inbox is None:
            return pause_s
        if self._inbox.waiting and link.room > 0:
            return 0.0
        return min(pause_s, self._inbox.pause_s()) if link.received else pause_s

    def _take(self, acked: list[int]) -> None:
        if acked:
            self.acknowledged += len(acked)
            self._outbox.acknowledged(acked)

    def _note_refusals(self, link: Connection) -> None:
        """Let a message that the broker does not take cost nothing but itself; answers are tried again, in order."""
        self._trouble.refused(link.refusals)
        for seq in link.denied():
            self._outbox.refused(seq)
            self._backlog_s = time.monotonic() + AGAIN_S

    def _obey(self, link: Connection) -> None:
        """Send acknowledgements, and take commands unless an answer waits: in a flood answers would find no room."""
        if self._inbox is not None and not self._fresh:
            self._inbox.obey(link)
        elif self._inbox is not None:
            self._inbox.send(link)

    def _answer(self, link: Connection) -> None:
        """Send what was handed over: to the PLC now or never, to `result` when everything before it is out."""
        while self._fresh:
            if link.room < _answer_room(link):
                if time.monotonic() > self._fresh[0].useful_until_s:
                    self._outbox.overtaken(self._fresh.popleft().result.seq)
                    continue
                return
            if self._inbox is not None:
                self._inbox.send(link)  # a trigger is acknowledged before it is answered
            handed = self._fresh.popleft()
            result = handed.result
            in_time = time.monotonic() <= handed.useful_until_s
            # Behind a stalled link an answer would lie in the kernel's buffer and come out when the link does.
            told = in_time and link.waiting_s < max(self._freshness.allowed_s(result), 0.1)
            if told:
                expiry_s = max(1, round(2 * self._freshness.allowed_s(result)))
                link.publish(self._base + "result/plc", result.plc_payload(), expiry_s=expiry_s)
                link.publish(self._base + "result/verdict", str(result.verdict).encode())
                link.publish(self._base + "result/part_id", plc_string(result.part_id).encode())
            if self._outbox.is_next(result.seq):
                late = result.late or not told
                self._send(link, result.seq, result.payload(late=late), late)
            else:
                self._outbox.overtaken(result.seq, told=told)

    def _deliver(self, link: Connection) -> None:
        """Send rows of the outbox, lowest first; stops for an answer that comes in between."""
        self._outbox.refresh()
        began = time.monotonic()
        if not self._outbox.waiting or link.room <= _kept_free(link) or self._fresh or began < self._backlog_s:
            return
        if began - self._handed_s < BUSY_S:
            self._burst(link, BUSY_ROWS)
            ended = time.monotonic()
            self._backlog_s = ended + (ended - began) * (1 / BUSY_SHARE - 1)
        else:
            self._burst(link, BURST_ROWS)
            time.sleep(BREATH_S)

    def _burst(self, link: Connection, rows: int) -> None:
        for _ in range(min(rows, link.room - _kept_free(link))):
            if self._fresh:
                return
            row = self._outbox.next()
            if row is None:
                return
            self._send(link, *row)

    def _send(self, link: Connection, seq: int, payload: bytes, late: bool) -> None:  # noqa: FBT001 - as `Outbox.next` gives it
        link.publish(self._base + "result", payload, tag=seq)
        self._outbox.sent(seq, late=late)
        self.published += 1

    def _tick(self, link: Connection) -> None:
        """Publish what changed, the heartbeat and the statistics."""
        for name, payload in self._standing.news().items() if self._standing.changed else ():
            link.publish(self._base + name, payload, retain=True)
        now = time.monotonic()
        if now >= self._due["heartbeat"]:
            self._due["heartbeat"] = now + HEARTBEAT_S
            if now - self._beat_s < self._alive_s:
                self._heartbeat = (self._heartbeat + 1) & 0x7FFFFFFF
                link.publish(self._base + "heartbeat", str(self._heartbeat).encode())
        if now >= self._due["stats"]:
            self._due["stats"] = now + STATS_S
            self._publish_stats(link)

    def _publish_stats(self, link: Connection) -> None:
        if self._stats is None:
            return
        try:
            payload = to_json(self._stats())
        except Exception:  # somebody else's numbers must not cut the line off
            log.exception("stats are not published")
        else:
            link.publish(self._base + "stats", payload, retain=True)


def _answer_room(link: Connection) -> int:
    return min(ANSWER_MESSAGES, link.window)


def _kept_free(link: Connection) -> int:
    return min(KEPT_FREE, link.window // 2)
