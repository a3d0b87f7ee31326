"""The whole story in a browser, on a running line: a new defect appears, is labelled, learnt, promoted, caught."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.broker import Mosquitto, free_port, needs_mosquitto, wait_until
from tests.system.line import Line, call, figure
from tests.web.kit import SIZE, UNKNOWN, ReviewPage

from lineward.daemon.labels import LabelStore
from lineward.drivers.simulated import SimulatedCamera
from lineward.drivers.simulation.scene import Renderer
from lineward.images import read_image

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from tests.system.line import Service
    from tests.web.kit import Chromium, FirstModel

NEW, CALM = UNKNOWN, 80
"""What appears, and after so many parts."""

LABELS, STAINS = 50, 30
"""20 to 50 are promised to be enough."""
CAMERA = {**SIZE, "rate_hz": 10.0, "defect_rate": 0.06, "faults": [f"new_defect:{NEW}@{CALM}"]}
SHOWN = "document.querySelector('.lw-part').getAttribute('src')"

pytestmark = [pytest.mark.system, needs_mosquitto]


class Belt:
    """What really lies on the belt: the camera of the line, asked instead of grabbed from."""

    def __init__(self) -> None:
        self._camera = SimulatedCamera(**CAMERA)  # type: ignore[arg-type] # as a configuration gives them
        self._renderer = Renderer(**SIZE)

    def kind(self, row: dict[str, Any]) -> str:
        return str(self._camera.truth(row["frame_id"]).defect_type or "good")

    def picture(self, row: dict[str, Any]) -> NDArray[np.uint8]:
        known = self._camera.truth(row["frame_id"])
        severity = None if known.good else known.severity
        return self._renderer.render(known.index, defect=known.defect_type or "none", severity=severity)[0]


def total_ms(row: dict[str, Any]) -> float:
    return float(json.loads(row["payload"])["latency_ms"]["total"])


def verdicts(rows: list[dict[str, Any]]) -> dict[str, int]:
    return {name: sum(row["verdict"] == name for row in rows) for name in ("pass", "fail", "review", "undecided")}


def share(rows: list[dict[str, Any]], verdict: str) -> float:
    return sum(row["verdict"] == verdict for row in rows) / len(rows)


@pytest.mark.timeout(600)
def test_a_new_defect_is_labelled_learnt_promoted_and_caught(
    first: FirstModel, tmp_path: Path, services: list[Service], browser: Chromium
) -> None:
    """Rule: from the hint on the live page to the caught defect, by keyboard; the ledger has no gap meanwhile."""
    belt = Belt()
    broker = Mosquitto(tmp_path)
    review = {"port": free_port(), "keep_per_hour": 20_000, "keep_fails": True, "base_data": str(first.data)}
    line = Line(
        tmp_path / "line",
        model="bracket",  # type: ignore[arg-type] # the name of a product in the store
        port=broker.port,
        camera={"driver": "simulated", **CAMERA},
        review={**review, "second_reader_share": 0, "blind_repeat_share": 0},
    )
    services.append(line)
    page_ = ReviewPage(tmp_path / "review", line.config).add_people()
    services.append(page_)
    promoted = call(tmp_path, "models", "promote", first.model, "--config", line.config)
    assert promoted.returncode == 0, promoted.stderr
    line.start()
    page_.start()
    with browser.page(page_.url, "tom") as page:
        page.set_default_timeout(180_000)
        page.wait_for_selector(".lw-alarm:has-text('Perhaps a new kind of defect')")
        assert page.locator(".lw-alarm:has-text('Perhaps a new kind of defect')").count() == 1
        assert line.lines("alarm novel: .* went to review")
        label_some(page, page_, line, belt)
        before = line.rows()
        began = time.time_ns()
        train(page, page_)
        trained_ns = time.time_ns()
        promote(page)
    old = before[-1]["model_sha256"]
    wait_until(lambda: len(stains(line, belt, other_than=old)) >= 40, 120, "40 new defects under the new model")
    line.end()
    rows = line.rows()
    missed, caught = stains(line, belt, only=old), stains(line, belt, other_than=old)
    good = [row for row in rows if row["model_sha256"] != old and belt.kind(row) == "good"]
    figure(f"{NEW} before {verdicts(missed)}, after {verdicts(caught)}; good after {verdicts(good)}")
    # Of 40 parts; which pictures were labelled, and so how well it is learnt, depends on when the line had which part.
    assert share(caught, "fail") >= share(missed, "fail") + 0.3
    assert share(caught, "pass") <= 0.2
    assert share(good, "fail") <= 0.1
    assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
    steps = np.diff([row["frame_id"] for row in rows])
    assert (steps > 0).all()
    assert (steps == 1).all() or line.lines("frames were not inspected")  # on a busy machine; never in silence
    assert {row["reason"] for row in rows if row["verdict"] == "undecided"} <= {"timeout"}  # a busy machine
    during = [total_ms(row) for row in rows if began <= row["trigger_ns"] <= trained_ns]
    calm = [total_ms(row) for row in before[20:]]
    ratio = float(np.quantile(during, 0.99) / np.quantile(calm, 0.99))
    figure(f"p99 before {np.quantile(calm, 0.99):.1f} ms, during training x {ratio:.2f} ({len(during)} parts)")
    broker.stop()


def stains(line: Line, belt: Belt, *, only: str = "", other_than: str = "") -> list[dict[str, Any]]:
    """Answers to parts with the new defect, by which model gave them."""
    return [
        row
        for row in line.rows()
        if belt.kind(row) == NEW
        and (not only or row["model_sha256"] == only)
        and (not other_than or row["model_sha256"] != other_than)
    ]


def label_some(page: Any, page_: ReviewPage, line: Line, belt: Belt) -> None:
    """Label as a person would who sees what is on the part; each label by keys alone."""
    page.click("nav >> text=Review")
    page.wait_for_selector(".lw-part[src]")
    page.wait_for_function("window.did_handshake === true")
    store = LabelStore(page_.storage)
    given = found = 0
    began = time.monotonic()
    while given < LABELS or found < STAINS:
        source = page.evaluate(SHOWN)
        part = store.part(source.split("/")[2])
        assert part is not None
        row = line.rows()[part.seq - 1]
        kind = belt.kind(row)
        if not given:
            assert np.array_equal(read_image(store.file(part)), belt.picture(row))
        if kind == "good":
            page.keyboard.press("p")
        else:
            page.keyboard.press("f")
            page.wait_for_selector(".lw-types.lw-open")
            names = [text.partition(" ") for text in page.locator(".lw-types button").all_inner_texts()]
            key = next((number for number, _, name in names if name == kind and number.isdecimal()), None)
            if key is None:
                page.keyboard.press("n")
                page.keyboard.type(kind)
                key = "Enter"
            page.keyboard.press(key)
        page.wait_for_function(f"before => {SHOWN} !== before", arg=source)
        given, found = given + 1, found + (kind == NEW)
    figure(
        f"{given} labels ({found} of the new defect) in {time.monotonic() - began:.1f} s, read and chosen by a program"
    )
    assert sum(store.by_type("bracket").values()) == given
    store.close()


def train(page: Any, page_: ReviewPage) -> None:
    page.click("nav >> text=Improve")
    page.wait_for_function("window.did_handshake === true")
    page.focus("button:has-text('Train a new model')")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=The line goes first. Its answers take")
    page.wait_for_selector("text=kept parts are judged differently")
    wait_until(lambda: bool(page_.lines("training of bracket: done")), 20, "the log line of the training")
    page.wait_for_selector("text=Parts kept for testing")
    page.wait_for_selector("text=How strict?")  # drawn behind the comparison, once the candidate is read


def promote(page: Any) -> None:
    page.focus("button:has-text('Promote the new model')")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=You can go back at any time.")
    page.click("button:has-text('Yes, let it judge')")
    page.wait_for_selector("text=The new model is in use.")
    page.wait_for_selector("td:has-text('tom')")
