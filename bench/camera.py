"""Frames from a camera process beside the loop that harvesters documents, both on the simulated producer.

Each pixel carries its frame's number, so that a lost, torn or swapped frame is seen. The thread that ticks every
millisecond stands for the rest of the inspection process: it stops where the interpreter lock is held. Latency runs
from the end of the exposure until the image can be read, the producer's own copy included.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests")]

from gentl_sim import gentl_sim  # noqa: E402
from lineward.drivers.camera import Frame  # noqa: E402
from lineward.drivers.process import CameraProcess  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

EXPOSURE_US = 100.0
HEAD = (
    f"{'':40} {'frames':>6} {'fps':>6} {'lost':>5} {'torn':>5} {'order':>5} {'p50 ms':>7} {'p99 ms':>7}"
    f" {'ticks/s':>8} {'stall ms':>8} {'CPU %':>6}"
)


class Ticker(threading.Thread):
    """Counts how often a loop of one millisecond runs, and its longest stop."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._ends = threading.Event()
        self._began = time.monotonic()
        self._ticks, self._longest_s = 0, 0.0

    def run(self) -> None:
        """Tick until stopped."""
        before = time.monotonic()
        while not self._ends.is_set():
            time.sleep(0.001)
            now = time.monotonic()
            self._longest_s, before = max(self._longest_s, now - before), now
            self._ticks += 1

    def stop(self) -> tuple[float, float]:
        """Return ticks per second and the longest stop in milliseconds."""
        self._ends.set()
        self.join()
        return self._ticks / (time.monotonic() - self._began), self._longest_s * 1e3


def cpu_s(pid: int) -> float:
    """Return the processor time of a process in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass
class Tally:
    """What came out of one stream."""

    name: str
    numbers: list[int] = field(default_factory=list)
    latency_ms: list[float] = field(default_factory=list)
    torn: int = 0

    def add(self, number: int, image: np.ndarray[Any, Any], device_ns: int) -> None:
        """Judge one frame."""
        self.latency_ms.append((time.monotonic_ns() - device_ns) / 1e6 - EXPOSURE_US / 1e3)
        self.numbers.append(number)
        self.torn += bool((image.view("<u4") != number).any())

    def line(self, took_s: float, ticks: tuple[float, float], cpu: float) -> str:
        """Return the figures as one line of the table."""
        steps = np.diff(self.numbers)
        p50, p99 = np.percentile(self.latency_ms, [50, 99])
        lost, disordered = int((steps - 1)[steps > 0].sum()), int((steps <= 0).sum())
        return (
            f"{self.name:40} {len(self.numbers):6} {len(self.numbers) / took_s:6.1f} {lost:5} {self.torn:5}"
            f" {disordered:5} {p50:7.2f} {p99:7.2f} {ticks[0]:8.0f} {ticks[1]:8.1f} {100 * cpu / took_s:6.1f}"
        )


@dataclass(frozen=True)
class Case:
    """A camera's settings and how many frames are taken."""

    name: str
    frames: int
    settings: dict[str, Any]


def case(name: str, frames: int, rate_hz: float, width: int = 640, height: int = 480) -> Case:
    """Describe a stream of the test pattern with frame numbers."""
    settings = {"Width": width, "Height": height, "PixelFormat": "Mono8", "TestPattern": "FrameId"}
    return Case(name, frames, settings | {"ExposureTime": EXPOSURE_US, "AcquisitionFrameRate": rate_hz})


def frames_of(camera: CameraProcess, number: int) -> Iterator[Frame]:
    """Take whole frames."""
    while number:
        got = camera.grab(1.0)
        if isinstance(got, Frame):
            number -= 1
            yield got


def lineward(producer: Path, serial: str, what: Case, *, ticking: bool = True) -> str:
    """Take frames through a camera process."""
    camera = CameraProcess("genicam", {"producers": [str(producer)], "serial": serial, "buffers": 8})
    camera.open()
    camera.configure(what.settings)
    camera.start()
    for _ in frames_of(camera, 10):
        pass
    assert camera.pid is not None
    tally, ticker = Tally(f"lineward    {what.name}"), Ticker()
    if ticking:
        ticker.start()
    began, used = time.monotonic(), cpu_s(camera.pid)
    for frame in frames_of(camera, what.frames):
        assert frame.device_ns is not None
        tally.add(frame.frame_id, frame.image, frame.device_ns)
    took, used = time.monotonic() - began, cpu_s(camera.pid) - used
    line = tally.line(took, ticker.stop() if ticking else (float("nan"), float("nan")), used)
    camera.close()
    return line


def plain(producer: Path, serial: str, what: Case) -> str:
    """Take frames as the documentation of harvesters does, in this process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from harvesters.core import Harvester  # noqa: PLC0415 - what it does to its process is to be seen here only

        harvester = Harvester()
        harvester.add_file(str(producer))
        harvester.update()
        acquirer = harvester.create({"serial_number": serial})
        for name, value in what.settings.items():
            getattr(acquirer.remote_device.node_map, name).value = value
        acquirer.num_buffers = 8
        acquirer.start()
        tally, ticker = Tally(f"harvesters  {what.name}"), Ticker()
        ticker.start()
        began, used = time.monotonic(), time.process_time()
        for _ in range(what.frames):
            with acquirer.fetch(timeout=3) as buffer:
                component = buffer.payload.components[0]
                image = component.data.reshape(component.height, component.width)
                tally.add(int(image[0, :4].view("<u4")[0]), image, buffer.timestamp_ns)
        took, used = time.monotonic() - began, time.process_time() - used
        line = tally.line(took, ticker.stop(), used)
        acquirer.stop()
        acquirer.destroy()
        harvester.reset()
    return line


def together(producer: Path, what: Case, serials: tuple[str, ...]) -> list[str]:
    """Take frames from several cameras at once, each in a process of its own, all in this one."""
    lines: dict[str, str] = {}

    def take(serial: str) -> None:
        lines[serial] = lineward(producer, serial, what, ticking=serial == serials[0])

    threads = [threading.Thread(target=take, args=(serial,)) for serial in serials]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [lines[serial] for serial in serials]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=10_000, help="of the stream at 200 frames per second")
    frames = parser.parse_args().frames
    fast = case("640x480 at 200 fps", frames, 200.0)
    large = case("2448x2048 at 20 fps", max(50, frames // 25), 20.0, 2448, 2048)
    three = case("three of 640x480 at 30 fps", max(50, frames // 12), 30.0)
    with tempfile.TemporaryDirectory(prefix="lineward-bench-") as name:
        producer = gentl_sim.build(Path(name))
        control = gentl_sim.Control(Path(name) / "control")
        print(HEAD)
        with control.in_environment():
            for what in (fast, large):
                print(lineward(producer, "SIM-A", what), flush=True)
            print(*together(producer, three, ("SIM-A", "SIM-B", "SIM-C")), sep="\n", flush=True)
            for what in (fast, large):
                short = Case(what.name, max(50, what.frames // 4), what.settings)
                print(plain(producer, "SIM-A", short), flush=True)
    print("CPU: of the camera process with the simulated sensor in it; of the whole process for harvesters")


if __name__ == "__main__":
    main()
