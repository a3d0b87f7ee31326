"""Options that many commands share, and how a command prints JSON; imports nothing that takes time."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

DEFAULT_CONFIG = Path("/etc/lineward/lineward.toml")
ConfigOption = Annotated[Path, typer.Option("--config", help="Configuration file (TOML).", show_default=True)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one machine-readable JSON value and nothing else.")]


def print_json(value: Any) -> None:
    """Print one JSON value on stdout."""
    sys.stdout.write(json.dumps(value, indent=1, allow_nan=False) + "\n")
