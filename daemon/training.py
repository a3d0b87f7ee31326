"""`train`, `evaluate` and `predict` as a person runs them: progress on stderr, results on stdout."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lineward.models.evaluate import Evaluation, Prediction, evaluate, predict
from lineward.models.quick import TrainReport, train_quick
from lineward.models.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lineward.images import ImageFileError


def cache_dir() -> Path:
    """Return the folder for features and demo models: $XDG_CACHE_HOME/lineward, by default ~/.cache/lineward."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lineward"


@contextmanager
def progress_bar(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Show steps ``(what, done, of)`` as bars with the remaining time on stderr; nothing when quiet or no terminal."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda _what, _done, _of: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, Any] = {}

        def step(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=of)
            bars.update(tasks[what], completed=done, total=of)

        yield step


def train_with_progress(data: Path, out: Path, *, product: str, tier: str, seed: int, quiet: bool) -> TrainReport:
    """Train the tier that is asked for.

    Raises
    ------
    ValueError
        There is no such tier; or one of the training's own errors about data and output.
    """
    if tier != "quick":
        raise TierError(f"--tier {tier}: this version trains the tier quick only")
    with progress_bar(quiet=quiet) as progress:
        return train_quick(data, out, product=product, cache_dir=cache_dir(), progress=progress, seed=seed)


class TierError(ValueError):
    """No such training tier."""


def evaluate_with_progress(model: Path, data: Path, *, quiet: bool) -> Evaluation:
    """Judge every labelled image below ``data`` and compare."""
    session = Session(model)
    session.warm_up()
    with progress_bar(quiet=quiet) as progress:
        return evaluate(session, data, progress=lambda done, of: progress("judging images", done, of))


def predict_files(model: Path, images: Sequence[Path]) -> tuple[list[Prediction], list[ImageFileError]]:
    """Judge image files in the order given; a broken one gives an error and does not stop the others."""
    session = Session(model)
    session.warm_up()
    errors: list[ImageFileError] = []
    return predict(session, images, on_error=errors.append), errors
