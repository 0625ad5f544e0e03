"""Get the texts out of the bytes of a .txt, .csv, .pdf or .docx file."""

from __future__ import annotations

import codecs
import csv
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from common import unpack
from common.unpack import UnreadableError

MAX_CHARACTERS = 2_000_000  # of a .pdf or .docx
MAX_MEMORY = 2**30  # bytes for the process that reads a .pdf or .docx
MAX_SECONDS = 20  # of processor time for that process
PATIENCE = 60  # seconds that we wait for that process, which may have to wait for a processor
DELIMITERS = ",;\t|"
TEXT = "text"  # the column with the text in a table
csv.field_size_limit(2**31 - 1)  # by default a cell has at most 131,072 characters


def read_txt(data: bytes) -> str:
    """Decode a text file. It may be in UTF-8, in UTF-16, or in Windows-1252, which older Windows programs write.

    data (bytes): Contents of the file.
    RETURNS (str): The text, without a byte-order mark.
    RAISES (UnreadableError): If the file holds no text.
    """
    return decode(data)[0]


def decode(data: bytes) -> tuple[str, str]:
    """Decode a text file as `read_txt` does.

    data (bytes): Contents of the file.
    RETURNS (tuple[str, str]): The text, and its encoding as Python calls it. For cp1252 that is a guess, because nearly
        any bytes are valid in it.
    RAISES (UnreadableError): If the file holds no text.
    """
    for encoding in _guess_encodings(data):
        with suppress(UnicodeDecodeError):
            text = data.decode(encoding)
            if "\0" not in text:
                return text.removeprefix("\ufeff"), encoding
    raise UnreadableError("it is no text in UTF-8, UTF-16 or Windows-1252: if it is a text, save it in UTF-8")


def _guess_encodings(data: bytes) -> Iterator[str]:
    """Yield possible encodings, the most certain first. A text in another encoding is hardly ever valid UTF-8."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        yield "utf-16"
    yield "utf-8"
    for encoding, place in (("utf-16-le", 1), ("utf-16-be", 0)):
        if data[place::2].count(0) > len(data) / 4:  # in UTF-16, every second byte of a Latin letter is NUL
            yield encoding
    yield "cp1252"


def read_csv(data: bytes) -> list[dict[str, str]]:
    """Read a table, whose texts are in the column `text`, or else in the column with the most characters.

    Cells are separated by commas, semicolons, tabs or bars. A file with a single column may have any of these in its
    texts.

    data (bytes): Contents of the file.
    RETURNS (list[dict[str, str]]): Each row below the heading, or each row if there is no heading: its text by the name
        of `text`, which is empty for an empty cell, and its other cells by their headings, in lower case.
    RAISES (UnreadableError): If the file holds no text.
    """
    rows = _split_cells(read_txt(data).strip("\r\n"))
    if not rows:
        return []
    headings = [_simplify(cell) for cell in rows[0]]
    columns = range(max(map(len, rows)))
    if TEXT in headings:
        column = headings.index(TEXT)
    else:
        column = max(columns, key=lambda number: sum(len(row[number]) for row in rows if number < len(row)))
    texts = [row[column] if column < len(row) else "" for row in rows]
    if not _is_heading(texts):
        return [{TEXT: text} for text in texts]
    others = [(number, name) for number, name in enumerate(headings) if name and number != column]
    return [
        {name: row[number] for number, name in others if number < len(row)} | {TEXT: text}
        for row, text in zip(rows[1:], texts[1:], strict=True)
    ]


def _simplify(cell: str) -> str:
    return cell.strip().lower()


def _is_heading(texts: list[str]) -> bool:
    """Whether the first cell of a column is its heading: the word `text`, or one word above texts of several words."""
    first, *rest = texts
    return _simplify(first) == "text" or (len(first.split()) == 1 and any(len(text.split()) > 1 for text in rest))


def _split_cells(text: str) -> list[list[str]]:
    """Split a table into rows of cells. We do not use csv.Sniffer, which may take a letter or a space as delimiter.

    A delimiter is accepted if one of the headings that it separates is `text`, or else if it gives all rows the same
    number of cells. A mark that is always followed by a space belongs to prose, and is no delimiter.
    """
    tables = []
    for delimiter in DELIMITERS:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
        filled = [row for row in rows if row]
        if not filled or len(filled[0]) < 2:
            continue
        if "text" in map(_simplify, filled[0]):
            return rows
        prose = all(not cell or cell[0].isspace() for row in filled for cell in row[1:])
        if len(set(map(len, filled))) == 1 and not prose:
            tables.append(rows)
    if tables:
        return max(tables, key=lambda rows: len(rows[0]))
    try:
        column = [
            row[0] if row else "" for row in csv.reader(io.StringIO(text, newline=""), delimiter="\0", strict=True)
        ]
    except csv.Error:  # the quotation marks belong to the text
        column = [line.rstrip("\r\n") for line in io.StringIO(text, newline="")]
    return [[cell] for cell in column]


def read_packed(kind: str, data: bytes) -> str:
    """Read the text of a .pdf or .docx in a process that ends when it takes too much time or memory.

    kind (str): .pdf or .docx.
    data (bytes): Contents of the file.
    RETURNS (str): The text.
    RAISES (UnreadableError): If the file is damaged or too large.
    """
    limits = map(str, (MAX_SECONDS, MAX_MEMORY, MAX_CHARACTERS))
    program = str(Path(unpack.__file__).resolve())
    too_much = f"it takes more than {MAX_SECONDS} seconds or {MAX_MEMORY // 2**20:,} MB of memory to read"
    try:
        # -P keeps common/ off the module path, where our files would hide installed modules of the same name
        done = subprocess.run(
            [sys.executable, "-P", program, kind, *limits], input=data, capture_output=True, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired as error:
        raise UnreadableError(too_much) from error
    if done.returncode:
        raise UnreadableError(too_much)
    answer = json.loads(done.stdout)
    if "problem" in answer:
        raise UnreadableError(answer["problem"])
    return str(answer["text"])
