"""What the comparison of two models counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.web.kit import png

from lineward.daemon.web.training_job import compare
from lineward.models.bundle import load_bundle, save_bundle

if TYPE_CHECKING:
    from pathlib import Path

    from tests.web.kit import FirstModel


@pytest.mark.parametrize("known_to", ["old", "new"])
def test_a_part_that_one_model_was_trained_on_is_no_test(first: FirstModel, tmp_path: Path, known_to: str) -> None:
    """Rule: what was held out counts only if neither model knows its bytes; the other sets stay whole."""
    bundle = load_bundle(first.model)
    nothing = bundle.manifest.data.model_copy(update={"trained_on": ()})
    stranger = tmp_path / "stranger.lward"
    graph = bundle.data[: bundle.manifest.graph_bytes]
    save_bundle(stranger, graph, bundle.manifest.model_copy(update={"data": nothing}))
    copy, unknown = tmp_path / "copy.png", tmp_path / "unknown.png"
    copy.write_bytes(next((first.data / "good").glob("*.png")).read_bytes())
    unknown.write_bytes(png(1, 320, 256))
    entries = [{"image": path.stem, "file": str(path), "label": "pass"} for path in (copy, unknown)]
    judged = {"holdout": entries, "never_again": entries, "shift": entries}
    order = {**judged, "shift_is": "the last shift", "cache": str(tmp_path / "cache")}
    old, new = (first.model, stranger) if known_to == "old" else (stranger, first.model)
    result = compare(old, new, order, lambda *_: None)
    assert [entry["image"] for entry in result["holdout"]] == ["unknown"]
    assert result["left_out"] == 1
    assert [len(result[name]) for name in ("never_again", "shift")] == [2, 2]
