"""GenApi features: write one, read it back, and say what it would have taken."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from genicam import genapi, gentl

from lineward.drivers import progress
from lineward.drivers.camera import CameraSettingError

if TYPE_CHECKING:
    from lineward.drivers.camera import Setting

NATIVE_ERRORS = (
    gentl.GenericException,
    genapi.GenericException,  # a tree of its own
    AttributeError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
)
"""Everything that harvesters and its bindings were seen to raise."""

_REFUSALS = (
    genapi.AccessException,
    genapi.InvalidArgumentException,
    genapi.LogicalErrorException,
    genapi.OutOfRangeException,
    genapi.PropertyException,
)


def reason(error: BaseException) -> str:
    """Reduce a binding's message to what an engineer can use."""
    text = re.sub(r"\s*:\s*\w+Exception thrown in node.*", "", str(error), flags=re.DOTALL)
    return re.sub(r"^GenTL exception:\s*|\(Message from the source:\s*\)\s*", "", text).strip() or type(error).__name__


def find(node_map: Any, name: str) -> Any | None:
    """Return a feature's node, or None when the camera has no such feature or not just now."""
    try:
        node = node_map.get_node(name)
        return None if _access(node) in {genapi.EAccessMode.NI, genapi.EAccessMode.NA} else node
    except NATIVE_ERRORS:
        return None


def read(node_map: Any, name: str) -> Setting | None:
    """Read a feature that a camera may lack; None when it does."""
    node = find(node_map, name)
    if node is None or _access(node) == genapi.EAccessMode.WO:
        return None
    return fresh(node)


def fresh(node: Any) -> Setting:
    """Read a node's value past GenApi's cache, which holds what was written and not what the camera made of it."""
    progress.step()
    value: Setting = node.get_value(False, True)  # verify, ignore_cache
    return value


def write(node_map: Any, name: str, value: Setting) -> Setting:
    """Write a feature and return what the camera made of it.

    A float may come back rounded to what the camera can do. Any other value must come back as it was written. A
    command is executed by ``True``. A read-only feature may be set to what it is.

    Raises
    ------
    CameraSettingError
        The camera has no such feature, or refuses the value; the message names the range or the entries.
    """
    progress.step()
    node = find(node_map, name)
    if node is None:
        raise CameraSettingError(f"the camera has no feature {name!r}, or not in this state; correct the settings")
    if _access(node) == genapi.EAccessMode.RO:
        present = fresh(node)
        if present == value:
            return value
        raise CameraSettingError(f"{name} can only be read (it is {present!r}); remove it from the settings")
    if not _fits(node, value):
        raise CameraSettingError(f"{name} = {value!r} has the wrong type; possible: {allowed(node)}")
    try:
        if isinstance(node, genapi.ICommand):
            node.execute()
            return value
        node.value = value
        back = fresh(node)
    except _REFUSALS as error:
        raise CameraSettingError(
            f"{name} = {value!r} is refused: {reason(error)}; possible: {allowed(node)}"
        ) from error
    if back != value and not isinstance(node, genapi.IFloat):
        raise CameraSettingError(f"{name} = {value!r} came back as {back!r}; possible: {allowed(node)}")
    return back


def allowed(node: Any) -> str:
    """Say which values a feature takes now."""
    text = "nothing: it is no feature that can be set"
    try:
        match node:
            case genapi.IEnumeration():
                text = ", ".join(node.symbolics)
            case genapi.IInteger():
                text = f"integers {node.min}..{node.max} in steps of {node.inc}{_unit(node)}"
            case genapi.IFloat():
                text = f"{node.min:g}..{node.max:g}{_unit(node)}"
            case genapi.IBoolean():
                text = "true, false"
            case genapi.ICommand():
                text = "true, which executes it"
            case genapi.IString():
                text = "text"
    except NATIVE_ERRORS as error:
        text = f"unknown, the camera does not say ({reason(error)})"
    return text


def _access(node: Any) -> Any:
    return node.get_access_mode()


def _fits(node: Any, value: Setting) -> bool:
    match node:
        case genapi.IEnumeration() | genapi.IString():
            return isinstance(value, str)
        case genapi.IBoolean():
            return isinstance(value, bool)
        case genapi.ICommand():
            return value is True
        case genapi.IInteger():
            return isinstance(value, int) and not isinstance(value, bool)
        case genapi.IFloat():
            return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return False


def _unit(node: Any) -> str:
    return f" {node.unit}" if node.unit else ""
