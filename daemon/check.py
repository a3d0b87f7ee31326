"""`lineward check`: try everything a station needs, once, and say what is wrong, where, and what to do."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lineward.daemon.config import ConfigError
from lineward.daemon.endpoint import why
from lineward.daemon.line import endpoint
from lineward.daemon.mqtt import Connection
from lineward.daemon.recipes import DEFAULT, Recipes
from lineward.drivers.camera import CameraError, Frame, NoFrameReason
from lineward.drivers.process import CameraProcess
from lineward.models.bundle import BundleError

if TYPE_CHECKING:
    from pathlib import Path

    from lineward.daemon.config import Config
    from lineward.drivers.camera import Camera, NoFrame

FIRST_FRAME_S = 5.0
BROKER_S = 3.0
LOW_DISK_GB = 1.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was tried."""

    what: str
    fine: bool
    text: str

    def to_json(self) -> dict[str, object]:
        """Return the form of ``lineward check --json``."""
        return {"what": self.what, "fine": self.fine, "text": self.text}


def check_all(config: Config) -> list[Finding]:
    """Try storage, model, camera and broker; never raises for what it finds."""
    recipes = Recipes(config)
    return [
        Finding("config", fine=True, text=f"station {config.station.base_topic}"),
        check_storage(config.storage.root),
        *(check_recipe(recipes, name) for name in recipes.names),
        check_camera(config),
        check_broker(config),
    ]


def check_storage(root: Path) -> Finding:
    """Write a file to the storage folder, and look at the space that is left."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root) as probe:
            probe.write(b"x")
            probe.flush()
            os.fsync(probe.fileno())
        free_gb = shutil.disk_usage(root).free / 1e9
    except OSError as error:
        reason = error.strerror or str(error)
        return Finding("storage", False, f"{root}: {reason}; mend it or choose another storage.root")
    if free_gb < LOW_DISK_GB:
        return Finding("storage", False, f"{root}: {free_gb:.2f} GB free; make room or lower storage.max_gb")
    return Finding("storage", True, f"{root}: writable, {free_gb:.1f} GB free")


def check_recipe(recipes: Recipes, name: str) -> Finding:
    """Load and warm the model of one recipe."""
    what = "model" if name == DEFAULT else f"recipe {name}"
    try:
        ready, session = recipes.load(recipes.find(name))
    except BundleError as error:
        return Finding(what, False, str(error))
    manifest = session.manifest
    if session.missing_providers:
        missing = ", ".join(session.missing_providers)
        return Finding(what, False, f"{missing} is not available here; judged by {session.providers[0]} instead")
    if ready.too_slow:
        return Finding(what, False, ready.too_slow)
    size = f"{manifest.input.width}x{manifest.input.height}"
    return Finding(what, True, f"{manifest.product} {manifest.version}, input {size}, {session.providers[0]}")


def check_camera(config: Config) -> Finding:
    """Open the camera in a process of its own, write the settings, and take one frame."""
    camera = CameraProcess(config.camera.driver, config.camera.driver_options())
    try:
        info = camera.open()
        camera.configure(config.camera.settings)
        camera.start()
        if config.camera.trigger != "free_run":
            return Finding("camera", True, f"{info.name} (serial {info.serial}) opened; waits for triggers")
        got, unread = _first_frame(camera)
    except CameraError as error:
        return Finding("camera", False, str(error))
    finally:
        camera.close()
    if not isinstance(got, Frame):
        text = got.detail or f"no frame within {FIRST_FRAME_S:g} s; check trigger mode, exposure and cable"
        return Finding("camera", False, f"{info.name} (serial {info.serial}): {text}")
    height, width = got.image.shape[:2]
    said = f"; {len(unread)} files before it are skipped, such as {unread[0]}" if unread else ""
    return Finding("camera", True, f"{info.name} (serial {info.serial}), {width}x{height}{said}")


def _first_frame(camera: Camera) -> tuple[Frame | NoFrame, list[str]]:
    """Return the first frame, and what a replay says of the files that it skips on the way there."""
    unread: list[str] = []
    until = time.monotonic() + FIRST_FRAME_S
    while True:
        got = camera.grab(max(until - time.monotonic(), 0.0))
        if isinstance(got, Frame) or got.reason is not NoFrameReason.BROKEN_FILE:
            return got, unread
        unread.append(got.detail)


def check_broker(config: Config) -> Finding:
    """Log in to the broker and ask for the commands."""
    base = config.station.base_topic
    try:
        broker = endpoint(config)
    except ConfigError as error:
        return Finding("broker", False, str(error))
    # Another client id: a second one with the station's own would throw the running service out.
    visitor = replace(broker, client_id=f"{broker.client_id}-check-{os.getpid()}"[:64])
    try:
        link = Connection(visitor, f"{base}/check", b"", timeout_s=BROKER_S, silence_s=BROKER_S)
        link.subscribe([f"{base}/cmd/+"])
        link.finish(BROKER_S)
    except OSError as error:
        return Finding("broker", False, f"{broker}: {why(error, broker)}")
    return Finding("broker", True, f"{broker}: connected")
