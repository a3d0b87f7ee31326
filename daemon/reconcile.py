"""Does the ledger add up? Triggers against frames against answers; what does not is named by part and trigger.

The ledger is read page by page while the station runs: memory stays small, and what is still on its way is no fault.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from lineward.daemon.ledger_file import POWER_CUT_GAP
from lineward.daemon.ledger_read import SINCE_TRIGGERS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lineward.daemon.ledger_read import LedgerReader

PAGE = 5000
"""Short rows per read: 15 ms."""

LISTED = 1000
"""Findings of one kind that are named; the rest is counted."""

NOTES_SHOWN = 10
"""Notes of one kind that are printed in words."""

POWER_CUT_LEAST = POWER_CUT_GAP // 2
"""Less than was left out: of the last rows the database may know more than the file of the last number."""

POWER_CUT_MOST = 2 * POWER_CUT_GAP
NEARBY = 100
"""So many answers away at most is that of a frame which waited for the judge while later ones were lost."""

SETTLED_S = 1.0
"""A trigger is on its way for so long at most after its deadline; without one, after it was given."""

NO_FRAME = ("no_image", "incomplete", "camera_lost")
_TRIGGERS = "SELECT no, trigger_id, part_id, source, given_ns, deadline_ns FROM triggers"
_ANSWERS = (
    "SELECT seq, verdict, reason, part_id, frame_id, trigger_no, late, camera_serial, trigger_ns FROM results"
    " WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that does not add up, or is worth knowing; the fields that are known name the part."""

    kind: str
    text: str
    seq: int | None = None
    trigger_no: int | None = None
    trigger_id: str = ""
    part_id: str = ""


@dataclass(frozen=True, slots=True)
class _Answer:
    seq: int
    verdict: str
    reason: str
    part_id: str
    frame_id: int | None
    trigger_no: int | None
    late: int
    camera_serial: str
    trigger_ns: int

    def __str__(self) -> str:
        return f"#{self.seq}" + (f" (part {self.part_id})" if self.part_id else "")


@dataclass
class Reconciliation:
    """What was found. `faults` do not add up; `notes` are explained.

    Attributes
    ----------
    counts
        Triggers by source, answers by verdict, and the rest by name.
    left_out
        Kind to number of findings beyond the listed ones.
    """

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    _kinds: Counter[str] = field(default_factory=Counter)

    @property
    def fine(self) -> bool:
        """Whether everything adds up."""
        return not self.faults

    def fault(self, finding: Finding) -> None:
        """Note what does not add up."""
        self._add(self.faults, finding)

    def note(self, finding: Finding) -> None:
        """Note what is explained."""
        self._add(self.notes, finding)

    def _add(self, findings: list[Finding], finding: Finding) -> None:
        self._kinds[finding.kind] += 1
        if self._kinds[finding.kind] <= LISTED:
            findings.append(finding)
        else:
            self.left_out[finding.kind] += 1

    def to_json(self) -> dict[str, Any]:
        """Return what `ledger reconcile --json` prints."""
        return {
            "fine": self.fine,
            "counts": dict(sorted(self.counts.items())),
            "faults": [asdict(finding) for finding in self.faults],
            "notes": [asdict(finding) for finding in self.notes],
            "left_out": dict(self.left_out),
        }

    def sentences(self) -> Iterator[str]:
        """Say it in words, the verdict last."""
        count = self.counts
        yield (
            f"asked for: {count['triggers_command']} by command, {count['triggers_part']} by announced part id, "
            f"{count['triggers_frame']} by the frame itself"
        )
        verdicts = ", ".join(f"{count[name]} {name}" for name in ("pass", "fail", "review", "undecided"))
        yield f"answered:  {count['answers']}: {verdicts}; {count['late']} of them late"
        yield (
            f"waiting:   {count['waiting']}; without a frame: {count['without_frame']}; verdicts after the answer: "
            + str(count["late_verdicts"])
        )
        for name, findings, most in (("note ", self.notes, NOTES_SHOWN), ("FAULT", self.faults, LISTED)):
            shown: Counter[str] = Counter()
            for finding in findings:
                shown[finding.kind] += 1
                if shown[finding.kind] <= most:
                    yield f"{name} {finding.kind}: {finding.text}"
            for kind, number in shown.items():
                more = number + self.left_out[kind] - most
                if more > 0:
                    yield f"{name} {kind}: {more} more; --json names {LISTED}"
        yield "it adds up" if self.fine else "it does NOT add up"


def reconcile(reader: LedgerReader, *, since_ns: int | None = None, kept_rows: int = 2_000_000) -> Reconciliation:
    """Hold triggers, frames and answers against each other, from a time on or from the beginning.

    Parameters
    ----------
    kept_rows
        What the station keeps (``storage.ledger_rows``); older numbers may be missing because they were deleted.

    Raises
    ------
    sqlite3.Error
        The ledger cannot be read.
    """
    found = Reconciliation()
    last_seq = reader.highest_seq()  # answers that come from now on are for the next look
    last_no = reader.highest_trigger() if reader.schema() >= SINCE_TRIGGERS else 0
    first_seq = _first(reader, "results", "seq", "trigger_ns", since_ns)
    first_no = _first(reader, "triggers", "no", "given_ns", since_ns) if last_no else 1
    _walk_answers(reader, found, first_seq, last_seq, last_seq - kept_rows)
    if last_no:
        _count_triggers(reader, found, first_no, last_no)
        _unanswered(reader, found, first_no, last_no)
        _orphans(reader, found, first_seq, last_seq)
        _answered_twice(reader, found, first_seq, last_seq)
        _late(reader, found, first_seq, last_seq)
    _parts_twice(reader, found, first_seq, last_seq)
    return found


def _first(reader: LedgerReader, table: str, key: str, moment: str, since_ns: int | None) -> int:
    if since_ns is None:
        return 1
    rows = reader.select(f"SELECT min({key}) FROM {table} WHERE {moment} >= ?", since_ns)  # noqa: S608 - names are ours
    first = rows[0][0] if rows else None
    return (1 << 62) if first is None else int(first)


# ---- answers and frames


def _walk_answers(reader: LedgerReader, found: Reconciliation, first_seq: int, last_seq: int, deleted_to: int) -> None:
    """Go through the answers once: count them, and look at the step from each to the next."""
    before: _Answer | None = None
    after_seq = first_seq - 1
    columns = _ANSWERS if reader.schema() >= SINCE_TRIGGERS else _ANSWERS.replace("trigger_no,", "NULL,")
    while page := reader.select(columns, after_seq, last_seq, PAGE):
        for row in page:
            answer = _Answer(*row)
            _count_answer(found, answer)
            if before is not None:
                _step(reader, found, before, answer, deleted_to)
            before = answer
        after_seq = page[-1][0]


def _count_answer(found: Reconciliation, answer: _Answer) -> None:
    found.counts["answers"] += 1
    found.counts[answer.verdict] += 1
    found.counts["late"] += bool(answer.late)
    if answer.trigger_no is None:
        found.counts["triggers_frame"] += 1
    if answer.verdict == "undecided" and answer.reason in NO_FRAME:
        found.counts["without_frame"] += 1
        name = answer.part_id or "without an id"
        found.note(
            Finding(
                "without_frame",
                f"#{answer.seq}: part {name} was answered undecided/{answer.reason}",
                seq=answer.seq,
                trigger_no=answer.trigger_no,
                part_id=answer.part_id,
            )
        )


def _step(reader: LedgerReader, found: Reconciliation, before: _Answer, answer: _Answer, deleted_to: int) -> None:
    missing = answer.seq - before.seq - 1
    if missing:
        _gap(reader, found, before, answer, deleted_to)
    elif before.trigger_no is None and answer.trigger_no is None:
        _frame_gap(reader, found, before, answer)


def _gap(reader: LedgerReader, found: Reconciliation, before: _Answer, answer: _Answer, deleted_to: int) -> None:
    """Judge a gap in the numbers: deleted long ago, left out after a power cut, or lost."""
    missing = answer.seq - before.seq - 1
    if answer.seq - 1 <= deleted_to:  # what waits for the broker stays behind
        found.counts["deleted"] += missing
        return
    place = f"#{before.seq + 1} to #{answer.seq - 1} are missing, between {before} and {answer}"
    parts = "; ".join(_named(row) for row in _asked_between(reader, before, answer))
    if POWER_CUT_LEAST <= missing <= POWER_CUT_MOST:
        text = f"{place}: left out after a power cut, which may have taken the answers of the last second with it"
        found.note(Finding("power_cut", text, seq=before.seq + 1))
        return
    text = f"{place}" + (f"; asked for meanwhile: {parts}" if parts else "")
    found.fault(Finding("gap", text, seq=before.seq + 1, trigger_no=before.trigger_no, part_id=before.part_id))


def _asked_between(reader: LedgerReader, before: _Answer, answer: _Answer) -> list[tuple[Any, ...]]:
    """Find the triggers between two answers that have none."""
    if before.trigger_no is None or answer.trigger_no is None:
        return []
    sql = f"{_TRIGGERS} AS t WHERE no > ? AND no < ? AND {_UNANSWERED} ORDER BY no LIMIT 20"
    return reader.select(sql, before.trigger_no, answer.trigger_no)


def _frame_gap(reader: LedgerReader, found: Reconciliation, before: _Answer, answer: _Answer) -> None:
    """Look for frames that a camera counted and nobody answered; its count begins anew when it is opened.

    A lost frame is answered before older ones that still wait for the judge.
    """
    if before.frame_id is None or answer.frame_id is None or before.camera_serial != answer.camera_serial:
        return
    missing = answer.frame_id - before.frame_id - 1
    if 0 < missing < LISTED and _answered_nearby(reader, before, answer) < missing:
        frames, between = f"{before.frame_id + 1} to {answer.frame_id - 1}", f"between {before} and {answer}"
        if answer.camera_serial.startswith("/"):  # a replayed folder gives up no file but those it cannot read
            text = (
                f"files {frames} of {answer.camera_serial} were skipped, {between}: the log says why none could be read"
            )
            found.note(Finding("skipped_files", text, seq=answer.seq, part_id=answer.part_id))
        else:
            text = f"frames {frames} of camera {answer.camera_serial} have no answer, {between}"
            found.fault(Finding("frame_gap", text, seq=answer.seq, part_id=answer.part_id))


def _answered_nearby(reader: LedgerReader, before: _Answer, answer: _Answer) -> int:
    """Count the frames between those of two answers that are answered shortly before or after."""
    sql = (
        "SELECT count(DISTINCT frame_id) FROM results WHERE seq BETWEEN ? AND ? AND camera_serial = ?"
        " AND frame_id > ? AND frame_id < ?"
    )
    first, last = before.seq - NEARBY, answer.seq + NEARBY
    ((count,),) = reader.select(sql, first, last, answer.camera_serial, before.frame_id, answer.frame_id)
    return int(count)


# ---- triggers

_UNANSWERED = "NOT EXISTS (SELECT 1 FROM results WHERE trigger_no = t.no)"


def _count_triggers(reader: LedgerReader, found: Reconciliation, first_no: int, last_no: int) -> None:
    sql = "SELECT source, count(*) FROM triggers WHERE no BETWEEN ? AND ? GROUP BY source"
    for source, number in reader.select(sql, first_no, last_no):
        found.counts[f"triggers_{source}"] = number


def _unanswered(reader: LedgerReader, found: Reconciliation, first_no: int, last_no: int) -> None:
    """Find triggers without an answer; one that is still on its way gets a second look."""
    first_no = max(first_no, _first_kept(reader, last_no))
    newest_part = _newest_answered_part(reader)
    waiting: list[tuple[Any, ...]] = []
    after_no = first_no - 1
    sql = f"{_TRIGGERS} AS t WHERE no > ? AND no <= ? AND {_UNANSWERED} ORDER BY no LIMIT {LISTED}"
    while page := reader.select(sql, after_no, last_no):
        for row in page:
            if _may_wait(row, newest_part):
                waiting.append(row)
            else:
                _no_answer(found, row)
        after_no = page[-1][0]
    if any(row[3] == "command" for row in waiting):
        time.sleep(SETTLED_S)
    answered = "SELECT 1 FROM results WHERE trigger_no = ?"
    found.counts["waiting"] = sum(1 for row in waiting if not reader.select(answered, row[0]))


def _first_kept(reader: LedgerReader, last_no: int) -> int:
    """Return the first trigger whose answer must be there: the oldest answers are deleted without their triggers."""
    oldest = reader.select("SELECT seq, trigger_ns FROM results ORDER BY seq LIMIT 1")
    if not oldest or oldest[0][0] == 1:
        return 1
    (kept,) = reader.select("SELECT min(trigger_no) FROM results WHERE trigger_no IS NOT NULL")[0]
    if kept is None:  # none of the answers that are left is to a trigger
        (kept,) = reader.select("SELECT min(no) FROM triggers WHERE given_ns > ?", oldest[0][1])[0]
    return last_no + 1 if kept is None else int(kept)


def _may_wait(row: tuple[Any, ...], newest_part: int) -> bool:
    """Tell a trigger that is on its way: before its deadline, or an announced id that no later one has overtaken."""
    no, _, _, source, given_ns, deadline_ns = row
    if source == "part":
        return bool(no > newest_part)
    due_ns = given_ns if deadline_ns is None else deadline_ns
    return bool(time.time_ns() < due_ns + SETTLED_S * 1e9)


def _newest_answered_part(reader: LedgerReader) -> int:
    sql = "SELECT no FROM triggers WHERE source = 'part' AND EXISTS (SELECT 1 FROM results WHERE trigger_no = no)"
    rows = reader.select(f"{sql} ORDER BY no DESC LIMIT 1")
    return int(rows[0][0]) if rows else 0


def _no_answer(found: Reconciliation, row: tuple[Any, ...]) -> None:
    no, trigger_id, part_id, source, _, _ = row
    how = "was asked for" if source == "command" else "was announced"
    found.fault(
        Finding(
            "trigger_without_answer",
            f"{_named(row)} {how} and never answered; a station that is not running answers it when it starts",
            trigger_no=no,
            trigger_id=trigger_id,
            part_id=part_id,
        )
    )


def _named(row: tuple[Any, ...]) -> str:
    return f"part {row[2] or 'without an id'} (trigger {row[1] or row[0]})"


def _orphans(reader: LedgerReader, found: Reconciliation, first_seq: int, last_seq: int) -> None:
    """Find answers to triggers that nobody gave; triggers are deleted from the oldest on, as answers are."""
    oldest = reader.select("SELECT min(no) FROM triggers")[0][0]
    sql = (
        "SELECT seq, trigger_no, part_id FROM results WHERE trigger_no > ? AND seq BETWEEN ? AND ? AND NOT EXISTS"
        " (SELECT 1 FROM triggers WHERE no = trigger_no) ORDER BY trigger_no LIMIT ?"
    )
    after_no = 0 if oldest is None or oldest == 1 else oldest - 1
    while page := reader.select(sql, after_no, first_seq, last_seq, LISTED):
        for seq, no, part_id in page:
            found.fault(
                Finding(
                    "answer_without_trigger",
                    f"#{seq} (part {part_id or 'without an id'}) answers trigger {no}, which is not in the ledger; was "
                    "its disk full then?",
                    seq=seq,
                    trigger_no=no,
                    part_id=part_id,
                )
            )
        after_no = page[-1][1]


def _answered_twice(reader: LedgerReader, found: Reconciliation, first_seq: int, last_seq: int) -> None:
    sql = (
        "SELECT trigger_no, count(*), min(seq), max(seq) FROM results WHERE trigger_no > ? AND seq BETWEEN ? AND ?"
        " GROUP BY trigger_no HAVING count(*) > 1 ORDER BY trigger_no LIMIT ?"
    )
    after_no = 0
    while page := reader.select(sql, after_no, first_seq, last_seq, LISTED):
        for no, number, first, last in page:
            part_id = reader.select("SELECT part_id FROM results WHERE seq = ?", first)[0][0]
            found.fault(
                Finding(
                    "answered_twice",
                    f"trigger {no} (part {part_id or 'without an id'}) has {number} answers, #{first} to #{last}",
                    seq=first,
                    trigger_no=no,
                    part_id=part_id,
                )
            )
        after_no = page[-1][0]


def _late(reader: LedgerReader, found: Reconciliation, first_seq: int, last_seq: int) -> None:
    """Note the verdicts that came after their part was answered; the answer must have been undecided."""
    sql = (
        "SELECT l.seq, l.verdict, r.verdict, r.part_id, r.trigger_no, l.recorded_ns - r.recorded_ns"
        " FROM late_verdicts l LEFT JOIN results r ON r.seq = l.seq WHERE l.seq > ? AND l.seq <= ?"
        " ORDER BY l.seq LIMIT ?"
    )
    after_seq = first_seq - 1
    while page := reader.select(sql, after_seq, last_seq, LISTED):
        for seq, verdict, answer, part_id, no, after_ns in page:
            found.counts["late_verdicts"] += 1
            if answer is None:
                text = f"a late {verdict} belongs to #{seq}, which is not in the ledger"
                found.fault(Finding("late_without_answer", text, seq=seq))
                continue
            part = part_id or "without an id"
            text = f"#{seq} (part {part}) was {answer}; the {verdict} came {after_ns / 1e6:.0f} ms later"
            finding = Finding("late_verdict", text, seq=seq, trigger_no=no, part_id=part_id)
            (found.note if answer == "undecided" else found.fault)(finding)
        after_seq = page[-1][0]


def _parts_twice(reader: LedgerReader, found: Reconciliation, first_seq: int, last_seq: int) -> None:
    """Note part ids that were answered more than once: inspected again, or a code reader that repeats itself."""
    sql = (
        "SELECT part_id, count(*), min(seq), max(seq) FROM results WHERE part_id > ? AND part_id != ''"
        " AND seq BETWEEN ? AND ? GROUP BY part_id HAVING count(*) > 1 ORDER BY part_id LIMIT ?"
    )
    after = ""
    while page := reader.select(sql, after, first_seq, last_seq, LISTED):
        for part_id, number, first, last in page:
            found.counts["parts_more_than_once"] += 1
            text = f"part {part_id} has {number} answers, #{first} to #{last}"
            found.note(Finding("part_more_than_once", text, seq=first, part_id=part_id))
        after = page[-1][0]
