from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest

from lineward.models.dataset import DatasetError, find_images, read_dataset

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
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


@pytest.mark.parametrize("level", [0, 255])
def test_a_black_or_white_frame_of_a_colour_camera_is_not_mono(tmp_path: Path, level: int) -> None:
    """Rule: a frame with one level only says nothing about the camera; the others decide, and nothing is warned of."""
    folder = tmp_path
    for kind, count in (("good", 12), ("defect/spot", 6)):
        (folder / kind).mkdir(parents=True)
        for index in range(count):
            image = np.random.default_rng([len(kind), index]).integers(0, 255, (40, 50, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / kind / f"{index:02d}.png"), image)
    cv2.imwrite(str(folder / "good" / "flat.png"), np.full((40, 50, 3), level, np.uint8))
    dataset = read_dataset(folder)
    assert not dataset.mono
    assert not any("mono" in warning for warning in dataset.warnings)
    grey = fill(tmp_path / "grey")
    cv2.imwrite(str(grey / "good" / "flat.png"), np.full((40, 50, 3), level, np.uint8))
    assert read_dataset(grey).mono


def test_what_is_hidden_does_not_belong_to_the_set(tmp_path: Path) -> None:
    """Rule: thumbnails that file managers and storage boxes hide are neither good images nor a type of defect."""
    folder = fill(tmp_path)
    for hidden in ("good/.thumbs", "good/.@__thumb", "defect/.ipynb_checkpoints"):
        (folder / hidden).mkdir()
        shutil.copy(folder / "good" / "00.png", folder / hidden / "t.png")
    dataset = read_dataset(folder)
    assert len(dataset.items) == 18
    assert dataset.defect_types == {"spot": 6}


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


def test_one_file_with_two_parts_is_refused(tmp_path: Path) -> None:
    """Rule: which part is on an image decides what tests it, so two answers are none."""
    folder = fill(tmp_path)
    (folder / "groups.csv").write_text("file,group\ngood/00.png,a\ngood/01.png,b\ngood/00.png,b\n")
    assert "groups.csv: good/00.png has two groups, a and b" in refused(folder)


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


def test_blanks_around_a_part_do_not_make_it_another(tmp_path: Path) -> None:
    """Rule: `good/00.png,P1` and `good/01.png, P1 ` show the same part, as a spreadsheet shows it."""
    folder = fill(tmp_path)
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.png"))]
    parts = {"good/00.png": "P1", "good/01.png": " P1 "}
    table = [f"{name} ,{parts.get(name, name)}" for name in names]
    (folder / "groups.csv").write_text("file,group\n" + "\n".join(table) + "\n")
    dataset = read_dataset(folder)
    groups = {item.file: item.group for item in dataset.items}
    assert groups["good/00.png"] == groups["good/01.png"] == "P1"
    assert dataset.groups_known


def test_a_copy_that_is_not_listed_joins_the_part_of_its_twin(tmp_path: Path) -> None:
    """Rule: a copy never takes an image away from the part that the table gives it, and joins parts that share one."""
    folder = fill(tmp_path)
    shutil.copy(folder / "good" / "05.png", folder / "good" / "00-copy.png")
    shutil.copy(folder / "good" / "07.png", folder / "good" / "08-copy.png")
    listed = {
        "good/05.png": "P3",
        "good/06.png": "P3",
        "good/07.png": "P4",
        "good/08-copy.png": "P5",
        "good/09.png": "P5",
    }
    (folder / "groups.csv").write_text("file,group\n" + "".join(f"{name},{part}\n" for name, part in listed.items()))
    groups = {item.file: item.group for item in read_dataset(folder).items}
    assert groups["good/00-copy.png"] == groups["good/05.png"] == groups["good/06.png"] == "P3"
    assert groups["good/07.png"] == groups["good/08-copy.png"] == groups["good/09.png"]


def test_copies_are_read_at_the_same_time(tmp_path: Path) -> None:
    """Rule: threads that find out the same about two copies do not take each other's note away."""
    folder = fill(tmp_path / "set", good=20)
    for path in sorted((folder / "good").iterdir()):
        for number in range(19):
            os.link(path, path.with_name(f"{path.stem}-{number}.png"))
    dataset = read_dataset(folder, cache_dir=tmp_path / "cache", threads=16)
    assert len(dataset.items) == 406
    assert len(list((tmp_path / "cache" / "facts").glob("*/*"))) == 26


@pytest.mark.parametrize("row", ["good/{}.png,", "good/{}.png,  ", "good/{}.png"])
def test_rows_without_a_group_name_no_part(tmp_path: Path, row: str) -> None:
    """Rule: images whose cell is empty or not there are parts of their own, and it is said how many there are."""
    folder = fill(tmp_path)
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.png"))]
    rows = [f"{name},part-{name}" for name in names[:6] + names[8:]]  # defect/ comes first, 00.png and 01.png follow
    assert names[6:8] == ["good/00.png", "good/01.png"]
    rows += [row.format("00"), row.format("01")]
    (folder / "groups.csv").write_text("file,group\n" + "\n".join(rows) + "\n")
    dataset = read_dataset(folder)
    assert len({item.group for item in dataset.items}) == len(set(dataset.groups.tolist())) == 18
    assert not dataset.groups_known
    assert any("does not list 2 images, such as good/00.png" in warning for warning in dataset.warnings)


def test_linked_folders_belong_to_the_set(tmp_path: Path) -> None:
    """Rule: a link to a folder counts as that folder, by the link's name; one that leads back is no loop."""
    folder = fill(tmp_path / "set")
    shutil.move(folder / "defect" / "spot", tmp_path / "elsewhere")
    (folder / "defect" / "crack").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "deep").mkdir()
    (tmp_path / "elsewhere" / "00.png").rename(tmp_path / "elsewhere" / "deep" / "00.png")
    (folder / "defect" / "crack" / "all").symlink_to(folder / "defect")
    (folder / "good" / "again").symlink_to(folder / "good")
    dataset = read_dataset(folder)
    assert dataset.defect_types == {"crack": 6}
    assert len(dataset.items) == 18
    assert dataset.items[-1].file == "defect/crack/deep/00.png"


@pytest.mark.parametrize("name", ["crack", "crack.2026", "part.png"])
@pytest.mark.parametrize("target", ["not mounted", ""])
def test_links_that_lead_nowhere_are_named(tmp_path: Path, target: str, name: str) -> None:
    """Rule: labelled images never vanish silently because what a link means is not there."""
    folder = fill(tmp_path)
    (folder / "defect" / name).symlink_to(target or name)
    message = refused(folder)
    assert f"defect/{name}: cannot be read" in message
    assert "remove it" in message


def test_a_table_of_groups_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Rule: a folder in its place is told with the remedy, like a table of the wrong form."""
    folder = fill(tmp_path)
    (folder / "groups.csv").mkdir()
    assert "groups.csv: cannot be read: Is a directory; make it readable or remove it" in refused(folder)


def test_a_folder_that_cannot_be_read_is_named(
    open_folder: Path, unprivileged: Callable[[], AbstractContextManager[None]]
) -> None:
    """Rule: nor because of a missing permission."""
    folder = fill(open_folder / "set")
    (folder / "defect" / "spot").chmod(0)
    with unprivileged():
        assert "defect/spot: cannot be read: Permission denied" in refused(folder)
    (folder / "defect" / "spot").chmod(0o755)
    assert len(find_images(folder)) == 18
    assert find_images(folder / "nothing") == []


def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    """Rule: the file is named so that any terminal can show it, with what to do."""
    folder = fill(tmp_path)
    (folder / "good" / "03.png").rename(folder / "good" / os.fsdecode(b"gro\xdf.png"))
    message = refused(folder)
    assert r"gro\udcdf.png" in message
    assert "rename" in message
