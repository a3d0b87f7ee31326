"""What a GenTL buffer holds: a whole plain image, or a reason why it cannot be judged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from genicam import gentl

from lineward.drivers import pixels
from lineward.drivers.camera import CameraSettingError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ABSENT = (gentl.NotAvailableException, gentl.NotImplementedException, gentl.InvalidParameterException, AttributeError)
_PLAIN_IMAGES = {gentl.PAYLOADTYPE_INFO_IDS.PAYLOAD_TYPE_IMAGE, gentl.PAYLOADTYPE_INFO_IDS.PAYLOAD_TYPE_CHUNK_DATA}


class OptionalValues:
    """Reads values that producers need not offer; asked once in vain, they are not asked again."""

    def __init__(self) -> None:
        self._absent: set[str] = set()

    def ask(self, module: Any, name: str) -> Any:
        """Return the value, or None when there is none. Any other native error is the caller's."""
        if name in self._absent:
            return None
        try:
            return getattr(module, name)
        except _ABSENT:
            self._absent.add(name)
            return None


def check_pixel_format(code: int) -> None:
    """Raise `CameraSettingError`, with the supported formats, when a PFNC code is none of them."""
    try:
        pixels.find(code)
    except pixels.PixelFormatError as error:
        raise CameraSettingError(str(error)) from error


def image_of(buffer: Any, node_map: Any, values: OptionalValues) -> NDArray[np.uint8] | None:
    """Decode the image in a buffer, which must not be queued again before this returns.

    Returns
    -------
    numpy.ndarray or None
        ``(H, W)`` or ``(H, W, 3)`` uint8, RGB order, read-only, a copy of its own. None when a part of the image did
        not come: what fills its place is from an older frame.

    Raises
    ------
    CameraSettingError
        The buffer holds something else than a plain image, or a pixel format that is not supported. harvesters takes
        GenDC containers (payload type 11) for images and returns garbage.
    """
    payload = values.ask(buffer, "payload_type")
    if payload not in _PLAIN_IMAGES:
        name = next((known.name for known in gentl.PAYLOADTYPE_INFO_IDS if known == payload), "unknown")
        raise CameraSettingError(
            f"payload type {payload} ({name}) was sent; only plain images can be judged: "
            "switch off GenDC, multi-part or compression in the settings"
        )
    code = values.ask(buffer, "pixel_format")
    code = node_map.PixelFormat.get_int_value() if code is None else code
    check_pixel_format(code)
    delivered = values.ask(buffer, "delivered_image_height") or 0
    width = values.ask(buffer, "width") or node_map.Width.value
    height = values.ask(buffer, "height") or delivered or node_map.Height.value
    padding, offset = values.ask(buffer, "padding_x") or 0, values.ask(buffer, "image_offset") or 0
    filled = values.ask(buffer, "size_filled") or 0
    needed = pixels.needed_bytes(code, width, height, padding)
    raw = np.frombuffer(buffer.raw_buffer, np.uint8)[offset:]
    if raw.size < needed or 0 < filled < offset + needed or 0 < delivered < height:
        return None
    try:
        image = pixels.decode(raw, code, width, height, padding)
    except pixels.PixelFormatError as error:
        raise CameraSettingError(str(error)) from error
    image.flags.writeable = False
    return image


def device_ns(buffer: Any, device: Any, values: OptionalValues) -> int | None:
    """Return the start of exposure on the camera's clock in nanoseconds, or None when it has no clock."""
    nanoseconds = values.ask(buffer, "timestamp_ns")
    if nanoseconds is None:
        ticks, hertz = values.ask(buffer, "timestamp"), values.ask(device, "timestamp_frequency")
        nanoseconds = ticks * 1_000_000_000 // hertz if ticks and hertz else None
    return int(nanoseconds) if nanoseconds else None
