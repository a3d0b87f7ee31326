"""Agreement: parts on which people disagree, and how often each person agrees with the others and with themselves."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fastapi import Request  # noqa: TC002 - FastAPI reads the annotation
from nicegui import ui

from lineward.daemon.agreement import agreement
from lineward.daemon.web import words
from lineward.daemon.web.review_page import Desk
from lineward.daemon.web.shell import frame, table, text

if TYPE_CHECKING:
    from lineward.daemon.agreement import Agreement
    from lineward.daemon.web.station import Station


def register(station: Station) -> None:
    """Add the page."""

    @ui.page("/conflicts")
    async def conflicts(request: Request) -> None:
        with frame(station, request, "/conflicts") as page:
            if page is None:
                return
            rows = await asyncio.to_thread(lambda: agreement(station.labels.opinions()))
            desk = Desk(page, settle=True)
            text("How well people agree", "lw-h2", "h2")
            text(
                "Some parts are shown to a second reader, and some again to the same one, without a hint. The figure "
                "is agreement beyond chance: 1 is perfect, 0 is a coin toss.",
                "lw-muted",
            )
            _table(rows)
        await desk.show()


def _table(rows: list[Agreement]) -> None:
    heads = ("Person", "Labels", "Same as others", "Agreement with others", "Same as before", "Agreement with self")
    table(
        heads,
        [
            (
                row.person,
                str(row.labels),
                f"{row.same} of {row.pairs}" if row.pairs else "-",
                words.kappa(row.kappa, row.pairs),
                f"{row.repeats_same} of {row.repeats}" if row.repeats else "-",
                words.kappa(row.repeats_kappa, row.repeats),
            )
            for row in rows
        ],
        "Nobody has labelled anything yet",
    )
