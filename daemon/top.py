"""`lineward top`: a station on one screen, read from its control socket, or from its ledger when it does not run."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lineward.daemon.control import ControlError, send
from lineward.daemon.ledger_read import LedgerReader

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import RenderableType

    from lineward.daemon.config import Config

ASK_S = 2.0
_COLOURS = {"pass": "green", "fail": "red", "review": "yellow", "undecided": "magenta"}


def look(config: Config) -> dict[str, Any]:
    """Ask a station how it is. Without one, ``ok`` is 0 and ``status`` says so, with what its ledger holds."""
    root = config.storage.root
    try:
        seen = send(root, "stats", {}, timeout_s=ASK_S)
        if seen.get("ok") and "stats" in seen:
            return seen
        said = f"{root}: the station is of another version; restart it"
    except ControlError as error:
        said = str(error)
    verdicts: dict[str, int] = {}
    with contextlib.suppress(sqlite3.Error, OSError):
        verdicts = LedgerReader(root / "ledger.sqlite3").counts()
    return {"ok": 0, "reason": "not_running", "status": said, "alarms": {}, "ledger": verdicts}


def view(config: Config, seen: Mapping[str, Any]) -> RenderableType:
    """Lay out what `look` found."""
    head = Text(config.station.base_topic, style="bold")
    status = Text(str(seen["status"]), style="" if seen["ok"] else "red")
    if not seen["ok"]:
        held = ", ".join(f"{count} {verdict}" for verdict, count in sorted(seen["ledger"].items()))
        return Group(head, status, Text(f"ledger: {held or 'no answers'}"))
    stats = seen["stats"]
    figures = Table.grid(padding=(0, 3))
    for name, value in _figures(stats):
        figures.add_row(Text(name, style="dim"), value)
    return Group(head, status, figures, *_alarms(seen["alarms"]))


def _figures(stats: Mapping[str, Any]) -> list[tuple[str, Text | str]]:
    verdicts = Text()
    answers = max(1, stats["answers"])
    for verdict, colour in _COLOURS.items():
        count = stats["verdicts"].get(verdict, 0)
        verdicts.append(f"{verdict} {count} ({count / answers:.1%})  ", style=colour)
    latency = stats["latency_ms"]
    camera, mqtt, disk = stats["camera"], stats["mqtt"], stats["disk"]
    degrees = "" if camera["temperature_c"] is None else f", {camera['temperature_c']:.0f} °C"
    return [
        ("rate", f"{stats['rate_hz']:.1f} parts/s, {stats['answers']} answers in {_span(stats['uptime_s'])}"),
        ("verdicts", verdicts),
        ("reasons", _counts(stats["reasons"])),
        ("latency", " ".join(f"{name} {ms:.1f} ms" for name, ms in latency.items()) or "none yet"),
        ("camera", f"{camera['state']}, opened {camera['openings']} times{degrees}"),
        ("lost frames", _counts(stats["missing_frames"])),
        (
            "broker",
            f"{'connected' if mqtt['connected'] else 'AWAY'}, {mqtt['outbox']} wait, {mqtt['reconnects']} reconnects",
        ),
        ("images", f"{stats['images']['kept']} kept, {stats['images']['dropped']} dropped"),
        ("disk", "unknown" if disk is None else f"{disk['free_gb']:.1f} GB free, {disk['used_share']:.0%} used"),
        ("pictures", _watch(stats["watch"])),
    ]


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"


def _watch(watch: Mapping[str, Any]) -> str:
    if watch["state"] == "commissioning":
        return f"commissioning, {watch['parts']} of {watch['of']} parts"
    if watch["state"] != "watching":
        return str(watch["state"])
    deviation = watch["deviation"]
    named = ("brightness", "sharpness", "right", "down", "confidence")
    said = ", ".join(f"{name} {deviation[name]:+.1%}" for name in named if name in deviation)
    return f"{said}; {watch['wrong_products']} of another product"


def _span(seconds: float) -> str:
    days, rest = divmod(int(seconds), 86400)
    return f"{days} d {rest // 3600} h" if days else f"{rest // 3600} h {rest % 3600 // 60} min {rest % 60} s"


def _alarms(alarms: Mapping[str, Mapping[str, Any]]) -> list[Text]:
    if not alarms:
        return [Text("no alarm", style="green")]
    return [
        Text(f"{name}: {alarm['text']}", style="red" if alarm["severity"] == "error" else "yellow")
        for name, alarm in sorted(alarms.items())
    ]


def watch_table(watch: Mapping[str, Any]) -> RenderableType:
    """Show every figure of image health against its limit."""
    if watch["state"] != "watching":
        return _watch(watch)
    table = Table("figure", "deviation", "limit", "")
    for name, value in watch["deviation"].items():
        limit = watch["limit"][name]
        out = name in watch["out"]
        table.add_row(name, f"{value:+.1%}", f"{limit:.1%}", Text("out", style="red") if out else "")
    guard = "on" if watch["guard"] else "off"
    told = f"commissioned with {watch['parts']} parts; guard {guard}, {watch['wrong_products']} pictures refused"
    return Group(table, told)


def show_live(config: Config, every_s: float) -> None:
    """Look again and again until Ctrl-C."""
    console = Console()
    with Live(view(config, look(config)), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(every_s)
            live.update(view(config, look(config)), refresh=True)
