"""The simulated camera keeps the camera contract like any other."""

import pytest

from contracts.camera_contract import CameraContract


class TestSimulated(CameraContract):
    driver = "simulated"

    @pytest.fixture
    def options(self):
        return {"width": 320, "height": 256, "rate_hz": 50.0}

    @pytest.fixture
    def absent(self):
        pytest.skip("a simulated camera is always there")
