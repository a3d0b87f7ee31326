"""A line replaces its camera process, and stops and starts its camera, for months: nothing may pile up."""

import os

import pytest

from gentl_sim.recycles import growth, repeat
from lineward.drivers.process import CameraProcess

pytest_plugins = ["gentl_sim.fixtures"]

LONG = os.environ.get("LINEWARD_LONG") == "1"
FLAT_PERCENT = 2.0


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("what", "number"), [("recycles", 1000 if LONG else 12), ("start/stops", 2000 if LONG else 150)]
)
def test_nothing_piles_up(sim, what, number):
    """Resident size and open files after the last time are those after the first tenth."""
    camera = CameraProcess("genicam", {"producers": [str(sim.file)], "serial": "SIM-A"})
    for whose, seen in repeat(camera, what, number).items():
        assert growth(seen) <= FLAT_PERCENT, f"{whose}: {seen}"
        assert seen[-1].files == seen[0].files, f"{whose}: {seen}"
    camera.close()
