"""`lineward support-bundle`: what a helper needs, in one file. Secrets are taken out of everything, images stay here.

A part that cannot be had is named in the file and leaves the others alone.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import os
import platform
import re
import shutil
import subprocess
import tarfile
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lineward import __version__
from lineward.daemon.confidential import CONFIDENTIAL, HIDDEN, IN_URL, is_secret
from lineward.daemon.config import Config, ConfigError, load_config
from lineward.daemon.doctor import examine
from lineward.daemon.endpoint import CREDENTIAL
from lineward.daemon.ledger_read import LedgerReader
from lineward.daemon.top import look
from lineward.daemon.watch.reference import FOLDER as COMMISSIONING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

LOG_LINES = 5000
JOURNAL_S = 30.0
ROWS = 500
MOST_LISTED = 5000
LEAST_SECRET = 4
"""A shorter text is no secret worth hiding, and would be found in every other word."""

_SECRET = re.compile(
    rf"""(?ix)(?P<key>(?<![\w.-])[\w.-]*{CONFIDENTIAL}[\w.-]*(?<!_file)["']?[^\S\n]*=[^\S\n]*)
    (?P<value>(?:"{{3}}(?s:.*?)(?:"{{3}}|\Z) | '{{3}}(?s:.*?)(?:'{{3}}|\Z) | \[[^\]]*)?[^\n]*)"""
)
"""A secret key and all that follows in its line: where a value ends, nobody knows in TOML that is broken."""

_STRING = re.compile(r"""(?s)"{3}(.+?)"{3}|'{3}(.+?)'{3}|"((?:\\.|[^"\\])+)"|'([^']+)'""")


def write_bundle(config: Path, path: Path, *, images: int = 0) -> Iterator[str]:
    """Write the bundle; yield a line for each part.

    Raises
    ------
    OSError
        The file cannot be written; none is left behind.
    """
    collected, secrets = collect(config, images=images)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(handle, "wb") as raw, tarfile.open(fileobj=raw, mode="w:gz") as archive:
            for name, data in collected.items():
                clean = data if name.startswith("images/") else without(data, secrets)
                info = tarfile.TarInfo(f"lineward-support/{name}")
                info.size, info.mtime = len(clean), int(time.time())
                archive.addfile(info, io.BytesIO(clean))
                yield f"{name}: {len(clean)} bytes"
    except OSError as error:
        path.unlink(missing_ok=True)
        what = f"{error.strerror}; make room there, or name a file on another disk with --out"
        raise OSError(error.errno, what, str(path)) from error
    yield f"{path} is written; look into it before you send it"


def collect(path: Path, *, images: int) -> tuple[dict[str, bytes], list[str]]:
    """Return all parts by name, and the secrets that must not be in them."""
    parts: dict[str, bytes] = {}
    secrets: list[str] = []

    def take(name: str, make: Callable[[], bytes]) -> None:
        try:
            parts[name] = make()
        except Exception as error:  # noqa: BLE001 - one part that cannot be had is said in the file
            parts[f"{name}.missing.txt"] = f"{type(error).__name__}: {error}\n".encode()

    take("versions.json", lambda: as_json(versions()))
    take("config.toml", lambda: config_text(path, secrets))
    config: Config | None = None
    try:
        config = load_config(path)
    except ConfigError as error:
        parts["config-error.txt"] = f"{error}\n".encode()
    take("log.txt", journal)
    if config is None:
        return parts, secrets
    loaded, root = config, config.storage.root
    secrets += file_secrets(loaded)
    take("stats.json", lambda: as_json(look(loaded)))
    take("doctor.json", lambda: as_json([finding.to_json() for finding in examine(loaded, path)]))
    take("ledger.json", lambda: as_json(ledger(root)))
    take("storage.txt", lambda: listing(root))
    for file in sorted((root / COMMISSIONING).glob("*/*.json"))[:50]:
        take(file.relative_to(root).as_posix(), file.read_bytes)
    for number, file in enumerate(newest_images(root, images)):
        take(f"images/{number:04d}-{file.name}", file.read_bytes)
    return parts, secrets


def as_json(value: Any) -> bytes:
    """Return readable JSON."""
    return json.dumps(value, indent=1, default=str).encode()


def versions() -> dict[str, Any]:
    """Say what runs here: Lineward, Python, packages, system."""
    packages = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    release: dict[str, str] = {}
    with contextlib.suppress(OSError):
        release = platform.freedesktop_os_release()
    return {
        "lineward": __version__,
        "python": platform.python_version(),
        "system": release.get("PRETTY_NAME", platform.system()),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "packages": dict(sorted(packages.items())),
    }


def config_text(path: Path, secrets: list[str]) -> bytes:
    """Read the configuration with every secret taken out; what was taken out is added to ``secrets``."""
    text = path.read_bytes().decode("utf-8", "replace")
    with contextlib.suppress(tomllib.TOMLDecodeError):
        secrets += written(found_in(tomllib.loads(text)))

    def hide(match: re.Match[str]) -> str:
        value = match["value"].strip()
        string = _STRING.match(value)
        bare = re.split(r"\s#", value)[0].strip("\"' \t")
        secrets.extend(written([string[string.lastindex or 0] if string else bare]))
        return f'{match["key"]}"{HIDDEN}"'

    def hide_in_url(match: re.Match[str]) -> str:
        secrets.append(match["value"])
        return match["start"] + HIDDEN

    return IN_URL.sub(hide_in_url, _SECRET.sub(hide, text)).encode()


def found_in(value: Any, *, secret: bool = False) -> Iterator[str]:
    """Yield every text and number that stands under a secret key, at any depth."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield from found_in(below, secret=secret or is_secret(key))
    elif isinstance(value, list):
        for below in value:
            yield from found_in(below, secret=secret)
    elif secret and not isinstance(value, bool):
        yield str(value)


def written(secrets: Iterable[str]) -> list[str]:
    """Return each line of the secrets as it is, and as logs, JSON and TOML write it."""
    lines = [line.strip() for secret in secrets for line in secret.splitlines()]
    return [form for line in lines for form in (line, repr(line)[1:-1], json.dumps(line)[1:-1])]


def file_secrets(config: Config) -> list[str]:
    """Return the password at the broker, so that it can be taken out of the log."""
    file = config.mqtt.password_file
    if file is None or str(file).startswith(CREDENTIAL):
        return []
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return written([file.read_text(encoding="utf-8")])
    return []


def without(data: bytes, secrets: list[str]) -> bytes:
    """Take every secret out of a text."""
    for secret in sorted(secrets, key=len, reverse=True):  # one may be the beginning of another
        if len(secret) >= LEAST_SECRET:
            data = data.replace(secret.encode(), HIDDEN.encode())
    return data


def journal() -> bytes:
    """Return the newest lines of the log of all our units."""
    program = shutil.which("journalctl")
    if program is None:
        raise FileNotFoundError("journalctl is not installed: add the log of the station by hand")
    done = subprocess.run(  # noqa: S603 - found on the path, nothing from outside in it
        [program, "--no-pager", "--output=short-iso", f"--lines={LOG_LINES}", "--unit=lineward*"],
        capture_output=True,
        timeout=JOURNAL_S,
        check=False,
    )
    if done.returncode:
        raise PermissionError(done.stderr.decode("utf-8", "replace").strip() or "journalctl failed; run it with sudo")
    return done.stdout


def ledger(root: Path) -> dict[str, Any]:
    """Return counts and the newest answers."""
    reader = LedgerReader(root / "ledger.sqlite3")
    last = reader.highest_seq()
    rows = [
        {
            "seq": row.seq,
            "verdict": row.verdict,
            "reason": row.reason,
            "late": row.late,
            "acked": row.acked,
            "trigger_ns": row.trigger_ns,
        }
        for row in reader.rows(after_seq=max(0, last - ROWS))
    ]
    return {"schema": reader.schema(), "last_seq": last, "counts": reader.counts(), "newest": rows}


def listing(root: Path) -> bytes:
    """List the storage folder: size, owner, rights and name of each file."""
    lines: list[str] = []
    for place, _, files in os.walk(root):
        for name in sorted(files):
            if len(lines) >= MOST_LISTED:
                return "\n".join([*lines, "... and more"]).encode()
            file = Path(place, name)
            with contextlib.suppress(OSError):
                facts = file.lstat()
                lines.append(f"{facts.st_size:>12d} {facts.st_uid:>6d} {facts.st_mode & 0o7777:04o} {file}")
    return "\n".join(lines).encode()


def newest_images(root: Path, count: int) -> list[Path]:
    """Return the newest kept images."""
    if count == 0:
        return []
    ages: list[tuple[float, Path]] = []
    for file in (root / "images").rglob("*.png"):
        with contextlib.suppress(OSError):  # the quota takes some away meanwhile
            ages.append((file.stat().st_mtime, file))
    return [file for _, file in sorted(ages, reverse=True)[:count]]
