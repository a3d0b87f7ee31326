"""Read image files: the one decoder that replay, training, `predict` and the review page share. Make small JPEGs."""

from __future__ import annotations

import os
import stat
import struct
from typing import TYPE_CHECKING

MAX_PIXELS = 128_000_000
"""A larger image is refused before it is decoded; the largest area-scan sensors in sale stay below it."""

os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))  # read by OpenCV when it is imported
os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")  # broken files are reported by us, once, by name

import cv2  # noqa: E402
import numpy as np  # noqa: E402

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # the variable is too late once cv2 is imported

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})

_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
    b"BM": "BMP",
}
_BIG_TIFF = (b"II+\x00", b"MM\x00+")
_ORIENTATION, _EXTRA_SAMPLES = 274, 338
_SHORT = 3
_AS_STORED = {_ORIENTATION: 1, _EXTRA_SAMPLES: 0}
"""Values of TIFF tags for which libtiff hands out the samples as they are: not turned, not multiplied by alpha."""


class ImageFileError(ValueError):
    """An image file cannot be used; the message names the file, what is wrong and what to do."""


def read_image(path: Path, *, significant_bits: int = 16) -> NDArray[np.uint8]:
    """Read an image file exactly as the line would deliver it.

    Parameters
    ----------
    path
        A PNG, JPEG, TIFF or BMP file, mono, RGB or RGBA, 8 or 16 bit. An alpha channel is dropped, an EXIF rotation
        ignored: the sensor's rows stay rows.
    significant_bits
        Bits that carry the picture in a 16-bit file: 12 for 12-bit data stored unshifted. The scaling is fixed and
        never depends on the picture's own brightest pixel.

    Returns
    -------
    numpy.ndarray
        ``(H, W)`` or ``(H, W, 3)`` uint8, RGB order, C-contiguous.

    Raises
    ------
    ImageFileError
        Missing, empty, cut off, too large, of an unknown format or of an unsupported pixel type.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ImageFileError(f"{path}: is a folder; give the image files in it")
        if not stat.S_ISREG(mode):  # reading a pipe would wait for ever
            raise ImageFileError(f"{path}: is no file with an image but a pipe or a device; remove it")
        data = path.read_bytes()
    except OSError as error:
        raise ImageFileError(f"{path}: cannot be read: {error.strerror or error}") from error
    return decode_image(data, str(path), significant_bits=significant_bits)


def decode_image(data: bytes, name: str, *, significant_bits: int = 16) -> NDArray[np.uint8]:
    """Decode the bytes of an image file; see `read_image`. ``name`` is used in messages only."""
    if not data:
        raise ImageFileError(f"{name}: the file is empty (0 bytes)")
    kind = next((kind for signature, kind in _SIGNATURES.items() if data.startswith(signature)), None)
    if data.startswith(_BIG_TIFF):
        raise ImageFileError(f"{name}: a BigTIFF file, which Lineward does not read; save it as TIFF or PNG")
    if kind is None:
        raise ImageFileError(f"{name}: not an image that Lineward reads (PNG, JPEG, TIFF or BMP)")
    if _is_cut_off(data, kind):
        raise ImageFileError(f"{name}: the {kind} file is cut off; copy it again")
    if kind == "TIFF":
        data = _as_stored(data)
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE_PIXELS" in str(error):
            raise ImageFileError(f"{name}: more than {MAX_PIXELS // 1_000_000} megapixels; make it smaller") from error
        raise ImageFileError(f"{name}: the {kind} file cannot be decoded") from error
    if pixels is None or pixels.size == 0:
        raise ImageFileError(f"{name}: the {kind} file is damaged and cannot be decoded")
    return _to_uint8_rgb(np.asarray(pixels), name, significant_bits)


def _is_cut_off(data: bytes, kind: str) -> bool:
    """Tell a file whose end is missing: OpenCV fills the rest of such a picture with grey and says nothing."""
    match kind:
        case "JPEG":
            # Behind the last scan only: a thumbnail in the header has an end mark of its own.
            return data.find(b"\xff\xd9", data.rfind(b"\xff\xda")) < 0
        case "PNG":
            return not _has_png_end(data)
        case "BMP":
            return len(data) < int.from_bytes(data[2:6], "little")
        case _:
            return False


def _has_png_end(data: bytes) -> bool:
    """Follow the chunks to the last one; what a copy program padded behind it does not matter."""
    at = 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        at += 12 + length
        if kind == b"IEND":
            return bool(at <= len(data))
    return False


def _as_stored(data: bytes) -> bytes:
    """Return a TIFF whose first directory names no orientation and no alpha: other formats are not turned either."""
    order = "<" if data.startswith(b"II") else ">"
    try:
        (start,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, start)
        entries = [
            (at, *struct.unpack_from(f"{order}HHIH", data, at)) for at in range(start + 2, start + 2 + 12 * count, 12)
        ]
    except struct.error:
        return data  # damaged: the decoder says so
    changed = bytearray(data)
    for at, tag, kind, n, value in entries:
        if kind == _SHORT and n == 1 and value != _AS_STORED.get(tag, value):
            struct.pack_into(f"{order}H", changed, at + 8, _AS_STORED[tag])
    return bytes(changed)


def _to_uint8_rgb(pixels: NDArray[np.generic], name: str, significant_bits: int) -> NDArray[np.uint8]:
    if pixels.ndim == 3 and pixels.shape[2] not in {1, 3, 4}:
        raise ImageFileError(f"{name}: {pixels.shape[2]} channels; mono, RGB or RGBA is wanted")
    if pixels.dtype == np.uint16:
        shift = significant_bits - 8
        limit = np.uint16((1 << significant_bits) - 1)
        pixels = (np.minimum(pixels, limit) >> shift).astype(np.uint8)
    elif pixels.dtype != np.uint8:
        raise ImageFileError(f"{name}: pixels are {pixels.dtype}; 8 or 16 bit unsigned is wanted")
    if pixels.ndim == 3:
        channels = pixels.shape[2]
        pixels = pixels[:, :, 0] if channels == 1 else pixels[:, :, 2::-1]
    return np.ascontiguousarray(pixels, dtype=np.uint8)


def encode_jpeg(image: NDArray[np.uint8], most_px: int, quality: int) -> bytes:
    """Return a JPEG of ``(H, W)`` or ``(H, W, 3)`` RGB uint8, shrunk to at most so many pixels on a side."""
    scale = most_px / max(image.shape[:2])
    if scale < 1:
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    bgr = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
