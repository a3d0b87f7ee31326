"""A store of labels, and the review page as a process."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from tests.system.line import call
from tests.web.kit import (
    DOTS,
    LINK,
    SCRIPT,
    SIZE,
    UNKNOWN,
    Chromium,
    FirstModel,
    ReviewPage,
    add_part,
    add_to_ledger,
    chromium,
    make_part,
    png,
)

from lineward.daemon.labels import LabelStore
from lineward.drivers.simulated import write_dataset

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.system.line import Service


@pytest.fixture
def labels(tmp_path: Path) -> Iterator[LabelStore]:
    store = LabelStore(tmp_path / "storage")
    yield store
    store.close()


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReviewPage]:
    """The page over 20 parts that nobody has labelled; tests that change much start one of their own."""
    page = ReviewPage(tmp_path_factory.mktemp("page"), upload_mb=2).add_people()
    store = LabelStore(page.storage)
    for number in range(1, 21):
        add_part(store, number)
    script = "</script><script>document.title='owned'</script>"
    store.give(add_part(store, SCRIPT, part_id=script, camera="<img src=x onerror=alert(1)>").image, "eve", "pass")
    outside = page.folder / "outside.png"
    outside.write_bytes(png(7))
    link = store.root / add_part(store, LINK).path
    link.unlink()
    link.symlink_to(outside)
    store.add_parts([make_part(DOTS, path="../outside.png")])
    add_to_ledger(store, range(1, DOTS + 1))
    store.close()
    page.start()
    yield page
    page.kill()


@pytest.fixture(scope="session")
def browser() -> Iterator[Chromium]:
    chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = Chromium(playwright)
        yield started
        started.close()


@pytest.fixture(scope="session")
def first(tmp_path_factory: pytest.TempPathFactory) -> FirstModel:
    """A model that knows every defect of the simulated bracket but `UNKNOWN`."""
    folder = tmp_path_factory.mktemp("first")
    made = FirstModel(folder / "base", folder / "first.lward", folder / "cache")
    write_dataset(made.data, n_good=60, n_defect=30, **SIZE)
    shutil.rmtree(made.data / "defect" / UNKNOWN)
    done = call(folder, "train", "--data", made.data, "--out", made.model, "--product", "bracket", "--json")
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture
def services() -> Iterator[list[Service]]:
    """Whatever is put in here does not outlive the test."""
    started: list[Service] = []
    yield started
    for service in started:
        service.kill()
