"""Several fits side by side, each on one core: the libraries' own threads gain less and lose much on a busy machine."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def workers(threads: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """Give a pool of ``threads`` threads; meanwhile linear algebra keeps to the thread that asks for it.

    Two threads of a library that wait for each other by spinning stand still when something else needs a core: beside
    a busy line a fit of 13 s took 91 s.
    """
    with threadpool_limits(1), ThreadPoolExecutor(threads, thread_name_prefix=name) as pool:
        yield pool
