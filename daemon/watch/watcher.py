"""Watches every picture and every score of a running station, beside the judgement and never in its way.

The loop's share is about half a millisecond for a part: it measures, compares and adds. Learning, reading and writing
files happen in a thread of our own. Trouble in here raises an alarm and leaves the line alone.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from lineward.daemon.triggers import Reason
from lineward.daemon.watch.chart import Charts
from lineward.daemon.watch.measure import compare, measure
from lineward.daemon.watch.reference import FIGURES, Sample, commission, key_of, learn_scores, scores_of
from lineward.daemon.watch.reference_file import ReferenceFileError, load_for, save
from lineward.daemon.watch.words import ALARM_IDS, MEANT, texts
from lineward.models.verdict import Decision, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lineward.daemon.health import Alarms
    from lineward.daemon.recipes import ActiveRecipe
    from lineward.daemon.triggers import Part
    from lineward.daemon.watch.measure import Likeness, Measurement
    from lineward.daemon.watch.reference import Key, Reference

log = logging.getLogger("lineward.watch")

SAVE_S = 60.0
"""How often the state of the charts is written down, so that a restart forgets no more than that."""

SPEAK_S = 1.0
"""How often the charts are put into words."""

WAIT_S = 0.02
"""The first part after a changeover waits so long at most for the file of its product to be read."""

MOST_UNFINISHED = 4
"""Recipes whose commissioning goes on when they come back: a line that changes over often would never end it. Each
keeps up to 2,000 small pictures in memory."""

RIGHT_AGAIN = 10
"""Parts in a row that look right, after which the alarm about another product is over."""


class _Watched:
    """The recipe in force, and what is known of its pictures."""

    def __init__(self, key: Key) -> None:
        self.key = key
        self.ready = threading.Event()  # its file has been looked for
        self.reference: Reference | None = None
        self.charts: Charts | None = None
        self.samples: list[Sample] = []
        self.scores: list[tuple[float, float, float]] = []  # of a model that is new to a product that is known
        self.learning = False


class Watch:
    """One for each station. The loop alone calls `refusal` and `note`.

    Parameters
    ----------
    parts
        How many parts commissioning takes.
    guard
        Whether a picture of another product makes its part undecided.
    clock
        Seconds since 1970.
    """

    def __init__(
        self,
        root: Path,
        alarms: Alarms,
        *,
        parts: int = 2000,
        guard: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._root = root
        self._alarms = alarms
        self._parts = parts
        self._guard = guard
        self._clock = clock
        self._watched: _Watched | None = None
        self._unfinished: dict[Key, _Watched] = {}
        self._recipe: ActiveRecipe | None = None
        self._measured: tuple[Measurement, Likeness | None] | None = None
        self._spoke = self._saved = time.monotonic()
        self._right = 0
        self.wrong_products = 0
        self._jobs: queue.SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="watch", daemon=True)
        self._thread.start()

    # ---- the loop's side

    def use(self, recipe: ActiveRecipe) -> None:
        """Watch the pictures of another recipe from now on."""
        key, self._recipe = key_of(recipe), recipe
        if self._watched is not None and self._watched.key == key:
            return
        self._leave()
        known = self._unfinished.pop(key, None)
        if known is not None:
            self._watched = known
            return
        self._watched = _Watched(key)
        self._jobs.put((self._load, (self._watched,)))

    def reset(self) -> bool:
        """Forget what is normal and commission anew with the next parts; False when nothing is in force."""
        watched = self._watched
        if watched is None:
            return False
        fresh = _Watched(watched.key)
        fresh.ready.set()
        self._jobs.put((self._forget, (watched.key,)))
        self._watched = fresh
        self._clear()
        log.info("%s is commissioned anew with the next %d parts", watched.key.product, self._parts)
        return True

    def refusal(self, part: Part) -> Verdict | None:
        """Measure a part's picture; a verdict when it shows another product than the recipe's. Never raises."""
        self._measured = None
        try:
            return self._refusal(part)
        except Exception as error:  # the part is judged as if nobody watched
            log.debug("image health", exc_info=True)
            self._trouble(error)
            return None

    def _refusal(self, part: Part) -> Verdict | None:
        watched = self._watched
        if watched is None or part.frame is None or part.recipe is None:
            return None
        if part.recipe is not self._recipe and key_of(part.recipe) != watched.key:
            return None  # it came before a changeover: it is judged by the recipe of then
        if not watched.ready.is_set() and not watched.ready.wait(WAIT_S):
            return None
        measurement = measure(part.frame.image)
        reference = watched.reference
        likeness = None if reference is None else compare(measurement.small, reference.template)
        self._measured = measurement, likeness
        if reference is None or likeness is None or not self._guard:
            return None
        if not reference.is_unlike(likeness):
            self._looks_right()
            return None
        self._measured = None
        self.wrong_products += 1
        self._right = 0
        product = watched.key.product
        self._alarms.set(
            "product",
            f"the picture does not look like {product}: see that {product} is on the line and the camera looks at it, "
            f"or change over to the right recipe; {MEANT}",
        )
        return Verdict(Decision.UNDECIDED, Reason.WRONG_PRODUCT, 0.0, 0.0, 0.0)

    def _looks_right(self) -> None:
        if self._right <= RIGHT_AGAIN:
            self._right += 1
            if self._right == RIGHT_AGAIN:
                self._alarms.set("product", "")

    def note(self, verdict: Verdict) -> None:
        """Take in the verdict on the picture that `refusal` measured. Never raises."""
        try:
            self._note(verdict)
        except Exception as error:  # as above
            log.debug("image health", exc_info=True)
            self._trouble(error)

    def _note(self, verdict: Verdict) -> None:
        watched = self._watched
        if watched is None or self._measured is None or verdict.decision is Decision.UNDECIDED:
            return
        measurement, likeness = self._measured
        if watched.reference is None or watched.charts is None:
            self._sample(watched, Sample(measurement, scores_of(verdict), verdict.decision is Decision.PASS))
            return
        if likeness is not None:
            now_s = self._clock()
            watched.charts.see(watched.reference.figures(measurement, likeness, scores_of(verdict)), now_s)
            if not watched.reference.knows_scores:
                self._score(watched, scores_of(verdict))
        now = time.monotonic()
        if now - self._spoke >= SPEAK_S:
            self._spoke = now
            self.speak()
        if now - self._saved >= SAVE_S:
            self._saved = now
            self._jobs.put((self._save, (watched,)))

    def _sample(self, watched: _Watched, sample: Sample) -> None:
        if watched.learning:
            return
        watched.samples.append(sample)
        if len(watched.samples) >= self._parts:
            watched.learning = True
            self._jobs.put((self._learn, (watched,)))

    def _score(self, watched: _Watched, scores: tuple[float, float, float]) -> None:
        if watched.learning:
            return
        watched.scores.append(scores)
        if len(watched.scores) >= self._parts:
            watched.learning = True
            self._jobs.put((self._learn_scores, (watched,)))

    def speak(self) -> None:
        """Raise and clear the alarms of the charts."""
        watched = self._watched
        if watched is None or watched.charts is None:
            return
        for alarm_id, text in texts(watched.charts, self._clock()).items():
            self._alarms.set(alarm_id, text, severity="warning")

    def _leave(self) -> None:
        """Write down where the charts of the old recipe stand; its alarms are not those of the next."""
        watched = self._watched
        if watched is not None and watched.charts is not None:
            self._jobs.put((self._save, (watched,)))
        elif watched is not None and watched.samples and not watched.learning:
            self._unfinished[watched.key] = watched
            while len(self._unfinished) > MOST_UNFINISHED:
                del self._unfinished[next(iter(self._unfinished))]
        self._clear()

    def _clear(self) -> None:
        self._right = 0
        for alarm_id in (*ALARM_IDS, "product"):
            self._alarms.set(alarm_id, "")

    def _trouble(self, error: Exception) -> None:
        self._alarms.set(
            "watch",
            f"pictures are not watched, inspection goes on: {error}; restart Lineward if it lasts",
            severity="warning",
        )

    # ---- our own thread

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            do, arguments = job
            try:
                do(*arguments)
            except Exception as error:  # a bug or a full disk must not end the thread
                log.debug("image health", exc_info=True)
                self._trouble(error)

    def _load(self, watched: _Watched) -> None:
        try:
            found = load_for(watched.key, self._root)
        except ReferenceFileError as error:
            found = None
            log.warning("%s; it is done now", error)
        finally:
            watched.ready.set()
        if found is None:
            log.info("%s is commissioned with the next %d parts", watched.key.product, self._parts)
            return
        watched.reference, watched.charts = found
        if not found[0].knows_scores:
            log.info("%s: the scores of the model are learnt from the next %d parts", watched.key.product, self._parts)

    def _learn(self, watched: _Watched) -> None:
        learnt = commission(watched.samples, self._clock())
        watched.samples = []
        watched.charts = Charts(learnt.limits, learnt.made_s)
        watched.reference = learnt
        guard = "on" if learnt.unlike_from is not None else "off, its pictures differ too much"
        log.info(
            "%s is commissioned with %d parts; guard against other products: %s",
            watched.key.product,
            learnt.parts,
            guard,
        )
        self._save(watched)

    def _learn_scores(self, watched: _Watched) -> None:
        if watched.reference is None or watched.charts is None:
            return
        watched.reference, watched.charts = learn_scores(
            watched.scores, watched.reference, watched.charts, self._clock()
        )
        watched.scores, watched.learning = [], False
        log.info("%s: the scores of the model are learnt", watched.key.product)
        self._save(watched)

    def _save(self, watched: _Watched) -> None:
        if watched.reference is None or watched.charts is None or self._watched is None:
            return
        path = watched.key.file(self._root)
        try:
            save(path, watched.key, watched.reference, watched.charts)
        except OSError as error:
            self._alarms.set(
                "watch",
                f"{path}: {error.strerror}: commissioning is not kept beyond a restart; make room or mend permissions",
                severity="warning",
            )
        else:
            self._alarms.set("watch", "")

    def _forget(self, key: Key) -> None:
        for path in key.files(self._root):
            path.unlink(missing_ok=True)

    def close(self, timeout_s: float = 1.0) -> None:
        """Write down where the charts stand; waits at most ``timeout_s`` seconds."""
        if self._watched is not None:
            self._jobs.put((self._save, (self._watched,)))
        self._jobs.put(None)
        self._thread.join(timeout_s)

    # ---- for everybody

    def stats(self) -> dict[str, Any]:
        """Return the part of `stats` that is about pictures and scores; any thread may call."""
        watched = self._watched
        if watched is None:
            return {"state": "waiting"}
        known, charts = watched.reference, watched.charts
        if known is None or charts is None:
            return {
                "state": "commissioning",
                "parts": len(watched.samples) if not watched.learning else self._parts,
                "of": self._parts,
                "wrong_products": self.wrong_products,
            }
        known_figures = [(name, i) for i, name in enumerate(FIGURES) if np.isfinite(charts.limits.limit[i])]
        return {
            "state": "watching",
            "parts": known.parts,
            "guard": self._guard and known.unlike_from is not None,
            "wrong_products": self.wrong_products,
            "deviation": {name: round(float(charts.deviation[i]), 4) for name, i in known_figures},
            "limit": {name: round(float(charts.limits.limit[i]), 4) for name, i in known_figures},
            "out": [name for i, name in enumerate(FIGURES) if charts.out[i]],
        }
