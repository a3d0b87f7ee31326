"""The trainable part of the backbone in torch: everything behind the stride-4 map, and a linear head.

The first three blocks stay frozen, so their maps are computed once per image and mirrored view, by ONNX Runtime, with
the very nodes that the bundle runs. Batch normalisation keeps its ImageNet statistics; scale and shift are tuned.
This file alone imports torch.
"""

from __future__ import annotations

import io
import json
import math
import pickle
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from lineward.models.backbone import BATCH_NORM_EPSILON, blocks, same_padding
from lineward.models.features import write_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

FIRST_BLOCK = 3
RATE = 5e-4
WEIGHT_DECAY = 1e-2
BATCH = 32
SMOOTHING = 0.05
EMA = 0.98
WARM_UP_STEPS = 20
LEAST_EPOCHS, MOST_EPOCHS = 2, 20
PLANNED_AT = 8
"""Step at which the epochs are planned, by the time that the steps took."""

_FIXED = (".running_mean", ".running_var", ".num_batches_tracked")


@dataclass
class Tail:
    """Tensors by their name in the pretrained weights, and the head on pooled features ``mean | max``."""

    tensors: dict[str, Any]
    centre: Any
    spread: Any
    weight: Any
    bias: Any

    def trainable(self) -> list[Any]:
        """Everything that is tuned."""
        tuned = [value for name, value in self.tensors.items() if not name.endswith(_FIXED)]
        return [*tuned, self.weight, self.bias]

    def copy(self) -> Tail:
        """Return a detached copy."""
        return Tail(
            {name: value.detach().clone() for name, value in self.tensors.items()},
            self.centre.clone(),
            self.spread.clone(),
            self.weight.detach().clone(),
            self.bias.detach().clone(),
        )

    def features(self, maps: Any) -> Any:
        """Return ``(n, 2 * 1280)`` mean and maximum of the head map, from stride-4 maps ``(n, 24, h, w)``."""
        x = maps
        for index, (kernel, stride, first) in enumerate(blocks()):
            if index < FIRST_BLOCK:
                continue
            prefix, shortcut = f"_blocks.{index}.", x
            x = self._conv(x, prefix + "_expand_conv", prefix + "_bn0", relu6=True)
            x = self._conv(
                x, prefix + "_depthwise_conv", prefix + "_bn1", kernel=kernel, stride=stride, depthwise=True, relu6=True
            )
            x = self._conv(x, prefix + "_project_conv", prefix + "_bn2", relu6=False)
            if not first:
                x = x + shortcut
        x = self._conv(x, "_conv_head", "_bn1", relu6=True)
        return torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)

    def logits(self, maps: Any) -> Any:
        """Return ``(n,)`` raw scores."""
        return (self.features(maps) - self.centre) / self.spread @ self.weight + self.bias

    def _conv(
        self, x: Any, name: str, norm: str, *, relu6: bool, kernel: int = 1, stride: int = 1, depthwise: bool = False
    ) -> Any:
        get = self.tensors
        factor = get[norm + ".weight"] / torch.sqrt(get[norm + ".running_var"] + BATCH_NORM_EPSILON)
        weight = get[name + ".weight"] * factor[:, None, None, None]
        bias = get[norm + ".bias"] - get[norm + ".running_mean"] * factor
        top, bottom = same_padding(x.shape[2], kernel, stride)
        left, right = same_padding(x.shape[3], kernel, stride)
        if top or bottom or left or right:
            x = functional.pad(x, (left, right, top, bottom))
        x = functional.conv2d(x, weight, bias, stride=stride, groups=weight.shape[0] if depthwise else 1)
        return functional.relu6(x) if relu6 else x


def start(tensors: dict[str, NDArray[np.generic]], *, device: str) -> Tail:
    """Make a tail with the pretrained weights; the head is still empty."""
    wanted = {
        name: torch.from_numpy(np.array(value, np.float32)).to(device)
        for name, value in tensors.items()
        if _is_tail(name) and not name.endswith(".num_batches_tracked")
    }
    width = 2 * int(wanted["_conv_head.weight"].shape[0])
    zeros = torch.zeros(width, device=device)
    return Tail(wanted, zeros.clone(), zeros + 1, zeros.clone(), torch.zeros((), device=device))


def _is_tail(name: str) -> bool:
    if name.startswith("_blocks."):
        return int(name.split(".")[1]) >= FIRST_BLOCK
    return name.startswith(("_conv_head", "_bn1"))


def tune(
    tail: Tail,
    maps: NDArray[np.float16],
    labels: NDArray[np.bool_],
    chosen: NDArray[np.int64],
    *,
    seed: int,
    seconds: float,
    progress: Callable[[int, int], None],
    device: str,
    probe: Callable[[NDArray[np.float32], NDArray[np.bool_]], tuple[NDArray[np.float32], float]],
    checkpoint: Path | None = None,
) -> tuple[Tail, int]:
    """Fit the head on frozen features first, then tune everything; returns the averaged weights and the epochs.

    Parameters
    ----------
    maps
        ``(views, n, channels, h, w)`` float16 stride-4 maps of every mirrored view.
    chosen
        Indices of the images to train on.
    seconds
        How long tuning may take; the epochs follow from the time of the first steps.
    probe
        Fits a linear head on standardised features: weight ``(d,)`` and bias.
    checkpoint
        Written after every epoch. If it is there, tuning goes on behind its epoch, for as many as were planned then.
    """
    generator = np.random.default_rng(seed)
    torch.manual_seed(seed)
    frozen = features(tail, maps[0], chosen, device=device)
    centre, spread = frozen.mean(axis=0), frozen.std(axis=0) + 1e-2
    weight, bias = probe((frozen - centre) / spread, labels[chosen])
    tail.centre, tail.spread = (torch.from_numpy(part.astype(np.float32)).to(device) for part in (centre, spread))
    tail.weight = torch.from_numpy(weight.astype(np.float32)).to(device)
    tail.bias = torch.tensor(float(bias), device=device)
    for tensor in tail.trainable():
        tensor.requires_grad_(requires_grad=True)
    optimizer = torch.optim.AdamW(tail.trainable(), lr=RATE, weight_decay=WEIGHT_DECAY)
    average = tail.copy()
    per_epoch = max(math.ceil(len(chosen) / BATCH), 1)
    total, step, began, measured = MOST_EPOCHS * per_epoch, 0, perf_counter(), 0.0
    share = max(float(labels[chosen].mean()), 1e-3)
    heavier = torch.tensor((1 - share) / share, device=device).sqrt()
    run = _Run(tail, average, optimizer, generator)
    if checkpoint:
        step, total = run.load(checkpoint) or (step, total)
    while step < total:
        order = generator.permutation(chosen)
        for begin in range(0, len(order), BATCH):
            if step >= total:
                break
            batch = order[begin : begin + BATCH]
            rate = RATE * min((step + 1) / WARM_UP_STEPS, 1.0) * 0.5 * (1 + math.cos(math.pi * step / total))
            for group in optimizer.param_groups:
                group["lr"] = rate
            views = generator.integers(0, len(maps), len(batch))
            x = _tensor(maps[views, batch], device)
            target = torch.from_numpy(labels[batch].astype(np.float32)).to(device)
            target = target * (1 - 2 * SMOOTHING) + SMOOTHING
            loss = functional.binary_cross_entropy_with_logits(tail.logits(x), target, pos_weight=heavier)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
            _follow(average, tail, min(EMA, step / (step + 10)))
            if step == 3:
                began = perf_counter()  # the first steps choose algorithms and allocate
            elif step == PLANNED_AT or (step > PLANNED_AT and step % per_epoch == 0):
                measured = (perf_counter() - began) / (step - 3)
                fitting = int(seconds / measured / per_epoch)
                total = min(max(fitting, LEAST_EPOCHS), MOST_EPOCHS) * per_epoch if step == PLANNED_AT else total
            progress(min(step, total), total)
        if checkpoint and step >= PLANNED_AT:
            run.save(checkpoint, step, total)
    return average, math.ceil(step / per_epoch)


@dataclass(frozen=True, slots=True)
class _Run:
    """Everything that changes from step to step, and how it is kept and found again."""

    tail: Tail
    average: Tail
    optimizer: Any
    generator: np.random.Generator

    def _tensors(self) -> list[Any]:
        nets = (self.tail, self.average)
        return [part for net in nets for part in (*net.trainable(), net.centre, net.spread)]

    def save(self, path: Path, step: int, planned: int) -> None:
        """Write it whole or not at all."""
        state = {
            "step": step,
            "planned": planned,
            "generator": json.dumps(self.generator.bit_generator.state),
            "tensors": [tensor.detach() for tensor in self._tensors()],
            "optimizer": self.optimizer.state_dict(),
        }
        stream = io.BytesIO()
        torch.save(state, stream)
        write_whole(path, stream.getvalue())

    def load(self, path: Path) -> tuple[int, int] | None:
        """Return steps done and planned; None, and nothing changed, when there is no file or it is of no use."""
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            found, tensors = state["tensors"], self._tensors()
            fits = [tuple(new.shape) for new in found] == [tuple(old.shape) for old in tensors]
            known = json.loads(state["generator"])
            step, planned, optimizer = int(state["step"]), int(state["planned"]), state["optimizer"]
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError):
            return None
        if not fits:
            return None
        with torch.no_grad():
            for old, new in zip(tensors, found, strict=True):
                old.copy_(new)
        self.optimizer.load_state_dict(optimizer)
        self.generator.bit_generator.state = known
        return step, planned


def _follow(average: Tail, tail: Tail, keep: float) -> None:
    with torch.no_grad():
        for old, new in zip(average.trainable(), tail.trainable(), strict=True):
            old.mul_(keep).add_(new.detach(), alpha=1 - keep)


def _tensor(maps: NDArray[np.float16], device: str) -> Any:
    made = torch.from_numpy(maps.astype(np.float32)).to(device)
    return made.contiguous(memory_format=torch.channels_last)


def features(
    tail: Tail, maps: NDArray[np.float16], chosen: NDArray[np.int64] | Sequence[int], *, device: str
) -> NDArray[np.float32]:
    """Return ``(len(chosen), d)`` pooled features."""
    return _in_batches(tail.features, maps, chosen, device)


def scores(
    tail: Tail, maps: NDArray[np.float16], chosen: NDArray[np.int64] | Sequence[int], *, device: str
) -> NDArray[np.float64]:
    """Return ``(len(chosen),)`` raw scores."""
    return _in_batches(tail.logits, maps, chosen, device).astype(np.float64)


def _in_batches(
    run: Callable[[Any], Any], maps: NDArray[np.float16], chosen: NDArray[np.int64] | Sequence[int], device: str
) -> NDArray[np.float32]:
    with torch.no_grad():
        parts = [
            run(_tensor(maps[np.asarray(chosen[begin : begin + 64])], device)).cpu().numpy()
            for begin in range(0, len(chosen), 64)
        ]
    return np.asarray(np.concatenate(parts), np.float32)


def to_numpy(tail: Tail) -> tuple[dict[str, NDArray[np.generic]], tuple[NDArray[np.float32], ...], float]:
    """Return the tuned tensors by name, the head (centre, spread, weight), and its bias."""
    tensors = {name: np.asarray(value.detach().cpu().numpy()) for name, value in tail.tensors.items()}
    head = tuple(part.detach().cpu().numpy() for part in (tail.centre, tail.spread, tail.weight))
    return tensors, head, float(tail.bias.detach())


def pick_device() -> str:
    """Return ``cuda`` where there is a GPU, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def use_threads(count: int) -> None:
    """Limit torch to so many cores."""
    torch.set_num_threads(count)
