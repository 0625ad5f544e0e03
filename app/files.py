"""Read the texts of uploaded files (.txt, .csv, .pdf, .docx), and limit how much text is taken at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common import decoding
from common.decoding import TEXT, read_csv, read_packed, read_txt
from common.errors import StepError
from common.unpack import READERS, UnreadableError

MAX_DOCUMENTS = 100  # that page and service take at once
MAX_CHARACTERS = decoding.MAX_CHARACTERS  # of all documents that page and service take at once


def check_size(texts: Sequence[str], most: int = MAX_DOCUMENTS) -> None:
    """Refuse more texts than the page and the service take at once.

    texts (Sequence[str]): The texts.
    most (int): How many there may be.
    RAISES (StepError): If there are too many documents or characters.
    """
    characters = sum(map(len, texts))
    if len(texts) > most or characters > MAX_CHARACTERS:
        raise StepError(
            f"{len(texts):,} documents of {characters:,} characters are too much at once.",
            f"At most {most:,} documents of {MAX_CHARACTERS:,} characters overall: use nlp.pipe for more.",
        )


def read_upload(name: str, data: bytes) -> list[tuple[str, str]]:
    """Read the documents in a file: a .csv has one in each row, and .txt, .pdf and .docx have one each.

    name (str): Name of the file. Its suffix says what kind of file it is.
    data (bytes): Contents of the file.
    RETURNS (list[tuple[str, str]]): Titles and texts.
    RAISES (StepError): If the file is of another kind, damaged or too large, or has no text.
    """
    kind = Path(name).suffix.lower()
    try:
        if kind == ".csv":
            documents = [(f"{name}, row {number}", row[TEXT]) for number, row in enumerate(read_csv(data), 1)]
        elif kind == ".txt":
            documents = [(name, read_txt(data))]
        elif kind in READERS:
            documents = [(name, read_packed(kind, data))]
        else:
            known = ", ".join((".txt", ".csv", *READERS))
            raise StepError(f"{name} is not a file of a known kind.", f"Known are {known}.")
    except UnreadableError as error:
        raise StepError(f"{name} cannot be read: {error}.", "Save it again, or paste its text.") from error
    documents = [(title, text) for title, text in documents if text.strip()]
    if not documents:
        raise StepError(f"{name} has no text.", "If it is scanned, it needs text recognition first.")
    return documents
