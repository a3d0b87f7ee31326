"""What the line has kept, taken over into the label store: why each part should be looked at, and how urgently."""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
import threading
import time
from typing import TYPE_CHECKING, Any

from lineward.daemon.label_records import FAIL, LabelError, Part

if TYPE_CHECKING:
    from lineward.daemon.labels import LabelStore
    from lineward.daemon.ledger_read import LedgerReader

log = logging.getLogger("lineward.web.flagged")

NOVEL, DISAGREE, UNCERTAIN, AUDIT, REJECTED, ESCAPED = "novel", "disagree", "uncertain", "audit", "rejected", "escaped"

PAGE = 500
OVERLAP_NS = 10_000_000_000
"""A picture's row may be written a little after that of a later one."""

FORGET_EVERY_S = 60.0
AUDIT_SHARE = 0.1
UNUSUAL = 0.98
USUAL = 0.5


class Flagged:
    """Keeps the label store in step with the ledger; only called while somebody looks."""

    def __init__(self, ledger: LedgerReader, labels: LabelStore) -> None:
        self._ledger = ledger
        self._labels = labels
        self._lock = threading.Lock()
        self._forgot = 0.0
        self._newest: set[str] = set()
        self.trouble = ""

    def sync(self) -> None:
        """Take in what was kept since the last time, and drop what the line's quota has deleted.

        Returns at once while another thread does it.
        """
        if not self._lock.acquire(blocking=False):
            return
        try:
            try:
                self._take_in()
                if time.monotonic() - self._forgot > FORGET_EVERY_S:
                    self._forgot = time.monotonic()
                    there = {row[0] for row in self._ledger.select("SELECT id FROM images")}
                    self._labels.forget_parts(self._labels.unlabelled_images() - there)
                    if there - self._labels.images():  # rows that were made again are older than the newest known
                        self._take_in(everything=True)
            except (sqlite3.Error, LabelError) as error:
                if not self.trouble:
                    log.warning("the kept parts cannot be taken over: %s", error)
                self.trouble = f"the line's book cannot be read ({error}); labels given before are not touched"
            else:
                self.trouble = ""
        finally:
            self._lock.release()

    def _take_in(self, *, everything: bool = False) -> None:
        since = 0 if everything else max(0, self._labels.newest_ns() - OVERLAP_NS)
        last, read = "", set[str]()
        while True:
            rows = self._ledger.select(
                "SELECT i.id, i.seq, i.path, i.kind, i.created_ns, r.payload FROM images AS i"
                " LEFT JOIN results AS r ON r.seq = i.seq"
                " WHERE (i.created_ns, i.id) > (?, ?) ORDER BY i.created_ns, i.id LIMIT ?",  # OR would read them all
                *(since, last, PAGE),
            )
            read.update(row[0] for row in rows)
            # What was taken in the last time is within the overlap: no need to write, and to wait for who labels.
            if fresh := [_part(*row) for row in rows if everything or row[0] not in self._newest]:
                self._labels.add_parts(fresh)
            if len(rows) < PAGE:
                self._newest = read
                return
            last, since = rows[-1][0], rows[-1][4]


def _part(image: str, seq: int, path: str, kind: str, created_ns: int, payload: bytes | None) -> Part:  # noqa: PLR0917 - a row
    """Make a part of a kept picture and the record of its answer."""
    try:
        record: dict[str, Any] = json.loads(payload) if payload else {}
    except ValueError:
        record = {}
    model, camera = record.get("model") or {}, record.get("camera") or {}
    folders = path.split("/")
    verdict = str(record.get("verdict") or kind)
    reason = str(record.get("reason") or "")
    probability, anomaly = float(record.get("defect_probability") or 0.0), float(record.get("anomaly") or 0.0)
    why, urgency = why_look(image, verdict, reason, probability, anomaly)
    return Part(
        image=image,
        path=path,
        product=str(record.get("product") or (folders[1] if len(folders) > 2 else "unknown")),
        part_id=str(record.get("part_id") or ""),
        seq=seq,
        created_ns=created_ns,
        origin="line",
        camera=str(camera.get("name") or ""),
        verdict=verdict,
        reason=reason,
        confidence=float(record.get("confidence") or 0.0),
        defect_probability=probability,
        anomaly=anomaly,
        defect_type=str(record.get("defect_type") or ""),
        model_version=str(model.get("version") or ""),
        model_sha256=str(model.get("sha256") or ""),
        why=why,
        urgency=urgency,
    )


def why_look(image: str, verdict: str, reason: str, probability: float, anomaly: float) -> tuple[str, float]:
    """Say why a person should look at a part and how urgently, 0..1.

    The audit sample is drawn by the picture's id and lies anywhere among the others: what a model is sure of is looked
    at too, or nobody would ever learn that it is sure of something wrong.
    """
    draw = int.from_bytes(hashlib.sha256(image.encode()).digest()[:4]) / 2**32
    if reason == "unlike_training":
        return NOVEL, 0.6 + 0.4 * anomaly
    if verdict == FAIL and anomaly < USUAL:
        return DISAGREE, 0.55 + 0.4 * (USUAL - anomaly) / USUAL
    if verdict != FAIL and anomaly >= UNUSUAL:
        return DISAGREE, 0.55 + 0.4 * (anomaly - UNUSUAL) / (1 - UNUSUAL)
    if verdict == "review":
        return UNCERTAIN, 0.3 + 0.6 * (1 - abs(2 * probability - 1))
    if draw < AUDIT_SHARE or verdict == "pass":
        return AUDIT, draw / AUDIT_SHARE if draw < AUDIT_SHARE else draw
    return REJECTED, 0.3 * draw
