"""Trouble by script: what goes wrong at which frame.

A fault is a string ``name[:strength]@first[extent]`` or a table with the keys of the second line::

    lamp:0.6@1000..5000
    {fault = "lamp", strength = 0.6, at = 1000, until = 5000}     # frames = 200 for :200, seconds = 3 for :3s

================== ==================== ===================== ======================================================
fault              strength             extent                what happens
================== ==================== ===================== ======================================================
``drop``           none                 ``:frames``, or one   frames are lost on the way, frame ids jump
``incomplete``     none                 ``:frames``, or one   packets are lost: no whole frame, and it is said
``stall``          none                 ``:SECONDSs``         silence; then the line goes on, nothing is lost
``disconnect``     none                 ``:SECONDSs``         the plug is out; frame ids go on after it is back
``hang``           none                 none                  `grab` never returns
``crash``          none                 none                  the process dies by SIGSEGV
``lamp``           level 0.02..1        see below             the light is down to this share of itself
``blur``           sigma 0.3..50 px     see below             the lens is out of focus
``shift``          -2000..2000 px       see below             parts lie this far to the right
``wrong_product``  name, or any other   see below             another product comes along
``new_defect``     type of defect       see below             half of the good parts have it; before, none
================== ==================== ===================== ======================================================

The last five change pictures: ``@1000`` from that frame on, ``@1000:50`` for 50 frames, ``@1000..5000`` growing evenly
from nothing to full strength and then staying (not for ``wrong_product``). A new defect is easy to see. Stall,
disconnect, hang and crash happen once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from lineward.drivers.camera import Cause
from lineward.drivers.simulation.defects import Defect
from lineward.drivers.simulation.products import PRODUCTS
from lineward.drivers.simulation.scene import View

if TYPE_CHECKING:
    from collections.abc import Sequence

_FORM = re.compile(
    r"(?P<fault>[a-z_]+)(?::(?P<strength>[^@:]+))?@(?P<at>\d+)"
    r"(?:\.\.(?P<until>\d+)|:(?P<seconds>\d+(?:\.\d+)?)s|:(?P<frames>\d+))?"
)
_KEYS = ("fault", "strength", "at", "until", "frames", "seconds")


class Kind(StrEnum):
    """What can go wrong."""

    DROP = "drop"
    INCOMPLETE = "incomplete"
    STALL = "stall"
    DISCONNECT = "disconnect"
    HANG = "hang"
    CRASH = "crash"
    LAMP = "lamp"
    BLUR = "blur"
    SHIFT = "shift"
    WRONG_PRODUCT = "wrong_product"
    NEW_DEFECT = "new_defect"


_ONCE = (Kind.STALL, Kind.DISCONNECT, Kind.HANG, Kind.CRASH)
_PICTURE = (Kind.LAMP, Kind.BLUR, Kind.SHIFT, Kind.WRONG_PRODUCT, Kind.NEW_DEFECT)
_STRENGTH = {Kind.LAMP: (0.02, 1.0), Kind.BLUR: (0.3, 50.0), Kind.SHIFT: (-2000.0, 2000.0)}
_EXTENT = {
    Kind.DROP: ("frames",),
    Kind.INCOMPLETE: ("frames",),
    Kind.STALL: ("seconds",),
    Kind.DISCONNECT: ("seconds",),
    Kind.HANG: (),
    Kind.CRASH: (),
    Kind.LAMP: ("frames", "until"),
    Kind.BLUR: ("frames", "until"),
    Kind.SHIFT: ("frames", "until"),
    Kind.WRONG_PRODUCT: ("frames",),
    Kind.NEW_DEFECT: ("frames", "until"),
}
_EXAMPLE = {
    Kind.DROP: "drop@100:5",
    Kind.INCOMPLETE: "incomplete@100",
    Kind.STALL: "stall@200:3s",
    Kind.DISCONNECT: "disconnect@300:2s",
    Kind.HANG: "hang@400",
    Kind.CRASH: "crash@400",
    Kind.LAMP: "lamp:0.6@1000..5000",
    Kind.BLUR: "blur:2.0@500",
    Kind.SHIFT: "shift:20@500:50",
    Kind.WRONG_PRODUCT: "wrong_product@500:10",
    Kind.NEW_DEFECT: "new_defect:stain@500",
}

NEW_SHARE = 0.5
"""Share of the good parts that have a new defect at its full strength."""

NEW_SEVERITY = 0.85
"""A new defect is at least so easy to see, 0..1."""


@dataclass(frozen=True)
class Fault:
    """One line of the script.

    Attributes
    ----------
    at
        The first frame it concerns.
    strength
        As in the table of this module; 0 where there is none.
    frames
        How many frames it concerns; None for ever.
    until
        The frame at which a growing fault has reached its strength, or None.
    seconds
        How long it lasts, for stall and disconnect.
    product
        What comes along instead, for wrong_product; empty for any other.
    defect
        What is new, for new_defect.
    """

    kind: Kind
    at: int
    strength: float = 0.0
    frames: int | None = None
    until: int | None = None
    seconds: float = 0.0
    product: str = ""
    defect: Defect | None = None

    def share(self, index: int) -> float:
        """How much of its strength the fault has at a frame, 0..1."""
        if index < self.at or (self.frames is not None and index >= self.at + self.frames):
            return 0.0
        if self.until is None:
            return 1.0
        return min(1.0, (index - self.at) / (self.until - self.at))


class FaultScript:
    """All faults of a camera.

    Parameters
    ----------
    items
        Strings or tables, see this module.

    Raises
    ------
    ValueError
        An item cannot be understood; the message names it by position and text, and shows a right one.
    """

    def __init__(self, items: Sequence[str | Mapping[str, object]] = ()) -> None:
        if isinstance(items, str):
            raise ValueError(f"faults must be a list, not the text {items!r}")  # noqa: TRY004 - bad configuration
        faults = [_parse(item, f"camera.faults[{n}] = {item!r}") for n, item in enumerate(items)]
        self._lost = [fault for fault in faults if fault.kind in (Kind.DROP, Kind.INCOMPLETE)]
        self._picture = [fault for fault in faults if fault.kind in _PICTURE]
        self.once = tuple(sorted((fault for fault in faults if fault.kind in _ONCE), key=lambda fault: fault.at))
        """Faults that happen once, in the order of their frames."""

    @property
    def changes_pictures(self) -> bool:
        """Whether any fault changes what a picture shows."""
        return bool(self._picture)

    def lost(self, index: int) -> Cause | None:
        """Why a frame does not arrive whole, or None when it does."""
        for fault in self._lost:
            if fault.share(index) > 0:
                return Cause.CAMERA_GAP if fault.kind is Kind.DROP else Cause.INCOMPLETE
        return None

    def view(self, index: int, *, exposure: float, gain: float) -> View:
        """How the camera sees a frame: exposure and gain as set, with what has happened to lamp, lens and guide."""
        blur = shift = 0.0
        for fault in self._picture:
            share = fault.share(index)
            if fault.kind is Kind.LAMP:
                exposure *= 1 - share * (1 - fault.strength)
            elif fault.kind is Kind.BLUR:
                blur += share * fault.strength
            elif fault.kind is Kind.SHIFT:
                shift += share * fault.strength
        return View(exposure=exposure, gain=gain, blur_px=blur, shift_px=shift)

    def product(self, index: int, ordered: str) -> str:
        """Which product really comes along where ``ordered`` should."""
        for fault in self._picture:
            if fault.kind is Kind.WRONG_PRODUCT and fault.share(index) > 0:
                return fault.product or next(name for name in PRODUCTS if name != ordered)
        return ordered

    def defect(
        self, index: int, usual: Defect | None, severity: float, chance: tuple[float, float]
    ) -> tuple[Defect | None, float]:
        """Which defect is really on a part that has ``usual`` without this script, and its severity 0..1.

        Parameters
        ----------
        chance
            Two numbers 0..1 that belong to the part: whether it has the new defect, and how severe that is.
        """
        for fault in self._picture:
            if fault.kind is not Kind.NEW_DEFECT:
                continue
            share = fault.share(index)
            if usual is fault.defect and share == 0:
                usual, severity = None, 0.0
            elif usual is None and chance[0] < share * NEW_SHARE:
                usual, severity = fault.defect, NEW_SEVERITY + (1 - NEW_SEVERITY) * chance[1]
        return usual, severity

    def products(self, ordered: str) -> set[str]:
        """Every product the camera may get to see."""
        wrong = [fault for fault in self._picture if fault.kind is Kind.WRONG_PRODUCT]
        return {ordered, *(self.product(fault.at, ordered) for fault in wrong)}


def _parse(item: str | Mapping[str, object], where: str) -> Fault:
    """Turn a string or table into a fault."""
    given = _parts(item, where)
    kind = Kind(str(given["fault"]))
    hint = f'write it like "{_EXAMPLE[kind]}"'
    for extent in ("frames", "until", "seconds"):
        if extent in given and extent not in _EXTENT[kind]:
            raise ValueError(f"{where}: {kind} takes no {extent}; {hint}")
    if "frames" in given and "until" in given:
        raise ValueError(f"{where}: frames and until exclude each other; {hint}")
    if "seconds" in _EXTENT[kind] and "seconds" not in given:
        raise ValueError(f"{where}: {kind} needs its seconds; {hint}")
    at = _number(given.get("at"), f"{where}: at", 0, 2**62)
    until = _number(given["until"], f"{where}: until", at + 1, 2**62) if "until" in given else None
    frames = _number(given["frames"], f"{where}: frames", 1, 2**62) if "frames" in given else None
    if frames is None and kind not in _PICTURE:
        frames = 1
    strength, name = _strength(kind, given.get("strength"), where, hint)
    seconds = _real(given.get("seconds", 0), f"{where}: seconds", 0.0, 86400.0)
    product, defect = ("", Defect(name)) if kind is Kind.NEW_DEFECT else (name, None)
    return Fault(kind, at, strength, frames=frames, until=until, seconds=seconds, product=product, defect=defect)


def _parts(item: str | Mapping[str, object], where: str) -> dict[str, object]:
    """Take an item apart into the keys of a table, and make sure that its fault exists."""
    if isinstance(item, str):
        match = _FORM.fullmatch(item.strip())
        if match is None:
            raise ValueError(f'{where}: not of the form name[:strength]@frame[extent]; for example "drop@100:5"')
        given: dict[str, object] = {key: text for key, text in match.groupdict().items() if text is not None}
    elif isinstance(item, Mapping):
        given = dict(item)
    else:
        raise ValueError(f"{where}: neither a string nor a table")  # noqa: TRY004 - bad configuration
    unknown = sorted(set(given) - set(_KEYS))
    if unknown:
        raise ValueError(f"{where}: no key {unknown[0]!r}; there are {', '.join(_KEYS)}")
    if given.get("fault") not in list(Kind):
        raise ValueError(f"{where}: no fault {given.get('fault')!r}; there are {', '.join(Kind)}")
    return given


def _strength(kind: Kind, given: object, where: str, hint: str) -> tuple[float, str]:
    """Read the strength: a number, or the name of a product or a type of defect."""
    if kind is Kind.WRONG_PRODUCT:
        if given is not None and given not in PRODUCTS:
            raise ValueError(f"{where}: no product {given!r}; there are {', '.join(PRODUCTS)}")
        return 0.0, "" if given is None else str(given)
    if kind is Kind.NEW_DEFECT:
        if given not in list(Defect):
            raise ValueError(f"{where}: {kind} needs a type of defect: {', '.join(Defect)}; {hint}")
        return 0.0, str(given)
    if kind not in _STRENGTH:
        if given is not None:
            raise ValueError(f"{where}: {kind} takes no strength; {hint}")
        return 0.0, ""
    if given is None:
        raise ValueError(f"{where}: {kind} needs its strength; {hint}")
    return _real(given, f"{where}: strength", *_STRENGTH[kind]), ""


def _number(value: object, where: str, low: float, high: float) -> int:
    """Read a whole number within bounds."""
    number = _real(value, where, low, high)
    if number != int(number):
        raise ValueError(f"{where} must be a whole number, not {value!r}")
    return int(number)


def _real(value: object, where: str, low: float, high: float) -> float:
    """Read a number within bounds."""
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else None
    except ValueError:
        number = None
    if number is None or not low <= number <= high:
        bounds = f"at least {low:g}" if high >= 2**62 else f"within {low:g}..{high:g}"
        raise ValueError(f"{where} must be a number {bounds}, not {value!r}")
    return number
