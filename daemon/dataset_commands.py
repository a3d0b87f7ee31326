"""`lineward dataset`: what a folder of labelled images is good for, before anybody trains on it."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - Typer reads the annotations
from typing import Annotated

import typer

dataset_app = typer.Typer(
    help="Look at labelled images before training on them.",
    no_args_is_help=True,
    epilog="Example: `lineward dataset check --data images/`",
)


@dataset_app.callback()
def dataset() -> None:
    """Look at labelled images before training on them."""


@dataset_app.command("check", epilog="Example: `lineward dataset check --data images/ --production line/`")
def check(
    data: Annotated[Path, typer.Option(help="Folder with good/** and defect/TYPE/**, and groups.csv if there is one.")],
    production: Annotated[
        Path | None, typer.Option(help="Pictures from the line without labels, to compare light and position with.")
    ] = None,
    curve: Annotated[
        bool, typer.Option("--curve/--no-curve", help="Fit the learning curve, which takes most of the time.")
    ] = True,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of folds and splits.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one machine-readable JSON value and nothing else.")
    ] = False,
) -> None:
    """Say what a set lacks and what more images would bring; leave with 1 when something is wrong."""
    from lineward.daemon.options import print_json
    from lineward.daemon.priority import step_back
    from lineward.daemon.progress import cache_dir, progress_bar
    from lineward.models.dataset_check import check_dataset

    step_back()
    with progress_bar(quiet=as_json) as progress:
        report = check_dataset(
            data, cache_dir=cache_dir(), progress=progress, seed=seed, production=production, curve=curve
        )
    if as_json:
        print_json(report.to_json())
    else:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table("", "what", "found", title=f"{data}: {report.n_good} good, {report.n_defect} defective")
        styles = {"problem": ("FAIL", "red"), "note": ("look", "yellow"), "ok": ("ok", "green")}
        for finding in report.findings:
            mark, style = styles[finding.level]
            table.add_row(Text(mark, style), finding.id.replace("_", " "), Text(finding.text))
        console = Console()
        console.print(table)
        for line in report.curve.sentences() if report.curve else []:
            typer.echo(line)
        count = sum(finding.level == "problem" for finding in report.findings)
        wrong = "Nothing is" if not count else "1 thing is" if count == 1 else f"{count} things are"
        typer.echo(f"{wrong} wrong with this set.")
    raise typer.Exit(0 if report.fine else 1)
