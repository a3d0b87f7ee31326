"""What is known of trainings after the page was started again."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict
from typing import TYPE_CHECKING

import pytest
from tests.broker import wait_until
from tests.web.kit import add_part, png

from lineward.daemon.config import load_config
from lineward.daemon.label_records import PASS
from lineward.daemon.web import jobs, promotion
from lineward.daemon.web.jobs import CANCELLED, CHECK, DONE, FAILED, KEEP_JOBS, TRAIN, Job, JobError
from lineward.daemon.web.station import Station
from lineward.daemon.web.training_job import without_unreadable
from lineward.models import store
from lineward.models.bundle import load_bundle, save_bundle
from lineward.models.dataset import read_dataset

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any

    from tests.web.kit import FirstModel


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "line.toml").write_text(
        '[camera]\ndriver = "simulated"\n[inspection]\nmodel = "plates"\n[storage]\nroot = "data"\n'
    )
    return tmp_path / "data"


@pytest.fixture
def station(root: Path) -> Iterator[Station]:
    """Made when it is asked for, behind what the test has put on the disk."""
    made = Station(load_config(root.parent / "line.toml"))
    yield made
    made.close()
    wait_for_the_end()


def wait_for_the_end() -> None:
    """What was cancelled still puts away its things."""
    for thread in threading.enumerate():
        if thread.name == "training":
            thread.join(20)


def put(root: Path, number: int, state: str, *, kind: str = TRAIN, compared: bool = False, file: bool = False) -> str:
    job = Job(f"2026010{number}T000000-000", "plates", "tom", float(number), kind, state=state)
    job.result = (
        {"new": str(number), "old": None, "sha256": str(number), "not_promotable": "", "never_again": []}
        if compared
        else None
    )
    folder = root / "review" / "jobs" / job.id
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps(asdict(job)))
    if file:
        (folder / "candidate.lward").write_bytes(b"a model")
    return job.id


@pytest.fixture
def good(root: Path) -> str:
    """A training that is done, and later ones that came to nothing."""
    kept = put(root, 1, DONE, compared=True, file=True)
    put(root, 2, CANCELLED)
    put(root, 3, FAILED, file=True)
    put(root, 4, DONE, compared=True)
    put(root, 5, DONE, kind=CHECK, compared=True, file=True)
    return kept


def test_a_training_that_came_to_nothing_does_not_hide_a_candidate(good: str, station: Station) -> None:
    """Rule: what was trained and compared can be promoted until there is something newer, whatever was tried since."""
    found = station.jobs.proposal("plates")
    assert found is not None
    assert found.id == good
    assert not promotion.why_not(station, found)
    assert (latest := station.jobs.latest("plates")) is not None
    assert latest.id.startswith("20260104")


def test_without_a_candidate_there_is_nothing_to_compare(station: Station) -> None:
    """Rule: the refusal says what to do, and no training is begun."""
    assert station.jobs.proposal("plates") is None
    with pytest.raises(JobError, match="train one first"):
        station.jobs.start("plates", "tom", only_compare=True)
    assert station.jobs.running is None


@pytest.mark.usefixtures("good")
@pytest.mark.parametrize("newer", ["training", "strictness"])
def test_a_candidate_that_nobody_was_asked_about_is_not_promoted(root: Path, station: Station, newer: str) -> None:
    """Rule: "yes" is for the candidate that the question named; what has come since is to be looked at first."""
    asked = station.jobs.proposal("plates")
    assert asked is not None
    sha256 = "1"
    if newer == "training":
        put(root, 6, DONE, compared=True, file=True)
    else:
        sha256 = "0"
    later = Station(station.config)
    with pytest.raises(JobError, match="another candidate has come since; look at it first"):
        promotion.promote(later, asked, "tom", sha256)
    later.close()


def test_another_strictness_is_refused_before_anything_is_written(good: str, root: Path, station: Station) -> None:
    """Rule: while something runs the candidate stays as it was compared; afterwards it may be changed."""
    file = root / "review" / "jobs" / good / "candidate.lward"
    label_one(station)
    station.jobs.start("plates", "eve", kind=CHECK)
    with pytest.raises(JobError, match="eve has a check running"):
        station.jobs.start("plates", "tom", only_compare=True, change=lambda: file.write_bytes(b"another model"))
    assert file.read_bytes() == b"a model"
    station.jobs.cancel("eve")
    station.jobs.start("plates", "tom", only_compare=True, change=lambda: file.write_bytes(b"another model"))
    assert file.read_bytes() == b"another model"


def test_what_came_to_nothing_does_not_push_a_candidate_out(good: str, root: Path, station: Station) -> None:
    """Rule: the candidate that may be promoted stays, however many checks and cancelled trainings come after it."""
    label_one(station)
    folder = root / "review" / "jobs"
    begun = []
    for number in range(KEEP_JOBS + 2):
        job = station.jobs.start("plates", "tom", kind=TRAIN if number % 2 else CHECK)
        begun.append(job.id)
        station.jobs.cancel("tom")
        wait_for_the_end()
    for _ in range(KEEP_JOBS):
        station.jobs.start("plates", "tom")
        station.jobs.cancel("tom")
        wait_for_the_end()
    assert not (folder / begun[0]).exists()
    found = station.jobs.proposal("plates")
    assert found is not None
    assert found.id == good
    assert station.jobs.candidate(found).is_file()


def label_one(station: Station) -> None:
    """There is nothing to train on without a label."""
    station.labels.give(add_part(station.labels, 1, product="plates").image, "tom", PASS)


def test_what_breaks_after_a_cancel_is_no_failure(root: Path, station: Station) -> None:
    """Whoever cancels a training in its first moments reads that it was cancelled, whatever it met on its way out."""
    label_one(station)
    with station.jobs._saving:  # the job waits here, before it has begun
        job = station.jobs.start("plates", "tom")
        folder = root / "review" / "jobs" / job.id
        wait_until(folder.is_dir, 20, "its folder")
        job.state = CANCELLED
        folder.rmdir()
        folder.write_text("not a folder any more")
    wait_for_the_end()
    assert job.state == CANCELLED


@pytest.mark.parametrize("how", ["cancelled", "killed", "page ended"])
def test_a_comparison_that_came_to_nothing_leaves_the_training_done(
    good: str, root: Path, station: Station, how: str
) -> None:
    """Rule: what was compared before holds; the page says what became of the other comparison."""
    before = station.jobs.proposal("plates")
    assert before is not None
    assert before.id == good
    before.text = "of another time"
    if how == "killed":  # at once: the candidate of this test is no model
        station.jobs.start("plates", "tom", only_compare=True)
        wait_for_the_end()
    elif how == "cancelled":
        station.jobs.start("plates", "tom", only_compare=True)
        assert before.text == ""
        station.jobs.cancel("tom")
    else:
        file = root / "review" / "jobs" / good / "job.json"
        file.write_text(json.dumps(json.loads(file.read_bytes()) | {"state": "running", "comparing": True}))
    wait_for_the_end()
    if how != "page ended":
        assert not promotion.why_not(station, before)
        assert before.text.startswith("The comparison came to nothing: ")
    later = Station(station.config)
    found = later.jobs.proposal("plates")
    assert found is not None
    assert (found.id, found.state, found.comparing) == (good, DONE, False)
    assert not promotion.why_not(later, found)
    assert found.text.startswith("The comparison came to nothing: ")
    later.close()


def test_a_candidate_that_was_changed_and_not_compared_is_not_promoted(good: str, root: Path, station: Station) -> None:
    """Rule: another strictness counts when it was compared to the end, also after a restart of the page."""
    file = root / "review" / "jobs" / good / "candidate.lward"
    job = station.jobs.start("plates", "tom", only_compare=True, change=lambda: file.write_bytes(b"another model"))
    station.jobs.cancel("tom")
    wait_for_the_end()
    later = Station(station.config)
    for reader in (station, later):
        found = reader.jobs.proposal("plates")
        assert found is not None
        assert found.id == job.id
        assert "compare again" in promotion.why_not(reader, found)
    later.close()


def test_a_candidate_that_was_compared_with_another_model_is_not_promoted(
    good: str, station: Station, first: FirstModel
) -> None:
    """Rule: what a person is shown is about the model in use; when that is another one by now, it is compared again."""
    found = station.jobs.proposal("plates")
    assert found is not None
    assert found.id == good
    assert not promotion.why_not(station, found)
    bundle = load_bundle(first.model)
    model = station.root / "other.lward"
    save_bundle(
        model,
        bundle.data[: bundle.manifest.graph_bytes],
        bundle.manifest.model_copy(update={"product": "plates", "promotable": True, "not_promotable": ""}),
    )
    entry = store.add(station.root, model)
    store.promote(station.root, "plates", entry.version, force=True)
    reason = promotion.why_not(station, found)
    assert reason == f"{entry.version} is in use by now, it was compared with none; compare again"
    with pytest.raises(JobError, match="is in use by now"):
        promotion.promote(station, found, "tom", "1")
    assert store.current(station.root, "plates") is not None
    assert store.history(station.root, "plates")[0] == entry.version
    assert found.result is not None
    found.result["old"] = entry.version
    assert not promotion.why_not(station, found)


def test_what_was_cancelled_ends_before_the_next_begins(
    station: Station, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: one at a time, also while the one before still collects its pictures: two would share one folder."""
    monkeypatch.setattr("lineward.daemon.web.jobs.ENDS_S", 0.1)
    put(root, 1, DONE, compared=True, file=True)
    station.jobs.__init__(station)  # type: ignore[misc]  # as after a start of the page
    label_one(station)
    go_on, collecting = threading.Event(), threading.Event()
    write_sets = jobs.write_sets

    def slowly(*arguments: Any) -> Any:
        collecting.set()
        assert go_on.wait(20)
        return write_sets(*arguments)

    monkeypatch.setattr(jobs, "write_sets", slowly)
    station.jobs.start("plates", "tom", only_compare=True)
    assert collecting.wait(20)
    station.jobs.cancel("tom")
    with pytest.raises(JobError, match="still collecting pictures; try again"):
        station.jobs.start("plates", "tom", only_compare=True)
    go_on.set()
    wait_for_the_end()
    monkeypatch.undo()
    assert station.jobs.start("plates", "tom", only_compare=True).comparing


def test_pictures_that_cannot_be_read_are_left_out_and_named(tmp_path: Path) -> None:
    """Rule: a file that a power cut left empty does not keep a product from being trained; it is named."""
    for number in range(20):
        path = tmp_path / ("good" if number < 12 else "defect/dent") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    (tmp_path / "good" / "5.png").write_bytes(b"")
    found, said = without_unreadable(lambda: read_dataset(tmp_path))
    assert len(found.items) == 19
    assert said == ["Left out, for they cannot be read (1 in labelled/ of the storage folder): 5.png."]
    assert without_unreadable(lambda: read_dataset(tmp_path))[1] == []
