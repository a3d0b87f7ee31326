"""`lineward doctor`: the station and the machine below it; each finding comes with the command that mends it."""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from typing import TYPE_CHECKING

from lineward.daemon import machine
from lineward.daemon.check import check_broker, check_camera, check_recipe
from lineward.daemon.config import AravisCamera, GenicamCamera
from lineward.daemon.control import ControlError, send
from lineward.daemon.endpoint import CREDENTIAL
from lineward.daemon.ledger_file import SCHEMA
from lineward.daemon.ledger_read import LedgerReader
from lineward.daemon.machine import Finding, Level
from lineward.daemon.recipes import Recipes
from lineward.daemon.review import Keeping
from lineward.drivers import registry
from lineward.drivers.camera import CameraError
from lineward.models.bundle import BundleError
from lineward.models.store import history

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from lineward.daemon.check import Finding as Checked
    from lineward.daemon.config import Config
    from lineward.drivers.camera import CameraInfo

ASK_S = 2.0
GIGE, USB3 = "GEV", "U3V"
"""How a camera is attached, in the words of GenTL."""


def examine(config: Config, path: Path) -> Iterator[Finding]:
    """Look at everything; never raises for what it finds, and never disturbs a station that runs."""
    yield Finding("config", Level.OK, f"{path}: station {config.station.base_topic}")
    runs = is_running(config.storage.root)
    yield service(config.storage.root, runs=runs)
    seen: list[CameraInfo] = []
    yield from cameras(config, seen, runs=runs)
    for recipes, name in _all(config):
        yield _of_check(check_recipe(recipes, name), mend_model(config.storage.root, recipes.find(name).model, path))
    yield _of_check(check_broker(config), mend_broker(config.mqtt.host))
    keeping = Keeping.of(config)
    quotas = keeping.max_bytes + keeping.thumbnail_bytes
    yield from machine.look_at_storage(config.storage.root, quota_bytes=quotas)
    if (database := config.storage.root / "ledger.sqlite3").exists():
        yield ledger(database, config.storage.max_gb)
    yield from machine.secrets(_secrets(config))
    links = transports(config.camera, seen)
    yield from machine.look_at_machine(network_camera=GIGE in links, usb_camera=USB3 in links)


def transports(camera: object, seen: Sequence[CameraInfo]) -> set[str]:
    """Return how the configured camera may be attached: as it says itself, or in any way where it is not seen."""
    if not isinstance(camera, GenicamCamera | AravisCamera):
        return set()
    if isinstance(camera, AravisCamera) and camera.address:
        return {GIGE}
    own = [info for info in seen if camera.serial in {"", info.serial} and camera.user_id in {"", info.user_id}]
    return {info.transport for info in own if info.transport} or {GIGE, USB3}


def mend_model(root: Path, model: Path, config: Path) -> str:
    """Return what to do when a model cannot be used: one of the store goes back, a file is to be had again."""
    if model.suffix:
        return f"copy {model} here again, or name another model in inspection.model"
    with suppress(BundleError):
        if len(history(root, str(model))) > 1:
            return f"lineward models rollback {model} --config {config}"
    return f"lineward models promote FILE.lward --config {config}"


def mend_broker(host: str) -> str:
    """Return where to look when a broker cannot be used; what is wrong with it stands in the finding."""
    if host in {"localhost", "127.0.0.1", "::1"}:
        return "sudo systemctl start mosquitto; journalctl --unit mosquitto --lines 20"
    return f"ping -c 3 {host}; then mqtt.host, mqtt.port and the firewall"


def is_running(root: Path) -> bool:
    """Whether a station answers on the control socket of this storage folder."""
    try:
        send(root, "stats", {}, timeout_s=ASK_S)
    except ControlError as error:
        return isinstance(error.__cause__, TimeoutError)
    except OSError:
        return False
    return True


def service(root: Path, *, runs: bool) -> Finding:
    """Say whether the station runs: that it does not is no fault of the machine."""
    if runs:
        return Finding("service", Level.OK, f"a station runs in {root}")
    return Finding("service", Level.HINT, f"no station runs in {root}", "sudo systemctl start lineward")


def ledger(path: Path, max_gb: float) -> Finding:
    """Say whether this program can go on with a ledger, and how much waits or is kept in it."""
    reader = LedgerReader(path)
    try:
        schema = reader.schema()
        if schema > SCHEMA:
            text = f"{path}: written by a newer Lineward (schema {schema}, this one knows {SCHEMA})"
            return Finding("ledger", Level.FAULT, text, "install that version again; this one does not touch it")
        ((waiting,),) = reader.select("SELECT count(*) FROM results WHERE acked = 0") or ((0,),)
        text = f"{waiting} answers wait for the broker, {reader.image_bytes() / 1e9:.1f} of {max_gb:g} GB of images"
    except (sqlite3.Error, UnicodeDecodeError) as error:
        mend = "sudo systemctl restart lineward  # moves it aside and makes it again"
        return Finding("ledger", Level.FAULT, f"{path} cannot be read: {error}", mend)
    finally:
        reader.close()
    return Finding("ledger", Level.OK, text)


def cameras(config: Config, seen: list[CameraInfo], *, runs: bool) -> Iterator[Finding]:
    """List producers and cameras, and take a picture unless a running station has the camera.

    The cameras go into ``seen`` as well.
    """
    camera = config.camera
    mend = "check power, cable and camera.serial; then `lineward cameras`"
    if camera.driver == "folder":
        mend = "look into camera.folder: it needs at least one image that can be read"
    if camera.driver in {"genicam", "aravis"}:
        options = {"producers": camera.producers} if camera.driver == "genicam" else {}
        try:
            found = registry.discover(camera.driver, options)
        except (CameraError, ValueError) as error:
            yield Finding("producers", Level.FAULT, str(error), mend)
        else:
            seen += found
            names = ", ".join(f"{info.name} {info.serial} ({info.access or 'free'})" for info in found)
            level = Level.OK if found else Level.FAULT
            yield Finding("producers", level, names or "no camera is seen", "" if found else mend)
    if runs:
        yield Finding("camera", Level.OK, "in use by the running station: it was not opened")
    else:
        yield _of_check(check_camera(config), mend)


def _all(config: Config) -> Iterator[tuple[Recipes, str]]:
    recipes = Recipes(config)
    for name in recipes.names:
        yield recipes, name


def _of_check(checked: Checked, mend: str) -> Finding:
    level = Level.OK if checked.fine else Level.FAULT
    return Finding(checked.what, level, checked.text, "" if checked.fine else mend)


def _secrets(config: Config) -> list[Path]:
    """Return the files with secrets that are not systemd's business."""
    tls = config.mqtt.tls
    files = [config.mqtt.password_file, None if tls is None else tls.key_file, config.review.key_file]
    return [file for file in files if file is not None and not os.fspath(file).startswith(CREDENTIAL)]
