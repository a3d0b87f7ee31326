"""What an image file says besides the picture: size, format, depth, exposure, when and by which camera it was taken.

None of it should tell good parts from defective ones; `dataset check` asks whether it does.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import cv2
import numpy as np

from lineward.images import decode_image
from lineward.models.records import DIGEST_DIGITS

if TYPE_CHECKING:
    from numpy.typing import NDArray

FACTS_VERSION = 5
"""Of the notes kept in the cache: raise it when a field is added or means something else."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts about one image file, found by its bytes alone.

    Attributes
    ----------
    digest
        SHA-256 of the bytes, hexadecimal.
    pixels
        First `DIGEST_DIGITS` of the SHA-256 of size and decoded pixels: the same picture saved in another format, or
        with other facts in it, has the same.
    mono
        Whether all channels are equal; None when all pixels are as well, of a colour file, which may show a black part.
    width, height, channels, bits
        As stored in the file.
    brightest
        Largest sample in the file, in its own depth.
    brightness, dark, bright
        Mean, lower and upper quartile of the grey levels 0..255; a small defect moves none of them.
    bytes
        Size of the file.
    taken
        Seconds since 1970 from EXIF, 0 when it does not say.
    camera
        Make, model and serial number from EXIF, empty when it does not say.
    """

    digest: str
    pixels: str
    mono: bool | None
    width: int
    height: int
    channels: int
    bits: int
    brightest: int
    brightness: float
    dark: float
    bright: float
    bytes: int
    taken: float
    camera: str


def find_facts(data: bytes, digest: str, name: str) -> Facts:
    """Decode a file and describe it; raises `ImageFileError` with ``name`` in it."""
    image = decode_image(data, name)
    colour = image.ndim == 3
    # Three equal channels are a mono image in a colour file.
    alike = not colour or bool((image[:, :, 0] == image[:, :, 1]).all() and (image[:, :, 1] == image[:, :, 2]).all())
    mono = None if colour and alike and image.min() == image.max() else alike
    grey = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8) if colour else image
    counts = np.bincount(grey.ravel(), minlength=256) / grey.size
    shares = np.cumsum(counts)
    bits, brightest = _depth(data, grey)
    taken, camera = _exif(data)
    return Facts(
        digest=digest,
        pixels=_pixels(grey if alike else image),
        mono=mono,
        width=image.shape[1],
        height=image.shape[0],
        channels=3 if colour else 1,
        bits=bits,
        brightest=brightest,
        brightness=float(counts @ np.arange(256)),
        dark=float(np.searchsorted(shares, 0.25)),
        bright=float(np.searchsorted(shares, 0.75)),
        bytes=len(data),
        taken=taken,
        camera=camera,
    )


def _pixels(image: NDArray[np.uint8]) -> str:
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()[:DIGEST_DIGITS]


def _depth(data: bytes, grey: NDArray[np.uint8]) -> tuple[int, int]:
    """Return bits of a sample and the largest one; only files that may have 16 bits are decoded a second time."""
    is_deep_png = data.startswith(b"\x89PNG") and data[24:25] == b"\x10"
    if is_deep_png or data[:4] in {b"II*\x00", b"MM\x00*"}:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if pixels is not None and pixels.dtype == np.uint16:
            return 16, int(pixels.max())
    return 8, int(grey.max())


_ASCII = 2
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 9: 4, 10: 8}
_MAKE, _MODEL, _TIME, _SUB, _TAKEN, _SERIAL = 0x010F, 0x0110, 0x0132, 0x8769, 0x9003, 0xA431


def _exif(data: bytes) -> tuple[float, str]:
    """Read time and camera from JPEG, PNG or TIFF; whatever cannot be read is not there."""
    head = data[:262_144]
    if head[:4] in {b"II*\x00", b"MM\x00*"}:
        block = data
    elif (start := head.find(b"Exif\x00\x00")) >= 0:
        block = data[start + 6 : start + 6 + 65_536]
    elif head.startswith(b"\x89PNG") and (start := head.find(b"eXIf")) >= 0:
        block = data[start + 4 : start + 4 + 65_536]
    else:
        return 0.0, ""
    try:
        tags = _directory(block)
    except (IndexError, ValueError):
        return 0.0, ""
    camera = " ".join(str(tags[tag]) for tag in (_MAKE, _MODEL, _SERIAL) if tags.get(tag))
    try:
        moment = datetime.strptime(str(tags.get(_TAKEN) or tags.get(_TIME)), "%Y:%m:%d %H:%M:%S").replace(tzinfo=UTC)
    except ValueError:
        return 0.0, camera
    return moment.timestamp(), camera


def _directory(block: bytes) -> dict[int, str | int]:
    order = "little" if block[:2] == b"II" else "big"
    found: dict[int, str | int] = {}

    def number(at: int, size: int) -> int:
        piece = block[at : at + size]
        if len(piece) != size:
            raise ValueError("cut off")
        return int.from_bytes(piece, "little" if order == "little" else "big")

    waiting, seen = [number(4, 4)], set[int]()
    while waiting and len(seen) < 500:
        at = waiting.pop()
        if at in seen:  # a directory that names itself
            continue
        seen.add(at)
        for entry in range(min(number(at, 2), 200)):
            place = at + 2 + 12 * entry
            tag, kind, count = number(place, 2), number(place + 2, 2), number(place + 4, 4)
            size = _SIZES.get(kind, 4) * count
            value = number(place + 8, 4) if size > 4 else place + 8
            if tag == _SUB:
                waiting.append(number(place + 8, 4))
            elif kind == _ASCII and tag in {_MAKE, _MODEL, _TIME, _TAKEN, _SERIAL}:
                found[tag] = block[value : value + size].split(b"\x00")[0].decode("ascii", "replace").strip()
    return found


_MOMENT = re.compile(r"(20\d\d)[-_.]?([01]\d)[-_.]?([0-3]\d)[-_T .]?([0-2]\d)[-_.:h]?([0-5]\d)(?:[-_.:m]?([0-5]\d))?")


def time_in_name(name: str) -> float:
    """Return seconds since 1970 from a name like ``cam1_20260105-091500.png``, 0 when there is no time in it."""
    found = _MOMENT.search(name)
    if not found:
        return 0.0
    try:
        year, month, day, hour, minute, second = (int(part or 0) for part in found.groups())
        return datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0
