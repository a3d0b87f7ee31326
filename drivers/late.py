"""How late a triggered frame can come, from what the camera says about itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from lineward.drivers.camera import Setting

_MARGIN_S = 0.25
"""For what cannot be asked: the way through driver and producer, and packets that are sent again."""

_SLOWEST_BYTES_PER_S = 40e6
"""A frame on its way through a link that is shared by three GigE cameras, or by two on USB 3 beside a disk."""


def longest_s(read: Callable[[str], Setting | None]) -> float:
    """Return how long after its trigger a frame may still come: exposure, delay, readout and the way here, in seconds.

    Parameters
    ----------
    read
        Reads a feature from the camera, because automatic exposure changes it; None when there is none of that name.
    """

    def number(*names: str) -> float:
        values = (read(name) for name in names)
        return next((float(value) for value in values if isinstance(value, int | float)), 0.0)

    microseconds = number("ExposureTime", "ExposureTimeAbs") + number("TriggerDelay", "TriggerDelayAbs")
    microseconds += number("SensorReadoutTime")
    link = min(number("DeviceLinkThroughputLimit") or _SLOWEST_BYTES_PER_S, _SLOWEST_BYTES_PER_S)
    return microseconds / 1e6 + number("PayloadSize") / link + _MARGIN_S
