"""The files of commissioning in the storage folder: one for each product, model and set of camera settings."""

from __future__ import annotations

import base64
import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from lineward.daemon.review import write_whole
from lineward.daemon.watch.chart import Charts, Limits, Values
from lineward.daemon.watch.measure import SIDE, ZONES
from lineward.daemon.watch.reference import FIGURES, SCORES, Reference, with_scores, without_scores

if TYPE_CHECKING:
    from pathlib import Path

    from lineward.daemon.watch.reference import Key

FORMAT = 1


class ReferenceFileError(ValueError):
    """A file of commissioning cannot be used; the message names it and says what to do."""


def save(path: Path, key: Key, reference: Reference, charts: Charts) -> None:
    """Write a reference and where its charts stand; raises `OSError`."""
    content = {
        "format": FORMAT,
        "product": key.product,
        "model": key.model,
        "parts": reference.parts,
        "made_s": reference.made_s,
        "template": base64.b64encode(reference.template.tobytes()).decode(),
        "zones": reference.zones.ravel().tolist(),
        "sharpness": reference.sharpness,
        "unlike_from": reference.unlike_from,
        "figures": {
            name: {
                "centre": float(reference.limits.centre[i]),
                "limit": _finite(float(reference.limits.limit[i])),
                "deviation": float(charts.deviation[i]),
                "out": bool(charts.out[i]),
                "began_s": float(charts.began_s[i]),
            }
            for i, name in enumerate(FIGURES)
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content, indent=1).encode())


def _finite(limit: float) -> float | None:
    return limit if math.isfinite(limit) else None


def load_for(key: Key, root: Path) -> tuple[Reference, Charts] | None:
    """Read what is known for a product, its camera settings and a model; None when there is nothing.

    Where the newest file is of another model, the pictures are taken from it: they do not depend on the model. The
    scores are then those of the model's own file, or still to be learnt (`Reference.knows_scores`).

    Raises
    ------
    ReferenceFileError
        The newest file is damaged or of another version; commission anew.
    """
    own, files = key.file(root), key.files(root)
    if not files:
        return None
    newest = load(files[0])
    if newest is None or files[0] == own:
        return newest
    try:
        known = load(own)
    except ReferenceFileError:  # its scores are learnt anew; the pictures are known
        known = None
    if known is None:
        return without_scores(*newest)
    reference, charts = known
    limits = Limits(reference.limits.centre[-SCORES:], reference.limits.limit[-SCORES:])
    scores = Charts(limits, reference.made_s)
    scores.resume(charts.deviation[-SCORES:], charts.out[-SCORES:], charts.began_s[-SCORES:])
    return with_scores(*newest, limits, scores)


def load(path: Path) -> tuple[Reference, Charts] | None:
    """Read what `save` wrote; None when there is none.

    Raises
    ------
    ReferenceFileError
        The file is damaged or of another version; commission anew.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ReferenceFileError(f"{path}: {error.strerror}; commission anew with `lineward watch reset`") from error
    try:
        return _parsed(json.loads(text))
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        raise ReferenceFileError(
            f"{path}: is damaged or of another version; commission anew with `lineward watch reset`"
        ) from error


def _parsed(content: Any) -> tuple[Reference, Charts]:
    """Raise `ValueError`, `TypeError` or `KeyError` for anything that `save` did not write."""
    if content["format"] != FORMAT or set(content["figures"]) != set(FIGURES):
        raise ValueError("another version")

    def column(name: str) -> Values:
        values = np.array([float(content["figures"][figure][name]) for figure in FIGURES])
        if not np.isfinite(values).all():
            raise ValueError(name)
        return values

    template = np.frombuffer(base64.b64decode(content["template"], validate=True), np.uint8).reshape(SIDE, SIDE)
    zones = np.array(content["zones"], np.float64).reshape(ZONES, ZONES)
    unlike = None if content["unlike_from"] is None else float(content["unlike_from"])
    rows = content["figures"]
    unknown = [name for name in FIGURES[-SCORES:] if rows[name]["limit"] is None]
    for name in unknown:
        rows[name]["limit"] = 1.0  # only until below
    limits = Limits(column("centre"), column("limit"))
    numbers = [float(content["sharpness"]), float(content["made_s"]), *zones.ravel(), unlike or 0.0]
    if not np.isfinite(numbers).all() or (limits.limit <= 0).any() or (zones < 0).any():
        raise ValueError("out of range")
    reference = Reference(template, zones, numbers[0], unlike, limits, int(content["parts"]), numbers[1])
    charts = Charts(limits, reference.made_s)
    charts.resume(column("deviation"), column("out").astype(bool), column("began_s"))
    return without_scores(reference, charts) if unknown else (reference, charts)
