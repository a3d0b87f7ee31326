"""What the machine itself does to a camera and a clock: network, USB, processor, disk. Read from /proc and /sys.

Every look takes the root of the file system, so that any machine can be looked at whose /proc and /sys were copied.
"""

from __future__ import annotations

import ctypes
import grp
import os
import shutil
import stat
import tempfile
import time
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

RECEIVE_BYTES = 16 << 20
"""One 5 MP frame at 8 bits is 5 MB; a few must fit while the process is busy elsewhere."""

JUMBO = 9000
"""With packets of 1500 bytes a 5 MP frame is 3,500 interrupts, with 9000 it is 580."""

USBFS_MB = 256
"""The kernel's 16 MB hold three 5 MP frames for all USB cameras together."""

USB3_VISION = ("ef", "05")
REPLUG = "sudo udevadm control --reload; sudo udevadm trigger --subsystem-match=usb"

WRITE_MB_S = 20.0
SYNC_MS = 200.0
PROBE_BYTES = 16 << 20
LOW_SHARE = 0.10
MOST_LOOKED_AT = 20_000
COOL = "clean fans and filters, cool the box"
_TIME_ERROR = 5  # of adjtimex(2): not synchronised


class Level(StrEnum):
    """How bad a finding is; only a fault makes `lineward doctor` leave with 1."""

    OK = "ok"
    HINT = "hint"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at, and the command that mends it."""

    what: str
    level: Level
    text: str
    mend: str = ""

    def to_json(self) -> dict[str, str]:
        """Return the form of ``lineward doctor --json``."""
        return asdict(self)


def look_at_machine(root: Path = Path("/"), *, network_camera: bool, usb_camera: bool) -> list[Finding]:
    """Look at everything that does not need a configuration."""
    found = [clock(), *governor(root), throttling(root)]
    if network_camera:
        found += [receive_buffers(root), *mtu(root)]
    if usb_camera:
        found += [usbfs_memory(root), *usb_access(root)]
    return found


def receive_buffers(root: Path) -> Finding:
    """How much the kernel keeps of a GigE camera's packets."""
    limit = _number(root / "proc/sys/net/core/rmem_max")
    if limit is None:
        return Finding("receive buffers", Level.HINT, "net.core.rmem_max cannot be read here")
    text = f"net.core.rmem_max is {limit / 1e6:.1f} MB"
    if limit >= RECEIVE_BYTES:
        return Finding("receive buffers", Level.OK, text)
    return Finding(
        "receive buffers",
        Level.FAULT,
        f"{text}: a GigE camera loses packets whenever we are busy for a few milliseconds",
        f"echo net.core.rmem_max={2 * RECEIVE_BYTES} | sudo tee /etc/sysctl.d/90-lineward.conf; sudo sysctl --system",
    )


def mtu(root: Path) -> Iterator[Finding]:
    """Packet size of each network card that is up."""
    for card in sorted((root / "sys/class/net").glob("*")):
        if not (card / "device").exists() or _text(card / "operstate") != "up":
            continue
        size = _number(card / "mtu") or 0
        if size >= JUMBO:
            yield Finding("MTU", Level.OK, f"{card.name}: {size}")
        else:
            yield Finding(
                "MTU",
                Level.HINT,
                f"{card.name}: {size}; if a GigE camera is behind it, {JUMBO} means six times fewer interrupts",
                f"sudo ip link set dev {card.name} mtu {JUMBO}",
            )


def usbfs_memory(root: Path) -> Finding:
    """How much memory all USB cameras together may use."""
    path = "sys/module/usbcore/parameters/usbfs_memory_mb"
    size = _number(root / path)
    if size is None:
        return Finding("usbfs memory", Level.HINT, f"/{path} cannot be read: no USB here")
    if size == 0 or size >= USBFS_MB:
        return Finding("usbfs memory", Level.OK, f"{size} MB" if size else "not limited")
    return Finding(
        "usbfs memory",
        Level.FAULT,
        f"{size} MB for all USB cameras together; frames stay away as soon as more is asked for",
        f"echo 1000 | sudo tee /{path}; for every start: usbcore.usbfs_memory_mb=1000 on the kernel's command line",
    )


def usb_access(root: Path) -> Iterator[Finding]:
    """Whether the service may open each USB3 Vision camera: by its group, or because everybody may."""
    devices = {
        kind.parent.resolve().parent
        for kind in (root / "sys/bus/usb/devices").glob("*/bInterfaceClass")
        if (_text(kind), _text(kind.with_name("bInterfaceSubClass"))) == USB3_VISION
    }
    for device in sorted(devices):
        node = root / f"dev/bus/usb/{_number(device / 'busnum') or 0:03d}/{_number(device / 'devnum') or 0:03d}"
        try:
            status = node.stat()
        except OSError as error:
            yield Finding("USB access", Level.FAULT, f"{node}: {error.strerror}", REPLUG)
            continue
        text = f"{_text(device / 'product') or 'camera'} at {node}"
        theirs = status.st_mode & 0o006 == 0o006 or (status.st_mode & 0o060 == 0o060 and status.st_gid == _group())
        if theirs:
            yield Finding("USB access", Level.OK, text)
        else:
            yield Finding("USB access", Level.FAULT, f"{text} cannot be opened by the service", REPLUG)


def _group() -> int:
    """Return the number of the service's group; our own where it is not installed."""
    try:
        return grp.getgrnam("lineward").gr_gid
    except KeyError:
        return os.getgid()


def governor(root: Path) -> Iterator[Finding]:
    """Whether the processor is at full speed when a part comes."""
    files = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor"))
    names = sorted({_text(file) for file in files})
    if not names:
        return
    if names == ["performance"]:
        yield Finding("CPU governor", Level.OK, "performance")
    else:
        yield Finding(
            "CPU governor",
            Level.HINT,
            f"{', '.join(names)}: a processor that dozes between two parts takes longer for each",
            "sudo cpupower frequency-set --governor performance",
        )


def throttling(root: Path) -> Finding:
    """Whether the processor was slowed down for being hot, since the machine was started."""
    counts = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/*_throttle_count")
    times = sum(_number(file) or 0 for file in counts)
    zones = [(_number(zone / "temp"), _trip(zone)) for zone in (root / "sys/class/thermal").glob("thermal_zone*")]
    hot = [(temp, limit) for temp, limit in zones if temp is not None and limit is not None and temp >= limit - 5000]
    hottest = max((temp for temp, _ in zones if temp is not None), default=None)
    now = f"{hottest / 1000:.0f} °C now" if hottest is not None else "no thermometer"
    if hot:
        text = f"{now}, within 5 °C of the limit of {min(limit for _, limit in hot) / 1000:.0f} °C"
        return Finding("thermal", Level.FAULT, f"{text}; inspection gets slower", COOL)
    if times:
        text = f"slowed down {times} times since the start of the machine; {now}"
        return Finding("thermal", Level.HINT, text, COOL)
    return Finding("thermal", Level.OK, now)


def _trip(zone: Path) -> int | None:
    """Return the lowest temperature, in thousandths, at which the kernel slows the processor down."""
    trips = [
        _number(kind.with_name(kind.name.replace("_type", "_temp")))
        for kind in zone.glob("trip_point_*_type")
        if _text(kind) in {"passive", "hot", "critical"}
    ]
    return min((trip for trip in trips if trip is not None and trip > 0), default=None)


class _Timex(ctypes.Structure):
    """The beginning of ``struct timex`` and enough room for the rest."""

    _fields_ = (("modes", ctypes.c_uint), ("room", ctypes.c_byte * 512))


def clock() -> Finding:
    """Whether the clock follows a time server: times of results are compared with those of other machines."""
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(_Timex()))
    if state < 0:
        return Finding("clock", Level.HINT, "the kernel does not say whether the clock is synchronised")
    if state == _TIME_ERROR:
        return Finding(
            "clock",
            Level.FAULT,
            "follows no time server: results cannot be matched with those of other machines",
            "sudo apt install systemd-timesyncd; sudo timedatectl set-ntp true",
        )
    return Finding("clock", Level.OK, "synchronised")


# ---- disk and permissions


def look_at_storage(folder: Path, *, quota_bytes: float) -> Iterator[Finding]:
    """Look at the disk below the storage folder, and at whom it belongs to."""
    if not folder.exists():
        yield Finding("storage", Level.HINT, f"{folder} does not exist yet: the first start makes it", _own(folder))
        return
    yield disk_space(folder, quota_bytes=quota_bytes)
    yield disk_speed(folder)
    yield owners(folder)


def disk_space(folder: Path, *, quota_bytes: float) -> Finding:
    """How much room there is for the ledger, and for the images that the quota allows."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        return Finding("disk space", Level.FAULT, f"{folder}: {error.strerror}", _own(folder))
    share = usage.free / usage.total
    text = f"{folder}: {usage.free / 1e9:.1f} of {usage.total / 1e9:.1f} GB free"
    if share >= LOW_SHARE and quota_bytes > (1 - LOW_SHARE) * usage.total:
        return Finding(
            "disk space",
            Level.HINT,
            f"{text}; storage.max_gb and thumbnails_gb allow {quota_bytes / 1e9:.0f} GB of images, more than fit here",
            f"set storage.max_gb = {usage.total / 2e9:.1f} and run `lineward reload`",
        )
    if share >= LOW_SHARE:
        return Finding("disk space", Level.OK, text)
    return Finding(
        "disk space",
        Level.HINT if share > LOW_SHARE / 2 else Level.FAULT,
        f"{text}; from 95 % full on no image is kept",
        "lower storage.max_gb and run `sudo systemctl reload lineward`, or make room",
    )


def disk_speed(folder: Path) -> Finding:
    """Write 16 MB and wait for the disk, as a busy minute of images does."""
    data = os.urandom(1 << 20)
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            began = time.perf_counter()
            for _ in range(PROBE_BYTES >> 20):
                probe.write(data)
            probe.flush()
            os.fsync(probe.fileno())
            took_s = time.perf_counter() - began
            probe.write(b"x" * 4096)
            probe.flush()
            began = time.perf_counter()
            os.fsync(probe.fileno())
            sync_ms = (time.perf_counter() - began) * 1000
    except OSError as error:
        return Finding("disk speed", Level.FAULT, f"{folder}: cannot be written: {error.strerror}", _own(folder))
    speed = PROBE_BYTES / 1e6 / took_s
    text = f"{folder}: {speed:.0f} MB/s, a small write is safe after {sync_ms:.1f} ms"
    if speed >= WRITE_MB_S and sync_ms <= SYNC_MS:
        return Finding("disk speed", Level.OK, text)
    return Finding("disk speed", Level.HINT, f"{text}; images will be dropped", "use an SSD for storage.root")


def owners(folder: Path) -> Finding:
    """Whether everything below belongs to the folder's owner: a command run as root leaves files we cannot write."""
    try:
        top = folder.stat()
        strangers = [path for path in _walk(folder) if path.lstat().st_uid != top.st_uid]
    except OSError as error:
        return Finding("owner", Level.FAULT, f"{error.filename}: {error.strerror}", _own(folder))
    if top.st_mode & stat.S_IWOTH:
        text = f"{folder} can be written by everybody: whoever may write there commands the station"
        return Finding("owner", Level.FAULT, text, f"sudo chmod o-w {folder}")
    if strangers:
        text = f"{strangers[0]} and {len(strangers) - 1} more belong to somebody else than {folder}"
        return Finding("owner", Level.FAULT, text, f"sudo chown --recursive --reference={folder} {folder}")
    return Finding("owner", Level.OK, f"{folder} and all in it have one owner")


def _walk(folder: Path) -> Iterator[Path]:
    seen = 0
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            seen += 1
            if seen > MOST_LOOKED_AT:
                return
            yield Path(place, name)


def _own(folder: Path) -> str:
    return f"sudo install -d -m 750 -o lineward -g lineward {folder}"


def secrets(files: Sequence[Path]) -> Iterator[Finding]:
    """Whether passwords and keys are for us alone."""
    for file in files:
        try:
            mode = file.stat().st_mode
        except OSError as error:
            yield Finding("secrets", Level.FAULT, f"{file}: {error.strerror}", f"make {file}, readable by the service")
            continue
        if mode & 0o007:
            text = f"{file} can be read by everybody on this machine"
            yield Finding("secrets", Level.FAULT, text, f"sudo chmod o-rwx {file}")
        else:
            yield Finding("secrets", Level.OK, f"{file} is not for everybody")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.lstrip("-").isdigit() else None
