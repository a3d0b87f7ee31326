"""`lineward plc-check`: can the PLC read what we send? Every payload against every vendor's documented limits."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Column, Table
from rich.text import Text

from lineward.daemon.commands import COMMANDS, acknowledgement
from lineward.daemon.config import Config, Inspection, SimulatedCamera, load_config
from lineward.daemon.plc_vendors import VENDORS, Vendor
from lineward.daemon.result import CameraRef, Latency, ModelRef, Result, plc_string
from lineward.models.verdict import Decision

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

EVERY_PLC = frozenset(
    {"result/plc", "result/verdict", "result/part_id", "heartbeat", "availability"}
    | {"ack/trigger", "ack/part", "ack/recipe", "ack/unknown"}
)
"""Topics for which a payload that one vendor cannot read is a fault."""

LARGER_PLCS = frozenset({"state", "result", "alarm", "stats"})
"""Topics that CODESYS, Beckhoff and Bachmann must be able to read; a small PLC subscribes to them at its own risk."""

BARE = frozenset({"result/verdict", "result/part_id", "heartbeat", "availability"})
"""Topics whose payload is one value and no JSON."""

DAY_END_NS = 86_399_999 * 1_000_000
LONGEST_DINT = 0x7FFFFFFF
UNKNOWN = "(no topic)"
OUR_KEYS = (b'"seq"', b'"ok"', b'"state"', b'"raised"', b'"uptime_s"')
"""Of these each JSON payload of a station has one, but for an `alarm` without any."""
WORDS = frozenset({"online", "offline", "stopped", *(str(decision) for decision in Decision)})
"""Bare payloads that are words."""
LONGEST_WORD = "unknown_command"
LONGEST_REASON = "score_out_of_range"
LONGEST_PART_ID = 128
"""Of those that say why a command was refused."""
PART_ID = 'Ä,"{:[]}\\ \n\U0001f9f0x' * 10  # what JSON and small PLCs dislike


class PlcCheckError(ValueError):
    """A recorded payload cannot be checked; the message names the file and the remedy."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One payload as it goes out; ``topic`` is below the station's base, ``origin`` says where it comes from."""

    topic: str
    payload: bytes
    origin: str

    @property
    def for_every_plc(self) -> bool:
        """Whether the smallest PLC is to read it; a payload of unknown topic is held to the same."""
        return self.topic in EVERY_PLC or self.topic == UNKNOWN

    @property
    def audience(self) -> str:
        """For whom it is meant, in words."""
        if self.for_every_plc:
            return "every PLC"
        return "larger PLCs" if self.topic in LARGER_PLCS else "nobody's PLC"

    def is_json(self) -> bool:
        """Tell whether readers take it for JSON."""
        return self.topic not in BARE and (self.topic != UNKNOWN or self.payload.lstrip()[:1] == b"{")

    def full_topic(self, base: str) -> str:
        """Return the topic as the PLC subscribes to it."""
        return f"{base}/{self.topic}" if self.topic in EVERY_PLC | LARGER_PLCS else self.topic

    def meant_for(self, vendor: Vendor) -> bool:
        """Tell whether this vendor's PLC must be able to read it."""
        return self.for_every_plc or (self.topic in LARGER_PLCS and not vendor.small)


@dataclass(frozen=True, slots=True)
class Check:
    """One payload at one vendor's PLC; it can read it when there are no objections."""

    sent: Sent
    vendor: Vendor
    objections: tuple[str, ...]

    @property
    def fault(self) -> bool:
        """Whether somebody who must read this cannot."""
        return bool(self.objections) and self.sent.meant_for(self.vendor)


@dataclass(frozen=True, slots=True)
class Report:
    """All checks of one run, in the order of the payloads."""

    base: str
    checks: tuple[Check, ...] = field(default=())

    @property
    def fine(self) -> bool:
        """Whether every PLC can read what is meant for it."""
        return not any(check.fault for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Return what `plc-check --json` prints."""
        rows = []
        for sent, checks in self._by_payload():
            readers = {
                check.vendor.name: {
                    "reads": not check.objections,
                    "must": sent.meant_for(check.vendor),
                    "objections": list(check.objections),
                }
                for check in checks
            }
            text = sent.payload.decode("utf-8", "backslashreplace")
            rows.append(
                {"topic": sent.topic, "origin": sent.origin, "bytes": len(sent.payload), "for": sent.audience}
                | {"payload": text, "readers": readers}
            )
        vendors = [{"name": v.name, "limits": v.limits(), "source": v.source} for v in VENDORS]
        return {"fine": self.fine, "base": self.base, "vendors": vendors, "payloads": rows}

    def _by_payload(self) -> Iterator[tuple[Sent, list[Check]]]:
        width = len(VENDORS)
        for start in range(0, len(self.checks), width):
            checks = list(self.checks[start : start + width])
            yield checks[0].sent, checks

    def tables(self) -> Iterator[Table]:
        """Lay out the limits, and who reads what."""
        limits = Table("PLC side", "limits", "source", title="Limits")
        for vendor in VENDORS:
            limits.add_row(vendor.name, vendor.limits(), vendor.source)
        yield limits
        widest = max((len(check.sent.topic) for check in self.checks), default=0)
        topic = Column("topic", no_wrap=True, min_width=widest)
        names = (vendor.name for vendor in VENDORS)
        readers = Table(topic, "for", "bytes", *names, title=Text(f"{self.base}/..."))
        for sent, checks in self._by_payload():
            marks = (_mark(check) for check in checks)
            readers.add_row(Text(sent.topic), sent.audience, str(len(sent.payload)), *marks)
        yield readers

    def sentences(self) -> Iterator[str]:
        """Say what cannot be read, where, and what that means."""
        for check in self.checks:
            if check.objections:
                what = "FAIL" if check.fault else "note"
                tail = "" if check.fault else f" (meant for {check.sent.audience})"
                yield f"{what} {check.sent.origin}, {check.vendor.name}: {'; '.join(check.objections[:3])}{tail}"
        yield "every PLC can read what is meant for it" if self.fine else "a PLC cannot read what is meant for it"


def _mark(check: Check) -> str:
    if not check.objections:
        return "[green]yes[/]"
    return "[red]NO[/]" if check.fault else "[yellow]no[/]"


def run_check(config_file: Path | None, files: Sequence[Path]) -> Report:
    """Check recorded payloads, or without any the longest ones of a station; without a file, of the default station.

    Raises
    ------
    ConfigError, PlcCheckError
        A file cannot be used.
    """
    if config_file is not None:
        config = load_config(config_file)
    else:
        camera = SimulatedCamera(driver="simulated")
        config = Config(camera=camera, inspection=Inspection(model=Path("bracket.lward")))
    payloads = list(recorded_payloads(files)) if files else worst_payloads(config)
    return check_payloads(config.station.base_topic, payloads)


def check_payloads(base: str, payloads: Iterable[Sent]) -> Report:
    """Hold every payload against every vendor."""
    checks = [
        Check(
            sent,
            vendor,
            tuple(vendor.objections(sent.full_topic(base), sent.payload, as_json=sent.is_json())),
        )
        for sent in payloads
        for vendor in VENDORS
    ]
    return Report(base, tuple(checks))


# ---- the longest payloads that this station can send


def worst_payloads(config: Config) -> list[Sent]:
    """Make the longest payload of each topic with this station's names, by the code that makes the real ones."""
    longest = "longest possible"
    result = _longest_result(config)
    undecided = "undecided"
    sent = [
        Sent("result/plc", result.plc_payload(), longest),
        Sent("result/verdict", undecided.encode(), longest),
        Sent("result/part_id", plc_string(result.part_id).encode(), longest),
        Sent("heartbeat", str(LONGEST_DINT).encode(), longest),
        Sent("availability", b"offline", longest),
        *(Sent(f"ack/{name}", acknowledgement("9" * 64, LONGEST_WORD), longest) for name in (*COMMANDS, "unknown")),
        Sent("state", _compact(_longest_state(config)), longest),
        Sent("result", result.payload(), longest),
    ]
    return [Sent(each.topic, each.payload, f"{each.topic} ({each.origin})") for each in sent]


def _longest_result(config: Config) -> Result:
    product = max(recipe_names(config), key=len)
    camera = config.camera
    serial = str(getattr(camera, "serial", "") or getattr(camera, "folder", ""))
    return Result(
        seq=LONGEST_DINT,
        verdict="undecided",
        reason=LONGEST_REASON,
        confidence=1.0,
        defect_probability=0.3333,
        anomaly=0.3333,
        defect_type="x" * 64,
        product=product,
        model=ModelRef(product, "20261123-205129", "f" * 64),
        camera=CameraRef("Camera of a long name " * 3, serial or "40012345", LONGEST_DINT),
        trigger_unix_ns=DAY_END_NS,
        received_unix_ns=DAY_END_NS,
        published_unix_ns=DAY_END_NS,
        latency=Latency(1e9, 1e9, 1e9, 1e9, 1e9, 1e9, 1e12),
        part_id=PART_ID[:LONGEST_PART_ID],
        trigger_id="7" * 64,
        exposure_device_ns=(1 << 63) - 1,
        image="i" * 64,
    )


def _longest_state(config: Config) -> dict[str, Any]:
    product = max(recipe_names(config), key=len)
    return {
        "state": "continuous_execution",
        "reason": "camera_lost",
        "product": product,
        "model": "20261123-205129",
        "recipe": product,
        "since": "2026-11-23T20:51:29.000Z",
    }


def recipe_names(config: Config) -> list[str]:
    """Return the names under which this station's recipes are known, and those of their models."""
    models = [config.inspection.model, *(recipe.model for recipe in config.recipes.values())]
    return ["default", *config.recipes, *(model.stem for model in models)]


def _compact(content: dict[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


# ---- recorded payloads

_TOPICS = "|".join(sorted(map(re.escape, EVERY_PLC | LARGER_PLCS), key=len, reverse=True))
_LINE = re.compile(rb"\S+/\S+ ")
_KNOWN = re.compile(rf"(?:^|/)({_TOPICS})$")


def recorded_payloads(files: Sequence[Path]) -> Iterator[Sent]:
    """Read payload files: what `mosquitto_sub -v` printed, one `topic payload` a line, or bare payloads.

    Raises
    ------
    PlcCheckError
        A file cannot be read or holds nothing.
    """
    for file in files:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise PlcCheckError(f"{file}: cannot be read: {error.strerror}") from error
        if not content.strip():
            raise PlcCheckError(f"{file}: holds no payload; record some with `mosquitto_sub -v -t ... > {file.name}`")
        if _is_one_payload(content):
            found = [Sent(UNKNOWN, content.rstrip(b"\r\n"), str(file))]
        else:
            lines = ((number, line.rstrip(b"\r")) for number, line in enumerate(content.split(b"\n"), 1))
            found = [_recorded(line, f"{file}:{number}") for number, line in lines if line]
        binary = b"\0" in content  # has a line of one digit or a brace somewhere
        if not any(_is_ours(sent) for sent in found if sent.topic != UNKNOWN or not binary):
            raise PlcCheckError(
                f"{file}: no recorded payloads: no line has a topic or a payload of a station; record some with "
                "`mosquitto_sub -v -t ...`"
            )
        yield from found


def _is_ours(sent: Sent) -> bool:
    """Tell what a station may have sent from any other text."""
    if sent.topic != UNKNOWN:
        return sent.topic in EVERY_PLC | LARGER_PLCS
    if sent.is_json():
        return any(key in sent.payload for key in OUR_KEYS)
    return sent.payload.isdigit() or sent.payload.decode("utf-8", "replace") in WORDS


def _is_one_payload(content: bytes) -> bool:
    """Tell a JSON text that goes over several lines."""
    first, _, rest = content.strip().partition(b"\n")
    return first.lstrip()[:1] == b"{" and bool(rest) and not first.rstrip().endswith(b"}")


def _recorded(line: bytes, origin: str) -> Sent:
    if line[:1] != b"{" and _LINE.match(line):
        topic, _, payload = line.partition(b" ")
        name = topic.decode("utf-8", "replace")
        known = _KNOWN.search(name)
        return Sent(known[1] if known else name, payload, origin)
    return Sent(UNKNOWN, line, origin)
