"""The simulated producer does through plain harvesters what it says: what our driver is tested with must be real."""

import ctypes
import itertools
import subprocess
import sys
import time

import numpy as np
import pytest
from genicam import genapi, gentl

from gentl_sim import gentl_sim
from gentl_sim.gentl_sim import Crash, Hang

pytest_plugins = ["gentl_sim.fixtures"]


def take(acquirer, number, timeout=2.0):
    """Fetch frames; each is (id, timestamp in ns, whether all its pixels carry its id)."""
    taken = []
    for _ in range(number):
        with acquirer.fetch(timeout=timeout) as buffer:
            words = np.frombuffer(buffer.module.raw_buffer, "<u4")
            taken.append((buffer.module.frame_id, buffer.timestamp_ns, bool((words == buffer.module.frame_id).all())))
    return taken


def ids(acquirer, number):
    return [frame_id for frame_id, _, _ in take(acquirer, number)]


def test_both_sides_of_the_control_file_have_one_layout(compiled):
    """A word that means two things would make every other test lie."""
    names = ctypes.c_char_p(ctypes.addressof(ctypes.c_char.in_dll(ctypes.CDLL(str(compiled)), "SimControlFields")))
    assert names.value.decode().split() == list(gentl_sim.SWITCHES + gentl_sim.COUNTERS)


def test_a_control_file_of_another_version_is_refused(sim):
    """A producer that guesses at switches would be worse than none."""
    content = bytearray(sim.control.path.read_bytes())
    content[8] += 1
    sim.control.path.write_bytes(content)
    library = ctypes.CDLL(str(sim.file))
    assert library.GCInitLib() == -1001


def test_devices_are_enumerated(harvester):
    """Serial number, user id, model, vendor and access are what a camera is chosen by."""
    seen = [(d.serial_number, d.user_defined_name, d.model, d.vendor, d.tl_type) for d in harvester.device_info_list]
    assert seen == [
        ("SIM-A", "left", "Sim 640", gentl_sim.VENDOR, "Custom"),
        ("SIM-B", "right", "Sim 640", gentl_sim.VENDOR, "Custom"),
        ("SIM-C", "top", "Sim GigE", gentl_sim.VENDOR, "GEV"),
    ]
    assert {d.access_status for d in harvester.device_info_list} == {1}


def test_features_have_ranges_and_read_back(acquirer):
    """Settings are refused beyond what the camera can do, and kept otherwise."""
    nodes = acquirer("SIM-B").remote_device.node_map
    assert (nodes.DeviceVendorName.value, nodes.DeviceModelName.value) == (gentl_sim.VENDOR, "Sim 640")
    assert (nodes.DeviceSerialNumber.value, nodes.DeviceUserID.value) == ("SIM-B", "right")
    assert (nodes.Width.min, nodes.Width.max, nodes.Width.inc, nodes.Height.inc) == (4, 4096, 4, 2)
    with pytest.raises(genapi.OutOfRangeException):
        nodes.Width.value = 4098
    for name, value in {"Width": 320, "Height": 100, "Gain": 6.0, "ExposureTime": 250.0, "PaddingX": 8}.items():
        getattr(nodes, name).value = value
        assert getattr(nodes, name).value == value
    nodes.DeviceUserID.value = "another"
    assert nodes.DeviceUserID.value == "another"
    assert nodes.PayloadSize.value == 328 * 100


def test_what_changes_by_itself_is_not_cached(acquirer):
    """A temperature from a cache would hide a camera that is gone."""
    nodes = acquirer().remote_device.node_map
    assert nodes.DeviceTemperature.value != nodes.DeviceTemperature.value
    nodes.TimestampLatch.execute()
    assert 0 <= time.monotonic_ns() - nodes.TimestampLatchValue.value < 1e9


def test_geometry_is_locked_while_streaming(acquirer):
    """As on real cameras, the size of a frame cannot change under its buffers."""
    made = acquirer()
    made.start()
    with pytest.raises(genapi.AccessException):
        made.remote_device.node_map.Width.value = 320
    made.stop()
    made.remote_device.node_map.Width.value = 320


def test_every_frame_carries_its_number_and_time(acquirer):
    """A torn or stale frame can be proved: all pixels say which frame they are of."""
    made = acquirer()
    made.num_buffers = 16
    before = time.monotonic_ns()
    made.start()
    taken = take(made, 100)
    made.stop()
    numbers = [frame_id for frame_id, _, _ in taken]
    assert numbers == sorted(set(numbers))
    assert all(whole for _, _, whole in taken)
    stamps = [stamp for _, stamp, _ in taken]
    assert before <= stamps[0] < stamps[-1] <= time.monotonic_ns()
    assert made.device.timestamp_frequency == 125_000_000


def test_acquisition_modes_end_by_themselves(acquirer, sim):
    """SingleFrame and MultiFrame give as many frames as they say."""
    made = acquirer(AcquisitionMode="MultiFrame", AcquisitionFrameCount=3)
    made.start()
    assert ids(made, 3) == [0, 1, 2]
    sim["SIM-A"].wait(lambda device: device.stops == 1)
    time.sleep(0.05)
    assert sim["SIM-A"].generated == 3


def test_a_software_trigger_gives_one_frame(acquirer, sim):
    """No trigger, no frame; a trigger during an exposure is not taken."""
    made = acquirer(TriggerSource="Software", TriggerMode="On", ExposureTime=100_000.0)
    made.start()
    assert made.try_fetch(timeout=0.1) is None
    made.remote_device.node_map.TriggerSoftware.execute()
    sim["SIM-A"].wait(lambda device: device.triggers == 1)
    made.remote_device.node_map.TriggerSoftware.execute()
    assert ids(made, 1) == [0]
    assert made.try_fetch(timeout=0.2) is None
    assert (sim["SIM-A"].triggers, sim["SIM-A"].triggers_missed) == (1, 1)


def test_a_hardware_trigger_comes_from_outside(acquirer, sim):
    """Each edge on Line1 is one frame; edges before the start are nobody's."""
    sim["SIM-A"].pulse(5)
    made = acquirer(TriggerSource="Line1", TriggerMode="On")
    made.start()
    assert made.try_fetch(timeout=0.1) is None
    for number in range(3):
        sim["SIM-A"].pulse()
        assert ids(made, 1) == [number]
    assert sim["SIM-A"].triggers == 3


def test_incomplete_frames_are_announced_and_dropped_ones_are_gaps(acquirer, sim):
    """The two ways of losing a frame look different, and the numbers show both."""
    made = acquirer()
    counted = []
    from harvesters.core import Callback

    class Count(Callback):
        def emit(self, context=None):
            counted.append(1)

    made.add_callback(made.Events.INCOMPLETE_BUFFER, Count())
    sim["SIM-A"].incomplete(2)
    made.start()
    assert ids(made, 1) == [2]
    assert len(counted) == 2
    sim["SIM-A"].drop(3)
    sim["SIM-A"].wait(lambda device: device.drop_done == 3)
    numbers = [2, *ids(made, 8)]
    gaps = [after - before for before, after in itertools.pairwise(numbers)]
    assert max(gaps) >= 4
    assert len(counted) == 2


def test_half_a_frame_keeps_an_older_one_in_its_other_half(acquirer, sim):
    """As in the field: what did not come is not black, it is another part's picture."""
    made = acquirer(TriggerSource="Software", TriggerMode="On")
    made.num_buffers = 3
    made.start()
    seen = []
    for number in range(4):
        if number == 3:
            sim["SIM-A"].short()
        made.remote_device.node_map.TriggerSoftware.execute()
        with made.fetch(timeout=2) as buffer:
            words = np.frombuffer(buffer.module.raw_buffer, "<u4")
            seen.append((int(words[0]), int(words[-1]), buffer.module.size_filled))
    assert seen == [(0, 0, 307_200), (1, 1, 307_200), (2, 2, 307_200), (3, 0, 153_600)]


def test_without_a_buffer_frames_are_underruns(acquirer, sim):
    """All buffers held looks like a silent camera: the counter tells them apart."""
    made = acquirer()
    made.num_buffers = 3
    made.start()
    sim["SIM-A"].wait(lambda device: device.underruns >= 2)
    assert ids(made, 3) == [0, 1, 2]
    assert made.data_streams[0].num_underrun >= 2
    assert made.data_streams[0].num_delivered >= 3


def test_newest_only_gives_the_newest(acquirer, sim):
    """StreamBufferHandlingMode lives on the stream's node map."""
    made = acquirer()
    made.data_streams[0].node_map.StreamBufferHandlingMode.value = "NewestOnly"
    made.start()
    sim["SIM-A"].wait(lambda device: device.last_frame_id >= 20)
    assert ids(made, 1)[0] >= 20
    assert sim["SIM-A"].underruns == 0


def test_numbers_wrap_at_sixteen_bits(acquirer, sim):
    """With GigE's transport 0 is skipped, with others it is not; the pixels carry the number that never wraps."""
    for serial, wanted in (("SIM-A", [65534, 65535, 0, 1]), ("SIM-C", [65534, 65535, 1, 2])):
        sim[serial].wrap_ids()
        sim[serial].first_frame_id(65534)
        made = acquirer(serial)
        made.start()
        taken = []
        for _ in wanted:
            with made.fetch(timeout=2) as buffer:
                taken.append((buffer.module.frame_id, int(np.frombuffer(buffer.module.raw_buffer, "<u4")[0])))
        assert taken == [(number, 65534 + i) for i, number in enumerate(wanted)]
        made.stop()


@pytest.mark.parametrize("serial", ["SIM-A", "SIM-C"])
def test_chunk_data_belongs_to_its_frame(acquirer, serial):
    """Frame number, time and exposure travel with the picture; GigE and generic consumers find them."""
    made = acquirer(serial, ChunkModeActive=True)
    made.start()
    nodes = made.remote_device.node_map
    for _ in range(3):
        with made.fetch(timeout=2) as buffer:
            assert nodes.ChunkFrameID.value == buffer.module.frame_id
            assert nodes.ChunkTimestamp.value == buffer.timestamp_ns
            assert nodes.ChunkExposureTime.value == 100.0
            assert buffer.module.is_containing_chunk_data()


def test_files_are_replayed_byte_by_byte(acquirer, sim, tmp_path):
    """Any picture can be sent: one after the other, and again from the first."""
    images = np.random.default_rng(3).integers(0, 256, (3, 10, 16), np.uint8)
    (tmp_path / "images.raw").write_bytes(images.tobytes())
    sim["SIM-A"].replay(tmp_path / "images.raw")
    made = acquirer(TestPattern="File", Width=16, Height=10)
    made.num_buffers = 16
    made.start()
    for number in range(7):
        with made.fetch(timeout=2) as buffer:
            assert bytes(buffer.module.raw_buffer) == images[number % 3].tobytes()


def test_a_container_is_declared_as_one(acquirer, sim):
    """Only the payload type tells a GenDC container from an image; harvesters does not look at it."""
    made = acquirer()
    sim["SIM-A"].payload(11)
    made.start()
    with made.fetch(timeout=2) as buffer:
        assert buffer.module.payload_type == 11
        assert bytes(buffer.module.raw_buffer[:4]) == b"GNDC"


def test_a_silent_camera_is_armed_and_sends_nothing(acquirer, sim):
    """Its registers answer, no frame comes, and no number is used up."""
    made = acquirer()
    made.start()
    ids(made, 1)
    sim["SIM-A"].silence()
    while made.try_fetch(timeout=0.1) is not None:
        pass
    last = sim["SIM-A"].last_frame_id
    assert made.try_fetch(timeout=0.1) is None
    assert made.remote_device.node_map.DeviceTemperature.value > 0
    sim["SIM-A"].silence(on=False)
    assert ids(made, 1) == [last + 1]


def test_a_slow_register_is_slow_and_no_other(acquirer, sim):
    """One register that takes long must be tellable from a camera that is gone."""
    nodes = acquirer().remote_device.node_map
    sim["SIM-A"].slow(0.5, "DeviceTemperature")
    began = time.monotonic()
    nodes.Width.get_value(False, True)
    between = time.monotonic()
    assert nodes.DeviceTemperature.value > 0
    assert time.monotonic() - between >= 0.5
    assert between - began < time.monotonic() - between


def test_a_lost_camera_has_no_access_no_registers_and_no_frames(harvester, acquirer, sim):
    """What a pulled plug looks like: three signs, of which waiting for a frame shows none."""
    made = acquirer()
    made.start()
    ids(made, 1)
    sim["SIM-A"].lose()
    while made.try_fetch(timeout=0.1) is not None:
        pass
    assert harvester.device_info_list[0].access_status == 3
    with pytest.raises((genapi.GenericException, gentl.GenericException), match="does not answer"):
        made.remote_device.node_map.DeviceTemperature.value  # noqa: B018
    assert made.try_fetch(timeout=0.1) is None


def test_a_camera_that_came_back_knows_nobody(harvester, acquirer, sim):
    """Its old handle stays dead and its settings are those of a fresh start: all must be opened and set anew."""
    made = acquirer(Width=320)
    sim["SIM-A"].lose()
    sim["SIM-A"].come_back()
    with pytest.raises((genapi.GenericException, gentl.GenericException), match="does not answer"):
        made.remote_device.node_map.DeviceTemperature.value  # noqa: B018
    made.destroy()
    again = harvester.create({"serial_number": "SIM-A"})
    assert again.remote_device.node_map.Width.value == 640
    assert (sim["SIM-A"].opens, sim["SIM-A"].closes) == (2, 1)


def test_a_camera_in_use_is_refused(harvester, sim):
    """By another host, and by another user on this one: the lock holds between processes and within."""
    sim["SIM-A"].occupy()
    assert harvester.device_info_list[0].access_status == 4
    with pytest.raises(gentl.ResourceInUseException):
        harvester.create({"serial_number": "SIM-A"})
    sim["SIM-A"].come_back()
    harvester.create({"serial_number": "SIM-A"})
    assert harvester.device_info_list[0].access_status == 5
    assert subprocess.run([sys.executable, "-c", OTHER_USER, str(sim.file)], check=False, timeout=30).returncode == 4


OTHER_USER = """
import sys, warnings
warnings.simplefilter("ignore")
from genicam import gentl
from harvesters.core import Harvester
harvester = Harvester()
harvester.add_file(sys.argv[1])
harvester.update()
try:
    harvester.create({"serial_number": "SIM-A"})
except gentl.ResourceInUseException:
    sys.exit(harvester.device_info_list[0].access_status)
"""

USER = """
import sys, threading, time, warnings
warnings.simplefilter("ignore")
from harvesters.core import Harvester
harvester = Harvester()
harvester.add_file(sys.argv[1])
harvester.update()
acquirer = harvester.create({"serial_number": "SIM-A"})
nodes = acquirer.remote_device.node_map
nodes.AcquisitionFrameRate.value = 200.0
print("open", flush=True)
sys.stdin.readline()
if sys.argv[2] == "START":
    acquirer.start()
elif sys.argv[2] == "READ":
    nodes.DeviceTemperature.value
elif sys.argv[2] == "WRITE":
    nodes.Gain.value = 1.0
elif sys.argv[2] == "OPEN":
    acquirer.destroy()
    acquirer = harvester.create({"serial_number": "SIM-A"})
else:
    acquirer.start()
    for _ in range(20):
        with acquirer.fetch(timeout=1):
            pass
acquirer.destroy()
harvester.reset()
print("done", flush=True)
"""


@pytest.fixture
def user(sim):
    """Start a process that uses the camera: a call that hangs takes its whole interpreter along."""
    started = []

    def start(what):
        command = [sys.executable, "-c", USER, str(sim.file), what]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "open\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("where", list(Hang))
def test_a_hung_call_does_not_return_until_it_is_let_go(sim, user, where):
    """Reads, writes, waiting for a frame, starting and opening can each hang; a release lets the same call go on."""
    process = user(where.name)
    sim["SIM-A"].hang(where)
    process.stdin.write("\n")
    process.stdin.flush()
    sim["SIM-A"].wait(lambda device: device.hung == 1)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    sim["SIM-A"].hang(0)
    assert process.communicate(timeout=10)[0] == "done\n"
    assert sim["SIM-A"].hung == 0


@pytest.mark.parametrize(("where", "what"), [(Crash.AT_FRAME, "EVENT"), (Crash.AT_READ, "READ")])
def test_a_crash_ends_the_process_and_frees_the_camera(sim, user, acquirer, where, what):
    """SIGSEGV takes the process; the lock on the camera dies with it, and the next one is spared."""
    process = user(what)
    sim["SIM-A"].crash(where)
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.wait(10) == -11
    made = acquirer()
    made.start()
    assert ids(made, 2) == [0, 1]
    assert sim["SIM-A"].crash_done == 1


def test_a_killed_process_frees_the_camera(sim, user, acquirer):
    """What holds a camera is the process, not a note that it left behind."""
    process = user("READ")
    assert sim["SIM-A"].owner == process.pid
    process.kill()
    process.wait()
    acquirer()
