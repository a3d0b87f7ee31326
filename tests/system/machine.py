"""A machine of its own: Debian with systemd as process 1, a broker, and the Debian package of this source tree."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.broker import wait_until
from tests.system.line import children

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
SUITE = "bookworm"
PACKAGES = "systemd,systemd-sysv,dbus,udev,python3,python3-venv,make,mosquitto,mosquitto-clients"
OLD, NEW = "0.0.9", "0.1.0"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "/var/cache") / "lineward-tests"


def missing() -> str:
    """Say why there cannot be such a machine here; empty when there can."""
    if os.geteuid() != 0:
        return "booting a machine needs root"
    for program, package in (
        ("systemd-nspawn", "systemd-container"),
        ("debootstrap", "debootstrap"),
        ("dpkg-deb", "dpkg"),
        ("nsenter", "util-linux"),
    ):
        if shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
            return f"{program} is not installed (apt install {package})"
    return (
        "" if Path("/usr/bin/python3.11").exists() else "the package is made for Debian's python3.11, which is missing"
    )


def do(*command: object, timeout_s: float = 300, **more: Any) -> str:
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=timeout_s, check=False, **more
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


@contextmanager
def only_one() -> Iterator[None]:
    """Two runs at once would spoil each other's cache."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def base_tree() -> Path:
    """Debian with what the machine needs, made once: 35 s to 2 min."""
    tree = CACHE / f"{SUITE}-{zlib.crc32(PACKAGES.encode()):08x}"
    if not tree.exists():
        fresh = CACHE / f"{SUITE}.fresh"
        shutil.rmtree(fresh, ignore_errors=True)
        do("debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, fresh, timeout_s=900)
        fresh.rename(tree)
    return tree


def packages(folder: Path) -> tuple[Path, Path]:
    """The Debian package of this tree, under two versions; what it depends on is laid out once (1 min)."""
    paths = []
    for version in (OLD, NEW):
        environment = {
            **os.environ,
            "OUT": str(folder),
            "DEB_VERSION": version,
            "DEB_STAGE": str(CACHE / "stage"),
            "DEB_COMPRESSION": "none",
            "DEB_PACK_ONLY": "1" if version == NEW else "",
        }
        said = do("bash", ROOT / "scripts" / "deb.sh", env=environment, timeout_s=600)
        paths.append(Path(said.splitlines()[-1]))
    return paths[0], paths[1]


class Machine:
    """Boots a layer above the base tree; `close` takes everything away again.

    Files of the machine can be read and written below `tree` while it runs.
    """

    def __init__(self, folder: Path) -> None:
        self.tree = folder / "tree"
        self._folder = folder
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._init = 0
        for name in ("tree", "upper", "work"):
            (folder / name).mkdir()
        layers = f"lowerdir={base_tree()},upperdir={folder / 'upper'},workdir={folder / 'work'}"
        do("mount", "-t", "overlay", "overlay", "-o", layers, self.tree)

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        file = self.tree / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        file.chmod(mode)

    def boot(self) -> None:
        spawn = (
            f"exec systemd-nspawn --quiet --directory={self.tree} --boot --register=no --keep-unit --private-network "
            f"--link-journal=no --console=read-only"
        )
        # Where systemd is not process 1, nspawn misses this folder: it gets one that nobody else sees.
        prepare = (
            "" if Path("/run/systemd/system").exists() else "mkdir -p /run/systemd; mount -t tmpfs tmpfs /run/systemd; "
        )
        with (self._folder / "console.log").open("wb") as console:
            self._nspawn = subprocess.Popen(
                ["unshare", "--mount", "sh", "-c", prepare + spawn],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        wait_until(self._find_init, 30, f"process 1 of the machine; see {self._folder / 'console.log'}")
        wait_until(self._is_up, 60, "booted machine")

    def _find_init(self) -> bool:
        assert self._nspawn is not None
        assert self._nspawn.poll() is None, (self._folder / "console.log").read_text(errors="replace")
        for pid in children(self._nspawn.pid):  # at first this is nspawn itself, on its way
            with suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].endswith((b"/systemd", b"/init")):
                    self._init = pid
        return self._init != 0

    def _is_up(self) -> bool:
        state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return state in {"running", "degraded"}

    def run(self, *command: object, check: bool = True, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command in the machine."""
        inside = ["nsenter", "--target", str(self._init), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]
        done = subprocess.run(
            # nsenter opens its --wd out here, and a shell cannot find the way from there to its root.
            [*inside, "--root", "--", "env", "--chdir=/", *map(str, command)],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            stdin=subprocess.DEVNULL,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"},
        )
        if check:
            assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}\n{self.journal()}"
        return done

    def show(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.run("systemctl", "show", "--value", "--property", name, unit).stdout.strip()

    def journal(self, *arguments: str) -> str:
        return self.run(
            "journalctl", "--no-pager", "--lines=60", *(arguments or ("-u", "lineward")), check=False
        ).stdout

    def entries(self, *matches: str) -> list[dict[str, Any]]:
        """What the journal has that matches, with all its fields."""
        text = self.run("journalctl", "--no-pager", "-o", "json", *matches, check=False).stdout
        return [json.loads(line) for line in text.splitlines()]

    def close(self) -> None:
        if self._nspawn is not None:
            with suppress(ProcessLookupError):
                os.kill(self._init or self._nspawn.pid, signal.SIGRTMIN + 4)  # poweroff
            try:
                self._nspawn.wait(20)
            except subprocess.TimeoutExpired:
                self._nspawn.kill()
                self._nspawn.wait(10)
        for _ in range(50):
            if subprocess.run(["umount", str(self.tree)], capture_output=True, check=False).returncode == 0:
                break
            time.sleep(0.1)
