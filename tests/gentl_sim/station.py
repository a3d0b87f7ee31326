"""A line on a camera process on the simulated producer, and faults that befall it while it runs."""

from __future__ import annotations

import gc
import os
import threading
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from gentl_sim.gentl_sim import Control, Crash, Hang, SimDevice
from gentl_sim.ticker import Ticker
from lineward.daemon.frames import GRAB_S, LONGEST_BACKOFF_S
from lineward.daemon.retry import delay_s
from lineward.drivers.camera import CameraError, Frame
from lineward.drivers.process import CameraProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

SETTINGS = {"TestPattern": "FrameId", "ExposureTime": 100.0, "AcquisitionFrameRate": 100.0}
STALE_S = 0.5
PATIENCE_S = 60.0


def is_torn(frame: Frame) -> bool:
    """Tell a frame whose pixels do not all carry its own number."""
    numbers = frame.image.view("<u4")
    return bool((numbers != frame.frame_id).any())


def shared_memory() -> int:
    """Return how many frame rings this process has mapped."""
    gc.collect()
    return Path("/proc/self/maps").read_text().count("memfd:lineward-frames")


def children() -> int:
    """Return how many child processes there are."""
    return sum(len(path.read_text().split()) for path in Path("/proc/self/task").glob("*/children"))


def descriptors() -> int:
    """Return how many files are open; frames that nobody holds any more keep none."""
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


@dataclass(frozen=True)
class Fault:
    """What happens to the camera, and when it is over; ``hung``: the time counts from its beginning."""

    begin: Callable[[SimDevice], None]
    end: Callable[[SimDevice], None]
    lasts_s: float = 0.0
    hung: bool = False


def _reopen(device: SimDevice, where: Hang) -> None:
    """Let the next opening run into a call that hangs; the one that lost the camera closes it in good order."""
    hung = device.hung
    device.hang(Hang.OPEN)
    device.lose()
    device.come_back()
    device.wait(lambda d: d.hung > hung)
    if where is not Hang.OPEN:  # let it go on to where it is to hang; it looks every millisecond
        device.hang(where)
        time.sleep(0.01)


def _quiet(device: SimDevice, *, hang: Hang | None = None, slow_s: float = 0.0) -> None:
    """Registers are read while no frame comes."""
    device.silence()
    device.slow(slow_s)
    device.hang(hang or 0)


NO_FAULT = Fault(lambda _device: None, lambda _device: None, 3.0)
"""What the machine itself does to a line in the same time."""

FAULTS: dict[str, Fault] = {
    "incomplete": Fault(
        lambda device: device.incomplete(3),
        lambda device: device.wait(lambda d: d.incomplete_done == d.incomplete_wanted),
    ),
    "drop": Fault(lambda device: device.drop(3), lambda device: device.wait(lambda d: d.drop_done == d.drop_wanted)),
    "silence": Fault(SimDevice.silence, SimDevice.heal, 1.0),
    "slow register": Fault(lambda device: _quiet(device, slow_s=0.5), SimDevice.heal, 1.2),
    "lost and back": Fault(SimDevice.lose, SimDevice.come_back, 0.7),
    "blink of power": Fault(SimDevice.lose, SimDevice.come_back, 0.0),
    "unplugged": Fault(SimDevice.unplug, SimDevice.come_back, 1.5),
    "in use elsewhere": Fault(lambda device: (device.lose(), device.occupy())[-1], SimDevice.come_back, 1.5),
    "crash": Fault(SimDevice.crash, lambda device: device.wait(lambda d: d.crash_done == d.crash_wanted)),
    "hung event": Fault(lambda device: device.hang(Hang.EVENT), SimDevice.heal, hung=True),
    "hung read": Fault(lambda device: _quiet(device, hang=Hang.READ), SimDevice.heal, hung=True),
    "hung open": Fault(lambda device: _reopen(device, Hang.OPEN), SimDevice.heal, hung=True),
    "hung write": Fault(lambda device: _reopen(device, Hang.WRITE), SimDevice.heal, hung=True),
    "hung start": Fault(lambda device: _reopen(device, Hang.START), SimDevice.heal, hung=True),
}
assert Crash.AT_FRAME == 0  # the crash of the table


@dataclass
class Outcome:
    """What a fault cost, over its repetitions."""

    resumed_s: list[float] = field(default_factory=list)
    frames: int = 0
    torn: int = 0
    stale: int = 0
    disordered: int = 0
    unexplained: int = 0
    """Frame numbers that are missing between two frames of one opening and were not counted, or counted twice."""
    openings: int = 0
    processes_left: int = 0
    descriptors_left: int = 0
    memory_left: int = 0
    stalls_ms: list[float] = field(default_factory=list)
    """By how much each tick of another thread of this process came too late."""


class Station:
    """A line that goes on: opens its camera, judges what comes, and opens it anew when it is lost.

    The waits between two tries are the daemon's own: the first comes at once, the others after 0.5 to 1 s.
    """

    def __init__(self, producer: Path, control: Control, serial: str = "SIM-A") -> None:
        self.device = control[serial]
        self.camera = CameraProcess("genicam", {"producers": [str(producer)], "serial": serial})
        self._openings = 0

    def _frames(self) -> Generator[Frame]:
        attempt = 0
        while True:
            try:
                self.camera.open()
                self.camera.configure(SETTINGS)
                self.camera.start()
                self._openings += 1
                attempt = 0
                while True:
                    got = self.camera.grab(GRAB_S)
                    if isinstance(got, Frame):
                        yield got
            except CameraError as error:
                self.camera.close()
                if attempt:
                    time.sleep(min(LONGEST_BACKOFF_S, delay_s(error, attempt)))
                attempt += 1

    def suffer(self, fault: Fault, repetitions: int) -> Outcome:
        """Provoke a fault in mid-run again and again, and judge every frame that comes."""
        before = children(), descriptors(), shared_memory()
        outcome = Outcome()
        seen: list[tuple[int, int, int]] = []  # opening, frame number, frames counted as missing before it
        frames = self._frames()
        ticker = Ticker()
        ticker.start()

        def judge() -> Frame:
            frame = next(frames)
            now_ns = time.monotonic_ns()
            assert frame.device_ns is not None
            outcome.frames += 1
            outcome.torn += is_torn(frame)
            outcome.stale += now_ns - frame.device_ns > STALE_S * 1e9
            seen.append((self._openings, frame.frame_id, sum(frame.missing.values())))
            return frame

        for _ in range(repetitions):
            for _ in range(20):
                judge()
            saboteur = Saboteur(self.device, fault)
            saboteur.start()
            deadline = time.monotonic() + PATIENCE_S
            while not saboteur.counts_from_ns or (judge().device_ns or 0) < saboteur.counts_from_ns:
                if not saboteur.counts_from_ns:
                    judge()
                assert time.monotonic() < deadline, "inspection did not resume"
            outcome.resumed_s.append((time.monotonic_ns() - saboteur.counts_from_ns) / 1e9)
            saboteur.join()
        outcome.stalls_ms = ticker.stop()
        frames.close()
        self.camera.stop()
        self.camera.close()
        for (opening, number, _), (opening_after, number_after, missing) in pairwise(seen):
            if opening == opening_after:
                outcome.disordered += number_after <= number
                outcome.unexplained += abs(number_after - number - 1 - missing)
        outcome.openings = self._openings
        outcome.processes_left = children() - before[0]
        outcome.descriptors_left = descriptors() - before[1]
        outcome.memory_left = shared_memory() - before[2]
        return outcome


class Saboteur(threading.Thread):
    """Lets a fault begin and end while the line runs."""

    def __init__(self, device: SimDevice, fault: Fault) -> None:
        super().__init__(daemon=True)
        self._device, self._fault = device, fault
        self.counts_from_ns = 0
        """When the cause ended, or a hung call began; 0 before."""

    def run(self) -> None:
        device, fault = self._device, self._fault
        hung = device.hung  # those that were killed in their call count as hung for ever
        fault.begin(device)
        if fault.hung:
            device.wait(lambda d: d.hung > hung, 30.0)
            began_ns, pid = time.monotonic_ns(), device.owner
            while _runs(pid):  # a call that never returns: the switch is turned back when nobody is in it any more
                time.sleep(0.005)
            fault.end(device)
            self.counts_from_ns = began_ns
            return
        time.sleep(fault.lasts_s)
        fault.end(device)
        self.counts_from_ns = time.monotonic_ns()


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (OSError, IndexError):
        return False
