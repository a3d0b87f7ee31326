"""Labelled pictures out: as folders, as COCO, or as a list."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lineward.daemon.label_records import FAIL, LABELLED
from lineward.daemon.web import words
from lineward.daemon.web.trainingset import place
from lineward.daemon.web.transfer import TransferError, header_size

if TYPE_CHECKING:
    from lineward.daemon.label_records import Part
    from lineward.daemon.labels import LabelStore


def export(labels: LabelStore, product: str, form: str, goal: Path) -> None:
    """Write the labelled pictures of a product as ``folders`` or ``coco`` (ZIP), or their list as ``csv``.

    Raises
    ------
    TransferError
        There is no such form, or nothing is labelled.
    """
    parts = labels.parts(product, status=LABELLED)
    if form not in {"folders", "coco", "csv"}:
        raise TransferError(f"{form[:20]!r} is no form of export; it is folders, coco or csv")
    if not parts:
        raise TransferError("nothing is labelled yet; there is nothing to export")
    if form == "csv":
        goal.write_text(table(labels, parts), encoding="utf-8")
        return
    with zipfile.ZipFile(goal, "w", zipfile.ZIP_STORED) as archive:
        there = [part for part in parts if labels.file(part).is_file()]
        for part in there:
            archive.write(labels.file(part), place(part) if form == "folders" else f"images/{_file(part)}")
        if form == "folders":
            rows = io.StringIO()
            writer = csv.writer(rows)
            writer.writerow(("file", "group", "label"))
            writer.writerows((place(part), part.group, part.label) for part in there)
            archive.writestr("groups.csv", rows.getvalue())
            archive.writestr("labels.csv", table(labels, there))
        else:
            archive.writestr("annotations.json", json.dumps(coco(labels, there)))


def table(labels: LabelStore, parts: list[Part]) -> str:
    """Return a CSV with one line for each label: which picture, who, when, what, and what the line had said."""
    rows = io.StringIO()
    writer = csv.writer(rows)
    writer.writerow(
        [
            "file",
            "part",
            "product",
            "kept",
            "label",
            "defect_type",
            "who",
            "when",
            "decision",
            "decided_type",
            "purpose",
            "undone",
            "line_verdict",
            "line_model",
        ]
    )
    for part in parts:
        for label in labels.labels(part.image):
            writer.writerow(
                _harmless(value)
                for value in (
                    *(place(part), part.part_id or str(part.seq or ""), part.product, _time(part.created_ns)),
                    *(part.label, part.label_type, label.person, _time(label.at_ns), label.decision, label.defect_type),
                    *(label.purpose, "yes" if label.undone_ns else "", label.verdict, label.model_version),
                )
            )
    return rows.getvalue()


def coco(labels: LabelStore, parts: list[Part]) -> dict[str, Any]:
    """Return annotations in the form of COCO: the whole picture is the box, for labels here are of whole parts."""
    names = ["good", *sorted({part.label_type or "defect" for part in parts if part.label == FAIL})]
    images, annotations = [], []
    for number, part in enumerate(parts, 1):
        size = header_size(labels.file(part).read_bytes()) or (0, 0)
        images.append({"id": number, "file_name": f"images/{_file(part)}", "width": size[0], "height": size[1]})
        name = "good" if part.label != FAIL else part.label_type or "defect"
        annotations.append(
            {
                "id": number,
                "image_id": number,
                "category_id": names.index(name) + 1,
                "bbox": [0, 0, *size],
                "area": size[0] * size[1],
                "iscrowd": 0,
            }
        )
    return {
        "info": {"description": f"{words.name(parts[0])} and others, labelled with Lineward" if parts else ""},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, 1)],
    }


def _file(part: Part) -> str:
    return Path(place(part)).name


def _time(unix_ns: int) -> str:
    return datetime.fromtimestamp(unix_ns / 1e9, UTC).isoformat(timespec="seconds")


def _harmless(value: str) -> str:
    """Keep a spreadsheet from taking a text for a formula."""
    return f"'{value}" if value[:1] in {"=", "+", "-", "@", "\t", "\r"} else value
