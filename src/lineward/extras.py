"""How to add a package that Lineward does without: said when somebody asks for what needs it."""

from __future__ import annotations

import importlib.util
import sys


def how_to_add(package: str) -> str:
    """Return the command that adds a package to this installation; an installed station has no pip of its own."""
    if importlib.util.find_spec("pip"):
        return f"{sys.executable} -m pip install {package}"
    return f"sudo apt install python3-pip && sudo python3 -m pip --python {sys.executable} install {package}"
