"""Commands from the line: `cmd/trigger`, `cmd/part`, `cmd/recipe`. Each gets exactly one acknowledgement.

A command that cannot be understood, comes twice or at the wrong moment is acknowledged with ``ok`` 0 and one word
that a PLC can compare; the text for a person is in the log. Nothing is changed by it.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from lineward.daemon.changeover import Refused
from lineward.daemon.triggers import Reason, TooManyError
from lineward.drivers.camera import Trigger

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic_core import ErrorDetails

    from lineward.daemon.answers import Answers
    from lineward.daemon.changeover import Changeover
    from lineward.daemon.health import Alarms
    from lineward.daemon.triggers import TriggerBook

    Acknowledge = Callable[[str, bytes], None]

log = logging.getLogger("lineward.command")

LARGEST_BYTES = 65_536
REMEMBERED_S = 60.0
"""A command with an id that was used so recently is a repetition. Longer, and a PLC that starts again from 1 is ill."""
RATE_HZ = 200.0
BURST = 256
"""More commands than a line can mean: a programming error or an attack. The rest is refused before it costs much."""
REMEMBERED = BURST + round(REMEMBERED_S * RATE_HZ)
QUIET_S = 10.0

_NAME = re.compile(r"[a-z_]{1,32}")

_WANTED = {
    "id": "1 to 64 printable ASCII characters without space, or a whole number from 0 to 2147483647",
    "part_id": "text of 1 to 128 characters, none of them a control character",
    "part_ids": "a list of texts of 1 to 128 characters, none of them a control character",
}

CommandId = Annotated[str, StringConstraints(pattern=r"^[!-~]{1,64}$")]
PartId = Annotated[str, StringConstraints(max_length=128, pattern=r"^[^\x00-\x1f\x7f]*$")]


class _Command(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: CommandId | Annotated[int, Field(ge=0, lt=2**31)] = Field(description="Chosen by the sender, echoed back.")

    @model_validator(mode="before")
    @classmethod
    def _plc_characters(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("id"), str) and set(data["id"]) & set(',":[]{}\\'):
            raise ValueError('id: a PLC could not read it back: no , " : [ ] { } or backslash')
        return data


class TriggerCommand(_Command):
    """Inspect one part now."""

    part_id: PartId = Field("", description="Id of the part; empty: the next announced one.")
    product: str | None = Field(None, description="Refused as wrong_product when another one is in force.")


class PartCommand(_Command):
    """The ids of the next parts."""

    part_id: Annotated[PartId, Field(min_length=1)] | None = Field(None, description="Id of the next part.")
    part_ids: list[Annotated[PartId, Field(min_length=1)]] | None = Field(
        None, max_length=1000, description="Ids of the next parts, in order; an empty list clears those that wait."
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> PartCommand:
        if (self.part_id is None) == (self.part_ids is None):
            raise ValueError("give either part_id or part_ids")
        return self


class RecipeCommand(_Command):
    """Change over to another product."""

    recipe: str | None = Field(None, description="Name of the recipe.")
    product: str | None = Field(None, description="Product of the recipe's model, instead of its name.")

    @model_validator(mode="after")
    def _one_of_both(self) -> RecipeCommand:
        if (self.recipe is None) == (self.product is None):
            raise ValueError("give either recipe or product")
        return self


COMMANDS: dict[str, type[_Command]] = {"trigger": TriggerCommand, "part": PartCommand, "recipe": RecipeCommand}


class Commands:
    """Takes commands, from the MQTT thread and from the control socket, and acknowledges each once.

    Parameters
    ----------
    trigger
        How the camera is triggered; only ``software`` takes `cmd/trigger`.
    clock
        Monotonic seconds.
    """

    def __init__(
        self,
        book: TriggerBook,
        answers: Answers,
        changeover: Changeover,
        alarms: Alarms,
        *,
        trigger: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._book = book
        self._answers = answers
        self._changeover = changeover
        self._alarms = alarms
        self._trigger = trigger
        self._clock = clock
        self._seen: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._lock = threading.Lock()
        self._tokens = float(BURST)
        self._filled_at = clock()
        self._alarmed_at: float | None = None

    def handle(self, name: str, payload: bytes, *, retained: bool, acknowledge: Acknowledge) -> None:
        """Obey one command, or refuse it; ``acknowledge`` is called once with its name and the JSON, now or later."""
        topic = name if _NAME.fullmatch(name) else "unknown"

        def reply(command_id: object, word: str) -> None:
            acknowledge(topic, acknowledgement(command_id, word))

        try:
            self._throttle()
            command = _parse(name, payload, retained=retained)
        except Refused as refusal:
            if refusal.word == "too_large":
                self._alarm(f"a command was refused, it has {refusal}: look who may publish on cmd/# (access rules)")
            self._refuse(name, _id_of(payload), refusal, reply)
            return
        try:
            self._remember(name, str(command.id))
            if isinstance(command, RecipeCommand):
                self._changeover.request(command.recipe or command.product or "", lambda word: reply(command.id, word))
                return
            self._obey(command, lambda: reply(command.id, ""))
        except Refused as refusal:
            self._refuse(name, command.id, refusal, reply)

    def look(self) -> None:
        """Clear the alarm about a flood or a huge command some time after it; called now and then."""
        if self._alarmed_at is not None and self._clock() - self._alarmed_at > QUIET_S:
            self._alarmed_at = None
            self._alarms.set("commands", "")

    def _obey(self, command: _Command, accept: Callable[[], None]) -> None:
        match command:
            case TriggerCommand():
                if self._trigger != Trigger.SOFTWARE:
                    raise Refused("wrong_mode", f'camera.trigger = "{self._trigger}": set it to "software"')
                part, refused = self._book.accept(str(command.id), command.part_id, command.product)
                accept()
                if refused is not None:
                    self._answers.undecided(part, refused)
            case PartCommand():
                ids = [command.part_id] if command.part_id is not None else command.part_ids or []
                withdrawn = self._book.withdraw() if not ids else []
                try:
                    passed_by = self._book.announce(str(command.id), ids, for_frames=self._trigger != Trigger.SOFTWARE)
                except TooManyError as error:
                    raise Refused("queue_full", str(error)) from error
                accept()
                for part in withdrawn:
                    self._answers.undecided(part, Reason.NO_IMAGE)
                for part in passed_by:
                    self._answers.undecided(part, Reason.CAMERA_LOST)

    def _throttle(self) -> None:
        """Take one token; they come back at `RATE_HZ`, `BURST` at most."""
        with self._lock:
            now = self._clock()
            self._tokens = min(float(BURST), self._tokens + (now - self._filled_at) * RATE_HZ)
            self._filled_at = now
            if self._tokens >= 1:
                self._tokens -= 1
                return
        self._alarm(
            f"more than {RATE_HZ:g} commands a second: the rest is refused; look for a loop in the PLC's program"
        )
        raise Refused("flood", "")

    def _alarm(self, text: str) -> None:
        self._alarmed_at = self._clock()
        self._alarms.set("commands", text, severity="warning")

    def _remember(self, name: str, command_id: str) -> None:
        now = self._clock()
        with self._lock:
            while self._seen and (
                len(self._seen) >= REMEMBERED or next(iter(self._seen.values())) < now - REMEMBERED_S
            ):
                self._seen.popitem(last=False)
            if (name, command_id) in self._seen:
                raise Refused("replayed", f"id {command_id} was used less than {REMEMBERED_S:g} s ago")
            self._seen[name, command_id] = now

    @staticmethod
    def _refuse(name: str, command_id: object, refusal: Refused, reply: Callable[[object, str], None]) -> None:
        if str(refusal):
            log.warning("command %s %s refused (%s): %s", name[:32], command_id, refusal.word, refusal)
        reply(command_id, refusal.word)


def _parse(name: str, payload: bytes, *, retained: bool) -> _Command:
    """Read a command; raises `Refused`."""
    model = COMMANDS.get(name)
    if model is None:
        raise Refused("unknown_command", f"known are {', '.join(COMMANDS)}")
    if retained:
        raise Refused("retained", "it was sent as a retained message, so it would come again at each connection")
    if len(payload) > LARGEST_BYTES:
        raise Refused("too_large", f"more than {LARGEST_BYTES} bytes")
    try:
        return model.model_validate(json.loads(payload))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "too_long" and first["loc"] == ("part_ids",):
            count = first["ctx"]["actual_length"]
            raise Refused("queue_full", f"part_ids: {count} ids, at most 1000 can wait") from error
        raise Refused("malformed", _in_words(first, model)) from error
    except (ValueError, RecursionError) as error:
        raise Refused("malformed", f"is not JSON: {error}") from error


def _in_words(fault: ErrorDetails, model: type[_Command]) -> str:
    """Say what is wrong with a command to whoever wrote the program that sends it."""
    key = str(fault["loc"][0]) if fault["loc"] else ""
    given = f"{key} = {json.dumps(fault['input'])[:80]}"
    match fault["type"]:
        case "missing":
            return f"{key}: is missing; add it"
        case "extra_forbidden":
            return f"{given}: no such key; known are {', '.join(model.model_fields)}"
        case "value_error":
            return str(fault["ctx"]["error"])
        case "model_type":
            return "is no JSON object; send {...}"
        case _:
            return f"{given}: give {_WANTED.get(key, 'text in quotes')}"


def _id_of(payload: bytes) -> object:
    """Find the id of a command that is refused, so that its sender recognises the answer; empty when there is none."""
    if len(payload) > LARGEST_BYTES:
        return ""
    try:
        content = json.loads(payload)
        return _Command.model_validate({"id": content["id"]}).id
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""


def acknowledgement(command_id: object, word: str) -> bytes:
    """Return the JSON of an acknowledgement; an empty word means that the command was obeyed."""
    content = {"id": command_id, "ok": 0 if word else 1, "reason": word}
    return json.dumps(content, separators=(",", ":"), ensure_ascii=True).encode()
