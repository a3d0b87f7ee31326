"""What imports, uploads, exports and trainings are made in; what a killed process left is cleared at the next start.

Whoever works in the storage folder holds a shared lock on it, which ends with the process: a page on another port, or
`lineward review import` beside the page, loses nothing.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from typing import TYPE_CHECKING

from lineward.daemon.label_records import FOLDER

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger("lineward.web")

IMPORT, UPLOAD, EXPORT = ".import-", ".upload-", ".export-"
JOBS = "review/jobs"
DATA, SCRATCH = OF_JOB = "data", "scratch"
"""In the folder of a training: what it learns from, and what it puts aside for itself."""


class AtWork:
    """Keeps others from clearing this folder until it is closed."""

    def __init__(self, root: Path) -> None:
        self._handle = os.open(root, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(self._handle, fcntl.LOCK_SH)

    def close(self) -> None:
        """Give the folder free."""
        os.close(self._handle)


def clear(root: Path) -> None:
    """Remove what killed processes left, unless another one works here now."""
    handle = os.open(root, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ours = [*(root / FOLDER).glob(f"{IMPORT}*"), *root.glob(f"{UPLOAD}*"), *root.glob(f"{EXPORT}*")]
        of_jobs = (path for name in OF_JOB for path in root.glob(f"{JOBS}/*/{name}"))
        for left in [*ours, *of_jobs]:
            log.info("%s: left by a process that was killed; removed", left)
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
    except OSError as error:
        log.debug("%s: not cleared: %s", root, error)
    finally:
        os.close(handle)
