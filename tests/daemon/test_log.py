"""The operators' log: one line per part, journald fields under systemd, one warning per outage."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pty
import socket
import subprocess
import sys
import time
import tty
from typing import TYPE_CHECKING

import pytest

from lineward.daemon import log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from lineward.daemon.result import Result


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    root = logging.getLogger("lineward")
    before = (list(root.handlers), root.level, root.propagate)
    yield
    for handler in set(root.handlers) - set(before[0]):
        handler.close()
    root.handlers, root.level, root.propagate = before
    log.parts_log.setLevel(logging.NOTSET)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_part_is_one_line_with_everything_an_operator_asks_for(make_result: Callable[..., Result]) -> None:
    """Time, seq, part, verdict, confidence, milliseconds, reason."""
    out = io.StringIO()
    log.set_up("INFO", parts=True, stream=out)
    log.log_part(make_result(seq=1841, part_id="A1183", verdict="review", confidence=0.612, reason="low_confidence"))
    line = out.getvalue()
    assert line.count("\n") == 1
    for word in ("#1841", "A1183", "REVIEW", "61.2%", "12.0 ms", "low_confidence"):
        assert word in line
    assert "\x1b" not in line, "no colours in a file"


def test_part_lines_can_be_turned_off_and_trouble_still_shows(make_result: Callable[..., Result]) -> None:
    """A line at 20 parts a second is not for everybody's log."""
    out = io.StringIO()
    log.set_up("INFO", parts=False, stream=out)
    log.log_part(make_result())
    assert out.getvalue() == ""
    logging.getLogger("lineward.camera").warning("gone")
    assert "WARNING camera: gone" in out.getvalue()


def test_verdicts_are_coloured_on_a_terminal_only(
    make_result: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reject is red where a person looks, and NO_COLOR is respected."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal()
    log.set_up("INFO", parts=True, stream=out)
    log.log_part(make_result(verdict="fail"))
    assert "\x1b[1;31mFAIL\x1b[0m" in out.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Terminal()
    log.set_up("INFO", parts=True, stream=plain)
    log.log_part(make_result(verdict="fail"))
    assert "\x1b" not in plain.getvalue()


def test_the_journal_gets_priority_and_fields(tmp_path: Path, make_result: Callable[..., Result]) -> None:
    """`journalctl VERDICT=fail SEQ=7` must find the part: a datagram of journald's native protocol."""
    path = tmp_path / "journal.socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(path))
        handler = log.JournalHandler(str(path))
        logger = logging.getLogger("lineward")
        logger.addHandler(handler)
        logger.setLevel("INFO")
        log.log_part(make_result(seq=7, verdict="fail", part_id="P\n7", defect_type="crack"))
        logging.getLogger("lineward.camera").warning("gone")
        part, trouble = parse_journal(journal.recv(65536)), parse_journal(journal.recv(65536))
        logger.removeHandler(handler)
        handler.close()
    assert part["SEQ"] == "7"
    assert part["VERDICT"] == "fail"
    assert part["PART_ID"] == "P\n7"
    assert part["DEFECT_TYPE"] == "crack"
    assert part["PRIORITY"] == "6"
    assert part["SYSLOG_IDENTIFIER"] == "lineward"
    assert trouble["PRIORITY"] == "4"
    assert trouble["MESSAGE"] == "gone"


def test_a_journal_that_is_away_does_not_stop_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The line falls back to stderr with the priority in front, which journald reads as well."""
    handler = log.JournalHandler(str(tmp_path / "nobody"))
    handler.emit(logging.LogRecord("lineward.x", logging.ERROR, "", 0, "lost", None, None))
    handler.close()
    assert capsys.readouterr().err == "<3>lost\n"


def test_a_journal_that_does_not_read_costs_lines_and_not_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: a line that neither way into the journal takes is dropped, nobody waits, and a later line counts them."""
    path = tmp_path / "journal.socket"
    stream, journald = socket.socketpair()
    # Under systemd this end blocks. Here it does not, so that a line which is written all the same fails the test.
    stream.setblocking(False)
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal,
        journald,
        stream,
        open(stream.fileno(), "w", buffering=1, closefd=False) as stderr,
    ):
        journal.bind(str(path))
        journal.setblocking(False)
        monkeypatch.setattr(sys, "stderr", stderr)
        handler = log.JournalHandler(str(path))

        def say(number: int) -> None:
            handler.handle(logging.LogRecord("lineward.part", logging.INFO, "", 0, f"#{number}", None, None))

        for number in range(3000):
            say(number)
        read = messages(journal)
        say(3000)
        *dropped, last = messages(journal)
        on_stderr = journald.recv(1 << 20).decode().splitlines()
        handler.close()
    assert last == "#3000"
    assert read == [f"#{number}" for number in range(len(read))]
    assert on_stderr == [f"<6>#{number}" for number in range(len(read), len(read) + len(on_stderr))]
    lost = 3000 - len(read) - len(on_stderr)
    assert lost > 0
    assert dropped == [f"{lost} lines of this log were dropped: the journal did not take them"]


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_a_reader_that_does_not_read_costs_lines_and_not_parts(kind: str) -> None:
    """Rule: Ctrl-S, `| less` or a stalled session drop lines, nobody waits for them, and a later line counts them."""
    reading, writing = os.pipe() if kind == "pipe" else pty.openpty()
    if kind == "terminal":
        tty.setraw(writing)
    root = logging.getLogger("lineward")
    before = list(root.handlers)
    with os.fdopen(writing, "w", encoding="utf-8", buffering=1) as stream:
        os.set_blocking(reading, False)
        log.set_up("INFO", parts=True, stream=stream)
        handler = root.handlers[0]
        try:
            for number in range(20_000):  # 2 MB; a pipe takes 64 kB
                log.parts_log.info("%s", f"#{number:05d} {'x' * 80}")
            read = drain(reading)
            log.parts_log.info("#20000")
            after = drain(reading)
        finally:
            root.removeHandler(handler)
            for old in before:
                root.addHandler(old)
    os.close(reading)
    written = [line for line in read if "#" in line]
    assert 0 < len(written) < 20_000
    assert [line.split("#")[1][:5] for line in written] == [f"{number:05d}" for number in range(len(written))]
    assert len(after) == 2
    assert f"log: {20_000 - len(written)} lines of this log were dropped: nobody read them" in after[0]
    assert after[1].endswith("#20000")


def drain(reading: int) -> list[str]:
    """Lines that wait behind a descriptor that does not block."""
    data = b""
    with contextlib.suppress(BlockingIOError):
        while piece := os.read(reading, 65536):
            data += piece
            time.sleep(0.001)  # a terminal hands over what it holds in pieces
    return data.decode().splitlines()


def test_a_reader_that_hung_up_costs_lines_and_not_parts(capfd: pytest.CaptureFixture[str]) -> None:
    """Rule: after `| head` has ended the line goes on without a word about its log."""
    reading, writing = os.pipe()
    os.close(reading)
    with contextlib.suppress(BrokenPipeError), os.fdopen(writing, "w", encoding="utf-8", buffering=1) as stream:
        handler = log.StreamHandler(stream)
        for number in range(100):
            handler.handle(logging.LogRecord("lineward.part", logging.INFO, "", 0, f"#{number}", None, None))
    assert capfd.readouterr().err == ""


def messages(journal: socket.socket) -> list[str]:
    """Everything that waits in the journal's socket."""
    found: list[str] = []
    with contextlib.suppress(BlockingIOError):
        while True:
            found.append(parse_journal(journal.recv(65536))["MESSAGE"])
    return found


def test_under_systemd_the_journal_is_recognised(tmp_path: Path) -> None:
    """$JOURNAL_STREAM names device and inode of stderr; only a match means the journal."""
    script = "import os, sys; from lineward.daemon import log; print(log._stderr_is_journal())"
    with (tmp_path / "stderr").open("wb") as stderr:
        stat = os.fstat(stderr.fileno())
        for stream, expected in ((f"{stat.st_dev}:{stat.st_ino}", "True"), ("1:2", "False"), ("", "False")):
            done = subprocess.run(
                [sys.executable, "-c", script],
                env={**os.environ, "JOURNAL_STREAM": stream},
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                check=True,
            )
            assert done.stdout.strip() == expected


def parse_journal(data: bytes) -> dict[str, str]:
    """An independent reader of the native protocol."""
    fields: dict[str, str] = {}
    while data:
        line, _, rest = data.partition(b"\n")
        if b"=" in line:
            name, _, value = line.partition(b"=")
            data = rest
        else:
            name = line
            size = int.from_bytes(rest[:8], "little")
            value = rest[8 : 8 + size]
            assert rest[8 + size : 9 + size] == b"\n"
            data = rest[9 + size :]
        fields[name.decode()] = value.decode()
    return fields


@pytest.mark.parametrize("sign", ["\x1b", "\x9b", "\u202e", "\r", "\x07", "\udc9f"])
def test_a_name_from_outside_does_not_steer_the_terminal(sign: str) -> None:
    """Rule: what a command, a file or a camera is called is shown, not carried out; a new line is no new entry."""
    record = logging.LogRecord(
        "lineward", logging.WARNING, "", 0, "no recipe %s", (f"a{sign}[31mb\n12:00:00  #9",), None
    )
    text = log.LineFormatter(colour=False).format(record)
    assert sign not in text
    assert "[31mb" in text
    assert text.splitlines()[1].startswith("    12:00:00")
    text.encode()


def test_a_huge_name_does_not_fill_the_log() -> None:
    """Rule: what is longer than a screen is cut, and it says how long it was."""
    text = log.readable("x" * 60_000)
    assert len(text) < 5_000
    assert text.endswith("(60000 signs)")
