from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.splits import DOCUMENTS, stratify

SHARES = (0.7, 0.15, 0.15)


def groups_of(labels: list[str], size: int = 1) -> list[Counter[str]]:
    """A group for each string, whose letters are the labels of its documents."""
    return [Counter({DOCUMENTS: size} | dict.fromkeys(letters, size)) for letters in labels]


def count(groups: list[Counter[str]], places: list[int], name: str) -> list[int]:
    return [sum(group[name] for group, place in zip(groups, places, strict=True) if place == part) for part in range(3)]


@pytest.mark.parametrize("seed", range(5))
def test_each_part_has_its_share_of_frequent_and_of_rare_labels(seed: int) -> None:
    groups = groups_of(["A"] * 60 + ["AB"] * 20 + ["C"] * 7 + [""] * 13)
    places = stratify(groups, SHARES, seed)
    assert count(groups, places, "C") == [5, 1, 1]
    for name, total in (("A", 80), ("B", 20), (DOCUMENTS, 100)):
        assert np.abs(np.array(count(groups, places, name)) - np.array(SHARES) * total).max() <= 2


def test_a_label_of_one_document_is_learnt() -> None:
    groups = groups_of(["A"] * 19 + ["AZ"])
    for seed in range(5):
        places = stratify(groups, SHARES, seed)
        assert places[-1] == 0 and {*places} == {0, 1, 2}


def test_the_same_seed_gives_the_same_parts_and_another_one_others() -> None:
    groups = groups_of(["A", "B", "AB", ""] * 10)
    assert stratify(groups, SHARES, 1) == stratify(groups, SHARES, 1) != stratify(groups, SHARES, 2)


def test_what_is_fixed_stays_and_a_closed_part_gets_nothing() -> None:
    groups = groups_of(["A"] * 40)
    fixed = [2] * 10 + [1] * 2 + [None] * 28
    places = stratify(groups, (0.8, 0.2, 0), 0, fixed)
    assert places[:12] == fixed[:12]
    assert count(groups, places, "A") == [24, 6, 10]  # of the 30 that are not in the closed part


@given(st.lists(st.tuples(st.sets(st.sampled_from("ABC")), st.integers(1, 5)), min_size=1), st.integers(0, 3))
def test_every_group_gets_one_part(drawn: list[tuple[set[str], int]], seed: int) -> None:
    groups = [Counter({DOCUMENTS: size} | dict.fromkeys(labels, size)) for labels, size in drawn]
    places = stratify(groups, SHARES, seed)
    assert len(places) == len(groups) and {*places} <= {0, 1, 2}
