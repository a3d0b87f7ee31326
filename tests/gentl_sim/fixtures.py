"""Fixtures around the simulated producer. A test module takes them with ``pytest_plugins = ["gentl_sim.fixtures"]``."""

from __future__ import annotations

import shutil
import warnings
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from gentl_sim import gentl_sim

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

    from gentl_sim.gentl_sim import Control, SimDevice


@dataclass(frozen=True)
class Sim:
    """A producer's file and the switches of its cameras."""

    file: Path
    control: Control
    folder: Path

    def __getitem__(self, serial: str) -> SimDevice:
        return self.control[serial]

    def copy(self) -> Path:
        """Return another file of the same producer: one file serves one user in a process."""
        copies = sum(1 for _ in self.folder.glob("*.cti"))
        return _copy(self.file, self.folder / f"gentl_sim_{copies}.cti")


def _copy(source: Path, target: Path) -> Path:
    shutil.copyfile(source, target)
    return target


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if gentl_sim.compiler() is None:
        pytest.skip("the simulated GenTL producer is compiled by gcc, which is not installed")
    return gentl_sim.build(tmp_path_factory.mktemp("gentl_sim"))


@pytest.fixture
def sim(compiled: Path, tmp_path: Path) -> Iterator[Sim]:
    """Give a producer of this test's own: its state and its control file are shared with no other test."""
    control = gentl_sim.Control(tmp_path / "control")
    made = Sim(_copy(compiled, tmp_path / "gentl_sim.cti"), control, tmp_path)
    with control.in_environment():
        yield made
        for device in control.devices.values():
            device.heal()  # nothing may hang while cameras are closed


@pytest.fixture
def harvester(sim: Sim) -> Iterator[Any]:
    """Give harvesters as its documentation shows it, nothing of ours in between."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from harvesters.core import Harvester

        made = Harvester()
        made.add_file(str(sim.copy()))
        made.update()
        yield made
        for device in sim.control.devices.values():
            device.heal()
        for opened in list(made.image_acquirers):  # in the order that works for a camera that was lost, too
            for end in (opened.stop, opened.destroy):
                with suppress(Exception):
                    end()
        made.image_acquirers.clear()
        made.reset()


@pytest.fixture
def acquirer(harvester: Any) -> Callable[..., Any]:
    """Open a camera by its serial number and set features, in their order."""

    def make(serial: str = "SIM-A", **features: object) -> Any:
        made = harvester.create({"serial_number": serial})
        settings = {"TestPattern": "FrameId", "ExposureTime": 100.0, "AcquisitionFrameRate": 200.0} | features
        for name, value in settings.items():
            getattr(made.remote_device.node_map, name).value = value
        return made

    return make
