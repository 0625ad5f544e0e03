"""Masked language modelling: the words that an encoder expects in a gap of a sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.errors import StepError

MASK = "[MASK]"


def load_masked(encoder: Path) -> tuple[Any, Any] | None:
    """Load a masked language model.

    encoder (Path): Folder of the encoder.
    RETURNS (tuple[Any, Any] | None): Model and tokenizer, or None if the encoder has no head for masked words.
    RAISES (StepError): If it cannot be loaded.
    """
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    try:
        model, loaded = AutoModelForMaskedLM.from_pretrained(encoder, output_loading_info=True)
        if any(not name.startswith(f"{model.base_model_prefix}.") for name in loaded["missing_keys"]):
            return None  # what is not there would be random, and so would be the words
        return model.eval(), AutoTokenizer.from_pretrained(encoder)
    except Exception as error:  # a damaged folder makes transformers raise any kind of exception
        problem = f"{encoder} cannot be loaded: {type(error).__name__}."
        raise StepError(problem, f"Get it again: make download RUN={encoder.parent.name}") from error


def predict_masked(
    encoder: Path, text: str, top: int = 10, load: Callable[[Path], tuple[Any, Any] | None] = load_masked
) -> list[tuple[str, float]] | None:
    """Predict the word at [MASK] with a masked language model (Devlin et al. 2019, https://arxiv.org/abs/1810.04805).

    encoder (Path): Folder of the encoder.
    text (str): A text with one [MASK].
    top (int): Number of words to return.
    load (Callable[[Path], tuple[Any, Any] | None]): Loads them as load_masked does, perhaps from a cache.
    RETURNS (list[tuple[str, float]] | None): Wordpieces and their probabilities, the most probable first. None if the
        encoder has no head for masked words.
    RAISES (StepError): If the text does not have exactly one [MASK], if that lies beyond the longest input of the
        encoder, or if the encoder cannot be loaded.
    """
    import torch

    if text.count(MASK) != 1:
        raise StepError(f"The text has {text.count(MASK)} times {MASK}.", f"Put {MASK} once, where the word shall be.")
    loaded = load(encoder)
    if loaded is None:
        return None
    model, tokenizer = loaded
    inputs = tokenizer(text.replace(MASK, tokenizer.mask_token), return_tensors="pt", truncation=True)
    places = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero()
    if not len(places):
        raise StepError(f"{MASK} is beyond what the encoder reads.", "Shorten the text.")
    with torch.inference_mode():
        probabilities = model(**inputs).logits[0, places[0, 0]].softmax(0)
    best = probabilities.topk(min(top, len(probabilities)))
    words = tokenizer.convert_ids_to_tokens(best.indices.tolist())
    return list(zip(words, best.values.tolist(), strict=True))
