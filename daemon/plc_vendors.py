"""What the MQTT and JSON libraries of PLC vendors can read: their documented limits as code, each with its source.

Nothing here shares code with what writes our payloads: the readers below take a payload apart as the vendor's library
is documented to, and say in words what it could not take.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

DINT = range(-(1 << 31), 1 << 31)
LINT = range(-(1 << 63), 1 << 64)  # LINT and ULINT together

AX_FORBIDDEN = ',":[]{}'

Value = str | int | None
"""What a PLC gets for a key: text, a whole number, or None for anything it has no type for."""


class UnreadableError(ValueError):
    """The payload is no JSON, or not of the form that a reader expects; the message says where."""


@dataclass
class Found:
    """What stands in a JSON text, value by value.

    Attributes
    ----------
    values
        Path of keys, joined by dots, to value; nested objects and lists are not in it.
    strings
        Place and text of every key and string, escapes undone.
    others
        Place and kind of every value that is neither text nor a whole number: real, bool, null, object, list.
    escapes, spaces
        Offsets of backslashes inside strings, and of white space outside of them.
    """

    values: dict[str, Value] = field(default_factory=dict)
    strings: list[tuple[str, str]] = field(default_factory=list)
    integers: list[tuple[str, int]] = field(default_factory=list)
    others: list[tuple[str, str]] = field(default_factory=list)
    escapes: list[int] = field(default_factory=list)
    spaces: list[int] = field(default_factory=list)
    depth: int = 0
    elements: int = 0


_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_WORDS = {"true": "bool", "false": "bool", "null": "null"}
_DEEPEST = 100


class Scanner:
    """A strict reader of RFC 8259 that takes stock of what it meets. One object at the top, no key twice."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self.found = Found()

    def scan(self) -> Found:
        """Read the whole text. Raises `UnreadableError`."""
        self._space()
        if self._peek() != "{":
            raise UnreadableError("is no object: it does not begin with {")
        self._object("", 1)
        self._space()
        if self._at != len(self._text):
            raise UnreadableError(f"goes on after its end, at {self._at}")
        return self.found

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _space(self) -> None:
        while self._peek() in {" ", "\t", "\n", "\r"}:
            self.found.spaces.append(self._at)
            self._at += 1

    def _expect(self, sign: str) -> None:
        self._space()
        if self._peek() != sign:
            raise UnreadableError(f"has no {sign} at {self._at}")
        self._at += 1
        self._space()

    def _object(self, place: str, depth: int) -> None:
        self._deeper(depth)
        self._expect("{")
        keys: set[str] = set()
        while self._peek() != "}":
            if keys:
                self._expect(",")
            key = self._string(place or "the object")
            if key in keys:
                raise UnreadableError(f"has the key {key!r} twice")
            keys.add(key)
            self._expect(":")
            self._value(f"{place}.{key}" if place else key, depth)
            self._space()
        self._at += 1

    def _list(self, place: str, depth: int) -> None:
        self._deeper(depth)
        self._expect("[")
        count = 0
        while self._peek() != "]":
            if count:
                self._expect(",")
            self._value(f"{place}.{count}", depth)
            self._space()
            count += 1
        self._at += 1

    def _deeper(self, depth: int) -> None:
        self.found.depth = max(self.found.depth, depth)
        if depth > _DEEPEST:
            raise UnreadableError(f"is nested more than {_DEEPEST} deep")

    def _value(self, place: str, depth: int) -> None:
        self.found.elements += 1
        first = self._peek()
        if first == '"':
            self.found.values[place] = self._string(place)
        elif first == "{":
            self.found.others.append((place, "object"))
            self._object(place, depth + 1)
        elif first == "[":
            self.found.others.append((place, "list"))
            self._list(place, depth + 1)
        else:
            self._plain(place)

    def _plain(self, place: str) -> None:
        for word, kind in _WORDS.items():
            if self._text.startswith(word, self._at):
                self._at += len(word)
                self.found.others.append((place, kind))
                self.found.values[place] = None
                return
        number = _NUMBER.match(self._text, self._at)
        if number is None:
            raise UnreadableError(f"has no value at {self._at}")
        self._at = number.end()
        if number[1] or number[2]:
            self.found.others.append((place, "real"))
            self.found.values[place] = None
        else:
            whole = int(number[0][:40])  # longer ones fit nowhere, and Python refuses to read very long ones
            self.found.integers.append((place, whole))
            self.found.values[place] = whole

    def _string(self, place: str) -> str:
        if self._peek() != '"':
            raise UnreadableError(f"has no string at {self._at}")
        self._at += 1
        pieces = []
        while (sign := self._peek()) != '"':
            if not sign or sign < " ":
                raise UnreadableError(f"has a string that is not closed before {self._at}")
            self._at += 1
            pieces.append(self._escape() if sign == "\\" else sign)
        self._at += 1
        # Two escapes may be the halves of one character.
        text = "".join(pieces).encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        self.found.strings.append((place, text))
        return text

    def _escape(self) -> str:
        self.found.escapes.append(self._at - 1)
        sign = self._peek()
        self._at += 1
        if sign in _ESCAPES:
            return _ESCAPES[sign]
        code = self._text[self._at : self._at + 4]
        if sign != "u" or not re.fullmatch(r"[0-9a-fA-F]{4}", code):
            raise UnreadableError(f"has an escape that JSON does not know, at {self._at}")
        self._at += 4
        return chr(int(code, 16))


def split_flat(text: str) -> dict[str, Value]:
    """Read one flat object as a small PLC does: cut at commas and colons, without looking whether they are quoted.

    This is all that the shipped Structured Text does, and what SIMATIC AX's forbidden characters are forbidden for.
    """
    text = text.strip()
    if not (text.startswith("{") and text.endswith("}")):
        raise UnreadableError("is no object: it does not begin with { and end with }")
    values: dict[str, Value] = {}
    for piece in text[1:-1].split(",") if text[1:-1].strip() else []:
        key, colon, value = (part.strip() for part in piece.partition(":"))
        if not colon or len(key) < 3 or key[0] != '"' or key[-1] != '"':
            raise UnreadableError(f"has no key and value in {piece[:40]!r}")
        if key[1:-1] in values:
            raise UnreadableError(f"has the key {key[1:-1]!r} twice")
        if len(value) >= 2 and value[0] == value[-1] == '"':
            values[key[1:-1]] = value[1:-1]
        elif re.fullmatch(r"-?[0-9]+", value):
            values[key[1:-1]] = int(value)
        else:
            raise UnreadableError(f"{key[1:-1]} is neither a string nor a whole number: {value[:20]!r}")
    return values


@dataclass(frozen=True, slots=True)
class Vendor:
    """The limits of one PLC side. None: the vendor names no such limit.

    Attributes
    ----------
    small
        Whether it stands for the small PLCs: what is meant for every PLC must be readable here.
    payload_bytes, topic_characters, string_characters, depth, elements
        Largest that it takes.
    whole
        Range of whole numbers.
    forbidden
        Characters that keys and strings must not contain.
    ascii, compact, plain
        Takes ASCII only; no white space outside strings; no escapes in strings.
    flat
        Takes strings and whole numbers only: no REAL, no BOOL, no null, nothing nested, cut at every comma and colon.
    reads_json
        Whether the limits are those of a JSON library; else only size and topic count.
    """

    name: str
    source: str
    small: bool
    payload_bytes: int | None = None
    topic_characters: int | None = None
    string_characters: int | None = None
    depth: int | None = None
    elements: int | None = None
    whole: range = LINT
    forbidden: str = ""
    ascii: bool = False
    compact: bool = False
    plain: bool = False
    flat: bool = False
    reads_json: bool = True

    def limits(self) -> str:
        """Say the limits in words."""
        words = [
            f"payload ≤ {self.payload_bytes} bytes" if self.payload_bytes else "",
            f"topic ≤ {self.topic_characters} characters" if self.topic_characters else "",
            f"strings ≤ {self.string_characters} characters" if self.string_characters else "",
            "ASCII only" if self.ascii else "",
            "no white space outside strings" if self.compact else "",
            f"no {' '.join(self.forbidden)} in keys and strings" if self.forbidden else "",
            "no escapes" if self.plain else "",
            "strings and whole numbers only" if self.flat else "",
            "whole numbers of 32 bits" if self.whole == DINT else "",
            f"depth ≤ {self.depth}" if self.depth else "",
            f"≤ {self.elements} values" if self.elements else "",
        ]
        return ", ".join(word for word in words if word)

    def objections(self, topic: str, payload: bytes, *, as_json: bool) -> list[str]:
        """Say why this PLC cannot read a payload; empty when it can. ``as_json`` is False for a bare value."""
        found = []
        if self.topic_characters is not None and len(topic) > self.topic_characters:
            found.append(f"the topic has {len(topic)} characters, {self.topic_characters} fit")
        if self.payload_bytes is not None and len(payload) > self.payload_bytes:
            found.append(f"{len(payload)} bytes, {self.payload_bytes} fit")
        if not self.reads_json:
            return found
        try:
            text = payload.decode("ascii" if self.ascii else "utf-8")
        except UnicodeDecodeError as error:
            what = "ASCII" if self.ascii else "UTF-8"
            return [*found, f"byte {error.start} (16#{payload[error.start]:02X}) is not {what}"]
        return found + (self._json(text) if as_json else self._bare(text, number=topic.endswith("heartbeat")))

    def _bare(self, text: str, *, number: bool) -> list[str]:
        """Object to one value; a part id of digits is text, of any length, and not a ``number``."""
        limit = self.string_characters
        found = [f"{len(text)} characters, {limit} fit"] if limit is not None and len(text) > limit else []
        control = next((sign for sign in text if not sign.isprintable()), None)
        if control is not None:
            found.append(f"holds the control character 16#{ord(control):02X}")
        if number and re.fullmatch(r"-?[0-9]+", text) and int(text[:40]) not in self.whole:
            found.append(f"{text} does not fit the PLC's whole numbers")
        return found

    def _json(self, text: str) -> list[str]:
        try:
            stock = Scanner(text).scan()
        except UnreadableError as error:
            return [str(error)]
        found = []
        if self.compact and stock.spaces:
            found.append(f"white space outside of strings, at {stock.spaces[0]}")
        if self.plain and stock.escapes:
            found.append(f"an escape at {stock.escapes[0]}, which the library does not undo")
        for place, string in stock.strings:
            found += self._string(place, string)
        for place, number in stock.integers:
            if number not in self.whole:
                found.append(f"{place} = {number} does not fit the PLC's whole numbers")
        if self.flat:
            found += [f"{place} is {_WITH_ARTICLE[kind]}, which has no type here" for place, kind in stock.others]
            found += self._split_differs(text, stock)
        if self.depth is not None and stock.depth > self.depth:
            found.append(f"{stock.depth} deep, {self.depth} fit")
        if self.elements is not None and stock.elements > self.elements:
            found.append(f"{stock.elements} values, {self.elements} fit")
        return found

    def _string(self, place: str, string: str) -> list[str]:
        limit = self.string_characters
        found = []
        if limit is not None and len(string) > limit:
            found.append(f"{place} has {len(string)} characters, {limit} fit")
        bad = next((sign for sign in string if sign in self.forbidden), None)
        if bad is not None:
            found.append(f"{place} holds {bad}")
        return found

    def _split_differs(self, text: str, stock: Found) -> list[str]:
        """Compare a reader that cuts at commas and colons with one that knows JSON."""
        if stock.others:
            return []
        try:
            same = split_flat(text) == stock.values
        except UnreadableError as error:
            return [f"cut at commas and colons, it {error}"]
        return [] if same else ["cut at commas and colons, it reads as something else"]


_WITH_ARTICLE = {"real": "a REAL", "bool": "a BOOL", "null": "null", "object": "an object", "list": "a list"}

ARRAY_BYTES = 256
"""Size of the receive array in the starter kit, docs/plc: what is meant for small PLCs must fit."""

VENDORS = (
    Vendor(
        "S7 LStream",
        "Siemens 109781165, LStream 1.6, section 1.3; strings of 256 by the manual, 254 by the type String; "
        "S7-1200 has no LINT",
        small=True,
        string_characters=254,
        whole=DINT,
        ascii=True,
        compact=True,
        plain=True,
    ),
    Vendor(
        "SIMATIC AX",
        "github.com/simatic-ax/json, README, Restrictions and Pre-requirements",
        small=True,
        payload_bytes=1000,
        string_characters=254,
        forbidden=AX_FORBIDDEN,
        ascii=True,
        plain=True,
        flat=True,
    ),
    Vendor(
        "S7 LMQTT",
        f"Siemens 109748872, LMQTT_Client 3.0: the user sizes the array of bytes; docs/plc takes {ARRAY_BYTES}",
        small=True,
        payload_bytes=ARRAY_BYTES,
        topic_characters=254,
        reads_json=False,
    ),
    Vendor(
        "CODESYS",
        "CODESYS MQTT Client SL and JSON Utilities SL, data sheets",
        small=False,
        payload_bytes=32_000,
        topic_characters=1024,
        string_characters=255,
        depth=50,
        elements=4096,
    ),
    Vendor(
        "Beckhoff",
        "Beckhoff Infosys, TF6701 (cMaxSizeOfMqttMessage, 100 kB by default) and Tc3_JsonXml (STRING(255))",
        small=False,
        payload_bytes=100_000,
        topic_characters=255,
        string_characters=255,
    ),
    Vendor(
        "Bachmann",
        "bachmann.info, MQTT client: messages up to 64 kB",
        small=False,
        payload_bytes=64_000,
        reads_json=False,
    ),
)
