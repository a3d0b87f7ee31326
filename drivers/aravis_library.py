"""Finds the Aravis library: Debian's packages, used from an interpreter that does not see Debian's Python packages."""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lineward.drivers.camera import CameraNotFoundError
from lineward.extras import how_to_add

if TYPE_CHECKING:
    from collections.abc import Sequence

INSTALL = "sudo apt-get install gir1.2-aravis-0.8 python3-gi"
PACKAGE = "'pygobject<3.52'"
_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
SYSTEM_FOLDERS = (
    Path("/usr/lib/python3/dist-packages"),  # Debian, Ubuntu
    Path(f"/usr/lib64/python{_VERSION}/site-packages"),  # Fedora
    Path(f"/usr/lib/python{_VERSION}/site-packages"),  # Arch
)


@functools.cache
def load() -> tuple[Any, Any]:
    """Return the modules Aravis and GLib.

    A virtual environment does not see the system's PyGObject, and building it anew needs a compiler and the headers of
    four libraries. So the one package ``gi`` is taken from the system's folder when it was built for this Python;
    the folder itself never joins ``sys.path``, so that no other package of the system is taken for one of ours.

    Raises
    ------
    CameraNotFoundError
        A package is not installed, or was built for another Python; the message names the command that helps.
    """
    with warnings.catch_warnings():  # PyGObject 3.42 uses an import hook that Python 3.11 warns of
        warnings.simplefilter("ignore")
        gi = _bindings(SYSTEM_FOLDERS)
        try:
            gi.require_version("Aravis", "0.8")
            modules = importlib.import_module("gi.repository.Aravis"), importlib.import_module("gi.repository.GLib")
        except (ValueError, ImportError, AttributeError) as error:
            raise CameraNotFoundError(f"driver aravis: {error}; install the library: {INSTALL}") from error
    return modules


def _bindings(folders: Sequence[Path]) -> Any:
    """Import ``gi`` from this environment, or else from the first of the folders that has one for this Python."""
    if "gi" in sys.modules or importlib.util.find_spec("gi") is not None:
        return importlib.import_module("gi")
    there = [folder / "gi" for folder in folders if (folder / "gi" / "__init__.py").is_file()]
    for package in there:
        if any((package / f"_gi{suffix}").is_file() for suffix in importlib.machinery.EXTENSION_SUFFIXES):
            return _import_from(package)
    if there:
        built = ", ".join(sorted(file.name for package in there for file in package.glob("_gi.*")))
        raise CameraNotFoundError(
            f"driver aravis: PyGObject in {there[0]} is built for another Python ({built}) than this one ({_VERSION}); "
            f"run Lineward with the system's python3, or add it: {how_to_add(PACKAGE)}"
        )
    raise CameraNotFoundError(f"driver aravis: PyGObject is not installed: {INSTALL}")


def _import_from(package: Path) -> Any:
    spec = importlib.util.spec_from_file_location(
        "gi", package / "__init__.py", submodule_search_locations=[str(package)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gi"] = module
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        del sys.modules["gi"]
        raise CameraNotFoundError(f"driver aravis: {package} cannot be loaded: {error}; install {INSTALL}") from error
    return module
