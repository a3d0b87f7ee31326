"""Each pixel format that we claim, encoded in C sample by sample, comes through harvesters and decodes bit by bit."""

import numpy as np
import pytest

from gentl_sim import gentl_sim
from lineward.drivers import pixels

pytest_plugins = ["gentl_sim.fixtures"]

CHANNELS = {"RGB": 3, "BGR": 3, "RGBa": 4, "BGRa": 4, "YUYV": 2, "UYVY": 2}
GEOMETRIES = [(64, 48, 0), (66, 49, 0), (66, 49, 6)]


def gradient(form, width, height):
    """Return what the camera draws, as the 8 high bits of each sample, ``(H, W, samples of a pixel)``."""
    y, x, c = np.ogrid[:height, :width, : CHANNELS.get(form.order, 1)]
    samples = (7 * x + 13 * y + 29 * c) % (1 << form.bits)
    return (samples * 255 if form.bits == 1 else samples >> form.bits - 8).astype(np.uint8)


def picture(form, width, height):
    """Return what the decoder must make of it; colours come from the same samples in 8 bits."""
    high = gradient(form, width, height)
    match form.order:
        case "Mono":
            return high[:, :, 0]
        case "RGB" | "RGBa":
            return high[:, :, :3]
        case "BGR" | "BGRa":
            return high[:, :, 2::-1]
        case "YUYV" | "UYVY":
            return pixels.decode(high.tobytes(), form.code, width, height)
        case _:
            return pixels.decode(high.tobytes(), f"{form.order}8", width, height)


def test_the_camera_has_every_format_we_claim(acquirer):
    """A claim that no camera tests is none; each has the code that PFNC gives it."""
    node = acquirer().remote_device.node_map.PixelFormat
    offered = {entry.symbolic: entry.value for entry in node.entries}
    unclaimed = offered.pop("YCbCr601_422_8")
    assert offered == {name: pixels.find(name).code for name in pixels.SUPPORTED}
    with pytest.raises(pixels.PixelFormatError):
        pixels.find(unclaimed)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_every_format_decodes_bit_by_bit(acquirer, geometry):
    """Odd sizes and padded lines included: nothing is shifted into a neighbour, nothing is cut short."""
    width, height, padding = geometry
    made = acquirer(
        TestPattern="Gradient",
        Width=width,
        Height=height,
        PaddingX=padding,
        ExposureTime=10.0,
        AcquisitionFrameRate=1000.0,
    )
    wrong = []
    for name in pixels.SUPPORTED:
        made.remote_device.node_map.PixelFormat.value = name
        made.start()
        buffer = made.fetch(timeout=2, is_raw=True)  # harvesters' own components fail on odd sizes
        assert (buffer.pixel_format, buffer.padding_x) == (pixels.find(name).code, padding)
        assert buffer.size_filled == pixels.needed_bytes(name, width, height, padding)
        image = pixels.decode(buffer.raw_buffer, name, buffer.width, buffer.height, buffer.padding_x)
        if not np.array_equal(image, picture(pixels.find(name), width, height)):
            wrong.append(name)
        made.stop()
    assert wrong == []


def test_registers_are_where_the_description_says():
    """The addresses that make one register slow are read from the same file that the camera gives."""
    found = gentl_sim.addresses()
    assert found["Width"] == 0x10000
    assert sorted(found.values()) == list(range(0x10000, 0x10000 + 8 * len(found), 8))
