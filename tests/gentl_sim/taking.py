"""Taking frames of the simulated producer, whose pattern writes a frame's number into each of its pixels."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from lineward.drivers.camera import Frame, NoFrame, NoFrameReason

if TYPE_CHECKING:
    from lineward.drivers.camera import Camera


def next_answer(camera: Camera, timeout_s: float = 5.0) -> Frame | NoFrame:
    """Grab until a frame or a reason other than time comes."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        got = camera.grab(0.2)
        if isinstance(got, Frame) or got.reason is not NoFrameReason.TIMEOUT:
            return got
    raise AssertionError(f"nothing came within {timeout_s} s")


def next_frame(camera: Camera) -> Frame:
    got = next_answer(camera)
    while isinstance(got, NoFrame):
        got = next_answer(camera)
    return got


def number_in(frame: Frame) -> int:
    """Return the number that all pixels carry; a torn frame has more than one."""
    numbers = np.unique(frame.image.view("<u4"))
    assert numbers.size == 1, f"frame {frame.frame_id} is torn: {numbers}"
    return int(numbers[0])


def own_frame(camera: Camera) -> Frame:
    """Return the next frame, every pixel of which must carry its number."""
    frame = next_frame(camera)
    assert number_in(frame) == frame.frame_id
    return frame


def grab_for(camera: Camera, seconds: float) -> None:
    """Take whatever comes."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        camera.grab(0.1)
