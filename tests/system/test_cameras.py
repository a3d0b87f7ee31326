"""Cameras at work and in trouble: the simulator of the GenICam package, and a simulated one that fails by script."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from tests.broker import wait_until
from tests.system.line import LONG, call, figure, heard_in_order

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.broker import Mosquitto, Subscriber
    from tests.system.line import Line

pytestmark = pytest.mark.system

VIKY = {"driver": "genicam", "producers": ["viky"], "serial": "0"}
MOST_MEMORY_MB = 400


def test_cameras_lists_the_simulator_of_the_genicam_package(tmp_path: Path) -> None:
    """`cameras` shows serial numbers as the configuration wants them."""
    done = call(tmp_path, "cameras", "--producer", "viky", "--json")
    assert done.returncode == 0, done.stderr
    assert {camera["serial"] for camera in json.loads(done.stdout)} >= {"0", "1"}
    assert "Viky" in call(tmp_path, "cameras", "--producer", "viky").stdout


def test_every_frame_of_a_genicam_camera_has_its_answer(
    line: Callable[..., Line], broker: Mosquitto, hear: Subscriber
) -> None:
    """Through harvesters, 20 frames a second: none is missing; one that a busy machine gives up is answered as such."""
    seconds = 60 if LONG else 10
    made = line(port=broker.port, camera=VIKY, review={"keep_per_hour": 5}).start()
    made.wait_log("#1 ", 30)
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began > seconds, seconds + 5, "time to pass")
    memory_mb = made.memory_mb()
    code, stop_s = made.end()
    assert code == 0, made.log
    rows = made.rows()
    span_s = (rows[-1]["trigger_ns"] - rows[0]["trigger_ns"]) / 1e9
    fps = (len(rows) - 1) / span_s
    figure(
        f"viky: {len(rows)} frames in {span_s:.1f} s, {fps:.2f} fps; RSS {memory_mb:.0f} MB; stopped in {stop_s:.2f} s"
    )
    frames = [row["frame_id"] for row in rows]
    assert frames == list(range(frames[0], frames[0] + len(frames))), "no frame is missing"
    heard_in_order(hear, rows)
    undecided = Counter(row["reason"] for row in rows if row["verdict"] == "undecided")
    assert undecided.keys() <= {"queue_full", "timeout", "error"}, "a busy machine, or the stop; each has its answer"
    verdicts = [row["verdict"] for row in rows]
    first_error = next((at for at, row in enumerate(rows) if row["reason"] == "error"), len(rows))
    assert set(verdicts[first_error:]) <= {"undecided"}, "only those that waited at the stop, behind all others"
    assert not undecided["queue_full"] or made.lines("frames were not inspected"), "never in silence"


@pytest.mark.parametrize(
    "camera",
    [
        {"driver": "simulated", "rate_hz": 20},
        {"driver": "simulated", "width": 2448, "height": 2048, "rate_hz": 5, "prerender": 1},
        VIKY,
    ],
    ids=["simulated", "simulated_5mp", "viky"],
)
def test_start_to_ready_and_memory(line: Callable[..., Line], broker: Mosquitto, camera: dict[str, Any]) -> None:
    """Both processes together stay below the memory they are allowed; the time to readiness is told, not judged."""
    made = line(port=broker.port, camera=camera).start()
    made.wait_log(r"\) streams", 30)
    ready_s = time.monotonic() - made.started_s
    made.wait_log("#10 ", 30)
    memory_mb = made.memory_mb()
    figure(
        f"{camera['driver']}: streaming {ready_s:.2f} s after exec ({made.lines('ready after')[0]}), {memory_mb:.0f} MB"
    )
    assert memory_mb < MOST_MEMORY_MB
    assert made.end()[0] == 0


def test_the_line_goes_on_by_itself_after_every_scripted_fault(
    line: Callable[..., Line], broker: Mosquitto, hear: Subscriber
) -> None:
    """Lost frames, silence, a pulled plug, a crash and a hang: one row per frame delivered, every other one counted."""
    last = 110
    faults = ["drop@10:3", "incomplete@16", "stall@20:1s", "disconnect@40:1s", "crash@60", "hang@80"]
    camera = {
        "driver": "simulated",
        "width": 320,
        "height": 256,
        "rate_hz": 20,
        "faults": [*faults, f"stall@{last}:600s"],
    }
    made = line(port=broker.port, camera=camera).start()
    made.wait_log(rf"frame {last - 1} ", 60)

    def settled() -> bool:
        stats = [heard.json for heard in hear.on("stats") if heard.json["answers"] == len(made.rows())]
        return (
            bool(stats) and len(hear.on("result")) == stats[-1]["answers"] and made.rows()[-1]["frame_id"] == last - 1
        )

    wait_until(settled, 25, "stats after the last frame")
    stats = next(heard.json for heard in reversed(hear.on("stats")))
    assert made.end()[0] == 0, made.log
    rows = made.rows()
    frames = [row["frame_id"] for row in rows if row["frame_id"] is not None]  # a crash leaves the last ones unnamed
    assert frames == sorted(set(frames)), "each frame has one row, in its turn"
    assert hear.seqs() == list(range(1, len(rows) + 1))
    missing = stats["missing_frames"]
    figure(f"faults: {len(rows)} answers, missing {missing}, openings {stats['camera']['openings']}")
    assert missing["camera_gap"] >= 3
    assert missing["incomplete"] == 1
    assert len(rows) == last, "each frame has its answer, those that were lost as well"
    named = Counter(row["reason"] for row in rows if row["verdict"] == "undecided")
    assert named["incomplete"] == missing["incomplete"]
    # On a busy machine frames are given up, some of them after the time of their part has ended.
    assert named["queue_full"] <= missing.get("overrun", 0) <= named["queue_full"] + named["timeout"]
    others = sum(missing.values()) - missing["incomplete"] - missing.get("overrun", 0)
    assert named["no_image"] + named["camera_lost"] == others, "a gap is named frame by frame"
    assert stats["camera"]["openings"] == 4
    told = [(heard.json["camera"]["raised"], heard.at_s) for heard in hear.on("alarm") if "camera" in heard.json]
    changed = [entry for n, entry in enumerate(told) if n == 0 or told[n - 1][0] != entry[0]]
    assert [raised for raised, _ in changed] == [True, False] * 3, "one alarm per outage"
    for name, (_, raised_s), (_, cleared_s) in zip(
        ("disconnect 1 s", "crash", "hang"), changed[::2], changed[1::2], strict=True
    ):
        figure(f"after {name} the camera streams again {cleared_s - raised_s:.2f} s later")
    warnings = [text for text in made.lines("WARNING") if "frames were not inspected" not in text]
    assert len(warnings) == 3, f"one warning per outage: {warnings}"
    states = [heard.json["state"] for heard in hear.on("state")]
    assert states.count("error") == 3
    assert "Traceback" not in made.log


def test_a_part_that_is_judged_too_late_is_undecided(
    line: Callable[..., Line], broker: Mosquitto, hear: Subscriber
) -> None:
    """When the verdict is not there at the deadline the answer is, in time: `undecided`, `timeout`, never a pass."""
    camera = {"driver": "simulated", "width": 320, "height": 256, "rate_hz": 5, "limit": 10}
    made = line(port=broker.port, camera=camera, inspection={"deadline_ms": 5}).start()
    assert made.wait(30) == 0, made.log
    wait_until(lambda: len(hear.on("result")) == 10, what="ten results")
    for heard in hear.on("result"):
        assert (heard.json["verdict"], heard.json["reason"]) == ("undecided", "timeout")
    assert {heard.json["v"] for heard in hear.on("result/plc")} <= {0}
