"""`lineward check` and `lineward doctor` tell everything they find, whatever one thing is like."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lineward.daemon.check import check_all
from lineward.daemon.config import load_config
from lineward.daemon.doctor import examine

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
