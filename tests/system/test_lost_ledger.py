"""A station whose ledger is gone or in pieces starts, goes on, and knows again what lies beside its images."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.broker import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.broker import Mosquitto, Subscriber
    from tests.system.line import Line

pytestmark = pytest.mark.system

CAMERA = {"driver": "simulated", "width": 320, "height": 256, "rate_hz": 10, "defect_rate": 0.8}


def kept(storage: Path) -> set[str]:
    """Images with their side-car."""
    return {path.stem for path in storage.glob("images/*/*/*.png") if path.with_suffix(".json").exists()}


def known(storage: Path) -> set[str]:
    """Images that the ledger has a row for."""
    with closing(sqlite3.connect(f"file:{storage / 'ledger.sqlite3'}?mode=ro", uri=True, timeout=5)) as db:
        return {Path(row[0]).stem for row in db.execute("SELECT path FROM images")}


def deleted(path: Path) -> None:
    path.unlink()


def in_pieces(path: Path) -> None:
    path.write_bytes(os.urandom(path.stat().st_size))


@pytest.mark.parametrize("lose", [deleted, in_pieces])
def test_a_lost_ledger_is_made_again_beside_the_running_line(
    line: Callable[..., Line], broker: Mosquitto, hear: Subscriber, lose: Callable[[Path], None]
) -> None:
    """Rule: no number is used twice that an image bears, images get their rows again, and parts are answered."""
    made = line(port=broker.port, camera=CAMERA, review={"keep_per_hour": 2000, "keep_fails": True}).start()
    wait_until(lambda: len(kept(made.storage)) >= 5, 60, "kept images")
    assert made.end()[0] == 0
    before = kept(made.storage)
    highest = max(int(name.split("-")[0]) for name in before)
    told = len(hear.on("result"))
    database = made.storage / "ledger.sqlite3"
    for companion in made.storage.glob("ledger.sqlite3-*"):
        companion.unlink()
    lose(database)
    made.start()
    wait_until(lambda: len(hear.on("result")) >= told + 20, 60, "answers")
    wait_until(lambda: before <= known(made.storage), 60, "rows of the images")
    assert made.end()[0] == 0
    rows = made.rows()
    assert [row["seq"] for row in rows if row["seq"] > highest] != []
    assert len({row["seq"] for row in rows}) == len(rows)
    assert min(heard.json["seq"] for heard in hear.on("result")[told:]) > highest
    assert "Traceback" not in made.log
