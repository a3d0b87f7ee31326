"""What passed lately, as small pictures on the live page: an escape among them, or a slow change, meets the eye."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nicegui import ui

from lineward.daemon.web import words
from lineward.daemon.web.feed import PASSED
from lineward.daemon.web.shell import div, set_source, text

if TYPE_CHECKING:
    from lineward.daemon.thumbnails import Thumbnail


class PassedCard:
    """The newest small pictures of passed parts; their share is drawn at random (`review.thumbnail_share`)."""

    def __init__(self) -> None:
        self._shown: list[Thumbnail] | None = None
        self._none = text("No small picture of a passed part was kept", "lw-muted")
        with div("lw-passed") as self._box:
            self._frames = [_Frame() for _ in range(PASSED)]

    def show(self, passed: list[Thumbnail]) -> None:
        """Show them, the newest first."""
        if passed == self._shown:
            return
        self._shown = passed
        self._none.set_visibility(not passed)
        self._box.set_visibility(bool(passed))
        for number, frame in enumerate(self._frames):
            frame.show(passed[number] if number < len(passed) else None)


class _Frame:
    def __init__(self) -> None:
        with div("lw-passed-part") as self._box:
            self._picture = ui.element("img").props('alt=""')
            self._caption = text("", "lw-muted")

    def show(self, one: Thumbnail | None) -> None:
        self._box.set_visibility(one is not None)
        if one is not None:
            set_source(self._picture, f"/thumbnail/{one.at_ns}", f"Passed part no. {one.seq}")
            self._caption.set_text(f"no. {one.seq}, {words.when(one.at_ns)}")
