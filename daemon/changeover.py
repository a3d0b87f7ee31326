"""Changing over: a recipe is prepared here, beside the running line, and put in force between two parts.

The same way serves a product changeover, the promotion of a new model and the way back to an old one.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from typing import TYPE_CHECKING

from lineward.daemon.recipes import Switch
from lineward.models.bundle import BundleError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lineward.daemon.health import Alarms
    from lineward.daemon.recipes import ActiveRecipe, Recipe, Recipes
    from lineward.daemon.triggers import TriggerBook

    Reply = Callable[[str], None]

log = logging.getLogger("lineward.recipe")

CHANGEOVER = "changeover"
"""Name of the thread."""

LOOK_S = 1.0
"""How often the model store is looked at: a promotion is in force a second later."""

AGAIN_S = 60.0
"""How long a promoted model waits for another try when not its bundle but the machine (memory, disk) failed it."""


class Refused(Exception):  # noqa: N818 - an answer to a command, not a fault
    """The request is turned down at once: ``word`` for the PLC, ``text`` for a person."""

    def __init__(self, word: str, text: str) -> None:
        super().__init__(text)
        self.word = word


def refuse_slow(ready: ActiveRecipe) -> None:
    """Raise `BundleError` for a model that could answer no part in time: the one in force can."""
    if ready.too_slow:
        raise BundleError(ready.too_slow)


class Changeover:
    """Prepares one recipe at a time in a thread of its own.

    Parameters
    ----------
    in_force
        Called by the loop, between two parts, when another recipe is in force.
    """

    def __init__(
        self, recipes: Recipes, book: TriggerBook, alarms: Alarms, in_force: Callable[[ActiveRecipe], None]
    ) -> None:
        self._recipes = recipes
        self._book = book
        self._alarms = alarms
        self._in_force = in_force
        self._lock = threading.Lock()
        self._busy = ""
        self._wanted: queue.Queue[tuple[str, Reply] | Callable[[], None] | None] = queue.Queue()
        self._unusable: Path | None = None
        """What the store names and could not be put in force."""
        self._again = 0.0
        self._unwritten = ""
        self._thread = threading.Thread(target=self._run, name=CHANGEOVER, daemon=True)

    def start(self) -> None:
        """Begin to take requests and to watch the model store."""
        self._thread.start()

    def close(self) -> None:
        """Take no more requests; one that is being prepared is not waited for longer than a second."""
        self._wanted.put(None)
        if self._thread.is_alive():
            self._thread.join(1.0)

    def request(self, wanted: str, reply: Reply) -> None:
        """Change over to a recipe; ``reply`` is called once, with an empty word when it is in force.

        Raises
        ------
        Refused
            Nothing was begun, and ``reply`` is not called.
        """
        if self._book.active is None:
            raise Refused("not_ready", "no model is loaded yet; wait for the state ready or continuous_execution")
        self._take(wanted)
        self._wanted.put((wanted, reply))  # found in our own thread: looking for a product reads every bundle

    def replace(self, recipes: Recipes, reply: Callable[[str, str], None]) -> None:
        """Put the recipes of another configuration in the place of ours, all or none.

        What follows the recipe in force is prepared here, in the caller's thread, and put in force between two parts.
        ``reply`` is called once, with an empty word when that is done, else with a word and a text.

        Raises
        ------
        Refused
            Nothing was begun, and ``reply`` is not called.
        """
        active = self._book.active
        if active is None:
            raise Refused("not_ready", "no model is loaded yet; wait for the state ready or continuous_execution")
        self._take("the new configuration")

        def over(word: str, text: str) -> None:
            if not word:
                self._recipes.adopt(recipes)
                self._unusable = None
            self._end(word, None)
            reply(word, text)

        try:
            if self._recipes.means_the_same(recipes, active):
                over("", "")
                return
            ready = recipes.prepare(recipes.here_or_default(active.name))
            refuse_slow(ready)
        except BundleError as error:
            over("preparation_failed", str(error))
            return
        except Exception as error:  # ONNX Runtime, the disk: whatever it is, the old recipe goes on
            log.debug("preparing the new configuration failed", exc_info=True)
            over("preparation_failed", f"recipe {active.name}: {error}")
            return

        def remember() -> None:
            self._remember(ready.name)
            over("", "")

        def done(word: str, text: str) -> None:
            if word:
                over(word, text)
                return
            self._in_force(ready)
            recipes.tell_if_gone(active.name, self._alarms)
            self._wanted.put(remember)

        self._book.post(Switch(ready, done))

    def _take(self, name: str) -> None:
        with self._lock:
            if self._busy:
                raise Refused("busy", f"the changeover to {self._busy} is not over; wait for its acknowledgement")
            self._busy = name

    def _run(self) -> None:
        while True:
            try:
                wanted = self._wanted.get(timeout=LOOK_S)
            except queue.Empty:
                if self._unwritten:
                    self._remember(self._unwritten)
                self._look_at_store()
                continue
            if wanted is None:
                return
            if not isinstance(wanted, tuple):
                wanted()
                continue
            name, reply = wanted
            try:
                recipe = self._recipes.find(name)
            except ValueError as error:
                log.warning("changeover refused (unknown_recipe): %s", error)
                self._end("unknown_recipe", reply)
            else:
                self._prepare(recipe, reply)

    def _prepare(self, recipe: Recipe, reply: Reply | None) -> None:
        began = time.monotonic()
        log.info("recipe %s is being prepared", recipe.name)
        try:
            ready = self._recipes.prepare(recipe)
            refuse_slow(ready)
        except BundleError as error:
            self._fail(recipe, reply, str(error), math.inf)
            return
        except Exception as error:  # ONNX Runtime, the disk: whatever it is, the old recipe goes on
            log.debug("preparing recipe %s failed", recipe.name, exc_info=True)
            self._fail(recipe, reply, f"recipe {recipe.name}: {error}", AGAIN_S)
            return
        if reply is None and self._path(recipe) != ready.path:
            log.info("recipe %s: model %s is not the current one any more", recipe.name, ready.model.version)
            self._end("", None)
            return

        def remember() -> None:
            self._remember(recipe.name)
            self._finish(recipe.name, reply, "", "")

        def done(word: str, text: str) -> None:
            if word:
                self._finish(recipe.name, reply, word, text)
                return
            self._in_force(ready)
            took = time.monotonic() - began
            what = f"{ready.product}, model {ready.model.version}"
            log.info("recipe %s is in force after %.2f s: %s", recipe.name, took, what)
            self._wanted.put(remember)  # waits for the disk; done before anybody hears that the recipe is in force

        self._book.post(Switch(ready, done))

    def _fail(self, recipe: Recipe, reply: Reply | None, text: str, again_s: float) -> None:
        if reply is None:
            self._unusable, self._again = self._path(recipe), time.monotonic() + again_s
        self._finish(recipe.name, reply, "preparation_failed", text)

    def _remember(self, name: str) -> None:
        """Keep the recipe beyond a restart; a disk that does not take it is an alarm, and is tried until it does."""
        trouble = self._recipes.remember(name)
        self._unwritten = name if trouble else ""
        self._alarms.set("memory", trouble, severity="warning")

    def _finish(self, name: str, reply: Reply | None, word: str, text: str) -> None:
        """Tell how it went; after a failure the recipe before is still in force."""
        old = self._book.active
        kept = ""
        if old is not None:
            kept = f"; {f'model {old.model.version}' if old.name == name else old.name} stays in force"
        self._alarms.set("recipe", f"recipe {name} is not in force: {text}{kept}" if word else "", severity="warning")
        self._end(word, reply)

    def _end(self, word: str, reply: Reply | None) -> None:
        with self._lock:
            self._busy = ""
        if reply is not None:
            reply(word)

    def _path(self, recipe: Recipe) -> Path | None:
        try:
            return self._recipes.path(recipe)
        except BundleError:
            return None

    def _look_at_store(self) -> None:
        """Follow the model store: another version was promoted, or the last one taken back."""
        active = self._book.active
        if active is None:
            return
        try:
            recipe = self._recipes.find(active.name)
        except ValueError:
            return
        try:
            path = self._recipes.path(recipe)
            trouble = "" if path.exists() else f"{path}: gone; put it back"
        except (BundleError, OSError) as error:
            path, trouble = None, str(error)
        kept = f"; model {active.model.version} goes on judging from memory, and a restart would find none"
        self._alarms.set("store", f"{trouble}{kept}" if trouble else "", severity="warning")
        if path == active.path and self._unusable is not None:  # what could not be used was taken back
            self._unusable = None
            self._alarms.set("recipe", "")
        if trouble or path == active.path or (path == self._unusable and time.monotonic() < self._again):
            return
        try:
            self._take(recipe.name)
        except Refused:
            return
        self._unusable = None
        self._prepare(recipe, None)
