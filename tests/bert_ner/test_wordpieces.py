from __future__ import annotations

import copy
import pickle
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.language import Language
from spacy.tokens import Doc
from transformers import BertTokenizerFast

from bert_ner import wordpieces
from bert_ner.wordpieces import WordpieceReader, create_equal_spans
from tests.bert_ner.conftest import DOCUMENTS, nlp


@given(st.lists(st.integers(0, 700), max_size=4), st.integers(1, 200), st.integers(0, 199))
def test_windows_hold_each_token_and_are_equally_long(lengths: list[int], size: int, overlap: int) -> None:
    overlap = min(overlap, size - 1)
    docs = [Doc(nlp.vocab, words=["a"] * length) for length in lengths]
    for doc, windows in zip(docs, create_equal_spans(size, overlap)(docs), strict=True):
        assert {token.i for window in windows for token in window} == set(range(len(doc)))
        assert sum(map(len, windows)) == len(doc) + overlap * max(0, len(windows) - 1)
        assert all(1 <= len(window) <= size for window in windows)
        assert len(windows) <= 1 or len(windows) == -(-(len(doc) - overlap) // (size - overlap))
        assert not windows or max(map(len, windows)) - min(map(len, windows)) <= 1


def test_windows_that_never_end_are_refused() -> None:
    with pytest.raises(ValueError, match="choose one from 0 to 9"):
        create_equal_spans(10, 10)


def test_scripts_that_the_encoder_decomposes_lose_nothing(tmp_path: Path) -> None:
    """BERT makes up to three wordpieces of a syllable of Hangul: half of the tokens once had none."""
    letters = sorted(set(unicodedata.normalize("NFD", "한국어를")))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces), encoding="utf8")
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"), model_max_length=512)
    doc = Doc(nlp.vocab, words=["한국어를"] * 100)
    assert len(tokenizer(doc.text)["input_ids"]) > 512
    for windows in (
        wordpieces._WordpieceCache(tokenizer).read([doc], create_equal_spans(128, 32)([doc]))[0][0],
        wordpieces._read(tokenizer, create_equal_spans(128, 32)([doc]))[0][0],
    ):
        assert {token.i for window in windows for token in window} == set(range(100))
        assert all(len(tokenizer(window.text)["input_ids"]) <= 512 for window in windows)


@settings(max_examples=60)
@given(DOCUMENTS, st.integers(1, 12))
def test_cached_wordpieces_are_those_of_the_tokenizer(tiny_encoder: Path, docs: list[Doc], size: int) -> None:
    tokenizer = BertTokenizerFast.from_pretrained(tiny_encoder)
    get_windows = create_equal_spans(size, min(2, size - 1))
    windows, batch, align = wordpieces._read(tokenizer, get_windows(docs))
    reader = WordpieceReader()
    for _ in range(2):  # the second time they come from the cache
        windows_, batch_, align_ = reader.read(tokenizer, docs, get_windows(docs))
        assert [[(s.start, s.end) for s in spans] for spans in windows_] == [
            [(s.start, s.end) for s in spans] for spans in windows
        ]
        assert batch_.input_ids.tolist() == batch.input_ids.tolist()
        assert batch_.attention_mask.tolist() == batch.attention_mask.tolist()
        assert batch_.strings == batch.strings and batch_.lengths == batch.lengths
        assert align_.lengths.tolist() == align.lengths.tolist() and align_.dataXd.tolist() == align.dataXd.tolist()


def test_the_cache_of_wordpieces_has_a_bound(tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wordpieces, "CACHED_RUNS", 100)
    cache = wordpieces._WordpieceCache(BertTokenizerFast.from_pretrained(tiny_encoder))
    for i in range(30):
        doc = Doc(nlp.vocab, words=[f"w{i}x{j}" for j in range(20)])
        cache.read([doc], [[doc[:]]])
        assert len(cache.numbers) <= 120


def test_tokenizers_that_look_beyond_spaces_are_not_cached(tiny_encoder: Path) -> None:
    assert wordpieces._cuts_at_spaces(BertTokenizerFast.from_pretrained(tiny_encoder))
    with_phrase = BertTokenizerFast.from_pretrained(tiny_encoder)
    with_phrase.add_tokens(["New York"])
    assert not wordpieces._cuts_at_spaces(with_phrase)


def test_a_reader_is_copied_without_its_cache(tiny_encoder: Path) -> None:
    """What a process or a copy of the pipeline gets: a lock cannot be pickled, and the cache would be large."""
    tokenizer = BertTokenizerFast.from_pretrained(tiny_encoder)
    doc = Doc(nlp.vocab, words=["Mira", "left", "Turku"])
    reader = WordpieceReader()
    _, expected, _ = reader.read(tokenizer, [doc], [[doc[:]]])
    assert reader.caches
    for copied in (pickle.loads(pickle.dumps(reader)), copy.deepcopy(reader)):
        assert not copied.caches
        _, found, _ = copied.read(tokenizer, [doc], [[doc[:]]])
        assert found.input_ids.tolist() == expected.input_ids.tolist()


def test_each_wordpiece_has_the_case_of_its_token(pipeline: Language) -> None:
    """In every window, also beside white space and padding."""
    cases = {
        "Turku": 1,
        "FINLAND": 2,
        "I": 3,
        "McKay": 4,
        "iPhone": 4,
        "slept": 0,
        ".": 0,
        "12": 0,
        "\n": 0,
        "U.S.": 2,
        "한": 0,
    }
    doc, short = Doc(pipeline.vocab, words=[*cases] * 30), Doc(pipeline.vocab, words=["Oslo"])
    batch = pipeline.get_pipe("transformer").model.predict([doc, Doc(pipeline.vocab), short])  # type: ignore[attr-defined]
    types, align = batch.wordpieces.token_type_ids, batch.align
    found = np.split(types.flatten()[align.dataXd.flatten()], np.cumsum(align.lengths)[:-1])
    expected = [*cases.values()] * 30 + [1]
    assert [set(array.tolist()) for array in found] == [
        {case} if length else set() for case, length in zip(expected, align.lengths, strict=True)
    ]
    rest = np.ones(types.size, dtype=bool)
    rest[align.dataXd.flatten()] = False
    assert len(batch.spans[0]) > 1 and not types.flatten()[rest].any()
