from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest

from lineward.images import read_image
from lineward.models.backbone import EfficientNetLite0
from lineward.models.dataset import Dataset, read_dataset
from lineward.models.export import Exported, ParityError, build_graph, check_export, judge_features
from lineward.models.fit import QuickModel, fit_quick
from lineward.models.manifest import draft_manifest
from lineward.models.quick import Prepared, prepare_features
from lineward.models.records import Manifest, Risk
from lineward.models.session import Session

if TYPE_CHECKING:
    from pathlib import Path

    from lineward.models.quick import TrainReport


class Fitted(NamedTuple):
    dataset: Dataset
    prepared: Prepared
    model: QuickModel
    exported: Exported
    manifest: Manifest


@pytest.fixture(scope="module")
def fitted(data: Path, cache: Path, trained: TrainReport) -> Fitted:
    """Everything that a training has in hand when it comes to the check, on the features that it kept."""
    del trained
    dataset, backbone = read_dataset(data), EfficientNetLite0()
    prepared = prepare_features(
        dataset, backbone, cache, size=(96, 96), roi=None, seed=0, threads=2, progress=lambda _done, _of: None
    )
    model = fit_quick(
        prepared.store,
        dataset.items,
        prepared.pooled,
        prepared.groups,
        risk=Risk(),
        seed=0,
        progress=lambda _done, _of: None,
    )
    manifest = draft_manifest(
        dataset, prepared.spec, backbone, model, groups=prepared.groups, product="plates", version="1"
    )
    return Fitted(dataset, prepared, model, build_graph(backbone, prepared.spec, model), manifest)


def test_behind_the_features_the_graph_says_what_the_bundle_says(fitted: Fitted, trained: TrainReport) -> None:
    """Images of which only the features are taken get the probability and anomaly of the whole bundle."""
    sources = fitted.dataset.sources[::7]
    said = judge_features(fitted.exported, fitted.prepared.store, sources, fitted.prepared.pooled[::7])
    session = Session(trained.model, intra_op_threads=1)
    verdicts = [session.judge(read_image(source.path)) for source in sources]
    whole = [(verdict.defect_probability, verdict.anomaly) for verdict in verdicts]
    assert np.array(said) == pytest.approx(np.array(whole), abs=1e-4)
    assert np.ptp(said, axis=0).min() > 0.5, "the images differ, so this compares something"


def test_some_images_go_through_everything(fitted: Fitted, tmp_path: Path) -> None:
    """The record says how many were compared, and how many of them from their file on; progress ends at all."""
    seen: list[tuple[int, int]] = []
    checked = check_export(
        tmp_path / "x.lward",
        fitted.exported,
        fitted.manifest,
        fitted.model,
        fitted.prepared,
        dataset=fitted.dataset,
        seed=0,
        progress=lambda done, of: seen.append((done, of)),
        most_whole=4,
    )
    assert (checked.parity.n, checked.parity.n_whole) == (20, 4)
    assert checked.parity.verdicts_equal
    assert checked.milliseconds > 0
    assert seen[-1] == (20, 20)


def test_a_graph_that_says_something_else_is_refused(fitted: Fitted, tmp_path: Path) -> None:
    """A model whose calibration is not that of the graph: one line with the difference, and nothing is written."""
    other = replace(fitted.model, platt=replace(fitted.model.platt, offset=fitted.model.platt.offset + 0.5))
    with pytest.raises(ParityError, match=r"x\.lward: not written: .* differs .* on 20 images"):
        check_export(
            tmp_path / "x.lward",
            fitted.exported,
            fitted.manifest,
            other,
            fitted.prepared,
            dataset=fitted.dataset,
            seed=0,
            progress=lambda _done, _of: None,
        )
    assert not list(tmp_path.iterdir())
