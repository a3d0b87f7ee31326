"""`lineward bench --config` on a station as it is: a product's model, a triggered camera, a folder that ends."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
from tests.broker import free_port
from tests.system.line import call

from lineward.daemon.bench import is_held_up
from lineward.models import store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.system.line import Line

pytestmark = pytest.mark.system


def test_a_triggered_station_with_the_model_of_a_product_is_benched(line: Callable[..., Line], bundle: Path) -> None:
    """Rule: the model is looked up in the station's own store, and nobody has to give triggers."""
    made = line(
        model="tiles",
        port=free_port(),
        camera={"driver": "simulated", "width": 320, "height": 256, "rate_hz": 20, "trigger": "hardware"},
        **{"recipes.other": {"model": "nothing-promoted"}},
    )
    entry = store.add(made.storage, bundle)
    store.promote(made.storage, "tiles", entry.version)
    done = call(made.folder, "bench", "--config", made.config, "--frames", 10, "--json")
    assert done.returncode == 0, done.stderr
    assert "lets the camera run freely, without its hardware trigger" in done.stderr
    assert json.loads(done.stdout)["frames"] == 10
    assert not (made.storage / "ledger.sqlite3").exists()


def test_a_folder_that_ends_too_early_is_said_in_one_line(
    line: Callable[..., Line], images: Path, tmp_path: Path
) -> None:
    """Rule: how many pictures there are, how many are needed and what to do, and the exit code of a wrong input."""
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(images.iterdir())[:25]:
        shutil.copy(path, few)
    made = line(port=free_port(), camera={"driver": "folder", "folder": str(few), "trigger": "software"})
    done = call(made.folder, "bench", "--config", made.config, "--frames", 10)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    (note, said) = done.stderr.splitlines()
    assert "without its software trigger" in note
    assert said.startswith(
        "lineward: the camera's folder ended after 25 pictures, the bench needs 30: write loop = true"
    )


def test_a_slow_camera_does_not_make_the_line_look_slow(line: Callable[..., Line]) -> None:
    """Rule: the ratio to a bare loop is about the line; a camera of five frames a second is called the limit."""
    camera = {"driver": "simulated", "width": 320, "height": 256, "rate_hz": 5, "prerender": 2}
    made = line(port=free_port(), camera=camera)
    done = call(made.folder, "bench", "--config", made.config, "--frames", 90, "--json", timeout_s=120)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    bare = figures["ratio_to_bare_ort"] * figures["bare_ort_fps"]
    at_work_s = figures["stages"]["total"]["p50_ms"] / 1000
    assert bare > 0.4 / at_work_s, "by the time the line takes for a part, not by the camera's"
    assert is_held_up(figures | {"fps": bare / 3})
    assert not is_held_up(figures | {"fps": bare * 0.95})
