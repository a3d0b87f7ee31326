"""Camera processes replaced again and again, and streams started and stopped; what stays behind is read from /proc."""

from __future__ import annotations

import gc
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lineward.drivers.camera import Frame

if TYPE_CHECKING:
    from lineward.drivers.process import CameraProcess

WARM_UP_SHARE = 0.1
READINGS = 10
SETTINGS = {"TestPattern": "FrameId", "ExposureTime": 100.0, "AcquisitionFrameRate": 500.0}


@dataclass(frozen=True)
class Reading:
    """What a process holds: resident kilobytes and open files."""

    rss_kb: int
    files: int


def reading(pid: int) -> Reading:
    """Look at a process."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    rss = next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))
    return Reading(rss, len(list(Path(f"/proc/{pid}/fd").iterdir())))


def one_frame(camera: CameraProcess) -> None:
    """Take a whole frame; a camera process that gives none fails the run."""
    deadline = time.monotonic() + 10
    while not isinstance(camera.grab(1.0), Frame):
        assert time.monotonic() < deadline, "no frame came"


def recycle(camera: CameraProcess) -> None:
    """Replace the camera process."""
    camera.close()
    camera.open()
    camera.configure(SETTINGS)
    camera.start()
    one_frame(camera)


def restart(camera: CameraProcess) -> None:
    """Stop and start the stream."""
    camera.stop()
    camera.start()
    one_frame(camera)


ACTS = {"recycles": recycle, "start/stops": restart}


def repeat(camera: CameraProcess, what: str, number: int) -> dict[str, list[Reading]]:
    """Do it many times; return what our process and the camera process held, read ten times after the warm-up."""
    recycle(camera)
    seen: dict[str, list[Reading]] = {"inspection": []}
    if what == "start/stops":
        seen["camera"] = []
    first = max(1, round(WARM_UP_SHARE * number))
    looks = {first + round(look * (number - first) / (READINGS - 1)) for look in range(READINGS)}
    for count in range(1, number + 1):
        ACTS[what](camera)
        if count in looks:
            gc.collect()
            seen["inspection"].append(reading(os.getpid()))
            if "camera" in seen:
                assert camera.pid is not None
                seen["camera"].append(reading(camera.pid))
    return seen


def growth(seen: list[Reading]) -> float:
    """Return by how many percent the resident size grew from the first reading to the last."""
    return 100 * (seen[-1].rss_kb / seen[0].rss_kb - 1)
