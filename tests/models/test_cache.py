from __future__ import annotations

import os
from typing import TYPE_CHECKING

from lineward.models.cache import trim_cache

if TYPE_CHECKING:
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
