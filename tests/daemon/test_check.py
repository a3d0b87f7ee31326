"""`lineward check` and `lineward doctor` tell everything they find, whatever one thing is like."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from lineward.daemon.check import check_all
from lineward.daemon.config import load_config
from lineward.daemon.doctor import examine
from lineward.images import encode_jpeg

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "line.toml"
    path.write_text(
        '[camera]\ndriver = "simulated"\nrate_hz = 100\n[inspection]\nmodel = "gone.lward"\n'
        '[mqtt]\npassword_file = "gone"\n[storage]\nroot = "storage"\n'
    )
    return path


def test_a_password_that_cannot_be_read_is_one_finding_among_the_others(file: Path) -> None:
    """Rule: it names setting and remedy, and keeps nothing else from being told."""
    findings = {finding.what: finding for finding in check_all(load_config(file))}
    assert list(findings) == ["config", "storage", "model", "camera", "broker"]
    assert [findings[what].fine for what in ("storage", "camera", "broker")] == [True, True, False]
    assert "mqtt.password_file = " in findings["broker"].text
    assert "cannot be read: No such file or directory; give an existing file" in findings["broker"].text


def test_the_doctor_goes_on_behind_it(file: Path) -> None:
    """Rule: the machine is looked at too."""
    found = [finding.what for finding in examine(load_config(file), file)]
    assert found.index("broker") < found.index("storage")


def replay(tmp_path: Path) -> Path:
    path = tmp_path / "replay.toml"
    path.write_text(
        '[camera]\ndriver = "folder"\nfolder = "images"\n[inspection]\nmodel = "gone.lward"\n[storage]\nroot = "s"\n'
    )
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "images" / name).write_text("no picture")
    return path


def test_a_replay_whose_first_files_are_broken_is_fine(tmp_path: Path) -> None:
    """Rule: what `run` plays is no fault, and what it skips is named."""
    path = replay(tmp_path)
    (tmp_path / "images" / "c.png").write_bytes(encode_jpeg(np.zeros((8, 9), np.uint8), 100, 90))
    camera = next(found for found in check_all(load_config(path)) if found.what == "camera")
    assert camera.fine
    assert "9x8; 2 files before it are skipped, such as " in camera.text
    assert "images/a.png: not an image that Lineward reads" in camera.text


def test_a_replay_of_broken_files_alone_is_a_fault_with_its_own_remedy(tmp_path: Path) -> None:
    """Rule: the doctor says what helps a folder, not a cable."""
    path = replay(tmp_path)
    camera = next(found for found in examine(load_config(path), path) if found.what == "camera")
    assert camera.level == "fault"
    assert "all 2 files are replayed" in camera.text or "none of the 2 files can be read" in camera.text
    assert camera.mend == "look into camera.folder: it needs at least one image that can be read"
