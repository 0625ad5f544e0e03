"""Labels that are probably wrong, found by comparing them with a pipeline that was not trained on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import spacy
import tqdm
from spacy.tokens import Doc
from spacy.training import Example

import bert_ner  # noqa: F401 (registers what a trained pipeline names)
from bert_ner.sequences import LegalSequences
from common.corpora import CONTEXT
from common.scoring import record_tags
from common.statistics import number_tags

Kind = Literal["type", "boundary", "missed", "spurious"]
Entity = tuple[int, int, str]  # first token, token after the last, label


class Finding(NamedTuple):
    """A place where annotation and pipeline differ.

    document (int): The number of the document.
    kind: What is wrong with the annotation if the pipeline is right: "type", the label; "boundary", the span, and
        perhaps the label; "missed", an entity is not marked; "spurious", something is marked that is none.
    annotated (Entity | None): What is annotated, None if missed.
    predicted (Entity | None): What the pipeline says, None if spurious.
    score (float): How improbable the annotation is here, from 0 to 1.
    """

    document: int
    kind: Kind
    annotated: Entity | None
    predicted: Entity | None
    score: float


def rank_label_errors(docs: Sequence[Doc], probabilities: Sequence[np.ndarray], labels: Sequence[str]) -> list[Finding]:
    """Rank the places where labels are probably wrong.

    The score of a place is one minus the posterior of the least probable of its annotated tags, over the tokens of what
    is annotated and of what is predicted. How probable all of them are together would put the long entities first.

    docs (Sequence[Doc]): Annotated documents, with sentence starts.
    probabilities (Sequence[np.ndarray]): For each document what a pipeline that was not trained on it gives for its
        tags, (tokens, 1 + 4 · labels), float.
    labels (Sequence[str]): The labels of that pipeline, in its order. An entity with another label is not judged.
    RETURNS (list[Finding]): The findings, the most probable errors first.
    """
    tags = ["O", *(f"{kind}-{label}" for label in labels for kind in "BILU")]
    findings: list[tuple[float, Finding]] = []
    gold = number_tags((Example(doc, doc) for doc in docs), tags)
    decoded = decode(docs, probabilities, labels)
    for number, (doc, array, numbers, predicted) in enumerate(zip(docs, probabilities, gold, decoded, strict=True)):
        words = _find_words(doc)
        (posteriors,) = LegalSequences([array[words]], [_find_starts(doc)[words]]).find_posteriors()
        gold_posteriors = np.ones(len(doc))  # white space and tags that the pipeline does not know count for nothing
        known = np.flatnonzero(numbers[words] >= 0)
        gold_posteriors[np.flatnonzero(words)[known]] = posteriors[known, numbers[words][known]]
        for kind, annotated, guessed in _compare([(ent.start, ent.end, ent.label_) for ent in doc.ents], predicted):
            if annotated and annotated[2] not in labels:
                continue
            entities = [entity for entity in (annotated, guessed) if entity]
            place = slice(min(start for start, *_ in entities), max(end for _, end, _ in entities))
            worst = float(gold_posteriors[place].min())
            findings.append((worst, Finding(number, kind, annotated, guessed, 1 - worst)))
    # By the posterior, since scores close to 1 are the same number.
    return [finding for _, finding in sorted(findings, key=lambda pair: pair[0])]


def predict(model: Path, docs: list[Doc]) -> tuple[list[np.ndarray], list[str]]:
    """Predict the probabilities of the tags of documents.

    model (Path): A trained pipeline.
    docs (list[Doc]): The documents, of which only the words are read.
    RETURNS (tuple[list[np.ndarray], list[str]]): For each document (tokens, 1 + 4 · labels), and the labels.
    """
    nlp = spacy.load(model)
    recognizer: Any = nlp.get_pipe("ner")
    words = (
        Doc(
            nlp.vocab,
            words=[token.text for token in doc],
            spaces=None if doc.has_unknown_spaces else [bool(token.whitespace_) for token in doc],
        )
        for doc in docs
    )
    with record_tags(nlp) as recorded:
        for _ in tqdm.tqdm(nlp.pipe(words), "predicting", len(docs), unit="doc", disable=None):
            pass
    return recorded.probabilities, list(recognizer.labels)


def describe(finding: Finding, doc: Doc) -> dict[str, Any]:
    """Describe a finding in characters of its document.

    finding (Finding): As `rank_label_errors` returns it.
    doc (Doc): Its document.
    RETURNS (dict[str, Any]): `kind` and `score`; `annotated` and `predicted`, each None or with `start`, `end`, `label`
        and `text`; and `context`, some words on both sides.
    """

    def locate(entity: Entity | None) -> dict[str, Any] | None:
        if entity is None:
            return None
        start, end, label = entity
        span = doc[start:end]
        return {"start": span.start_char, "end": span.end_char, "label": label, "text": span.text}

    ends = [entity for entity in (finding.annotated, finding.predicted) if entity]
    first, last = min(entity[0] for entity in ends), max(entity[1] for entity in ends)
    return {
        "kind": finding.kind,
        "score": finding.score,
        "annotated": locate(finding.annotated),
        "predicted": locate(finding.predicted),
        "context": doc[max(0, first - CONTEXT) : last + CONTEXT].text,
    }


def decode(docs: Sequence[Doc], probabilities: Sequence[np.ndarray], labels: Sequence[str]) -> list[list[Entity]]:
    """Find the most probable entities of documents, whose sentence starts are known.

    docs, probabilities, labels: As `rank_label_errors` takes them.
    RETURNS (list[list[Entity]]): The entities of each document.
    """
    result: list[list[Entity]] = []
    for doc, array in zip(docs, probabilities, strict=True):
        words = _find_words(doc)
        places = np.flatnonzero(words).tolist()
        (found,) = LegalSequences([array[words]], [_find_starts(doc)[words]]).find_entities()
        result.append([(places[start], places[end - 1] + 1, labels[name]) for start, end, name, _ in found])
    return result


def count_entities(docs: Sequence[Doc], predicted: Sequence[list[Entity]]) -> np.ndarray:
    """Count entities, for `f_score` and `bootstrap`.

    docs (Sequence[Doc]): Annotated documents.
    predicted (Sequence[list[Entity]]): What a pipeline found in them.
    RETURNS (np.ndarray): (documents, 3), int: correct, predicted, gold.
    """
    gold = [{(ent.start, ent.end, ent.label_) for ent in doc.ents} for doc in docs]
    counts = [[len(right & {*found}), len(found), len(right)] for right, found in zip(gold, predicted, strict=True)]
    return np.array(counts, dtype=int).reshape(-1, 3)


def _find_words(doc: Doc) -> np.ndarray:
    """Tell for each token whether it is more than white space: (tokens,), bool."""
    return np.array([not token.is_space for token in doc], dtype=bool)


def _find_starts(doc: Doc) -> np.ndarray:
    """Tell for each token whether it is the first word of a sentence: (tokens,), bool."""
    starts = np.zeros(len(doc), dtype=bool)
    for sentence in doc.sents if doc.has_annotation("SENT_START") else [doc[:]]:
        starts[[token.i for token in sentence if not token.is_space][:1]] = True
    return starts


def _compare(annotated: list[Entity], predicted: list[Entity]) -> list[tuple[Kind, Entity | None, Entity | None]]:
    """The kinds of differences; an annotated entity is compared with the predicted one that overlaps it most."""
    differences: list[tuple[Kind, Entity | None, Entity | None]] = []
    for entity in annotated:
        near = max(predicted, key=lambda other: _overlap(entity, other), default=None)
        if near is None or not _overlap(entity, near):
            differences.append(("spurious", entity, None))
        elif near != entity:
            differences.append(("type" if near[:2] == entity[:2] else "boundary", entity, near))
    for other in predicted:
        if not any(_overlap(entity, other) for entity in annotated):
            differences.append(("missed", None, other))
    return differences


def _overlap(one: Entity, other: Entity) -> int:
    return max(0, min(one[1], other[1]) - max(one[0], other[0]))
