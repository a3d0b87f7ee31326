"""Beside each labelled picture, what was said about it: from these files a lost label store is made again."""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from lineward.daemon.label_records import DECISIONS, FOLDER, Label, Part

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

log = logging.getLogger("lineward.labels")

TEXTS = {name for name, kind in {**Part.__annotations__, **Label.__annotations__}.items() if kind == "str"}


def write(root: Path, part: Part, labels: Sequence[Label]) -> None:
    """Write down a labelled picture and all that was said about it; the store itself is the truth, so trouble is not.

    Not forced to the disk: it is needed on the day when the store is gone, not after a power cut.
    """
    if not part.path.startswith(f"{FOLDER}/"):
        return  # only skipped so far
    path = (root / part.path).with_suffix(".json")
    text = json.dumps({"part": asdict(part), "labels": [asdict(label) for label in labels]}, indent=1)
    fresh = path.with_name(path.name + ".part")
    try:
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)
    except OSError as error:
        log.debug("%s: not written: %s", path, error)
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)


def read(root: Path) -> Iterator[tuple[Part, list[Label]]]:
    """Yield every labelled picture that is there, with its labels; what cannot be read is named and left out."""
    for path in sorted((root / FOLDER).glob("*.json")):
        try:
            found = _read(root, path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            log.warning("%s: left out: %s", path, error)
        else:
            yield found


def _read(root: Path, path: Path) -> tuple[Part, list[Label]]:
    content = json.loads(path.read_bytes())
    part = Part(**_checked(content["part"], Part))
    labels = [Label(**_checked(label, Label)) for label in content["labels"]]
    if any(label.image != part.image or label.decision not in DECISIONS for label in labels):
        raise ValueError("labels of another picture")
    if not (root / part.path).is_file() or (root / part.path).with_suffix(".json") != path:
        raise ValueError("its picture is gone")
    return part, labels


def _checked(values: dict[str, Any], kind: type[Part | Label]) -> dict[str, Any]:
    """Return the fields of a record; text must be text and numbers numbers."""
    found = {field.name: values[field.name] for field in fields(kind)}
    for name, value in found.items():
        if name == "undone_ns" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, str if name in TEXTS else (int, float)):
            raise TypeError(f"{name} is not what it should be")
    return found
