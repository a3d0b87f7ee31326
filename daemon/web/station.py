"""What all pages share: configuration, labels, people, pictures, the line's feed, and the training that may run."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from lineward.daemon.label_records import BLIND, FIRST, NEW, SECOND
from lineward.daemon.labels import LabelStore
from lineward.daemon.ledger_read import LedgerReader
from lineward.daemon.thumbnails import ThumbnailReader
from lineward.daemon.web.feed import Feed
from lineward.daemon.web.flagged import Flagged
from lineward.daemon.web.heat import HeatMaps
from lineward.daemon.web.jobs import Jobs
from lineward.daemon.web.people import ForbiddenError, People
from lineward.daemon.web.pictures import Pictures
from lineward.daemon.web.scratch import AtWork, clear
from lineward.models import store
from lineward.models.bundle import BundleError, load_manifest
from lineward.models.store import resolve_model

if TYPE_CHECKING:
    from pathlib import Path

    from lineward.daemon.config import Config
    from lineward.daemon.label_records import Part
    from lineward.daemon.web.people import Person
    from lineward.models.bundle import Manifest

SIGNED_OUT = "you are signed out; sign in again, nothing was changed"
AHEAD = 6
"""Pictures that the browser fetches before they are shown."""

CATCH_UP_S = 0.5
HELD_S = 120.0
"""A part on somebody's screen is not shown to another person for so long."""


class Access:
    """A signed-in person on one page; asked anew before each action, for a session ends and a role changes."""

    def __init__(self, people: People, token: str) -> None:
        self._people = people
        self.token = token

    def need(self, role: str) -> Person:
        """Return the person, who is there and has this role.

        Raises
        ------
        ForbiddenError
            The session is over, or the role is not enough.
        """
        person = self._people.who(self.token)
        if person is None:
            raise ForbiddenError(SIGNED_OUT)
        if not person.may(role):
            raise ForbiddenError(f"this needs the role {role}, {person.name} is {person.role}; nothing was changed")
        return person

    def present(self) -> Person | None:
        """Return the person if the session goes on, without prolonging it."""
        return self._people.who(self.token, touch=False)


class Station:
    """Made once for the process; closed at its end."""

    def __init__(self, config: Config) -> None:
        review = config.review
        self.config = config
        self.root = config.storage.root
        self.people = People(self.root, session_s=review.session_minutes * 60, operator_s=review.operator_hours * 3600)
        clear(self.root)
        self._at_work = AtWork(self.root)
        self.labels = LabelStore(self.root)
        self.ledger = LedgerReader(self.root / "ledger.sqlite3")
        self.flagged = Flagged(self.ledger, self.labels)
        self.pictures = Pictures(self.labels)
        self.thumbnails = ThumbnailReader(self.root)
        self.feed = Feed(config, self.ledger, self.thumbnails)
        self.heat = HeatMaps()
        self.jobs = Jobs(self)
        self._manifests: dict[Path, tuple[tuple[int, ...], Manifest]] = {}
        self._held: dict[str, tuple[str, float]] = {}
        self._holding = threading.Lock()
        self._work: set[asyncio.Future[None]] = set()

    def close(self) -> None:
        """Let go of everything."""
        self.jobs.close()
        self.heat.close()
        self.feed.close()
        self.ledger.close()
        self.labels.close()
        self.people.close()
        self._at_work.close()

    # ---- products and models

    def products(self) -> list[str]:
        """Return the products of this station, that of [inspection] first."""
        found: list[str] = []
        for model in self._models():
            if not model.suffix:
                found.append(str(model))
            else:
                with suppress(BundleError):
                    found.append(self.manifest(model).product)
        return list(dict.fromkeys([*found, *self.labels.products()])) or ["unknown"]

    def model_path(self, product: str) -> Path | None:
        """Return the bundle that judges a product now: the store's current one, or the file of the configuration."""
        path = store.current(self.root, product)
        for model in self._models():
            with suppress(BundleError):
                wanted = resolve_model(self.root, model)
                if self.manifest(wanted).product == product and (model.suffix or path is None):
                    return wanted
        return path

    def manifest(self, path: Path) -> Manifest:
        """Read and verify a bundle, again only when its file is another one: that takes a tenth of a second.

        Raises
        ------
        BundleError
            There is no such file, or it is no bundle.
        """
        try:
            about = path.stat()
        except OSError:
            return load_manifest(path)  # says what is wrong
        state = (about.st_ino, about.st_size, about.st_mtime_ns)
        known = self._manifests.get(path)
        if known is None or known[0] != state:
            known = self._manifests[path] = (state, load_manifest(path))
        return known[1]

    def follows_store(self, product: str) -> bool:
        """Tell whether a promotion reaches the running line: the configuration names the product and no file."""
        return any(str(model) == product for model in self._models())

    def _models(self) -> list[Path]:
        return [self.config.inspection.model, *(recipe.model for recipe in self.config.recipes.values())]

    def base_data(self, product: str) -> Path | None:
        """Return the folder the product was first trained on, where the configuration names one."""
        base = self.config.review.base_data
        if base is None:
            return None
        own = base / product
        return own if (own / "good").is_dir() else base if (base / "good").is_dir() else None

    def defect_types(self, product: str) -> list[str]:
        """Return the defect types to choose from, in use, of the model or of the base data; each keeps its place."""
        found = list(self.labels.defect_types(product))
        path = self.model_path(product)
        if path is not None:
            with suppress(BundleError):
                found += self.manifest(path).defect_types
        base = self.base_data(product)
        if base is not None and (base / "defect").is_dir():
            found += sorted(folder.name for folder in (base / "defect").iterdir() if folder.is_dir())
        return self.labels.in_their_places(product, found)

    # ---- the queue

    async def catch_up(self) -> None:
        """Take in what the line has kept; a page waits for that only briefly, the rest comes while it is shown."""
        work = asyncio.ensure_future(asyncio.to_thread(self.flagged.sync))
        self._work.add(work)
        work.add_done_callback(self._work.discard)
        await asyncio.wait([work], timeout=CATCH_UP_S)

    def next_parts(self, product: str, person: Person, *, shown: list[str]) -> list[tuple[Part, str]]:
        """Return the next parts to label and why each is asked for; `hold` each when it is to be shown.

        Some are checks that look like any other: parts another person labelled, and blind repeats.
        """
        others = self._with_others(person)
        parts: list[tuple[Part, str]] = []
        for part in self.labels.waiting(product, limit=AHEAD, without=[*others, *shown]):
            parts.append((part, FIRST))
            check = self._check(product, person)
            if check is not None and check[0].image not in (*shown, *(other.image for other, _ in parts)):
                parts.append(check)
        return parts

    def hold(self, part: Part, person: Person) -> bool:
        """Put a part on somebody's screen; False when it is on another's, or is not to be labelled any more."""
        with self._holding:
            known = self.labels.part(part.image)
            if known is None or known.status != NEW or part.image in self._with_others(person):
                return False
            now = time.monotonic()
            fresh = {image: held for image, held in self._held.items() if now - held[1] < HELD_S}
            self._held = {**fresh, part.image: (person.name, now)}  # anew: another thread may be reading the one before
            return True

    def _with_others(self, person: Person) -> list[str]:
        """Return what is on the screens of other people."""
        now = time.monotonic()
        return [image for image, (name, at) in self._held.items() if name != person.name and now - at < HELD_S]

    def _check(self, product: str, person: Person) -> tuple[Part, str] | None:
        """Draw whether the next part is a check, and which."""
        review, draw = self.config.review, random.random()
        if draw < review.blind_repeat_share:
            part = self.labels.to_repeat(product, person.name)
            return (part, BLIND) if part is not None else None
        if draw < review.blind_repeat_share + review.second_reader_share:
            part = self.labels.to_second(product, person.name)
            return (part, SECOND) if part is not None else None
        return None
