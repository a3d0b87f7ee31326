"""`sudo make install` on a machine that has never seen Lineward: it inspects, is upgraded in place, removed, purged."""

from __future__ import annotations

import shutil
import sqlite3
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from tests.broker import wait_until
from tests.system.line import LONG, toml
from tests.system.machine import NEW, OLD, ROOT, Machine, do, missing, only_one

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.skipif(not LONG, reason="fetches 300 MB and installs twice, 3 min; LINEWARD_LONG=1 runs it"),
    pytest.mark.skipif(bool(missing()), reason=missing() or "-"),
    pytest.mark.timeout(1800),
]

TREE = ("daemon", "drivers", "models", "src", "scripts", "systemd", "docs", "Makefile", "pyproject.toml")
FILES = ("requirements.lock", "README.md", "LICENSE", "NOTICE")
CONFIG: dict[str, dict[str, Any]] = {
    "camera": {"driver": "simulated", "width": 320, "height": 256, "rate_hz": 10, "defect_rate": 0.3},
    "inspection": {"model": "/var/lib/lineward/models/tiles.lward", "deadline_ms": 700},
}
FROM_FOLDER = ("env", "PIP_NO_INDEX=1", "PIP_FIND_LINKS=/srv/bundle/wheels")
"""The machine has no network: pip takes from this folder what it would fetch."""


class Box(Machine):
    """Debian with a broker, the source tree of an older version and the bundle of this one; Lineward is not there."""

    def __init__(self, folder: Path, model: Path) -> None:
        super().__init__(folder)
        self._model = model
        source = self.tree / "srv/source"
        source.mkdir(parents=True)
        for name in (*TREE, *FILES):
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, source / name)
        project = source / "pyproject.toml"
        project.write_text(project.read_text().replace(f'version = "{NEW}"', f'version = "{OLD}"', 1))
        made = do("bash", ROOT / "scripts/bundle.sh", timeout_s=900, env={"OUT": str(folder), "PATH": "/usr/bin:/bin"})
        shutil.copytree(made.splitlines()[-1], self.tree / "srv/bundle", symlinks=True)
        build = ("download", "--quiet", "--no-deps", "--dest", self.tree / "srv/bundle/wheels", "setuptools")
        do(sys.executable, "-m", "pip", *build)
        self.write("etc/mosquitto/conf.d/lineward.conf", "listener 1883 127.0.0.1\nallow_anonymous true\n")
        self.boot()
        self.run("systemctl", "enable", "--now", "mosquitto")

    def begin(self) -> None:
        """What a person does after the first installation."""
        self.write("etc/lineward/lineward.toml", toml(CONFIG), 0o640)
        self.run("install", "-d", "-o", "lineward", "-g", "lineward", "/var/lib/lineward/models")
        shutil.copy(self._model, self.tree / "var/lib/lineward/models/tiles.lward")
        self.run("chown", "-R", "root:lineward", "/etc/lineward/lineward.toml")
        self.run("chown", "-R", "lineward:lineward", "/var/lib/lineward/models")
        self.run("systemctl", "enable", "--now", "lineward", timeout_s=120)

    def version(self) -> str:
        return self.run("lineward", "--version").stdout.split()[1]

    @property
    def pid(self) -> int:
        return int(self.show("lineward", "MainPID"))

    def rows(self) -> list[tuple[int, str]]:
        database = self.tree / "var/lib/lineward/ledger.sqlite3"
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=5)) as db:
            return list(db.execute("SELECT seq, verdict FROM results ORDER BY seq"))

    def wait_rows(self, count: int) -> None:
        wait_until(lambda: len(self.rows()) >= count, 60, f"{count} answers; {self.journal()}")


@pytest.fixture(scope="module")
def box(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    with only_one():
        machine = Box.__new__(Box)
        try:
            machine.__init__(tmp_path_factory.mktemp("box"), bundle)  # type: ignore[misc]
            yield machine
        finally:
            machine.close()


def test_make_install_brings_a_bare_machine_to_inspect(box: Box) -> None:
    """Rule: program, user, units and a first configuration come with one command, and the service answers parts."""
    assert box.run("lineward", "--version", check=False).returncode != 0
    said = box.run(*FROM_FOLDER, "make", "-C", "/srv/source", "install", timeout_s=900).stdout
    assert f"{OLD} is installed; now edit /etc/lineward/lineward.toml" in said
    assert box.version() == OLD
    assert box.run("stat", "-c", "%U %G %a", "/etc/lineward/lineward.toml").stdout.split() == [
        "root",
        "lineward",
        "640",
    ]
    box.begin()
    box.wait_rows(20)
    assert box.show("lineward", "User") == "lineward"
    assert "root" not in box.run("stat", "-c", "%U", "/var/lib/lineward/ledger.sqlite3").stdout
    doctor = box.run("lineward", "doctor", "--json", check=False).stdout
    assert '"what": "service"' in doctor


def test_installed_again_it_is_an_upgrade_in_place(box: Box) -> None:
    """Rule: the bundle's installer replaces a running older version; configuration, ledger and numbers go on."""
    config, pid, before = (box.tree / "etc/lineward/lineward.toml").read_text(), box.pid, box.rows()
    said = box.run("/srv/bundle/install.sh", timeout_s=900).stdout
    assert "restarting lineward.service" in said
    assert box.version() == NEW
    wait_until(lambda: box.pid not in {0, pid}, 60, "another process")
    box.wait_rows(len(before) + 20)
    rows = box.rows()
    assert rows[: len(before)] == before
    assert [row[0] for row in rows] == list(range(1, len(rows) + 1))
    assert (box.tree / "etc/lineward/lineward.toml").read_text() == config
    assert not (box.tree / "opt/lineward.old").exists()


def test_a_failed_upgrade_leaves_what_was_there(box: Box) -> None:
    """Rule: an installer that finds a damaged wheel says so, and the line has not even been stopped."""
    wheel = next((box.tree / "srv/bundle/wheels").glob("numpy-*.whl"))
    whole = wheel.read_bytes()
    wheel.write_bytes(whole[: len(whole) // 2])
    pid, count = box.pid, len(box.rows())
    done = box.run("/srv/bundle/install.sh", check=False, timeout_s=900)
    wheel.write_bytes(whole)
    assert done.returncode != 0
    assert "numpy" in done.stderr
    assert box.version() == NEW
    assert box.pid == pid
    box.wait_rows(count + 10)
    assert not (box.tree / "opt/lineward.new").exists()


def test_uninstall_keeps_configuration_and_data(box: Box) -> None:
    """Rule: the program, its units and its links go; what is the site's stays, whole."""
    count = len(box.rows())
    said = box.run("make", "-C", "/srv/source", "uninstall").stdout
    assert "/etc/lineward and /var/lib/lineward are kept (PURGE=1 removes them)" in said
    for gone in ("opt/lineward", "usr/bin/lineward", "usr/lib/systemd/system/lineward.service"):
        assert not (box.tree / gone).is_symlink()
        assert not (box.tree / gone).exists()
    assert box.run("systemctl", "cat", "lineward", check=False).returncode != 0
    assert len(box.rows()) >= count
    assert "deadline_ms = 700" in (box.tree / "etc/lineward/lineward.toml").read_text()
    assert (box.tree / "var/lib/lineward/models/tiles.lward").is_file()


def test_purge_leaves_nothing(box: Box) -> None:
    """Rule: with PURGE=1 configuration, data and the user go too, although the program is gone already."""
    box.run("make", "-C", "/srv/source", "uninstall", "PURGE=1")
    assert not (box.tree / "etc/lineward").exists()
    assert not (box.tree / "var/lib/lineward").exists()
    assert box.run("getent", "passwd", "lineward", check=False).returncode != 0
    found = box.run("find", "/etc", "/usr", "/opt", "/var", "-name", "*lineward*").stdout.splitlines()
    assert [path for path in found if not path.startswith(("/etc/mosquitto", "/usr/share/doc"))] == []


def test_without_what_it_needs_the_installer_says_so_and_changes_nothing(box: Box) -> None:
    """Rule: exit 2 and one line with the remedy where Python cannot make virtual environments."""
    done = box.run("env", "PYTHON=/usr/bin/no-such-python", "/srv/bundle/install.sh", check=False)
    assert done.returncode == 2
    assert "install python3, or name one with PYTHON=" in done.stderr
    assert not (box.tree / "opt/lineward").exists()
