"""A folder of image files as a camera: each file is one frame, in the order of `sorted`."""

from __future__ import annotations

import fnmatch
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from lineward.drivers import progress
from lineward.drivers.camera import (
    CameraError,
    CameraHealth,
    CameraInfo,
    CameraNotFoundError,
    CameraSettingError,
    Cause,
    Frame,
    NoFrame,
    NoFrameReason,
    Trigger,
)
from lineward.images import SUFFIXES, ImageFileError, read_image

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lineward.drivers.camera import Setting

_WAKE_S = 0.1  # a paced replay or one that waits for its trigger looks up this often at most


class FolderCamera:
    """Replays the image files of a folder and its subfolders.

    The order is that of ``sorted()`` over the paths relative to the folder, written with ``/``: plain comparison of
    characters, so ``10.png`` comes before ``9.png``. The list is made at `open`; a file that is gone or cannot be read
    when its turn comes is answered with `NoFrameReason.BROKEN_FILE` and counted. ``frame_id`` is the position in the
    list from 0 and goes on rising when the folder starts over; a broken file uses up its number. After `stop` the
    replay goes on where it was, after `open` it begins at ``start_index``.

    Reading a file takes its time whatever ``timeout_s`` says: 60 to 200 ms for a 5-megapixel PNG.

    Parameters
    ----------
    folder
        Where the files are.
    loop
        Start over after the last file. A pass without a single readable file ends the replay all the same.
    rate_hz
        Files per second; 0 gives each as soon as it is asked for. Nothing is ever dropped.
    significant_bits
        See `read_image`.
    pattern
        Only files whose relative path matches, as a shell matches it (``*`` also stands for ``/``).
    trigger
        ``free_run``, or ``software``: one file per trigger.
    start_index
        Frame number to begin with, so that a replay that was cut off goes on without repeating itself.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        loop: bool = False,
        rate_hz: float = 0.0,
        significant_bits: int = 16,
        pattern: str = "*",
        trigger: str = Trigger.FREE_RUN,
        start_index: int = 0,
    ) -> None:
        self._trigger_mode = Trigger(trigger)
        if self._trigger_mode is Trigger.HARDWARE:
            raise ValueError("driver folder: trigger = 'hardware' is impossible, files have no trigger line")
        if not 0 <= rate_hz < float("inf"):
            raise ValueError(f"driver folder: rate_hz = {rate_hz} is impossible; 0 means as fast as they are taken")
        if not 8 <= significant_bits <= 16:
            raise ValueError(f"driver folder: significant_bits = {significant_bits}; 8 to 16 is possible")
        if start_index < 0:
            raise ValueError(f"driver folder: start_index = {start_index} is impossible; frames count from 0")
        self._folder = Path(folder)
        self._loop = loop
        self._period_s = 1 / rate_hz if rate_hz else 0.0
        self._significant_bits = significant_bits
        self._pattern = pattern
        self._start_index = start_index
        self._names: list[str] = []
        self._streaming = False
        self._next = start_index
        self._due = 0.0
        self._broken = 0
        self._broken_in_a_row = 0
        self._frames = 0
        self._trigger_id = 0
        self._outstanding: int | None = None
        self._triggers_missed = 0

    def open(self) -> CameraInfo:
        """List the folder's files."""
        self.close()
        if not self._folder.is_dir():
            raise CameraNotFoundError(f"{self._folder}: there is no such folder; check [camera] folder")
        self._names = list_files(self._folder, self._pattern)
        if not self._names:
            raise CameraNotFoundError(
                f"{self._folder}: no file to replay (pattern {self._pattern!r}, {', '.join(sorted(SUFFIXES))}); "
                "put images there or correct [camera] folder"
            )
        self._next = self._start_index
        self._broken = self._broken_in_a_row = self._frames = self._triggers_missed = 0
        path = self._folder.resolve()
        return CameraInfo(name=path.name, serial=str(path), driver="folder", transport="files", realtime=False)

    def configure(self, settings: Mapping[str, Setting]) -> Mapping[str, Setting]:
        """Refuse every feature: a file has none."""
        if not self._names:
            raise CameraError(f"{self._folder}: configure was called before open")
        for name in settings:
            raise CameraSettingError(
                f"{self._folder}: no feature {name!r}, files have none; remove it from the settings"
            )
        return {}

    def start(self) -> None:
        """Begin, or go on, with the next file."""
        if not self._names:
            raise CameraError(f"{self._folder}: start was called before open")
        self._streaming = True
        self._outstanding = None
        self._due = time.monotonic()

    def stop(self) -> None:
        """Give no further file until the next start."""
        self._streaming = False
        self._outstanding = None

    def trigger(self) -> int:
        """Release the next file."""
        if self._trigger_mode is not Trigger.SOFTWARE:
            raise CameraError(f"{self._folder}: a trigger was given, but trigger = '{self._trigger_mode}'")
        if not self._streaming:
            raise CameraError(f"{self._folder}: a trigger was given before start")
        if self._outstanding is not None:
            raise CameraError(f"{self._folder}: trigger {self._outstanding} is still outstanding")
        self._trigger_id += 1
        self._outstanding = self._trigger_id
        return self._trigger_id

    def grab(self, timeout_s: float) -> Frame | NoFrame:
        """Read the next file when it is due."""
        deadline = time.monotonic() + max(timeout_s, 0.0)
        if self._streaming and self._ended():
            return NoFrame(NoFrameReason.END, self._end_detail())
        if not self._wait_until_due(deadline):
            return NoFrame(NoFrameReason.TIMEOUT)
        if self._period_s:
            # A late caller gets the next file a full period later: a replay has no backlog to catch up with.
            self._due = max(self._due + self._period_s, time.monotonic())
        return self._read_next()

    def flush(self) -> int:
        """Give up an outstanding trigger; files that were not asked for are not lost, so none is counted."""
        if self._outstanding is not None:
            self._outstanding = None
            self._triggers_missed += 1
        return 0

    def health(self) -> CameraHealth:
        """Count frames and broken files since `open`."""
        counts = {Cause.BROKEN_FILE: self._broken, Cause.TRIGGER_MISSED: self._triggers_missed}
        return CameraHealth(frames=self._frames, missing={cause: n for cause, n in counts.items() if n})

    def close(self) -> None:
        """Forget the list of files."""
        self.stop()
        self._names = []

    def _ended(self) -> bool:
        if self._loop:
            return self._broken_in_a_row >= len(self._names)
        return self._next >= len(self._names)

    def _end_detail(self) -> str:
        if self._broken_in_a_row >= len(self._names):
            return f"{self._folder}: none of the {len(self._names)} files can be read"
        return f"{self._folder}: all {len(self._names)} files are replayed"

    def _wait_until_due(self, deadline: float) -> bool:
        """Sleep until a file may be given; False when the deadline comes first."""
        while True:
            now = time.monotonic()
            waiting = not self._streaming or (self._trigger_mode is Trigger.SOFTWARE and self._outstanding is None)
            if not waiting and now >= self._due:
                return True
            if now >= deadline:
                return False
            due = now + _WAKE_S if waiting else min(self._due, now + _WAKE_S)
            time.sleep(max(min(due, deadline) - now, 0.0))

    def _read_next(self) -> Frame | NoFrame:
        frame_id = self._next
        name = self._names[frame_id % len(self._names)]
        self._next += 1
        trigger_id, self._outstanding = self._outstanding, None
        try:
            image = read_image(self._folder / name, significant_bits=self._significant_bits)
        except ImageFileError as error:
            self._broken += 1
            self._broken_in_a_row += 1
            return NoFrame(NoFrameReason.BROKEN_FILE, _printable(str(error)))
        image.flags.writeable = False
        missing = {Cause.BROKEN_FILE: self._broken_in_a_row} if self._broken_in_a_row else {}
        self._broken_in_a_row = 0
        self._frames += 1
        return Frame(
            image=image,
            frame_id=frame_id,
            received_ns=time.monotonic_ns(),
            trigger_id=trigger_id,
            missing=missing,
            source=_printable(name),
        )


def list_files(folder: Path, pattern: str = "*") -> list[str]:
    """List image files of a folder and its subfolders: relative paths with ``/``, sorted character by character."""
    found = []
    for where, _, files in os.walk(folder):
        progress.step()
        base = Path(where).relative_to(folder)
        names = ((base / file).as_posix() for file in files if Path(file).suffix.lower() in SUFFIXES)
        found += [name for name in names if fnmatch.fnmatchcase(name, pattern)]
    return sorted(found)


def _printable(text: str) -> str:
    """Make a file name that is no UTF-8 fit for a log, a database and JSON: its odd bytes become escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
