"""`lineward review`: the page, who may use it, and pictures brought in from the terminal."""

from __future__ import annotations

import getpass
import json
import signal
import sys
from pathlib import Path  # noqa: TC003 - Typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer

from lineward.daemon.options import DEFAULT_CONFIG, ConfigOption, JsonOption

if TYPE_CHECKING:
    from lineward.daemon.web.people import People

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name to sign in with.", show_default=False)]

review_app = typer.Typer(
    help="Serve the review page: watch, label, train, compare, promote.",
    invoke_without_command=True,
    epilog="Example: `lineward review --config line.toml`",
)
user_app = typer.Typer(
    help="Who may use the review page.",
    no_args_is_help=True,
    epilog="Example: `lineward review user add ann --role technician --config line.toml`",
)
review_app.add_typer(user_app, name="user")


class ReviewCommandError(ValueError):
    """The command cannot be carried out; the message says what to write instead."""


@review_app.callback()
def review(context: typer.Context, config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Serve the review page: watch, label, train, compare, promote."""
    if context.invoked_subcommand is not None:
        return
    for number in (signal.SIGINT, signal.SIGTERM):  # the web server calls these at its own end
        signal.signal(number, lambda *_: sys.exit(0))
    from lineward.daemon import log
    from lineward.daemon.config import load_config
    from lineward.daemon.web.server import serve

    loaded = load_config(config)
    log.set_up(loaded.log.level, parts=False)
    serve(loaded)


@user_app.command("add", epilog="Example: `lineward review user add ann --role technician --config line.toml`")
def add(
    name: NameArgument,
    role: Annotated[
        str, typer.Option(help="operator (looks), technician (labels, trains, promotes) or engineer (all).")
    ],
    config: ConfigOption = DEFAULT_CONFIG,
    password_file: Annotated[
        Path | None, typer.Option(help="File that holds the password; else it is asked.", show_default=False)
    ] = None,
) -> None:
    """Add a person, or change role and password of one."""
    people = _people(config)
    people.add(name, role, _password(password_file))
    typer.echo(f"{name} may sign in as {role}")


@user_app.command("list", epilog="Example: `lineward review user list --config line.toml`")
def list_(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """List who may use the page."""
    found = _people(config).list()
    if as_json:
        sys.stdout.write(json.dumps([{"name": person.name, "role": person.role} for person in found], indent=1) + "\n")
    else:
        for person in found:
            typer.echo(f"{person.role:<11s} {person.name}")
        if not found:
            typer.echo("nobody yet; `lineward review user add NAME --role technician`")


@user_app.command("remove", epilog="Example: `lineward review user remove ann --config line.toml`")
def remove(name: NameArgument, config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Remove a person; what they labelled stays under their name."""
    _people(config).remove(name)
    typer.echo(f"{name} may not sign in any more")


@review_app.command("import", epilog="Example: `lineward review import parts.zip --product tiles --config line.toml`")
def import_(
    source: Annotated[
        Path, typer.Argument(metavar="FOLDER|FILE.zip", help="Holds good/ and defect/TYPE/.", show_default=False)
    ],
    product: Annotated[str, typer.Option(help="Product that the pictures show.")],
    config: ConfigOption = DEFAULT_CONFIG,
    escaped: Annotated[
        bool, typer.Option("--escaped", help="The defective ones had escaped: never let one like them through again.")
    ] = False,
    correct: Annotated[
        bool, typer.Option("--correct", help="What it says holds, whatever a picture is known as by now.")
    ] = False,
) -> None:
    """Take labelled pictures over, all or none."""
    from lineward.daemon.config import load_config
    from lineward.daemon.labels import LabelStore
    from lineward.daemon.web.transfer import import_folder, import_zip
    from lineward.models.store import user

    labels = LabelStore(load_config(config).storage.root)
    take = import_folder if source.is_dir() else import_zip
    done = take(labels, source, product, user(), escaped=escaped, correct=correct)
    typer.echo(f"{done.new} pictures taken over" + (f", {done.known} were there already" if done.known else ""))


def _people(config: Path) -> People:
    from lineward.daemon.config import load_config
    from lineward.daemon.web.people import People

    return People(load_config(config).storage.root)


def _password(file: Path | None) -> str:
    if file is not None:
        return file.read_text(encoding="utf-8").strip("\r\n")
    if not sys.stdin.isatty():
        raise ReviewCommandError("no terminal to ask for the password; give it with --password-file FILE")
    first = getpass.getpass("Password: ")
    if first != getpass.getpass("Once more: "):
        raise ReviewCommandError("the two passwords differ; nothing was changed")
    return first
