"""The page of an evaluation: complete in itself, true to the figures, and safe with any file name."""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest

from lineward.models.bundle import BundleError
from lineward.models.evaluate import evaluate, judge_folder
from lineward.models.records import Rate
from lineward.models.report import page, write_report
from lineward.models.verdict import Decision

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lineward.models.session import Session


@pytest.fixture(scope="module")
def fresh(make_parts: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts that the model has never seen, two labels swapped, one name that would break careless HTML."""
    folder = make_parts(tmp_path_factory.mktemp("fresh"), good=24, defects={"spot": 8, "scratch": 8}, first=70_000)
    good, spot = min((folder / "good").iterdir()), min((folder / "defect" / "spot").iterdir())
    good.rename(folder / "defect" / "spot" / "<b>&'escape.png")
    spot.rename(folder / "good" / "reject.png")
    return folder


def test_the_page_says_what_evaluate_says(session: Session, fresh: Path) -> None:
    """Figures and sentences are those of `evaluate`; verdicts lie beside the images they are about."""
    judged = judge_folder(session, fresh)
    plain = evaluate(session, fresh)
    assert judged.metrics.model_dump(exclude={"ms_per_image"}) == plain.model_dump(exclude={"ms_per_image"})
    text = page(judged)
    for sentence in plain.sentences():
        assert sentence in text
    assert plain.auroc is not None
    assert f"<td>{plain.auroc:.3f}</td>" in text
    assert f"<td>{plain.escape_rate.value:.1%}</td>" in text
    assert len(judged.verdicts) == len(judged.dataset.items) == 40


def test_intervals_of_the_page_are_for_parts(session: Session, fresh: Path) -> None:
    """Rule: the table by type shows the rates of the evaluation itself, and no caption says that images count."""
    judged = judge_folder(session, fresh)
    shown = {"scratch": Rate(value=0.123, low=0.045, high=0.678, n=8), "spot": Rate(value=0.2, low=0.1, high=0.9, n=8)}
    text = page(replace(judged, metrics=judged.metrics.model_copy(update={"missed_by_type": shown})))
    by_type = re.findall(r"<tr><td>(scratch|spot)</td>(.*?)</tr>", text)
    assert len(by_type) == 2
    for kind, row in by_type:
        assert f"<td>{shown[kind].value:.1%}</td><td>{shown[kind].low:.1%} to {shown[kind].high:.1%}</td>" in row
    assert "Intervals count images" not in text
    assert "intervals are for other parts" in text

    one_part = replace(judged.dataset, items=tuple(replace(item, group="one") for item in judged.dataset.items))
    rows = [
        re.findall(r"<tr><td>(?:review|defects).*?</tr>", page(replace(judged, dataset=dataset)))
        for dataset in (judged.dataset, one_part)
    ]
    assert len(rows[0]) == 2
    assert all(wide != narrow for narrow, wide in zip(*rows, strict=True))


def test_the_page_needs_nothing_else(session: Session, fresh: Path) -> None:
    """No address, no script, no file is named; every picture is inside and can be decoded; plots are valid SVG."""
    text = page(judge_folder(session, fresh))
    assert all(target.startswith("data:") for target in re.findall(r"(?:src|href)=\"([^\"]*)", text))
    assert "url(" not in text
    assert "://" not in text
    assert "<script" not in text
    assert "prefers-color-scheme:dark" in text
    plots = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(plots) == 3
    for plot in plots:
        ET.fromstring(plot)  # noqa: S314 - our own text
    pictures = re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", text)
    assert pictures
    for picture in pictures:
        assert cv2.imdecode(np.frombuffer(base64.b64decode(picture), np.uint8), cv2.IMREAD_COLOR) is not None


def test_the_worst_mistakes_are_shown(session: Session, fresh: Path) -> None:
    """A good part labelled defective is an escape, and the other way round; names cannot break the page."""
    judged = judge_folder(session, fresh)
    said = {item.file: verdict.decision for item, verdict in zip(judged.dataset.items, judged.verdicts, strict=True)}
    text = page(judged)
    escapes, rejects = text.split("<h2>Worst escapes</h2>")[1].split("<h2>Worst false rejects</h2>")
    assert ("reject.png" in rejects) == (said["good/reject.png"] is Decision.FAIL)
    assert ("escape.png" in escapes) == (said["defect/spot/<b>&'escape.png"] is Decision.PASS)
    assert "<b>&'" not in text
    assert said["good/reject.png"] is Decision.FAIL or said["defect/spot/<b>&'escape.png"] is Decision.PASS


@pytest.mark.parametrize("fate", ["another_moved_here", "another_added", "overwritten"])
def test_verdicts_stay_with_their_images(
    session: Session, make_parts: Callable[..., Path], tmp_path: Path, fate: str
) -> None:
    """Rule: the page is about what was judged, whatever happens to the folder by then, and shows no other picture."""
    folder = make_parts(tmp_path / "parts", good=8, defects={"spot": 4}, first=71_000)
    first, *others = sorted((folder / "good").iterdir())
    swapped = folder / "defect" / "spot" / "0.png"
    first.rename(swapped)  # labelled wrong, so that it is likely to be an escape

    def change(done: int, of: int) -> None:
        if done == of:
            if fate == "another_moved_here":
                others[0].rename(folder / "defect" / "spot" / "00.png")
            elif fate == "another_added":
                (folder / "good" / "0.png").write_bytes(others[0].read_bytes() + b"other")
            else:
                swapped.write_bytes(others[0].read_bytes())

    judged = judge_folder(session, folder, progress=change)
    files = [item.file for item in judged.dataset.items]
    assert len(files) == len(judged.verdicts) == 12
    assert int(judged.dataset.labels.sum()) == judged.metrics.n_defect == 5
    assert judged.verdicts[files.index("defect/spot/0.png")].decision is Decision.PASS
    escapes = page(judged).split("<h2>Worst escapes</h2>")[1].split("<h2>Worst false rejects</h2>")[0]
    assert ("moved or changed" in escapes) == (fate == "overwritten")


def test_one_kind_alone(session: Session, make_parts: Callable[..., Path], tmp_path: Path) -> None:
    """With good parts only the page says what it can."""
    text = page(judge_folder(session, make_parts(tmp_path, good=6, defects={}, first=80_000)))
    assert "ROC" not in re.sub("AUROC", "", text)
    assert "Of 1,000 good parts" in text


def test_written_whole_or_not_at_all(session: Session, fresh: Path, tmp_path: Path) -> None:
    """The folder is made; where a folder stands in the place of the file, nothing is left behind."""
    judged = judge_folder(session, fresh)
    write_report(tmp_path / "new" / "page.html", judged)
    assert (tmp_path / "new" / "page.html").read_text().endswith("</html>\n")
    (tmp_path / "taken.html").mkdir()
    with pytest.raises(BundleError, match=r"taken\.html: cannot be written"):
        write_report(tmp_path / "taken.html", judged)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "taken.html"]
