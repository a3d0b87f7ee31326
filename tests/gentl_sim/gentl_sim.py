"""The simulated GenTL producer of the tests: compile it, and switch it from outside while a process uses it.

The producer maps the file that LINEWARD_GENTL_SIM names, in whatever process it runs; `Control` writes the same file.
Every word of it has one writer, so nothing is locked: a switch or a request is written here, a counter there.
"""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
import time
import xml.etree.ElementTree as ET
from contextlib import contextmanager
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ENVIRONMENT = "LINEWARD_GENTL_SIM"
SOURCES = Path(__file__).parent
SERIALS = ("SIM-A", "SIM-B", "SIM-C", "SIM-D", "SIM-E", "SIM-F", "SIM-G", "SIM-H")
VENDOR = "Lineward Simulations"

SWITCHES = (
    *("presence", "life", "silent", "slow_us", "slow_address", "hang", "payload_type", "wrap16", "first_frame_id"),
    *("incomplete_wanted", "short_wanted", "drop_wanted", "crash_wanted", "crash_where", "line1_edges"),
)
COUNTERS = (
    *("incomplete_done", "short_done", "drop_done", "crash_done"),
    *("generated", "delivered", "underruns", "triggers", "triggers_missed", "line1_seen", "opens", "closes"),
    *("starts", "stops", "reads", "writes", "hung"),
    *("announced", "queued", "waiting", "owner", "last_frame_id", "last_frame_ns"),
)
_MAGIC = int.from_bytes(b"GENTLSIM", "little")
_VERSION = 1
_SLOW_SEARCH = 1
_WORDS, _PATH_BYTES, _HEADER_BYTES = 64, 512, 512
_DEVICE_BYTES = 8 * _WORDS + _PATH_BYTES


class Presence(IntEnum):
    """What becomes of a device."""

    PRESENT = 0
    LOST = 1
    IN_USE = 2
    ABSENT = 3


class Hang(IntFlag):
    """Calls that do not return."""

    READ = 1
    WRITE = 2
    EVENT = 4
    START = 8
    OPEN = 16


class Crash(IntEnum):
    """Where a SIGSEGV comes from."""

    AT_FRAME = 0
    AT_READ = 1


def compiler() -> str | None:
    """Return the C compiler's path, or None: then there is no simulated producer, and its tests are skipped."""
    return shutil.which("gcc")


def build(folder: Path) -> Path:
    """Compile the producer into ``folder`` and return its file; warnings are errors."""
    gcc, cti = compiler(), folder / "gentl_sim.cti"
    assert gcc is not None
    flags = ["-std=c11", "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden", "-pthread"]
    sources = sorted(str(source) for source in SOURCES.glob("*.c"))
    command = [gcc, *flags, f"-Wa,-I{SOURCES}", "-o", str(cti), *sources]
    subprocess.run(command, check=True, timeout=120)
    return cti


def addresses() -> dict[str, int]:
    """Return the address of each register of the remote device by its feature's name, as device.xml has them."""
    root = ET.parse(SOURCES / "device.xml").getroot()  # noqa: S314 - our own file
    space = root.tag.removesuffix("RegisterDescription")
    found = {}
    for register in (*root.iter(f"{space}IntReg"), *root.iter(f"{space}FloatReg")):
        if register.findtext(f"{space}pPort") == "Device":
            found[register.attrib["Name"].removesuffix("Reg")] = int(register.findtext(f"{space}Address", ""), 16)
    return found


class SimDevice:
    """One camera's switches and counters. A counter is an attribute: ``device.generated``."""

    def __init__(self, words: memoryview, path: memoryview) -> None:
        self._words = words
        self._path = path

    def __getattr__(self, name: str) -> int:
        try:
            return self._words[(SWITCHES + COUNTERS).index(name)]
        except ValueError:
            raise AttributeError(name) from None

    def _set(self, name: str, value: int) -> None:
        self._words[SWITCHES.index(name)] = value

    def _ask(self, name: str, number: int) -> None:
        self._set(name, getattr(self, name) + number)

    # -- requests: each is carried out ``number`` times

    def incomplete(self, number: int = 1) -> None:
        """Let the next frames arrive half, flagged as incomplete; the other half is an older frame's."""
        self._ask("incomplete_wanted", number)

    def short(self, number: int = 1) -> None:
        """Let the next frames arrive half without the flag: only their filled size tells."""
        self._ask("short_wanted", number)

    def drop(self, number: int = 1) -> None:
        """Lose the next frames in the camera: their numbers are used up."""
        self._ask("drop_wanted", number)

    def pulse(self, number: int = 1) -> None:
        """Give edges on Line1."""
        self._ask("line1_edges", number)

    def crash(self, where: Crash = Crash.AT_FRAME) -> None:
        """End the process that uses the camera by SIGSEGV, once."""
        self._set("crash_where", where)
        self._ask("crash_wanted", 1)

    # -- standing switches

    def silence(self, on: bool = True) -> None:  # noqa: FBT001, FBT002 - a switch
        """Send no frames, though armed; triggers are taken and not answered."""
        self._set("silent", int(on))

    def slow(self, seconds: float, feature: str = "") -> None:
        """Let each access to a feature's register, or to all of them, take this long; 0 ends it."""
        self._set("slow_address", addresses()[feature] if feature else 0)
        self._set("slow_us", round(seconds * 1e6))

    def slow_search(self, seconds: float) -> None:
        """Let each search for cameras take this long; 0 ends it, as `slow` does."""
        self._set("slow_address", _SLOW_SEARCH if seconds else 0)
        self._set("slow_us", round(seconds * 1e6))

    def hang(self, where: Hang | int) -> None:
        """Let calls of these kinds not return; 0 lets them go. ``hung`` counts those that wait."""
        self._set("hang", where)

    def payload(self, kind: int = 0) -> None:
        """Declare another payload type (11: a GenDC container); 0: a plain image."""
        self._set("payload_type", kind)

    def wrap_ids(self, on: bool = True) -> None:  # noqa: FBT001, FBT002 - a switch
        """Number frames in 16 bits: 0..65535, or 1..65535 on the camera with GigE's transport."""
        self._set("wrap16", int(on))

    def first_frame_id(self, number: int) -> None:
        """Begin numbering here at the next start; 0: as usual."""
        self._set("first_frame_id", number)

    def replay(self, file: Path) -> None:
        """Name the file of raw images for the test pattern ``File``; it is read at the next start."""
        encoded = os.fsencode(file)
        assert len(encoded) < _PATH_BYTES
        self._path[: len(encoded) + 1] = encoded + b"\0"

    # -- presence

    def lose(self) -> None:
        """Cut the power: no access, every register fails, no frames. Handles from before stay dead for ever."""
        self._set("presence", Presence.LOST)
        self._ask("life", 1)

    def unplug(self) -> None:
        """Like `lose`, and the next enumeration does not list the camera."""
        self._set("presence", Presence.ABSENT)
        self._ask("life", 1)

    def occupy(self) -> None:
        """Let another host have the camera open."""
        self._set("presence", Presence.IN_USE)

    def come_back(self) -> None:
        """Be there again, with settings as after power-up if the power was cut."""
        self._set("presence", Presence.PRESENT)

    def heal(self) -> None:
        """End every standing switch; requests that are not carried out yet are withdrawn."""
        for name in ("presence", "silent", "slow_us", "slow_address", "hang", "payload_type", "wrap16"):
            self._set(name, 0)
        self._set("first_frame_id", 0)
        for request in ("incomplete", "short", "drop", "crash"):
            self._set(f"{request}_wanted", getattr(self, f"{request}_done"))

    # -- looking

    def wait(self, condition: Callable[[SimDevice], bool], timeout_s: float = 5.0) -> None:
        """Wait until a counter says so."""
        deadline = time.monotonic() + timeout_s
        while not condition(self):
            assert time.monotonic() < deadline, f"the simulated camera did not get there: {self.counters()}"
            time.sleep(0.001)

    def counters(self) -> dict[str, int]:
        """Return all that the producer counts."""
        return {name: getattr(self, name) for name in COUNTERS}


class Control:
    """The control file: one `SimDevice` per serial number."""

    def __init__(self, path: Path, *, devices: int = 3) -> None:
        self.path = path
        size = _HEADER_BYTES + len(SERIALS) * _DEVICE_BYTES
        path.write_bytes(
            b"".join(word.to_bytes(8, "little") for word in (_MAGIC, _VERSION, devices)).ljust(size, b"\0")
        )
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), size)
        view = memoryview(self._map)
        self.devices: dict[str, SimDevice] = {}
        for index, serial in enumerate(SERIALS[:devices]):
            begin = _HEADER_BYTES + index * _DEVICE_BYTES
            words = view[begin : begin + 8 * _WORDS].cast("Q")
            self.devices[serial] = SimDevice(words, view[begin + 8 * _WORDS : begin + _DEVICE_BYTES])

    def __getitem__(self, serial: str) -> SimDevice:
        return self.devices[serial]

    @contextmanager
    def in_environment(self) -> Iterator[None]:
        """Let producers that are initialised meanwhile, here or in a child process, obey this file."""
        before = os.environ.get(ENVIRONMENT)
        os.environ[ENVIRONMENT] = str(self.path)
        try:
            yield
        finally:
            if before is None:
                del os.environ[ENVIRONMENT]
            else:
                os.environ[ENVIRONMENT] = before
