"""Recipes: what a station is set up for, loaded and tried before it is in force.

A recipe is a model with its camera settings, region of interest, thresholds and deadline. The one of ``[inspection]``
and ``[camera.settings]`` is called ``default``; ``[recipes.NAME]`` adds others.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from lineward.daemon.result import ModelRef
from lineward.models.bundle import BundleError, load_bundle, load_manifest
from lineward.models.naming import StoreError
from lineward.models.parity import check_outputs
from lineward.models.session import Session
from lineward.models.store import resolve_model
from lineward.models.store_files import write_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from lineward.daemon.config import Config
    from lineward.daemon.health import Alarms
    from lineward.drivers.camera import Setting
    from lineward.models.verdict import Thresholds, Verdict

log = logging.getLogger("lineward.recipe")

DEFAULT = "default"


class Judge(Protocol):
    """What a recipe needs of a loaded model; `Session` is one."""

    @property
    def providers(self) -> tuple[str, ...]:
        """What runs the model."""

    @property
    def missing_providers(self) -> tuple[str, ...]:
        """What was wished for and is not there."""

    def judge(self, image: NDArray[np.uint8]) -> Verdict:
        """Judge one image ``(H, W)`` or ``(H, W, 3)`` RGB uint8."""


class UnknownRecipeError(ValueError):
    """There is no such recipe; the message lists those there are."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What the configuration says about one recipe.

    Attributes
    ----------
    settings
        Everything that is written to the camera, in order.
    roi
        Region of interest x, y, width, height as fractions of the image, instead of the bundle's.
    """

    name: str
    model: Path
    deadline_ms: float
    settings: Mapping[str, Setting]
    roi: tuple[float, float, float, float] | None = None
    thresholds: Thresholds | None = None


@dataclass(frozen=True, slots=True)
class ActiveRecipe:
    """A recipe that is loaded, warm and tried.

    Attributes
    ----------
    path
        The bundle it was loaded from.
    quickest_ms
        Milliseconds that the model takes for a part at least, on this machine.
    """

    name: str
    product: str
    model: ModelRef
    deadline_ms: float
    settings: Mapping[str, Setting]
    session: Judge = field(compare=False)
    path: Path
    quickest_ms: float = field(default=0.0, compare=False)

    @property
    def too_slow(self) -> str:
        """Why no part could be answered in time, and what to do, in one line; empty when parts can."""
        if self.quickest_ms <= self.deadline_ms:
            return ""
        return (
            f"{self.path}: takes {self.quickest_ms:.0f} ms for a part on this machine at the least, and deadline_ms is "
            f"{self.deadline_ms:.0f}: every part would be undecided; train it with a smaller --size or with --int8, or "
            "allow more time"
        )


@dataclass(frozen=True, slots=True)
class Switch:
    """A prepared recipe on its way into force, between two parts.

    Attributes
    ----------
    done
        Called once by the loop, with an empty reason when the recipe is in force, else with a word for the PLC and a
        text for a person.
    """

    recipe: ActiveRecipe
    done: Callable[[str, str], None]


class Recipes:
    """The recipes of one configuration."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._memory = config.storage.root / "recipe"
        inspection, camera = config.inspection, config.camera
        self._recipes = {DEFAULT: Recipe(DEFAULT, inspection.model, inspection.deadline_ms, camera.settings)}
        for name, section in config.recipes.items():
            self._recipes[name] = Recipe(
                name,
                section.model,
                section.deadline_ms or inspection.deadline_ms,
                {**camera.settings, **section.settings},
                section.roi,
                None if section.thresholds is None else section.thresholds.thresholds(),
            )

    @property
    def names(self) -> list[str]:
        """Return the names of all recipes."""
        return list(self._recipes)

    def find(self, wanted: str) -> Recipe:
        """Find a recipe by its name or, where that is unambiguous, by the product of its model.

        Raises
        ------
        UnknownRecipeError
            There is none, or there are several for this product.
        """
        if wanted in self._recipes:
            return self._recipes[wanted]
        made_for = [recipe for recipe in self._recipes.values() if self._product(recipe) == wanted]
        if len(made_for) == 1:
            return made_for[0]
        known = ", ".join(self._recipes)
        if made_for:
            several = ", ".join(recipe.name for recipe in made_for)
            raise UnknownRecipeError(f"product {wanted[:64]!r} has several recipes ({several}); name one of them")
        raise UnknownRecipeError(
            f"no recipe {wanted[:64]!r}; known are {known}: correct the name, or add [recipes.NAME] to the "
            "configuration"
        )

    def _product(self, recipe: Recipe) -> str | None:
        try:
            return load_manifest(resolve_model(self._config.storage.root, recipe.model)).product
        except BundleError:
            return None

    def path(self, recipe: Recipe) -> Path:
        """Return the bundle that a recipe means now; raises `BundleError`."""
        return resolve_model(self._config.storage.root, recipe.model)

    def load(self, recipe: Recipe) -> tuple[ActiveRecipe, Session]:
        """Load a recipe's model, warm it up and see that it says what it should.

        Raises
        ------
        BundleError
            It cannot be used; the message names it and the remedy.
        """
        inspection = self._config.inspection
        path = self.path(recipe)
        session = Session(
            path,
            providers=inspection.providers,
            intra_op_threads=inspection.threads,
            roi=recipe.roi,
            thresholds=recipe.thresholds,
        )
        quickest_ms = session.warm_up()
        check_outputs(session, path)
        manifest = session.manifest
        ready = ActiveRecipe(
            recipe.name,
            manifest.product,
            ModelRef(manifest.product, manifest.version, session.sha256),
            recipe.deadline_ms,
            recipe.settings,
            session,
            path,
            quickest_ms,
        )
        return ready, session

    def prepare(self, recipe: Recipe) -> ActiveRecipe:
        """Make a recipe ready to be put in force; raises as `load`."""
        return self.load(recipe)[0]

    def adopt(self, other: Recipes) -> None:
        """Be what another configuration of the same station says, for all who hold us."""
        self._config, self._recipes = other._config, other._recipes

    def means_the_same(self, other: Recipes, active: ActiveRecipe) -> bool:
        """Tell whether the active recipe needs no change under another configuration; raises `BundleError`."""
        old, new = self._recipes.get(active.name), other._recipes.get(active.name)
        if new is None or old != new or other.path(new) != active.path:
            return False
        before, after = self._config.inspection, other._config.inspection
        runs = (before.providers, before.threads) == (after.providers, after.threads)
        return runs and load_bundle(active.path).sha256 == active.model.sha256

    def remember(self, name: str) -> str:
        """Keep the recipe in force beyond a restart: a line must not go back to another product by itself.

        Waits for the disk, so not for the loop. Returns what is wrong when the disk does not take it.
        """
        try:
            write_whole(self._memory, f"{name}\n".encode())
        except StoreError as error:
            return f"recipe {name} is in force, but a restart would not know it: {error}"
        return ""

    def remembered(self, alarms: Alarms) -> Recipe:
        """Return the recipe that was last in force, or the default one; one that is gone meanwhile is an alarm."""
        try:
            name = self._memory.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return self._recipes[DEFAULT]
        self.tell_if_gone(name, alarms)
        return self.here_or_default(name)

    def here_or_default(self, name: str) -> Recipe:
        """Return the recipe of that name, or the default one where it is gone."""
        return self._recipes.get(name, self._recipes[DEFAULT])

    def tell_if_gone(self, name: str, alarms: Alarms) -> None:
        """Raise the alarm that the recipe that was in force is not there any more, until somebody chooses one."""
        if name in self._recipes:
            return
        alarms.set(
            "recipe",
            f"recipe {name} was in force and is not in the configuration any more: {DEFAULT} is in force instead; put "
            f"[recipes.{name}] back, reload and change over to it, or change over to the recipe that is meant",
            severity="warning",
        )
