"""Several fits side by side, each on one core: the libraries' own threads gain less and lose much on a busy machine."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

Item = TypeVar("Item")
Found = TypeVar("Found")

BATCH = 32
"""Images that a thread takes at once: handing over one at a time costs as much as reading it."""


@contextmanager
def workers(threads: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """Give a pool of ``threads`` threads; meanwhile linear algebra keeps to the thread that asks for it.

    Two threads of a library that wait for each other by spinning stand still when something else needs a core: beside
    a busy line a fit of 13 s took 91 s.
    """
    with threadpool_limits(1), ThreadPoolExecutor(threads, thread_name_prefix=name) as pool:
        yield pool


def each(pool: ThreadPoolExecutor, function: Callable[[Item], Found], items: Sequence[Item]) -> list[Found]:
    """Call a function for every item; what it returns, in the order of the items."""
    batches = [items[start : start + BATCH] for start in range(0, len(items), BATCH)]
    return [found for part in pool.map(lambda batch: [function(item) for item in batch], batches) for found in part]


def sum_by_fold(
    pool: ThreadPoolExecutor,
    function: Callable[[int], NDArray[Any]],
    indices: NDArray[np.int64],
    folds: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Add up ``function(index)``, arrays of one shape, over the images of each fold; ``(folds, *shape)``.

    Parameters
    ----------
    indices
        The images that take part, at least one.
    folds
        ``(n,)`` the fold of every image, of those that do not take part as well.
    """
    number = int(folds.max()) + 1
    mine = [(fold, indices[folds[indices] == fold]) for fold in range(number)]
    batches = [(fold, some[start : start + BATCH]) for fold, some in mine for start in range(0, len(some), BATCH)]

    def add(batch: tuple[int, NDArray[np.int64]]) -> NDArray[np.float64]:
        first, *others = batch[1].tolist()
        total = function(first).astype(np.float64)
        for index in others:
            total += function(index)
        return total

    parts = pool.map(add, batches)
    first = next(parts)
    totals = np.zeros((number, *first.shape))
    totals[batches[0][0]] = first
    for (fold, _), part in zip(batches[1:], parts, strict=True):
        totals[fold] += part
    return totals
