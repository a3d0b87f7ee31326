"""Pictures for the browser: whole, as thumbnails, and which labelled parts look most alike."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from lineward.images import ImageFileError, decode_image, encode_jpeg

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from lineward.daemon.label_records import Part
    from lineward.daemon.labels import LabelStore

VIEW_PX = 1600
THUMB_PX = 220
VECTOR_PX = 32
CACHE_BYTES = 96 << 20
MOST_VECTORS = 2000
"""So many of the newest labelled parts are compared with: 8 MB and a few milliseconds."""

COMPARE_S = 0.1


class Pictures:
    """Reads, shrinks and remembers pictures; may be called from several threads.

    Every path comes from the label store, never from a request, and is still held against the storage folder.
    """

    def __init__(self, labels: LabelStore) -> None:
        self._labels = labels
        self._root = labels.root.resolve()
        self._cache: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self._vectors: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self._comparing = threading.Lock()

    def path(self, part: Part) -> Path | None:
        """Return the file of a part, or None when it is gone."""
        path = (self._root / part.path).resolve()
        return path if path.is_relative_to(self._root) and path.is_file() else None

    def jpeg(self, image: str, most_px: int) -> bytes | None:
        """Return a picture as JPEG with at most so many pixels on a side, or None when there is none."""
        with self._lock:
            if (data := self._cache.get((image, most_px))) is not None:
                self._cache.move_to_end((image, most_px))
                return data
        pixels = self.pixels(image)
        if pixels is None:
            return None
        data = encode(pixels, most_px)
        with self._lock:
            if self._cache.setdefault((image, most_px), data) is data:
                self._bytes += len(data)
            while self._bytes > CACHE_BYTES and self._cache:
                self._bytes -= len(self._cache.popitem(last=False)[1])
        return data

    def pixels(self, image: str) -> NDArray[np.uint8] | None:
        """Return a picture ``(H, W)`` or ``(H, W, 3)`` RGB uint8, or None when it is gone or cannot be read."""
        part = self._labels.part(image)
        path = self.path(part) if part else None
        if path is None:
            return None
        try:
            return decode_image(path.read_bytes(), path.name)
        except (ImageFileError, OSError):
            return None

    def nearest(self, image: str, labelled: Sequence[tuple[str, str]], count: int) -> list[str]:
        """Return the labelled pictures that look most like one, half of them good where there are such.

        Pictures that were never compared with are read for a moment only, so that the next label need not wait; with
        many new ones the answer is the better the more often it is asked for.

        Parameters
        ----------
        labelled
            Image and label of what may be returned, the newest first.
        """
        with self._comparing:
            until = time.monotonic() + COMPARE_S
            own = self._vector(image)
            if own is None:
                return []
            others, vectors = [], []
            for other in labelled:
                with self._lock:
                    vector = self._vectors.get(other[0])
                if vector is None and time.monotonic() < until:
                    vector = self._vector(other[0])
                if vector is not None and other[0] != image:
                    others.append(other)
                    vectors.append(vector)
        if not others:
            return []
        likeness = np.stack(vectors) @ own
        near = [others[place] for place in np.argsort(-likeness, kind="stable")]
        good = [other for other, label in near if label == "pass"][: count // 2]
        bad = [other for other, label in near if label == "fail"][: count - len(good)]
        return [*good, *bad]

    def _vector(self, image: str) -> NDArray[np.float32] | None:
        """Return ``(1024,)`` float32: the shrunken picture less its mean brightness, of length 1."""
        with self._lock:
            if (known := self._vectors.get(image)) is not None:
                return known
        pixels = self.pixels(image)
        if pixels is None:
            return None
        grey = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        small = cv2.resize(grey, (VECTOR_PX, VECTOR_PX), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
        small -= small.mean()
        vector = np.asarray(small / (np.linalg.norm(small) + 1e-6), np.float32)
        with self._lock:
            self._vectors[image] = vector
            while len(self._vectors) > 2 * MOST_VECTORS:
                self._vectors.popitem(last=False)
        return vector


def encode(pixels: NDArray[np.uint8], most_px: int) -> bytes:
    """Return a JPEG of ``(H, W)`` or ``(H, W, 3)`` RGB uint8, shrunk to at most so many pixels on a side."""
    return encode_jpeg(pixels, most_px, 90 if most_px > THUMB_PX else 80)


def heat_png(heatmap: NDArray[np.float32], roi: tuple[float, float, float, float] | None) -> bytes:
    """Return a transparent PNG to lay over the whole picture: yellow to red where it looks defective.

    Parameters
    ----------
    heatmap
        ``(h, w)`` float32, 0..1, over the region of interest.
    roi
        That region as fractions x, y, width, height; None: all of the picture.
    """
    heat: NDArray[Any] = np.clip(heatmap, 0.0, 1.0)
    if roi is not None:
        x, y, width, height = roi
        rows, columns = heat.shape
        whole = np.zeros((max(1, round(rows / height)), max(1, round(columns / width))), np.float32)
        top, left = round(y * whole.shape[0]), round(x * whole.shape[1])
        place = whole[top : top + rows, left : left + columns]
        place[:] = heat[: place.shape[0], : place.shape[1]]
        heat = whole
    heat = cv2.resize(heat, None, fx=4, fy=4, interpolation=cv2.INTER_LINEAR)
    rgba = np.zeros((*heat.shape, 4), np.uint8)
    rgba[..., 2] = 255  # OpenCV's order: blue, green, red, alpha
    rgba[..., 1] = (200 * (1 - heat)).astype(np.uint8)
    rgba[..., 3] = (np.clip((heat - 0.15) / 0.85, 0, 1) * 190).astype(np.uint8)
    return bytes(cv2.imencode(".png", rgba)[1].tobytes())
