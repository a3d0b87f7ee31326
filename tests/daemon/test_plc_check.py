"""What we send can be read by PLCs: every vendor's limits, read by parsers that share no code with our encoder."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lineward.daemon.cli import main
from lineward.daemon.config import Config, load_config
from lineward.daemon.plc_check import LONGEST_WORD, Sent, check_payloads, recorded_payloads, worst_payloads
from lineward.daemon.plc_vendors import VENDORS, Scanner, UnreadableError, split_flat
from lineward.daemon.result import V_CODE, CameraRef, Latency, ModelRef, Result, plc_string

ROOT = Path(__file__).resolve().parents[2]
BASE = "lineward/plant/line1/cam1"
BY_NAME = {vendor.name: vendor for vendor in VENDORS}

# ---- random results

any_text = st.text(st.characters(exclude_categories=[]), max_size=300)  # halves of surrogate pairs included
any_float = st.floats(allow_nan=True, allow_infinity=True)
any_time = st.integers(0, 4_000_000_000 * 10**9)


@st.composite
def results(draw: st.DrawFn) -> Result:
    return Result(
        seq=draw(st.integers(0, 1 << 63)),
        verdict=draw(st.sampled_from(sorted(V_CODE))),
        reason=draw(any_text),
        confidence=draw(any_float),
        defect_probability=draw(any_float),
        anomaly=draw(any_float),
        product=draw(any_text),
        model=ModelRef("m", "1", "ab" * 32),
        camera=CameraRef("c", "s", draw(st.integers(0, 1 << 63))),
        trigger_unix_ns=draw(any_time),
        received_unix_ns=draw(any_time),
        published_unix_ns=draw(any_time),
        latency=Latency(total=draw(any_float)),
        part_id=draw(any_text),
        trigger_id=draw(any_text),
    )


@given(results())
def test_every_plc_reads_every_answer(result):
    """Rule: whatever is in a result, `result/plc` breaks no vendor's limit, and reads the same by both readers."""
    payload = result.plc_payload()
    report = check_payloads(BASE, [Sent("result/plc", payload, "random")])
    assert [check.objections for check in report.checks] == [()] * len(VENDORS)
    values = split_flat(payload.decode("ascii"))
    assert values == Scanner(payload.decode("ascii")).scan().values
    assert list(values) == ["seq", "v", "c", "ms", "tod", "id"]
    assert values["v"] == V_CODE[result.verdict]
    assert values["seq"] == result.seq % (1 << 31)
    assert values["c"] in range(10_001)
    assert values["tod"] == result.published_unix_ns // 10**6 % 86_400_000
    assert values["ms"] in range(1 << 31)


@given(results())
def test_every_plc_reads_every_bare_value(result):
    """Rule: `result/verdict` and `result/part_id` are short printable ASCII, whatever the part is called."""
    sent = [
        Sent("result/verdict", str(result.verdict).encode(), "random"),
        Sent("result/part_id", plc_string(result.part_id).encode(), "random"),
    ]
    assert check_payloads(BASE, sent).fine


@given(
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=64).filter(
        lambda t: not set(t) & set(',":[]{}\\')
    )
)
def test_an_id_that_a_plc_chose_comes_back_unchanged(part_id):
    """Rule: a part id that small PLCs can write is not altered on its way through: the PLC compares it."""
    assert plc_string(part_id) == part_id


# ---- the limits themselves


def flat(**values: object) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode()


SIZE = len(flat(s=""))


@pytest.mark.parametrize(
    ("vendor", "payload", "objection"),
    [
        ("S7 LStream", flat(s="x" * 254), ""),
        ("S7 LStream", flat(s="x" * 255), "255 characters"),
        ("S7 LStream", b'{"s": 1}', "white space"),
        ("S7 LStream", b'{"s":1}\n', "white space"),
        ("S7 LStream", '{"s":"ä"}'.encode(), "is not ASCII"),
        ("S7 LStream", b'{"s":"\\u00e4"}', "escape"),
        ("S7 LStream", flat(n=2**31 - 1), ""),
        ("S7 LStream", flat(n=2**31), "does not fit"),
        ("S7 LStream", flat(n=-(2**31) - 1), "does not fit"),
        ("SIMATIC AX", b'{"n": 1, "s": "a"}', ""),
        ("SIMATIC AX", b"{" + b'"a":1,' * 166 + b'"b":1}', "twice"),
        ("SIMATIC AX", flat(t="12:30"), "holds :"),
        ("SIMATIC AX", flat(t="a,b"), "holds ,"),
        ("SIMATIC AX", flat(t="[a]"), "holds ["),
        ("SIMATIC AX", flat(**{"a:b": 1}), "holds :"),
        ("SIMATIC AX", flat(r=0.5), "a REAL"),
        ("SIMATIC AX", flat(b=True), "a BOOL"),
        ("SIMATIC AX", flat(n=None), "null"),
        ("SIMATIC AX", flat(o={"n": 1}), "an object"),
        ("SIMATIC AX", flat(**{f"k{i:03d}": "x" * 240 for i in range(4)}), "1000 fit"),
        ("S7 LMQTT", flat(s="x" * (256 - SIZE)), ""),
        ("S7 LMQTT", flat(s="x" * (257 - SIZE)), "257 bytes, 256 fit"),
        ("CODESYS", flat(s="x" * 255, r=0.5, b=True, n=None, o={"l": [1, 2]}), ""),
        ("CODESYS", flat(s="x" * 256), "256 characters"),
        ("CODESYS", b'{"a":' * 50 + b"1" + b"}" * 50, ""),
        ("CODESYS", b'{"a":' * 51 + b"1" + b"}" * 51, "51 deep"),
        ("CODESYS", flat(l=list(range(4095))), ""),
        ("CODESYS", flat(l=list(range(4096))), "4097 values"),
        ("CODESYS", flat(**{f"k{i}": "x" * 250 for i in range(130)}), "32000 fit"),
        ("Beckhoff", flat(s="x" * 256), "255 fit"),
        ("Beckhoff", flat(l=["x" * 200] * 500), "100000 fit"),
        ("Bachmann", b"x" * 64_001, "64000 fit"),
        ("CODESYS", b'{"a":1', "no , at 6"),
        ("CODESYS", b'{"a":01}', "no , at 6"),
        ("CODESYS", b'{"a":1}x', "goes on after its end"),
        ("CODESYS", b"[1]", "is no object"),
        ("CODESYS", b'{"a":NaN}', "no value"),
        ("CODESYS", b'{"a":"\xff"}', "is not UTF-8"),
        ("CODESYS", b'{"a":' * 200 + b"1" + b"}" * 200, "nested more than"),
    ],
)
def test_each_limit_is_where_the_vendor_puts_it(vendor, payload, objection):
    """Rule: a payload at the limit is taken and one beyond it is refused, with the reason."""
    objections = BY_NAME[vendor].objections("t", payload, as_json=True)
    if objection:
        assert any(objection in text for text in objections), objections
    else:
        assert objections == []


def test_a_long_number_is_a_part_id_and_no_heartbeat():
    """Rule: a part id of digits is text, whatever its value; the heartbeat must fit a whole number of 32 bits."""
    assert check_payloads(BASE, [Sent("result/part_id", b"2200000000", "scanner")]).fine
    assert not check_payloads(BASE, [Sent("heartbeat", b"2200000000", "old")]).fine


def test_a_topic_must_fit_the_plc():
    """Rule: a topic longer than a PLC's strings is an objection too."""
    assert BY_NAME["Beckhoff"].objections("t" * 255, b"1", as_json=False) == []
    assert BY_NAME["Beckhoff"].objections("t" * 256, b"1", as_json=False) == ["the topic has 256 characters, 255 fit"]


numbers = st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | any_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=8).filter(lambda key: "." not in key), json_values, max_size=5), st.booleans())
def test_our_reader_of_json_reads_what_python_reads(value, compact):
    """Rule: the checking parser takes every JSON object that Python's takes, and finds the same values in it."""
    text = json.dumps(value, separators=(",", ":") if compact else None, indent=None if compact else 1)
    found = Scanner(text).scan()
    top = {k: v for k, v in json.loads(text).items() if isinstance(v, str) or type(v) is int}
    assert {k: v for k, v in found.values.items() if k in top and "." not in k} == top
    assert bool(found.spaces) == (not compact and bool(value))


@given(st.text('{}[]:,"\\ \n\tabtruefalsn0123456789.-+eEu', max_size=30))
def test_our_reader_refuses_what_python_refuses(text):
    """Rule: the checking parser never takes for JSON what is none."""
    try:
        Scanner(text).scan()
    except UnreadableError:
        return
    assert isinstance(json.loads(text), dict)


# ---- what a station sends, and what was recorded


def config(**changes: object) -> Config:
    return Config.model_validate({"camera": {"driver": "simulated"}, "inspection": {"model": "m.lward"}, **changes})


def test_the_longest_names_still_fit():
    """Rule: with the longest names a configuration may hold, every PLC reads what is meant for it."""
    longest = "n" * 64
    station = {"site": longest, "line": longest, "name": longest}
    sent = worst_payloads(config(station=station, recipes={longest: {"model": "m.lward"}}))
    report = check_payloads(f"lineward/{longest}/{longest}/{longest}", sent)
    assert report.fine, list(report.sentences())
    assert {"result/plc", "heartbeat", "ack/trigger", "ack/part", "ack/recipe", "state"} <= {
        each.topic for each in sent
    }
    assert any(longest in each.payload.decode() for each in sent if each.topic == "state")


def test_the_words_of_a_refusal_are_short_and_plain():
    """Rule: every word that an acknowledgement gives as its reason is one that the longest one was made for."""
    source = "".join((ROOT / "daemon" / name).read_text() for name in ("commands.py", "changeover.py"))
    words = re.findall(r'Refused\("(\w+)"', source) + re.findall(r'done\("(\w+)"', source)
    assert len(words) > 8
    for word in words:
        assert len(word) <= len(LONGEST_WORD)
        assert plc_string(word) == word


def test_only_what_is_meant_for_a_plc_can_be_a_fault():
    """Rule: SIMATIC AX cannot read `state` (its time holds colons); that is said, and is no fault."""
    report = check_payloads(BASE, worst_payloads(config()))
    ax = next(c for c in report.checks if c.sent.topic == "state" and c.vendor.name == "SIMATIC AX")
    assert ax.objections
    assert not ax.fault
    assert report.fine


def test_recorded_payloads_keep_their_topics(tmp_path):
    """Rule: what `mosquitto_sub -v` printed is checked under its topics, payloads without one as meant for all PLCs."""
    file = tmp_path / "heard.txt"
    file.write_text(
        f'{BASE}/result/plc {{"seq":1,"v":1,"c":9931,"ms":24,"tod":52211730,"id":"A 1"}}\n'
        f"{BASE}/heartbeat 17\n"
        f'{BASE}/state {{"since":"2026-11-23T20:51:29.000Z"}}\n'
        '{"seq":1}\n'
        "pass\n"
    )
    sent = list(recorded_payloads([file]))
    assert [each.topic for each in sent] == ["result/plc", "heartbeat", "state", "(no topic)", "(no topic)"]
    assert [each.is_json() for each in sent] == [True, False, True, True, False]
    assert check_payloads(BASE, sent).fine
    pretty = tmp_path / "pretty.json"
    pretty.write_text('{\n "seq": 1\n}\n')
    (only,) = recorded_payloads([pretty])
    assert not check_payloads(BASE, [only]).fine, "line breaks: LStream cannot read them"


@pytest.mark.parametrize(("text", "code"), [('{"seq":1,"v":1}\n', 0), ('{"seq":1,"v":1.5}\n', 1), ("", 2)])
def test_the_exit_code_says_whether_plcs_can_read_it(text, code, tmp_path, capsys):
    """Rule: 0 all can read it, 1 one cannot, 2 the file is of no use; JSON and words agree."""
    file = tmp_path / "heard.txt"
    file.write_text(text)
    with pytest.raises(SystemExit) as left:
        main(["plc-check", "--json", str(file)])
    assert left.value.code == code
    said = capsys.readouterr()
    if code == 2:
        assert said.err.startswith(f"lineward: {file}: holds no payload")
        assert said.err.count("\n") == 1
        return
    report = json.loads(said.out)
    assert report["fine"] is (code == 0)
    assert report["payloads"][0]["readers"]["SIMATIC AX"]["reads"] is (code == 0)
    with pytest.raises(SystemExit):
        main(["plc-check", str(file)])
    assert ("every PLC can read" in capsys.readouterr().out) is (code == 0)


def test_brackets_in_a_topic_are_no_markup(tmp_path, capsys, monkeypatch):
    """Rule: what somebody recorded is shown as it is, and topics are not cut off on 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    file = tmp_path / "heard.txt"
    long = f"shop/{'long' * 20}/:smile:/end"
    file.write_text(f"{BASE}/heartbeat 1\n{BASE}/ack/trigger {{}}\nshop/[/old]/temp 21.5\n{long} 1\n")
    with pytest.raises(SystemExit) as left:
        main(["plc-check", str(file)])
    assert left.value.code in {0, 1}
    said = capsys.readouterr().out
    assert "shop/[/old]/temp" in said
    assert f"│ {long} │" in said
    assert "ack/trigger" in said


@pytest.mark.parametrize(
    "content",
    [
        b'[camera]\ndriver = "simulated"\n',
        b"shop/[/old]/temp 21.5\n",
        b"\x08\x07\x12\n\xff",
        b"\x00\xff\n7\n{\xfe\n",
        b'{\n "name": "lineward"\n}\n',
        b'{"name":"lineward"}\n',
    ],
)
def test_a_file_without_payloads_is_refused(content, tmp_path, capsys):
    """Rule: a configuration, a model or somebody else's topics are no recording of a station."""
    file = tmp_path / "some.file"
    file.write_bytes(content)
    with pytest.raises(SystemExit) as left:
        main(["plc-check", str(file)])
    assert left.value.code == 2
    said = capsys.readouterr()
    assert f"lineward: {file}: no recorded payloads" in said.err
    assert said.err.count("\n") == 1


def test_the_stations_names_are_used(tmp_path, capsys):
    """Rule: --config takes topics and recipe names from the station's own file."""
    file = tmp_path / "line.toml"
    file.write_text(
        '[station]\nsite = "works"\n[camera]\ndriver = "simulated"\n[inspection]\nmodel = "m.lward"\n'
        '[recipes.flange]\nmodel = "f.lward"\n'
    )
    assert load_config(file).station.base_topic == "lineward/works/line1/cam1"
    with pytest.raises(SystemExit) as left:
        main(["plc-check", "--config", str(file), "--json"])
    assert left.value.code == 0
    report = json.loads(capsys.readouterr().out)
    assert report["base"] == "lineward/works/line1/cam1"
