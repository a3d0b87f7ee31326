"""Does a loaded model say what it should? Asked before it judges its first part."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lineward.models.bundle import BundleError
from lineward.models.session import CPU, Session

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

LIMIT = 0.01
"""Largest difference of a probability between two execution providers; float16 kernels differ by about 0.002."""


def try_out(path: Path) -> None:
    """Load a bundle and judge pictures with it, as the line does before it is in force; raises `BundleError`."""
    session = Session(path)
    session.warm_up(1)
    check_outputs(session, path)


def check_outputs(session: Session, path: Path) -> None:
    """Judge a few known pictures: every output is a share, and an accelerator agrees with the CPU.

    Raises
    ------
    BundleError
        The model must not judge parts.
    """
    manifest = session.manifest
    if not manifest.parity.verdicts_equal:
        raise BundleError(f"{path}: its export differs from what was trained (see its manifest); train it again")
    pictures = _pictures(session.input_shape)
    said = [_shares(session, picture) for picture in pictures]
    if not all(np.isfinite(values).all() and (values >= 0).all() and (values <= 1).all() for values in said):
        raise BundleError(f"{path}: gives scores that are no shares of 1 on this machine; train it again, or use {CPU}")
    if session.providers[0] == CPU:
        return
    reference = Session(path, providers=[CPU])
    worst = max(
        float(np.abs(values - _shares(reference, picture)).max())
        for values, picture in zip(said, pictures, strict=True)
    )
    if worst > LIMIT:
        raise BundleError(
            f"{path}: {session.providers[0]} differs from {CPU} by {worst:.3f} on known pictures; "
            f'use inspection.providers = ["{CPU}"]'
        )


def _shares(session: Session, picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    outputs = session.run(picture)
    return np.concatenate([outputs.defect_probability.ravel(), outputs.anomaly.ravel()])


def _pictures(shape: tuple[int, int, int]) -> list[NDArray[np.uint8]]:
    """Make a dark, a bright and a noisy picture ``(height, width, channels)`` uint8, always the same."""
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return [np.full(shape, 30, np.uint8), np.full(shape, 220, np.uint8), noise]
