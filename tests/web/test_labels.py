"""Labels: never lost, never silently overruled, and each knows who gave it, when, and from which verdict."""

from __future__ import annotations

import random
import subprocess
import sys
import time
import unicodedata
from typing import TYPE_CHECKING

import pytest
from tests.broker import wait_until
from tests.web.kit import HOUR_NS, add_part, make_part

from lineward.daemon.agreement import agreement, kappa
from lineward.daemon.label_records import BLIND, CONFLICT, FAIL, LABELLED, PASS, SECOND, SETTLE, SKIP, LabelError
from lineward.daemon.labels import MIN_BETWEEN, LabelStore

if TYPE_CHECKING:
    from pathlib import Path

GIVE = """
import sys, time
from pathlib import Path
from lineward.daemon.labels import LabelStore
store = LabelStore(Path(sys.argv[1]))
for part in store.waiting("bracket", limit=10_000):
    label = store.give(part.image, "tom", "fail", "dent")
    print(label.image, flush=True)
    time.sleep(0.002)
"""


def test_a_label_that_was_given_survives_sigkill(labels: LabelStore, tmp_path: Path) -> None:
    """Rule: what `give` has returned is on the disk; killed at any moment, nothing that was said is lost."""
    for number in range(400):
        add_part(labels, number)
    told: list[str] = []
    for round_ in range(1, 4):
        heard = tmp_path / f"heard-{round_}"
        with heard.open("wb") as out:
            child = subprocess.Popen([sys.executable, "-c", GIVE, str(labels.root)], stdout=out)
            wait_until(lambda heard=heard: heard.read_bytes().count(b"\n") >= 8, 20, "eight labels")
            child.kill()
            child.wait()
        told += heard.read_text().rpartition("\n")[0].split()
        again = LabelStore(labels.root)
        for image in told:
            (label,) = again.labels(image)
            part = again.part(image)
            assert (label.person, label.decision, label.defect_type) == ("tom", FAIL, "dent")
            assert part is not None
            assert part.status == LABELLED
            assert again.file(part).is_file()
        again.close()
    assert len(told) == len(set(told)) >= 24


def test_a_label_knows_who_when_and_from_which_verdict(labels: LabelStore) -> None:
    """Rule: person, time, verdict and model of the line stand beside the decision."""
    part = add_part(labels, 1, verdict="fail", model_version="v7")
    before = time.time_ns()
    label = labels.give(part.image, "tom", PASS)
    assert before <= label.at_ns <= time.time_ns()
    assert (label.person, label.decision, label.verdict, label.model_version) == ("tom", PASS, "fail", "v7")


def test_the_picture_of_a_labelled_part_outlives_the_quota(labels: LabelStore) -> None:
    """Rule: the line may delete its own file; the labelled picture stays under another name."""
    part = add_part(labels, 1)
    labels.give(part.image, "tom", PASS)
    (labels.root / part.path).unlink()
    kept = labels.part(part.image)
    assert kept is not None
    assert labels.file(kept).is_file()


def test_a_part_whose_picture_is_gone_takes_no_label(labels: LabelStore) -> None:
    """Rule: no label without a picture; the message names cause and next step, nothing is written."""
    part = add_part(labels, 1)
    (labels.root / part.path).unlink()
    with pytest.raises(LabelError, match=r"part A1 was deleted by the line's quota \(storage.max_gb\); go on"):
        labels.give(part.image, "tom", PASS)
    assert labels.labels(part.image) == []
    assert labels.give(part.image, "tom", SKIP).decision == SKIP


@pytest.mark.parametrize(
    ("decision", "kind"),
    [
        ("good", ""),
        ("", ""),
        (FAIL, "../up"),
        (FAIL, "<b>"),
        (FAIL, "x" * 65),
        (FAIL, ".x"),
        (FAIL, "=x"),
        (FAIL, "a|b"),
        (FAIL, "x."),
    ],
)
def test_what_is_no_decision_is_refused(labels: LabelStore, decision: str, kind: str) -> None:
    """Rule: only pass, fail and skip count, and a defect type is a plain name; else nothing is written."""
    part = add_part(labels, 1)
    with pytest.raises(LabelError):
        labels.give(part.image, "tom", decision, kind)
    assert labels.labels(part.image) == []


def test_undo_takes_back_the_last_decision_and_stays_in_the_book(labels: LabelStore) -> None:
    """Rule: undo goes back one decision of the same person at a time; an undone one is kept as undone."""
    first, second = add_part(labels, 1), add_part(labels, 2)
    labels.give(first.image, "tom", PASS)
    labels.give(second.image, "ann", PASS)
    undone = labels.undo("tom", "bracket")
    assert undone is not None
    assert undone.image == first.image
    (kept,) = labels.labels(first.image)
    assert kept.undone_ns is not None
    assert [part.image for part in labels.waiting("bracket", limit=5)] == [first.image]
    assert labels.undo("tom", "bracket") is None


def test_people_who_disagree_make_a_conflict_that_one_decision_settles(labels: LabelStore) -> None:
    """Rule: contradicting labels are no label; who settles it ends the matter, and the votes stay readable."""
    part = add_part(labels, 1)
    labels.give(part.image, "tom", PASS)
    labels.give(part.image, "ann", FAIL, "dent", purpose=SECOND)
    assert [found.image for found in labels.parts("bracket", status=CONFLICT)] == [part.image]
    labels.give(part.image, "eve", FAIL, "crack", purpose=SETTLE)
    settled = labels.part(part.image)
    assert settled is not None
    assert (settled.status, settled.label, settled.label_type) == (LABELLED, FAIL, "crack")
    assert [label.person for label in labels.labels(part.image)] == ["tom", "ann", "eve"]


def test_a_second_reader_gets_what_another_has_labelled_and_never_saw_it(labels: LabelStore) -> None:
    """Rule: a part goes to one second reader, not to who labelled it, and not to a third."""
    part = add_part(labels, 1)
    assert labels.to_second("bracket", "ann") is None
    labels.give(part.image, "tom", PASS)
    assert labels.to_second("bracket", "tom") is None
    found = labels.to_second("bracket", "ann")
    assert found is not None
    labels.give(found.image, "ann", PASS, purpose=SECOND)
    assert labels.to_second("bracket", "eve") is None


def test_a_blind_repeat_comes_once_and_not_too_soon(labels: LabelStore) -> None:
    """Rule: between a part and its repeat lie at least 15 other decisions of that person; then once only."""
    parts = [add_part(labels, number) for number in range(MIN_BETWEEN + 2)]
    for part in parts[:MIN_BETWEEN]:
        labels.give(part.image, "tom", PASS)
    assert labels.to_repeat("bracket", "tom") is None
    labels.give(parts[-1].image, "tom", PASS)
    found = labels.to_repeat("bracket", "tom")
    assert found is not None
    assert found.image == parts[0].image
    labels.give(found.image, "tom", PASS, purpose=BLIND)
    repeated = labels.to_repeat("bracket", "tom")
    assert repeated is None or repeated.image != found.image


def test_agreement_is_told_for_each_person_with_others_and_with_oneself(labels: LabelStore) -> None:
    """Rule: second readings are compared between people, blind repeats with the same person's first word."""
    for number, (tom, ann) in enumerate([(PASS, PASS), (PASS, PASS), (FAIL, FAIL), (PASS, FAIL)]):
        part = add_part(labels, number)
        labels.give(part.image, "tom", tom)
        labels.give(part.image, "ann", ann, purpose=SECOND)
    labels.give(make_part(0).image, "tom", FAIL, purpose=BLIND)
    labels.give(make_part(2).image, "tom", FAIL, purpose=BLIND)
    ann, tom = agreement(labels.opinions())
    assert (ann.person, ann.pairs, ann.same, ann.repeats) == ("ann", 4, 3, 0)
    assert (tom.person, tom.labels, tom.pairs, tom.same) == ("tom", 6, 4, 3)
    assert tom.kappa == pytest.approx(0.5)
    assert (tom.repeats, tom.repeats_same) == (2, 1)


def test_kappa_is_cohens() -> None:
    """Rule: kappa equals scikit-learn's on random decisions; one word only gives no figure."""
    from sklearn.metrics import cohen_kappa_score

    draw = random.Random(5)
    for share in (0.1, 0.5, 0.9):
        pairs = [(draw.choice([PASS, FAIL]), draw.choices([PASS, FAIL], [share, 1 - share])[0]) for _ in range(80)]
        assert kappa(pairs) == pytest.approx(cohen_kappa_score(*zip(*pairs, strict=True)))
    assert kappa([(PASS, PASS)] * 5) is None
    assert kappa([]) is None
    assert kappa([(PASS, PASS), (FAIL, FAIL)]) == 1.0


def test_an_escape_is_in_the_never_again_set_while_it_counts_as_defective(labels: LabelStore) -> None:
    """Rule: defective by a person and passed by the line, or brought in as an escape; nothing else."""
    passed = add_part(labels, 1, verdict="pass")
    add_part(labels, 2, verdict="pass")
    rejected = add_part(labels, 3, verdict="fail")
    brought = add_part(labels, 4, escaped=1, verdict="")
    for part in (passed, rejected, brought):
        labels.give(part.image, "tom", FAIL, "dent")
    assert {part.image for part in labels.escapes("bracket")} == {passed.image, brought.image}


def test_the_most_urgent_comes_first(labels: LabelStore) -> None:
    """Rule: the queue is by urgency, then newest first; a part on another screen is left out."""
    for number, urgency in ((1, 0.2), (2, 0.9), (3, 0.5), (4, 0.5)):
        add_part(labels, number, urgency=urgency, created_ns=number * HOUR_NS)
    found = labels.waiting("bracket", limit=3, without=[make_part(2).image])
    assert [part.seq for part in found] == [4, 3, 1]


def test_a_file_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    """Rule: an unknown schema is refused with the remedy, and not written to."""
    import sqlite3

    LabelStore(tmp_path).close()
    db = sqlite3.connect(tmp_path / "labels.sqlite3")
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(LabelError, match="newer version"):
        LabelStore(tmp_path)


def test_a_defect_type_has_one_spelling(labels: LabelStore) -> None:
    """Rule: Scratch and scratch are one type; the spelling in use stays."""
    first, second, other = (add_part(labels, number) for number in (1, 2, 3))
    labels.give(first.image, "tom", FAIL, "Scratch")
    assert labels.give(second.image, "eve", FAIL, "scratch").defect_type == "Scratch"
    labels.give(other.image, "tom", FAIL, "dent")
    assert sorted(labels.defect_types("bracket")) == ["Scratch", "dent"]


@pytest.mark.parametrize(
    "name", ["scratch (deep)", "dent, left", "crack.long", "Kratzer&", "Lücke", "खरोंच", "รอยขีดข่วน", "3rd side #2"]
)
def test_a_defect_may_be_called_what_a_folder_is_called(labels: LabelStore, name: str) -> None:
    """Rule: what training takes as the name of a folder can be chosen on the page, in any writing."""
    part = add_part(labels, 1)
    typed = unicodedata.normalize("NFD", name)
    assert labels.give(part.image, "tom", FAIL, typed).defect_type == unicodedata.normalize("NFC", name)


def test_undo_is_for_the_product_on_the_page(labels: LabelStore) -> None:
    """Rule: the last decision on another product stays, and is not shown among this product's defects."""
    labels.give(add_part(labels, 1, product="flange").image, "tom", PASS)
    labels.give(add_part(labels, 2).image, "tom", PASS)
    undone = labels.undo("tom", "flange")
    assert undone is not None
    assert undone.image == make_part(1).image
    assert labels.undo("tom", "flange") is None
    assert labels.counts("bracket") == {"labelled": 1}


@pytest.mark.parametrize("name", ["good", "Pass", "OK", "-", "_ _"])
def test_a_word_for_good_parts_or_none_is_no_defect_type(labels: LabelStore, name: str) -> None:
    """Rule: it is a slip, and the refusal says so; nothing is written down."""
    part = add_part(labels, 1)
    with pytest.raises(LabelError, match="cannot be a defect type"):
        labels.give(part.image, "tom", FAIL, name)
    assert not labels.labels(part.image)
