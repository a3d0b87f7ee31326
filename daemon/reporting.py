"""`evaluate --html` as a person runs it: the figures, and a page beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lineward.daemon.progress import progress_bar
from lineward.models.bundle import check_output
from lineward.models.evaluate import judge_folder
from lineward.models.report import write_report
from lineward.models.session import Session

if TYPE_CHECKING:
    from pathlib import Path

    from lineward.models.evaluate import Judged


def evaluate_with_page(model: Path, data: Path, page: Path, *, quiet: bool) -> Judged:
    """Judge every labelled image below ``data``, write the page and return what it is about."""
    check_output(page)
    session = Session(model)
    session.warm_up()
    with progress_bar(quiet=quiet) as progress:
        judged = judge_folder(session, data, progress=lambda done, of: progress("judging images", done, of))
    write_report(page, judged)
    return judged
