"""The folder for a machine without internet: made here, installed where there is no network at all."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = os.environ.get("PYTHON", "/usr/bin/python3")


def do(*command: object, **environment: str) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **environment}, check=False)
    assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.skipif(os.environ.get("LINEWARD_LONG") != "1", reason="takes a minute; LINEWARD_LONG=1 runs it")
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="only root may take the network away")
@pytest.mark.timeout(600)
def test_a_bundle_installs_without_a_network(tmp_path: Path) -> None:
    """Rule: the installer that the bundle names needs nothing but its own folder, and lays out a whole program."""
    if subprocess.run([PYTHON, "-c", "import ensurepip, venv"], capture_output=True, check=False).returncode != 0:
        pytest.skip(f"{PYTHON} cannot make virtual environments (apt install python3-venv)")
    made = Path(do("bash", ROOT / "scripts" / "bundle.sh", OUT=str(tmp_path)).splitlines()[-1])
    moved = made.rename(tmp_path / "stick")  # as on a machine that has never seen the source tree
    goal = tmp_path / "goal"
    do("unshare", "--net", moved / "install.sh", DESTDIR=str(goal), PYTHON=PYTHON)
    program = goal / "opt/lineward/bin"
    script = "import sys; sys.argv = ['lineward', '--version']; from lineward.daemon.cli import main; main()"
    assert do("unshare", "--net", program / "python", "-c", script).startswith("lineward ")
    assert (program / "lineward").read_text().startswith("#!/opt/lineward/bin/python")
    assert (goal / "usr/lib/systemd/system/lineward.service").is_file()
    assert (goal / "opt/lineward/share/doc/lineward/how-to/run-as-a-service.md").is_file()
