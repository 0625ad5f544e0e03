from __future__ import annotations

import numpy as np
import pytest
import spacy
from hypothesis import given
from hypothesis import strategies as st
from spacy.tokens import Doc
from spacy.training import Example

from common.errors import StepError
from common.statistics import (
    calibration_curve,
    calibration_error,
    find_threshold,
    match_entities,
    number_tags,
    score_tags,
)

nlp = spacy.blank("en")


def test_the_calibration_error_is_the_distance_of_score_and_share() -> None:
    random = np.random.default_rng(0)
    scores = random.uniform(0.2, 0.8, 20000)
    correct = random.random(20000) < scores
    assert calibration_error(scores, correct) < 0.015
    assert calibration_error(scores + 0.2, correct) == pytest.approx(0.2, abs=0.01)
    assert calibration_error(np.array([]), np.array([], dtype=bool)) == 0


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.5, 1.0]), st.booleans()), max_size=40))
def test_the_calibration_curve_has_every_entity_once_even_where_scores_are_equal(
    pairs: list[tuple[float, bool]],
) -> None:
    scores, correct = (np.array([pair[i] for pair in pairs]) for i in (0, 1))
    curve = calibration_curve(scores, correct.astype(bool))
    assert len(curve) == min(10, len(pairs))
    assert sum(part["entities"] for part in curve) == len(pairs)
    assert sum(part["entities"] * part["correct"] for part in curve) == pytest.approx(correct.sum())
    means = [part["score"] for part in curve]
    assert means == pytest.approx(sorted(means))


@pytest.mark.parametrize("unseen", [0.2, 0.5])
def test_the_threshold_holds_for_texts_with_more_unseen_names(unseen: float) -> None:
    random = np.random.default_rng(0)

    def draw(unseen: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        scores, seen = random.random(20000), random.random(20000) >= unseen
        return scores, random.random(20000) < np.where(seen, 0.5 + scores / 2, scores), seen

    threshold = find_threshold(*draw(unseen), 0.9)
    scores, correct, _ = draw(0.5)
    assert correct[scores >= threshold].mean() == pytest.approx(0.91, abs=0.01)


def test_a_threshold_needs_evidence() -> None:
    scores, seen = np.linspace(1, 0.01, 100), np.ones(100, dtype=bool)
    correct = np.arange(100) < 50
    assert find_threshold(scores, correct, seen, 0.5) == pytest.approx(scores[84], abs=0.03)
    assert find_threshold(scores[:5], correct[:5], seen[:5], 0.97) == 1.0
    assert find_threshold(scores[:0], correct[:0], seen[:0], 0.97) == 1.0


def test_entities_with_one_score_are_above_a_threshold_together() -> None:
    """Whatever their order: two thirds of these are correct."""
    correct = np.arange(150) < 100
    for order in (correct, correct[::-1]):
        assert find_threshold(np.full(150, 0.9), order, np.ones(150, dtype=bool), 0.9) == 1.0


def test_a_pipeline_without_scores_is_told() -> None:
    doc = Doc(spacy.blank("en").vocab, words=["Turku"], ents=["B-LOC"])
    with pytest.raises(StepError, match="without a score"):
        match_entities([Example(doc, doc)], set())


def test_loss_and_accuracy_of_tags_are_those_of_known_tokens() -> None:
    reference = Doc(nlp.vocab, words=["Oslo", "is", "cold"], ents=["B-LOC", "O", ""])
    empty = Doc(nlp.vocab, words=[])
    tags = ["O", "B-LOC", "I-LOC", "L-LOC", "U-LOC"]
    examples = [Example(Doc(nlp.vocab, words=["Oslo", "is", "cold"]), reference), Example(empty, empty)]
    gold = number_tags(examples, tags)
    assert [array.tolist() for array in gold] == [[4, 0, -1], []]
    probabilities = np.array([[0.1, 0.1, 0.1, 0.1, 0.6], [0.2, 0.5, 0.1, 0.1, 0.1], [0.2] * 5])
    scores = score_tags(gold, [probabilities, np.zeros((0, 5))])
    assert scores == {"loss": pytest.approx(-(np.log(0.6) + np.log(0.2)) / 2), "accuracy": 0.5}
    impossible = np.array([[1.0, 0, 0, 0, 0]] * 3)
    assert score_tags(gold[:1], [impossible])["loss"] < 12, "finite"
    assert score_tags([], []) == {"loss": 0, "accuracy": 0}
