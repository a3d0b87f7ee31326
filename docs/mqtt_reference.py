"""The reference of topics and payloads, with examples made by the code that publishes."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markdown import code, expect_keys, table

from lineward.daemon import commands
from lineward.daemon import config as config_module
from lineward.daemon.health import Health
from lineward.daemon.result import V_CODE, CameraRef, Latency, ModelRef, Result
from lineward.daemon.states import State
from lineward.daemon.triggers import Reason
from lineward.daemon.watch.words import ALARM_IDS as WATCHED
from lineward.drivers.camera import Cause

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    "part_id": (
        "string",
        (
            "The id given with `cmd/trigger` or announced with `cmd/part`; in a replay the file's path below the "
            "folder; else empty."
        ),
    ),
    "trigger_id": (
        "string",
        (
            "The `id` of the `cmd/trigger` or `cmd/part` that this part goes back to; else the camera's own number of "
            "the trigger, or empty."
        ),
    ),
    "camera": ("object", "Which camera saw the part."),
    "camera.name": ("string", "Model name, simulated product, or name of the replay folder."),
    "camera.serial": ("string", "Serial number; for a replay the path of the folder."),
    "camera.frame_id": ("integer or null", "The camera's own frame number."),
    "times": ("object", "RFC 3339, UTC, milliseconds."),
    "times.trigger": (
        "string",
        "When time starts: a software trigger accepted, else frame complete, in a replay frame taken.",
    ),
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
    "id": "Part id: printable ASCII, at most 64 characters; JSON punctuation becomes `_`, other characters `?`.",
}

TOPICS = (
    ("availability", "yes", "text", "`online`, `stopped` (clean exit), `offline` (the broker's last will)."),
    ("state", "yes", "JSON", "What the station is doing; see [state](#state)."),
    ("heartbeat", "no", "integer", "Once a second while the loop is alive, whether parts come or not."),
    ("result", "no", "JSON", "Every answer, in order, at least once."),
    ("result/plc", "no", "JSON", "The same answer in short, now or never."),
    ("result/verdict", "no", "text", "`pass`, `fail`, `review` or `undecided`; now or never."),
    ("result/part_id", "no", "text", "The part id, cleaned as in `result/plc`; now or never."),
    ("cmd/+", "no", "JSON", "Subscribed to; see [commands](#commands)."),
    ("ack/+", "no", "JSON", "One acknowledgement for each command; now or never."),
    ("alarm", "yes", "JSON", "Alarms by id; see [alarm](#alarm)."),
    ("stats", "yes", "JSON", "Every 10 s: counters and latency; see [stats](#stats)."),
)

REASONS = {
    "(empty)": "A plain pass or fail.",
    "low_confidence": "review: the defect probability lies between the two thresholds.",
    "unlike_training": "review: it would pass, but it looks unlike the good parts of the training.",
    "score_out_of_range": "review: the model gave something that is not a number within 0..1.",
}

UNDECIDED = {
    "timeout": "Not judged within the deadline; said before it when too little time is left. A verdict that comes "
    "later is kept in the ledger and is no answer.",
    "no_image": "The camera sent no picture of this part.",
    "incomplete": "The picture was damaged on the way.",
    "camera_lost": "There is no camera.",
    "no_model": "No model is loaded yet.",
    "queue_full": "Parts come faster than they are judged.",
    "error": "The model could not judge this image (alarm `model` says why), or the service was ended before it did.",
    "wrong_product": "The trigger names another product than is in force, the camera is being set up for the next, or "
    "the picture does not look like the product ([image health](../how-to/watch-image-health.md)).",
}

STATES = {
    State.PREOPERATIONAL: "Starting: no model yet.",
    State.HALTED: "Stopped on purpose.",
    State.ERROR: "Cannot inspect; `reason` says why (`camera_lost`).",
    State.INITIALIZED: "Model loaded and warm, no camera yet.",
    State.READY: "The camera waits for a software trigger.",
    State.SINGLE_EXECUTION: "One trigger in work. Not shown: it would be two more messages for each part.",
    State.CONTINUOUS_EXECUTION: "Inspecting at the camera's pace.",
}

ALARMS = {
    "camera": "The camera is gone, refused a setting, or its process was killed. It is opened anew.",
    "frames": "Frames are being lost (severity `warning`); the text names causes and remedies.",
    "storage": "The ledger cannot be written; results wait in memory.",
    "images": "Images for review cannot be kept.",
    "disk": "The disk is 95 % full: inspection goes on, no image is kept, the oldest are deleted.",
    "model": "A part could not be judged.",
    "broker": "Another client uses our id, or the broker cannot be reached (severity `warning`).",
    "commands": "More commands than a line can mean, or one that is huge (severity `warning`).",
    "clock": "The wall clock of this machine was set; for a minute (severity `warning`).",
    "killed": "The service had ended without being stopped; for a minute after its start (severity `warning`).",
    "outbox": "The broker has been away for long: the outbox is nearly full, or full (severity `warning`).",
    "config": "The configuration could not be read again; the old one stays in force (severity `warning`).",
    "recipe": "A change of recipe failed and the old one stays in force, or the recipe that was in force is gone "
    "from the configuration (severity `warning`).",
    "store": "The model in force is gone from the disk, or damaged there: it goes on judging from memory, and a "
    "restart would find none (severity `warning`).",
    "memory": "The recipe in force could not be written down: after a restart another one would judge. Tried again "
    "until the disk takes it (severity `warning`).",
    "brightness": "Lamp or exposure changed since commissioning, as a whole or in one zone (severity `warning`).",
    "sharpness": "Pictures are less sharp than at commissioning, or show more fine detail (severity `warning`).",
    "position": "Parts lie elsewhere in the picture than at commissioning (severity `warning`).",
    "scores": "The model is less sure or sees more defects than at commissioning (severity `warning`).",
    "novel": "Many more parts than before go to review: perhaps a new kind of defect (severity `warning`); over 1,200 "
    "parts after the last sign, or with another model.",
    "product": "A picture does not look like the product of the recipe in force; the part was undecided.",
    "metrics": "No figures for Prometheus: the port is taken (severity `warning`).",
    "watch": "Pictures are not watched, or commissioning cannot be kept (severity `warning`); inspection goes on.",
    "provider": "A wished ONNX Runtime provider is not there; another one judges (severity `warning`).",
}

CAUSES = {
    Cause.CAMERA_GAP: "The camera's frame numbers jumped.",
    Cause.INCOMPLETE: "Packets were lost on the way.",
    Cause.UNDERRUN: "The producer had no buffer to write to.",
    Cause.OVERRUN: "Inspection was slower than the camera; the oldest waiting frame was given up.",
    Cause.BROKEN_FILE: "A file of a replay could not be read.",
    Cause.TRIGGER_MISSED: "A trigger was given and no frame came.",
    Cause.STOPPED: "Frames waited when the camera was stopped: for a change of recipe or for a new camera process.",
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

COMMANDS = {
    "trigger": (
        '{"id":"17","part_id":"A1183"}',
        (
            'Inspect one part now; the camera must wait for software triggers (`camera.trigger = "software"`). '
            "`part_id` is optional: without it the next announced id is used. `product`, optional too, is what the "
            "sender takes to be in force; if it is another one the answer is `undecided`, reason `wrong_product`. "
            "Acknowledged as soon as the trigger is written down; the answer comes on the result topics, within the "
            "deadline, with the command's id in `trigger_id`."
        ),
    ),
    "part": (
        '{"id":"18","part_ids":["A1184","A1185"]}',
        (
            "The ids of the next parts, in order, for frames of a free-running or electrically triggered camera and "
            "for triggers without an id; or one as `part_id`. They are added to those that wait. A frame that is known "
            "to be missing uses up the id of its part. An empty list takes back those that wait: each is "
            "answered `undecided`, reason `no_image`, at once, perhaps before an earlier part that is still judged. "
            "When the camera is "
            "lost, every id that waits is answered `undecided`, reason `camera_lost`: nobody can know which of them "
            "passed by. While there is no camera, from the start of the service on, ids for frames are answered so at "
            "once: their parts pass by without a picture, and no later part gets their ids."
        ),
    ),
    "recipe": (
        '{"id":"19","recipe":"flange"}',
        (
            "Change over to another recipe, by its name or by the `product` of its model. It is prepared beside the "
            "running line; up to the acknowledgement the old recipe judges. Send no trigger between request and "
            "acknowledgement. When it is refused the old one stays in force."
        ),
    ),
}

WORDS = {
    "(empty)": "Done; `ok` is 1.",
    "malformed": "Not JSON, a key is missing, unknown or has a wrong value.",
    "too_large": "More than 65,536 bytes.",
    "unknown_command": "There is no such command.",
    "retained": "Sent as a retained message: it would come again at each connection.",
    "replayed": "The same id came less than 60 s ago.",
    "flood": "More than 200 commands a second.",
    "wrong_mode": "A software trigger for a camera that is triggered otherwise.",
    "queue_full": "More than 1,000 announced part ids.",
    "not_ready": "A change of recipe before the first model is loaded.",
    "busy": "The change of recipe before is not over.",
    "unknown_recipe": "No recipe has this name or product, or several have this product.",
    "preparation_failed": "The model cannot be used; alarm and log say why.",
    "setting_refused": "The camera refuses a setting of the recipe; alarm and log say which.",
    "camera_lost": "There is no camera to try the settings on.",
    "stopping": "The service is being stopped.",
}


def mqtt_page() -> str:
    """Describe topics and payloads, with examples made by the code that publishes."""
    example = json.loads(EXAMPLE.payload())
    expect_keys("RESULT_FIELDS", RESULT_FIELDS, list(flat_keys(example)))
    plc = json.loads(EXAMPLE.plc_payload())
    expect_keys("PLC_FIELDS", PLC_FIELDS, list(plc))
    expect_keys("COMMANDS", COMMANDS, list(commands.COMMANDS))
    expect_keys("WORDS", sorted(WORDS), ["(empty)", *refusals()])
    expect_keys("undecided", sorted(UNDECIDED), sorted(Reason))
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
            "## Commands",
            "",
            (
                "`cmd/<name>`, JSON; each gets exactly one acknowledgement on `ack/<name>`: "
                '`{"id":"17","ok":1,"reason":""}`. `id` is chosen by the sender and comes back as it was given: text '
                'of 1 to 64 printable ASCII characters without space and without `,":[]{}\\`, or a whole number from '
                "0 to 2,147,483,647. What is refused (`ok` 0) changes nothing. The same commands are taken on this "
                "machine from a Unix socket in the storage folder; `lineward recipe` uses it."
            ),
            "",
            table(
                ("command", "example", "meaning"), [(code(f"cmd/{k}"), code(e), m) for k, (e, m) in COMMANDS.items()]
            ),
            table(
                ("reason", "meaning"),
                [(name if name.startswith("(") else code(name), text) for name, text in WORDS.items()],
            ),
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
                "the station after the deadline and the PLC had not been told before; for a replay, which has none, "
                "when it leaves more than 5 s (or two deadlines, if that is longer) after it was recorded. A pass "
                "that is past its deadline is never sent on `result/plc`, `result/verdict` and `result/part_id`; "
                "another verdict may come up to one deadline after it was handed over, because it only keeps the part"
                " back. A part that was not judged in time gets `undecided`, reason `timeout`, on all topics."
            ),
            "",
            "## Reasons",
            "",
            table(
                ("reason", "meaning"),
                [(name if name.startswith("(") else code(name), text) for name, text in REASONS.items()],
            ),
            "Of `undecided`:",
            "",
            table(("reason", "meaning"), [(code(name), text) for name, text in UNDECIDED.items()]),
            "## State",
            "",
            "`{state, reason, product, model, recipe, since}`; `model` is the version. The words are of OPC 40100-1.",
            "",
            table(("state", "meaning"), [(code(k), v) for k, v in STATES.items()]),
            "## Alarm",
            "",
            (
                "One object, alarm id to `{raised, severity, text, since}`. After a start it is `{}` until one is "
                "raised. An alarm that is over stays with `raised: false`. `text` says what is wrong and what to do."
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
                            "broker has not acknowledged), `commands` that came, `acknowledgements_lost` of them."
                        ),
                    ),
                    (
                        "`images`",
                        (
                            "`kept` and `dropped` images for review, `deleted` ones; `thumbnails` of passed parts and "
                            "`thumbnails_dropped`."
                        ),
                    ),
                    ("`triggers_waiting`", "Triggers that have no answer yet."),
                    (
                        "`watch`",
                        (
                            "Image health: `state` (`off`, `waiting`, `commissioning` with `parts` of `of`, "
                            "`watching`), `guard`, `wrong_products`, and by figure the `deviation` of its slow mean "
                            "from commissioning, the `limit`, and which are `out`. The scores of a model "
                            "that was just promoted are missing until they are learnt."
                        ),
                    ),
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
    code_ = "".join(path.read_text(encoding="utf-8") for path in sorted(daemon.rglob("*.py")))
    return sorted({*re.findall(r'alarms\.set\(\s*"(\w+)"', code_), *WATCHED})


def refusals() -> list[str]:
    """Find the words of all refusals."""
    daemon = Path(config_module.__file__).parent
    code_ = "".join(path.read_text(encoding="utf-8") for path in sorted(daemon.glob("*.py")))
    return sorted(set(re.findall(r'(?:Refused|done|_finish|_end)\((?:recipe\.name, reply, )?"(\w+)"', code_)))


def flat_keys(record: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the keys of nested objects, joined by dots."""
    for key, value in record.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from flat_keys(value, prefix + key + ".")


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
