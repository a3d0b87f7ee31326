"""What a training of 1,000 images costs at 320 px: from cold, with kept features, and with 30 more images.

Run `.venv/bin/python bench/training.py`; images are looked for in $LINEWARD_DATA, else in ../shared/data. The set is
`mtd` filled up to 1,000 images with `elpv`; the 30 that are added are `elpv` as well. `--full` trains the full tier as
well, from cold; `--profile` says what took long in the quick one.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from lineward.daemon.allocator import keep_freed
from lineward.models.dataset import read_dataset
from lineward.models.finetune import train_full
from lineward.models.quick import train_quick

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lineward.models.dataset import Item

IMAGES, ADDED, SIDE_PX = 1000, 30, 320


def link(items: Sequence[Item], folder: Path) -> Path:
    """Make a data folder of images from several sets, without copying them."""
    rows = ["file,group"]
    (folder / "good").mkdir(parents=True)
    for number, item in enumerate(items):
        name = Path(item.file)
        place = folder / name.parent / f"{number:04d}-{name.name}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(item.source.path.resolve())
        rows.append(f"{place.relative_to(folder)},{item.source.path.parts[-4]}-{item.group}")
    (folder / "groups.csv").write_text("\n".join(rows) + "\n")
    return folder


def timed(name: str, data: Path, out: Path, cache: Path, base: Path | None = None, *, full: bool = False) -> None:
    """Train once and print the seconds of the whole and of each stage."""
    train = train_full if full else train_quick
    stages: dict[str, float] = {}
    last = time.perf_counter()

    def progress(stage: str, _done: int, _total: int) -> None:
        nonlocal last
        now = time.perf_counter()
        stages[stage] = stages.get(stage, 0.0) + now - last
        last = now

    size = {} if base else {"height": SIDE_PX, "width": SIDE_PX}
    report = train(data, out, product="bench", cache_dir=cache, progress=progress, base=base, **size)
    parts = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in stages.items())
    print(
        f"{name:<12}{report.seconds:>7.1f} s   ({parts}); {report.manifest.holdout.n_good} good, "
        f"{report.manifest.holdout.n_defect} defective",
        flush=True,
    )


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", action="store_true", help="Also profile a training with kept features.")
    parser.add_argument("--full", action="store_true", help="Also train the full tier.")
    asked = parser.parse_args()
    root = Path(os.environ.get("LINEWARD_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    if not (root / "mtd").is_dir():
        print(f"{root}: no real images there; set LINEWARD_DATA", file=sys.stderr)
        return 2
    mtd, elpv = list(read_dataset(root / "mtd").items), list(read_dataset(root / "elpv").items)[::4]
    with tempfile.TemporaryDirectory(prefix="lineward-bench-") as scratch:
        folder, cache = Path(scratch), Path(scratch) / "cache"
        fill = IMAGES - len(mtd)
        data = link([*mtd, *elpv[:fill]], folder / "data")
        more = link(elpv[fill : fill + ADDED], folder / "more")
        timed("cold", data, folder / "a.lward", cache)
        timed("kept", data, folder / "b.lward", cache)
        timed("30 more", more, folder / "c.lward", cache, base=folder / "b.lward")
        if asked.full:
            keep_freed()
            timed("full, cold", data, folder / "e.lward", folder / "cold", full=True)
        if asked.profile:
            profile = cProfile.Profile()
            profile.runcall(timed, "profiled", data, folder / "d.lward", cache)
            pstats.Stats(profile).sort_stats("cumulative").print_stats(45)
    return 0


if __name__ == "__main__":
    sys.exit(main())
