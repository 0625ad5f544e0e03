"""The store of a run: its documents, what is suggested and what each annotator decided, all in one SQLite file.

Every change is a transaction, so that a crash loses at most the change under way, and several processes can work on one
file. Nothing is ever removed: a decision that replaces another one leaves the earlier one in the history.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from common.annotations import Annotation, Change, Document, Span, Task, checksum_of
from common.errors import StepError

STORE = "annotations.db"  # in the folder annotate/<run>
PATIENCE = 60  # seconds that a change waits for those of other processes
OVERLAP = 0.1  # share of the documents that every annotator gets, until the run says another one
ABSENCE = 1800  # seconds without a key or a click of an annotator, after which others get what lies open there

SCHEMA = """
CREATE TABLE IF NOT EXISTS documents (
    id TEXT PRIMARY KEY, text TEXT NOT NULL, sha256 TEXT NOT NULL, split TEXT, meta TEXT NOT NULL,
    rank REAL, reason TEXT NOT NULL DEFAULT '');
CREATE TABLE IF NOT EXISTS suggestions (
    document TEXT NOT NULL REFERENCES documents (id), source TEXT NOT NULL, spans TEXT NOT NULL,
    PRIMARY KEY (document, source));
CREATE TABLE IF NOT EXISTS annotations (
    document TEXT NOT NULL REFERENCES documents (id), annotator TEXT NOT NULL, revision INTEGER NOT NULL,
    content TEXT NOT NULL, PRIMARY KEY (document, annotator));
CREATE TABLE IF NOT EXISTS history (
    number INTEGER PRIMARY KEY, time TEXT NOT NULL, document TEXT NOT NULL, annotator TEXT NOT NULL,
    revision INTEGER NOT NULL, content TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS changes (
    number INTEGER PRIMARY KEY, time TEXT NOT NULL, document TEXT NOT NULL, content TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS claims (
    document TEXT PRIMARY KEY REFERENCES documents (id), annotator TEXT NOT NULL, seen REAL NOT NULL);
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value REAL NOT NULL);
"""


class Standing(NamedTuple):
    """How it stands with a document for one annotator.

    status (str | None): The status of this annotator's annotation, None if there is none.
    seconds (float): How long it took so far.
    annotated (bool): Whether anybody has annotated the document.
    taken (bool): Whether it is the work of somebody else, who has decided it or has it open.
    """

    status: str | None
    seconds: float = 0
    annotated: bool = False
    taken: bool = False


class ConflictError(Exception):
    """Somebody else has saved this annotation, or one that it builds on, since it was read.

    document (str): The id of the document.
    who (str): Who has saved it.
    """

    def __init__(self, document: str, who: str) -> None:
        super().__init__(f"{who} has saved {document} elsewhere in the meantime.")


class Store:
    """The file with the documents of a run and all annotations of them. It may be open in several processes at once.

    path (Path): The file, which is made if it is not there, in a folder that is there.
    RAISES (StepError): If it is another file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open("IMMEDIATE") as database:
            for statement in filter(str.strip, SCHEMA.split(";")):
                database.execute(statement)

    @contextmanager
    def _open(self, kind: Literal["DEFERRED", "IMMEDIATE"]) -> Iterator[sqlite3.Connection]:
        """A transaction, undone if an error leaves it. Its connection is new, for use in threads and after forks.

        kind: DEFERRED to read, which others can do at the same time; IMMEDIATE to change something.
        """
        try:
            # `closing` undoes a transaction that was not ended
            with closing(sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None)) as database:
                database.execute("PRAGMA foreign_keys = ON")
                database.execute(f"BEGIN {kind}")
                yield database
                database.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            reason = str(error)
            if "locked" in reason:
                remedy = f"Another process has kept it for {PATIENCE} seconds: end that one, and try again."
            elif "full" in reason or "disk I/O" in reason:
                remedy = "Free some space on this disk and try again: what was saved before is there."
            elif "readonly" in reason or "unable to open" in reason:
                remedy = "It has to be a file, and you need the right to write to it and to its folder."
            else:
                remedy = "Move it away if it is another file. If it is damaged, take it from your backup."
            raise StepError(f"{self.path} cannot be used: {reason}.", remedy) from error

    def add_documents(self, documents: Iterable[Document]) -> int:
        """Add documents. Those that are there with the same text stay as they are.

        documents (Iterable[Document]): The documents.
        RETURNS (int): How many are new.
        RAISES (StepError): If an id stands for another text, which names all such ids. Nothing is added then.
        """
        added, changed = 0, []
        with self._open("IMMEDIATE") as database:
            for document in documents:
                known = database.execute("SELECT sha256 FROM documents WHERE id = ?", (document.id,)).fetchone()
                checksum = checksum_of(document.text)
                if known is None:
                    database.execute(
                        "INSERT INTO documents VALUES (?, ?, ?, ?, ?, ?, ?)",
                        (
                            document.id,
                            document.text,
                            checksum,
                            document.split,
                            json.dumps(document.meta, ensure_ascii=False),
                            document.rank,
                            document.reason,
                        ),
                    )
                    added += 1
                elif known[0] != checksum:
                    changed.append(document.id)
            if changed:
                shown = ", ".join(changed[:10]) + (f" and {len(changed) - 10} more" if len(changed) > 10 else "")
                raise StepError(
                    f"{len(changed)} ids stand for other texts in {self.path}: {shown}.",
                    "Annotations belong to the text that was annotated: give the changed texts new ids.",
                )
        return added

    def tasks(self, ids: list[str] | None = None) -> list[Task]:
        """Read documents with their suggestions and annotations.

        ids (list[str] | None): Which ones, or None for all, in the order of work: by rank, then as they were added.
        RETURNS (list[Task]): The tasks, in the order of `ids` if there are some.
        RAISES (KeyError): If there is no such document.
        """
        wanted, values = ("TRUE", ()) if ids is None else ("id IN (SELECT value FROM json_each(?))", (json.dumps(ids),))
        with self._open("DEFERRED") as database:
            rows = database.execute(
                "SELECT id, text, split, meta, rank, reason FROM documents "
                f"WHERE {wanted} ORDER BY rank IS NULL, rank, rowid",
                values,
            ).fetchall()
            found = {
                row[0]: Task(
                    document=Document(
                        id=row[0], text=row[1], split=row[2], meta=json.loads(row[3]), rank=row[4], reason=row[5]
                    )
                )
                for row in rows
            }
            wanted = wanted.replace("id", "document", 1)
            for document, spans in database.execute(
                f"SELECT document, spans FROM suggestions WHERE {wanted} ORDER BY rowid", values
            ):
                found[document].suggestions.extend(Span(**span) for span in json.loads(spans))
            for document, revision, content in database.execute(
                f"SELECT document, revision, content FROM annotations WHERE {wanted} ORDER BY rowid", values
            ):
                found[document].annotations.append(Annotation(**json.loads(content) | {"revision": revision}))
        return list(found.values()) if ids is None else [found[name] for name in ids]

    def suggest(self, source: str, suggestions: dict[str, list[Span]]) -> None:
        """Replace what one source suggests for documents. What annotators decided stays.

        source (str): The name and version of a pipeline, or the name of a list of terms.
        suggestions (dict[str, list[Span]]): The spans of each document, by id.
        """
        rows = [
            (name, source, json.dumps([span.model_dump() for span in spans], ensure_ascii=False))
            for name, spans in suggestions.items()
        ]
        with self._open("IMMEDIATE") as database:
            database.executemany("INSERT OR REPLACE INTO suggestions VALUES (?, ?, ?)", rows)

    def arrange(self, ranks: dict[str, tuple[float, str]]) -> None:
        """Set the order of work.

        ranks (dict[str, tuple[float, str]]): By id the rank of a document and the reason for it. Others keep theirs.
        """
        with self._open("IMMEDIATE") as database:
            database.executemany(
                "UPDATE documents SET rank = ?, reason = ? WHERE id = ?",
                [(rank, reason, name) for name, (rank, reason) in ranks.items()],
            )

    def split(self, splits: dict[str, str]) -> None:
        """Put documents into splits.

        splits (dict[str, str]): By id: train, dev or test.
        """
        with self._open("IMMEDIATE") as database:
            database.executemany(
                "UPDATE documents SET split = ? WHERE id = ?", [(split, name) for name, split in splits.items()]
            )

    def describe(self, fields: dict[str, dict[str, Any]]) -> None:
        """Add fields to the meta of documents, or replace those of the same names.

        fields (dict[str, dict[str, Any]]): The fields of each document, by id.
        """
        with self._open("IMMEDIATE") as database:
            for name, new in fields.items():
                for (meta,) in database.execute("SELECT meta FROM documents WHERE id = ?", (name,)).fetchall():
                    changed = json.dumps(json.loads(meta) | new, ensure_ascii=False)
                    database.execute("UPDATE documents SET meta = ? WHERE id = ?", (changed, name))

    def save(
        self, annotation: Annotation, basis: Mapping[str, int] | None = None, change: Change | None = None
    ) -> Annotation:
        """Save what an annotator says of a document.

        annotation (Annotation): With the revision that was read before, 0 if there was none.
        basis (Mapping[str, int] | None): By name the revisions of what the others say of the document, if the
            annotation builds on all of them.
        change (Change | None): The line of the log that says why, as `log` takes it.
        RETURNS (Annotation): The same with its new revision.
        RAISES (ConflictError): If another revision is saved, which stays, or if the basis or the log has changed.
        RAISES (ValueError): If there is no such document, or a span does not fit into its text.
        """
        with self._open("IMMEDIATE") as database:
            row = database.execute("SELECT text FROM documents WHERE id = ?", (annotation.document,)).fetchone()
            if row is None:
                raise ValueError(f"there is no document {annotation.document!r}")
            outside = [span for span in annotation.spans if span.end > len(row[0])]
            if outside:
                raise ValueError(f"the text of {annotation.document!r} has {len(row[0])} characters: {outside[0]!r}")
            saved = database.execute(
                "SELECT revision FROM annotations WHERE document = ? AND annotator = ?",
                (annotation.document, annotation.annotator),
            ).fetchone()
            if saved and saved[0] != annotation.revision:
                raise ConflictError(annotation.document, annotation.annotator)
            if basis is not None:
                _check_basis(database, annotation.document, {**basis, annotation.annotator: annotation.revision})
            if change:
                _log(database, change)
            new = annotation.model_copy(update={"revision": annotation.revision + 1})
            values = (new.document, new.annotator, new.revision, new.model_dump_json(exclude={"revision"}))
            database.execute("INSERT OR REPLACE INTO annotations VALUES (?, ?, ?, ?)", values)
            database.execute(
                "INSERT INTO history (time, document, annotator, revision, content) VALUES (?, ?, ?, ?, ?)",
                (_now(), *values),
            )
        return new

    def log(self, change: Change, basis: Mapping[str, int]) -> None:
        """Record a decision that changes no annotation.

        change (Change): The decision, with the number of the last line about its document that was read before.
        basis (Mapping[str, int]): By name the revisions of all annotations of the document that were read before.
        RAISES (ConflictError): If there is a later line about the document, or another revision.
        """
        with self._open("IMMEDIATE") as database:
            _check_basis(database, change.document, basis)
            _log(database, change)

    def changes(self) -> list[Change]:
        """Read the log of all decisions about labels that are probably wrong, the oldest first."""
        with self._open("DEFERRED") as database:
            rows = database.execute("SELECT number, time, content FROM changes ORDER BY number").fetchall()
        return [Change(**json.loads(content) | {"number": number, "time": time}) for number, time, content in rows]

    def divide(self, overlap: float) -> None:
        """Set how the work is divided: of the other documents, each is given to one annotator.

        overlap (float): The share of the documents that every annotator gets, from 0 to 1, as `is_shared` chooses them.
        """
        with self._open("IMMEDIATE") as database:
            database.execute("INSERT OR REPLACE INTO settings VALUES ('overlap', ?)", (overlap,))

    def claim(self, annotator: str, documents: Sequence[str]) -> str | None:
        """Give an annotator a document to work on, which is nobody else's.

        It stays so until the annotator has opened another one without a change to this one, or has given no sign for
        ABSENCE; each claim is such a sign. What somebody has decided stays theirs.

        annotator (str): Who it is.
        documents (Sequence[str]): The ids of documents, of which the first is given that nobody else has.
        RETURNS (str | None): Its id; None if others have them all.
        """
        now = time.time()
        with self._open("IMMEDIATE") as database:
            standings = _read_standings(database, annotator, documents)
            given = next((name for name in documents if not standings[name].taken), None)
            if given is not None:
                database.execute(
                    "DELETE FROM claims WHERE annotator = ? AND NOT EXISTS (SELECT 1 FROM annotations AS own "
                    "WHERE own.document = claims.document AND own.annotator = claims.annotator "
                    "AND json_extract(own.content, '$.status') = 'draft')",
                    (annotator,),
                )
                database.execute("UPDATE claims SET seen = ? WHERE annotator = ?", (now, annotator))
                database.execute("INSERT OR REPLACE INTO claims VALUES (?, ?, ?)", (given, annotator, now))
        return given

    def progress(self, annotator: str) -> dict[str, Standing]:
        """Read how far an annotator and the others are, which takes far less time than reading all tasks.

        annotator (str): Who it is.
        RETURNS (dict[str, Standing]): By id, in the order of work, how it stands with each document.
        """
        with self._open("DEFERRED") as database:
            return _read_standings(database, annotator)

    def labels(self) -> list[str]:
        """Read which labels the suggestions and the annotations have, in the order of the alphabet."""
        query = (
            "SELECT json_extract(value, '$.label') AS label FROM suggestions, json_each(spans) UNION "
            "SELECT json_extract(value, '$.label') FROM annotations, json_each(content, '$.spans') ORDER BY label"
        )
        with self._open("DEFERRED") as database:
            return [label for (label,) in database.execute(query)]

    def history(self, document: str) -> list[tuple[str, Annotation]]:
        """Read everything that was ever saved of a document.

        document (str): Its id.
        RETURNS (list[tuple[str, Annotation]]): The time, in UTC, and the annotation, the oldest first.
        """
        query = "SELECT time, revision, content FROM history WHERE document = ? ORDER BY number"
        with self._open("DEFERRED") as database:
            rows = database.execute(query, (document,)).fetchall()
        return [(time, Annotation(**json.loads(content) | {"revision": revision})) for time, revision, content in rows]


def open_store(folder: Path) -> Store:
    """Open the store of a run.

    folder (Path): annotate/<run>.
    RAISES (StepError): If it has none.
    """
    if not (folder / STORE).exists():
        raise StepError(f"There is no {folder / STORE}.", f"Bring texts first: make gather RUN={folder.name}")
    return Store(folder / STORE)


def is_shared(document: str, overlap: float) -> bool:
    """Tell whether every annotator gets a document: by its id alone, so that it is the same one everywhere.

    document (str): Its id.
    overlap (float): The share of all documents of which this is true. A larger one keeps those of a smaller one.
    """
    return int(checksum_of(document)[:8], 16) < overlap * 16**8


def _read_standings(
    database: sqlite3.Connection, annotator: str, documents: Sequence[str] | None = None
) -> dict[str, Standing]:
    """Read how it stands with some documents, or with all, in the order of work."""
    (overlap,) = database.execute("SELECT value FROM settings WHERE name = 'overlap'").fetchone() or (OVERLAP,)
    query = (
        "SELECT id, json_extract(own.content, '$.status'), coalesce(json_extract(own.content, '$.seconds'), 0), "
        "(SELECT max(json_extract(content, '$.status') = 'annotated') FROM annotations WHERE document = id), "
        "EXISTS (SELECT 1 FROM annotations WHERE document = id AND annotator != :annotator "
        "AND json_extract(content, '$.status') != 'draft'), claims.annotator, claims.seen "
        "FROM documents LEFT JOIN annotations AS own ON own.document = id AND own.annotator = :annotator "
        "LEFT JOIN claims ON claims.document = id "
        "WHERE :ids IS NULL OR id IN (SELECT value FROM json_each(:ids)) "
        "ORDER BY rank IS NULL, rank, documents.rowid"
    )
    values = {"annotator": annotator, "ids": None if documents is None else json.dumps(documents)}
    latest = time.time() - ABSENCE
    standings = {}
    for name, status, seconds, annotated, decided, holder, seen in database.execute(query, values):
        own = holder == annotator or status in ("annotated", "skipped")
        others = decided or (holder is not None and seen > latest)
        taken = bool(others) and not own and not is_shared(name, overlap)
        standings[name] = Standing(status, seconds, bool(annotated), taken)
    return standings


def _check_basis(database: sqlite3.Connection, document: str, basis: Mapping[str, int]) -> None:
    query = "SELECT annotator, revision FROM annotations WHERE document = ?"
    for annotator, revision in database.execute(query, (document,)):
        if basis.get(annotator, 0) != revision:
            raise ConflictError(document, annotator)


def _log(database: sqlite3.Connection, change: Change) -> None:
    query = "SELECT number, content FROM changes WHERE document = ? ORDER BY number DESC LIMIT 1"
    last = database.execute(query, (change.document,)).fetchone()
    if last and last[0] != change.number:
        raise ConflictError(change.document, json.loads(last[1])["person"])
    database.execute(
        "INSERT INTO changes (time, document, content) VALUES (?, ?, ?)",
        (_now(), change.document, change.model_dump_json(exclude={"number", "time"})),
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
