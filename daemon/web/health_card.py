"""Image health on the live page: how far light, sharpness, place and scores are from commissioning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lineward.daemon.web.shell import div, text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nicegui import ui

TITLES = {
    "brightness": "Light",
    "sharpness": "Fine detail",
    "right": "Further right",
    "down": "Further down",
    "confidence": "Mean confidence",
    "defect_probability": "Mean defect probability",
    "anomaly": "Mean anomaly",
}
ZONE = "zone "
FURTHEST = 1.5
"""A bar ends at so many times its limit."""


class HealthCard:
    """One figure a row, its limits as two marks, and the nine zones of the picture as they lie."""

    def __init__(self) -> None:
        self._words = text("", "lw-health-words")
        self._rows: dict[str, _Row] = {}
        self._zones: dict[str, ui.label] = {}
        self._shown: Mapping[str, Any] | None = None
        with div("lw-health") as self._box:
            self._bars = div("lw-figures")
            with div("lw-zone-box") as self._zone_box:
                text("Light by zone, relative to the whole picture", "lw-muted")
                self._grid = div("lw-zones")
        self._box.set_visibility(False)

    def show(self, watch: Mapping[str, Any]) -> None:
        """Show the part `watch` of `stats`; empty: the line's figures are not known."""
        if watch == self._shown:
            return
        self._shown = dict(watch)
        deviation, limit = watch.get("deviation") or {}, watch.get("limit") or {}
        self._words.set_text(words(watch))
        self._box.set_visibility(bool(deviation))
        self._zone_box.set_visibility(any(name.startswith(ZONE) for name in deviation))
        out = set(watch.get("out") or ())
        for name, row in self._rows.items():
            row.box.set_visibility(name in deviation)
        for name, value in deviation.items():
            if name in limit and name.startswith(ZONE):
                self._zone(name).set_text(_percent(value))
                self._zone(name).classes(replace="lw-zone lw-out" if name in out else "lw-zone")
                _name(self._zone(name), f"{name.removeprefix(ZONE)} {_percent(value)} of {limit[name] * 100:.1f} %")
            elif name in limit:
                self._row(name).show(float(value), float(limit[name]), out=name in out)

    def _row(self, name: str) -> _Row:
        if name not in self._rows:
            with self._bars:
                self._rows[name] = _Row(TITLES.get(name, name))
        return self._rows[name]

    def _zone(self, name: str) -> ui.label:
        if name not in self._zones:
            with self._grid:
                self._zones[name] = text("", "lw-zone").props("role=img")
        return self._zones[name]


class _Row:
    def __init__(self, title: str) -> None:
        self._title = title
        with div("lw-figure").props("role=img") as self.box:
            text(title)
            with div("lw-track"):
                self._mark = div("lw-mark")
            self._value = text("", "lw-figure-value")

    def show(self, value: float, limit: float, *, out: bool) -> None:
        share = max(-FURTHEST, min(FURTHEST, value / limit if limit else 0.0))
        self._mark.style(f"left: {50 + 50 * share / FURTHEST:.1f}%")
        self._value.set_text(f"{_percent(value)} of ±{limit * 100:.1f} %")
        self.box.classes(replace="lw-figure lw-out" if out else "lw-figure")
        _name(self.box, f"{self._title} {_percent(value)}, limit {limit * 100:.1f} %{', out of it' if out else ''}")


def _name(element: ui.element, words: str) -> None:
    """Say what a screen reader reads; as text of `props` words from the broker could be a script."""
    if element.props.get("aria-label") != words:
        element.props["aria-label"] = words


def _percent(share: float) -> str:
    return f"{100 * share:+.1f} %"


def words(watch: Mapping[str, Any]) -> str:
    """Say in a sentence how the pictures are."""
    state = watch.get("state")
    if state == "off":
        return "Not watched: watch.enabled is false in the configuration."
    if state == "waiting":
        return "No model is in force yet."
    if state == "commissioning":
        return f"Learning what is normal: {watch.get('parts', 0)} of {watch.get('of', 0)} parts."
    if state != "watching":
        return "Not known: these figures come from the line by way of the broker."
    refused = int(watch.get("wrong_products") or 0)
    more = f" {refused} pictures of another product were refused." if refused else ""
    out = watch.get("out") or ()
    if not out:
        return f"As at commissioning, which took {watch.get('parts', 0)} parts.{more}"
    named = ", ".join(TITLES.get(str(name), str(name)).lower() for name in out)
    return f"Out of its limits: {named}. The alarm says what to do.{more}"
