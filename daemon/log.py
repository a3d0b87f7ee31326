"""The log an operator tails: journald with fields under systemd, colour on a terminal, plain text elsewhere."""

from __future__ import annotations

import logging
import os
import select
import socket
import sys
from stat import S_ISREG
from typing import TYPE_CHECKING, Final, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lineward.daemon.result import Result

JOURNAL_SOCKET: Final = "/run/systemd/journal/socket"
PART_WIDTH = 24  # of a longer part id the end is shown: that is where part ids differ
TERMINAL_PIECE = 256
"""Bytes that a terminal which is ready takes without blocking; of a pipe it is `select.PIPE_BUF`."""
MOST_SIGNS = 4000
MOMENT_S = 0.01
"""What a line may wait for its reader, until one has been dropped."""
_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
_COLOUR = {"pass": "32", "fail": "1;31", "review": "33", "undecided": "35"}
_LEVEL_COLOUR = {logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "1;31"}

parts_log = logging.getLogger("lineward.part")


def set_up(level: str, *, parts: bool, stream: TextIO | None = None) -> None:
    """Send the log of all of Lineward to the journal or to ``stream`` (stderr when not given)."""
    stream = stream or sys.stderr
    handler: logging.Handler
    if _stderr_is_journal() and stream is sys.stderr:
        handler = JournalHandler()
    else:
        handler = StreamHandler(stream) if _may_block(stream) else logging.StreamHandler(stream)
        handler.setFormatter(LineFormatter(colour=_wants_colour(stream)))
    root = logging.getLogger("lineward")
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.propagate = False
    set_level(level, parts=parts)


def set_level(level: str, *, parts: bool) -> None:
    """Say how much is logged, and whether each part has its line."""
    logging.getLogger("lineward").setLevel(level)
    parts_log.setLevel(level if parts else "WARNING")


def log_part(result: Result) -> None:
    """Write the one line of a part: seq, part, verdict, confidence, milliseconds, reason."""
    if not parts_log.isEnabledFor(logging.INFO):
        return
    fields = {
        "SEQ": result.seq,
        "VERDICT": result.verdict,
        "PART_ID": result.part_id,
        "CONFIDENCE": f"{result.confidence:.4f}",
        "DEFECT_PROBABILITY": f"{result.defect_probability:.4f}",
        "DEFECT_TYPE": result.defect_type or "",
        "REASON": result.reason,
        "FRAME_ID": "" if result.camera.frame_id is None else result.camera.frame_id,
        "PRODUCT": result.product,
        "MODEL_VERSION": result.model.version,
        "LATENCY_MS": f"{result.latency.total:.1f}",
    }
    parts_log.info("%s", part_line(result), extra={"fields": fields, "verdict": result.verdict})


def part_line(result: Result) -> str:
    """Lay out one part in columns: seq, part, verdict, confidence, milliseconds, what else is to be said."""
    part = result.part_id or (f"frame {result.camera.frame_id}" if result.camera.frame_id is not None else "-")
    part = part if len(part) <= PART_WIDTH else "…" + part[1 - PART_WIDTH :]
    notes = [result.defect_type or "", result.reason, "late" if result.late else ""]
    note = ", ".join(text for text in notes if text)
    line = (
        f"#{result.seq:<7d} {part:<{PART_WIDTH}s} {result.verdict.upper():<9s} {result.confidence:6.1%} "
        f"{result.latency.total:7.1f} ms  {note}"
    )
    return line.rstrip()


def readable(text: str) -> str:
    """Make a message fit for a terminal: signs that steer it are written out, and nothing is longer than a screen.

    Names in it come from cameras, files and whoever sends commands.
    """
    if len(text) > MOST_SIGNS:
        text = f"{text[:MOST_SIGNS]}… ({len(text)} signs)"
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() or sign == "\n" else _escaped(sign) for sign in text)


def _escaped(sign: str) -> str:
    return sign.encode("unicode_escape").decode("ascii")


class LineFormatter(logging.Formatter):
    """One line per record: local time to the millisecond, level where it matters, message."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__(datefmt="%H:%M:%S")
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """Lay out one record."""
        message = readable(record.getMessage()).replace("\n", "\n    ")
        verdict = getattr(record, "verdict", "")
        if verdict:
            message = self._paint(message, _COLOUR.get(verdict, "0"), verdict.upper())
        elif record.levelno != logging.INFO:
            tag = self._paint(f"{record.levelname:<7s}", _LEVEL_COLOUR.get(record.levelno, "2"))
            message = f"{tag} {record.name.removeprefix('lineward.')}: {message}"
        text = f"{self.formatTime(record, self.datefmt)}.{int(record.msecs):03d}  {message}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text

    def _paint(self, text: str, code: str, word: str | None = None) -> str:
        if not self._colour:
            return text
        if word is None:
            return f"\x1b[{code}m{text}\x1b[0m"
        return text.replace(word, f"\x1b[{code}m{word}\x1b[0m", 1)


class DroppingHandler(logging.Handler):
    """Takes a line at once or not at all: what cannot be told costs the line, not the part.

    Lines that were dropped are counted, and a later one says how many; ``why`` is the reason that it gives.
    """

    def __init__(self, why: str) -> None:
        super().__init__()
        self._why = why
        self.dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Take one record, or count it."""
        try:
            self.tell_dropped()
            taken = self.take(record)
        except Exception:  # noqa: BLE001 - nothing about a line may cost a part; the reader may have hung up
            taken = False
        self.dropped += not taken

    def tell_dropped(self) -> None:
        """Say how many lines were dropped, if that can be told now."""
        if self.dropped:
            text = f"{self.dropped} lines of this log were dropped: {self._why}"
            if self.take(logging.LogRecord("lineward.log", logging.WARNING, "", 0, text, None, None)):
                self.dropped = 0

    def take(self, record: logging.LogRecord) -> bool:
        """Write a record without waiting; return whether it went."""
        raise NotImplementedError


class StreamHandler(DroppingHandler):
    """Writes lines to a terminal, pipe or socket: one that was stopped or is not read holds up nobody."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__("nobody read them")
        self._stream = stream
        self._piece = TERMINAL_PIECE if stream.isatty() else select.PIPE_BUF

    def take(self, record: logging.LogRecord) -> bool:
        """Write as long as nothing has to wait for longer than a moment; return whether all of it went."""
        data = (self.format(record) + "\n").encode(self._stream.encoding or "utf-8", "backslashreplace")
        while data:
            wait_s = 0 if self.dropped else MOMENT_S
            if not select.select([], [self._stream.fileno()], [], wait_s)[1]:
                return False
            data = data[os.write(self._stream.fileno(), data[: self._piece]) :]
        return True


class JournalHandler(DroppingHandler):
    """Speaks journald's native protocol, so that `journalctl VERDICT=fail` works.

    One datagram per record, https://systemd.io/JOURNAL_NATIVE_PROTOCOL/. When the socket is in trouble the line goes
    to stderr with its priority in front, which journald reads as well.
    """

    def __init__(self, path: str = JOURNAL_SOCKET) -> None:
        super().__init__("the journal did not take them")
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)  # a journal that does not keep up must not stop a part

    def take(self, record: logging.LogRecord) -> bool:
        """Send one record to the journal; return whether it went."""
        message = readable(record.getMessage())
        if record.exc_info:
            message += "\n" + logging.Formatter().formatException(record.exc_info)
        fields: Mapping[str, object] = getattr(record, "fields", {})
        return self._send(_PRIORITY.get(record.levelno, 6), message, record.name, fields)

    def _send(self, priority: int, message: str, logger: str, fields: Mapping[str, object]) -> bool:
        """Send one line at once or not at all; return whether it went."""
        datagram = encode_journal(
            {
                "MESSAGE": message,
                "PRIORITY": priority,
                "SYSLOG_IDENTIFIER": "lineward",
                "LOGGER": logger,
                **fields,
            }
        )
        try:
            self._socket.sendto(datagram, self._path)
        except OSError:
            return _write_stderr(f"<{priority}>{message}\n")
        return True

    def close(self) -> None:
        """Close the socket."""
        self.tell_dropped()
        self._socket.close()
        super().close()


def _write_stderr(line: str) -> bool:
    """Write to stderr unless that had to wait; under systemd its other end is the same journald, and it blocks."""
    try:
        ready = bool(select.select([], [sys.stderr.fileno()], [], 0)[1])
    except (OSError, ValueError):  # no file, so nothing to wait for
        ready = True
    try:
        if ready:
            sys.stderr.write(line)
    except OSError:
        return False
    return ready


def encode_journal(fields: Mapping[str, object]) -> bytes:
    """Encode fields for journald; a value with a line break goes with its length in front."""
    parts: list[bytes] = []
    for name, value in fields.items():
        data = str(value).encode("utf-8", "replace")
        if b"\n" in data:
            parts += [name.encode(), b"\n", len(data).to_bytes(8, "little"), data, b"\n"]
        else:
            parts += [name.encode(), b"=", data, b"\n"]
    return b"".join(parts)


def _stderr_is_journal() -> bool:
    """Tell whether stderr is the stream that systemd connected to the journal ($JOURNAL_STREAM, systemd.exec(5))."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    if not inode:
        return False
    try:
        stat = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return (str(stat.st_dev), str(stat.st_ino)) == (device, inode)


def _may_block(stream: TextIO) -> bool:
    """Tell whether writing may have to wait for a reader."""
    try:
        return not S_ISREG(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):  # no file, such as text in memory
        return False


def _wants_colour(stream: TextIO) -> bool:
    return stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
