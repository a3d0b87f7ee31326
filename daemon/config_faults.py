"""What is wrong in a configuration file, in words: place, value and remedy, and no secret."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel

from lineward.daemon.confidential import is_secret, without_secrets

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic_core import ErrorDetails


def explain(detail: ErrorDetails, config: type[BaseModel]) -> str:
    """Turn one of pydantic's findings about ``config`` into place, value and remedy."""
    drivers = {"simulated", "folder", "genicam", "aravis"}
    location = [str(part) for part in detail["loc"]]
    if location[:1] == ["camera"] and len(location) > 1 and location[1] in drivers:
        del location[1]
    setting = location[-3:-2] == ["settings"] and location[-1] in {"str", "int", "float", "bool"}
    if setting:
        del location[-1]  # there is a finding for each type
    key = ".".join(part or '""' for part in location)
    value = without_secrets(detail["input"], hide=any(map(is_secret, location)))
    match detail["type"]:
        case "extra_forbidden":
            return f"{key} = {value!r}: no such key{_did_you_mean(detail, config)}"
        case "missing":
            return f"{key}: is missing; add it"
        case "path_type":
            return f"{key} = {value!r}: is no path; write it as text in quotes"
        case "union_tag_invalid":
            given = detail["ctx"]["tag"]
            return f'{key}.driver = {given!r}: unknown driver; use "simulated", "folder", "genicam" or "aravis"'
        case "value_error":
            shown = "" if isinstance(value, dict) else f" = {value!r}"
            return f"{key}{shown}: {detail['ctx']['error']!s}"
        case _:
            message = detail["msg"][0].lower() + detail["msg"][1:]
            message = "write text in quotes, a finite number, true or false" if setting else message
            return f"{key} = {value!r}: {message}"


def _did_you_mean(detail: ErrorDetails, config: type[BaseModel]) -> str:
    model: Any = config
    for part in detail["loc"][:-1]:
        model = _child(model, str(part))
    if model is None:
        return "; remove it"
    known = sorted(model.model_fields)
    close = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known keys are {', '.join(known)}"


def _child(model: Any, name: str) -> Any:
    """Find the section model below ``model``; a driver's name picks the camera."""
    if isinstance(model, tuple):
        return next((m for m in model if get_args(m.model_fields["driver"].annotation) == (name,)), None)
    if model is None or name not in model.model_fields:
        return None
    annotation = model.model_fields[name].annotation
    sections = tuple(m for m in _sections(annotation))
    if len(sections) > 1:
        return sections
    return sections[0] if sections else None


def _sections(annotation: Any) -> Iterable[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections(argument)
