"""Who may do what: hashed passwords, roles, sessions that end, and guessers that are stopped."""

from __future__ import annotations

import asyncio
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import httpx
import pytest
from starlette.responses import PlainTextResponse

from lineward.daemon.web import people as module
from lineward.daemon.web.guard import COOKIE, Guard
from lineward.daemon.web.people import Attempts, ForbiddenError, People, PeopleError, TooManyError
from lineward.daemon.web.station import Access

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from starlette.types import Receive, Scope, Send

HERE = "192.0.2.7"


class Clock:
    """A wall clock that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_800_000_000.0
        monkeypatch.setattr(module, "_now", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def people(tmp_path: Path, clock: Clock) -> Iterator[People]:  # noqa: ARG001 - its time holds
    found = People(tmp_path, session_s=1800, operator_s=7200)
    for name, role in (("olga", "operator"), ("tom", "technician"), ("eve", "engineer")):
        found.add(name, role, f"secret of {name}")
    yield found
    found.close()


@pytest.mark.usefixtures("people")
def test_passwords_are_argon2_and_the_file_is_private(tmp_path: Path) -> None:
    """Rule: no password is on the disk, only argon2id hashes; nobody else may read the file."""
    file = tmp_path / "people.sqlite3"
    assert file.stat().st_mode & 0o077 == 0
    db = sqlite3.connect(file)
    hashes = [row[0] for row in db.execute("SELECT password FROM people")]
    assert len(set(hashes)) == 3
    assert all(hashed.startswith("$argon2id$v=19$m=19456,t=2,p=1$") for hashed in hashes)
    db.close()
    assert all(b"secret of" not in path.read_bytes() for path in tmp_path.iterdir())


def test_a_session_token_is_not_on_the_disk(people: People, tmp_path: Path) -> None:
    """Rule: who can read the file cannot take over a session."""
    token = people.sign_in("tom", "secret of tom", HERE)
    assert people.who(token) is not None
    assert all(token.encode() not in path.read_bytes() for path in tmp_path.iterdir())


@pytest.mark.parametrize(("name", "password"), [("tom", "wrong"), ("nobody", "secret of tom"), ("tom", ""), ("", "")])
def test_a_wrong_name_or_password_says_the_same(people: People, name: str, password: str) -> None:
    """Rule: the answer does not tell whether the name exists."""
    with pytest.raises(ForbiddenError, match=r"^name or password is wrong$"):
        people.sign_in(name, password, HERE)


def test_each_role_may_do_what_those_before_it_may(people: People) -> None:
    """Rule: operator < technician < engineer, looked at anew before each action."""
    for name, may in (
        ("olga", {"operator"}),
        ("tom", {"operator", "technician"}),
        ("eve", {"operator", "technician", "engineer"}),
    ):
        access = Access(people, people.sign_in(name, f"secret of {name}", HERE))
        for role in ("operator", "technician", "engineer"):
            if role in may:
                assert access.need(role).name == name
            else:
                with pytest.raises(ForbiddenError, match=f"needs the role {role}, {name} is"):
                    access.need(role)


def test_a_changed_role_or_a_removed_person_ends_the_session(people: People) -> None:
    """Rule: rights that were taken away are gone with the next action."""
    tom, eve = (people.sign_in(name, f"secret of {name}", HERE) for name in ("tom", "eve"))
    people.add("tom", "operator", "secret of tom")
    people.remove("eve")
    for token in (tom, eve):
        with pytest.raises(ForbiddenError, match="signed out"):
            Access(people, token).need("operator")


def test_a_technician_is_signed_out_after_half_an_hour_without_a_touch(people: People, clock: Clock) -> None:
    """Rule: a page that refreshes itself is no touch; a touch prolongs, at most to twelve hours."""
    token = people.sign_in("tom", "secret of tom", HERE)
    for _ in range(3):
        clock.now += 1000
        assert people.who(token) is not None
    clock.now += 1000
    assert people.who(token, touch=False) is not None
    clock.now += 1000
    assert people.who(token) is None
    token = people.sign_in("tom", "secret of tom", HERE)
    for _ in range(43):
        clock.now += 1000
        assert people.who(token) is not None
    clock.now += 1000
    assert people.who(token) is None


def test_what_a_page_loads_by_itself_is_no_touch(people: People, clock: Clock) -> None:
    """Rule: pictures, sockets and assets prolong no session; opening a page does, and so does a label given by key."""
    paths = (f"/picture/{1:012x}/view", f"/picture/{1:012x}", "/thumbnail/1", "/assets/lineward.js", "/_nicegui/x.js")

    async def fine(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("fine")(scope, receive, send)

    guard = Guard(fine, people=people, names=(), owner=lambda _: None, upload_bytes=1, tls=False)

    async def get(*paths: str) -> list[str]:
        transport = httpx.ASGITransport(guard)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://localhost", cookies={COOKIE: token}
        ) as client:
            return [(await client.get(path)).text for path in paths]

    def ask(*paths: str) -> None:
        with ThreadPoolExecutor(1) as other:  # the browser's loop runs in this one
            assert other.submit(asyncio.run, get(*paths)).result() == ["fine"] * len(paths)

    token = people.sign_in("tom", "secret of tom", HERE)
    clock.now += 1000
    ask("/review")
    for _ in range(3):
        clock.now += 1000
        Access(people, token).need("technician")  # what each key goes through
        ask(*paths)
    clock.now += 1000
    ask(*paths)
    clock.now += 1000
    assert people.who(token, touch=False) is None


def test_an_operator_stays_signed_in_for_the_shift_however_long_nobody_touches(people: People, clock: Clock) -> None:
    """Rule: a screen above the line goes on; it can change nothing, and ends after its hours."""
    token = people.sign_in("olga", "secret of olga", HERE)
    clock.now += 7000
    assert people.who(token, touch=False) is not None
    clock.now += 300
    assert people.who(token) is None


def test_a_session_survives_a_restart_of_the_page(people: People, tmp_path: Path) -> None:
    """Rule: sessions are in the file; forged tokens are not."""
    token = people.sign_in("tom", "secret of tom", HERE)
    again = People(tmp_path)
    found = again.who(token)
    assert found is not None
    assert found.name == "tom"
    assert again.who(token[:-1] + ("A" if token[-1] != "A" else "B")) is None
    assert again.who("' OR 1=1 --") is None
    again.sign_out(token)
    assert people.who(token) is None
    again.close()


def test_five_wrong_passwords_stop_a_name_and_fifteen_an_address(people: People) -> None:
    """Rule: then nothing is even looked at, the right password neither; others sign in as before."""
    for _ in range(Attempts.PER_NAME):
        with pytest.raises(ForbiddenError):
            people.sign_in("tom", "guess", HERE)
    with pytest.raises(TooManyError, match=r"too many wrong passwords; wait \d+ s"):
        people.sign_in("tom", "secret of tom", HERE)
    assert people.sign_in("eve", "secret of eve", HERE)
    assert people.sign_in("tom", "secret of tom", "192.0.2.8")
    for number in range(Attempts.PER_ADDRESS - Attempts.PER_NAME):
        with pytest.raises(ForbiddenError):
            people.sign_in(f"name{number}", "guess", HERE)
    with pytest.raises(TooManyError):
        people.sign_in("eve", "secret of eve", HERE)


def test_a_guesser_may_try_again_after_a_minute(people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: the wait is a minute, so a mistyping person is not locked out for the shift."""
    import time

    began = time.monotonic()
    for _ in range(Attempts.PER_NAME):
        with pytest.raises(ForbiddenError):
            people.sign_in("tom", "guess", HERE)
    monkeypatch.setattr(module.time, "monotonic", lambda: began + 62 + Attempts.WINDOW_S)
    assert people.sign_in("tom", "secret of tom", HERE)


def test_a_long_list_of_old_attempts_never_lets_a_guesser_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: a wrong password is noted before the list is tidied, whatever has run out in it."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    attempts = Attempts()
    attempts.failed("ann", HERE)
    now[0] += 2 * Attempts.WINDOW_S
    attempts.check("ann", HERE)
    for number in range(Attempts.MOST_KEYS):
        attempts.failed(f"name{number}", f"address{number}")
    for _ in range(Attempts.PER_NAME):
        attempts.check("eve", "192.0.2.9")
        attempts.failed("eve", "192.0.2.9")
    with pytest.raises(TooManyError):
        attempts.check("eve", "192.0.2.9")


@pytest.mark.parametrize(
    ("name", "role", "password", "said"),
    [
        ("a b", "operator", "long enough", "cannot be a name"),
        ("<script>", "operator", "long enough", "cannot be a name"),
        ("", "operator", "long enough", "cannot be a name"),
        ("x" * 33, "operator", "long enough", "cannot be a name"),
        ("ann", "admin", "long enough", "is no role; it is operator, technician, engineer"),
        ("ann", "operator", "short", "at least 8 characters"),
    ],
)
def test_bad_people_are_refused(people: People, name: str, role: str, password: str, said: str) -> None:
    """Rule: one clear line, and nobody was added."""
    with pytest.raises(PeopleError, match=said):
        people.add(name, role, password)
    assert len(people.list()) == 3


def test_removing_nobody_is_said(people: People) -> None:
    """Rule: a name that does not exist is an error with the remedy."""
    with pytest.raises(PeopleError, match="lineward review user list"):
        people.remove("nobody")
