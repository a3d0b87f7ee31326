"""Writes labelled folders of simulated parts for the trainer."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import cv2

from lineward.drivers.simulation.defects import Defect
from lineward.drivers.simulation.scene import Renderer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lineward.drivers.simulation.scene import Truth

FIRST_INDEX = 1_000_000
"""Training sets begin here by default: a line that starts at 0 needs 55 hours at 5 Hz to show one of their parts."""


def write_dataset(
    folder: Path,
    *,
    product: str = "bracket",
    seed: int = 0,
    n_good: int = 600,
    n_defect: int = 400,
    width: int = 640,
    height: int = 512,
    start_index: int = FIRST_INDEX,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write ``good/*.png``, ``defect/<type>/*.png`` and ``groups.csv`` with the columns file, group and label.

    The group is the batch a part comes from; parts of one batch must not be on both sides of a split. The folder
    appears under its name only when it is complete.

    Parameters
    ----------
    folder
        Must not exist yet, or be empty.
    n_good, n_defect
        How many images; defects take turns through the six types, severity by chance from hard to obvious.
    start_index
        Index of the first part; the parts are ``start_index`` and following.
    progress
        Called with images written and images in all.

    Returns
    -------
    The folder.

    Raises
    ------
    FileExistsError
        The folder holds files already.
    OSError
        An image could not be written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} holds files already; give a new folder for the data set")
    renderer = Renderer(product, seed=seed, width=width, height=height)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with (partial / "groups.csv").open("w", newline="", encoding="utf-8") as table:
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow(("file", "group", "label"))
        for n, known in enumerate(_parts(renderer, n_good, n_defect, start_index), start=1):
            label = "good" if known.good else f"defect/{known.defect_type}"
            name = f"{label}/{product}-{known.index:07d}.png"
            image, _ = renderer.render(known.index, defect=known.defect_type or "none", severity=known.severity)
            (partial / label).mkdir(parents=True, exist_ok=True)
            if not cv2.imwrite(str(partial / name), image, [cv2.IMWRITE_PNG_COMPRESSION, 1]):
                raise OSError(f"{partial / name} could not be written; is the disk full?")
            rows.writerow((name, f"batch-{known.batch}", "good" if known.good else known.defect_type))
            if progress is not None:
                progress(n, n_good + n_defect)
    if folder.exists():
        folder.rmdir()
    return partial.rename(folder)


def _parts(renderer: Renderer, n_good: int, n_defect: int, start_index: int) -> Iterator[Truth]:
    """Good and bad parts spread evenly over the batches, so that a batch's tone says nothing about its label."""
    kinds, total, bad = list(Defect), n_good + n_defect, 0
    for n in range(total):
        if (n + 1) * n_defect // total > bad:
            yield renderer.truth(start_index + n, defect=kinds[bad % len(kinds)])
            bad += 1
        else:
            yield renderer.truth(start_index + n, defect="none")
