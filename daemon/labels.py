"""What people said about parts: each decision for ever, who gave it, when, and from which verdict.

One SQLite file, ``labels.sqlite3`` in the storage folder. A decision is on the disk (synchronous FULL) before `give`
returns, so no crash takes it back. Pictures that were labelled get a second name (hard link) under ``labelled/``: the
line deletes its oldest pictures when the quota is reached, and must not delete these.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sqlite3
import threading
import time
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from lineward.daemon import label_files
from lineward.daemon.label_records import (
    CONFLICT,
    DECISIONS,
    FAIL,
    FIRST,
    FOLDER,
    IMPORT,
    LABELLED,
    NEW,
    SETTLE,
    SKIP,
    SKIPPED,
    Label,
    LabelError,
    Part,
    as_spelled,
    clean_type,
)
from lineward.daemon.ledger_file import is_damaged

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

log = logging.getLogger("lineward.labels")

FILE = "labels.sqlite3"

MIN_BETWEEN = 15
"""So many other decisions of the same person lie between a part and its blind repeat."""

SCHEMA = 1
_TABLES = """
CREATE TABLE parts (               -- pictures that can be labelled
    image TEXT PRIMARY KEY,
    path TEXT NOT NULL,            -- relative to the storage root
    product TEXT NOT NULL,
    part_id TEXT NOT NULL,
    seq INTEGER NOT NULL,          -- 0: imported
    created_ns INTEGER NOT NULL,
    origin TEXT NOT NULL,          -- line, import
    camera TEXT NOT NULL,
    verdict TEXT NOT NULL,         -- what the line said
    reason TEXT NOT NULL,
    confidence REAL NOT NULL,
    defect_probability REAL NOT NULL,
    anomaly REAL NOT NULL,
    defect_type TEXT NOT NULL,
    model_version TEXT NOT NULL,
    model_sha256 TEXT NOT NULL,
    why TEXT NOT NULL,             -- why a person should look at it
    urgency REAL NOT NULL,
    escaped INTEGER NOT NULL,      -- 1: brought in as a part that the line let through
    status TEXT NOT NULL,          -- new, labelled, conflict, skipped: follows from the labels
    label TEXT NOT NULL,           -- pass, fail or empty
    label_type TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX parts_by_urgency ON parts (product, status, urgency);
CREATE INDEX parts_by_time ON parts (created_ns);
CREATE TABLE labels (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    image TEXT NOT NULL,
    person TEXT NOT NULL,
    at_ns INTEGER NOT NULL,        -- wall clock, nanoseconds since 1970, UTC
    decision TEXT NOT NULL,        -- pass, fail, skip
    defect_type TEXT NOT NULL,
    purpose TEXT NOT NULL,         -- first, second, blind, settle, import
    verdict TEXT NOT NULL,         -- what the line had said
    model_version TEXT NOT NULL,
    undone_ns INTEGER              -- null: it counts
);
CREATE INDEX labels_by_image ON labels (image);
CREATE INDEX labels_by_person ON labels (person, id);
"""
DAMAGED = "move it aside, and it is made again from the files beside the labelled pictures"
_LATER = (
    # Without the indices, asking for 50 labelled parts among 20,000 reads all of them, beside every label given.
    "CREATE INDEX IF NOT EXISTS parts_by_state ON parts (product, status, created_ns)",
    "CREATE INDEX IF NOT EXISTS parts_unlabelled ON parts (status, origin) WHERE status = 'new'",
    "CREATE TABLE IF NOT EXISTS type_places (id INTEGER PRIMARY KEY, product TEXT, kind TEXT, UNIQUE (product, kind))",
)
"""Made where they are missing, in a store that an earlier version wrote too."""

_NOT_KEPT = f"path NOT LIKE '{FOLDER}/%'"
"""Of which the line's quota deletes the only file; a label that was taken back leaves its own."""

_PART_COLUMNS = ", ".join(field.name for field in fields(Part))
_ADD_PART = f"INSERT OR IGNORE INTO parts VALUES ({', '.join('?' * len(fields(Part)))})"  # noqa: S608 - marks only
_LABEL_COLUMNS = ", ".join(field.name for field in fields(Label))


class LabelStore:
    """The labels of one storage folder; safe from several threads and beside another process.

    Raises
    ------
    LabelError
        The file cannot be opened or was written by a newer version.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._path = root / FILE
        self._lock = threading.Lock()
        try:
            root.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self._path, timeout=10.0, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            with self._change():
                version = self._db.execute("PRAGMA user_version").fetchone()[0]
                if version == 0:
                    for statement in _TABLES.split(";\n"):
                        self._db.execute(statement)
                    self._db.execute(f"PRAGMA user_version = {SCHEMA}")
                    self._make_again()
                if version <= SCHEMA:
                    for statement in _LATER:
                        self._db.execute(statement)
        except (sqlite3.Error, OSError) as error:
            remedy = DAMAGED if is_damaged(error) else "check the disk and who owns the file"
            raise LabelError(f"{self._path}: cannot be opened: {error}; {remedy}") from error
        except UnicodeDecodeError as error:  # the words of SQLite's complaint hold damaged bytes
            raise LabelError(f"{self._path}: cannot be opened: it is damaged; {DAMAGED}") from error
        if version > SCHEMA:
            raise LabelError(f"{self._path}: was written by a newer version of Lineward; update this one")

    def _make_again(self) -> None:
        """Take in what lies beside labelled pictures: there is some when the store itself was lost."""
        count = 0
        for part, labels in label_files.read(self.root):
            self._db.execute(_ADD_PART, tuple(getattr(part, field.name) for field in fields(Part)))
            for label in labels:
                values = [getattr(label, field.name) for field in fields(Label)]
                self._db.execute(f"INSERT OR IGNORE INTO labels VALUES ({', '.join('?' * len(values))})", values)  # noqa: S608 - marks
            _settle(self._db, part.image)
            count += 1
        if count:
            log.warning("%s was lost: made again from the files beside %d labelled pictures", self._path, count)

    def _write_down(self, image: str) -> None:
        part = self.part(image)
        if part is not None:
            label_files.write(self.root, part, self.labels(image))

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    @contextlib.contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                self._roll_back()
                raise LabelError(
                    f"{self._path}: not written: {error}; nothing was changed: check the disk and try again"
                ) from error
            except BaseException:
                self._roll_back()
                raise

    def _roll_back(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._db.execute("ROLLBACK")

    def _fetch(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._lock:
            try:
                return self._db.execute(sql, values).fetchall()
            except sqlite3.DatabaseError as error:
                remedy = DAMAGED if is_damaged(error) else "check the disk and who owns the file"
                raise LabelError(f"{self._path}: cannot be read: {error}; {remedy}") from error

    # ---- pictures

    def add_parts(self, parts: Iterable[Part]) -> int:
        """Take in pictures that are not known yet; return how many were new."""
        rows = [tuple(getattr(part, field.name) for field in fields(Part)) for part in parts]
        with self._change() as db:
            before = db.total_changes
            db.executemany(_ADD_PART, rows)
            return db.total_changes - before

    def forget_parts(self, images: Iterable[str]) -> None:
        """Drop pictures that the line has deleted and nobody has labelled."""
        with self._change() as db:
            sql = f"DELETE FROM parts WHERE image = ? AND status = 'new' AND {_NOT_KEPT}"  # noqa: S608 - of this file
            db.executemany(sql, [(image,) for image in images])

    def unlabelled_images(self) -> set[str]:
        """Return the ids of pictures of the line that nobody has labelled, without those that were kept for a label."""
        sql = f"SELECT image FROM parts WHERE status = 'new' AND origin = 'line' AND {_NOT_KEPT}"  # noqa: S608 - of this file
        return {row[0] for row in self._fetch(sql)}

    def images(self) -> set[str]:
        """Return the ids of all pictures."""
        return {row[0] for row in self._fetch("SELECT image FROM parts")}

    def newest_ns(self) -> int:
        """Return when the newest picture of the line was kept; 0 when there is none."""
        found = self._fetch("SELECT created_ns FROM parts WHERE origin = 'line' ORDER BY created_ns DESC LIMIT 1")
        return int(found[0][0]) if found else 0

    def part(self, image: str) -> Part | None:
        """Return one picture."""
        found = self._parts("WHERE image = ?", image)
        return found[0] if found else None

    def parts(
        self,
        product: str,
        *,
        status: str | None = None,
        label: str | None = None,
        label_type: str | None = None,
        since_ns: int = 0,
        limit: int = -1,
    ) -> list[Part]:
        """Return pictures of a product, newest first."""
        wanted = {"product": product, "status": status, "label": label, "label_type": label_type}
        given = {name: value for name, value in wanted.items() if value is not None}
        where = " AND ".join(f"{name} = ?" for name in given)
        return self._parts(
            f"WHERE {where} AND created_ns >= ? ORDER BY created_ns DESC, image LIMIT ?",
            *(*given.values(), since_ns, limit),
        )

    def labelled(self, product: str, limit: int) -> list[tuple[str, str]]:
        """Return image and label of the newest labelled pictures."""
        sql = (
            "SELECT image, label FROM parts WHERE product = ? AND status = 'labelled' ORDER BY created_ns DESC LIMIT ?"
        )
        return [(image, label) for image, label in self._fetch(sql, product, limit)]

    def _parts(self, where: str, *values: Any) -> list[Part]:
        return [Part(*row) for row in self._fetch(f"SELECT {_PART_COLUMNS} FROM parts {where}", *values)]  # noqa: S608

    def file(self, part: Part) -> Path:
        """Return where a picture is; it may be gone when nobody has labelled it."""
        return self.root / part.path

    # ---- what to show next

    def waiting(self, product: str, *, limit: int, without: Sequence[str] = ()) -> list[Part]:
        """Return what nobody has labelled, most urgent first, without some."""
        found = self._parts(
            "WHERE product = ? AND status = 'new' ORDER BY urgency DESC, created_ns DESC LIMIT ?",
            *(product, limit + len(without)),
        )
        return [part for part in found if part.image not in without][:limit]

    def to_second(self, product: str, person: str) -> Part | None:
        """Return a part for a second reader: labelled by one other person, and never seen by this one."""
        found = self._parts(
            "WHERE product = ? AND status = 'labelled' AND origin = 'line'"
            " AND (SELECT count(DISTINCT person) FROM labels AS l WHERE l.image = parts.image) = 1"
            " AND NOT EXISTS (SELECT 1 FROM labels AS l WHERE l.image = parts.image AND l.person = ?)"
            " ORDER BY random() LIMIT 1",
            *(product, person),
        )
        return found[0] if found else None

    def to_repeat(self, product: str, person: str) -> Part | None:
        """Return a part for a blind repeat: labelled once by this person, and not among the last few."""
        found = self._parts(
            "WHERE product = ? AND image IN (SELECT image FROM labels WHERE person = ? AND undone_ns IS NULL"
            " AND decision != 'skip' AND purpose != 'import'"
            " GROUP BY image HAVING count(*) = 1 AND max(id) <= coalesce((SELECT id FROM labels"
            " WHERE person = ? ORDER BY id DESC LIMIT 1 OFFSET ?), -1)) AND status = 'labelled'"
            " ORDER BY random() LIMIT 1",
            *(product, person, person, MIN_BETWEEN),
        )
        return found[0] if found else None

    # ---- labels

    def give(self, image: str, person: str, decision: str, defect_type: str = "", *, purpose: str = FIRST) -> Label:
        """Write one decision down; it is on the disk when this returns.

        Raises
        ------
        LabelError
            There is no such picture, it is gone, or the decision is none.
        """
        if decision not in DECISIONS:
            raise LabelError(f"{decision!r} is no decision; it is pass, fail or skip")
        part = self.part(image)
        if part is None:
            raise LabelError(f"picture {image!r} is not known any more; go on with the next one")
        kept = part.path if decision == SKIP else self._keep(part)
        defect_type = self._type(part.product, defect_type) if decision == FAIL else ""
        row = (image, person, time.time_ns(), decision, defect_type, purpose, part.verdict, part.model_version, None)
        with self._change() as db:
            marks = ", ".join("?" * len(row))
            number = db.execute(f"INSERT INTO labels VALUES (NULL, {marks})", row).lastrowid  # noqa: S608 - marks
            db.execute("UPDATE parts SET path = ? WHERE image = ?", (kept, image))
            _settle(db, image)
        assert number is not None
        self._write_down(image)
        return Label(number, *row)

    def _type(self, product: str, text: str) -> str:
        return as_spelled(clean_type(text), self.defect_types(product))

    def _keep(self, part: Part) -> str:
        """Give the file of a labelled picture a second name that the line's quota does not know."""
        path = self.root / part.path
        goal = self.root / FOLDER / f"{part.image}{path.suffix.lower()}"
        if path == goal:
            return part.path
        try:
            goal.parent.mkdir(exist_ok=True)
            if not goal.exists():
                try:
                    os.link(path, goal)
                except FileNotFoundError:
                    raise
                except OSError:  # another file system, or one without hard links
                    shutil.copyfile(path, goal.with_suffix(".part"))
                    goal.with_suffix(".part").replace(goal)
        except FileNotFoundError as error:
            raise LabelError(
                f"the picture of part {part.part_id or part.seq} was deleted by the line's quota (storage.max_gb); "
                "go on with the next one"
            ) from error
        except OSError as error:
            raise LabelError(f"{goal}: cannot be written: {error.strerror or error}; nothing was changed") from error
        return goal.relative_to(self.root).as_posix()

    def undo(self, person: str, product: str) -> Label | None:
        """Take back the last decision of a person on a product that counts; it stays in the book as undone."""
        with self._change() as db:
            row = db.execute(
                f"SELECT {_LABEL_COLUMNS} FROM labels WHERE person = ? AND undone_ns IS NULL AND purpose != 'import'"  # noqa: S608
                " AND (SELECT product FROM parts WHERE parts.image = labels.image) = ? ORDER BY id DESC LIMIT 1",
                (person, product),
            ).fetchone()
            if row is None:
                return None
            label = Label(*row)
            db.execute("UPDATE labels SET undone_ns = ? WHERE id = ?", (time.time_ns(), label.id))
            _settle(db, label.image)
        self._write_down(label.image)
        return label

    def labels(self, image: str) -> list[Label]:
        """Return everything that was said about a picture, oldest first, undone decisions too."""
        return self._labels("WHERE image = ? ORDER BY id", image)

    def last_labels(self, person: str, count: int) -> list[Label]:
        """Return the newest decisions of a person that count, newest first."""
        return self._labels("WHERE person = ? AND undone_ns IS NULL ORDER BY id DESC LIMIT ?", person, count)

    def _labels(self, where: str, *values: Any) -> list[Label]:
        return [Label(*row) for row in self._fetch(f"SELECT {_LABEL_COLUMNS} FROM labels {where}", *values)]  # noqa: S608

    def add_labelled(self, rows: Sequence[tuple[Part, str, str]], person: str, *, correct: bool = False) -> int:
        """Take in imported pictures with their labels, all or none; return how many were new or changed.

        A picture that is there with the same label stays as it is, but that it had escaped and whose it is are noted.

        Parameters
        ----------
        correct
            What is said here holds, whatever a picture is known as; what was said before stays in the book.

        Raises
        ------
        LabelError
            A picture is known as something else, and this is no correction.
        """
        now = time.time_ns()
        changed = 0
        with self._change() as db:
            for part, decision, defect_type in rows:
                values = tuple(getattr(part, field.name) for field in fields(Part))
                purpose = IMPORT
                if db.execute(_ADD_PART, values).rowcount < 1:
                    select = f"SELECT {_PART_COLUMNS} FROM parts WHERE image = ?"  # noqa: S608 - names of this file
                    known = Part(*db.execute(select, (part.image,)).fetchone())
                    otherwise = _otherwise(known, part, decision, defect_type)
                    if otherwise and not correct:
                        raise LabelError(f"{part.image}: {otherwise}")
                    escaped, part_id = max(part.escaped, known.escaped), part.part_id or known.part_id
                    if not otherwise and (escaped, part_id) == (known.escaped, known.part_id):
                        continue
                    db.execute(
                        "UPDATE parts SET product = ?, part_id = ?, escaped = ?, why = ? WHERE image = ?",
                        (part.product, part_id, escaped, part.why or known.why, part.image),
                    )
                    purpose = "" if (known.label, known.label_type) == (decision, defect_type) else SETTLE
                changed += 1
                if purpose:
                    db.execute(
                        "INSERT INTO labels VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, NULL)",
                        (part.image, person, now, decision, defect_type, purpose, part.verdict, part.model_version),
                    )
                _settle(db, part.image)
        for part, _, _ in rows:
            self._write_down(part.image)
        return changed

    def known_otherwise(self, part: Part, decision: str, defect_type: str) -> str:
        """Say what an imported picture is known as, where that is something else; otherwise return an empty text."""
        known = self.part(part.image)
        return "" if known is None else _otherwise(known, part, decision, defect_type)

    # ---- figures

    def products(self) -> list[str]:
        """Return the products that pictures are known of, by name."""
        return [row[0] for row in self._fetch("SELECT DISTINCT product FROM parts ORDER BY product")]

    def counts(self, product: str) -> dict[str, int]:
        """Return the number of pictures by status."""
        sql = "SELECT status, count(*) FROM parts WHERE product = ? GROUP BY status"
        return dict(self._fetch(sql, product))

    def by_type(self, product: str) -> dict[tuple[str, str], int]:
        """Return the number of labelled pictures by label and defect type."""
        sql = (
            "SELECT label, label_type, count(*) FROM parts WHERE product = ? AND status = 'labelled'"
            " GROUP BY label, label_type ORDER BY 1 DESC, 3 DESC"
        )
        return {(label, kind): count for label, kind, count in self._fetch(sql, product)}

    def by_day(self, product: str) -> list[tuple[str, int, int]]:
        """Return day (of this machine's clock), good and defective pictures among the labelled ones, newest first."""
        sql = (
            "SELECT date(created_ns / 1000000000, 'unixepoch', 'localtime') AS day,"
            " sum(label = 'pass'), sum(label = 'fail')"
            " FROM parts WHERE product = ? AND status = 'labelled' GROUP BY day ORDER BY day DESC LIMIT 60"
        )
        return [(day, good, bad) for day, good, bad in self._fetch(sql, product)]

    def by_camera(self, product: str) -> list[tuple[str, int, int]]:
        """Return camera, good and defective pictures among the labelled ones."""
        sql = (
            "SELECT camera, sum(label = 'pass'), sum(label = 'fail') FROM parts"
            " WHERE product = ? AND status = 'labelled' GROUP BY camera ORDER BY camera"
        )
        return [(camera, good, bad) for camera, good, bad in self._fetch(sql, product)]

    def defect_types(self, product: str) -> list[str]:
        """Return the defect types in use, the most frequent first."""
        return [kind for (label, kind) in self.by_type(product) if label == FAIL and kind]

    def in_their_places(self, product: str, types: Sequence[str]) -> list[str]:
        """Return defect types in the order in which they were first offered: a key that was learnt keeps its defect."""
        sql = "SELECT kind FROM type_places WHERE product = ? ORDER BY id"
        places = [kind for (kind,) in self._fetch(sql, product)]
        new = [kind for kind in dict.fromkeys(types) if kind not in places]
        if new:
            with self._change() as db:
                row = "INSERT OR IGNORE INTO type_places (product, kind) VALUES (?, ?)"
                db.executemany(row, [(product, kind) for kind in new])
        return [kind for kind in [*places, *new] if kind in types]

    def escapes(self, product: str) -> list[Part]:
        """Return the "never again" set: parts that the line had passed and a person called defective."""
        return self._parts(
            "WHERE product = ? AND label = 'fail' AND status = 'labelled' AND (verdict = 'pass' OR escaped = 1)"
            " ORDER BY created_ns",
            product,
        )

    def given_since(self, person: str, since_ns: int) -> int:
        """Return how many decisions a person has given since then."""
        sql = "SELECT count(*) FROM labels WHERE person = ? AND at_ns >= ? AND undone_ns IS NULL"
        return int(self._fetch(sql, person, since_ns)[0][0])

    def opinions(self) -> list[Label]:
        """Return the decisions that tell how well people agree: those that count, without what ended a conflict."""
        return self._labels(
            "WHERE undone_ns IS NULL AND decision != 'skip' AND purpose IN ('first', 'second', 'blind') ORDER BY id"
        )


def _otherwise(known: Part, part: Part, decision: str, defect_type: str) -> str:
    same_part = part.part_id in {"", known.part_id} or not known.part_id
    if same_part and (known.product, known.label, known.label_type) == (part.product, decision, defect_type):
        return ""
    label = f"{known.label}: {known.label_type}" if known.label_type else known.label or "one that people disagree on"
    of = f", part {known.part_id}" if known.part_id else ""
    return (
        f"this picture is known as {label}, product {known.product}{of}; leave it out, or correct it on this machine "
        "with `lineward review import --correct`"
    )


def _settle(db: sqlite3.Connection, image: str) -> None:
    """Work out anew what the labels of a picture come to."""
    rows = db.execute(
        "SELECT decision, defect_type, purpose FROM labels WHERE image = ? AND undone_ns IS NULL ORDER BY id", (image,)
    ).fetchall()
    votes = [(decision, kind) for decision, kind, _ in rows if decision != SKIP]
    final = [(decision, kind) for decision, kind, purpose in rows if purpose == SETTLE and decision != SKIP]
    if final:
        votes = final[-1:]
    if not votes:
        status, label, kind = (SKIPPED if rows else NEW), "", ""
    elif len(set(votes)) == 1:
        status, (label, kind) = LABELLED, votes[0]
    else:
        status, label, kind = CONFLICT, "", ""
    db.execute("UPDATE parts SET status = ?, label = ?, label_type = ? WHERE image = ?", (status, label, kind, image))
