"""The same rules for a camera in a process of its own: put `Isolated` before a contract class."""

from __future__ import annotations

from typing import Any

from lineward.drivers.process import CameraProcess


class Isolated:
    """Makes the driver run behind `CameraProcess`."""

    def build(self, driver: str, options: dict[str, Any]) -> CameraProcess:
        return CameraProcess(driver, options)
