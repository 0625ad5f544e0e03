"""How a pipeline goes on from another one, and what it has lost or won then, label by label."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from spacy.training import Example

from common.statistics import bootstrap, f_score, interval

ALL = "overall"
RESUMED = 0.3  # a new label is learnt as well as at the full rate, and less is forgotten: docs/experiments.md


def choose_rate(learn_rate: str, start: Path | None) -> str:
    """Choose the learning rate of a training, which is lower where it goes on from a trained pipeline.

    learn_rate (str): A number, "auto", or a multiple of that: "auto*2".
    start (Path | None): The pipeline to go on from, if there is one.
    RETURNS (str): The same; with a pipeline to go on from, RESUMED times what follows from "auto".
    """
    if start and learn_rate.startswith("auto"):
        with suppress(ValueError):  # of which who reads the rate tells
            return f"auto*{RESUMED * float(learn_rate.removeprefix('auto').removeprefix('*') or 1):g}"
    return learn_rate


def count_entities(examples: Iterable[Example], labels: Sequence[str]) -> np.ndarray:
    """Count the entities of each document by label.

    examples (Iterable[Example]): Predicted documents with their references, of the same tokens.
    labels (Sequence[str]): The labels.
    RETURNS (np.ndarray): Shape (labels, documents, 3), int: correct, predicted, gold.
    """
    counts = []
    for example in examples:
        predicted, gold = (
            {(ent.start, ent.end, ent.label_) for ent in doc.ents} for doc in (example.predicted, example.reference)
        )
        counts.append(
            [
                [sum(entity[2] == label for entity in part) for part in (predicted & gold, predicted, gold)]
                for label in labels
            ]
        )
    return np.array(counts, dtype=int).reshape(-1, len(labels), 3).swapaxes(0, 1)


def compare_labels(before: np.ndarray, after: np.ndarray, labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Compare two pipelines on the same documents.

    before, after (np.ndarray): Their counts, (labels, documents, 3), as `count_entities` gives them.
    labels (Sequence[str]): The labels.
    RETURNS (dict[str, dict[str, Any]]): By label, and for all of these as ALL: F1 `before` and `after`; the `change`
        and its `interval` of 95%, by a bootstrap over documents in which both pipelines get the same ones; the number
        of `entities`.
    """
    result = {}
    for label, *pair in zip((*labels, ALL), *([*counts, counts.sum(0)] for counts in (before, after)), strict=True):
        old, new = (float(f_score(counts.sum(0))) for counts in pair)
        samples = [bootstrap(counts[None]) for counts in pair]
        result[label] = {
            "before": old,
            "after": new,
            "change": new - old,
            "interval": interval(samples[1] - samples[0]),
            "entities": int(pair[0][:, 2].sum()),
        }
    return result


def find_lost(compared: dict[str, dict[str, Any]]) -> tuple[list[str], list[str]]:
    """Find the labels that a pipeline has lost in part, or of which nobody knows.

    compared (dict[str, dict[str, Any]]): As `compare_labels` gives it.
    RETURNS (tuple[list[str], list[str]]): The labels whose F1 is lower, and the whole interval of the change with it;
        and those of which the documents have no entity.
    """
    labels = {label: row for label, row in compared.items() if label != ALL}
    return (
        [label for label, row in labels.items() if row["entities"] and row["interval"][1] < 0],
        [label for label, row in labels.items() if not row["entities"]],
    )
