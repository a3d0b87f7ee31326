"""The aravis driver keeps the camera contract, on a GigE Vision camera behind a network cable."""

import pytest

from contracts.camera_contract import CameraContract
from contracts.isolated import Isolated
from gige import plugged_in


@pytest.fixture(scope="module")
def gige():
    camera = plugged_in()
    yield camera
    camera.remove()


class TestAravis(CameraContract):
    driver = "aravis"
    settings = {  # noqa: RUF012
        "PixelFormat": "Mono8",
        "Width": 320,
        "Height": 240,
        "AcquisitionFrameRate": 100.0,
        "ExposureTimeAbs": 1000.0,
    }

    @pytest.fixture
    def options(self, gige):
        return {"address": gige.address, "serial": gige.serial}

    @pytest.fixture
    def absent(self, options):
        return options | {"serial": "no such serial"}


class TestAravisInAProcessOfItsOwn(Isolated, TestAravis):
    pass
