"""The folder driver keeps the camera contract."""

import cv2
import numpy as np
import pytest

from contracts.camera_contract import CameraContract
from contracts.isolated import Isolated


class TestFolder(CameraContract):
    driver = "folder"
    realtime = False

    @pytest.fixture
    def options(self, tmp_path):
        folder = tmp_path / "images"
        folder.mkdir()
        for number in range(4):
            cv2.imwrite(str(folder / f"{number}.png"), np.full((6, 8), 10 * number, np.uint8))
        (folder / "2b.png").write_bytes(b"")
        return {"folder": str(folder), "loop": True}

    @pytest.fixture
    def absent(self, options):
        return options | {"folder": options["folder"] + "/missing"}


class TestFolderInItsProcess(Isolated, TestFolder):
    """Nothing changes for the caller when the driver lives in a camera process."""
