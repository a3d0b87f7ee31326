from __future__ import annotations

import numpy as np
import pytest

from lineward.models import heads
from lineward.models.heads import LOGISTIC_COMPONENTS, fit_kernel, fit_scaler, fit_subspace, project_apart


@pytest.mark.parametrize(
    ("known", "depth", "support"),
    [(40, 300, 2048), (200, 30, 2048), (40, 300, 24)],
    ids=["fewer images than features", "more images than features", "more images than are kept"],
)
def test_scores_without_directions_are_those_with_them(
    known: int, depth: int, support: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Projections, and what a head says of parts it does not know, do not depend on which way they were computed."""
    monkeypatch.setattr(heads, "MAX_SUPPORT", support)
    random = np.random.default_rng(0)
    mixed = random.standard_normal((known + 25, 12)) @ random.standard_normal((12, depth))
    features = (mixed + 0.3 * random.standard_normal((known + 25, depth))).astype(np.float32)
    fitted, others = features[:known], features[known:]
    scaler = fit_scaler(fitted)
    space, projected = fit_subspace(scaler(fitted), 0)
    mine, theirs = project_apart(fitted, others, 0)
    np.testing.assert_allclose(mine, projected, atol=2e-4)
    np.testing.assert_allclose(theirs, space(scaler(others), LOGISTIC_COMPONENTS), atol=2e-4)
    head = fit_kernel(projected, features[:known, 0] > 0, 0)
    np.testing.assert_allclose(head.score_projected(theirs), head.score(space, scaler(others)), atol=2e-3)
    assert np.ptp(head.score_projected(theirs)) > 0.1
