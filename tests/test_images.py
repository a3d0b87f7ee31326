"""The decoder that replay, training and `predict` share: right pixels, or one clear message."""

import re
import struct
import zlib

import cv2
import numpy as np
import pytest

from lineward import images
from lineward.images import ImageFileError, decode_image, read_image

NOISE = np.random.default_rng(1).integers(0, 256, (60, 80, 3), np.uint8)


def file_of(suffix, pixels):
    done, data = cv2.imencode(suffix, pixels)
    assert done
    return data.tobytes()


def tiff(width, height, *, compression=1):
    """A mono TIFF as most writers lay it out: directory first, picture last. OpenCV's own has it the other way."""
    pixels = (np.arange(width * height) % 251).astype(np.uint8).tobytes()
    strip = zlib.compress(pixels) if compression == 8 else pixels
    tags = [(256, width), (257, height), (258, 8), (259, compression), (262, 1), (273, 0), (277, 1), (278, height)]
    tags += [(279, len(strip))]
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, start if tag == 273 else value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + strip


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_colour_order_is_rgb(suffix):
    """Red in the file is red for the model; OpenCV alone would swap it with blue."""
    bgr = np.zeros((4, 6, 3), np.uint8)
    bgr[:, :] = (30, 20, 250)
    assert (decode_image(file_of(suffix, bgr), "x") == [250, 20, 30]).all()


def test_colour_order_of_jpeg():
    """The same for the lossy one."""
    bgr = np.full((16, 16, 3), (30, 20, 250), np.uint8)
    assert np.abs(decode_image(file_of(".jpg", bgr), "x").astype(int) - [250, 20, 30]).max() < 6


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".jpg"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 30_000), (30_000, 2), (7, 5), (7, 5, 3)])
def test_any_shape_is_read(suffix, shape):
    """One pixel and very long strips are images like any other."""
    image = decode_image(file_of(suffix, np.full(shape, 99, np.uint8)), "x")
    assert image.shape == shape
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_keep_the_high_byte(suffix):
    """The scaling is fixed: a dark picture stays dark."""
    pixels = np.array([[0, 255, 256, 4095, 65535]], np.uint16)
    assert decode_image(file_of(suffix, pixels), "x").tolist() == [[0, 0, 1, 15, 255]]


def test_twelve_bits_in_sixteen():
    """Unshifted 12-bit data are scaled by their declared depth, and what lies above is white."""
    pixels = np.array([[0, 16, 2048, 4095, 4096, 65535]], np.uint16)
    assert decode_image(file_of(".png", pixels), "x", significant_bits=12).tolist() == [[0, 1, 128, 255, 255, 255]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_alpha_is_dropped(dtype):
    """Transparency means nothing on a line."""
    bgra = np.full((4, 6, 4), [3, 2, 1, 0], np.uint8).astype(dtype) * (257 if dtype is np.uint16 else 1)
    assert (decode_image(file_of(".png", bgra), "x") == [1, 2, 3]).all()


def test_exif_rotation_is_ignored():
    """The sensor's rows stay rows, whatever a phone wrote about its pose."""
    jpeg = file_of(".jpg", np.zeros((8, 24), np.uint8))
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x0112, 3, 1, 6) + b"\0" * 4
    rotated = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]
    assert decode_image(rotated, "x").shape == (8, 24)


@pytest.mark.parametrize("kept", [0.05, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".jpg"])
def test_a_file_that_is_cut_off_is_refused(suffix, kept):
    """OpenCV fills the rest with grey and says nothing; a half part must not be judged."""
    data = file_of(suffix, NOISE)
    with pytest.raises(ImageFileError, match=r"name\.x: the \w+ file is (cut off|damaged)"):
        decode_image(data[: int(len(data) * kept)], "name.x")


@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.99])
def test_a_tiff_with_its_directory_first_that_is_cut_off_is_refused(compression, kept):
    """Most TIFF writers put the picture last: there the directory survives the cut and promises too much."""
    data = tiff(80, 60, compression=compression)
    assert decode_image(data, "x").shape == (60, 80)
    with pytest.raises(ImageFileError, match=r"cut off|damaged"):
        decode_image(data[: int(len(data) * kept)], "x")


def test_the_end_of_a_thumbnail_is_not_the_end_of_the_jpeg():
    """A preview inside the file has an end mark of its own, which must not vouch for the picture."""
    thumbnail = file_of(".jpg", np.zeros((8, 8), np.uint8))
    jpeg = file_of(".jpg", NOISE[:20, :20])
    whole = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + jpeg[2:]
    assert decode_image(whole, "x").shape == (20, 20, 3)
    with pytest.raises(ImageFileError, match="cut off"):
        decode_image(whole[:-40], "x")


def test_a_bmp_without_its_size_is_read():
    """Some writers leave the file size in the header at 0; the pixels are all there."""
    data = bytearray(file_of(".bmp", NOISE))
    data[2:6] = bytes(4)
    assert decode_image(bytes(data), "x").shape == NOISE.shape
    with pytest.raises(ImageFileError):
        decode_image(bytes(data[: len(data) // 2]), "x")


def test_a_damaged_png_is_refused():
    """Its check sums do not fit."""
    data = bytearray(file_of(".png", NOISE))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(ImageFileError, match="damaged"):
        decode_image(bytes(data), "x")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty (0 bytes)"),
        (b"these are notes, not pixels", "not an image that Lineward reads"),
        (b"GIF89a" + bytes(40), "not an image that Lineward reads"),
        (b"\x89PNG\r\n\x1a\n", "cut off"),
        (b"\xff\xd8\xff", "cut off"),
        (b"\xff\xd8\xff\xe0\x00\x02\xff\xd9", "the JPEG file is"),
        (b"BM", "the BMP file is"),
        (b"BM" + bytes(60), "the BMP file is"),
        (b"II*\0", "the TIFF file is"),
        (b"MM\0*" + b"\xff" * 40, "the TIFF file is"),
        (b"II*\0" + bytes(60), "the TIFF file is"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(data, words):
    """One line says which file and what is wrong with it."""
    with pytest.raises(ImageFileError, match="^part 7.png: .*" + re.escape(words)):
        decode_image(data, "part 7.png")


def test_floating_point_is_refused():
    """There is no fixed scaling from it to 8 bits."""
    with pytest.raises(ImageFileError, match="pixels are float32"):
        decode_image(file_of(".tif", np.zeros((4, 4), np.float32)), "x")


def test_five_channels_are_refused():
    """A hyperspectral cube is not an image of a part."""
    with pytest.raises(ImageFileError, match="5 channels"):
        images._to_uint8_rgb(np.zeros((4, 4, 5), np.uint8), "x", 16)


def test_an_enormous_picture_is_refused_before_it_is_decoded():
    """A small file can ask for gigabytes of memory."""
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + ihdr + struct.pack(">I", zlib.crc32(ihdr))
    body = zlib.compress(bytes(1000))
    data += struct.pack(">I", len(body)) + b"IDAT" + body + struct.pack(">I", zlib.crc32(b"IDAT" + body))
    data += struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    with pytest.raises(ImageFileError, match="128 megapixels"):
        decode_image(data, "x")


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    """The path is in the message, and why."""
    with pytest.raises(ImageFileError, match=r"gone\.png: cannot be read: No such file"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(ImageFileError, match="is a folder; give the image files in it"):
        read_image(tmp_path)


def test_a_file_is_read_by_its_content_not_by_its_suffix(tmp_path):
    """A JPEG called .png is a picture; a text called .png is none."""
    (tmp_path / "a.png").write_bytes(file_of(".jpg", NOISE))
    assert read_image(tmp_path / "a.png").shape == NOISE.shape
    (tmp_path / "b.png").write_text("not a picture")
    with pytest.raises(ImageFileError, match=r"b\.png: not an image"):
        read_image(tmp_path / "b.png")


def colour_tiff(pixels, extra, orientation, order="<"):
    """A TIFF as image tools write it: orientation, and a fourth sample whose kind is ``extra``."""
    height, width, samples = pixels.shape
    short, long = 3, 4
    tags = [(256, short, width), (257, short, height), (258, short, None), (259, short, 1), (262, short, 2)]
    tags += [(273, long, None), (274, short, orientation), (277, short, samples), (278, short, height)]
    tags += [(279, long, pixels.size)] + ([(338, short, extra)] if samples == 4 else [])
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b""
    for tag, kind, value in tags:
        if tag == 258:
            entries += struct.pack(f"{order}HHII", tag, kind, samples, start)
        elif tag == 273:
            entries += struct.pack(f"{order}HHII", tag, kind, 1, start + 2 * samples)
        else:
            entries += struct.pack(f"{order}HHI" + ("Hxx" if kind == short else "I"), tag, kind, 1, value)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    return (
        head
        + entries
        + struct.pack(f"{order}I", 0)
        + struct.pack(f"{order}{samples}H", *[8] * samples)
        + pixels.tobytes()
    )


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("samples", "extra"), [(3, None), (4, 0), (4, 1), (4, 2)])
def test_tiff_is_read_as_it_is_stored(samples, extra, orientation, order):
    """Rule: the sensor's rows stay rows, and alpha is dropped, not multiplied in, whatever the tags say."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, samples), np.uint8)
    assert (decode_image(colour_tiff(pixels, extra, orientation, order), "x") == pixels[:, :, :3]).all()


def test_a_big_tiff_is_called_so():
    """The message is true: the file is whole, only of another kind."""
    with pytest.raises(ImageFileError, match=r"part\.tif: a BigTIFF file.*save it as TIFF"):
        decode_image(b"II+\0\x08\0\0\0" + bytes(40), "part.tif")


def test_zeros_behind_a_png_do_not_matter():
    """A copy that was padded to whole blocks is whole; one whose end mark is missing is not."""
    data = file_of(".png", NOISE)
    assert (decode_image(data + bytes(10_000), "x") == decode_image(data, "x")).all()
    with pytest.raises(ImageFileError, match="cut off"):
        decode_image(data[:-1], "x")
