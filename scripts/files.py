"""Read the text out of files that people upload: .txt and .csv at once, .pdf and .docx in a process with limits.

A file of some kilobytes can unpack to gigabytes, or keep its reader busy for ever. This module is therefore also the
program of that process, which starts fast, since it imports nothing of the project.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

MAX_CHARACTERS = 2_000_000  # of all documents that page and service take at once
MAX_PAGES = 1000
MAX_UNPACKED = 100_000_000  # bytes that a .docx may hold once it is unpacked
MAX_MEMORY = 2**30  # bytes of the process, where the system can limit them
MAX_SECONDS = 20  # of a processor, where the system can limit them
PATIENCE = 60  # seconds for the process, waiting included: another may have the processor
DELIMITERS = ",;\t|"
csv.field_size_limit(2**31 - 1)  # unless it is raised, a cell has at most 131,072 characters


class UnreadableError(Exception):
    """Why there is no text in a file, as a part of a sentence."""


def read_txt(data: bytes) -> str:
    """The text in the bytes of a file: UTF-8, UTF-16, or what Windows wrote before.

    data (bytes): The contents of the file.
    RETURNS (str): Its text, without a byte-order mark.
    RAISES (UnreadableError): If it holds no text.
    """
    for encoding in _guess_encodings(data):
        with suppress(UnicodeDecodeError):
            text = data.decode(encoding)
            if "\0" not in text:
                return text.removeprefix("\ufeff")
    raise UnreadableError("it is no text in UTF-8, UTF-16 or Windows-1252: if it is a text, save it in UTF-8")


def _guess_encodings(data: bytes) -> Iterator[str]:
    """The encodings that it may have, the surest first: what is not meant to be UTF-8 hardly ever is by chance."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        yield "utf-16"
    yield "utf-8"
    for encoding, place in (("utf-16-le", 1), ("utf-16-be", 0)):
        if data[place::2].count(0) > len(data) / 4:  # Latin letters have NUL as every second byte, with a mark or not
            yield encoding
    yield "cp1252"


def read_csv(data: bytes) -> list[str]:
    """The texts in a table: the column `text`, or else the one with most characters.

    Cells are separated by commas, semicolons, tabs or bars. A file of one column may have any of them in its texts.

    data (bytes): The contents of the file.
    RETURNS (list[str]): A text for each row after the heading, if there is one; empty where the cell is.
    RAISES (UnreadableError): If it is not text.
    """
    rows = _split_cells(read_txt(data).strip("\r\n"))
    if not rows:
        return []
    headings = [_simplify(cell) for cell in rows[0]]
    columns = range(max(map(len, rows)))
    if "text" in headings:
        column = headings.index("text")
    else:
        column = max(columns, key=lambda number: sum(len(row[number]) for row in rows if number < len(row)))
    texts = [row[column] if column < len(row) else "" for row in rows]
    return texts[1:] if _is_heading(texts) else texts


def _simplify(cell: str) -> str:
    return cell.strip().lower()


def _is_heading(texts: list[str]) -> bool:
    """Whether the first of the cells is the name of the column: `text`, or one word above texts of several."""
    first, *rest = texts
    return _simplify(first) == "text" or (len(first.split()) == 1 and any(len(text.split()) > 1 for text in rest))


def _split_cells(text: str) -> list[list[str]]:
    """The rows of a table, split at the delimiter that makes it one: csv.Sniffer would take a letter or a space.

    A delimiter is one if the heading names the column `text` between such, or else if it gives all rows the same
    number of cells. Between the words of prose, it is followed by a space everywhere.
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
    except csv.Error:  # quotation marks of the text itself
        column = [line.rstrip("\r\n") for line in io.StringIO(text, newline="")]
    return [[cell] for cell in column]


def read_packed(kind: str, data: bytes) -> str:
    """The text of a .pdf or .docx, read by a process that is ended when it takes too much of time or memory.

    kind (str): .pdf or .docx.
    data (bytes): The contents of the file.
    RETURNS (str): Its text.
    RAISES (UnreadableError): If the file is damaged or too large.
    """
    limits = [str(MAX_SECONDS), str(MAX_MEMORY)]
    command = [
        sys.executable,
        "-P",
        os.path.abspath(__file__),
        kind,
        *limits,
    ]  # -P: modules beside it have common names
    too_much = f"it takes more than {MAX_SECONDS} seconds or {MAX_MEMORY // 2**20:,} MB of memory to read"
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise UnreadableError(too_much) from error
    if done.returncode:
        raise UnreadableError(too_much)
    answer = json.loads(done.stdout)
    if "problem" in answer:
        raise UnreadableError(answer["problem"])
    return str(answer["text"])


def _read_pdf(data: bytes) -> Iterator[str]:
    from pypdf import PdfReader

    pages = PdfReader(io.BytesIO(data)).pages
    if len(pages) > MAX_PAGES:
        raise UnreadableError(f"it has {len(pages):,} pages, and {MAX_PAGES:,} are the most: split it")
    for page in pages:
        yield page.extract_text()


def _read_docx(data: bytes) -> Iterator[str]:
    from zipfile import ZipFile

    from docx import Document
    from docx.table import Table, _Cell

    with ZipFile(io.BytesIO(data)) as packed:  # zipfile gives no more bytes of a file than it says that it has
        size = sum(info.file_size for info in packed.infolist())
    if size > MAX_UNPACKED:
        raise UnreadableError(f"it unpacks to {size / 1e6:,.0f} MB, and {MAX_UNPACKED / 1e6:,.0f} are the most")
    for block in Document(io.BytesIO(data)).iter_inner_content():
        if isinstance(block, Table):
            # Each cell once: row.cells has a cell as often as it says that it spans columns
            rows = ([_Cell(cell, block).text for cell in row.tc_lst] for row in block._tbl.tr_lst)
            yield "\n".join("\t".join(cells) for cells in rows)
        else:
            yield block.text


READERS: dict[str, Callable[[bytes], Iterator[str]]] = {".pdf": _read_pdf, ".docx": _read_docx}


def _join(blocks: Iterable[str]) -> str:
    """The text of pages or paragraphs, no further than page and service would take it."""
    found, size = [], 0
    for block in blocks:
        found.append(block)
        size += len(block) + 2
        if size > MAX_CHARACTERS + 2:
            raise UnreadableError(f"it has more than {MAX_CHARACTERS:,} characters: split it")
    return "\n\n".join(found).encode("utf8", "replace").decode()  # half characters, which fonts may name, are not text


def main(kind: str, seconds: int, memory: int) -> None:
    """Read a file from standard input, within limits where the system has them; write what came of it as JSON."""
    with suppress(ImportError):
        import resource

        for limit, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory)):
            with suppress(OSError, ValueError):
                resource.setrlimit(limit, (most, most))
    try:
        answer = {"text": _join(READERS[kind](sys.stdin.buffer.read()))}
    except UnreadableError as error:
        answer = {"problem": str(error)}
    except MemoryError:
        sys.exit(1)
    except Exception as error:  # libraries that read damaged files raise whatever they like
        answer = {"problem": f"{type(error).__name__}: {error}"[:300]}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
