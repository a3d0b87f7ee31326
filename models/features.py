"""Features of images: pooled statistics and a grid of patches, computed by an ONNX graph and cached by content."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
from onnx import TensorProto

from lineward import __version__
from lineward.images import ImageFileError, decode_image
from lineward.models.graph import Graph
from lineward.models.prepare import prepare

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from lineward.models.backbone import Backbone, Tap
    from lineward.models.prepare import InputSpec

log = logging.getLogger("lineward.models")

FEATURES_VERSION = 4
"""Part of the cache key: raise it when what follows the backbone changes."""

FLIPS: dict[str, tuple[int, ...]] = {"none": (), "horizontal": (1,), "vertical": (0,), "both": (0, 1)}
"""Name of a mirrored view to the axes that are reversed."""

SMOOTHING = 3
"""Cells along each axis that are averaged before the largest is taken: one cell alone is often noise."""
FINE_STRIDE = 8
"""Up to this stride a defect may be smaller than the averaged cells, so the single largest value is kept as well."""

_VARIANCE_FLOOR = 1e-6


@dataclass(frozen=True, slots=True)
class Layout:
    """What the feature graph gives: ``pooled`` numbers, and ``rows * columns`` patches of ``depth`` numbers.

    The deep grid, the coarsest map of the backbone, has ``deep_cells`` patches of ``deep_depth`` numbers.
    """

    pooled: int
    rows: int
    columns: int
    depth: int
    deep_cells: int
    deep_depth: int


@dataclass(frozen=True, slots=True)
class FeatureTensors:
    """Names of the tensors ``pooled`` (N, pooled), ``patches`` (N, rows * columns, depth), ``deep``, and their layout.

    ``deep`` is (N, deep_cells, deep_depth).
    """

    pooled: str
    patches: str
    deep: str
    layout: Layout
    taps: tuple[Tap, ...]


def append_features(graph: Graph, backbone: Backbone, spec: InputSpec) -> FeatureTensors:
    """Add input, backbone and feature statistics to a graph.

    Every tap is pooled to the mean, the largest average of three by three neighbours, and the standard deviation over
    its map, a fine one to its single largest value as well (docs/decisions/0021). Patches join the narrowest maps at
    strides 8 and 16 on the grid of stride 16.
    """
    image = graph.input("image", "uint8", ("N", spec.height, spec.width, spec.channels))
    taps = backbone.append(graph, image, height=spec.height, width=spec.width, channels=spec.channels)
    pooled = graph.op("Concat", *(part for tap in taps for part in _pool(graph, tap)), axis=1, hint="pooled_features")
    size = sum(tap.channels * (4 if tap.stride <= FINE_STRIDE else 3) for tap in taps)
    coarse, fine = _narrowest(taps, 16), _narrowest(taps, 8)
    maps = graph.op("Concat", _halve(graph, fine), coarse.tensor, axis=1, hint="patch_maps")
    depth = coarse.channels + fine.channels
    deepest = _narrowest(taps, max(tap.stride for tap in taps))
    layout = Layout(size, coarse.height, coarse.width, depth, deepest.height * deepest.width, deepest.channels)
    patches = _cells(graph, maps, depth, coarse.height * coarse.width, "patch_features")
    deep = _cells(graph, deepest.tensor, layout.deep_depth, layout.deep_cells, "deep_features")
    return FeatureTensors(pooled, patches, deep, layout, tuple(taps))


def _cells(graph: Graph, maps: str, depth: int, count: int, name: str) -> str:
    """Turn maps (N, depth, rows, columns) into (N, count, depth), rounded to half precision.

    The cache keeps half precision. Rounding here as well makes what was fitted exactly what runs.
    """
    flat = graph.op("Reshape", maps, graph.constant([-1, depth, count], name + ".shape"), hint=name + ".columns")
    cells = graph.op("Transpose", flat, perm=[0, 2, 1], hint=name)
    half = graph.op("Cast", cells, to=TensorProto.FLOAT16, hint=name + ".half")
    return graph.op("Cast", half, to=TensorProto.FLOAT, hint=name + ".rounded")


def _pool(graph: Graph, tap: Tap) -> list[str]:
    flat_shape = graph.constant([0, 0, -1], tap.name + ".flat_shape")
    flat = graph.op("Reshape", tap.tensor, flat_shape, hint=tap.name + ".flat")
    mean = graph.op("ReduceMean", flat, axes=[2], keepdims=1, hint=tap.name + ".mean")
    centred = graph.op("Sub", flat, mean, hint=tap.name + ".centred")
    variance = graph.op("ReduceMean", graph.op("Mul", centred, centred), axes=[2], keepdims=0, hint=tap.name + ".var")
    deviation = graph.op("Sqrt", graph.op("Add", variance, graph.constant(_VARIANCE_FLOOR, "floor")))
    window = [min(SMOOTHING, tap.height), min(SMOOTHING, tap.width)]
    smooth = graph.op("AveragePool", tap.tensor, kernel_shape=window, strides=[1, 1], hint=tap.name + ".smooth")
    found = [graph.op("Squeeze", mean, graph.constant([2], "axis")), _largest(graph, smooth), deviation]
    return [*found, _largest(graph, tap.tensor)] if tap.stride <= FINE_STRIDE else found


def _largest(graph: Graph, maps: str) -> str:
    """Take the largest value of maps; this operator reads them in the layout that convolutions leave behind."""
    return graph.op("Squeeze", graph.op("GlobalMaxPool", maps), graph.constant([2, 3], "axes"), hint=maps + ".max")


def _narrowest(taps: Sequence[Tap], stride: int) -> Tap:
    fitting = [tap for tap in taps if tap.stride == stride]
    if not fitting:
        raise ValueError(f"the backbone has no tap at stride {stride}")
    return min(fitting, key=lambda tap: tap.channels)


def _halve(graph: Graph, tap: Tap) -> str:
    pads = [0, 0, tap.height % 2, tap.width % 2]
    return graph.op("AveragePool", tap.tensor, kernel_shape=[2, 2], strides=[2, 2], pads=pads, count_include_pad=0)


@dataclass(frozen=True, slots=True)
class Source:
    """An image file and the SHA-256 of its bytes, hexadecimal."""

    path: Path
    digest: str


def is_there(source: Source) -> bool:
    """Tell whether a file still has the content it had; images of a base may have been moved or overwritten."""
    try:
        return hashlib.sha256(source.path.read_bytes()).hexdigest() == source.digest
    except OSError:
        return False


def read_source(source: Source) -> NDArray[np.uint8]:
    """Read an image as `lineward.images.read_image` does, unless another one lies in its place by now.

    Raises
    ------
    ImageFileError
        The file is gone or has another content than the one that was labelled, or cannot be decoded.
    """
    remedy = "put it back, or give the folder that the base was trained from with --base-data"
    try:
        data = source.path.read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise ImageFileError(f"{source.path}: the image cannot be read any more: {reason}; {remedy}") from error
    if hashlib.sha256(data).hexdigest() != source.digest:
        raise ImageFileError(f"{source.path}: the image has changed since it was labelled; {remedy}")
    return decode_image(data, str(source.path))


@dataclass(frozen=True, slots=True)
class _Part:
    suffix: str
    dtype: np.dtype[Any]


_POOLED = _Part(".pooled", np.dtype("<f4"))
_PATCHES = _Part(".patches", np.dtype("<f2"))
_DEEP = _Part(".deep", np.dtype("<f2"))


class FeatureStore:
    """Features of files, each computed once and kept in a folder by content, backbone and preparation.

    Parameters
    ----------
    folder
        Where records are kept; they are written whole or not at all, so that a killed training leaves nothing broken.
    threads
        Images worked on at the same time, each on one core: one and a half times the throughput of one image on two.
    """

    def __init__(self, backbone: Backbone, spec: InputSpec, folder: Path, *, threads: int = 2) -> None:
        graph = Graph()
        tensors = append_features(graph, backbone, spec)
        layout = tensors.layout
        graph.output("pooled", tensors.pooled, ("N", layout.pooled))
        graph.output("patches", tensors.patches, ("N", layout.rows * layout.columns, layout.depth))
        graph.output("deep", tensors.deep, ("N", layout.deep_cells, layout.deep_depth))
        self._model = graph.model("features", __version__).SerializeToString()
        self._spec = spec
        self._threads = threads
        self._session: Any = None
        self._lock = threading.Lock()
        key = f"{FEATURES_VERSION}|{backbone.name}|{backbone.digest}|{spec.model_dump_json()}"
        self._folder = folder / "features" / hashlib.sha256(key.encode()).hexdigest()[:24]
        self.layout = layout
        self._shapes = {
            _POOLED.suffix: (layout.pooled,),
            _PATCHES.suffix: (layout.rows * layout.columns, layout.depth),
            _DEEP.suffix: (layout.deep_cells, layout.deep_depth),
        }

    @property
    def threads(self) -> int:
        """Images worked on at the same time."""
        return self._threads

    def extract(
        self, sources: Sequence[Source], *, flip: str = "none", progress: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float32]:
        """Return pooled features, computing and keeping those that are not there yet.

        Parameters
        ----------
        sources
            The images, in the order of the result.
        flip
            A key of `FLIPS`: which mirrored view of the prepared image to take.
        progress
            Called with how many of how many images are done, from this thread.

        Returns
        -------
        numpy.ndarray
            ``(len(sources), layout.pooled)`` float32.

        Raises
        ------
        ImageFileError
            A file whose features are not in the cache cannot be read, or has changed.
        """
        pooled = np.empty((len(sources), self.layout.pooled), np.float32)
        with ThreadPoolExecutor(self._threads, thread_name_prefix="features") as pool:
            # A batch at a time: an error stops the work soon, and no more than a batch waits in memory.
            for start in range(0, len(sources), 64):
                batch = sources[start : start + 64]
                rows = pooled[start : start + len(batch)]
                for _ in pool.map(lambda source, row: self._get(source, flip, _POOLED, row), batch, rows):
                    pass
                if progress:
                    progress(start + len(batch), len(sources))
        return pooled

    def cells(self, sources: Sequence[Source], *, deep: bool) -> NDArray[np.float32]:
        """Return patches ``(images, cells, depth)``, of the deep grid or of the fine one; any thread."""
        part = _DEEP if deep else _PATCHES
        shape = self._shapes[part.suffix]
        kept = np.empty((len(sources), int(np.prod(shape))), part.dtype)
        for row, source in zip(kept, sources, strict=True):
            self._get(source, "none", part, row)
        return widen(kept).reshape(len(sources), *shape)

    def _get(self, source: Source, flip: str, part: _Part, row: NDArray[Any]) -> None:
        """Fill ``row`` from the file, or compute and keep all parts; a file of another length is not believed."""
        path = f"{self._folder}/{source.digest[:2]}/{source.digest}.{flip}"
        with suppress(FileNotFoundError), Path(path + part.suffix).open("rb", buffering=0) as file:
            if file.readinto(row.data) == row.nbytes and not file.read(1):
                return
        computed = self._compute(source, flip)
        for each, values in zip((_POOLED, _PATCHES, _DEEP), computed, strict=True):
            array = values.astype(each.dtype)
            write_whole(Path(path + each.suffix), array.tobytes())
            if each is part:
                row[:] = array.ravel()

    def _compute(self, source: Source, flip: str) -> list[NDArray[np.float32]]:
        prepared = prepare(read_source(source), self._spec)
        prepared = np.flip(prepared, FLIPS[flip]) if FLIPS[flip] else prepared
        return self._run(np.ascontiguousarray(prepared)[np.newaxis])

    def _run(self, batch: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        with self._lock:
            if self._session is None:  # only now: a refit on cached features never needs it
                self._session = one_thread(self._model)
        return list(self._session.run(None, {"image": batch}))


def widen(halves: NDArray[np.float16]) -> NDArray[np.float32]:
    """Turn half into single precision, ``(n, d)``: ONNX Runtime does it thirteen times as fast as numpy.

    A few images at a time: it keeps as much memory as its largest result took.
    """
    (widened,) = _widening().run(None, {"halves": halves})
    return np.asarray(widened, np.float32)


@cache
def _widening() -> Any:
    graph = Graph()
    halves = graph.input("halves", "float16", ("N", "D"))
    graph.output("values", graph.op("Cast", halves, to=TensorProto.FLOAT), ("N", "D"))
    return one_thread(graph.model("widen", __version__).SerializeToString())


def one_thread(model: bytes) -> Any:
    """Open a graph for several threads to run, each on its own core."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


_FULL = {errno.ENOSPC, errno.EDQUOT}
_full_said = threading.Lock()
"""Kept by the first thread that finds the disk full: one warning is enough."""


def write_whole(path: Path, data: bytes) -> None:
    """Write a file of the cache whole or not at all; its folder is made.

    On a full disk the file is not kept, and the first one is a warning: a cache only saves time.

    Raises
    ------
    OSError
        The file cannot be written for another reason.
    """
    try:
        _write_whole(path, data)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        if _full_said.acquire(blocking=False):
            log.warning(
                "%s: %s: nothing more is kept there, and what is needed again is computed again, which takes several "
                "times as long; make room, or choose another disk with XDG_CACHE_HOME",
                path.parent,
                error.strerror,
            )


def _write_whole(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".partial-")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
