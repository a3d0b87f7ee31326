"""Data: what is labelled, by label, type, time and camera; pictures in and out."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fastapi import FastAPI, Request, Response  # noqa: TC002 - FastAPI reads the annotations
from fastapi.responses import FileResponse, PlainTextResponse
from nicegui import events, ui
from starlette.background import BackgroundTask

from lineward.daemon.label_records import FAIL, PASS
from lineward.daemon.web import words
from lineward.daemon.web.exporting import export
from lineward.daemon.web.guard import address
from lineward.daemon.web.jobs import CHECK, DONE, STAGES, what
from lineward.daemon.web.scratch import EXPORT, UPLOAD
from lineward.daemon.web.shell import REFUSALS, button, div, frame, markup, say, table, text, thumb
from lineward.daemon.web.trainingset import held_out
from lineward.daemon.web.transfer import import_zip

if TYPE_CHECKING:
    from lineward.daemon.web.jobs import Job
    from lineward.daemon.web.people import Person
    from lineward.daemon.web.shell import Page
    from lineward.daemon.web.station import Station

log = logging.getLogger("lineward.web")

GALLERY = 60
LOOK_S = 1.0
FORMS = (("folders", "Folders (ZIP)", ".zip"), ("coco", "COCO (ZIP)", ".zip"), ("csv", "List (CSV)", ".csv"))


def register(station: Station) -> None:
    """Add the page."""

    @ui.page("/data")
    async def data(request: Request) -> None:
        with frame(station, request, "/data") as page:
            if page is not None:
                await station.catch_up()
                shown = DataPage(page)
                await shown.show()
                ui.timer(LOOK_S, shown.look)  # last: what is built behind a timer comes later than the page


def add_downloads(app: FastAPI, station: Station) -> None:
    """Add the downloads; engineers only, for they take the customer's pictures out."""

    @app.get("/export/{form}")
    def download(form: str, request: Request, product: str = "") -> Response:
        person = request.scope["state"]["person"]
        if not person.may("engineer"):
            log.warning("refused an export to %s (%s) from %s", person.name, person.role, address(request.scope))
            return PlainTextResponse(f"an export needs the role engineer; {person.name} is {person.role}", 403)
        suffix = next((suffix for name, _, suffix in FORMS if name == form), ".zip")
        try:
            handle, made = tempfile.mkstemp(dir=station.root, prefix=EXPORT, suffix=suffix)
        except OSError as error:
            return PlainTextResponse(f"{station.root}: {error.strerror or error}; make room and try again", 507)
        os.close(handle)
        path = Path(made)
        # Whoever goes on with a download asks for a piece of another file: each is made anew. And Starlette leaves the
        # file behind where it refuses a piece.
        request.scope["headers"] = [pair for pair in request.scope["headers"] if pair[0] != b"range"]
        try:
            export(station.labels, product, form, path)
        except REFUSALS as error:
            path.unlink(missing_ok=True)
            return PlainTextResponse(str(error), 422)
        except OSError as error:
            path.unlink(missing_ok=True)
            log.warning("the export of %s for %s failed: %s", product, person.name, error)
            return PlainTextResponse(f"{station.root}: {error.strerror or error}; make room and try again", 507)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        log.info("%s exports %s as %s", person.name, product, form)
        name = "".join(c if c.isalnum() or c in "-_" else "_" for c in product)
        return FileResponse(path, filename=f"{name}-{form}{suffix}", background=BackgroundTask(path.unlink))


def why_rejected(causes: list[str], upload_mb: int) -> str:
    """Say why the browser did not send a file, by Quasar's names of the causes."""
    words_ = {
        "accept": "this is not a ZIP file; choose one whose name ends in .zip",
        "max-file-size": f"this file is larger than review.upload_mb ({upload_mb} MB); divide it, or raise the limit",
        "duplicate": "this file is on its way already; wait until it is taken over",
    }
    said = [words_.get(cause, f"the browser refused this file ({str(cause)[:40]})") for cause in causes]
    return "; ".join(dict.fromkeys(said)) + "; nothing was changed"


class DataPage:
    """One open data page."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._filter: tuple[str | None, str | None] = (None, None)
        self._tables = div("lw-columns")
        with div("lw-card lw-check"):
            text("What the set lacks", "lw-h3", "h2")
            start = page.action("technician", self._check)
            self._start = button("Check the labelled pictures", "fact_check", start, "lw-main")
            self._progress = text("").props('role="status"')
            self._findings = div("lw-findings")
        self._drawn: tuple[str, str] | None = None
        with div("lw-row"):
            text("Pictures", "lw-h2", "h2")
            self._choice = ui.select({}, on_change=self._choose).props('dense outlined aria-label="Which pictures"')
        self._gallery = markup("lw-gallery")
        if page.person.may("engineer"):
            self._in_and_out()
        else:
            text("Import and export need the role engineer.", "lw-muted")

    # ---- the check

    def _check(self, person: Person) -> None:
        self._page.station.jobs.start(self._page.product, person.name, kind=CHECK)

    def look(self) -> None:
        """Show how far a check is, and what it found."""
        jobs = self._page.station.jobs
        running, job = jobs.running, jobs.latest(self._page.product, CHECK)
        self._start.set_enabled(running is None)
        said = ""
        if running is not None:
            said = f"{STAGES.get(running.stage, running.stage)}, {running.share:.0%} of the {what(running)} done"
        elif job is not None and job.state != DONE:
            said = f"The last check: {job.state}. {job.text}"
        self._progress.set_text(said)
        key = (job.id, job.state) if job is not None else ("", "")
        if key != self._drawn:
            self._drawn = key
            self._findings.clear()
            with self._findings:
                if job is not None and job.result is not None:
                    self._draw_findings(job)

    def _draw_findings(self, job: Job) -> None:
        assert job.result is not None
        text(f"Checked {words.when(round(job.ended_s * 1e9))} by {job.by}", "lw-muted")
        found = [finding for finding in job.result["findings"] if finding["level"] != "ok"]
        for finding in sorted(found, key=lambda finding: finding["level"] != "problem"):
            with div("lw-alarm" if finding["level"] == "problem" else "lw-alarm lw-warning"), div("lw-finding"):
                text(finding["text"])
                markup("lw-near", "".join(self._cause(file) for file in finding["files"]))
        good = len(job.result["findings"]) - len(found)
        text(f"{good} other things were looked at and are fine." if found else "Nothing is wrong with this set.")
        for sentence in job.result["forecast"]:
            text(sentence, "lw-muted")

    def _cause(self, file: str) -> str:
        """Return a picture that a finding is about; of one of the base data only its name."""
        image = Path(file).stem
        if self._page.station.labels.part(image) is None:
            return f'<div class="lw-muted lw-small">{escape(file)}</div>'
        return thumb(image, "", [(file.rsplit("/", 1)[0], "lw-small")])

    # ---- what there is

    async def show(self) -> None:
        """Show what there is."""
        labels, product = self._page.station.labels, self._page.product

        def count() -> tuple[int, int]:  # of 20,000 parts half a second, in which others want to label
            return len(held_out(labels, product)), len(labels.escapes(product))

        held, escapes = await asyncio.to_thread(count)
        counts, types = labels.counts(product), labels.by_type(product)
        total = sum(types.values())
        self._tables.clear()
        with self._tables:
            with div("lw-card"):
                text("What there is", "lw-h3", "h2")
                rows = [
                    ("Labelled", str(total)),
                    ("of these kept for testing", str(held)),
                    ("Waiting to be labelled", str(counts.get("new", 0))),
                    ("People disagree", str(counts.get("conflict", 0))),
                    ("Skipped", str(counts.get("skipped", 0))),
                    ('"Never again" set (escapes)', str(escapes)),
                ]
                base = self._page.station.base_data(product)
                rows.append(("Base data", str(base) if base else "none (review.base_data)"))
                table(("", "Pictures"), rows, "")
            with div("lw-card"):
                text("By label", "lw-h3", "h2")
                kinds = [(words.label(label, kind), str(n), f"{n / total:.0%}") for (label, kind), n in types.items()]
                table(("Label", "Pictures", "Share"), kinds, "Nothing is labelled yet")
            with div("lw-card"):
                text("By day", "lw-h3", "h2")
                days = [(day, str(good), str(bad)) for day, good, bad in labels.by_day(product)[:14]]
                table(("Day", "Good", "Defective"), days, "Nothing is labelled yet")
            with div("lw-card"):
                text("By camera", "lw-h3", "h2")
                cameras = [(name or "-", str(good), str(bad)) for name, good, bad in labels.by_camera(product)]
                table(("Camera", "Good", "Defective"), cameras, "Nothing is labelled yet")
        choices = {"": "all labelled", f"{PASS}|": "good"}
        choices |= {f"{FAIL}|{kind}": words.label(FAIL, kind) for label, kind in types if label == FAIL}
        self._choice.set_options(choices, value="")
        self._show_gallery()

    def _choose(self, event: events.ValueChangeEventArguments[Any]) -> None:
        label, _, kind = str(event.value or "").partition("|")
        self._filter = (label or None, kind if label == FAIL else None)
        self._show_gallery()

    def _show_gallery(self) -> None:
        label, kind = self._filter
        parts = self._page.station.labels.parts(
            self._page.product, status="labelled", label=label, label_type=kind, limit=GALLERY
        )
        found = [
            thumb(
                part.image,
                f"Part {words.name(part)}",
                [(words.label(part.label, part.label_type), ""), (words.name(part), "lw-muted lw-small")],
                f"lw-{part.label}",
            )
            for part in parts
        ]
        self._gallery.set_content("".join(found) or '<div class="lw-muted">None</div>')

    def _in_and_out(self) -> None:
        page = self._page
        with div("lw-columns"):
            with div("lw-card"):
                text("Import", "lw-h3", "h2")
                text(
                    "A ZIP file with the folders good/ and defect/TYPE/. It is taken over as a whole or not at all.",
                    "lw-muted",
                )
                escaped = ui.checkbox("These defective parts had escaped: never let one like them through again")

                async def take(person: Person, event: events.UploadEventArguments) -> None:
                    with tempfile.TemporaryDirectory(dir=page.station.root, prefix=UPLOAD) as folder:
                        path = Path(folder) / "upload.zip"
                        await event.file.save(path)
                        done = await asyncio.to_thread(
                            import_zip,
                            page.station.labels,
                            path,
                            page.product,
                            person.name,
                            escaped=bool(escaped.value),
                        )
                    log.info("%s imports %d pictures of %s", person.name, done.new, page.product)
                    say(
                        f"{done.new} pictures taken over" + (f", {done.known} were there already" if done.known else "")
                    )
                    await self.show()

                async def uploaded(event: events.UploadEventArguments) -> None:
                    await page.action("engineer", take)(event)

                def rejected(event: events.GenericEventArguments) -> None:
                    say(why_rejected(event.args, page.station.config.review.upload_mb), bad=True)

                # Quasar's own box has buttons without names: a screen reader cannot use it, so it stays hidden.
                upload = ui.upload(
                    on_upload=uploaded,
                    auto_upload=True,
                    max_file_size=page.station.config.review.upload_mb << 20,
                )
                upload.on("rejected", rejected, js_handler="files => emit(files.map(f => f.failedPropValidation))")
                # A file that stays in its list cannot be chosen again: Quasar takes it for a duplicate.
                upload.on("finish", upload.reset, args=[])
                upload.props('accept=".zip"').classes("lw-hidden")
                button("Choose a ZIP file", "upload_file", lambda: upload.run_method("pickFiles"), "lw-main")
            with div("lw-card"):
                text("Export", "lw-h3", "h2")
                for form, title, _ in FORMS:
                    link = ui.element("a").classes("lw-tab")
                    link.props["href"] = f"/export/{form}?product={quote(page.product)}"
                    link.props["download"] = ""
                    with link:
                        text(title, tag="span")
