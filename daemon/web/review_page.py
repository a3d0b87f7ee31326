"""Review: one part after the other, one key for each decision."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from typing import TYPE_CHECKING

from fastapi import Request  # noqa: TC002 - FastAPI reads the annotation
from nicegui import events, ui

from lineward.daemon.label_records import FAIL, FIRST, NEW, PASS, SETTLE, SKIP, LabelError, as_spelled, clean_type
from lineward.daemon.web import words
from lineward.daemon.web.pictures import MOST_VECTORS
from lineward.daemon.web.shell import button, div, frame, markup, picture_url, say, set_source, text, thumb

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from lineward.daemon.label_records import Part
    from lineward.daemon.web.people import Person
    from lineward.daemon.web.shell import Page
    from lineward.daemon.web.station import Station

SYNC_S = 3.0
NEAREST = 4
RECENT = 6
NUMBERED = 9
"""Defects that have a key; those after them are clicked."""
DAY_NS = 86_400 * 1_000_000_000
KEYS = (
    ("P", "pass"),
    ("F", "fail, then the number of the defect"),
    ("S", "skip"),
    ("U", "undo"),
    ("H", "heat-map"),
    ("+ - 0", "zoom, whole"),
)


def register(station: Station) -> None:
    """Add the page."""

    @ui.page("/review")
    async def review(request: Request) -> None:
        with frame(station, request, "/review") as page:
            if page is None:
                return
            await station.catch_up()
            desk = Desk(page)
        await desk.show()


class Desk:
    """One person labelling on one page.

    Parameters
    ----------
    settle
        Show parts on which people disagree; the decision given here ends the matter.
    """

    def __init__(self, page: Page, *, settle: bool = False) -> None:
        self._page = page
        self._settle = settle
        self._coming: list[tuple[Part, str]] = []
        self._now: tuple[Part, str] | None = None
        self._choosing = False
        self._heat = False
        self._gone: set[str] = set()
        self._writing = asyncio.Lock()
        self._filling = asyncio.Lock()
        self._given: deque[float] = deque(maxlen=60)
        self._types: list[str] = []
        with div("lw-desk"):
            with div("lw-stage"):
                self._viewer = div("lw-viewer").props(
                    'tabindex=0 role=group aria-label="Picture of the part; wheel and drag to zoom"'
                )
                with self._viewer, div("lw-sheet"):
                    self._picture = ui.element("img").props('alt=""').classes("lw-part")
                    self._overlay = ui.element("img").props('alt=""').classes("lw-heat")
                self._empty = text("", "lw-empty", "h1")
                with div("lw-keys"):
                    self._buttons = [
                        self._button("Pass", "P", "check_circle", "lw-b-pass", PASS),
                        self._button("Fail", "F", "cancel", "lw-b-fail", FAIL),
                        self._button("Skip", "S", "skip_next", "lw-b-skip", SKIP),
                    ]
                    button("Undo (U)", "undo", page.action("technician", self._undo))
                    button("Heat-map (H)", "local_fire_department", self._turn_heat)
                    button("Whole (0)", "fit_screen", None, "lw-quiet lw-whole")
                self._choice = div("lw-types")
            with ui.element("aside").classes("lw-side").props('aria-label="About this part"'):
                with div("lw-card") as self._card:
                    self._why = text("", "lw-why", "h2")
                    self._said = text("", "lw-said-line")
                    self._about = text("", "lw-muted")
                    self._votes = div("lw-votes")
                with div("lw-card") as self._alike:
                    text("Labelled parts that look most alike", "lw-h3", "h3")
                    self._near = markup("lw-near")
                with div("lw-card"):
                    self._count = text("", "lw-h3", "h3")
                    self._recent = markup("lw-recent")
                with ui.element("details").classes("lw-card"):
                    with ui.element("summary"):
                        text("Keys", tag="span")
                    for key, does in KEYS:
                        with div("lw-row"):
                            text(key, "lw-key", "kbd")
                            text(does, "lw-muted")
        self._overlay.set_visibility(False)
        ui.on("lw_key", self._key)
        ui.on("lw_broken", self._broken)
        ui.on("lw_no_heat", self._no_heat)
        ui.timer(SYNC_S, self._sync, immediate=False)

    def _button(self, name: str, key: str, icon: str, classes: str, decision: str) -> ui.button:
        made = button(f"{name} ({key})", icon, None, f"lw-decide {classes}")
        return _on_shown(made, lambda image: self._page.action("technician", self._decide)(decision, image))

    # ---- what is shown

    async def show(self) -> None:
        """Show the next part, or that there is none."""
        async with self._filling:  # the timer may come between; the same part must not be asked for twice
            found = await asyncio.to_thread(self._next) if self._now is None else None
            if self._now is None:
                self._now = found
            elif found is not None:  # a label was taken back meanwhile
                self._coming.insert(0, found)
        part = self._now[0] if self._now else None
        for key in self._buttons:
            key.set_visibility(part is not None)
        for element in (self._viewer, self._card, self._alike):
            element.set_visibility(part is not None)
        self._end_choice()
        self._votes.clear()
        self._near.set_content("")
        if part is None:
            nothing = "People agree on every part" if self._settle else "Nothing waits to be labelled"
            self._empty.set_text(self._page.station.flagged.trouble or nothing)
            for label in (self._why, self._said, self._about):
                label.set_text("")
            self._overlay.set_visibility(False)
        else:
            self._empty.set_text("")
            self._show_part(part)
        async with self._filling:  # the person looks at this one meanwhile
            await asyncio.to_thread(self._refill)
        await self._show_counts()
        ahead = [picture_url(other.image, "view") for other, _ in self._coming]
        ui.run_javascript(f"window.lineward && (lineward.whole(), lineward.prefetch({json.dumps(ahead)}))")
        if part is not None:
            await self._show_nearest(part)

    def _show_part(self, part: Part) -> None:
        set_source(self._picture, picture_url(part.image, "view"), f"Part {words.name(part)}")
        self._show_heat()
        self._why.set_text("People disagree on this part" if self._settle else words.WHY.get(part.why, part.why))
        self._said.set_text(f"The line said: {words.said(part)}")
        camera = f" · {part.camera}" if part.camera else ""
        self._about.set_text(
            f"Part {words.name(part)} · {words.when(part.created_ns)}{camera} · model {part.model_version or '-'}"
        )
        if self._settle:
            with self._votes:
                for label in self._page.station.labels.labels(part.image):
                    if label.undone_ns is None and label.decision != SKIP:
                        decided = words.label(label.decision, label.defect_type)
                        text(f"{label.person}: {decided}, {words.when(label.at_ns)}")

    async def _show_nearest(self, part: Part) -> None:
        station = self._page.station

        def find() -> list[Part]:
            labelled = station.labels.labelled(part.product, MOST_VECTORS)
            near = station.pictures.nearest(part.image, labelled, NEAREST)
            return [other for image in near if (other := station.labels.part(image)) is not None]

        near = await asyncio.to_thread(find)
        if self._now is None or self._now[0].image != part.image:
            return
        found = [
            thumb(
                other.image,
                f"Part {words.name(other)}",
                [(words.label(other.label, other.label_type), "")],
                f"lw-{other.label}",
            )
            for other in near
        ]
        self._near.set_content("".join(found) or '<div class="lw-muted">None yet</div>')

    async def _show_counts(self) -> None:
        labels, person = self._page.station.labels, self._page.person.name
        counts = await asyncio.to_thread(labels.counts, self._page.product)
        today = await asyncio.to_thread(labels.given_since, person, time.time_ns() - DAY_NS)
        pace = sum(1 for at in self._given if at > time.monotonic() - 60)
        waiting = counts.get("conflict", 0) if self._settle else counts.get("new", 0)
        self._count.set_text(f"{waiting} waiting · {today} by you today" + (f" · {pace} a minute" if pace else ""))
        last = await asyncio.to_thread(labels.last_labels, person, RECENT)
        self._recent.set_content(
            "".join(
                thumb(label.image, "", [(words.label(label.decision, label.defect_type), "")], f"lw-{label.decision}")
                for label in last
            )
        )

    def _next(self) -> tuple[Part, str] | None:
        """Take the next part that nobody else has labelled or has on the screen since it was put in the queue."""
        while True:
            if not self._coming:
                self._refill()
            if not self._coming:
                return None
            part, purpose = self._coming.pop(0)
            if self._page.station.pictures.path(part) is None:
                self._gone.add(part.image)
            elif purpose != FIRST or self._page.station.hold(part, self._page.person):
                return part, purpose

    def _refill(self) -> None:
        if len(self._coming) >= 3:
            return
        shown = [part.image for part, _ in ([self._now] if self._now else []) + self._coming] + list(self._gone)
        station = self._page.station
        if self._settle:
            found = [(part, SETTLE) for part in station.labels.parts(self._page.product, status="conflict", limit=20)]
        else:
            found = station.next_parts(self._page.product, self._page.person, shown=shown)
        self._coming += [(part, purpose) for part, purpose in found if part.image not in shown]

    async def _sync(self) -> None:
        await self._page.station.catch_up()
        if self._now is None:
            await self.show()
        elif self._now[1] == FIRST:  # it is theirs as long as they look at it
            await asyncio.to_thread(self._page.station.hold, self._now[0], self._page.person)

    # ---- what a person does

    async def _broken(self, event: events.GenericEventArguments) -> None:
        """Go on when the browser cannot show the picture and nor can anybody; else the browser asks for it again."""
        part = self._now[0] if self._now else None
        if part is None or part.image != str(event.args["image"]):
            return
        if await asyncio.to_thread(self._page.station.pictures.pixels, part.image) is not None:
            return
        self._gone.add(part.image)
        if self._now is not None and self._now[0] is part:
            self._now = None
            say(f"the picture of part {words.name(part)} is gone or cannot be read: here is the next one", bad=True)
            await self.show()

    def _no_heat(self) -> None:
        if self._heat:
            self._heat = False
            self._show_heat()
            say("there is no heat-map of this picture: no model is promoted, or it draws none", bad=True)

    async def _key(self, event: events.GenericEventArguments) -> None:
        key, image = str(event.args["key"]).lower(), str(event.args["image"])
        action = self._page.action
        if self._choosing and key == "escape":
            self._end_choice()
        elif self._choosing and (key == "enter" or (key.isdecimal() and 0 < int(key) <= len(self._types[:NUMBERED]))):
            await action("technician", self._fail)("" if key == "enter" else self._types[int(key) - 1], image)
        elif key in {"p", "f", "s"}:
            await action("technician", self._decide)({"p": PASS, "f": FAIL, "s": SKIP}[key], image)
        elif key == "u":
            await action("technician", self._undo)()
        elif key == "h":
            self._turn_heat()

    async def _decide(self, person: Person, decision: str, image: str) -> None:
        if decision != FAIL:
            await self._give(person, decision, "", image)
        elif self._now is not None and self._now[0].image == image:
            self._begin_choice()

    async def _fail(self, person: Person, defect_type: str, image: str) -> None:
        await self._give(person, FAIL, defect_type, image)

    async def _give(self, person: Person, decision: str, defect_type: str, image: str) -> None:
        """Label the part in force, if it is the one that the person saw: a second press is not for the next part."""
        if self._now is None or self._writing.locked() or self._now[0].image != image:
            return
        part, purpose = self._now
        station = self._page.station

        def give() -> bool:
            known = station.labels.part(part.image)
            if purpose == FIRST and known is not None and known.status != NEW:
                return False
            station.labels.give(part.image, person.name, decision, defect_type, purpose=purpose)
            return True

        async with self._writing:
            try:
                given = await asyncio.to_thread(give)
            except LabelError:
                gone = station.labels.part(part.image) is None or station.pictures.path(part) is None
                if gone:  # it must not block the way to the next one
                    self._gone.add(part.image)
                    self._now = None
                    await self.show()
                raise
        if not given:
            say(f"part {words.name(part)} was labelled meanwhile, in another window: here is the next one", bad=True)
        else:
            self._given.append(time.monotonic())
        self._now = None
        await self.show()

    async def _undo(self, person: Person) -> None:
        async with self._writing:  # of the label that was given last, though both keys came at once
            label = await asyncio.to_thread(self._page.station.labels.undo, person.name, self._page.product)
        if label is None:
            say("there is nothing to undo", bad=True)
            return
        part = await asyncio.to_thread(self._page.station.labels.part, label.image)
        if self._now is not None:
            self._coming.insert(0, self._now)
        self._now = (part, label.purpose) if part is not None else None
        if part is not None:
            await asyncio.to_thread(self._page.station.hold, part, person)
        if self._given:
            self._given.pop()
        await self.show()

    def _begin_choice(self) -> None:
        if self._now is None:
            return
        self._choosing = True
        self._types = self._page.station.defect_types(self._page.product)
        self._choice.clear()
        action = self._page.action
        with self._choice:
            text("Which defect?", "lw-h3", "h3")
            for number, name in enumerate(self._types, 1):
                self._type_button(f"{number} {name}" if number <= NUMBERED else name, name)
            self._type_button("Enter: not named", "")
            new = ui.input("New defect (N)").props('dense outlined maxlength=64 aria-label="Name of a new defect"')
            new.classes("lw-new-type")

            async def add(person: Person) -> None:
                if self._now is not None:  # the choice is closed when another part is shown
                    kind = as_spelled(clean_type(new.value or ""), self._page.station.defect_types(self._page.product))
                    await self._give(person, FAIL, kind, self._now[0].image)

            new.on("keydown.enter", action("technician", add))
        self._choice.classes(add="lw-open")

    def _type_button(self, title: str, name: str) -> None:
        _on_shown(button(title, None, None), lambda image: self._page.action("technician", self._fail)(name, image))

    def _end_choice(self) -> None:
        self._choosing = False
        self._choice.classes(remove="lw-open")
        self._choice.clear()

    def _turn_heat(self) -> None:
        self._heat = not self._heat
        self._show_heat()

    def _show_heat(self) -> None:
        self._overlay.set_visibility(self._heat and self._now is not None)
        if self._heat and self._now is not None:
            set_source(self._overlay, picture_url(self._now[0].image, ""), "")


def _on_shown(made: ui.button, act: Callable[[str], Awaitable[None]]) -> ui.button:
    """Let a click act on the picture that the person sees at that moment."""

    async def clicked(event: events.GenericEventArguments) -> None:
        await act(str(event.args))

    made.on("click", clicked, js_handler="() => emit(lineward.shown())")
    return made
