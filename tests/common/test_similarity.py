from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.similarity import BANDS, GRAM, NEAR, ROWS, compare, group_similar, sketch

FOG = " ".join(
    f"On day {day} the fog over Tarn lifted after {day % 7} hours, and boat {day * 37} left." for day in range(30)
)
RAIN = " ".join(f"In week {week} it rained on the hills, so {week * 91} sheep stayed inside." for week in range(30))

texts = st.text(st.characters(exclude_categories=["Cs"]))


def similarity(one: str, other: str) -> float:
    return float(compare(sketch(one), sketch(other)[None])[0])


def exact(one: str, other: str) -> float:
    """The Jaccard index of the sets of GRAM characters."""
    sets = [{text[i : i + GRAM] for i in range(max(1, len(text) - GRAM + 1))} for text in (one, other)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


@given(texts)
def test_case_and_white_space_do_not_count(text: str) -> None:
    assert np.array_equal(sketch(text), sketch(f"\n {text.casefold()}\t\t".replace(" ", " \u00a0")))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_estimate_is_near_the_jaccard_index(share: float) -> None:
    sentences = FOG.lower().split(". ")
    other = ". ".join(sentences[: round(share * len(sentences))]) + RAIN.lower()
    assert abs(similarity(FOG.lower(), other) - exact(FOG.lower(), other)) < 0.15  # three standard errors


@given(st.integers(0, len(FOG) - 1), st.sampled_from(["", "x", "\N{SHIP}"]))
def test_a_text_with_one_other_character_is_nearly_the_same_and_another_text_is_not(place: int, new: str) -> None:
    changed = FOG[:place] + new + FOG[place + 1 :]
    assert group_similar([sketch(text) for text in (RAIN, FOG, changed)]) == [0, 1, 1]


def test_texts_in_scripts_without_spaces_are_compared_too() -> None:
    first = "".join(chr(0x4E00 + 7 * n % 3000) for n in range(400))
    second = "".join(chr(0x4E00 + 11 * n % 3000) for n in range(400))
    assert group_similar([sketch(text) for text in (first, second, first[:-9])]) == [0, 1, 0]


def test_texts_are_together_also_by_others_between_them() -> None:
    chain = [sketch(FOG[start : start + 1600]) for start in (0, 300, 600)]
    assert (chain[0] == chain[2]).reshape(BANDS, ROWS).all(1).any(), "so that they are compared"
    assert group_similar([chain[0], chain[2]]) == [0, 1]
    assert group_similar(chain) == [0, 0, 0]


def test_no_text_and_short_ones_have_a_sketch() -> None:
    assert group_similar([]) == []
    assert group_similar([sketch(text) for text in ("", "a", "b", " A ")]) == [0, 1, 2, 1]


def test_a_huge_text_is_sketched() -> None:
    assert similarity(FOG * 500, FOG) > NEAR
