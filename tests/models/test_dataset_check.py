"""`dataset check` finds what was put wrong into a set on purpose, and keeps quiet about a sound one."""

from __future__ import annotations

import json
import os
import shutil
import tracemalloc
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest

from lineward.models.check_pictures import find_coverage
from lineward.models.dataset import DatasetError, read_dataset
from lineward.models.dataset_check import CheckReport, check_dataset
from lineward.models.filefacts import find_facts, time_in_name
from lineward.models.shortcuts import area_with_interval

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Make = Callable[..., Path]


@pytest.fixture
def copy(data: Path, tmp_path: Path) -> Path:
    """60 good images of 30 parts and 36 defective ones of 18, to be spoilt by a test."""
    return shutil.copytree(data, tmp_path / "set", copy_function=shutil.copyfile)


def look(folder: Path, cache: Path, **options: Any) -> CheckReport:
    return check_dataset(folder, cache_dir=cache, **({"curve": False} | options))


def level(report: CheckReport, name: str) -> str:
    return {finding.id: finding.level for finding in report.findings}.get(name, "absent")


def text(report: CheckReport, name: str) -> str:
    return next(finding.text for finding in report.findings if finding.id == name)


def test_a_sound_set_has_no_problem_but_its_size(data: Path, cache: Path) -> None:
    """Of a set without mistakes only the missing images are told; no file before or after is changed."""
    before = sorted((path, path.stat().st_mtime_ns) for path in data.rglob("*"))
    report = look(data, cache)
    assert {finding.id for finding in report.findings if finding.level == "problem"} <= {"amounts", "defect_types"}
    assert "740 more good and 64 more defective" in text(report, "amounts")
    assert sorted((path, path.stat().st_mtime_ns) for path in data.rglob("*")) == before
    assert json.dumps(report.to_json())
    assert all("\n" not in finding.text for finding in report.findings)


def test_types_with_too_few_parts_are_named(data: Path, cache: Path) -> None:
    """18 images of a type are of 9 parts: parts count, not pictures."""
    report = look(data, cache)
    assert level(report, "defect_types") == "problem"
    assert "scratch (9 parts, 18 images)" in text(report, "defect_types")


def test_one_image_under_both_labels(copy: Path, cache: Path) -> None:
    """All copies under the other label are named, not only the first."""
    for number, path in enumerate(sorted((copy / "good").iterdir())[:3]):
        shutil.copyfile(path, copy / "defect" / "spot" / f"copy{number}.png")
    report = look(copy, cache)
    assert level(report, "same_content_both_labels") == "problem"
    assert "3 images stand under both labels" in text(report, "same_content_both_labels")
    assert "good/00000.png" in text(report, "same_content_both_labels")


def test_near_copies_under_both_labels(copy: Path, cache: Path) -> None:
    """The same picture saved once more, as another file, is still found under the other label."""
    for path in sorted((copy / "good").iterdir())[:2]:
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        assert image is not None
        cv2.imwrite(str(copy / "defect" / "spot" / f"again{path.stem}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 97])
    report = look(copy, cache)
    assert level(report, "near_duplicates_both_labels") == "problem"
    assert "again00000.jpg" in text(report, "near_duplicates_both_labels")


def test_parts_that_are_one_part(copy: Path, cache: Path) -> None:
    """Near copies under two part numbers would stand on both sides of a split."""
    rows = []
    for path in sorted((copy / "good").iterdir())[:12]:
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        cv2.imwrite(str(copy / "good" / f"x{path.stem}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 97])  # type: ignore[arg-type]
        rows.append(f"good/x{path.stem}.jpg,another-{path.stem},good\n")
    with (copy / "groups.csv").open("a") as stream:
        stream.writelines(rows)
    report = look(copy, cache)
    assert level(report, "groups_across_split") == "problem"


def test_only_pairs_of_two_parts_are_said_to_lie_across(copy: Path, cache: Path) -> None:
    """Rule: near copies within a part are no matter of the groups, so the figures of that finding leave them out."""
    rows = []
    for number, path in enumerate(sorted((copy / "good").iterdir())[:8]):
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        cv2.imwrite(str(copy / "good" / f"x{path.stem}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 97])  # type: ignore[arg-type]
        part = "another" if number == 0 else f"good-{number // 2}"
        rows.append(f"good/x{path.stem}.jpg,{part},good\n")
    with (copy / "groups.csv").open("a") as stream:
        stream.writelines(rows)
    report = look(copy, cache)
    groups = {item.file: item.group for item in read_dataset(copy).items}
    pairs = next(finding for finding in report.findings if finding.id == "groups_across_split").figures["pairs"]
    assert ["good/00000.png", "good/x00000.jpg"] in [pair[:2] for pair in pairs]
    assert all(groups[a] != groups[b] for a, b, _ in pairs)


def test_a_part_with_both_labels_is_worth_a_look(copy: Path, cache: Path) -> None:
    """The same part id under good and defect is listed."""
    table = (copy / "groups.csv").read_text().replace("defect/spot-30", "good-0")
    assert "good/00000.png,good-0" in table
    (copy / "groups.csv").write_text(table.replace(",defect/spot-0,", ",good-0,"))
    report = look(copy, cache)
    assert level(report, "part_both_labels") == "note"
    assert "good-0" in text(report, "part_both_labels")


def resave(folder: Path, change: Callable[[Any], Any], suffix: str = ".png") -> None:
    """Change every defective image, and its name in groups.csv."""
    table = (folder / "groups.csv").read_text()
    for path in sorted((folder / "defect").rglob("*.png")):
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        path.unlink()
        cv2.imwrite(str(path.with_suffix(suffix)), change(image))
        name = path.relative_to(folder).as_posix()
        table = table.replace(name, name.removesuffix(".png") + suffix)
    (folder / "groups.csv").write_text(table)


@pytest.mark.parametrize(
    ("name", "change", "suffix"),
    [
        ("format", lambda image: image, ".bmp"),
        ("dimensions", lambda image: image[:90], ".png"),
        ("depth", lambda image: cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) + np.uint8([[[0, 0, 1]]]), ".png"),
        ("exposure", lambda image: (image * 0.5).astype(np.uint8), ".png"),
    ],
)
def test_shortcuts(copy: Path, cache: Path, name: str, change: Callable[[Any], Any], suffix: str) -> None:
    """Whatever tells the label without the part is found: format, size, channels, exposure."""
    resave(copy, change, suffix)
    report = look(copy, cache)
    assert level(report, f"shortcut_{name}") == "problem", text(report, f"shortcut_{name}")
    assert "n=96" in text(report, f"shortcut_{name}")


def rename(folder: Path, name_of: Callable[[Path, int], str]) -> None:
    table = (folder / "groups.csv").read_text()
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        new = path.with_name(name_of(path, number))
        old = path.relative_to(folder).as_posix()
        path.rename(new)
        table = table.replace(f"{old},", f"{new.relative_to(folder).as_posix()},")
    (folder / "groups.csv").write_text(table)


def test_time_in_names_that_gives_the_label_away(copy: Path, cache: Path) -> None:
    """Good parts on Monday, defective ones on Tuesday: the time of taking tells them apart."""
    rename(
        copy, lambda path, n: f"cam1_2026010{5 if path.parent.name == 'good' else 6}-{9 + n % 8:02d}{n % 60:02d}00.png"
    )
    assert level(look(copy, cache), "shortcut_time") == "problem"


def test_time_stamps_of_files_are_only_worth_a_look(copy: Path, cache: Path) -> None:
    """Copying sets them in the order of folders, so that they prove nothing."""
    for path in copy.rglob("*.png"):
        stamp = 1_700_000_000 + (0 if path.parent.name == "good" else 90_000)
        os.utime(path, (stamp, stamp))
    assert level(look(copy, cache), "shortcut_file_time") == "note"


def test_labels_in_names_do_no_harm(copy: Path, cache: Path) -> None:
    """`good_0001.png` below good/ says nothing that a model could see."""
    rename(copy, lambda path, n: f"cam1_{path.parent.name}_{n:04d}.png")
    report = look(copy, cache)
    assert level(report, "shortcut_name") in {"ok", "absent"}
    assert level(report, "sessions") == "ok"


@pytest.mark.parametrize("visible", [True, False])
def test_sessions(make_parts: Make, cache: Path, tmp_path: Path, *, visible: bool) -> None:
    """Nearly all defects from one session: a problem if good parts show which session they are from, else a note."""
    folder = make_parts(tmp_path / "set", good=80, defects={"spot": 40})

    def session(path: Path, number: int) -> str:
        is_b = path.parent.name == "spot" or number % 4 == 0
        if is_b and visible:
            image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
            assert image is not None
            image[:, :6] = 255  # a clamp that the second session had
            cv2.imwrite(str(path), image)
        return f"{'b' if is_b else 'a'}_{number:04d}.png"

    rename(folder, session)
    report = look(folder, cache)
    assert level(report, "sessions") == ("problem" if visible else "note"), text(report, "sessions")


def test_coverage_of_light_and_place(cache: Path, tmp_path: Path) -> None:
    """Equal light and equal place are told; pictures from the line beyond both are a problem."""
    folder = tmp_path / "set"
    random = np.random.default_rng(0)
    for kind, count in (("good", 30), ("defect/spot", 10)):
        (folder / kind).mkdir(parents=True)
        for number in range(count):
            image = frame(random)
            if kind != "good":
                cv2.circle(image, (48, 48), 5, 10, -1)
            cv2.imwrite(str(folder / kind / f"{number}.png"), image)
    report = look(folder, cache)
    assert level(report, "exposure_coverage") == "note"
    assert level(report, "position_coverage") == "note"
    line = tmp_path / "line"
    line.mkdir()
    for number in range(20):
        moved = np.roll(frame(random), 9, axis=1)
        cv2.imwrite(str(line / f"{number}.png"), (moved * 0.7).astype(np.uint8))
    report = look(folder, cache, production=line)
    assert level(report, "exposure_coverage") == "problem"
    assert level(report, "position_coverage") == "problem"
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no images there"):
        look(folder, cache, production=tmp_path / "empty")


def test_pictures_from_the_line_are_held_one_at_a_time(data: Path, tmp_path: Path) -> None:
    """Rule: of at most 300 pictures only what is compared is kept, however large they are."""
    picture = tmp_path / "line.bmp"
    cv2.imwrite(str(picture), np.full((1000, 1000), 120, np.uint8))
    dataset = read_dataset(data)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        findings = list(find_coverage(dataset, [picture] * 301))
        most = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert findings[0].figures["n"] == 151
    assert most < 50e6, "151 pictures have 151 MB"


def frame(random: np.random.Generator) -> Any:
    image = np.full((96, 96), 40, np.uint8)
    image[20:76, 24:72] = 180
    return (image + random.integers(0, 4, image.shape)).astype(np.uint8)


def test_sixteen_bits(copy: Path, cache: Path) -> None:
    """12 bits stored unshifted are nearly black to the model: said; 16 used bits are a note."""
    resave(copy, lambda image: image.astype(np.uint16) * 16)
    report = look(copy, cache)
    assert level(report, "depth") == "problem"
    assert "no sample above" in text(report, "depth")
    resave(copy, lambda image: image.astype(np.uint16) * 16)
    assert level(look(copy, cache), "depth") == "note"


def test_mixed_sizes_channels_and_one_huge_image(copy: Path, cache: Path) -> None:
    """Sizes and channels that differ are counted, and a picture far beyond the others is named."""
    good = sorted((copy / "good").iterdir())
    cv2.imwrite(str(good[0]), np.full((60, 200), 90, np.uint8))
    cv2.imwrite(str(good[1]), np.random.default_rng(1).integers(0, 255, (96, 96, 3), np.uint8))
    cv2.imwrite(str(good[2]), np.full((6000, 6000), 90, np.uint8))
    report = look(copy, cache)
    assert "3 different sizes" in text(report, "sizes")
    assert text(report, "channels").startswith("95 images are mono and 1 in colour")
    assert level(report, "large_images") == "problem"
    assert good[2].name in text(report, "large_images")


def test_good_parts_alone(copy: Path, cache: Path) -> None:
    """A set without defects is looked at, named for what it is, and forecasts nothing."""
    shutil.rmtree(copy / "defect")
    report = look(copy, cache)
    assert level(report, "amounts") == "problem"
    assert "good parts only" in text(report, "amounts")
    assert report.curve is None
    assert not any(finding.id.startswith("shortcut") for finding in report.findings)


@pytest.mark.parametrize("spoil", ["three images", "text", "huge"])
def test_sets_that_cannot_be_looked_at(copy: Path, cache: Path, spoil: str) -> None:
    """One line with the name of the culprit; nothing is written beside the data."""
    if spoil == "three images":
        for path in sorted(copy.rglob("*.png"))[3:]:
            path.unlink()
        words = "too few"
    elif spoil == "text":
        (copy / "good" / "00003.png").write_text("a text")
        words = "00003.png"
    else:
        tiny = cv2.imencode(".png", np.zeros((1, 1), np.uint8))[1].tobytes()
        wide = tiny[:16] + (20_000).to_bytes(4, "big") * 2 + tiny[24:]
        (copy / "good" / "00003.png").write_bytes(wide)
        words = "00003.png"
    with pytest.raises(DatasetError, match=words) as caught:
        look(copy, cache)
    assert "\n" not in str(caught.value)


def test_exif_and_names_give_the_time() -> None:
    """The time of taking is read from JPEG's EXIF and from the usual names; a broken block is no error."""
    tiff = (
        b"II*\x00\x08\x00\x00\x00"
        b"\x02\x00"
        b"\x10\x01\x02\x00\x08\x00\x00\x00\x26\x00\x00\x00"
        b"\x69\x87\x04\x00\x01\x00\x00\x00\x2e\x00\x00\x00"
        b"\x00\x00\x00\x00"
        b"CamX100\x00"
        b"\x01\x00\x03\x90\x02\x00\x14\x00\x00\x00\x40\x00\x00\x00\x00\x00\x00\x00"
        b"2026:01:05 09:15:00\x00"
    )
    jpeg = cv2.imencode(".jpg", np.zeros((8, 8), np.uint8))[1].tobytes()
    exif = b"Exif\x00\x00" + tiff
    marked = jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]
    facts = find_facts(marked, "", "a.jpg")
    assert facts.camera == "CamX100"
    assert facts.taken == time_in_name("cam1_20260105-091500_3.png") == 1_767_604_500
    for cut in range(2, len(exif), 7):
        short = exif[:cut]
        broken = jpeg[:2] + b"\xff\xe1" + (len(short) + 2).to_bytes(2, "big") + short + jpeg[2:]
        assert find_facts(broken, "", "a.jpg").width == 8
    assert time_in_name("part_000123456789.png") == 0


def test_a_directory_of_exif_that_names_itself_ends() -> None:
    """Rule: what a file says about itself never keeps a check from going on."""
    tiff = b"II*\x00\x08\x00\x00\x00" + b"\x01\x00" + b"\x69\x87\x04\x00\x01\x00\x00\x00\x08\x00\x00\x00" + bytes(4)
    exif = b"Exif\x00\x00" + tiff
    jpeg = cv2.imencode(".jpg", np.zeros((8, 8), np.uint8))[1].tobytes()
    facts = find_facts(jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:], "", "a.jpg")
    assert (facts.taken, facts.camera) == (0.0, "")


def test_two_batches_prove_little_and_many_parts_much() -> None:
    """Rule: the interval of an AUROC knows how few batches there are; what separates them wholly stays found."""
    low = {}
    for batches, each in ((2, 60), (60, 2)):
        groups = np.repeat(np.arange(2 * batches), each)
        labels = groups < batches
        scores = labels + np.random.default_rng(7 if batches == 2 else 8).normal(size=len(groups))
        area, low[batches], high = area_with_interval(labels, scores, groups, 0)
        assert low[batches] < area <= high
    assert low[2] < 0.5 < low[60]
    groups = np.repeat(np.arange(4), 30)
    assert area_with_interval(groups < 2, (groups < 2) * 1.0, groups, 0) == (1.0, 1.0, 1.0)
