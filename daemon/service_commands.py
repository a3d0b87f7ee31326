"""Commands for whoever keeps a station running: `reload`, `doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lineward.daemon.options import DEFAULT_CONFIG, ConfigOption, JsonOption, print_json

if TYPE_CHECKING:
    from collections.abc import Callable


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command, example in COMMANDS:
        app.command(epilog=f"Example: `{example}`")(command)


def reload(
    config: ConfigOption = DEFAULT_CONFIG,
    wait_s: Annotated[float, typer.Option("--wait-s", min=1, help="How long to wait until it is in force.")] = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Let a running station read its configuration again; no part is missed, and a faulty file changes nothing."""
    from lineward.daemon.config import load_config
    from lineward.daemon.control import send

    # A storage folder that is new in the file is not where the running station listens: `restart` is for that.
    answer = send(load_config(config).storage.root, "reload", {}, timeout_s=wait_s)
    if as_json:
        print_json(answer)
    else:
        typer.echo(answer.get("text") or answer["reason"], err=not answer["ok"])
    raise typer.Exit(0 if answer["ok"] else 1)


def doctor(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Look at camera, broker, model, disk, clock and machine; each finding comes with the command that mends it."""
    from lineward.daemon.config import load_config
    from lineward.daemon.doctor import examine
    from lineward.daemon.machine import Level

    colours = {Level.OK: "green", Level.HINT: "yellow", Level.FAULT: "red"}
    found = []
    for finding in examine(load_config(config), config):
        found.append(finding)
        if not as_json:
            level = typer.style(f"{finding.level:<5s}", fg=colours[finding.level])
            typer.echo(f"{level} {finding.what}: {finding.text}")
            if finding.mend:
                typer.echo(f"      mend: {finding.mend}")
    if as_json:
        print_json([finding.to_json() for finding in found])
    raise typer.Exit(1 if any(finding.level is Level.FAULT for finding in found) else 0)


COMMANDS: list[tuple[Callable[..., Any], str]] = [
    (reload, "lineward reload --config line.toml"),
    (doctor, "lineward doctor --config line.toml"),
]
