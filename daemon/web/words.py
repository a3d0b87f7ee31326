"""What the page says: plain words for people who know parts, not models."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from lineward.daemon.web import flagged

if TYPE_CHECKING:
    from lineward.daemon.label_records import Part

VERDICT = {"pass": "PASS", "fail": "FAIL", "review": "REVIEW", "undecided": "NO ANSWER"}
ICON = {"pass": "check_circle", "fail": "cancel", "review": "help", "undecided": "report"}

WHY = {
    flagged.NOVEL: "New: it looks like nothing the model was trained on",
    flagged.DISAGREE: "Contradiction: one half of the model finds it usual, the other does not",
    flagged.UNCERTAIN: "Uncertain: the model cannot tell good from defective here",
    flagged.AUDIT: "Spot check: drawn at random",
    flagged.REJECTED: "Rejected: is it really defective?",
    flagged.ESCAPED: "Escaped: it was found defective after the line had let it through",
}

REASON = {
    "low_confidence": "not sure enough",
    "unlike_training": "unlike anything seen in training",
    "timeout": "the answer came too late",
    "no_image": "no picture came",
    "incomplete": "the picture was damaged on the way",
    "camera_lost": "the camera was gone",
    "no_model": "no model is loaded",
    "queue_full": "parts come faster than they are judged",
    "error": "the model failed on it, or the line was ended",
    "wrong_product": "it is another product than the recipe in force",
    "score_out_of_range": "the model gave no usable number",
}

STATE = {
    "preoperational": "starting",
    "halted": "halted",
    "error": "in trouble",
    "initialized": "set up, waiting for the camera",
    "ready": "ready, waiting for a trigger",
    "single_execution": "judging one part",
    "continuous_execution": "running",
}


def said(part: Part) -> str:
    """Say what the line said about a part."""
    words = f"{VERDICT.get(part.verdict, part.verdict.upper())}, {part.confidence:.0%} sure"
    if part.verdict == "review":
        words = f"REVIEW: {REASON.get(part.reason, part.reason or 'a person should look')}"
    if part.defect_type and part.verdict != "pass":
        words += f", perhaps {part.defect_type}"
    return words


def label(decision: str, defect_type: str = "") -> str:
    """Say a label."""
    if decision == "fail":
        return f"fail: {defect_type}" if defect_type else "fail"
    return decision or "no label"


def name(part: Part) -> str:
    """Name a part as people call it."""
    return part.part_id or (f"no. {part.seq}" if part.seq else part.image)


def when(unix_ns: int) -> str:
    """Write a time of this machine's clock; only the time for today."""
    moment = datetime.fromtimestamp(unix_ns / 1e9, UTC).astimezone()
    today = datetime.now(UTC).astimezone().date() == moment.date()
    return moment.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M")


def ago(seconds: float) -> str:
    """Write an age roughly."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def kappa(value: float | None, pairs: int) -> str:
    """Say an agreement figure in words; with few pairs it means little, and says so."""
    if pairs == 0:
        return "nothing to compare yet"
    if value is None:
        return "only one kind of label so far"
    good = "poor" if value < 0.4 else "fair" if value < 0.6 else "good" if value < 0.8 else "very good"
    few = ", few pairs" if pairs < 20 else ""
    return f"{value:.2f} ({good}{few})"
