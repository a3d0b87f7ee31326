"""The genicam driver keeps the camera contract, through harvesters, on the producer inside the genicam package."""

import pytest

from contracts.camera_contract import CameraContract
from contracts.isolated import Isolated


class TestGenicamOnViky(CameraContract):
    driver = "genicam"
    settings = {"PixelFormat": "Mono8", "Width": 320, "Height": 240, "AcquisitionFrameRate": 100.0}  # noqa: RUF012
    software_trigger = False  # viky has no trigger at all

    @pytest.fixture
    def options(self):
        return {"producers": ["viky"], "serial": "0"}

    @pytest.fixture
    def absent(self, options):
        return options | {"serial": "no such serial"}


class TestGenicamOnVikyInColour(TestGenicamOnViky):
    settings = {"PixelFormat": "RGBa8", "Width": 320, "Height": 240, "AcquisitionFrameRate": 200.0}  # noqa: RUF012

    @pytest.fixture
    def options(self):
        return {"producers": ["viky"], "serial": "1"}


class TestGenicamOnVikyInItsProcess(Isolated, TestGenicamOnViky):
    """Nothing changes for the caller when the driver lives in a camera process."""
