from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from tests.models.foreign import autoencoder

from lineward.models.quick import train_quick
from lineward.models.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from lineward.models.quick import TrainReport

SIDE = 96


def part(number: int, defect: str | None = None) -> NDArray[np.uint8]:
    """Render a brushed plate, always the same for a number; a spot or a scratch makes it defective."""
    random = np.random.default_rng(number)
    rows = random.normal(0, 6, (SIDE, 1)) + random.normal(0, 3, (SIDE, SIDE))
    image = 120 + random.normal(0, 8) + rows + np.linspace(-10, 10, SIDE)[None]
    plate = np.clip(image, 0, 255).astype(np.uint8)
    if defect is not None:
        x, y = spot(number)
        if defect == "spot":
            cv2.circle(plate, (x, y), 6, 20, -1)
        else:
            cv2.line(plate, (x - 10, y - 8), (x + 10, y + 8), 245, 2)
    return plate


def spot(number: int) -> tuple[int, int]:
    """Return x and y, in pixels, of the middle of a part's defect."""
    x, y = np.random.default_rng(number + 1_000_000).integers(18, SIDE - 18, 2)
    return int(x), int(y)


def write_parts(folder: Path, *, good: int, defects: dict[str, int], first: int = 0, groups: bool = True) -> Path:
    """Write a data folder; every two good images in a row are of one part."""
    number, table = first, ["file,group,label"]
    for kind, count in {"good": good, **{f"defect/{name}": count for name, count in defects.items()}}.items():
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            name = f"{kind}/{number:05d}.png"
            defect = kind.removeprefix("defect/") if kind != "good" else None
            cv2.imwrite(str(folder / name), part(number, defect))
            group = f"{kind}-{first + index // 2}"
            table.append(f"{name},{group},{kind.split('/')[0]}")
            number += 1
    if groups:
        (folder / "groups.csv").write_text("\n".join(table) + "\n")
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parts(tmp_path_factory.mktemp("parts"), good=60, defects={"spot": 18, "scratch": 18})


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def listless_cache(cache: Path, tmp_path: Path) -> Path:
    """Give a cache with everything that is known, in which no list of images can be kept."""
    own = tmp_path / "cache"
    own.mkdir()
    for name in ("features", "facts"):
        (cache / name).mkdir(exist_ok=True)
        (own / name).symlink_to(cache / name)
    (own / "sets").write_text("not a folder")
    return own


@pytest.fixture(scope="session")
def trained(data: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainReport:
    out = tmp_path_factory.mktemp("models") / "plates.lward"
    return train_quick(data, out, product="plates", cache_dir=cache, height=SIDE, width=SIDE, version="1")


@pytest.fixture(scope="session")
def session(trained: TrainReport) -> Session:
    return Session(trained.model)


@pytest.fixture(scope="session")
def render() -> Callable[..., NDArray[np.uint8]]:
    """Give `part` to tests, which cannot import this file."""
    return part


@pytest.fixture(scope="session")
def defect_place() -> Callable[[int], tuple[int, int]]:
    return spot


@pytest.fixture(scope="session")
def make_parts() -> Callable[..., Path]:
    return write_parts


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Give a folder that every user reaches, as `tmp_path` is not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def unprivileged() -> Callable[[], AbstractContextManager[None]]:
    """Give a context without root's rights, for which the mode of every folder is as good as any other."""

    @contextmanager
    def context() -> Iterator[None]:
        before = os.geteuid()
        if before == 0:
            os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(before)

    return context


@pytest.fixture(scope="session")
def from_onnx_helper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An anomaly map and a score, of a model that was put together by hand."""
    return autoencoder(tmp_path_factory.mktemp("helper"))
