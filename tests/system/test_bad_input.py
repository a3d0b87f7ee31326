"""Broken images, models and configurations: one clear line with the name of the culprit, the right exit code."""

from __future__ import annotations

import socket
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
from tests.broker import free_port, wait_until
from tests.system.line import call, toml

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from tests.broker import Mosquitto, Subscriber
    from tests.system.line import Line

pytestmark = pytest.mark.system

UNREADABLE = ["empty.png", "cut.jpg", "text.png"]
ODD = ["one.png", "wide.png"]


@pytest.fixture(scope="session")
def bad_images(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five odd files, and four good ones named so that they come before, between and after."""
    folder = tmp_path_factory.mktemp("bad")
    good = sorted(images.iterdir())[:4]
    for name, path in zip(("a.png", "d.png", "p.png", "z.png"), good, strict=True):
        (folder / name).write_bytes(path.read_bytes())
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("this is no picture\n")
    noise = np.random.default_rng(1).integers(0, 255, (200, 300), np.uint8)
    (folder / "cut.jpg").write_bytes(cv2.imencode(".jpg", noise)[1].tobytes()[:5000])
    assert cv2.imwrite(str(folder / "one.png"), np.full((1, 1), 128, np.uint8))
    assert cv2.imwrite(str(folder / "wide.png"), np.full((2, 30_000), 128, np.uint8))
    return folder


def assert_one_line(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """One line on stderr that names the culprit, the right exit code, and never a traceback."""
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0], lines[0]


@pytest.mark.parametrize(
    ("name", "json"), [("empty.png", ()), ("cut.jpg", ()), ("text.png", ("--json",))], ids=UNREADABLE
)
def test_predict_names_a_broken_image(bundle: Path, bad_images: Path, name: str, json: tuple[str, ...]) -> None:
    """A file that is no image is named in one line, and the exit code says that the input was bad."""
    assert_one_line(call(bundle.parent, "predict", "--model", bundle, *json, bad_images / name), 2, name)


def test_predict_answers_good_files_beside_broken_ones(bundle: Path, bad_images: Path) -> None:
    """A broken file does not hide the others: each file has its line, in the order given."""
    files = sorted(bad_images.iterdir())
    done = call(bundle.parent, "predict", "--model", bundle, *files)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert [line.split()[-1] for line in done.stdout.splitlines()] == [str(path) for path in files]
    assert len(done.stderr.splitlines()) == len(UNREADABLE), done.stderr


@pytest.mark.parametrize("name", ODD)
def test_predict_judges_images_of_odd_sizes(bundle: Path, bad_images: Path, name: str) -> None:
    """One pixel, or two lines of 30,000: an image nobody trained for is answered, and is never called good."""
    done = call(bundle.parent, "predict", "--model", bundle, bad_images / name)
    assert "Traceback" not in done.stderr
    if done.returncode == 2:
        assert_one_line(done, 2, name)
    else:
        assert done.returncode == 0
        assert not done.stdout.startswith("PASS"), done.stdout


def test_evaluate_names_a_broken_image(bundle: Path, dataset: Path, tmp_path: Path) -> None:
    """`evaluate` gives no figures over a set with a broken file; it names the file."""
    for kind in ("good", "defect/scratch"):
        (tmp_path / kind).mkdir(parents=True)
    for number, path in enumerate(sorted((dataset / "good").iterdir())[:3]):
        (tmp_path / "good" / f"{number}.png").write_bytes(path.read_bytes())
    (tmp_path / "defect" / "scratch" / "empty.png").write_bytes(b"")
    assert_one_line(call(bundle.parent, "evaluate", "--model", bundle, "--data", tmp_path), 2, "empty.png")


def test_evaluate_and_train_name_a_folder_that_is_not_there(bundle: Path, tmp_path: Path) -> None:
    """A folder that is missing is named, by both commands that take one."""
    nowhere = tmp_path / "nowhere"
    assert_one_line(call(tmp_path, "evaluate", "--model", bundle, "--data", nowhere), 2, "nowhere")
    assert_one_line(call(tmp_path, "train", "--data", nowhere, "--out", tmp_path / "x.lward"), 2, "nowhere")
    assert not (tmp_path / "x.lward").exists()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.999, 1.0])
def test_a_bundle_with_one_flipped_byte_is_refused(bundle: Path, images: Path, tmp_path: Path, share: float) -> None:
    """What was tested is what runs: a bundle that differs in one byte, wherever, is not used."""
    data = bytearray(bundle.read_bytes())
    data[min(round(share * len(data)), len(data) - 1)] ^= 0x10
    (tmp_path / "flipped.lward").write_bytes(data)
    image = next(images.iterdir())
    assert_one_line(call(tmp_path, "predict", "--model", "flipped.lward", image), 2, "flipped.lward")


def broken_bundles(folder: Path, bundle: Path) -> dict[str, Path]:
    flipped = bytearray(bundle.read_bytes())
    flipped[len(flipped) // 3] ^= 1
    (folder / "flipped.lward").write_bytes(flipped)
    (folder / "text.lward").write_text("hello\n")
    (folder / "cut.lward").write_bytes(bundle.read_bytes()[:100_000])
    (folder / "empty.lward").write_bytes(b"")
    return {name: folder / f"{name}.lward" for name in ("flipped", "text", "cut", "empty", "missing")}


@pytest.mark.parametrize("kind", ["flipped", "text", "cut", "empty", "missing"])
def test_a_bundle_that_cannot_be_used_is_named(
    line: Callable[..., Line],
    bundle: Path,
    images: Path,
    dataset: Path,
    tmp_path: Path,
    *,
    kind: str,
) -> None:
    """`predict`, `evaluate` and `run` end with 2 and one line about the bundle; `check` finds it and ends with 1."""
    model = broken_bundles(tmp_path, bundle)[kind]
    image = next(images.iterdir())
    assert_one_line(call(tmp_path, "predict", "--model", model, image), 2, model.name)
    if kind == "flipped":
        assert_one_line(call(tmp_path, "evaluate", "--model", model, "--data", dataset), 2, model.name)
    made = line(model=model, port=free_port(), camera={"driver": "folder", "folder": str(images)})
    assert made.start().wait(20) == 2, made.log
    assert "Traceback" not in made.log
    assert len(made.lines(model.name)) == 1, made.log
    done = call(made.folder, "check", "--config", made.config)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    found = [text for text in done.stdout.splitlines() if text.startswith("FAIL model")]
    assert len(found) == 1, done.stdout
    assert model.name in found[0]


GOOD = {"camera": {"driver": "folder"}, "inspection": {"model": "tiles.lward"}}
BAD_CONFIGS: dict[str, tuple[str, list[str]]] = {
    "duplicate_key": (toml(GOOD) + "[mqtt]\nport = 1\nport = 2\n", ["twice"]),
    "duplicate_table": (toml(GOOD) + "[mqtt]\n[mqtt]\n", ["twice"]),
    "unknown_key": (toml(GOOD) + "[mqtt]\nprot = 1\n", ["mqtt.prot", "port"]),
    "unknown_section": (toml(GOOD) + "[mqqt]\nport = 1\n", ["mqqt", "mqtt"]),
    "wrong_type": (toml(GOOD) + '[mqtt]\nport = "a"\n', ["mqtt.port", "'a'"]),
    "out_of_range": (toml(GOOD) + "[mqtt]\nport = 70000\n", ["mqtt.port", "70000"]),
    "unknown_driver": (toml({**GOOD, "camera": {"driver": "webcam"}}), ["camera.driver", "genicam"]),
    "no_driver": (toml({**GOOD, "camera": {"loop": True}}), ["driver"]),
    "no_model": (toml({"camera": {"driver": "folder"}}), ["inspection"]),
    "no_toml": ("<xml/>\n", ["TOML"]),
    "no_utf8": ("\udcff", ["UTF-8"]),
}


@pytest.mark.parametrize("kind", BAD_CONFIGS)
def test_a_bad_configuration_is_named_with_place_and_remedy(tmp_path: Path, kind: str) -> None:
    """`check` and `run` end with 2 and one line: file, key, value, remedy."""
    text, words = BAD_CONFIGS[kind]
    (tmp_path / "line.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
    for command in ("check", "run") if kind == "duplicate_key" else ("check",):
        assert_one_line(call(tmp_path, command, "--config", "line.toml"), 2, "line.toml", *words)


def test_a_missing_configuration_is_named(tmp_path: Path) -> None:
    """No file, or a folder in its place: said with its name by every command that takes a configuration."""
    (tmp_path / "folder.toml").mkdir()
    for command in ("check", "run", "bench"):
        assert_one_line(call(tmp_path, command, "--config", "nowhere.toml"), 2, "nowhere.toml")
    assert_one_line(call(tmp_path, "run", "--config", "folder.toml"), 2, "folder.toml")


@pytest.mark.parametrize(
    ("camera", "word"),
    [
        ({"driver": "folder", "settings": {"Gain": 1}}, "Gain"),
        ({"driver": "simulated", "product": "unicorn"}, "unicorn"),
        ({"driver": "simulated", "faults": ["explode@3"]}, "explode"),
        ({"driver": "genicam", "producers": ["nowhere.cti"], "serial": "0"}, "nowhere.cti"),
    ],
    ids=["setting", "product", "fault", "producer"],
)
def test_check_says_what_is_wrong_with_the_camera(
    line: Callable[..., Line], images: Path, camera: dict[str, Any], word: str
) -> None:
    """A camera that cannot work as configured is one finding, with the word that is wrong."""
    settings = camera.pop("settings", None) if "settings" in camera else None
    if camera["driver"] == "folder":
        camera = {**camera, "folder": str(images)}
    made = line(port=free_port(), camera=camera, **({"camera.settings": settings} if settings else {}))
    done = call(made.folder, "check", "--config", made.config)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    (found,) = [text for text in done.stdout.splitlines() if text.startswith("FAIL camera")]
    assert word in found


def test_check_of_a_sound_station_is_fine(line: Callable[..., Line], images: Path, broker: Mosquitto) -> None:
    """With everything in place all findings are fine and the exit code is 0."""
    made = line(port=broker.port, camera={"driver": "folder", "folder": str(images)})
    done = call(made.folder, "check", "--config", made.config)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [text.split()[0] for text in done.stdout.splitlines()] == ["ok"] * 5


def test_check_says_that_the_broker_is_not_there(line: Callable[..., Line], images: Path) -> None:
    """A broker that is down, or accepts and says nothing, is a finding with its address, found in bounded time."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(4)
        for port in (free_port(), listener.getsockname()[1]):
            made = line(port=port, camera={"driver": "folder", "folder": str(images)})
            began = time.monotonic()
            done = call(made.folder, "check", "--config", made.config, timeout_s=30)
            assert time.monotonic() - began < 15
            assert done.returncode == 1, done.stdout + done.stderr
            assert "Traceback" not in done.stdout + done.stderr
            (found,) = [text for text in done.stdout.splitlines() if text.startswith("FAIL")]
            assert f"127.0.0.1:{port}" in found


def test_broken_files_do_not_stop_a_replay(
    line: Callable[..., Line], bad_images: Path, broker: Mosquitto, hear: Subscriber
) -> None:
    """Each file that cannot be read is a named, counted warning; every other file has its answer; the run goes on."""
    camera = {"driver": "folder", "folder": str(bad_images), "rate_hz": 0.75}  # `stats` comes after ten seconds
    made = line(port=broker.port, camera=camera).start()
    assert made.wait(60) == 0, made.log
    assert "Traceback" not in made.log
    for name in UNREADABLE:
        assert len(made.lines(rf"WARNING .*skipped.*{name}")) == 1, made.log
    assert [row["part_id"] for row in made.rows()] == ["a.png", "d.png", "one.png", "p.png", "wide.png", "z.png"]
    wait_until(lambda: len(hear.on("result")) == 6, what="six results")
    odd = {heard.json["part_id"]: heard.json["verdict"] for heard in hear.on("result")}
    assert "pass" not in {odd[name] for name in ODD}, odd
    assert hear.on("stats")[-1].json["missing_frames"] == {"broken_file": len(UNREADABLE)}


def test_two_daemons_do_not_share_a_storage_folder(line: Callable[..., Line], images: Path, broker: Mosquitto) -> None:
    """A second daemon on the same folder is told so in one line, and the first goes on."""
    first = line(port=broker.port, camera={"driver": "folder", "folder": str(images), "rate_hz": 10}).start()
    first.wait_log("#1 ")
    assert_one_line(call(first.folder, "run", "--config", first.config, timeout_s=20), 2, "storage")
    assert first.end()[0] == 0


def test_nothing_is_reported_to_anybody(bundle: Path, images: Path, tmp_path: Path) -> None:
    """ONNX Runtime's own reporting is off without the user doing anything: no session file, no device id is made."""
    switches = ("ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "CI")
    done = call(tmp_path, "predict", "--model", bundle, next(images.iterdir()), without=switches)
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "tmp").iterdir())
    assert not (tmp_path / "cache" / "Microsoft").exists()
