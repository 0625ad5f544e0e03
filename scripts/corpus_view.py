"""Which names an annotated corpus has: how often, in which spellings, together with which others, and when."""

from __future__ import annotations

import csv
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import duckdb
import pyarrow
import pyarrow.dataset
import typer
from wasabi import msg

from common.errors import StepError, main
from common.parts import MANIFEST, Target
from common.records import staged
from common.spellings import group_spellings

NAMES, SPELLINGS, TOGETHER, OVER_TIME = "names.csv", "spellings.csv", "together.csv", "over-time.csv"
SHOWN = 20
MENTIONS = """CREATE TEMP TABLE mentions AS
    SELECT document, {when} AS moment, entity.text AS spelling, entity.label AS label
    FROM (SELECT row_number() OVER () AS document, *, unnest(entities) AS entity FROM parts)"""
NAMED = """CREATE TEMP TABLE named AS
    SELECT name, label, document, moment, count(*) AS mentions
    FROM mentions JOIN names USING (spelling, label) GROUP BY ALL"""
FREQUENT = """CREATE TEMP TABLE frequent AS
    SELECT name, label, sum(mentions) AS mentions, count(*) AS documents
    FROM named GROUP BY ALL ORDER BY mentions DESC, name, label"""


def corpus_view(
    target: Annotated[str, typer.Argument(help="Folder or URL with the parts, in parquet, of annotate-corpus")],
    folder: Annotated[Path, typer.Argument(help="Folder for the tables, which are replaced")],
    date_column: Annotated[str, typer.Option(help="A column with dates, for the names of each month")] = "",
    labels: Annotated[str, typer.Option(help="Labels that are counted, by commas; nothing for all")] = "",
    most: Annotated[
        int, typer.Option(help="Of so many names it says with whom and when, the most frequent", min=1)
    ] = 200,
) -> None:
    """Count the names of an annotated corpus, and write tables of them."""
    parts = open_parts(target, date_column)
    wanted = [*filter(None, map(str.strip, labels.split(",")))]
    with tempfile.TemporaryDirectory() as scratch, duckdb.connect() as database:
        database.execute("SET temp_directory = $1", [scratch])  # for what does not fit in memory
        database.register("parts", parts)
        when = f"try_cast({_quote(date_column)} AS TIMESTAMP)" if date_column else "NULL::TIMESTAMP"
        database.execute(MENTIONS.format(when=when))
        if wanted:
            database.execute("DELETE FROM mentions WHERE label NOT IN (SELECT unnest($1::VARCHAR[]))", [wanted])
        if not database.execute("SELECT count(*) FROM mentions").fetchall()[0][0]:
            raise StepError("There is no name in it.", f"Look at the labels in {MANIFEST}.")
        spellings = group(database)
        database.execute(NAMED)
        database.execute(FREQUENT)
        tables = {
            NAMES: "SELECT name, label, mentions, documents FROM frequent",
            TOGETHER: f"""SELECT a.name, a.label, b.name AS other, b.label AS other_label, count(*) AS documents
                FROM named a JOIN named b ON a.document = b.document AND (a.name, a.label) < (b.name, b.label)
                SEMI JOIN (FROM frequent LIMIT {most}) f ON a.name = f.name AND a.label = f.label
                SEMI JOIN (FROM frequent LIMIT {most}) g ON b.name = g.name AND b.label = g.label
                GROUP BY ALL ORDER BY documents DESC, a.name, a.label, other, other_label""",
        }
        if date_column:
            tables[OVER_TIME] = f"""SELECT strftime(moment, '%Y-%m') AS month, name, label, sum(mentions) AS mentions,
                    count(*) AS documents
                FROM named SEMI JOIN (FROM frequent LIMIT {most}) USING (name, label) WHERE moment IS NOT NULL
                GROUP BY ALL ORDER BY month, mentions DESC, name, label"""
            ((without,),) = database.execute(
                "SELECT count(DISTINCT document) FROM mentions WHERE moment IS NULL"
            ).fetchall()
            if without:
                msg.warn(f"{without:,} documents with names have no date in {date_column} that can be read.")
        with staged(folder, *tables, SPELLINGS) as new:
            for name, query in tables.items():
                found = database.execute(query)
                _write(new / name, [column[0] for column in found.description], iter(found.fetchone, None))
            _write(new / SPELLINGS, ["name", "label", "spelling", "mentions"], spellings)
        if not date_column:
            (folder / OVER_TIME).unlink(missing_ok=True)  # of an earlier call
        shown = database.execute(f"FROM frequent LIMIT {SHOWN}").fetchall()
    rows = [(name, label, f"{mentions:,}", f"{documents:,}") for name, label, mentions, documents in shown]
    header = ("name", "label", "mentions", "documents")
    msg.table(rows, header=header, divider=True, aligns=("l", "l", "r", "r"))
    msg.good(f"Wrote {', '.join([*tables, SPELLINGS])} to {folder}")


def open_parts(target: str, date_column: str) -> pyarrow.dataset.Dataset:
    """Open the parts of an annotated corpus.

    target (str): Their folder or URL.
    date_column (str): A column that they must have, if it is not empty.
    RETURNS (pyarrow.dataset.Dataset): Them, as one table.
    RAISES (StepError): If there is no finished corpus, if it is no parquet, or if it has no such column.
    """
    place = Target(target)
    manifest = place.read_json(MANIFEST)
    if manifest is None:
        raise StepError(f"{place.root} has no {MANIFEST}: it is not done.", "Run annotate-corpus until it is.")
    if manifest["inputs"]["format"] != "parquet":
        raise StepError(f"{place.root} has no parquet.", "Run annotate-corpus with its default format.")
    paths = [f"{place.root}/{part['part']}" for part in manifest["parts"]]
    if not paths:
        raise StepError(f"{place.root} has no documents.", f"Look at what {MANIFEST} says of the files.")
    parts = pyarrow.dataset.dataset(paths, filesystem=place.system, format="parquet")
    if date_column and date_column not in parts.schema.names:
        raise StepError(
            f"The corpus has no column {date_column!r}. It has: {', '.join(parts.schema.names)}.",
            "Let annotate-corpus pass it on: --vars.columns",
        )
    return parts


def group(database: duckdb.DuckDBPyConnection) -> list[tuple[str, str, str, int]]:
    """Group the spellings in the table `mentions` into names, and write them to the table `names`.

    database (duckdb.DuckDBPyConnection): The database.
    RETURNS (list[tuple[str, str, str, int]]): Name, label, spelling and mentions, the names in alphabetical order.
    """
    counts: defaultdict[str, dict[str, int]] = defaultdict(dict)
    query = "SELECT label, spelling, count(*) FROM mentions GROUP BY ALL"
    for label, spelling, mentions in database.execute(query).fetchall():
        counts[label][spelling] = mentions
    rows = [
        (name, label, spelling, counts[label][spelling])
        for label in counts
        for spelling, name in group_spellings(counts[label]).items()
    ]
    columns = dict(zip(("name", "label", "spelling"), zip(*rows, strict=True), strict=False))
    database.register("grouped", pyarrow.table({name: pyarrow.array(values) for name, values in columns.items()}))
    database.execute("CREATE TEMP TABLE names AS FROM grouped")
    return sorted(rows, key=lambda row: (row[0], row[1], -row[3], row[2]))


def _quote(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _write(path: Path, header: list[str], rows: Iterable[Any]) -> None:
    with path.open("w", encoding="utf8", newline="") as file:
        table = csv.writer(file)
        table.writerow(header)
        table.writerows([_disarm(cell) for cell in row] for row in rows)


def _disarm(cell: Any) -> Any:
    """A cell that no spreadsheet takes for a formula (https://owasp.org/www-community/attacks/CSV_Injection)."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else cell


if __name__ == "__main__":
    main(corpus_view)
