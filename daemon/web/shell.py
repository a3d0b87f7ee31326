"""What every page has: head line, who is signed in, product, light or dark; and what every action goes through."""

from __future__ import annotations

import asyncio
import inspect
import logging
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from nicegui import Client, ui

from lineward.daemon.label_records import LabelError
from lineward.daemon.web.guard import address
from lineward.daemon.web.jobs import JobError
from lineward.daemon.web.people import ForbiddenError
from lineward.daemon.web.station import SIGNED_OUT, Access
from lineward.daemon.web.transfer import TransferError
from lineward.models.bundle import BundleError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fastapi import Request

    from lineward.daemon.web.people import Person
    from lineward.daemon.web.station import Station

log = logging.getLogger("lineward.web")

OWNERS: dict[str, str] = {}
"""The session token that each open page (NiceGUI client) was made for."""

PAGES = (
    ("/", "Live", "operator"),
    ("/review", "Review", "technician"),
    ("/conflicts", "Agreement", "technician"),
    ("/data", "Data", "technician"),
    ("/improve", "Improve", "technician"),
)
CHECK_S = 15.0
LEAVE_S = 1.0
REFUSALS = (ForbiddenError, LabelError, JobError, TransferError, BundleError)
DARK = "lineward_dark"


@dataclass(slots=True)
class Page:
    """One open page: whose it is, and which product it is about."""

    station: Station
    access: Access
    person: Person
    product: str
    where: str

    def action(self, role: str, act: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap what a person does: role and session are looked at each time, a refusal is shown and logged."""

        async def checked(*arguments: Any) -> None:
            try:
                person = self.access.need(role)
                result = act(person, *arguments)
                if inspect.isawaitable(result):
                    await result
            except REFUSALS as error:
                if isinstance(error, ForbiddenError):
                    log.warning("refused on %s from %s: %s", self.where, self.person.name, error)
                say(str(error), bad=True)
            except OSError as error:
                log.exception("an action failed")
                say(f"{error.filename or 'the disk'}: {error.strerror or error}; nothing was changed", bad=True)

        return checked


def say(text: str, *, bad: bool = False) -> None:
    """Tell the person something."""
    ui.notify(
        text,
        type="negative" if bad else "positive",
        position="top",
        timeout=8000 if bad else 2500,
        close_button="Close" if bad else False,
        multi_line=len(text) > 80,
    )


def div(classes: str) -> ui.element:
    """Make a plain box."""
    return ui.element("div").classes(classes)


def text(words: str, classes: str = "", tag: str = "div") -> ui.label:
    """Make a text; whatever is in it stays text."""
    label = ui.label(words).classes(classes)
    label.tag = tag
    return label


def button(words: str, icon: str | None, act: Callable[..., Any] | None, classes: str = "lw-quiet") -> ui.button:
    """Make a button in colours of the style sheet; Quasar's own are too pale to be read."""
    made = ui.button(words, icon=icon, on_click=act, color=None)
    return made.props("no-caps unelevated").classes(classes)


def markup(classes: str, content: str = "") -> ui.html:
    """Make one element of what `thumb` and `table` return: an element for each cell costs a third of a millisecond."""
    return ui.html(content, sanitize=False).classes(classes)


def thumb(image: str, alternative: str, lines: Sequence[tuple[str, str]], classes: str = "") -> str:
    """Return a small picture of a part as markup, with lines of words and their classes; words stay words."""
    said = "".join(f'<div class="{escape(style)}">{escape(words)}</div>' for words, style in lines)
    return (
        f'<div class="lw-thumb {escape(classes)}"><img src="{escape(picture_url(image, "thumb"))}" loading="lazy"'
        f' alt="{escape(alternative)}">{said}</div>'
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], nothing: str) -> None:
    """Make a plain table; whatever is in a cell stays text."""
    if not rows:
        text(nothing, "lw-muted")
        return
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    made = f'<table class="lw-table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    markup("lw-scroll", made)


def picture_url(image: str, size: str) -> str:
    """Return where a picture is served: `view`, `thumb` or `whole`; an empty size is its heat-map."""
    return f"/picture/{quote(image, safe='')}" + (f"/{size}" if size else "")


def set_source(element: ui.element, url: str, alternative: str) -> None:
    """Show another picture in an element."""
    if element.props.get("src") != url:
        element.props["src"], element.props["alt"] = url, alternative
        element.update()


def session_over(name: str) -> None:
    """Say on an open page that its session has ended."""
    if (client := Client.instances.get(name)) is not None:
        log.warning("refused on an open page (%s): its session is over", client.page.path)
        with client:
            say(SIGNED_OUT, bad=True)


def end_pages(token: str) -> None:
    """Take the open pages of a session away: nothing more is sent to them, and nothing of theirs is heard."""
    for name in [name for name, owner in OWNERS.items() if owner == token]:
        if (client := Client.instances.get(name)) is not None:
            client.delete()


@contextmanager
def frame(station: Station, request: Request, where: str) -> Iterator[Page | None]:
    """Build a page's frame; gives None when this person may not see the page, with the reason on it."""
    token = request.scope["state"]["token"]
    person = request.scope["state"]["person"]
    client = ui.context.client
    OWNERS[client.id] = token
    client.on_delete(lambda: OWNERS.pop(client.id, None))
    title, role = next((title, role) for path, title, role in PAGES if path == where)
    ui.page_title(f"Lineward: {title}")
    ui.add_head_html(
        '<link rel="stylesheet" href="/assets/lineward.css"><script defer src="/assets/lineward.js"></script>'
    )
    products = station.products()
    wanted = request.query_params.get("product", "")
    product = wanted if wanted in products else products[0]
    access = Access(station.people, token)
    _head(station, request, where, person, product, products)
    with div(f"lw-page lw-{title.lower()}").props("id=main tabindex=-1"):  # NiceGUI's own <main> is around it
        if person.may(role):
            yield Page(station, access, person, product, where)
        else:
            log.warning("refused %s to %s (%s) from %s", where, person.name, person.role, address(request.scope))
            client.status_code = 403
            text(f"{title} is for the role {role}; {person.name} is {person.role}.", "lw-empty", "h1")
            yield None

    def check() -> None:
        if access.present() is None:
            ui.navigate.to(f"/login?to={where}")
            asyncio.get_running_loop().call_later(LEAVE_S, client.delete)  # whoever stays all the same hears no more

    ui.timer(CHECK_S, check)


def _head(  # noqa: PLR0917 - one caller
    station: Station, request: Request, where: str, person: Person, product: str, products: list[str]
) -> None:
    names = station.config.station
    chosen = {"dark": True, "light": False}.get(request.cookies.get(DARK, ""))
    dark = ui.dark_mode(value=chosen)
    skip = ui.link("Skip to the content", "#main").classes("lw-skip")
    skip.props["href"] = "#main"
    with ui.element("header").classes("lw-head"):
        with ui.element("a").classes("lw-name").props('href="/"'):
            ui.element("img").props('src="/assets/icon.svg" alt="" width="28" height="28"')
            text(f"{names.line} / {names.name}", "lw-station", "span")
        with ui.element("nav").classes("lw-nav").props('aria-label="Pages"'):
            for path, title, role in PAGES:
                if not person.may(role):
                    continue
                link = ui.element("a").classes("lw-tab")
                link.props["href"] = path + (f"?product={quote(product)}" if len(products) > 1 else "")
                if path == where:
                    link.props["aria-current"] = "page"
                with link:
                    text(title, tag="span")
        with div("lw-right"):
            if len(products) > 1:
                ui.select(
                    products,
                    value=product,
                    label="Product",
                    on_change=lambda event: ui.navigate.to(f"{where}?product={quote(str(event.value))}"),
                ).props("dense outlined").classes("lw-product")

            def turn() -> None:
                now_dark = dark.value is not True
                dark.set_value(now_dark)
                kept = f"{DARK}={'dark' if now_dark else 'light'}; path=/; max-age=31536000; samesite=strict"
                ui.run_javascript(f"document.cookie='{kept}'")

            button("", "contrast", turn, "lw-icon").props('round aria-label="Light or dark"')
            text(f"{person.name} · {person.role}", "lw-person", "span")
            with (
                ui.element("form").props('method="post" action="/logout"'),
                ui.element("button").props('type="submit"').classes("lw-signout"),
            ):
                text("Sign out", tag="span")
