"""What a training of the page learns from: labelled parts and the base data, and no part on both sides of the split."""

from __future__ import annotations

import csv
import hashlib
import os
from typing import TYPE_CHECKING

from tests.web.kit import HOUR_NS, add_part, png

from lineward.daemon.label_records import FAIL, PASS
from lineward.daemon.web.trainingset import held_out, is_held_out, write_sets
from lineward.daemon.web.transfer import import_folder

if TYPE_CHECKING:
    from pathlib import Path

    from lineward.daemon.labels import LabelStore


def test_one_part_is_never_on_both_sides_of_the_split(labels: LabelStore, tmp_path: Path) -> None:
    """Rule: all pictures of a part are trained on or tested on; an escape is always trained on; the base joins in."""
    for number in range(120):
        part = add_part(labels, number + 1, part_id=f"P{number // 3}", created_ns=number * HOUR_NS)
        labels.give(part.image, "tom", PASS if number % 2 else FAIL, "" if number % 2 else "dent")
    tested = [part for part in labels.parts("bracket") if is_held_out(part)]
    escaped = add_part(labels, 500, part_id=tested[0].part_id, verdict="pass")
    labels.give(escaped.image, "tom", FAIL, "dent")
    base = tmp_path / "base"
    for name in ("good/one.png", "good/sub/two.png", "defect/dent/three.png", "defect/four.png"):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(png(len(name) + 900))
    sets = write_sets(labels, "bracket", tmp_path / "data", base)
    trained = {path.stem for path in (tmp_path / "data").rglob("*.png")}
    held = {part.image for part in sets.held_out}
    assert held
    assert held_out(labels, "bracket") == sets.held_out
    assert escaped.image not in held
    assert not held & trained
    assert escaped.image in trained
    assert {part.part_id for part in sets.held_out} & {
        part.part_id for part in labels.parts("bracket") if part.image in trained and part.image != escaped.image
    } == set()
    assert sets.base == 4
    assert {"one", "two", "three", "four"} <= trained
    assert len(trained) == sets.labelled + sets.base == 121 - len(held) + 4
    assert os.path.samefile(next((tmp_path / "data").rglob("one.png")), base / "good" / "one.png")  # noqa: PTH121


def write_base(folder: Path, groups: str) -> dict[str, bytes]:
    """Write base data of 30 parts with two pictures each, and return its pictures."""
    pictures = {
        f"{'good' if part % 3 else 'defect/dent'}/{part}-{side}.png": png(1000 + 2 * part + side)
        for part in range(30)
        for side in (0, 1)
    }
    for name, data in pictures.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "groups.csv").write_text(groups)
    return pictures


def digests(folder: Path) -> set[str]:
    return {hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.png")}


def test_base_data_that_is_held_out_is_not_trained_on(labels: LabelStore, tmp_path: Path) -> None:
    """Rule: a picture that was imported from the base data and is held out is in no training, nor is its part."""
    base, some = tmp_path / "base", tmp_path / "some"
    rows = "file,group\n" + "".join(
        f"{'good' if part % 3 else 'defect/dent'}/{part}-{side}.png,P{part}\n" for part in range(30) for side in (0, 1)
    )
    pictures = write_base(base, rows)
    for name in ("groups.csv", *(name for name in pictures if name.endswith("-0.png"))):
        (some / name).parent.mkdir(parents=True, exist_ok=True)
        (some / name).write_bytes((base / name).read_bytes())
    assert import_folder(labels, some, "bracket", "eve").new == 30
    sets = write_sets(labels, "bracket", tmp_path / "data", base)
    held = {part.part_id for part in sets.held_out}
    assert 2 < len(held) < 15
    of_held = {hashlib.sha256(d).hexdigest() for n, d in pictures.items() if f"P{n.split('/')[-1][:-6]}" in held}
    trained = digests(tmp_path / "data")
    assert not trained & of_held
    assert trained == digests(base) - of_held
    assert sets.labelled == 30 - len(held)
    assert sets.base == 30 - len(held)
    assert sets.base_out == 2 * len(held)
    files = list((tmp_path / "data").rglob("*.png"))
    assert len(files) == len(trained), "a picture that is labelled here and lies in the base counts once"
    with (tmp_path / "data" / "groups.csv").open() as table:
        group_of = {row["file"]: row["group"] for row in csv.DictReader(table)}
    sides: dict[str, set[str]] = {}
    names = {hashlib.sha256(data).hexdigest(): name for name, data in pictures.items()}
    for file in files:
        name = names[hashlib.sha256(file.read_bytes()).hexdigest()]
        sides.setdefault(name.split("/")[-1][:-6], set()).add(group_of[file.relative_to(tmp_path / "data").as_posix()])
    assert len(sides) == 30 - len(held)
    assert {len(groups) for groups in sides.values()} == {1}, "both sides of a part are of one part"


def test_base_data_without_a_group_is_not_one_part(labels: LabelStore, tmp_path: Path) -> None:
    """Rule: a row whose group is blank or missing names no part, like a picture that is not listed."""
    write_base(
        tmp_path / "base",
        "file,group\ngood/1-0.png,P1\ngood/1-1.png, P1\ngood/2-0.png,\ngood/2-1.png,  \ngood/4-0.png\n",
    )
    write_sets(labels, "bracket", tmp_path / "data", tmp_path / "base")
    with (tmp_path / "data" / "groups.csv").open(newline="") as stream:
        found = {row["file"]: row["group"] for row in csv.DictReader(stream)}
    assert found == {"good/base/1-0.png": "base/P1", "good/base/1-1.png": "base/P1"}


def test_a_batch_as_one_group_goes_with_its_first_picture_that_is_tested(labels: LabelStore, tmp_path: Path) -> None:
    """Rule: how much of the base data was left out is counted, so that the page can say that little of it is left."""
    base = tmp_path / "base"
    pictures = write_base(base, "file,group\n")
    (base / "groups.csv").write_text("file,group\n" + "".join(f"{name},batch\n" for name in pictures))
    for number, data in enumerate(list(pictures.values())[:20]):
        part = add_part(labels, number + 1, part_id=f"P{number}", picture=data)
        labels.give(part.image, "tom", PASS)
    sets = write_sets(labels, "bracket", tmp_path / "data", base)
    assert sets.held_out
    assert (sets.labelled, sets.base, sets.base_out) == (20 - len(sets.held_out), 0, 40 + len(sets.held_out))
