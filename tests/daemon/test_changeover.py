"""The recipe in force is remembered through a power cut, and the loop does not wait for the disk."""

from __future__ import annotations

import os
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.broker import wait_until
from tests.daemon import desk

from lineward.daemon.changeover import Changeover
from lineward.daemon.config import Config
from lineward.daemon.health import Alarms
from lineward.daemon.recipes import ActiveRecipe, Recipe, Recipes, Switch
from lineward.models.bundle import BundleError

if TYPE_CHECKING:
    from collections.abc import Iterator


class Loaded(Recipes):
    """Recipes whose models need no loading."""

    def prepare(self, recipe: Recipe) -> ActiveRecipe:
        return desk.recipe(name=recipe.name)


def config(root: Path, **sections: object) -> Config:
    return Config.model_validate(
        {
            "camera": {"driver": "simulated"},
            "inspection": {"model": "x.lward"},
            "recipes": {"flange": {"model": "y.lward"}},
            "storage": {"root": str(root)},
            **sections,
        }
    )


def test_the_recipe_in_force_is_on_the_disk_before_anybody_hears_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: name and folder are forced to the disk, in that order, by the changeover's thread, before the reply."""
    forced: list[tuple[Path, str, str]] = []
    fsync = os.fsync

    def watched(fd: int) -> None:
        path, name = Path(f"/proc/self/fd/{fd}").resolve(), tmp_path / "recipe"
        if tmp_path in {path, path.parent} and "ledger" not in path.name:
            text = name.read_text() if path == tmp_path else path.read_text()
            forced.append((path if path == tmp_path else path.parent, text, threading.current_thread().name))
        fsync(fd)

    with closing(desk.Desk(tmp_path)) as station:
        station.book.activate(desk.recipe())
        recipes = Loaded(config(tmp_path))
        changeover = Changeover(recipes, station.book, station.alarms, lambda _recipe: None)
        changeover.start()
        heard: list[tuple[str, int]] = []
        over = threading.Event()

        def reply(word: str) -> None:
            heard.append((word, len(forced)))
            over.set()

        monkeypatch.setattr(os, "fsync", watched)
        changeover.request("flange", reply)
        switch = station.book.next(10)
        assert isinstance(switch, Switch)
        station.book.activate(switch.recipe)
        switch.done("", "")
        assert over.wait(10)
        monkeypatch.undo()
        changeover.close()
    assert forced == [(tmp_path, "flange\n", "changeover")] * 2, "the file in its folder, then the folder"
    assert heard == [("", 2)]
    assert recipes.remembered(Alarms()).name == "flange"
    assert [path.name for path in tmp_path.iterdir() if "recipe" in path.name] == ["recipe"], "nothing is left behind"


def test_a_recipe_that_cannot_be_remembered_is_in_force_and_tried_until_the_disk_takes_it(tmp_path: Path) -> None:
    """Rule: acknowledged is acknowledged; an alarm lasts as long as a restart would go back to another product."""
    root = tmp_path / "root"
    root.write_text("a file where the folder should be")
    with closing(desk.Desk(tmp_path)) as station:
        station.book.activate(desk.recipe())
        recipes = Loaded(config(root))
        changeover = Changeover(recipes, station.book, station.alarms, lambda _recipe: None)
        changeover.start()
        heard: list[str] = []
        changeover.request("flange", heard.append)
        switch = station.book.next(10)
        assert isinstance(switch, Switch)
        station.book.activate(switch.recipe)
        switch.done("", "")
        wait_until(lambda: heard == [""], 10, "the reply")
        alarm = station.alarms.raised()["memory"]
        assert alarm.text.startswith("recipe flange is in force, but a restart would not know it: ")
        assert alarm.severity == "warning"
        assert recipes.remembered(Alarms()).name == "default"
        root.unlink()
        root.mkdir()
        wait_until(lambda: "memory" not in station.alarms.raised(), 10, "it is written down")
        assert recipes.remembered(Alarms()).name == "flange"
        changeover.close()


def test_a_recipe_that_is_gone_from_the_configuration_is_an_alarm(tmp_path: Path) -> None:
    """Rule: a start with another recipe than the one before is told to the line, and a change of recipe ends that."""
    (tmp_path / "recipe").write_text("strict\n")
    alarms = Alarms()
    assert Recipes(config(tmp_path)).remembered(alarms).name == "default"
    assert "recipe strict was in force" in alarms.raised()["recipe"].text
    (tmp_path / "recipe").write_text("flange\n")
    quiet = Alarms()
    assert Recipes(config(tmp_path)).remembered(quiet).name == "flange"
    assert quiet.raised() == {}


def test_a_change_of_recipe_ends_the_alarm_that_one_is_gone(tmp_path: Path) -> None:
    """Rule: who has chosen a recipe need not be told any more that another one is gone, nor at the next start."""
    (tmp_path / "recipe").write_text("strict\n")
    with closing(desk.Desk(tmp_path)) as station:
        recipes = Loaded(config(tmp_path))
        station.book.activate(recipes.prepare(recipes.remembered(station.alarms)))
        assert "recipe" in station.alarms.raised()
        over = threading.Event()
        with closing(Changeover(recipes, station.book, station.alarms, lambda _recipe: None)) as changeover:
            changeover.start()
            changeover.request("default", lambda _word: over.set())
            switch = station.book.next(10)
            assert isinstance(switch, Switch)
            switch.done("", "")
            assert over.wait(10)
        assert station.alarms.raised() == {}
        recipes.remembered(station.alarms)
        assert station.alarms.raised() == {}


def test_a_new_configuration_without_the_recipe_in_force_is_an_alarm(tmp_path: Path) -> None:
    """Rule: a reload that changes over to another product by itself says so, until somebody chooses a recipe."""
    with closing(desk.Desk(tmp_path)) as station:
        old = Loaded(config(tmp_path))
        station.book.activate(desk.recipe(name="flange"))
        with closing(Changeover(old, station.book, station.alarms, station.book.activate)) as changeover:
            changeover.start()
            over = threading.Event()
            changeover.replace(Loaded(config(tmp_path, recipes={})), lambda _word, _text: over.set())
            switch = station.book.next(10)
            assert isinstance(switch, Switch)
            switch.done("", "")
            assert over.wait(10)
            assert "recipe flange was in force and is not" in station.alarms.raised()["recipe"].text
            chosen = threading.Event()
            changeover.request("default", lambda _word: chosen.set())
            switch = station.book.next(10)
            assert isinstance(switch, Switch)
            switch.done("", "")
            assert chosen.wait(10)
        assert station.alarms.raised() == {}


class Following(Recipes):
    """Recipes that mean whatever the store names; loading can be made to fail, or to wait."""

    named = Path("bracket.lward")
    trouble = ""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.prepared: list[Path] = []
        self.may_load = threading.Event()
        self.may_load.set()

    def path(self, recipe: Recipe) -> Path:
        if self.trouble:
            raise BundleError(self.trouble)
        return self.named

    def prepare(self, recipe: Recipe) -> ActiveRecipe:
        path = self.named
        self.prepared.append(path)
        self.may_load.wait(10)
        if path.stem == "bad":
            raise BundleError(f"{path}: ONNX Runtime refuses it; train it again")
        slow = replace(desk.recipe(name=recipe.name), path=path, quickest_ms=9000 if path.stem == "slow" else 1)
        return replace(slow, deadline_ms=500)


@pytest.fixture
def following(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[desk.Desk, Following]]:
    """A station whose bracket.lward is in force, and the store that it follows."""
    monkeypatch.setattr("lineward.daemon.changeover.LOOK_S", 0.02)
    monkeypatch.chdir(tmp_path)
    for name in ("bracket", "second", "bad", "slow"):
        Path(f"{name}.lward").touch()
    with closing(desk.Desk(tmp_path)) as station:
        recipes = Following(config(tmp_path))
        station.book.activate(replace(desk.recipe(), path=recipes.named))
        with closing(Changeover(recipes, station.book, station.alarms, lambda _recipe: None)) as changeover:
            changeover.start()
            yield station, recipes


def test_a_promotion_that_is_taken_back_while_it_is_prepared_never_judges(
    following: tuple[desk.Desk, Following], caplog: pytest.LogCaptureFixture
) -> None:
    """Rule: who rolls back hears that the old model judges; the new one does not come into force behind that."""
    station, recipes = following
    caplog.set_level("INFO", "lineward.recipe")
    recipes.may_load.clear()
    recipes.named = Path("second.lward")
    wait_until(lambda: recipes.prepared, 10, "it is being prepared")
    recipes.named = Path("bracket.lward")
    recipes.may_load.set()
    wait_until(lambda: "is not the current one any more" in caplog.text, 10, "it is let go")
    assert not isinstance(station.book.next(0.2), Switch)
    recipes.named = Path("second.lward")  # and the way is free for the next one
    assert isinstance(station.book.next(10), Switch)


def test_a_promotion_that_failed_is_an_alarm_until_it_is_taken_back(following: tuple[desk.Desk, Following]) -> None:
    """Rule: the alarm names the model that goes on judging, is tried once, and ends with the way back."""
    station, recipes = following
    recipes.named = Path("bad.lward")
    wait_until(lambda: "recipe" in station.alarms.raised(), 10, "the alarm")
    text = station.alarms.raised()["recipe"].text
    assert "ONNX Runtime refuses it" in text
    assert text.endswith("; model 1 stays in force")
    assert station.book.next(0.3) is None
    assert recipes.prepared == [Path("bad.lward")]
    recipes.named = Path("bracket.lward")
    wait_until(lambda: not station.alarms.raised(), 10, "the alarm is over")


def test_a_model_slower_than_the_deadline_does_not_come_into_force(following: tuple[desk.Desk, Following]) -> None:
    """Rule: with it no part could be answered in time, with the one in force they are."""
    station, recipes = following
    recipes.named = Path("slow.lward")
    wait_until(lambda: "recipe" in station.alarms.raised(), 10, "the alarm")
    text = station.alarms.raised()["recipe"].text
    assert "slow.lward: takes 9000 ms for a part on this machine at the least, and deadline_ms is 500" in text
    assert station.book.next(0.3) is None


def test_a_model_that_is_gone_or_damaged_on_the_disk_is_an_alarm(following: tuple[desk.Desk, Following]) -> None:
    """Rule: it goes on judging from memory, and somebody hears of it before the next start does."""
    station, recipes = following
    recipes.trouble = "bracket.lward: not the file that was added to the store; add it again"
    wait_until(lambda: "store" in station.alarms.raised(), 10, "the alarm")
    alarm = station.alarms.raised()["store"]
    assert alarm.text.startswith(recipes.trouble + "; model 1 goes on judging from memory")
    assert alarm.severity == "warning"
    recipes.trouble = ""
    wait_until(lambda: not station.alarms.raised(), 10, "the alarm is over")
    Path("bracket.lward").unlink()  # one that the configuration names by its file
    wait_until(lambda: "store" in station.alarms.raised(), 10, "the alarm")
    assert "bracket.lward: gone; put it back" in station.alarms.raised()["store"].text
    assert recipes.prepared == []
