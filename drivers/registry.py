"""Drivers by name. A driver's module is imported when it is asked for: a folder needs no GenICam library."""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lineward.drivers.camera import Camera, CameraInfo

_DRIVERS = {
    "simulated": ("lineward.drivers.simulated", "SimulatedCamera"),
    "folder": ("lineward.drivers.folder", "FolderCamera"),
    "genicam": ("lineward.drivers.genicam", "GenicamCamera"),
    "aravis": ("lineward.drivers.aravis", "AravisCamera"),
}
NAMES = tuple(_DRIVERS)


def create(driver: str, options: Mapping[str, object]) -> Camera:
    """Make a camera that is not open yet.

    Parameters
    ----------
    driver
        One of `NAMES`.
    options
        Keyword arguments of the driver's class.

    Raises
    ------
    ValueError
        The driver or one of its options is not known, or an option's value is impossible.
    """
    maker: Any = getattr(_module(driver), _DRIVERS[driver][1])
    signature = inspect.signature(maker)
    try:
        signature.bind(**options)
    except TypeError as error:
        raise ValueError(
            f"camera driver {driver!r}: {error}; its options are {', '.join(signature.parameters)}"
        ) from error
    camera: Camera = maker(**options)
    return camera


def discover(driver: str, options: Mapping[str, object]) -> list[CameraInfo]:
    """List the cameras that the driver can see, without disturbing one that is open.

    Drivers that cannot list cameras describe the one that their options make.

    Raises
    ------
    ValueError
        As `create`.
    CameraError
        Nothing can be listed; the message says why and what to do.
    """
    find: Any = getattr(_module(driver), "discover", None)
    if find is not None:
        wanted = inspect.signature(find).parameters
        found: list[CameraInfo] = find(**{name: value for name, value in options.items() if name in wanted})
        return found
    camera = create(driver, options)
    try:
        return [camera.open()]
    finally:
        camera.close()


def _module(driver: str) -> object:
    if driver not in _DRIVERS:
        raise ValueError(f"camera driver {driver!r} is not known; use one of {', '.join(NAMES)}")
    return importlib.import_module(_DRIVERS[driver][0])
