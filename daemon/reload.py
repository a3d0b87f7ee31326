"""Reading the configuration again while the line runs: what can change does, between two parts; the rest is named.

All or nothing: a file with a fault, a model that cannot be loaded or a camera that refuses a setting leaves everything
as it was.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from lineward.daemon import log as logs
from lineward.daemon.changeover import Refused
from lineward.daemon.config import Config, ConfigError, load_config
from lineward.daemon.recipes import Recipes
from lineward.daemon.review import Keeping

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from queue import SimpleQueue

    from lineward.daemon.changeover import Changeover
    from lineward.daemon.health import Alarms
    from lineward.daemon.notify import Systemd
    from lineward.daemon.review import ReviewStore

    Answer = Callable[[str, str], None]
    """Called once with an empty word when the new configuration is in force, else with a word; and a text."""

log = logging.getLogger("lineward.reload")

LIVE = frozenset(
    {
        "camera.settings",
        "inspection.model",
        "inspection.deadline_ms",
        "inspection.providers",
        "inspection.threads",
        "recipes",
        "review.keep_per_hour",
        "review.keep_fails",
        "review.audit_share",
        "review.thumbnail_share",
        "review.thumbnail_px",
        "storage.max_gb",
        "storage.audit_gb",
        "storage.thumbnails_gb",
        "log.level",
        "log.parts",
    }
)
"""What changes without a restart. Everything else does not: a new key is on the safe side."""

AGAIN_S = 0.2
"""How long a request that nobody waits for is put off while a changeover is not over."""

OF_THE_CAMERA = frozenset({"camera.settings", "recipes", "inspection.model"})
"""What belongs to the camera it was written for, and waits with another one for the restart."""


class Reloader:
    """Reads a station's file again whenever it is asked to, in a thread of its own.

    Parameters
    ----------
    requests
        Whom to answer; None ends the thread. A signal handler may put something in.
    """

    def __init__(
        self,
        path: Path,
        config: Config,
        requests: SimpleQueue[Answer | None],
        *,
        changeover: Changeover,
        review: ReviewStore,
        alarms: Alarms,
        systemd: Systemd,
        status: Callable[[], str],
    ) -> None:
        self._path = path
        self._config = config
        self._requests = requests
        self._changeover = changeover
        self._review = review
        self._alarms = alarms
        self._systemd = systemd
        self._status = status
        self._thread = threading.Thread(target=self._run, name="reload", daemon=True)

    def start(self) -> Reloader:
        """Take requests from now on."""
        self._thread.start()
        return self

    def close(self) -> None:
        """Take no more; one that is in work is not waited for longer than a second."""
        self._requests.put(None)
        self._thread.join(1.0)

    def _run(self) -> None:
        while (answer := self._requests.get()) is not None:
            self._systemd.reloading()
            try:
                self._reload(answer)
            except (ConfigError, Refused) as error:
                if isinstance(error, Refused) and error.word == "busy" and answer is answer_nobody:
                    time.sleep(AGAIN_S)  # nobody hears that it is to be asked again, and the file is meant
                    self._requests.put(answer)
                else:
                    self._refuse(error, answer)
            except Exception as error:  # whatever it is, the line goes on with what it has
                log.debug("reading the configuration again failed", exc_info=True)
                self._refuse(error, answer)

    def _reload(self, answer: Answer) -> None:
        wanted = load_config(self._path)
        config, waiting = merge(self._config, wanted)
        changed = differences(self._config, config)

        def over(word: str, text: str) -> None:
            if word:
                self._refuse(Refused(word, text), answer)
                return
            self._config = config
            logs.set_level(config.log.level, parts=config.log.parts)
            self._review.set_limits(Keeping.of(config))
            self._alarms.set("config", "")
            said = f"in force: {', '.join(changed) or 'nothing new'}"
            if waiting:
                said += f"; restart Lineward for {', '.join(waiting)}"
            log.info("%s was read again; %s", self._path, said)
            self._systemd.reloaded(self._status())
            answer("", said)

        self._changeover.replace(Recipes(config), over)

    def _refuse(self, error: Exception, answer: Answer) -> None:
        text = "; ".join(str(error).splitlines())
        said = f"the configuration is as it was: {text}"
        log.error("%s", said)
        if not (isinstance(error, Refused) and error.word == "busy"):
            self._alarms.set("config", said, severity="warning", logged=True)
        self._systemd.reloaded(self._status())
        answer(error.word if isinstance(error, Refused) else "bad_config", said)


def merge(old: Config, new: Config) -> tuple[Config, list[str]]:
    """Return the configuration that can be in force now, and the keys that need a restart.

    Raises
    ------
    ConfigError
        What may change does not fit to what has to wait.
    """
    before, after = _flat(old), _flat(new)
    live = LIVE - OF_THE_CAMERA if old.camera.driver != new.camera.driver else LIVE
    merged = old.model_dump()
    waiting = []
    for key in sorted({*before, *after}):
        if before.get(key) == after.get(key):
            continue
        if key in live:
            section, _, name = key.partition(".")
            if name:
                merged[section][name] = after[key]
            else:
                merged[section] = after[key]
        else:
            waiting.append(key)
    try:
        return Config.model_validate(merged), waiting
    except ValidationError as error:
        first = error.errors(include_url=False)[0]["msg"]
        raise ConfigError(f"{first}; restart Lineward for {', '.join(waiting)}") from error


def differences(old: Config, new: Config) -> list[str]:
    """Return the keys whose values differ."""
    before, after = _flat(old), _flat(new)
    return sorted(key for key in {*before, *after} if before.get(key) != after.get(key))


def _flat(config: Config) -> dict[str, Any]:
    """Return all values by ``section.key``; a key of `LIVE` is a whole, whatever is in it."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            key = f"{prefix}{name}"
            if isinstance(value, dict) and key not in LIVE:
                walk(f"{key}.", value)
            else:
                flat[key] = value

    walk("", config.model_dump())
    return flat


def answer_on_socket(acknowledge: Callable[[str, bytes], None]) -> Answer:
    """Return what sends the answer to `lineward reload`."""

    def answer(word: str, text: str) -> None:
        acknowledge("reload", json.dumps({"ok": 0 if word else 1, "reason": word, "text": text}).encode())

    return answer


def answer_nobody(_word: str, _text: str) -> None:
    """Take the answer to a SIGHUP, which has no way back; the log has it."""
