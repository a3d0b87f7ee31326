"""A label store that is lost is made again from the files beside the labelled pictures."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from tests.web.kit import add_part, add_to_ledger, make_part

from lineward.daemon.label_records import CONFLICT, FAIL, LABELLED, PASS, SECOND, SKIP
from lineward.daemon.labels import FILE, LabelStore
from lineward.daemon.ledger_read import LedgerReader
from lineward.daemon.web.flagged import Flagged

if TYPE_CHECKING:
    from pathlib import Path


def lose(labels: LabelStore) -> LabelStore:
    """Delete the store, and open it again as the next start does."""
    labels.close()
    for path in labels.root.glob(f"{FILE}*"):
        path.unlink()
    return LabelStore(labels.root)


def test_what_people_said_comes_back(labels: LabelStore) -> None:
    """Rule: labels, conflicts and what was undone are as they were; a part nobody labelled is the ledger's business."""
    parts = [add_part(labels, number) for number in range(5)]
    images = [part.image for part in parts]
    labels.give(images[0], "tom", FAIL, "dent")
    labels.give(images[1], "tom", PASS)
    labels.give(images[1], "ann", FAIL, "dent", purpose=SECOND)
    labels.give(images[2], "tom", PASS)
    labels.undo("tom", "bracket")
    labels.give(images[2], "tom", FAIL, "scratch")
    labels.give(images[3], "tom", SKIP)
    before = [(labels.part(image), labels.labels(image)) for image in images[:3]]
    again = lose(labels)
    assert [(again.part(image), again.labels(image)) for image in images[:3]] == before
    assert [again.part(image).status for image in images[:3]] == [LABELLED, CONFLICT, LABELLED]
    assert again.part(images[4]) is None
    number = again.give(images[0], "ann", FAIL, "dent", purpose=SECOND).id
    assert number > max(label.id for _, said in before for label in said)
    again.close()


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[]", b'{"part": {}}', b"\xff", b'{"part": 1, "labels": 2}'],
    ids=repr,
)
def test_a_damaged_file_costs_its_own_picture_only(labels: LabelStore, damage: bytes) -> None:
    """Rule: one file that cannot be read is left out, and the rest comes back."""
    first, second = (add_part(labels, number).image for number in range(2))
    labels.give(first, "tom", PASS)
    labels.give(second, "tom", PASS)
    path: Path = labels.file(labels.part(first)).with_suffix(".json")
    path.write_bytes(damage)
    again = lose(labels)
    assert again.part(first) is None
    assert again.part(second).label == PASS
    again.close()


def test_words_in_place_of_numbers_are_damage(labels: LabelStore) -> None:
    """Rule: a record of the wrong kind does not reach the store."""
    image = add_part(labels, 1).image
    labels.give(image, "tom", PASS)
    path = labels.file(labels.part(image)).with_suffix(".json")
    content = json.loads(path.read_text())
    content["labels"][0]["at_ns"] = "yesterday"
    path.write_text(json.dumps(content))
    again = lose(labels)
    assert again.part(image) is None
    again.close()


def test_a_part_whose_label_was_taken_back_outlives_the_quota(labels: LabelStore) -> None:
    """Rule: its picture was kept for the label, so it waits to be labelled although the line has deleted its own."""
    part = add_part(labels, 1)
    add_to_ledger(labels, [1, 2])
    flagged = Flagged(LedgerReader(labels.root / "ledger.sqlite3"), labels)
    flagged.sync()
    labels.give(part.image, "tom", PASS)
    labels.undo("tom", "bracket")
    (labels.root / part.path).unlink()
    with closing(sqlite3.connect(labels.root / "ledger.sqlite3")) as db, db:
        db.execute("DELETE FROM images")
    flagged._forgot = 0.0  # a minute later
    flagged.sync()
    assert labels.images() == {part.image}
    labels.forget_parts([part.image])
    (waiting,) = labels.waiting("bracket", limit=5)
    assert labels.file(waiting).is_file()
    assert labels.give(part.image, "tom", PASS).decision == PASS


def test_rows_that_the_ledger_made_again_reach_the_page(labels: LabelStore) -> None:
    """Rule: an image older than the newest one known is taken in as well, once its row is there."""
    add_to_ledger(labels, [1, 2])
    with closing(sqlite3.connect(labels.root / "ledger.sqlite3")) as db, db:
        db.execute("UPDATE images SET created_ns = created_ns - 3600000000000 WHERE id = ?", (make_part(1).image,))
    flagged = Flagged(LedgerReader(labels.root / "ledger.sqlite3"), labels)
    flagged.sync()
    labels.forget_parts([make_part(1).image])  # as while the ledger was away
    assert labels.images() == {make_part(2).image}
    flagged._forgot = 0.0  # a minute later
    flagged.sync()
    assert labels.images() == {make_part(1).image, make_part(2).image}
