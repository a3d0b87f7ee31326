"""Pixel formats, against encoders written bit by bit from the tables of PFNC and GigE Vision."""

import warnings

import numpy as np
import pytest

from lineward.drivers import pixels
from lineward.drivers.pixels import PixelFormatError, decode

SIZES = [(64, 48), (65, 49), (2, 2), (7, 3)]
DEPTHS = {"10": 10, "12": 12, "14": 14, "16": 16, "10p": 10, "12p": 12, "14p": 14, "10Packed": 10, "12Packed": 12}


def encode_words(samples):
    """Right-aligned in 16 bits, low byte first."""
    out = bytearray()
    for sample in samples:
        out += bytes([sample & 0xFF, sample >> 8])
    return bytes(out)


def encode_lsb(samples, bits):
    """One stream of bits, the least significant first."""
    stream = [sample >> bit & 1 for sample in samples for bit in range(bits)]
    stream += [0] * (-len(stream) % 8)
    return bytes(sum(stream[i + bit] << bit for bit in range(8)) for i in range(0, len(stream), 8))


def encode_gige(samples, bits):
    """Two samples in three bytes: high bits, both low bits, high bits. An odd one at the end takes two."""
    out, low = bytearray(), bits - 8
    for i in range(0, len(samples), 2):
        pair = samples[i : i + 2]
        middle = pair[0] & (1 << low) - 1
        out.append(pair[0] >> low)
        if len(pair) == 2:
            out += bytes([middle | (pair[1] & (1 << low) - 1) << 4, pair[1] >> low])
        else:
            out.append(middle)
    return bytes(out)


def encode(samples, depth):
    bits = DEPTHS[depth]
    if depth.endswith("p"):
        return encode_lsb(samples, bits)
    return encode_gige(samples, bits) if depth.endswith("Packed") else encode_words(samples)


def random_samples(count, bits):
    return [int(value) for value in np.random.default_rng(bits).integers(0, 1 << bits, count)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("depth", DEPTHS)
def test_mono_keeps_the_eight_high_bits(depth, size):
    """Every sample of every packing is exact, odd sizes too: nothing is shifted into a neighbour."""
    width, height = size
    samples = random_samples(width * height, DEPTHS[depth])
    wanted = np.array([sample >> DEPTHS[depth] - 8 for sample in samples]).reshape(height, width)
    raw = encode(samples, depth)
    assert np.array_equal(decode(raw, f"Mono{depth}", width, height), wanted)
    assert len(raw) == pixels.needed_bytes(f"Mono{depth}", width, height)


@pytest.mark.parametrize("depth", ["8", *DEPTHS])
def test_line_padding_is_removed(depth):
    """Padding is no picture: with it, each line starts at a byte of its own."""
    width, height, padding, bits = 5, 3, 4, DEPTHS.get(depth, 8)
    samples = random_samples(width * height, bits)
    lines = [samples[i * width : (i + 1) * width] for i in range(height)]
    raw = b"".join((bytes(line) if depth == "8" else encode(line, depth)) + b"\xaa" * padding for line in lines)
    wanted = np.array([sample >> bits - 8 for sample in samples]).reshape(height, width)
    assert np.array_equal(decode(raw, f"Mono{depth}", width, height, padding), wanted)


@pytest.mark.parametrize("size", SIZES)
def test_one_bit_is_black_or_white(size):
    """A threshold camera's picture spans the whole range, so that it can be seen and judged like any other."""
    width, height = size
    samples = random_samples(width * height, 1)
    wanted = np.array(samples).reshape(height, width) * 255
    assert np.array_equal(decode(encode_lsb(samples, 1), "Mono1p", width, height), wanted)


def test_what_follows_the_image_is_not_looked_at():
    """Buffers are larger than images: chunk data follows them."""
    assert decode(bytes([1, 2, 3, 4, 99, 99]), "Mono8", 2, 2).tolist() == [[1, 2], [3, 4]]


def test_a_sample_above_its_depth_is_white():
    """A camera that sends 16-bit data as Mono10 gives a white picture, which is seen, not a scrambled one."""
    assert decode(encode_words([0xFFFF, 1023]), "Mono10", 2, 1).tolist() == [[255, 255]]


@pytest.mark.parametrize("depth", ["8", "10", "12", "16"])
@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_rgb_is_rgb(order, depth):
    """Red stays red whatever order the camera sends."""
    bits = int(depth)
    pixel = {"R": 200, "G": 100, "B": 50}
    samples = [pixel[letter] << bits - 8 for letter in order] * 6
    raw = bytes(samples) if bits == 8 else encode_words(samples)
    image = decode(raw, f"{order}{depth}", 3, 2)
    assert image.shape == (2, 3, 3)
    assert (image == [200, 100, 50]).all()


@pytest.mark.parametrize(("name", "pixel"), [("RGBa8", [200, 100, 50, 7]), ("BGRa8", [50, 100, 200, 7])])
def test_alpha_is_dropped(name, pixel):
    """Transparency means nothing on a line."""
    assert (decode(bytes(pixel * 6), name, 3, 2) == [200, 100, 50]).all()


@pytest.mark.parametrize("depth", ["8", *DEPTHS])
@pytest.mark.parametrize("order", ["RG", "GR", "GB", "BG"])
def test_bayer_colours_are_right(order, depth):
    """The picture proves the order: a red, a green and a blue third come out in these colours, not swapped."""
    bits, (width, height) = DEPTHS.get(depth, 8), (24, 10)
    tile = {"RG": ["RG", "GB"], "GR": ["GR", "BG"], "GB": ["GB", "RG"], "BG": ["BG", "GR"]}[order]
    colours = [{"R": 240, "G": 16, "B": 32}, {"R": 16, "G": 240, "B": 32}, {"R": 16, "G": 32, "B": 240}]
    samples = [colours[x // 8][tile[y % 2][x % 2]] << bits - 8 for y in range(height) for x in range(width)]
    raw = bytes(samples) if depth == "8" else encode(samples, depth)
    image = decode(raw, f"Bayer{order}{depth}", width, height)
    for third, colour in enumerate(colours):
        inside = image[2:-2, 8 * third + 2 : 8 * third + 6]
        assert (inside == [colour["R"], colour["G"], colour["B"]]).all()


def test_bayer_of_odd_size():
    """A region of interest may have any size."""
    assert decode(bytes(65 * 49), "BayerGB8", 65, 49).shape == (49, 65, 3)


@pytest.mark.parametrize("name", ["YUV422_8", "YCbCr422_8", "YUV422_8_UYVY", "YCbCr422_8_CbYCrY"])
@pytest.mark.parametrize("colour", [(200, 100, 50), (10, 220, 30), (0, 0, 0), (255, 255, 255), (90, 90, 90)])
def test_yuv_is_full_range_bt601(name, colour):
    """Industrial cameras send 0..255, not the 16..235 of television: white must come out white."""
    red, green, blue = colour
    y = 0.299 * red + 0.587 * green + 0.114 * blue
    u, v = 128 + (blue - y) / 1.772, 128 + (red - y) / 1.402
    y, u, v = (min(255, round(value)) for value in (y, u, v))
    pair = [u, y, v, y] if name.endswith(("UYVY", "CbYCrY")) else [y, u, y, v]
    image = decode(bytes(pair * 6), name, 4, 3).astype(int)
    assert np.abs(image - colour).max() <= 2  # rounding of three 8-bit numbers


def test_yuv_pairs_share_their_colour_but_not_their_light():
    """Luma has the full resolution."""
    assert decode(bytes([10, 128, 250, 128]), "YUV422_8", 2, 1).tolist() == [[[10] * 3, [250] * 3]]


def test_the_image_is_a_copy_of_its_own():
    """The buffer goes back to the camera, which writes the next frame into it."""
    for name in pixels.SUPPORTED:
        raw = np.zeros(4 * 4 * 8, np.uint8)
        image = decode(raw, name, 4, 4)
        before = image.copy()
        raw[:] = 255
        assert np.array_equal(image, before), name
        assert image.flags.c_contiguous, name


@pytest.mark.parametrize("given", ["Coord3D_ABC32f", 0x02180021])
def test_an_unsupported_format_is_named_with_the_supported_ones(given):
    """The engineer reads what to choose instead."""
    with pytest.raises(
        PixelFormatError, match=r"(Coord3D_ABC32f|0x02180021) is not supported; use one of .*Mono8.*YUV"
    ):
        decode(b"", given, 4, 4)


@pytest.mark.parametrize(
    ("name", "width", "height", "words"),
    [
        ("Mono8", 4, 4, "needs 16 bytes, the buffer has 15"),
        ("Mono8", 0, 4, "0x4"),
        ("YUV422_8", 3, 1, "even width"),
        ("BayerRG8", 1, 8, "2x2"),
    ],
)
def test_impossible_sizes_are_refused(name, width, height, words):
    """A buffer that is too short is never filled up with invented pixels."""
    with pytest.raises(PixelFormatError, match=words):
        decode(bytes(15), name, width, height)


NOT_IN_HARVESTERS = {  # its table of codes is older than these
    0x01100109: "BayerGR14",
    0x0110010A: "BayerRG14",
    0x0110010B: "BayerGB14",
    0x0110010C: "BayerBG14",
    0x010E0104: "Mono14p",
    0x010E0105: "BayerGR14p",
    0x010E0106: "BayerRG14p",
    0x010E0107: "BayerGB14p",
    0x010E0108: "BayerBG14p",
}


def test_codes_and_names_are_those_of_the_convention():
    """A wrong number in our table would decode one format as another."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from harvesters.util.pfnc import dict_by_ints
    for name in pixels.SUPPORTED:
        form = pixels.find(name)
        assert (dict_by_ints | NOT_IN_HARVESTERS)[form.code] == name
        assert pixels.find(form.code) is form
