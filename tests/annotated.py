"""A small corpus as annotate-corpus leaves it, without a pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet

from common.parts import MANIFEST, create_schema
from common.records import write_json

DOCUMENTS: Sequence[tuple[str | None, list[str]]] = [
    ("2031-02-07", ["Mira Solberg PER", "Turku LOC", "Mira Solberg PER"]),
    ("2031-02-28", ["Mira Solburg PER", "Norrvik Steel ORG"]),
    ("2031-03-01T10:00", ["TURKU LOC"]),
    ("some day", ["Turku LOC", "=Turku ORG"]),
    (None, []),
]


def write_parts(
    folder: Path, kind: str = "parquet", documents: Sequence[tuple[str | None, list[str]]] = DOCUMENTS
) -> Path:
    """Write a part for each document, a date and names with their labels, and the manifest."""
    folder.mkdir(parents=True)
    columns = {name: pyarrow.string() for name in ("source", "date", "entity", "moment")}  # names that queries have too
    schema = create_schema([], columns)
    for number, (date, names) in enumerate(documents):
        entities = [dict(zip(("text", "label"), name.rsplit(" ", 1), strict=True)) for name in names]
        row = {"id": "x", "source": "the post", "date": date, "entity": None, "moment": None, "entities": entities}
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row], schema), folder / f"part-{number}.parquet")
    parts = [{"part": f"part-{number}.parquet", "documents": 1} for number in range(len(documents))]
    write_json(folder / MANIFEST, {"inputs": {"format": kind}, "parts": parts})
    return folder
