"""Trains a candidate and compares it, or checks the data: a process of its own, behind everything else.

Started by the page as ``python -m lineward.daemon.web.training_job ORDER.json``. It tells its progress as lines of JSON
on stdout and ends when its stdin is closed: a page that is gone wants no training.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from lineward.daemon.allocator import keep_freed
from lineward.daemon.label_records import FOLDER
from lineward.daemon.priority import step_back

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lineward.models.evaluate import Known
    from lineward.models.verdict import Verdict

T = TypeVar("T")

THREADS = 1
"""The line has the other cores; together with the lowest priority its p99 stays as it was."""

TELL_S = 0.3
MOST_FILES = 12
"""Pictures shown with a finding."""


def main() -> None:
    """Carry out one order."""
    step_back()
    threading.Thread(target=_end_with_the_page, daemon=True).start()
    order = json.loads(Path(sys.argv[1]).read_bytes())
    if order.get("tier") == "full":
        keep_freed()
    try:
        result = (check if order["kind"] == "check" else carry_out)(order, _Teller())
    except Exception as error:  # noqa: BLE001 - whatever it is, the person who asked must read it
        said = str(error) or type(error).__name__
        folder = order["data"]  # made for this training, and gone when it ends: nobody can look there
        _say({"error": said.replace(f"{folder}: ", "").replace(f"{folder}/", "")})
        sys.exit(1)
    _say({"result": result})


def carry_out(order: dict[str, Any], tell: Callable[[str, int, int], None]) -> dict[str, Any]:
    """Train, unless the candidate is there already, and compare.

    Parameters
    ----------
    order
        ``data``, ``out``, ``product``, ``tier``, ``old``, ``cache``, ``base`` (whether to start from the old model's
        pictures), and ``holdout``, ``never_again``, ``shift``: lists of ``{"image", "file", "label"}``.
    tell
        Called with stage, done and total.
    """
    from lineward.models.bundle import load_manifest  # noqa: PLC0415
    from lineward.models.quick import TrainReport, train_quick  # noqa: PLC0415

    train: Callable[..., TrainReport] = train_quick
    if order["tier"] == "full":
        from lineward.models.finetune import train_full as train  # noqa: PLC0415 - torch is an extra
    out = Path(order["out"])
    old = Path(order["old"]) if order.get("old") else None
    unread: list[str] = []
    if not out.exists():
        before = load_manifest(old) if old is not None else None
        spec = before.input if before else None
        learn = partial(
            train,
            Path(order["data"]),
            out,
            product=order["product"],
            cache_dir=Path(order["cache"]),
            progress=tell,
            height=spec.height if spec else None,
            width=spec.width if spec else None,
            roi=spec.roi if spec else None,
            risk=before.risk.asked if before else None,
            threads=THREADS,
            base=old if order.get("base") else None,
        )
        _, unread = without_unreadable(learn)
    result = compare(old, out, order, tell)
    return {**result, "warnings": [*result["warnings"], *unread]}


def without_unreadable(act: Callable[[], T]) -> tuple[T, list[str]]:
    """Do work on a folder of links to pictures, without those that cannot be read; return them in words as well.

    One file that a power cut left empty must not keep a product from being trained for ever.
    """
    from lineward.models.dataset import UnreadableError  # noqa: PLC0415

    try:
        return act(), []
    except UnreadableError as error:
        for file in error.files:
            file.unlink()
        names = ", ".join(file.name for file in error.files[:MOST_FILES])
        many = len(error.files)
        text = f"Left out, for they cannot be read ({many} in {FOLDER}/ of the storage folder): {names}."
        return act(), [text]


def check(order: dict[str, Any], tell: Callable[[str, int, int], None]) -> dict[str, Any]:
    """Say what the labelled pictures lack: findings in words, each with the files that cause it."""
    from lineward.models.dataset_check import check_dataset  # noqa: PLC0415

    data = Path(order["data"])
    look = partial(check_dataset, data, cache_dir=Path(order["cache"]), progress=tell, threads=THREADS)
    found, unread = without_unreadable(look)
    report = found.to_json()
    files = sorted(path.relative_to(data).as_posix() for path in data.rglob("*") if path.is_file())
    findings: Any = report["findings"]
    for finding in findings:
        about = json.dumps(finding)
        finding["files"] = [file for file in files if file in about][:MOST_FILES]
        del finding["figures"]
    findings += [{"id": "unreadable", "level": "problem", "text": text, "files": []} for text in unread]
    return {"fine": report["fine"] and not unread, "findings": findings, "forecast": report["forecast"]}


def compare(
    old: Path | None, new: Path, order: dict[str, Any], tell: Callable[[str, int, int], None]
) -> dict[str, Any]:
    """Judge the same pictures with both models and say where they differ; held-out ones that one knows are left out."""
    from lineward.models.bundle import load_bundle, load_manifest  # noqa: PLC0415
    from lineward.models.evaluate import Known  # noqa: PLC0415

    cache = Path(order["cache"])
    known = Known(*(load_manifest(path) for path in (old, new) if path is not None))
    sets: dict[str, list[dict[str, Any]]] = {
        "holdout": [entry for entry in order["holdout"] if not _is_known(Path(entry["file"]), known, cache)],
        **{name: order[name] for name in ("never_again", "shift")},
    }
    files = list(dict.fromkeys(entry["file"] for entries in sets.values() for entry in entries))
    done, total = 0, len(files) * (2 if old else 1)
    verdicts: dict[str, dict[str, dict[str, Any]]] = {"old": {}, "new": {}}
    for side, path in (("old", old), ("new", new)):
        if path is not None:

            def compared(count: int, before: int = done) -> None:
                tell("compare", before + count, total)

            verdicts[side] = _judge(path, files, compared)
            done += len(files)
    bundle = load_bundle(new)
    manifest = bundle.manifest
    return {
        "product": manifest.product,
        "old": load_bundle(old).manifest.version if old else None,
        "new": manifest.version,
        "sha256": bundle.sha256,
        "n_good": manifest.data.n_good,
        "n_defect": manifest.data.n_defect,
        "sentences": manifest.holdout.sentences(),
        "promise": manifest.risk.text,
        "warnings": list(manifest.data.warnings),
        "not_promotable": manifest.not_promotable,
        "shift_is": order["shift_is"],
        "left_out": len(order["holdout"]) - len(sets["holdout"]),
        **{name: [_pair(entry, verdicts) for entry in entries] for name, entries in sets.items()},
    }


def _is_known(file: Path, known: Known, cache: Path) -> bool:
    """Tell whether a model was trained on this picture, whatever it is called."""
    from lineward.images import ImageFileError  # noqa: PLC0415
    from lineward.models.dataset import facts_of  # noqa: PLC0415

    facts = facts_of(file, cache)
    return not isinstance(facts, ImageFileError) and known.has(facts)  # a damaged one is judged by neither


def _judge(model: Path, files: Sequence[str], tell: Callable[[int], None]) -> dict[str, dict[str, Any]]:
    from lineward.images import ImageFileError, read_image  # noqa: PLC0415
    from lineward.models.session import Session  # noqa: PLC0415

    session = Session(model, intra_op_threads=THREADS)
    found: dict[str, dict[str, Any]] = {}
    for count, file in enumerate(files, 1):
        with suppress(ImageFileError):  # deleted by the quota meanwhile: both models do without it
            found[file] = _words(session.judge(read_image(Path(file))))
        tell(count)
    return found


def _words(verdict: Verdict) -> dict[str, Any]:
    return {
        "verdict": str(verdict.decision),
        "defect_probability": round(verdict.defect_probability, 4),
        "anomaly": round(verdict.anomaly, 4),
        "defect_type": verdict.defect_type,
    }


def _pair(entry: dict[str, Any], verdicts: dict[str, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    file = entry["file"]
    return {
        "image": entry["image"],
        "label": entry["label"],
        "old": verdicts["old"].get(file),
        "new": verdicts["new"].get(file),
    }


class _Teller:
    """Says how far it is, a few times a second."""

    def __init__(self) -> None:
        self._said = ("", 0.0)

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self._said[0] or done == total or monotonic() - self._said[1] > TELL_S:
            self._said = (stage, monotonic())
            _say({"stage": stage, "done": done, "of": total})


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _end_with_the_page() -> None:
    while os.read(0, 64):  # not sys.stdin: a thread that holds its lock would crash the end of the program
        pass
    os._exit(3)


if __name__ == "__main__":
    main()
