"""What a camera is to Lineward: frames, the protocol each driver keeps, and the four ways it may fail."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

Setting = str | int | float | bool
"""The value of one GenICam feature."""


class Trigger(StrEnum):
    """What starts an exposure."""

    FREE_RUN = "free_run"
    SOFTWARE = "software"
    HARDWARE = "hardware"


class Cause(StrEnum):
    """Why a frame is missing. Every missing frame is counted under exactly one cause."""

    CAMERA_GAP = "camera_gap"  # the camera's frame ids jumped
    INCOMPLETE = "incomplete"  # packets were lost on the way
    UNDERRUN = "underrun"  # the producer had no buffer to write to
    OVERRUN = "overrun"  # inspection was slower than the camera; the oldest waiting frame was given up
    BROKEN_FILE = "broken_file"  # a file of the replay folder could not be read
    TRIGGER_MISSED = "trigger_missed"  # a trigger was given and no frame came
    STOPPED = "stopped"  # frames that waited when the camera was stopped


@dataclass(frozen=True, slots=True)
class CameraInfo:
    """Who a camera is, as it says itself once opened.

    Attributes
    ----------
    name
        Model name, or the name of the simulated product or folder.
    serial
        Serial number; never an index, because indices change when a plug is pulled.
    realtime
        False for a replay, where no part is waiting: its frames are never dropped and have no deadline.
    """

    name: str
    serial: str
    driver: str
    vendor: str = ""
    user_id: str = ""
    transport: str = ""
    producer: str = ""
    access: str = ""
    simulated: bool = False
    realtime: bool = True


@dataclass(frozen=True, slots=True)
class Frame:
    """One whole image and where it came from.

    Attributes
    ----------
    image
        ``(H, W)`` or ``(H, W, 3)`` uint8, RGB order, C-contiguous, read-only. From a camera process it is a view into
        shared memory, valid until the next frame is asked for: copy it to keep it.
    frame_id
        The camera's own running number, unwrapped to 64 bits.
    device_ns
        Start of exposure on the camera's own clock in nanoseconds, or None when the camera does not say.
    received_ns
        ``time.monotonic_ns()`` when the frame was complete on this machine.
    trigger_id
        What `Camera.trigger` returned for this frame, or None in free run.
    missing
        Frames that are known to have been lost between the previous frame and this one, by cause.
    source
        The file's name in a replay, else empty.
    """

    image: NDArray[np.uint8]
    frame_id: int
    received_ns: int
    device_ns: int | None = None
    trigger_id: int | None = None
    missing: Mapping[Cause, int] = field(default_factory=dict)
    source: str = ""


class NoFrameReason(StrEnum):
    """Why `Camera.grab` came back without a frame."""

    TIMEOUT = "timeout"
    INCOMPLETE = "incomplete"
    END = "end"  # a replay is finished; no further frame will come
    BROKEN_FILE = "broken_file"


@dataclass(frozen=True, slots=True)
class NoFrame:
    """The answer of `Camera.grab` when there is no whole frame, with a detail a person can act on."""

    reason: NoFrameReason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class CameraHealth:
    """What a driver can say about itself at any moment.

    Attributes
    ----------
    missing
        Frames lost since `open`, by cause; never decreases while the camera is open.
    temperature_c
        Device temperature in degrees Celsius, or None when the camera does not say.
    """

    frames: int = 0
    missing: Mapping[Cause, int] = field(default_factory=dict)
    temperature_c: float | None = None


class CameraError(Exception):
    """A camera failed. The message names the camera, what happened and what to do."""


class CameraNotFoundError(CameraError):
    """No camera answers to the selector."""


class CameraBusyError(CameraError):
    """The camera is there, but another program has it open."""


class CameraSettingError(CameraError):
    """A setting was refused; the message names the feature and its allowed range or entries."""


class CameraLostError(CameraError):
    """The camera was open and is gone, or does not answer any more."""


class Camera(Protocol):
    """What the camera process needs of a driver.

    Calls come from one thread, in this order: ``open``, ``configure``, then ``start`` and ``stop`` any number of times
    with ``grab``, ``trigger`` and ``flush`` in between, then ``close``. ``health`` may be called at any time. Every
    call is bounded in time.
    """

    def open(self) -> CameraInfo:
        """Connect to the camera chosen when the driver was made.

        Raises
        ------
        CameraNotFoundError, CameraBusyError, CameraLostError
            The caller backs off and tries again.
        """

    def configure(self, settings: Mapping[str, Setting]) -> Mapping[str, Setting]:
        """Write settings in their order while stopped and return each as read back.

        Raises
        ------
        CameraSettingError
            The feature does not exist or refuses the value. Nothing is retried: the configuration is wrong.
        CameraLostError
            The camera went away meanwhile.
        CameraError
            The camera is not open.
        """

    def start(self) -> None:
        """Begin streaming. No frame exposed before this call is ever delivered; frame ids may begin anew.

        Raises
        ------
        CameraError
            The camera is not open, or refuses to start.
        """

    def stop(self) -> None:
        """Stop streaming. Idempotent; never raises."""

    def trigger(self) -> int:
        """Start one exposure in software mode and return its number; at most one may be outstanding.

        Raises
        ------
        CameraError
            The camera is not in software mode, or a trigger is still outstanding.
        CameraLostError
            The camera is gone.
        """

    def grab(self, timeout_s: float) -> Frame | NoFrame:
        """Wait at most ``timeout_s`` seconds (monotonic) for the next whole frame.

        The frame's image stays valid until the next call of any method. A camera that does not stream answers
        TIMEOUT after the full time. INCOMPLETE and BROKEN_FILE use up the trigger they belong to and are said again in
        the next frame's ``missing``: count one of the two.

        Raises
        ------
        CameraSettingError
            The camera delivers something that cannot be decoded; the message names it and what is supported.
        CameraLostError
            The camera is gone; the caller closes it and opens it anew.
        """

    def flush(self) -> int:
        """Throw away frames that are already exposed and return how many; they do not count as missing.

        An outstanding software trigger is given up.
        """

    def health(self) -> CameraHealth:
        """Report counters; never raises."""

    def close(self) -> None:
        """Let go of the camera. Idempotent; never raises."""
