"""Whether files quote a corpus that not everybody may have: what is published is looked through by these functions.

Words are compared: case, numbers and punctuation are passed over.
"""

from __future__ import annotations

import itertools
import re
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from common.corpora import read_docs
from common.errors import StepError
from common.records import SPLITS, read_json

QUOTE = 5  # words in a row that also stand in the corpus: they are a quote, not a coincidence


def check_quotes(paths: Iterable[Path], corpus: Path) -> None:
    """Make sure that figures do not quote a corpus. Single names, labels and numbers are no quotes.

    paths (Iterable[Path]): JSON files, and others with text.
    corpus (Path): Folder with the .spacy files.
    RAISES (StepError): If a file has QUOTE words in a row that the corpus has too.
    """
    known = {
        words
        for split in SPLITS
        for doc in read_docs(corpus / f"{split}.spacy")
        for words in _find_sequences(_find_words(" ".join(token.text for token in doc)))
    }
    for path in paths:
        strings = _find_strings(read_json(path)) if path.suffix == ".json" else [path.read_text("utf8")]
        found = _find_words(" ".join(strings))
        if quote := next((words for words in _find_sequences(found) if words in known), None):
            raise StepError(
                f"{path} quotes the corpus: {' '.join(quote)}.",
                "What quotes the corpus belongs into a file *-examples.json, which is never published.",
            )


def _find_strings(value: Any) -> Iterator[str]:
    """All strings in what a JSON file holds, keys included, in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value:
            yield from _find_strings(part)
            if isinstance(value, dict):
                yield from _find_strings(value[part])


def check_sentences(folder: Path, corpus: Path) -> None:
    """Make sure that no text in a folder, or in a wheel there, quotes a sentence of a corpus.

    Sentences of fewer than QUOTE tokens with letters are no quotes: anybody may write them. What is no UTF-8 holds
    numbers, and is not looked at. Of strings.json each entry is looked at alone: the words of the corpus stand there in
    alphabetical order, as they do in some tables of a corpus.

    folder (Path): The folder.
    corpus (Path): Folder with .spacy files, all of which are read.
    RAISES (StepError): If one is quoted, with file and sentence.
    """
    sentences: dict[tuple[str, ...], set[tuple[str, ...]]] = {}  # by their first words
    for path in sorted(corpus.glob("*.spacy")):
        for doc in read_docs(path):
            for sentence in doc.sents if doc.has_annotation("SENT_START") else [doc]:
                tokens = [*filter(None, (_find_words(token.text) for token in sentence))]
                if len(tokens) >= QUOTE:
                    quote = tuple(itertools.chain.from_iterable(tokens))
                    sentences.setdefault(quote[:QUOTE], set()).add(quote)
    for place, text in _read_texts(folder):
        found = _find_words(text)
        for start, first in enumerate(_find_sequences(found)):
            for quote in sentences.get(first, ()):
                if found[start : start + len(quote)] == quote:
                    raise StepError(
                        f"{place} quotes the corpus: {' '.join(quote)}.",
                        "Take it out of what this file comes from (the description, the rules), and package again.",
                    )


def _read_texts(folder: Path) -> Iterator[tuple[str, str]]:
    """The texts in a folder and in the wheels there, each with its place."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.suffix != ".whl":
            yield from _split_text(name, path.read_bytes())
            continue
        with zipfile.ZipFile(path) as files:
            for member in files.namelist():
                yield from _split_text(f"{name}, {member}", files.read(member))


def _split_text(place: str, data: bytes) -> Iterator[tuple[str, str]]:
    try:
        text = data.decode("utf8")
    except UnicodeDecodeError:
        return
    # An escape in JSON, such as that of a line break, has letters
    text = re.sub(r"\\[bfnrt]|\\u[0-9a-f]{4}", lambda escape: escape[0].encode().decode("unicode_escape"), text)
    parts = text.split('",') if place.endswith("strings.json") else [text]
    yield from ((place, part) for part in parts)


def _find_words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[^\W\d_]+", text.lower()))


def _find_sequences(words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """All sequences of QUOTE words."""
    return zip(*(words[start:] for start in range(QUOTE)), strict=False)
