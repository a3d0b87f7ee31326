"""The folder driver replays every file once, in order, and loses none silently."""

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from lineward.drivers import registry
from lineward.drivers.camera import CameraNotFoundError, CameraSettingError, Cause, Frame, NoFrameReason
from lineward.drivers.folder import FolderCamera, list_files


def put(folder, name, value=0, shape=(4, 6)):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full(shape, value, np.uint8))


def replay(camera):
    """Open, start and grab to the end; whole frames and the other answers apart."""
    camera.open()
    camera.start()
    frames, others = [], []
    while not others or others[-1].reason is not NoFrameReason.END:
        got = camera.grab(1.0)
        (frames if isinstance(got, Frame) else others).append(got)
    camera.close()
    return frames, others[:-1], others[-1]


def test_the_order_is_that_of_sorted_paths(tmp_path):
    """The order can be reckoned without us: sorted() over relative POSIX paths, subfolders included."""
    names = ["b.png", "a/z.bmp", "a/10.png", "a/9.png", "a.PNG", "Z.tif", "a b/ü.jpeg", "c/d/e.tiff"]
    for name in names:
        put(tmp_path, name)
    (tmp_path / "notes.txt").write_text("no image")
    frames, _, _ = replay(FolderCamera(tmp_path))
    assert [frame.source for frame in frames] == sorted(names) == list_files(tmp_path)
    assert [frame.frame_id for frame in frames] == list(range(len(names)))


def test_a_broken_file_is_named_counted_and_uses_up_its_number(tmp_path):
    """The ledger can name each part that was not inspected, and the numbers stay those of the files."""
    put(tmp_path, "0.png")
    (tmp_path / "1.png").write_bytes(b"")
    (tmp_path / "2.jpg").write_text("text")
    put(tmp_path, "3.png")
    camera = FolderCamera(tmp_path)
    frames, broken, end = replay(camera)
    assert [frame.frame_id for frame in frames] == [0, 3]
    assert frames[1].missing == {Cause.BROKEN_FILE: 2}
    assert [answer.reason for answer in broken] == [NoFrameReason.BROKEN_FILE] * 2
    assert "1.png: the file is empty" in broken[0].detail
    assert "2.jpg" in broken[1].detail
    assert camera.health().missing == {Cause.BROKEN_FILE: 2}
    assert camera.health().frames == 2
    assert "4 files" in end.detail


def test_a_file_that_vanishes_is_a_broken_file(tmp_path):
    """The list is made once; what happens to a file later is told, not hidden."""
    put(tmp_path, "0.png")
    put(tmp_path, "1.png")
    camera = FolderCamera(tmp_path)
    camera.open()
    camera.start()
    (tmp_path / "0.png").unlink()
    assert "No such file" in camera.grab(1).detail
    assert camera.grab(1).frame_id == 1


def test_a_loop_goes_on_counting(tmp_path):
    """A frame number is never used twice."""
    put(tmp_path, "0.png")
    put(tmp_path, "1.png")
    camera = FolderCamera(tmp_path, loop=True)
    camera.open()
    camera.start()
    assert [(frame.frame_id, frame.source) for frame in (camera.grab(1) for _ in range(5))] == [
        (0, "0.png"),
        (1, "1.png"),
        (2, "0.png"),
        (3, "1.png"),
        (4, "0.png"),
    ]


def test_a_loop_of_broken_files_ends(tmp_path):
    """A folder without a single readable file must not keep the daemon spinning."""
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(b"")
    frames, broken, end = replay(FolderCamera(tmp_path, loop=True))
    assert not frames
    assert len(broken) == 3
    assert "none of the 3 files can be read" in end.detail


def test_the_end_stays_the_end(tmp_path):
    """Asked again, a finished replay gives the same answer at once."""
    put(tmp_path, "0.png")
    camera = FolderCamera(tmp_path)
    camera.open()
    camera.start()
    camera.grab(1)
    assert [camera.grab(1).reason for _ in range(3)] == [NoFrameReason.END] * 3


def test_a_replay_goes_on_where_it_was_cut_off(tmp_path):
    """A camera process that died is replaced by one that repeats no file and leaves none out."""
    for number in range(4):
        put(tmp_path, f"{number}.png")
    frames, _, _ = replay(FolderCamera(tmp_path, start_index=2))
    assert [(frame.frame_id, frame.source) for frame in frames] == [(2, "2.png"), (3, "3.png")]


def test_stop_and_start_go_on_with_the_next_file(tmp_path):
    """A pause loses nothing and repeats nothing."""
    put(tmp_path, "0.png")
    put(tmp_path, "1.png")
    camera = FolderCamera(tmp_path)
    camera.open()
    camera.start()
    assert camera.grab(1).frame_id == 0
    camera.stop()
    camera.start()
    assert camera.grab(1).frame_id == 1


def test_a_pattern_chooses_files(tmp_path):
    """A part of a data set can be replayed."""
    for name in ("good/1.png", "good/2.png", "defect/1.png"):
        put(tmp_path, name)
    frames, _, _ = replay(FolderCamera(tmp_path, pattern="good/*"))
    assert [frame.source for frame in frames] == ["good/1.png", "good/2.png"]


def test_a_rate_spaces_the_files(tmp_path):
    """With a rate, a file is not there before its time: the answer is TIMEOUT until then."""
    for number in range(3):
        put(tmp_path, f"{number}.png")
    camera = FolderCamera(tmp_path, rate_hz=10)
    camera.open()
    camera.start()
    received = [camera.grab(1).received_ns]
    assert camera.grab(0.001).reason is NoFrameReason.TIMEOUT
    received += [camera.grab(1).received_ns for _ in range(2)]
    assert min(b - a for a, b in itertools.pairwise(received)) > 90e6


def test_depth_is_declared_not_guessed(tmp_path):
    """12-bit data in 16-bit files come out as the line would deliver them."""
    assert cv2.imwrite(str(tmp_path / "a.png"), np.full((2, 2), 2048, np.uint16))
    frames, _, _ = replay(FolderCamera(tmp_path, significant_bits=12))
    assert (frames[0].image == 128).all()
    frames, _, _ = replay(FolderCamera(tmp_path))
    assert (frames[0].image == 8).all()


def test_each_trigger_takes_one_file(tmp_path):
    """A broken file answers its trigger too, by name."""
    put(tmp_path, "0.png")
    (tmp_path / "1.png").write_bytes(b"")
    put(tmp_path, "2.png")
    camera = FolderCamera(tmp_path, trigger="software")
    camera.open()
    camera.start()
    camera.trigger()
    assert camera.grab(0.5).source == "0.png"
    camera.trigger()
    assert camera.grab(0.5).reason is NoFrameReason.BROKEN_FILE
    number = camera.trigger()
    assert (frame := camera.grab(0.5)).trigger_id == number
    assert frame.source == "2.png"


def test_a_file_name_that_is_no_text_can_be_logged(tmp_path):
    """A database and JSON take UTF-8 only; one odd file name must not stop the line."""
    with Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")).open("wb") as file:
        file.write(cv2.imencode(".png", np.zeros((2, 2), np.uint8))[1].tobytes())
    frames, _, _ = replay(FolderCamera(tmp_path))
    assert frames[0].source.encode() == b"\\udcff.png"


@pytest.mark.parametrize("make", [lambda path: path / "none", lambda path: path])
def test_nothing_to_replay_is_not_found(tmp_path, make):
    """A wrong or empty folder is told with what to do."""
    with pytest.raises(CameraNotFoundError, match=r"\[camera\] folder"):
        FolderCamera(make(tmp_path)).open()


@pytest.mark.parametrize(
    "options",
    [
        {"trigger": "hardware"},
        {"trigger": "often"},
        {"rate_hz": -1},
        {"rate_hz": float("nan")},
        {"significant_bits": 7},
        {"start_index": -1},
    ],
)
def test_impossible_options_are_refused(tmp_path, options):
    """A wrong configuration is refused when the camera is made, not during the shift."""
    with pytest.raises(ValueError):
        FolderCamera(tmp_path, **options)


def test_features_are_refused(tmp_path):
    """Camera settings left over from a real camera are not ignored."""
    put(tmp_path, "0.png")
    camera = FolderCamera(tmp_path)
    camera.open()
    with pytest.raises(CameraSettingError, match="ExposureTime"):
        camera.configure({"ExposureTime": 100.0})


def test_a_folder_needs_no_camera_library(tmp_path):
    """Harvesters disturbs the process that imports it: only its own driver may."""
    code = "import sys; from lineward.drivers import registry; registry.create('folder', {'folder': sys.argv[1]});"
    code += "assert 'harvesters' not in sys.modules and 'genicam' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_unknown_drivers_and_options_are_refused_with_the_known_ones(tmp_path):
    """One clear line instead of a traceback."""
    with pytest.raises(ValueError, match="'usb' is not known; use one of simulated, folder, genicam"):
        registry.create("usb", {})
    with pytest.raises(ValueError, match="'speed'; its options are folder, loop"):
        registry.create("folder", {"folder": tmp_path, "speed": 3})


def test_discover_describes_the_folder(tmp_path):
    """`lineward cameras` works for every driver."""
    put(tmp_path, "0.png")
    (info,) = registry.discover("folder", {"folder": tmp_path})
    assert info.serial == str(tmp_path.resolve())


def test_many_files_are_replayed_without_a_pause(tmp_path):
    """With rate 0 the caller sets the pace, and nothing is dropped however slow it is."""
    for number in range(30):
        put(tmp_path, f"{number:02}.png", number)
    camera = FolderCamera(tmp_path)
    camera.open()
    camera.start()
    values = []
    for number in range(30):
        values.append(int(camera.grab(1).image[0, 0]))
        time.sleep(0.002 * (number % 3))
    assert values == list(range(30))


def test_what_is_no_file_is_skipped_by_name(tmp_path):
    """A pipe with an image's suffix would be read for ever; it is told like any other broken file."""
    os.mkfifo(tmp_path / "0.png")
    put(tmp_path, "1.png")
    camera = FolderCamera(tmp_path)
    camera.open()
    camera.start()
    got = camera.grab(1)
    assert got.reason is NoFrameReason.BROKEN_FILE
    assert "0.png: is no file with an image" in got.detail
    assert camera.grab(1).frame_id == 1
