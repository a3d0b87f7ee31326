"""Commands for whoever watches a station: `top`, `watch`, `support-bundle`."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lineward.daemon.options import DEFAULT_CONFIG, ConfigOption, JsonOption, print_json

if TYPE_CHECKING:
    from collections.abc import Callable


watch_app = typer.Typer(
    help="Image health: what has drifted since commissioning.",
    invoke_without_command=True,
    epilog="Example: `lineward watch --config line.toml`",
)


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command, name, example in COMMANDS:
        app.command(name, epilog=f"Example: `{example}`")(command)
    app.add_typer(watch_app, name="watch")


def top(
    config: ConfigOption = DEFAULT_CONFIG,
    every_s: Annotated[float, typer.Option("--every-s", min=0.2, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, print and leave.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show a station live on the terminal: rate, verdicts, latency, losses, alarms; it needs no broker."""
    from lineward.daemon.config import load_config
    from lineward.daemon.top import look, show_live, view

    loaded = load_config(config)
    if as_json:
        seen = look(loaded)
        print_json(seen)
        raise typer.Exit(0 if seen["ok"] else 1)
    if once or not sys.stdout.isatty():
        from rich.console import Console

        seen = look(loaded)
        Console().print(view(loaded, seen))
        raise typer.Exit(0 if seen["ok"] else 1)
    show_live(loaded, every_s)


@watch_app.callback()
def watch(context: typer.Context, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Say what has drifted since commissioning."""
    context.obj = config
    if context.invoked_subcommand is not None:
        return
    from rich.console import Console

    from lineward.daemon.config import load_config
    from lineward.daemon.top import look, watch_table

    seen = look(load_config(config))
    if as_json:
        print_json(seen.get("stats", {}).get("watch", {"state": "unknown"}))
    elif not seen["ok"]:
        typer.echo(seen["status"], err=True)
    else:
        Console().print(watch_table(seen["stats"]["watch"]))
    raise typer.Exit(0 if seen["ok"] else 1)


@watch_app.command(epilog="Example: `lineward watch reset --config line.toml`")
def reset(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", help="Configuration file (TOML).", show_default=str(DEFAULT_CONFIG))
    ] = None,
) -> None:
    """Commission anew with the next parts: after a new lamp, lens or guide, when pictures are as they should be."""
    from lineward.daemon.config import load_config
    from lineward.daemon.control import send

    loaded = load_config(config or context.obj)
    answer = send(loaded.storage.root, "watch_reset", {}, timeout_s=5.0)
    if answer["ok"]:
        typer.echo(f"commissioned anew with the next {loaded.watch.commission_parts} parts")
    else:
        why = {"off": "watch.enabled is false", "not_ready": "no model is in force yet"}
        typer.echo(f"nothing was changed: {why.get(answer['reason'], answer['reason'])}", err=True)
    raise typer.Exit(0 if answer["ok"] else 1)


def support_bundle(
    config: ConfigOption = DEFAULT_CONFIG,
    out: Annotated[
        Path | None, typer.Option(help="The file to write.", show_default="lineward-support-TIME.tar.gz")
    ] = None,
    images: Annotated[int, typer.Option(min=0, max=1000, help="Add so many of the newest kept images.")] = 0,
) -> None:
    """Collect what a helper needs in one file: log, configuration, stats, doctor, versions; no secrets, no images."""
    from lineward.daemon.support_bundle import write_bundle

    path = out or Path(f"lineward-support-{datetime.now(UTC):%Y%m%d-%H%M%S}.tar.gz")
    for line in write_bundle(config, path, images=images):
        typer.echo(line)


COMMANDS: list[tuple[Callable[..., Any], str, str]] = [
    (top, "top", "lineward top --config line.toml"),
    (support_bundle, "support-bundle", "lineward support-bundle --config line.toml --out support.tar.gz"),
]
