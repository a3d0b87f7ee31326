"""`lineward ledger`: what was answered can be found, adds up or says what does not, and leaves in a file."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow.parquet
import pytest
from tests.daemon.results import make

from lineward.daemon.cli import main
from lineward.daemon.ledger import Ledger
from lineward.daemon.ledger_commands import LedgerCommandError, parse_time
from lineward.daemon.ledger_export import COLUMNS
from lineward.daemon.ledger_file import POWER_CUT_GAP, SCHEMA
from lineward.daemon.result import CameraRef
from lineward.extras import how_to_add
from lineward.models.verdict import Decision, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HOUR_NS = 3_600_000_000_000
LATE_PASS = Verdict(Decision.PASS, "", 0.98, 0.01, 0.1)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    book = Ledger(tmp_path)
    yield book
    book.close()


@pytest.fixture
def say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `lineward ledger` on the test's folder; return exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main(["ledger", "--root", str(tmp_path), *map(str, arguments)])
        said = capsys.readouterr()
        return int(left.value.code or 0), said.out, said.err

    return run


def parts(say: Callable[..., tuple[int, str, str]], *arguments: object) -> list[str]:
    code, out, err = say("list", "--json", *arguments)
    assert (code, err) == (0, "")
    return [record["part_id"] for record in json.loads(out)]


def answer(ledger: Ledger, part_id: str, **fields: Any) -> int:
    """Ask for a part by command and answer it."""
    number = ledger.note_trigger(f"t-{part_id}", part_id, "command", 0.5)
    values = {"seq": 0, "part_id": part_id, "trigger_id": f"t-{part_id}", "trigger_no": number, **fields}
    return ledger.record(make(**values)).seq


def change(ledger: Ledger, sql: str, *values: Any) -> None:
    with closing(sqlite3.connect(ledger.path)) as db:
        db.execute(sql, values)
        db.commit()


# ---- list


def test_the_filters_find_what_they_name(ledger, say):
    """Rule: time, part, verdict, reason, product and lateness each narrow the list, and all of them together."""
    now = time.time_ns()
    answer(ledger, "old", trigger_unix_ns=now - 3 * HOUR_NS)
    answer(ledger, "bad", verdict="fail", product="flange")
    late = answer(ledger, "slow", verdict="undecided", reason="timeout")
    answer(ledger, "none", verdict="undecided", reason="no_image", late=True)
    ledger.note_late(late, LATE_PASS)
    assert parts(say) == ["old", "bad", "slow", "none"], "newest last"
    assert parts(say, "--since", "2h") == ["bad", "slow", "none"]
    assert parts(say, "--until", "2h") == ["old"]
    assert parts(say, "--since", "1h", "--until", "2h") == []
    assert parts(say, "--part", "bad") == ["bad"]
    assert parts(say, "--part", "worse") == []
    assert parts(say, "--verdict", "undecided") == ["slow", "none"]
    assert parts(say, "--reason", "timeout") == ["slow"]
    assert parts(say, "--product", "flange") == ["bad"]
    assert parts(say, "--late") == ["slow", "none"]
    assert parts(say, "--late", "--reason", "no_image") == ["none"]
    assert parts(say, "--limit", "2") == ["slow", "none"], "the newest ones"
    assert parts(say, "--limit", "1", "--verdict", "fail") == ["bad"]
    assert parts(say, "--limit", "0") == ["old", "bad", "slow", "none"]


def test_a_record_says_what_came_too_late(ledger, say):
    """Rule: the list shows the answer that was given, and beside it the verdict that came after it."""
    seq = answer(ledger, "A1", verdict="undecided", reason="timeout")
    ledger.note_late(seq, LATE_PASS)
    (record,) = json.loads(say("list", "--json")[1])
    assert (record["verdict"], record["reason"], record["late_verdict"]) == ("undecided", "timeout", "pass")
    assert (record["trigger_id"], record["trigger_no"], record["acknowledged"]) == ("t-A1", 1, False)
    assert list(record) == list(COLUMNS)
    text = say("list")[1]
    assert "undecided timeout" in text
    assert "pass came too late" in text
    assert say()[1] == text, "without a command it lists"


def test_more_than_a_page_is_read_in_order(ledger, say):
    """Rule: nothing is lost or doubled at the borders of the pages in which the file is read."""
    for number in range(1203):
        ledger.record(make(seq=0, part_id=f"A{number}"))
    assert parts(say, "--limit", "0") == [f"A{number}" for number in range(1203)]
    assert parts(say, "--limit", "700", "--since", "1h") == [f"A{number}" for number in range(503, 1203)]


def test_times_are_read_as_written():
    """Rule: RFC 3339 with its offset, or an age; a time without a zone is refused instead of guessed."""
    moment = int(datetime(2026, 11, 23, 20, 51, tzinfo=UTC).timestamp()) * 1_000_000_000
    assert parse_time("2026-11-23T20:51:00Z", "--since") == moment
    assert parse_time("2026-11-23T21:51:00+01:00", "--since") == moment
    assert parse_time("2026-11-23T20:51:00.250Z", "--since") == moment + 250_000_000
    assert abs(parse_time("90s", "--since") - (time.time_ns() - 90_000_000_000)) < 10_000_000_000
    assert parse_time("1.5h", "--since") < parse_time("1h", "--since")
    for text in ("2026-11-23T20:51:00", "yesterday", "2 h", "-2h", "", "2026-13-01T00:00:00Z"):
        with pytest.raises(LedgerCommandError, match="--until"):
            parse_time(text, "--until")


# ---- reconcile


def found(say: Callable[..., tuple[int, str, str]], *arguments: object) -> dict[str, Any]:
    code, out, _ = say("reconcile", "--json", *arguments)
    report: dict[str, Any] = json.loads(out)
    assert code == (0 if report["fine"] else 1)
    assert report["fine"] == (report["faults"] == [])
    text = say("reconcile", *arguments)[1]
    assert text.endswith("it adds up\n" if report["fine"] else "it does NOT add up\n")
    for finding in report["faults"]:
        assert finding["text"] in text
    return report


def kinds(report: dict[str, Any]) -> list[tuple[str, str]]:
    return [(finding["kind"], finding["part_id"]) for finding in report["faults"]]


def test_a_whole_ledger_adds_up(ledger, say):
    """Rule: triggers by command, announced ids and frames of their own, each with one answer, add up."""
    for part in ("A1", "A2"):
        answer(ledger, part)
    number = ledger.note_trigger("c", "B1", "part", None)
    ledger.record(make(seq=0, part_id="B1", trigger_no=number, camera=CameraRef("cam", "s1", 41)))
    ledger.record(make(seq=0, part_id="", camera=CameraRef("cam", "s1", 42)))
    ledger.record(make(seq=0, part_id="", camera=CameraRef("cam", "s1", 43), verdict="fail"))
    ledger.record(make(seq=0, part_id="", camera=CameraRef("cam", "s1", 1)))  # opened anew
    report = found(say)
    assert report["fine"]
    counts = report["counts"]
    assert (counts["triggers_command"], counts["triggers_part"], counts["triggers_frame"]) == (2, 1, 3)
    assert (counts["answers"], counts["pass"], counts["fail"], counts["waiting"]) == (6, 5, 1, 0)


def test_a_trigger_without_an_answer_is_named(ledger, say):
    """Rule: an overdue trigger without an answer is a fault that names part and trigger."""
    ledger.note_trigger("17", "A17", "command", -5.0)
    answer(ledger, "A18")
    report = found(say)
    assert kinds(report) == [("trigger_without_answer", "A17")]
    assert "part A17 (trigger 17)" in report["faults"][0]["text"]
    assert report["faults"][0]["trigger_id"] == "17"


def test_what_is_on_its_way_is_no_fault(ledger, say):
    """Rule: before its deadline a trigger may have no answer; an announced id may wait for its frame for ever."""
    ledger.note_trigger("17", "A17", "command", 60.0)
    ledger.note_trigger("18", "A18", "part", None)
    change(ledger, "UPDATE triggers SET given_ns = given_ns - ? WHERE source = 'part'", 24 * HOUR_NS)
    report = found(say)
    assert report["fine"]
    assert report["counts"]["waiting"] == 2


def test_an_announced_id_that_was_overtaken_is_a_fault(ledger, say):
    """Rule: announced ids are used up in order, so one that is open behind an answered one was forgotten."""
    ledger.note_trigger("1", "B1", "part", None)
    number = ledger.note_trigger("2", "B2", "part", None)
    ledger.record(make(seq=0, part_id="B2", trigger_no=number))
    assert kinds(found(say)) == [("trigger_without_answer", "B1")]


def test_two_answers_to_one_trigger_are_a_fault(ledger, say):
    """Rule: exactly one answer per trigger; a second one is named."""
    answer(ledger, "A1")
    ledger.record(make(seq=0, part_id="A1", trigger_no=1))
    report = found(say)
    assert kinds(report) == [("answered_twice", "A1")]
    assert [note["kind"] for note in report["notes"]] == ["part_more_than_once"]


def test_an_answer_to_no_trigger_is_a_fault(ledger, say):
    """Rule: an answer that names a trigger which is not in the ledger does not add up."""
    answer(ledger, "A1")
    answer(ledger, "A2")
    change(ledger, "DELETE FROM triggers WHERE no = 2")
    assert kinds(found(say)) == [("answer_without_trigger", "A2")]


def test_a_gap_names_its_neighbours_and_the_parts_in_it(ledger, say):
    """Rule: a gap in the numbers is a fault that names the parts before and after, and those asked for in between."""
    for part in ("A1", "A2", "A3", "A4"):
        answer(ledger, part)
    change(ledger, "DELETE FROM results WHERE seq IN (2, 3)")
    change(ledger, "UPDATE triggers SET deadline_ns = deadline_ns - ?", HOUR_NS)
    report = found(say)
    assert [finding["kind"] for finding in report["faults"]].count("gap") == 1
    gap = next(finding for finding in report["faults"] if finding["kind"] == "gap")
    assert "#2 to #3 are missing, between #1 (part A1) and #4 (part A4)" in gap["text"]
    assert "part A2 (trigger t-A2); part A3 (trigger t-A3)" in gap["text"]
    assert [part for kind, part in kinds(report) if kind == "trigger_without_answer"] == ["A2", "A3"]


def test_the_numbers_left_out_after_a_power_cut_are_explained(ledger, say):
    """Rule: the gap that a power cut leaves on purpose is said and is no fault."""
    answer(ledger, "A1")
    answer(ledger, "A2")
    change(ledger, "UPDATE results SET seq = ? WHERE seq = 2", 2 + POWER_CUT_GAP)
    report = found(say)
    assert report["fine"]
    (note,) = report["notes"]
    assert note["kind"] == "power_cut"
    assert f"#2 to #{1 + POWER_CUT_GAP} are missing" in note["text"]


def test_many_notes_of_one_kind_are_counted_in_words(ledger, say):
    """Rule: what is explained does not bury the faults: ten of a kind in words, the rest counted, all in JSON."""
    for number in range(12):
        answer(ledger, f"A{number}", verdict="undecided", reason="no_image")
    assert len(found(say)["notes"]) == 12
    text = say("reconcile")[1]
    assert text.count("note  without_frame: #") == 10
    assert "note  without_frame: 2 more" in text


@pytest.mark.parametrize("reason", ["no_image", "incomplete", "camera_lost"])
def test_parts_without_a_frame_are_named(reason, ledger, say):
    """Rule: a part that was answered without a picture adds up, and is named."""
    answer(ledger, "A1", verdict="undecided", reason=reason)
    report = found(say)
    assert report["fine"]
    assert report["counts"]["without_frame"] == 1
    assert [(note["kind"], note["part_id"]) for note in report["notes"]] == [("without_frame", "A1")]


def test_frames_that_nobody_answered_are_a_fault(ledger, say):
    """Rule: where frames are the triggers, a jump in the camera's own numbers is a part without an answer."""
    ledger.record(make(seq=0, part_id="A1", camera=CameraRef("cam", "s1", 41)))
    ledger.record(make(seq=0, part_id="A3", camera=CameraRef("cam", "s1", 43)))
    report = found(say)
    assert kinds(report) == [("frame_gap", "A3")]
    assert "frames 42 to 42 of camera s1" in report["faults"][0]["text"]


def test_files_that_a_replay_skipped_are_a_note(ledger, say):
    """Rule: a folder gives up no file but one that cannot be read, which the log names: that adds up."""
    ledger.record(make(seq=0, part_id="a.png", camera=CameraRef("parts", "/data/parts", 3)))
    ledger.record(make(seq=0, part_id="d.png", camera=CameraRef("parts", "/data/parts", 6)))
    report = found(say)
    assert report["fine"]
    assert [note["kind"] for note in report["notes"]] == ["skipped_files"]
    assert "files 4 to 5 of /data/parts were skipped" in report["notes"][0]["text"]


def test_lost_frames_may_be_answered_before_older_ones(ledger, say):
    """Rule: under overload a lost frame has its answer before those that wait, and every one of them counts."""
    for frame_id in (1, 4, 5, 2, 3, 6):
        lost = {"verdict": "undecided", "reason": "queue_full"} if frame_id in {4, 5} else {}
        ledger.record(make(seq=0, part_id="", camera=CameraRef("cam", "s1", frame_id), **lost))
    assert found(say)["fine"]
    ledger.record(make(seq=0, part_id="A9", camera=CameraRef("cam", "s1", 9)))
    ledger.record(make(seq=0, part_id="A7", camera=CameraRef("cam", "s1", 7)))
    assert kinds(found(say)) == [("frame_gap", "A9")]


def test_a_late_verdict_belongs_to_an_undecided_answer(ledger, say):
    """Rule: a verdict after the answer is explained when the answer was undecided, and a fault when it was not."""
    late = answer(ledger, "A1", verdict="undecided", reason="timeout")
    ledger.note_late(late, LATE_PASS)
    report = found(say)
    assert report["fine"]
    assert report["counts"]["late_verdicts"] == 1
    ledger.note_late(answer(ledger, "A2"), LATE_PASS)
    ledger.note_late(99, LATE_PASS)
    change(
        ledger,
        "INSERT INTO results SELECT 99 + seq, trigger_ns, recorded_ns, deadline_ns, verdict, reason, part_id,"
        " frame_id, camera_serial, product, model_sha256, confidence, late, acked, payload, NULL FROM results"
        " WHERE seq = 2",
    )
    assert {kind for kind, _ in kinds(found(say))} == {"late_verdict", "late_without_answer", "gap"}


def test_answers_deleted_by_age_are_not_missed(ledger, say):
    """Rule: when the oldest answers were deleted, their triggers are no faults."""
    for number in range(6):
        answer(ledger, f"A{number}")
    change(ledger, "DELETE FROM results WHERE seq <= 3")
    change(ledger, "UPDATE triggers SET deadline_ns = deadline_ns - ?", HOUR_NS)
    assert found(say)["fine"]
    ledger.record(make(seq=0, part_id="B1"))
    change(ledger, "DELETE FROM results WHERE seq <= 6")
    assert found(say)["fine"], "no answer to a trigger is left"
    ledger.note_trigger("17", "A17", "command", -5.0)
    assert kinds(found(say)) == [("trigger_without_answer", "A17")]


def test_a_station_that_keeps_fewer_answers_misses_none_of_those_it_deleted(ledger, tmp_path, capsys):
    """Rule: what is deleted by `storage.ledger_rows` is no gap, while answers before it still wait for the broker."""
    for number in range(3000):
        ledger.record(make(seq=0, part_id=f"A{number}", camera=CameraRef("cam", "s1", number)))
    change(ledger, "DELETE FROM results WHERE seq > 10 AND seq <= 2000")
    file = tmp_path / "line.toml"
    file.write_text(
        '[camera]\ndriver = "simulated"\n[inspection]\nmodel = "m.lward"\n[storage]\nroot = "."\nledger_rows = 1000\n'
    )
    for arguments, code in (["--config", file], 0), (["--root", tmp_path], 1):
        with pytest.raises(SystemExit) as left:
            main(["ledger", "reconcile", *map(str, arguments), "--json"])
        assert left.value.code == code
        report = json.loads(capsys.readouterr().out)
    assert [fault["kind"] for fault in report["faults"]] == ["gap"], "nobody has said that it keeps fewer"


def test_a_shift_can_be_reconciled_alone(ledger, say):
    """Rule: --since leaves an old fault to its own shift."""
    answer(ledger, "A0", trigger_unix_ns=time.time_ns() - 9 * HOUR_NS)
    ledger.note_trigger("17", "A17", "command", -5.0)
    change(
        ledger, "UPDATE triggers SET given_ns = given_ns - ?, deadline_ns = deadline_ns - ?", 9 * HOUR_NS, 9 * HOUR_NS
    )
    answer(ledger, "A18")
    assert not found(say)["fine"]
    report = found(say, "--since", "8h")
    assert report["fine"]
    assert report["counts"]["answers"] == report["counts"]["triggers_command"] == 1


# ---- export


def test_csv_and_parquet_hold_the_same(ledger, say, tmp_path):
    """Rule: both files hold one row per answer with the same values; text comes through whatever it contains."""
    nasty = 'Teil "Ä", \n;=1+1'
    for part in ("A1", nasty, ""):
        answer(ledger, part)
    ledger.note_late(answer(ledger, "A4", verdict="undecided", reason="timeout"), LATE_PASS)
    assert say("export", tmp_path / "all.csv")[:2] == (0, f"{tmp_path}/all.csv: 4 answers\n")
    code, out, _ = say("export", tmp_path / "all.parquet", "--json")
    assert (code, json.loads(out)) == (0, {"file": f"{tmp_path}/all.parquet", "rows": 4})
    with (tmp_path / "all.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    table = pyarrow.parquet.read_table(tmp_path / "all.parquet").to_pylist()
    assert list(rows[0]) == list(table[0]) == list(COLUMNS)
    assert [row["part_id"] for row in rows] == [row["part_id"] for row in table] == ["A1", nasty, "", "A4"]
    assert [int(row["seq"]) for row in rows] == [row["seq"] for row in table] == [1, 2, 3, 4]
    assert [row["late_verdict"] for row in rows] == ["", "", "", "pass"]
    assert [row["late_verdict"] for row in table] == [None, None, None, "pass"]
    for text, value in zip(rows, table, strict=True):
        assert float(text["total_ms"]) == value["total_ms"]
        written = datetime.fromisoformat(text["triggered"])
        assert value["triggered"].replace(microsecond=value["triggered"].microsecond // 1000 * 1000) == written
        assert text["late"] == str(value["late"]).lower()


def test_export_takes_the_filters_and_replaces_only_a_whole_file(ledger, say, tmp_path):
    """Rule: a filter narrows the export; a failing one leaves the file of before, and nothing half-written."""
    answer(ledger, "A1")
    answer(ledger, "A2", verdict="fail")
    target = tmp_path / "fails.csv"
    target.write_text("before")
    assert say("export", target, "--verdict", "fail")[0] == 0
    assert target.read_text().count("\n") == 2
    for path in (tmp_path / "no" / "where.csv", tmp_path / "no" / "where.parquet"):
        code, _, err = say("export", path)
        assert code == 2
        assert err == f"lineward: {path}: cannot be written: No such file or directory; choose another place\n"
    assert not list(tmp_path.glob(".*unfinished"))


@pytest.mark.parametrize("name", ["all.csv", "all.parquet"])
def test_a_full_disk_is_one_line_that_names_the_file(name, ledger, say, tmp_path):
    """Rule: the file that was asked for and the reason; nothing is left behind."""
    answer(ledger, "A1")
    (tmp_path / f".{name}.unfinished").symlink_to("/dev/full")
    code, _, err = say("export", tmp_path / name)
    assert code == 2
    assert err == f"lineward: {tmp_path / name}: cannot be written: No space left on device; choose another place\n"
    assert not list(tmp_path.glob(f"*{name}*"))


def test_an_unknown_ending_and_a_missing_pyarrow_say_what_to_do(ledger, say, tmp_path, monkeypatch):
    """Rule: one line that names the remedy, exit code 2."""
    answer(ledger, "A1")
    code, _, err = say("export", tmp_path / "all.xlsx")
    assert (code, err) == (
        2,
        f"lineward: {tmp_path}/all.xlsx: the ending says what to write: name it FILE.csv or FILE.parquet\n",
    )
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as if it were not installed
    code, _, err = say("export", tmp_path / "all.parquet")
    assert code == 2
    assert f"`{how_to_add('pyarrow')}`" in err
    assert err.count("\n") == 1


# ---- any state of the file


def test_it_reads_while_the_station_writes(ledger, say):
    """Rule: the ledger is read while the station has it open, and sees what was recorded a moment ago."""
    for number in range(3):
        answer(ledger, f"A{number}")
        assert parts(say)[-1] == f"A{number}"
    assert found(say)["fine"]


@pytest.mark.parametrize("command", [["list"], ["reconcile"], ["export", "all.csv"]])
def test_a_missing_damaged_or_newer_ledger_is_one_line(command, ledger, say):
    """Rule: whatever is wrong with the file, one line names it and what to do, and the exit code is 2."""
    for number in range(400):
        answer(ledger, f"A{number}")
    ledger.close()
    path = ledger.path
    good = path.read_bytes()

    def line() -> str:
        code, _, err = say(*command)
        assert code == 2
        assert err.startswith(f"lineward: {path}: ")
        assert err.count("\n") == 1
        return err

    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    assert "newer Lineward" in line()
    for name in ("-wal", "-shm"):
        path.with_name(path.name + name).unlink(missing_ok=True)
    path.write_bytes(good[:4096] + b"\xff" * (len(good) - 4096))
    assert "is damaged" in line()
    path.write_bytes(b"no database at all" * 100)
    assert "is damaged" in line()
    path.write_bytes(b"")
    assert "is empty" in line()
    path.unlink()
    assert "there is no ledger" in line()


def test_a_ledger_of_the_first_schema_can_be_read(ledger, say):
    """Rule: a ledger that no newer station has opened yet is read as it is: it knows no triggers."""
    ledger.record(make(seq=0, part_id="A1"))
    change(ledger, "DROP INDEX by_trigger_no")
    for sql in ("DROP TABLE triggers", "DROP TABLE late_verdicts", "ALTER TABLE results DROP COLUMN trigger_no"):
        change(ledger, sql)
    change(ledger, "PRAGMA user_version = 1")
    assert parts(say) == ["A1"]
    assert parts(say, "--late") == []
    assert found(say)["fine"]


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root to become somebody else")
def test_somebody_who_may_only_read_can_read_it(ledger, tmp_path):
    """Rule: a ledger in a folder that the reader may not write to is readable when the station is not running."""
    answer(ledger, "A1")
    ledger.close()
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and folder != folder.parent:
            folder.chmod(folder.stat().st_mode | 0o055)
    ledger.path.chmod(0o644)
    read = "import sys; from pathlib import Path; from lineward.daemon.ledger_read import LedgerReader;"
    read += "print([row.part_id for row in LedgerReader(Path(sys.argv[1])).rows()])"
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-c", read, str(ledger.path)],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    if "Permission denied" in done.stderr and "lineward" in done.stderr:
        pytest.skip("nobody may not read this working tree")
    assert done.stdout == "['A1']\n", done.stderr


def test_config_or_root_names_the_ledger(ledger, tmp_path, capsys):
    """Rule: the storage folder comes from the station's configuration or from --root, before or after the command."""
    answer(ledger, "A1")
    file = tmp_path / "line.toml"
    file.write_text('[camera]\ndriver = "simulated"\n[inspection]\nmodel = "m.lward"\n[storage]\nroot = "."\n')
    for arguments in (
        ["--config", file, "list"],
        ["list", "--config", file],
        ["--root", tmp_path, "list"],
        ["list", "--root", tmp_path],
    ):
        with pytest.raises(SystemExit) as left:
            main(["ledger", *map(str, arguments), *(["--json"])])
        assert not left.value.code
        assert [record["part_id"] for record in json.loads(capsys.readouterr().out)] == ["A1"]
    with pytest.raises(SystemExit) as left:
        main(["ledger", "list", "--config", str(file), "--root", str(tmp_path)])
    assert left.value.code == 2
    assert "give one of them" in capsys.readouterr().err
