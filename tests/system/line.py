"""The installed command `lineward` as its user meets it: started as a process, watched, and ended by its pid."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.broker import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.broker import Subscriber

LINEWARD = Path(sys.executable).with_name("lineward")
BASE = "lineward/plant/line1/cam1"
LONG = os.environ.get("LINEWARD_LONG") == "1"


def environment(folder: Path) -> dict[str, str]:
    """Nothing of this machine's user: cache and temporary files below ``folder``, no colours, no journal.

    Official builds of ONNX Runtime from 1.29 on report to their maker unless told not to: tests stay on this machine.
    """
    temporary = folder / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if name not in {"JOURNAL_STREAM", "FORCE_COLOR"}}
    return {
        **kept,
        "XDG_CACHE_HOME": str(folder / "cache"),
        "TMPDIR": str(temporary),
        "NO_COLOR": "1",
        "ORT_DISABLE_TELEMETRY": "1",
    }


def call(
    folder: Path, *arguments: object, timeout_s: float = 100.0, without: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end and return what it said; variables of ``without`` are not in its environment."""
    return subprocess.run(
        [str(LINEWARD), *map(str, arguments)],
        cwd=folder,
        env={name: value for name, value in environment(folder).items() if name not in without},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def figure(text: str) -> None:
    """Tell a measured figure; `pytest -rP` or `-s` shows it."""
    sys.stdout.write(f"\nfigure: {text}\n")


def toml(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """Write sections of strings, numbers, booleans and lists: for these, JSON's notation is TOML's."""
    lines: list[str] = []
    for name, section in sections.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in section.items()]
    return "\n".join([*lines, ""])


def children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                found += map(int, (task / "children").read_text().split())
    return found


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def session_pids(session: int) -> list[int]:
    """Every living process of a session: what a daemon started in its own session has left behind."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(stat.parent.name))
    return found


def memory_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def shared_memory() -> set[str]:
    """Names in /dev/shm that a program of ours could have made."""
    return {name for name in os.listdir("/dev/shm") if name.startswith(("lineward", "psm_", "mp-", "sem."))}  # noqa: S108, PTH208


class Service:
    """A command of `lineward` that runs until it is told to stop, in a session of its own as under systemd."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        self.folder = folder
        self._arguments = [str(argument) for argument in arguments]
        self._process: subprocess.Popen[bytes] | None = None
        self._log = folder / "stderr.log"
        self.started_s = 0.0

    def start(self) -> Service:
        assert self._process is None
        with self._log.open("ab") as log:
            self.started_s = time.monotonic()
            self._process = subprocess.Popen(
                [str(LINEWARD), *self._arguments],
                cwd=self.folder,
                env=environment(self.folder),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def lines(self, pattern: str) -> list[str]:
        return [line for line in self.log.splitlines() if re.search(pattern, line)]

    def wait_log(self, pattern: str, timeout_s: float = 20.0, *, times: int = 1) -> None:
        def said() -> bool:
            if len(self.lines(pattern)) >= times:
                return True
            assert self._process is None or self._process.poll() is None, f"ended early:\n{self.log}"
            return False

        try:
            wait_until(said, timeout_s, f"log line {pattern!r}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log}") from error

    def wait(self, timeout_s: float) -> int:
        """Wait for the end and return the exit code."""
        assert self._process is not None
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"still running after {timeout_s} s\n{self.log}") from error
        self._process = None
        return code

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, float]:
        """Send a signal, Ctrl-C to the whole group as a terminal does; return exit code and seconds it took."""
        began = time.monotonic()
        if number == signal.SIGINT:
            os.killpg(self.pid, number)
        else:
            os.kill(self.pid, number)
        return self.wait(15), time.monotonic() - began

    def kill(self) -> None:
        """End it, and what it may have left behind, without asking."""
        if self._process is not None:
            session = self._process.pid
            self._process.kill()
            self._process.wait(10)
            self._process = None
            for pid in session_pids(session):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


class Line(Service):
    """`lineward run` with a configuration of its own."""

    def __init__(
        self,
        folder: Path,
        *,
        model: Path,
        port: int,
        camera: Mapping[str, Any],
        arguments: Sequence[object] = (),
        **sections: Mapping[str, Any],
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.config = folder / "line.toml"
        self.config.write_text(
            toml(
                {
                    "camera": camera,
                    **sections,
                    "inspection": {"model": str(model), **sections.get("inspection", {})},
                    "mqtt": {"port": port, **sections.get("mqtt", {})},
                    "storage": {"root": "storage", **sections.get("storage", {})},
                }
            ),
            encoding="utf-8",
        )
        self.storage = folder / sections.get("storage", {}).get("root", "storage")
        super().__init__(folder, "run", "--config", self.config, *arguments)

    def camera_pid(self) -> int | None:
        """Find the camera process among the daemon's children, as `ps` would."""
        for pid in children(self.pid):
            with suppress(OSError):
                if b"lineward.drivers.worker" in Path(f"/proc/{pid}/cmdline").read_bytes() and is_running(pid):
                    return pid
        return None

    def wait_camera_pid(self, timeout_s: float = 15.0, *, other_than: int | None = None) -> int:
        wait_until(lambda: self.camera_pid() not in {None, other_than}, timeout_s, "camera process")
        pid = self.camera_pid()
        assert pid is not None
        return pid

    def rows(self) -> list[dict[str, Any]]:
        """Everything in the ledger, in the order of its numbers."""
        path = self.storage / "ledger.sqlite3"
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as db:
            db.row_factory = sqlite3.Row
            return [dict(row) for row in db.execute("SELECT * FROM results ORDER BY seq")]

    def memory_mb(self) -> float:
        """Resident memory of the inspection process and its camera process together."""
        camera = self.camera_pid()
        assert camera is not None
        return memory_mb(self.pid) + memory_mb(camera)


def heard_in_order(hear: Subscriber, rows: list[dict[str, Any]]) -> None:
    """Everything that the broker acknowledged arrives here, each row once and in order; what it did not, waits."""
    acknowledged = {row["seq"] for row in rows if row["acked"]}
    wait_until(lambda: acknowledged <= set(hear.seqs()), 10, "what the broker has is heard")
    assert hear.seqs() == [row["seq"] for row in rows][: len(hear.seqs())]
    assert len(rows) - len(acknowledged) <= 2, "a stop waits for the broker's word"
