"""From characters to tokens: what annotators marked in a text, as the entities of a Doc in sentences."""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import Any, NamedTuple

import spacy
from spacy.language import Language
from spacy.tokens import Doc, Token
from spacy.tokens import Span as TokenSpan
from spacy.util import filter_spans

import bert_ner  # noqa: F401 (registers the tokenizer)
from common.annotations import Span


class Aligned(NamedTuple):
    """A text in tokens, and what did not fit.

    doc (Doc): The text with entities and sentence starts. No sentence starts within an entity.
    cut (list[tuple[Span, Span | None]]): The spans that begin or end within a token or in white space, each with the
        nearest one that does not, which the doc has instead; None if the span holds no word.
    overlapping (list[Span]): The spans that the doc lacks, since a longer one shares a token with them.
    """

    doc: Doc
    cut: list[tuple[Span, Span | None]]
    overlapping: list[Span]


def create_tokenizer() -> Language:
    """Make a pipeline that only tokenises, as the trained ones do, texts of any length."""
    nlp = spacy.blank("en", config={"nlp": {"tokenizer": {"@tokenizers": "bert_ner.Tokenizer.v2"}}})
    nlp.max_length = sys.maxsize  # spaCy's limit is there for components that need much memory
    return nlp


def create_reader() -> Language:
    """Make the pipeline that reads texts: the tokenizer of the project, and sentences by their marks."""
    nlp = create_tokenizer()
    nlp.add_pipe("sentencizer")
    return nlp


def align(nlp: Language, text: str, spans: Iterable[Span]) -> Aligned:
    """Make a Doc of an annotated text. Where spans overlap, the longest wins.

    nlp (Language): As `create_reader` makes it.
    text (str): The text.
    spans (Iterable[Span]): The spans, which lie in the text.
    RETURNS (Aligned): The Doc, and what did not fit.
    """
    doc = nlp(text)
    words = [token for token in doc if not token.is_space]
    starts, ends = [token.idx for token in words], [token.idx + len(token) for token in words]
    cut: list[tuple[Span, Span | None]] = []
    found: list[tuple[TokenSpan, Span]] = []
    for span in spans:
        near = _find_nearest(words[bisect_right(ends, span.start) : bisect_left(starts, span.end)], span)
        if near is None:
            cut.append((span, None))
            continue
        found.append((near, span))
        if (near.start_char, near.end_char) != (span.start, span.end):
            cut.append((span, span.model_copy(update={"start": near.start_char, "end": near.end_char})))
    # By identity, since two spans of the same tokens and label are equal.
    kept = {id(near) for near in filter_spans([near for near, _ in found])}
    doc.set_ents([near for near, _ in found if id(near) in kept])
    for token in doc:
        if token.is_space and token.text.count("\n") > 1:
            token.is_sent_start = True  # an empty line ends a headline, which has no mark
    for ent in doc.ents:
        for token in ent[1:]:
            token.is_sent_start = False
    return Aligned(doc, cut, [span for near, span in found if id(near) not in kept])


def _find_nearest(touched: list[Token], span: Span) -> TokenSpan | None:
    """The words whose boundaries are nearest to those of a span, or None if it touches no word.

    touched (list[Token]): The tokens that share a character with the span and are not white space.
    """
    if not touched:
        return None
    doc: Any = touched[0].doc
    start = min(touched, key=lambda token: abs(token.idx - span.start))
    end = min(touched, key=lambda token: abs(token.idx + len(token) - span.end))
    if end.i < start.i:  # the span lies within two words that touch, closer to the inner boundary from both sides
        start, end = touched[0], touched[-1]
    return TokenSpan(doc, start.i, end.i + 1, span.label)
