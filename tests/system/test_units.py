"""The unit files as systemd reads them, without a machine to run them on."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lineward.daemon.config import load_config

ROOT = Path(__file__).resolve().parents[2]
UNITS = ROOT / "systemd"
needs_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")

EXPOSURE = {
    "lineward.service": 3.0,
    "lineward@.service": 3.0,
    "lineward-review@.service": 1.5,
    "lineward-review.service": 1.5,
    "lineward-train@.service": 1.5,
}


@needs_analyze
@pytest.mark.parametrize("unit", EXPOSURE)
def test_exposure(unit):
    """Rule of the issue: at most 1.5 for review and training, at most 3.0 for inspection."""
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNITS / unit)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    if found is None:
        pytest.skip(f"this systemd-analyze cannot look at a file: {done.stderr.strip()}")
    assert float(found[1]) <= EXPOSURE[unit], done.stdout


@needs_analyze
@pytest.mark.parametrize("unit", [*EXPOSURE, "lineward-train.slice"])
def test_systemd_understands_every_line(unit):
    """Rule: no key is unknown or in the wrong section; the program itself may be missing here."""
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(UNITS / unit)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if "lineward" in line and "is not executable" not in line]
    assert ours == []


@pytest.mark.parametrize("unit", EXPOSURE)
def test_each_exception_of_the_sandbox_says_why(unit):
    """Rule: whatever is left open of the strictest settings stands in a comment that begins with `Open:`."""
    text = (UNITS / unit).read_text(encoding="utf-8")
    reasons = " ".join(re.findall(r"# Open: (.*?)(?=\n[^#])", text, flags=re.DOTALL))
    strict = ["PrivateDevices", "PrivateNetwork", "IPAddressDeny", "ProcSubset", "MemoryDenyWriteExecute"]
    for setting in strict:
        given = re.search(rf"^{setting}=(yes|any|pid)$", text, flags=re.MULTILINE)
        assert given or setting in reasons or (setting == "PrivateNetwork" and "AF_INET" in reasons), setting


EVERYWHERE = {"Description", "RequiresMountsFor", "ExecStart", "StateDirectory", "Environment", "LoadCredential"}


@pytest.mark.parametrize(
    ("unit", "more"),
    [("lineward", {"ExecReload", "RuntimeDirectory"}), ("lineward-review", {"CacheDirectory"})],
)
def test_the_template_is_the_unit_for_another_place(unit, more):
    """Rule: lineward@.service differs from lineward.service in names and paths only, and so does the page's."""
    one = (UNITS / f"{unit}.service").read_text(encoding="utf-8")
    many = (UNITS / f"{unit}@.service").read_text(encoding="utf-8")

    def settings(text: str) -> list[str]:
        return [line for line in text.splitlines() if line and not line.startswith("#")]

    differing = {
        line.partition("=")[0]
        for mine, its in zip(settings(one), settings(many), strict=True)
        if mine != its
        for line in (mine, its)
    }
    assert differing == EVERYWHERE | more


def test_the_example_configuration_is_valid():
    """Rule: what the installer puts into /etc is a file that Lineward takes."""
    assert load_config(UNITS / "lineward.toml").storage.root == Path("/var/lib/lineward")
