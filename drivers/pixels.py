"""PFNC pixel formats to what is judged: uint8, mono or RGB, with a scaling that never depends on the picture.

Layouts are those of the Pixel Format Naming Convention 2.4 (EMVA) and of GigE Vision 1.2 for the ``...Packed`` ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Raw = bytes | bytearray | memoryview | NDArray[np.uint8]
    U8 = NDArray[np.uint8]


class PixelFormatError(ValueError):
    """A pixel format is not supported, or does not go with the size of the image; the message says which."""


class _Packing(Enum):
    """How samples lie in memory."""

    BYTES = auto()  # 8 bit each
    WORDS = auto()  # 9..16 bit, right-aligned in 16, little-endian
    LSB = auto()  # "p": a bit stream, least significant bit first
    GIGE = auto()  # "Packed": two samples in three bytes, high bits apart from low bits


_BAYER = {
    # PFNC names the first two pixels of the first line; OpenCV's old names are shifted by one, its new ones are not.
    "BayerRG": cv2.COLOR_BayerRGGB2RGB,
    "BayerGR": cv2.COLOR_BayerGRBG2RGB,
    "BayerGB": cv2.COLOR_BayerGBRG2RGB,
    "BayerBG": cv2.COLOR_BayerBGGR2RGB,
}
_REORDER = {"BGR": cv2.COLOR_BGR2RGB, "BGRa": cv2.COLOR_BGRA2RGB, "RGBa": cv2.COLOR_RGBA2RGB}
_CHANNELS = {"Mono": 1, "RGB": 3, "BGR": 3, "RGBa": 4, "BGRa": 4, "YUYV": 2, "UYVY": 2} | dict.fromkeys(_BAYER, 1)


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """One supported format: its PFNC name and code, the order of its samples, their depth and packing."""

    name: str
    code: int
    order: str
    bits: int
    packing: _Packing

    @property
    def bits_per_pixel(self) -> int:
        """Bits one pixel takes in the buffer: bits 16..23 of every PFNC code say it."""
        return self.code >> 16 & 0xFF


def _table() -> dict[int, PixelFormat]:
    rows: list[tuple[str, int, str, int, _Packing]] = [
        ("Mono1p", 0x01010037, "Mono", 1, _Packing.LSB),
        ("Mono8", 0x01080001, "Mono", 8, _Packing.BYTES),
        ("Mono10", 0x01100003, "Mono", 10, _Packing.WORDS),
        ("Mono12", 0x01100005, "Mono", 12, _Packing.WORDS),
        ("Mono14", 0x01100025, "Mono", 14, _Packing.WORDS),
        ("Mono16", 0x01100007, "Mono", 16, _Packing.WORDS),
        ("Mono10p", 0x010A0046, "Mono", 10, _Packing.LSB),
        ("Mono12p", 0x010C0047, "Mono", 12, _Packing.LSB),
        ("Mono14p", 0x010E0104, "Mono", 14, _Packing.LSB),
        ("Mono10Packed", 0x010C0004, "Mono", 10, _Packing.GIGE),
        ("Mono12Packed", 0x010C0006, "Mono", 12, _Packing.GIGE),
        ("RGB8", 0x02180014, "RGB", 8, _Packing.BYTES),
        ("BGR8", 0x02180015, "BGR", 8, _Packing.BYTES),
        ("RGBa8", 0x02200016, "RGBa", 8, _Packing.BYTES),
        ("BGRa8", 0x02200017, "BGRa", 8, _Packing.BYTES),
        ("RGB10", 0x02300018, "RGB", 10, _Packing.WORDS),
        ("BGR10", 0x02300019, "BGR", 10, _Packing.WORDS),
        ("RGB12", 0x0230001A, "RGB", 12, _Packing.WORDS),
        ("BGR12", 0x0230001B, "BGR", 12, _Packing.WORDS),
        ("RGB16", 0x02300033, "RGB", 16, _Packing.WORDS),
        ("BGR16", 0x0230004B, "BGR", 16, _Packing.WORDS),
        ("YUV422_8", 0x02100032, "YUYV", 8, _Packing.BYTES),
        ("YUV422_8_UYVY", 0x0210001F, "UYVY", 8, _Packing.BYTES),
        ("YCbCr422_8", 0x0210003B, "YUYV", 8, _Packing.BYTES),
        ("YCbCr422_8_CbYCrY", 0x02100043, "UYVY", 8, _Packing.BYTES),
    ]
    for index, order in enumerate(("BayerGR", "BayerRG", "BayerGB", "BayerBG")):  # the order of their codes
        rows += [
            (f"{order}8", 0x01080008 + index, order, 8, _Packing.BYTES),
            (f"{order}10", 0x0110000C + index, order, 10, _Packing.WORDS),
            (f"{order}12", 0x01100010 + index, order, 12, _Packing.WORDS),
            (f"{order}14", 0x01100109 + index, order, 14, _Packing.WORDS),
            (f"{order}16", 0x0110002E + index, order, 16, _Packing.WORDS),
            (f"{order}14p", 0x010E0105 + index, order, 14, _Packing.LSB),
            (f"{order}10Packed", 0x010C0026 + index, order, 10, _Packing.GIGE),
            (f"{order}12Packed", 0x010C002A + index, order, 12, _Packing.GIGE),
        ]
    for index, order in enumerate(("BayerBG", "BayerGB", "BayerGR", "BayerRG")):
        rows += [
            (f"{order}10p", 0x010A0052 + 2 * index, order, 10, _Packing.LSB),
            (f"{order}12p", 0x010C0053 + 2 * index, order, 12, _Packing.LSB),
        ]
    return {row[1]: PixelFormat(*row) for row in rows}


_BY_CODE = _table()
_BY_NAME = {form.name: form for form in _BY_CODE.values()}
SUPPORTED = tuple(sorted(_BY_NAME))
"""The names of all formats that `decode` knows."""


def find(pixel_format: str | int) -> PixelFormat:
    """Look a format up by PFNC name or code; `PixelFormatError` names it and all that are supported."""
    found = _BY_NAME.get(pixel_format) if isinstance(pixel_format, str) else _BY_CODE.get(pixel_format)
    if found is None:
        given = pixel_format if isinstance(pixel_format, str) else f"0x{pixel_format:08X}"
        raise PixelFormatError(f"pixel format {given} is not supported; use one of {', '.join(SUPPORTED)}")
    return found


def needed_bytes(pixel_format: str | int, width: int, height: int, padding_x: int = 0) -> int:
    """Bytes that an image takes in its buffer, line padding included."""
    form = find(pixel_format)
    if padding_x:
        return (_row_bytes(form, width) + padding_x) * height
    return (width * height * form.bits_per_pixel + 7) // 8


def decode(raw: Raw, pixel_format: str | int, width: int, height: int, padding_x: int = 0) -> U8:
    """Turn a camera's buffer into the image that is judged.

    Samples of more than 8 bits keep their 8 high bits (``sample >> (bits - 8)``); a sample above its declared depth is
    white. A bit is 0 or 255. Bayer is demosaiced bilinearly after the shift. YUV and YCbCr are full range, BT.601
    weights, as industrial cameras send them. Alpha is dropped.

    Parameters
    ----------
    raw
        The image's bytes, from its first; what comes after them is not looked at.
    pixel_format
        PFNC name or code.
    width, height
        Pixels.
    padding_x
        Bytes after every line. With none, lines of a packed format follow each other within a byte; with some, every
        line begins at a byte.

    Returns
    -------
    numpy.ndarray
        ``(H, W)`` or ``(H, W, 3)`` uint8, RGB order, C-contiguous, a copy of its own.

    Raises
    ------
    PixelFormatError
        The format is not supported, the size is impossible for it, or the buffer is too short.
    """
    form = find(pixel_format)
    channels = _CHANNELS[form.order]
    if width < 1 or height < 1:
        raise PixelFormatError(f"an image of {width}x{height} pixels cannot be decoded")
    if form.order in {"YUYV", "UYVY"} and width % 2:
        raise PixelFormatError(f"{form.name} needs an even width, not {width}: two pixels share their colour")
    data = np.frombuffer(raw, np.uint8)
    needed = needed_bytes(form.code, width, height, padding_x)
    if data.size < needed:
        raise PixelFormatError(f"{form.name} {width}x{height} needs {needed} bytes, the buffer has {data.size}")
    lines = height if padding_x else 1
    rows = data[:needed].reshape(lines, -1)
    samples = width * height * channels // lines
    if padding_x:
        rows = rows[:, : _row_bytes(form, width)]
    image = _to_bytes(rows, form, samples).reshape(height, width, channels)
    return np.ascontiguousarray(_to_mono_or_rgb(image, form.order))


def _row_bytes(form: PixelFormat, width: int) -> int:
    return (width * form.bits_per_pixel + 7) // 8


def _to_bytes(rows: U8, form: PixelFormat, samples: int) -> U8:
    """Return the 8 high bits of each sample, ``(lines, samples)``, never a view into ``rows``."""
    match form.packing, form.bits:
        case _Packing.BYTES, _:
            return rows.copy()
        case _Packing.WORDS, 16:
            return rows[:, 1::2].copy()
        case _Packing.WORDS, bits:
            high = np.right_shift(rows.view("<u2"), bits - 8)
            narrow: U8 = np.minimum(high, 255, out=high).astype(np.uint8)
            return narrow
        case _Packing.LSB, 1:
            bits01: U8 = np.unpackbits(rows, axis=1, count=samples, bitorder="little")
            return np.negative(bits01)  # 1 becomes 255
        case _Packing.LSB, 10:
            b = _grouped(rows, 5)
            parts = [
                b[..., 0] >> 2 | b[..., 1] << 6,
                b[..., 1] >> 4 | b[..., 2] << 4,
                b[..., 2] >> 6 | b[..., 3] << 2,
                b[..., 4],
            ]
        case _Packing.LSB, 14:
            b = _grouped(rows, 7)
            parts = [
                b[..., 0] >> 6 | b[..., 1] << 2,
                b[..., 2] >> 4 | b[..., 3] << 4,
                b[..., 4] >> 2 | b[..., 5] << 6,
                b[..., 6],
            ]
        case _Packing.LSB, _:
            b = _grouped(rows, 3)
            parts = [b[..., 0] >> 4 | b[..., 1] << 4, b[..., 2]]
        case _:  # GigE: the high 8 bits are the first and the last byte of three, for 10 and for 12 bits
            b = _grouped(rows, 3)
            parts = [b[..., 0], b[..., 2]]
    joined: U8 = np.stack(parts, axis=-1).reshape(rows.shape[0], -1)
    return joined[:, :samples]


def _grouped(rows: U8, size: int) -> U8:
    """Cut lines into groups of ``size`` bytes; an incomplete last group is filled with zeros.

    With an odd number of pixels GigE's last sample may be followed by no third byte, and its high bits are complete
    without it.
    """
    missing = -rows.shape[1] % size
    if missing:
        rows = np.pad(rows, ((0, 0), (0, missing)))
    return rows.reshape(rows.shape[0], -1, size)


def _to_mono_or_rgb(image: U8, order: str) -> U8:
    match order:
        case "Mono":
            return image[:, :, 0]
        case "RGB":
            return image
        case "BGR" | "BGRa" | "RGBa":  # 1 ms for 5 megapixels; numpy's slices take 15 ms
            return np.asarray(cv2.cvtColor(image, _REORDER[order]), np.uint8)
        case "YUYV" | "UYVY":
            return _full_range_to_rgb(image, luma=0 if order == "YUYV" else 1)
        case _:
            if min(image.shape[:2]) < 2:
                raise PixelFormatError(f"{order} needs at least 2x2 pixels to have a colour")
            return np.asarray(cv2.cvtColor(image[:, :, 0], _BAYER[order]), np.uint8)


def _full_range_to_rgb(image: U8, luma: int) -> U8:
    """Give both pixels of a pair their common colour. OpenCV's own YUYV conversion assumes video range, 16..235."""
    chroma = 1 - luma
    ycrcb = np.empty((*image.shape[:2], 3), np.uint8)
    ycrcb[:, :, 0] = image[:, :, luma]
    for channel, first in ((1, 1), (2, 0)):  # V (Cr) lies with the second pixel of a pair, U (Cb) with the first
        ycrcb[:, 0::2, channel] = image[:, first::2, chroma]
        ycrcb[:, 1::2, channel] = image[:, first::2, chroma]
    return np.asarray(cv2.cvtColor(ycrcb, cv2.COLOR_YCrCb2RGB), np.uint8)
