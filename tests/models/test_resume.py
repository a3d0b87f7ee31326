"""A training of the full tier that is killed: nothing is written, and the next one goes on where it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from lineward.models import tuning
from lineward.models.backbone import EfficientNetLite0
from lineward.models.bundle import load_manifest
from lineward.models.finetune import train_full

if TYPE_CHECKING:
    from pathlib import Path

tail = pytest.importorskip("lineward.models.tail", reason="torch (extra train) is missing", exc_type=ImportError)

EPOCHS = 6
KILLED = """
import json, os, sys
from pathlib import Path
from lineward.models import tuning
from lineward.models.finetune import train_full

data, out, cache, stage, step, epochs, seen = sys.argv[1:]
tuning.MOST_EPOCHS = int(epochs)
stages = []

def progress(what, done, total):
    stages.append([what, done, total])
    if (what, done) == (stage, int(step)) or (what == stage and step == "0"):
        Path(seen).write_text(json.dumps(stages))
        os.kill(os.getpid(), 9)

train_full(Path(data), Path(out), product="plates", cache_dir=Path(cache), height=96, width=96, tuning_s=1000.0,
           progress=progress)
"""


def killed_at(  # noqa: PLR0917 - places
    data: Path, out: Path, cache: Path, stage: str, step: int, scratch: Path
) -> list[tuple[str, int, int]]:
    """Train in a process that kills itself at a step of a stage (0: the first one); returns what it had done."""
    seen = scratch / "seen.json"
    seen.unlink(missing_ok=True)
    arguments = [str(data), str(out), str(cache), stage, str(step), str(EPOCHS), str(seen)]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False, timeout=300, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    return [tuple(row) for row in json.loads(seen.read_text())]


@pytest.mark.timeout(600)
@pytest.mark.skipif(not os.environ.get("LINEWARD_LONG"), reason="four trainings with torch; LINEWARD_LONG=1 runs it")
def test_killed_and_started_again(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: killed while fitting, tuning or checking, a training leaves the old model, and no epoch is tuned twice."""
    folder = tmp_path / "out"
    folder.mkdir()
    out = folder / "plates.lward"
    out.write_bytes(b"the model before")

    killed_at(data, out, tmp_path / "cache", "fit", 1, tmp_path)
    features = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.pooled")}
    assert len(features) == 96

    per_network = EPOCHS * 2  # steps, with the 64 images of two thirds
    stopped = per_network + 2 * 2 + 1  # in the third epoch of the second network
    first = killed_at(data, out, tmp_path / "cache", "tune", stopped, tmp_path)
    assert [done for stage, done, _ in first if stage == "tune"] == list(range(1, stopped + 1))

    second = killed_at(data, out, tmp_path / "cache", "check", 0, tmp_path)
    assert [done for stage, done, _ in second if stage == "tune"] == list(range(stopped, 3 * per_network + 1))

    assert out.read_bytes() == b"the model before"
    assert list(folder.iterdir()) == [out]

    monkeypatch.setattr(tuning, "MOST_EPOCHS", EPOCHS)
    stages: set[str] = set()
    report = train_full(
        data,
        out,
        product="plates",
        cache_dir=tmp_path / "cache",
        height=96,
        width=96,
        tuning_s=1000.0,
        progress=lambda stage, _done, _total: stages.add(stage),
    )
    assert not stages & {"tune", "tune on all"}
    assert load_manifest(report.model).model.tuning_epochs == EPOCHS
    assert {path: path.stat().st_mtime_ns for path in features} == features
    assert list((tmp_path / "cache" / "tuning").iterdir()) == []


class _Stopped(Exception):  # noqa: N818 - no error
    pass


def tuned(checkpoint: Path | None, stop_at: int | None = None) -> tuple[Any, int, list[int]]:
    """Tune on made-up maps for six epochs of two steps; gives the averaged network, epochs and steps."""
    random = np.random.default_rng(3)
    labels = np.arange(64) % 3 == 0
    maps = random.random((2, 64, 40, 6, 6)).astype(np.float16)
    maps[:, labels] += np.float16(0.2)
    steps: list[int] = []
    tail.use_threads(1)  # two wait for each other where other work has the cores

    def progress(done: int, _total: int) -> None:
        steps.append(done)
        if done == stop_at:
            raise _Stopped

    net, epochs = tail.tune(
        tail.start(EfficientNetLite0().tensors, device="cpu"),
        maps,
        labels,
        np.arange(64),
        seed=1,
        epochs=EPOCHS,
        progress=progress,
        device="cpu",
        probe=lambda features, _labels: (np.zeros(features.shape[1], np.float32), 0.0),
        checkpoint=checkpoint,
    )
    return net, epochs, steps


def test_an_interrupted_tuning_ends_where_it_would_have_ended(tmp_path: Path) -> None:
    """Rule: weights, averages, optimizer and order of images are kept: the same network comes out."""
    checkpoint = tmp_path / "tuning.pt"
    straight, epochs, steps = tuned(None)
    assert (epochs, len(steps)) == (EPOCHS, 12)
    with pytest.raises(_Stopped):
        tuned(checkpoint, stop_at=9)
    resumed, again, rest = tuned(checkpoint)
    assert (again, rest) == (EPOCHS, [9, 10, 11, 12])
    for one, other in zip(straight.trainable(), resumed.trainable(), strict=True):
        np.testing.assert_allclose(one.detach().numpy(), other.detach().numpy(), atol=1e-3)


@pytest.mark.parametrize("content", [b"", b"no such thing", b"PK\x03\x04 cut off"])
def test_a_damaged_checkpoint_is_no_obstacle(content: bytes, tmp_path: Path) -> None:
    """Rule: what cannot be read is tuned again from the start."""
    checkpoint = tmp_path / "tuning.pt"
    checkpoint.write_bytes(content)
    with pytest.raises(_Stopped):
        tuned(checkpoint, stop_at=1)  # a start behind this step would never stop
