"""One connection to an MQTT broker, from connect to loss: a fresh paho client each time, driven by the caller's thread.

paho keeps unacknowledged messages in memory and sends them again after a reconnect. For a PLC that would be an answer
about a part that is long gone, so a client that lost its connection is thrown away with everything in it.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import sys
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, LogLevel, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from lineward.daemon.endpoint import Endpoint, LostError, RefusedError, SilentError, explain_tls

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paho.mqtt.reasoncodes import ReasonCode

TAKEN_OVER = 0x8E
"""MQTT 5 reason of a broker that gives the connection to another client with the same id."""

HARD = struct.pack("ii", 1, 0)
"""SO_LINGER on, 0 s: closing resets the connection and throws away what was not sent."""

MOST_IN_FLIGHT = 32
"""Messages sent and not acknowledged; a broker may ask for fewer (Mosquitto: 20 on MQTT 5).

paho reads as many acknowledgements in one go, at 30 us each, before it lets another thread have Python's lock.
"""


MOST_RECEIVED = 16
"""Commands that wait here for `Connection.take`; the broker keeps the others (on 3.1.1: Mosquitto sends 20 ahead)."""

COMMAND_BYTES = 64 << 10
"""Of a longer payload only so many bytes and one more are handed on: enough to see that it is too long."""


@dataclass(frozen=True, slots=True)
class Message:
    """What a client has sent to us; cut off after `COMMAND_BYTES` and one byte.

    Attributes
    ----------
    retained
        The broker kept it: it was said before we came, and nobody knows when.
    """

    topic: str
    payload: bytes
    retained: bool
    mid: int = 0


HEADER_BYTES = 24
"""Of a message beside topic and payload, at most: length, id, and its expiry."""


class Connection:
    """Connects when made; afterwards `publish` and `step` until one of them raises `LostError`, then `abort`.

    Parameters
    ----------
    endpoint
        The broker.
    will_topic, will_payload
        The retained message that the broker sends when we vanish.
    timeout_s
        For each of: TCP connect, TLS handshake, the broker's answer to CONNECT.
    silence_s
        A message that is not acknowledged within this time means that the connection is dead.

    Raises
    ------
    RefusedError
        The broker said no.
    LostError
        It accepted the connection and then said nothing, or hung up.
    SecretError
        A certificate or key of ours cannot be used.
    OSError
        It cannot be reached, or TLS failed (`ssl.SSLError`).
    """

    def __init__(
        self, endpoint: Endpoint, will_topic: str, will_payload: bytes, *, timeout_s: float, silence_s: float
    ) -> None:
        self._v5 = endpoint.protocol == "5"
        self._tls = endpoint.tls
        self._said = ""
        self._silence_s = silence_s
        self._sent: dict[int, tuple[int, float, str]] = {}  # message id -> (tag, monotonic seconds, topic)
        self.refusals: dict[str, str] = {}
        """What the broker does not take, by topic, in words; until it does."""
        self._denied: list[int] = []
        self._acked: list[int] = []
        self._refused: str = ""
        self._lost: tuple[str, int] | None = None
        self._accepted: Properties | None = None
        self._subscribed: list[ReasonCode] = []
        self._received: deque[Message] = deque()
        self._most = MOST_IN_FLIGHT
        self._largest = sys.maxsize
        self._client = client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=endpoint.client_id,
            protocol=MQTTProtocolVersion.MQTTv5 if self._v5 else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.max_inflight_messages = 0  # the window is ours; paho's own makes each acknowledgement cost O(window)
        client.connect_timeout = timeout_s
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_log = self._on_log
        client.will_set(will_topic, will_payload, qos=1, retain=True)
        client.username_pw_set(endpoint.username, endpoint.password)
        if endpoint.tls is not None:
            client.tls_set_context(endpoint.tls.context())
        try:
            client.connect(endpoint.host, endpoint.port, endpoint.keepalive_s, properties=self._wishes())
            sock = self._socket()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else an answer may wait 40 ms for an ACK
            self._most = max(1, min(self._most, self._wait_accepted(timeout_s)))
            self._largest = getattr(self._accepted, "MaximumPacketSize", self._largest)
            client.on_log = None
        except SilentError:
            self.abort()
            raise
        except LostError as error:
            self.abort()
            raise self._turned_away(error) from error
        except BaseException:
            self.abort()
            raise

    def _wishes(self) -> Properties | None:
        """Ask an MQTT 5 broker to hold commands back: more than a few at a time would keep answers waiting."""
        if not self._v5:
            return None
        wishes = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho's has no types
        wishes.ReceiveMaximum = MOST_RECEIVED
        return wishes

    def _wait_accepted(self, timeout_s: float) -> int:
        """Wait for the broker's answer to CONNECT; return how many messages it takes at a time."""
        deadline = time.monotonic() + timeout_s
        while self._accepted is None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise SilentError(f"accepts the connection and then says nothing for {timeout_s:g} s")
            self._wait(left)
        return int(getattr(self._accepted, "ReceiveMaximum", MOST_IN_FLIGHT))

    def _turned_away(self, error: LostError) -> OSError:
        """Say why a broker may have hung up before it answered: with TLS 1.3 it refuses a client only now."""
        if self._tls is None:
            return LostError("hangs up before it answers; does this port want TLS ([mqtt.tls])?", error.code)
        text = explain_tls(self._said, has_certificate=self._tls.cert_file is not None)
        return RefusedError(text) if text else LostError("hangs up before it answers; look at its log", error.code)

    def _on_log(self, _client: Any, _data: Any, level: int, text: str) -> None:
        if level == LogLevel.MQTT_LOG_ERR:  # the only place where paho tells what TLS said
            self._said = text

    # ---- paho's callbacks

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: ReasonCode, properties: Any) -> None:
        if reason.is_failure:
            self._refused = f"refuses us: {reason}; check user name, password and access rules"
        else:
            self._accepted = properties

    def _on_disconnect(self, _client: Any, _data: Any, flags: Any, reason: ReasonCode, _properties: Any) -> None:
        said = bool(flags.is_disconnect_packet_from_server)
        self._lost = (
            f"closed the connection: {reason}" if said else "connection lost",
            int(reason.value) if said else 0,
        )

    def _on_publish(self, _client: Any, _data: Any, mid: int, reason: ReasonCode, _properties: Any) -> None:
        tag, _, topic = self._sent.pop(mid, (0, 0.0, ""))
        if reason.is_failure:
            self._deny(topic, tag, f"refuses {topic}: {reason}; let this user publish there (access rules)")
            return
        self.refusals.pop(topic, None)
        if tag:
            self._acked.append(tag)

    def _deny(self, topic: str, tag: int, why: str) -> None:
        self.refusals[topic] = why
        if tag:
            self._denied.append(tag)

    def _on_subscribe(self, _client: Any, _data: Any, _mid: int, reasons: list[ReasonCode], _properties: Any) -> None:
        self._subscribed = reasons

    def _on_message(self, client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        payload = bytes(message.payload[: COMMAND_BYTES + 1])
        try:
            topic = message.topic
        except UnicodeDecodeError:  # no broker should let it through
            client.ack(message.mid, message.qos)
            return
        self._received.append(Message(topic, payload, message.retain, message.mid if message.qos else 0))

    # ---- the caller's side

    @property
    def room(self) -> int:
        """How many more messages may be sent before one must be acknowledged."""
        return self._most - len(self._sent)

    @property
    def window(self) -> int:
        """How many messages the broker lets us send before it has acknowledged one; at least 1."""
        return self._most

    @property
    def received(self) -> int:
        """Messages that wait for `take`."""
        return len(self._received)

    @property
    def waiting_s(self) -> float:
        """Age of the oldest message that is not acknowledged, in seconds; 0 when there is none."""
        for _, sent_s, _ in self._sent.values():  # in order of sending
            return time.monotonic() - sent_s
        return 0.0

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int = 0, tag: int = 0) -> None:
        """Send one message with QoS 1; `step` returns a ``tag`` other than 0 once the broker has it.

        Waits while the window is full: a broker that is sent more than it takes hangs up. ``expiry_s`` is whole
        seconds, 0 for none, and has no effect on MQTT 3.1.1. What the broker does not take is told by `refusals`, and
        its tag by `denied`. Raises `LostError` or `RefusedError`.
        """
        needs = len(topic) + len(payload) + HEADER_BYTES
        if needs > self._largest:  # a broker that is sent more than that hangs up
            text = f"takes messages of at most {self._largest} bytes, and one on {topic} has {needs}"
            self._deny(topic, tag, f"{text}; raise its max_packet_size")
            return
        while self.room < 1:
            self._wait(self._silence_s)
        properties = None
        if expiry_s and self._v5:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.MessageExpiryInterval = expiry_s
        info = self._client.publish(topic, payload, qos=1, retain=retain, properties=properties)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise LostError(*(self._lost or ("connection lost", 0)))
        self._sent[info.mid] = (tag, time.monotonic(), topic)

    def denied(self) -> list[int]:
        """Return the tags of messages that the broker did not take since the last call."""
        denied, self._denied = self._denied, []
        return denied

    def subscribe(self, topic_filters: Sequence[str], *, timeout_s: float = 3.0) -> None:
        """Ask for messages with QoS 1 and wait until the broker agrees; `take` returns what comes.

        Raises `RefusedError` when the broker does not let us read there, and `LostError`.
        """
        self._subscribed = []
        # With MQTT 5 a retained message is told from others also when it is sent while we listen.
        how: Any = SubscribeOptions(qos=1, retainAsPublished=True) if self._v5 else 1
        code, _ = self._client.subscribe([(name, how) for name in topic_filters])
        if code != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise LostError(*(self._lost or ("connection lost", 0)))
        deadline = time.monotonic() + timeout_s
        while not self._subscribed:
            left = deadline - time.monotonic()
            if left <= 0:
                raise SilentError(f"says nothing to a subscription for {timeout_s:g} s")
            self._wait(left)
        for name, reason in zip(topic_filters, self._subscribed, strict=False):
            if reason.is_failure:
                raise RefusedError(
                    f"does not let us read {name}: {reason}; let this user subscribe there (access rules)"
                )

    def take(self) -> Message | None:
        """Return the oldest message received and let the broker send another for it; None when there is none.

        Raises `LostError`.
        """
        if not self._received:
            return None
        message = self._received.popleft()
        if message.mid and self._client.ack(message.mid, 1) != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise LostError(*(self._lost or ("connection lost", 0)))
        return message

    def step(self, timeout_s: float, wake_fd: int = -1) -> list[int]:
        """Wait for the network or ``wake_fd``, at most ``timeout_s``; return the tags acknowledged meanwhile.

        Raises `LostError` or `RefusedError`.
        """
        self._wait(timeout_s, wake_fd)
        acked, self._acked = self._acked, []
        return acked

    def _wait(self, timeout_s: float, wake_fd: int = -1) -> None:
        client = self._client
        sock = self._socket()
        poll = select.poll()
        poll.register(sock, select.POLLIN | (select.POLLOUT if client.want_write() else 0))
        if wake_fd >= 0:
            poll.register(wake_fd, select.POLLIN)
        hidden = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
        events = dict(poll.poll(0 if hidden else max(timeout_s, 0) * 1000))
        ready = events.get(sock.fileno(), 0)
        if hidden or ready & ~select.POLLOUT:
            client.loop_read()
        if ready & select.POLLOUT:
            client.loop_write()
        client.loop_misc()
        if self._refused:
            raise RefusedError(self._refused)
        if self._lost is not None:
            raise LostError(*self._lost)
        if self.waiting_s > self._silence_s:
            raise SilentError(f"acknowledges nothing for {self._silence_s:g} s")

    def finish(self, timeout_s: float) -> list[int]:
        """Wait until everything is acknowledged, say good-bye (no last will) and hang up; return the last tags."""
        deadline = time.monotonic() + timeout_s
        acked: list[int] = []
        with contextlib.suppress(OSError):
            while self._sent and (left := deadline - time.monotonic()) > 0:
                acked += self.step(left)
            if not self._sent:
                self._client.disconnect()
                while self._client.want_write() and (left := deadline - time.monotonic()) > 0:
                    self.step(left)
        acked += self._acked
        self.abort()
        return acked

    def abort(self) -> None:
        """Hang up hard: what the kernel has not sent yet must not reach a PLC when the cable is back."""
        sock = self._client.socket()
        if isinstance(sock, socket.socket):  # not None; a websocket, paho's third kind, is never asked for
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, HARD)
            self._client.on_disconnect = None
            with contextlib.suppress(OSError):
                sock.close()

    def _socket(self) -> socket.socket:
        sock = self._client.socket()
        if not isinstance(sock, socket.socket):
            raise LostError(*(self._lost or ("connection lost", 0)))
        return sock
