from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import spacy
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.tokens import Doc

from app.marking import accept_all, finish, mark, remove
from benchmarks.annotator import Edit, Gold, annotate, plan, read_gold
from common.agreement import keys
from common.annotations import Annotation, Span

TEXT = "Mira Solberg left Turku for Oslo with Norrvik Steel and Tarn."
NAMES = {"Mira Solberg": "PER", "Turku": "LOC", "Oslo": "LOC", "Norrvik Steel": "ORG", "Tarn": "LOC"}


def find(name: str, label: str = "") -> Span:
    start = TEXT.index(name)
    return Span(start=start, end=start + len(name), label=label or NAMES[name])


MIRA, TURKU, OSLO, STEEL, TARN = GOLD = [find(name) for name in NAMES]
LEFT, WITH, AND = (find(word, "ORG") for word in ("left", "with", "and"))


@st.composite
def spans(draw: st.DrawFn) -> list[Span]:
    """Any spans of TEXT that do not overlap."""
    edges = sorted(draw(st.sets(st.integers(0, len(TEXT)), max_size=12)))
    return [
        Span(start=start, end=end, label=draw(st.sampled_from(["LOC", "PER"])), source="model")
        for start, end in zip(edges[::2], edges[1::2], strict=False)
    ]


def carry_out(edits: list[Edit], suggestions: list[Span]) -> Annotation:
    """Do it by the functions of the page."""
    annotation = Annotation(document="d", annotator="ada", status="draft")
    for edit in edits:
        if edit.span is None:
            annotation = accept_all(annotation, suggestions)
        else:
            act = {"mark": mark, "remove": remove}[edit.kind]
            annotation = act(annotation, suggestions, edit.span.start, edit.span.end, edit.span.label)
    return finish(annotation, suggestions)


@settings(max_examples=40)
@given(spans(), spans(), st.integers(0, 6))
def test_any_suggestions_become_the_right_answers(gold: list[Span], others: list[Span], kept: int) -> None:
    """Some suggestions are right, others are not; and it takes no more than to refuse them all and to begin anew."""
    right = gold[:kept]
    others = [one for one in others if all(one.end <= span.start or span.end <= one.start for span in right)]
    for suggestions in (right, others, right + others):
        edits = plan(TEXT, gold, suggestions)
        assert keys(carry_out(edits, suggestions)) == {(span.start, span.end, span.label) for span in gold}
        from_nothing = sum(edit.keys for edit in plan(TEXT, gold, []))
        assert sum(edit.keys for edit in edits) <= from_nothing + 2 * len(suggestions)


@pytest.mark.parametrize(
    ("gold", "suggestions", "taken"),
    [
        ([], [], []),
        ([MIRA, TURKU], [], [2, 2]),
        ([find("Solberg", "PER"), find("orrvik", "ORG")], [], [2, 4]),
        (GOLD, GOLD, [1]),
        ([MIRA], [MIRA], [1]),
        ([], [LEFT, WITH, AND], [1, 1, 1]),
        ([MIRA], [MIRA, LEFT], [1, 1]),
        ([MIRA, TURKU, OSLO], [MIRA, TURKU, OSLO, WITH], [2, 1]),
        ([MIRA, TURKU], [find("Mira Solberg", "ORG"), find("Turku", "ORG")], [1, 2]),
        ([STEEL], [find("Steel", "ORG")], [2]),
        ([find("Mira", "PER"), find("Solberg", "PER")], [MIRA], [2, 2]),
        ([MIRA, OSLO, STEEL, TARN], [LEFT, OSLO, STEEL], [1, 2, 2, 1]),
    ],
    ids=[
        "nothing to do",
        "select and label",
        "by characters within a word",
        "accept all",
        "accept the one",
        "refuse: the next one is selected",
        "accept one, refuse one",
        "go to the wrong one, accept the others",
        "other labels",
        "other boundary",
        "one name is two",
        "some of each",
    ],
)
def test_the_fewest_keys_and_clicks_are_counted(gold: list[Span], suggestions: list[Span], taken: list[int]) -> None:
    edits = plan(TEXT, gold, suggestions)
    assert [edit.keys for edit in edits] == taken
    carry_out(edits, suggestions)


def test_documents_are_texts_with_the_same_entities() -> None:
    vocab = spacy.blank("en").vocab
    docs = [
        Doc(
            vocab, ["Turku", ",", "again", "."], sent_starts=[True, False, False, False], ents=["B-LOC", "O", "O", "O"]
        ),
        Doc(vocab, ["Rain", "."]),
    ]
    place = Span(start=0, end=5, label="LOC")
    assert read_gold(docs) == [Gold("0", "Turku, again.\n", [place]), Gold("1", "Rain.\n", [])]


def test_the_annotator_works_at_the_desk_with_and_without_suggestions(tmp_path: Path) -> None:
    nlp = spacy.blank("en")
    ruler: Any = nlp.add_pipe("entity_ruler")
    ruler.add_patterns([{"label": span.label, "pattern": TEXT[span.start : span.end]} for span in GOLD])
    nlp.to_disk(tmp_path / "model")
    documents = [Gold("a", TEXT, GOLD), Gold("b", "Rain fell.", []), Gold("c", TEXT, GOLD[1:])]
    assert annotate(documents, None) == 11 + 1 + 9, "two for each entity, and Enter"
    assert annotate(documents, tmp_path / "model") == 2 + 1 + 3, "the last has a suggestion to refuse"
