"""Find texts wherever they stand, cut them into shards of about equal size, and read a shard row by row.

Nothing here holds more of a file than a row, or than a batch of rows of parquet; only a .spacy file is read whole.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any, NamedTuple

import pyarrow
from pyarrow.parquet import ParquetFile

from common.decoding import DELIMITERS, TEXT, decode, read_packed
from common.errors import StepError
from common.filesystems import FileSystemError, file_system, list_files, open_file
from common.texts import HUB, fetch_texts, read_id
from common.unpack import UnreadableError

LONGEST_LINE = 2**26  # bytes of a line, or of a .txt: a longer one is no text that a pipeline could read
BATCH = 64  # rows of parquet that are in memory at once
KINDS = (".parquet", ".jsonl", ".csv", ".txt", ".pdf", ".docx", ".spacy")


class File(NamedTuple):
    """A file with documents.

    place (str): The path or URL that led to it, from which its file system is known.
    path (str): Its path in that file system.
    name (str): What names it for good, and begins the ids of its documents: its path below the folder that was named.
    size (int): Its bytes.
    modified (int): When it was changed, in nanoseconds since 1970; 0 if its file system does not say.
    """

    place: str
    path: str
    name: str
    size: int
    modified: int

    def open(self) -> Any:
        """Open it for reading at any place.

        RAISES (FileSystemError): Now or while it is read, if it is elsewhere and cannot be reached.
        """
        return open_file(self.place, self.path)

    @property
    def kind(self) -> str:
        return PurePosixPath(self.path).suffix.lower()


class Columns(NamedTuple):
    """The columns of tables.

    text, id (str): Those with the text and with the id of a document.
    others (tuple[str, ...] | None): Those that are passed on; None for all.
    """

    text: str = TEXT
    id: str = "id"
    others: tuple[str, ...] | None = None

    def choose(self, names: Iterable[str]) -> list[str]:
        """Choose those columns of a table that are passed on."""
        return [
            name for name in names if name not in (self.text, self.id) and (self.others is None or name in self.others)
        ]


class Piece(NamedTuple):
    """Rows of a file that stand one after the other.

    file (int): The number of the file.
    start (int): The first row, from 0. A row of a .jsonl is a line, and that of a .csv is below its heading.
    rows (int): How many there are.
    offset (int): The byte at which the first row begins; 0 where a file is not read line by line.
    """

    file: int
    start: int
    rows: int
    offset: int = 0


class Row(NamedTuple):
    """A document as it stands in a file.

    id (str): Its own id, or the name of its file, with the number of its row from 1 if the file has rows.
    place (str): Where it stands, for messages.
    text (str): Its text; empty if there is a problem.
    others (Mapping[str, Any]): The columns that are passed on.
    problem (str): Why it has no text that can be read; empty if it has.
    """

    id: str
    place: str
    text: str = ""
    others: Mapping[str, Any] = MappingProxyType({})
    problem: str = ""


# Files


def find_files(names: str, target: str = "") -> tuple[list[File], list[str]]:
    """Find the files with documents.

    names (str): Files, folders, patterns with `*` and `**`, URLs of these, and data sets on the hub (`hub:owner/name`),
        with commas between them.
    target (str): A folder, by its path in its file system, that is passed over in a folder above it, because what is
        found in the documents is written there.
    RETURNS (tuple[list[File], list[str]]): The files, sorted within a place, each once, and the names of those of other
        kinds in the same folders. What is hidden in a folder is passed over.
    RAISES (StepError): If there is nothing of a name, or nothing of a known kind at all, if a file that was named is of
        another kind, or if two files would get the same name.
    """
    found: dict[tuple[str, str], File] = {}
    others: dict[tuple[str, str], str] = {}
    for place in filter(None, map(str.strip, names.split(","))):
        before = ""
        if place.startswith(HUB):
            hub = place.removeprefix(HUB)
            place, before = str(fetch_texts(hub)), f"{hub.partition('@')[0]}/"
        system, path = file_system(place)
        shown = place if "://" not in place else f"{place.partition('://')[0]}://{path}"
        # The folder above the first part with a star; ids begin below it
        root = path.partition("*")[0].rpartition("/")[0] if "*" in path else path
        infos = list_files(system, path)
        if not infos:
            raise StepError(f"There is no {shown}.", "Check the path; paths have commas between them.")
        for info in infos:
            if target.startswith(f"{root}/") and info.path.startswith(f"{target}/"):
                continue
            inside = info.path.removeprefix(root).lstrip("/")
            if any(part.startswith(".") for part in inside.split("/")):  # hidden
                continue
            relative = inside or PurePosixPath(info.path).name
            file = File(place, info.path, before + relative, info.size or 0, info.mtime_ns or 0)
            if file.kind in KINDS:
                found.setdefault((system.type_name, info.path), file)
            elif info.path == path:
                raise StepError(f"{shown} is not a file of a known kind.", f"Known are {', '.join(KINDS)}.")
            elif not PurePosixPath(relative).name.startswith("_"):
                others.setdefault((system.type_name, info.path), file.name)
    if not found:
        raise StepError("No file of the texts is of a known kind.", f"Known are {', '.join(KINDS)}.")
    taken: dict[str, File] = {}
    for file in found.values():
        if (other := taken.setdefault(file.name, file)) is not file:
            raise StepError(
                f"{file.path} and {other.path} would both be called {file.name} in the ids of their documents.",
                "Name the folder above both.",
            )
    return list(found.values()), list(others.values())


# Shards


class Survey(NamedTuple):
    """What files hold, without their texts.

    pieces (list[Piece]): All rows, in pieces of at most as many rows as a shard may have.
    types (dict[str, pyarrow.DataType]): The types of the columns that are passed on. They are those of the parquet
        files; what stands in other files, or has another type in each, becomes a string.
    damaged (list[tuple[str, str]]): The names of the files that cannot be read, and why.
    """

    pieces: list[Piece]
    types: dict[str, pyarrow.DataType]
    damaged: list[tuple[str, str]]


def survey(files: Iterable[File], columns: Columns, size: int) -> Survey:
    """Read through files once, and find where their pieces begin.

    files (Iterable[File]): The files, as many as there may be.
    columns (Columns): The columns of tables.
    size (int): The most rows of a piece.
    RETURNS (Survey): The pieces.
    RAISES (StepError): If a table has no column of the text's name, with those that it has.
    RAISES (FileSystemError): If a file is elsewhere and cannot be reached.
    """
    found = Survey([], {}, [])
    for number, file in enumerate(files):
        try:
            with file.open() as stream:
                names, cuts = _SURVEYS.get(file.kind, _survey_whole)(file, stream, columns, size)
        except (OSError, pyarrow.ArrowException, UnreadableError, csv.Error) as error:
            found.damaged.append((file.name, _first_line(error)))
            continue
        found.pieces.extend(Piece(number, *cut) for cut in cuts)
        for name, kind in names.items():
            if not _is_unicode(name):  # then no row that has it can be read
                continue
            found.types[name] = kind if found.types.get(name, kind) == kind else pyarrow.string()
    return found


def pack(pieces: Iterable[Piece], size: int) -> Iterator[list[Piece]]:
    """Put pieces into shards, in their order, as many in each as have together at most `size` rows.

    pieces (Iterable[Piece]): The pieces, none of which has more rows.
    size (int): The most rows of a shard.
    YIELDS (list[Piece]): The pieces of a shard.
    """
    shard: list[Piece] = []
    for piece in pieces:
        if shard and sum(other.rows for other in shard) + piece.rows > size:
            yield shard
            shard = []
        shard.append(piece)
    if shard:
        yield shard


Cuts = tuple[dict[str, pyarrow.DataType], list[tuple[int, int, int]]]


def _cut(rows: int, size: int) -> list[tuple[int, int, int]]:
    return [(start, min(size, rows - start), 0) for start in range(0, rows, size)]


def _survey_whole(file: File, stream: Any, columns: Columns, size: int) -> Cuts:
    return {}, _cut(1, size)


def _survey_docbin(file: File, stream: Any, columns: Columns, size: int) -> Cuts:
    return {}, _cut(len(_load_docbin(stream)), size)


def _survey_parquet(file: File, stream: Any, columns: Columns, size: int) -> Cuts:
    table = ParquetFile(stream)
    _check_columns(file, table.schema_arrow.names, columns)
    types = {field.name: field.type for field in table.schema_arrow}  # the last of several that have one name
    return {name: types[name] for name in columns.choose(types)}, _cut(table.metadata.num_rows, size)


def _survey_jsonl(file: File, stream: Any, columns: Columns, size: int) -> Cuts:
    names: dict[str, pyarrow.DataType] = {}
    marks: list[int] = []
    offset = rows = 0
    for line, length in _read_lines(stream):
        if rows % size == 0:
            marks.append(offset)
        offset += length
        rows += 1
        row = _parse(line)
        names |= dict.fromkeys(columns.choose(row) if isinstance(row, dict) else (), pyarrow.string())
    return names, _cut_at(marks, rows, size)


def _survey_csv(file: File, stream: Any, columns: Columns, size: int) -> Cuts:
    if not file.size:
        return {}, []
    table = _Table(file, stream, columns)
    marks: list[int] = []
    rows = 0
    offset = table.offset
    for _ in table:
        if rows % size == 0:
            marks.append(offset)
        offset = table.offset
        rows += 1
    return dict.fromkeys(columns.choose(table.heading), pyarrow.string()), _cut_at(marks, rows, size)


def _cut_at(marks: list[int], rows: int, size: int) -> list[tuple[int, int, int]]:
    return [(start, length, mark) for (start, length, _), mark in zip(_cut(rows, size), marks, strict=True)]


def _check_columns(file: File, names: Sequence[str], columns: Columns) -> None:
    if columns.text not in names:
        raise StepError(
            f"{file.name} has no column {columns.text!r}. It has: {', '.join(names)}.",
            "Name the column with the texts: --vars.text_column body",
        )


_SURVEYS: dict[str, Callable[[File, Any, Columns, int], Cuts]] = {
    ".parquet": _survey_parquet,
    ".jsonl": _survey_jsonl,
    ".csv": _survey_csv,
    ".spacy": _survey_docbin,
}


# Rows


def read_rows(files: Sequence[File], piece: Piece, columns: Columns) -> Iterator[Row]:
    """Read the documents of a piece. What cannot be read costs itself alone, or the rest of the piece.

    files (Sequence[File]): All files.
    piece (Piece): The piece.
    columns (Columns): The columns of tables.
    YIELDS (Row): The documents. An empty line is none.
    RAISES (FileSystemError): If the file is elsewhere and cannot be reached.
    """
    file = files[piece.file]
    next_row = piece.start
    try:
        with file.open() as stream:
            for number, raw in _READERS.get(file.kind, _read_whole)(file, stream, piece, columns):
                if raw is not None:
                    yield _row_of(file, number, raw, columns)
                next_row = number + 1
    except FileSystemError:
        raise
    except (OSError, pyarrow.ArrowException, UnreadableError, StepError) as error:
        row = _row_of(file, next_row, f"cannot be read: {_first_line(error)}", columns)
        end = piece.start + piece.rows
        yield row if end <= next_row + 1 else row._replace(place=f"{file.name}, rows {next_row + 1} to {end}")


Raws = Iterator[tuple[int, dict[str, Any] | str | None]]  # the numbers of rows, and them, what is wrong, or nothing


def _row_of(file: File, number: int, raw: dict[str, Any] | str, columns: Columns) -> Row:
    name = place = file.name
    if file.kind in _READERS:
        name, place = f"{file.name}#{number + 1}", f"{file.name}, row {number + 1}"
    if isinstance(raw, str):
        return Row(name, place, problem=raw)
    text, own = raw.get(columns.text), read_id(raw.get(columns.id))
    others = {key: raw[key] for key in columns.choose(raw)}
    if not _is_unicode(own):
        return Row(name, place, problem="the id has half a character, or is not in UTF-8")
    if not isinstance(text, str):
        return Row(own or name, place, problem=f"the text is no string ({type(text).__name__})")
    if not _is_unicode(text) or not all(
        _is_unicode(one) for one in (*others, *others.values()) if isinstance(one, str)
    ):
        return Row(own or name, place, problem="it has half a character, or is not in UTF-8")
    return Row(own or name, place, text, others)


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _read_whole(file: File, stream: Any, piece: Piece, columns: Columns) -> Raws:
    if file.kind == ".txt" and file.size > LONGEST_LINE:
        yield 0, f"the file has more than {LONGEST_LINE:,} bytes"
        return
    data = stream.read()
    yield 0, {columns.text: decode(data)[0] if file.kind == ".txt" else read_packed(file.kind, data)}


def _read_docbin(file: File, stream: Any, piece: Piece, columns: Columns) -> Raws:
    from spacy.vocab import Vocab

    docs = enumerate(_load_docbin(stream).get_docs(Vocab()))
    for number, doc in islice(docs, piece.start, piece.start + piece.rows):
        yield number, {columns.text: doc.text, columns.id: doc.user_data.get("id")}


def _read_parquet(file: File, stream: Any, piece: Piece, columns: Columns) -> Raws:
    table = ParquetFile(stream)
    names = table.schema_arrow.names
    wanted = [name for name in names if name in (columns.text, columns.id)] + columns.choose(names)
    end = piece.start + piece.rows
    first = 0
    for group in range(table.num_row_groups):
        rows = table.metadata.row_group(group).num_rows
        if first < end and first + rows > piece.start:
            number = first
            for batch in table.iter_batches(BATCH, [group], wanted):
                for place in range(max(0, piece.start - number), min(len(batch), end - number)):
                    yield number + place, _read_cells(batch, place)
                number += len(batch)
                if number >= end:
                    return
        first += rows


def _read_cells(batch: pyarrow.RecordBatch, place: int) -> dict[str, Any] | str:
    try:
        return {name: column[place].as_py() for name, column in zip(batch.schema.names, batch.columns, strict=True)}
    except (ValueError, OverflowError, pyarrow.ArrowException) as error:  # no UTF-8, or no date of Python's
        return f"a cell cannot be read: {_first_line(error)}"


def _read_jsonl(file: File, stream: Any, piece: Piece, columns: Columns) -> Raws:
    stream.seek(piece.offset)
    for number, (line, _) in zip(range(piece.start, piece.start + piece.rows), _read_lines(stream), strict=False):
        row = _parse(line)
        if isinstance(row, dict):
            passed = (columns.text, columns.id)
            yield number, {key: value if key in passed else _as_text(value) for key, value in row.items()}
        else:
            yield number, row


def _read_csv(file: File, stream: Any, piece: Piece, columns: Columns) -> Raws:
    table = _Table(file, stream, columns)
    table.seek(piece.offset)
    yield from zip(range(piece.start, piece.start + piece.rows), table, strict=False)


_READERS: dict[str, Callable[[File, Any, Piece, Columns], Raws]] = {
    ".parquet": _read_parquet,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".spacy": _read_docbin,
}


def _read_lines(stream: Any) -> Iterator[tuple[bytes | None, int]]:
    """The lines from here on with their lengths. None stands for one that is longer than LONGEST_LINE."""
    lines = io.BufferedReader(stream, 2**20)
    try:
        while line := lines.readline(LONGEST_LINE):
            length = len(line)
            if length == LONGEST_LINE and not line.endswith(b"\n"):
                while (more := lines.readline(LONGEST_LINE)) and not more.endswith(b"\n"):
                    length += len(more)
                yield None, length + len(more)
            else:
                yield line, length
    finally:
        if not stream.closed:
            lines.detach()  # or it would close the file


def _parse(line: bytes | None) -> dict[str, Any] | str | None:
    """A line of a .jsonl: an object, what is wrong with it, or None if it is empty."""
    if line is None:
        return f"the line has more than {LONGEST_LINE:,} bytes"
    if not line.strip():
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # of UTF-8 too
        return f"this is not JSON ({_first_line(error)})"
    return row if isinstance(row, dict) else "this is no JSON object"


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


class _Table:
    """The rows of a .csv file below its heading, and the byte at which the next one begins.

    The delimiter is the one that makes the name of the text's column a heading.

    RAISES (StepError): If none does.
    """

    def __init__(self, file: File, stream: Any, columns: Columns) -> None:
        self.stream = stream
        self.offset = 0
        first, _ = next(_read_lines(stream), (b"", 0))
        line = (first or b"").decode("utf-8-sig", "surrogateescape")
        headings = {mark: next(csv.reader([line], delimiter=mark), []) for mark in DELIMITERS}
        self.delimiter = next((mark for mark, names in headings.items() if columns.text in names), ",")
        _check_columns(file, headings[self.delimiter], columns)
        self.seek(0)
        self.heading = next(self.rows)

    def seek(self, offset: int) -> None:
        """Go on from a byte at which a row begins."""
        self.offset = offset
        self.stream.seek(offset)
        self.rows = csv.reader(self._decode(), delimiter=self.delimiter)

    def _decode(self) -> Iterator[str]:
        for line, length in _read_lines(self.stream):
            encoding = "utf8" if self.offset else "utf-8-sig"  # a heading may have quotes after the byte-order mark
            self.offset += length
            yield (line or b"").decode(encoding, "surrogateescape")

    def __iter__(self) -> Iterator[dict[str, Any] | str | None]:
        return self

    def __next__(self) -> dict[str, Any] | str | None:
        try:
            cells = next(self.rows)
        except csv.Error as error:
            return str(error)
        if len(cells) > len(self.heading):
            return f"the row has {len(cells)} cells below {len(self.heading)} headings"
        return dict(zip(self.heading, cells, strict=False)) if cells else None


def _load_docbin(stream: Any) -> Any:
    from spacy.tokens import DocBin

    try:
        return DocBin().from_bytes(stream.read())
    except (OSError, MemoryError):
        raise
    except Exception as error:  # zlib, msgpack, NumPy and spaCy each raise their own
        raise UnreadableError(f"it is damaged, or no file of spaCy's: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]
