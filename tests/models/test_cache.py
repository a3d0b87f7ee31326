from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from lineward.models.cache import trim_cache

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path


def test_the_oldest_go_first_and_those_in_use_stay(tmp_path: Path) -> None:
    """Above the limit the oldest features go until four fifths are left; those of the set in use never do."""
    folder = tmp_path / "features" / "network" / "00"
    folder.mkdir(parents=True)
    for age, name in enumerate(("old", "used", "middle", "new")):
        path = folder / f"{name}.none.pooled"
        path.write_bytes(bytes(1000))
        os.utime(path, (1000 + age, 1000 + age))
    assert trim_cache(tmp_path, {"used"}, limit_bytes=4000) == 0
    assert trim_cache(tmp_path, {"used"}, limit_bytes=3000) == 2000
    assert sorted(path.name for path in folder.iterdir()) == ["new.none.pooled", "used.none.pooled"]
    assert trim_cache(tmp_path / "nothing", set()) == 0


def test_checkpoints_that_nobody_goes_on_with_are_removed(tmp_path: Path) -> None:
    """Rule: after two weeks a stopped tuning is given up, however small the cache; one that goes on is younger."""
    folder = tmp_path / "tuning"
    folder.mkdir()
    for days, name in ((15, "old-1-0.pt"), (13, "stopped-1-0.pt"), (0, "running-1-0.pt")):
        (folder / name).write_bytes(bytes(100))
        moment = time.time() - days * 86_400
        os.utime(folder / name, (moment, moment))
    assert trim_cache(tmp_path, set()) == 100
    assert sorted(path.name for path in folder.iterdir()) == ["running-1-0.pt", "stopped-1-0.pt"]


def test_what_cannot_be_removed_stays(
    open_folder: Path, unprivileged: Callable[[], AbstractContextManager[None]]
) -> None:
    """Rule: a cache that belongs to somebody else does not end a training whose model is written."""
    for folder in (open_folder / "features" / "network" / "00", open_folder / "tuning"):
        folder.mkdir(parents=True)
        (folder / "old").write_bytes(bytes(1000))
        os.utime(folder / "old", (1000, 1000))
        folder.chmod(0o555)
    with unprivileged():
        assert trim_cache(open_folder, set(), limit_bytes=500) == 0
    assert (open_folder / "tuning" / "old").exists()
    for folder in (open_folder / "features" / "network" / "00", open_folder / "tuning"):
        folder.chmod(0o755)
