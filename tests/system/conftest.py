"""What the system tests share: a small trained model, images, a broker, and lines that are always cleaned up."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.broker import DURABLE, MOSQUITTO, Mosquitto, Subscriber
from tests.system.line import BASE, Line, Service, call

from lineward.drivers.simulated import write_dataset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """84 simulated parts, 24 of them defective."""
    folder = tmp_path_factory.mktemp("dataset") / "parts"
    return write_dataset(folder, n_good=60, n_defect=24, width=320, height=256)


@pytest.fixture(scope="session")
def images(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same parts in one folder, good and defective mixed, as they would come along."""
    folder = tmp_path_factory.mktemp("images")
    for path in dataset.rglob("*.png"):
        shutil.copy(path, folder / path.name)
    return folder


@pytest.fixture(scope="session")
def bundle(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model trained through the command line, as a user does it."""
    folder = tmp_path_factory.mktemp("model")
    done = call(folder, "train", "--data", dataset, "--out", folder / "tiles.lward", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parity"]["verdicts_equal"] is True
    return folder / "tiles.lward"


@pytest.fixture(scope="session")
def real_images() -> Path:
    """Magnetic tiles, where the real images for development are at hand."""
    data = Path(os.environ.get("LINEWARD_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
    if not (data / "mtd").is_dir():
        pytest.skip(f"no real images in {data}; LINEWARD_DATA names their folder")
    return data / "mtd"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    """A broker that keeps what its sessions have not had, so that a test hears everything that it acknowledged."""
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed")
    folder = tmp_path / "broker"
    folder.mkdir()
    broker = Mosquitto(folder, "allow_anonymous true", "max_queued_messages 0", DURABLE)
    yield broker
    broker.stop()


@pytest.fixture
def hear(broker: Mosquitto) -> Iterator[Subscriber]:
    subscriber = Subscriber(broker.port, BASE, session="listener")
    yield subscriber
    subscriber.close()


@pytest.fixture
def services() -> Iterator[list[Service]]:
    """Whatever is put in here does not outlive the test."""
    started: list[Service] = []
    yield started
    for service in started:
        service.kill()


@pytest.fixture
def line(bundle: Path, tmp_path: Path, services: list[Service]) -> Callable[..., Line]:
    """Make a line in the test's folder; it is not started yet."""

    def make(**fields: Any) -> Line:
        made = Line(tmp_path / f"line{len(services)}", **{"model": bundle, **fields})
        services.append(made)
        return made

    return make
