"""Keep the cache within a size: the oldest features go first, those of the set in use never; so do old checkpoints."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

LIMIT_BYTES = 20 * 2**30
"""Features of about 60,000 images at two input sizes: 0.1 MB each at 224 px, 0.2 MB at 320 px."""
TRIMMED_TO = 0.8
CHECKPOINT_S = 14 * 86_400.0
"""Age from which nobody goes on with a stopped tuning; one that runs writes its own after every epoch."""


def trim_cache(cache: Path, used: Collection[str], limit_bytes: int = LIMIT_BYTES) -> int:
    """Remove the oldest features when the cache is larger than the limit, and checkpoints that nobody goes on with.

    Parameters
    ----------
    cache
        The folder that holds ``features/`` and ``tuning/``; a folder that is not there is empty.
    used
        SHA-256 of the images that are in use; what belongs to them stays.
    limit_bytes
        Size at which to start; removal ends at four fifths of it.

    Returns
    -------
    int
        Bytes removed. What cannot be removed stays, and is no error: the model that was trained is written.
    """
    too_old = time.time() - CHECKPOINT_S
    removed = sum(_remove(path, bytes_) for changed, bytes_, path in _files(cache / "tuning") if changed < too_old)
    found = list(_files(cache / "features"))
    size = sum(bytes_ for _, bytes_, _ in found)
    if size <= limit_bytes:
        return removed
    keep = set(used)
    for _, bytes_, path in sorted(found):
        if size <= TRIMMED_TO * limit_bytes:
            break
        if os.path.basename(path).split(".")[0] not in keep:  # noqa: PTH119 - 100,000 paths
            gone = _remove(path, bytes_)
            size -= gone
            removed += gone
    return removed


def _remove(path: str, size: int) -> int:
    """Remove a file and return its size; 0 when it cannot be removed. Another training may have been faster."""
    with suppress(OSError):
        Path(path).unlink(missing_ok=True)
        return size
    return 0


def _files(folder: Path | str) -> Iterator[tuple[float, int, str]]:
    """Yield time of change, size in bytes and path of every file; what cannot be read is left alone."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files(entry.path)
                continue
            with suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                yield status.st_mtime, status.st_size, entry.path
