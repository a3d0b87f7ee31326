from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.broker import Mosquitto, free_port, needs_mosquitto, wait_until
from tests.daemon.results import make
from tests.pki import OPENSSL, Authority, needs_openssl

from lineward.daemon.config import load_config
from lineward.daemon.endpoint import SecretError, Tls, endpoint_of, readable
from lineward.daemon.ledger import Ledger
from lineward.daemon.publish import Endpoint, Publisher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [needs_mosquitto, needs_openssl]

BASE = "lineward/plant/line1/cam1"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "Other CA")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "storage")
    yield ledger
    ledger.close()


@pytest.fixture
def connect(ledger: Ledger) -> Iterator[Callable[..., Publisher]]:
    started: list[Publisher] = []

    def connect(port: int, tls: Tls | None, *, host: str = "localhost", **options: Any) -> Publisher:
        publisher = Publisher(Endpoint(host, port, "cam1", tls=tls, **options), BASE, deadline_ms=500, ledger=ledger)
        started.append(publisher.start())
        return publisher

    yield connect
    for publisher in started:
        publisher.close()


@pytest.fixture
def tls_broker(tmp_path: Path, authority: Authority) -> Iterator[Callable[..., Mosquitto]]:
    """A broker on 127.0.0.1 that speaks nothing but TLS."""
    started: list[Mosquitto] = []

    def start(*lines: str, signed_by: Authority = authority, **certificate: Any) -> Mosquitto:
        own, key = signed_by.issue("broker", **certificate)
        started.append(
            Mosquitto(
                *(tmp_path, "allow_anonymous true", f"cafile {authority.certificate}", f"certfile {own}"),
                *(f"keyfile {key}", "user root", *lines),
            )
        )
        return started[-1]

    yield start
    for broker in started:
        broker.stop()


def trouble(publisher: Publisher) -> str:
    wait_until(lambda: publisher.trouble)
    return publisher.trouble


@pytest.mark.parametrize("protocol", ["3.1.1", "5"])
def test_results_go_through_tls_to_a_known_broker(
    tls_broker: Any, connect: Any, authority: Authority, ledger: Ledger, protocol: str
) -> None:
    """With the authority's certificate, and the broker's name or address in the broker's, results get through."""
    broker = tls_broker("require_certificate true", "use_identity_as_username true")
    certificate, key = authority.issue("cam1")
    tls = Tls(authority.certificate, certificate, key)
    for host in ("localhost", "127.0.0.1"):
        publisher = connect(broker.port, tls, host=host, protocol=protocol)
        assert publisher.wait_connected(5), publisher.trouble
        publisher.publish(ledger.record(make()))
        wait_until(lambda: ledger.outbox_size == 0)
        assert publisher.close(1) == 0


def test_an_unknown_authority_is_refused(tls_broker: Any, connect: Any, stranger: Authority) -> None:
    """A broker whose certificate another authority signed is not spoken to, and the setting is named."""
    broker = tls_broker()
    said = trouble(connect(broker.port, Tls(stranger.certificate)))
    assert said == (
        f"broker localhost:{broker.port}: its certificate is not signed by {stranger.certificate}: "
        "check mqtt.tls.ca_file"
    )


def test_another_name_is_refused(tls_broker: Any, connect: Any, authority: Authority) -> None:
    """A good certificate for another host is not good enough: the name is checked."""
    broker = tls_broker(names="DNS:elsewhere.example")
    said = trouble(connect(broker.port, Tls(authority.certificate)))
    assert "for another name than localhost: put the name of the certificate into mqtt.host" in said
    said = trouble(connect(broker.port, Tls(authority.certificate), host="127.0.0.1"))
    assert "for another address than 127.0.0.1: put the name of the certificate into mqtt.host" in said


def test_an_expired_certificate_is_refused(tls_broker: Any, connect: Any, authority: Authority) -> None:
    """The end of a certificate is told as such, so that nobody looks for a network fault."""
    said = trouble(connect(tls_broker(days=-1).port, Tls(authority.certificate)))
    assert "its certificate has expired: renew it on the broker" in said


@pytest.mark.parametrize("version", ["tlsv1.2", "tlsv1.3"])
def test_a_missing_client_certificate_is_told(
    tls_broker: Any, connect: Any, authority: Authority, version: str
) -> None:
    """A broker that wants a certificate says so in its own words; ours name the settings."""
    broker = tls_broker("require_certificate true", f"tls_version {version}")
    said = trouble(connect(broker.port, Tls(authority.certificate)))
    assert "it wants a client certificate: give mqtt.tls.cert_file and mqtt.tls.key_file" in said


def test_a_client_certificate_of_a_stranger_is_told(
    tls_broker: Any, connect: Any, authority: Authority, stranger: Authority
) -> None:
    """A certificate that the broker does not accept is told apart from a missing one."""
    certificate, key = stranger.issue("cam1")
    broker = tls_broker("require_certificate true")
    said = trouble(connect(broker.port, Tls(authority.certificate, certificate, key)))
    assert "does not accept our client certificate" in said


def test_a_broker_with_old_tls_only_is_refused(connect: Any, authority: Authority) -> None:
    """TLS 1.1 is not spoken, whatever the broker offers."""
    certificate, key = authority.issue("broker")
    port = free_port()
    server = subprocess.Popen(
        [str(OPENSSL), "s_server", "-accept", str(port), "-cert", str(certificate), "-key", str(key), "-tls1_1",
         "-cipher", "DEFAULT:@SECLEVEL=0", "-quiet"],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        publisher = connect(port, Tls(authority.certificate))
        wait_until(lambda: "nothing newer than TLS 1.1: allow TLS 1.2" in publisher.trouble)
    finally:
        server.kill()
        server.communicate()


def test_tls_and_plain_ports_are_not_confused_silently(
    tls_broker: Any, connect: Any, authority: Authority, tmp_path: Path
) -> None:
    """Both ways of meeting the wrong port name the other one."""
    plain = Mosquitto(tmp_path, "allow_anonymous true")
    assert "is this its TLS port" in trouble(connect(plain.port, Tls(authority.certificate)))
    plain.stop()
    assert "does this port want TLS" in trouble(connect(tls_broker().port, None))


def test_a_mended_certificate_is_taken_without_a_restart(
    tls_broker: Any, connect: Any, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Files are read at each connect: once the right one is in place the station comes back, after one warning."""
    broker = tls_broker()
    pinned = tmp_path / "pinned.crt"
    pinned.write_text("")
    publisher = connect(broker.port, Tls(pinned))
    assert "holds no certificate in PEM form" in trouble(publisher)
    pinned.write_bytes(authority.certificate.read_bytes())
    assert publisher.wait_connected(12), publisher.trouble
    assert [record.levelname for record in caplog.records].count("WARNING") == 1


def test_files_that_cannot_be_used_are_named(authority: Authority, tmp_path: Path) -> None:
    """Setting, file and remedy; a key with a password does not make the service ask at a terminal."""
    certificate, key = authority.issue("cam1")
    locked = tmp_path / "locked.key"
    subprocess.run(
        [str(OPENSSL), "ec", "-aes256", "-passout", "pass:secret", "-in", str(key), "-out", str(locked)],
        check=True,
        capture_output=True,
    )
    _, foreign = authority.issue("cam2")
    for tls, said in [
        (Tls(tmp_path / "none.crt"), "mqtt.tls.ca_file = .*none.crt.*: cannot be read: No such file"),
        (Tls(None, certificate, tmp_path / "none.key"), "mqtt.tls.key_file = .*none.key.*: cannot be read"),
        (Tls(None, certificate, locked), "the key needs a password"),
        (Tls(None, certificate, foreign), "the key does not belong to the certificate"),
    ]:
        with pytest.raises(SecretError, match=said):
            tls.context()


def test_secrets_come_from_files_or_from_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`credential:NAME` is the file that systemd made for this service alone; outside of it the remedy is told."""
    config = tmp_path / "line.toml"
    config.write_text(
        '[camera]\ndriver = "simulated"\n[inspection]\nmodel = "m.lward"\n'
        '[mqtt]\nusername = "cam1"\npassword_file = "credential:mqtt-password"\n'
        '[mqtt.tls]\nca_file = "ca.crt"\ncert_file = "credential:cert"\nkey_file = "credential:key"\n'
    )
    loaded = load_config(config)
    assert loaded.mqtt.tls is not None
    assert loaded.mqtt.tls.ca_file == tmp_path / "ca.crt"
    assert loaded.mqtt.tls.key_file == Path("credential:key")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(SecretError, match="LoadCredential=mqtt-password:/path/to/file"):
        endpoint_of(loaded.mqtt, loaded.station)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(SecretError, match=r"mqtt.password_file = 'credential:mqtt-password': cannot be read"):
        endpoint_of(loaded.mqtt, loaded.station)
    (tmp_path / "mqtt-password").write_text("geheim\n")
    endpoint = endpoint_of(loaded.mqtt, loaded.station)
    assert endpoint.password == "geheim"  # noqa: S105 - of a test
    assert "geheim" not in repr(endpoint)
    assert endpoint.client_id == "lineward-plant-line1-cam1"
    assert readable("mqtt.tls.key_file", None) is None


def test_a_right_password_opens_and_a_wrong_one_is_told(tmp_path: Path, connect: Any) -> None:
    """User name and password are sent as they are; the refusal names what to check."""
    users = tmp_path / "users"
    users.write_text("cam1:geheim\n")
    subprocess.run(["mosquitto_passwd", "-U", str(users)], check=True)
    broker = Mosquitto(tmp_path, "allow_anonymous false", f"password_file {users}", "user root")
    wrong = connect(broker.port, None, username="cam1", password="falsch")  # noqa: S106 - of a test
    assert "refuses us: Not authorized; check user name, password and access rules" in trouble(wrong)
    right = connect(broker.port, None, username="cam1", password="geheim")  # noqa: S106 - of a test
    assert right.wait_connected(5), right.trouble
    broker.stop()
