"""A full disk shuts nobody out of the review page, and it says what is wrong."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import httpx
import pytest
from starlette.responses import PlainTextResponse
from tests.disks import fill_up, small_disk
from tests.web.kit import PASSWORDS, ReviewPage

from lineward.daemon.web import people as module
from lineward.daemon.web.guard import COOKIE, Guard
from lineward.daemon.web.people import People, PeopleError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from starlette.types import Receive, Scope, Send

HERE = "192.0.2.7"
SHIFT_S = 13 * 3600.0


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "storage", "4m") as disk:
        yield disk


@pytest.fixture
def people(storage: Path) -> Iterator[People]:
    found = People(storage)
    found.add("olga", "operator", PASSWORDS["olga"])
    yield found
    found.close()


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    now = module._now() + seconds
    monkeypatch.setattr(module, "_now", lambda: now)


def test_whoever_is_signed_in_goes_on(people: People, storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: a sign of life that cannot be written down costs nobody the page."""

    async def fine(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("the live page")(scope, receive, send)

    async def get(token: str) -> str:
        guard = Guard(fine, people=people, names=(), owner=lambda _: None, upload_bytes=1, tls=False)
        transport = httpx.ASGITransport(guard)
        cookies = {COOKIE: token}
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", cookies=cookies) as client:
            return (await client.get("/")).text

    token = people.sign_in("olga", PASSWORDS["olga"], HERE)
    fill_up(storage / "ballast")
    later(monkeypatch, module.SAVE_SEEN_S + 5)
    with ThreadPoolExecutor(1) as other:  # the browser of other tests has a loop of its own in this thread
        assert other.submit(asyncio.run, get(token)).result() == "the live page"


def test_who_signs_out_or_was_away_is_signed_out(
    people: People, storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: a session that cannot be deleted is over all the same, and is deleted when there is room again."""
    left, away = (people.sign_in("olga", PASSWORDS["olga"], HERE) for _ in range(2))
    fill_up(storage / "ballast")
    people.sign_out(left)
    assert people.who(left) is None
    assert people.who(away) is not None
    later(monkeypatch, SHIFT_S)
    assert people.who(away) is None
    monkeypatch.undo()
    assert [people.who(token) for token in (left, away)] == [None, None]
    (storage / "ballast").unlink()
    people.sign_out("")
    again = People(storage)
    assert [again.who(token) for token in (left, away)] == [None, None]
    again.close()


def test_who_cannot_be_signed_in_is_told_why(people: People, storage: Path) -> None:
    """Rule: the answer names the file and the remedy; with room again the same password is right."""
    fill_up(storage / "ballast")
    with pytest.raises(PeopleError, match=r"people.sqlite3: .*make room on the disk and try again"):
        people.sign_in("olga", PASSWORDS["olga"], HERE)
    (storage / "ballast").unlink()
    assert people.who(people.sign_in("olga", PASSWORDS["olga"], HERE)) is not None


def test_the_page_says_so(storage: Path, tmp_path: Path) -> None:
    """Rule: a person in front of the page reads what is wrong, and not that a server has failed."""
    page = ReviewPage(tmp_path).add_people().start()
    try:
        fill_up(storage / "ballast")
        with page.client() as client:
            answer = client.post("/login", data={"name": "olga", "password": PASSWORDS["olga"]})
        assert (answer.status_code, "make room on the disk" in answer.text) == (503, True)
    finally:
        page.kill()
