"""From a fitted model to its graph, and the proof that the graph says what the model says."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from lineward import __version__
from lineward.images import read_image
from lineward.models.dataset import DatasetError
from lineward.models.features import append_features, is_there
from lineward.models.graph import Graph
from lineward.models.metrics import auroc
from lineward.models.records import ParityRecord
from lineward.models.session import Session
from lineward.models.verdict import decide

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from lineward.models.backbone import Backbone
    from lineward.models.dataset import Dataset
    from lineward.models.features import Source
    from lineward.models.fit import Crossfit, QuickModel
    from lineward.models.prepare import InputSpec
    from lineward.models.verdict import Thresholds, Verdict

PARITY_LIMIT = 1e-3
"""Largest difference of a probability between trained and exported model; float32 sums differ by about 1e-5."""


class ParityError(ValueError):
    """The exported graph does not say what the trained model says; nothing was written."""


PARITY_IMAGES = 200
"""At most so many images, of both kinds, are judged by the exported graph and compared."""
INT8_LIMIT = 0.005
"""How much lower the cross-fitted AUROC of an int8 model may be than that of the same model in float32."""


def build_graph(backbone: Backbone, spec: InputSpec, model: QuickModel) -> bytes:
    """Put backbone, head, calibration, anomaly, heat-map and types into one graph; returns the serialised model."""
    graph = Graph()
    tensors = append_features(graph, backbone, spec)
    model.append(graph, tensors)
    return bytes(graph.model("lineward", __version__).SerializeToString())


def judge_with_bundle(
    bundle: Path, sources: Sequence[Source], threads: int, progress: Callable[[int, int], None]
) -> list[Verdict]:
    """Judge files with an exported bundle, several at a time, each on one core."""
    session = Session(bundle, intra_op_threads=1)
    verdicts: list[Verdict] = []
    with ThreadPoolExecutor(threads, thread_name_prefix="check") as pool:
        for verdict in pool.map(lambda source: session.judge(read_image(source.path)), sources):
            verdicts.append(verdict)
            progress(len(verdicts), len(sources))
    return verdicts


def parity_images(dataset: Dataset, seed: int) -> NDArray[np.int64]:
    """Choose the images on which the exported graph is compared with the trained model.

    Images of a base may have been moved or overwritten since; only files that still have their content are compared.
    """
    order = np.random.default_rng(seed).permutation(len(dataset.items)).tolist()
    most = min(PARITY_IMAGES, max(len(order) // 5, 20))
    found: list[int] = []
    for index in order:
        if len(found) == most:
            break
        if is_there(dataset.items[index].source):
            found.append(index)
    if not found:
        raise DatasetError(f"{dataset.folder}: no image can be read any more, so the model cannot be checked")
    return np.array(sorted(found), np.int64)


def require_parity(
    out: Path,
    trained: tuple[NDArray[np.float64], NDArray[np.float64]],
    thresholds: Thresholds,
    verdicts: Sequence[Verdict],
) -> ParityRecord:
    """Compare exported with trained model, or refuse to go on."""
    parity = _compare(trained, thresholds, verdicts)
    if not parity.verdicts_equal or parity.max_abs_diff > PARITY_LIMIT:
        raise ParityError(
            f"{out}: not written: the exported model differs from the trained one on {parity.n} images "
            f"(probabilities by up to {parity.max_abs_diff:.2g}); please report this with the data"
        )
    return parity


def require_like_float(out: Path, labels: NDArray[np.bool_], full: Crossfit, int8: Crossfit) -> float | None:
    """Compare the cross-fitted figures of an int8 model with those in float32, or refuse to go on.

    Returns the AUROC in float32; without defects there is none, and nothing to compare.
    """
    if not labels.any():
        return None
    before, after = auroc(labels, full.probabilities), auroc(labels, int8.probabilities)
    if after < before - INT8_LIMIT:
        raise ParityError(
            f"{out}: not written: in int8 it tells good from defective less well (AUROC {after:.3f} instead of "
            f"{before:.3f}, {INT8_LIMIT} is allowed); train without --int8"
        )
    return before


def _compare(
    trained: tuple[NDArray[np.float64], NDArray[np.float64]], thresholds: Thresholds, verdicts: Sequence[Verdict]
) -> ParityRecord:
    """Compare the exported graph with the trained model computed in numpy, image by image."""
    probabilities, anomalies = trained
    given = np.array([[verdict.defect_probability, verdict.anomaly] for verdict in verdicts])
    difference = np.abs(given - np.stack(trained, axis=1)).max()
    expected = [
        decide(float(probability), float(anomaly), thresholds)[0]
        for probability, anomaly in zip(probabilities, anomalies, strict=True)
    ]
    equal = expected == [verdict.decision for verdict in verdicts]
    return ParityRecord(n=len(verdicts), max_abs_diff=float(difference), verdicts_equal=equal)
