"""The files of the model store: names, pointer, audit, and how they are changed so that a kill leaves them whole.

`lineward.models.store` says what lies where. A decision is recorded before it is carried out; files are replaced in one
step; those who change something take turns by a lock that the kernel frees when a process dies.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import socket
import tempfile
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lineward.models.naming import VERSION, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

CURRENT = "current"
NO_VERSION = "no version"
"""In the record of decisions, where a product is found without one; versions have no spaces."""
AUDIT = "audit.jsonl"
MAX_HISTORY = 100
"""Promotions that `current` remembers; the audit keeps all."""
LOCK_S = 10.0
"""How long to wait for another process that is changing the store; a promotion takes milliseconds."""

_UNFINISHED = ".storing"


class PointerError(StoreError):
    """`current` of a product is no list of versions; a promotion of that product writes a new one."""


def bundle_path(root: Path, product: str, version: str) -> Path:
    """Return where a version lies, there or not."""
    return root / "models" / product / f"{version}.lward"


def digest_path(path: Path) -> Path:
    """Return where a bundle's digest lies."""
    return path.with_name(path.name.removesuffix(".lward") + ".sha256")


def folders(models: Path) -> list[Path]:
    """Return the folders of the products."""
    try:
        return [path for path in models.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except FileNotFoundError:
        return []


def read_pointer(folder: Path) -> list[str]:
    """Return the versions in `current` of a product, the one that judges first.

    Raises
    ------
    PointerError
        The file is damaged.
    StoreError
        It cannot be read.
    """
    try:
        text = (folder / CURRENT).read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StoreError(f"{folder / CURRENT}: cannot be read: {error.strerror or error}") from error
    versions = text.split()
    if not all(VERSION.fullmatch(version) for version in versions):
        raise PointerError(
            f"{folder / CURRENT}: damaged, not a list of versions; promote one, which writes it anew: "
            f"`lineward models promote {folder.name} VERSION`"
        )
    return versions


def write_pointer(folder: Path, versions: list[str]) -> None:
    """Replace `current` in one step."""
    write_whole(folder / CURRENT, "".join(f"{version}\n" for version in versions[:MAX_HISTORY]).encode())


def write_whole(path: Path, data: bytes) -> None:
    """Write a file to the disk itself, whole or not at all."""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_UNFINISHED)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error.strerror or error}") from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Be the only one who changes the store, and clear away what a killed process left half-written."""
    models = root / "models"
    try:
        models.mkdir(parents=True, exist_ok=True)
        handle = os.open(models / ".lock", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StoreError(
            f"{models}: cannot be written to: {error.strerror or error}; run this as the user who owns it"
        ) from error
    try:
        deadline = time.monotonic() + LOCK_S
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise StoreError(
                        f"{models}: another process has been changing the store for {LOCK_S:.0f} s; try again"
                    ) from error
                time.sleep(0.02)
        for leftover in models.glob(f"*/.*{_UNFINISHED}"):
            leftover.unlink(missing_ok=True)
        _settle(root)
        yield
    finally:
        os.close(handle)


def append_audit(root: Path, action: str, product: str, version: str, who: str | None, **more: object) -> None:
    """Append a decision before it is carried out: none is ever carried out unrecorded."""
    record = {
        "when": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "who": who or user(),
        "what": action,
        "product": product,
        "version": version,
        **more,
    }
    path = root / "models" / AUDIT
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            size = os.fstat(handle).st_size
            cut_off = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
            os.write(handle, (b"\n" if cut_off else b"") + json.dumps(record, ensure_ascii=False).encode() + b"\n")
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error.strerror or error}") from error


def _settle(root: Path) -> None:
    """Record where `current` is not what was decided last: a killed process, or a pointer changed by hand.

    A pointer that cannot be read is left to whoever changes that product: it keeps no other one from being changed.
    """
    decided: dict[str, str] = {}
    for record in audit(root):
        if record.get("what") in {"promote", "rollback", "found"}:
            decided[str(record.get("product"))] = str(record.get("version"))
    for product, version in decided.items():
        try:
            versions = read_pointer(root / "models" / product)
        except StoreError:
            continue
        found = versions[0] if versions else NO_VERSION
        if found != version:
            append_audit(root, "found", product, found, "unknown", decided=version)


def audit(root: Path) -> list[dict[str, Any]]:
    """Return the decisions, oldest first; a line that a crash of the machine cut off is left out."""
    try:
        lines = (root / "models" / AUDIT).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            found.append(record)
    return found


def user() -> str:
    """Return who is logged in, also behind sudo, with the machine's name."""
    name = os.environ.get("SUDO_USER")
    if not name:
        try:
            name = getpass.getuser()
        except (KeyError, OSError):  # a container's user without an entry in /etc/passwd
            name = str(os.getuid())
    return f"{name}@{socket.gethostname()}"
