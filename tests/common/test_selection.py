from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import selection
from common.selection import DIVERSE, RANDOM, UNCERTAIN, doubt_spans, doubt_tags, order_work
from common.similarity import compare


def random_sketches(number: int) -> np.ndarray:
    """Of texts that have nothing in common."""
    return np.random.default_rng(1).integers(2**32, size=(number, 125), dtype="uint32")


def test_doubt_of_spans_is_how_many_are_wrong_for_each_token() -> None:
    assert doubt_spans([0.9, 0.5, None], 10) == pytest.approx(0.06)
    assert doubt_spans([], 10) == doubt_spans([], 0) == 0


def test_doubt_of_tags_is_their_entropy_for_each_token() -> None:
    assert doubt_tags(np.array([[1.0, 0.0], [0.5, 0.5]])) == pytest.approx(math.log(2) / 2, abs=1e-6)
    assert doubt_tags(np.zeros((0, 2))) == 0


@given(st.integers(0, 60), st.integers(2, 15), st.integers(0, 2**32 - 1))
def test_each_document_has_one_place(number: int, batch: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    order = order_work(random.random(number), random_sketches(number), batch, random)
    assert sorted(document for document, _ in order) == list(range(number))


def test_a_batch_has_the_most_uncertain_ones_and_a_tenth_at_random() -> None:
    doubts = np.arange(1, 201) / 200
    order = order_work(doubts, random_sketches(200), 20, np.random.default_rng(0))
    waiting = set(range(200))
    for start in range(0, 200, 20):
        batch = order[start : start + 20]
        drawn = {number for number, reason in batch if reason == RANDOM}
        assert len(drawn) == 2
        assert {number for number, reason in batch if reason == UNCERTAIN} == set(sorted(waiting - drawn)[-18:])
        waiting -= {number for number, _ in batch}
    drawn = {number for number, reason in order if reason == RANDOM}
    assert min(drawn) < 60 and max(drawn) > 140, "from all of them"
    first = [reason for _, reason in order[:20]]
    assert first != sorted(first) and first != sorted(first, reverse=True), "a batch is mixed"


def test_the_same_seed_gives_the_same_order() -> None:
    orders = [order_work(np.ones(50), random_sketches(50), 10, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_no_two_of_a_batch_are_similar() -> None:
    sketches = random_sketches(40)
    sketches[20:] = sketches[:20]
    sketches[20:, :50] += 1  # similar by 0.6
    order = order_work(np.arange(1, 41) / 40, sketches, 10, np.random.default_rng(0))
    for start in range(0, 40, 10):
        numbers = [number for number, _ in order[start : start + 10]]
        for place, number in enumerate(numbers):
            assert (compare(sketches[number], sketches[numbers[:place]]) <= DIVERSE).all()


def test_where_nothing_is_known_all_is_random() -> None:
    order = order_work(np.zeros(30), random_sketches(30), 10, np.random.default_rng(0))
    assert {reason for _, reason in order} == {RANDOM} and [number for number, _ in order] != list(range(30))


def test_what_nobody_will_reach_follows_at_random(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "MOST", 20)
    order = order_work(np.arange(1, 101) / 100, random_sketches(100), 10, np.random.default_rng(0))
    assert {reason for _, reason in order[20:]} == {RANDOM} and len(order) == 100
