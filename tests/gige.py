"""A GigE Vision camera in software at the far end of a network cable: Aravis' own, behind a veth pair.

The camera runs in a network namespace of its own, as a camera is a machine of its own. Needs root.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import time

import pytest

from lineward.drivers import aravis_library, gvcp
from lineward.drivers.camera import CameraNotFoundError

PROGRAM = shutil.which("arv-fake-gv-camera-0.8")
INSTALL = "apt-get install --no-install-recommends aravis-tools gir1.2-aravis-0.8 python3-gi iproute2"
_numbers = itertools.count()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=10)


def why_not() -> str:
    """Say what is missing, or nothing."""
    if PROGRAM is None or shutil.which("ip") is None:
        return f"no fake GigE Vision camera; as root: {INSTALL}"
    try:
        aravis_library.load()
    except CameraNotFoundError as error:
        return str(error)
    probe = f"lwprobe{os.getpid()}"
    try:
        _run("ip", "netns", "add", probe)
    except subprocess.CalledProcessError as error:
        return f"no network namespace can be made, which needs root: {error.stderr.strip()}"
    _run("ip", "netns", "delete", probe)
    return ""


class GigeCamera:
    """Plugged in when made; `unplug`, `switch_off` and `switch_on` do what they say. `remove` leaves nothing behind."""

    def __init__(self, serial: str = "LW0001", *, mtu: int = 9000) -> None:
        number = next(_numbers)
        self.serial = serial
        self._name = f"lw{os.getpid() % 10_000_000}x{number}"  # an interface's name has at most 15 characters
        self._ours, self._theirs = f"{self._name}a", f"{self._name}b"
        low = os.getpid() * 16 + number  # a network of its own per test process: 198.18.0.0/15 is set aside for tests
        base = f"198.{18 + (low >> 14 & 1)}.{low >> 6 & 0xFF}"
        self.address = f"{base}.{(low & 0x3F) * 4 + 2}"
        self._process: subprocess.Popen[bytes] | None = None
        try:
            _run("ip", "netns", "add", self._name)
            _run("ip", "link", "add", self._ours, "type", "veth", "peer", "name", self._theirs, "netns", self._name)
            _run("ip", "address", "add", f"{base}.{(low & 0x3F) * 4 + 1}/30", "dev", self._ours)
            _run("ip", "link", "set", self._ours, "up", "mtu", str(mtu))
            inside = ("ip", "-n", self._name)
            _run(*inside, "address", "add", f"{self.address}/30", "broadcast", "+", "dev", self._theirs)
            _run(*inside, "link", "set", self._theirs, "up", "mtu", str(mtu))
            self.switch_on()
        except BaseException:
            self.remove()
            raise

    def switch_on(self, lost_per_thousand: int = 0) -> None:
        """Start the camera; it loses that many packets of a thousand."""
        assert self._process is None
        assert PROGRAM is not None
        command = ["ip", "netns", "exec", self._name, PROGRAM, "-i", self._theirs, "-s", self.serial]
        self._process = subprocess.Popen(
            [*command, "-r", str(lost_per_thousand)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 10
        while gvcp.identify(self.address) is None:
            assert self._process.poll() is None, "the fake camera ended at once"
            assert time.monotonic() < deadline, "the fake camera does not answer"
            time.sleep(0.02)

    def switch_off(self) -> None:
        """Take the camera's power away."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def freeze(self) -> None:
        """Let the camera hang: it sends and answers nothing, and its address stays reachable."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def unplug(self) -> None:
        """Pull the network cable."""
        _run("ip", "link", "set", self._ours, "down")

    def plug_in(self) -> None:
        _run("ip", "link", "set", self._ours, "up")

    def remove(self) -> None:
        """Remove camera, cable and namespace. Idempotent; never raises."""
        self.switch_off()
        for command in (("ip", "link", "delete", self._ours), ("ip", "netns", "delete", self._name)):
            subprocess.run(command, check=False, capture_output=True, timeout=10)


def plugged_in() -> GigeCamera:
    """Return a camera that runs, or skip the tests and say what is missing."""
    missing = why_not()
    if missing:
        pytest.skip(missing)
    return GigeCamera()
