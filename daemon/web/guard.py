"""Every request passes here first: right host, own origin, signed in, not too large; and headers that keep the page in.

The page never loads anything from elsewhere (Content-Security-Policy), so it works without internet and reports nobody.
"""

from __future__ import annotations

import ipaddress
import logging
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, urlsplit

from starlette.responses import PlainTextResponse, RedirectResponse, Response

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from lineward.daemon.web.people import People

log = logging.getLogger("lineward.web")

COOKIE = "lineward_session"
SMALL_BODY = 1 << 20
PUBLIC = ("/login", "/assets/")
PARTS = ("/_nicegui", "/picture", "/thumbnail", "/assets")
"""What a page loads by itself: no sign that somebody is there."""

SAFE = ("GET", "HEAD", "OPTIONS")

_HEADERS = {
    # NiceGUI compiles its templates in the browser and writes its start-up code into the page.
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' {socket}; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


class Guard:
    """ASGI middleware around the whole page.

    Parameters
    ----------
    names
        Host names under which the page may be called, besides addresses and localhost; an address that somebody else's
        name points to (DNS rebinding) is not one of them.
    owner
        Returns the session token that a NiceGUI client was made for; nobody else may speak for that client.
    upload_bytes
        Largest body of an import.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        people: People,
        names: Collection[str],
        owner: Callable[[str], str | None],
        upload_bytes: int,
        tls: bool,
    ) -> None:
        self._app = app
        self._people = people
        self._names = {name.lower() for name in names} | {"localhost"}
        self._owner = owner
        self._upload_bytes = upload_bytes
        self._tls = tls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it here."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        refusal = self._refusal(scope, headers, host)
        if refusal is not None:
            said = bytes(refusal.body).decode()
            log.warning("refused %s %s from %s: %s", _method(scope), scope["path"][:200], address(scope), said)
            await _refuse(scope, receive, send, refusal)
            return
        token = session_token(headers)
        person = self._people.who(token, touch=scope["type"] == "http" and not scope["path"].startswith(PARTS))
        scope.setdefault("state", {})
        scope["state"]["person"], scope["state"]["token"] = person, token
        if person is None and not scope["path"].startswith(PUBLIC):
            if token:
                log.info("session over: %s %s from %s", _method(scope), scope["path"][:200], address(scope))
            await _refuse(scope, receive, send, _sign_in_first(scope))
            return
        if not self._owns(scope, token):
            log.warning("refused %s from %s: a client of somebody else", scope["path"][:200], address(scope))
            await _refuse(scope, receive, send, PlainTextResponse("this page belongs to another session", 403))
            return
        limited, sending = self._limited(scope, receive), self._with_headers(scope, send, host)
        if scope["type"] == "http" and scope["method"] == "HEAD":  # a monitor asks so; no page has a route for it
            await self._app({**scope, "method": "GET"}, limited, _without_body(sending))
        else:
            await self._app(scope, limited, sending)

    def _refusal(self, scope: Scope, headers: dict[str, str], host: str) -> Response | None:
        if not self._knows(host):
            return PlainTextResponse(
                "this name is not one of the page's; add it to review.names of the configuration", 421
            )
        if scope["type"] == "websocket" or scope["method"] not in SAFE:
            origin = headers.get("origin") or headers.get("referer", "")
            parts = urlsplit(origin)
            if parts.scheme not in {"http", "https"} or parts.netloc.lower() != host.lower():
                return PlainTextResponse("this request comes from another page; open the review page itself", 403)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._most(scope):
            return PlainTextResponse(
                f"larger than {self._most(scope) >> 20} MB (review.upload_mb); nothing was changed", 413
            )
        return None

    def _knows(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _most(self, scope: Scope) -> int:
        return self._upload_bytes if "/upload/" in scope["path"] else SMALL_BODY

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """Cut off a body that is longer than its kind may be, also when it hides its length."""
        left = self._most(scope)

        async def counted() -> Message:
            nonlocal left
            message = await receive()
            if message["type"] == "http.request":
                left -= len(message.get("body", b""))
                if left < 0:
                    return {"type": "http.disconnect"}
            return message

        return counted if scope["type"] == "http" else receive

    def _owns(self, scope: Scope, token: str) -> bool:
        path = scope["path"]
        client = ""
        if "/_nicegui_ws" in path:
            client = (parse_qs(scope.get("query_string", b"").decode("latin-1")).get("client_id") or [""])[0]
        elif "/_nicegui/client/" in path:
            client = path.split("/_nicegui/client/")[1].split("/")[0]
        if not client:
            return True
        owner = self._owner(client)
        return owner is None or owner == token

    def _with_headers(self, scope: Scope, send: Send, host: str) -> Send:
        socket = f"{'wss' if self._tls else 'ws'}://{host}"

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = {
                    **_HEADERS,
                    "content-security-policy": _HEADERS["content-security-policy"].format(socket=socket),
                }
                given = {name.lower() for name, _ in message["headers"]}
                if b"cache-control" not in given:
                    extra["cache-control"] = "no-store"
                if self._tls:
                    extra["strict-transport-security"] = "max-age=31536000"
                message["headers"] = [
                    *message["headers"],
                    *((name.encode(), value.encode("latin-1")) for name, value in extra.items()),
                ]
            await send(message)

        return sending if scope["type"] == "http" else send


def only_own_clients(
    sio: Any, owner: Callable[[str], str | None], people: People, session_over: Callable[[str], None]
) -> None:
    """Let a socket speak for pages of its own session only, while it lasts: each message names the page it is for.

    ``session_over`` is called with the page of a session that has ended, to tell the person.
    """
    handlers = sio.handlers["/"]

    def owns(sid: str, message: Any) -> bool:
        name = str(message.get("client_id", "")) if isinstance(message, dict) else ""
        token = session_token({"cookie": str((sio.get_environ(sid) or {}).get("HTTP_COOKIE", ""))})
        if token and owner(name) == token:
            if people.who(token, touch=False) is not None:
                return True
            session_over(name)
            return False
        log.warning("refused a message to a page of somebody else")
        return False

    for event in ("event", "javascript_response", "ack"):
        handlers[event] = _checked(handlers[event], owns)
    handlers["log"] = lambda *_: None  # a browser would write into our log whatever it likes
    shake = handlers["handshake"]

    async def handshake(sid: str, message: Any) -> bool:
        return owns(sid, message) and bool(await shake(sid, message))

    handlers["handshake"] = handshake


def _checked(act: Callable[[str, Any], None], owns: Callable[[str, Any], bool]) -> Callable[[str, Any], None]:
    def checked(sid: str, message: Any) -> None:
        if owns(sid, message):
            act(sid, message)

    return checked


def session_token(headers: dict[str, str]) -> str:
    """Return the session token among the cookies of a request, or an empty text.

    Cookies are shared by all ports of a host: what another program there has set, well formed or not, is passed over.
    """
    pairs = (pair.partition("=") for pair in headers.get("cookie", "").split(";"))
    return next((value.strip().strip('"') for name, _, value in pairs if name.strip() == COOKIE), "")


def address(scope: Scope) -> str:
    """Return who calls, for the log."""
    client = scope.get("client")
    return str(client[0]) if client else "?"


def _without_body(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return sending


def _method(scope: Scope) -> Any:
    return scope.get("method", "websocket")


def _sign_in_first(scope: Scope) -> Response:
    is_part = scope["path"].startswith(PARTS)
    if scope["type"] == "http" and scope["method"] in {"GET", "HEAD"} and not is_part:
        asked = scope.get("query_string", b"").decode("latin-1")
        return RedirectResponse(f"/login?to={quote(scope['path'] + (f'?{asked}' if asked else ''))}", 303)
    return PlainTextResponse("sign in first", 401)


async def _refuse(scope: Scope, receive: Receive, send: Send, response: Response) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
    else:
        await response(scope, receive, send)
