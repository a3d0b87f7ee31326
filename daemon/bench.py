"""`lineward bench`: what the line costs around `session.run`, and what is left of a bare ONNX Runtime loop's speed."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lineward.daemon import allocator
from lineward.daemon.broker import EmbeddedBroker, broker_config
from lineward.daemon.config import Config, ConfigError, load_config
from lineward.daemon.line import Line
from lineward.daemon.loop import inspect
from lineward.daemon.service import SWITCH_S
from lineward.models.session import Session
from lineward.models.store import resolve_model

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lineward.daemon.loop import Heart
    from lineward.daemon.result import Result
    from lineward.daemon.triggers import Part

STAGES = ("grab", "prepare", "infer", "decide", "record", "publish", "total")
WARM_UP = 20
NO_DEADLINE_MS = 1e9
BLOCKS = 6
"""Line and bare loop run in turns, so that a machine that slows down meanwhile slows both."""


def run_bench(config_path: Path | None, *, frames: int, width: int, height: int) -> dict[str, Any]:
    """Inspect ``frames`` frames as fast as they are taken, in turns with a bare loop on the same session.

    Everything is the real thing: camera process, ring, loop, ledger on disk, outbox and an MQTT broker. ``grab`` is
    the time to take over a frame that is there; waiting for a camera is not counted. ``overhead`` is a frame's whole
    time in the loop less ``session.run``.

    Raises
    ------
    ConfigError
        The configuration cannot be used, or its folder has too few pictures.
    BundleError
        The model cannot be used.
    """
    sys.setswitchinterval(SWITCH_S)  # as the service does
    allocator.keep_flat()
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lineward-bench-")))
        broker = stack.enter_context(EmbeddedBroker())
        config = _config(config_path, root, broker, width, height)
        stop = threading.Event()
        line = Line(config, stop, stack)
        recipe = replace(line.recipes.prepare(line.recipe), deadline_ms=NO_DEADLINE_MS)
        line.start()
        line.use(recipe)
        if not line.source.wait_open():
            raise RuntimeError("the camera did not open")
        blocks = [frames // BLOCKS + (block < frames % BLOCKS) for block in range(BLOCKS)]
        meter = Meter(iter(line.source), line, wanted=WARM_UP + frames)
        line.answers.pulse = meter
        session = recipe.session
        assert isinstance(session, Session)

        def inspect_frames(count: int) -> float:
            meter.allow(count)
            began = time.perf_counter()
            inspect(meter, line.answers, review=line.review, heart=meter, alarms=line.alarms, watch=line.watch)
            return time.perf_counter() - began

        inspect_frames(WARM_UP)
        prepared = session.prepare(meter.last_image)
        bare_loop(session, prepared, WARM_UP)
        meter.clear()
        line_s = bare_s = 0.0
        for count in filter(None, blocks):
            line_s += inspect_frames(count)
            bare_s += bare_loop(session, prepared, count)
        shape = meter.last_image.shape
        rss = rss_mb(line.camera.pid)
        return report(meter, frames=frames, shape=shape, line_s=line_s, bare_s=bare_s, rss=rss)


def is_held_up(figures: dict[str, Any]) -> bool:
    """Tell from the figures whether the line waited for the camera most of the time."""
    return bool(figures["fps"] < 0.5 * figures["ratio_to_bare_ort"] * figures["bare_ort_fps"])


class Meter:
    """Stands between camera and loop and takes the times of both ends of each round; ``wanted`` frames in all."""

    def __init__(self, parts: Iterator[Part], heart: Heart, *, wanted: int) -> None:
        self._parts = parts
        self._heart = heart
        self._wanted = wanted
        self._came = 0
        self._result: Result | None = None
        self._allowed = 0
        self._began_ns = 0
        self._grab_ms = 0.0
        self.waited_s = 0.0
        self.rounds: list[dict[str, float]] = []
        self.overhead_ms: list[float] = []
        self.last_image: NDArray[np.uint8] = np.zeros((1, 1), np.uint8)

    def allow(self, count: int) -> None:
        """Let the next ``count`` frames pass."""
        self._allowed = count

    def clear(self) -> None:
        """Forget what was measured so far."""
        self.rounds.clear()
        self.overhead_ms.clear()
        self.waited_s = 0.0

    def __iter__(self) -> Iterator[Part]:
        """Yield parts; time spent waiting for the camera is left out."""
        for _ in range(self._allowed):
            asked_ns = time.monotonic_ns()
            part = next(self._parts, None)
            if part is None:  # a replay has ended; nothing else does here
                raise ConfigError(
                    f"the camera's folder ended after {self._came} pictures, the bench needs {self._wanted}: write "
                    "loop = true under [camera], add pictures, or ask for fewer --frames"
                )
            self._came += 1
            frame = part.frame
            assert frame is not None
            self._began_ns = max(asked_ns, frame.received_ns)
            self.waited_s += (self._began_ns - asked_ns) / 1e9
            self._grab_ms = (time.monotonic_ns() - self._began_ns) / 1e6
            self.last_image = frame.image
            yield part

    def count(self, result: Result) -> None:
        """Keep what one answer says about its own time."""
        self._result = result

    def beat(self) -> None:
        """Take the round's end: the loop calls it last."""
        self._heart.beat()
        if self._result is None:
            return
        result, self._result = self._result, None
        total_ms = (time.monotonic_ns() - self._began_ns) / 1e6
        latency = result.latency
        self.rounds.append(
            {
                "grab": self._grab_ms,
                "prepare": latency.prepare,
                "infer": latency.infer,
                "decide": latency.decide,
                "record": latency.record,
                "publish": latency.publish,
                "total": total_ms,
            }
        )
        self.overhead_ms.append(total_ms - latency.infer)


def bare_loop(session: Session, prepared: NDArray[np.uint8], count: int) -> float:
    """Run the graph ``count`` times on one prepared image and nothing else; return seconds."""
    began = time.perf_counter()
    for _ in range(count):
        session.run(prepared)
    return time.perf_counter() - began


def report(
    meter: Meter, *, frames: int, shape: tuple[int, ...], line_s: float, bare_s: float, rss: float
) -> dict[str, Any]:
    """Put the figures together as ``lineward bench --json`` prints them.

    ``fps`` is what came through, also where the camera gives no more; the ratio leaves out waiting for the camera.
    """
    stages = {}
    for stage in STAGES:
        p50, p99, p999 = np.quantile([times[stage] for times in meter.rounds], [0.5, 0.99, 0.999])
        stages[stage] = {"p50_ms": round(p50, 3), "p99_ms": round(p99, 3), "p999_ms": round(p999, 3)}
    return {
        "frames": frames,
        "width": shape[1],
        "height": shape[0],
        "stages": stages,
        "fps": round(frames / line_s, 2),
        "bare_ort_fps": round(frames / bare_s, 2),
        "ratio_to_bare_ort": round(bare_s / (line_s - meter.waited_s), 3),
        "overhead_p99_ms": round(float(np.quantile(meter.overhead_ms, 0.99)), 3),
        "rss_mb": round(rss, 1),
    }


def print_report(figures: dict[str, Any]) -> None:
    """Print the figures as a table."""
    from rich.console import Console  # noqa: PLC0415 - not in the memory that is measured
    from rich.table import Table  # noqa: PLC0415

    table = Table("stage", "p50 ms", "p99 ms", "p99.9 ms", title=f"{figures['width']} x {figures['height']}")
    for stage, times in figures["stages"].items():
        table.add_row(stage, *(f"{ms:.3f}" for ms in times.values()))
    console = Console()
    console.print(table)
    ratio, bare = figures["ratio_to_bare_ort"], figures["bare_ort_fps"]
    if is_held_up(figures):
        console.print(f"{figures['fps']} frames/s, as many as the camera gives")
        console.print(f"at work, the line runs at {ratio:.2f} of a bare ONNX Runtime loop ({bare} frames/s)")
    else:
        console.print(
            f"{figures['fps']} frames/s, {ratio:.2f} of the {bare} of a bare ONNX Runtime loop in the same run"
        )
    console.print(
        f"around session.run: p99 {figures['overhead_p99_ms']} ms; both processes together {figures['rss_mb']} MB"
    )


def rss_mb(camera_pid: int | None) -> float:
    """Return the resident size of this process and the camera process in megabytes; the ring counts in both."""
    total = 0
    for pid in (os.getpid(), camera_pid):
        for row in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines() if pid else ():
            if row.startswith("VmRSS:"):
                total += int(row.split()[1])
    return total / 1024


def _config(path: Path | None, root: Path, broker: EmbeddedBroker, width: int, height: int) -> Config:
    """Bench a station's own camera and model, or a simulated camera; storage and broker are the bench's own.

    The model is looked up in the station's own store. The camera runs freely, for nobody gives triggers here.
    """
    own: dict[str, Any] = {"mqtt": broker_config(broker), "storage": {"root": str(root)}}
    if path is not None:
        config = load_config(path)
        trigger = config.camera.trigger
        if trigger != "free_run":
            sys.stderr.write(f"lineward: the bench lets the camera run freely, without its {trigger} trigger\n")
        model = resolve_model(config.storage.root, config.inspection.model)
        own["camera"] = config.camera.model_copy(update={"trigger": "free_run"}).model_dump()
        own["inspection"] = config.inspection.model_copy(update={"model": model}).model_dump()
        own["recipes"] = {}  # none is changed over to
        return Config.model_validate({**config.model_dump(), **own})
    from lineward.daemon.demo import ensure_model  # noqa: PLC0415 - a bench of a station's own needs no demo
    from lineward.daemon.progress import cache_dir  # noqa: PLC0415

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:  # its memory is not the line's
        model = pool.submit(ensure_model, cache_dir() / "demo", "bracket", quiet=False).result()
    camera = {
        "driver": "simulated",
        "width": width,
        "height": height,
        "rate_hz": 0,
        "prerender": 2,  # measure the line and not the renderer
    }
    return Config.model_validate({"camera": camera, "inspection": {"model": str(model)}, **own})
