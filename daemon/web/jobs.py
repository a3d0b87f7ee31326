"""Training and checks on request: one at a time, in a process of its own; its state is on disk.

``<root>/review/jobs/<id>/`` holds the order, the candidate and the comparison. What was computed for a picture stays in
the cache, so a training that was cut short goes on where it was when it is started again.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from lineward.daemon.progress import cache_dir
from lineward.daemon.review import write_whole
from lineward.daemon.web.scratch import DATA, JOBS, OF_JOB, SCRATCH
from lineward.daemon.web.trainingset import write_sets

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lineward.daemon.label_records import Part
    from lineward.daemon.web.station import Station

log = logging.getLogger("lineward.web.jobs")

RUNNING, DONE, FAILED, CANCELLED, INTERRUPTED = "running", "done", "failed", "cancelled", "interrupted"
SHIFT_NS = 8 * 3_600_000_000_000
SHIFT_MOST, SHIFT_LEAST = 400, 20
"""Parts that both models judge; with fewer than the latter those before the shift are taken as well."""
KEEP_JOBS = 5
ENDS_S = 1.0
"""How long a start waits for what was cancelled before: it ends when it has collected its pictures."""
MIN_LABELLED = 1
QUICK, FULL = "quick", "full"
TRAIN, CHECK = "train", "check"

STAGES = {
    "collect": "collecting the labelled pictures",
    "read": "reading the pictures",
    "features": "looking at each picture",
    "fit": "learning",
    "maps": "learning where defects are",
    "tune": "tuning the network",
    "tune on all": "tuning the network on every picture",
    "look": "looking for contradictions and copies",
    "learning curve": "working out what more pictures would bring",
    "check": "checking that the finished file says the same",
    "compare": "comparing with the model in use",
}
_WEIGHTS = {
    QUICK: {"collect": 0.02, "read": 0.05, "features": 0.5, "fit": 0.18, "check": 0.1, "compare": 0.15},
    FULL: {
        "collect": 0.01,
        "read": 0.01,
        "features": 0.05,
        "fit": 0.02,
        "maps": 0.08,
        "tune": 0.53,
        "tune on all": 0.25,
        "check": 0.03,
        "compare": 0.02,
    },
    CHECK: {"collect": 0.02, "read": 0.08, "features": 0.5, "look": 0.1, "learning curve": 0.3},
}


WHAT = {TRAIN: "training", CHECK: "check"}


class JobError(ValueError):
    """A training cannot be started, or a candidate not promoted; the message says why and what to do."""


@dataclass(slots=True)
class Job:
    """One training or check of the data and how far it is; times in seconds since 1970."""

    id: str
    product: str
    by: str
    started_s: float
    kind: str = TRAIN
    tier: str = QUICK
    state: str = RUNNING
    stage: str = "collect"
    done: int = 0
    of: int = 0
    text: str = ""
    ended_s: float = 0.0
    labelled: int = 0
    base: int = 0
    base_out: int = 0
    comparing: bool = False
    """Trained long ago: the candidate is only being compared again, and what ends that leaves it trained."""
    unsure: bool = False
    """The candidate was changed, and that comparison has not come to its end."""
    result: dict[str, Any] | None = field(default=None, repr=False)

    @property
    def share(self) -> float:
        """Return how much is done, 0..1."""
        if self.state == DONE:
            return 1.0
        weights = _WEIGHTS[CHECK if self.kind == CHECK else self.tier]
        names = list(weights)
        before = sum(weights[name] for name in names[: names.index(self.stage)]) if self.stage in names else 0.0
        return min(0.99, before + weights.get(self.stage, 0.0) * (self.done / self.of if self.of else 0.0))

    @property
    def left_s(self) -> float | None:
        """Return the seconds that are left by the pace so far, or None while that says nothing."""
        took = time.time() - self.started_s
        return took * (1 - self.share) / self.share if self.share > 0.08 else None


class Jobs:
    """Starts, watches and ends trainings. Methods may be called from any thread."""

    def __init__(self, station: Station) -> None:
        self._station = station
        self._folder = station.root / JOBS
        self._lock = threading.Lock()
        self._saving = threading.Lock()  # who cancels a job writes the same file as the job itself
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._job: Job | None = None
        self._latest: dict[tuple[str, str], Job] = {}
        self._trainings: dict[str, list[Job]] = {}
        for path in sorted(self._folder.glob("*/job.json")):
            with suppress(ValueError, TypeError, OSError):
                job = Job(**json.loads(path.read_bytes()))
                if job.state == RUNNING:
                    _end(job, INTERRUPTED, f"{_ended(job)}; start it again, what is done is kept")
                self._latest[job.product, job.kind] = job
                if job.kind == TRAIN:
                    self._trainings.setdefault(job.product, []).append(job)

    @property
    def running(self) -> Job | None:
        """Return the training that runs."""
        job = self._job
        return job if job is not None and job.state == RUNNING else None

    def latest(self, product: str, kind: str = TRAIN) -> Job | None:
        """Return the newest training or check of a product."""
        return self._latest.get((product, kind))

    def proposal(self, product: str) -> Job | None:
        """Return the newest training whose candidate was compared; a later one that was cancelled does not hide it."""
        done = (job for job in reversed(self._trainings.get(product, [])) if job.result is not None)
        return next((job for job in done if self.candidate(job).is_file()), None)

    def candidate(self, job: Job) -> Path:
        """Return where the candidate of a training is."""
        return self._folder / job.id / "candidate.lward"

    def still_proposed(self, job: Job, sha256: str) -> None:
        """See that a person decides about the candidate they looked at; raises `JobError`."""
        found = self.proposal(job.product)
        if found is None or found.id != job.id or found.result is None or found.result["sha256"] != sha256:
            raise JobError("another candidate has come since; look at it first")

    def start(
        self,
        product: str,
        by: str,
        *,
        kind: str = TRAIN,
        tier: str = QUICK,
        only_compare: bool = False,
        change: Callable[[], object] | None = None,
    ) -> Job:
        """Begin a training or a check of the labelled pictures, or compare the newest candidate again.

        ``change`` makes the candidate that is compared another one; it is called only when nothing else runs.

        Raises
        ------
        JobError
            One runs already, or there is nothing to train on.
        """
        if self._thread is not None and self.running is None:
            self._thread.join(ENDS_S)
        with self._lock:
            if self.running is not None:
                raise JobError(f"{self.running.by} has a {what(self.running)} running; wait for it or cancel it")
            if self._thread is not None and self._thread.is_alive():
                raise JobError("what was cancelled is still collecting pictures; try again in some seconds")
            if only_compare:
                found = self.proposal(product)
                if found is None:
                    raise JobError("there is no candidate to compare; train one first")
                job = found
                if change is not None:
                    job.unsure = True  # from here on, whatever becomes of the change
                    self._save(job)
                    change()
                job.state, job.stage, job.done, job.of, job.started_s = RUNNING, "compare", 0, 0, time.time()
                job.comparing, job.text = True, ""
            else:
                counts = self._station.labels.counts(product)
                if counts.get("labelled", 0) < MIN_LABELLED:
                    raise JobError("nothing is labelled yet; label parts on the page Review first")
                now = time.time()
                job = Job(
                    time.strftime("%Y%m%dT%H%M%S", time.gmtime(now)) + f"-{int(now * 1000) % 1000:03d}",
                    product,
                    by,
                    now,
                    kind,
                    tier,
                )
                if kind == TRAIN:
                    before, proposal = self._trainings.get(product, []), self.proposal(product)
                    kept = [old for old in before[:-KEEP_JOBS] if old is proposal]
                    self._trainings[product] = [*kept, *before[-KEEP_JOBS:], job]
            self._job = self._latest[product, kind] = job
            log.info("%s starts a %s of %s", by, what(job), product)
            self._thread = threading.Thread(target=self._run, args=(job,), name="training", daemon=True)
            self._thread.start()
        return job

    def cancel(self, by: str) -> None:
        """End the training that runs."""
        with self._lock:  # or its process might just be starting
            job = self.running
            if job is None:
                return
            log.info("%s cancels the %s of %s", by, what(job), job.product)
            _end(job, CANCELLED, f"cancelled by {by}")
            self._end_process()
        self._save(job)

    def close(self) -> None:
        """End what runs; it can be started again later."""
        job = self.running
        if job is not None:
            _end(job, INTERRUPTED, f"{_ended(job)}; start it again")
            self._save(job)
        self._end_process()

    def _end_process(self) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            process.kill()

    # ---- one training, in a thread of its own

    def _run(self, job: Job) -> None:
        folder = self._folder / job.id
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._save(job)
            order = self._order(job, folder)
            write_whole(folder / "order.json", json.dumps(order).encode())
            self._watch(job, folder)
        except Exception as error:
            if job.state == RUNNING:  # one that was cancelled meanwhile has ended as a person wanted
                log.exception("a training failed")
                self._over(job, FAILED, _in_words(error))
        finally:
            for name in OF_JOB:
                shutil.rmtree(folder / name, ignore_errors=True)
            self._tidy(job.product)

    def _order(self, job: Job, folder: Path) -> dict[str, Any]:
        station = self._station
        product = job.product
        data = folder / DATA
        shutil.rmtree(data, ignore_errors=True)
        base = station.base_data(product)
        sets = write_sets(station.labels, product, data, base)
        job.labelled, job.base, job.base_out = sets.labelled, sets.base, sets.base_out
        if job.kind == CHECK:
            return {"kind": CHECK, "data": str(data), "cache": str(cache_dir())}
        old = station.model_path(product)
        since = time.time_ns() - SHIFT_NS
        shift = station.labels.parts(product, since_ns=since, limit=SHIFT_MOST)
        if few := len(shift) < SHIFT_LEAST:
            shift = station.labels.parts(product, limit=SHIFT_MOST // 2)
        return {
            "kind": TRAIN,
            "tier": job.tier,
            "data": str(data),
            "out": str(self.candidate(job)),
            "product": product,
            "old": str(old) if old else None,
            "base": base is None and old is not None,
            "cache": str(cache_dir()),
            "holdout": self._entries(sets.held_out),
            "never_again": self._entries(station.labels.escapes(product)),
            "shift": self._entries([part for part in shift if part.origin == "line"]),
            "shift_is": "the parts kept last" if few else "the last shift",
        }

    def _entries(self, parts: list[Part]) -> list[dict[str, str]]:
        labels = self._station.labels
        return [{"image": part.image, "file": str(labels.file(part)), "label": part.label} for part in parts]

    def _watch(self, job: Job, folder: Path) -> None:
        command = [sys.executable, "-m", "lineward.daemon.web.training_job", str(folder / "order.json")]
        if ionice := shutil.which("ionice"):
            command = [ionice, "-c", "3", *command]
        scratch = folder / SCRATCH  # a training that is killed leaves what it put aside: it goes with the job
        scratch.mkdir(exist_ok=True)
        with self._lock:
            if job.state != RUNNING:
                return
            with (folder / "log.txt").open("wb") as errors:
                self._process = process = subprocess.Popen(  # noqa: S603 - our own program
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env=os.environ | {"TMPDIR": str(scratch)},
                )
        assert process.stdout is not None
        error = ""
        for line in process.stdout:
            message = json.loads(line)
            if "result" in message:
                job.result = message["result"]
            elif "error" in message:
                error = message["error"]
            else:
                job.stage, job.done, job.of = message["stage"], message["done"], message["of"]
        process.wait()
        assert process.stdin is not None
        process.stdin.close()
        process.stdout.close()
        if job.state != RUNNING:
            return
        if process.returncode == 0 and job.result is not None:
            self._over(job, DONE, "")
        else:
            self._over(job, FAILED, error or f"the {what(job)} was killed; {folder / 'log.txt'} says more")

    def _over(self, job: Job, state: str, text: str) -> None:
        log.info("%s of %s: %s%s", what(job), job.product, state, f": {text}" if text else "")
        _end(job, state, text)
        self._save(job)

    def _save(self, job: Job) -> None:
        path = self._folder / job.id / "job.json"
        with self._saving, suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(asdict(job)).encode())

    def _tidy(self, product: str) -> None:
        """Remove old candidates but the one that may be promoted; what was promoted is in the model store."""
        proposal = self.proposal(product)
        mine = []
        for path in sorted(self._folder.glob("*/job.json")):
            with suppress(ValueError, OSError):
                if json.loads(path.read_bytes())["product"] == product:
                    mine.append(path.parent)
        for folder in mine[:-KEEP_JOBS]:
            if proposal is None or folder.name != proposal.id:
                shutil.rmtree(folder, ignore_errors=True)


def what(job: Job) -> str:
    """Return what a job is called."""
    return "comparison" if job.comparing else WHAT[job.kind]


def _in_words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'the disk'}: {error.strerror}; make room or mend it, and start again"
    return str(error)


def _ended(job: Job) -> str:
    return f"the page was ended during the {what(job)}"


def _end(job: Job, state: str, text: str) -> None:
    """Note how a job ended. A comparison that came to nothing leaves the training done, as it was compared before."""
    if job.comparing and state != DONE:
        state, text = DONE, f"The comparison came to nothing: {text}."
    elif state == DONE:
        job.unsure = False
    job.state, job.text, job.ended_s, job.comparing = state, text, time.time(), False
