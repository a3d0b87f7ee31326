"""How well people agree: with others on the same pictures, and with themselves on blind repeats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lineward.daemon.label_records import BLIND

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lineward.daemon.label_records import Label


@dataclass(frozen=True, slots=True)
class Agreement:
    """How often a person says the same as others, or the same twice; ``kappa`` is None without variety."""

    person: str
    labels: int
    pairs: int
    same: int
    kappa: float | None
    repeats: int
    repeats_same: int
    repeats_kappa: float | None


def agreement(opinions: Sequence[Label]) -> list[Agreement]:
    """Compare each person with others and with themselves; `LabelStore.opinions` gives what to compare."""
    said: dict[str, list[Label]] = {}
    for label in opinions:
        said.setdefault(label.image, []).append(label)
    people: dict[str, tuple[list[tuple[str, str]], list[tuple[str, str]]]] = {}
    total: dict[str, int] = {}
    for labels in said.values():
        for label in labels:
            total[label.person] = total.get(label.person, 0) + 1
        firsts = {label.person: label for label in reversed(labels)}
        for person, own in firsts.items():
            others, repeats = people.setdefault(person, ([], []))
            others += [(own.decision, other.decision) for name, other in firsts.items() if name != person]
            repeats += [
                (own.decision, again.decision)
                for again in labels
                if again.person == person and again.purpose == BLIND and again.id != own.id
            ]
    return [
        Agreement(
            person,
            total[person],
            *(len(others), sum(a == b for a, b in others), kappa(others)),
            *(len(repeats), sum(a == b for a, b in repeats), kappa(repeats)),
        )
        for person, (others, repeats) in sorted(people.items())
    ]


def kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Return Cohen's kappa: agreement beyond what chance gives, 1 at best; None when only one word was ever used."""
    n = len(pairs)
    words = {word for pair in pairs for word in pair}
    if n == 0 or len(words) < 2:
        return None
    observed = sum(a == b for a, b in pairs) / n
    chance = sum(sum(a == word for a, _ in pairs) * sum(b == word for _, b in pairs) for word in words) / n**2
    return None if chance == 1.0 else (observed - chance) / (1.0 - chance)
