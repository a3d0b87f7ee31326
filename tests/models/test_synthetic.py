"""Made-up defects: the same for a seed, visible, only where the mask says, and nothing else is touched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lineward.models.synthetic import (
    LEAST_CHANGE,
    Patch,
    SyntheticError,
    find_patches,
    perlin,
    synthesise,
    synthetic_set,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


def goods(seed: int, shape: tuple[int, ...], count: int = 4) -> list[NDArray[np.uint8]]:
    random = np.random.default_rng(seed)
    return [random.integers(90, 150, shape).astype(np.uint8) for _ in range(count)]


LIBRARY = [Patch(np.full((9, 14), 10, np.uint8), np.ones((9, 14), np.float32), "dent")]


@given(
    seed=st.integers(0, 1000),
    kind=st.sampled_from(["paste", "texture", "scratch", None]),
    size=st.tuples(st.integers(16, 120), st.integers(16, 120)),
    colour=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_a_defect_is_visible_and_only_where_the_mask_says(
    *, seed: int, kind: Any, size: tuple[int, int], colour: bool
) -> None:
    """For any image size, mono or colour: same seed, same picture; changed where masked; the good ones untouched."""
    images = goods(seed, (*size, 3) if colour else size)
    before = [image.copy() for image in images]
    image, mask = synthesise(images, np.random.default_rng(seed), kind, library=LIBRARY)
    again, same = synthesise(images, np.random.default_rng(seed), kind, library=LIBRARY)
    assert np.array_equal(image, again)
    assert np.array_equal(mask, same)
    assert image.dtype == np.uint8
    assert image.shape == images[0].shape
    assert all(np.array_equal(a, b) for a, b in zip(images, before, strict=True))
    differences = [np.abs(image.astype(int) - good) for good in images]
    differences = [d.max(axis=2) if d.ndim == 3 else d for d in differences]
    nearest = min(differences, key=lambda d: (d > 1).mean())
    assert np.array_equal(nearest >= 2, mask)
    assert nearest.max() >= LEAST_CHANGE
    assert 0 < mask.mean() < 0.6


def test_kinds_look_as_they_are_called() -> None:
    """A scratch is long and thin, a blotch is compact."""
    images = goods(1, (160, 160))
    thin, round_ = [], []
    for seed in range(30):
        for kind, into in (("scratch", thin), ("texture", round_)):
            _, mask = synthesise(images, np.random.default_rng(seed), kind)  # type: ignore[arg-type]
            rows, columns = np.nonzero(mask)
            box = np.hypot(np.ptp(rows) + 1, np.ptp(columns) + 1)
            into.append(mask.sum() / box**2)
    assert np.median(thin) < 0.1 < np.median(round_)


def test_pieces_of_real_defects_are_found_and_pasted(
    render: Callable[..., NDArray[np.uint8]],
) -> None:
    """What is cut out is where the real defect lies, of its size and type, and pasted it is as dark as it was."""
    good = [render(number) for number in range(40)]
    numbers = range(500, 530)
    patches = find_patches(good, [(render(number, "spot"), "spot") for number in numbers])
    assert len(patches) >= 25
    assert {patch.defect_type for patch in patches} == {"spot"}
    sides = [max(patch.pixels.shape) for patch in patches]
    assert 10 <= np.median(sides) <= 26, "a spot of 13 pixels with its margin"
    centres = [patch.pixels[patch.pixels.shape[0] // 2, patch.pixels.shape[1] // 2] for patch in patches]
    assert np.median(centres) < 40
    image, mask = synthesise(good, np.random.default_rng(0), "paste", library=patches)
    assert image[mask].min() < 70
    assert not find_patches(good, [(render(900), "")]), "a good part has nothing to cut out"


def test_a_set_grows_without_changing() -> None:
    """The first pictures do not depend on how many are asked for; kinds take turns."""
    images = goods(3, (64, 80))
    few = list(synthetic_set(images, 6, seed=5, library=LIBRARY))
    many = list(synthetic_set(images, 12, seed=5, library=LIBRARY))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(few, many[:6], strict=True))
    assert len({made.image.tobytes() for made in many}) == 12
    assert {made.kind for made in few} == {"paste", "texture", "scratch"}
    assert {made.defect_type for made in few if made.kind == "paste"} == {"dent"}
    assert {made.kind for made in synthetic_set(images, 4, seed=5)} == {"texture", "scratch"}


def test_a_defect_touches_the_part() -> None:
    """With a region given, no defect lies beside the part."""
    images = goods(4, (100, 100))
    region = np.zeros((100, 100), bool)
    region[30:50, 30:50] = True
    for seed in range(20):
        _, mask = synthesise(images, np.random.default_rng(seed), region=region)
        assert (mask & region).any()


def test_what_cannot_be_made_is_said() -> None:
    """No good image, nothing to paste, pictures too small: a sentence each."""
    random = np.random.default_rng(0)
    with pytest.raises(SyntheticError, match="no good image"):
        synthesise([], random)
    with pytest.raises(SyntheticError, match="nothing to paste"):
        synthesise(goods(0, (32, 32)), random, "paste")
    with pytest.raises(SyntheticError, match="too small"):
        synthesise(goods(0, (8, 8)), random)
    with pytest.raises(SyntheticError, match="two good images"):
        find_patches(goods(0, (32, 32), 1), [])


def test_perlin_noise_is_smooth_and_centred() -> None:
    """Gradient noise: no jumps between neighbours, mean near zero, zero at the corners of its cells."""
    noise = perlin((128, 96), 8, np.random.default_rng(2))
    assert noise.shape == (128, 96)
    assert abs(float(noise.mean())) < 0.1
    assert np.abs(noise).max() <= 1.05
    assert max(np.abs(np.diff(noise, axis=axis)).max() for axis in (0, 1)) < 0.3
    assert np.abs(noise[::16, ::12]).max() < 1e-6
