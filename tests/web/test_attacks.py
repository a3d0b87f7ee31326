"""The page as an attacker meets it, a real process and a real browser: each attempt is refused and changes nothing."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import httpx
import pytest
import socketio
from tests.broker import wait_until
from tests.web.kit import DOTS, LINK, PASSWORDS, ReviewPage, add_part, add_to_ledger

from lineward.daemon.labels import LabelStore
from lineward.daemon.web.people import Attempts

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path
    from typing import Any

    from tests.web.kit import Chromium

PAGES = ("/", "/review", "/conflicts", "/data", "/improve")
IMAGE = f"{1:012x}"


@pytest.fixture
def own_page(tmp_path: Path) -> Iterator[ReviewPage]:
    """A page of a test's own, with one labelled picture."""
    page = ReviewPage(tmp_path / "own").add_people()
    store = LabelStore(page.storage)
    store.give(add_part(store, 1).image, "eve", "pass")
    add_to_ledger(store, [1])
    store.close()
    yield page.start()
    page.kill()


def state(page: ReviewPage) -> list[str]:
    """Everything that is written down about labels and people, and every other file."""
    found: list[str] = []
    for name in ("labels.sqlite3", "people.sqlite3"):
        db = sqlite3.connect(page.storage / name)
        found += [line for line in db.iterdump() if "sessions" not in line]
        db.close()
    return found + sorted(str(path) for path in page.storage.rglob("*") if "sqlite3" not in path.name)


@pytest.mark.parametrize(
    "path",
    [
        "/picture/..%2f..%2fpeople.sqlite3/whole",
        "/picture/%2e%2e%2f%2e%2e%2fpeople.sqlite3/view",
        f"/picture/{IMAGE}/..%2f..%2fpeople.sqlite3",
        "/picture/%00/whole",
        "/assets/..%2fserver.py",
        "/assets/%2e%2e/%2e%2e/config.py",
        "/assets//etc/passwd",
        "/_nicegui/3.18.0/static/..%2f..%2fnicegui.py",
        "/export/..%2f..%2fpeople",
    ],
)
def test_no_path_leads_out(served: ReviewPage, path: str) -> None:
    """Rule: no address gives a file that is not a picture or an asset, to the mightiest role neither."""
    with served.client("eve") as client:
        answer = client.get(path)
    assert answer.status_code in {400, 403, 404, 422}, answer.text
    assert b"SQLite" not in answer.content
    assert b"from __future__" not in answer.content


def test_a_picture_outside_the_storage_folder_is_not_served(served: ReviewPage) -> None:
    """Rule: a path in the label store that leads out (a crafted ledger) is not followed, by link or by dots."""
    with served.client("tom") as client:
        for number in (LINK, DOTS):
            assert [client.get(f"/picture/{number:012x}/{size}").status_code for size in ("whole", "view")] == [
                404,
                404,
            ]
        assert client.get(f"/picture/{IMAGE}/whole").status_code == 200


def test_nobody_gets_anything_without_signing_in(served: ReviewPage) -> None:
    """Rule: only the sign-in page and its assets are open; a forged session opens nothing."""
    for cookie in ("", "lineward_session=forged", "lineward_session=' OR 1=1 --", f"lineward_session={'x' * 5000}"):
        with served.client() as client:
            for path in (*PAGES, "/export/csv", "/docs", "/openapi.json"):
                answer = client.get(path, headers={"cookie": cookie})
                assert answer.status_code == 303, path
                assert answer.headers["location"].startswith("/login?to=")
            assert client.get(f"/picture/{IMAGE}/view", headers={"cookie": cookie}).status_code == 401
            assert client.get("/login", headers={"cookie": cookie}).status_code == 200
    assert served.lines("session over: GET")


@pytest.mark.parametrize(
    "other",
    ["theme=dark", "grafana[x]=1", "plain", "foo=bar baz", 'a=b"c', '{"a"}=1', "x@y=1", "=", "lineward_session_old=x"],
)
def test_a_cookie_of_another_program_signs_nobody_out(served: ReviewPage, other: str) -> None:
    """Rule: cookies are shared by all ports of a host; what a PLC's page has set there is passed over, odd or not."""
    with served.client("tom") as client:
        own = f"lineward_session={client.cookies['lineward_session']}"
        client.cookies.clear()
        for cookie in (f"{other}; {own}", f"{own};{other}"):
            assert client.get("/review", headers={"cookie": cookie}).status_code == 200


def test_head_is_answered_like_get_without_the_body(served: ReviewPage) -> None:
    """Rule: a monitor that asks with HEAD reads what GET would say, and the same guard answers it."""
    with served.client() as client:
        assert client.head("/login").status_code == 200
        assert client.head("/review").status_code == 303
        assert client.head(f"/picture/{IMAGE}/view").status_code == 401
    with served.client("tom") as client:
        for path in ("/review", f"/picture/{IMAGE}/whole"):
            answer = client.head(path)
            assert (answer.status_code, answer.content) == (200, b""), path
        assert client.get("/review").status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "", "http://127.0.0.1:1", "file://x"])
def test_a_request_from_another_page_is_refused(served: ReviewPage, origin: str) -> None:
    """Rule: what changes something must come from the page itself, with the right cookie too (CSRF)."""
    with served.client("tom") as client:
        answer = client.post("/logout", headers={"origin": origin})
        assert answer.status_code == 403
        assert "comes from another page" in answer.text
        assert client.get("/review").status_code == 200
    with served.client() as client:
        form = {"name": "tom", "password": PASSWORDS["tom"]}
        assert client.post("/login", data=form, headers={"origin": origin}).status_code == 403


def test_a_name_that_is_not_the_pages_is_refused(served: ReviewPage) -> None:
    """Rule: a name that an attacker lets point to this machine (DNS rebinding) opens nothing."""
    with served.client() as client:
        for host in ("evil.example", f"evil.example:{served.port}", "127.0.0.1.evil.example", ""):
            answer = client.get("/login", headers={"host": host})
            assert answer.status_code in {400, 421}, host
        assert client.get("/login", headers={"host": f"localhost:{served.port}"}).status_code == 200


def test_an_operator_reaches_nothing_that_changes_something(served: ReviewPage) -> None:
    """Rule: pages and actions of other roles are refused with the reason, and logged."""
    before = state(served)
    with served.client("olga") as client:
        for path in PAGES[1:]:
            answer = client.get(path)
            assert answer.status_code == 403, path
            assert "is for the role technician; olga is operator" in answer.text
        answer = client.get("/export/csv?product=bracket")
        assert answer.status_code == 403
        assert answer.text == "an export needs the role engineer; olga is operator"
    with served.client("tom") as client:
        assert client.get("/export/csv?product=bracket").status_code == 403
    assert served.lines(r"refused an export to olga \(operator\)")
    assert served.lines(r"refused /improve to olga \(operator\)")
    assert state(served) == before


def test_nobody_speaks_for_the_page_of_somebody_else(served: ReviewPage) -> None:
    """Rule: a socket of another session may neither join a page nor send events to it, though it knows its name."""

    async def attack(url: str, cookie: str, name: str) -> tuple[bool, bool]:
        foreign, own = socketio.AsyncClient(), socketio.AsyncClient()
        path = "/_nicegui_ws/socket.io"
        query = f"client_id={name}&tab_id=t&document_id=d&implicit_handshake=true&next_message_id=0"
        headers = {"Cookie": cookie, "Origin": url}  # copied: the client takes the cookie out
        try:
            await foreign.connect(f"{url}?{query}", dict(headers), socketio_path=path, wait_timeout=20)
        except (socketio.exceptions.ConnectionError, RuntimeError):  # it hangs up before it has read the refusal
            direct = False
        else:
            direct = True
        await own.connect(url, dict(headers), socketio_path=path, wait_timeout=20)
        joined = await own.call("handshake", {"client_id": name, "tab_id": "t", "document_id": "d"})
        await own.emit("event", {"client_id": name, "id": 4, "listener_id": "x", "args": {}})
        for client in (foreign, own):
            await client.disconnect()
        return direct, bool(joined)

    with served.client("eve") as victim, served.client("olga") as attacker:
        page = victim.get("/improve").text
        (name,) = set(re.findall(r"client_id['\"]?\s*:\s*['\"]([0-9a-f-]{36})", page)) or {""}
        assert name
        cookie = f"lineward_session={attacker.cookies['lineward_session']}"
        assert in_a_loop(attack(served.url, cookie, name)) == (False, False)
        wait_until(lambda: served.lines("a message to a page of somebody else"), 10, "the log says so")
        own = f"lineward_session={victim.cookies['lineward_session']}"
        assert in_a_loop(attack(served.url, own, name)) == (True, True)


def test_a_session_that_is_over_hears_nothing_and_is_not_heard(own_page: ReviewPage) -> None:
    """Rule: the open socket of a page ends with its session; what it sends into the log is let fall in any case."""

    async def listen(url: str, cookie: str, name: str, sign_out: Callable[[], object]) -> tuple[bool, bool]:
        client = socketio.AsyncClient()
        heard: list[object] = []
        client.on("update", heard.append)
        headers = {"Cookie": cookie, "Origin": url}
        query = f"client_id={name}&tab_id=t&document_id=d&implicit_handshake=true&next_message_id=0"
        await client.connect(f"{url}?{query}", headers, socketio_path="/_nicegui_ws/socket.io", wait_timeout=20)
        await client.emit("log", {"client_id": name, "level": "warning", "message": "x\n16:00:00.000  eve promotes it"})
        for _ in range(100):
            await asyncio.sleep(0.1)
            if heard:
                break
        before = bool(heard)
        await asyncio.to_thread(sign_out)
        await asyncio.sleep(1.0)
        heard.clear()
        await client.emit("event", {"client_id": name, "id": 4, "listener_id": "x", "args": {}})
        await asyncio.sleep(5.0)  # the page draws itself anew each second
        await client.disconnect()
        return before, bool(heard)

    with own_page.client("olga") as client:
        page = client.get("/").text
        (name,) = set(re.findall(r"client_id['\"]?\s*:\s*['\"]([0-9a-f-]{36})", page))
        cookie = f"lineward_session={client.cookies['lineward_session']}"
        heard = in_a_loop(listen(own_page.url, cookie, name, lambda: client.post("/logout")))
    assert heard == (True, False)
    assert own_page.lines("a message to a page of somebody else")
    assert not own_page.lines("eve promotes it")


@pytest.mark.parametrize("pieces", ["bytes=5-2", "lines=1", "bytes=99999999999-", "bytes=0-9"])
def test_a_download_in_pieces_leaves_nothing_on_the_disk(own_page: ReviewPage, pieces: str) -> None:
    """Rule: whoever asks for a piece of an export gets all of it, and the copy on the line's disk goes."""
    with own_page.client("eve") as client:
        answer = client.get("/export/csv?product=bracket", headers={"range": pieces})
        assert answer.status_code == 200
        assert answer.text.startswith("file,")
    wait_until(lambda: not list(own_page.storage.glob(".export-*")), 10, "the copy is gone")


def in_a_loop(attack: Coroutine[Any, Any, tuple[bool, bool]]) -> tuple[bool, bool]:
    """Run it in another thread: a browser that is open keeps a loop in this one."""
    with ThreadPoolExecutor(1) as other:
        return other.submit(asyncio.run, attack).result()


def test_words_stay_words_in_the_browser(served: ReviewPage, browser: Chromium) -> None:
    """Rule: a script in a part id or a camera's name is read on the page, and never run."""
    opened: list[str] = []
    with browser.page(served.url, "eve") as page:
        page.on("dialog", lambda dialog: (opened.append(dialog.message), dialog.dismiss()))
        for path in PAGES:
            page.goto(served.url + path)
            page.wait_for_function("window.did_handshake === true")
            assert page.title() != "owned"
            assert page.locator("main img[src='x']").count() == 0
            if path == "/data":
                page.wait_for_selector("td:has-text('<img src=x onerror=alert(1)>')")
                page.wait_for_selector(".lw-thumb:has-text('document.title=')")
        page.goto(f"{served.url}/review")
        page.wait_for_selector(".lw-recent .lw-thumb")
    assert not opened


def test_headers_keep_the_page_in(served: ReviewPage) -> None:
    """Rule: nothing from elsewhere is loaded, framed, guessed or remembered; the cookie is out of reach of scripts."""
    with served.client() as client:
        answer = client.post("/login", data={"name": "tom", "password": PASSWORDS["tom"]})
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        page = client.get("/review")
        policy = page.headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "http:" not in policy
        assert "frame-ancestors 'none'" in policy
        assert page.headers["x-content-type-options"] == "nosniff"
        assert page.headers["x-frame-options"] == "DENY"
        assert page.headers["cache-control"] == "no-store"
        outside = re.findall(r"(?:src|href)=[\"'](?:https?:)?//[^\"']+", page.text)
        assert outside == []


@pytest.mark.parametrize(
    "to", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)", "/\r\nX: y"]
)
def test_signing_in_leads_nowhere_else(served: ReviewPage, to: str) -> None:
    """Rule: after signing in one is on this page, whatever the link said; what it said is not run as a script."""
    with served.client() as client:
        answer = client.post("/login", data={"name": "tom", "password": PASSWORDS["tom"], "to": to})
        assert answer.headers["location"] == "/"
        shown = client.get("/login", params={"to": '"><script>alert(1)</script>'})
        assert "<script>alert" not in shown.text


def test_too_large_or_too_odd_requests_are_refused(served: ReviewPage) -> None:
    """Rule: a body beyond its limit is cut off, with a length or without; the page goes on."""
    big = b"x" * (3 << 20)
    with served.client("eve") as client:
        answer = client.post("/login", content=big)
        assert answer.status_code == 413
        assert "nothing was changed" in answer.text
        for path in ("/login", "/_nicegui/client/none/upload/1"):
            try:
                answer = client.post(path, content=iter([big] * 3))
            except httpx.TransportError:
                continue
            assert answer.status_code >= 400
        assert client.get("/review").status_code == 200


def test_a_script_in_a_part_id_stays_text(served: ReviewPage) -> None:
    """Rule: what comes from the line is shown as text, never as a page."""
    with served.client("eve") as client:
        page = client.get("/data").text
    assert "document.title" in page
    assert "<script>document.title" not in page
    assert "<img src=x" not in page


def test_two_hundred_wrong_passwords_a_minute_get_nowhere(served: ReviewPage) -> None:
    """Rule: after a few the password is not even looked at, 429 says how long; it is logged and the page goes on."""
    guesser = httpx.Client(
        base_url=served.url, headers={"origin": served.url}, transport=httpx.HTTPTransport(local_address="127.0.0.2")
    )
    before = len(served.lines("sign-in refused"))
    with guesser:
        guesses = ({"name": f"tom{n % 20}", "password": f"guess{n}"} for n in range(200))
        said = [guesser.post("/login", data=guess).status_code for guess in guesses]
        last = guesser.post("/login", data={"name": "eve", "password": PASSWORDS["eve"]})
    assert said.count(403) == Attempts.PER_ADDRESS
    assert said.count(429) == 200 - Attempts.PER_ADDRESS
    assert last.status_code == 429
    assert int(last.headers["retry-after"]) > 0
    assert "too many wrong passwords; wait" in last.text
    assert len(served.lines("sign-in refused")) == before + 201
    with served.client("eve") as client:
        assert client.get("/review").status_code == 200
