"""The trainable part of the backbone in torch: everything behind the stride-8 map, and a linear head.

The first five blocks stay frozen, so their maps are computed once per image and view, by ONNX Runtime, with the very
nodes that the bundle runs. Batch normalisation keeps its ImageNet statistics and is folded into the convolutions; their
weights are tuned, of depthwise ones only the gain of each channel, because the gradients of depthwise kernels take most
of a step in bfloat16. The head sees two scales, because a small defect is lost at stride 32.
On a processor with matrix tiles (AMX) steps are taken in bfloat16; scores are always computed in float32.
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

FIRST_BLOCK = 5
SCALES = ("stride16_expanded", "head")
"""Maps that are pooled, by the names of the backbone's taps."""
_EXPANDED_AT = 11
"""The block whose expanded map is `stride16_expanded`."""
RATE = 5e-4
WEIGHT_DECAY = 1e-2
BATCH = 32
SMOOTHING = 0.05
EMA = 0.98
WARM_UP_STEPS = 20
UNTIMED_STEPS, TIMED_STEPS = 2, 5
"""The first steps choose algorithms and allocate."""


@dataclass
class Tail:
    """Folded convolutions by their name in the pretrained weights, and the head on pooled features.

    ``kernels`` holds depthwise kernels, which stay as they are. ``tuned`` holds ``NAME.weight`` of the other
    convolutions, ``NAME.bias`` of all, and ``NAME.gain`` of the depthwise ones.
    """

    kernels: dict[str, Any]
    tuned: dict[str, Any]
    centre: Any
    spread: Any
    weight: Any
    bias: Any
    dtype: Any = torch.float32

    def trainable(self) -> list[Any]:
        """Everything that is tuned."""
        return [*self.tuned.values(), self.weight, self.bias]

    def copy(self) -> Tail:
        """Return a detached copy, in float32."""
        return Tail(
            self.kernels,
            {name: value.detach().clone() for name, value in self.tuned.items()},
            self.centre.clone(),
            self.spread.clone(),
            self.weight.detach().clone(),
            self.bias.detach().clone(),
        )

    def features(self, maps: Any) -> Any:
        """Return ``(n, d)`` mean and maximum of each of `SCALES` in turn, from stride-8 maps ``(n, 40, h, w)``."""
        x = maps.to(self.dtype)
        pooled = []
        for index, (kernel, stride, first) in enumerate(blocks()):
            if index < FIRST_BLOCK:
                continue
            prefix, shortcut = f"_blocks.{index}.", x
            x = functional.relu6(self._pointwise(x, prefix + "_expand_conv"))
            if index == _EXPANDED_AT:
                pooled.append(x.float())
            x = functional.relu6(self._depthwise(x, prefix + "_depthwise_conv", kernel, stride))
            x = self._pointwise(x, prefix + "_project_conv")
            if not first:
                x = x + shortcut
        pooled.append(functional.relu6(self._pointwise(x, "_conv_head")).float())
        parts = [part for x in pooled for part in (x.mean(dim=(2, 3)), x.amax(dim=(2, 3)))]
        return torch.cat(parts, dim=1)

    def logits(self, maps: Any) -> Any:
        """Return ``(n,)`` raw scores."""
        return (self.features(maps) - self.centre) / self.spread @ self.weight + self.bias

    def _pointwise(self, x: Any, name: str) -> Any:
        weight, bias = (self.tuned[f"{name}.{part}"].to(self.dtype) for part in ("weight", "bias"))
        return functional.conv2d(x, weight, bias)

    def _depthwise(self, x: Any, name: str, kernel: int, stride: int) -> Any:
        """Convolve with "same" padding; torch has no quick gradient for strides in bfloat16: there it strides after."""
        weight = self.kernels[name].to(self.dtype)
        gain, bias = (self.tuned[f"{name}.{part}"].to(self.dtype)[:, None, None] for part in ("gain", "bias"))
        (top, bottom), (left, right) = (same_padding(size, kernel, stride) for size in x.shape[2:])
        if self.dtype == torch.float32:
            x = functional.pad(x, (left, right, top, bottom)) if top or bottom or left or right else x
            x = functional.conv2d(x, weight, stride=stride, groups=len(weight))
        else:
            x = functional.conv2d(x, weight, padding=kernel // 2, groups=len(weight))
            if stride > 1:
                x = x[:, :, kernel // 2 - top :: stride, kernel // 2 - left :: stride]
                x = x.contiguous(memory_format=torch.channels_last)
        return torch.addcmul(bias, x, gain)


def start(tensors: dict[str, NDArray[np.generic]], *, device: str) -> Tail:
    """Make a tail with the pretrained weights, normalisation folded in; the head is still empty."""
    kernels: dict[str, Any] = {}
    tuned: dict[str, Any] = {}
    for name, norm in _convolutions():
        get = {
            part: torch.from_numpy(np.array(tensors[part], np.float32)).to(device)
            for part in (f"{name}.weight", *(f"{norm}.{kind}" for kind in _NORM))
        }
        gamma, beta, mean, variance = (get[f"{norm}.{kind}"] for kind in _NORM)
        factor = gamma / torch.sqrt(variance + BATCH_NORM_EPSILON)
        weight = get[f"{name}.weight"] * factor[:, None, None, None]
        if name.endswith("_depthwise_conv"):
            kernels[name] = weight
            tuned[f"{name}.gain"] = torch.ones_like(beta)
        else:
            tuned[f"{name}.weight"] = weight.contiguous(memory_format=torch.channels_last)
        tuned[f"{name}.bias"] = beta - mean * factor
    width = 2 * sum(len(tuned[f"{name}.bias"]) for name in (f"_blocks.{_EXPANDED_AT}._expand_conv", "_conv_head"))
    zeros = torch.zeros(width, device=device)
    return Tail(kernels, tuned, zeros.clone(), zeros + 1, zeros.clone(), torch.zeros((), device=device))


_NORM = ("weight", "bias", "running_mean", "running_var")


def _convolutions() -> list[tuple[str, str]]:
    """Name every convolution of the tail and its normalisation."""
    parts = (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))
    named = [
        (f"_blocks.{index}.{convolution}", f"_blocks.{index}.{norm}")
        for index in range(FIRST_BLOCK, len(blocks()))
        for convolution, norm in parts
    ]
    return [*named, ("_conv_head", "_bn1")]


def step_seconds(
    tail: Tail, maps: NDArray[np.float16], labels: NDArray[np.bool_], chosen: NDArray[np.int64], *, device: str
) -> float:
    """Return what a step of tuning takes here, in seconds: the median of a few whose outcome is thrown away."""
    trial = tail.copy()
    trial.dtype = quickest_dtype(device)
    for tensor in trial.trainable():
        tensor.requires_grad_(requires_grad=True)
    batch = np.resize(chosen, BATCH)
    took = []
    for _ in range(UNTIMED_STEPS + TIMED_STEPS):
        began = perf_counter()
        _loss(trial, _tensor(maps[0, batch], device), labels[batch], torch.ones((), device=device)).backward()
        took.append(perf_counter() - began)
    return float(np.median(took[UNTIMED_STEPS:]))


def _loss(tail: Tail, maps: Any, labels: NDArray[np.bool_], heavier: Any) -> Any:
    target = torch.from_numpy(labels.astype(np.float32)).to(maps.device) * (1 - 2 * SMOOTHING) + SMOOTHING
    return functional.binary_cross_entropy_with_logits(tail.logits(maps), target, pos_weight=heavier)


def tune(
    tail: Tail,
    maps: NDArray[np.float16],
    labels: NDArray[np.bool_],
    chosen: NDArray[np.int64],
    *,
    seed: int,
    epochs: int,
    progress: Callable[[int, int], None],
    device: str,
    probe: Callable[[NDArray[np.float32], NDArray[np.bool_]], tuple[NDArray[np.float32], float]],
    checkpoint: Path | None = None,
) -> tuple[Tail, int]:
    """Fit the head on frozen features first, then tune everything; returns the averaged weights and the epochs.

    Parameters
    ----------
    maps
        ``(views, n, channels, h, w)`` float16 stride-8 maps of every view.
    chosen
        Indices of the images to train on.
    epochs
        How often each image is seen; see `step_seconds`.
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
    tail.dtype = quickest_dtype(device)
    per_epoch = max(math.ceil(len(chosen) / BATCH), 1)
    total, step = epochs * per_epoch, 0
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
            optimizer.zero_grad(set_to_none=True)
            _loss(tail, _tensor(maps[views, batch], device), labels[batch], heavier).backward()
            optimizer.step()
            step += 1
            _follow(average, tail, min(EMA, step / (step + 10)))
            progress(step, total)
        if checkpoint:
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
    """Return the tuned tensors by name, the head (centre, spread, weight), and its bias.

    The names are those of the pretrained weights; normalisation is one that changes nothing but adds the bias.
    """
    tensors: dict[str, NDArray[np.generic]] = {}
    for name, norm in _convolutions():
        weight = tail.tuned.get(f"{name}.weight")
        if weight is None:
            weight = tail.kernels[name] * tail.tuned[f"{name}.gain"][:, None, None, None]
        bias = _array(tail.tuned[f"{name}.bias"])
        tensors |= {f"{name}.weight": _array(weight), f"{norm}.bias": bias, f"{norm}.weight": np.ones_like(bias)}
        tensors |= {f"{norm}.running_mean": np.zeros_like(bias)}
        tensors |= {f"{norm}.running_var": np.full_like(bias, 1 - BATCH_NORM_EPSILON)}
    head = tuple(_array(part) for part in (tail.centre, tail.spread, tail.weight))
    return tensors, head, float(tail.bias.detach())


def _array(tensor: Any) -> NDArray[np.float32]:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())


def quickest_dtype(device: str) -> Any:
    """Return ``torch.bfloat16`` on a processor that multiplies its matrices in tiles, else ``torch.float32``."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.10 and later
    return torch.bfloat16 if device == "cpu" and capabilities.get("amx_bf16") else torch.float32


def pick_device() -> str:
    """Return ``cuda`` where there is a GPU, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def use_threads(count: int) -> None:
    """Limit torch to so many cores, and to oneDNN: NNPACK, which nothing here uses, fails in a sandbox in each step."""
    torch.set_num_threads(count)
    torch.backends.nnpack.set_flags(False)
