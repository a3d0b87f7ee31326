"""Keep uncertain frames for a person to label: lossless, beside the hot path, never more than the disk can bear."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import random
import threading
import time
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import cv2

from lineward.models.verdict import Decision

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from lineward.daemon.ledger import Ledger
    from lineward.daemon.result import Result
    from lineward.models.verdict import Verdict

log = logging.getLogger("lineward.review")

QUEUE = 4
"""Frames that may wait for encoding: a lossless 5 MP image takes 92-160 ms, and each waiting one holds its bytes."""

PNG_LEVEL = 1


class ReviewStore:
    """Writes kept images as PNG with a side-car JSON below ``<root>/images`` from a thread of its own.

    An image beyond the budget of the hour, or one the queue has no room for, is dropped and counted: never a result.
    """

    def __init__(
        self,
        root: Path,
        ledger: Ledger,
        *,
        keep_per_hour: int,
        max_bytes: int,
        keep_fails: bool,
        audit_share: float = 0.0,
        on_trouble: Callable[[str], None],
    ) -> None:
        self._root = root
        self._ledger = ledger
        self._keep_per_hour = keep_per_hour
        self._max_bytes = max_bytes
        self._keep_fails = keep_fails
        self._audit_share = audit_share
        self._on_trouble = on_trouble
        self._kept_at: deque[float] = deque()
        self._queue: queue.Queue[tuple[NDArray[np.uint8], Result] | None] = queue.Queue(QUEUE)
        self.kept = 0
        self.dropped = 0
        self._thread = threading.Thread(target=self._work, name="review-images", daemon=True)
        self._thread.start()

    def set_limits(self, *, keep_per_hour: int, max_bytes: int, keep_fails: bool, audit_share: float = 0.0) -> None:
        """Go on with other limits; from any thread."""
        self._keep_per_hour, self._max_bytes, self._keep_fails = keep_per_hour, max_bytes, keep_fails
        self._audit_share = audit_share

    def claim(self, verdict: Verdict) -> str | None:
        """Decide whether this part's image will be kept; return its id, or None.

        Called by the loop before the result is recorded, so that the record can name the image.
        """
        wanted = verdict.needs_review or (self._keep_fails and verdict.decision is Decision.FAIL)
        if verdict.decision is Decision.PASS:  # what is let through is looked at too, or nobody learns of escapes
            wanted = random.random() < self._audit_share
        if not wanted:
            return None
        now = time.monotonic()
        while self._kept_at and now - self._kept_at[0] > 3600:
            self._kept_at.popleft()
        if len(self._kept_at) >= self._keep_per_hour or self._queue.full():
            self.dropped += 1
            return None
        self._kept_at.append(now)
        return f"{time.time_ns() // 1000:x}"

    def keep(self, image: NDArray[np.uint8], result: Result) -> None:
        """Take over a frame that was claimed; copies it (1 ms at 5 MP) and returns at once."""
        try:
            self._queue.put_nowait((image.copy(), result))
        except queue.Full:  # cannot happen while the loop is the only caller
            self.dropped += 1

    def close(self, timeout_s: float = 1.0) -> None:
        """Write what waits, for at most ``timeout_s`` seconds."""
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=timeout_s / 2)
        self._thread.join(timeout_s)

    def _work(self) -> None:
        with contextlib.suppress(OSError):  # let the hot path go first; not allowed everywhere
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        while (item := self._queue.get()) is not None:
            try:
                self._write(*item)
            except OSError as error:
                self.dropped += 1
                self._on_trouble(f"images cannot be kept in {self._root / 'images'}: {error.strerror or error}")
            except Exception:  # a bug here must not end the thread, and is not hidden
                self.dropped += 1
                log.exception("an image could not be kept")
            else:
                self.kept += 1
                self._on_trouble("")

    def _write(self, image: NDArray[np.uint8], result: Result) -> None:
        assert result.image is not None
        day = datetime.fromtimestamp(result.trigger_unix_ns / 1e9, UTC).strftime("%Y-%m-%d")
        folder = self._root / "images" / (result.product or "unknown") / day
        folder.mkdir(parents=True, exist_ok=True)
        bgr = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        done, png = cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, PNG_LEVEL])
        if not done:
            raise OSError(f"PNG encoding of {image.shape} failed")
        path = folder / f"{result.seq}-{result.image}.png"
        data = png.tobytes()
        self._make_room(len(data))
        # The side-car first: an image without one would be an orphan, a side-car without an image is harmless.
        write_whole(path.with_suffix(".json"), json.dumps(json.loads(result.payload()), indent=1).encode())
        write_whole(path, data)
        name = path.relative_to(self._root).as_posix()
        try:
            self._ledger.add_image(result.image, result.seq, name, len(data), result.verdict)
        except OSError:
            remove_image_file(path)  # without a row it would never count against the quota
            raise

    def _make_room(self, wanted: int) -> None:
        """Delete the oldest images until ``wanted`` more bytes stay within the quota."""
        while self._ledger.image_bytes() + wanted > self._max_bytes:
            oldest = self._ledger.oldest_images(1)
            if not oldest:
                return
            remove_image_file(self._root / oldest[0].path)
            self._ledger.remove_image(oldest[0].image_id)


def remove_image_file(path: Path) -> None:
    """Delete an image and its side-car; fine when they are gone already."""
    path.unlink(missing_ok=True)
    path.with_suffix(".json").unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that its name never stands for half of it."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
