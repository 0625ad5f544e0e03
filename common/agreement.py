"""What several annotators say of the same documents: how far they agree, where they do not, and what is final."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from typing import Any, Literal, NamedTuple

import numpy as np

from common.alignment import align, create_reader
from common.annotations import Annotation, Span, Task

ADJUDICATED = "adjudicated"  # the annotator whose word is final


class Decision(NamedTuple):
    """What is final of a document.

    state: "annotated"; "skipped" if it shall be left out; "unannotated" if nobody has finished it; "open" if those
        who have do not agree, or if somebody is at work to decide it.
    annotation (Annotation | None): The final one, if it is annotated.
    """

    state: Literal["annotated", "skipped", "unannotated", "open"]
    annotation: Annotation | None = None


def decide(task: Task) -> Decision:
    """Find what is final of a document: what ADJUDICATED says, else what all say who have finished it.

    task (Task): The document with its annotations. Drafts, and those who skipped it, do not count beside others.
    RETURNS (Decision): What is final.
    """
    by_name = {annotation.annotator: annotation for annotation in task.annotations}
    if last := by_name.get(ADJUDICATED):
        if last.status == "draft":
            return Decision("open")
        return Decision("annotated", last) if last.status == "annotated" else Decision("skipped")
    finished = _finished(task)
    if not finished:
        skipped = any(annotation.status == "skipped" for annotation in task.annotations)
        return Decision("skipped" if skipped else "unannotated")
    if len({frozenset(keys(annotation)) for annotation in finished.values()}) > 1:
        return Decision("open")
    return Decision("annotated", next(iter(finished.values())))


def _finished(task: Task) -> dict[str, Annotation]:
    """By name what annotators, ADJUDICATED aside, have decided of a document."""
    return {a.annotator: a for a in task.annotations if a.status == "annotated" and a.annotator != ADJUDICATED}


def keys(annotation: Annotation) -> set[tuple[int, int, str]]:
    """The spans of an annotation as start, end and label: who made them and how sure it was does not count."""
    return {(span.start, span.end, span.label) for span in annotation.spans}


class Choice(NamedTuple):
    """What some annotators say of a place.

    annotators (list[str]): Who they are.
    spans (list[Span]): What they have there, perhaps nothing.
    """

    annotators: list[str]
    spans: list[Span]


class Place(NamedTuple):
    """A stretch of a text of which not all annotators say the same.

    start, end (int): The stretch, which no span crosses.
    choices (list[Choice]): What they say, each thing once.
    """

    start: int
    end: int
    choices: list[Choice]


def find_places(task: Task) -> tuple[list[Span], list[Place]]:
    """Find where annotators who have finished a document agree, and where not.

    task (Task): The document.
    RETURNS (tuple[list[Span], list[Place]]): The spans on which all agree, and the places where they do not, which hold
        no such span: both in the order of the text.
    """
    finished = _finished(task)
    stretches: list[tuple[int, int]] = []
    for start, end, _ in sorted(set().union(*map(keys, finished.values()))):
        if stretches and start < stretches[-1][1]:
            first, last = stretches.pop()
            start, end = first, max(end, last)
        stretches.append((start, end))
    agreed: list[Span] = []
    places = []
    for start, end in stretches:
        choices: dict[frozenset[tuple[int, int, str]], Choice] = {}
        for name in sorted(finished):
            spans = sorted((s for s in finished[name].spans if start <= s.start < end), key=lambda s: (s.start, s.end))
            said = frozenset((span.start, span.end, span.label) for span in spans)
            choices.setdefault(said, Choice([], spans)).annotators.append(name)
        if len(choices) > 1:
            places.append(Place(start, end, [*choices.values()]))
        else:
            agreed += next(iter(choices.values())).spans
    return agreed, places


def find_conflicts(tasks: Iterable[Task]) -> list[dict[str, Any]]:
    """Find the documents that wait for a decision.

    tasks (Iterable[Task]): The documents.
    RETURNS (list[dict[str, Any]]): For each open one the id, `document`; the `annotators` who have finished it; and in
        the order of the text the `spans` that some of these have and others not, each with its `start`, `end`, `label`,
        `text`, and the `annotators` who have it.
    """
    conflicts = []
    for task in tasks:
        if decide(task).state != "open":
            continue
        finished = _finished(task)
        spans = []
        for start, end, label in sorted(set().union(*map(keys, finished.values()))):
            names = sorted(name for name, one in finished.items() if (start, end, label) in keys(one))
            if len(names) < len(finished):
                text = task.document.text[start:end]
                spans.append({"start": start, "end": end, "label": label, "text": text, "annotators": names})
        conflicts.append({"document": task.document.id, "annotators": sorted(finished), "spans": spans})
    return conflicts


def measure_agreement(tasks: Iterable[Task]) -> list[dict[str, Any]]:
    """Measure how far each two annotators agree on the documents that both have finished.

    tasks (Iterable[Task]): The documents.
    RETURNS (list[dict[str, Any]]): For each pair with such a document its `annotators`, the number of `documents`, and
        `labels`: for each label, then for "overall", `f1` of exact spans, `kappa` of tokens, and `spans`, how many each
        of the two has. F1 is None where neither has a span, and kappa where chance alone explains all.
    """
    nlp = create_reader()
    pairs: dict[tuple[str, str], list[tuple[Task, Annotation, Annotation]]] = {}
    for task in tasks:
        finished = _finished(task)
        for one, other in combinations(sorted(finished), 2):
            pairs.setdefault((one, other), []).append((task, finished[one], finished[other]))
    result = []
    for names, documents in sorted(pairs.items()):
        spans: tuple[set[Any], set[Any]] = (set(), set())
        tokens: tuple[list[str], list[str]] = ([], [])
        for task, *both in documents:
            for side, annotation in enumerate(both):
                spans[side].update((task.document.id, *key) for key in keys(annotation))
                doc = align(nlp, task.document.text, annotation.spans).doc
                tokens[side].extend(token.ent_type_ for token in doc if not token.is_space)
        first, second = (np.array(side, dtype=object) for side in tokens)
        rows = {}
        for label in sorted({label for *_, label in spans[0] | spans[1]}):
            ours, theirs = ({span for span in side if span[3] == label} for side in spans)
            rows[label] = _compare(ours, theirs, first == label, second == label)
        rows["overall"] = _compare(*spans, first, second)
        result.append({"annotators": list(names), "documents": len(documents), "labels": rows})
    return result


def _compare(spans: set[Any], other_spans: set[Any], tokens: np.ndarray, other_tokens: np.ndarray) -> dict[str, Any]:
    total = len(spans) + len(other_spans)
    f1 = 2 * len(spans & other_spans) / total if total else None
    return {"f1": f1, "kappa": cohens_kappa(tokens, other_tokens), "spans": [len(spans), len(other_spans)]}


def cohens_kappa(one: np.ndarray, other: np.ndarray) -> float | None:
    """Cohen's kappa (1960, https://doi.org/10.1177/001316446002000104): agreement beyond chance.

    one, other (np.ndarray): What two annotators say of the same items, each (items,).
    RETURNS (float | None): 1 if they always agree, 0 if as often as by chance. None if both always say the same one
        thing, or if there is no item.
    """
    if not len(one):
        return None
    expected = sum(float((one == name).mean() * (other == name).mean()) for name in {*one.tolist()})
    return None if expected == 1 else (float((one == other).mean()) - expected) / (1 - expected)
