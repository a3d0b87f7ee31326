"""Small pictures of passed parts on the live page: the newest first, to who is signed in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from tests.web.kit import ReviewPage

from lineward.daemon.thumbnails import Thumbnails

if TYPE_CHECKING:
    from pathlib import Path

    from tests.system.line import Service
    from tests.web.kit import Chromium

CAPTIONS = "[...document.querySelectorAll('.lw-passed-part')].filter(e => e.offsetParent).map(e => e.innerText)"
LOADED = (
    "[...document.querySelectorAll('.lw-passed-part img')].filter(e => e.offsetParent)"
    ".every(e => e.complete && e.naturalWidth === 64)"
)


def test_what_passed_is_seen_as_it_comes(tmp_path: Path, browser: Chromium, services: list[Service]) -> None:
    """Rule: the live page shows the newest eight, follows the line, and says so when there are none."""
    shown = ReviewPage(tmp_path / "page").add_people()
    services.append(shown.start())
    thumbnails = Thumbnails(shown.storage, max_bytes=10**7, most_px=64)
    grey = np.full((48, 64), 120, np.uint8)
    with browser.page(shown.url, "olga") as page:
        page.wait_for_selector("text=No small picture of a passed part was kept")
        for seq in range(1, 11):
            assert thumbnails.add(seq, seq * 10**9, "bracket", grey)
        page.wait_for_function(f"{CAPTIONS}.length === 8 && {CAPTIONS}[0].startsWith('no. 10,')")
        page.wait_for_function(LOADED)
        assert [text.split(",")[0] for text in page.evaluate(CAPTIONS)] == [f"no. {seq}" for seq in range(10, 2, -1)]
        thumbnails.drop()
        page.wait_for_selector("text=No small picture of a passed part was kept")
    thumbnails.close()


def test_a_thumbnail_is_for_who_is_signed_in(served: ReviewPage) -> None:
    """Rule: without a session there is none, and no number leads anywhere else."""
    thumbnails = Thumbnails(served.storage, max_bytes=10**7, most_px=64)
    assert thumbnails.add(7, 5, "bracket", np.full((48, 64), 120, np.uint8))
    thumbnails.close()
    with served.client() as client:
        assert client.get("/thumbnail/5").status_code == 401
    with served.client("olga") as client:
        assert client.get("/thumbnail/5").headers["content-type"] == "image/jpeg"
        for wrong in ("6", "-1", str(10**40), "x", "5%20OR%201=1", "..%2f..%2fpeople.sqlite3"):
            assert client.get(f"/thumbnail/{wrong}").status_code in {404, 422}, wrong
