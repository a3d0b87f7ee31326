"""Uncertain frames are kept losslessly with their record, within a budget an hour and a quota in bytes."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from lineward.daemon.ledger import Ledger
from lineward.daemon.review import Keeping, ReviewStore, write_whole
from lineward.images import read_image
from lineward.models.verdict import Decision, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from lineward.daemon.result import Result

REVIEW = Verdict(Decision.REVIEW, "low_confidence", 0.6, 0.4, 0.2)
FAIL = Verdict(Decision.FAIL, "", 0.9, 0.9, 0.2)
PASS = Verdict(Decision.PASS, "", 0.9, 0.1, 0.2)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path)
    yield ledger
    ledger.close()


def make_store(root: Path, ledger: Ledger, **options: object) -> tuple[ReviewStore, list[str]]:
    troubles: list[str] = []
    return ReviewStore(root, ledger, keeping(**options), on_trouble=troubles.append), troubles


def keeping(**options: Any) -> Keeping:
    return Keeping(**{"keep_per_hour": 100, "max_bytes": 10**9, "keep_fails": False, **options})


def picture(seed: int, *, colour: bool = False) -> np.ndarray:
    shape = (40, 60, 3) if colour else (40, 60)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def keep(store: ReviewStore, ledger: Ledger, result: Result, image: np.ndarray) -> Result:
    """Do what the loop does for a part that needs review; wait for room first, as a slower line would."""
    while store._queue.full():
        time.sleep(0.001)
    image_id = store.claim(REVIEW)
    assert image_id is not None
    recorded = ledger.record(replace(result, seq=0, verdict="review", image=image_id))
    store.keep(image, recorded)
    return recorded


@pytest.mark.parametrize("colour", [False, True])
def test_a_kept_image_is_lossless_and_knows_its_part(
    tmp_path: Path, ledger: Ledger, make_result: Callable[..., Result], *, colour: bool
) -> None:
    """What the technician sees is exactly what the model saw; a lost database can be rebuilt from the side-cars."""
    store, troubles = make_store(tmp_path, ledger)
    image = picture(1, colour=colour)
    result = keep(store, ledger, make_result(part_id="A1"), image)
    image_copy = image.copy()
    image[:] = 0  # the ring's slot is overwritten by the next frame
    store.close()
    (row,) = ledger.images()
    path = tmp_path / row.path
    assert (read_image(path) == image_copy).all()
    assert row.seq == result.seq
    assert row.bytes == path.stat().st_size
    record = json.loads(path.with_suffix(".json").read_text())
    assert (record["seq"], record["part_id"], record["image"]) == (result.seq, "A1", result.image)
    assert not any(troubles)


def test_only_what_a_person_should_see_is_kept(tmp_path: Path, ledger: Ledger) -> None:
    """Passes never; fails when asked for."""
    store, _ = make_store(tmp_path, ledger)
    assert store.claim(PASS) is None
    assert store.claim(FAIL) is None
    store.close()
    greedy, _ = make_store(tmp_path, ledger, keep_fails=True)
    assert greedy.claim(PASS) is None
    assert greedy.claim(FAIL) is not None
    greedy.close()
    assert store.dropped == greedy.dropped == 0


def test_a_bad_hour_keeps_its_budget_and_counts_the_rest(tmp_path: Path, ledger: Ledger) -> None:
    """A line that rejects everything must not fill the disk."""
    store, _ = make_store(tmp_path, ledger, keep_per_hour=3)
    claims = [store.claim(REVIEW) for _ in range(10)]
    store.close()
    assert [claim is not None for claim in claims] == [True] * 3 + [False] * 7
    assert len(set(claims[:3])) == 3
    assert store.dropped == 7


def test_the_quota_in_bytes_holds_and_the_oldest_go_first(
    tmp_path: Path, ledger: Ledger, make_result: Callable[..., Result]
) -> None:
    """Files, rows and quota always agree."""
    store, _ = make_store(tmp_path, ledger, max_bytes=20_000)  # one noise image has about 2.5 kB
    seqs = [keep(store, ledger, make_result(), picture(i)).seq for i in range(30)]
    store.close()
    rows = ledger.images(newest=100)
    on_disk = sorted(path for path in (tmp_path / "images").rglob("*.png"))
    assert sorted(tmp_path / row.path for row in rows) == on_disk
    assert sum(path.stat().st_size for path in on_disk) <= 20_000
    assert sorted(row.seq for row in rows) == seqs[-len(rows) :]
    assert {path.stem for path in on_disk} == {path.stem for path in (tmp_path / "images").rglob("*.json")}
    assert len(rows) >= 5


@pytest.mark.parametrize("later", [0, 1])
def test_a_folder_that_cannot_be_written_is_trouble_and_then_over(
    tmp_path: Path, ledger: Ledger, make_result: Callable[..., Result], later: int
) -> None:
    """The thread lives on, says what is wrong in one line, and when it is over: without a next image, too."""
    (tmp_path / "images").write_text("a file where the folder should be")
    store, troubles = make_store(tmp_path, ledger)
    keep(store, ledger, make_result(), picture(1))
    wait_until(lambda: bool(troubles))
    assert "images" in troubles[-1]
    (tmp_path / "images").unlink()
    for number in range(later):  # on a good line it may be hours away
        keep(store, ledger, make_result(), picture(2 + number))
    wait_until(lambda: troubles[-1] == "")
    store.close()
    assert (store.kept, store.dropped) == (later, 1)
    assert len(list((tmp_path / "images").rglob("*.png"))) == later


def test_a_name_never_stands_for_half_a_file(tmp_path: Path) -> None:
    """A write that fails leaves neither the file nor its part."""
    with pytest.raises(OSError, match="directory"):
        write_whole(tmp_path / "no" / "where.png", b"x")
    target = tmp_path / "folder"
    target.mkdir()
    with pytest.raises(OSError, match="directory"):
        write_whole(target, b"x")
    assert list(tmp_path.iterdir()) == [target]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_share_of_the_passed_parts_is_kept_to_find_escapes(tmp_path: Path, ledger: Ledger) -> None:
    """Rule: nothing passed is kept unless asked for; a share of 1 keeps each, and a new share holds at once."""
    store, _ = make_store(tmp_path, ledger)
    assert [store.claim(PASS) for _ in range(20)] == [None] * 20
    store.set_limits(keeping(audit_share=1.0))
    assert all(store.claim(PASS) for _ in range(20))
    assert store.claim(FAIL) is None
    store.close()
