"""Live: what the line says about each part, readable from three metres; alarms with what to do about them."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from fastapi import Request  # noqa: TC002 - FastAPI reads the annotation
from nicegui import ui

from lineward.daemon.label_records import LABELLED
from lineward.daemon.web import words
from lineward.daemon.web.health_card import HealthCard
from lineward.daemon.web.passed_card import PassedCard
from lineward.daemon.web.shell import div, frame, picture_url, set_source, text

if TYPE_CHECKING:
    from lineward.daemon.web.feed import Answer, Snapshot
    from lineward.daemon.web.shell import Page
    from lineward.daemon.web.station import Station

LOOK_S = 1.0
STRIP = 12
WEEK_NS = 7 * 86_400 * 1_000_000_000
REJECTS_S = 30.0
WORDS = ("Line", "Camera", "Broker")
"""Tiles that hold words, in smaller letters than figures."""

GOOD_STATES = {"continuous_execution", "ready", "single_execution"}
GOOD_CAMERA = {"streaming", "degraded", "gives pictures"}
RUNNING = {"offline": "gone", "stopped": "stopped", "silent": "no parts come", "": "not known"}


def register(station: Station) -> None:
    """Add the page."""

    @ui.page("/")
    def live(request: Request) -> None:
        with frame(station, request, "/") as page:
            if page is not None:
                Live(page)


class Live:
    """One open live page; its timer ends with it."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._heat = False
        self._shown = ""
        self._rejects = ("-", "")
        self._rejects_at = float("-inf")
        with div("lw-live-top"):
            with div("lw-hero").props('aria-live="polite"') as self._hero:
                self._icon = ui.icon("hourglass_empty").classes("lw-hero-icon").props("aria-hidden=true")
                self._word = text("…", "lw-hero-word", "h1")
                self._about = text("", "lw-hero-about")
            with div("lw-live-picture"):
                with div("lw-over"):
                    self._picture = ui.element("img").props('alt=""')
                    self._overlay = ui.element("img").classes("lw-heat").props('alt=""')
                self._no_picture = text("No picture of the last parts was kept", "lw-empty")
                with div("lw-row"):
                    self._caption = text("", "lw-muted")
                    ui.switch("Heat-map", on_change=self._turn_heat)
        with div("lw-tiles"):
            self._tiles = {
                name: _Tile(name)
                for name in (
                    *("Parts a minute", "Passed, last hour", "To review, last hour", "Good parts rejected"),
                    *("Answer time", "Line", "Camera", "Broker"),
                )
            }
        text("Alarms", "lw-h2", "h2")
        self._alarms = div("lw-alarms")
        self._said: list[tuple[str, str]] | None = None
        text("Pictures", "lw-h2", "h2")
        self._health = HealthCard()
        text("Latest parts", "lw-h2", "h2")
        with div("lw-strip"):
            self._strip = [_Chip() for _ in range(STRIP)]
        text("Passed lately", "lw-h2", "h2")
        self._passed = PassedCard()
        ui.timer(LOOK_S, self._look)

    async def _look(self) -> None:
        station = self._page.station
        snapshot = await asyncio.to_thread(station.feed.snapshot)
        # The page's own index learns of a picture a moment after the ledger does.
        newest = next((answer.image for answer in snapshot.answers if answer.image), "")
        if newest != self._shown:
            await station.catch_up()
        await self._look_at_rejects()
        self._show(snapshot)

    async def _look_at_rejects(self) -> None:
        if time.monotonic() - self._rejects_at < REJECTS_S:
            return
        self._rejects_at = time.monotonic()
        parts = await asyncio.to_thread(
            self._page.station.labels.parts, self._page.product, status=LABELLED, since_ns=time.time_ns() - WEEK_NS
        )
        looked = [part for part in parts if part.verdict == "fail"]
        good = sum(part.label == "pass" for part in looked)
        self._rejects = (
            (f"{good} of {len(looked)}", "rejected parts that people looked at, 7 days")
            if looked
            else (
                "-",
                "label rejected parts to know",
            )
        )

    def _show(self, now: Snapshot) -> None:
        last = now.answers[0] if now.answers else None
        verdict = last.verdict if last else ""
        self._hero.classes(replace=f"lw-hero lw-{verdict or 'none'}")
        self._icon.set_name(words.ICON.get(verdict, "hourglass_empty"))
        self._word.set_text(words.VERDICT.get(verdict, "NO PARTS YET"))
        self._about.set_text(_about(last) if last else "")
        self._show_picture(now)
        total = sum(now.hour.values())
        share = now.passed_share
        tiles = self._tiles
        tiles["Parts a minute"].set(f"{now.per_minute:.0f}", f"{total} in the last hour")
        tiles["Passed, last hour"].set("-" if share is None else f"{share:.1%}", f"{now.hour.get('fail', 0)} rejected")
        review = now.hour.get("review", 0)
        undecided = now.hour.get("undecided", 0)
        tiles["To review, last hour"].set(str(review), f"{undecided} without an answer", bad=undecided > 0)
        tiles["Good parts rejected"].set(*self._rejects)
        tiles["Answer time"].set(
            "-" if now.p99_ms is None else f"{now.p99_ms:.0f} ms",
            "" if now.p50_ms is None else f"99 of 100 parts; half within {now.p50_ms:.0f} ms",
        )
        state = words.STATE.get(now.running, RUNNING.get(now.running, now.running))
        tiles["Line"].set(state, f"{now.product} {now.model}".strip(), bad=now.running not in GOOD_STATES)
        tiles["Camera"].set(now.camera or "not known", "", bad=now.camera not in GOOD_CAMERA)
        connected = now.broker == "connected"
        tiles["Broker"].set(
            "connected" if connected else "not reached", "" if connected else now.broker, bad=not connected
        )
        alarms = [(trouble.severity, trouble.text) for trouble in now.troubles]
        if alarms != self._said:
            self._said = alarms
            self._alarms.clear()
            with self._alarms:
                for severity, said in alarms:
                    with div(f"lw-alarm lw-{severity}").props('role="alert"'):
                        ui.icon("warning" if severity == "warning" else "error").props("aria-hidden=true")
                        text(said)
                if not alarms:
                    text("None. All is well.", "lw-muted")
        self._health.show(now.watch)
        for number, chip in enumerate(self._strip):
            chip.show(now.answers[number] if number < len(now.answers) else None)
        self._passed.show(now.passed)

    def _show_picture(self, now: Snapshot) -> None:
        with_picture = next((answer for answer in now.answers if answer.image), None)
        self._no_picture.set_visibility(with_picture is None)
        self._picture.set_visibility(with_picture is not None)
        self._overlay.set_visibility(with_picture is not None and self._heat)
        if with_picture is None:
            self._caption.set_text("")
            return
        self._shown = with_picture.image
        name = with_picture.part_id or f"no. {with_picture.seq}"
        set_source(self._picture, picture_url(self._shown, "view"), f"Part {name}")
        if self._heat:
            set_source(self._overlay, picture_url(self._shown, ""), "")
        verdict = words.VERDICT.get(with_picture.verdict, with_picture.verdict)
        self._caption.set_text(f"Last kept picture: part {name}, {verdict}, {words.when(with_picture.at_ns)}")

    def _turn_heat(self, event: object) -> None:
        self._heat = bool(getattr(event, "value", False))
        self._overlay.set_visibility(self._heat)
        if self._heat and self._shown:
            set_source(self._overlay, picture_url(self._shown, ""), "")


class _Tile:
    def __init__(self, title: str) -> None:
        self._classes = "lw-tile lw-words" if title in WORDS else "lw-tile"
        with div(self._classes) as self._box:
            text(title, "lw-tile-title")
            self._value = text("-", "lw-tile-value")
            self._more = text("", "lw-tile-more")

    def set(self, value: str, more: str = "", *, bad: bool = False) -> None:
        self._value.set_text(value)
        self._more.set_text(more)
        self._box.classes(replace=f"{self._classes} lw-bad" if bad else self._classes)


class _Chip:
    def __init__(self) -> None:
        with div("lw-chip") as self._box:
            self._verdict = text("", "lw-chip-verdict")
            self._name = text("", "lw-chip-name")
            self._more = text("", "lw-chip-more")

    def show(self, answer: Answer | None) -> None:
        self._box.set_visibility(answer is not None)
        if answer is None:
            return
        self._box.classes(replace=f"lw-chip lw-{answer.verdict}")
        self._verdict.set_text(words.VERDICT.get(answer.verdict, answer.verdict))
        self._name.set_text(answer.part_id or f"no. {answer.seq}")
        self._more.set_text(_more(answer))


def _about(answer: Answer) -> str:
    name = answer.part_id or f"no. {answer.seq}"
    return f"Part {name} · {_more(answer)} · {answer.ms:.0f} ms · {words.when(answer.at_ns)}"


def _more(answer: Answer) -> str:
    if answer.verdict in {"review", "undecided"}:
        return words.REASON.get(answer.reason, answer.reason.replace("_", " "))
    kind = f"{answer.defect_type}, " if answer.defect_type and answer.verdict == "fail" else ""
    return f"{kind}{answer.confidence:.0%} sure"
