"""One thing that `dataset check` found out, and the words that findings share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

Level = Literal["ok", "note", "problem"]

MAX_NAMES = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: ``id``, how it is, a sentence, and the figures behind it."""

    id: str
    level: Level
    text: str
    figures: dict[str, object] = field(default_factory=dict)


def number_of(number: int, word: str) -> str:
    """Return the number and its word, with an s unless there is one."""
    return f"{number} {word}" + ("" if number == 1 else "s")


def some(names: Sequence[object]) -> str:
    """Return the first few names, and how many more there are."""
    shown = ", ".join(str(name) for name in names[:MAX_NAMES])
    return shown + (f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else "")
