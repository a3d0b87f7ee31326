"""Who may do what: names, roles, passwords (argon2) and sessions, in ``people.sqlite3`` of the storage folder."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import secrets
import sqlite3
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = logging.getLogger("lineward.web.people")

FILE = "people.sqlite3"
ROLES = ("operator", "technician", "engineer")
"""Each may do what those before it may."""

MIN_PASSWORD, MAX_PASSWORD = 8, 256
LONGEST_SESSION_S = 12 * 3600.0
SAVE_SEEN_S = 20.0
"""A sign of life is written down this often at most."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
_HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
"""OWASP's minimum for argon2id: 25 ms on one core, so that signing in takes nothing from the line."""

_TABLES = """
CREATE TABLE IF NOT EXISTS people (name TEXT PRIMARY KEY, role TEXT NOT NULL, password TEXT NOT NULL,
    created_s REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sessions (token TEXT PRIMARY KEY, name TEXT NOT NULL, started_s REAL NOT NULL,
    seen_s REAL NOT NULL) WITHOUT ROWID;
"""


class PeopleError(ValueError):
    """Something about people cannot be done; the message says what to do instead."""


class ForbiddenError(PermissionError):
    """The person may not do what they asked for, or is not signed in any more."""


class TooManyError(PermissionError):
    """Too many wrong passwords; ``wait_s`` seconds must pass."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"too many wrong passwords; wait {max(1, round(wait_s))} s and try again")
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who may use the page."""

    name: str
    role: str

    def may(self, role: str) -> bool:
        """Tell whether this person has at least this role."""
        return ROLES.index(self.role) >= ROLES.index(role)


class People:
    """Names, roles and sessions; safe from several threads and beside another process."""

    def __init__(self, root: Path, *, session_s: float = 1800.0, operator_s: float = LONGEST_SESSION_S) -> None:
        self._path = root / FILE
        self._session_s, self._operator_s = session_s, operator_s
        self._lock = threading.Lock()
        self._hashing = threading.Lock()
        self._seen: dict[str, float] = {}
        self._ended: set[str] = set()
        self.attempts = Attempts()
        try:
            root.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            self._db = sqlite3.connect(self._path, timeout=10.0, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.executescript(_TABLES)
        except (sqlite3.Error, OSError) as error:
            raise PeopleError(f"{self._path}: cannot be opened: {error}; check who owns the folder") from error

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    @contextlib.contextmanager
    def _use(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            yield self._db

    # ---- people

    def add(self, name: str, role: str, password: str) -> None:
        """Add a person, or change role and password of one; whoever was signed in under the name is signed out."""
        if not _NAME.fullmatch(name):
            raise PeopleError(f"{name!r} cannot be a name; use letters, digits, _ . and -, at most 32")
        if role not in ROLES:
            raise PeopleError(f"{role!r} is no role; it is {', '.join(ROLES)}")
        if len(password) < MIN_PASSWORD:
            raise PeopleError(f"the password is too short; use at least {MIN_PASSWORD} characters")
        if len(password) > MAX_PASSWORD:
            raise PeopleError(f"the password is too long; use at most {MAX_PASSWORD} characters")
        with self._use() as db:
            db.execute("BEGIN IMMEDIATE")
            db.execute(
                "INSERT OR REPLACE INTO people VALUES (?, ?, ?, ?)", (name, role, _HASHER.hash(password), _now())
            )
            db.execute("DELETE FROM sessions WHERE name = ?", (name,))
            db.execute("COMMIT")

    def remove(self, name: str) -> None:
        """Remove a person; what they labelled stays under their name."""
        with self._use() as db:
            if db.execute("DELETE FROM people WHERE name = ?", (name,)).rowcount == 0:
                raise PeopleError(f"there is nobody called {name!r}; `lineward review user list` shows all")
            db.execute("DELETE FROM sessions WHERE name = ?", (name,))

    def list(self) -> list[Person]:
        """Return everybody, by name."""
        with self._use() as db:
            return [Person(*row) for row in db.execute("SELECT name, role FROM people ORDER BY name")]

    # ---- sessions

    def sign_in(self, name: str, password: str, address: str) -> str:
        """Check a password and return the token of a new session. One at a time: a guesser takes one core at most.

        Raises
        ------
        TooManyError
            Too many wrong passwords lately for this name or from this address; the password is not even looked at.
        ForbiddenError
            Name or password is wrong.
        PeopleError
            The session cannot be written down: the disk may be full.
        """
        with self._hashing:
            self.attempts.check(name, address)
            with self._use() as db:
                row = db.execute("SELECT password FROM people WHERE name = ?", (name,)).fetchone()
            right = False
            with contextlib.suppress(VerificationError, InvalidHashError):
                _HASHER.verify(row[0] if row else _NOBODY, password)
                right = row is not None
            if not right:
                self.attempts.failed(name, address)
                log.warning("sign-in refused: wrong name or password for %r from %s", name[:64], address)
                raise ForbiddenError("name or password is wrong")
            self.attempts.succeeded(name, address)
        token = secrets.token_urlsafe(32)
        oldest = _now() - LONGEST_SESSION_S - self._operator_s
        self._try("DELETE FROM sessions WHERE started_s < ?", oldest)
        try:
            with self._use() as db:
                db.execute("INSERT INTO sessions VALUES (?, ?, ?, ?)", (_digest(token), name, _now(), _now()))
        except sqlite3.Error as error:
            log.warning("sign-in of %s from %s failed: %s: %s", name, address, self._path, error)
            raise PeopleError(
                f"nobody can sign in now: {self._path}: {error}; make room on the disk and try again"
            ) from error
        log.info("%s signed in from %s", name, address)
        return token

    def who(self, token: str, *, touch: bool = True) -> Person | None:
        """Return whose session a token is, or None when it is none or has timed out.

        ``touch``: somebody is there; a page that refreshes itself is no sign of that.
        """
        key = _digest(token)
        if not token or key in self._ended:
            return None
        with self._use() as db:
            row = db.execute(
                "SELECT p.name, p.role, s.started_s, s.seen_s FROM sessions AS s JOIN people AS p ON p.name = s.name"
                " WHERE s.token = ?",
                (key,),
            ).fetchone()
        if row is None:
            return None
        person = Person(row[0], row[1])
        now, seen = _now(), max(row[3], self._seen.get(key, 0.0))
        over = now - row[2] > self._operator_s if person.role == "operator" else now - seen > self._session_s
        if over or (person.role != "operator" and now - row[2] > LONGEST_SESSION_S):
            self.sign_out(token)
            return None
        if touch:
            self._seen[key] = now
            if now - row[3] > SAVE_SEEN_S:
                self._try("UPDATE sessions SET seen_s = ? WHERE token = ?", now, key)
        return person

    def sign_out(self, token: str) -> None:
        """End a session; one that a full disk keeps in the file is over for this page all the same."""
        key = _digest(token)
        self._seen.pop(key, None)
        self._ended.add(key)
        for ended in tuple(self._ended):
            if self._try("DELETE FROM sessions WHERE token = ?", ended):
                self._ended.discard(ended)

    def _try(self, statement: str, *values: float | str) -> bool:
        """Write down what may be lost; False when it could not be: a full disk shuts nobody out."""
        try:
            with self._use() as db:
                db.execute(statement, values)
        except sqlite3.Error as error:
            log.debug("%s: not written: %s", self._path, error)
            return False
        return True


class Attempts:
    """Wrong passwords of the last minute, by name and by address: beyond a few nothing is looked at any more."""

    WINDOW_S = 60.0
    PER_NAME = 5
    PER_ADDRESS = 15
    MOST_KEYS = 10_000

    def __init__(self) -> None:
        self._failed: dict[tuple[str, str], deque[float]] = {}

    def check(self, name: str, address: str) -> None:
        """Raise `TooManyError` when this name or address has to wait."""
        now = time.monotonic()
        for key, most in (((name, address), self.PER_NAME), (("", address), self.PER_ADDRESS)):
            times = self._failed.get(key)
            while times and now - times[0] > self.WINDOW_S:
                times.popleft()
            if times and len(times) >= most:
                log.warning("sign-in refused: too many wrong passwords for %r from %s", name[:64], address)
                raise TooManyError(self.WINDOW_S - (now - times[-most]))

    def failed(self, name: str, address: str) -> None:
        """Note a wrong password."""
        now = time.monotonic()
        for key in ((name, address), ("", address)):
            self._failed.setdefault(key, deque()).append(now)
        if len(self._failed) > self.MOST_KEYS:
            self._failed = {
                key: times for key, times in self._failed.items() if times and now - times[-1] < self.WINDOW_S
            }

    def succeeded(self, name: str, address: str) -> None:
        """Forget the wrong passwords of somebody who knew the right one."""
        self._failed.pop((name, address), None)


_NOBODY = _HASHER.hash(secrets.token_urlsafe(16))
"""A name that does not exist takes as long as a wrong password."""


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _now() -> float:
    return time.time()
