"""The threshold in the shop floor's units: good parts rejected in a shift, and defective ones that escape."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from nicegui import ui

from lineward.daemon.web.jobs import SHIFT_NS
from lineward.daemon.web.shell import button, div, text
from lineward.models.bundle import load_bundle, save_bundle
from lineward.models.metrics import rate
from lineward.models.verdict import Thresholds, decide

if TYPE_CHECKING:
    from pathlib import Path

    from lineward.daemon.web.jobs import Job
    from lineward.daemon.web.people import Person
    from lineward.daemon.web.shell import Page

ENOUGH = 100
"""Below so many defective test parts the upper end of the interval says more about the number than about the model."""

KEPT = (
    "Reckoned on the parts kept for testing alone. They were kept because they are difficult, so the line as a whole "
    "does better."
)


class Dial:
    """A slider that moves the reject threshold of the candidate, with what that would mean."""

    def __init__(self, page: Page, job: Job) -> None:
        self._page, self._job = page, job
        assert job.result is not None
        self._sha256 = job.result["sha256"]
        # Only these are known not to be trained on; those of the last shift may be.
        self._entries = [entry for entry in job.result["holdout"] if entry["label"] and entry["new"]]
        bands = load_bundle(page.station.jobs.candidate(job)).manifest.thresholds
        self._bands = Thresholds(bands.pass_below, bands.fail_from, bands.review_anomaly_from)
        now = time.time_ns()
        sql = "SELECT count(*) FROM results WHERE trigger_ns >= ? AND product = ?"
        counted = page.station.ledger.select(sql, now - SHIFT_NS, job.product)
        self._parts = int(counted[0][0]) if counted else 0
        with div("lw-card"):
            text("How strict?", "lw-h3", "h3")
            text(
                "Left: fewer good parts rejected. Right: fewer defective parts let through or left to people.",
                "lw-muted",
            )
            self._slider = ui.slider(
                min=0, max=100, step=1, value=self._position(), on_change=lambda _: self._say()
            ).props('label aria-label="How strict"')
            self._said = text("").props('role="status"')
            text(KEPT, "lw-muted")
            self._warning = text("", "lw-alarm lw-warning")
            button("Use this strictness", "tune", page.action("engineer", self._use))
        self._say()

    def _position(self) -> int:
        return round(100 * (1 - (self._bands.fail_from + self._bands.pass_below) / 2))

    def _wanted(self) -> Thresholds:
        """Move both thresholds together, the review band between them as wide as it was."""
        width = self._bands.fail_from - self._bands.pass_below
        middle = 1 - float(self._slider.value) / 100
        low = min(max(middle - width / 2, 0.001), 0.999)
        return Thresholds(low, max(low, min(middle + width / 2, 0.999)), self._bands.review_anomaly_from)

    def _say(self) -> None:
        wanted = self._wanted()
        good = [_decision(entry, wanted) for entry in self._entries if entry["label"] == "pass"]
        bad = [_decision(entry, wanted) for entry in self._entries if entry["label"] == "fail"]
        rejects, escapes = rate(good.count("fail"), len(good)), rate(bad.count("pass"), len(bad))
        words = []
        if rejects.value is not None:
            words.append(
                f"about {rejects.value * self._parts:.0f} false rejects per shift "
                f"({self._parts} parts in the last 8 hours)"
                if self._parts
                else f"{rejects.value:.1%} of the good parts rejected (no part was judged in the last 8 hours)"
            )
        if escapes.value is not None:
            words.append(f"escapes at most {escapes.high:.1%} of the defective parts (95 %, n = {len(bad)})")
        review = (good + bad).count("review")
        words.append(f"{review} of {len(good) + len(bad)} test parts to review")
        self._said.set_text("; ".join(words) + ".")
        few = len(bad) < ENOUGH
        self._warning.set_visibility(few)
        self._warning.set_text(
            f"Only {len(bad)} defective and {len(good)} good test parts speak for this: label more before you "
            "rely on it."
        )

    def _use(self, person: Person) -> None:
        jobs, wanted, version = self._page.station.jobs, self._wanted(), ""

        def change() -> None:
            nonlocal version
            jobs.still_proposed(self._job, self._sha256)
            version = with_thresholds(jobs.candidate(self._job), wanted, person.name)

        jobs.start(self._page.product, person.name, only_compare=True, change=change)
        ui.notify(f"{version} is being compared", position="top")


def with_thresholds(path: Path, wanted: Thresholds, who: str) -> str:
    """Write a candidate again with other thresholds, as a version of its own; return that version.

    The graph and so every score stay as they are; what was promised for the old thresholds is void, and it says so.
    """
    bundle = load_bundle(path)
    manifest = bundle.manifest
    version = (
        f"{manifest.version.split('-strict')[0]}-strict{round(100 * (1 - (wanted.pass_below + wanted.fail_from) / 2))}"
    )
    text_ = f"{who} moved the thresholds on the review page: what the training promised for its own does not hold"
    bands = manifest.thresholds.model_copy(update={"pass_below": wanted.pass_below, "fail_from": wanted.fail_from})
    promise = manifest.risk.model_copy(update={"kept": False, "supported": False, "text": text_})
    changed: Any = manifest.model_copy(update={"version": version, "thresholds": bands, "risk": promise})
    save_bundle(path, bundle.data[: manifest.graph_bytes], changed)
    return version


def _decision(entry: dict[str, Any], wanted: Thresholds) -> str:
    return str(decide(entry["new"]["defect_probability"], entry["new"]["anomaly"], wanted)[0])
