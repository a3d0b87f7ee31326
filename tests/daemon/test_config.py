"""Configuration: each fault is one clear line that names file, key, value and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from lineward.daemon.config import ConfigError, load_config

GOOD = """
[camera]
driver = "folder"
folder = "images"

[inspection]
model = "tiles.lward"
"""


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str | bytes) -> Path:
        path = tmp_path / "lineward.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_a_minimal_file_is_enough_and_the_rest_has_defaults(write) -> None:
    """Camera and model are all that must be said."""
    config = load_config(write(GOOD))
    assert config.station.base_topic == "lineward/plant/line1/cam1"
    assert (config.mqtt.host, config.mqtt.port) == ("127.0.0.1", 1883)
    assert config.inspection.deadline_ms == 500
    assert config.inspection.providers == ["CPUExecutionProvider"]


def test_relative_paths_are_relative_to_the_file(write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service's working directory must not matter; a product of the store is no path."""
    monkeypatch.chdir("/")
    config = load_config(write(GOOD + '[mqtt]\npassword_file = "secret"\n[mqtt.tls]\nca_file = "/etc/ca.pem"\n'))
    assert config.inspection.model == tmp_path / "tiles.lward"
    assert config.camera.folder == tmp_path / "images"
    assert config.mqtt.password_file == tmp_path / "secret"
    assert config.mqtt.tls is not None
    assert config.mqtt.tls.ca_file == Path("/etc/ca.pem")
    assert load_config(write(GOOD.replace("tiles.lward", "tiles"))).inspection.model == Path("tiles")


def test_a_tilde_is_the_home_folder(write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell's short form of a path means here what it means there; a product of the store is no path."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    text = '[camera]\ndriver = "genicam"\nserial = "1"\nproducers = ["~/a.cti", "viky"]\n'
    text += '[inspection]\nmodel = "~/a.lward"\n'
    config = load_config(write(text + '[recipes.b]\nmodel = "~b"\n[mqtt]\npassword_file = "~/pw"\n'))
    assert config.camera.producers == [str(tmp_path / "home/a.cti"), "viky"]
    assert config.inspection.model == tmp_path / "home/a.lward"
    assert config.recipes["b"].model == Path("~b")
    assert config.mqtt.password_file == tmp_path / "home/pw"


def test_it_is_frozen(write) -> None:
    """What was checked is what runs."""
    config = load_config(write(GOOD))
    with pytest.raises(ValidationError):
        config.inspection.deadline_ms = 1


def test_the_designs_example_is_accepted(write) -> None:
    """The documented example is a valid file."""
    config = load_config(
        write(
            """
            [station]
            site = "plant"
            line = "line1"
            name = "cam1"
            [camera]
            driver = "genicam"
            producers = ["viky"]
            serial = "0"
            trigger = "free_run"
            [camera.settings]
            PixelFormat = "Mono8"
            [inspection]
            model = "tiles.lward"
            deadline_ms = 500
            providers = ["CPUExecutionProvider"]
            [mqtt]
            host = "127.0.0.1"
            port = 1883
            [storage]
            root = "/var/lib/lineward"
            max_gb = 20
            """
        )
    )
    assert config.camera.settings == {"PixelFormat": "Mono8"}
    assert config.camera.driver_options() == {
        "trigger": "free_run",
        "producers": ["viky"],
        "serial": "0",
        "user_id": "",
        "buffers": 6,
    }


@pytest.mark.parametrize(
    ("text", "place", "remedy"),
    [
        (GOOD + "[mqtt]\nprt = 1\n", "mqtt.prt = 1", "did you mean port?"),
        (
            GOOD + "[storage]\nxyzzy = 1\n",
            "storage.xyzzy = 1",
            "known keys are audit_gb, ledger_rows, max_gb, outbox_mb, root, thumbnails_gb",
        ),
        (GOOD.replace("folder =", "foldr ="), "camera.foldr = 'images'", "did you mean folder?"),
        (GOOD + "[surprise]\n", "surprise = {}", "known keys are camera"),
        (GOOD + 'deadline_ms = "soon"\n', "inspection.deadline_ms = 'soon'", "valid integer"),
        (GOOD + "deadline_ms = 0\n", "inspection.deadline_ms = 0", "greater than or equal to 5"),
        (GOOD + "[mqtt]\nport = 70000\n", "mqtt.port = 70000", "less than or equal to 65535"),
        (GOOD + "[storage]\nmax_gb = inf\n", "storage.max_gb = inf", "should be a finite number"),
        (GOOD + "[storage]\nmax_gb = 1e300\n", "storage.max_gb = 1e+300", "should be less than or equal to 100000"),
        (GOOD + "[storage]\noutbox_mb = nan\n", "storage.outbox_mb = nan", "should be a finite number"),
        (GOOD + "[camera.settings]\nGain = inf\n", "camera.settings.Gain = inf", "a finite number"),
        (GOOD + '[station]\nsite = "a/b"\n', "station.site = 'a/b'", "pattern"),
        (GOOD.replace('"folder"', '"webcam"', 1), "camera.driver", 'use "simulated", "folder", "genicam" or "aravis"'),
        (GOOD.replace('driver = "folder"', ""), "camera", "driver is missing"),
        ('[camera]\ndriver = "genicam"\n[inspection]\nmodel = "a.lward"\n', "camera", "either serial"),
        ("[inspection]\n", "inspection.model", "is missing"),
        (GOOD + '[mqtt.tls]\ncert_file = "c.pem"\n', "mqtt.tls", "belong together"),
        (
            GOOD + '[mqtt]\npassword_file = "~nobodyhere/pw"\n',
            "mqtt.password_file = '~nobodyhere/pw'",
            "the whole path",
        ),
        (GOOD + '[mqtt.tls]\nca_file = "~nobodyhere/ca"\n', "mqtt.tls.ca_file", "home folder ~nobodyhere"),
        (GOOD + '[storage]\nroot = "~nobodyhere"\n', "storage.root = '~nobodyhere'", "the whole path"),
        (GOOD + '[review]\nbase_data = "~nobodyhere/x"\n', "review.base_data", "the whole path"),
        (GOOD.replace("images", "~nobodyhere/i"), "camera.folder = '~nobodyhere/i'", "the whole path"),
        (GOOD.replace("tiles", "~nobodyhere/tiles"), "inspection.model = '~nobodyhere/tiles.lward'", "the whole path"),
        (GOOD + '[recipes.b]\nmodel = "~nobodyhere/b.lward"\n', "recipes.b.model", "the whole path"),
        (
            '[camera]\ndriver = "genicam"\nproducers = ["~nobodyhere/a.cti"]\n[inspection]\nmodel = "a"\n',
            "camera.producers.0",
            "the whole path",
        ),
        (GOOD + 'model = "b.lward"\n', "lineward.toml", "twice"),
        (GOOD + "[camera]\n", "lineward.toml", "twice"),
        (GOOD + "what is this", "lineward.toml", "not valid TOML"),
        (b"\xff\xfe[camera]", "lineward.toml", "UTF-8"),
    ],
)
def test_each_fault_names_place_and_remedy(write, text: str | bytes, place: str, remedy: str) -> None:
    """A person finds the place in the file and knows what to write instead."""
    with pytest.raises(ConfigError) as caught:
        load_config(write(text))
    lines = str(caught.value).splitlines()
    hits = [line for line in lines if place in line and remedy in line]
    assert hits, lines
    assert all("lineward.toml: " in line for line in lines)


def test_all_faults_are_told_at_once(write) -> None:
    """Nobody should have to start five times to find five typing errors."""
    with pytest.raises(ConfigError) as caught:
        load_config(write(GOOD + '[mqtt]\nprt = 1\nhost = ""\n[log]\nlevel = "LOUD"\n[camera.settings]\nGain = nan\n'))
    assert len(str(caught.value).splitlines()) == 4


@pytest.mark.parametrize(
    "text",
    [
        '[mqtt]\npassword = "hunter2"\n',
        '[broker]\nhost = "h"\nlogin = { password = "hunter2" }\n',
        '[[brokers]]\napi_key = ["hunter2"]\n',
        '[camera.settings]\nDeviceToken = ["hunter2"]\n',
        '[mqtt]\nhost = "mqtt://line:hunter2@plant/1"\nuri = "mqtt://line:hunter2@plant/1"\n',
    ],
)
def test_an_error_names_a_secret_key_and_not_its_value(write, text: str) -> None:
    """Rule: what is wrong goes to the log, and a password that stands where it does not belong stays out of it."""
    with pytest.raises(ConfigError, match=r"\(taken out\)") as caught:
        load_config(write(GOOD + text))
    assert "hunter2" not in str(caught.value)


def test_the_path_of_a_secret_file_is_named(write) -> None:
    """Rule: a path is no secret, and a person has to see which one is wrong."""
    with pytest.raises(ConfigError, match=r"mqtt.password_file = 5"):
        load_config(write(GOOD + "[mqtt]\npassword_file = 5\n"))


def test_a_missing_file_says_how_to_name_another(tmp_path: Path) -> None:
    """The default path is often not the one that was meant."""
    with pytest.raises(ConfigError, match=r"nowhere.toml: cannot be read: .*--config FILE"):
        load_config(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
