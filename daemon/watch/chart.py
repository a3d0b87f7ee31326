"""EWMA control charts: a slow mean of each figure, with limits that were learnt at commissioning.

Parts of one batch resemble each other, so single parts say little about how much the mean wanders. The wandering is
reckoned from the means of ten stretches of commissioning, and never taken for less than what matters in practice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

MEMORY_PARTS = 600
"""The mean forgets a part within about so many others."""

STRETCHES = 10
SIGMAS = 5.0
"""Ten stretches are few. Of 100 simulated lines whose batches differ by as much as their parts, and that had no floor,
27 cried wolf within 250 batches at 4.1 sigmas, 13 at 5, 8 at 6."""

CLEARED = 0.6
"""An alarm is over when the mean is back within this share of its limit."""

BEGAN = 0.5
"""A drift began when the mean was last within this share of its limit."""

_WEIGHT = 2.0 / (MEMORY_PARTS + 1)


@dataclass(frozen=True, slots=True)
class Limits:
    """What is normal: the mean of each figure, and how far the slow mean may be from it."""

    centre: Values
    limit: Values


def learn(samples: Values, floors: Values) -> Limits:
    """Learn limits from the parts of commissioning.

    Parameters
    ----------
    samples
        ``(parts, figures)``, at least `STRETCHES` parts.
    floors
        ``(figures,)``: what matters in practice; no limit is below.
    """
    parts = len(samples) - len(samples) % STRETCHES
    length = parts // STRETCHES
    means = samples[:parts].reshape(STRETCHES, length, -1).mean(axis=1)
    # Long-run variance of one part, so that the mean of n parts has it divided by n.
    variance = length * means.var(axis=0, ddof=1)
    wander = np.sqrt(variance * (_WEIGHT / (2 - _WEIGHT) + 1 / len(samples)))
    return Limits(samples.mean(axis=0), np.maximum(floors, SIGMAS * wander))


class Charts:
    """The slow means of all figures, and since when which of them is out of its limits.

    Attributes
    ----------
    deviation
        ``(figures,)``: the slow mean of each, relative to its centre.
    out
        ``(figures,)`` bool: beyond the limit, or not yet back.
    began_s
        ``(figures,)``: when each was last near its centre; seconds since 1970.
    """

    def __init__(self, limits: Limits, now_s: float) -> None:
        self.limits = limits
        self.deviation: Values = np.zeros_like(limits.centre)
        self.out = np.zeros(len(limits.centre), bool)
        self.began_s: Values = np.full(len(limits.centre), now_s)

    def see(self, values: Values, now_s: float) -> None:
        """Take in the figures of one part; one that is not a number leaves its mean as it was."""
        step = values - self.limits.centre - self.deviation
        self.deviation += _WEIGHT * np.where(np.isfinite(step), step, 0.0)
        away = np.abs(self.deviation) / self.limits.limit
        self.out = (away > 1.0) | (self.out & (away > CLEARED))
        self.began_s = np.where((away < BEGAN) & ~self.out, now_s, self.began_s)

    def resume(self, deviation: Values, out: NDArray[np.bool_], began_s: Values) -> None:
        """Go on where an earlier process stopped."""
        self.deviation, self.out, self.began_s = deviation.copy(), out.copy(), began_s.copy()
