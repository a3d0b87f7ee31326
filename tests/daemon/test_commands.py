"""Each command gets exactly one acknowledgement, and one that is refused changes nothing."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.broker import wait_until
from tests.daemon.desk import Desk, frame, recipe

from lineward.daemon.changeover import Changeover
from lineward.daemon.commands import BURST, LARGEST_BYTES, Commands, acknowledgement
from lineward.daemon.config import Config
from lineward.daemon.control import LOOK_S, ControlError, ControlSocket, change_over, send
from lineward.daemon.plc_vendors import VENDORS
from lineward.daemon.recipes import Recipes
from lineward.daemon.triggers import MOST_ANNOUNCED, Part, Reason

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Station(Desk):
    """A desk that takes commands; nothing loads a model here."""

    def __init__(self, root: Path, trigger: str = "software") -> None:
        super().__init__(root)
        self.now = 100.0
        self.book.activate(recipe())
        self.book.camera_up = True
        config = Config.model_validate(
            {"camera": {"driver": "simulated"}, "inspection": {"model": "x.lward"}, "storage": {"root": str(root)}}
        )
        self.changeover = Changeover(Recipes(config), self.book, self.alarms, lambda _recipe: None)
        self.commands = Commands(
            self.book, self.answers, self.changeover, self.alarms, trigger=trigger, clock=lambda: self.now
        )
        self.acks: list[tuple[str, dict[str, Any]]] = []

    def say(self, name: str, content: object, *, retained: bool = False) -> dict[str, Any]:
        payload = content if isinstance(content, bytes) else json.dumps(content).encode()
        before = len(self.acks)
        self.commands.handle(
            name, payload, retained=retained, acknowledge=lambda to, data: self.acks.append((to, json.loads(data)))
        )
        assert len(self.acks) == before + 1, "exactly one acknowledgement"
        return self.acks[-1][1]

    def queue(self) -> list[str]:
        return [item.part_id for item in self.book._queue if isinstance(item, Part)]


@pytest.fixture
def station(tmp_path: Path) -> Iterator[Station]:
    with closing(Station(tmp_path)) as station:
        yield station


def test_a_trigger_is_taken_with_its_id(station: Station) -> None:
    """Ids come back as they were given, text or number; announced part ids go to the triggers that name none."""
    assert station.say("trigger", {"id": "17", "part_id": "A1"}) == {"id": "17", "ok": 1, "reason": ""}
    assert station.say("part", {"id": 18, "part_ids": ["A2", "A3"]}) == {"id": 18, "ok": 1, "reason": ""}
    assert station.say("trigger", {"id": 19})["ok"] == 1
    assert station.say("trigger", {"id": 20, "part_id": "B"})["ok"] == 1
    assert station.say("trigger", {"id": 21})["ok"] == 1
    assert station.queue() == ["A1", "A2", "B", "A3"]


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("trigger", b"not json", "malformed"),
        ("trigger", b"\xff\xfe", "malformed"),
        ("trigger", [], "malformed"),
        ("trigger", {}, "malformed"),
        ("trigger", {"id": ""}, "malformed"),
        ("trigger", {"id": 'a"b'}, "malformed"),
        ("trigger", {"id": "x" * 65}, "malformed"),
        ("trigger", {"id": True}, "malformed"),
        ("trigger", {"id": -1}, "malformed"),
        ("trigger", {"id": 1, "partid": "typo"}, "malformed"),
        ("trigger", {"id": 1, "part_id": "x" * 129}, "malformed"),
        ("trigger", {"id": 1, "part_id": "a\nb"}, "malformed"),
        ("trigger", b"[" * 60_000, "malformed"),
        ("trigger", b"x" * (LARGEST_BYTES + 1), "too_large"),
        ("part", {"id": 1}, "malformed"),
        ("part", {"id": 1, "part_id": "A", "part_ids": ["B"]}, "malformed"),
        ("part", {"id": 1, "part_ids": ["A"] * (MOST_ANNOUNCED + 1)}, "queue_full"),
        ("recipe", {"id": 1}, "malformed"),
        ("recipe", {"id": 1, "recipe": "a", "product": "b"}, "malformed"),
        ("reboot", {"id": 1}, "unknown_command"),
        ("", {"id": 1}, "unknown_command"),
        ("../x", {"id": 1}, "unknown_command"),
    ],
)
def test_what_cannot_be_understood_is_refused_in_one_word(
    station: Station, name: str, content: object, word: str
) -> None:
    """Nothing is changed by it, and the ledger knows nothing of it."""
    ack = station.say(name, content)
    assert (ack["ok"], ack["reason"]) == (0, word)
    assert station.queue() == []
    assert not station.ledger.open_triggers()


def test_a_command_counts_once(station: Station) -> None:
    """A repetition within a minute is refused; a PLC that starts again from 1 later is not."""
    assert station.say("trigger", {"id": 1})["ok"] == 1
    assert station.say("trigger", {"id": 1})["reason"] == "replayed"
    assert station.say("part", {"id": 1, "part_id": "A"})["ok"] == 1, "ids count per command"
    station.now += 61
    assert station.say("trigger", {"id": 1})["ok"] == 1


def test_a_retained_command_is_refused(station: Station) -> None:
    """It would trigger again at every connection."""
    assert station.say("trigger", {"id": 1}, retained=True)["reason"] == "retained"
    assert station.queue() == []


def test_a_trigger_for_another_product_is_answered_as_such(station: Station) -> None:
    """The part is there and is named, and no picture of it is judged by the wrong model."""
    assert station.say("trigger", {"id": 1, "part_id": "A", "product": "flange"})["ok"] == 1
    assert station.say("trigger", {"id": 2, "product": "bracket"})["ok"] == 1
    assert [row[1:3] for row in station.rows()] == [("undecided", "wrong_product")]


@pytest.mark.parametrize("trigger", ["free_run", "hardware"])
def test_a_software_trigger_needs_a_camera_that_takes_it(tmp_path: Path, trigger: str) -> None:
    """Elsewhere it is refused, while part ids are welcome."""
    with closing(Station(tmp_path, trigger)) as station:
        assert station.say("trigger", {"id": 1})["reason"] == "wrong_mode"
        assert station.say("part", {"id": 2, "part_id": "A"})["ok"] == 1


@pytest.mark.parametrize("trigger", ["free_run", "hardware"])
def test_ids_of_parts_that_pass_by_without_a_camera_name_no_later_part(tmp_path: Path, trigger: str) -> None:
    """Rule: before the camera is up and while it is away an announced part is answered at once, and shifts no other."""
    with closing(Station(tmp_path, trigger)) as station:
        station.book.camera_up = False  # as before the first start
        assert station.say("part", {"id": 1, "part_ids": ["P1", "P2"]}) == {"id": 1, "ok": 1, "reason": ""}
        station.book.camera_up = True
        station.say("part", {"id": 2, "part_id": "P3"})
        assert station.book.from_frame(frame(1)).part_id == "P3"
        station.say("part", {"id": 3, "part_id": "P4"})
        for part in station.book.camera_went():
            station.answers.undecided(part, Reason.CAMERA_LOST)
        station.say("part", {"id": 4, "part_id": "P5"})
        station.book.camera_up = True
        station.say("part", {"id": 5, "part_id": "P6"})
        assert station.book.from_frame(frame(2)).part_id == "P6"
        given = [(row.part_id, row.verdict, row.reason) for row in station.ledger.rows()]
    assert given == [(part, "undecided", "camera_lost") for part in ("P1", "P2", "P4", "P5")]


def test_an_id_that_waits_for_its_trigger_needs_no_camera_yet(station: Station) -> None:
    """Rule: a software trigger takes the next announced id along, so that its part has one answer, camera or not."""
    station.book.camera_up = False
    station.say("part", {"id": 1, "part_ids": ["A", "B"]})
    station.say("trigger", {"id": 2})
    station.book.camera_up = True
    station.say("trigger", {"id": 3})
    assert [(row.part_id, row.reason) for row in station.ledger.rows()] == [("A", "camera_lost")]
    assert station.queue() == ["B"]


def test_an_empty_list_clears_the_announced_ids_and_names_them(station: Station) -> None:
    """Whoever was announced and will not come has its row."""
    station.say("part", {"id": 1, "part_ids": ["A", "B"]})
    assert station.say("part", {"id": 2, "part_ids": []})["ok"] == 1
    assert [(row.part_id, row.reason) for row in station.ledger.rows()] == [("A", "no_image"), ("B", "no_image")]
    station.say("trigger", {"id": 3})
    assert station.queue() == [""]


def test_too_many_announced_ids_are_refused_as_a_whole(station: Station) -> None:
    """Half of a list would shift every id after it."""
    assert station.say("part", {"id": 1, "part_ids": [f"{i}" for i in range(MOST_ANNOUNCED)]})["ok"] == 1
    assert station.say("part", {"id": 2, "part_id": "one more"})["reason"] == "queue_full"


def test_a_flood_is_refused_with_one_alarm(station: Station) -> None:
    """Every command is acknowledged, the ledger does not grow with them, and the alarm goes when it is quiet."""
    words = [station.say("part", {"id": i, "part_id": "A"})["reason"] for i in range(BURST + 500)]
    assert words.count("") == BURST
    assert words.count("flood") == 500
    assert "commands" in station.alarms.raised()
    station.now += 20
    station.commands.look()
    assert "commands" not in station.alarms.raised()
    assert station.say("trigger", {"id": "later"})["ok"] == 1


def test_an_unknown_recipe_is_refused_and_the_old_one_stays(station: Station) -> None:
    """The changeover's thread finds out; the acknowledgement comes from there."""
    station.changeover.start()
    before = station.book.active
    station.commands.handle(
        "recipe",
        b'{"id":"r","recipe":"nope"}',
        retained=False,
        acknowledge=lambda to, data: station.acks.append((to, json.loads(data))),
    )
    wait_until(lambda: bool(station.acks), 5, "acknowledgement")
    assert station.acks == [("recipe", {"id": "r", "ok": 0, "reason": "unknown_recipe"})]
    assert station.book.active is before
    station.changeover.close()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=80),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
LIKELY = st.fixed_dictionaries(
    {},
    optional={
        "id": JSON | st.just("1"),
        "part_id": JSON,
        "part_ids": JSON,
        "product": JSON,
        "recipe": st.just("nope") | JSON,
    },
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["trigger", "part", "x"]) | st.text(max_size=40),
    content=st.binary(max_size=300) | LIKELY | JSON,
)
def test_no_command_breaks_the_station(station: Station, name: str, content: object) -> None:
    """Whatever comes: one acknowledgement that a PLC can read, and a queue that holds what was accepted."""
    station.now += 100
    waiting = len(station.queue())
    ack = station.say(name, content)
    assert set(ack) == {"id", "ok", "reason"}
    payload = acknowledgement(ack["id"], ack["reason"])
    for vendor in VENDORS:
        assert not vendor.objections("ack/x", payload, as_json=True), vendor.name
    if not ack["ok"]:
        assert len(station.queue()) == waiting
    station.book._queue.clear()


def test_commands_from_this_machine_go_the_same_way(station: Station, tmp_path: Path) -> None:
    """The socket works in a folder with a long name, and says clearly when nobody listens."""
    root = tmp_path / ("long" * 30)
    root.mkdir()
    with pytest.raises(ControlError, match="no station runs here"):
        send(root, "part", {"part_id": "A"}, timeout_s=5)
    control = ControlSocket(
        root, lambda name, payload, ack: station.commands.handle(name, payload, retained=False, acknowledge=ack)
    )
    control.start()
    assert send(root, "part", {"part_id": "A"}, timeout_s=5)["ok"] == 1
    assert send(root, "nonsense", {}, timeout_s=5)["reason"] == "unknown_command"
    began = time.monotonic()
    control.close()
    assert time.monotonic() - began < LOOK_S / 4, "it does not wait until it looks again: a stop has two seconds"
    assert not (root / "control").exists()


def test_a_socket_that_cannot_be_made_or_is_deleted_comes_back(
    station: Station, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: a disk that was read-only at the start, or a cleaner, costs commands for seconds and not for ever."""
    monkeypatch.setattr("lineward.daemon.control.LOOK_S", 0.1)
    root = tmp_path / "later"
    control = ControlSocket(
        root, lambda name, payload, ack: station.commands.handle(name, payload, retained=False, acknowledge=ack)
    )
    control.start()
    with pytest.raises(ControlError, match="no station runs here"):
        send(root, "part", {"part_id": "A"}, timeout_s=5)
    root.mkdir()
    for number in range(2):
        wait_until((root / "control").exists, 10, "it is there")
        assert send(root, "part", {"part_id": f"A{number}"}, timeout_s=5)["ok"] == 1
        (root / "control").unlink()
    control.close()


def test_a_changeover_from_the_command_line_waits_for_the_one_before(station: Station) -> None:
    """Rule: whoever types a change of recipe gets its end, and not `busy`, unless the other one outlasts the wait."""
    root = station.ledger.path.parent
    control = ControlSocket(
        root, lambda name, payload, ack: station.commands.handle(name, payload, retained=False, acknowledge=ack)
    )
    control.start()
    station.changeover.request("default", lambda word: station.acks.append(("recipe", {"reason": word})))
    assert change_over(root, "default", timeout_s=0.5)["reason"] == "busy"
    with ThreadPoolExecutor(1) as person:
        typed = person.submit(change_over, root, "default", timeout_s=30)
        station.changeover.start()
        assert typed.result(30)["reason"] == "preparation_failed"  # there is no model: the one before failed too
    assert [ack["reason"] for _, ack in station.acks] == ["preparation_failed"]
    station.changeover.close()
    control.close()


def test_a_huge_command_is_an_alarm(station: Station) -> None:
    """Rule: who sends a command that is too long for any PLC is told to the operator, and the alarm ends by itself."""
    assert station.say("trigger", b"x" * (LARGEST_BYTES + 1))["reason"] == "too_large"
    assert "look who may publish" in station.alarms.raised()["commands"].text
    station.now += 60
    station.commands.look()
    assert not station.alarms.raised()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("trigger", {"id": -1}, "id = -1: give 1 to 64 printable ASCII characters without space, or a whole number"),
        ("trigger", {"id": None}, "id = null: give 1 to 64 printable"),
        ("trigger", {"id": 1, "partid": "x"}, 'partid = "x": no such key; known are id, part_id, product'),
        ("trigger", {}, "id: is missing; add it"),
        ("trigger", [], "is no JSON object"),
        ("part", {"id": 1}, "give either part_id or part_ids"),
        ("part", {"id": 1, "part_ids": ["A"] * (MOST_ANNOUNCED + 1)}, "1001 ids, at most 1000 can wait"),
        ("part", {"id": 1, "part_ids": [""]}, 'part_ids = "": give a list of texts of 1 to 128 characters'),
    ],
)
def test_a_refusal_says_what_to_send_instead(
    station: Station, name: str, content: object, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Rule: the log speaks to whoever wrote the PLC's program, in the words of the command."""
    station.say(name, content)
    assert words in caplog.text
