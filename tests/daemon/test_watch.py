"""Image health: what has changed since commissioning is said with its cause, and another product is never judged."""

from __future__ import annotations

import json
import re
import time
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.broker import wait_until
from tests.daemon.desk import PASS, Desk, frame, recipe

from lineward.daemon.health import Alarms
from lineward.daemon.loop import inspect
from lineward.daemon.triggers import Part
from lineward.daemon.watch.chart import MEMORY_PARTS, Charts, learn
from lineward.daemon.watch.measure import compare, measure
from lineward.daemon.watch.reference import key_of
from lineward.daemon.watch.reference_file import ReferenceFileError, load
from lineward.daemon.watch.watcher import Watch
from lineward.daemon.watch.words import when
from lineward.drivers.camera import Frame
from lineward.drivers.simulation.scene import Renderer, View
from lineward.models.verdict import Decision, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from lineward.daemon.recipes import ActiveRecipe

PARTS = 120
RENDERERS: dict[str, Renderer] = {}


def picture(
    index: int, product: str = "bracket", *, view: View | None = None, defect: str | None = None
) -> NDArray[np.uint8]:
    if product not in RENDERERS:
        RENDERERS[product] = Renderer(product, seed=5, width=256, height=208, defect_rate=0.1, pixel_format="Mono8")
    return RENDERERS[product].render(
        index, view=view or View(), defect=defect, severity=None if defect is None else 1.0
    )[0]


class Station:
    """A watch without the rest of the line; its clock is the test's."""

    def __init__(self, root: Path, *, parts: int = PARTS, product: str = "bracket") -> None:
        self.now_s = 1_700_000_000.0
        self.alarms = Alarms()
        self.watch = Watch(root, self.alarms, parts=parts, clock=lambda: self.now_s)
        self.recipe = recipe(product=product)
        self.use(self.recipe)
        self.index = 0

    def use(self, in_force: ActiveRecipe) -> None:
        """Put a recipe in force and wait until its file was looked for: the line waits for that 20 ms only."""
        self.recipe = in_force
        self.watch.use(in_force)
        wait_until(self.watch._watched.ready.is_set, what="the look for its file")  # type: ignore[union-attr]

    def see(self, image: NDArray[np.uint8], verdict: Verdict = PASS) -> Verdict:
        part = Part("", "", 0, None, self.recipe, frame=Frame(image, 0, 0))
        refused = self.watch.refusal(part)
        if refused is None:
            self.watch.note(verdict)
        self.now_s += 60.0
        return refused or verdict

    def run(
        self, count: int, product: str = "bracket", *, view: View | None = None, verdict: Verdict = PASS
    ) -> list[Verdict]:
        first, self.index = self.index, self.index + count
        said = [self.see(picture(i, product, view=view), verdict) for i in range(first, self.index)]
        self.watch.speak()
        return said

    def commission(self, product: str = "bracket") -> Station:
        self.run(PARTS, product)
        wait_until(lambda: self.watch.stats()["state"] == "watching", what="the end of commissioning")
        return self

    def raised(self) -> dict[str, str]:
        return {name: alarm.text for name, alarm in self.alarms.raised().items()}

    def close(self) -> None:
        self.watch.close()


@pytest.fixture
def station(tmp_path: Path) -> Iterator[Station]:
    with closing(Station(tmp_path)) as made:
        yield made.commission()


def test_a_darker_lamp_is_named_with_its_share_and_since_when_and_goes_again(station: Station) -> None:
    """Rule: an alarm says cause, since when and what to do, and it is over when its cause is."""
    station.run(100)
    assert station.raised() == {}
    began_s = station.now_s
    station.run(MEMORY_PARTS, view=View(exposure=0.7))
    raised = station.raised()
    assert list(raised) == ["brightness"]
    match = re.match(
        r"lamp (\d+) % darker than at commissioning, since (\w+ \d\d:\d\d): clean or", raised["brightness"]
    )
    assert match is not None, raised
    assert 22 <= int(match[1]) <= 31
    at_s = float(station.watch._watched.charts.began_s[0])  # type: ignore[union-attr]
    assert began_s - 1 <= at_s <= began_s + 60 * MEMORY_PARTS / 2
    assert match[2] == when(at_s, station.now_s)
    station.run(MEMORY_PARTS + 200)
    assert station.raised() == {}


@pytest.mark.parametrize(
    ("view", "alarm", "words"),
    [
        (View(exposure=1.3), "brightness", "% brighter than at commissioning"),
        (View(blur_px=0.8), "sharpness", "% less sharp than at commissioning"),
        (View(shift_px=8), "position", "% of the width further right"),
    ],
)
def test_each_cause_has_its_own_alarm(station: Station, view: View, alarm: str, words: str) -> None:
    """Rule: a change of lamp, lens or guide is told by its name, not as drift."""
    station.run(400, view=view)
    assert words in station.raised()[alarm]


def test_a_shadow_is_told_by_its_place(station: Station) -> None:
    """Rule: what darkens one zone is not blamed on the lamp as a whole."""
    for i in range(400):
        image = picture(PARTS + i).copy()
        image[:68, :84] //= 2
        station.see(image)
    station.watch.speak()
    assert "darker at the top left than the rest" in station.raised()["brightness"]


def test_a_model_that_loses_confidence_is_told_apart_from_the_pictures(station: Station) -> None:
    """Rule: scores that drift while pictures are as they were are the model's or the process's affair."""
    station.run(300, verdict=replace(PASS, confidence=0.8, defect_probability=0.2))
    raised = station.raised()
    assert list(raised) == ["scores"]
    assert "mean confidence" in raised["scores"]
    assert "review page" in raised["scores"]


@pytest.mark.parametrize(("product", "other"), [("bracket", "flange"), ("flange", "bracket")])
def test_another_product_is_never_judged_and_no_part_of_ours_is_taken_for_one(
    tmp_path: Path, product: str, other: str
) -> None:
    """Rule: wrong product gives undecided, always; a part of the product, defective or in bad light, never does."""
    with closing(Station(tmp_path, product=product)) as station:
        station.commission(product)
        strange = station.run(60, other)
        assert {(said.decision, said.reason) for said in strange} == {(Decision.UNDECIDED, "wrong_product")}
        assert f"does not look like {product}" in station.raised()["product"]
        for kind in ("scratch", "dent", "crack", "stain", "missing_feature", "burr"):
            for i in range(15):
                said = station.see(picture(9000 + i, product, defect=kind))
                assert said.decision is Decision.PASS, (kind, i)
        assert "product" not in station.raised()
        for view in (View(exposure=0.3), View(exposure=1.6), View(blur_px=2), View(shift_px=10)):
            assert {said.decision for said in station.run(25, product, view=view)} == {Decision.PASS}
        assert station.watch.stats()["wrong_products"] == 60


@pytest.mark.parametrize("grey", [0, 90, 255])
def test_a_picture_of_nothing_is_not_judged(station: Station, grey: int) -> None:
    """Rule: an empty belt, a covered lens or a blinded sensor is no product at all."""
    assert station.see(np.full((208, 256), grey, np.uint8)).reason == "wrong_product"


def test_pictures_that_differ_too_much_switch_the_guard_off(tmp_path: Path) -> None:
    """Rule: where no picture resembles another the guard cannot tell a product, and it refuses none."""
    random = np.random.default_rng(0)
    with closing(Station(tmp_path)) as station:
        for _ in range(PARTS):
            station.see(random.integers(0, 255, (64, 64), dtype=np.uint8))
        wait_until(lambda: station.watch.stats()["state"] == "watching", what="the end of commissioning")
        assert station.watch.stats()["guard"] is False
        assert station.see(picture(1)).decision is Decision.PASS


def test_a_restart_goes_on_where_the_charts_stood(tmp_path: Path) -> None:
    """Rule: neither commissioning nor the time since when something is wrong is lost with the process."""
    with closing(Station(tmp_path).commission()) as first:
        first.run(400, view=View(exposure=0.75))
        text, now_s = first.raised()["brightness"], first.now_s
    with closing(Station(tmp_path)) as second:
        second.now_s = now_s
        second.see(picture(1, view=View(exposure=0.75)))
        second.watch.speak()
        assert second.watch.stats()["state"] == "watching"
        assert second.raised()["brightness"] == text


def test_a_promotion_hides_no_drift_and_learns_the_scores_of_its_model(station: Station, tmp_path: Path) -> None:
    """Rule: pictures are watched across a promotion and a rollback; only scores that are not known are learnt."""
    station.run(300, view=View(exposure=0.7))
    text, old = station.raised()["brightness"], station.recipe
    station.use(replace(old, model=replace(old.model, sha256="cd" * 32)))
    surer = replace(PASS, confidence=PASS.confidence / 2)
    station.run(1, view=View(exposure=0.7), verdict=surer)
    assert station.raised()["brightness"] == text
    assert "confidence" not in station.watch.stats()["limit"]
    station.run(PARTS, view=View(exposure=0.7), verdict=surer)
    wait_until(lambda: "confidence" in station.watch.stats()["limit"], what="the scores to be learnt")
    station.run(PARTS, view=View(exposure=0.7), verdict=surer)
    assert list(station.raised()) == ["brightness"]
    wait_until(key_of(station.recipe).file(tmp_path).exists, what="the file of the promoted model")
    station.use(old)
    station.run(1, view=View(exposure=0.7))
    assert "confidence" in station.watch.stats()["limit"]
    assert "brightness" in station.raised()
    station.run(MEMORY_PARTS, view=View(exposure=0.7), verdict=surer)
    assert "mean confidence" in station.raised()["scores"]


def test_scores_that_are_not_learnt_yet_outlive_a_restart_as_such(station: Station, tmp_path: Path) -> None:
    """Rule: a restart in the middle of learning the scores begins to learn them again, and loses no picture's chart."""
    promoted = replace(station.recipe, model=replace(station.recipe.model, sha256="cd" * 32))
    station.use(promoted)
    station.run(10)
    station.close()
    assert json.loads(key_of(promoted).file(tmp_path).read_text())["figures"]["confidence"]["limit"] is None
    with closing(Station(tmp_path)) as again:
        again.use(promoted)
        again.run(1)
        assert "brightness" in again.watch.stats()["limit"]
        assert "confidence" not in again.watch.stats()["limit"]


def test_a_reset_or_other_camera_settings_begin_anew(station: Station, tmp_path: Path) -> None:
    """Rule: what is normal belongs to product and camera settings, and a person can have it learnt again."""
    station.run(300, view=View(exposure=0.7))
    old = station.recipe
    station.use(replace(old, settings={"ExposureTime": 900}))
    station.see(picture(1))
    assert station.watch.stats()["state"] == "commissioning"
    assert station.raised() == {}
    station.use(old)
    station.use(replace(old, model=replace(old.model, sha256="cd" * 32)))
    station.see(picture(1))
    assert station.watch.stats()["state"] == "watching"
    assert station.watch.reset()
    assert station.watch.stats() == {"state": "commissioning", "parts": 0, "of": PARTS, "wrong_products": 0}
    wait_until(lambda: not key_of(old).files(tmp_path), what="the old files to go")


def test_commissioning_goes_on_when_its_recipe_comes_back(tmp_path: Path) -> None:
    """Rule: a line that changes over more often than a commissioning takes ends it all the same, part by part."""
    with closing(Station(tmp_path)) as station:
        first, other = station.recipe, replace(station.recipe, settings={"Gain": 3})
        for _ in range(2):
            station.run(PARTS // 2 - 10)
            station.use(other)
            station.run(10)
            station.use(first)
        assert station.watch.stats()["parts"] == PARTS - 20
        station.run(20)
        wait_until(lambda: station.watch.stats()["state"] == "watching", what="the end of commissioning")
        station.use(other)
        assert station.watch.stats()["parts"] == 20


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]", b"\xff\xfe", b'{"format": 2}'])
def test_a_damaged_file_is_said_and_commissioning_done_again(
    station: Station, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: bytes
) -> None:
    """Rule: one line that names the file and the remedy; the line is never held up by it."""
    station.close()
    path = key_of(station.recipe).file(tmp_path)
    path.write_bytes(damage)
    with pytest.raises(ReferenceFileError, match="lineward watch reset"):
        load(path)
    with closing(Station(tmp_path)) as again:
        assert again.see(picture(1)) is PASS
        assert again.watch.stats()["state"] == "commissioning"
    assert [record.message for record in caplog.records if str(path) in record.message] != []


def test_trouble_in_the_watch_is_an_alarm_and_the_part_is_judged(station: Station) -> None:
    """Rule: trouble in image health never stops the line."""
    assert station.see(np.zeros((4, 4), np.float64)) is PASS  # type: ignore[arg-type]
    assert "inspection goes on" in station.raised()["watch"]


def test_a_folder_that_cannot_be_written_is_an_alarm(tmp_path: Path) -> None:
    """Rule: commissioning holds without a disk, it only does not outlive the process, and that is said."""
    (tmp_path / "commissioning").write_text("in the way")
    with closing(Station(tmp_path).commission()) as station:
        wait_until(lambda: "watch" in station.raised(), what="the alarm about the disk")
        assert "not kept beyond a restart" in station.raised()["watch"]
        assert station.run(5, "flange")[0].reason == "wrong_product"


def test_in_the_loop_another_product_is_answered_undecided(tmp_path: Path) -> None:
    """Rule: the guard stands before the judge, so that no verdict about another product can get out."""
    with closing(Desk(tmp_path)) as desk:
        watch = Watch(tmp_path, desk.alarms, parts=PARTS)
        in_force = recipe()
        desk.book.activate(in_force)
        watch.use(in_force)
        wait_until(watch._watched.ready.is_set, what="the look for its file")  # type: ignore[union-attr]

        def inspect_all(product: str, count: int) -> None:
            frames = [replace(frame(i), image=picture(i, product)) for i in range(count)]
            parts = (desk.book.from_frame(each) for each in frames)
            inspect(parts, desk.answers, review=desk.review, heart=desk.results, alarms=desk.alarms, watch=watch)

        inspect_all("bracket", PARTS)
        wait_until(lambda: watch.stats()["state"] == "watching", what="the end of commissioning")
        inspect_all("flange", 3)
        inspect_all("bracket", 2)
        watch.close()
        assert [row[1:3] for row in desk.rows()[PARTS:]] == [("undecided", "wrong_product")] * 3 + [("pass", "")] * 2


def test_parts_that_came_before_a_changeover_are_judged_by_the_recipe_of_then(tmp_path: Path) -> None:
    """Rule: pictures of the old product that wait while another recipe comes into force are no wrong product."""
    with closing(Station(tmp_path)) as station:
        station.commission()
        station.use(recipe(name="flange", product="flange"))
        station.index = 0
        station.commission("flange")
        old, station.recipe = station.recipe, recipe(product="bracket")
        assert [said.decision for said in station.run(3)] == [Decision.PASS] * 3
        assert "product" not in station.raised()
        station.recipe = old
        assert station.run(1, "bracket")[0].reason == "wrong_product"


def test_a_batch_is_no_drift() -> None:
    """Rule: parts of one batch resemble each other; limits that took them for independent would cry wolf all day."""
    random, alarms = np.random.default_rng(1), 0
    for _ in range(8):
        batches = np.repeat(random.normal(0, 1, 600), 40)
        values = (batches + random.normal(0, 1, len(batches)))[:, None]
        charts = Charts(learn(values[:2000], np.array([1e-9])), 0.0)
        for value in values[2000:12_000]:
            charts.see(value, 0.0)
            if charts.out[0]:
                alarms += 1
                break
    assert alarms <= 3  # of 8 lines with 250 batches each and no floor


def test_the_shift_is_measured_to_a_tenth_of_a_pixel_of_the_small_copy() -> None:
    """Rule: right and down are shares of width and height, positive to the right and downwards."""
    one = picture(3)
    moved = np.roll(one, (6, 13), (0, 1))
    likeness = compare(measure(moved).small, measure(one).small)
    assert likeness.right == pytest.approx(13 / 256, abs=0.1 / 64)
    assert likeness.down == pytest.approx(6 / 208, abs=0.1 / 64)
    assert likeness.distance < 0.05


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (3, 5), (5000, 20), (96, 96, 3), (2048, 2448)])
def test_pictures_of_every_size_are_measured(shape: tuple[int, ...]) -> None:
    """Rule: no size of picture is trouble."""
    image = np.random.default_rng(2).integers(0, 255, shape, dtype=np.uint8)
    measured = measure(image)
    assert measured.small.shape == (64, 64)
    assert measured.zones.mean() == pytest.approx(image.mean(), rel=0.1)


def test_times_are_said_as_people_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: a weekday is understood within a week, a date afterwards."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    at_s = 1_700_000_000.0  # 2023-11-14 22:13:20 UTC, a Tuesday
    assert when(at_s, at_s + 3600) == "Tuesday 22:13"
    assert when(at_s, at_s + 8 * 86400) == "14 November 22:13"
    monkeypatch.undo()
    time.tzset()


def test_the_file_holds_what_a_person_can_read(station: Station, tmp_path: Path) -> None:
    """Rule: the file of commissioning names product, model and each limit."""
    wait_until(lambda: key_of(station.recipe).file(tmp_path).exists(), what="the file of commissioning")
    content = json.loads(key_of(station.recipe).file(tmp_path).read_text())
    assert (content["product"], content["model"], content["parts"]) == ("bracket", station.recipe.model.sha256, PARTS)
    assert content["figures"]["brightness"]["limit"] >= 0.04
