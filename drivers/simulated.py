"""A camera without a camera: seeded parts at a fixed rate, every trigger mode, and faults by script.

Frame ``i`` is a pure function of product, seed, size and settings; `Frame.frame_id` is ``i``, so that
`SimulatedCamera.truth` says what was really on it. Parts wait for the camera: while it is stopped, stalled or unplugged
none goes by, and frame ids go on afterwards. What a busy caller does not take in time is another matter: the camera
holds four frames, gives up the oldest, and says so in `Frame.missing`.

Faults are described in `lineward.drivers.simulation.faults`. Stall, disconnect, hang and crash happen once: a camera in
a new process is given the same ``memory`` file, or a ``start_index`` (whose own fault then counts as met), and goes on.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import cv2

from lineward.drivers.camera import (
    CameraError,
    CameraHealth,
    CameraInfo,
    CameraLostError,
    CameraNotFoundError,
    CameraSettingError,
    Cause,
    Frame,
    NoFrame,
    NoFrameReason,
    Trigger,
)
from lineward.drivers.simulation.dataset import write_dataset
from lineward.drivers.simulation.device import DeviceClock, DeviceMemory, Rhythm
from lineward.drivers.simulation.faults import FaultScript, Kind
from lineward.drivers.simulation.pictures import Pictures
from lineward.drivers.simulation.products import PRODUCTS
from lineward.drivers.simulation.settings import NOMINAL_EXPOSURE_US, checked

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from lineward.drivers.camera import Setting
    from lineward.drivers.simulation.faults import Fault
    from lineward.drivers.simulation.scene import Truth

__all__ = ["SimulatedCamera", "discover", "write_dataset"]

BUFFERED_FRAMES = 4
"""Frames the camera keeps for a caller who is late."""

READOUT_US_PER_ROW = 4.0
JITTER = 0.15
"""Share of the takt by which a part reaches the hardware trigger early or late."""


def discover(product: str = "bracket", seed: int = 0, serial: str = "") -> list[CameraInfo]:
    """List the one simulated camera that these options make."""
    return [SimulatedCamera(product=product, seed=seed, serial=serial).describe()]


class SimulatedCamera:
    """Implements `lineward.drivers.camera.Camera`.

    Parameters
    ----------
    product
        A name of `PRODUCTS`; the feature Product changes it later, from the next frame on.
    seed
        Another seed is another line with other parts.
    width, height
        Picture size in pixels; the features Width and Height change it later.
    rate_hz
        Frames per second in free run (0: as fast as they are taken, none is dropped); parts per second in hardware
        mode.
    defect_rate
        Share 0..1 of parts with a defect.
    trigger
        ``free_run``, ``software``, or ``hardware``: a sensor at the belt starts each exposure.
    faults
        See `lineward.drivers.simulation.faults`.
    pixel_format
        ``Mono8`` or ``RGB8``; the feature PixelFormat changes it later.
    prerender
        When above 0, so many frames are drawn at start and shown in turn: a benchmark then measures the line and not
        the simulation.
    limit
        The line ends before the frame of this index; None: never.
    start_index
        Index of the first frame.
    memory
        A file for what must outlive the process, see `DeviceMemory`; one that is ahead of ``start_index`` overrules it.

    Raises
    ------
    ValueError
        An option is out of range, or a fault cannot be understood.
    """

    def __init__(
        self,
        *,
        product: str = "bracket",
        seed: int = 0,
        width: int = 640,
        height: int = 512,
        rate_hz: float = 5.0,
        defect_rate: float = 0.1,
        trigger: str = "free_run",
        faults: Sequence[str | Mapping[str, object]] = (),
        serial: str = "",
        pixel_format: str = "Mono8",
        prerender: int = 0,
        limit: int | None = None,
        start_index: int = 0,
        memory: str | Path | None = None,
    ) -> None:
        if trigger not in list(Trigger):
            raise ValueError(f"trigger {trigger!r} is not one of {', '.join(Trigger)}")
        self._trigger, self._script = Trigger(trigger), FaultScript(faults)
        self._product, self._seed, self._rate_hz, self._defect_rate = product, seed, rate_hz, defect_rate
        self._prerender, self._limit, self._start_index = prerender, limit, start_index
        self._serial = serial or f"SIM-{seed}"
        self._settings: dict[str, Setting] = {"ExposureTime": NOMINAL_EXPOSURE_US, "Gain": 0.0, "Product": product}
        try:
            for name, value in (("Width", width), ("Height", height), ("PixelFormat", pixel_format)):
                self._settings[name] = checked(self._serial, name, value)
        except CameraSettingError as error:
            raise ValueError(str(error)) from error
        self._check_options()
        self._clock = DeviceClock(seed)
        self._memory_file = None if memory is None else Path(memory)
        self._memory: DeviceMemory | None = None
        self._index = self._met = self._back_ns = 0
        self._is_open = self._is_lost = self._is_streaming = False
        self._pictures = Pictures(product, seed=seed, defect_rate=defect_rate, script=self._script, prerender=prerender)
        self._rhythm: Rhythm | None = None
        self._triggered_ns: int | None = None
        self._outstanding = False
        self._silent_until_ns = 0
        self._frames = 0
        self._missing: Counter[Cause] = Counter()
        self._unreported: Counter[Cause] = Counter()

    def _check_options(self) -> None:
        if not 0 <= self._rate_hz <= 1000:
            raise ValueError(f"rate_hz {self._rate_hz} is not within 0..1000")
        if self._trigger is Trigger.HARDWARE and self._rate_hz == 0:
            raise ValueError("a hardware trigger needs rate_hz above 0: the parts that pass per second")
        if not 0 <= self._defect_rate <= 1:
            raise ValueError(f"defect_rate {self._defect_rate} is not within 0..1")
        for name, value in (("seed", self._seed), ("prerender", self._prerender), ("start_index", self._start_index)):
            if value < 0:
                raise ValueError(f"{name} {value} is negative")
        if self._limit is not None and self._limit < 0:
            raise ValueError(f"limit {self._limit} is negative")
        if self._prerender and self._script.changes_pictures:
            raise ValueError(
                "prerender shows stored pictures; lamp, blur, shift, wrong_product and new_defect need prerender = 0"
            )

    def describe(self) -> CameraInfo:
        """Say who the camera is, open or not.

        Raises
        ------
        CameraNotFoundError
            There is no such product.
        """
        if self._product not in PRODUCTS:
            raise CameraNotFoundError(
                f"no simulated camera for product {self._product!r}; there are {', '.join(PRODUCTS)}"
            )
        return CameraInfo(
            name=self._product,
            serial=self._serial,
            driver="simulated",
            vendor="Lineward",
            transport="simulation",
            simulated=True,
            realtime=self._rate_hz > 0 or self._trigger is not Trigger.FREE_RUN,
        )

    def truth(self, frame_id: int) -> Truth:
        """Say what was really on a frame of this camera, without drawing it; by simulated faults, too."""
        return self._pictures.truth(frame_id)

    def open(self) -> CameraInfo:
        """Connect; see `Camera.open`."""
        info = self.describe()
        # One thread draws a frame fast enough, and the cores belong to the inspection.
        cv2.setNumThreads(1)
        if self._memory is None:
            self._recall()
        away_s = (self._back_ns - time.time_ns()) / 1e9
        if away_s > 0:
            raise CameraNotFoundError(f"{self._serial}: unplugged by script; back in {away_s:.1f} s")
        if not self._is_open:
            self._is_open, self._is_lost, self._frames = True, False, 0
            self._missing, self._unreported = Counter(), Counter()
        return info

    def configure(self, settings: Mapping[str, Setting]) -> Mapping[str, Setting]:
        """Write settings and read them back; see `Camera.configure`."""
        self._require_open()
        if self._is_streaming:
            raise CameraSettingError(f"{self._serial}: settings are locked while streaming; stop first")
        applied: dict[str, Setting] = {}
        for name, value in settings.items():
            stored = checked(self._serial, name, value)
            if name == "AcquisitionFrameRate" and self._rate_hz == 0:
                raise CameraSettingError(f"{self._serial}: AcquisitionFrameRate is not available while rate_hz is 0")
            self._settings[name] = stored
            applied[name] = self._settings[name]
        return applied

    def start(self) -> None:
        """Begin streaming; see `Camera.start`."""
        self._require_open()
        if self._is_streaming:
            return
        self._pictures.order(self._index, str(self._settings["Product"]))
        self._pictures.prepare(self._settings)
        rate_hz = self._rate_hz
        if self._trigger is Trigger.FREE_RUN:
            rate_hz = float(self._settings.get("AcquisitionFrameRate", rate_hz))
        self._rhythm = None
        if rate_hz > 0 and self._trigger is not Trigger.SOFTWARE:
            # As on a real camera, the exposure bounds the rate; readout overlaps the next exposure.
            period_ns = max(round(1e9 / rate_hz), round(self._exposure_us() * 1000))
            jitter = JITTER if self._trigger is Trigger.HARDWARE else 0.0
            self._rhythm = Rhythm(self._index, time.monotonic_ns(), period_ns, jitter=jitter, seed=self._seed)
        self._is_streaming = True

    def stop(self) -> None:
        """Stop streaming; see `Camera.stop`."""
        self._forget_trigger()
        self._is_streaming = False
        self._rhythm = None
        self._unreported.clear()  # no frame of another stream tells it; `health` does

    def close(self) -> None:
        """Let go of the camera; see `Camera.close`."""
        self.stop()
        self._is_open = self._is_lost = False
        self._pictures.forget()

    def health(self) -> CameraHealth:
        """Report counters; see `Camera.health`."""
        return CameraHealth(frames=self._frames, missing=dict(self._missing), temperature_c=41.5)

    def trigger(self) -> int:
        """Start an exposure in software mode; see `Camera.trigger`. Its number is the frame's index plus 1."""
        self._require_streaming()
        if self._trigger is not Trigger.SOFTWARE:
            raise CameraError(f"{self._serial}: a software trigger needs trigger = software, not {self._trigger}")
        if self._outstanding:
            raise CameraError(f"{self._serial}: trigger {self._index} is still outstanding; take its frame or flush")
        self._outstanding, self._triggered_ns = True, time.monotonic_ns()
        return self._index + 1

    def flush(self) -> int:
        """Throw away what is exposed; see `Camera.flush`."""
        if not self._is_streaming or self._is_lost:
            return 0
        if self._rhythm is None:
            given_up = self._triggered_ns is not None  # or its frame was lost, which was counted
            self._outstanding, self._triggered_ns = False, None
            if given_up:
                self._lose(Cause.TRIGGER_MISSED, 1)
            return int(given_up)
        self._give_up_oldest(time.monotonic_ns())
        waiting = self._newest(time.monotonic_ns()) - self._index + 1
        self._keep(self._index + waiting)
        return waiting

    def grab(self, timeout_s: float) -> Frame | NoFrame:
        """Wait for the next whole frame; see `Camera.grab`."""
        self._require_open()
        deadline_ns = time.monotonic_ns() + round(max(0.0, timeout_s) * 1e9)
        if not self._is_streaming:
            _sleep_until(deadline_ns)
            return NoFrame(NoFrameReason.TIMEOUT, f"{self._serial}: not streaming; start it first")
        while True:
            if self._limit is not None and self._index >= self._limit:
                return NoFrame(NoFrameReason.END, f"{self._serial}: the line ends at frame {self._limit}")
            started_ns = self._starts_ns()
            if started_ns is None:
                _sleep_until(deadline_ns)
                return NoFrame(NoFrameReason.TIMEOUT, f"{self._serial}: no trigger, no frame")
            due_ns = max(started_ns + self._latency_ns(), self._silent_until_ns)
            image = self._pictures.take(self._index)  # ahead of its time: a caller who waits in slices gets it in time
            if due_ns > deadline_ns:
                _sleep_until(deadline_ns)
                return NoFrame(NoFrameReason.TIMEOUT, f"{self._serial}: frame {self._index} is not due yet")
            _sleep_until(due_ns)
            if self._give_up_oldest(time.monotonic_ns()) or self._met_a_fault():
                continue
            cause = self._script.lost(self._index)
            if cause is None:
                return self._deliver(image, started_ns)
            self._lose(cause, 1)
            if cause is Cause.INCOMPLETE:
                self._outstanding, self._triggered_ns = False, None
                return NoFrame(NoFrameReason.INCOMPLETE, f"{self._serial}: frame {self._index - 1} lost packets")
            self._triggered_ns = None

    # How a frame comes about

    def _starts_ns(self) -> int | None:
        """Start of the next exposure, or None when nothing will start one."""
        if self._rhythm is not None:
            return self._rhythm.starts_ns(self._index)
        if self._trigger is Trigger.SOFTWARE:
            return self._triggered_ns
        return time.monotonic_ns() - self._latency_ns()

    def _deliver(self, image: NDArray[np.uint8], started_ns: int) -> Frame:
        frame = Frame(
            image=image,
            frame_id=self._index,
            received_ns=time.monotonic_ns(),
            device_ns=self._clock.at(started_ns),
            trigger_id=None if self._trigger is Trigger.FREE_RUN else self._index + 1,
            missing=dict(self._unreported),
        )
        self._unreported.clear()
        self._frames += 1
        self._outstanding, self._triggered_ns = False, None
        self._keep(self._index + 1)
        return frame

    def _lose(self, cause: Cause, count: int) -> None:
        self._missing[cause] += count
        self._unreported[cause] += count
        self._keep(self._index + count)

    def _newest(self, now_ns: int) -> int:
        """Index of the latest frame that is complete, one before the next when there is none."""
        assert self._rhythm is not None
        newest = max(self._rhythm.newest(now_ns - self._latency_ns()), self._index - 1)
        return newest if self._limit is None else min(newest, self._limit - 1)

    def _give_up_oldest(self, now_ns: int) -> bool:
        """Drop what the camera cannot hold any longer."""
        if self._rhythm is None:
            return False
        too_many = self._newest(now_ns) - self._index + 1 - BUFFERED_FRAMES
        if too_many > 0:
            self._lose(Cause.OVERRUN, too_many)
        return too_many > 0

    def _forget_trigger(self) -> None:
        """Withdraw an outstanding trigger; its frame, if it has one, is never seen and its number not used again."""
        if self._triggered_ns is not None:
            self._keep(self._index + 1)
        self._outstanding, self._triggered_ns = False, None

    # Faults that happen once

    def _met_a_fault(self) -> bool:
        if self._met >= len(self._script.once) or self._script.once[self._met].at > self._index:
            return False
        fault = self._script.once[self._met]
        self._met += 1
        if fault.kind is Kind.DISCONNECT:
            self._back_ns = time.time_ns() + round(fault.seconds * 1e9)
        self._keep(self._index)
        self._suffer(fault)
        return True

    def _suffer(self, fault: Fault) -> None:
        match fault.kind:
            case Kind.STALL:
                pause_ns = round(fault.seconds * 1e9)
                if self._rhythm is not None:
                    self._rhythm.pause(pause_ns)
                else:
                    self._silent_until_ns = time.monotonic_ns() + pause_ns
            case Kind.DISCONNECT:
                self._is_lost = True
                raise CameraLostError(f"{self._serial}: unplugged by script at frame {self._index}; open it again")
            case Kind.HANG:
                while True:
                    time.sleep(3600)
            case Kind.CRASH:
                os.kill(os.getpid(), signal.SIGSEGV)

    # What the camera remembers

    def _recall(self) -> None:
        self._memory = DeviceMemory(self._memory_file)
        if self._memory.used:
            index, self._met, self._back_ns = self._memory.read()
            self._keep(max(index, self._start_index))
            return
        met = sum(fault.at <= self._start_index for fault in self._script.once) if self._start_index else 0
        self._met = met
        self._keep(self._start_index)

    def _keep(self, index: int) -> None:
        """Make ``index`` the next frame, in memory that a crash does not erase."""
        self._index = index
        if self._memory is not None:
            self._memory.write(index, self._met, self._back_ns)

    def _exposure_us(self) -> float:
        return float(self._settings["ExposureTime"])

    def _latency_ns(self) -> int:
        return round((self._exposure_us() + READOUT_US_PER_ROW * int(self._settings["Height"])) * 1000)

    # What must be true before a call

    def _require_open(self) -> None:
        if self._is_lost:
            raise CameraLostError(f"{self._serial}: gone; close it and open it again")
        if not self._is_open:
            raise CameraError(f"{self._serial}: not open")

    def _require_streaming(self) -> None:
        self._require_open()
        if not self._is_streaming:
            raise CameraError(f"{self._serial}: not streaming; start it first")


def _sleep_until(moment_ns: int) -> None:
    left_s = (moment_ns - time.monotonic_ns()) / 1e9
    if left_s > 0:
        time.sleep(left_s)
