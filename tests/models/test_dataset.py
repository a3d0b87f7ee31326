from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lineward.models.dataset import DatasetError, grouped_folds, read_dataset, split_holdout

if TYPE_CHECKING:
    from pathlib import Path


def fill(folder: Path, *, good: int = 12, defect: int = 6) -> Path:
    for kind, count in (("good", good), ("defect/spot", defect)):
        (folder / kind).mkdir(parents=True)
        for index in range(count):
            image = np.random.default_rng([len(kind), index]).integers(0, 255, (40, 50), dtype=np.uint8)
            cv2.imwrite(str(folder / kind / f"{index:02d}.png"), image)
    return folder


def test_what_is_read(tmp_path: Path) -> None:
    """Labels come from folders, types from the folder below defect/, other files do not count."""
    folder = fill(tmp_path)
    (folder / "good" / "Thumbs.db").write_text("x")
    (folder / "good" / "deep").mkdir()
    (folder / "good" / "00.png").rename(folder / "good" / "deep" / "00.png")
    dataset = read_dataset(folder)
    assert len(dataset.items) == 18
    assert dataset.labels.sum() == 6
    assert dataset.defect_types == {"spot": 6}
    assert not dataset.groups_known
    assert any("groups.csv" in warning for warning in dataset.warnings)
    assert dataset.mono


def test_digest_knows_content_and_label(tmp_path: Path) -> None:
    """The same folder has the same digest; one changed picture has another."""
    folder = fill(tmp_path)
    before = read_dataset(folder).digest
    assert read_dataset(folder, cache_dir=tmp_path / "cache").digest == before
    cv2.imwrite(str(folder / "good" / "00.png"), np.zeros((40, 50), np.uint8))
    assert read_dataset(folder, cache_dir=tmp_path / "cache").digest != before


def test_colour_is_used_only_when_all_files_have_it(tmp_path: Path) -> None:
    """A mono file among colour ones makes all mono: the channel count must not give the label away."""
    folder = fill(tmp_path)
    for path in sorted((folder / "good").iterdir()):
        colour = np.random.default_rng(1).integers(0, 255, (40, 50, 3), dtype=np.uint8)
        colour[0, 0] = int(path.stem)
        cv2.imwrite(str(path), colour)
    dataset = read_dataset(folder)
    assert dataset.mono
    assert any("6 images are mono and 12 in colour" in warning for warning in dataset.warnings)


def refused(folder: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        read_dataset(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_missing_folder(tmp_path: Path) -> None:
    """A wrong path is named."""
    assert "no such folder" in refused(tmp_path / "nothing")


def test_missing_good(tmp_path: Path) -> None:
    """A folder without good/ says so."""
    assert "good/" in refused(tmp_path)


def test_no_images(tmp_path: Path) -> None:
    """Empty folders are not a data set."""
    (tmp_path / "good").mkdir()
    assert "no images" in refused(tmp_path)


def test_one_class(tmp_path: Path) -> None:
    """Good images alone are a set to learn good parts from; one defective image is neither that nor enough."""
    found = read_dataset(fill(tmp_path / "none", defect=0))
    assert not found.labels.any()
    assert "1 defective images are too few" in refused(fill(tmp_path / "one", defect=1))


def test_three_images(tmp_path: Path) -> None:
    """Too few images are counted in the message."""
    assert "2 good and 1 defective" in refused(fill(tmp_path, good=2, defect=1))


@pytest.mark.parametrize("content", [b"", b"a text called .png", b"\x89PNG\r\n\x1a\n cut"])
def test_broken_files(tmp_path: Path, content: bytes) -> None:
    """A file that is no picture is named, with how many more there are, and with what to do."""
    folder = fill(tmp_path)
    (folder / "good" / "03.png").write_bytes(content)
    (folder / "good" / "07.png").write_bytes(content)
    message = refused(folder)
    assert "03.png" in message
    assert "1 more" in message
    assert "remove" in message


def test_one_picture_under_two_labels(tmp_path: Path) -> None:
    """The same bytes cannot be good and defective; both names are given."""
    folder = fill(tmp_path)
    (folder / "defect" / "spot" / "copy.png").write_bytes((folder / "good" / "05.png").read_bytes())
    message = refused(folder)
    assert "copy.png" in message
    assert "05.png" in message


def test_table_without_the_columns(tmp_path: Path) -> None:
    """A groups.csv of another form is refused, not half used."""
    folder = fill(tmp_path)
    (folder / "groups.csv").write_text("name;part\na;b\n")
    assert "columns file and group" in refused(folder)


def test_copies_stay_together(tmp_path: Path) -> None:
    """Copies of a file are one part, even where the table says otherwise."""
    folder = fill(tmp_path)
    (folder / "good" / "copy.png").write_bytes((folder / "good" / "05.png").read_bytes())
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.png"))]
    (folder / "groups.csv").write_text("file,group\n" + "".join(f"{name},g{i}\n" for i, name in enumerate(names)))
    dataset = read_dataset(folder)
    groups = {item.file: item.group for item in dataset.items}
    assert groups["good/copy.png"] == groups["good/05.png"]
    assert dataset.groups_known
    assert len(set(groups.values())) == len(groups) - 1


@given(st.integers(0, 10_000), st.integers(6, 40), st.integers(4, 20), st.integers(1, 6))
@settings(max_examples=80, deadline=None)
def test_a_part_is_never_on_both_sides(seed: int, good: int, defect: int, largest: int) -> None:
    """Neither hold-out nor folds ever split a group, and both sides of the hold-out hold both kinds."""
    random = np.random.default_rng(seed)
    labels, groups = [], []
    for group, label in enumerate([False] * good + [True] * defect):
        size = int(random.integers(1, largest + 1))
        labels += [label] * size
        groups += [group] * size
    marks, parts = np.array(labels), np.array(groups)
    train, held = split_holdout(marks, parts, 0.2, seed)
    assert not set(parts[train]) & set(parts[held])
    assert sorted([*train, *held]) == list(range(len(marks)))
    assert 0 < marks[held].sum() < len(held)
    assert 0 < marks[train].sum() < len(train)
    folds = grouped_folds(marks, parts, seed)
    assert all(len(set(folds[parts == part])) == 1 for part in set(groups))


def test_one_part_only_cannot_be_split() -> None:
    """When all defects are of one part there is no honest hold-out, and that is said."""
    labels = np.array([False] * 10 + [True] * 5)
    with pytest.raises(DatasetError, match="same part"):
        split_holdout(labels, np.array([*range(10), *[99] * 5]), 0.2, 0)
