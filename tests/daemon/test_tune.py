"""`cameras tune` measures what it says and saves what the configuration reads."""

from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from rich.console import Console

from lineward.daemon import cli
from lineward.daemon.config import load_config
from lineward.daemon.tune import (
    Readings,
    SaveError,
    SettingTextError,
    parse_setting,
    save_settings,
    settings_toml,
    tune,
    zone_readings,
)
from lineward.drivers.camera import CameraError, CameraInfo, CameraSettingError
from lineward.drivers.process import CameraProcess

if TYPE_CHECKING:
    from pathlib import Path

VIKY = {"producers": ["viky"], "serial": "0"}


def test_zones_tell_a_dark_corner_from_a_blurred_one() -> None:
    """The reading of a zone depends on that zone only."""
    picture = np.random.default_rng(0).integers(60, 200, (300, 450), np.uint8)
    dark, blurred = picture.copy(), picture.copy()
    dark[200:, 300:] //= 2
    blurred[:100, :150] = cv2.GaussianBlur(blurred[:100, :150], (0, 0), 3)
    brightness, sharpness = zone_readings(picture)
    dark_brightness, _ = zone_readings(dark)
    _, blurred_sharpness = zone_readings(blurred)
    assert dark_brightness[2, 2] == pytest.approx(brightness[2, 2] / 2, abs=1)
    assert np.allclose(np.delete(dark_brightness, 8), np.delete(brightness, 8))
    assert blurred_sharpness[0, 0] < sharpness[0, 0] / 20
    assert np.allclose(np.delete(blurred_sharpness, 0), np.delete(sharpness, 0), rtol=0.02)


@pytest.mark.parametrize("shape", [(1, 1), (2, 30000), (5, 7, 3)])
def test_odd_pictures_have_readings_too(shape: tuple[int, ...]) -> None:
    """A line-scan row or a tiny region must not end the tool."""
    brightness, sharpness = zone_readings(np.full(shape, 100, np.uint8))
    assert brightness.max() == pytest.approx(100)
    assert sharpness.max() == 0


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("ExposureTime=5000", ("ExposureTime", 5000)),
        ("Gain = 1.5", ("Gain", 1.5)),
        ("PixelFormat=Mono8", ("PixelFormat", "Mono8")),
        ("ReverseX=true", ("ReverseX", True)),
    ],
)
def test_a_setting_has_the_type_that_it_looks_like(text: str, setting: tuple[str, object]) -> None:
    """GenICam tells integer, float, enumeration and boolean apart."""
    assert parse_setting(text) == setting
    assert type(parse_setting(text)[1]) is type(setting[1])


@pytest.mark.parametrize("text", ["ExposureTime", "=5", "Gain="])
def test_a_setting_without_name_or_value_is_refused(text: str) -> None:
    """One clear line with an example."""
    with pytest.raises(SettingTextError, match="write it as Name=value"):
        parse_setting(text)


def test_a_camera_is_measured_and_its_settings_are_a_valid_configuration(tmp_path: Path) -> None:
    """From the bench to the configuration without typing anything again."""
    stop = threading.Event()
    settings = {"PixelFormat": "Mono8", "Width": 320, "Height": 240, "AcquisitionFrameRate": 50.0}
    readings = tune(CameraProcess("genicam", VIKY), settings, seconds=1.5, stop=stop, live=False)
    figures = readings.to_json()
    assert (figures["width"], figures["height"]) == (320, 240)
    assert 30 < figures["fps"] < 60
    assert figures["settings"] == settings
    path = tmp_path / "line.toml"
    save_settings(path, settings_toml("genicam", VIKY, readings.applied) + '\n[inspection]\nmodel = "m.lward"\n')
    config = load_config(path)
    assert config.camera.settings == settings
    assert config.camera.driver_options()["serial"] == "0"


def test_what_goes_wrong_is_a_camera_error_and_leaves_no_process() -> None:
    """A refused setting and a camera that sends nothing end in one line."""
    stop = threading.Event()
    camera = CameraProcess("genicam", VIKY)
    with pytest.raises(CameraSettingError, match="Width"):
        tune(camera, {"Width": 5}, seconds=1, stop=stop, live=False)
    assert camera.pid is None
    waiting = CameraProcess("simulated", {"trigger": "software"})
    with pytest.raises(CameraError, match="no frame in"):
        tune(waiting, {}, seconds=0.5, stop=stop, live=False)
    assert waiting.pid is None


def test_words_of_a_camera_are_no_markup() -> None:
    """Rule: name, serial number and settings are shown as the camera gives them."""
    info = CameraInfo(name="Eye [/b] :smile:", serial="[red]7", driver="genicam", realtime=True, simulated=True)
    console = Console(file=io.StringIO(), width=120, record=True)
    console.print(Readings(info, {"DeviceUserID": "[/left]"}).table())
    shown = console.export_text()
    assert "Eye [/b] :smile: (serial [red]7)" in shown
    assert "DeviceUserID = [/left]" in shown


def test_a_place_that_cannot_be_written_is_told_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rule: one line with the file that was given and the reason; no camera is asked."""
    for path, reason in ((tmp_path / "no" / "x.toml", "No such file or directory"), (tmp_path, "Is a directory")):
        message = f"{path}: cannot be written: {reason}; choose another place for --save"
        with pytest.raises(SystemExit) as left:
            cli.main(["cameras", "tune", "--serial", "nobody", "--save", str(path)])
        assert (left.value.code, capsys.readouterr().err) == (2, f"lineward: {message}\n")
        with pytest.raises(SaveError) as refused:
            save_settings(path, "")
        assert str(refused.value) == message
    assert not list(tmp_path.iterdir())
