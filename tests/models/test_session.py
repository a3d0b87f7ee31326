from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import pytest

from lineward.models.bundle import BundleError
from lineward.models.session import Session
from lineward.models.verdict import Decision

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from lineward.models.quick import TrainReport


def test_verdict_is_complete(session: Session, render: Callable[..., NDArray[np.uint8]]) -> None:
    """A judgement carries probability, anomaly, heat-map and times; a good part is not rejected."""
    verdict = session.judge(render(5001))
    assert verdict.decision in {Decision.PASS, Decision.REVIEW}
    assert 0 <= verdict.defect_probability < 0.5
    assert 0 <= verdict.anomaly <= 1
    assert verdict.heatmap is not None
    assert verdict.heatmap.shape == (6, 6)
    assert 0 <= verdict.heatmap.min() <= verdict.heatmap.max() <= 1
    assert min(verdict.prepare_ms, verdict.infer_ms, verdict.decide_ms) > 0


def test_types_are_named(session: Session, render: Callable[..., NDArray[np.uint8]]) -> None:
    """New defective parts are mostly given the name of their defect, and none that passes is."""
    right = 0
    for number in range(6000, 6020):
        kind = "spot" if number % 2 else "scratch"
        verdict = session.judge(render(number, kind))
        assert (verdict.defect_type is None) == (verdict.decision is Decision.PASS)
        right += verdict.defect_type == kind
    assert right >= 16


def test_heatmap_points_at_the_defect(
    session: Session,
    render: Callable[..., NDArray[np.uint8]],
    defect_place: Callable[[int], tuple[int, int]],
) -> None:
    """The hottest patch lies on or beside the defect in nearly every new part."""
    near = 0
    for number in range(7000, 7020):
        heatmap = session.judge(render(number, "spot")).heatmap
        assert heatmap is not None
        row, column = np.unravel_index(int(heatmap.argmax()), heatmap.shape)
        x, y = defect_place(number)
        near += max(abs(column * 16 + 8 - x), abs(row * 16 + 8 - y)) <= 20
    assert near >= 17


def test_a_strange_part_does_not_pass(session: Session) -> None:
    """Something never seen, neither good nor a known defect, is stopped by its anomaly."""
    checks = np.kron(np.indices((12, 12)).sum(axis=0) % 2, np.ones((8, 8))).astype(np.uint8) * 255
    verdict = session.judge(checks)
    assert verdict.anomaly > 0.99
    assert verdict.decision is not Decision.PASS


def test_any_onnx_runtime_runs_it(
    trained: TrainReport, session: Session, render: Callable[..., NDArray[np.uint8]]
) -> None:
    """Without Lineward, and several images at once, the file gives the same numbers."""
    plain = onnxruntime.InferenceSession(str(trained.model), providers=["CPUExecutionProvider"])
    assert [output.name for output in plain.get_outputs()] == [
        "defect_probability",
        "anomaly",
        "heatmap",
        "defect_type_scores",
    ]
    prepared = [session.prepare(render(number, kind)) for number, kind in ((1, None), (2, "spot"), (3, "scratch"))]
    batch = plain.run(None, {"image": np.stack(prepared)})
    singles = [session.run(image) for image in prepared]
    for index, values in enumerate(batch):
        expected = np.concatenate([np.asarray(single[index]) for single in singles])
        assert values == pytest.approx(expected, abs=1e-3)
    assert batch[3].sum(axis=1) == pytest.approx(1)


def test_missing_providers_are_told(trained: TrainReport) -> None:
    """A wish that this machine cannot grant is named, and the CPU takes over."""
    session = Session(trained.model, providers=("NoSuchExecutionProvider", "CPUExecutionProvider"))
    assert session.missing_providers == ("NoSuchExecutionProvider",)
    assert session.providers == ("CPUExecutionProvider",)
    assert Session(trained.model, intra_op_threads=1, spinning=True).missing_providers == ()


@pytest.mark.parametrize("shape", [(1, 1), (30000, 2), (2, 30000, 3)])
def test_odd_sizes_are_judged(session: Session, shape: tuple[int, ...]) -> None:
    """A 1 x 1 or a 30,000 x 2 image gets an answer like any other."""
    assert session.judge(np.full(shape, 90, np.uint8)).decision in set(Decision)


@pytest.mark.parametrize(
    "image", [np.zeros((3, 3), np.uint16), np.zeros((0, 3), np.uint8), np.zeros((3, 3, 4), np.uint8)]
)
def test_bad_arrays_are_refused(session: Session, image: NDArray[np.uint8]) -> None:
    """What is no image is a `ValueError`, before the model sees it."""
    with pytest.raises(ValueError, match="an image"):
        session.judge(image)


def test_warm_up_and_bad_file(session: Session, tmp_path: Path) -> None:
    """Warming up judges without a camera; a file that is no bundle does not become a session."""
    session.warm_up(1)
    (tmp_path / "x.lward").write_text("no")
    with pytest.raises(BundleError, match=r"x\.lward"):
        Session(tmp_path / "x.lward")
