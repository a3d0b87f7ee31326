"""The simulated camera keeps the camera contract like any other."""

import pytest

from contracts.camera_contract import CameraContract
from contracts.isolated import Isolated


class TestSimulated(CameraContract):
    driver = "simulated"

    @pytest.fixture
    def options(self):
        return {"width": 320, "height": 256, "rate_hz": 50.0}

    @pytest.fixture
    def absent(self, options):
        return options | {"product": "no such product"}


class TestSimulatedInItsProcess(Isolated, TestSimulated):
    """Nothing changes for the caller when the driver lives in a camera process."""
