"""What is said about a package that is not installed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import TYPE_CHECKING

from lineward.extras import how_to_add

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from pathlib import Path

    import pytest


def test_with_pip_it_is_pips_own_command() -> None:
    """Rule: what is said can be done as it stands: this command exists here."""
    command = how_to_add("torch").split()
    assert command[-2:] == ["install", "torch"]
    said = subprocess.run([*command[:-2], "--version"], capture_output=True, text=True, check=True)
    assert said.stdout.startswith("pip ")


def test_a_station_without_pip_takes_the_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The installer makes an environment without pip: then Debian's pip is pointed at it."""
    real = importlib.util.find_spec

    def without_pip(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "pip" else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without_pip)
    said = how_to_add("torch")
    assert said == f"sudo apt install python3-pip && sudo python3 -m pip --python {sys.executable} install torch"
    # It works with an environment as the installer makes it: this is what is in there, and not what is in ours.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(tmp_path / "bare" / "bin" / "python"), "freeze", "--all"]
    assert not subprocess.run(pip, capture_output=True, text=True, check=True).stdout
