"""What formats with a tag for each token share: entities become tags, and tags become spans of the text again.

These formats hold annotated documents only: without its spans a document would look like one that has none. A span
that cuts a token grows to whole tokens. Most have no text, or one whose spaces are not sure. Then the tokens find the
document of the store that they are the tokens of, whose text decides.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Literal, NamedTuple

from spacy.tokens import Doc
from spacy.tokens import Span as Entity

from common.annotations import Document, Span, Task
from common.formats import (
    Entry,
    Finding,
    Mark,
    Options,
    annotation_of,
    decision_of,
    document_of,
    make_tokenizer,
    name_annotator,
    without_overlaps,
)
from common.formats.texts import check_labels

TAG = re.compile(r"O|[BIESLU]-.+")
LETTER = re.compile(r"[^\s\ufeff\0]")
BLANK = re.compile(r"[\s\ufeff\0]+")  # no token, nor part of one: `read_conll` removes byte-order marks anywhere


class Tagged(NamedTuple):
    """An annotated document as a token format has it.

    name (str): Its id.
    doc (Doc): Its text by the tokenizer of the project, with entities that begin and end at tokens.
    tags (dict[int, str]): The tag of each token that is not white space, by its index.
    """

    name: str
    doc: Doc
    tags: dict[int, str]


def tag_documents(
    tasks: Iterable[Task], what: str, reserved: str = "", scheme: str = "IOB2"
) -> tuple[list[Tagged], list[Finding]]:
    """Make tags of the annotations of documents.

    tasks (Iterable[Task]): The tasks.
    what (str): How messages call the format.
    reserved (str): Printable characters that no label may have there.
    scheme (str): IOB1, IOB2, BIOES or BILUO.
    RETURNS (tuple[list[Tagged], list[Finding]]): The documents that somebody has annotated, and what could not be held:
        all others, and what became of spans that cut tokens.
    RAISES (StepError): If the format cannot hold a label.
    """
    tokenizer = make_tokenizer()
    documents, findings = [], []
    for task in tasks:
        name, decision = task.document.id, decision_of(task)
        if decision is None or decision.status == "skipped":
            state = "not annotated" if decision is None else "skipped"
            findings.append(Finding(name, f"The document is {state}, which {what} cannot hold: it is left out."))
            continue
        check_labels((span.label for span in decision.spans), what, reserved)
        doc = tokenizer(task.document.text)
        words = [token.i for token in doc if BLANK.sub("", token.text)]
        if not words:
            findings.append(Finding(name, f"The text has no token, so {what} cannot hold it: it is left out."))
            continue
        entities, messages = _fit(doc, words, without_overlaps(decision.spans))
        findings += [Finding(name, message) for message in messages]
        doc.set_ents(entities)
        documents.append(Tagged(name, doc, dict(zip(words, _make_tags(doc, words, scheme), strict=True))))
    return documents, findings


def find_tokens(bounds: Sequence[tuple[int, int]], span: Span) -> range:
    """The indices of tokens that share a character with a span, given the start and the end of each token."""
    return range(
        bisect_right(bounds, span.start, key=lambda token: token[1]),
        bisect_left(bounds, span.end, key=lambda token: token[0]),
    )


def _fit(doc: Doc, words: list[int], spans: list[Span]) -> tuple[list[Entity], list[str]]:
    """Let spans, of which no two overlap, grow to whole tokens of these indices, and say which ones changed how."""
    text = doc.text  # which is made anew each time
    letters = [find_letters(doc[i].text) for i in words]
    bounds = [(doc[i].idx + found[0], doc[i].idx + found[-1] + 1) for i, found in zip(words, letters, strict=True)]
    entities: list[Entity] = []
    findings = []
    for span in spans:
        where = f"The span {span.label} {span.start}–{span.end} ({text[span.start : span.end]!r})"
        tokens = find_tokens(bounds, span)
        if not tokens:
            findings.append(f"{where} covers no token: it is left out.")
            continue
        entity = Entity(doc, words[tokens[0]], words[tokens[-1]] + 1, label=span.label)
        if entities and entity.start < entities[-1].end:
            findings.append(f"{where} cuts a token that has another span: it is left out.")
            continue
        start, end = bounds[tokens[0]][0], bounds[tokens[-1]][1]
        if (start, end) != (span.start, span.end):
            findings.append(f"{where} does not fit tokens: {start}–{end} ({text[start:end]!r}) is written.")
        entities.append(entity)
    return entities, findings


def _make_tags(doc: Doc, words: list[int], scheme: str) -> list[str]:
    """The tags of tokens, given their indices.

    In IOB1 a span begins with B- only if it follows one of the same label.
    """
    tags = []
    follows = ""  # the label of the span that ends just before
    for i in words:
        token = doc[i]
        if not token.ent_type_:
            tags.append("O")
            follows = ""
            continue
        first = token.ent_iob_ == "B"
        last = i + 1 == len(doc) or doc[i + 1].ent_iob_ != "I"
        if scheme == "IOB1":
            prefix = "B" if first and follows == token.ent_type_ else "I"
        elif scheme == "IOB2" or not (first or last):
            prefix = token.ent_iob_
        elif first and last:
            prefix = "S" if scheme == "BIOES" else "U"
        else:
            prefix = "B" if first else "E" if scheme == "BIOES" else "L"
        tags.append(f"{prefix}-{token.ent_type_}")
        follows = token.ent_type_ if last else ""
    return tags


def find_letters(text: str) -> list[int]:
    """The offsets of all characters that are not BLANK. Texts that differ only in what is have as many."""
    return [letter.start() for letter in LETTER.finditer(text)]


class Finder:
    """Finds the documents of a store by their tokens, since white space may be another in a file.

    known (Mapping[str, Task]): The tasks of the store, by id.
    """

    def __init__(self, known: Mapping[str, Task]) -> None:
        self.known = known
        self.found: set[str] = set()
        self.names: dict[str, list[str]] = {}
        for name, task in known.items():
            self.names.setdefault(BLANK.sub("", task.document.text), []).append(name)

    def find(self, name: object, text: str) -> tuple[Document, list[str]]:
        """Find a document.

        name (object): Its id by the file, or something empty.
        text (str): Its text, as far as the file has it.
        RETURNS (tuple[Document, list[str]]): The document of the store with the same text but for white space: that of
            this id if there is one, else the first that was not found before. If there is none, one with the text of
            the file. And what was found about it.
        """
        names = self.names.get(BLANK.sub("", text), [])
        findings = []
        if str(name) in names:
            chosen = str(name)
        elif not names or str(name) in self.known:  # whose text has changed, which the step that imports shows
            return document_of(name, text), []
        else:
            chosen = next((one for one in names if one not in self.found), names[0])
            if len(names) > 1:
                findings = [f"The documents {', '.join(names)} have the same tokens: {chosen} is taken."]
        self.found.add(chosen)
        return self.known[chosen].document, findings


def read_tags(
    finder: Finder,
    options: Options,
    place: str,
    name: object,
    text: str,
    words: Sequence[str],
    tags: Sequence[str],
    status: Literal["annotated", "draft"] = "annotated",
) -> Entry:
    """Make an entry of the tokens of a document.

    finder (Finder): Of the documents of the store.
    options (Options): Those of the reader.
    place (str): Where the document stands.
    name (object): Its id by the file, or something empty.
    text (str): Its text by the file, in which at most white space is missing or another.
    words (Sequence[str]): Its tokens.
    tags (Sequence[str]): Their tags, in any scheme.
    status: Whether the tags are all that there are.
    RETURNS (Entry): The entry. It has no annotation if the tokens are not those of the text.
    RAISES (StepError): If nobody says who annotated.
    """
    annotator = name_annotator(options, "", place)
    document, findings = finder.find(name, text)
    task = Task(document=document)
    letters = [BLANK.sub("", word) for word in words]
    if len(words) != len(tags) or "".join(letters) != BLANK.sub("", document.text):
        found = ["The tokens are not those of the text, or they and the tags differ in number: nothing is taken."]
        return Entry(place, task, [*findings, *found])
    characters = find_letters(document.text)
    bounds = [(end - len(word), end) for word, end in zip(letters, accumulate(map(len, letters)), strict=True)]
    placed = [
        (tag, characters[start], characters[end - 1] + 1)
        for tag, (start, end) in zip(tags, bounds, strict=True)
        if start < end
    ]
    annotation, found = annotation_of(task, annotator, status, _find_spans(placed))
    task.annotations.append(annotation)
    return Entry(place, task, [*findings, *found])


def _find_spans(placed: Iterable[tuple[str, int, int]]) -> Iterator[Mark]:
    """The spans of tags, given the tag, the start and the end of each token."""
    label, start, end = "", 0, 0
    for tag, first, last in placed:
        prefix, _, found = tag.partition("-")
        if label and (found != label or prefix in "BSU"):
            yield Mark(start, end, label)
            label = ""
        if found:
            start = start if label else first
            label, end = found, last
            if prefix in "ELSU":
                yield Mark(start, end, label)
                label = ""
    if label:
        yield Mark(start, end, label)
