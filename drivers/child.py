"""The operating system's side of a camera process: started, looked at, and ended, by its pid."""

from __future__ import annotations

import mmap
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from lineward.drivers import wire
from lineward.drivers.spawn import SOCKET, spawn

_LAST_WAIT_S = 1.0
_LOOK_S = 0.005


class Child:
    """A camera process that runs, and our end of the connection to it.

    The thread that makes it must live as long as it: the kernel kills the child when the thread that started it ends
    (PR_SET_PDEATHSIG), so that none is ever left behind.
    """

    def __init__(self) -> None:
        self._code: int | None = None
        self.wire, theirs = wire.Wire.pair()
        with theirs:
            command = [sys.executable, "-m", "lineward.drivers.worker", str(SOCKET), str(os.getpid())]
            try:
                self.pid = spawn(command, theirs.fileno())
            except BaseException:
                self.wire.close()
                raise

    def resident_mb(self) -> float:
        """Return its resident size in megabytes, 0 when it has ended."""
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1])
        except (OSError, IndexError):
            return 0.0
        return pages * mmap.PAGESIZE / 1e6

    def obituary(self) -> str:
        """Say how it ended, with the signal's name: SIGSEGV points at the vendor's producer."""
        self._ended_within(_LAST_WAIT_S)
        if self._code is not None and self._code < 0:
            return f"the camera process (pid {self.pid}) was ended by {signal.Signals(-self._code).name}"
        return f"the camera process (pid {self.pid}) ended with exit code {self._code}"

    def end(self, wait_s: float) -> None:
        """Let it go by itself for ``wait_s``, then kill it."""
        self.wire.close()
        if not self._ended_within(wait_s):
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._ended_within(_LAST_WAIT_S)  # one in uninterruptible sleep stays behind; go on

    def _ended_within(self, wait_s: float) -> bool:
        """Wait for the end and take the exit code; until then the pid belongs to nobody else."""
        deadline = time.monotonic() + wait_s
        while self._code is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # somebody else in this program waits for all children
                self._code = 0
                break
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() >= deadline:
                return False
            else:
                time.sleep(_LOOK_S)
        return True
