"""Executes Structured Text: a small interpreter over the syntax tree of blark, a parser of other people.

It knows what the shipped blocks use and refuses everything else. Numbers wrap and strings are cut as their types say.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from blark import transform as tree
from blark.parse import parse_source_code

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Value = bool | int | str
BITS = {"INT": 16, "DINT": 32, "UINT": -16, "UDINT": -32}


class _Leave(Exception):  # noqa: N818 - RETURN and EXIT
    pass


class _Return(_Leave):
    pass


class _Exit(_Leave):
    pass


@dataclass
class Clock:
    """Milliseconds that pass only when a test says so."""

    now_ms: int = 0


@dataclass
class Ton:
    """The on-delay timer of IEC 61131-3."""

    clock: Clock
    q: bool = False
    _since_ms: int | None = None
    _limit_ms: int = 0

    def call(self, values: dict[str, Value]) -> None:
        self._limit_ms = int(values.get("pt", self._limit_ms))
        if not values.get("in", False):
            self._since_ms, self.q = None, False
            return
        if self._since_ms is None:
            self._since_ms = self.clock.now_ms
        self.q = self.clock.now_ms - self._since_ms >= self._limit_ms


@dataclass
class Type:
    """An elementary type: its name, and the length of a string."""

    name: str
    length: int = 255

    def fit(self, value: Value) -> Value:
        if self.name == "STRING":
            assert isinstance(value, str), value
            return value[: self.length]
        if self.name in BITS:
            assert type(value) is int, value
            bits = BITS[self.name]
            low = 0 if bits < 0 else -(1 << (bits - 1))
            return (value - low) % (1 << abs(bits)) + low
        assert isinstance(value, bool) == (self.name == "BOOL"), (self.name, value)
        return value

    @property
    def zero(self) -> Value:
        return "" if self.name == "STRING" else False if self.name == "BOOL" else 0


@dataclass
class Block:
    """An instance of a function block, or one call of a function."""

    program: Program
    types: dict[str, Type] = field(default_factory=dict)
    values: dict[str, Value] = field(default_factory=dict)
    timers: dict[str, Ton] = field(default_factory=dict)
    body: list[Any] = field(default_factory=list)

    def __getitem__(self, name: str) -> Value:
        return self.values[name.lower()]

    def set(self, name: str, value: Value) -> None:
        key = name.lower()
        assert key in self.types, f"{name} is not declared"
        self.values[key] = self.types[key].fit(value)

    def call(self, **inputs: Value) -> Block:
        """Run one cycle; inputs that are not given keep their values, as in a PLC."""
        for name, value in inputs.items():
            self.set(name, value)
        with suppress(_Return):
            self._run(self.body)
        return self

    # ---- statements

    def _run(self, statements: Any) -> None:
        for statement in getattr(statements, "statements", statements) or []:
            self._statement(statement)

    def _statement(self, node: Any) -> None:  # noqa: C901, PLR0912 - one case for each kind of statement
        match node:
            case tree.AssignmentStatement():
                value = self._value(node.expression)
                for variable in node.variables:
                    self.set(str(variable.name), value)
            case tree.IfStatement():
                branches = [(node.if_expression, node.statements)]
                branches += [(branch.if_expression, branch.statements) for branch in node.else_ifs]
                for condition, statements in branches:
                    if self._truth(condition):
                        self._run(statements)
                        return
                if node.else_clause is not None:
                    self._run(node.else_clause.statements)
            case tree.WhileStatement():
                rounds = 0
                try:
                    while self._truth(node.expression):
                        rounds += 1
                        assert rounds < 10_000, "a cycle that does not end stops a PLC"
                        self._run(node.statements)
                except _Exit:
                    pass
            case tree.CaseStatement():
                value = self._value(node.expression)
                for case in node.cases:
                    if value in [self._value(match) for match in case.matches]:
                        self._run(case.statements)
                        return
                if node.else_clause is not None:
                    self._run(node.else_clause.statements)
            case tree.FunctionCallStatement():
                timer = self.timers[str(node.name.name).lower()]
                timer.call({str(each.name.name).lower(): self._value(each.value) for each in node.parameters})
            case tree.ReturnStatement():
                raise _Return
            case tree.ExitStatement():
                raise _Exit
            case _:
                raise NotImplementedError(type(node).__name__)

    def _truth(self, node: Any) -> bool:
        value = self._value(node)
        assert isinstance(value, bool), node
        return value

    # ---- expressions

    def _value(self, node: Any) -> Value:  # noqa: C901, PLR0911 - one case for each kind of expression
        match node:
            case tree.ParenthesizedExpression():
                return self._value(node.expr)
            case tree.BinaryOperation():
                return _binary(str(node.op).upper(), self._value(node.left), self._value(node.right))
            case tree.UnaryOperation():
                value = self._value(node.expr)
                if str(node.op).upper() == "NOT":
                    assert isinstance(value, bool)
                    return not value
                assert str(node.op) == "-"
                return -int(value)
            case tree.FunctionCall():
                names = [None if each.name is None else str(each.name.name).lower() for each in node.parameters]
                return self._function(str(node.name.name), names, [self._value(each.value) for each in node.parameters])
            case tree.Integer():
                return int(str(node.value))
            case tree.Boolean():
                return str(node.value).upper() == "TRUE"
            case tree.String():
                return str(node.value)[1:-1]
            case tree.Duration():
                parts = {"days": 86_400_000, "hours": 3_600_000, "minutes": 60_000, "seconds": 1000, "milliseconds": 1}
                return round(sum(float(getattr(node, name) or 0) * unit for name, unit in parts.items()))
            case tree.MultiElementVariable():
                (element,) = node.elements
                assert str(element.field.name).upper() == "Q"
                return self.timers[str(node.name.name).lower()].q
            case tree.SimpleVariable():
                return self.values[str(node.name).lower()]
            case _:
                raise NotImplementedError(type(node).__name__)

    def _function(self, name: str, names: list[str | None], arguments: list[Value]) -> Value:
        if name.upper() not in STANDARD:
            return self.program.function(name, arguments, names)
        order, function = STANDARD[name.upper()]
        assert all(given in {None, formal} for given, formal in zip(names, order.split(), strict=True)), (name, names)
        return function(*arguments)


def _binary(op: str, left: Value, right: Value) -> Value:
    if op in {"AND", "OR"}:
        assert isinstance(left, bool)
        assert isinstance(right, bool)
        return left and right if op == "AND" else left or right
    assert type(left) is type(right), (op, left, right)
    compare: dict[str, Callable[[Any, Any], Value]] = {
        "=": lambda a, b: a == b,
        "<>": lambda a, b: a != b,
        "<": lambda a, b: a < b,
        "<=": lambda a, b: a <= b,
        ">": lambda a, b: a > b,
        ">=": lambda a, b: a >= b,
        "+": lambda a, b: a + b,
        "-": lambda a, b: a - b,
        "*": lambda a, b: a * b,
    }
    assert not isinstance(left, str) or op in {"=", "<>"}
    value = compare[op](left, right)
    assert isinstance(value, bool) or -(1 << 31) <= value < 1 << 31, f"{left} {op} {right} does not fit a DINT"
    return value


def _mid(text: str, length: int, position: int) -> str:
    assert position >= 1, "MID before the first character"
    assert length >= 0
    return text[position - 1 : position - 1 + length]


def _find(text: str, wanted: str) -> int:
    assert wanted, "FIND of nothing differs from PLC to PLC"
    return text.find(wanted) + 1


def _concat(first: str, second: str) -> str:
    assert len(first) + len(second) <= 255, "CONCAT beyond 255 characters differs from PLC to PLC"
    return first + second


STANDARD: dict[str, tuple[str, Callable[..., Value]]] = {
    "LEN": ("in", len),
    "MID": ("in l p", _mid),
    "FIND": ("in1 in2", _find),
    "CONCAT": ("in1 in2", _concat),
    "LEFT": ("in l", lambda text, length: text[:length]),
    "RIGHT": ("in l", lambda text, length: text[max(0, len(text) - length) :]),
    "DINT_TO_INT": ("in", lambda value: value),
    "INT_TO_DINT": ("in", lambda value: value),
}


@cache
def _parsed(source: str) -> dict[str, Any]:
    """Parse once: it takes a second."""
    return {str(item.name).lower(): item for item in parse_source_code(source).transform().items}


class Program:
    """The blocks of one source text."""

    def __init__(self, source: str, clock: Clock) -> None:
        self._clock = clock
        self.items = _parsed(source)

    def block(self, name: str) -> Block:
        """Make an instance of a function block."""
        item = self.items[name.lower()]
        made = Block(self, body=item.body.statements)
        self._declare(made, item)
        return made

    def function(self, name: str, arguments: list[Value], names: Sequence[str | None] = ()) -> Value:
        item = self.items[name.lower()]
        call = Block(self, body=item.body.statements)
        inputs = self._declare(call, item)
        call.types[name.lower()] = kind = _type(item.return_type)
        call.values[name.lower()] = kind.zero
        assert len(inputs) == len(arguments)
        assert all(given in {None, formal} for given, formal in zip(names, inputs, strict=False)), (name, names)
        call.call(**dict(zip(inputs, arguments, strict=True)))
        return call[name]

    def _declare(self, block: Block, item: Any) -> list[str]:
        """Declare the variables; return the names of the inputs."""
        inputs = []
        for declarations in item.declarations:
            for declaration in declarations.items:
                for declared in declaration.variables:
                    name = str(declared.variable.name).lower()
                    if isinstance(declarations, tree.InputDeclarations):
                        inputs.append(name)
                    kind = _type(declaration.init)
                    if kind.name in {"TON", "TON_TIME"}:
                        block.timers[name] = Ton(self._clock)
                        continue
                    block.types[name] = kind
                    initial = declaration.init.value
                    block.set(name, kind.zero if initial is None else block._value(initial))
        return inputs


def from_scl(source: str) -> str:
    """Write SCL of TIA Portal as plain Structured Text: what differs is how names and heads are written."""
    text = re.sub(r"^\s*(?:\{.*\}|VERSION\s*:.*|BEGIN)\s*$", "", source, flags=re.MULTILINE)
    # Names of blocks and types lose their quotation marks; strings and comments keep them.
    text = re.sub(r"//[^\n]*|'[^'\n]*'|\"(\w+)\"", lambda found: found[1] or found[0], text)
    text = re.sub(r"#(?=[A-Za-z_])", "", text)
    text = re.sub(r"WSTRING#'([^']*)'", r'"\1"', text)
    return text.replace("TON_TIME", "TON").replace("VAR_TEMP", "VAR")


def _type(node: Any) -> Type:
    text = re.sub(r"\s+", "", str(node)).upper()
    found = re.match(r"(STRING|[A-Z_]+)(?:[(\[](\d+)[)\]])?", text)
    assert found is not None, text
    return Type(found[1], int(found[2] or 255))
