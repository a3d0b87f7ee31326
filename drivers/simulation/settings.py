"""The features of the simulated camera: ranges and entries, written and read back as on a real one.

``Product`` is no GenICam feature: it changes what comes along the belt, as a changeover of the line does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lineward.drivers.camera import CameraSettingError
from lineward.drivers.simulation.products import PRODUCTS

if TYPE_CHECKING:
    from lineward.drivers.camera import Setting

NOMINAL_EXPOSURE_US = 5000.0
"""Exposure at which the simulated light is set up: metal lies in the upper middle of the range."""


@dataclass(frozen=True)
class Range:
    """A number from ``low`` to ``high``, whole numbers only where ``whole``."""

    low: float
    high: float
    unit: str
    whole: bool = False

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g} {self.unit}".strip()


@dataclass(frozen=True)
class Entries:
    """One of a few words."""

    names: tuple[str, ...]

    def __str__(self) -> str:
        return ", ".join(self.names)


FEATURES: dict[str, Range | Entries] = {
    "Width": Range(32, 8192, "px", whole=True),
    "Height": Range(32, 8192, "px", whole=True),
    "PixelFormat": Entries(("Mono8", "RGB8")),
    "ExposureTime": Range(20, 1_000_000, "us"),
    "Gain": Range(0, 24, "dB"),
    "AcquisitionFrameRate": Range(0.1, 1000, "Hz"),
    "Product": Entries(tuple(PRODUCTS)),
}


def checked(camera: str, name: str, value: Setting) -> Setting:
    """Return a setting as the camera would store it.

    Raises
    ------
    CameraSettingError
        The feature does not exist or refuses the value.
    """
    feature = FEATURES.get(name)
    if feature is None:
        raise CameraSettingError(f"{camera}: no feature {name!r}; there are {', '.join(FEATURES)}")
    if isinstance(feature, Entries):
        if value not in feature.names:
            raise CameraSettingError(f"{camera}: {name} cannot be {value!r}; its entries are {feature}")
        return value
    number = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    if not feature.low <= number <= feature.high:  # also refuses NaN
        raise CameraSettingError(f"{camera}: {name} cannot be {value!r}; its range is {feature}")
    if feature.whole and number != int(number):
        raise CameraSettingError(f"{camera}: {name} cannot be {value!r}; it takes whole numbers in {feature}")
    return int(number) if feature.whole else number
