"""Room for images: quotas by class, oldest first, and what happens when the disk itself runs full.

Labelled images are not in here: they have a second name below ``labelled/``, which nothing deletes.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

from lineward.daemon.ledger_file import LedgerError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lineward.daemon.ledger import Ledger
    from lineward.daemon.ledger_read import ImageRow

EMERGENCY = 0.95
"""Share of the disk in use from which on no image is kept and old ones are let go."""

OVER = 0.93
"""Share at which that ends; between the two nothing changes, or it would come and go with every image."""

KEPT_IN_EMERGENCY = 0.1
"""Share of the quota that stays even then: whatever else fills the disk must not cost every image there is."""

LOOK_S = 5.0
AT_A_LOOK = 1000
"""Most images of a kind that are let go at one look at the disk."""

AUDIT = "pass"
"""The class of passed parts kept as a random sample; every other kind was kept because somebody should look at it."""


def used_share(folder: Path) -> float:
    """Return how full the disk of a folder is for those who are not root, 0..1. Raises `OSError`."""
    disk = os.statvfs(folder)
    used = disk.f_blocks - disk.f_bfree
    return used / max(1, used + disk.f_bavail)


class Quota:
    """Decides what may stay; called by the thread that writes images, and by no other.

    Parameters
    ----------
    max_bytes
        Of all images together.
    audit_bytes
        Of those of passed parts.
    spare
        Lets go of what may be lost altogether, at the beginning of an emergency.
    on_trouble
        Told what is wrong with the disk, in one line; empty when it is over.
    """

    def __init__(
        self,
        root: Path,
        ledger: Ledger,
        *,
        max_bytes: int,
        audit_bytes: int,
        spare: Callable[[], None] = lambda: None,
        on_trouble: Callable[[str], None] = lambda _text: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root = root
        self._ledger = ledger
        self.max_bytes = max_bytes
        self.audit_bytes = audit_bytes
        self._spare = spare
        self._on_trouble = on_trouble
        self._clock = clock
        self._looked = float("-inf")
        self.emergency = False
        self._unforgotten: dict[str, int] = {}  # bytes of images that are deleted and that the ledger still lists
        self.let_go = 0
        """Images deleted to make room since the start."""

    def make_room(self, kind: str, wanted: int) -> bool:
        """Delete the oldest images until ``wanted`` more bytes fit; False: there is no room for this one.

        Raises `OSError` when the ledger cannot tell.
        """
        self.watch()
        if self.emergency or wanted > self.max_bytes:
            return False
        if kind == AUDIT:
            if wanted > self.audit_bytes:
                return False
            while self._ledger.image_bytes(AUDIT) + wanted > self.audit_bytes and self._release(AUDIT):
                pass
        while self._ledger.image_bytes() + wanted > self.max_bytes and self._release():
            pass
        return True

    def watch(self) -> None:
        """Look at the disk, at most every few seconds, and let images go while it is nearly full."""
        now = self._clock()
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        self._forget()
        try:
            share = used_share(self._root)
        except OSError:
            return  # who writes there says what is wrong
        if share < (OVER if self.emergency else EMERGENCY):
            if self.emergency:
                self.emergency = False
                self._on_trouble("")
            return
        self.emergency = True
        self._on_trouble(
            f"the disk of {self._root} is {100 * EMERGENCY:.0f} % full or more: inspection goes on, no image is kept "
            "and the oldest are deleted; make room there, or lower storage.max_gb"
        )
        self._shrink()

    def _shrink(self) -> None:
        """Let small pictures go, then images, the random sample first, until the disk has room or a tenth is left.

        A ledger that cannot forget an image, because its disk is full, keeps no file from being deleted: it forgets
        what is gone when there is room again.
        """
        self._spare()
        least = KEPT_IN_EMERGENCY * self.max_bytes
        for kind in (AUDIT, None):
            for image in self._ledger.oldest_images(len(self._unforgotten) + AT_A_LOOK, kind):
                left = self._ledger.image_bytes() - sum(self._unforgotten.values())
                if left <= least or used_share(self._root) < OVER:
                    return
                if image.image_id in self._unforgotten:
                    continue
                try:
                    self._delete(image)
                except LedgerError:
                    self._unforgotten[image.image_id] = image.bytes

    def _forget(self) -> None:
        """Take what was deleted out of the ledger as well, as far as it can do that now."""
        with contextlib.suppress(LedgerError):
            for image_id in tuple(self._unforgotten):
                self._ledger.remove_image(image_id)
                del self._unforgotten[image_id]

    def _release(self, kind: str | None = None) -> bool:
        """Delete the oldest image of a kind, or of all; False when there is none."""
        oldest = self._ledger.oldest_images(1, kind)
        if not oldest:
            return False
        self._delete(oldest[0])
        return True

    def _delete(self, image: ImageRow) -> None:
        remove_image_file(self._root / image.path)
        self.let_go += 1
        self._ledger.remove_image(image.image_id)


def remove_image_file(path: Path) -> None:
    """Delete an image and its side-car; fine when they are gone already."""
    path.unlink(missing_ok=True)
    path.with_suffix(".json").unlink(missing_ok=True)
