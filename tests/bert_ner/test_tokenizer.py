from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import spacy
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.language import Language
from spacy.tokenizer import Tokenizer  # type: ignore[import-not-found,unused-ignore]

from bert_ner import tokenizer


def test_what_newswire_writes_as_one_word_is_one_token(tmp_path: Path) -> None:
    made = spacy.blank("en", config={"nlp": {"tokenizer": {"@tokenizers": "bert_ner.Tokenizer.v2"}}})
    text = "(12-8) 1996-08-22 Mira 's Oslo-based St. Vik-Rud/Lie lost 6-4 7:30 in the U.S. , didn't she... ok"
    expected = "( 12-8 ) 1996-08-22 Mira 's Oslo-based St. Vik-Rud/Lie lost 6-4 7:30 in the U.S. , did n't she ... ok"
    made.to_disk(tmp_path / "made")
    for pipe in (made, spacy.load(tmp_path / "made")):
        assert [token.text for token in pipe(text)] == expected.split()


@pytest.fixture(scope="module")
def tokenizers() -> tuple[Language, Language]:
    """The project's, and the same without its bounds."""
    config = {"nlp": {"tokenizer": {"@tokenizers": "bert_ner.Tokenizer.v2"}}}
    ours, plain = spacy.blank("en", config=config), spacy.blank("en", config=config)
    bounded: Any = ours.tokenizer
    plain.tokenizer = Tokenizer(
        plain.vocab,
        bounded.rules,
        bounded.prefix_search.__self__.search,
        re.compile(bounded.suffix_search.__self__.pattern).search,
        bounded.infix_finditer,
        bounded.token_match,
        bounded.url_match,
    )
    return ours, plain


PIECES = [
    "Mira",
    "can't",
    "U.S.",
    "(12-8)",
    "...",
    "'s",
    "n't",
    "10km/h",  # of the longest suffixes, and the digit before it decides
    "$5",
    "http://a.eu/b?c=d",
    "\u201cso\u201d",
    "8-6",
    "\U0001f600",
]


@given(st.lists(st.one_of(st.sampled_from([*PIECES, " ", "\n"]), st.text(max_size=5)), max_size=20).map("".join))
def test_bounds_change_no_token_of_ordinary_text(tokenizers: tuple[Language, Language], text: str) -> None:
    ours, plain = (nlp.make_doc(text) for nlp in tokenizers)
    assert [(t.text, t.whitespace_) for t in ours] == [(t.text, t.whitespace_) for t in plain]


@settings(max_examples=30)
@given(st.lists(st.tuples(st.text(min_size=1, max_size=3), st.integers(1, 1500)), max_size=4))
def test_long_chunks_are_cut_and_lose_nothing(
    tokenizers: tuple[Language, Language], parts: list[tuple[str, int]]
) -> None:
    text = " ".join(part * number for part, number in parts)
    doc = tokenizers[0].make_doc(text)
    assert doc.text == text and all(len(token) <= tokenizer.LONGEST_CHUNK or token.is_space for token in doc)


def test_affixes_take_time_in_proportion_to_the_text(tokenizers: tuple[Language, Language], tmp_path: Path) -> None:
    """12,000 equals signs once took a minute. What the searches look at is counted, before and after a load."""
    tokenizers[0].to_disk(tmp_path / "saved")
    for nlp_ in (tokenizers[0], spacy.load(tmp_path / "saved")):
        bounded: Any = nlp_.tokenizer
        longest, seen = 0, 0
        suffixes = bounded.suffix_search.__self__

        def search(text: str, inner: Any = suffixes.search) -> Any:
            nonlocal longest, seen
            longest, seen = max(longest, len(text)), seen + 1
            return inner(text)

        bounded.suffix_search = search
        assert len(nlp_.make_doc("=(" * 6000)) == 12000
        assert longest <= tokenizer.LONGEST_CHUNK and seen <= 13000
        assert bounded.prefix_search.__name__ == "match" and hasattr(suffixes, "compiled")


def test_special_cases_are_added_once_when_a_tokenizer_is_made_and_once_when_it_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """spaCy adds them again for each search that is set. They were added nine times, a quarter of a load."""
    config = {"nlp": {"tokenizer": {"@tokenizers": "bert_ner.Tokenizer.v2"}}}
    added: list[str] = []

    def add(self: Any, text: str, parts: Any) -> None:
        added.append(text)
        Tokenizer.add_special_case(self, text, parts)

    monkeypatch.setattr(tokenizer._LinearTokenizer, "add_special_case", add, raising=False)
    made: Any = spacy.blank("en", config=config).tokenizer
    assert sorted(added) == sorted(made.rules)
    data = made.to_bytes()
    added.clear()
    made.from_bytes(data)
    assert sorted(added) == sorted(made.rules) and made.to_bytes() == data
