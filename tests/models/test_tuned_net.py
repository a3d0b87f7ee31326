"""The maps that tuning begins with: of the images that were labelled, in a file that has its room."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from tests.disks import small_disk

from lineward.images import ImageFileError
from lineward.models.backbone import EfficientNetLite0
from lineward.models.dataset import DatasetError
from lineward.models.features import Source
from lineward.models.prepare import InputSpec
from lineward.models.tuned_net import _unnamed, early_maps

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

SPEC = InputSpec(height=64, width=64, channels=1, colour="mono")
VIEWS = ["none", "both"]


def maps(folder: Path, scratch: Path | None, *, spoil: bool = False) -> NDArray[np.float16]:
    found = []
    for number in range(3):
        path = folder / f"{number}.png"
        cv2.imwrite(str(path), np.random.default_rng(number).integers(0, 255, (64, 64), dtype=np.uint8))
        found.append(Source(path, hashlib.sha256(path.read_bytes()).hexdigest()))
    if spoil:
        found[1].path.write_bytes(found[0].path.read_bytes())
    return early_maps(EfficientNetLite0(), SPEC, found, scratch, VIEWS, 1, lambda _done, _total: None)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Give a folder on a disk of 48 kB; two views of an image take 10 kB."""
    with small_disk(tmp_path / "disk", "48k") as folder:
        yield folder


def test_maps_in_a_file_are_those_in_memory(tmp_path: Path) -> None:
    """Rule: the file has no name that a killed training could leave behind."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    found = maps(tmp_path, scratch)
    assert isinstance(found, np.memmap)
    assert list(scratch.iterdir()) == []
    assert (found == maps(tmp_path, None)).all()


def test_a_full_disk_is_said_before_it_is_written_to(disk: Path) -> None:
    """Rule: one line names the folder, how much is wanted and how to choose another; nobody is killed."""
    scratch = disk / "scratch"
    scratch.mkdir()
    with pytest.raises(DatasetError, match=r"disk: no room for 1 MB .*No space left on device.*TMPDIR"):
        _unnamed(scratch, (2, 20, 40, 8, 8))


def test_another_image_in_the_place_of_one_is_not_tuned_with(tmp_path: Path) -> None:
    """Rule: the content of each file is compared with what was labelled."""
    with pytest.raises(ImageFileError, match=r"1\.png: the image has changed.*--base-data"):
        maps(tmp_path, None, spoil=True)
