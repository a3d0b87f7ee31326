from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from tests.disks import small_disk

from lineward.images import ImageFileError
from lineward.models import features
from lineward.models.backbone import EfficientNetLite0
from lineward.models.dataset import read_dataset
from lineward.models.features import FeatureStore, Source
from lineward.models.prepare import InputSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

SPEC = InputSpec(height=64, width=64, channels=1, colour="mono")


def store(folder: Path) -> FeatureStore:
    return FeatureStore(EfficientNetLite0(), SPEC, folder)


def sources(folder: Path, count: int = 3) -> list[Source]:
    found = []
    for number in range(count):
        image: NDArray[np.uint8] = np.random.default_rng(number).integers(0, 255, (70, 90), dtype=np.uint8)
        path = folder / f"{number}.png"
        cv2.imwrite(str(path), image)
        found.append(Source(path, hashlib.sha256(path.read_bytes()).hexdigest()))
    return found


def test_a_second_training_computes_nothing(tmp_path: Path) -> None:
    """Features are kept by content: they come back the same when the image files are gone, under any name."""
    items = sources(tmp_path)
    first = store(tmp_path).extract(items)
    patches = store(tmp_path).cells(items, deep=False)
    for item in items:
        item.path.unlink()
    renamed = [Source(Path("elsewhere.png"), item.digest) for item in items]
    assert (store(tmp_path).extract(renamed) == first).all()
    again = store(tmp_path).cells(renamed, deep=False)
    assert all((a == b).all() for a, b in zip(patches, again, strict=True))


def test_layout_is_what_comes_out(tmp_path: Path) -> None:
    """Mean, smoothed maximum and deviation of 2,688 channels, the maximum of 304 fine ones, patches at stride 16."""
    made = store(tmp_path)
    pooled = made.extract(sources(tmp_path))
    assert pooled.shape == (3, 8368)
    assert (made.layout.rows, made.layout.columns) == (4, 4)
    assert made.cells(sources(tmp_path)[:1], deep=False).shape == (1, 16, made.layout.depth)
    channels = pooled.reshape(3, -1)
    assert np.isfinite(channels).all()
    assert not np.allclose(channels[0], channels[1])


def test_a_half_written_record_is_computed_again(tmp_path: Path) -> None:
    """What a crash of the machine left behind is noticed by its size and replaced."""
    items = sources(tmp_path)
    first = store(tmp_path).extract(items)
    for record in (tmp_path / "features").rglob("*.pooled"):
        record.write_bytes(record.read_bytes()[:100])
    assert (store(tmp_path).extract(items) == first).all()


def test_a_flip_is_a_view_of_its_own(tmp_path: Path) -> None:
    """A mirrored image has the features of the mirrored file, and is kept beside the original."""
    items = sources(tmp_path, 1)
    made = store(tmp_path)
    plain, flipped = made.extract(items), made.extract(items, flip="both")
    assert not np.allclose(plain, flipped)
    assert (made.extract(items, flip="both") == flipped).all()


def test_a_broken_file_ends_extraction_by_name(tmp_path: Path) -> None:
    """An error in a worker arrives as what it is."""
    path = tmp_path / "text.png"
    path.write_text("no image")
    broken = Source(path, hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(ImageFileError, match=r"text\.png: not an image"):
        store(tmp_path).extract([*sources(tmp_path), broken])


@pytest.mark.parametrize(("fate", "words"), [("overwritten", "has changed"), ("moved away", "cannot be read any more")])
def test_another_image_in_the_place_of_one_is_not_learnt(tmp_path: Path, fate: str, words: str) -> None:
    """Rule: features are kept under a digest only if the file still has that content; what to do is said."""
    items = sources(tmp_path)
    if fate == "overwritten":
        items[1].path.write_bytes(items[0].path.read_bytes())
    else:
        items[1].path.unlink()
    with pytest.raises(ImageFileError, match=rf"1\.png: the image {words}.*--base-data") as caught:
        store(tmp_path).extract(items)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "features").rglob(f"{items[1].digest}*"))


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    """A progress bar ends at its total."""
    seen: list[tuple[int, int]] = []
    store(tmp_path).extract(sources(tmp_path), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (3, 3)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Give a folder on a disk of 64 kB; the features of an image take 40 kB."""
    with small_disk(tmp_path / "disk", "64k") as folder:
        yield folder


def test_a_full_cache_costs_time_and_nothing_else(
    disk: Path,
    make_parts: Callable[..., Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rule: features and facts are the same, nothing half-written stays, and one warning names folder and remedy."""
    monkeypatch.setattr(features, "_full_said", threading.Lock())
    items = sources(tmp_path)
    here, elsewhere = store(disk), store(tmp_path / "roomy")
    assert (here.extract(items) == elsewhere.extract(items)).all()
    assert (here.cells(items, deep=True) == elsewhere.cells(items, deep=True)).all()
    with pytest.raises(OSError, match="No space"):
        (disk / "rest").write_bytes(bytes(64 * 1024))
    folder = make_parts(tmp_path / "parts", good=12, defects={"spot": 4})
    assert read_dataset(folder, cache_dir=disk).items == read_dataset(folder).items
    assert not list(disk.rglob(".partial-*"))
    (warning,) = caplog.messages
    assert warning.startswith(f"{disk}/features/")
    assert "No space left on device" in warning
    assert "XDG_CACHE_HOME" in warning
