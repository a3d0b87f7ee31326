"""The tuned network as a part of a model: its score, its nodes in the graph, and the maps that it begins with."""

from __future__ import annotations

import math
import os
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from lineward import __version__
from lineward.extras import how_to_add
from lineward.models.dataset import DatasetError
from lineward.models.features import FLIPS, append_features, read_source
from lineward.models.graph import Graph
from lineward.models.prepare import prepare

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from lineward.models.backbone import EfficientNetLite0
    from lineward.models.features import FeatureTensors, Source
    from lineward.models.prepare import InputSpec

TUNED = "tuned"
"""Its name among the scores that a model adds up."""
EARLY = "stride8"
"""The map that the tuned part begins behind."""


class TorchMissingError(ValueError):
    """The full tier needs torch."""


def load_tail() -> Any:
    """Import `lineward.models.tail`, the one file that needs torch; `TorchMissingError` says how to get it.

    Torch's threads are told to sleep while they wait for each other, unless the environment says otherwise. Spinning
    saves a tenth of a step on an idle machine, but beside one busy process a step took 3.2 s instead of 1.5.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded
    try:
        from lineward.models import tail  # noqa: PLC0415 - torch is an extra
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] == "torch":
            raise TorchMissingError(
                "--tier full needs torch, which is not installed; install it with "
                f"`{how_to_add('torch')}`, or use --tier quick"
            ) from error
        raise
    return tail


@dataclass(frozen=True, slots=True)
class TunedNet:
    """The tuned network: tensors by name, head ``(centre, spread, weight)`` on mean and maximum, and its bias."""

    backbone: EfficientNetLite0
    spec: InputSpec
    tensors: dict[str, NDArray[np.generic]]
    head: tuple[NDArray[np.float32], ...]
    bias: float
    trained: Any
    device: str

    @classmethod
    def of(cls, trained: Any, backbone: EfficientNetLite0, spec: InputSpec, device: str) -> TunedNet:
        """Take over a tuned `lineward.models.tail.Tail`."""
        tensors, head, bias = load_tail().to_numpy(trained)
        return cls(backbone, spec, tensors, head, bias, trained, device)

    def score(self, sources: Sequence[Source]) -> NDArray[np.float64]:
        """Return raw scores as torch gives them."""
        maps = early_maps(self.backbone, self.spec, sources, None, ["none"], 2, lambda _done, _total: None)
        return np.asarray(load_tail().scores(self.trained, maps[0], range(len(sources)), device=self.device))

    def append(self, graph: Graph, tensors: FeatureTensors) -> str:
        """Add the network to a graph behind the stride-8 map that the frozen one computes as well; gives ``(N, 1)``."""
        early = next(tap for tap in tensors.taps if tap.name == EARLY)
        taps = {tap.name: tap for tap in self.backbone.append_tail(graph, early, self.tensors, load_tail().FIRST_BLOCK)}
        pooled = [
            graph.op(kind, taps[scale].tensor, axes=[2, 3], keepdims=0, hint=f"tuned.{scale}")
            for scale in load_tail().SCALES
            for kind in ("ReduceMean", "ReduceMax")
        ]
        both = graph.op("Concat", *pooled, axis=1, hint="tuned.pooled")
        centre, spread, weight = self.head
        scaled = graph.op("Sub", both, graph.constant(centre, "tuned.centre"))
        scaled = graph.op("Div", scaled, graph.constant(spread, "tuned.spread"))
        return graph.affine(scaled, weight[:, None], np.array([self.bias], np.float32), hint="tuned_head")


def early_maps(  # noqa: PLR0917 - numbers and places
    backbone: EfficientNetLite0,
    spec: InputSpec,
    sources: Sequence[Source],
    scratch: Path | None,
    views: Sequence[str],
    threads: int,
    progress: Callable[[int, int], None],
) -> NDArray[np.float16]:
    """Return ``(views, n, channels, h, w)`` stride-8 maps, in a file when a folder is given: 0.5 GB at 320 px.

    Raises
    ------
    ImageFileError
        An image is gone, or another one lies in its place.
    DatasetError
        The folder has no room for the file.
    """
    graph = Graph()
    tensors = append_features(graph, backbone, spec)
    early = next(tap for tap in tensors.taps if tap.name == EARLY)
    graph.output("early", early.tensor, ("N", early.channels, early.height, early.width))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    model = graph.model("early", __version__).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    shape = (len(views), len(sources), early.channels, early.height, early.width)
    maps: NDArray[np.float16] = np.empty(shape, np.float16) if scratch is None else _unnamed(scratch, shape)
    for index, source in enumerate(sources):
        image = prepare(read_source(source), spec)
        batch = np.stack([np.flip(image, FLIPS[view]) if FLIPS[view] else image for view in views])
        maps[:, index] = session.run(["early"], {"image": batch})[0]
        if (index + 1) % 16 == 0 or index + 1 == len(sources):
            progress(index + 1, len(sources))
    return maps


def _unnamed(folder: Path, shape: tuple[int, ...]) -> NDArray[np.float16]:
    """Map a file without a name: a killed training must not leave a gigabyte behind.

    Its room is taken at once: a process that writes to a mapped page without any is killed.
    """
    size = math.prod(shape) * np.dtype(np.float16).itemsize
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, np.float16, "r+", shape=shape)
    except OSError as error:
        raise DatasetError(
            f"{folder.parent}: no room for {math.ceil(size / 1e6)} MB that --tier full needs there for a while "
            f"({error.strerror or error}); free some, or let TMPDIR name a folder with more"
        ) from error
