"""The shipped broker configuration, as it is shipped: who may say what, and whether a station can work with it."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from tests.broker import MOSQUITTO, Mosquitto, free_port, wait_until
from tests.pki import Authority, needs_openssl
from tests.system.line import BASE, call

from lineward.daemon.config import load_config
from lineward.daemon.ledger_read import LedgerReader
from lineward.daemon.thumbnails import ThumbnailReader
from lineward.daemon.web.feed import RETAINED_S, Feed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.system.line import Line

pytestmark = needs_openssl

SHIPPED = Path(__file__).resolve().parents[2] / "systemd" / "mosquitto"
CAMERA = {"driver": "simulated", "trigger": "software", "width": 320, "height": 256}
USERS = {"cam1": "station-secret", "plc": "plc-secret", "scada": "scada-secret"}


class ShippedBroker(Mosquitto):
    """`systemd/mosquitto/lineward.conf` with another port and other folders, and nothing else changed."""

    def __init__(self, folder: Path, authority: Authority) -> None:
        if MOSQUITTO is None:
            pytest.skip("mosquitto is not installed")
        (folder / "certs").mkdir()
        certificate, key = authority.issue("broker")
        certificate.rename(folder / "certs" / "broker.crt")
        key.rename(folder / "certs" / "broker.key")
        (folder / "certs" / "ca.crt").write_bytes(authority.certificate.read_bytes())
        users = folder / "lineward.passwd"
        users.write_text("".join(f"{name}:{password}\n" for name, password in USERS.items()))
        subprocess.run(["mosquitto_passwd", "-U", str(users)], check=True)
        (folder / "lineward.acl").write_bytes((SHIPPED / "lineward.acl").read_bytes())
        self.port = free_port()
        shipped = (SHIPPED / "lineward.conf").read_text()
        self._config = folder / "lineward.conf"
        self._config.write_text(
            shipped.replace("listener 8883", f"listener {self.port} 127.0.0.1").replace("/etc/mosquitto", str(folder))
            + ("user root\n" if os.getuid() == 0 else "")
        )
        self._process = None
        self.start()


class Visitor:
    """A client of the shipped broker, as some user or as nobody."""

    def __init__(self, port: int, authority: Authority, user: str | None = None) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self.refused: list[str] = []
        self.sent: dict[int, str] = {}
        self.client = client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        if user is not None:
            client.username_pw_set(user, USERS[user])
        client.tls_set_context(ssl.create_default_context(cafile=authority.certificate))
        client.on_connect = self._on_connect
        client.on_message = lambda _c, _d, message: self.heard.append((message.topic, message.payload))
        client.on_publish = lambda _c, _d, mid, reason, _p: self.sent.update({mid: str(reason)})
        client.connect("127.0.0.1", port)
        client.loop_start()

    def _on_connect(self, client: paho.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self.refused.append(str(reason))
        else:
            client.subscribe("#", qos=1)

    def say(self, topic: str, content: Any) -> str:
        """Publish and return what the broker says to it."""
        wait_until(self.client.is_connected)
        mid = self.client.publish(f"{BASE}/{topic}", json.dumps(content), qos=1).mid
        wait_until(lambda: mid in self.sent)
        return self.sent[mid]

    def on(self, topic: str) -> list[Any]:
        return [json.loads(payload) for name, payload in self.heard if name == f"{BASE}/{topic}"]

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


@pytest.fixture
def shipped(tmp_path: Path, authority: Authority) -> Iterator[ShippedBroker]:
    folder = tmp_path / "mosquitto"
    folder.mkdir()
    broker = ShippedBroker(folder, authority)
    yield broker
    broker.stop()


@pytest.fixture
def visit(shipped: ShippedBroker, authority: Authority) -> Iterator[Callable[..., Visitor]]:
    visitors: list[Visitor] = []

    def visit(user: str | None = None) -> Visitor:
        visitors.append(Visitor(shipped.port, authority, user))
        return visitors[-1]

    yield visit
    for visitor in visitors:
        visitor.close()


@pytest.fixture
def station(
    line: Callable[..., Line], shipped: ShippedBroker, authority: Authority, tmp_path: Path, monkeypatch: Any
) -> Line:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "mqtt-password").write_text(USERS["cam1"] + "\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))  # as systemd would for LoadCredential=
    return line(
        port=shipped.port,
        camera=CAMERA,
        inspection={"deadline_ms": 3000},
        mqtt={"host": "localhost", "username": "cam1", "password_file": "credential:mqtt-password"},
        **{"mqtt.tls": {"ca_file": str(authority.certificate)}},
    )


def test_only_the_plc_commands_and_only_the_station_answers(station: Line, visit: Callable[..., Visitor]) -> None:
    """With the shipped files a station works and the PLC triggers it; nobody else can command, or lie."""
    plc, scada, nobody = visit("plc"), visit("scada"), visit()
    station.start().wait_log("ready after")
    wait_until(lambda: nobody.refused)
    assert nobody.refused[0] == "Not authorized"
    assert plc.say("cmd/trigger", {"id": "1", "part_id": "A1"}) == "Success"
    wait_until(lambda: plc.on("result"))
    assert plc.on("ack/trigger") == [{"id": "1", "ok": 1, "reason": ""}]
    assert [(answer["part_id"], answer["trigger_id"]) for answer in plc.on("result")] == [("A1", "1")]
    assert plc.on("result/plc")[0]["id"] == "A1"
    assert scada.say("cmd/trigger", {"id": "2", "part_id": "A2"}) == "Not authorized"
    for liar in (plc, scada):
        for topic in ("result/plc", "result", "heartbeat", "availability", "ack/trigger"):
            assert liar.say(topic, {"seq": 9, "v": 1}) == "Not authorized"
    time.sleep(0.5)
    assert len(plc.on("result")) == len(scada.on("result")) == 1
    assert not scada.heard[0][0].startswith("$SYS")
    done = call(station.folder, "check", "--config", station.config, "--json")
    (finding,) = [each for each in json.loads(done.stdout) if each["what"] == "broker"]
    assert finding["fine"], finding
    assert station.end()[0] == 0
    assert (f"{BASE}/availability", b"stopped") in plc.heard


def test_the_page_sees_the_alarms_of_its_station(station: Line) -> None:
    """Rule: with the shipped rules the page, which signs in as its station, knows state and alarms; else it says so."""
    station.start().wait_log("ready after")
    config = load_config(station.config)
    reader = LedgerReader(config.storage.root / "ledger.sqlite3")
    with closing(Feed(config, reader, ThumbnailReader(config.storage.root))) as feed:
        wait_until(lambda: feed.snapshot().running == "ready", 20, "the state is known")
        assert feed.snapshot().broker == "connected"
        time.sleep(RETAINED_S + 1)
        assert not [trouble for trouble in feed.snapshot().troubles if "alarms are not known" in trouble.text]
    reader.close()


def test_a_page_that_may_not_read_the_alarms_says_that_it_does_not_know_them(
    station: Line, shipped: ShippedBroker, tmp_path: Path
) -> None:
    """Rule: no alarm that is heard of is not "all is well"."""
    acl = tmp_path / "mosquitto" / "lineward.acl"
    acl.write_text(acl.read_text().replace(f"topic read {BASE}/alarm\n", ""))
    shipped.stop()
    shipped.start()
    station.start().wait_log("ready after")
    config = load_config(station.config)
    reader = LedgerReader(config.storage.root / "ledger.sqlite3")
    with closing(Feed(config, reader, ThumbnailReader(config.storage.root))) as feed:
        said = f"alarms are not known: the broker gives this page nothing on {BASE}/alarm"
        wait_until(lambda: any(said in trouble.text for trouble in feed.snapshot().troubles), 20, "it says so")
    reader.close()


def test_a_station_without_rights_says_so(station: Line, shipped: ShippedBroker, tmp_path: Path) -> None:
    """A user who may not publish is told which right is missing; inspection goes on and nothing leaves the outbox."""
    acl = tmp_path / "mosquitto" / "lineward.acl"
    acl.write_text(acl.read_text().replace("user cam1\n", "user cam2\n"))
    shipped.stop()
    shipped.start()
    station.start().wait_log("ready after")
    station.wait_log(f"refuses {BASE}/[a-z]+: Not authorized; let this user publish there")
    assert len(station.lines("WARNING.*let this user publish")) == 1
    assert station.end()[0] == 0
