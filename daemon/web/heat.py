"""Heat-maps on demand, in a process of its own with low priority that ends when nobody asks any more.

A process for itself because ONNX Runtime does not give memory back when another model is loaded.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections import OrderedDict
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lineward.images import ImageFileError, read_image

if TYPE_CHECKING:
    from lineward.models.session import Session

IDLE_S = 120.0
MOST_KEPT = 500
NICE = 15

_session: tuple[str, Session] | None = None


class HeatMaps:
    """Computes heat-maps one after the other and remembers the last ones."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self._model = ""
        self._kept: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._lock = asyncio.Lock()
        self._idle: asyncio.TimerHandle | None = None

    async def png(self, model: Path, picture: Path) -> bytes:
        """Return the heat-map of a model for a picture as a transparent PNG.

        Raises
        ------
        ValueError
            Model or picture cannot be used; the message says why.
        """
        key = (str(model), str(picture))
        async with self._lock:
            if key in self._kept:
                return self._kept[key]
            if self._model != key[0]:
                self.close()
            if self._pool is None:
                context = multiprocessing.get_context("spawn")
                self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=_begin)
                self._model = key[0]
            if self._idle is not None:
                self._idle.cancel()
            loop = asyncio.get_running_loop()
            self._idle = loop.call_later(IDLE_S, self.close)
            try:
                data = await loop.run_in_executor(self._pool, _heat, *key)
            except (OSError, RuntimeError) as error:  # the process was killed, or cannot be started
                self.close()
                raise ValueError(f"the heat-map could not be computed: {error}; try again") from error
            self._kept[key] = data
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
            return data

    def close(self) -> None:
        """End the process."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool, self._model = None, ""


def _begin() -> None:
    with suppress(OSError):
        os.nice(NICE)


def _heat(model: str, picture: str) -> bytes:
    """Judge one picture in the process of our own."""
    global _session  # noqa: PLW0603 - the process is there for this one model
    from lineward.daemon.web.pictures import heat_png  # noqa: PLC0415
    from lineward.models.session import Session  # noqa: PLC0415

    if _session is None or _session[0] != model:
        _session = (model, Session(Path(model), intra_op_threads=1))
    session = _session[1]
    try:
        heatmap = session.judge(read_image(Path(picture))).heatmap
    except ImageFileError as error:
        raise ValueError(str(error)) from error
    if heatmap is None:
        raise ValueError("this model draws no heat-map")
    return heat_png(heatmap, session.manifest.input.roi)
