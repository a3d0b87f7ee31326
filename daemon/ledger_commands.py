"""`lineward ledger`: list, filter, reconcile and export the book of a station, while it runs or not."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lineward.daemon.options import DEFAULT_CONFIG, JsonOption

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lineward.daemon.ledger_read import LedgerReader

ledger_app = typer.Typer(
    help="List, reconcile and export the answers of a station.",
    invoke_without_command=True,
    epilog="Example: `lineward ledger --config line.toml`",
)


ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="Configuration file of the station.", show_default=str(DEFAULT_CONFIG))
]
RootOption = Annotated[
    Path | None, typer.Option("--root", help="Storage folder of the station, instead of --config.", show_default=False)
]
SinceOption = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Triggered from then on: RFC 3339, or an age as 90s, 30m, 2h, 7d."),
]
UntilOption = Annotated[str | None, typer.Option(metavar="TIME", help="Triggered before then; as --since.")]
PartOption = Annotated[str | None, typer.Option(help="Part id.")]
VerdictOption = Annotated[str | None, typer.Option(help="pass, fail, review or undecided.")]
ReasonOption = Annotated[str | None, typer.Option(help="Reason, as timeout or no_image.")]
ProductOption = Annotated[str | None, typer.Option(help="Product.")]
LateOption = Annotated[
    bool, typer.Option("--late", help="Only what was late: the answer, or a verdict that came after it.")
]

VERDICTS = ("pass", "fail", "review", "undecided")
_AGE = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class LedgerCommandError(ValueError):
    """What was asked for cannot be done; the message names place and remedy."""


@ledger_app.callback()
def ledger(context: typer.Context, config: ConfigOption = None, root: RootOption = None) -> None:
    """List, reconcile and export the answers of a station."""
    context.obj = (config, root)
    if context.invoked_subcommand is None:
        list_answers(context)


@ledger_app.command("list", epilog="Example: `lineward ledger list --verdict undecided --since 2h`")
def list_answers(
    context: typer.Context,
    config: ConfigOption = None,
    root: RootOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    part: PartOption = None,
    verdict: VerdictOption = None,
    reason: ReasonOption = None,
    product: ProductOption = None,
    late: LateOption = False,
    limit: Annotated[int, typer.Option(min=0, help="The newest so many; 0: all.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """List answers, the newest last."""
    from lineward.daemon.ledger_export import readable, records

    filters = _filters(since, until, part, verdict, reason, product, late)
    with _opened(context, config, root) as reader:
        found = map(readable, records(reader, reader.rows(newest=limit or None, **filters)))
        if as_json:
            _print_array(found)
        else:
            _print_lines(found)


@ledger_app.command("reconcile", epilog="Example: `lineward ledger reconcile --since 8h`")
def reconcile_ledger(
    context: typer.Context,
    config: ConfigOption = None,
    root: RootOption = None,
    since: SinceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hold triggers, frames and answers against each other; exit 1 when they do not add up."""
    from lineward.daemon.reconcile import reconcile

    since_ns = None if since is None else parse_time(since, "--since")
    with _opened(context, config, root) as reader:
        found = reconcile(reader, since_ns=since_ns, **_kept_rows(context, config))
    if as_json:
        sys.stdout.write(json.dumps(found.to_json(), indent=1) + "\n")
    else:
        for line in found.sentences():
            typer.echo(line)
    raise typer.Exit(0 if found.fine else 1)


@ledger_app.command("export", epilog="Example: `lineward ledger export shift.parquet --since 8h`")
def export_ledger(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="FILE.csv or FILE.parquet.", show_default=False)],
    config: ConfigOption = None,
    root: RootOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    part: PartOption = None,
    verdict: VerdictOption = None,
    reason: ReasonOption = None,
    product: ProductOption = None,
    late: LateOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write answers to a CSV or Parquet file, one row each."""
    from lineward.daemon.ledger_export import export, records

    filters = _filters(since, until, part, verdict, reason, product, late)
    with _opened(context, config, root) as reader:
        count = export(file, records(reader, reader.rows(**filters)))
    if as_json:
        sys.stdout.write(json.dumps({"file": str(file), "rows": count}) + "\n")
    else:
        typer.echo(f"{file}: {count} answers")


# ---- what was asked for


def parse_time(text: str, option: str) -> int:
    """Read a point in time, RFC 3339 or an age, as nanoseconds since 1970; raises `LedgerCommandError`."""
    age = _AGE.fullmatch(text.strip())
    if age:
        return time.time_ns() - round(float(age[1]) * _SECONDS[age[2]] * 1e9)
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        missing = "say the time zone: Z for UTC" if moment is not None else "that is no point in time"
        raise LedgerCommandError(
            f"{option} {text!r}: {missing}; write 2026-11-23T20:51:00Z, or an age as 90s, 30m, 2h, 7d"
        )
    whole = int(moment.replace(microsecond=0).timestamp())
    return whole * 1_000_000_000 + moment.microsecond * 1000


def _filters(
    since: str | None,
    until: str | None,
    part: str | None,
    verdict: str | None,
    reason: str | None,
    product: str | None,
    late: bool,
) -> dict[str, Any]:
    if verdict is not None and verdict not in VERDICTS:
        raise LedgerCommandError(f"--verdict {verdict!r}: there are {', '.join(VERDICTS)}")
    return {
        "since_ns": None if since is None else parse_time(since, "--since"),
        "until_ns": None if until is None else parse_time(until, "--until"),
        "part_id": part,
        "verdict": verdict,
        "reason": reason,
        "product": product,
        "late": late or None,
    }


def _storage(context: typer.Context, config: Path | None, root: Path | None) -> Path:
    """Find the storage folder from the options of the command, else from those of the group."""
    before: tuple[Path | None, Path | None] = context.obj or (None, None)
    config, root = config or before[0], root or before[1]
    if config is not None and root is not None:
        raise LedgerCommandError("--config and --root: give one of them")
    if root is not None:
        return root
    if config is None and not DEFAULT_CONFIG.exists():
        raise LedgerCommandError(
            f"{DEFAULT_CONFIG}: is not there; give --config FILE, or the storage folder by --root DIR"
        )
    from lineward.daemon.config import load_config

    return load_config(config or DEFAULT_CONFIG).storage.root


def _kept_rows(context: typer.Context, config: Path | None) -> dict[str, int]:
    """Return how many answers the station keeps, where a configuration says it."""
    from lineward.daemon.config import load_config

    config = config or (context.obj or (None, None))[0] or DEFAULT_CONFIG
    return {"kept_rows": load_config(config).storage.ledger_rows} if config.exists() else {}


@contextlib.contextmanager
def _opened(context: typer.Context, config: Path | None, root: Path | None) -> Iterator[LedgerReader]:
    """Open the ledger for reading; whatever is wrong with the file becomes one line."""
    from lineward.daemon.ledger_file import SCHEMA, is_damaged
    from lineward.daemon.ledger_read import LedgerReader

    path = _storage(context, config, root) / "ledger.sqlite3"
    if not path.exists():
        raise LedgerCommandError(
            f"{path}: there is no ledger; it is made when the station starts with this storage folder"
        )
    reader = LedgerReader(path)
    try:
        version = reader.schema()
        if version > SCHEMA:
            raise LedgerCommandError(
                f"{path}: written by a newer Lineward (schema {version}, this one knows {SCHEMA}); use that version"
            )
        if version == 0:
            raise LedgerCommandError(f"{path}: is empty; it is filled when the station starts")
        yield reader
    except sqlite3.Error as error:
        if is_damaged(error):
            raise LedgerCommandError(
                f"{path}: is damaged ({error}); the station moves it aside when it starts and goes on with a new one"
            ) from error
        raise LedgerCommandError(
            f"{path}: cannot be read ({error}); check that you may read it and its folder"
        ) from error
    finally:
        reader.close()


# ---- what is printed


def _print_array(found: Iterator[dict[str, Any]]) -> None:
    """Print one JSON array, a record a line, as they come."""
    comma = "["
    for record in found:
        sys.stdout.write(f"{comma}{json.dumps(record, allow_nan=False)}")
        comma = ",\n "
    sys.stdout.write("[]\n" if comma == "[" else "]\n")


def _print_lines(found: Iterator[dict[str, Any]]) -> None:
    count = 0
    for record in found:
        if not count:
            typer.echo(f"{'seq':>9s}  {'triggered (UTC)':24s}  {'answer':22s}  {'conf':>6s}  {'ms':>7s}  part")
        count += 1
        typer.echo(_line(record))
    if not count:
        typer.echo("no answer matches", err=True)


def _line(record: dict[str, Any]) -> str:
    answer = record["verdict"] + (f" {record['reason']}" if record["reason"] else "")
    milliseconds = "" if record["total_ms"] is None else f"{record['total_ms']:.1f}"
    remarks = [
        record["part_id"] or "-",
        f"trigger {record['trigger_id']}" if record["trigger_id"] else "",
        record["product"],
        "late" if record["late"] else "",
        f"{record['late_verdict']} came too late" if record["late_verdict"] else "",
        "" if record["acknowledged"] else "not acknowledged",
    ]
    return (
        f"{record['seq']:>9d}  {record['triggered']:24s}  {answer:22s}  {record['confidence']:6.1%}  "
        f"{milliseconds:>7s}  " + "  ".join(remark for remark in remarks if remark)
    )
