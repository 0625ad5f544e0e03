"""CoNLL columns: read with every repair counted, written, and grouped to documents."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import StepError

COLUMNS = {
    2: "token, entity",
    3: "token, part of speech, entity",
    4: "token, part of speech, chunk, entity",
}
ABSENT = {"_", "-", "-X-"}  # what corpora write where a column has no value
MARK = "-DOCSTART-"
SENTENCES_PER_DOC = 10  # of a corpus that marks no documents; as `spacy convert -n 10`
FEWEST_DOCS = 100  # of train, below which `spacy debug data` finds a corpus too small
LONGEST = 200  # characters of a tag; a longer one is not one
PACKED = {b"\x1f\x8b": ("gzip", "gunzip <"), b"PK\x03\x04": ("zip", "unzip -p"), b"BZh": ("bzip2", "bunzip2 <")}
WIDE = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}  # how files begin in which a letter is two bytes


class Token(NamedTuple):
    """One row of a CoNLL file; tags in IOB2, empty where the file has no such column or no value."""

    text: str
    entity: str
    pos: str = ""
    chunk: str = ""


Sentence = list[Token]
Document = list[Sentence]


@dataclass
class Conll:
    """The contents of a CoNLL file, and what was found on the way.

    documents (list[Document]): Never empty; nor are its documents and their sentences.
    marked (bool): Whether there are -DOCSTART- lines. If not, there is one document.
    columns (int): 2, 3 or 4.
    schemes (dict[str, str]): "IOB1", "IOB2", "BIOES", "BILUO" or "mixed", of the entities and, with 4 columns, of the
        chunks.
    stray (dict[str, list[int]]): Line numbers of spans that begin with what continues or ends one, though others begin
        as they should.
    repaired (dict[str, int]): What was dirty or missing and how often, by name.
    """

    documents: list[Document]
    marked: bool
    columns: int
    schemes: dict[str, str] = field(default_factory=dict)
    stray: dict[str, list[int]] = field(default_factory=dict)
    repaired: dict[str, int] = field(default_factory=dict, compare=False)


def read_conll(path: Path) -> Conll:
    """Read a CoNLL file: 2 to 4 columns (see COLUMNS) separated by spaces or tabs, blank lines between sentences.

    Byte-order marks, CRLF, blank lines more than needed and a missing last newline are understood. IOB1 and IOB2 are
    told apart by whether spans begin with I- or B- (Tjong Kim Sang & Veenstra 1999); these, BIOES and BILUO are
    normalised to IOB2. A row whose token is -DOCSTART- begins a document, unless it is marked as part of an entity.

    path (Path): A file in UTF-8.
    RAISES (StepError): If the file is not like that, naming the line.
    """
    columns = 0
    marked = False
    documents: list[list[list[tuple[int, list[str]]]]] = [[[]]]
    text = _decode(path)
    inside = invisible = 0
    for number, line in enumerate(text.replace("\ufeff", "").split("\n"), start=1):
        line = line.strip(" \r")
        if not line or line.isspace():
            documents[-1].append([])
            continue
        cells = line.split("\t") if "\t" in line else re.split(" +", line)
        if not line.isascii():
            visible = [cells[0], *map(_strip_invisible, cells[1:])]
            invisible += sum(map(len, cells)) - sum(map(len, visible))
            cells = visible
        if cells[0] == MARK and not _TAG.match(cells[-1]):
            marked = True
            inside += bool(documents[-1][-1])
            documents.append([[]])
            continue
        columns = columns or len(cells)
        _check_cells(cells, columns, path, number)
        documents[-1][-1].append((number, cells))
    whole = [[s for s in document if s] for document in documents]
    sentences = [sentence for document in whole for sentence in document]
    if not sentences:
        raise StepError(f"{path} holds no sentence.", "Check that this is the right file and that it was copied whole.")
    conll = Conll([], marked, columns)
    conll.repaired = {
        "byte-order mark, removed": text.count("\ufeff"),
        "line ends of Windows, removed": text.count("\r\n"),
        "invisible character in a tag, removed": invisible,
        f"{MARK} without a blank line before, read as one": inside,
        "part of speech missing": _count_absent(sentences, 1) if columns > 2 else 0,
        "chunk missing": _count_absent(sentences, 2) if columns == 4 else 0,
    }
    tags = {"entity": _normalise("entity", sentences, -1, conll, path)}
    if columns == 4:
        tags["chunk"] = _normalise("chunk", sentences, 2, conll, path)
    for document in whole:
        if document:
            conll.documents.append([])
        for sentence in document:
            conll.documents[-1].append(
                [
                    Token(
                        cells[0],
                        tags["entity"][number],
                        cells[1] if columns > 2 and cells[1] not in ABSENT else "",
                        tags["chunk"][number] if columns == 4 else "",
                    )
                    for number, cells in sentence
                ]
            )
    return conll


def _decode(path: Path) -> str:
    data = path.read_bytes()
    for start, (kind, command) in PACKED.items():
        if data.startswith(start):
            raise StepError(
                f"{path} is packed ({kind}).", f"Unpack it first: {command} {path.name} > {path.stem}.unpacked"
            )
    encoding = WIDE.get(data[:2], "" if b"\0" not in data else "utf-16-le" if b"\0" in data[1:2] else "utf-16-be")
    if encoding:
        line = data.count(b"\n", 0, data.find(b"\0")) + 1
        raise StepError(
            f"{path}, line {line}: a zero byte, as in files in UTF-16.",
            f"If it is UTF-16: iconv -f {encoding} -t utf8 {path.name} > {path.stem}.utf8; if not, it was damaged.",
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise StepError(
            f"{path}, line {line}: not UTF-8 (byte 0x{data[error.start]:02x}).",
            f"Convert the file first, for example: iconv -f latin1 -t utf8 {path.name} > {path.stem}.utf8",
        ) from error


_TAG = re.compile("[BIESLU]-.")


def _strip_invisible(tag: str) -> str:
    """A tag without characters that nobody sees: zero-width ones, marks of direction."""
    return "".join(letter for letter in tag if unicodedata.category(letter) != "Cf")


def _count_absent(sentences: list[list[tuple[int, list[str]]]], column: int) -> int:
    return sum(cells[column] in ABSENT for sentence in sentences for _, cells in sentence)


def _check_cells(cells: list[str], columns: int, path: Path, number: int) -> None:
    if len(cells) not in COLUMNS or len(cells) != columns:
        known = "; ".join(f"{n}: {names}" for n, names in COLUMNS.items())
        wanted = f"the first row has {columns}" if len(cells) != columns else "2 to 4 are understood"
        raise StepError(
            f"{path}, line {number}: {len(cells)} column{'s' * (len(cells) != 1)} where {wanted}.",
            f"Every row needs the same columns, separated by single spaces or tabs ({known}).",
        )
    if any(not cell or cell.isspace() for cell in cells) or "\r" in cells[0] or re.search(r"\s", "".join(cells[1:])):
        raise StepError(
            f"{path}, line {number}: an empty cell, or white space inside one.",
            "Give every column a value: _ where there is none. A token cannot be white space only.",
        )
    for cell in cells[1:]:
        if len(cell) > LONGEST or not cell.isprintable():
            what = f"{len(cell):,} characters" if len(cell) > LONGEST else "a control character"
            raise StepError(
                f"{path}, line {number}: {what} in the tag {cell[:20]!r}.",
                f"Tags are at most {LONGEST} printable characters: the file was damaged, or its columns are others.",
            )


def _normalise(
    name: str, sentences: list[list[tuple[int, list[str]]]], column: int, conll: Conll, path: Path
) -> dict[int, str]:
    """The IOB2 tag of each line. Notes in `conll` which scheme was found."""
    opened: dict[str, list[int]] = {"B": [], "I": []}  # lines where a span opens and nothing of its type goes before
    ends = set()  # what the file has of the tags that only BIOES and BILUO have
    tags = {}
    for sentence in sentences:
        previous = "O"
        for number, cells in sentence:
            tag = cells[column]
            if tag in ABSENT and name == "chunk":
                tags[number] = ""
                previous = "O"
                continue
            if tag != "O" and not _TAG.match(tag):
                raise StepError(
                    f"{path}, line {number}: {name} tag {tag!r} is neither O nor B-TYPE nor I-TYPE.",
                    "Write the column in IOB1, IOB2, BIOES or BILUO.",
                )
            first, label = tag[0], tag[2:]
            ended = first in "ESLU"
            if ended:
                ends.add(first)
                first = "I" if first in "EL" else "B"
            tags[number] = tag if tag == "O" else f"{first}-{label}"
            if tag != "O" and (previous == "O" or previous[2:] != label):
                opened[first].append(number)
                tags[number] = f"B-{label}"
            previous = "O" if ended else tag
    if ends:
        scheme = "BIOES" if ends <= {"E", "S"} else "BILUO" if ends <= {"L", "U"} else "mixed"
    else:
        scheme = "IOB2" if not opened["I"] else "IOB1" if not opened["B"] else "mixed"
    conll.schemes[name] = scheme
    conll.stray[name] = [] if scheme == "IOB1" else opened["I"]
    conll.repaired[f"{name} that begins with I-, read as B-"] = len(opened["I"])
    return tags


def write_conll(path: Path, documents: Iterable[Document]) -> None:
    """Write documents so that `read_conll` gives the same: four columns, or two where no token has a tag or chunk."""
    documents = list(documents)
    tokens = [token for document in documents for sentence in document for token in sentence]
    wide = any(token.pos or token.chunk for token in tokens)
    separator = "\t" if any(" " in token.text for token in tokens) else " "
    with path.open("w", encoding="utf8", newline="\n") as file:
        for document in documents:
            file.write(separator.join([MARK, *(["_", "_"] if wide else []), "O"]) + "\n\n")
            for sentence in document:
                for token in sentence:
                    middle = [token.pos or "_", token.chunk or "_"] if wide else []
                    file.write(separator.join([token.text, *middle, token.entity]) + "\n")
                file.write("\n")


def count(documents: Iterable[Document]) -> dict[str, Any]:
    """Numbers of documents, sentences, tokens, and entities by label (sorted)."""
    documents = list(documents)
    sentences = [sentence for document in documents for sentence in document]
    entities = Counter(t.entity[2:] for sentence in sentences for t in sentence if t.entity.startswith("B-"))
    return {
        "documents": len(documents),
        "sentences": len(sentences),
        "tokens": sum(map(len, sentences)),
        "entities": dict(sorted(entities.items())),
    }


def group(document: Document) -> list[Document]:
    """Cut the sentences of a corpus without documents into groups that still number FEWEST_DOCS if possible."""
    size = max(1, min(SENTENCES_PER_DOC, len(document) // FEWEST_DOCS))
    return [document[i : i + size] for i in range(0, len(document), size)]
