from __future__ import annotations

import json
from datetime import datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st
from tests.daemon.results import make

from lineward.daemon.result import Latency, mark_late, rfc3339

FLOATS = st.floats(allow_nan=True, allow_infinity=True)


@given(
    seq=st.integers(1, 2**40),
    verdict=st.sampled_from(["pass", "fail", "review", "undecided"]),
    confidence=FLOATS,
    total=FLOATS,
    part_id=st.text(max_size=300),
    published=st.integers(0, 2**62),
)
def test_any_answer_is_readable_by_a_small_plc(
    *, seq: int, verdict: str, confidence: float, total: float, part_id: str, published: int
) -> None:
    """`result/plc` is ASCII without white space, under 256 bytes, in a fixed order, with integers that fit a DINT."""
    result = make(
        seq=seq,
        verdict=verdict,
        confidence=confidence,
        latency=Latency(total=total),
        part_id=part_id,
        published_unix_ns=published,
    )
    payload = result.plc_payload()
    text = payload.decode("ascii")
    assert len(payload) < 256
    assert not any(c.isspace() for c in text)
    record = json.loads(text)
    assert list(record) == ["seq", "v", "c", "ms", "tod", "id"]
    for key in ("seq", "v", "c", "ms", "tod"):
        assert type(record[key]) is int
        assert 0 <= record[key] < 2**31
    assert len(record["id"]) <= 64
    assert not set(record["id"]) & set(',":[]{}\\')
    assert (record["v"] == 1) == (verdict == "pass")


@given(confidence=FLOATS, total=FLOATS, part_id=st.text())
def test_any_answer_is_strict_json(confidence: float, total: float, part_id: str) -> None:
    """`result` never holds NaN or Infinity, which strict readers refuse, whatever a model has returned."""
    payload = make(confidence=confidence, anomaly=confidence, latency=Latency(infer=total), part_id=part_id).payload()
    record = json.loads(payload, parse_constant=lambda name: (_ for _ in ()).throw(AssertionError(name)))
    assert 0 <= record["confidence"] <= 1


@given(part_id=st.text() | st.just('"late":false'))
def test_marking_late_changes_the_flag_and_nothing_else(part_id: str) -> None:
    """A stored payload that is delivered late differs from the recorded one in its flag only."""
    payload = make(part_id=part_id).payload()
    assert json.loads(mark_late(payload)) == json.loads(payload) | {"late": True}


@given(st.integers(0, 4_000_000_000 * 10**9) | st.integers(0, 999).map(lambda ns: 1_700_000_021 * 10**9 - 1 - ns))
def test_a_time_is_never_later_than_it_was(unix_ns: int) -> None:
    """Seconds and milliseconds are of the same moment, up to the last nanosecond of a second."""
    moment = datetime.fromisoformat(rfc3339(unix_ns))
    since = moment - datetime.fromisoformat("1970-01-01T00:00:00Z")
    assert since // timedelta(milliseconds=1) == unix_ns // 1_000_000
