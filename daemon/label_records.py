"""What a label and a picture that can be labelled are: words, records, errors."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

FOLDER = "labelled"

PASS, FAIL, SKIP = "pass", "fail", "skip"
DECISIONS = (PASS, FAIL, SKIP)

FIRST, SECOND, BLIND, SETTLE, IMPORT = "first", "second", "blind", "settle", "import"
"""Why a label was asked for; SETTLE ends a conflict, whatever was said before."""

NEW, LABELLED, CONFLICT, SKIPPED = "new", "labelled", "conflict", "skipped"


class LabelError(ValueError):
    """A label cannot be given or kept; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Part:
    """One picture that can be labelled, and what is known about it.

    Attributes
    ----------
    path
        Relative to the storage root.
    created_ns
        Wall clock, nanoseconds since 1970, UTC.
    why, urgency
        Why a person should look at it, and how much sooner than at others.
    status, label, label_type
        What the labels so far come to.
    """

    image: str
    path: str
    product: str
    part_id: str
    seq: int
    created_ns: int
    origin: str
    camera: str
    verdict: str
    reason: str
    confidence: float
    defect_probability: float
    anomaly: float
    defect_type: str
    model_version: str
    model_sha256: str
    why: str
    urgency: float
    escaped: int = 0
    status: str = NEW
    label: str = ""
    label_type: str = ""

    @property
    def group(self) -> str:
        """Name of the physical part: pictures of one part are never divided between training and test."""
        return self.part_id or (f"seq-{self.seq}" if self.seq else self.image)


@dataclass(frozen=True, slots=True)
class Label:
    """One decision of one person; ``verdict`` and ``model_version`` are what the line had said."""

    id: int
    image: str
    person: str
    at_ns: int
    decision: str
    defect_type: str
    purpose: str
    verdict: str
    model_version: str
    undone_ns: int | None


OF_GOOD_PARTS = {"good", "pass", "ok"}
LONGEST_TYPE = 64
NOT_IN_TYPES = set('/\\:*?"<>|{}`$')
"""Signs that lead out of a folder, or mean something to a file system, a page or a shell."""


def as_spelled(name: str, in_use: Iterable[str]) -> str:
    """Return a defect type as it is in use already: Scratch and scratch are one."""
    known = list(in_use)
    return name if name in known else next((kind for kind in known if kind.casefold() == name.casefold()), name)


def clean_type(text: str) -> str:
    """Make a defect type that is a folder name as well, on any system; raises `LabelError`.

    A letter that was typed as a letter and its accent is one sign, or the type would be there twice.
    """
    name = " ".join(unicodedata.normalize("NFC", text).split())
    if not name:
        return ""
    if name.casefold() in OF_GOOD_PARTS:
        raise LabelError(f"{name!r} cannot be a defect type: it is a word for good parts; use another")
    if not any(c.isalnum() for c in name):
        raise LabelError(f"{name[:60]!r} cannot be a defect type; use at least one letter or digit")
    if len(name) > LONGEST_TYPE or not name.isprintable() or NOT_IN_TYPES & {*name} or name[0] in ".=+@-":
        raise LabelError(
            f"{name[:60]!r} cannot be a defect type; use at most {LONGEST_TYPE} letters, digits and signs, none of "
            f"{' '.join(sorted(NOT_IN_TYPES))}, and a letter or digit first"
        )
    if name[-1] == ".":
        raise LabelError(f"{name!r} cannot be a defect type: a folder's name may not end with a dot everywhere")
    return name
