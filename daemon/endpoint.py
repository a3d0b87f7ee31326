"""Where the broker is, who we are there, and what to say when it does not work: what, where and what to do."""

from __future__ import annotations

import contextlib
import os
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket

    from lineward.daemon.config import Mqtt, Station

CREDENTIAL = "credential:"
"""Before the name of a systemd credential, in place of a path."""

FIRST_WORD_S = 0.1


class RefusedError(PermissionError):
    """The broker does not want us: somebody has to change a name, a password, a certificate or a right."""


class LostError(ConnectionError):
    """The connection is gone; ``code`` is the reason a broker gave on MQTT 5, else 0."""

    def __init__(self, why: str, code: int = 0) -> None:
        super().__init__(why)
        self.code = code


class SilentError(LostError):
    """The broker is there and says nothing."""


class SecretError(PermissionError):
    """A file with a password, key or certificate cannot be used; the message names the setting and the remedy."""


class _Context(ssl.SSLContext):
    """Shakes hands when it wraps a socket: paho leaves the socket of a failed handshake open, and hears no reason.

    With TLS 1.3 a broker refuses our certificate only after the handshake has succeeded for us. So its first words are
    awaited, a ticket or a refusal: who sends CONNECT at once gets a reset instead of the reason.
    """

    def wrap_socket(self, sock: socket.socket, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        wrapped = super().wrap_socket(sock, *arguments, **options)
        try:
            wrapped.do_handshake()
            if wrapped.version() == "TLSv1.3":
                _await_refusal(wrapped)
        except BaseException:
            wrapped.close()
            raise
        return wrapped


def _await_refusal(sock: ssl.SSLSocket) -> None:
    timeout_s = sock.gettimeout()
    sock.settimeout(FIRST_WORD_S)
    with contextlib.suppress(TimeoutError):
        sock.recv(1)  # a refusal raises, a hang-up is noticed by whoever sends next, and tickets are taken in silence
    sock.settimeout(timeout_s)


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS 1.2 or newer; the broker's name is always checked. Without ``ca_file`` the system's authorities count."""

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Return the context; the files are read anew, so that a renewed certificate counts from the next connect on.

        Raises `SecretError`.
        """
        ca_file = readable("mqtt.tls.ca_file", self.ca_file)
        cert_file = readable("mqtt.tls.cert_file", self.cert_file)
        key_file = readable("mqtt.tls.key_file", self.key_file)
        try:
            context = _Context(ssl.PROTOCOL_TLS_CLIENT)  # checks certificate and name
            if ca_file is None:
                context.load_default_certs()
            else:
                context.load_verify_locations(ca_file)
        except ssl.SSLError as error:
            raise SecretError(f"mqtt.tls.ca_file = {str(ca_file)!r}: holds no certificate in PEM form") from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if cert_file is not None:
            load_pair(context, "mqtt.tls", cert_file, key_file)
        return context


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the broker is and who we are there.

    Attributes
    ----------
    protocol
        "3.1.1" or "5".
    keepalive_s
        The broker fires the last will after 1.5 times this long without a word from us.
    """

    host: str
    port: int
    client_id: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: Tls | None = None
    protocol: str = "5"
    keepalive_s: int = 15

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def endpoint_of(mqtt: Mqtt, station: Station) -> Endpoint:
    """Read the password and say where the broker is; raises `SecretError`."""
    password = None
    path = readable("mqtt.password_file", mqtt.password_file)
    if path is not None:
        try:
            password = path.read_text(encoding="utf-8").strip()
        except UnicodeDecodeError as error:
            raise SecretError(f"mqtt.password_file = {str(path)!r}: is not UTF-8 text") from error
        if not password:
            raise SecretError(f"mqtt.password_file = {str(path)!r}: is empty")
    return Endpoint(
        host=mqtt.host,
        port=mqtt.port,
        client_id=mqtt.client_id or f"lineward-{station.site}-{station.line}-{station.name}",
        username=mqtt.username,
        password=password,
        tls=None if mqtt.tls is None else Tls(mqtt.tls.ca_file, mqtt.tls.cert_file, mqtt.tls.key_file),
        protocol=mqtt.protocol,
        keepalive_s=mqtt.keepalive_s,
    )


def load_pair(context: ssl.SSLContext, section: str, cert_file: Path, key_file: Path | None) -> None:
    """Let a context show a certificate; raises `SecretError` that names the settings when it cannot be used."""
    try:
        context.load_cert_chain(cert_file, key_file, password=_no_password)
    except ssl.SSLError as error:
        what = (
            "the key does not belong to the certificate"
            if error.reason == "KEY_VALUES_MISMATCH"
            else "certificate or key is not in PEM form, or the key needs a password"
        )
        raise SecretError(f"{section}.cert_file = {str(cert_file)!r}, key_file = {str(key_file)!r}: {what}") from error


def readable(setting: str, path: Path | None) -> Path | None:
    """Return the path of a file that can be read; ``credential:NAME`` becomes the file that systemd made for us.

    Raises
    ------
    SecretError
        It is missing or may not be read; the message names ``setting`` and the remedy.
    """
    if path is None:
        return None
    shown = f"{setting} = {str(path)!r}"
    if str(path).startswith(CREDENTIAL):
        name = str(path).removeprefix(CREDENTIAL)
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        if not folder:
            handed_over = f"LoadCredential={name}:/path/to/file"
            raise SecretError(
                f"{shown}: systemd gave us no credentials; add {handed_over} to the unit, or at a terminal: "
                f"systemd-run --wait --pipe -p User=lineward -p {handed_over} lineward check"
            )
        path = Path(folder, name)
    try:
        with path.open("rb"):
            return path
    except OSError as error:
        raise SecretError(
            f"{shown}: cannot be read: {error.strerror}; give an existing file that belongs to our account"
        ) from error


def _no_password() -> str:
    return ""  # asked at a terminal, the service would wait for ever


_CERTIFICATE = {
    9: "its certificate is not valid yet: check this machine's clock, then the certificate",
    10: "its certificate has expired: renew it on the broker (or check this machine's clock)",
    18: "its certificate is signed by itself, not by {authority}: check mqtt.tls.ca_file",
    19: "its certificate is not signed by {authority}: check mqtt.tls.ca_file",
    20: "its certificate is not signed by {authority}: check mqtt.tls.ca_file",
    21: "its certificate is not signed by {authority}: check mqtt.tls.ca_file",
    62: "its certificate is for another name than {host}: put the name of the certificate into mqtt.host",
    64: "its certificate is for another address than {host}: put the name of the certificate into mqtt.host",
}
"""What OpenSSL's X509_verify_cert_error_string numbers mean to the person in front of the machine."""

_ABOUT_US = "CERTIFICATE|HANDSHAKE_FAILURE|UNKNOWN_CA|ACCESS_DENIED"
_WANTS_CERTIFICATE = "it wants a client certificate: give mqtt.tls.cert_file and mqtt.tls.key_file"
_REFUSED_CERTIFICATE = (
    "it does not accept our client certificate: check who signed mqtt.tls.cert_file and until when it is valid"
)
_ALERT = (
    (
        "UNSUPPORTED_PROTOCOL|PROTOCOL_VERSION|WRONG_SSL_VERSION|NO_PROTOCOLS_AVAILABLE",
        "it offers nothing newer than TLS 1.1: allow TLS 1.2 or 1.3 on the broker",
    ),
    (
        "WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE|PACKET_LENGTH|HTTP_REQUEST|UNEXPECTED_EOF",
        "it does not speak TLS on this port: give its TLS port (usually 8883), or remove [mqtt.tls]",
    ),
)


def explain_tls(said: str, *, has_certificate: bool) -> str:
    """Say what OpenSSL's words about a failed handshake, as ``[SSL: REASON] ...``, mean; empty when they are none."""
    found = re.search(r"\[SSL: (\w+)\]|UNEXPECTED_EOF", said)
    if found is None:
        return ""
    name = found[1] or found[0]
    if re.search(_ABOUT_US, name):
        return _REFUSED_CERTIFICATE if has_certificate else _WANTS_CERTIFICATE
    for pattern, text in _ALERT:
        if re.search(pattern, name):
            return text
    return f"TLS failed ({said}): check host, port and certificates"


def why(error: OSError, endpoint: Endpoint) -> str:
    """Say in one line what is wrong and what to do; the caller names the broker."""
    text = str(error.strerror or error) or type(error).__name__
    tls = endpoint.tls
    match error:
        case SecretError() | RefusedError():
            pass  # says it all
        case ssl.SSLCertVerificationError():
            authority = "an authority of this system" if tls is None or tls.ca_file is None else str(tls.ca_file)
            known = _CERTIFICATE.get(error.verify_code, "its certificate cannot be trusted ({text}): renew it")
            text = known.format(authority=authority, host=endpoint.host, text=error.verify_message)
        case ssl.SSLError():
            text = explain_tls(str(error), has_certificate=tls is not None and tls.cert_file is not None)
        case LostError():
            text = f"{text}; trying again"
        case ConnectionResetError() if tls is not None:
            text = "hangs up during the TLS handshake; is this its TLS port (usually 8883)?"
        case ConnectionRefusedError():
            text = "nothing listens there; is the broker running?"
        case TimeoutError():
            text = "no answer; check host, network and firewall"
        case _:
            text = f"{text}; check host, port and certificates"
    return text
