"""Which names an annotated corpus has: how often, in which spellings, together with which others, and when."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import duckdb
import typer
from wasabi import msg

from common.errors import StepError, main
from common.names import Names
from common.records import staged, writes
from common.tables import write_csv

VIEW = "view"
NAMES, SPELLINGS, TOGETHER, OVER_TIME = "names.csv", "spellings.csv", "together.csv", "over-time.csv"
SHOWN = 20


@writes("folder", VIEW)
def corpus_view(
    target: Annotated[str, typer.Argument(help="Folder or URL with the parts, in parquet, of annotate-corpus")],
    folder: Annotated[Path, typer.Argument(help="Folder of the run; the tables in its view/ are replaced")],
    date_column: Annotated[str, typer.Option(help="A column with dates, for the names of each month")] = "",
    labels: Annotated[str, typer.Option(help="Labels that are counted, by commas; nothing for all")] = "",
    most: Annotated[
        int, typer.Option(help="Of so many names it says with whom and when, the most frequent", min=1)
    ] = 200,
) -> None:
    """Count the names of an annotated corpus, and write tables of them."""
    if not target.strip():
        raise StepError(
            "It takes the folder in which annotate-corpus has written.", "For example: --vars.target path/to/folder"
        )
    wanted = [*filter(None, map(str.strip, labels.split(",")))]
    names = Names(target, date_column, wanted or None)
    frequent = [(name, label) for name, label, *_ in names.frequent(most).fetchall()]
    tables: dict[str, Callable[[], duckdb.DuckDBPyConnection]] = {
        NAMES: names.frequent,
        SPELLINGS: names.spellings,
        TOGETHER: partial(names.together, frequent),
    }
    if date_column:
        tables[OVER_TIME] = partial(names.over_time, frequent)
        if names.undated:
            msg.warn(f"{names.undated:,} documents with names have no date in {date_column} that can be read.")
    view = folder / VIEW
    with staged(view, *tables) as new:
        for table, ask in tables.items():
            found = ask()
            with (new / table).open("w", encoding="utf8", newline="") as file:
                write_csv(file, [column[0] for column in found.description], iter(found.fetchone, None))
    if not date_column:
        (view / OVER_TIME).unlink(missing_ok=True)  # of an earlier call
    shown = names.frequent(SHOWN).fetchall()
    rows = [(name, label, f"{mentions:,}", f"{documents:,}") for name, label, mentions, documents in shown]
    header = ("name", "label", "mentions", "documents")
    msg.table(rows, header=header, divider=True, aligns=("l", "l", "r", "r"))
    msg.good(f"Wrote {', '.join(tables)} to {view}")


if __name__ == "__main__":
    main(corpus_view)
