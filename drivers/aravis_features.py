"""GenApi features through Aravis: write one, read it back, and say what it would have taken."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lineward.drivers.aravis_library import load
from lineward.drivers.camera import CameraSettingError

if TYPE_CHECKING:
    from lineward.drivers.camera import Setting

_GONE = {"not-connected", "transfer-error", "timeout", "not-found", "not-controller"}


class Gone(Exception):  # noqa: N818 - an answer, not a fault: the caller turns it into a `CameraLostError`
    """The camera did not answer at all."""


def means_gone(error: Any) -> bool:
    """Say whether a GLib error means that the camera is gone, rather than that it refused."""
    aravis, _ = load()
    return any(error.matches(aravis.DeviceError.quark(), getattr(aravis.DeviceError, _constant(n))) for n in _GONE)
