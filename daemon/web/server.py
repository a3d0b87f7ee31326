"""The process of `lineward review`: web server, sign-in, pictures; the pages are in files of their own."""

from __future__ import annotations

import asyncio
import html
import logging
import os
import secrets
import socket
import ssl
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse, RedirectResponse
from nicegui import core, ui
from starlette.concurrency import run_in_threadpool
from starlette.staticfiles import StaticFiles

from lineward.daemon.config import ConfigError
from lineward.daemon.endpoint import load_pair, readable
from lineward.daemon.web import conflicts_page, data_page, improve_page, live_page, review_page, shell
from lineward.daemon.web.guard import COOKIE, Guard, address, only_own_clients
from lineward.daemon.web.people import MAX_PASSWORD, ForbiddenError, PeopleError, TooManyError
from lineward.daemon.web.pictures import THUMB_PX, VIEW_PX
from lineward.daemon.web.station import Station

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from lineward.daemon.config import Config

log = logging.getLogger("lineward.web")

ASSETS = Path(__file__).parent / "assets"
SIZES = {"view": VIEW_PX, "thumb": THUMB_PX}
KEEP = {"cache-control": "private, max-age=86400"}
KEEP_SHORT = {"cache-control": "private, max-age=30"}
"""A heat-map is another one after a promotion."""

NICE = 5
STOP_S = 2


def serve(config: Config) -> None:
    """Serve the page until told to stop (SIGTERM or Ctrl-C).

    Raises
    ------
    SecretError
        Certificate or key cannot be used; the page does not start in the clear instead.
    ConfigError
        The address is not of this machine, or the port is taken.
    """
    review = config.review
    cert_file = readable("review.cert_file", review.cert_file)
    key_file = readable("review.key_file", review.key_file)
    if cert_file is not None:
        load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), "review", cert_file, key_file)
    with suppress(OSError):
        os.nice(NICE)  # the inspection goes first
    with _listen(review.host, review.port) as listening:
        app = make_app(config)
        scheme = "https" if review.cert_file else "http"
        log.info("the review page is at %s://%s:%d", scheme, review.host, review.port)
        settings = uvicorn.Config(
            app,
            ssl_certfile=cert_file,
            ssl_keyfile=key_file,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=STOP_S,
            ws_max_size=1 << 20,
        )
        uvicorn.Server(settings).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ConfigError(
            f"review.host = {host!r}, review.port = {port}: nobody can listen there: {error.strerror or error}; end "
            "what has the port, or choose another port or an address of this machine"
        ) from error


def make_app(config: Config) -> Guard:
    """Put the page together: everything is behind the guard."""
    station = Station(config)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=_closing(station))
    app.mount("/assets", StaticFiles(directory=ASSETS), name="assets")
    _add_sign_in(app, station)
    _add_pictures(app, station)
    data_page.add_downloads(app, station)
    for page in (live_page, review_page, conflicts_page, data_page, improve_page):
        page.register(station)
    ui.run_with(
        app,
        title="Lineward",
        favicon=ASSETS / "icon.svg",
        dark=None,
        tailwind=False,
        show_welcome_message=False,
        storage_secret=secrets.token_urlsafe(32),
        reconnect_timeout=20.0,  # a page on a busy box that missed its ping must not start from the beginning
    )
    only_own_clients(core.sio, shell.OWNERS.get, station.people, shell.session_over)
    return Guard(
        app,
        people=station.people,
        names=config.review.names,
        owner=shell.OWNERS.get,
        upload_bytes=config.review.upload_mb << 20,
        tls=config.review.cert_file is not None,
    )


def _closing(station: Station) -> Any:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await station.catch_up()  # thousands of pictures may have been kept since the last time
        yield
        await asyncio.to_thread(station.close)

    return lifespan


# ---- signing in


def _add_sign_in(app: FastAPI, station: Station) -> None:
    @app.get("/login")
    def login(request: Request) -> Response:
        if request.scope["state"]["person"] is not None:
            return RedirectResponse("/", 303)
        nobody = (
            ""
            if station.people.list()
            else (
                "Nobody may sign in yet. On the machine itself, run: "
                "lineward review user add NAME --role technician --config FILE"
            )
        )
        return HTMLResponse(_login_html(nobody, _own_path(request.query_params.get("to", "/"))))

    @app.post("/login")
    async def sign_in(request: Request) -> Response:
        form = parse_qs((await request.body()).decode("utf-8", "replace"))
        name, password, to = (form.get(field, [""])[0] for field in ("name", "password", "to"))
        try:
            token = await run_in_threadpool(
                station.people.sign_in, name[:64].strip(), password[:MAX_PASSWORD], address(request.scope)
            )
        except TooManyError as error:
            return HTMLResponse(
                _login_html(str(error), _own_path(to)), 429, {"retry-after": str(max(1, round(error.wait_s)))}
            )
        except ForbiddenError as error:
            return HTMLResponse(_login_html(f"{error}; try again, or ask your engineer", _own_path(to)), 403)
        except PeopleError as error:
            return HTMLResponse(_login_html(str(error), _own_path(to)), 503)
        answer = RedirectResponse(_own_path(to), 303)
        answer.set_cookie(
            COOKIE,
            token,
            httponly=True,
            samesite="strict",
            secure=station.config.review.cert_file is not None,
            path="/",
        )
        return answer

    @app.post("/logout")
    async def sign_out(request: Request) -> Response:
        await run_in_threadpool(station.people.sign_out, request.scope["state"]["token"])
        shell.end_pages(request.scope["state"]["token"])
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(COOKIE, path="/")
        return answer


def _own_path(to: str) -> str:
    """Return a path of this page, whatever was asked for."""
    fine = to.startswith("/") and not to.startswith(("//", "/\\", "/login")) and to.isprintable()
    return to if fine else "/"


def _login_html(message: str, to: str) -> str:
    said = f'<p class="lw-said" role="alert">{html.escape(message)}</p>' if message else ""
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Lineward: sign in</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="/assets/icon.svg">
<link rel="stylesheet" href="/assets/lineward.css"></head><body class="lw-login"><main>
<img src="/assets/icon.svg" alt="" width="56" height="56"><h1>Lineward</h1>{said}
<form method="post" action="/login"><input type="hidden" name="to" value="{html.escape(to, quote=True)}">
<label for="name">Name</label><input id="name" name="name" autocomplete="username" required autofocus>
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" required>
<button type="submit">Sign in</button></form></main></body></html>"""


# ---- pictures


def _add_pictures(app: FastAPI, station: Station) -> None:
    @app.get("/picture/{image}/{size}")
    def picture(image: str, size: str) -> Response:
        if size == "whole":
            part = station.labels.part(image)
            path = station.pictures.path(part) if part else None
            return _gone() if path is None else FileResponse(path, headers=KEEP)
        data = station.pictures.jpeg(image, SIZES[size]) if size in SIZES else None
        return _gone() if data is None else Response(data, media_type="image/jpeg", headers=KEEP)

    @app.get("/thumbnail/{at_ns}")
    def thumbnail(at_ns: int) -> Response:
        data = station.thumbnails.jpeg(at_ns)
        return _gone() if data is None else Response(data, media_type="image/jpeg", headers=KEEP)

    @app.get("/picture/{image}")
    async def heat(image: str) -> Response:
        part = await run_in_threadpool(station.labels.part, image)
        path = station.pictures.path(part) if part else None
        model = await run_in_threadpool(station.model_path, part.product) if part else None
        if path is None or model is None:
            return _gone()
        try:
            return Response(await station.heat.png(model, path), media_type="image/png", headers=KEEP_SHORT)
        except ValueError as error:
            return PlainTextResponse(str(error), 422)


def _gone() -> Response:
    return PlainTextResponse("this picture is not there (any more); the line's quota may have deleted it", 404)
