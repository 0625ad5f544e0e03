from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score  # type: ignore[import-untyped]

from common.agreement import ADJUDICATED, cohens_kappa, decide, find_conflicts, find_places, keys, measure_agreement
from common.annotations import Annotation, Document, Span, Task

TEXT = "Mira Solberg left Turku."
PERSON, PLACE = Span(start=0, end=12, label="PER"), Span(start=18, end=23, label="LOC")
FIRST_NAME = Span(start=0, end=4, label="PER")


def task(name: str = "d1", /, **said: tuple[str, list[Span]]) -> Task:
    """A document with the status and the spans of each annotator."""
    annotations = [
        Annotation.model_validate({"document": name, "annotator": who, "status": status, "spans": spans})
        for who, (status, spans) in said.items()
    ]
    return Task(document=Document(id=name, text=TEXT), annotations=annotations)


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ({}, "unannotated"),
        ({"ada": ("draft", [PERSON])}, "unannotated"),
        ({"ada": ("skipped", [])}, "skipped"),
        ({"ada": ("skipped", []), "bo": ("draft", [])}, "skipped"),
        ({"ada": ("annotated", [])}, "annotated"),
        ({"ada": ("annotated", [PERSON]), "bo": ("skipped", [])}, "annotated"),
        ({"ada": ("annotated", [PERSON]), "bo": ("draft", [PLACE])}, "annotated"),
        ({"ada": ("annotated", [PERSON, PLACE]), "bo": ("annotated", [PLACE, PERSON])}, "annotated"),
        ({"ada": ("annotated", [PERSON]), "bo": ("annotated", [])}, "open"),
        ({"ada": ("annotated", [PERSON]), ADJUDICATED: ("draft", [])}, "open"),
        ({"ada": ("annotated", [PERSON]), ADJUDICATED: ("skipped", [])}, "skipped"),
        ({"ada": ("annotated", [PERSON]), "bo": ("annotated", []), ADJUDICATED: ("annotated", [PLACE])}, "annotated"),
    ],
)
def test_what_is_final(said: dict[str, tuple[str, list[Span]]], state: str) -> None:
    decision = decide(task(**said))
    assert decision.state == state and (decision.annotation is not None) == (state == "annotated")


def test_the_last_word_comes_before_all_others() -> None:
    said = {"ada": ("annotated", [PERSON]), "bo": ("annotated", []), ADJUDICATED: ("annotated", [PLACE])}
    annotation = decide(task(**said)).annotation
    assert annotation and annotation.spans == [PLACE]


def test_who_suggested_a_span_makes_no_conflict() -> None:
    suggested = PERSON.model_copy(update={"source": "terms", "score": 0.4})
    assert decide(task(ada=("annotated", [PERSON]), bo=("annotated", [suggested]))).state == "annotated"


def test_conflicts_name_the_spans_that_not_all_have() -> None:
    same = task("same", ada=("annotated", [PERSON]), bo=("annotated", [PERSON]))
    other = task(
        "other",
        bo=("annotated", [FIRST_NAME, PLACE]),
        ada=("annotated", [PERSON, PLACE]),
        cy=("annotated", [PERSON, PLACE]),
        di=("skipped", []),
    )
    (conflict,) = find_conflicts([same, other])
    assert conflict == {
        "document": "other",
        "annotators": ["ada", "bo", "cy"],
        "spans": [
            {"start": 0, "end": 4, "label": "PER", "text": "Mira", "annotators": ["bo"]},
            {"start": 0, "end": 12, "label": "PER", "text": "Mira Solberg", "annotators": ["ada", "cy"]},
        ],
    }


def test_places_have_what_each_annotator_says_of_them() -> None:
    said = task(
        ada=("annotated", [PERSON, PLACE]),
        bo=("annotated", [PLACE, FIRST_NAME, Span(start=5, end=12, label="PER")]),
        cy=("annotated", [PLACE]),
        di=("annotated", [PLACE, PERSON.model_copy(update={"source": "terms"})]),
        eve=("draft", []),
    )
    agreed, (place,) = find_places(said)
    assert agreed == [PLACE] and (place.start, place.end) == (0, 12)
    assert [(choice.annotators, len(choice.spans)) for choice in place.choices] == [
        (["ada", "di"], 1),
        (["bo"], 2),
        (["cy"], 0),
    ]


@given(st.lists(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 4), st.sampled_from("AB")), max_size=4)))
def test_places_and_what_all_agree_on_are_all_that_anybody_says(sides: list[list[tuple[int, int, str]]]) -> None:
    spans = [[Span(start=s, end=s + n, label=label) for s, n, label in {*side}] for side in sides]
    said = task(**{f"a{number}": ("annotated", side) for number, side in enumerate(spans)})
    agreed, places = find_places(said)
    for number, annotation in enumerate(said.annotations):
        found = list(agreed)
        for place in places:
            (choice,) = (one for one in place.choices if f"a{number}" in one.annotators)
            assert all(place.start <= span.start and span.end <= place.end for span in choice.spans)
            found += choice.spans
        assert {(span.start, span.end, span.label) for span in found} == keys(annotation)
    assert all(one.end <= other.start for one, other in pairwise(places))
    assert bool(places) == (decide(said).state == "open")


def test_agreement_is_counted_by_label_on_what_both_have_finished() -> None:
    tasks = [
        task("d1", ada=("annotated", [PERSON, PLACE]), bo=("annotated", [FIRST_NAME, PLACE])),
        task("d2", ada=("annotated", [PERSON]), bo=("annotated", [PERSON])),
        task("d3", ada=("annotated", [PERSON]), bo=("draft", [])),
        task("d4", ada=("annotated", [PERSON]), **{ADJUDICATED: ("annotated", [])}),
    ]
    (pair,) = measure_agreement(tasks)
    assert pair["annotators"] == ["ada", "bo"] and pair["documents"] == 2
    labels = pair["labels"]
    assert list(labels) == ["LOC", "PER", "overall"]
    assert labels["LOC"] == {"f1": 1, "kappa": 1, "spans": [1, 1]}
    assert labels["PER"]["f1"] == 0.5 and labels["PER"]["spans"] == [2, 2]
    # In 10 tokens, of which there are 5 in a document: ada marks 4 as PER and bo 3 of these.
    person = [1, 1, 0, 0, 0] * 2, [1, 0, 0, 0, 0, 1, 1, 0, 0, 0]
    assert labels["PER"]["kappa"] == pytest.approx(cohen_kappa_score(*person))
    assert labels["overall"]["f1"] == pytest.approx(4 / 6)


def test_the_same_offsets_in_two_documents_are_two_spans() -> None:
    tasks = [
        task("d1", ada=("annotated", [PERSON]), bo=("annotated", [])),
        task("d2", ada=("annotated", []), bo=("annotated", [PERSON])),
    ]
    assert measure_agreement(tasks)[0]["labels"]["PER"]["f1"] == 0


def test_where_nobody_marks_anything_there_is_nothing_to_measure() -> None:
    (pair,) = measure_agreement([task(ada=("annotated", []), bo=("annotated", []))])
    assert pair["labels"] == {"overall": {"f1": None, "kappa": None, "spans": [0, 0]}}
    assert measure_agreement([task(ada=("annotated", []))]) == []


@given(st.lists(st.tuples(st.sampled_from("ABC"), st.sampled_from("ABC")), min_size=1))
def test_kappa_is_that_of_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    one, other = (np.array(side, dtype=object) for side in zip(*pairs, strict=True))
    kappa = cohens_kappa(one, other)
    if kappa is None:
        assert len({*one, *other}) == 1
    else:
        assert kappa == pytest.approx(cohen_kappa_score(one, other))
