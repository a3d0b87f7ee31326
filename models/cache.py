"""Keep the cache of features within a size: the oldest go first, those of the set in use never."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

LIMIT_BYTES = 20 * 2**30
"""Features of about 60,000 images at two input sizes: 0.1 MB each at 224 px, 0.2 MB at 320 px."""
TRIMMED_TO = 0.8


def trim_cache(cache: Path, used: Collection[str], limit_bytes: int = LIMIT_BYTES) -> int:
    """Remove the oldest features when the cache is larger than the limit.

    Parameters
    ----------
    cache
        The folder that holds ``features/``; a folder that is not there is empty.
    used
        SHA-256 of the images that are in use; what belongs to them stays.
    limit_bytes
        Size at which to start; removal ends at four fifths of it.

    Returns
    -------
    int
        Bytes removed. A file that another training removed at the same time is not an error.
    """
    found = list(_files(cache / "features"))
    size = sum(bytes_ for _, bytes_, _ in found)
    if size <= limit_bytes:
        return 0
    keep, removed = set(used), 0
    for _, bytes_, path in sorted(found):
        if size - removed <= TRIMMED_TO * limit_bytes:
            break
        if os.path.basename(path).split(".")[0] not in keep:  # noqa: PTH119 - 100,000 paths
            Path(path).unlink(missing_ok=True)
            removed += bytes_
    return removed


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
