"""Count the names of an annotated corpus, in a database over its parts that needs no server."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property

import duckdb
import pyarrow
import pyarrow.dataset
from pyarrow import types
from pyarrow.fs import FileType

from common.errors import StepError
from common.parts import MANIFEST, Target
from common.spellings import group_spellings

Name = tuple[str, str]  # the spelling that is the most frequent, and the label

_CHOSEN = "SELECT one.name, one.label FROM (SELECT unnest($chosen::STRUCT(name VARCHAR, label VARCHAR)[]) AS one)"
_MAY_BE_DATES = (types.is_date, types.is_timestamp, types.is_string, types.is_large_string)
_DATES = """SELECT count(try_cast(value AS TIMESTAMP))
    FROM (SELECT {column} AS value FROM parts WHERE {column} IS NOT NULL LIMIT 1000)"""
_MENTIONS = """CREATE TABLE mentions AS
    SELECT document, moment, entity.text AS spelling, entity.label AS label
    FROM (SELECT row_number() OVER () AS document, {when} AS moment, unnest(entities) AS entity FROM parts)
    WHERE $labels IS NULL OR list_contains($labels::VARCHAR[], entity.label)"""
_NAMED = """CREATE TABLE named AS
    SELECT name, label, document, moment, count(*) AS mentions
    FROM mentions JOIN spellings USING (spelling, label) GROUP BY ALL"""
_FREQUENT = """CREATE TABLE frequent AS
    SELECT name, label, sum(mentions)::BIGINT AS mentions, count(*) AS documents FROM named GROUP BY ALL"""


class Names:
    """The names of an annotated corpus. The database is a file that goes when this object goes.

    Each question is answered by a cursor of its own, so that threads may ask at the same time. Names stand in the order
    of their mentions, those with the same number by the alphabet.

    target (str): The folder or URL of its parts.
    date_column (str): The column with the dates of documents; nothing if there is none.
    labels (Sequence[str] | None): The labels that are counted; None for all.
    RAISES (StepError): If there is no finished corpus, if it cannot be read, or if it has no such column or no names.
    """

    def __init__(self, target: str, date_column: str = "", labels: Sequence[str] | None = None) -> None:
        parts = open_parts(target)
        if date_column and date_column not in parts.schema.names:
            raise StepError(
                f"The corpus has no column {date_column!r}. It has: {', '.join(parts.schema.names)}.",
                "Let annotate-corpus pass it on: --vars.columns",
            )
        scratch = tempfile.mkdtemp()
        weakref.finalize(self, shutil.rmtree, scratch, ignore_errors=True)
        self._database = duckdb.connect(f"{scratch}/names.duckdb")
        self._database.register("parts", parts)
        when = f"try_cast({_quote(date_column)} AS TIMESTAMP)" if date_column else "NULL::TIMESTAMP"
        try:
            self._database.execute(_MENTIONS.format(when=when), {"labels": labels})
        except (duckdb.Error, OSError) as error:
            raise _unreadable(Target(target), error) from error
        spellings = self._group()
        if not spellings:
            raise StepError("There is no name in it.", f"Look at the labels in {MANIFEST}.")
        columns = zip(("name", "label", "spelling", "mentions"), zip(*spellings, strict=True), strict=True)
        self._database.register("grouped", pyarrow.table({name: pyarrow.array(cells) for name, cells in columns}))
        for query in ("CREATE TABLE spellings AS FROM grouped", _NAMED, "DROP TABLE mentions", _FREQUENT):
            self._database.execute(query)
        for view in ("parts", "grouped"):
            self._database.unregister(view)

    def _group(self) -> list[tuple[str, str, str, int]]:
        """Group the spellings into names: the name of each, its label, the spelling, and its mentions."""
        counts: defaultdict[str, dict[str, int]] = defaultdict(dict)
        query = "SELECT label, spelling, count(*) FROM mentions GROUP BY ALL"
        for label, spelling, mentions in self._ask(query).fetchall():
            counts[label][spelling] = mentions
        return [
            (name, label, spelling, counts[label][spelling])
            for label in counts
            for spelling, name in group_spellings(counts[label]).items()
        ]

    def _ask(self, query: str, **parameters: object) -> duckdb.DuckDBPyConnection:
        return self._database.cursor().execute(query, parameters)

    @cached_property
    def labels(self) -> list[str]:
        """The labels of the names, sorted."""
        return [label for (label,) in self._ask("SELECT DISTINCT label FROM frequent ORDER BY label").fetchall()]

    @cached_property
    def undated(self) -> int:
        """How many documents with names have no date that can be read."""
        query = "SELECT count(DISTINCT document) FROM named WHERE moment IS NULL"
        ((documents,),) = self._ask(query).fetchall()
        return int(documents)

    def frequent(
        self, most: int | None = None, labels: Sequence[str] | None = None, text: str = ""
    ) -> duckdb.DuckDBPyConnection:
        """Ask for the most frequent names: name, label, mentions, documents.

        most (int | None): Of so many; None for all.
        labels (Sequence[str] | None): Only those with these labels; None for all.
        text (str): Only those of which a spelling has this in it, whatever its case and accents.
        RETURNS (duckdb.DuckDBPyConnection): The rows.
        """
        return self._ask(
            """FROM frequent SEMI JOIN (
                SELECT name, label FROM spellings
                WHERE ($labels IS NULL OR list_contains($labels::VARCHAR[], label))
                    AND contains(strip_accents(lower(spelling)), strip_accents(lower($text)))
            ) USING (name, label) ORDER BY mentions DESC, name, label LIMIT $most""",
            most=most,
            labels=labels,
            text=text,
        )

    def spellings(self, name: Name | None = None, most: int | None = None) -> duckdb.DuckDBPyConnection:
        """Ask for names by the alphabet, with their most frequent spellings: name, label, spelling, mentions.

        name (Name | None): The name; None for all.
        most (int | None): So many spellings in all; None for all.
        RETURNS (duckdb.DuckDBPyConnection): The rows.
        """
        return self._ask(
            """FROM spellings WHERE $name IS NULL OR (name = $name AND label = $label)
                ORDER BY name, label, mentions DESC, spelling LIMIT $most""",
            **_split(name),
            most=most,
        )

    def together(self, names: Sequence[Name]) -> duckdb.DuckDBPyConnection:
        """Ask in how many documents two of some names are: name, label, other, other_label, documents.

        names (Sequence[Name]): The names.
        RETURNS (duckdb.DuckDBPyConnection): The rows, by their documents.
        """
        return self._ask(
            f"""WITH chosen AS ({_CHOSEN})
                SELECT a.name, a.label, b.name AS other, b.label AS other_label, count(*) AS documents
                FROM named a JOIN named b ON a.document = b.document AND (a.name, a.label) < (b.name, b.label)
                SEMI JOIN chosen f ON a.name = f.name AND a.label = f.label
                SEMI JOIN chosen g ON b.name = g.name AND b.label = g.label
                GROUP BY ALL ORDER BY documents DESC, a.name, a.label, other, other_label""",
            chosen=[*map(_split, names)],
        )

    def together_with(self, name: Name, most: int) -> duckdb.DuckDBPyConnection:
        """Ask which names are most often in the same documents as a name: name, label, documents.

        name (Name): The name.
        most (int): So many others.
        RETURNS (duckdb.DuckDBPyConnection): The rows, by their documents.
        """
        return self._ask(
            """SELECT b.name, b.label, count(*) AS documents
                FROM named a JOIN named b ON a.document = b.document AND (a.name, a.label) <> (b.name, b.label)
                WHERE a.name = $name AND a.label = $label
                GROUP BY ALL ORDER BY documents DESC, b.name, b.label LIMIT $most""",
            **_split(name),
            most=most,
        )

    def over_time(self, names: Sequence[Name]) -> duckdb.DuckDBPyConnection:
        """Ask how often some names are in documents of each month: month, name, label, mentions, documents.

        names (Sequence[Name]): The names.
        RETURNS (duckdb.DuckDBPyConnection): The rows, by month, those of a month by their mentions.
        """
        return self._ask(
            f"""WITH chosen AS ({_CHOSEN})
                SELECT strftime(moment, '%Y-%m') AS month, name, label, sum(mentions)::BIGINT AS mentions,
                    count(*) AS documents
                FROM named SEMI JOIN chosen USING (name, label) WHERE moment IS NOT NULL
                GROUP BY ALL ORDER BY month, mentions DESC, name, label""",
            chosen=[*map(_split, names)],
        )


def _split(name: Name | None) -> dict[str, str | None]:
    return dict(zip(("name", "label"), name or (None, None), strict=True))


def open_parts(target: str) -> pyarrow.dataset.Dataset:
    """Open the parts of an annotated corpus.

    target (str): Their folder or URL.
    RETURNS (pyarrow.dataset.Dataset): Them, as one table.
    RAISES (StepError): If there is no finished corpus, if it has no documents or is no parquet, or if it is damaged.
    """
    place = Target(target)
    try:
        manifest = place.read_json(MANIFEST)
        if manifest is None:
            raise StepError(f"{place.root} has no {MANIFEST}: it is not done.", "Run annotate-corpus until it is.")
        if manifest["inputs"]["format"] != "parquet":
            raise StepError(f"{place.root} has no parquet.", "Run annotate-corpus with its default format.")
        paths = [f"{place.root}/{part['part']}" for part in manifest["parts"]]
        if not paths:
            raise StepError(f"{place.root} has no documents.", f"Look at what {MANIFEST} says of the files.")
        return pyarrow.dataset.dataset(paths, filesystem=place.system, format="parquet")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(place, error) from error


def list_date_columns(target: str) -> list[str]:
    """List the columns of an annotated corpus of which the first values have dates among them.

    target (str): The folder or URL of its parts.
    RETURNS (list[str]): Their names.
    RAISES (StepError): As `open_parts` does.
    """
    parts = open_parts(target)
    with duckdb.connect() as database:
        database.register("parts", parts)
        try:
            return [
                field.name
                for field in parts.schema
                if field.name not in ("id", "text")
                and any(is_kind(field.type) for is_kind in _MAY_BE_DATES)
                and database.execute(_DATES.format(column=_quote(field.name))).fetchall() != [(0,)]
            ]
        except (duckdb.Error, OSError) as error:
            raise _unreadable(Target(target), error) from error


def find_modified(target: str) -> int | None:
    """Say when an annotated corpus was finished, in nanoseconds since 1970, or None if it is not.

    target (str): The folder or URL of its parts.
    RAISES (StepError): If the place cannot be reached.
    """
    place = Target(target)
    try:
        info = place.system.get_file_info(f"{place.root}/{MANIFEST}")
    except OSError as error:
        raise _unreadable(place, error) from error
    return (info.mtime_ns or 0) if info.type == FileType.File else None


def _unreadable(place: Target, error: Exception) -> StepError:
    problem = (str(error) or type(error).__name__).splitlines()[0]
    return StepError(
        f"What annotate-corpus wrote to {place.root} cannot be read: {problem}",
        "If the place can be reached, annotate the corpus again into another folder.",
    )


def _quote(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'
