"""`lineward cameras tune`: live figures of one camera, one setting at a time, saved as TOML for the configuration."""

from __future__ import annotations

import errno
import json
import os
import tempfile
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lineward.daemon.review import write_whole
from lineward.drivers.camera import CameraError, Frame

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from lineward.drivers.camera import CameraInfo, Setting
    from lineward.drivers.process import CameraProcess

ZONES = 3
"""The picture is read in 3 x 3 zones: a lamp fails at one end, a lens tilts to one side."""

READ_EVERY_S = 0.2
WINDOW = 100


class SettingTextError(ValueError):
    """A setting on the command line is not ``Name=value``."""


class SaveError(ValueError):
    """The settings cannot be saved; the message names the file and the reason."""


def parse_setting(text: str) -> tuple[str, Setting]:
    """Read ``Name=value``; the value is a number, true or false when it looks like one, else a word.

    Raises
    ------
    SettingTextError
        There is no name or no value.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    if not (name and equals and value):
        raise SettingTextError(f"--set {text}: write it as Name=value, as in --set ExposureTime=5000")
    if value.lower() in {"true", "false"}:
        return name, value.lower() == "true"
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, value


def zone_readings(image: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Measure brightness and sharpness in 3 x 3 zones.

    Parameters
    ----------
    image
        ``(H, W)`` or ``(H, W, 3)`` uint8, RGB.

    Returns
    -------
    tuple
        Brightness, mean grey value 0..255, and sharpness, the variance of the Laplacian (grey values squared; compare
        it only on the same scene), each ``(3, 3)``. A picture below 3 pixels on a side has zones without pixels: 0.
    """
    grey = image if image.ndim == 2 else np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)
    edges = cv2.Laplacian(grey, cv2.CV_32F)
    brightness, sharpness = np.zeros((ZONES, ZONES)), np.zeros((ZONES, ZONES))
    rows = np.linspace(0, grey.shape[0], ZONES + 1).astype(int)
    columns = np.linspace(0, grey.shape[1], ZONES + 1).astype(int)
    for i in range(ZONES):
        for j in range(ZONES):
            zone = np.s_[rows[i] : rows[i + 1], columns[j] : columns[j + 1]]
            if grey[zone].size:
                brightness[i, j] = grey[zone].mean()
                sharpness[i, j] = edges[zone].var()
    return brightness, sharpness


@dataclass
class Readings:
    """What was seen so far."""

    info: CameraInfo
    applied: Mapping[str, Setting]
    frames: int = 0
    missing: Counter[str] = field(default_factory=Counter)
    arrived: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    latency_ms: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    size: tuple[int, int] = (0, 0)
    brightness: NDArray[np.float64] = field(default_factory=lambda: np.zeros((ZONES, ZONES)))
    sharpness: NDArray[np.float64] = field(default_factory=lambda: np.zeros((ZONES, ZONES)))
    read_at: float = 0.0

    def see(self, frame: Frame) -> None:
        """Take in one frame."""
        now = time.monotonic()
        self.frames += 1
        self.missing.update({str(cause): count for cause, count in frame.missing.items()})
        self.arrived.append(frame.received_ns / 1e9)
        self.latency_ms.append(now * 1e3 - frame.received_ns / 1e6)
        if now - self.read_at >= READ_EVERY_S:
            self.read_at = now
            self.size = (frame.image.shape[1], frame.image.shape[0])
            self.brightness, self.sharpness = zone_readings(frame.image)

    @property
    def fps(self) -> float:
        """Frames per second over the last hundred."""
        if len(self.arrived) < 2 or self.arrived[-1] <= self.arrived[0]:
            return 0.0
        return (len(self.arrived) - 1) / (self.arrived[-1] - self.arrived[0])

    def to_json(self) -> dict[str, Any]:
        """Return the form of ``lineward cameras tune --json``."""
        latency = np.array(self.latency_ms or [0.0])
        return {
            "camera": self.info.name,
            "serial": self.info.serial,
            "settings": dict(self.applied),
            "width": self.size[0],
            "height": self.size[1],
            "frames": self.frames,
            "fps": round(self.fps, 2),
            "missing": dict(self.missing),
            "latency_ms": {"p50": round(float(np.median(latency)), 2), "max": round(float(latency.max()), 2)},
            "brightness": self.brightness.round(1).tolist(),
            "sharpness": self.sharpness.round(1).tolist(),
        }

    def table(self) -> Group:
        """Lay the readings out for a terminal."""
        figures = self.to_json()
        facts = Table(show_header=False, box=None)
        facts.add_row("camera", Text(f"{figures['camera']} (serial {figures['serial']})"))
        facts.add_row("picture", f"{figures['width']} x {figures['height']}, {figures['fps']:.1f} frames/s")
        facts.add_row("missing", ", ".join(f"{n} by {cause}" for cause, n in self.missing.items()) or "none")
        facts.add_row("latency", f"p50 {figures['latency_ms']['p50']} ms, max {figures['latency_ms']['max']} ms")
        facts.add_row("settings", Text(", ".join(f"{name} = {value}" for name, value in self.applied.items()) or "-"))
        zones = Table("zone", "left", "middle", "right", title="brightness 0..255 / sharpness")
        for name, bright, sharp in zip(("top", "middle", "bottom"), self.brightness, self.sharpness, strict=True):
            zones.add_row(name, *(f"{b:.0f} / {s:.0f}" for b, s in zip(bright, sharp, strict=True)))
        return Group(facts, zones)


def tune(
    camera: CameraProcess,
    settings: Mapping[str, Setting],
    *,
    seconds: float,
    stop: threading.Event,
    live: bool,
) -> Readings:
    """Write settings, grab for a while and measure; a table is kept up to date on the terminal when ``live``.

    Raises
    ------
    CameraError
        The camera cannot be opened, refuses a setting, or is lost.
    """
    try:
        info = camera.open()
        readings = Readings(info, camera.configure(settings))
        camera.start()
        end = time.monotonic() + seconds
        with Live(console=Console(stderr=True), refresh_per_second=4, transient=True) as screen:
            while time.monotonic() < end and not stop.is_set():
                got = camera.grab(0.2)
                if isinstance(got, Frame):
                    readings.see(got)
                if live:
                    screen.update(readings.table())
    finally:
        camera.close()
    if not readings.frames:
        raise CameraError(f"{info.name} (serial {info.serial}): no frame in {seconds:g} s; check its trigger mode")
    return readings


def settings_toml(driver: str, selector: Mapping[str, object], applied: Mapping[str, Setting]) -> str:
    """Write camera and settings as they go into the configuration file."""
    lines = ["[camera]", f"driver = {json.dumps(driver)}"]
    lines += [f"{name} = {_toml(value)}" for name, value in selector.items() if value]
    lines += ["", "[camera.settings]", *(f"{name} = {_toml(value)}" for name, value in applied.items())]
    return "\n".join(lines) + "\n"


def check_place(path: Path) -> None:
    """See that a file can be written before somebody waits for what is to be in it; raises `SaveError`."""
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise _not_saved(path, error) from error


def save_settings(path: Path, text: str) -> None:
    """Write the TOML file, whole or not at all; raises `SaveError`."""
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise _not_saved(path, error) from error


def _not_saved(path: Path, error: OSError) -> SaveError:
    return SaveError(f"{path}: cannot be written: {error.strerror}; choose another place for --save")


def _toml(value: object) -> str:
    """Write a value as TOML; JSON has the same strings, numbers, booleans and arrays."""
    return json.dumps(value, ensure_ascii=False)
