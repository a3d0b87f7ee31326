"""`train`, `evaluate` and `predict` as a person runs them: progress on stderr, results on stdout."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from lineward.daemon.progress import cache_dir, progress_bar
from lineward.models.bundle import load_manifest
from lineward.models.evaluate import Judged, Prediction, judge_folder, predict
from lineward.models.prepare import MAX_SIDE_PX
from lineward.models.quick import TrainReport, train_quick
from lineward.models.records import Risk
from lineward.models.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from lineward.images import ImageFileError

LEAST_SIDE_PX = 64
"""Below it the coarsest map of the backbone has a single cell, in which nothing can stand out."""


def train_with_progress(
    data: Path,
    out: Path,
    *,
    product: str,
    tier: str,
    seed: int,
    quiet: bool,
    base: Path | None = None,
    base_data: Path | None = None,
    int8: bool = False,
    size: str | None = None,
    synthetic: int = 0,
    overlays: Path | None = None,
    per_1000: Mapping[str, float | None] | None = None,
) -> TrainReport:
    """Train the tier that is asked for, from a folder or, with ``base``, from a bundle and a folder of new images.

    ``size`` is the model's input, HxW in pixels; without it the data decide, or the base. ``per_1000`` says what the
    thresholds are asked to keep, parts of 1,000 by the names of `Risk`; None is what the base was asked for.

    Raises
    ------
    ValueError
        There is no such tier, or torch is missing; or one of the training's own errors about data and output.
    """
    if tier not in {"quick", "full"}:
        raise TierError(
            f"--tier {tier}: there is quick (frozen backbone, seconds) and full (tuned with torch, minutes)"
        )
    if base_data is not None and base is None:
        raise TierError("--base-data is the folder that the bundle given with --base was trained from; give --base too")
    if int8 and tier == "full":
        raise TierError("--int8 goes with --tier quick: a tuned network is not quantised; leave one of the two out")
    if synthetic and tier == "full":
        raise TierError("--synthetic goes with --tier quick: no network is tuned without real defects; leave one out")
    if overlays is not None and not synthetic:
        raise TierError("--overlays is where defects to paste come from; say how many with --synthetic, such as 200")
    height, width = (None, None) if size is None else read_size(size, least=LEAST_SIDE_PX)
    train: Callable[..., TrainReport] = partial(train_quick, int8=int8, synthetic=synthetic, overlays=overlays)
    if tier == "full":
        from lineward.models.finetune import train_full as train  # noqa: PLC0415 - torch is an extra
    with progress_bar(quiet=quiet) as progress:
        return train(
            data,
            out,
            product=product,
            cache_dir=cache_dir(),
            progress=progress,
            seed=seed,
            base=base,
            base_data=base_data,
            height=height,
            width=width,
            risk=_risk(base, per_1000 or {}),
        )


def _risk(base: Path | None, per_1000: Mapping[str, float | None]) -> Risk:
    asked = Risk() if base is None else load_manifest(base).risk.asked
    return asked.model_copy(update={name: n / 1000 for name, n in per_1000.items() if n is not None})


def read_size(text: str, *, least: int) -> tuple[int, int]:
    """Read height and width of a model's input from HxW, in pixels, each at least ``least``."""
    height, _, width = text.lower().partition("x")
    if not all(side.isdecimal() and least <= int(side) <= MAX_SIDE_PX for side in (height, width)):
        raise SizeError(
            f"--size {text}: height and width in pixels are wanted, from {least} to {MAX_SIDE_PX}, such as 224x224"
        )
    return int(height), int(width)


class SizeError(ValueError):
    """Not a size of model input."""


class TierError(ValueError):
    """No such training tier."""


def evaluate_with_progress(model: Path, data: Path, *, quiet: bool) -> Judged:
    """Judge every labelled image below ``data`` and compare."""
    session = Session(model)
    session.warm_up()
    with progress_bar(quiet=quiet) as progress:
        return judge_folder(session, data, progress=lambda done, of: progress("judging images", done, of))


def predict_files(model: Path, images: Sequence[Path]) -> tuple[list[Prediction], list[ImageFileError]]:
    """Judge image files in the order given; a broken one gives an error and does not stop the others."""
    session = Session(model)
    session.warm_up()
    errors: list[ImageFileError] = []
    return predict(session, images, on_error=errors.append), errors
