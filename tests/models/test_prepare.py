from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lineward.models.prepare import InputSpec, prepare

MONO = InputSpec(height=64, width=48, channels=1, colour="mono")
RGB = InputSpec(height=64, width=48, channels=3, colour="rgb")


@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 3), (30000, 2), (2, 30000, 3), (65, 47), (128, 96), (1, 5000)])
@pytest.mark.parametrize("spec", [MONO, RGB])
def test_any_size_becomes_model_input(shape: tuple[int, ...], spec: InputSpec) -> None:
    """Whatever the camera delivers, the model gets its declared shape, and a flat picture stays flat."""
    prepared = prepare(np.full(shape, 77, np.uint8), spec)
    assert prepared.shape == (64, 48, spec.channels)
    assert prepared.dtype == np.uint8
    assert prepared.flags.c_contiguous
    assert (prepared == 77).all()


@given(st.integers(1, 400), st.integers(1, 400))
@settings(max_examples=60, deadline=None)
def test_brightness_is_kept(rows: int, columns: int) -> None:
    """Resizing neither brightens nor darkens: the output never leaves the range of the input."""
    image = np.random.default_rng(rows * 1000 + columns).integers(50, 180, (rows, columns), dtype=np.uint8)
    prepared = prepare(image, MONO)
    assert image.min() <= prepared.min() <= prepared.max() <= image.max()


def test_small_defect_survives_a_large_reduction() -> None:
    """Every pixel of a large image counts: a 4 x 4 spot in 5 MP is still there, in its place."""
    image = np.full((2048, 2448), 100, np.uint8)
    image[1021:1025, 611:615] = 255
    prepared = prepare(image, InputSpec(height=320, width=320, channels=1, colour="mono"))[:, :, 0]
    y, x = np.unravel_index(int(prepared.argmax()), prepared.shape)
    assert prepared.max() > 110
    assert abs(int(y) - 160) <= 1
    assert abs(int(x) - 80) <= 1


def test_region_is_cut_before_anything_else() -> None:
    """What lies outside the region of interest has no influence at all."""
    spec = InputSpec(height=32, width=32, channels=1, colour="mono", roi=(0.25, 0.5, 0.5, 0.25))
    image = np.random.default_rng(0).integers(0, 255, (200, 100), dtype=np.uint8)
    other = 255 - image
    other[100:150, 25:75] = image[100:150, 25:75]
    assert (prepare(image, spec) == prepare(other, spec)).all()
    assert prepare(np.zeros((1, 1), np.uint8), spec).shape == (32, 32, 1)


def test_colours_are_declared_not_guessed() -> None:
    """RGB keeps its order; mono of RGB is its brightness; RGB of mono is three equal channels."""
    red = np.zeros((64, 48, 3), np.uint8)
    red[:, :, 0] = 200
    assert (prepare(red, RGB) == red).all()
    assert (prepare(red, MONO) == 60).all()  # 0.299 * 200
    assert (prepare(np.full((64, 48), 9, np.uint8), RGB) == 9).all()


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 4), np.float32), "uint8"),
        (np.zeros((4, 4, 4), np.uint8), "shape"),
        (np.zeros(4, np.uint8), "shape"),
        (np.zeros((0, 4), np.uint8), "no pixels"),
        ([[1, 2]], "numpy array"),
    ],
)
def test_what_is_no_image_is_refused(image: object, words: str) -> None:
    """A wrong array is named as such before it reaches the model."""
    with pytest.raises(ValueError, match=words):
        prepare(image, MONO)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [{"channels": 3}, {"roi": (0.5, 0, 0.6, 1)}, {"roi": (0, 0, 0, 1)}, {"height": 0}, {"resize": "guess"}, {"x": 1}],
)
def test_contradictory_specs_are_refused(change: dict[str, object]) -> None:
    """A manifest cannot declare an input that does not exist."""
    with pytest.raises(ValidationError):
        InputSpec.model_validate(MONO.model_dump() | change)
