"""Tune networks so that every part that judges one was unknown to it, within a limit of time.

With time enough the parts are divided into three: each third is judged by a network that was tuned on the others, and
the network that is deployed is tuned on all of them. A slow machine keeps a fold of parts away from one network, which
is judged by them and deployed.
"""

from __future__ import annotations

import hashlib
import math
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from lineward import __version__
from lineward.models.backbone import LITE0_SHA256
from lineward.models.folds import grouped_folds
from lineward.models.tuned_net import load_tail

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from lineward.models.prepare import InputSpec

THIRDS = 3
LEAST_EPOCHS, MOST_EPOCHS = 2, 16
ENOUGH_STEPS, MOST_STEPS = 120, 200
"""Of the network that knows every part: wanted before others judge for it, and where tuning ends with time left.

110 steps were better than 220 on one split of mtd and worse on another (docs/decisions/0013).
"""
PROBE_C = 0.01


@dataclass(frozen=True, slots=True)
class Plan:
    """Which parts judge, ``(n,)`` bool for each network that is tuned without them, and for how many epochs."""

    apart: tuple[NDArray[np.bool_], ...]
    epochs: int

    @property
    def crossed(self) -> bool:
        """Whether every part judges: then the network that is deployed is another one, tuned on all."""
        return len(self.apart) > 1

    @property
    def judged(self) -> NDArray[np.bool_]:
        """``(n,)``, the images that have a score of a network that did not know their part."""
        return np.asarray(np.any(self.apart, axis=0), bool)


def plan_tuning(
    held: NDArray[np.bool_],
    labels: NDArray[np.bool_],
    groups: NDArray[np.int64],
    seed: int,
    *,
    step_s: float,
    seconds: float,
    batch: int,
) -> Plan:
    """Divide parts and time, from the seconds that a step takes; ``held`` are the parts that judge a single network."""
    folds = grouped_folds(labels, groups, seed, most=THIRDS)
    thirds = tuple(folds == fold for fold in range(int(folds.max()) + 1))
    whole = _steps(len(labels), batch)
    enough = min(math.ceil(ENOUGH_STEPS / whole), MOST_EPOCHS)
    most = min(max(MOST_STEPS // whole, enough), MOST_EPOCHS)
    crossed = sum(_steps(int((~third).sum()), batch) for third in thirds) + whole
    epochs = int(seconds / (step_s * crossed))
    if len(thirds) == THIRDS and epochs >= enough:
        return Plan(thirds, min(epochs, most))
    epochs = int(seconds / (step_s * _steps(int((~held).sum()), batch)))
    return Plan((held,), min(max(epochs, LEAST_EPOCHS), most))


def _steps(images: int, batch: int) -> int:
    return max(math.ceil(images / batch), 1)


def keep_from_tuning(labels: NDArray[np.bool_], groups: NDArray[np.int64], seed: int) -> NDArray[np.bool_] | None:
    """Choose a fold of parts, or more where one has fewer than two parts of either kind: its halves judge each other.

    Returns ``(n,)`` bool, or None when nothing would be left to tune with.
    """
    folds = grouped_folds(labels, groups, seed)
    for count in range(1, int(folds.max()) + 1):
        held = folds < count
        kinds = (labels, ~labels)
        if all(len(set(groups[held & kind].tolist())) >= 2 and (kind & ~held).any() for kind in kinds):
            return held
    return None


@dataclass(frozen=True, slots=True)
class Tuning:
    """One training's tuning: the maps ``(views, n, channels, h, w)``, what they show, and where it may be gone on from.

    ``key`` names the images, parts and recipe that a checkpoint in ``folder`` belongs to.
    """

    maps: NDArray[np.float16]
    labels: NDArray[np.bool_]
    untuned: Any
    device: str
    seed: int
    folder: Path
    key: str

    def step_seconds(self) -> float:
        """Return what a step takes on this machine."""
        rows = np.arange(len(self.labels))
        return float(load_tail().step_seconds(self.untuned, self.maps, self.labels, rows, device=self.device))

    def run(
        self, plan: Plan, progress: Callable[[str, int, int], None]
    ) -> tuple[NDArray[np.float64], Callable[[], Any], int]:
        """Tune as planned; ``progress`` is told of the stages ``tune`` and ``tune on all``.

        Returns
        -------
        scores
            ``(n,)``; of the images that judge, by networks that did not know their parts, else NaN.
        deployed
            Gives the network to deploy; calling it may mean to tune that one.
        epochs
            For how many epochs they were tuned: those of a checkpoint where there was one.
        """
        tail = load_tail()
        rows = np.arange(len(self.labels))
        steps = [_steps(int((~apart).sum()), tail.BATCH) * plan.epochs for apart in plan.apart]
        scores = np.full(len(rows), np.nan)
        net, epochs = None, plan.epochs
        for number, apart in enumerate(plan.apart):
            before = sum(steps[:number])

            def count(done: int, _total: int, before: int = before) -> None:
                progress("tune", before + done, sum(steps))

            net, epochs = self._tune(rows[~apart], plan.epochs, count, f"{len(steps)}-{number}")
            scores[apart] = tail.scores(net, self.maps[0], rows[apart], device=self.device)
        if not plan.crossed:
            return scores, lambda: net, epochs
        counted = partial(progress, "tune on all")
        return scores, lambda: self._tune(rows, plan.epochs, counted, "all")[0], epochs

    def _tune(
        self, chosen: NDArray[np.int64], epochs: int, progress: Callable[[int, int], None], name: str
    ) -> tuple[Any, int]:
        net, done = load_tail().tune(
            self.untuned.copy(),
            self.maps,
            self.labels,
            chosen,
            seed=self.seed,
            epochs=epochs,
            progress=progress,
            device=self.device,
            probe=_probe,
            checkpoint=self.folder / f"{self.key}-{name}.pt",
        )
        return net, int(done)

    def forget(self) -> None:
        """Remove the checkpoints: the model is written."""
        for path in self.folder.glob(f"{self.key}-*.pt"):
            with suppress(OSError):  # it is removed when it is old
                path.unlink()


def tuning_key(digest: str, groups: NDArray[np.int64], spec: InputSpec, seed: int, seconds: float) -> str:
    """Name what a killed tuning is gone on with: the same images, parts, recipe and time only."""
    parts = hashlib.sha256(groups.tobytes()).hexdigest()
    recipe = f"{__version__}|{LITE0_SHA256}|{spec.model_dump_json()}|{seed}|{seconds}"
    return hashlib.sha256(f"{digest}|{parts}|{recipe}".encode()).hexdigest()[:24]


def _probe(features: NDArray[np.float32], labels: NDArray[np.bool_]) -> tuple[NDArray[np.float32], float]:
    model = LogisticRegression(C=PROBE_C, class_weight="balanced", max_iter=300)
    model.fit(features.astype(np.float64), labels)
    return model.coef_[0].astype(np.float32), float(model.intercept_[0])
