"""Whether a candidate may judge, and letting it: what a person saw is what they decide about."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from lineward.daemon.web.jobs import DONE, JobError
from lineward.models import store
from lineward.models.bundle import BundleError, load_bundle

if TYPE_CHECKING:
    from lineward.daemon.web.jobs import Job
    from lineward.daemon.web.station import Station

log = logging.getLogger("lineward.web.promotion")


def version_in_use(station: Station, product: str) -> str | None:
    """Return the version of the model that judges a product now, or None when there is none that can be read."""
    path = station.model_path(product)
    if path is None:
        return None
    with suppress(BundleError):
        return station.manifest(path).version
    return None


def why_not(station: Station, job: Job) -> str:
    """Return why a candidate may not be promoted, or an empty text."""
    result = job.result
    if job.state != DONE or result is None:
        return "the training is not done"
    if job.unsure:
        return "it was changed and not compared since; compare again"
    if result["not_promotable"]:
        return f"it is worse than the model in use: {result['not_promotable']}"
    in_use = version_in_use(station, job.product)
    if in_use not in {result["old"], result["new"]}:
        return f"{in_use or 'no model'} is in use by now, it was compared with {result['old'] or 'none'}; compare again"
    return _of_escapes(station, job.product, result["never_again"])


def _of_escapes(station: Station, product: str, never_again: list[dict[str, Any]]) -> str:
    compared = {entry["image"]: entry for entry in never_again}
    missing = [part for part in station.labels.escapes(product) if part.image not in compared]
    if missing:
        return f"{len(missing)} escapes were found since the comparison; compare again"
    passed = [entry for entry in never_again if entry["new"] and entry["new"]["verdict"] == "pass"]
    if passed:
        return (
            f'it would let {len(passed)} of {len(compared)} parts of the "never again" set through once more; '
            "label more parts like these and train again"
        )
    unread = [entry for entry in never_again if entry["new"] is None]
    if unread:
        return f'{len(unread)} pictures of the "never again" set cannot be read; restore them from a backup'
    return ""


def promote(station: Station, job: Job, by: str, sha256: str) -> str:
    """Let the candidate that a person looked at judge from now on; return what was done in words.

    Raises
    ------
    JobError
        It may not, or it is another one by now; nothing was changed.
    BundleError
        The model store refuses it.
    """
    station.jobs.still_proposed(job, sha256)
    reason = why_not(station, job)
    if reason:
        raise JobError(f"not promoted: {reason}")
    path = station.jobs.candidate(job)
    if load_bundle(path).sha256 != sha256:
        raise JobError(f"{path}: not the file that was compared; compare again")
    root = station.root
    old = station.model_path(job.product)
    if old is not None and store.current(root, job.product) is None:
        with suppress(BundleError):  # so that there is something to roll back to
            first = store.add(root, old, who=by)
            store.promote(root, first.product, first.version, who=by)
    entry = store.add(root, path, who=by)
    store.promote(root, entry.product, entry.version, who=by)
    log.info("%s promotes %s %s", by, entry.product, entry.version)
    return f"{entry.version} judges {entry.product} from now on"


def roll_back(station: Station, product: str, by: str) -> str:
    """Let the model before judge again; raises `BundleError` when there is none."""
    entry = store.rollback(station.root, product, who=by)
    log.info("%s rolls %s back to %s", by, product, entry.version)
    return f"{entry.version} judges {product} again"
