"""A machine with the package, a broker that somebody listens to, and a line that can be started."""

from __future__ import annotations

import shutil
import sqlite3
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from tests.broker import wait_until
from tests.system.line import toml
from tests.system.machine import Machine, only_one, packages

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RATE_HZ = 10
DEADLINE_MS = 8000
"""Beside other tests a part may wait for a second; what is tested here is that none is without an answer."""
CONFIG = {
    "camera": {"driver": "simulated", "width": 320, "height": 256, "rate_hz": RATE_HZ, "defect_rate": 0.3},
    "inspection": {"model": "/var/lib/lineward/models/tiles.lward", "deadline_ms": DEADLINE_MS},
    "mqtt": {"port": 1883},
    "log": {"parts": True},
}
SHORT_WATCHDOG = "[Service]\nWatchdogSec=4\n"  # 30 s would be as right and take the test longer


class Station(Machine):
    """A machine with the old package, a broker with a listener, and a line that can be started."""

    def __init__(self, folder: Path, bundle: Path) -> None:
        super().__init__(folder)
        self.old, self.new = packages(folder / "packages")
        for package in (self.old, self.new):
            shutil.copy(package, self.tree / "srv" / package.name)
        self.write("etc/mosquitto/conf.d/lineward.conf", "listener 1883 127.0.0.1\nallow_anonymous true\n")
        self.write("etc/dpkg/dpkg.cfg.d/quick", "force-unsafe-io\n")  # this machine never loses its power
        self.write("home/person/secret.txt", "nobody's business\n")
        self.write(
            "etc/systemd/system/listener.service",
            "[Unit]\nAfter=mosquitto.service\nRequires=mosquitto.service\n[Service]\nStandardOutput=append:/srv/heard\n"
            "ExecStart=/usr/bin/mosquitto_sub -h 127.0.0.1 -q 1 -t lineward/# -F '%%U %%r %%t %%p'\n"
            "Restart=always\nRestartSec=1\n"
            "[Install]\nWantedBy=multi-user.target\n",
        )
        self.boot()
        self.run("systemctl", "enable", "--now", "mosquitto", "listener")
        self.run("dpkg", "--install", f"/srv/{self.old.name}", timeout_s=180)
        model = self.tree / "var/lib/lineward/models/tiles.lward"
        model.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(bundle, model)
        self.run("mkdir", "-p", "/run/systemd/system/lineward.service.d")
        self.run("sh", "-c", f"printf '{SHORT_WATCHDOG!s}' > /run/systemd/system/lineward.service.d/watchdog.conf")
        self.run("chown", "-R", "lineward:lineward", "/var/lib/lineward/models")
        self.configure()
        self.run("systemctl", "daemon-reload")

    def configure(self, **inspection: Any) -> None:
        config = {**CONFIG, "inspection": {**CONFIG["inspection"], **inspection}}
        self.write("etc/lineward/lineward.toml", toml(config))

    def heard(self, topic: str) -> list[str]:
        """Payloads of one topic in the order in which the broker sent them."""
        found = []
        for line in (self.tree / "srv/heard").read_text(encoding="utf-8").splitlines():
            _, _, name, payload = line.split(" ", 3)
            if name == f"lineward/plant/line1/cam1/{topic}":
                found.append(payload)
        return found

    @property
    def pid(self) -> int:
        return int(self.show("lineward", "MainPID"))

    def rows(self) -> list[tuple[Any, ...]]:
        database = self.tree / "var/lib/lineward/ledger.sqlite3"
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=5)) as db:
            return list(db.execute("SELECT seq, frame_id, verdict, reason FROM results ORDER BY seq"))

    def wait_rows(self, count: int) -> None:
        wait_until(lambda: len(self.rows()) >= count, 30, f"{count} answers; {self.journal()}")

    def in_sandbox_of(self, unit: str, command: str, timeout_s: float = 60) -> None:
        """Run a command once as the unit would, with its user and everything shut that the unit shuts."""
        text = (self.tree / f"usr/lib/systemd/system/{unit}.service").read_text(encoding="utf-8")
        replaced = ("ExecStart=", "ExecReload=", "Type=", "WatchdogSec=", "Restart", "NotifyAccess=")
        lines = [line for line in text.splitlines() if not line.startswith(replaced)]
        at = lines.index("[Service]") + 1
        lines[at:at] = ["Type=oneshot", f"ExecStart={command}"]
        self.write("etc/systemd/system/probe.service", "\n".join([*lines, ""]))
        self.run("systemctl", "daemon-reload")
        done = self.run("systemctl", "start", "probe", check=False, timeout_s=timeout_s)
        assert done.returncode == 0, self.journal("-u", "probe")

    def wait_back(self, other_than: int, timeout_s: float = 15) -> float:
        """Wait until another process inspects; return the seconds it took."""
        began = time.monotonic()

        def back() -> bool:
            return self.show("lineward", "ActiveState") == "active" and self.pid not in {0, other_than}

        wait_until(back, timeout_s, f"another process; {self.journal()}")
        return time.monotonic() - began


@contextmanager
def booted(folder: Path, bundle: Path) -> Iterator[Station]:
    """A station in this folder, taken away again whatever happens on its way up."""
    (folder / "packages").mkdir()
    with only_one():
        machine = Station.__new__(Station)
        try:
            machine.__init__(folder, bundle)  # type: ignore[misc]
            yield machine
        finally:
            machine.close()
