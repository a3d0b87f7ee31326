"""Frames through shared memory: an anonymous file that lives exactly as long as the processes that hold it."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BUDGET_BYTES = 32 * 1024 * 1024
"""Shared memory counts in the resident size of both processes, so a ring of large frames has fewer slots."""

MIN_SLOTS, MAX_SLOTS = 3, 12


@dataclass(frozen=True, slots=True)
class RingShape:
    """How a ring is laid out: ``slots`` places of ``slot_bytes`` each."""

    slots: int
    slot_bytes: int

    @staticmethod
    def for_frames(frame_bytes: int) -> RingShape:
        """Choose a ring for frames of this size: whole pages, as many slots as the budget allows."""
        slot_bytes = -(-frame_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        return RingShape(max(MIN_SLOTS, min(MAX_SLOTS, BUDGET_BYTES // slot_bytes)), slot_bytes)

    @property
    def nbytes(self) -> int:
        """Size of the whole ring in bytes."""
        return self.slots * self.slot_bytes


class Ring:
    """One mapping of a ring. A slot belongs to one side at a time; messages between the processes hand it over.

    There is no name in ``/dev/shm`` to be left behind: when both processes are gone, however they ended, the kernel
    frees the memory.
    """

    def __init__(self, fd: int, shape: RingShape, *, writable: bool) -> None:
        self.fd = fd
        self.shape = shape
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        self._map = mmap.mmap(fd, shape.nbytes, access=access)

    @classmethod
    def create(cls, shape: RingShape) -> Ring:
        """Make a new ring for the writing side."""
        fd = os.memfd_create("lineward-frames", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, shape.nbytes)
            return cls(fd, shape, writable=True)
        except BaseException:
            os.close(fd)
            raise

    def view(self, slot: int, image_shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Look at the image in a slot, uint8 and C-contiguous, without a copy. The view keeps the memory alive."""
        flat = np.frombuffer(self._map, np.uint8, prod(image_shape), slot * self.shape.slot_bytes)
        return flat.reshape(image_shape)

    def close(self) -> None:
        """Let go of the file; the memory goes when the last view does."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
