"""Pieces of Markdown that the reference is made of."""

from __future__ import annotations

import typing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a Markdown table; bars in cells are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells) + "\n"


def code(value: object) -> str:
    """Set a value as code; nothing for nothing."""
    text = str(value)
    return f"`{text}`" if text else ""


def expect_keys(what: str, described: object, real: Sequence[object]) -> None:
    """Stop when the descriptions above no longer fit the code."""
    if list(typing.cast("typing.Iterable[object]", described)) != list(real):
        raise SystemExit(f"docs/generate.py: {what} does not describe what the code has: {list(real)}")
