from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import spacy
from hypothesis import given
from hypothesis import strategies as st
from spacy.tokens import Doc
from spacy.training import Example

from common.errors import StepError
from common.forgetting import ALL, choose_rate, compare_labels, count_entities, find_lost
from common.settings import read_number

nlp = spacy.blank("en")


def create_example(predicted: str, gold: str) -> Example:
    """A document of as many words as there are tags, with spaces between these."""
    words = [f"w{i}" for i, _ in enumerate(gold.split())]
    return Example(*(Doc(nlp.vocab, words=words, ents=tags.split()) for tags in (predicted, gold)))


def test_entities_are_counted_by_label_and_document() -> None:
    examples = [create_example("B-LOC I-LOC O B-PER", "B-LOC I-LOC B-PER O"), create_example("B-LOC O", "B-ORG O")]
    counts = count_entities(examples, ["LOC", "ORG", "PER"])
    assert counts.tolist() == [
        [[1, 1, 1], [0, 1, 0]],
        [[0, 0, 0], [0, 0, 1]],
        [[0, 1, 1], [0, 0, 0]],
    ]
    assert count_entities([], ["LOC"]).shape == (1, 0, 3)


def test_a_drop_is_lost_only_where_the_whole_interval_is_below_zero() -> None:
    good, bad, rare = [[5, 5, 5]] * 30, [[3, 5, 5]] * 30, [[0, 0, 0]] * 29 + [[1, 1, 1]]
    nothing = [[0, 0, 0]] * 30
    before = np.array([good, good, rare, nothing])
    after = np.array([good, bad, nothing, nothing])
    compared = compare_labels(before, after, ["LOC", "MISC", "ORG", "PER"])
    assert compared["LOC"]["change"] == 0 and compared["LOC"]["interval"] == [0, 0]
    assert compared["MISC"] == {"before": 1, "after": 0.6, "change": -0.4, "entities": 150} | {
        "interval": compared["MISC"]["interval"]
    }
    assert compared["ORG"]["change"] == -1 and compared["ORG"]["interval"][1] == 0, "one document says nothing"
    assert list(compared) == ["LOC", "MISC", "ORG", "PER", ALL] and compared[ALL]["entities"] == 301
    assert find_lost(compared) == (["MISC"], ["PER"])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12))
def test_a_pipeline_loses_nothing_against_itself(rows: list[tuple[int, int, int]]) -> None:
    counts = np.array([[[min(row), *row[1:]] for row in rows]])
    row = compare_labels(counts, counts, ["LOC"])["LOC"]
    assert row["change"] == 0 and row["interval"] == [0, 0] and row["before"] == row["after"]


def test_a_training_that_goes_on_is_gentler() -> None:
    start = Path("start")
    assert choose_rate("auto", None) == "auto" and choose_rate("auto*2", None) == "auto*2"
    assert read_number("learn_rate", choose_rate("auto", start), 1e-4) == pytest.approx(3e-5)
    assert read_number("learn_rate", choose_rate("auto*2", start), 1e-4) == pytest.approx(6e-5)
    assert choose_rate("5e-5", start) == "5e-5", "a number is meant as it is"
    with pytest.raises(StepError, match="'automatic'"):
        read_number("learn_rate", choose_rate("automatic", start), 1e-4)
