"""The answer for one part: the record the ledger keeps, and the payloads the line reads (schema version 1)."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

SCHEMA_VERSION = 1

V_CODE = {"undecided": 0, "pass": 1, "fail": 2, "review": 3}
"""ResultEvaluationEnum of OPC 40001-101: 0 undefined, 1 OK, 2 not OK, 3 not decidable."""

_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True, allow_nan=False)
_NOT_IN_PLC_STRINGS = str.maketrans(dict.fromkeys(',":[]{}\\', "_"))


def rfc3339(unix_ns: int) -> str:
    """Write a time as RFC 3339 in UTC with milliseconds."""
    moment = datetime.fromtimestamp(unix_ns // 1_000_000_000, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{unix_ns // 1_000_000 % 1000:03d}Z"


@dataclass(frozen=True, slots=True)
class ModelRef:
    """Which model judged."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True, slots=True)
class CameraRef:
    """Which camera saw the part, and its frame number."""

    name: str
    serial: str
    frame_id: int | None


@dataclass(frozen=True, slots=True)
class Latency:
    """Where the time of one answer went, in milliseconds. ``total`` runs from the trigger to the hand-over to MQTT.

    ``record`` and ``publish`` are over only when the row is written: in the ledger's own copy they are 0.
    """

    grab: float = 0.0
    prepare: float = 0.0
    infer: float = 0.0
    decide: float = 0.0
    record: float = 0.0
    publish: float = 0.0
    total: float = 0.0


@dataclass(frozen=True, slots=True)
class Result:
    """One answer for one part.

    Attributes
    ----------
    seq
        1 for the first answer of a station, one more for each; survives restarts.
    trigger_unix_ns, published_unix_ns
        Wall-clock times in nanoseconds since 1970, UTC.
    trigger_no
        Number of the ledger's trigger that this answers, or None when the frame itself was the trigger.
    deadline_unix_ns
        When the answer is of no more use to the line, or None for a replay where nobody waits.
    """

    seq: int
    verdict: str
    reason: str
    confidence: float
    defect_probability: float
    anomaly: float
    product: str
    model: ModelRef
    camera: CameraRef
    trigger_unix_ns: int
    received_unix_ns: int
    published_unix_ns: int
    latency: Latency
    defect_type: str | None = None
    part_id: str = ""
    trigger_id: str = ""
    trigger_no: int | None = None
    exposure_device_ns: int | None = None
    deadline_unix_ns: int | None = None
    simulated: bool = False
    late: bool = False
    image: str | None = None
    heatmap: str | None = None

    def payload(self, *, late: bool | None = None) -> bytes:
        """Return the JSON of the topic ``result``; ``late`` overrides the recorded flag for a delayed delivery."""
        model, camera, latency = self.model, self.camera, self.latency
        record: dict[str, Any] = {  # written out: dataclasses.asdict alone costs 25 of the 45 us it would take
            "schema_version": SCHEMA_VERSION,
            "seq": self.seq,
            "verdict": self.verdict,
            "reason": self.reason,
            "confidence": _share(self.confidence),
            "defect_probability": _share(self.defect_probability),
            "anomaly": _share(self.anomaly),
            "defect_type": self.defect_type,
            "product": self.product,
            "model": {"name": model.name, "version": model.version, "sha256": model.sha256},
            "part_id": self.part_id,
            "trigger_id": self.trigger_id,
            "camera": {"name": camera.name, "serial": camera.serial, "frame_id": camera.frame_id},
            "times": {
                "trigger": rfc3339(self.trigger_unix_ns),
                "exposure_device_ns": self.exposure_device_ns,
                "received": rfc3339(self.received_unix_ns),
                "published": rfc3339(self.published_unix_ns),
            },
            "latency_ms": {
                "grab": _ms(latency.grab),
                "prepare": _ms(latency.prepare),
                "infer": _ms(latency.infer),
                "decide": _ms(latency.decide),
                "record": _ms(latency.record),
                "publish": _ms(latency.publish),
                "total": _ms(latency.total),
            },
            "simulated": self.simulated,
            "late": self.late if late is None else late,
            "image": self.image,
            "heatmap": self.heatmap,
        }
        return _ENCODER.encode(record).encode()

    def plc_payload(self) -> bytes:
        """Return the compact JSON of the topic ``result/plc``: ASCII, fixed key order, integers that fit a DINT."""
        day_ms = self.published_unix_ns // 1_000_000 % 86_400_000
        record = {
            "seq": self.seq & 0x7FFFFFFF,
            "v": V_CODE[self.verdict],
            "c": round(_share(self.confidence) * 10_000),
            "ms": max(0, min(round(_ms(self.latency.total)), 0x7FFFFFFF)),
            "tod": day_ms,
            "id": plc_string(self.part_id),
        }
        return _ENCODER.encode(record).encode()


def encode_record(record: dict[str, Any]) -> bytes:
    """Return a record that was read from elsewhere in the form of `Result.payload`; raises `ValueError`."""
    return _ENCODER.encode(record).encode()


def mark_late(payload: bytes) -> bytes:
    """Flag a payload of the topic ``result`` as delivered late.

    The pair of bytes below cannot occur inside a string of the payload: JSON would have escaped its quotes.
    """
    return payload.replace(b'"late":false', b'"late":true', 1)


def _share(value: float) -> float:
    """Round a share to four digits within 0..1; not a number counts as 0, because JSON and PLCs know none."""
    return round(min(max(value, 0.0), 1.0), 4) if math.isfinite(value) else 0.0


def _ms(value: float) -> float:
    """Round milliseconds to the microsecond; not a number counts as 0."""
    return round(value, 3) if math.isfinite(value) else 0.0


def plc_string(text: str) -> str:
    """Make a string every PLC library reads: printable ASCII, no space, no JSON punctuation, at most 64 characters."""
    ascii_text = text.encode("ascii", "replace").decode()
    return "".join(c if "!" <= c <= "~" else "_" for c in ascii_text).translate(_NOT_IN_PLC_STRINGS)[:64]
