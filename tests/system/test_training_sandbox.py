"""Both tiers in the sandboxes of their units, on a machine with a real systemd."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.broker import wait_until
from tests.system.line import LONG, figure
from tests.system.machine import missing
from tests.system.station import booted

from lineward.models.bundle import load_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.system.station import Station

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=missing() or "-"),
    pytest.mark.skipif(not LONG, reason="trains for minutes; LINEWARD_LONG=1 runs it"),
    pytest.mark.timeout(1800),
]

TRAINING = "var/lib/lineward/training"
PAGE = """
import pathlib, subprocess, sys
folder = pathlib.Path(sys.argv[1])
command = [sys.executable, "-m", "lineward.daemon.web.training_job", folder / "order.json"]
with (folder / "said").open("wb") as said, subprocess.Popen(command, stdin=subprocess.PIPE, stdout=said) as job:
    sys.exit(job.wait())
"""
"""Starts a training as the page does; it ends when its stdin is closed."""


@pytest.fixture(scope="module")
def station(bundle: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Station]:
    with booted(tmp_path_factory.mktemp("machine"), bundle) as machine:
        # This machine may be busy with other tests: then the unit would rightly not start.
        machine.write(
            "etc/systemd/system/lineward-train@.service.d/busy.conf",
            "[Unit]\nConditionCPUPressure=\nConditionMemoryPressure=\n",
        )
        shutil.copytree(dataset, machine.tree / TRAINING / "tiles")
        machine.run("chown", "-R", "lineward:lineward", f"/{TRAINING}")
        machine.run("systemctl", "daemon-reload")
        yield machine


@pytest.fixture(scope="module")
def with_torch(station: Station) -> Station:
    """The same machine with torch, as `pip install torch` would lay it out."""
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed; `make torch` does it")
    if sys.version_info[:2] != (3, 11):
        pytest.skip("the package is made for Debian's python3.11, and torch is here for another one")
    site = next((station.tree / "opt/lineward/lib").glob("python3.*")) / "site-packages"
    for name in required_by("torch"):
        distribution = importlib.metadata.distribution(name)
        for top in {Path(file).parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            source = Path(str(distribution.locate_file(top)))
            if source.is_dir():
                shutil.copytree(source, site / top, dirs_exist_ok=True)
            elif source.exists():
                shutil.copy(source, site / top)
    return station


def required_by(name: str) -> set[str]:
    """A distribution and everything that it needs to run."""
    found, waiting = set[str](), {name}
    while waiting:
        found |= waiting
        needs = [
            need for known in waiting for need in importlib.metadata.requires(known) or [] if "extra ==" not in need
        ]
        waiting = {re.split(r"[^\w.-]", need, maxsplit=1)[0] for need in needs} - found
    return found


def test_training_works_in_its_sandbox_and_one_at_a_time(station: Station) -> None:
    """Rule: the unit learns from the product's folder with what the box leaves over; a second one ends at once."""
    station.run("systemctl", "start", "--no-block", "lineward-train@tiles")
    lock = ("flock", "--nonblock", "/run/lineward-train/lock", "true")
    wait_until(lambda: station.run(*lock, check=False).returncode == 1, 20, "training")
    station.run("systemctl", "start", "lineward-train@other", check=False)
    assert station.show("lineward-train@other", "ExecMainStatus") == "75"
    finish_training(station)
    assert load_manifest(station.tree / TRAINING / "tiles.lward").tier == "quick"


def test_the_full_tier_works_in_the_sandbox_of_its_unit(with_torch: Station) -> None:
    """Rule: with torch installed, a drop-in with `--tier full` is all that the unit needs."""
    station = with_torch
    drop_in = '[Service]\nEnvironment="TRAIN_OPTIONS=--tier full"\n'
    station.write("etc/systemd/system/lineward-train@tiles.service.d/full.conf", drop_in)
    station.run("systemctl", "daemon-reload")
    station.run("systemctl", "start", "--no-block", "lineward-train@tiles")
    finish_training(station)
    assert load_manifest(station.tree / TRAINING / "tiles.lward").tier == "full"


def test_the_full_tier_works_in_the_sandbox_of_the_page(with_torch: Station) -> None:
    """Rule: the process that the page starts for `Train thoroughly` trains and compares in all that the unit allows."""
    station = with_torch
    order: dict[str, object] = {
        "kind": "train",
        "tier": "full",
        "data": f"/{TRAINING}/tiles",
        "out": f"/{TRAINING}/candidate.lward",
        "product": "tiles",
        "old": None,
        "cache": "/var/cache/lineward-review",
        "base": False,
        "holdout": [],
        "never_again": [],
        "shift": [],
    }
    station.write(f"{TRAINING}/order.json", json.dumps(order))
    station.write("usr/local/lib/page.py", PAGE)
    station.in_sandbox_of("lineward-review", f"/opt/lineward/bin/python /usr/local/lib/page.py /{TRAINING}", 900)
    assert "NNPACK" not in station.journal("-u", "probe")
    told = [json.loads(line) for line in (station.tree / TRAINING / "said").read_text().splitlines()]
    assert "result" in told[-1], told[-1]
    assert any(line.get("stage") == "tune" for line in told)
    manifest = load_manifest(station.tree / TRAINING / "candidate.lward")
    assert manifest.tier == "full"
    figure(f"full tier in the page's sandbox: weight of the network in {manifest.model.head}")


def finish_training(station: Station) -> None:
    unit = "lineward-train@tiles"
    wait_until(lambda: station.show(unit, "ActiveState") in {"inactive", "failed"}, 900, "end of the training")
    assert station.show(unit, "Result") == "success", station.journal("-u", unit)
