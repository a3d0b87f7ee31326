from __future__ import annotations

import hashlib
import importlib.util
import itertools
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from lineward.models import tuning, weighing
from lineward.models.bundle import load_manifest
from lineward.models.finetune import train_full
from lineward.models.quick import train_quick
from lineward.models.session import Session
from lineward.models.tuned_net import TorchMissingError
from lineward.models.tuning import keep_from_tuning, plan_tuning

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lineward.models.quick import TrainReport

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch (extra train) is missing")


def trained_full(
    data: Path, folder: Path, cache: Path, *, tuning_s: float
) -> tuple[TrainReport, dict[str, tuple[int, int]]]:
    """Train at 96 px; gives the report, and by stage how far the last progress said it was."""
    seen: dict[str, tuple[int, int]] = {}
    report = train_full(
        data,
        folder / "full.lward",
        product="plates",
        cache_dir=cache,
        height=96,
        width=96,
        tuning_s=tuning_s,
        progress=lambda stage, done, total: seen.__setitem__(stage, (done, total)),
    )
    return report, seen


@needs_torch
@pytest.mark.timeout(600)
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_full_tier_makes_the_same_kind_of_bundle(
    data: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weight: float
) -> None:
    """A few steps of tuning end in one file that says what torch says; without its network it is the quick one."""
    monkeypatch.setattr(weighing, "WEIGHTS", (weight,))
    report, seen = trained_full(data, tmp_path, cache, tuning_s=0.0)
    manifest = load_manifest(report.model)
    assert manifest.tier == "full"
    assert manifest.model.tuning_epochs >= 2
    assert f"stacked + {weight:g} x tuned" in manifest.model.candidates
    assert manifest.parity.verdicts_equal
    if weight:
        assert manifest.data.figures == "holdout"
        assert manifest.calibration.n == manifest.holdout.n_good + manifest.holdout.n_defect
        assert 0 < manifest.holdout.n_defect < manifest.data.n_defect
    else:
        quick = load_manifest(
            train_quick(data, tmp_path / "quick.lward", product="plates", cache_dir=cache, height=96, width=96).model
        )
        alike = {"holdout": {"ms_per_image"}, "thresholds": set(), "risk": set(), "calibration": set()}
        for name, but in alike.items():
            assert getattr(manifest, name).model_dump(exclude=but) == getattr(quick, name).model_dump(exclude=but)
        assert manifest.data.figures == quick.data.figures
    assert list(seen) == ["read", "features", "fit", "maps", "tune", "check"], "no time for a second network"
    assert all(done == total for done, total in seen.values())
    assert Session(report.model).run(np.full((96, 96, 1), 127, np.uint8)).heatmap.shape == (1, 6, 6)


@needs_torch
@pytest.mark.timeout(600)
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_with_time_enough_every_part_judges_and_is_known_to_what_is_deployed(
    data: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weight: float
) -> None:
    """Rule: each third is judged by a network of the others; then, when it helps, one network is tuned on all."""
    monkeypatch.setattr(weighing, "WEIGHTS", (weight,))
    monkeypatch.setattr(tuning, "MOST_EPOCHS", 2)
    report, seen = trained_full(data, tmp_path, cache, tuning_s=1000.0)
    manifest = load_manifest(report.model)
    assert all(done == total for done, total in seen.values())
    assert ("tune on all" in seen) == bool(weight)
    assert manifest.data.figures == "crossfit"
    assert manifest.calibration.n == manifest.data.n_good + manifest.data.n_defect
    if weight:
        assert manifest.calibration.folds == 3
        assert seen["tune on all"] == (2 * 3, 2 * 3), "two epochs of 96 images"
        assert seen["tune"] == (3 * 2 * 2, 3 * 2 * 2), "two epochs of 64 images, three times"
    assert manifest.parity.verdicts_equal
    assert list((cache / "tuning").iterdir()) == []


@needs_torch
@pytest.mark.timeout(600)
def test_what_can_fail_fails_before_the_bundle_is_replaced(data: Path, listless_cache: Path, tmp_path: Path) -> None:
    """Rule: a cache that takes no list of images ends a training with the older model in its place."""
    (tmp_path / "full.lward").write_bytes(b"older")
    with pytest.raises(OSError, match="sets"):
        trained_full(data, tmp_path, listless_cache, tuning_s=0.0)
    assert (tmp_path / "full.lward").read_bytes() == b"older"


@pytest.mark.parametrize(
    ("seconds", "epochs", "networks"),
    [(0.0, 2, 1), (100.0, 5, 1), (379.0, 8, 1), (380.0, 5, 3), (10_000.0, 8, 3)],
)
def test_crossing_needs_time_for_enough_epochs(seconds: float, epochs: int, networks: int) -> None:
    """Rule: at a second a step, 25 steps an epoch for all, 20 for what judges not, and three times 17 for thirds."""
    groups = np.arange(800)
    labels = groups % 4 == 0
    held = keep_from_tuning(labels, groups, 0)
    assert held is not None
    plan = plan_tuning(held, labels, groups, 0, step_s=1.0, seconds=seconds, batch=32)
    assert (plan.epochs, len(plan.apart)) == (epochs, networks)
    assert plan.judged.all() == (networks == 3)
    assert all(not (a & b).any() for a, b in itertools.combinations(plan.apart, 2))


@pytest.mark.parametrize(
    ("better", "judges", "weights"),
    [("tuned", "all", {2.0, 4.0}), ("tuned", "fold", {1.0}), ("quick", "all", {0.0}), ("quick", "fold", {0.0})],
)
def test_a_single_fold_never_gives_one_network_more_than_all_heads_together(
    better: str, judges: str, weights: set[float]
) -> None:
    """Rule: a network that looks far better on few parts gets as much weight as the rest; one that is worse, none."""
    random = np.random.default_rng(0)
    labels = np.arange(300) % 3 == 0
    good, noise = labels * 4.0 + random.standard_normal(300), random.standard_normal(300)
    blended, tuned = (noise, good) if better == "tuned" else (good, noise)
    weight, figures = weighing.choose_weight(blended, tuned, labels, crossed=judges == "all")
    assert weight in weights
    assert len(figures) == (len(weighing.WEIGHTS) if judges == "all" else 3)


@pytest.mark.parametrize("seed", range(8))
def test_both_halves_of_what_is_kept_from_tuning_have_both_kinds(seed: int) -> None:
    """Rule: with few parts, some in many pictures, as many are kept as it takes to judge and be judged."""
    groups = np.repeat(np.arange(12), [20, 1, 1, 1, 1, 1, 9, 1, 1, 1, 1, 1])
    labels = groups >= 6
    held = keep_from_tuning(labels, groups, seed)
    assert held is not None
    for kind in (labels, ~labels):
        assert len(set(groups[held & kind])) >= 2
        assert (kind & ~held).any()
    assert not set(groups[held]) & set(groups[~held]), "a part is on one side"


def test_what_cannot_be_kept_from_tuning_is_refused() -> None:
    """Rule: two defective parts cannot be tuned with and judged with."""
    groups = np.arange(20)
    assert keep_from_tuning(groups >= 18, groups, 0) is None


@needs_torch
def test_the_tail_is_the_backbone(tmp_path: Path, render: Callable[..., np.ndarray]) -> None:  # type: ignore[type-arg]
    """Before tuning, torch and ONNX agree on the head map: padding, folding and order of blocks are the same."""
    import cv2
    import onnxruntime

    from lineward.models import tail
    from lineward.models.backbone import EfficientNetLite0
    from lineward.models.features import Source, append_features
    from lineward.models.graph import Graph
    from lineward.models.prepare import InputSpec
    from lineward.models.tuned_net import early_maps

    # Strides of two on even maps: there "same" padding is not symmetric.
    spec = InputSpec(height=96, width=160, channels=1, colour="mono")
    image = cv2.resize(render(1, "spot"), (160, 96))
    path = tmp_path / "part.png"
    cv2.imwrite(str(path), image)
    backbone = EfficientNetLite0()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    maps = early_maps(backbone, spec, [Source(path, digest)], None, ["none"], 1, lambda _done, _total: None)
    found = tail.features(tail.start(backbone.tensors, device="cpu"), maps[0], [0], device="cpu")
    graph = Graph()
    tensors = append_features(graph, backbone, spec)
    taps = {tap.name: tap for tap in tensors.taps}
    for scale in tail.SCALES:
        tap = taps[scale]
        graph.output(scale, tap.tensor, ("N", tap.channels, tap.height, tap.width))
    session = onnxruntime.InferenceSession(
        graph.model("t", "0").SerializeToString(), providers=["CPUExecutionProvider"]
    )
    pooled = []
    for expected in session.run(list(tail.SCALES), {"image": image[None, :, :, None]}):
        flat = expected[0].reshape(len(expected[0]), -1)
        pooled += [flat.mean(axis=1), flat.max(axis=1)]
    assert found[0] == pytest.approx(np.concatenate(pooled), abs=0.02)


@needs_torch
def test_steps_in_bfloat16_go_the_same_way() -> None:
    """Rule: with strides taken afterwards and half the digits, scores and gradients are those of float32."""
    import torch

    from lineward.models import tail
    from lineward.models.backbone import EfficientNetLite0

    net = tail.start(EfficientNetLite0().tensors, device="cpu")
    net.weight = torch.randn(len(net.weight), generator=torch.Generator().manual_seed(0)) / 100
    maps = torch.randn(2, 40, 11, 14, generator=torch.Generator().manual_seed(1))
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        copy = net.copy()
        copy.dtype = dtype
        for tensor in copy.trainable():
            tensor.requires_grad_(requires_grad=True)
        scores = copy.logits(maps.contiguous(memory_format=torch.channels_last))
        scores.sum().backward()
        slope = torch.cat([tensor.grad.flatten() for tensor in copy.trainable()])
        found.append((scores.detach(), slope))
    (full, slope), (half, other) = found
    assert half.numpy() == pytest.approx(full.numpy(), abs=0.05)
    assert float(torch.nn.functional.cosine_similarity(slope, other, dim=0)) > 0.98


def test_without_torch_it_says_how_to_get_it(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that names the extra, before any work, and no file."""
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "lineward.models.tail", raising=False)
    monkeypatch.delattr("lineward.models.tail", raising=False)
    out = tmp_path / "m.lward"
    with pytest.raises(TorchMissingError, match="install torch`, or use --tier quick") as caught:
        train_full(data, out, product="p")
    assert "\n" not in str(caught.value)
    assert not out.exists()


@needs_torch
def test_threads_of_torch_sleep_while_they_wait() -> None:
    """Rule: also after everything else that a training loads, the runtime of torch's threads is told not to spin."""
    code = "import lineward.models.finetune as f; f.load_tail()"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"OMP_DISPLAY_ENV": "true"},
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    policies = re.findall(r"OMP_WAIT_POLICY = '(\w+)'", done.stderr)
    assert policies, "no runtime has told its settings"
    assert policies[-1] == "PASSIVE"
