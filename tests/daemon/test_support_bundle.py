"""A support bundle tells a helper everything but secrets, whatever state the station is in."""

from __future__ import annotations

import json
import stat
import tarfile
from typing import TYPE_CHECKING

import pytest
from tests.disks import fill_up, small_disk

from lineward.daemon.support_bundle import config_text, newest_images, without, write_bundle, written

if TYPE_CHECKING:
    from pathlib import Path

BROKEN = """
[mqtt]
password = "hunter2-hunter2"
password_file = "where/it/is"
host = "x"
[camera]
driver = "nonsense"
"""


def contents(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {
            name.removeprefix("lineward-support/"): archive.extractfile(name).read()  # type: ignore[union-attr]
            for name in archive.getnames()
        }


def test_a_configuration_that_is_wrong_is_told_without_its_secret(tmp_path: Path) -> None:
    """Rule: a password that somebody wrote where it does not belong is in no part, not even in the error message."""
    config, out = tmp_path / "line.toml", tmp_path / "out.tar.gz"
    config.write_text(BROKEN)
    said = list(write_bundle(config, out))
    files = contents(out)
    assert "where/it/is" in files["config.toml"].decode()
    assert b"mqtt.password" in files["config-error.txt"] or b"camera" in files["config-error.txt"]
    assert not [name for name, data in files.items() if b"hunter2" in data]
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert "look into it before you send it" in said[-1]


@pytest.mark.parametrize(
    "text",
    [
        '[mqtt]\npassword = "hunter2secret" # the old one\n',
        'mqtt = { host = "h", password = "hunter2secret" }\n',
        'mqtt = { password_file = "where/it/is", password = "hunter2secret" }\n',
        '[mqtt]\npassword = """\nhunter2secret"""\n',
        "[mqtt]\npassword = '''\nhunter2secret\n'''\n",
        '[broker]\nhost = "h"\n[broker.secrets]\nlogin = "hunter2secret"\n',
        '[[brokers]]\n"my password!" = "hunter2secret"\n',
        '[mqtt]\n"pass\\u0077ord" = "hunter2secret"\n',
        'tokens = [\n  "a[0]",\n  "hunter2secret",\n]\n',
        '[mqtt]\npassword = "a\\"b\\\\hunter2secret"\n',
        '# password = "hunter2secret"\n',
        '[mqtt]\npassword = "abc\\"hunter2secret"  # quote\n',
        '[mqtt]\npassword = "a "quoted" hunter2secret"\n',
        '[mqtt]\npassword = """\nhunter2secret',
        'mqtt = { host = "h", password = "hunter2secret", \n',
        "[mqtt]\npassword = hunter2secret # mine\n",
    ],
)
def test_a_password_is_in_no_part_however_it_was_written(tmp_path: Path, text: str) -> None:
    """Rule: comments, inline tables, lines and escapes hide no password from us, in TOML that is broken neither."""
    config, out = tmp_path / "line.toml", tmp_path / "out.tar.gz"
    config.write_text(text)
    list(write_bundle(config, out))
    assert [name for name, data in contents(out).items() if b"hunter2" in data] == []


def test_a_password_is_taken_out_in_every_form_a_log_writes_it() -> None:
    """Rule: quotes, backslashes and line ends that are escaped elsewhere hide no password."""
    known = 'hun"ter\\2\nsécond line'
    log = f"{known} {known!r} {json.dumps(known)}"
    left = without(log.encode(), written([known])).decode()
    assert not any(word in left for word in ("hun", "ter", "cond line"))


def test_a_password_that_begins_with_another_is_taken_out_whole() -> None:
    """Rule: nothing of the longer one is left behind."""
    assert without(b"it is swordfish42", ["sword", "swordfish42"]) == b"it is (taken out)"


def test_what_cannot_be_had_is_named(tmp_path: Path) -> None:
    """Rule: one part that is missing leaves the others alone."""
    out = tmp_path / "out.tar.gz"
    list(write_bundle(tmp_path / "none.toml", out))
    files = contents(out)
    assert b"FileNotFoundError" in files["config.toml.missing.txt"]
    assert b"cannot be read" in files["config-error.txt"]
    assert b'"lineward"' in files["versions.json"]


@pytest.mark.parametrize(
    ("line", "secret"),
    [
        ('password = "swordfish"', "swordfish"),
        ("API_KEY='swordfish'", "swordfish"),
        ('mqtt.token = "swordfish" # mine', "swordfish"),
        ('url = "mqtt://cam:swordfish@host/x"', "swordfish"),
    ],
)
def test_secrets_are_found_by_their_keys(tmp_path: Path, line: str, secret: str) -> None:
    """Rule: whatever looks like a secret is taken out; paths of secret files stay."""
    config = tmp_path / "line.toml"
    config.write_text(line + '\nkey_file = "k.pem"\n')
    text = config_text(config, []).decode()
    assert secret not in text
    assert 'key_file = "k.pem"' in text


def test_a_short_secret_does_not_tear_the_log_apart() -> None:
    """Rule: a word of three letters is not looked for everywhere."""
    assert without(b"the cat sat", ["cat"]) == b"the cat sat"
    assert without(b"the word swordfish", ["swordfish"]) == b"the word (taken out)"


def test_images_come_only_when_asked_for(tmp_path: Path) -> None:
    """Rule: pictures of a customer's product leave the station by somebody's decision, not by default."""
    folder = tmp_path / "images" / "p" / "2026-01-01"
    folder.mkdir(parents=True)
    for number in range(4):
        (folder / f"{number}.png").write_bytes(b"x")
    assert newest_images(tmp_path, 0) == []
    assert len(newest_images(tmp_path, 3)) == 3


def test_a_picture_that_goes_meanwhile_ends_nothing(tmp_path: Path) -> None:
    """Rule: the quota deletes pictures beside the bundle; one that is listed and gone is passed over."""
    folder = tmp_path / "images" / "tiles" / "20261201"
    folder.mkdir(parents=True)
    (folder / "1-a.png").write_bytes(b"picture")
    (folder / "2-b.png").symlink_to(tmp_path / "gone.png")
    assert [file.name for file in newest_images(tmp_path, 5)] == ["1-a.png"]


def test_a_full_disk_leaves_no_half_written_file(tmp_path: Path) -> None:
    """Rule: one line names the file and the remedy, and nothing that looks like a support bundle is left behind."""
    config = tmp_path / "line.toml"
    config.write_text(BROKEN)
    with small_disk(tmp_path / "disk", "64k") as disk:
        fill_up(disk / "ballast")
        with pytest.raises(OSError, match=r"No space left on device; make room there, or .*--out") as caught:
            list(write_bundle(config, disk / "out.tar.gz"))
        assert caught.value.filename == str(disk / "out.tar.gz")
        assert [path.name for path in disk.iterdir()] == ["ballast"]
