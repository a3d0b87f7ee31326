"""Improve: train a new model, see what would change, let it judge, or go back."""

from __future__ import annotations

import asyncio
import importlib.util
from typing import TYPE_CHECKING, Any

from fastapi import Request  # noqa: TC002 - FastAPI reads the annotation
from nicegui import ui

from lineward.daemon.label_records import FAIL, PASS
from lineward.daemon.web import promotion, words
from lineward.daemon.web.jobs import DONE, FULL, QUICK, RUNNING, STAGES
from lineward.daemon.web.shell import button, div, frame, markup, say, table, text, thumb
from lineward.daemon.web.thresholds import Dial
from lineward.daemon.web.trainingset import held_out
from lineward.models import store

if TYPE_CHECKING:
    from lineward.daemon.web.jobs import Job
    from lineward.daemon.web.people import Person
    from lineward.daemon.web.shell import Page
    from lineward.daemon.web.station import Station

LOOK_S = 1.0
GALLERY = 24
AUDIT = 6
TIERS = {QUICK: "Quick: about a minute", FULL: "Full: ten minutes or more, often better"}
WHAT = {
    "add": "brought in",
    "restore": "brought in again",
    "promote": "let judge",
    "rollback": "went back to",
    "found": "found in force",
}


def register(station: Station) -> None:
    """Add the page."""

    @ui.page("/improve")
    async def improve(request: Request) -> None:
        with frame(station, request, "/improve") as page:
            if page is not None:
                await station.catch_up()
                Improve(page)


class Improve:
    """One open page; it follows a training that anybody started."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._drawn: tuple[str, str, float, str, str | None] | None = None
        self._counted: dict[str, int] | None = None
        self._asked: tuple[Job, str] | None = None
        action = page.action
        with div("lw-columns"):
            with div("lw-card"):
                text("1. Train", "lw-h3", "h2")
                self._set = text("")
                self._train = button(
                    "Train a new model", "model_training", action("technician", self._start), "lw-main"
                )
                self._tier = ui.radio(TIERS, value=QUICK).props('aria-label="How thorough"')
                self._tier.set_visibility(importlib.util.find_spec("torch") is not None)
                with div("lw-progress") as self._progress:
                    self._stage = text("").props('role="status"')
                    self._bar = ui.linear_progress(0.0, show_value=False).props('aria-label="Progress of the training"')
                    self._left = text("", "lw-muted")
                    self._line = text("", "lw-muted")
                    button("Cancel", "stop", action("technician", self._cancel))
                self._said = text("", "lw-said-line")
            with div("lw-card"):
                text("Who decided what", "lw-h3", "h2")
                self._audit = div("lw-audit")
        text("2. What would change", "lw-h2", "h2")
        self._result = div("lw-result")
        with div("lw-card"):
            text("3. Let it judge", "lw-h3", "h2")
            self._now = text("")
            self._why_not = text("", "lw-said-line")
            self._promote = button("Promote the new model", "verified", action("technician", self._ask), "lw-main")
            button("Go back to the model before", "history", action("technician", self._back))
            button("Compare again", "compare", action("technician", self._again))
            if not page.station.follows_store(page.product):
                text(
                    f'This station uses a file of its own: write model = "{page.product}" under [inspection] in '
                    "its configuration, or a promotion does not reach it.",
                    "lw-alarm lw-warning",
                )
        with ui.dialog() as self._sure, ui.card().classes("lw-dialog"):
            self._question = text("")
            with div("lw-row"):
                button("Yes, let it judge", None, action("technician", self._do_promote), "lw-main")
                button("No", None, self._sure.close)
        ui.timer(LOOK_S, self._look)

    # ---- actions

    def _start(self, person: Person) -> None:
        self._page.station.jobs.start(self._page.product, person.name, tier=str(self._tier.value))

    def _again(self, person: Person) -> None:
        self._page.station.jobs.start(self._page.product, person.name, only_compare=True)

    def _cancel(self, person: Person) -> None:
        self._page.station.jobs.cancel(person.name)

    def _ask(self, _person: Person) -> None:
        job = self._job()
        if job is None or job.result is None:
            return
        self._asked = job, job.result["sha256"]
        changed, kept = len(_changed(job.result)), len(job.result["shift"])
        self._question.set_text(
            f"{job.result['new']} will judge {self._page.product} from the next part on. "
            + (
                f"Of {kept} parts of {_shift(job.result)} it judges {changed} differently. You can go back at any time."
                if job.result["old"]
                else "No model has judged it before, so there is nothing to compare it with."
            )
        )
        self._sure.open()

    async def _do_promote(self, person: Person) -> None:
        self._sure.close()
        if self._asked is not None:
            job, sha256 = self._asked
            say(await asyncio.to_thread(promotion.promote, self._page.station, job, person.name, sha256))
            self._drawn = None

    async def _back(self, person: Person) -> None:
        say(await asyncio.to_thread(promotion.roll_back, self._page.station, self._page.product, person.name))
        self._drawn = None

    def _job(self) -> Job | None:
        """Return the training whose candidate is shown: one that was cancelled later does not hide it."""
        return self._page.station.jobs.proposal(self._page.product)

    # ---- what is shown

    async def _look(self) -> None:
        station = self._page.station
        running, job = station.jobs.running, self._job()
        self._train.set_enabled(running is None)
        self._progress.set_visibility(running is not None)
        if running is not None:
            self._stage.set_text(
                f"{running.product}: {STAGES.get(running.stage, running.stage)}, {running.done} of {running.of}"
            )
            self._bar.set_value(running.share)
            left = running.left_s
            self._left.set_text(
                f"{running.share:.0%} done" + (f", about {words.ago(left)} left" if left is not None else "")
            )
            now = await asyncio.to_thread(station.feed.snapshot)
            p99 = "not known" if now.p99_ms is None else f"{now.p99_ms:.0f} ms for 99 of 100 parts"
            self._line.set_text(f"The line goes first. Its answers take {p99}.")
        last = station.jobs.latest(self._page.product)
        self._said.set_text("" if last is None else _how_it_ended(last))
        counts = await asyncio.to_thread(station.labels.counts, self._page.product)
        if counts != self._counted:
            self._counted = counts
            self._set.set_text(await asyncio.to_thread(_planned, station, self._page.product))
        # An escape may be found while the page is open: what was allowed a moment ago is not any more.
        reason = await asyncio.to_thread(promotion.why_not, station, job) if job is not None else "train one first"
        in_use = await asyncio.to_thread(promotion.version_in_use, station, self._page.product)
        key = (*((job.id, job.state, job.ended_s) if job is not None else ("", "", 0.0)), reason, in_use)
        if key != self._drawn:
            self._drawn = key
            await self._draw(job, reason)

    async def _draw(self, job: Job | None, reason: str) -> None:
        station, product = self._page.station, self._page.product
        versions = await asyncio.to_thread(store.history, station.root, product)
        path = await asyncio.to_thread(station.model_path, product)
        self._now.set_text(f"In use: {versions[0] if versions else path or 'no model yet'}")
        fresh = job is not None and job.result is not None and job.result["new"] in versions[:1]
        self._promote.set_enabled(not reason and not fresh)
        self._why_not.set_text("The new model is in use." if fresh else f"Not yet: {reason}." if reason else "")
        self._result.clear()
        with self._result:
            if job is None or job.result is None:
                text("Train a new model to see what it would change.", "lw-muted")
            else:
                _draw_result(job, job.result)
                if job.state == DONE:
                    Dial(self._page, job)
        records = [
            record for record in await asyncio.to_thread(store.audit, station.root) if record.get("product") == product
        ]
        self._audit.clear()
        with self._audit:
            rows = [
                (
                    str(record.get("when", ""))[:16].replace("T", " "),
                    str(record.get("who", "")),
                    f"{WHAT.get(str(record.get('what')), str(record.get('what')))} {record.get('version', '')}",
                    str(record.get("before") or ""),
                )
                for record in reversed(records[-AUDIT:])
            ]
            table(("When (UTC)", "Who", "What", "Before"), rows, "Nothing was promoted yet")


def _shift(result: dict[str, Any]) -> str:
    """Say which parts both models have judged: on a quiet day they are older than a shift."""
    return str(result.get("shift_is", "the last shift"))  # a candidate of an earlier version does not say it


def _changed(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [e for e in result["shift"] if e["old"] and e["new"] and e["old"]["verdict"] != e["new"]["verdict"]]


def _how_it_ended(job: Job) -> str:
    if job.state == RUNNING:
        return ""
    return job.text if job.state == DONE else f"The last training: {job.state}. {job.text}"


def _planned(station: Station, product: str) -> str:
    """Say what a training would learn from."""
    types = station.labels.by_type(product)
    good = sum(n for (label, _), n in types.items() if label == PASS)
    bad = sum(n for (label, _), n in types.items() if label == FAIL)
    kept = len(held_out(station.labels, product))
    base = station.base_data(product)
    source = f"the pictures in {base}" if base else "what the model in use was trained on"
    return (
        f"{good} good and {bad} defective parts are labelled. {kept} of them are kept for testing, the others are"
        f" learned together with {source}."
    )


def _draw_learned(job: Job, result: dict[str, Any]) -> None:
    """Say what the model was made from; loudly, when little is left of the base data."""
    text(f"Made from {result['n_good']} good and {result['n_defect']} defective pictures.", "lw-muted")
    if job.base or job.base_out:
        text(f"{job.labelled} of them were labelled here, {job.base} come from the base data.", "lw-muted")
    if job.base_out:
        said = f"{job.base_out} pictures of the base data were left out: pictures of their groups are kept for testing."
        if job.base_out > job.base:
            said += (
                " That is most of it, and the model does not know what they show. In groups.csv of the base data each"
                " physical part is one group; a group that is a whole batch goes with its first picture that is tested."
            )
        text(said, "lw-alarm lw-warning" if job.base_out > job.base else "lw-muted")


def _draw_result(job: Job, result: dict[str, Any]) -> None:
    with div("lw-columns"):
        with div("lw-card"):
            text("Parts kept for testing", "lw-h3", "h3")
            text("Labelled parts that neither model was trained on.", "lw-muted")
            _test_table(result["holdout"])
            if left_out := result.get("left_out", 0):
                text(f"{left_out} more do not count: one of the models was trained on the same pictures.", "lw-muted")
        with div("lw-card"):
            text('"Never again"', "lw-h3", "h3")
            never = result["never_again"]
            passed = [entry for entry in never if entry["new"] and entry["new"]["verdict"] == "pass"]
            if not never:
                text("No escape is known. An escape is a defective part that the line had let through.", "lw-muted")
            else:
                words_ = f"{len(never) - len(passed)} of {len(never)} former escapes are stopped by the new model."
                text(words_, "lw-alarm lw-error" if passed else "")
            markup("lw-gallery", "".join(map(_pair, passed[:GALLERY])))
        with div("lw-card"):
            text("What its training says", "lw-h3", "h3")
            for sentence in (*result["sentences"], *(f"Note: {w}." for w in (result["promise"], *result["warnings"]))):
                text(sentence)
            _draw_learned(job, result)
    changed = _changed(result)
    text(
        f"Of {_shift(result)}: {len(changed)} of {len(result['shift'])} kept parts are judged differently"
        if result["old"]
        else f"Of {_shift(result)}: no model has judged before, so there is nothing to compare with",
        "lw-h3",
        "h3",
    )
    moves: dict[tuple[str, str], int] = {}
    for entry in changed:
        move = (entry["old"]["verdict"], entry["new"]["verdict"])
        moves[move] = moves.get(move, 0) + 1
    with div("lw-row"):
        for (old, new), count in sorted(moves.items()):
            text(f"{count} parts: {words.VERDICT[old]} → {words.VERDICT[new]}", f"lw-move lw-{new}")
    markup("lw-gallery", "".join(map(_pair, sorted(changed, key=_worst_first)[:GALLERY])))


def _worst_first(entry: dict[str, Any]) -> tuple[int, float]:
    wrong = (entry["label"] == "fail" and entry["new"]["verdict"] == "pass") or (
        entry["label"] == "pass" and entry["new"]["verdict"] == "fail"
    )
    return (0 if wrong else 1, -abs(entry["new"]["defect_probability"] - entry["old"]["defect_probability"]))


def _pair(entry: dict[str, Any]) -> str:
    new = entry["new"]["verdict"]
    old = entry["old"]["verdict"] if entry["old"] else ""
    said = f"labelled {entry['label']}" if entry["label"] else "not labelled"
    change = f"{words.VERDICT.get(old, '-')} → {words.VERDICT[new]}"
    return thumb(entry["image"], "Part", [(change, ""), (said, "lw-muted lw-small")], f"lw-{new}")


def _test_table(entries: list[dict[str, Any]]) -> None:
    if not entries:
        text("None yet: every fifth labelled part is kept for this.", "lw-muted")
        return
    rows = []
    for words_, label, verdict in (
        ("Defective and let through", "fail", "pass"),
        ("Good and rejected", "pass", "fail"),
        ("To review", "", "review"),
    ):
        some = [entry for entry in entries if not label or entry["label"] == label]
        cells = [
            "-" if not entry_count else f"{count} of {entry_count}"
            for count, entry_count in (
                (sum(1 for e in some if e[side] and e[side]["verdict"] == verdict), sum(1 for e in some if e[side]))
                for side in ("old", "new")
            )
        ]
        rows.append((words_, *cells))
    table(("", "Model in use", "New model"), rows, "")
    if len(entries) < 30:
        text(f"Only {len(entries)} parts: too few for a firm statement.", "lw-alarm lw-warning")
