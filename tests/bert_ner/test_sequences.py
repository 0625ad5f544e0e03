from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax  # type: ignore[import-untyped]

from bert_ner.sequences import LegalSequences
from tests.bert_ner.conftest import read_tags

KINDS = ["O", *(f"{kind}{label}" for label in range(2) for kind in "BILU")]


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 4), max_size=4), st.sampled_from([1, 3, 8]))
def test_entities_are_those_of_the_best_legal_sequence_and_scores_are_posteriors(
    seed: int, lengths: list[int], sharpness: int
) -> None:
    """Against all sequences, one by one."""
    random = np.random.default_rng(seed)
    logits = [random.normal(size=(length, len(KINDS))) * sharpness for length in lengths]
    probabilities = [softmax(array, axis=1).astype("float32") for array in logits]
    starts = [random.random(length) < 0.2 for length in lengths]
    legal = LegalSequences(probabilities, starts)
    log_legal = legal.log_legal
    for array, cuts, entities, posterior in zip(
        probabilities, starts, legal.find_entities(), legal.find_posteriors(), strict=True
    ):
        best: tuple[float, list[tuple[int, int, int]]] = (-1.0, [])
        total, mass, shares = 0.0, dict[tuple[int, ...], float](), np.zeros(array.shape)
        inner = [False, *map(bool, cuts[1:])][: len(cuts)]
        for tags in itertools.product(range(len(KINDS)), repeat=len(array)):
            found = read_tags(tuple(KINDS[tag] for tag in tags), inner)
            if found is not None:
                weight = float(np.prod([array[i, tag] for i, tag in enumerate(tags)]))
                best = max(best, (weight, found))
                total += weight
                shares[np.arange(len(tags)), tags] += weight
                for entity in found:
                    mass[entity] = mass.get(entity, 0) + weight
        assert [entity[:3] for entity in entities] == best[1]
        for *span, score in entities:
            assert score == pytest.approx(mass[tuple(span)] / total, abs=1e-5) and 0 < score <= 1
        np.testing.assert_allclose(posterior, shares / total, atol=1e-5)
        log_legal -= np.log(total)
    assert log_legal == pytest.approx(0, abs=1e-4)
