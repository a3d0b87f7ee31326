"""GenApi features through Aravis: write one, read it back, and say what it would have taken."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lineward.drivers import progress
from lineward.drivers.aravis_library import load
from lineward.drivers.camera import CameraSettingError

if TYPE_CHECKING:
    from lineward.drivers.camera import Setting

_GONE = ("NOT_CONNECTED", "TRANSFER_ERROR", "TIMEOUT", "NOT_FOUND", "NOT_CONTROLLER")


def is_gone(error: BaseException) -> bool:
    """Say whether an error of Aravis means that the camera did not answer, rather than that it refused."""
    aravis, glib = load()
    if not isinstance(error, glib.Error):
        return False
    return any(error.matches(aravis.device_error_quark(), getattr(aravis.DeviceError, name)) for name in _GONE)


def find(device: Any, name: str) -> Any | None:
    """Return a feature's node, or None when the camera has no such feature or not just now."""
    aravis, _ = load()
    progress.step()
    node = device.get_feature(name)
    if not isinstance(node, aravis.GcFeatureNode) or not node.is_implemented() or not node.is_available():
        return None
    return node


def read(device: Any, name: str) -> Setting | None:
    """Read a feature that a camera may lack; None when it does."""
    aravis, _ = load()
    node = find(device, name)
    if node is None or node.get_actual_access_mode() == aravis.GcAccessMode.WO:
        return None
    return _value(node)


def write(device: Any, name: str, value: Setting) -> Setting:
    """Write a feature and return what the camera made of it; the rules are those of `features.write`.

    Raises
    ------
    CameraSettingError
        The camera has no such feature, or refuses the value; the message names the range or the entries.
    GLib.Error
        The camera does not answer: `is_gone`.
    """
    aravis, glib = load()
    node = find(device, name)
    if node is None:
        raise CameraSettingError(f"the camera has no feature {name!r}, or not in this state; correct the settings")
    if node.get_actual_access_mode() == aravis.GcAccessMode.RO:
        # Aravis itself writes where it may not: SensorWidth = 3 was taken by the fake camera, and Width ended at 3.
        if _value(node) == value:
            return value
        raise CameraSettingError(f"{name} can only be read (it is {_value(node)!r}); remove it from the settings")
    if not _fits(node, value):
        raise CameraSettingError(f"{name} = {value!r} has the wrong type; possible: {allowed(node)}")
    try:
        if isinstance(node, aravis.GcCommand):
            node.execute()
            return value
        if isinstance(node, aravis.GcEnumeration):
            node.set_string_value(value)
        else:
            node.set_value(value)
        back = _value(node)
    except (glib.Error, OverflowError) as error:
        if is_gone(error):
            raise
        raise CameraSettingError(
            f"{name} = {value!r} is refused: {reason(error)}; possible: {allowed(node)}"
        ) from error
    if back != value and not isinstance(node, aravis.GcFloat):
        raise CameraSettingError(f"{name} = {value!r} came back as {back!r}; possible: {allowed(node)}")
    return back


def reason(error: BaseException) -> str:
    """Return the message of an error of Aravis, without the words GLib puts around it."""
    return str(getattr(error, "message", "") or error)


def allowed(node: Any) -> str:
    """Say which values a feature takes now."""
    aravis, glib = load()
    text = "nothing: it is no feature that can be set"
    try:
        if isinstance(node, aravis.GcEnumeration):
            text = ", ".join(node.dup_available_string_values())
        elif isinstance(node, aravis.GcBoolean):
            text = "true, false"
        elif isinstance(node, aravis.GcCommand):
            text = "true, which executes it"
        elif isinstance(node, aravis.GcFloat):
            text = f"{node.get_min():g}..{node.get_max():g}{_unit(node)}"
        elif isinstance(node, aravis.GcInteger):
            text = f"integers {node.get_min()}..{node.get_max()} in steps of {node.get_inc()}{_unit(node)}"
        elif isinstance(node, aravis.GcString):
            text = "text"
    except glib.Error as error:
        text = f"unknown, the camera does not say ({reason(error)})"
    return text


def _value(node: Any) -> Setting:
    aravis, _ = load()
    progress.step()
    # An enumeration is an integer and a string as well: the order of these questions matters.
    value: Setting = node.get_string_value() if isinstance(node, aravis.GcEnumeration) else node.get_value()
    return value


def _fits(node: Any, value: Setting) -> bool:
    aravis, _ = load()
    if isinstance(node, aravis.GcEnumeration):
        return isinstance(value, str)
    if isinstance(node, aravis.GcBoolean):
        return isinstance(value, bool)
    if isinstance(node, aravis.GcCommand):
        return value is True
    if isinstance(node, aravis.GcFloat):
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if isinstance(node, aravis.GcInteger):
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(node, aravis.GcString) and isinstance(value, str)


def _unit(node: Any) -> str:
    unit = node.get_unit()
    return f" {unit}" if unit else ""
