"""Fill in a manifest from what training used and found."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx
import onnxruntime
import sklearn

from lineward import __version__
from lineward.models.metrics import measure
from lineward.models.records import (
    DIGEST_DIGITS,
    Bands,
    CalibrationRecord,
    DataRecord,
    Manifest,
    ModelRecord,
    ParityRecord,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from lineward.models.backbone import Backbone
    from lineward.models.dataset import Dataset, Item
    from lineward.models.fit import QuickModel
    from lineward.models.prepare import InputSpec
    from lineward.models.records import Metrics


def draft_manifest(
    dataset: Dataset,
    spec: InputSpec,
    backbone: Backbone,
    model: QuickModel,
    *,
    groups: NDArray[np.int64],
    product: str,
    version: str | None,
    tier: Literal["quick", "full"] = "quick",
) -> Manifest:
    """Describe a fitted model; hold-out figures and parity are filled in when the exported graph has been run."""
    created = datetime.now(UTC)
    labels = dataset.labels
    bands = model.thresholds
    return Manifest(
        product=product,
        version=version or created.strftime("%Y%m%d-%H%M%S"),
        created=created.isoformat(timespec="seconds").replace("+00:00", "Z"),
        tier=tier,
        input=spec,
        thresholds=Bands(
            pass_below=bands.pass_below, fail_from=bands.fail_from, review_anomaly_from=bands.review_anomaly_from
        ),
        risk=model.promise,
        calibration=CalibrationRecord(
            method="platt" if labels.any() else "none",
            n=len(labels),
            folds=model.folds,
            defect_share=float(labels.mean()),
            ece=model.ece,
        ),
        defect_types=model.types.names if model.types else (),
        data=DataRecord(
            digest=dataset.digest,
            n_good=int((~labels).sum()),
            n_defect=int(labels.sum()),
            n_good_train=int((~labels).sum()),
            n_defect_train=int(labels.sum()),
            defect_types=dict(sorted(dataset.defect_types.items())),
            groups=len(set(groups.tolist())),
            groups_known=dataset.groups_known,
            warnings=dataset.warnings,
            figures="crossfit",
            **fitted_on(dataset.items),
        ),
        model=ModelRecord(
            backbone=backbone.name,
            backbone_digest=backbone.digest,
            head=model.head_name,
            candidates=model.candidates,
            heatmap="evidence" if labels.any() else "anomaly",
        ),
        holdout=_nothing_measured(),
        parity=ParityRecord(n=0, max_abs_diff=0.0, verdicts_equal=False),
        tools={
            "lineward": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
            "scikit-learn": sklearn.__version__,
        },
    )


def fitted_on(items: Iterable[Item]) -> dict[str, tuple[str, ...]]:
    """Return the fields of a `DataRecord` by which images that a model was fitted on are known again."""
    known = list(items)
    return {
        "trained_on": tuple(sorted({item.source.digest[:DIGEST_DIGITS] for item in known})),
        "trained_pixels": tuple(sorted({item.facts.pixels for item in known if item.facts is not None})),
    }


def _nothing_measured() -> Metrics:
    return measure(np.zeros(0, bool), np.zeros(0), [], 0.0, parts=np.zeros(0, np.int64))
