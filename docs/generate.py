"""Write docs/reference/ from the code. `python docs/generate.py` writes, with `--check` it only names stale files.

Nothing here depends on the width or the colours of a terminal: tables are made from the declarations themselves.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import tempfile
import types
import typing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from lineward.daemon import config as config_module
from lineward.daemon.cli import app
from lineward.daemon.config import Config
from lineward.daemon.health import Health
from lineward.daemon.result import V_CODE, CameraRef, Latency, ModelRef, Result
from lineward.daemon.states import State
from lineward.drivers import pixels
from lineward.drivers.camera import Cause
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


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a Markdown table; bars in cells are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells) + "\n"


def code(value: object) -> str:
    """Set a value as code; nothing for nothing."""
    text = str(value)
    return f"`{text}`" if text else ""


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
    usage = ["lineward", name, "[OPTIONS]", *(str(argument.metavar) for argument in arguments)]
    usage += ["[COMMAND]"] if below else []
    lines = [f"## {name}", "", f"`{' '.join(usage)}`", "", command.help, "", parameter_table(command.params)]
    if command.epilog:
        lines += [command.epilog, ""]
    for inner, inner_command in below.items():
        lines += command_section(f"{name} {inner}", inner_command)
    return lines


def parameter_table(parameters: Sequence[Any]) -> str:
    """Tabulate options and arguments as Typer declares them."""
    rows = []
    for parameter in parameters:
        is_argument = parameter.param_type_name == "argument"
        name = code(parameter.metavar) if is_argument else ", ".join(code(opt) for opt in parameter.opts)
        flag = getattr(parameter, "is_flag", False)
        value = "" if flag else type_words(parameter.type_descriptor.annotation)
        low, high = getattr(parameter, "min", None), getattr(parameter, "max", None)
        if low is not None and high is not None:
            value += f", {low:g} to {high:g}"
        elif low is not None:
            value += f", at least {low:g}"
        if parameter.required:
            default = "required"
        else:
            default = "" if flag or parameter.default is None else code(parameter.default)
        rows.append((name, value, default, parameter.help or ""))
    return table(("option", "value", "default", "meaning"), rows)


# ---- config.md


def config_page() -> str:
    """List every key of the configuration file."""
    lines = [
        "# Configuration file",
        "",
        (
            f"TOML, by default `{config_module.DEFAULT_PATH}`. Unknown keys are refused; an error names file, key, "
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
    common = {key: value for key, value in models[0].__mro__[1].model_fields.items() if key != "driver"}  # type: ignore[attr-defined]
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

EXAMPLE = Result(
    seq=1841,
    verdict="fail",
    reason="",
    confidence=0.9931,
    defect_probability=0.9931,
    anomaly=0.9974,
    defect_type="scratch",
    product="bracket",
    model=ModelRef("bracket", "20260105-091500", hashlib.sha256(b"an example").hexdigest()),
    camera=CameraRef("Example 2500", "40012345", 90211),
    trigger_unix_ns=1_767_623_412_707_000_000,
    received_unix_ns=1_767_623_412_709_000_000,
    published_unix_ns=1_767_623_412_730_000_000,
    latency=Latency(grab=0.212, prepare=0.301, infer=19.872, decide=0.064, record=0.058, publish=0.006, total=23.513),
    part_id="A1183",
    exposure_device_ns=812_006_113_204_118,
    deadline_unix_ns=1_767_623_413_207_000_000,
)

RESULT_FIELDS: dict[str, tuple[str, str]] = {
    "schema_version": ("integer", "1. Another number means another layout."),
    "seq": ("integer", "1, 2, 3 ... over the life of the station's storage folder. A gap: ask the ledger."),
    "verdict": ("string", "`pass`, `fail`, `review` or `undecided`."),
    "reason": ("string", "Why it is no plain pass or fail; see [reasons](#reasons)."),
    "confidence": ("number", "0..1: calibrated probability that the verdict is right; 0 when undecided."),
    "defect_probability": ("number", "0..1: calibrated probability that the part is defective."),
    "anomaly": ("number", "0..1: share of good training parts that look more usual than this one."),
    "defect_type": ("string or null", "The likeliest named defect of a part that does not pass."),
    "product": ("string", "The product the model was trained for."),
    "model": ("object", "Which model judged."),
    "model.name": ("string", "Product name in the bundle."),
    "model.version": ("string", "Version in the bundle."),
    "model.sha256": ("string", "SHA-256 of the bundle file."),
    "part_id": ("string", "In a replay the file's path below the folder; else empty in this version."),
    "trigger_id": ("string", "Number of the trigger, or empty in free run."),
    "camera": ("object", "Which camera saw the part."),
    "camera.name": ("string", "Model name, simulated product, or name of the replay folder."),
    "camera.serial": ("string", "Serial number; for a replay the path of the folder."),
    "camera.frame_id": ("integer or null", "The camera's own frame number."),
    "times": ("object", "RFC 3339, UTC, milliseconds."),
    "times.trigger": ("string", "When time starts: frame complete in free run, frame taken in a replay."),
    "times.exposure_device_ns": ("integer or null", "Start of exposure on the camera's clock, nanoseconds."),
    "times.received": ("string", "When the frame was complete on this machine."),
    "times.published": ("string", "When the answer was drawn up."),
    "latency_ms": ("object", "Where the time went, milliseconds."),
    "latency_ms.grab": ("number", "Frame complete to taken by the loop."),
    "latency_ms.prepare": ("number", "Crop, convert, resize."),
    "latency_ms.infer": ("number", "ONNX Runtime."),
    "latency_ms.decide": ("number", "Thresholds."),
    "latency_ms.record": ("number", "Write to the ledger; 0 in the ledger's own copy and in what the outbox repeats."),
    "latency_ms.publish": ("number", "Hand over to the MQTT thread; 0 as long as it is not over."),
    "latency_ms.total": ("number", "Trigger to the moment the payload was made."),
    "simulated": ("boolean", "Whether the camera is simulated."),
    "late": ("boolean", "Too late to act on; see [late](#late)."),
    "image": ("string or null", "Id of the kept image, as in its file name."),
    "heatmap": ("string or null", "Always null in this version."),
}

PLC_FIELDS = {
    "seq": "As above, modulo 2^31.",
    "v": "0 undecided, 1 pass, 2 fail, 3 review: ResultEvaluationEnum of OPC 40001-101.",
    "c": "Confidence times 10,000.",
    "ms": "Trigger to answer, milliseconds.",
    "tod": "Milliseconds since midnight UTC: TIME_OF_DAY of IEC 61131.",
    "id": "Part id: printable ASCII, at most 64 characters, other characters and JSON punctuation become `_`.",
}

TOPICS = (
    ("availability", "yes", "text", "`online`, `stopped` (clean exit), `offline` (the broker's last will)."),
    ("state", "yes", "JSON", "What the station is doing; see [state](#state)."),
    ("heartbeat", "no", "integer", "Once a second while the loop is alive, whether parts come or not."),
    ("result", "no", "JSON", "Every answer, in order, at least once."),
    ("result/plc", "no", "JSON", "The same answer in short, now or never."),
    ("result/verdict", "no", "text", "`pass`, `fail`, `review` or `undecided`; now or never."),
    ("result/part_id", "no", "text", "The part id, cleaned as in `result/plc`; now or never."),
    ("alarm", "yes", "JSON", "Alarms by id; see [alarm](#alarm)."),
    ("stats", "yes", "JSON", "Every 10 s: counters and latency; see [stats](#stats)."),
)

REASONS = {
    "(empty)": "A plain pass or fail.",
    "low_confidence": "review: the defect probability lies between the two thresholds.",
    "unlike_training": "review: it would pass, but it looks unlike the good parts of the training.",
    "score_out_of_range": "review: the model gave something that is not a number within 0..1.",
    "timeout": "undecided: judged after the deadline; the scores are those of the late judgement.",
    "error": "undecided: the model could not judge this image; the alarm `model` says why.",
}

STATES = {
    State.PREOPERATIONAL: "Starting: no model yet.",
    State.HALTED: "Stopped on purpose.",
    State.ERROR: "Cannot inspect; `reason` says why (`camera_lost`).",
    State.INITIALIZED: "Model loaded and warm, no camera yet.",
    State.READY: "The camera waits for a software trigger.",
    State.SINGLE_EXECUTION: "One trigger in work. Not reached in this version.",
    State.CONTINUOUS_EXECUTION: "Inspecting at the camera's pace.",
}

ALARMS = {
    "camera": "The camera is gone, refused a setting, or its process was killed. It is opened anew.",
    "frames": "Frames are being lost (severity `warning`); the text names causes and remedies.",
    "storage": "The ledger cannot be written; results wait in memory.",
    "images": "Images for review cannot be kept.",
    "model": "A part could not be judged.",
    "provider": "A wished ONNX Runtime provider is not there; another one judges (severity `warning`).",
}

CAUSES = {
    Cause.CAMERA_GAP: "The camera's frame numbers jumped.",
    Cause.INCOMPLETE: "Packets were lost on the way.",
    Cause.UNDERRUN: "The producer had no buffer to write to.",
    Cause.OVERRUN: "Inspection was slower than the camera; the oldest waiting frame was given up.",
    Cause.BROKEN_FILE: "A file of a replay could not be read.",
    Cause.TRIGGER_MISSED: "A trigger was given and no frame came.",
    Cause.LOST_WITH_PROCESS: "Frames waited in a camera process that died.",
}

STATS = {
    "time": "When, RFC 3339, UTC.",
    "uptime_s": "Seconds since the start.",
    "rate_hz": "Answers per second over the last ten seconds.",
    "answers": "Answers since the start.",
    "verdicts": "Answers by verdict.",
    "reasons": "Answers by reason.",
    "missing_frames": "Frames that were never judged, by cause.",
    "camera": "`state`, `openings` (how often it began to stream: more than 1 means that it was lost or replaced), "
    "`recycles`, `temperature_c` or null.",
    "latency_ms": "`p50`, `p99` and `max` of trigger to answer over the last 2,000 answers.",
    "disk": "`free_gb` and `used_share` of the storage folder's disk, or null.",
}


def mqtt_page() -> str:
    """Describe topics and payloads, with examples made by the code that publishes."""
    example = json.loads(EXAMPLE.payload())
    expect_keys("RESULT_FIELDS", RESULT_FIELDS, list(flat_keys(example)))
    plc = json.loads(EXAMPLE.plc_payload())
    expect_keys("PLC_FIELDS", PLC_FIELDS, list(plc))
    expect_keys("STATES", STATES, list(State))
    expect_keys("CAUSES", CAUSES, list(Cause))
    expect_keys("ALARMS", sorted(ALARMS), alarm_ids())
    with tempfile.TemporaryDirectory() as folder:
        expect_keys("STATS", STATS, list(Health(Path(folder)).stats()))
    verdicts = ", ".join(f"{number} {word}" for word, number in V_CODE.items())
    undecided = replace(EXAMPLE, verdict="undecided", reason="timeout", confidence=0.0, part_id="")
    return "\n".join(
        [
            "# MQTT",
            "",
            (
                "Base topic: `lineward/<site>/<line>/<name>`, from `[station]` in the "
                "[configuration](config.md#station). Every message is published with QoS 1. "
                "MQTT 5 or 3.1.1, as `mqtt.protocol` says."
            ),
            "",
            table(("topic", "retained", "payload", "content"), [(code(t), *rest) for t, *rest in TOPICS]),
            "There are no command topics in this version: the station publishes and subscribes to nothing.",
            "",
            "## result",
            "",
            "An example, laid out for reading; on the wire it has no white space:",
            "",
            "```json",
            json.dumps(example, indent=2),
            "```",
            "",
            table(("field", "type", "meaning"), [(code(k), *v) for k, v in RESULT_FIELDS.items()]),
            "As JSON Schema:",
            "",
            "```json",
            json.dumps(schema(), indent=1),
            "```",
            "",
            "## result/plc",
            "",
            "One flat object, ASCII, no white space, fixed key order, integers that fit a signed 32-bit DINT:",
            "",
            "```json",
            EXAMPLE.plc_payload().decode(),
            "```",
            "",
            "```json",
            undecided.plc_payload().decode(),
            "```",
            "",
            table(("field", "meaning"), [(code(k), v) for k, v in PLC_FIELDS.items()]),
            f"Values of `v`: {verdicts}. Only `v` = 1 together with a new `seq` lets a part through.",
            "",
            "On MQTT 5 the message carries an expiry of two deadlines, in whole seconds and at least 1.",
            "",
            "## Late",
            "",
            (
                "`result` says `late: true` when the part was judged after its deadline, or when the message leaves "
                "the station after the deadline; for a replay, which has none, when it leaves more than 5 s (or two "
                "deadlines, if that is longer) after it was recorded. A pass that is past its deadline is never sent "
                "on `result/plc`, `result/verdict` and `result/part_id`; another verdict may come up to one deadline "
                "after it was handed over, because it only keeps the part back. A part that was not judged in time "
                "gets `undecided`, reason `timeout`, on all topics."
            ),
            "",
            "## Reasons",
            "",
            table(
                ("reason", "meaning"),
                [(name if name.startswith("(") else code(name), text) for name, text in REASONS.items()],
            ),
            "## State",
            "",
            "`{state, reason, product, model, since}`; `model` is the version. The words are those of OPC 40100-1.",
            "",
            table(("state", "meaning"), [(code(k), v) for k, v in STATES.items()]),
            "## Alarm",
            "",
            (
                "One object, alarm id to `{raised, severity, text, since}`. An alarm that is over stays with `raised: "
                "false`. `text` says what is wrong and what to do."
            ),
            "",
            table(("id", "meaning"), [(code(k), v) for k, v in ALARMS.items()]),
            "## Stats",
            "",
            table(
                ("field", "meaning"),
                [
                    *((code(k), v) for k, v in STATS.items()),
                    (
                        "`mqtt`",
                        (
                            "`connected`, `published`, `acknowledged`, `reconnects`, `outage_s`, `outbox` (results the "
                            "broker has not acknowledged)."
                        ),
                    ),
                    ("`images`", "`kept` and `dropped` images for review."),
                ],
            ),
            "Causes of `missing_frames`; each missing frame is counted under one:",
            "",
            table(("cause", "meaning"), [(code(k), v) for k, v in CAUSES.items()]),
        ]
    )


def alarm_ids() -> list[str]:
    """Find the ids of all alarms that the daemon raises."""
    daemon = Path(config_module.__file__).parent
    code_ = "".join(path.read_text(encoding="utf-8") for path in sorted(daemon.glob("*.py")))
    return sorted(set(re.findall(r'alarms\.set\(\s*"(\w+)"', code_)))


def flat_keys(record: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the keys of nested objects, joined by dots."""
    for key, value in record.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from flat_keys(value, prefix + key + ".")


def expect_keys(what: str, described: object, real: Sequence[object]) -> None:
    """Stop when the descriptions above no longer fit the code."""
    if list(typing.cast("typing.Iterable[object]", described)) != list(real):
        raise SystemExit(f"docs/generate.py: {what} does not describe what the code has: {list(real)}")


def schema() -> dict[str, Any]:
    """Make a JSON Schema of the topic ``result``."""

    def node(prefix: str) -> dict[str, Any]:
        properties: dict[str, Any] = {}
        for name, (kind, _) in RESULT_FIELDS.items():
            head, _, key = name.rpartition(".")
            if head != prefix:
                continue
            kinds = kind.split(" or ")
            properties[key] = (
                node(name) if kind == "object" else {"type": kinds if len(kinds) > 1 else kind, **limits(name)}
            )
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }

    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "lineward result", **node("")}


def limits(name: str) -> dict[str, Any]:
    """Return the further limits of one field."""
    if name == "schema_version":
        return {"const": 1}
    if name == "verdict":
        return {"enum": sorted(V_CODE)}
    if name in {"confidence", "defect_probability", "anomaly"}:
        return {"minimum": 0, "maximum": 1}
    return {"minimum": 1} if name == "seq" else {}


# ---- bundle.md

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
                "while it is stopped, stalled or unplugged none goes by. A caller who is late loses the oldest of four "
                "frames, which is counted as `overrun`."
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
