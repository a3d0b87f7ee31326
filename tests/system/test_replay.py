"""Files in, one answer per file out, over a real broker; and what a camera, a broker or a daemon that dies costs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.broker import wait_until
from tests.system.line import LONG, Line, call, figure, is_running

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.broker import Heard, Mosquitto, Subscriber

pytestmark = [pytest.mark.system, pytest.mark.timeout(300 if LONG else 120)]

LATE_AFTER_S = 5.0
"""In a replay nobody waits: an answer counts as late when it is delivered this long after it was recorded."""

PLC_KEYS = ["seq", "v", "c", "ms", "tod", "id"]
RESULT_KEYS = {
    *("schema_version", "seq", "verdict", "reason", "confidence", "defect_probability", "anomaly", "defect_type"),
    *("product", "model", "part_id", "trigger_id", "camera", "times", "latency_ms", "simulated", "late", "image"),
    "heatmap",
}


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in {".png", ".jpg"})


def predicted(model: Path, folder: Path) -> list[str]:
    files = names(folder)
    done = call(model.parent, "predict", "--model", model, "--json", *(folder / name for name in files))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [entry["file"] for entry in found] == [str(folder / name) for name in files]
    return [entry["verdict"] for entry in found]


def first_of_each(heard: list[Heard]) -> list[dict[str, Any]]:
    """Do what a subscriber has to do: take each number once."""
    known: dict[int, dict[str, Any]] = {}
    for message in heard:
        known.setdefault(message.json["seq"], message.json)
    return list(known.values())


def assert_one_row_per_file(line: Line, files: list[str]) -> None:
    rows = line.rows()
    assert [row["part_id"] for row in rows] == files, "nothing lost, nothing twice, in order"
    assert [row["seq"] for row in rows] == list(range(1, len(files) + 1))


def assert_everything_arrived(line: Line, hear: Subscriber, *, earlier: int = 0, outage: bool = False) -> None:
    """Every row of the ledger arrives, in order once deduplicated; what comes late says so; a PLC sees nothing old.

    Rows up to ``earlier`` are of processes that were killed: the next one cannot know their age and calls them late. So
    is what was not delivered when the connection broke (``outage``), however soon it is back.
    """
    expected = [row["seq"] for row in line.rows()]
    wait_until(lambda: set(hear.seqs()) >= set(expected), 15, f"all of {len(expected)} results heard")
    results = first_of_each(hear.on("result"))
    assert [result["seq"] for result in results] == expected
    by_seq = {row["seq"]: json.loads(row["payload"]) for row in line.rows()}
    unix_minus_monotonic = time.time() - time.monotonic()
    recorded = {row["seq"]: row["recorded_ns"] / 1e9 for row in line.rows()}
    for heard in hear.on("result"):
        result = heard.json
        age_s = heard.at_s + unix_minus_monotonic - recorded[result["seq"]]
        if age_s > LATE_AFTER_S + 1:
            assert result["late"], f"{result['seq']} came after {age_s:.1f} s and does not say so"
        if age_s < LATE_AFTER_S - 1 and result["seq"] > earlier and not outage:
            assert not result["late"], f"{result['seq']} came after {age_s:.1f} s and calls itself late"
        assert result["verdict"] == by_seq[result["seq"]]["verdict"]
    for heard in hear.on("result/plc"):
        age_s = heard.at_s + unix_minus_monotonic - recorded[heard.json["seq"]]
        assert age_s < LATE_AFTER_S, f"a PLC was given answer {heard.json['seq']} after {age_s:.1f} s"
    seqs = hear.seqs("result/plc")
    assert seqs == sorted(set(seqs)), "a PLC sees each answer once at most, and in order"


def test_each_file_is_answered_once_in_order_with_the_verdict_of_predict(
    line: Callable[..., Line], images: Path, bundle: Path, broker: Mosquitto, hear: Subscriber
) -> None:
    """A replay gives one result per file, in order, without a gap, and the verdict that `predict` gives."""
    replay = line(port=broker.port, camera={"driver": "folder", "folder": str(images)}).start()
    assert replay.wait(60) == 0, replay.log
    files = names(images)
    wait_until(lambda: any(heard.payload == b"stopped" for heard in hear.on("availability")), what="stopped")
    results = [heard.json for heard in hear.on("result")]
    assert [result["seq"] for result in results] == list(range(1, len(files) + 1))
    assert [result["part_id"] for result in results] == files
    assert [result["verdict"] for result in results] == predicted(bundle, images)
    assert len({result["verdict"] for result in results}) > 1, "a test with one verdict proves nothing"
    assert not any(result["late"] for result in results)
    assert_one_row_per_file(replay, files)
    assert all(row["acked"] for row in replay.rows())
    assert "Traceback" not in replay.log


def test_the_payloads_keep_their_contract(
    line: Callable[..., Line], images: Path, broker: Mosquitto, hear: Subscriber
) -> None:
    """Every payload has the documented keys; that for a PLC is compact ASCII with integers that fit a DINT."""
    replay = line(port=broker.port, camera={"driver": "folder", "folder": str(images)}).start()
    assert replay.wait(60) == 0, replay.log
    wait_until(lambda: any(heard.payload == b"stopped" for heard in hear.on("availability")), what="stopped")
    results, compact = hear.on("result"), hear.on("result/plc")
    assert len(results) == len(compact) == len(names(images))
    code = {"undecided": 0, "pass": 1, "fail": 2, "review": 3}
    for full, plc in zip(results, compact, strict=True):
        assert set(full.json) == RESULT_KEYS
        assert list(plc.json) == PLC_KEYS
        assert len(plc.payload) < 256
        assert plc.payload.isascii()
        assert b" " not in plc.payload
        assert plc.json["v"] == code[full.json["verdict"]]
        assert plc.json["c"] == round(full.json["confidence"] * 10_000)
        assert plc.json["id"] == full.json["part_id"]
        assert all(-(2**31) <= plc.json[key] < 2**31 for key in PLC_KEYS if key != "id")
        assert plc.expiry_s is not None
        assert not plc.retain
    assert [heard.payload.decode() for heard in hear.on("result/verdict")] == [h.json["verdict"] for h in results]
    assert [heard.payload.decode() for heard in hear.on("result/part_id")] == [h.json["part_id"] for h in results]


def test_the_states_of_a_replay(line: Callable[..., Line], images: Path, broker: Mosquitto, hear: Subscriber) -> None:
    """State and availability tell the whole life of a station, in the words of the standard."""
    replay = line(port=broker.port, camera={"driver": "folder", "folder": str(images)}).start()
    assert replay.wait(60) == 0, replay.log
    wait_until(lambda: any(heard.payload == b"stopped" for heard in hear.on("availability")), what="stopped")
    states = list(dict.fromkeys(heard.json["state"] for heard in hear.on("state")))
    if "initialized" in states:  # a retained topic tells the latest: a state of milliseconds may be skipped
        assert states.pop(1) == "initialized"
    assert states == ["preoperational", "continuous_execution", "halted"]
    assert [heard.payload.decode() for heard in hear.on("availability")] == ["online", "stopped"]
    topics = [heard.topic for heard in hear.heard]
    assert topics[-1] == "availability", "the last word is that it stopped"
    running = next(heard.json for heard in hear.on("state") if heard.json["state"] == "continuous_execution")
    assert set(running) == {"state", "reason", "product", "model", "recipe", "since"}
    assert running["product"] == "tiles"
    assert hear.on("stats")[0].json["mqtt"]["connected"] is True
    beats = [int(heard.payload) for heard in hear.on("heartbeat")]
    assert beats == list(range(1, len(beats) + 1))


def test_real_images_through_the_whole_chain(
    line: Callable[..., Line], real_images: Path, tmp_path: Path, broker: Mosquitto, hear: Subscriber
) -> None:
    """Real tiles, trained, replayed and predicted by the three commands, get the same verdicts."""
    chosen = real_images
    if not LONG:
        chosen = tmp_path / "tiles"
        for kind, count in (("good", 70), ("defect", 35)):
            files = sorted((real_images / kind).rglob("*.jpg"))
            for path in files[:: max(1, len(files) // count)][:count]:
                target = chosen / path.relative_to(real_images)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
    model = tmp_path / "mtd.lward"
    began = time.monotonic()
    done = call(tmp_path, "train", "--data", chosen, "--out", model, "--json", timeout_s=250)
    assert done.returncode == 0, done.stderr
    figure(f"real images: trained on {len(names(chosen))} in {time.monotonic() - began:.1f} s")
    replay = line(model=model, port=broker.port, camera={"driver": "folder", "folder": str(chosen)}).start()
    began = time.monotonic()
    assert replay.wait(200) == 0, replay.log
    files = names(chosen)
    figure(f"real images: {len(files)} replayed in {time.monotonic() - began:.1f} s")
    wait_until(lambda: len(hear.on("result")) >= len(files), what="all results")
    results = [heard.json for heard in hear.on("result")]
    assert [result["seq"] for result in results] == list(range(1, len(files) + 1))
    assert [result["part_id"] for result in results] == files
    assert [result["verdict"] for result in results] == predicted(model, chosen)
    assert_one_row_per_file(replay, files)


def kill_the_camera(replay: Line, at_answers: list[int]) -> None:
    """Kill the camera process, each time after so many answers."""
    victim: int | None = None
    for count in at_answers:
        replay.wait_log(rf"#{count} ", 60)
        victim = replay.wait_camera_pid(other_than=victim)
        os.kill(victim, signal.SIGKILL)


def test_a_killed_camera_process_loses_and_repeats_nothing(
    line: Callable[..., Line], images: Path, broker: Mosquitto, hear: Subscriber
) -> None:
    """The camera process may die at any moment: each file still has exactly one row and one answer."""
    camera = {"driver": "folder", "folder": str(images), "rate_hz": 20}
    replay = line(port=broker.port, camera=camera).start()
    kill_the_camera(replay, [10, 30, 31, 60])
    assert replay.wait(60) == 0, replay.log
    assert_one_row_per_file(replay, names(images))
    assert_everything_arrived(replay, hear)
    outages = len(replay.lines("link: back after"))
    assert 3 <= outages <= 4, "the third may come before the camera is back from the second"
    assert len(replay.lines("WARNING.*SIGKILL")) == outages, "one warning per outage"


def test_a_camera_process_killed_at_full_speed_loses_and_repeats_nothing(
    line: Callable[..., Line], images: Path, broker: Mosquitto, hear: Subscriber
) -> None:
    """The same while files wait in the ring: those not yet judged are read again, those judged are not."""
    replay = line(port=broker.port, camera={"driver": "folder", "folder": str(images)}).start()
    kill_the_camera(replay, [5, 20, 40])
    assert replay.wait(60) == 0, replay.log
    assert_one_row_per_file(replay, names(images))
    assert_everything_arrived(replay, hear)


@pytest.mark.parametrize("camera_deaths", [[], [8, 12]], ids=["broker", "broker_and_camera"])
def test_a_broker_that_goes_away_loses_and_repeats_nothing(
    line: Callable[..., Line], images: Path, broker: Mosquitto, hear: Subscriber, camera_deaths: list[int]
) -> None:
    """Results survive an outage of the broker: all arrive, in order, and those that come late say so."""
    away_s, rate_hz = (60.0, 1.0) if LONG else (8.0, 8.0)
    camera = {"driver": "folder", "folder": str(images), "rate_hz": rate_hz}
    replay = line(port=broker.port, camera=camera, arguments=["--drain-s", 15]).start()
    replay.wait_log("#5 ", 60)
    broker.stop(gently=True)
    stopped_s, stopped_ns = time.monotonic(), time.time_ns()
    kill_the_camera(replay, camera_deaths)
    wait_until(lambda: time.monotonic() - stopped_s > away_s, away_s + 5, "the outage's end")
    during = len(replay.lines(r" #\d+ "))
    back_ns = time.time_ns()
    broker.start()
    assert replay.wait(120) == 0, replay.log
    assert during > 20, "the line went on without a broker"
    assert_one_row_per_file(replay, names(images))
    assert_everything_arrived(replay, hear, outage=True)
    long_ago = range(stopped_ns + 10**9, back_ns - round(LATE_AFTER_S * 1e9))
    waited = {row["seq"] for row in replay.rows() if row["recorded_ns"] in long_ago}
    assert len(waited) >= 5
    assert waited <= {heard.json["seq"] for heard in hear.on("result") if heard.json["late"]}
    assert not waited & set(hear.seqs("result/plc")), "a PLC never hears of parts that are gone"
    assert all(row["acked"] for row in replay.rows())
    assert len(replay.lines("WARNING mqtt")) == 1, "one warning per outage"
    assert len(replay.lines("broker 127.0.0.1:.*back after")) == 1
    figure(f"broker away for {away_s:g} s: {replay.lines('back after')}")


def test_results_of_a_broker_that_never_came_stay_in_the_outbox(
    line: Callable[..., Line], images: Path, broker: Mosquitto, hear: Subscriber
) -> None:
    """A replay ends without a broker too, after its time to drain; the next start delivers, flagged late, in order."""
    broker.stop(gently=True)
    camera = {"driver": "folder", "folder": str(images)}
    replay = line(port=broker.port, camera=camera, arguments=["--drain-s", 1]).start()
    assert replay.wait(60) == 0, replay.log
    count = len(names(images))
    assert f"{count} stay in the outbox" in replay.log
    assert not any(row["acked"] for row in replay.rows())
    oldest_s = time.time() - replay.rows()[-1]["recorded_ns"] / 1e9
    wait_until(lambda: time.time() - replay.rows()[-1]["recorded_ns"] / 1e9 > LATE_AFTER_S, 10 + oldest_s, "late")
    broker.start()
    replay.start()
    assert replay.wait(60) == 0, replay.log
    wait_until(lambda: len(set(hear.seqs())) == 2 * count, what="both runs heard")
    results = first_of_each(hear.on("result"))
    assert [result["seq"] for result in results] == list(range(1, 2 * count + 1))
    assert [result["late"] for result in results] == [True] * count + [False] * count
    assert min(hear.seqs("result/plc")) == count + 1


def test_a_killed_daemon_loses_and_repeats_nothing(
    line: Callable[..., Line], images: Path, broker: Mosquitto, hear: Subscriber
) -> None:
    """SIGKILL at any moment: what was recorded is still there and still arrives, and numbers go on without a gap."""
    camera = {"driver": "folder", "folder": str(images), "rate_hz": 30}
    replay = line(port=broker.port, camera=camera).start()
    for life, count in enumerate((15, 40)):
        replay.wait_log(rf"#{count + (0 if life == 0 else len(replay.rows()))} ", 60)
        camera_pid = replay.wait_camera_pid()
        os.kill(replay.pid, signal.SIGKILL)
        assert replay.wait(10) == -signal.SIGKILL
        wait_until(lambda pid=camera_pid: not is_running(pid), 5, "the camera process gone with its daemon")
        replay.start()
    assert replay.wait(60) == 0, replay.log
    rows, files = replay.rows(), names(images)
    assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
    assert [row["part_id"] for row in rows[-len(files) :]] == files
    assert len(rows) >= len(files) + 15 + 40
    starts = [n for n, row in enumerate(rows) if row["part_id"] == files[0]]
    assert len(starts) == 3, "three lives, and each begins with the first file"
    for begin, end in zip(starts, [*starts[1:], len(rows)], strict=True):
        assert [row["part_id"] for row in rows[begin:end]] == files[: end - begin]
    assert_everything_arrived(replay, hear, earlier=starts[-1])
    assert [heard.payload for heard in hear.on("availability")].count(b"offline") == 2, "the broker's last will"
