"""Write docs/reference/ from the code. `python docs/generate.py` writes, with `--check` it only names stale files.

Nothing here depends on the width or the colours of a terminal: tables are made from the declarations themselves.
"""

from __future__ import annotations

import argparse
import json
import sys
import types
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer
from markdown import code, expect_keys, table
from mqtt_reference import mqtt_page
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from lineward.daemon.cli import app
from lineward.daemon.config import Config
from lineward.daemon.options import DEFAULT_CONFIG
from lineward.drivers import pixels
from lineward.drivers.simulation import faults
from lineward.drivers.simulation.defects import Defect
from lineward.drivers.simulation.products import PRODUCTS
from lineward.drivers.simulation.settings import FEATURES, NOMINAL_EXPOSURE_US
from lineward.models.records import FORMAT_VERSION, Manifest
from lineward.models.session import Outputs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pydantic.fields import FieldInfo

REFERENCE = Path(__file__).resolve().parent / "reference"
HEAD = "<!-- Written by docs/generate.py from the code. Do not edit: change the code and run it again. -->\n\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the reference, or with ``--check`` return 1 when a file is not what the code says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; leave with 1 when a file is stale")
    check = parser.parse_args(arguments).check
    stale = []
    for name, make in PAGES.items():
        path = REFERENCE / name
        text = HEAD + make().rstrip() + "\n"
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if not check:
            REFERENCE.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    if stale:
        what = "is stale, run python docs/generate.py" if check else "written"
        sys.stderr.write("".join(f"docs/reference/{name}: {what}\n" for name in stale))
    return 1 if check and stale else 0


# ---- Markdown


def toml_value(value: object) -> str:
    """Write a default as the configuration file would."""
    match value:
        case bool():
            return str(value).lower()
        case str() | Path():
            return json.dumps(str(value))
        case list() | tuple():
            return "[" + ", ".join(toml_value(item) for item in value) + "]"
        case dict():
            return "{" + ", ".join(f"{key} = {toml_value(item)}" for key, item in value.items()) + "}"
        case _:
            return str(value)


# ---- types, the same words on every Python

_WORDS: dict[object, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    Path: "path",
    type(None): "none",
}


def type_words(annotation: Any) -> str:  # noqa: PLR0911 - one line for each kind of type
    """Say a type in words."""
    if annotation in _WORDS:
        return _WORDS[annotation]
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " or ".join(code(toml_value(part)) for part in parts)
    if origin is typing.Annotated:
        return type_words(parts[0])
    if origin in {typing.Union, types.UnionType}:
        return " or ".join(dict.fromkeys(type_words(part) for part in parts if part is not type(None)))
    if origin is list:
        return f"list of {type_words(parts[0])}"
    if origin is tuple:
        return f"list of {type_words(parts[0])}" + ("" if parts[-1] is Ellipsis else f" ({len(parts)} of them)")
    if origin is dict:
        return f"table: {type_words(parts[0])} to {type_words(parts[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation.__name__
    raise TypeError(f"no words for {annotation!r}")


def range_words(field: FieldInfo) -> str:
    """Say the bounds of a field in words."""
    bounds: dict[str, Any] = {}
    for piece in field.metadata:
        for name in ("gt", "ge", "lt", "le", "min_length", "max_length", "pattern"):
            value = getattr(piece, name, None)
            if value is not None:
                bounds[name] = value
    words = []
    if "ge" in bounds and "le" in bounds:
        words.append(f"{bounds['ge']:g} to {bounds['le']:g}")
    else:
        signs = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
        words += [f"{sign} {bounds[name]:g}" for name, sign in signs.items() if name in bounds]
    if "max_length" in bounds:
        words.append(f"{bounds.get('min_length', 0)} to {bounds['max_length']} characters")
    elif "min_length" in bounds:
        words.append("not empty")
    if "pattern" in bounds:
        words.append(f"matches `{bounds['pattern']}`")
    return ", ".join(words)


def default_words(field: FieldInfo) -> str:
    """Say the default of a field."""
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "none"
    return code(toml_value(value))


# ---- cli.md


def cli_page() -> str:
    """List every command with its options."""
    root: Any = typer.main.get_command(app)
    lines = [
        "# Command line",
        "",
        f"`lineward [OPTIONS] COMMAND`: {root.help}",
        "",
        "Exit codes: 0 fine, 1 the thing checked is not fine, 2 wrong usage or bad input (one clear line on stderr).",
        "Progress goes to stderr, results to stdout. Every command has `--help`.",
        "",
        parameter_table(root.params),
    ]
    for name, command in root.commands.items():
        lines += command_section(name, command)
    return "\n".join(lines)


def command_section(name: str, command: Any) -> list[str]:
    """Describe one command and the commands below it."""
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    below = getattr(command, "commands", {})
    usage = ["lineward", name, "[OPTIONS]", *(argument_name(argument) for argument in arguments)]
    usage += ["[COMMAND]"] if below else []
    lines = [f"## {name}", "", f"`{' '.join(usage)}`", "", command.help, "", parameter_table(command.params)]
    if command.epilog:
        lines += [command.epilog, ""]
    for inner, inner_command in below.items():
        lines += command_section(f"{name} {inner}", inner_command)
    return lines


def argument_name(argument: Any) -> str:
    """Return how `--help` writes an argument."""
    return str(argument.metavar or argument.name.upper())


def parameter_table(parameters: Sequence[Any]) -> str:
    """Tabulate options and arguments as Typer declares them."""
    rows = []
    for parameter in parameters:
        is_argument = parameter.param_type_name == "argument"
        opposites = getattr(parameter, "secondary_opts", [])
        opts = [argument_name(parameter)] if is_argument else [*parameter.opts, *opposites]
        name = ", ".join(code(opt) for opt in opts)
        flag = getattr(parameter, "is_flag", False)
        written = None if is_argument else parameter.metavar
        value = "" if flag else code(written) if written else type_words(parameter.type_descriptor.annotation)
        low, high = getattr(parameter, "min", None), getattr(parameter, "max", None)
        if low is not None and high is not None:
            value += f", {low:g} to {high:g}"
        elif low is not None:
            value += f", at least {low:g}"
        if parameter.required:
            default = "required"
        else:
            shown = getattr(parameter, "show_default", False)
            default = "" if flag or parameter.default is None else code(parameter.default)
            if isinstance(shown, str):  # in words, where it is no value
                default = shown
            if opposites:
                default = code((parameter.opts if parameter.default else opposites)[0])
        rows.append((name, value, default, parameter.help or ""))
    return table(("option", "value", "default", "meaning"), rows)


# ---- config.md


def config_page() -> str:
    """List every key of the configuration file."""
    lines = [
        "# Configuration file",
        "",
        (
            f"TOML, by default `{DEFAULT_CONFIG}`. Unknown keys are refused; an error names file, key, "
            "value and remedy. A relative path is relative to the folder of the configuration file. `lineward check "
            "--config FILE` tries everything the file names."
        ),
        "",
        "The smallest file that works:",
        "",
        "```toml",
        "[camera]",
        'driver = "simulated"',
        "",
        "[inspection]",
        'model = "bracket.lward"',
        "```",
        "",
    ]
    for name, field in Config.model_fields.items():
        sections = list(section_models(field.annotation))
        if name == "camera":
            lines += camera_sections(sections, field)
        else:
            lines += section(name, sections[0])
    return "\n".join(lines)


def section_models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the section models in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from section_models(part)


def section(name: str, model: type[BaseModel]) -> list[str]:
    """Describe one section and those below it."""
    fields = {key: field for key, field in model.model_fields.items() if not list(section_models(field.annotation))}
    lines = [f"## [{name}]", "", first_line(model), "", key_table(fields)]
    for key, field in model.model_fields.items():
        for below in section_models(field.annotation):
            lines += section(f"{name}.{key}", below)
    return lines


def camera_sections(models: Sequence[type[BaseModel]], field: FieldInfo) -> list[str]:
    """Describe the keys that all cameras have once, and then those of each driver."""
    shared = set.intersection(*(set(model.model_fields) for model in models)) - {"driver"}
    common = {key: value for key, value in models[0].model_fields.items() if key in shared}
    drivers = [str(typing.get_args(model.model_fields["driver"].annotation)[0]) for model in models]
    choice = ", ".join(code(toml_value(driver)) for driver in drivers)
    lines = ["## [camera]", "", f"{field.description} `driver` is required: one of {choice}. Every driver has:", ""]
    lines.append(key_table(common))
    for driver, model in zip(drivers, models, strict=True):
        own = {key: value for key, value in model.model_fields.items() if key not in {*common, "driver"}}
        lines += [f"### driver = {toml_value(driver)}", "", first_line(model), "", key_table(own)]
    return lines


def first_line(model: type[BaseModel]) -> str:
    """Return the first line of a model's docstring, with Markdown's single backticks."""
    return (model.__doc__ or "").strip().splitlines()[0].replace("``", "`")


def key_table(fields: dict[str, FieldInfo]) -> str:
    """Tabulate the keys of a section."""
    rows = [
        (code(key), type_words(field.annotation), default_words(field), range_words(field), field.description or "")
        for key, field in fields.items()
    ]
    return table(("key", "type", "default", "range", "meaning"), rows)


# ---- mqtt.md

OUTPUTS = {
    "defect_probability": ("(N,)", "Calibrated probability 0..1 that the part is defective."),
    "anomaly": ("(N,)", "Share 0..1 of good training parts that look more usual."),
    "heatmap": ("(N, h, w)", "0..1, where the image looks defective, coarse."),
    "defect_type_scores": ("(N, types)", "The higher the likelier; only when defect types were named."),
}


def bundle_page() -> str:
    """Describe the bundle file and every field of its manifest."""
    expect_keys("OUTPUTS", OUTPUTS, list(Outputs._fields))
    lines = [
        "# Model bundle",
        "",
        (
            "A `.lward` file is an ONNX model. Any ONNX tool opens it. Its metadata entry `lineward` holds the "
            "manifest below as JSON, with the SHA-256 of all bytes before it; the entry `lineward_sha256` holds the "
            "SHA-256 of the manifest. Loading verifies both, so that every byte of the file is covered "
            "([decision 0007](../decisions/0007-bundle-digests.md))."
        ),
        "",
        "Input: `image`, uint8, `(N, height, width, channels)`; scaling is inside the graph. Outputs, float32:",
        "",
        table(("output", "shape", "content"), [(code(k), *v) for k, v in OUTPUTS.items()]),
        "## Manifest",
        "",
        f"Format version {FORMAT_VERSION}; a bundle with another one is refused.",
        "",
        manifest_table(Manifest),
    ]
    seen: list[type[BaseModel]] = []
    waiting = list(parts_of(Manifest))
    while waiting:
        model = waiting.pop(0)
        if model in seen:
            continue
        seen.append(model)
        waiting += parts_of(model)
        lines += [f"## {model.__name__}", "", first_line(model), "", manifest_table(model)]
    return "\n".join(lines)


def parts_of(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Yield the records that a record holds."""
    for field in model.model_fields.values():
        yield from section_models(field.annotation)


def manifest_table(model: type[BaseModel]) -> str:
    """Tabulate the fields of a record; the names of other records link to them."""
    rows = []
    for name, field in model.model_fields.items():
        words = type_words(field.annotation)
        for part in section_models(field.annotation):
            words = words.replace(part.__name__, f"[{part.__name__}](#{part.__name__.lower()})")
        limits_ = range_words(field)
        rows.append((code(name), words + (f", {limits_}" if limits_ else ""), field.description or ""))
    return table(("field", "type", "meaning"), rows)


# ---- simulated-camera.md


def simulated_page() -> str:
    """Describe products, defects, features and faults of the simulated camera."""
    text = (faults.__doc__ or "").strip()
    before, rules, after = split_rst_table(text)
    form = before.partition("::")[2].strip("\n")
    title = {defect: str(defect) for defect in Defect}
    return "\n".join(
        [
            "# Simulated camera",
            "",
            (
                '`driver = "simulated"`. Its keys are in the [configuration](config.md#driver--simulated). Frame `i` '
                "is always the same picture for the same product, seed, size and settings. Parts wait for the camera: "
                "while it is stopped, stalled or unplugged none goes by. A caller who is late loses the oldest of "
                "four frames, which is counted as `overrun`."
            ),
            "",
            "## Products",
            "",
            table(("`product`", "what it is"), [(code(p.name), p.title) for p in PRODUCTS.values()]),
            "## Defects",
            "",
            "Types, which are also the folder names of a data set: "
            + ", ".join(code(word) for word in title.values())
            + ". Severity runs from 0 to 1: about 0.2 is hard to see, 1 is obvious. On the line it is drawn evenly "
            "from 0.12 to 1.",
            "",
            "## Settings",
            "",
            (
                f"`[camera.settings]` takes these features, as a real camera would. Nominal exposure is "
                f"{NOMINAL_EXPOSURE_US:g} us."
            ),
            "",
            table(("feature", "range"), [(code(name), str(limit)) for name, limit in FEATURES.items()]),
            "## Faults",
            "",
            "`faults` is a list. An item is text, or a table with the keys of the second line:",
            "",
            "```text",
            "\n".join(line.strip() for line in form.splitlines()),
            "```",
            "",
            table(rules[0], rules[1:]).replace("``", "`"),
            after.replace("``", "`"),
            "",
            "How to use them: [simulate faults](../how-to/simulate-faults.md).",
        ]
    )


def split_rst_table(text: str) -> tuple[str, list[list[str]], str]:
    """Split a docstring into what stands before its simple table, the rows, and what stands after."""
    lines = text.splitlines()
    borders = [number for number, line in enumerate(lines) if line.startswith("===")]
    starts = [0]
    for column in lines[borders[0]].split():
        starts.append(starts[-1] + len(column) + 1)

    def cells(line: str) -> list[str]:
        ends = [*starts[1:-1], None]
        return [line[start:end].strip() for start, end in zip(starts, ends, strict=False)]

    rows = [cells(lines[number]) for number in range(borders[0] + 1, borders[2]) if number not in borders]
    return "\n".join(lines[: borders[0]]), rows, "\n".join(lines[borders[2] + 1 :]).strip()


# ---- pixel-formats.md


def pixels_page() -> str:
    """List the pixel formats that the GenICam driver decodes."""
    families: dict[str, list[str]] = {}
    for pixel_format in pixels._table().values():  # noqa: SLF001 - the table is the contract
        families.setdefault(pixel_format.order, []).append(pixel_format.name)
    rows = [(order, ", ".join(code(name) for name in names)) for order, names in families.items()]
    return "\n".join(
        [
            "# Pixel formats",
            "",
            (
                "What the driver `genicam` decodes, by name of the Pixel Format Naming Convention. Everything is "
                "judged as 8 bit, mono or RGB; the scaling is fixed and never depends on the brightest "
                "pixel of a picture."
            ),
            "",
            table(("order of samples", "formats"), rows),
        ]
    )


PAGES: dict[str, Callable[[], str]] = {
    "cli.md": cli_page,
    "config.md": config_page,
    "mqtt.md": mqtt_page,
    "bundle.md": bundle_page,
    "simulated-camera.md": simulated_page,
    "pixel-formats.md": pixels_page,
}

if __name__ == "__main__":
    sys.exit(main())
