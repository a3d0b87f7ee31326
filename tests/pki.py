"""A certificate authority for one test, made with the `openssl` command."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

OPENSSL = shutil.which("openssl")
NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")

needs_openssl = pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed")


def openssl(*arguments: object) -> None:
    done = subprocess.run([str(OPENSSL), *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Authority:
    """Signs certificates; its own is ``ca.crt`` in its folder."""

    def __init__(self, folder: Path, name: str = "Test CA") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._key = folder / "ca.key"
        self.certificate = folder / "ca.crt"
        openssl("req", "-x509", *NEW_KEY, "-keyout", self._key, "-out", self.certificate, "-days", 2,
                "-subj", f"/CN={name}")  # fmt: skip

    def issue(self, name: str, *, names: str = "DNS:localhost,IP:127.0.0.1", days: int = 1) -> tuple[Path, Path]:
        """Make a key and a certificate for it; with ``days=-1`` it has expired. Returns certificate and key."""
        certificate, key, request = (self._folder / f"{name}.{kind}" for kind in ("crt", "key", "csr"))
        openssl("req", "-new", *NEW_KEY, "-keyout", key, "-out", request, "-subj", f"/CN={name}",
                "-addext", f"subjectAltName={names}")  # fmt: skip
        openssl("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial",
                "-copy_extensions", "copy", "-days", days, "-out", certificate)  # fmt: skip
        return certificate, key
