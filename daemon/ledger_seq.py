"""The number that must not be used twice, in a small file beside the ledger."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
from pathlib import Path

from lineward.daemon.ledger_file import LedgerError

OPEN, GAP, CLEAN = "open", "gap", "clean"
"""In use; in use, and numbers were left out before it; closed in order."""


def boot_id() -> str:
    """Return the kernel's name for the time since it was started; a dash where there is none."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip() or "-"
    return "-"


def beside_the_disk(path: Path) -> Path:
    """Return where the number goes while its own file cannot be written: memory that outlives the process.

    systemd's folder for the service, which the units keep over a restart, or else the memory that all share.
    """
    folder = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0] or "/dev/shm"  # noqa: S108 - `_open_aside` looks whose it is
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]
    return Path(folder, f"lineward-{name}.seq")


class SeqFile:
    """Remembers the last number given out, in a small file beside the database, and locks the folder for one process.

    The database knows the number too. The file is for the days when the database is lost, or when results had to stay
    in memory: a number that is used twice could let a part through, a gap cannot. One line of 64 bytes is overwritten
    in place for each result (2 us), which works on a full disk as well. On a disk that became read-only it does not:
    then the line goes into memory that outlives the process (`beside_the_disk`), until the disk takes it again.

    Parameters
    ----------
    again
        This process had it open before: what lies beside the disk is its own.

    Raises
    ------
    LedgerError
        Another process uses this folder.
    OSError
        The file can be neither written nor read.
    """

    def __init__(self, path: Path, *, again: bool = False) -> None:
        self._boot = boot_id()
        self._aside = beside_the_disk(path)
        self._aside_fd: int | None = None
        self.last = 0
        self.power_cut = False
        self.mark = CLEAN
        """How whoever used it before left it: not clean when he was killed, or lost his power."""
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
            self.writable = True
        except OSError:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self.writable = False
        try:
            self._lock(path)
            self._read(again=again)
        except BaseException:
            self.close()
            raise

    def _lock(self, path: Path) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LedgerError(
                f"{path.parent}: another Lineward writes here; stop it, or name another storage root"
            ) from error

    def _read(self, *, again: bool) -> None:
        fields = _fields(self._fd)
        if fields is not None:
            self.last, boot, self.mark = fields
            self.power_cut = boot != self._boot and self.mark != CLEAN
        if self._open_aside(os.O_RDWR) and self._aside_fd is not None and not again:
            aside = _fields(self._aside_fd)
            if aside is not None and aside[1] == self._boot and aside[0] > self.last:
                self.last, _, self.mark = aside
                self.power_cut = False  # it was written after that

    def _open_aside(self, flags: int) -> bool:
        """Open the file beside the disk, if it is ours: anybody may put one there."""
        if self._aside_fd is None:
            with contextlib.suppress(OSError):
                fd = os.open(self._aside, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
                found = os.fstat(fd)
                if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid():
                    self._aside_fd = fd
                else:
                    os.close(fd)
        return self._aside_fd is not None

    def write(self, seq: int, mark: str = OPEN) -> None:
        """Overwrite the number in place; trouble is not told here, because the database is the first to know of it."""
        line = f"{seq:>18d} {self._boot:<36s} {mark:<7s}\n".encode()
        if self.writable:
            with contextlib.suppress(OSError):
                os.pwrite(self._fd, line, 0)
                if self._aside_fd is not None:
                    self._forget_aside()
                return
        if self._open_aside(os.O_RDWR | os.O_CREAT) and self._aside_fd is not None:
            with contextlib.suppress(OSError):
                os.pwrite(self._aside_fd, line, 0)

    def _forget_aside(self) -> None:
        if self._aside_fd is not None:
            os.close(self._aside_fd)
            self._aside_fd = None
            self._aside.unlink(missing_ok=True)

    def sync(self) -> None:
        """Wait until the number is on the disk."""
        if self.writable:
            os.fsync(self._fd)

    def close(self) -> None:
        """Give the folder free."""
        for fd in (self._fd, self._aside_fd):
            if fd is not None:
                os.close(fd)


def _fields(fd: int) -> tuple[int, str, str] | None:
    fields = os.pread(fd, 64, 0).decode("ascii", "replace").split()
    if len(fields) != 3 or not fields[0].isdigit():
        return None
    return int(fields[0]), fields[1], fields[2]
