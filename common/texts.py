"""Read documents without labels: from files of many kinds, from folders of them, and from data sets on the hub."""

from __future__ import annotations

import glob
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from common.annotations import Document
from common.corpora import read_docs
from common.decoding import TEXT, decode, read_csv, read_packed
from common.errors import StepError
from common.hub import check_hub, explain, fetch_snapshot
from common.unpack import UnreadableError

LONGEST = 1_000_000  # characters of a text; spaCy's pipelines read no longer one
HUB = "hub:"
HUB_KINDS = ("*.parquet", "*.jsonl", "*.csv")  # a .txt on the hub is rather a licence

Rows = Iterator[tuple[int | None, dict[str, Any] | StepError]]


class Source(NamedTuple):
    """A file with documents.

    path (Path): The file.
    name (str): What names it for good, and begins the ids of its documents: its path below the folder that was named.
    """

    path: Path
    name: str


def find_paths(names: str) -> list[Path]:
    """Find files and folders.

    names (str): Paths or patterns of the shell, with commas between them.
    RETURNS (list[Path]): The paths, those of a pattern sorted.
    RAISES (StepError): If there is nothing of a name.
    """
    paths: list[Path] = []
    for name in filter(None, map(str.strip, names.split(","))):
        found = [name] if Path(name).exists() else sorted(glob.glob(name))  # a name may have brackets in it
        if not found:
            raise StepError(f"There is no {name}.", "Check the path; paths have commas between them.")
        paths += map(Path, found)
    return paths


def find_files(place: Path) -> list[Path]:
    """Find the files of known kinds.

    place (Path): A file, or a folder with files wherever in it.
    RETURNS (list[Path]): The file, or those of the folder, sorted. Those of other kinds in a folder are left out, and
        hidden ones, which systems and editors put there.
    RAISES (StepError): If the file is of another kind, or if the folder has no file of a known kind.
    """
    if not place.is_dir():
        if place.suffix.lower() not in READERS:
            raise StepError(f"{place} is not a file of a known kind.", f"Known are {', '.join(READERS)}.")
        return [place]
    files = sorted(file for file in _list_visible(place) if file.is_file() and file.suffix.lower() in READERS)
    if not files:
        raise StepError(f"{place} has no file of a known kind.", f"Known are {', '.join(READERS)}.")
    return files


def find_sources(names: str) -> tuple[list[Source], list[Path]]:
    """Find the files in places of all kinds.

    names (str): Paths, patterns of the shell and data sets on the hub (`hub:owner/name`, perhaps with `@revision`),
        with commas between them.
    RETURNS (tuple[list[Source], list[Path]]): The files, each once, and those of other kinds in the same folders, with
        links that lead to no file.
    RAISES (StepError): If there is nothing of a name, or nothing of a known kind.
    """
    sources: dict[Path, Source] = {}
    others: set[Path] = set()
    for name in filter(None, map(str.strip, names.split(","))):
        on_hub = name.startswith(HUB)
        for place in [fetch_texts(name.removeprefix(HUB))] if on_hub else find_paths(name):
            root = place if place.is_dir() else place.parent
            for file in find_files(place):
                relative = file.relative_to(root).as_posix()
                full = f"{name.removeprefix(HUB).partition('@')[0]}/{relative}" if on_hub else relative
                sources.setdefault(file.absolute(), Source(file, full))
            others |= {file for file in _list_visible(place) if _is_left_alone(file)}
    return list(sources.values()), sorted(others)


def _list_visible(place: Path) -> Iterator[Path]:
    """All that a folder holds, wherever in it, but for what is hidden or in a hidden folder."""
    for file in place.rglob("*"):
        if not any(part.startswith(".") for part in file.relative_to(place).parts):
            yield file


def _is_left_alone(file: Path) -> bool:
    """Whether something in a folder is a file of another kind, or a link that leads to no file, such as a folder's."""
    return file.suffix.lower() not in READERS if file.is_file() else file.is_symlink()


def fetch_texts(name: str) -> Path:
    """Fetch the tables of a data set on the hub, as `HUB_KINDS`.

    name (str): Its id, or `id@revision`.
    RETURNS (Path): A folder with its files.
    RAISES (StepError): If the hub cannot be reached, which is said at once, or if it has no such data set.
    """
    home, _, revision = name.partition("@")
    try:
        check_hub()
        folder = fetch_snapshot("dataset", home, revision or "main", HUB_KINDS)
    except Exception as error:  # of many kinds, which `explain` knows
        raise StepError(
            f"{HUB}{name} cannot be had from the hub: {explain(error)}",
            "Put the texts into files instead, and name these: --vars.texts path/to/folder",
        ) from error
    if not any(folder.rglob("*.*")):
        raise StepError(
            f"{HUB}{name} has no file of a known kind: {', '.join(HUB_KINDS)}.",
            f"The hub has most data sets in parquet too: {HUB}{home}@refs/convert/parquet",
        )
    return folder


def check_encoding(path: Path) -> StepError | None:
    """Tell whether the encoding of a text file or table is a guess.

    path (Path): The file, of a known kind.
    RETURNS (StepError | None): If it is, an error that names the line which is not UTF-8.
    """
    if path.suffix.lower() not in (".txt", ".csv"):
        return None
    data = path.read_bytes()
    try:
        if decode(data)[1] != "cp1252":
            return None
        data.decode("utf8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        return StepError(f"{path}, line {line}: this is not UTF-8.", "Save the file in UTF-8.")
    except (OSError, UnreadableError):  # which its reader will say
        pass
    return None


def read_documents(source: Source) -> Iterator[Document | StepError]:
    """Read the documents of a file.

    A .txt, .pdf or .docx is one document. A .csv, .jsonl or .parquet has one in each row: its text in the column `text`
    and its id, if it has one, in the column `id`. A .spacy file has documents, whose annotation is not looked at. A
    document without an id gets one from the name of its file and the number of its row, or line in a .jsonl.

    source (Source): The file, of a known kind.
    YIELDS (Document | StepError): The documents; their meta has `file`, `row`, and as `columns` the other columns with
        strings, numbers or truth values. An error stands for a row, or for the rest of the file, that cannot be read.
    """
    path, name = source
    unit = "line" if path.suffix.lower() == ".jsonl" else "row"
    try:
        for number, row in READERS[path.suffix.lower()](path):
            place = str(path) if number is None else f"{path}, {unit} {number}"
            yield _document_of(row, place, name, number) if isinstance(row, dict) else row
    except UnreadableError as error:
        yield StepError(f"{path} cannot be read: {error}.", "Save it again, or leave it out.")
    except OSError as error:
        yield StepError(f"{path} cannot be read ({(str(error) or repr(error)).splitlines()[0]}).", "Write it again.")
    except StepError as error:
        yield error


def _document_of(row: dict[str, Any], place: str, name: str, number: int | None) -> Document | StepError:
    text = row.get(TEXT)
    if not isinstance(text, str):
        return _no_text(place)
    if text != _mend(text):
        return StepError(f"{place}: the text has half a character, a lone surrogate.", "Write the text again in UTF-8.")
    own = _mend(read_id(row.get("id")))
    others = {name: value for name, value in row.items() if name not in (TEXT, "id") and _is_plain(value)}
    columns = {_mend(name): _mend(value) if isinstance(value, str) else value for name, value in others.items()}
    meta: dict[str, Any] = {"file": name}
    if number is not None:
        meta["row"] = number
    if columns:
        meta["columns"] = columns
    return Document(id=own or (name if number is None else f"{name}#{number}"), text=text, meta=meta)


def read_id(given: Any) -> str:
    """The id that a row has, as text, or nothing where it has none.

    given (Any): The value. A whole number may be a float: that is what numbers become in a column where one is missing.
    """
    if isinstance(given, float) and given.is_integer():
        given = int(given)
    return str(given).strip() if isinstance(given, str | int) else ""


def _is_plain(value: Any) -> bool:
    """Whether JSON can hold a value as it is, which it cannot if that is no number (NaN) or infinite."""
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _no_text(place: str) -> StepError:
    return StepError(f"{place}: there is no text in it.", 'A row has its text as a string by the name of "text".')


def _mend(text: str) -> str:
    """The same with question marks for lone surrogates, halves of characters, which UTF-8 cannot hold."""
    return text.encode("utf8", "replace").decode()


# What files of each kind hold: rows with their numbers, None for the whole file, and errors in place of rows


def _read_txt(path: Path) -> Rows:
    yield None, {TEXT: decode(path.read_bytes())[0]}


def _read_packed(path: Path) -> Rows:
    yield None, {TEXT: read_packed(path.suffix.lower(), path.read_bytes())}


def _read_csv(path: Path) -> Rows:
    yield from enumerate(read_csv(path.read_bytes()), start=1)


def _read_jsonl(path: Path) -> Rows:
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # of UTF-8 too
            yield number, StepError(f"{place}: this is not JSON ({error}).", "Mend the line.")
        else:
            yield number, row if isinstance(row, dict) else _no_text(place)


def _read_parquet(path: Path) -> Rows:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
            yield from enumerate(rows, start=1)
    except pyarrow.ArrowException as error:
        raise OSError(str(error)) from error


def _read_docbin(path: Path) -> Rows:
    for number, doc in enumerate(read_docs(path), start=1):
        yield number, {TEXT: doc.text, "id": doc.user_data.get("id")}


READERS: dict[str, Callable[[Path], Rows]] = {
    ".txt": _read_txt,
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
    ".pdf": _read_packed,
    ".docx": _read_packed,
    ".spacy": _read_docbin,
}
