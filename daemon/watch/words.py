"""Alarms in words: what has changed, by how much, since when, and what to do."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from lineward.daemon.watch.reference import FIGURES, ZONE_NAMES

if TYPE_CHECKING:
    from lineward.daemon.watch.chart import Charts

_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
_WEEK_S = 6 * 86400

MEANT = "if it is meant to be so, commission anew with `lineward watch reset`"

ALARM_IDS = ("brightness", "sharpness", "position", "scores")
"""The alarms that charts raise."""


def when(at_s: float, now_s: float) -> str:
    """Say a time as people do, in local time: ``Tuesday 14:10``, or ``3 March 14:10`` when it is a week ago."""
    at = time.localtime(at_s)
    day = _DAYS[at.tm_wday] if now_s - at_s < _WEEK_S else f"{at.tm_mday} {_MONTHS[at.tm_mon - 1]}"
    return f"{day} {at.tm_hour:02d}:{at.tm_min:02d}"


def texts(charts: Charts, now_s: float) -> dict[str, str]:
    """Return the text of each alarm of `ALARM_IDS`; empty when all is well."""
    out = {name: bool(charts.out[i]) for i, name in enumerate(FIGURES)}
    change = {name: float(charts.deviation[i]) for i, name in enumerate(FIGURES)}
    began = {name: f"since {when(float(charts.began_s[i]), now_s)}" for i, name in enumerate(FIGURES)}
    picture = {
        "brightness": _brightness(out, change, began),
        "sharpness": _sharpness(out, change, began),
        "position": _position(out, change, began),
    }
    causes = [name for name, text in picture.items() if text]
    return {**picture, "scores": _scores(out, charts, began, causes)}


def _brightness(out: dict[str, bool], change: dict[str, float], began: dict[str, str]) -> str:
    if out["brightness"]:
        by = round(100 * change["brightness"])
        if by < 0:
            return (
                f"lamp {-by} % darker than at commissioning, {began['brightness']}: clean or replace the lamp; {MEANT}"
            )
        return (
            f"pictures {by} % brighter than at commissioning, {began['brightness']}: look for stray light, "
            f"a new lamp or another exposure; {MEANT}"
        )
    zones = [name for name in ZONE_NAMES if out[f"zone {name}"]]
    if not zones:
        return ""
    worst = max(zones, key=lambda name: abs(change[f"zone {name}"]))
    by = round(100 * change[f"zone {worst}"])
    return (
        f"pictures {abs(by)} % {'darker' if by < 0 else 'brighter'} at the {worst} than the rest of them, "
        f"{began[f'zone {worst}']}: clean lens and lamp, look for a shadow, a reflection or a lamp that fails on "
        f"one side; {MEANT}"
    )


def _sharpness(out: dict[str, bool], change: dict[str, float], began: dict[str, str]) -> str:
    if not out["sharpness"]:
        return ""
    by = round(100 * change["sharpness"])
    if by < 0:
        return (
            f"pictures {-by} % less sharp than at commissioning, {began['sharpness']}: clean the lens, then check "
            f"focus, distance and exposure time; {MEANT}"
        )
    return (
        f"pictures show {by} % more fine detail than at commissioning, {began['sharpness']}: look for a worn tool, "
        f"dirt on the lens or another gain; {MEANT}"
    )


def _position(out: dict[str, bool], change: dict[str, float], began: dict[str, str]) -> str:
    ways = []
    for name, more, less, side in (("right", "right", "left", "width"), ("down", "down", "up", "height")):
        if out[name]:
            way = more if change[name] > 0 else less
            ways.append(f"{abs(100 * change[name]):.0f} % of the {side} further {way}")
    if not ways:
        return ""
    since = began["right"] if out["right"] else began["down"]
    return (
        f"parts lie {' and '.join(ways)} than at commissioning, {since}: check guide, camera mount and trigger; {MEANT}"
    )


def _scores(out: dict[str, bool], charts: Charts, began: dict[str, str], causes: list[str]) -> str:
    said = []
    for name, title in (
        ("confidence", "mean confidence"),
        ("defect_probability", "mean defect probability"),
        ("anomaly", "mean anomaly"),
    ):
        if out[name]:
            i = FIGURES.index(name)
            usual = float(charts.limits.centre[i])
            now = usual + float(charts.deviation[i])
            said.append(f"{title} {now:.0%} instead of {usual:.0%}, {began[name]}")
    if not said:
        return ""
    if causes:
        what = f"mend first what the alarm {' and '.join(causes)} says"
    else:
        what = "look at recent parts on the review page: if the verdicts are wrong label them and train again"
    return f"the model judges otherwise than at commissioning ({'; '.join(said)}): {what}; {MEANT}"
