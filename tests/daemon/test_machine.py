"""What `lineward doctor` says about a machine, from folders laid out as /proc and /sys are."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from lineward.daemon import machine
from lineward.daemon.machine import Level

if TYPE_CHECKING:
    from pathlib import Path


def lay_out(root: Path, **files: object) -> Path:
    for name, value in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n", encoding="ascii")
    return root


@pytest.mark.parametrize(("size", "level"), [(212_992, Level.FAULT), (16 << 20, Level.OK)])
def test_small_receive_buffers_are_a_fault_with_its_remedy(tmp_path, size, level):
    """Rule: Debian's default loses packets of a GigE camera; the command that mends it also lasts."""
    finding = machine.receive_buffers(lay_out(tmp_path, proc__sys__net__core__rmem_max=size))
    assert finding.level is level
    assert ("sysctl --system" in finding.mend) == (level is Level.FAULT)


def test_only_cards_that_are_up_are_asked_for_jumbo_frames(tmp_path):
    """Rule: a bridge, a card without a cable and one with 9000 are left in peace; the others are named."""
    net = tmp_path / "sys/class/net"
    for name, state, size in [("eth0", "up", 1500), ("eth1", "up", 9000), ("eth2", "down", 1500)]:
        lay_out(net / name, operstate=state, mtu=size)
        (net / name / "device").mkdir()
    lay_out(net / "br0", operstate="up", mtu=1500)
    assert [(f.level, f.text.split(":")[0]) for f in machine.mtu(tmp_path)] == [
        (Level.HINT, "eth0"),
        (Level.OK, "eth1"),
    ]


@pytest.mark.parametrize(("size", "level"), [(16, Level.FAULT), (1000, Level.OK), (0, Level.OK)])
def test_usb_memory(tmp_path, size, level):
    """Rule: the kernel's 16 MB are too little for a USB camera; 0 means without limit."""
    lay_out(tmp_path / "sys/module/usbcore/parameters", usbfs_memory_mb=size)
    found = machine.usbfs_memory(tmp_path)
    assert found.level is level


@pytest.mark.parametrize(("mode", "level"), [(0o664, Level.OK), (0o666, Level.OK), (0o644, Level.FAULT)])
def test_a_usb_camera_that_the_service_may_not_open(tmp_path, monkeypatch, mode, level):
    """Rule: each USB3 Vision camera is named with its node; no other device is looked at."""
    monkeypatch.setattr(machine, "_group", os.getgid)  # whether or not the service is installed here
    devices, bus = tmp_path / "sys/devices/usb1", tmp_path / "sys/bus/usb/devices"
    bus.mkdir(parents=True)
    for name, kind, number in [("1-1", "ef", 7), ("1-2", "03", 8)]:
        lay_out(devices / name, busnum=1, devnum=number, product=f"device {number}")
        lay_out(devices / name / f"{name}:1.0", bInterfaceClass=kind, bInterfaceSubClass="05")
        (bus / f"{name}:1.0").symlink_to(devices / name / f"{name}:1.0")
    assert "No such file" in next(machine.usb_access(tmp_path)).text
    lay_out(tmp_path / "dev/bus/usb/001", **{"007": ""})
    (tmp_path / "dev/bus/usb/001/007").chmod(mode)
    (found,) = machine.usb_access(tmp_path)
    assert found.level is level
    assert found.text.startswith(f"device 7 at {tmp_path}/dev/bus/usb/001/007")
    assert ("udevadm" in found.mend) == (level is Level.FAULT)


def test_a_quota_beyond_the_disk_is_named(tmp_path):
    """Rule: images never fill a disk that is larger than their quota; one that is smaller is told beforehand."""
    total = shutil.disk_usage(tmp_path).total
    assert machine.disk_space(tmp_path, quota_bytes=total / 10).text.endswith("GB free")
    if shutil.disk_usage(tmp_path).free > 0.1 * total:
        found = machine.disk_space(tmp_path, quota_bytes=2 * total)
        assert found.level is Level.HINT
        assert "storage.max_gb" in found.mend


def test_a_folder_that_is_not_there_yet_is_one_hint(tmp_path):
    """Rule: before the first start nothing is wrong, and nothing is told three times."""
    (found,) = machine.look_at_storage(tmp_path / "none", quota_bytes=1)
    assert found.level is Level.HINT
    assert found.mend.startswith("sudo install -d")


def test_a_processor_that_dozes_is_named(tmp_path):
    """Rule: any governor but `performance` is a hint; a machine without one says nothing."""
    assert list(machine.governor(tmp_path)) == []
    lay_out(tmp_path / "sys/devices/system/cpu/cpu0/cpufreq", scaling_governor="performance")
    assert [finding.level for finding in machine.governor(tmp_path)] == [Level.OK]
    lay_out(tmp_path / "sys/devices/system/cpu/cpu1/cpufreq", scaling_governor="powersave")
    assert [finding.level for finding in machine.governor(tmp_path)] == [Level.HINT]


def test_heat(tmp_path):
    """Rule: within 5 degrees of the limit is a fault, a processor that was slowed down earlier a hint."""
    zone = tmp_path / "sys/class/thermal/thermal_zone0"
    lay_out(zone, temp=60_000, trip_point_0_type="passive", trip_point_0_temp=90_000)
    assert machine.throttling(tmp_path).level is Level.OK
    lay_out(tmp_path / "sys/devices/system/cpu/cpu0/thermal_throttle", core_throttle_count=12)
    assert "12 times" in machine.throttling(tmp_path).text
    lay_out(zone, temp=87_000)
    assert machine.throttling(tmp_path).level is Level.FAULT


def test_a_stranger_among_the_files_is_found(tmp_path):
    """Rule: a file that a command of root left behind is named, with the command that gives it back."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").touch()
    assert machine.owners(tmp_path).level is Level.OK
    if os.geteuid() == 0:
        os.chown(tmp_path / "images" / "1.png", 65_534, 65_534)
        found = machine.owners(tmp_path)
        assert "1.png" in found.text
        assert found.mend.startswith("sudo chown")
    tmp_path.chmod(0o777)
    assert "everybody" in machine.owners(tmp_path).text


def test_a_password_for_everybody_is_a_fault(tmp_path):
    """Rule: a secret that others on the machine can read is named with its remedy."""
    (secret := tmp_path / "password").write_text("x")
    secret.chmod(0o644)
    assert [f.mend for f in machine.secrets([secret])] == [f"sudo chmod o-rwx {secret}"]
    secret.chmod(0o640)
    assert [f.level for f in machine.secrets([secret, tmp_path / "none"])] == [Level.OK, Level.FAULT]


def test_a_disk_that_cannot_be_written_is_a_finding_and_no_crash(tmp_path):
    """Rule: the doctor never fails at what it looks at."""
    assert machine.disk_speed(tmp_path).text.startswith(str(tmp_path))
    assert machine.disk_speed(tmp_path / "none").level is Level.FAULT
    assert machine.disk_space(tmp_path / "none", quota_bytes=1).level is Level.FAULT
    assert machine.clock().what == "clock"
