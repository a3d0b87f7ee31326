"""What a killed import, upload or export left is cleared away, and nobody's work that goes on is."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from tests.web.kit import add_part, png

from lineward.daemon.config import load_config
from lineward.daemon.labels import LabelStore
from lineward.daemon.web.station import Station
from lineward.daemon.web.transfer import import_folder

if TYPE_CHECKING:
    from pathlib import Path

    from lineward.daemon.config import Config
    from lineward.daemon.label_records import Part

KILLED = """
import os, signal, sys
from pathlib import Path
from lineward.daemon.labels import LabelStore
from lineward.daemon.web.transfer import import_folder

class Killed(LabelStore):
    def known_otherwise(self, *about):
        os.kill(os.getpid(), signal.SIGKILL)

import_folder(Killed(Path(sys.argv[1])), Path(sys.argv[2]), "plates", "eve")
"""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    file = tmp_path / "line.toml"
    file.write_text('[camera]\ndriver = "simulated"\n[inspection]\nmodel = "plates"\n[storage]\nroot = "data"\n')
    return load_config(file)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures" / "good"
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"{number}.png").write_bytes(png(number))
    return folder.parent


def leave(root: Path) -> None:
    """Put there what a page leaves that is killed while files go out and come in."""
    (root / ".upload-abc").mkdir(parents=True)
    (root / ".upload-abc" / "upload.zip").write_bytes(b"PK")
    (root / ".export-abc.zip").write_bytes(b"PK")
    for name in ("data", "scratch"):
        (root / "review" / "jobs" / "20260101" / name / "deep").mkdir(parents=True)


def left(root: Path) -> list[str]:
    of_jobs = (root / "review" / "jobs").glob("*/*")
    return sorted(path.name[:8] for path in (*root.rglob(".*-*"), *of_jobs))


def test_what_a_killed_process_left_is_removed_when_the_page_is_opened(config: Config, pictures: Path) -> None:
    """Rule: gigabytes that no quota counts do not stay; what is labelled does."""
    root = config.storage.root
    with closing(LabelStore(root)) as labels:
        kept = labels.file(add_part(labels, 1, path="labelled/kept.png"))
    done = subprocess.run([sys.executable, "-c", KILLED, str(root), str(pictures)], check=False)
    leave(root)
    assert done.returncode == -signal.SIGKILL
    assert left(root) == [".export-", ".import-", ".upload-", "data", "scratch"]
    with closing(Station(config)):
        assert left(root) == []
        assert kept.is_file()


def test_a_second_page_leaves_the_work_of_the_first_alone(config: Config) -> None:
    """Rule: two pages can run on one folder, at two ports; only one that is alone clears it."""
    root = config.storage.root
    with closing(Station(config)):
        leave(root)
        with closing(Station(config)):
            assert left(root) == [".export-", ".upload-", "data", "scratch"]
    with closing(Station(config)):
        assert left(root) == []


def test_a_page_that_is_opened_during_an_import_takes_nothing_from_it(config: Config, pictures: Path) -> None:
    """Rule: `lineward review import` goes on while the page is started."""

    class Beside(LabelStore):
        def known_otherwise(self, part: Part, decision: str, defect_type: str) -> str:
            Station(config).close()
            return super().known_otherwise(part, decision, defect_type)

    with closing(Beside(config.storage.root)) as labels:
        assert import_folder(labels, pictures, "plates", "eve").new == 3
        assert all(labels.file(part).is_file() for part in labels.parts("plates"))
