"""From a fitted model to its graph, and the proof that the graph says what the model says."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
from onnx.utils import Extractor

from lineward import __version__
from lineward.images import read_image
from lineward.models.bundle import save_bundle
from lineward.models.dataset import DatasetError
from lineward.models.evaluate import milliseconds
from lineward.models.features import append_features, is_there, one_thread
from lineward.models.graph import Graph
from lineward.models.metrics import auroc
from lineward.models.records import ParityRecord
from lineward.models.session import Session
from lineward.models.verdict import decide
from lineward.models.workers import each, workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from lineward.models.backbone import Backbone
    from lineward.models.dataset import Dataset
    from lineward.models.features import FeatureStore, FeatureTensors, Source
    from lineward.models.fit import Crossfit, QuickModel
    from lineward.models.prepare import InputSpec
    from lineward.models.quick import Prepared
    from lineward.models.records import Manifest

PARITY_LIMIT = 1e-3
"""Largest difference of a probability between trained and exported model; float32 sums differ by about 1e-5."""
PARITY_IMAGES = 200
"""At most so many images, of both kinds, are compared."""
PARITY_WHOLE = 40
"""So many of them go through the bundle from their file on; of the others the features are at hand."""
INT8_LIMIT = 0.005
"""How much lower the cross-fitted AUROC of an int8 model may be than that of the same model in float32."""


class ParityError(ValueError):
    """The exported graph does not say what the trained model says; nothing was written."""


class Exported(NamedTuple):
    """A serialised graph, and the tensors in it at which the backbone ends and what was fitted begins."""

    graph: bytes
    features: FeatureTensors


class Checked(NamedTuple):
    """The proof, and the mean of the milliseconds that an image took from the decoded picture to the verdict."""

    parity: ParityRecord
    milliseconds: float


def build_graph(backbone: Backbone, spec: InputSpec, model: QuickModel) -> Exported:
    """Put backbone, head, calibration, anomaly, heat-map and types into one graph."""
    graph = Graph()
    tensors = append_features(graph, backbone, spec)
    model.append(graph, tensors)
    return Exported(graph.model("lineward", __version__).SerializeToString(), tensors)


def check_export(
    out: Path,
    exported: Exported,
    manifest: Manifest,
    model: QuickModel,
    prepared: Prepared,
    *,
    dataset: Dataset,
    seed: int,
    progress: Callable[[int, int], None],
    most_whole: int = PARITY_WHOLE,
) -> Checked:
    """Compare the bundle with the trained model, image by image, or refuse to go on.

    ``most_whole`` images go through the bundle from their file on. Of the others, up to `PARITY_IMAGES`, only what
    follows the features is run, out of the same graph: these features came from the same nodes. A tuned network begins
    in the middle of the backbone, so with one every image goes through everything.

    Parameters
    ----------
    out
        The bundle to be, for the message; it is not written here.
    prepared
        Features of the data set's images.
    seed
        Decides which images.
    progress
        Called with images done and total.

    Raises
    ------
    ParityError
        A probability differs by more than `PARITY_LIMIT`, or a verdict does.
    DatasetError
        No image has the content any more that it was trained on.
    """
    store, pooled = prepared.store, prepared.pooled
    checked = _readable(dataset, seed)
    whole = len(checked) if model.tuned else min(most_whole, len(checked))
    sources = [dataset.items[index].source for index in checked]
    with tempfile.TemporaryDirectory(prefix="lineward-check-") as scratch:
        trial = Path(scratch) / "trial.lward"
        save_bundle(trial, exported.graph, manifest)
        session = Session(trial, intra_op_threads=1)
    given, spent = list[tuple[float, float]](), list[float]()
    with ThreadPoolExecutor(store.threads, thread_name_prefix="check") as pool:
        for verdict in pool.map(lambda source: session.judge(read_image(source.path)), sources[:whole]):
            given.append((verdict.defect_probability, verdict.anomaly))
            spent.append(milliseconds(verdict))
            progress(len(given), len(checked))
    given += judge_features(exported, store, sources[whole:], pooled[checked[whole:]])
    progress(len(checked), len(checked))
    probabilities, anomalies = model.judge(store, sources, pooled[checked])
    expected = list(zip(probabilities.tolist(), anomalies.tolist(), strict=True))
    parity = ParityRecord(
        n=len(given),
        n_whole=whole,
        max_abs_diff=float(np.abs(np.array(given) - expected).max()),
        verdicts_equal=all(
            decide(*said, model.thresholds)[0] is decide(*meant, model.thresholds)[0]
            for said, meant in zip(given, expected, strict=True)
        ),
    )
    if not parity.verdicts_equal or parity.max_abs_diff > PARITY_LIMIT:
        raise ParityError(
            f"{out}: not written: the exported model differs from the trained one on {parity.n} images "
            f"(probabilities by up to {parity.max_abs_diff:.2g}); please report this with the data"
        )
    return Checked(parity, float(np.mean(spent)))


def _readable(dataset: Dataset, seed: int) -> NDArray[np.int64]:
    """Choose images to compare, in random order.

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
    return np.array(found, np.int64)


def judge_features(
    exported: Exported, store: FeatureStore, sources: Sequence[Source], pooled: NDArray[np.float32]
) -> list[tuple[float, float]]:
    """Run what follows the features in the exported graph; defect probability and anomaly of each image."""
    if not sources:
        return []
    names = [exported.features.pooled, exported.features.patches, exported.features.deep]
    model = onnx.load_from_string(exported.graph)
    model.graph.value_info.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
    )
    fitted = Extractor(model).extract_model(names, ["defect_probability", "anomaly"])
    session = one_thread(fitted.SerializeToString())

    def judge(indices: Sequence[int]) -> Iterable[tuple[float, float]]:
        some = [sources[index] for index in indices]
        values = (pooled[indices], store.cells(some, deep=False), store.cells(some, deep=True))
        said = session.run(None, dict(zip(names, values, strict=True)))
        return zip(*(column.tolist() for column in said), strict=True)

    with workers(store.threads, "check") as pool:
        return each(pool, judge, range(len(sources)))


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
