from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.alignment import align, create_reader
from common.annotations import Span

nlp = create_reader()
TEXT = "Mira Solberg left Turku 🚢 early. New York waits."


def mark(text: str, part: str, label: str = "LOC") -> Span:
    start = text.index(part)
    return Span(start=start, end=start + len(part), label=label)


def test_spans_become_entities_by_their_characters() -> None:
    spans = [mark(TEXT, "Mira Solberg", "PER"), mark(TEXT, "Turku"), mark(TEXT, "New York")]
    aligned = align(nlp, TEXT, spans)
    found = [(ent.start_char, ent.end_char, ent.label_) for ent in aligned.doc.ents]
    assert found == [(span.start, span.end, span.label) for span in spans]
    assert aligned.doc.text == TEXT and not aligned.cut and not aligned.overlapping


@pytest.mark.parametrize(
    ("part", "instead"),
    [
        ("urku", "Turku"),
        ("Turku ", "Turku"),
        ("Solberg lef", "Solberg left"),
        ("ra Solberg l", "Mira Solberg"),
        ("rly. ", "early."),
        (" ", None),
    ],
)
def test_a_span_that_cuts_a_token_gets_the_nearest_boundaries(part: str, instead: str | None) -> None:
    span = mark(TEXT, part)
    aligned = align(nlp, TEXT, [span])
    ((cut, near),) = aligned.cut
    assert cut == span and (near and TEXT[near.start : near.end]) == instead
    assert [ent.text for ent in aligned.doc.ents] == ([instead] if instead else [])


def test_the_longest_of_overlapping_spans_wins() -> None:
    spans = [mark(TEXT, "Solberg", "PER"), mark(TEXT, "Mira Solberg", "PER"), mark(TEXT, "Solberg", "ORG")]
    aligned = align(nlp, TEXT, spans)
    assert [ent.text for ent in aligned.doc.ents] == ["Mira Solberg"]
    assert aligned.overlapping == [spans[0], spans[2]]


def test_sentences_end_at_marks_and_empty_lines_but_not_in_an_entity() -> None:
    text = "Storm over Turku\n\nMr. X. Y. Holm stayed. He\nslept."
    plain, marked = (align(nlp, text, spans).doc for spans in ([], [mark(text, "Mr. X. Y. Holm", "PER")]))
    assert [sent.text.split() for sent in marked.sents] == [
        ["Storm", "over", "Turku"],
        ["Mr.", "X.", "Y.", "Holm", "stayed."],
        ["He", "slept."],
    ]
    assert len(list(plain.sents)) >= 3


@given(st.text(st.sampled_from("Turku 🚢é\u0301\xa0\t\r\n.-'"), min_size=1), st.data())
def test_whatever_is_marked_is_kept_moved_or_reported(text: str, data: st.DataObject) -> None:
    spans = []
    for _ in range(data.draw(st.integers(0, 3))):
        start = data.draw(st.integers(0, len(text) - 1))
        spans.append(Span(start=start, end=data.draw(st.integers(start + 1, len(text))), label="LOC"))
    aligned = align(nlp, text, spans)
    assert aligned.doc.text == text
    lost = sum(near is None for _, near in aligned.cut)
    assert len(aligned.doc.ents) + len(aligned.overlapping) + lost == len(spans)
    assert all(not ent[0].is_space and not ent[-1].is_space for ent in aligned.doc.ents)
    assert all(not token.is_sent_start for ent in aligned.doc.ents for token in ent[1:])
