"""CoNLL columns, and CoNLL-U.

CoNLL columns have neither ids nor spaces. CoNLL-U has both: spaces by `SpaceAfter` and, as UDPipe writes it,
`SpacesAfter`. Its entities stand in the column MISC, as `NE=B-PER`. `spacy convert -c conllu` reads them if the labels
are of capital letters and underscores.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

from spacy.pipeline import Sentencizer

from common.annotations import Task, checksum_of
from common.conll import MARK, Token, read_conll, write_conll
from common.errors import StepError
from common.formats import Entry, Finding, Format, Options
from common.formats.texts import read_text
from common.formats.tokens import BLANK, TAG, Finder, Tagged, read_tags, tag_documents

FIELDS = 10  # of a row of CoNLL-U: ID FORM LEMMA UPOS XPOS FEATS HEAD DEPREL DEPS MISC
ROW = re.compile(r"(\d+)(?:-(\d+))?|\d+\.\d+")  # a word, a word of several syntactic ones, and one that is not there
ESCAPES = {" ": r"\s", "\t": r"\t", "\n": r"\n", "\r": r"\r", "|": r"\p", "\\": r"\\"}
CHARACTERS = {escape: character for character, escape in ESCAPES.items()}


def _split_sentences(tagged: Tagged) -> list[list[int]]:
    """The tokens of each sentence. They end at punctuation and empty lines, and never inside a span."""
    sentences: list[list[int]] = []
    begins = True
    for token in Sentencizer()(tagged.doc):
        begins |= bool(token.is_sent_start)
        if token.i not in tagged.tags:
            begins |= token.text.count("\n") > 1
            continue
        if begins and token.ent_iob_ != "I":
            sentences.append([])
        sentences[-1].append(token.i)
        begins = False
    return sentences


# CoNLL columns


def _write_columns(folder: Path, tasks: list[Task], options: Options) -> list[Finding]:
    tagged, findings = tag_documents(tasks, "CoNLL", " ", options.scheme)
    documents = []
    for one in tagged:
        if any(one.doc[i].text == MARK and tag == "O" for i, tag in one.tags.items()):
            findings.append(Finding(one.name, f"Its token {MARK} would begin another document: it is left out."))
            continue
        documents.append(
            [
                [Token(BLANK.sub("", one.doc[i].text), one.tags[i]) for i in sentence]
                for sentence in _split_sentences(one)
            ]
        )
    write_conll(folder / COLUMNS.file, documents)
    return findings


def _read_columns(path: Path, known: Mapping[str, Task], options: Options) -> Iterator[Entry]:
    finder = Finder(known)
    for number, document in enumerate(read_conll(path).documents, start=1):
        words = [token.text for sentence in document for token in sentence]
        tags = [token.entity for sentence in document for token in sentence]
        yield read_tags(finder, options, f"{path}, document {number}", "", " ".join(words), words, tags)


# CoNLL-U


def _write_u(folder: Path, tasks: list[Task], options: Options) -> list[Finding]:
    tagged, findings = tag_documents(tasks, "CoNLL-U", " |")
    with (folder / CONLL_U.file).open("w", encoding="utf8", newline="\n") as file:
        for one in tagged:
            text = one.doc.text
            name = one.name
            if not name.isprintable() or name != name.strip():
                name = checksum_of(text)
                findings.append(Finding(one.name, "CoNLL-U cannot hold this id: the text will be found by itself."))
            words = [one.doc[i] for i in one.tags]
            starts = [*(word.idx for word in words), len(text)]
            spaces = {word.i: text[word.idx + len(word) : end] for word, end in zip(words, starts[1:], strict=True)}
            for number, sentence in enumerate(_split_sentences(one)):
                surface = "".join(one.doc[i].text + (" " if spaces[i] else "") for i in sentence)
                file.write((f"# newdoc id = {name}\n" if not number else "") + f"# text = {surface.strip()}\n")
                for place, i in enumerate(sentence, start=1):
                    misc = [f"NE={one.tags[i]}"] if one.tags[i] != "O" else []
                    if i == words[0].i and starts[0]:
                        misc.append(f"SpacesBefore={_escape(text[: starts[0]])}")
                    if not spaces[i]:
                        misc.append("SpaceAfter=No")
                    elif spaces[i] != " ":
                        misc.append(f"SpacesAfter={_escape(spaces[i])}")
                    file.write("\t".join([str(place), one.doc[i].text, *"_______", "|".join(misc) or "_"]) + "\n")
                file.write("\n")
    return findings


def _escape(spaces: str) -> str:
    return "".join(ESCAPES.get(character, character) for character in spaces)


def _read_u(path: Path, known: Mapping[str, Task], options: Options) -> Iterator[Entry]:
    finder = Finder(known)
    lines = read_text(path).removeprefix("\ufeff").split("\n")
    begins = [number for number, line in enumerate(lines) if re.match(r"# *newdoc\b", line)]
    for first, end in pairwise([0, *begins, len(lines)]):  # the first may not be named
        found = re.match(r"# *newdoc +id *= *(.*\S)", lines[first])
        text, words, tags = _read_rows(path, lines, first, end)
        if words:
            name = found[1] if found else ""
            yield read_tags(finder, options, f"{path}, line {first + 1}", name, text, words, tags)


def _read_rows(path: Path, lines: list[str], first: int, end: int) -> tuple[str, list[str], list[str]]:
    """The text, the words and their tags in some of the lines of a file.

    Of a word of several syntactic ones, such as `zum`, these lend it their tag.
    """
    text = ""
    words: list[str] = []
    tags: list[str] = []
    inside = 0  # the last syntactic word of the one before
    for number, line in enumerate(lines[first:end], start=first + 1):
        line = line.removesuffix("\r")
        if not line:
            inside = 0
        if not line or line.startswith("#"):
            continue
        cells = line.split("\t")
        row = ROW.fullmatch(cells[0])
        if len(cells) != FIELDS or not row or not cells[1]:
            raise StepError(
                f"{path}, line {number}: this is no row of CoNLL-U: a number, a word and eight more fields.",
                "Separate the fields by single tabs, and write _ where there is no value.",
            )
        misc = dict(part.partition("=")[::2] for part in cells[-1].split("|"))
        tag = misc.get("NE", misc.get("name", "O"))
        if not TAG.fullmatch(tag):
            raise StepError(f"{path}, line {number}: {tag!r} is no tag of an entity.", "Write it as NE=B-PER.")
        if not row[1]:
            continue
        if int(row[1]) <= inside:
            tags[-1] = tag if tags[-1] == "O" else tags[-1]
            continue
        inside = int(row[2] or 0)
        words.append(cells[1])
        tags.append(tag)
        after = _unescape(misc.get("SpacesAfter", r"\s" * (misc.get("SpaceAfter") != "No")))
        text += _unescape(misc.get("SpacesBefore", "")) + cells[1] + after
    return text, words, tags


def _unescape(spaces: str) -> str:
    return re.sub(r"\\[stnrp\\]", lambda found: CHARACTERS[found[0]], spaces)


COLUMNS = Format("conll", "tasks.conll", frozenset(), _write_columns, _read_columns)
CONLL_U = Format("conllu", "tasks.conllu", frozenset(), _write_u, _read_u)
