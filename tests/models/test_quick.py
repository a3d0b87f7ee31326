from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.models.conftest import part

from lineward.drivers.simulated import write_dataset
from lineward.drivers.simulation.scene import Renderer
from lineward.models.bundle import BundleError, load_manifest
from lineward.models.dataset import DatasetError
from lineward.models.duplicates import GUESSED, UNKNOWN
from lineward.models.quick import train_quick
from lineward.models.session import Session
from lineward.models.verdict import Decision

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lineward.models.quick import TrainReport

METRICS = {
    "n_good",
    "n_defect",
    "auroc",
    "detection_at_2pct_fr",
    "false_reject_rate",
    "escape_rate",
    "review_share",
    "ece",
    "ms_per_image",
}


def test_report_has_the_agreed_form(trained: TrainReport) -> None:
    """`train --json` prints exactly the agreed keys, as JSON."""
    report = json.loads(json.dumps(trained.to_json(), allow_nan=False))
    assert set(report) == {"model", "tier", "n_good", "n_defect", "seconds", "holdout", "parity"}
    assert set(report["holdout"]) == METRICS
    assert set(report["holdout"]["escape_rate"]) == {"value", "low", "high", "n"}
    assert set(report["parity"]) == {"max_abs_diff", "verdicts_equal"}
    assert (report["tier"], report["n_good"], report["n_defect"]) == ("quick", 60, 36)


def test_exported_equals_trained(trained: TrainReport) -> None:
    """On the images compared the bundle says what the trained model says."""
    parity = trained.manifest.parity
    assert parity.verdicts_equal
    assert parity.max_abs_diff < 1e-3
    assert parity.n >= 19


def test_it_learns(trained: TrainReport) -> None:
    """Plain spots and scratches are told from plain plates by models that never saw the part."""
    assert trained.manifest.holdout.auroc is not None
    assert trained.manifest.holdout.auroc > 0.9


def test_new_good_parts_are_judged_as_the_folds_said(tmp_path: Path) -> None:
    """The model in use has seen every image, a fold's model some: neither may find new good parts more usual."""
    scene = {"width": 320, "height": 256}
    data = write_dataset(tmp_path / "data", n_good=60, n_defect=24, **scene)
    made = train_quick(data, tmp_path / "made.lward", product="bracket")
    session, renderer = Session(made.model), Renderer(**scene)
    new = [session.judge(renderer.render(1000 + number, defect="none", severity=None)[0]) for number in range(40)]
    promised = made.manifest.holdout.false_reject_rate.high
    assert promised is not None
    assert sum(verdict.decision is Decision.FAIL for verdict in new) <= 40 * promised


def test_a_model_of_good_parts_takes_new_ones_for_as_usual_as_its_own(
    make_parts: Callable[..., Path], tmp_path: Path
) -> None:
    """Rule: distances are ranked in as many directions as the folds had, and who is sent to review is counted."""
    data = make_parts(tmp_path / "data", good=80, defects={}, first=31_000)
    made = train_quick(data, tmp_path / "made.lward", product="plates", height=96, width=96)
    session = Session(made.model)
    new = [session.judge(part(32_000 + number)) for number in range(80)]
    assert np.mean([verdict.anomaly for verdict in new]) < 0.65
    reviewed = [verdict.decision is Decision.REVIEW for verdict in new]
    assert np.mean(reviewed) <= made.manifest.risk.review_good.high
    assert made.manifest.risk.review_good.value == made.manifest.holdout.review_share


def test_manifest_tells_where_it_comes_from(trained: TrainReport) -> None:
    """Data, risk, calibration, types, tools and candidates are on record, with their n."""
    manifest = load_manifest(trained.model)
    assert manifest.data.n_good_train == manifest.holdout.n_good == manifest.data.n_good == 60
    assert manifest.data.figures == "crossfit"
    assert len(manifest.data.trained_on) == 96
    assert manifest.data.defect_types == {"scratch": 18, "spot": 18}
    assert manifest.defect_types == ("scratch", "spot")
    assert manifest.data.groups_known
    assert manifest.risk.false_reject.n == manifest.data.n_good_train
    assert manifest.calibration.n == manifest.data.n_good_train + manifest.data.n_defect_train
    assert manifest.model.head in manifest.model.candidates
    assert manifest.tools["onnxruntime"]
    assert trained.sentences()[-1].startswith("Collect next: ")


def test_the_same_data_give_the_same_model(trained: TrainReport, data: Path, cache: Path, tmp_path: Path) -> None:
    """Training again on cached features changes nothing in the graph, and reports its progress to the end."""
    seen: dict[str, tuple[int, int]] = {}
    again = train_quick(
        data,
        tmp_path / "again.lward",
        product="plates",
        cache_dir=cache,
        height=96,
        width=96,
        progress=lambda stage, done, total: seen.__setitem__(stage, (done, total)),
    )
    assert again.manifest.graph_sha256 == trained.manifest.graph_sha256
    assert load_manifest(again.model).graph_sha256 == load_manifest(trained.model).graph_sha256
    assert list(seen) == ["read", "features", "fit", "check"]
    assert all(done == total for done, total in seen.values())


def test_few_images_without_groups_or_types(make_parts: Callable[..., Path], cache: Path, tmp_path: Path) -> None:
    """A dozen defects without type and without groups.csv give a model with wide intervals, and warnings."""
    folder = make_parts(tmp_path / "few", good=24, defects={"spot": 9}, first=900, groups=False)
    for path in sorted((folder / "defect" / "spot").iterdir()):
        path.rename(folder / "defect" / path.name)
    (folder / "defect" / "spot").rmdir()
    report = train_quick(folder, tmp_path / "few.lward", product="few", cache_dir=cache, height=96, width=96)
    assert report.manifest.defect_types == ()
    assert not report.manifest.data.groups_known
    assert not report.manifest.risk.supported
    assert any("no groups.csv" in warning for warning in report.warnings)
    assert len({GUESSED, UNKNOWN} & set(report.warnings)) == 1
    assert set(report.manifest.data.warnings) <= set(report.warnings)
    assert report.manifest.holdout.escape_rate.high > 0.3


@pytest.mark.parametrize(("good", "defect"), [(5, 0), (0, 12), (2, 1), (12, 2)])
def test_too_little_is_refused_and_nothing_is_written(
    make_parts: Callable[..., Path], tmp_path: Path, good: int, defect: int
) -> None:
    """One kind only or a handful of images end in one line, and an older model stays as it was."""
    folder = make_parts(tmp_path / "data", good=good, defects={"spot": defect})
    out = tmp_path / "models" / "m.lward"
    out.parent.mkdir()
    out.write_bytes(b"older")
    with pytest.raises(DatasetError) as caught:
        train_quick(folder, out, product="p", height=96, width=96)
    assert "\n" not in str(caught.value)
    assert out.read_bytes() == b"older"
    assert [path.name for path in out.parent.iterdir()] == ["m.lward"]


def test_two_batches_with_defects_are_enough(make_parts: Callable[..., Path], cache: Path, tmp_path: Path) -> None:
    """Rule: where an even share of both kinds would put all defects in one fold, the two batches are taken apart."""
    folder = make_parts(tmp_path / "data", good=39, defects={"spot": 8}, first=3000, groups=False)
    names = [f"good/{path.name}" for path in sorted((folder / "good").iterdir())]
    names += [f"defect/spot/{path.name}" for path in sorted((folder / "defect" / "spot").iterdir())]
    batches = "a" * 19 + "b" * 10 + "c" * 7 + "d" * 3 + "b" * 6 + "c" * 2
    rows = [f"{name},{batch}" for name, batch in zip(names, batches, strict=True)]
    (folder / "groups.csv").write_text("\n".join(["file,group", *rows]))
    report = train_quick(folder, tmp_path / "m.lward", product="p", cache_dir=cache, height=96, width=96)
    assert (report.manifest.holdout.n_good, report.manifest.holdout.n_defect) == (39, 8)


def test_what_can_fail_fails_before_the_bundle_is_replaced(data: Path, listless_cache: Path, tmp_path: Path) -> None:
    """Rule: a cache that takes no list of images ends a training with the older model in its place."""
    out = tmp_path / "m.lward"
    out.write_bytes(b"older")
    with pytest.raises(OSError, match="sets"):
        train_quick(data, out, product="p", cache_dir=listless_cache, height=96, width=96)
    assert out.read_bytes() == b"older"


def test_unwritable_place(data: Path, cache: Path, tmp_path: Path) -> None:
    """A bundle that cannot be stored is one clear line."""
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="cannot be written"):
        train_quick(data, tmp_path / "file" / "m.lward", product="p", cache_dir=cache, height=96, width=96)


def test_a_set_of_nearly_equal_good_images_trains(make_parts: Callable[..., Path], tmp_path: Path) -> None:
    """Rule: 39 of 40 good pictures alike, as of parts without any texture, give a model that says what was trained."""
    data = make_parts(tmp_path / "data", good=40, defects={"spot": 12}, first=30_000, groups=False)
    first, *others = sorted((data / "good").iterdir())
    for number, path in enumerate(others[1:]):
        path.write_bytes(first.read_bytes() + b"%d" % number)  # other bytes, the same picture
    names = sorted(path.relative_to(data).as_posix() for path in data.rglob("*.png"))
    (data / "groups.csv").write_text("file,group\n" + "".join(f"{name},{name}\n" for name in names))
    report = train_quick(data, tmp_path / "m.lward", product="p", height=96, width=96)
    assert report.manifest.parity.verdicts_equal
    assert (report.manifest.holdout.auroc or 0.0) > 0.9
