"""Small pictures of passed parts: a quota of their own, nothing to lose, and never in the way of an image."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.broker import wait_until

from lineward.daemon import quota as quotas
from lineward.daemon.ledger import Ledger
from lineward.daemon.quota import Quota
from lineward.daemon.review import Keeping, ReviewStore
from lineward.daemon.thumbnails import FILE, Thumbnail, ThumbnailReader, Thumbnails
from lineward.images import decode_image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lineward.daemon.result import Result

KEEPING = Keeping(
    keep_per_hour=100, max_bytes=10**9, keep_fails=False, thumbnail_share=1.0, thumbnail_bytes=10**7, thumbnail_px=64
)


def picture(seed: int, *, height: int = 300, width: int = 400) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)


def disk_bytes(root: Path) -> int:
    return (root / FILE).stat().st_size


def fill(root: Path, count: int, *, max_bytes: int) -> Thumbnails:
    thumbnails = Thumbnails(root, max_bytes=max_bytes, most_px=64)
    for seq in range(1, count + 1):
        assert thumbnails.add(seq, seq * 10**9, "bracket", picture(seq))
    return thumbnails


def test_what_passed_is_shown_small_and_newest_first(tmp_path: Path) -> None:
    """Rule: a thumbnail is the whole picture with at most so many pixels on a side, under its answer's number."""
    grey = np.zeros((300, 400), np.uint8)
    grey[:, 200:] = 200
    colour = np.stack([grey, grey // 2, grey // 4], axis=2)
    thin = np.full((2, 4000), 90, np.uint8)
    thumbnails = Thumbnails(tmp_path, max_bytes=10**7, most_px=64)
    for seq, image in ((3, grey), (7, colour), (9, thin)):
        assert thumbnails.add(seq, seq * 10**9, "bracket", image)
    reader = ThumbnailReader(tmp_path)
    assert reader.newest(2) == [Thumbnail(9 * 10**9, 9, "bracket"), Thumbnail(7 * 10**9, 7, "bracket")]
    for seq, image in ((3, grey), (7, colour)):
        data = reader.jpeg(seq * 10**9)
        assert data is not None
        small = decode_image(data, "thumbnail.jpg")
        assert small.shape == (48, 64, *image.shape[2:])
        assert np.abs(small[:, 40:].astype(int).mean(axis=(0, 1)) - image[0, 300]).max() < 4
    assert reader.jpeg(9 * 10**9) is not None
    assert reader.jpeg(4 * 10**9) is None
    thumbnails.close()


def test_their_quota_holds_in_the_file_and_the_oldest_go_first(tmp_path: Path) -> None:
    """Rule: whatever comes, the file does not grow beyond its quota, and what is left are the newest."""
    thumbnails = fill(tmp_path, 250, max_bytes=400_000)
    thumbnails.close()
    assert 300_000 < disk_bytes(tmp_path) <= 400_000 + 64 * 4096
    left = [one.seq for one in ThumbnailReader(tmp_path).newest(1000)]
    assert left == list(range(250, 250 - len(left), -1))
    assert len(left) > 50
    thumbnails.max_bytes = 100
    assert not thumbnails.add(402, 402 * 10**9, "bracket", picture(1)), (
        "one that is larger than the quota finds no room"
    )
    thumbnails.close()


def test_numbers_that_begin_anew_do_not_make_old_parts_the_newest(tmp_path: Path) -> None:
    """Rule: after a lost ledger numbers are lower than before; what is newest, and what goes first, is told by time."""
    thumbnails = fill(tmp_path, 40, max_bytes=10**7)
    for seq in (3, 4):
        assert thumbnails.add(seq, (100 + seq) * 10**9, "bracket", picture(seq))
    reader = ThumbnailReader(tmp_path)
    assert [(one.seq, one.at_ns) for one in reader.newest(3)] == [(4, 104 * 10**9), (3, 103 * 10**9), (40, 40 * 10**9)]
    thumbnails.max_bytes = 50_000
    thumbnails.fit()
    left = [one.seq for one in reader.newest(100)]
    assert left[:2] == [4, 3]
    assert len(left) < 42
    thumbnails.close()


def test_a_smaller_quota_gives_room_back_to_the_disk(tmp_path: Path) -> None:
    """Rule: a quota that is lowered while the line runs shrinks the file; with none it is gone."""
    thumbnails = fill(tmp_path, 250, max_bytes=10**7)
    with closing(sqlite3.connect(tmp_path / FILE)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = disk_bytes(tmp_path)
    thumbnails.max_bytes = before // 4
    thumbnails.fit()
    thumbnails.close()
    assert disk_bytes(tmp_path) <= before // 4 + 64 * 4096
    assert ThumbnailReader(tmp_path).newest(1)[0].seq == 250
    thumbnails.max_bytes = 0
    thumbnails.fit()
    assert not list(tmp_path.glob(f"{FILE}*"))
    assert ThumbnailReader(tmp_path).newest(1) == []


@pytest.mark.parametrize("how", ["text", "holes", "cut off", "of a newer version", "other table"])
def test_a_damaged_file_is_begun_anew(tmp_path: Path, how: str) -> None:
    """Rule: no damage keeps new thumbnails from being kept, and none makes the reader raise."""
    fill(tmp_path, 60, max_bytes=10**7).close()
    path, draw = tmp_path / FILE, random.Random(4)
    data = bytearray(path.read_bytes())
    match how:
        case "text":
            path.write_bytes(b"not a database" * 500)
        case "holes":
            for _ in range(40):
                at = draw.randrange(len(data))
                data[at : at + 500] = bytes(500)
            path.write_bytes(data[: len(path.read_bytes())])
        case "cut off":
            path.write_bytes(data[: len(data) // 3])
        case _:
            with closing(sqlite3.connect(path)) as db:
                db.execute("DROP TABLE thumbnails" if how == "other table" else "PRAGMA user_version = 7")
                db.commit()
    reader = ThumbnailReader(tmp_path)
    reader.newest(100)
    reader.jpeg(30 * 10**9)
    thumbnails = Thumbnails(tmp_path, max_bytes=10**7, most_px=64)
    for seq in range(100, 200):
        try:
            thumbnails.add(seq, seq * 10**9, "bracket", picture(seq))
        except OSError:
            continue  # it was begun anew for the next
    assert thumbnails.add(5, 1000 * 10**9, "bracket", picture(5))
    thumbnails.close()
    assert reader.newest(1) == [Thumbnail(1000 * 10**9, 5, "bracket")]
    assert reader.jpeg(1000 * 10**9) is not None


def test_passed_parts_only_are_drawn_and_an_image_goes_first(
    tmp_path: Path, make_result: Callable[..., Result]
) -> None:
    """Rule: no other verdict and no part with a whole image gets one; while images wait it is dropped and counted."""
    ledger = Ledger(tmp_path)
    store = ReviewStore(tmp_path, ledger, KEEPING, on_trouble=lambda _text: None)
    for verdict in ("pass", "fail", "review", "undecided"):
        wait_until(store._queue.empty, what="room")
        store.keep(picture(1), ledger.record(replace(make_result(), seq=0, verdict=verdict, image=None)))
    wait_until(lambda: store.thumbnails_kept == 1, what="the thumbnail")
    assert [one.seq for one in ThumbnailReader(tmp_path).newest(10)] == [1]
    image = ledger.record(replace(make_result(), seq=0, verdict="review", image="ab"))
    waiting = 0
    while not store.thumbnails_dropped:  # sooner or later one comes while an image waits
        wait_until(lambda: not store._queue.full(), what="room")
        store.keep(picture(2, height=1500, width=2000), replace(image, image=f"a{waiting:x}"))
        store.keep(picture(3), ledger.record(replace(make_result(), seq=0, verdict="pass", image=None)))
        waiting += 1
    wait_until(lambda: store.kept == waiting, 30, "all images")
    store.close()
    assert store.dropped == 0, "no image was lost to a thumbnail"
    ledger.close()


def test_a_share_of_none_keeps_none_and_makes_no_file(tmp_path: Path, make_result: Callable[..., Result]) -> None:
    """Rule: with a share or a quota of 0 nothing is copied, written or counted."""
    ledger = Ledger(tmp_path)
    store = ReviewStore(tmp_path, ledger, replace(KEEPING, thumbnail_share=0.0), on_trouble=lambda _text: None)
    for _ in range(50):
        store.keep(picture(1), ledger.record(replace(make_result(), seq=0, verdict="pass", image=None)))
    assert store._queue.empty()
    store.close()
    assert (store.thumbnails_kept, store.thumbnails_dropped) == (0, 0)
    assert not (tmp_path / FILE).exists()
    ledger.close()


def test_a_disk_that_is_nearly_full_costs_them_first(
    tmp_path: Path, make_result: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: from 95 % on they go before any image; where that is enough, no image goes."""
    ledger = Ledger(tmp_path)
    store = ReviewStore(tmp_path, ledger, KEEPING, on_trouble=lambda _text: None)
    store.keep(picture(1), ledger.record(replace(make_result(), seq=0, verdict="review", image="ab")))
    store.close()
    thumbnails = fill(tmp_path, 3, max_bytes=10**7)
    # The disk of this machine is not ours to fill.
    monkeypatch.setattr(quotas, "used_share", lambda _folder: 0.96 if (tmp_path / FILE).exists() else 0.9)
    quota = Quota(tmp_path, ledger, max_bytes=1, audit_bytes=1, spare=thumbnails.drop)
    quota.watch()
    assert quota.emergency
    assert not list(tmp_path.glob(f"{FILE}*"))
    assert len(ledger.images()) == 1
    ledger.close()


def test_none_is_kept_while_the_disk_is_nearly_full(
    tmp_path: Path, make_result: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: in an emergency what would have been kept is counted and not written."""
    monkeypatch.setattr(quotas, "used_share", lambda _folder: 0.96)  # as above
    ledger = Ledger(tmp_path)
    store = ReviewStore(tmp_path, ledger, KEEPING, on_trouble=lambda _text: None)
    wait_until(lambda: store.quota.emergency, 30, "the emergency")
    store.keep(picture(2), ledger.record(replace(make_result(), seq=0, verdict="pass", image=None)))
    store.close()
    assert (store.thumbnails_kept, store.thumbnails_dropped) == (0, 1)
    assert not (tmp_path / FILE).exists()
    ledger.close()


def test_a_folder_that_cannot_be_looked_into_is_no_end(tmp_path: Path) -> None:
    """Rule: `fit` never raises, whatever the disk says, or the thread that keeps images would end."""
    Thumbnails(tmp_path / ("x" * 300), max_bytes=1 << 20, most_px=96).fit()
