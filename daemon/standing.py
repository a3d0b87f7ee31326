"""What a station says that stays true for a while: retained messages, told at every connect and at every change."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Standing:
    """Keeps the last content of each retained topic. Any thread may call.

    Parameters
    ----------
    wake
        Called, with the lock held, when there is something new to send.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        # Told at the first connect as well: an alarm that the process before left behind is not retained for ever.
        self._payloads: dict[str, bytes] = {"alarm": to_json({})}
        self._changed: dict[str, None] = {}
        self._alarms: dict[str, Mapping[str, Any]] = {}
        self.lock = threading.Lock()

    @property
    def changed(self) -> bool:
        """Whether there is something that was not sent yet."""
        return bool(self._changed)

    def set(self, name: str, content: Mapping[str, Any]) -> None:
        """Put another content in the place of the one before."""
        with self.lock:
            self._payloads[name] = to_json(content)
            self._changed[name] = None
            self._wake()

    def set_alarms(self, alarms: Mapping[str, Mapping[str, Any]]) -> None:
        """Set `alarm`; one that was raised and is missing now is told once more as cleared, until the next change."""
        cleared = {
            name: {**alarm, "raised": False}
            for name, alarm in self._alarms.items()
            if alarm.get("raised") and name not in alarms
        }
        self._alarms = {**cleared, **alarms}
        self.set("alarm", self._alarms)

    def everything(self) -> dict[str, bytes]:
        """Return all there is to say, for a broker that knows nothing of us yet."""
        with self.lock:
            self._changed.clear()
            return dict(self._payloads)

    def news(self) -> dict[str, bytes]:
        """Return what has changed since it was last asked for."""
        with self.lock:
            changed = {name: self._payloads[name] for name in self._changed}
            self._changed.clear()
            return changed


def to_json(content: Mapping[str, Any]) -> bytes:
    """Write compact JSON of plain ASCII."""
    return json.dumps(content, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()
