"""Several fits side by side, each on one core: the libraries' own threads gain less and lose much on a busy machine."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

Item = TypeVar("Item")
Found = TypeVar("Found")

GROUP = 8
"""Images that a thread takes at once: one at a time, handing over and taking turns cost as much as the work."""


@contextmanager
def limit_threads(threads: int) -> Iterator[None]:
    """Let linear algebra use so many threads."""
    with threadpool_limits(threads):
        yield


@contextmanager
def workers(threads: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """Give a pool of ``threads`` threads; meanwhile linear algebra keeps to the thread that asks for it.

    Two threads of a library that wait for each other by spinning stand still when something else needs a core: beside
    a busy line a fit of 13 s took 91 s.
    """
    with limit_threads(1), ThreadPoolExecutor(threads, thread_name_prefix=name) as pool:
        yield pool


def each(
    pool: ThreadPoolExecutor, function: Callable[[Sequence[Item]], Iterable[Found]], items: Sequence[Item]
) -> list[Found]:
    """Call a function for groups of items; what it returns for each item, in their order."""
    groups = [items[start : start + GROUP] for start in range(0, len(items), GROUP)]
    return [found for part in pool.map(function, groups) for found in part]


def sum_by_fold(
    pool: ThreadPoolExecutor,
    function: Callable[[Sequence[int]], NDArray[np.float32]],
    indices: NDArray[np.int64],
    folds: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Add up ``function(some indices)``, arrays of one shape, over the images of each fold; ``(folds, *shape)``.

    Parameters
    ----------
    function
        Gives the sum over a few images.
    indices
        The images that take part, at least one.
    folds
        ``(n,)`` the fold of every image, of those that do not take part as well.
    """
    number = int(folds.max()) + 1
    mine = [(fold, indices[folds[indices] == fold].tolist()) for fold in range(number)]
    groups = [(fold, some[start : start + GROUP]) for fold, some in mine for start in range(0, len(some), GROUP)]
    totals: NDArray[np.float64] | None = None
    for (fold, _), part in zip(groups, pool.map(lambda group: function(group[1]), groups), strict=True):
        if totals is None:
            totals = np.zeros((number, *part.shape))
        totals[fold] += part
    assert totals is not None, "no image takes part"
    return totals
