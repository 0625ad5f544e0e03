from __future__ import annotations

import numpy as np
import pytest
import spacy
from spacy.tokens import Doc, Span

from common.label_errors import Entity, Kind, rank_label_errors

LABELS = ["LOC", "PER"]
TAGS = ["O", *(f"{kind}-{label}" for label in LABELS for kind in "BILU")]
WORDS = ["Mira", "Solberg", "left", "Turku", "and", "Oslo", "."]
GOLD: list[Entity] = [(0, 2, "PER"), (3, 4, "LOC"), (5, 6, "LOC")]
vocab = spacy.blank("en").vocab


def create_doc(entities: list[Entity], words: list[str] = WORDS) -> Doc:
    doc = Doc(vocab, words=words, sent_starts=[i == 0 for i in range(len(words))])
    doc.set_ents([Span(doc, *entity) for entity in entities])
    return doc


def be_sure_of(entities: list[Entity], sure: float = 0.97, words: int = len(WORDS)) -> np.ndarray:
    """Probabilities of tags, (tokens, tags), of a pipeline that is so sure of these entities and of nothing else."""
    tags = ["O"] * words
    for start, end, label in entities:
        inner = ["B", *"I" * (end - start - 2), "L"] if end > start + 1 else ["U"]
        tags[start:end] = [f"{kind}-{label}" for kind in inner]
    array = np.full((words, len(TAGS)), (1 - sure) / (len(TAGS) - 1), dtype="float32")
    array[np.arange(words), [TAGS.index(tag) for tag in tags]] = sure
    return array


@pytest.mark.parametrize(
    ("kind", "annotated", "wrong", "right"),
    [
        ("type", [(0, 2, "PER"), (3, 4, "PER"), (5, 6, "LOC")], (3, 4, "PER"), (3, 4, "LOC")),
        ("boundary", [(0, 1, "PER"), (3, 4, "LOC"), (5, 6, "LOC")], (0, 1, "PER"), (0, 2, "PER")),
        ("boundary", [(0, 3, "LOC"), (3, 4, "LOC"), (5, 6, "LOC")], (0, 3, "LOC"), (0, 2, "PER")),
        ("missed", [(0, 2, "PER"), (3, 4, "LOC")], None, (5, 6, "LOC")),
        ("spurious", [*GOLD, (6, 7, "LOC")], (6, 7, "LOC"), None),
    ],
)
def test_each_kind_of_error_is_found(
    kind: Kind, annotated: list[Entity], wrong: Entity | None, right: Entity | None
) -> None:
    (finding,) = rank_label_errors([create_doc(annotated)], [be_sure_of(GOLD)], LABELS)
    assert (finding.document, finding.kind, finding.annotated, finding.predicted) == (0, kind, wrong, right)
    assert finding.score > 0.8


def test_where_both_agree_there_is_nothing_to_find() -> None:
    assert rank_label_errors([create_doc(GOLD)], [be_sure_of(GOLD, sure=0.6)], LABELS) == []


def test_what_the_pipeline_is_surest_of_comes_first() -> None:
    docs = [create_doc(GOLD) for _ in range(4)]
    sure = (0.8, 0.99999999, 0.9, 0.9999999999)
    findings = rank_label_errors(docs, [be_sure_of(GOLD[:2], sure=one) for one in sure], LABELS)
    assert [finding.document for finding in findings] == [3, 1, 2, 0]
    assert findings == sorted(findings, key=lambda finding: -finding.score) and findings[-1].score > 0.9


def test_a_label_that_the_pipeline_does_not_know_is_not_judged() -> None:
    doc = create_doc([(0, 2, "SHIP"), (3, 4, "LOC")])
    (finding,) = rank_label_errors([doc], [be_sure_of(GOLD)], LABELS)
    assert (finding.kind, finding.predicted) == ("missed", (5, 6, "LOC"))


def test_white_space_is_in_no_place() -> None:
    """What a pipeline says of it means nothing, and no predicted entity begins or ends with it."""
    words = ["\n\n", "Mira", "\n", "Solberg", "left", " "]
    doc = create_doc([(1, 2, "PER")], words)
    array = be_sure_of([(1, 4, "PER")], words=6)
    array[[0, 2, 5]] = be_sure_of([(0, 1, "LOC")], words=1)
    (finding,) = rank_label_errors([doc], [array], LABELS)
    assert (finding.kind, finding.predicted) == ("boundary", (1, 4, "PER"))
    array[[0, 2, 5]] = be_sure_of([], words=1)
    assert rank_label_errors([doc], [array], LABELS) == [finding]
    assert rank_label_errors([create_doc([], ["\n"]), Doc(vocab)], [array[:1], array[:0]], LABELS) == []


def test_labels_corrupted_at_random_come_first() -> None:
    """One of each kind in 40 documents, and a pipeline that is sure of most places and wrong in some."""
    rng = np.random.default_rng(0)
    wrong = {3: [*GOLD[:2]], 11: [(0, 2, "LOC"), *GOLD[1:]], 19: [(1, 2, "PER"), *GOLD[1:]], 27: [*GOLD, (6, 7, "PER")]}
    docs = [create_doc(wrong.get(number, GOLD)) for number in range(40)]
    arrays = [be_sure_of(GOLD, sure) for sure in rng.uniform(0.9, 0.999, len(docs))]
    for number in (5, 15, 25):  # here the pipeline errs, and it is less sure
        arrays[number] = be_sure_of([GOLD[0]], 0.55)
    findings = rank_label_errors(docs, arrays, LABELS)
    assert {finding.document for finding in findings[:4]} == set(wrong)
