from __future__ import annotations

from pathlib import Path

import pytest
import srsly
from transformers import BertConfig, BertModel

from scripts.application import predict_masked
from scripts.convert import read_conll
from scripts.steps import StepError
from tests.conftest import ROOT


def test_masked_words_are_ranked(tiny_encoder: Path) -> None:
    words = predict_masked(tiny_encoder, "Paris is the [MASK] of France.", top=7)
    assert words is not None and len({word for word, _ in words}) == 7
    probabilities = [probability for _, probability in words]
    assert probabilities == sorted(probabilities, reverse=True) and 0 < sum(probabilities) < 1
    assert predict_masked(tiny_encoder, "Paris is the [MASK] of France.", top=1000) != words


def test_an_encoder_without_a_head_for_masked_words_is_told(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(config).save_pretrained(tmp_path)
    assert predict_masked(tmp_path, "Paris is the [MASK] of France.") is None


@pytest.mark.parametrize("text", ["", "Paris", "[MASK] and [MASK]", "a " * 600 + "[MASK]"])
def test_one_masked_word_is_needed(tiny_encoder: Path, text: str) -> None:
    with pytest.raises(StepError, match="MASK"):
        predict_masked(tiny_encoder, text)


def test_the_marked_concepts_are_of_the_sample_and_do_not_overlap() -> None:
    rows = list(srsly.read_jsonl(ROOT / "assets/sample/concepts.jsonl"))
    for split in ("dev", "test"):
        documents = read_conll(ROOT / f"assets/sample/{split}.conll").documents
        sentences = {"".join(token.text for token in sentence) for document in documents for sentence in document}
        texts = [row["text"].replace(" ", "") for row in rows if row["split"] == split]
        assert len(set(texts)) == 30 and set(texts) <= sentences
    for row in rows:
        ends = [0, *(span["end"] for span in row["spans"])]
        for before, span in zip(ends, row["spans"], strict=False):
            assert before <= span["start"] < span["end"] <= len(row["text"])
            assert span["label"] in ("actor", "factor", "mechanism")
            assert row["text"][span["start"] : span["end"]].strip() == row["text"][span["start"] : span["end"]]
