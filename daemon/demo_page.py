"""The review page beside the demo: a process of its own, as on a real station, and one person who may use it."""

from __future__ import annotations

import json
import secrets
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from lineward.daemon.review import write_whole
from lineward.daemon.web.people import People

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from typing import Any

NAME = "demo"
STOP_S = 4.0


@contextmanager
def review_page(config_file: Path, sections: Mapping[str, Mapping[str, Any]], root: Path) -> Iterator[str]:
    """Serve the page until the end of the block; yields how to get in, in words.

    Parameters
    ----------
    config_file
        Where the configuration is written that both processes share.
    sections
        Its sections. The page's port is added.
    root
        The storage folder.
    """
    port = _free_port()
    write_whole(config_file, _toml({**sections, "review": {**sections.get("review", {}), "port": port}}).encode())
    password = secrets.token_urlsafe(6)
    people = People(root)
    try:
        people.add(NAME, "engineer", password)
    finally:
        people.close()
    code = f"from lineward.daemon.cli import main; main({['review', '--config', str(config_file)]!r})"
    page = subprocess.Popen(  # noqa: S603 - our own program; Ctrl-C in a terminal reaches it too, and it ends by itself
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{port}, sign in as {NAME} with password {password}"
    finally:
        page.terminate()
        try:
            page.wait(STOP_S)
        except subprocess.TimeoutExpired:
            page.kill()
            page.wait()
        with suppress(OSError):
            config_file.unlink()


def _toml(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """Write sections of strings, numbers and booleans, for which JSON's notation is TOML's; None is left out."""
    lines = []
    for name, section in sections.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in section.items() if value is not None]
    return "\n".join([*lines, ""])


def _free_port() -> int:
    """Return the page's usual port, or another one when that is taken."""
    for wanted in (8430, 0):
        with socket.socket() as sock, suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", wanted))
            return int(sock.getsockname()[1])
    raise OSError("no free port for the review page")
