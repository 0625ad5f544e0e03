from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModel, BertConfig, DistilBertConfig, RobertaConfig

from app.masked import predict_masked
from common.errors import StepError


def test_masked_words_are_ranked(tiny_encoder: Path) -> None:
    words = predict_masked(tiny_encoder, "Paris is the [MASK] of France.", top=7)
    assert words is not None and len({word for word, _ in words}) == 7
    probabilities = [probability for _, probability in words]
    assert probabilities == sorted(probabilities, reverse=True) and 0 < sum(probabilities) < 1
    assert predict_masked(tiny_encoder, "Paris is the [MASK] of France.", top=1000) != words


@pytest.mark.parametrize("kind", [BertConfig, DistilBertConfig, RobertaConfig])
def test_an_encoder_without_a_head_for_masked_words_is_told(kind: Any, tmp_path: Path) -> None:
    config = kind(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    assert predict_masked(tmp_path, "Paris is the [MASK] of France.") is None


@pytest.mark.parametrize("text", ["", "Paris", "[MASK] and [MASK]", "a " * 600 + "[MASK]"])
def test_one_masked_word_is_needed(tiny_encoder: Path, text: str) -> None:
    with pytest.raises(StepError, match="MASK"):
        predict_masked(tiny_encoder, text)


def test_a_damaged_encoder_is_named(tiny_encoder: Path, tmp_path: Path) -> None:
    encoder = shutil.copytree(tiny_encoder, tmp_path / "encoder")
    (encoder / "model.safetensors").write_bytes(b"no")
    with pytest.raises(StepError, match="encoder cannot be loaded"):
        predict_masked(encoder, "Paris is the [MASK] of France.")
