"""What is known of trainings after the page was started again."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import pytest

from lineward.daemon.config import load_config
from lineward.daemon.web.jobs import CANCELLED, CHECK, DONE, FAILED, TRAIN, Job, JobError
from lineward.daemon.web.station import Station

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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


def put(root: Path, number: int, state: str, *, kind: str = TRAIN, compared: bool = False, file: bool = False) -> str:
    job = Job(f"2026010{number}T000000-000", "plates", "tom", float(number), kind, state=state)
    job.result = {"new": str(number), "not_promotable": "", "never_again": []} if compared else None
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
    assert not station.jobs.why_not(found)
    assert (latest := station.jobs.latest("plates")) is not None
    assert latest.id.startswith("20260104")


def test_without_a_candidate_there_is_nothing_to_compare(station: Station) -> None:
    """Rule: the refusal says what to do, and no training is begun."""
    assert station.jobs.proposal("plates") is None
    with pytest.raises(JobError, match="train one first"):
        station.jobs.start("plates", "tom", only_compare=True)
    assert station.jobs.running is None
