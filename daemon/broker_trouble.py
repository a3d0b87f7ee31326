"""What is wrong between a station and its broker, in words; a second client with our id is told apart from the rest."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from lineward.daemon.endpoint import LostError, SilentError, why
from lineward.daemon.mqtt import TAKEN_OVER
from lineward.daemon.retry import Outage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lineward.daemon.endpoint import Endpoint

log = logging.getLogger("lineward.mqtt")

QUICK_LOSS_S = 30.0
"""A connection that the broker ends sooner, three times in a row, smells of a second client with our id."""
TAKEOVER_S = 60.0
"""So long after a take-over the trouble lasts, connected or not: the other client comes again."""


class BrokerTrouble:
    """Remembers why connections ended. For one thread, except `text` and `outage_s`."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._outage = Outage(log, f"broker {endpoint}")
        self._reason = ""
        self._quick_losses = 0
        self._takeover_s = float("-inf")
        self._takeover = ""
        self._refusals: dict[str, str] = {}

    @property
    def outage_s(self) -> float:
        """Seconds without a broker since the start."""
        return self._outage.total_s

    def text(self, *, connected: bool) -> str:
        """Say what is wrong and what to do about it, in one line; empty when all is well."""
        if not connected:
            return self._reason and f"broker {self._endpoint}: {self._reason}"
        if time.monotonic() - self._takeover_s < TAKEOVER_S:
            return self._takeover
        refusals = self._refusals
        more = f" (and {len(refusals) - 1} topics more)" if len(refusals) > 1 else ""
        return f"broker {self._endpoint}: {next(iter(refusals.values()))}{more}" if refusals else ""

    def refused(self, refusals: Mapping[str, str]) -> None:
        """Note what the broker does not take, by topic; the connection goes on."""
        if refusals.keys() == self._refusals.keys():
            return
        for topic in refusals.keys() - self._refusals.keys():
            log.log(
                logging.INFO if self._refusals else logging.WARNING, "broker %s: %s", self._endpoint, refusals[topic]
            )
            self._refusals[topic] = refusals[topic]
        for topic in self._refusals.keys() - refusals.keys():
            log.info("broker %s: takes %s again", self._endpoint, topic)
        self._refusals = dict(refusals)

    def lost(self, error: OSError, lived_s: float) -> None:
        """Note why a connection failed or ended; ``lived_s`` is how long it worked, 0 when it never did."""
        ended_by_broker = isinstance(error, LostError) and not isinstance(error, SilentError)
        self._quick_losses = self._quick_losses + 1 if 0 < lived_s < QUICK_LOSS_S and ended_by_broker else 0
        self._reason = why(error, self._endpoint)
        code = getattr(error, "code", 0)
        if code == TAKEN_OVER or (self._quick_losses >= 3 and not code):
            self._takeover_s = time.monotonic()
            self._reason = self._takeover = self._takeover_text(certain=code == TAKEN_OVER)
        self._outage.failed(self._reason, error)

    def over(self, note: str) -> None:
        """Say that the broker has accepted us."""
        self._outage.over(note)

    def _takeover_text(self, *, certain: bool) -> str:
        remedy = "give every station an id of its own"
        if not certain:
            remedy += ". If no other has it, the broker does not take our messages (its limit of size): look in its log"
        return (
            f"another client seems to use our client id {self._endpoint.client_id!r} (the broker ends our connection "
            f"each time it comes); {remedy}"
        )
