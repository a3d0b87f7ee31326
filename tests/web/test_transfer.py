"""Pictures in and out: taken over as a whole or not at all, whatever the ZIP file tries; and out again as they were."""

from __future__ import annotations

import csv
import io
import json
import stat
import struct
import zipfile
import zlib
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.web.kit import add_part, make_part, png

from lineward.daemon.label_records import BLIND, FAIL, LABELLED, PASS, LabelError
from lineward.daemon.web import transfer
from lineward.daemon.web.exporting import export
from lineward.daemon.web.transfer import TransferError, header_size, import_folder, import_zip
from lineward.images import decode_image

if TYPE_CHECKING:
    from pathlib import Path

    from lineward.daemon.labels import LabelStore


def zipped(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return path


def wide_png(width: int, height: int) -> bytes:
    """A PNG of any claimed size whose pixels take nothing: a decompression bomb."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes((width + 1) * min(height, 64)), 9)
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def everything(labels: LabelStore) -> tuple[list[str], list[str]]:
    """What the store and its folder hold, to see that nothing was changed."""
    files = sorted(path.relative_to(labels.root).as_posix() for path in labels.root.rglob("*") if path.is_file())
    return [file for file in files if "sqlite3" not in file], [part.image for part in labels.parts("bracket")]


GOOD = {"good/a.png": png(1), "good/b.png": png(2), "defect/dent/c.png": png(3)}


def test_an_import_is_labelled_and_a_second_one_changes_nothing(labels: LabelStore, tmp_path: Path) -> None:
    """Rule: label and type come from the folders; the same pictures again are known, not doubled."""
    path = zipped(tmp_path / "in.zip", {**GOOD, "set/readme.txt": b"x", "__MACOSX/good/._a.png": b"x"})
    assert import_zip(labels, path, "bracket", "eve") == transfer.Imported(3, 0)
    assert import_zip(labels, path, "bracket", "eve") == transfer.Imported(0, 3)
    assert labels.by_type("bracket") == {(PASS, ""): 2, (FAIL, "dent"): 1}
    for part in labels.parts("bracket", status=LABELLED):
        (label,) = labels.labels(part.image)
        assert (label.person, label.purpose) == ("eve", "import")
        assert labels.file(part).read_bytes() in GOOD.values()


def test_escapes_that_are_brought_in_are_never_forgotten(labels: LabelStore, tmp_path: Path) -> None:
    """Rule: with `escaped`, the defective ones are in the "never again" set, the good ones are not."""
    import_zip(labels, zipped(tmp_path / "in.zip", GOOD), "bracket", "eve", escaped=True)
    assert [part.label_type for part in labels.escapes("bracket")] == ["dent"]


def test_what_is_there_already_is_noted_as_escaped_afterwards(labels: LabelStore, tmp_path: Path) -> None:
    """Rule: the same pictures once more with `escaped` put the defective ones in the "never again" set."""
    path = zipped(tmp_path / "in.zip", GOOD)
    import_zip(labels, path, "bracket", "eve")
    assert labels.escapes("bracket") == []
    assert import_zip(labels, path, "bracket", "eve", escaped=True) == transfer.Imported(1, 2)
    assert [(part.label_type, part.why) for part in labels.escapes("bracket")] == [("dent", "escaped")]
    assert import_zip(labels, path, "bracket", "eve", escaped=True) == transfer.Imported(0, 3)
    assert import_zip(labels, path, "bracket", "eve") == transfer.Imported(0, 3)
    assert len(labels.escapes("bracket")) == 1


@pytest.mark.parametrize(
    ("name", "product", "said"),
    [
        ("good/c.png", "bracket", "c.png: this picture is known as fail: dent, product bracket; leave it out, or"),
        ("defect/scratch/c.png", "bracket", "c.png: this picture is known as fail: dent, product bracket; leave"),
        ("defect/dent/c.png", "tile", "c.png: this picture is known as fail: dent, product bracket; leave it out"),
    ],
)
def test_what_is_known_as_something_else_is_refused_or_corrected(
    labels: LabelStore, tmp_path: Path, name: str, product: str, said: str
) -> None:
    """Rule: another label, type or product is refused by name; as a correction it holds, what was said stays."""
    import_zip(labels, zipped(tmp_path / "in.zip", GOOD), "bracket", "eve")
    before = everything(labels)
    path = zipped(tmp_path / "other.zip", {"good/new.png": png(9), name: png(3)})
    with pytest.raises(TransferError, match=said):
        import_zip(labels, path, product, "ann")
    assert everything(labels) == before
    assert import_zip(labels, path, product, "ann", correct=True) == transfer.Imported(2, 0)
    assert import_zip(labels, path, product, "ann") == transfer.Imported(0, 2)
    decision, kind = (PASS, "") if name.startswith("good") else (FAIL, name.split("/")[1])
    (corrected,) = [part for part in labels.parts(product) if labels.file(part).read_bytes() == png(3)]
    assert (corrected.status, corrected.label, corrected.label_type) == (LABELLED, decision, kind)
    assert labels.labels(corrected.image)[0].person == "eve"


def test_a_refused_correction_leaves_the_whole_import_out(labels: LabelStore) -> None:
    """Rule: the store itself takes all or none."""
    old, new = (make_part(number, origin="import") for number in (1, 2))
    assert labels.add_labelled([(old, PASS, "")], "eve") == 1
    with pytest.raises(LabelError, match="this picture is known as pass, product bracket, part A1; leave it out, or"):
        labels.add_labelled([(new, PASS, ""), (old, FAIL, "dent")], "eve")
    assert labels.images() == {old.image}


def test_whose_picture_it_is_may_be_said_later_but_not_otherwise(labels: LabelStore) -> None:
    """Rule: a part that was not named is named by the same import with groups; another name is a contradiction."""
    nameless, named, other = (make_part(1, origin="import", part_id=part_id) for part_id in ("", "A1", "A2"))
    assert [labels.add_labelled([(part, PASS, "")], "eve") for part in (nameless, named, nameless)] == [1, 1, 0]
    with pytest.raises(LabelError, match="known as pass, product bracket, part A1; leave it out, or"):
        labels.add_labelled([(other, PASS, "")], "eve")
    assert [part.part_id for part in labels.parts("bracket")] == ["A1"]


def test_a_picture_on_which_people_disagree_is_corrected_by_an_import(labels: LabelStore) -> None:
    """Rule: a correction ends the matter, as a decision under Agreement does."""
    part = make_part(1, origin="import")
    labels.add_labelled([(part, PASS, "")], "eve")
    add_part(labels, 1)  # its file
    labels.give(part.image, "eve", FAIL, "dent", purpose=BLIND)
    with pytest.raises(LabelError, match="known as one that people disagree on"):
        labels.add_labelled([(part, FAIL, "dent")], "eve")
    assert labels.add_labelled([(part, FAIL, "dent")], "eve", correct=True) == 1
    assert labels.by_type("bracket") == {(FAIL, "dent"): 1}


def test_a_folder_is_imported_like_a_zip_file(labels: LabelStore, tmp_path: Path) -> None:
    """Rule: the same rules for a folder; links in it are refused."""
    for name, data in GOOD.items():
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    assert import_folder(labels, tmp_path / "in", "bracket", "eve").new == 3
    (tmp_path / "in" / "good" / "link.png").symlink_to("/etc/passwd")
    with pytest.raises(TransferError, match="is a link"):
        import_folder(labels, tmp_path / "in", "bracket", "eve")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../../evil.png", "leads out of the folder"),
        ("good/../../evil.png", "leads out of the folder"),
        ("/etc/good/evil.png", "leads out of the folder"),
        ("good\\..\\evil.png", "leads out of the folder"),
        ("C:/good/evil.png", "leads out of the folder"),
        ("good//evil.png", "leads out of the folder"),
        ("good/<script>alert(1)</script>.png", "leads out of the folder|signs that no picture"),
        ("good/<img src=x onerror=alert(1)>.png", "signs that no picture's name needs"),
        ("good/a$(reboot).png", "signs that no picture's name needs"),
        ("good/a\x1b[2J.png", "signs that no picture's name needs"),
        ("good/" + "x" * 300 + ".png", "signs that no picture's name needs"),
        ("defect/<b>/a.png", "signs that no picture's name needs"),
        ("elsewhere/a.png", "neither below good/ nor below defect/TYPE/"),
        ("defect/" + "t" * 65 + "/a.png", "cannot be a defect type"),
    ],
)
def test_a_name_that_means_harm_is_refused(labels: LabelStore, tmp_path: Path, name: str, said: str) -> None:
    """Rule: no name leads out of the store, into a log, a shell or a page; all of the import is refused."""
    before = everything(labels)
    path = zipped(tmp_path / "in.zip", {"good/fine.png": png(9), name: png(1)})
    with pytest.raises(TransferError, match=said) as caught:
        import_zip(labels, path, "bracket", "eve")
    assert str(caught.value).isprintable()
    assert "nothing was changed" in str(caught.value)
    assert everything(labels) == before
    assert not (tmp_path / "evil.png").exists()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not an image"),
        (b"no picture at all", "not an image"),
        (png(1)[:60], "the PNG file is cut off"),
        (png(1)[: len(png(1)) // 2], "the PNG file is cut off"),
        (wide_png(30_000, 10), "30000 x 10 pixels are too many"),
        (wide_png(12_000, 12_000), "12000 x 12000 pixels are too many"),
        (wide_png(0, 5), "not an image"),
        (b"BM" + bytes(60), "not an image"),
        (b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff" + bytes(20), "65535 x 65535 pixels are too many"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "not an image"),
    ],
    ids=["empty", "text", "head", "half", "wide", "bomb", "no-width", "bmp", "jpeg-bomb", "svg"],
)
def test_what_is_no_whole_picture_is_refused(labels: LabelStore, tmp_path: Path, data: bytes, said: str) -> None:
    """Rule: each picture is looked at before it is decoded, and decoded before it is kept; all or none."""
    before = everything(labels)
    path = zipped(tmp_path / "in.zip", {"good/fine.png": png(9), "good/bad.png": data})
    with pytest.raises(TransferError, match=said):
        import_zip(labels, path, "bracket", "eve")
    assert everything(labels) == before


def test_bombs_and_broken_archives_are_refused(labels: LabelStore, tmp_path: Path) -> None:
    """Rule: what grows 200 times, is encrypted, a link, cut off, too much or no ZIP file is refused unopened."""
    before = everything(labels)
    link = zipfile.ZipInfo("good/link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    whole = zipped(tmp_path / "whole.zip", GOOD).read_bytes()
    flagged = bytearray(whole)
    flagged[whole.index(b"PK\x01\x02") + 8] |= 1
    damaged = bytearray(zipped(tmp_path / "stored.zip", GOOD, zipfile.ZIP_STORED).read_bytes())
    damaged[damaged.index(png(2)) + 20] ^= 0xFF
    cases = {
        "bomb.zip": (zipped(tmp_path / "x.zip", {"good/a.png": bytes(30 << 20)}).read_bytes(), "grows 200 times"),
        "link.zip": ((tmp_path / "link.zip").read_bytes(), "is a link"),
        "secret.zip": (bytes(flagged), "is encrypted"),
        "cut.zip": (whole[:-30], "not a whole ZIP file"),
        "damaged.zip": (bytes(damaged), "not a whole ZIP file"),
        "text.zip": (b"hello", "not a whole ZIP file"),
        "empty.zip": (zipped(tmp_path / "y.zip", {}).read_bytes(), "no pictures"),
    }
    for name, (data, said) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(TransferError, match=said):
            import_zip(labels, tmp_path / name, "bracket", "eve")
        assert everything(labels) == before, name


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_archive_is_one_clear_line_however_it_is_packed(
    labels: LabelStore, tmp_path: Path, method: int
) -> None:
    """Rule: whichever bytes are wrong, the person reads that the ZIP file is, and nothing was changed."""
    whole = zipped(tmp_path / "in.zip", {"good/a.png": png(1)}, method).read_bytes()
    for start in (40, 50, 60, 200, len(whole) // 2):
        damaged = bytearray(whole)
        damaged[start : start + 30] = bytes(byte ^ 0x5A for byte in damaged[start : start + 30])
        (tmp_path / "in.zip").write_bytes(damaged)
        with pytest.raises(TransferError, match=r"not a whole ZIP file \(.*nothing was changed$"):
            import_zip(labels, tmp_path / "in.zip", "bracket", "eve")
    lost = bytearray(whole)
    struct.pack_into("<I", lost, whole.index(b"PK\x05\x06") + 16, len(whole))  # the picture lies before the file
    (tmp_path / "in.zip").write_bytes(lost)
    with pytest.raises(TransferError, match="not a whole ZIP file"):
        import_zip(labels, tmp_path / "in.zip", "bracket", "eve")
    assert labels.parts("bracket") == []


def test_trouble_with_the_disk_is_not_taken_for_a_damaged_archive(labels: LabelStore, tmp_path: Path) -> None:
    """Rule: what is wrong with the disk is said of the disk."""
    (tmp_path / "in.zip").mkdir()
    with pytest.raises(IsADirectoryError):
        import_zip(labels, tmp_path / "in.zip", "bracket", "eve")


def test_a_head_that_lies_about_the_size_of_a_file_brings_no_more_than_it_says(
    labels: LabelStore, tmp_path: Path
) -> None:
    """Rule: more bytes than announced are never taken in."""
    data = bytearray(zipped(tmp_path / "in.zip", {"good/a.png": png(1)}, zipfile.ZIP_STORED).read_bytes())
    for head, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", data, data.index(head) + offset, 30)
    (tmp_path / "in.zip").write_bytes(data)
    with pytest.raises(TransferError):
        import_zip(labels, tmp_path / "in.zip", "bracket", "eve")
    assert labels.parts("bracket") == []


def test_too_many_or_too_large_is_refused(labels: LabelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: count, size of all and size of one have limits that the message names."""
    path = zipped(tmp_path / "in.zip", GOOD)
    for limit, value, said in (
        ("MOST_FILES", 2, "3 files are too many; at most 2"),
        ("MOST_BYTES", 100, "unpacked is too much"),
        ("MOST_FILE_BYTES", 100, "is too large; at most"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(transfer, limit, value)
            with pytest.raises(TransferError, match=said):
                import_zip(labels, path, "bracket", "eve")
    assert labels.parts("bracket") == []


def test_the_same_picture_under_both_labels_is_refused(labels: LabelStore, tmp_path: Path) -> None:
    """Rule: a contradiction within one import is said with both names."""
    path = zipped(tmp_path / "in.zip", {"good/a.png": png(1), "defect/dent/b.png": png(1)})
    with pytest.raises(TransferError, match=r"b\.png: the same picture as good/a\.png, which has another label"):
        import_zip(labels, path, "bracket", "eve")


@pytest.mark.parametrize("kind", [".png", ".jpg", ".bmp", ".tiff"])
def test_the_size_is_read_from_the_head_of_each_kind_of_file(kind: str) -> None:
    """Rule: width and height are known before a picture is decoded, and are those that decoding gives."""
    import cv2

    data = cv2.imencode(kind, np.zeros((31, 57), np.uint8))[1].tobytes()
    assert header_size(data) == (57, 31)
    assert decode_image(data, "x").shape[:2] == (31, 57)


@pytest.fixture
def filled(labels: LabelStore) -> LabelStore:
    """40 labelled parts of the line; part A7 has two pictures."""
    for number in range(1, 41):
        part = add_part(labels, number, part_id="A7" if number in {7, 8} else f"A{number}")
        labels.give(part.image, "=cmd|'/c calc'!A1", PASS if number % 3 else FAIL, "" if number % 3 else "dent")
    return labels


def test_folders_go_out_and_come_in_again(filled: LabelStore, tmp_path: Path) -> None:
    """Rule: what was exported as folders is imported elsewhere with the same pictures, labels and groups."""
    from lineward.daemon.labels import LabelStore as Store

    export(filled, "bracket", "folders", tmp_path / "out.zip")
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        rows = list(csv.DictReader(io.StringIO(archive.read("groups.csv").decode())))
        assert {row["file"] for row in rows} <= set(archive.namelist())
    assert len(rows) == 40
    assert sum(row["group"] == "A7" for row in rows) == 2
    other = Store(tmp_path / "other")
    assert import_zip(other, tmp_path / "out.zip", "bracket", "eve").new == 40
    assert other.by_type("bracket") == filled.by_type("bracket")
    groups = [Counter(part.group for part in store.parts("bracket")) for store in (filled, other)]
    assert groups[0] == groups[1]
    other.close()


def test_coco_names_every_picture_with_its_size_and_label(filled: LabelStore, tmp_path: Path) -> None:
    """Rule: images, annotations and categories agree, and each file is in the archive."""
    export(filled, "bracket", "coco", tmp_path / "out.zip")
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        coco = json.loads(archive.read("annotations.json"))
        assert {image["file_name"] for image in coco["images"]} | {"annotations.json"} == set(archive.namelist())
    assert {(image["width"], image["height"]) for image in coco["images"]} == {(48, 32)}
    names = {category["id"]: category["name"] for category in coco["categories"]}
    assert sorted(names.values()) == ["dent", "good"]
    assert sum(names[note["category_id"]] == "dent" for note in coco["annotations"]) == 13
    assert {note["image_id"] for note in coco["annotations"]} == {image["id"] for image in coco["images"]}


def test_the_list_tells_every_decision_and_is_no_formula(filled: LabelStore, tmp_path: Path) -> None:
    """Rule: one line for each decision, undone ones too; no cell starts a formula in a spreadsheet."""
    add_part(filled, 41)
    filled.give(f"{41:012x}", "tom", PASS)
    filled.undo("tom", "bracket")
    filled.give(f"{41:012x}", "tom", FAIL, "dent")
    export(filled, "bracket", "csv", tmp_path / "out.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text(encoding="utf-8"))))
    assert len(rows) == 42
    assert [row["undone"] for row in rows if row["who"] == "tom"] == ["yes", ""]
    assert all(not cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row.values())


def test_an_export_of_nothing_is_refused(labels: LabelStore, tmp_path: Path) -> None:
    """Rule: no empty file, and no form of export that does not exist."""
    with pytest.raises(TransferError, match="nothing is labelled yet"):
        export(labels, "bracket", "csv", tmp_path / "out.csv")
    with pytest.raises(TransferError, match="is no form of export; it is folders, coco or csv"):
        export(labels, "bracket", "../x", tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_an_import_takes_over_which_part_is_on_which_picture(labels: LabelStore, tmp_path: Path) -> None:
    """Rule: `groups.csv` beside good/ and defect/, also one folder down, names the parts; a blank group names none."""
    rows = (
        b"file,group,label\r\ngood/a.png,P1,good\r\ndefect\\dent\\c.png, P1 ,dent\r\ngood/b.png,,good\r\ngood/x.png\r\n"
    )
    for number, below in enumerate(("", "set/")):
        files = {f"{below}{name}": png(700 + 10 * number + at) for at, name in enumerate(GOOD)}
        path = zipped(tmp_path / f"{number}.zip", {**files, f"{below}groups.csv": rows})
        import_zip(labels, path, f"product {number}", "eve")
        named = {part.label_type or part.part_id: part.part_id for part in labels.parts(f"product {number}")}
        assert named == {"P1": "P1", "": "", "dent": "P1"}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (b"file;group\ngood/a.png;P1\n", "needs columns file and group"),
        (b"file,group\ngood/a.png,\xff\n", "in UTF-8"),
        (b"file,group\ngood/a.png,P\x1b[2J\n", "cannot name a part"),
        (b"file,group\ngood/a.png," + b"P" * 300 + b"\n", "cannot name a part"),
    ],
    ids=["semicolons", "latin", "escape", "long"],
)
def test_parts_that_cannot_be_read_are_refused(labels: LabelStore, tmp_path: Path, rows: bytes, said: str) -> None:
    """Rule: a `groups.csv` that says nothing or means harm refuses the import as a whole."""
    before = everything(labels)
    with pytest.raises(TransferError, match=said) as caught:
        import_zip(labels, zipped(tmp_path / "in.zip", {**GOOD, "groups.csv": rows}), "bracket", "eve")
    assert str(caught.value).isprintable()
    assert everything(labels) == before


def test_an_import_gives_a_defect_type_one_spelling(labels: LabelStore, tmp_path: Path) -> None:
    """Rule: that in use, else the first one; with --correct what the import says holds."""
    add_part(labels, 1)
    labels.give(add_part(labels, 2).image, "tom", FAIL, "Dent")
    files = {"defect/dent/a.png": png(11), "defect/Scratch/b.png": png(12), "defect/scratch/c.png": png(13)}
    assert import_zip(labels, zipped(tmp_path / "in.zip", files), "bracket", "eve").new == 3
    assert labels.by_type("bracket") == {(FAIL, "Dent"): 2, (FAIL, "Scratch"): 2}
    files = {name: data for name, data in files.items() if "dent" in name}
    assert import_zip(labels, zipped(tmp_path / "in2.zip", files), "bracket", "eve", correct=True).new == 1
    assert labels.by_type("bracket") == {(FAIL, "Dent"): 1, (FAIL, "Scratch"): 2, (FAIL, "dent"): 1}
    with pytest.raises(TransferError, match=r"defect/good/d\.png: 'good' cannot be a defect type"):
        import_zip(labels, zipped(tmp_path / "bad.zip", {"defect/good/d.png": png(14)}), "bracket", "eve")


def test_names_with_the_separator_of_windows_are_read(labels: LabelStore, tmp_path: Path) -> None:
    """Rule: a ZIP file of an old program on Windows is no attack; its table of parts is read as well."""
    table = b"file,group\r\ngood\\a.png,P1\r\ndefect\\dent\\b.png,P2\r\n"
    files = {"good\\a.png": png(1), "defect\\dent\\b.png": png(2), "groups.csv": table}
    import_zip(labels, zipped(tmp_path / "in.zip", files), "bracket", "eve")
    found = {part.part_id: (part.label, part.label_type) for part in labels.parts("bracket", status=LABELLED)}
    assert found == {"P1": (PASS, ""), "P2": (FAIL, "dent")}
    with pytest.raises(TransferError, match="leads out of the folder"):
        import_zip(labels, zipped(tmp_path / "out.zip", {"good\\..\\..\\x.png": png(3)}), "bracket", "eve")


def test_of_a_size_that_a_tiff_gives_twice_the_first_counts() -> None:
    """Rule: what is measured before a picture is taken in is what the decoder makes of it."""
    entry = struct.Struct("<HHII")
    entries = [(256, 4, 1, 30_000), (257, 4, 1, 3_000), (256, 4, 1, 16), (257, 4, 1, 16)]
    head = struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + b"".join(entry.pack(*fields) for fields in entries)
    assert header_size(head + bytes(4)) == (30_000, 3_000)
