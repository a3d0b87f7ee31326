"""The genicam driver on the simulated producer: settings, triggers, numbers, formats and each loss of a frame."""

import time

import numpy as np
import pytest

from gentl_sim.taking import grab_for, next_answer, next_frame, number_in
from lineward.daemon import cli
from lineward.drivers import late, pixels
from lineward.drivers.camera import (
    CameraBusyError,
    CameraError,
    CameraLostError,
    CameraNotFoundError,
    CameraSettingError,
    Cause,
    Frame,
    NoFrame,
    NoFrameReason,
)
from lineward.drivers.genicam import GenicamCamera, discover

pytest_plugins = ["gentl_sim.fixtures"]

FAST = {"TestPattern": "FrameId", "ExposureTime": 100.0, "AcquisitionFrameRate": 200.0}
LINE1 = FAST | {"TriggerSource": "Line1"}


@pytest.fixture
def make(sim):
    """Make a camera, open it, set features and start it."""
    made = []

    def start(serial="SIM-A", *, settings=FAST, **options):
        camera = GenicamCamera(producers=[str(sim.file)], serial=serial, **options)
        made.append(camera)
        camera.open()
        camera.configure(settings)
        camera.start()
        return camera

    yield start
    for device in sim.control.devices.values():
        device.heal()
    for camera in made:
        camera.close()


def collect(camera, until):
    """Grab until `until` is true of a frame; each pixel must belong to its frame, each missing number be explained."""
    before, answers = next_frame(camera), []
    for _ in range(200):
        got = next_answer(camera)
        answers.append(got)
        if isinstance(got, Frame):
            assert number_in(got) == got.frame_id
            assert sum(got.missing.values()) == got.frame_id - before.frame_id - 1
            before = got
            if until(got):
                return answers
    raise AssertionError("it did not come within 200 answers")


# -- finding, opening, settings


def test_a_camera_is_found_by_serial_or_user_id(sim):
    """What is printed on the camera or written into it chooses it; access says who has it."""
    camera = GenicamCamera(producers=[str(sim.file)], user_id="right")
    assert camera.open().serial == "SIM-B"
    sim["SIM-A"].occupy()
    sim["SIM-C"].lose()
    seen = {info.serial: (info.access, info.transport) for info in discover([str(sim.file)])}
    assert seen == {"SIM-A": ("in use", "Custom"), "SIM-B": ("open here", "Custom"), "SIM-C": ("unreachable", "GEV")}
    camera.close()


def test_a_camera_that_two_producers_see_is_told_as_such(sim):
    """A serial number does not choose between two ways to one camera; the producers' files do."""
    files = [sim.file, sim.copy()]
    with pytest.raises(
        CameraNotFoundError, match=r"serial 'SIM-A' is seen by several producers: .*; name one"
    ) as caught:
        GenicamCamera(producers=[str(file) for file in files], serial="SIM-A").open()
    assert all(str(file) in str(caught.value) for file in files)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"Width": 322}, r"Width = 322 is refused.*integers 4\.\.4096 in steps of 4"),
        ({"ExposureTime": 5.0}, r"possible: 10\.\.1e\+06 us"),
        ({"PixelFormat": "Mono99"}, "possible: Mono1p, "),
        ({"PixelFormat": "YCbCr601_422_8"}, "0x0210003E is not supported; use one of BGR10"),
        ({"DeviceTemperature": 20.0}, "DeviceTemperature can only be read"),
        ({"TriggerMode": "On"}, "follows from"),
    ],
)
def test_a_refused_setting_says_what_is_possible(make, settings, words):
    """The engineer corrects the file without a manual; the camera goes on working."""
    camera = make("SIM-B")
    camera.stop()
    with pytest.raises(CameraSettingError, match=words):
        camera.configure(settings)
    camera.configure(FAST | {"PixelFormat": "Mono8"})
    camera.start()
    assert number_in(next_frame(camera)) >= 0


def test_settings_are_read_back_from_the_camera(make, sim):
    """What was applied is what the camera says, not what was sent to it."""
    camera = make()
    camera.stop()
    camera.configure({"Gain": 1.0})
    reads = sim["SIM-A"].reads
    camera.configure({"Gain": 3.0})
    assert sim["SIM-A"].reads > reads


def test_settings_are_applied_anew_after_a_power_cut(sim, make):
    """A camera comes back as it left the factory: the settings of before must not be believed."""
    camera = make(settings=FAST | {"Width": 320, "Height": 100})
    assert next_frame(camera).image.shape == (100, 320)
    sim["SIM-A"].lose()
    sim["SIM-A"].come_back()
    camera.close()
    camera.open()
    assert camera.configure(FAST | {"Width": 320})["Width"] == 320
    camera.start()
    assert next_frame(camera).image.shape == (480, 320)


def test_a_start_that_the_camera_refuses_is_an_error_and_no_more(make):
    """A camera that will not start says so, and starts after it was put right."""
    camera = make()
    camera.stop()
    camera.configure({"TestPattern": "File"})
    with pytest.raises(CameraError, match="holds no whole image"):
        camera.start()
    camera.close()
    camera.open()
    camera.configure(FAST)
    camera.start()
    assert next_frame(camera)


# -- triggers


def test_a_software_trigger_is_answered_by_its_own_exposure(make):
    """The frame that answers was exposed after the trigger, on the camera's own clock."""
    camera = make(trigger="software")
    for number in range(1, 6):
        before = time.monotonic_ns()
        assert camera.trigger() == number
        frame = next_frame(camera)
        assert frame.trigger_id == number
        assert before <= frame.device_ns <= frame.received_ns
        assert number_in(frame) == frame.frame_id == number - 1
        assert not frame.missing


def test_a_trigger_without_a_frame_is_missed_and_counted(make, sim):
    """A camera that takes a trigger and stays silent costs that part, and no other."""
    camera = make(trigger="software")
    sim["SIM-A"].silence()
    camera.trigger()
    assert camera.grab(0.2).reason is NoFrameReason.TIMEOUT
    camera.flush()
    sim["SIM-A"].silence(on=False)
    number = camera.trigger()
    frame = next_frame(camera)
    assert frame.trigger_id == number
    assert frame.missing == {Cause.TRIGGER_MISSED: 1}
    assert camera.health().missing == {Cause.TRIGGER_MISSED: 1}


def test_a_late_frame_never_answers_the_next_trigger(make, sim):
    """A part's deadline passes while its exposure still runs: that image must not be judged as the next part's."""
    camera = make(trigger="software", settings=FAST | {"ExposureTime": 300_000.0})
    camera.trigger()
    sim["SIM-A"].wait(lambda device: device.triggers == 1)
    time.sleep(0.05)
    camera.flush()
    triggered_ns = time.monotonic_ns()
    number = camera.trigger()
    got = camera.grab(1.0)
    if isinstance(got, Frame):
        assert (got.trigger_id, got.device_ns >= triggered_ns) == (number, True)


def test_a_frame_later_than_anybody_waits_for_is_known_by_its_time(make, sim, monkeypatch):
    """Frames may come later than reckoned: the camera's own clock says that they belong to no part."""
    monkeypatch.setattr(late, "_MARGIN_S", -10.0)  # the next trigger waits for nothing
    camera = make(trigger="software", settings=FAST | {"ExposureTime": 300_000.0})
    camera.trigger()
    sim["SIM-A"].wait(lambda device: device.triggers == 1)
    camera.flush()
    camera.trigger()  # falls into the old exposure: the camera does not take it
    assert camera.grab(0.6).reason is NoFrameReason.TIMEOUT
    assert sim["SIM-A"].generated == 1
    camera.flush()
    number = camera.trigger()
    frame = next_frame(camera)
    assert (frame.trigger_id, frame.frame_id, frame.missing) == (number, 1, {Cause.TRIGGER_MISSED: 2})


def test_a_late_frame_in_pieces_is_no_second_loss(make, sim):
    """The trigger was counted as missed when it was given up; its packets may be lost as well."""
    camera = make(trigger="software", settings=FAST | {"ExposureTime": 100_000.0})
    sim["SIM-A"].incomplete()
    camera.trigger()
    sim["SIM-A"].wait(lambda device: device.triggers == 1)
    camera.flush()
    number = camera.trigger()
    frame = next_frame(camera)
    assert (frame.trigger_id, frame.missing) == (number, {Cause.TRIGGER_MISSED: 1})


def test_an_incomplete_frame_uses_up_its_trigger(make, sim):
    """The part is not inspected, and the next trigger is the next part's."""
    camera = make(trigger="software")
    sim["SIM-A"].incomplete()
    camera.trigger()
    assert next_answer(camera).reason is NoFrameReason.INCOMPLETE
    number = camera.trigger()
    frame = next_frame(camera)
    assert (frame.trigger_id, frame.missing) == (number, {Cause.INCOMPLETE: 1})


def test_a_hardware_trigger_gives_one_frame_per_edge(make, sim):
    """The part sensor is wired to the camera; nothing comes without it."""
    camera = make(trigger="hardware", settings=LINE1)
    assert camera.grab(0.1).reason is NoFrameReason.TIMEOUT
    for number in range(5):
        sim["SIM-A"].pulse()
        frame = next_frame(camera)
        assert (number_in(frame), frame.frame_id, frame.trigger_id) == (number, number, None)
    assert camera.grab(0.1).reason is NoFrameReason.TIMEOUT
    assert sim["SIM-A"].triggers == 5


def test_hardware_triggers_need_their_line(make):
    """A camera that waits for a software trigger nobody gives would be silent for ever."""
    with pytest.raises(CameraSettingError, match="set TriggerSource to the line"):
        make(trigger="hardware")


def test_an_idle_line_is_no_lost_camera(make, sim):
    """Between two shifts nothing triggers: the camera is asked, answers, and is kept."""
    camera = make(trigger="hardware", settings=LINE1)
    reads = sim["SIM-A"].reads
    assert camera.grab(2.3).reason is NoFrameReason.TIMEOUT
    assert sim["SIM-A"].reads > reads
    sim["SIM-A"].pulse()
    assert number_in(next_frame(camera)) == 0


# -- numbers and losses


@pytest.mark.parametrize("serial", ["SIM-A", "SIM-C"])
def test_sixteen_bit_numbers_go_on_rising(make, sim, serial):
    """Nothing is lost at the wrap, with 0 (other transports) or without it (GigE)."""
    sim[serial].wrap_ids()
    sim[serial].first_frame_id(65_530)
    camera = make(serial, trigger="hardware", settings=LINE1)
    for number in range(65_530, 65_545):
        sim[serial].pulse()
        frame = next_frame(camera)
        assert (number_in(frame), frame.frame_id, dict(frame.missing)) == (number, number, {})


@pytest.mark.parametrize("serial", ["SIM-A", "SIM-C"])
def test_a_gap_across_the_wrap_is_counted(make, sim, serial):
    """Ten frames lost while the number wraps are ten, not sixty-five thousand and not none."""
    sim[serial].wrap_ids()
    sim[serial].first_frame_id(65_530)
    camera = make(serial, trigger="hardware", settings=LINE1)
    sim[serial].pulse()
    assert next_frame(camera).frame_id == 65_530
    sim[serial].drop(10)
    for number in range(1, 11):
        sim[serial].pulse()
        sim[serial].wait(lambda device, number=number: device.drop_done == number)
        time.sleep(0.002)  # an edge within the exposure would not be taken
    sim[serial].pulse()
    frame = next_frame(camera)
    assert (frame.frame_id, frame.missing) == (65_541, {Cause.CAMERA_GAP: 10})


@pytest.mark.parametrize("first", ["whole", "incomplete"])
def test_every_loss_is_counted_once_and_under_its_cause(make, sim, first):
    """Incomplete, silently short and dropped frames: the numbers add up, no torn frame comes through."""
    device = sim["SIM-A"]
    camera = make(buffers=16, trigger="hardware", settings=LINE1)
    answers = []

    def expose(number):
        for _ in range(number):
            device.pulse()
            device.wait(lambda device: device.generated == device.line1_edges)
            time.sleep(0.002)  # an edge within the exposure would not be taken

    if first == "whole":
        expose(1)
    device.incomplete(2)
    expose(2)
    device.short(2)
    expose(2)
    device.drop(3)
    expose(4)
    while not answers or not isinstance(answers[-1], Frame) or len(answers) < 5:
        answers.append(next_answer(camera))
    assert [got.reason for got in answers if isinstance(got, NoFrame)] == [NoFrameReason.INCOMPLETE] * 4
    frames = [got for got in answers if isinstance(got, Frame)]
    assert all(number_in(frame) == frame.frame_id for frame in frames)
    assert frames[-1].missing == {Cause.INCOMPLETE: 4, Cause.CAMERA_GAP: 3}


def test_triggers_that_found_no_buffer_are_counted_once(make, sim):
    """Ten parts, six buffers: four were not seen, and the frame that follows them says so."""
    device = sim["SIM-A"]
    camera = make(trigger="hardware", settings=LINE1, buffers=6)
    for _ in range(10):
        device.pulse()
        device.wait(lambda device: device.generated == device.line1_edges)
        time.sleep(0.002)  # an edge within the exposure would not be taken
    assert device.underruns == 4
    frames = [next_frame(camera) for _ in range(6)]
    device.pulse()
    frames.append(next_frame(camera))
    assert [frame.frame_id for frame in frames] == [0, 1, 2, 3, 4, 5, 10]
    assert [sum(frame.missing.values()) for frame in frames] == [0, 0, 0, 0, 0, 0, 4]
    assert camera.health().missing == {Cause.UNDERRUN: 4}


def test_after_a_pause_comes_a_fresh_frame(make):
    """What waited in the buffers is older than what was lost after it: it is given up, and counted."""
    camera = make()
    before = next_frame(camera)
    time.sleep(0.3)
    asked_ns = time.monotonic_ns()
    after = next_frame(camera)
    assert number_in(after) == after.frame_id
    assert after.device_ns >= asked_ns
    assert sum(after.missing.values()) == after.frame_id - before.frame_id - 1
    assert after.missing[Cause.OVERRUN] >= 6


def test_a_container_is_refused_and_the_camera_goes_on(make, sim):
    """GenDC has no place among images: it is refused by name, and counted as what it is."""
    camera = make()
    next_frame(camera)
    sim["SIM-A"].payload(11)
    with pytest.raises(CameraSettingError, match="PAYLOAD_TYPE_GENDC"):
        grab_for(camera, 5.0)
    sim["SIM-A"].payload(0)
    camera.stop()
    camera.start()
    assert number_in(next_frame(camera)) >= 0


def test_a_refused_container_is_no_gap(make, sim):
    """It was told by its error; the camera has left nothing out."""
    device = sim["SIM-A"]
    camera = make(trigger="hardware", settings=LINE1)
    device.pulse()
    next_frame(camera)
    device.payload(11)
    device.pulse()
    with pytest.raises(CameraSettingError, match="PAYLOAD_TYPE_GENDC"):
        grab_for(camera, 5.0)
    device.payload(0)
    device.pulse()
    frame = next_frame(camera)
    assert (frame.frame_id, dict(frame.missing)) == (2, {})


def test_chunk_data_does_not_disturb_the_image(make):
    """Chunks follow the picture in its buffer; some producers declare a payload type of its own for them."""
    camera = make("SIM-C", settings=FAST | {"ChunkModeActive": True})
    for _ in range(3):
        frame = next_frame(camera)
        assert number_in(frame) == frame.frame_id


@pytest.mark.parametrize(("width", "height", "padding"), [(66, 49, 0), (66, 49, 6)])
def test_every_format_arrives_right(make, sim, width, height, padding):
    """From the sensor's samples to what is judged: compared with the decoder on the same samples in memory."""
    camera = make()
    for name in pixels.SUPPORTED:
        camera.stop()
        size = {"Width": width, "Height": height, "PaddingX": padding}
        camera.configure(size | {"PixelFormat": name, "TestPattern": "Gradient", "AcquisitionFrameRate": 1000.0})
        raw = np.random.default_rng(1).integers(0, 256, pixels.needed_bytes(name, width, height, padding), np.uint8)
        (sim.folder / "noise.raw").write_bytes(raw.tobytes())
        sim["SIM-A"].replay(sim.folder / "noise.raw")
        camera.configure({"TestPattern": "File"})
        camera.start()
        assert np.array_equal(next_frame(camera).image, pixels.decode(raw, name, width, height, padding)), name


def test_no_frame_is_lost_torn_or_swapped_at_200_fps(make):
    """Two seconds of full-size frames: each carries its own number, and every number is accounted for."""
    camera = make(buffers=8)
    collect(camera, lambda frame: frame.frame_id >= 150)
    missing = camera.health().missing
    assert set(missing) <= {Cause.OVERRUN, Cause.UNDERRUN}  # only a machine that is too busy loses any


# -- the camera goes away


def test_a_lost_camera_is_noticed_and_comes_back(make, sim):
    """The plug is pulled in mid-stream: an error within seconds, a busy or absent camera until it is back."""
    camera = make()
    next_frame(camera)
    sim["SIM-A"].lose()
    with pytest.raises(CameraLostError, match=r"SIM-A.*not reachable any more"):
        grab_for(camera, 6.0)
    camera.close()
    for _ in range(3):
        with pytest.raises((CameraLostError, CameraNotFoundError)):
            camera.open()
    sim["SIM-A"].come_back()
    camera.open()
    camera.configure(FAST)
    camera.start()
    assert number_in(next_frame(camera)) >= 0
    assert sim["SIM-A"].owner != 0


def test_a_blink_of_power_is_noticed(make, sim):
    """Back within a blink, the camera knows nobody: it must not be waited for in silence."""
    camera = make()
    next_frame(camera)
    sim["SIM-A"].lose()
    sim["SIM-A"].come_back()
    with pytest.raises(CameraLostError):
        grab_for(camera, 6.0)
    camera.close()
    camera.open()
    camera.configure(FAST)
    camera.start()
    assert number_in(next_frame(camera)) >= 0


@pytest.mark.parametrize("call", ["configure", "start", "trigger"])
def test_a_camera_that_is_lost_between_calls_is_lost_in_the_next(make, sim, call):
    """Whatever is asked of it, the answer is the one error that every caller opens the camera anew for."""
    camera = make(trigger="software")
    if call != "trigger":
        camera.stop()
    sim["SIM-A"].lose()
    with pytest.raises(CameraLostError):
        camera.configure(FAST) if call == "configure" else getattr(camera, call)()
    camera.close()
    sim["SIM-A"].come_back()
    camera.open()
    camera.configure(FAST)
    camera.start()
    camera.trigger()
    assert next_frame(camera)


def test_twenty_losses_leave_nothing_behind(make, sim):
    """Each time the camera is let go of: no handle, no buffer, no thread stays."""
    camera = make()
    for _ in range(20):
        next_frame(camera)
        sim["SIM-A"].lose()
        camera.close()
        assert (sim["SIM-A"].owner, sim["SIM-A"].announced) == (0, 0)
        sim["SIM-A"].come_back()
        camera.open()
        camera.configure(FAST)
        camera.start()
    assert sim["SIM-A"].opens == 21
    assert sim["SIM-A"].closes == 20


def test_a_lost_camera_does_not_disturb_its_neighbour(make, sim):
    """Two cameras of one producer: pulling one plug costs the other no frame."""
    lost, kept = make("SIM-A"), make("SIM-C", buffers=16)
    next_frame(kept)
    sim["SIM-A"].lose()
    lost.close()
    sim["SIM-A"].come_back()
    lost.open()
    collect(kept, lambda frame: frame.frame_id >= 10)
    assert sim["SIM-C"].opens == 1


def test_a_camera_in_use_is_busy_and_then_free(make, sim):
    """The operator is told to close the other program; once closed, nothing else is needed."""
    camera = make()
    camera.close()
    sim["SIM-A"].occupy()
    with pytest.raises(CameraBusyError, match="SIM-A"):
        camera.open()
    sim["SIM-A"].come_back()
    camera.open()


def test_an_unplugged_camera_is_not_found(make, sim):
    """A camera that no enumeration lists is not there, and is found again without a new process."""
    camera = make()
    camera.close()
    sim["SIM-A"].unplug()
    with pytest.raises(CameraNotFoundError, match="no camera with serial 'SIM-A' answers"):
        camera.open()
    sim["SIM-A"].come_back()
    assert camera.open().serial == "SIM-A"


def test_a_slow_camera_is_slow_and_not_lost(make, sim):
    """Each register takes half a second: the answers come late, and every frame meanwhile is accounted for."""
    camera = make(settings=FAST | {"AcquisitionFrameRate": 50.0})
    before = next_frame(camera)
    sim["SIM-A"].slow(0.5)
    camera.health()  # reads the temperature
    sim["SIM-A"].slow(0)
    after = next_frame(camera)
    assert number_in(after) == after.frame_id
    assert sum(after.missing.values()) == after.frame_id - before.frame_id - 1
    assert after.frame_id - before.frame_id > 10


def test_the_list_of_cameras_shows_names_as_they_are(sim, capsys, monkeypatch):
    """Rule: what looks like markup in a name is shown, not obeyed."""
    monkeypatch.setenv("COLUMNS", "200")
    odd = sim.file.rename(sim.file.with_name("[red]odd.cti"))
    with pytest.raises(SystemExit) as left:
        cli.main(["cameras", "--producer", str(odd)])
    assert left.value.code == 0
    assert "[red]odd.cti" in capsys.readouterr().out
