"""The PLC starter kit does what it says: its Structured Text and its SCL are parsed by blark and executed here.

No vendor's compiler is at hand, so this proves the logic and the grammar, not that a certain version of TIA Portal or
TwinCAT takes the text; docs/plc says so.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.daemon.results import make

from lineward.daemon.commands import COMMANDS, acknowledgement
from lineward.daemon.result import V_CODE

blark = pytest.importorskip("blark", reason="the parser of Structured Text is not installed")

from tests.plc.st import Block, Clock, Program, from_scl, parse_source_code  # noqa: E402 - needs blark

KIT = Path(__file__).resolve().parents[2] / "docs" / "plc"
LONGEST = 0x7FFFFFFF

SPEAKS = {
    "st": {
        "number": "F_LinewardNumber",
        "text": "F_LinewardText",
        "gate": "FB_LinewardGate",
        "recipe": "FB_LinewardRecipe",
    },
    "scl": {"number": "LinewardNumber", "text": "LinewardText", "gate": "LinewardGate", "recipe": "LinewardRecipe"},
}
SOURCES = {"st": (KIT / "lineward.st").read_text(), "scl": from_scl((KIT / "lineward.scl").read_text())}
PROGRAMS = {language: Program(source, Clock()) for language, source in SOURCES.items()}


class Plc:
    """A gate and a changeover in one of both languages, with the same words for both."""

    def __init__(self, language: str) -> None:
        self.clock = Clock()
        self.names = SPEAKS[language]
        self.is_st = language == "st"
        self._program = Program(SOURCES[language], self.clock)
        self.gate = self._program.block(self.names["gate"])
        self.recipe = self._program.block(self.names["recipe"])

    def number(self, text: str, key: str) -> int:
        return int(self._program.function(self.names["number"], [text, key]))

    def text(self, text: str, key: str) -> str:
        return str(self._program.function(self.names["text"], [text, key]))

    def cycle(
        self, *, part: str | None = None, answer: str | None = None, beat: int | None = None, ms: int = 10
    ) -> str:
        """Let time pass and run one cycle; return what the gate decided: '' nothing, pass, reject."""
        self.clock.now_ms += ms
        if self.is_st:
            inputs = {"xPart": part is not None, "xAnswer": answer is not None, "xBeat": beat is not None}
            inputs |= {"sPart": part or "", "sAnswer": answer or "", "diBeat": beat or 0}
        else:
            inputs = {"newPart": part is not None, "newAnswer": answer is not None, "newBeat": beat is not None}
            inputs |= {"part": part or "", "beat": beat or 0}
            if answer is not None:
                inputs |= {
                    "seq": self.number(answer, "seq"),
                    "v": self.number(answer, "v"),
                    "id": self.text(answer, "id"),
                }
        self.gate.call(**inputs)
        done, passed = self.out("xDone", "done"), self.out("xPass", "pass")
        assert done or not passed, "a pass without a decision"
        return "pass" if passed else "reject" if done else ""

    def out(self, st_name: str, scl_name: str) -> object:
        return self.gate[st_name if self.is_st else scl_name]


@pytest.fixture(params=["st", "scl"])
def plc(request) -> Plc:
    return Plc(request.param)


def answer(part: str, *, seq: int = 7, v: int = 1) -> str:
    verdict = next(name for name, code in V_CODE.items() if code == v)
    return make(seq=seq, verdict=verdict, part_id=part).plc_payload().decode()


# ---- reading


@pytest.mark.parametrize("language", ["st", "scl"])
@given(
    seq=st.integers(0, LONGEST),
    verdict=st.sampled_from(sorted(V_CODE)),
    confidence=st.floats(0, 1),
    part=st.text(st.characters(exclude_categories=[]), max_size=80),
)
def test_the_plc_reads_what_we_send(language, seq, verdict, confidence, part):
    """Rule: the shipped functions read every value of every `result/plc` as Python's JSON does."""
    payload = make(seq=seq, verdict=verdict, confidence=confidence, part_id=part).plc_payload().decode()
    program, names = PROGRAMS[language], SPEAKS[language]
    for key, value in json.loads(payload).items():
        if isinstance(value, int):
            assert program.function(names["number"], [payload, key]) == value
        else:
            assert program.function(names["text"], [payload, key]) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "{}",
        '{"v":}',
        '{"v":x}',
        '{"v":1',
        '{"v":12',
        '{"v":1.5}',
        '{"v":-1}',
        '{"v":"1"}',
        '{"v": 1}',
        '{"v":2147483648}',
        '{"v":99999999999999999999}',
        '{"w":1}',
        "v:1",
        '"v":',
        '{"v":1]}',
    ],
)
def test_a_malformed_number_is_none(plc, text):
    """Rule: what is not a whole number that fits a DINT, ended by a comma or a brace, reads as -1."""
    assert plc.number(text, "v") == -1


@pytest.mark.parametrize(
    "text", ["", '{"id":""}', '{"id":"', '{"id":"x', '{"id":"' + "x" * 65 + '"}', '{"id":1}', '{"id":']
)
def test_a_malformed_text_is_empty(plc, text):
    """Rule: a string that is missing, not closed or too long reads as empty, and an empty id is nobody's."""
    assert plc.text(text, "id") == ""


# ---- the gate


@pytest.mark.parametrize(("v", "decision"), [(0, "reject"), (1, "pass"), (2, "reject"), (3, "reject")])
def test_only_v_1_lets_a_part_through(plc, v, decision):
    """Rule: pass lets through; undecided, fail and review reject; each part is decided once."""
    assert plc.cycle(part="A1") == ""
    assert plc.cycle(answer=answer("A1", v=v)) == decision
    assert plc.out("iVerdict", "verdict") == v
    assert [plc.cycle() for _ in range(100)] == [""] * 100


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "pass",
        '{"seq":8,"v":1}',
        '{"seq":8,"v":4,"id":"A1"}',
        '{"seq":-8,"v":1,"id":"A1"}',
        '{"v":1,"id":"A1"}',
        '{"seq":8,"id":"A1"}',
        '{"seq":8,"v":1,"id":"A2"}',
        '{"seq":8,"v":1,"id":"A"}',
        '{"seq":8,"v":1,"id":"A11"}',
        '{"seq":8,"v":1,"id":""}',
    ],
)
def test_any_other_message_lets_nobody_through(plc, text):
    """Rule: a malformed answer, or one for another part, does not open the gate; the part is rejected in the end."""
    plc.cycle(part="A1")
    assert plc.cycle(answer=text) == ""
    assert plc.out("diIgnored", "ignored") == 1
    decisions = [plc.cycle() for _ in range(100)]
    assert decisions.count("reject") == 1
    assert "pass" not in decisions


def test_no_answer_rejects(plc):
    """Rule: silence rejects the part when its time is over, once, and an answer after that changes nothing."""
    plc.cycle(part="A1")
    decisions = [plc.cycle() for _ in range(100)]
    assert [n for n, decision in enumerate(decisions) if decision] == [decisions.index("reject")]
    assert plc.out("xWaiting", "waiting") is False
    assert plc.cycle(answer=answer("A1")) == ""


def test_a_repeated_answer_is_ignored(plc):
    """Rule: at least once means that an answer may come twice; the second one, or an older one, opens nothing."""
    plc.cycle(part="A1")
    assert plc.cycle(answer=answer("A1", seq=7)) == "pass"
    plc.cycle(part="A1")
    assert plc.cycle(answer=answer("A1", seq=7)) == ""
    assert plc.cycle(answer=answer("A1", seq=6)) == ""
    assert plc.cycle(answer=answer("A1", seq=8)) == "pass"


def test_numbers_begin_anew_after_the_largest(plc):
    """Rule: after 2147483647 comes 0, and the gate goes on."""
    plc.cycle(part="A1")
    assert plc.cycle(answer=answer("A1", seq=LONGEST)) == "pass"
    plc.cycle(part="A2")
    assert plc.cycle(answer=answer("A2", seq=LONGEST + 1)) == "pass"
    assert plc.out("diSeq", "lastSeq") == 0


def test_a_gap_is_counted(plc):
    """Rule: answers that did not reach the PLC are counted: they are in the ledger."""
    for part, seq in (("A1", 7), ("A2", 11)):
        plc.cycle(part=part)
        assert plc.cycle(answer=answer(part, seq=seq)) == "pass"
    assert plc.out("diMissed", "missed") == 3


def test_an_overtaken_part_is_rejected(plc):
    """Rule: a part that still waits when the next one is triggered is rejected, and the next one keeps its own time."""
    plc.cycle(part="A1")
    plc.cycle(ms=650)
    assert plc.cycle(part="A2") == "reject"
    assert plc.cycle(answer=answer("A1", seq=7)) == ""
    assert plc.cycle(ms=600) == ""
    assert plc.cycle(answer=answer("A2", seq=8)) == "pass"


def test_the_heartbeat_is_watched(plc):
    """Rule: alive from the first beat on, as long as the counter rises at least every three seconds."""
    alive = ("xAlive", "alive")
    plc.cycle()
    assert plc.out(*alive) is False, "not before the first beat"
    plc.cycle(beat=1)
    assert plc.out(*alive) is True
    for beat in (2, 3):
        plc.cycle(beat=beat, ms=1000)
        assert plc.out(*alive) is True
    plc.cycle(ms=10)
    plc.cycle(beat=3, ms=2000)
    plc.cycle(ms=1500)
    assert plc.out(*alive) is False, "a counter that does not rise is silence"
    plc.cycle(beat=4)
    assert plc.out(*alive) is True


steps = st.lists(
    st.one_of(
        st.tuples(st.just("part"), st.integers(0, 3)),
        st.tuples(st.just("answer"), st.tuples(st.integers(0, 3), st.integers(1, 12), st.integers(0, 3))),
        st.tuples(st.just("noise"), st.text(st.sampled_from('{}",:seqvid A0123'), max_size=40)),
        st.tuples(st.just("wait"), st.integers(1, 900)),
    ),
    max_size=30,
)


@pytest.mark.parametrize("language", ["st", "scl"])
@given(steps)
def test_no_sequence_of_messages_lets_a_wrong_part_through(language, events):
    """Rule: whatever comes in whatever order, a pass is for the part that waits, by an answer not used before."""
    plc = Plc(language)
    waiting, used, clock = None, 0, 0
    for kind, value in events:
        if kind == "part":
            assert plc.cycle(part=f"A{value}") != "pass"
            waiting, clock = f"A{value}", plc.clock.now_ms
        elif kind == "wait":
            assert plc.cycle(ms=value) != "pass"
        elif kind == "noise":
            assert plc.cycle(answer=value) != "pass" or (waiting is not None and f'"id":"{waiting}"' in value)
        else:
            part, seq, v = value
            decision = plc.cycle(answer=answer(f"A{part}", seq=seq, v=v))
            if decision == "pass":
                assert (v, f"A{part}") == (1, waiting)
                assert seq > used
                assert plc.clock.now_ms - clock <= 700 + 900 + 20
                waiting = None
            used = max(used, seq)


# ---- changeover


def change(plc: Plc, **inputs: object) -> Block:
    plc.clock.now_ms += 10
    names = {
        "change": "xChange",
        "recipe": "sRecipe",
        "id": "sId",
        "waiting": "xWaiting",
        "newAck": "xAck",
        "ack": "sAck",
    }
    given_inputs = {"change": False, "waiting": False, "newAck": False, **inputs}
    return plc.recipe.call(**{names[name] if plc.is_st else name: value for name, value in given_inputs.items()})


def said(plc: Plc, st_name: str, scl_name: str) -> object:
    return plc.recipe[st_name if plc.is_st else scl_name]


def hold(plc: Plc) -> object:
    return said(plc, "xHold", "hold")


def test_a_change_of_recipe_waits_for_the_last_part_and_for_the_acknowledgement(plc):
    """Rule: no trigger from the wish on; one request after the last answer; the ack lets triggers go on."""
    change(plc, change=True, recipe="flange", id="r-1", waiting=True)
    assert hold(plc) is True
    assert said(plc, "xSend", "send") is False, "a part still waits"
    change(plc)
    assert said(plc, "xSend", "send") is True
    request = str(said(plc, "sRequest", "request"))
    assert COMMANDS["recipe"].model_validate(json.loads(request)).model_dump(exclude_none=True) == {
        "id": "r-1",
        "recipe": "flange",
    }
    change(plc)
    assert (hold(plc), said(plc, "xSend", "send")) == (True, False)
    change(plc, newAck=True, ack=acknowledgement("r-0", "").decode())
    assert hold(plc) is True, "the acknowledgement of another request"
    change(plc, newAck=True, ack=acknowledgement("r-1", "").decode())
    assert (hold(plc), said(plc, "xDone", "done"), said(plc, "xError", "error")) == (False, True, False)
    change(plc)
    assert said(plc, "xDone", "done") is False


def test_a_refused_change_says_why_and_silence_is_an_error(plc):
    """Rule: ok 0 gives the reason; no acknowledgement within the limit is an error as well; both let the line go on."""
    change(plc, change=True, recipe="flunge", id="r-2")
    change(plc)
    change(plc, newAck=True, ack=acknowledgement("r-2", "unknown_recipe").decode())
    assert (hold(plc), said(plc, "xDone", "done"), said(plc, "xError", "error")) == (False, False, True)
    assert said(plc, "sReason", "reason") == "unknown_recipe"
    change(plc, change=True, recipe="flange", id="r-3")
    change(plc)
    change(plc)
    plc.clock.now_ms += 60_000
    change(plc)
    assert (hold(plc), said(plc, "xError", "error"), said(plc, "sReason", "reason")) == (False, True, "")


# ---- the rest of the kit


@pytest.mark.parametrize("name", sorted(path.name for path in KIT.iterdir() if path.suffix in {".st", ".scl"}))
def test_every_source_is_structured_text(name):
    """Rule: each shipped source is taken by a parser of other people, and is plain ASCII as PLC editors want it."""
    text = (KIT / name).read_bytes().decode("ascii")
    source = from_scl(text) if name.endswith(".scl") else text
    assert parse_source_code(source).transform().items
    readme = (KIT / "README.md").read_text()
    assert f"({name})" in readme, f"README.md does not tell what {name} is for"


@pytest.mark.parametrize("name", ["twincat-main.st", "lineward-s7-station.scl"])
def test_the_examples_call_what_the_blocks_offer(name):
    """Rule: an input or output that an example uses is one that the block declares."""
    text = (KIT / name).read_text()
    language = "scl" if name.endswith(".scl") else "st"
    gate = PROGRAMS[language].block(SPEAKS[language]["gate"])
    used = set(re.findall(r"(?:fbGate|#gate)\.(\w+)", text))
    call = re.search(r"#gate\((.*?)\);", text, re.DOTALL)
    if call is not None:
        used |= set(re.findall(r"(\w+) :=", call[1]))
    assert len(used) > 5
    assert {word.lower() for word in used} <= set(gate.types)


def test_the_triggers_of_the_examples_are_taken():
    """Rule: the command that the examples put together by CONCAT is one that the station accepts."""
    for text in ('{"id":"a-17","part_id":"a-17"}', '{"id":17,"part_id":"A1183"}'):
        command = COMMANDS["trigger"].model_validate(json.loads(text))
        assert command.model_dump()["part_id"]


def test_the_flow_subscribes_and_publishes_by_its_settings():
    """Rule: all that a user has to set is in the flow's environment; no address of ours is left in its nodes."""
    flow = json.loads((KIT / "node-red-flow.json").read_text())
    tab = next(node for node in flow if node["type"] == "tab")
    names = {entry["name"] for entry in tab["env"]}
    program = next(node for node in flow if node["id"] == "lineward-program")
    assert set(re.findall(r'env\.get\("(\w+)"\)', program["func"])) <= names
    broker = next(node for node in flow if node["type"] == "mqtt-broker")
    assert (broker["broker"], broker["port"]) == ("${HOST}", "${PORT}")
    ids = {node["id"] for node in flow}
    for node in flow:
        assert {target for wire in node.get("wires", []) for target in wire} <= ids
