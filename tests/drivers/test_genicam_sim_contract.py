"""The genicam driver keeps the camera contract on the simulated GenTL producer, which can be triggered."""

import pytest

from contracts.camera_contract import CameraContract
from contracts.isolated import Isolated

pytest_plugins = ["gentl_sim.fixtures"]


class TestGenicamOnSim(CameraContract):
    driver = "genicam"
    settings = {  # noqa: RUF012
        "PixelFormat": "Mono8",
        "Width": 320,
        "Height": 240,
        "TestPattern": "FrameId",
        "ExposureTime": 500.0,
        "AcquisitionFrameRate": 100.0,
    }

    @pytest.fixture
    def options(self, sim):
        return {"producers": [str(sim.file)], "serial": "SIM-A"}

    @pytest.fixture
    def absent(self, options):
        return options | {"serial": "no such serial"}


class TestGenicamOnSimInColour(TestGenicamOnSim):
    settings = TestGenicamOnSim.settings | {"PixelFormat": "BayerRG12p", "TestPattern": "Gradient"}

    @pytest.fixture
    def options(self, sim):
        return {"producers": [str(sim.file)], "user_id": "top"}


class TestGenicamOnSimInItsProcess(Isolated, TestGenicamOnSim):
    """As the daemon uses it."""
