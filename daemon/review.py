"""Keep uncertain frames for a person to label: lossless, beside the hot path, never more than the disk can bear."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import random
import tempfile
import threading
import time
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import cv2

from lineward.daemon.adopt import Sweep, sweep
from lineward.daemon.quota import LOOK_S, Quota, remove_image_file
from lineward.daemon.thumbnails import Thumbnails
from lineward.models.verdict import Decision

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from lineward.daemon.config import Config
    from lineward.daemon.ledger import Ledger
    from lineward.daemon.result import Result
    from lineward.models.verdict import Verdict

log = logging.getLogger("lineward.review")

QUEUE = 4
"""Frames that may wait for encoding: a lossless 5 MP image takes 92-160 ms, and each waiting one holds its bytes."""

PNG_LEVEL = 1

SWEEP_S = 86400.0
"""How often images and ledger are compared, beginning at the start."""

PROBE_BYTES = 1 << 20
"""Written for a moment to see whether a disk that was in trouble takes an image again."""

STEP_S = 0.005
"""Between two files of that: nothing is in less of a hurry."""


@dataclass(frozen=True, slots=True)
class Keeping:
    """What is kept, and how much of it.

    Attributes
    ----------
    max_bytes, audit_bytes, thumbnail_bytes
        Quotas: of all images, of those of passed parts among them, and of small pictures beside them.
    audit_share, thumbnail_share
        Shares of passed parts, 0..1, drawn at random.
    """

    keep_per_hour: int
    max_bytes: int
    keep_fails: bool
    audit_share: float = 0.0
    audit_bytes: int | None = None
    thumbnail_share: float = 0.0
    thumbnail_px: int = 160
    thumbnail_bytes: int = 0

    @classmethod
    def of(cls, config: Config) -> Keeping:
        """Return what a configuration says."""
        review, storage = config.review, config.storage
        return cls(
            keep_per_hour=review.keep_per_hour,
            max_bytes=round(storage.max_gb * 1e9),
            keep_fails=review.keep_fails,
            audit_share=review.audit_share,
            audit_bytes=round(storage.audit_gb * 1e9),
            thumbnail_share=review.thumbnail_share if storage.thumbnails_gb else 0.0,
            thumbnail_px=review.thumbnail_px,
            thumbnail_bytes=round(storage.thumbnails_gb * 1e9) if review.thumbnail_share else 0,
        )


class ReviewStore:
    """Writes kept images as PNG with a side-car JSON below ``<root>/images`` from a thread of its own.

    An image beyond the budget of the hour, or one the queue has no room for, is dropped and counted: never a result.
    Small pictures of passed parts go the same way, and only while nothing else waits.
    """

    def __init__(
        self,
        root: Path,
        ledger: Ledger,
        keeping: Keeping,
        *,
        on_trouble: Callable[[str], None],
        on_disk: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self._root = root
        self._ledger = ledger
        self._keeping = keeping
        self.thumbnails = Thumbnails(root, max_bytes=keeping.thumbnail_bytes, most_px=keeping.thumbnail_px)
        self.quota = Quota(
            root,
            ledger,
            max_bytes=keeping.max_bytes,
            audit_bytes=_audit_bytes(keeping),
            spare=self.thumbnails.drop,
            on_trouble=on_disk,
        )
        self._on_trouble = on_trouble
        self._in_trouble = False
        self._kept_at: deque[float] = deque()
        self._queue: queue.Queue[tuple[NDArray[np.uint8], Result] | None] = queue.Queue(QUEUE)
        self._swept = Sweep()
        self.kept = 0
        self.dropped = 0
        self.thumbnails_kept = 0
        self.thumbnails_dropped = 0
        self._thread = threading.Thread(target=self._work, name="review-images", daemon=True)
        self._thread.start()

    def set_limits(self, keeping: Keeping) -> None:
        """Go on with other limits; from any thread."""
        self._keeping = keeping
        self.quota.max_bytes = keeping.max_bytes
        self.quota.audit_bytes = _audit_bytes(keeping)
        self.thumbnails.max_bytes, self.thumbnails.most_px = keeping.thumbnail_bytes, keeping.thumbnail_px

    def claim(self, verdict: Verdict) -> str | None:
        """Decide whether this part's image will be kept; return its id, or None.

        Called by the loop before the result is recorded, so that the record can name the image.
        """
        keeping = self._keeping
        wanted = verdict.needs_review or (keeping.keep_fails and verdict.decision is Decision.FAIL)
        if verdict.decision is Decision.PASS:  # what is let through is looked at too, or nobody learns of escapes
            wanted = random.random() < keeping.audit_share
        if not wanted:
            return None
        now = time.monotonic()
        while self._kept_at and now - self._kept_at[0] > 3600:
            self._kept_at.popleft()
        if len(self._kept_at) >= keeping.keep_per_hour or self._queue.full() or self.quota.emergency:
            self.dropped += 1
            return None
        self._kept_at.append(now)
        return f"{time.time_ns() // 1000:x}"

    def keep(self, image: NDArray[np.uint8], result: Result) -> None:
        """Take over a frame that was claimed or is drawn for a thumbnail; copies it (1 ms at 5 MP) and never waits."""
        if result.image is None:
            self._keep_small(image, result)
            return
        try:
            self._queue.put_nowait((image.copy(), result))
        except queue.Full:  # cannot happen while the loop is the only caller
            self.dropped += 1

    def _keep_small(self, image: NDArray[np.uint8], result: Result) -> None:
        if result.verdict != Decision.PASS or random.random() >= self._keeping.thumbnail_share:
            return
        if not self._queue.empty() or self.quota.emergency:  # images that somebody should look at go first
            self.thumbnails_dropped += 1
            return
        self._queue.put_nowait((image.copy(), result))

    def close(self, timeout_s: float = 1.0) -> None:
        """Write what waits, for at most ``timeout_s`` seconds."""
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=timeout_s / 2)
        self._thread.join(timeout_s)

    def _work(self) -> None:
        with contextlib.suppress(OSError):  # let the hot path go first; not allowed everywhere
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        swept = float("-inf")
        sweeping: Iterator[Sweep] | None = None
        while True:
            if sweeping is None and time.monotonic() - swept > SWEEP_S:
                swept = time.monotonic()
                sweeping = sweep(self._root, self._ledger)
            try:
                item = self._queue.get(timeout=LOOK_S if sweeping is None else STEP_S)
            except queue.Empty:
                sweeping = self._look_after(sweeping)
                continue
            if item is None:
                self.thumbnails.close()
                return
            if item[1].image is None:
                self._write_small(*item)
                continue
            try:
                if not self._write(*item):
                    self.dropped += 1
                    continue
            except OSError as error:
                self.dropped += 1
                self._in_trouble = True
                self._on_trouble(f"images cannot be kept in {self._root / 'images'}: {error.strerror or error}")
            except Exception:  # a bug here must not end the thread, and is not hidden
                self.dropped += 1
                log.exception("an image could not be kept")
            else:
                self.kept += 1
                self._in_trouble = False
                self._on_trouble("")

    def _look_after(self, sweeping: Iterator[Sweep] | None) -> Iterator[Sweep] | None:
        """Use a moment without images: compare a file with the ledger, keep to the quotas. Never raises."""
        try:
            sweeping = self._step(sweeping)
            with contextlib.suppress(OSError):
                self.quota.watch()
            if self._in_trouble:
                self._try_the_disk()
            self.thumbnails.fit()
        except Exception:  # a bug here must not end the thread, and is not hidden
            log.exception("kept images could not be looked after")
            return None
        return sweeping

    def _try_the_disk(self) -> None:
        """Say that the trouble is over as soon as an image could be kept: the next one may be hours away."""
        folder = self._root / "images"
        with contextlib.suppress(OSError):
            folder.mkdir(exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as probe:
                probe.write(bytes(PROBE_BYTES))
                probe.flush()
                os.fsync(probe.fileno())
            self._in_trouble = False
            self._on_trouble("")

    def _step(self, sweeping: Iterator[Sweep] | None) -> Iterator[Sweep] | None:
        """Compare one more file with the ledger; None when that is over."""
        if sweeping is None:
            return None
        try:
            for done in sweeping:
                self._swept = done
                return sweeping
        except OSError as error:
            log.debug("images were not compared with the ledger: %s", error)
        if self._swept.adopted or self._swept.forgotten or self._swept.deleted:
            log.warning("images: %s", self._swept)
        return None

    def _write_small(self, image: NDArray[np.uint8], result: Result) -> None:
        """Write a small picture; what the disk does not take is counted, and who misses it more says why."""
        try:
            done = self.thumbnails.add(result.seq, result.trigger_unix_ns, result.product, image)
        except OSError as error:
            log.debug("a thumbnail could not be kept: %s", error)
            done = False
        except Exception:  # as with images
            log.exception("a thumbnail could not be kept")
            done = False
        if done:
            self.thumbnails_kept += 1
        else:
            self.thumbnails_dropped += 1

    def _write(self, image: NDArray[np.uint8], result: Result) -> bool:
        """Write one image; False when there is no room for it."""
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
        if not self.quota.make_room(result.verdict, len(data)):
            return False
        # The side-car first: an image without one would be an orphan, a side-car without an image is harmless.
        write_whole(path.with_suffix(".json"), json.dumps(json.loads(result.payload()), indent=1).encode())
        write_whole(path, data)
        name = path.relative_to(self._root).as_posix()
        try:
            self._ledger.add_image(result.image, result.seq, name, len(data), result.verdict)
        except OSError:
            remove_image_file(path)  # without a row it would not count against the quota
            raise
        return True


def _audit_bytes(keeping: Keeping) -> int:
    return keeping.max_bytes if keeping.audit_bytes is None else keeping.audit_bytes


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that its name never stands for half of it."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # or a power cut leaves the name with nothing in it
        part.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
