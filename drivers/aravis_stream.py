"""Aravis' stream of buffers: each popped, copied out and queued again before anything is judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lineward.drivers import aravis_library, pixels
from lineward.drivers.camera import CameraSettingError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Image:
    """A whole frame: ``pixels`` is ``(H, W)`` or ``(H, W, 3)`` uint8, RGB order, read-only, a copy of its own."""

    raw_id: int
    device_ns: int | None
    pixels: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Incomplete:
    """A frame of which packets were lost, and what is known of that."""

    raw_id: int
    what: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """A frame that was thrown away undecoded."""

    raw_id: int
    whole: bool


class Stream:
    """Receives frames from `Camera.start_acquisition` on; made anew for every start, because the payload may change.

    Raises
    ------
    GLib.Error
        The camera does not answer.
    """

    def __init__(self, camera: Any, buffers: int) -> None:
        self._aravis, _ = aravis_library.load()
        self._buffers = buffers
        self._underruns = 0
        self._stream = camera.create_stream(None, None)
        if camera.is_gv_device():
            # The system's default of 208 KiB holds no 4 MB frame; beyond net.core.rmem_max the kernel cuts it.
            self._stream.set_property("socket-buffer", self._aravis.GvStreamSocketBuffer.AUTO)
        payload = camera.get_payload()
        for _ in range(buffers):
            self._stream.push_buffer(self._aravis.Buffer.new_allocate(payload))

    @staticmethod
    def check_pixel_format(code: int) -> None:
        """Raise `CameraSettingError`, with the supported formats, when a PFNC code is none of them."""
        try:
            pixels.find(code & 0xFFFFFFFF)
        except pixels.PixelFormatError as error:
            raise CameraSettingError(str(error)) from error

    def pop(self, wait_s: float) -> Image | Incomplete | None:
        """Wait for a frame and decode it.

        Raises
        ------
        CameraSettingError
            The camera sends something else than a plain image, or a pixel format that is not supported.
        """
        buffer = self._wait(wait_s)
        if buffer is None:
            return None
        try:
            return self._read(buffer)
        finally:
            self._stream.push_buffer(buffer)

    def skip(self, wait_s: float) -> Skipped | None:
        """Wait for a frame and throw it away."""
        buffer = self._wait(wait_s)
        if buffer is None:
            return None
        skipped = Skipped(buffer.get_frame_id(), buffer.get_status() == self._aravis.BufferStatus.SUCCESS)
        self._stream.push_buffer(buffer)
        return skipped

    def is_full(self) -> bool:
        """Say whether every buffer holds a frame, so that the next frame is lost."""
        waiting: int = self._stream.get_n_buffers().n_output_buffers
        return waiting >= self._buffers

    def underran(self) -> bool:
        """Say whether a frame found no buffer since this was asked last.

        Aravis' counter rises with every packet that finds none, so it says that frames were lost, not how many.
        """
        before, self._underruns = self._underruns, self._stream.get_info_uint64_by_name("n_underruns")
        return self._underruns > before

    def close(self) -> None:
        """End the receiving thread; 24 ms."""
        self._stream = None

    def _wait(self, wait_s: float) -> Any:
        if wait_s <= 0:
            return self._stream.try_pop_buffer()
        return self._stream.timeout_pop_buffer(int(wait_s * 1e6))

    def _read(self, buffer: Any) -> Image | Incomplete:
        raw_id, status = buffer.get_frame_id(), buffer.get_status()
        if status != self._aravis.BufferStatus.SUCCESS:
            return Incomplete(raw_id, f"{status.value_nick.replace('-', ' ')}")
        kinds = self._aravis.BufferPayloadType
        payload = buffer.get_payload_type()
        if payload not in {kinds.IMAGE, kinds.EXTENDED_CHUNK_DATA}:
            raise CameraSettingError(
                f"payload type {int(payload)} ({payload.value_nick}) was sent; only plain images can be judged: "
                "switch off GenDC, multi-part, chunks or compression in the settings"
            )
        code = buffer.get_image_pixel_format() & 0xFFFFFFFF
        self.check_pixel_format(code)
        width, height = buffer.get_image_width(), buffer.get_image_height()
        padding = buffer.get_image_padding().x_padding
        raw = buffer.get_image_data()
        if len(raw) < pixels.needed_bytes(code, width, height, padding):
            return Incomplete(raw_id, f"only {len(raw)} bytes came")
        try:
            image = pixels.decode(raw, code, width, height, padding)
        except pixels.PixelFormatError as error:
            raise CameraSettingError(str(error)) from error
        image.flags.writeable = False
        return Image(raw_id, buffer.get_timestamp() or None, image)
