from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.spellings import group_spellings, normalize


@pytest.mark.parametrize(
    ("spelling", "other"),
    [
        ("Norrvik Steel's", "NORRVIK  STEEL"),
        ("the Norrvik-Steel", "Norrvik Steel"),
        ("Norrvik\u2011Steel\u2019s", "Norrvik Steel."),
        ("Ångström", "angstrom"),
        ("U.S.", "US"),
        ("James'", "James"),
    ],
)
def test_case_accents_punctuation_and_endings_do_not_count(spelling: str, other: str) -> None:
    assert normalize(spelling) == normalize(other)


def test_a_name_of_punctuation_alone_stays() -> None:
    assert normalize("!!!") == "!!!" and normalize("C++") != normalize("C")


def test_a_slip_of_the_pen_joins_the_more_frequent_name() -> None:
    counts = {"Mira Solberg": 9, "Mira Solburg": 2, "MIRA SOLBERG": 1, "Mira Slberg": 1, "Mria Solberg": 1}
    assert group_spellings(counts) == dict.fromkeys(counts, "Mira Solberg")


@pytest.mark.parametrize(
    "pair",
    [
        ("Iran", "Iraq"),  # short
        ("Zambezia", "Gambezia"),  # other first letters
        ("Norrvik 2031", "Norrvik 2032"),  # other numbers
        ("Mira Solberg", "Mirja Sollberg"),  # two slips
    ],
)
def test_other_names_stay_apart(pair: tuple[str, str]) -> None:
    assert group_spellings(dict.fromkeys(pair, 1)) == {name: name for name in pair}


def test_no_chain_of_slips_leads_from_one_name_to_another() -> None:
    counts = {"Norrvikstal": 9, "Norrvikstel": 5, "Norrvikstell": 1}
    found = group_spellings(counts)
    assert found["Norrvikstel"] == "Norrvikstal" and found["Norrvikstell"] == "Norrvikstell"


@given(st.dictionaries(st.text("abcdeAB -'1", min_size=1, max_size=14), st.integers(1, 5), max_size=20))
def test_every_spelling_gets_one_name_which_is_its_own(counts: dict[str, int]) -> None:
    found = group_spellings(counts)
    assert found.keys() == counts.keys()
    for spelling, name in found.items():
        assert found[name] == name and counts[name] >= counts[spelling]
        assert normalize(name) == normalize(spelling) or len(normalize(name)) >= 7
    assert group_spellings(dict(reversed(counts.items()))) == found
