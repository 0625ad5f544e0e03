"""What the page, the service and the notebook share: over a pipeline or an encoder, without a network."""

from __future__ import annotations

from pathlib import Path

from scripts.steps import StepError

MASK = "[MASK]"


def predict_masked(encoder: Path, text: str, top: int = 10) -> list[tuple[str, float]] | None:
    """What a masked language model puts in the place of [MASK] (Devlin et al. 2019, https://arxiv.org/abs/1810.04805).

    encoder (Path): Folder of the encoder.
    text (str): With one [MASK].
    top (int): How many words to give.
    RETURNS (list[tuple[str, float]] | None): Wordpieces and their probabilities, the most probable first; None if the
        encoder has no head for that.
    RAISES (StepError): If the text has not one [MASK], or one beyond what the encoder reads.
    """
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    if text.count(MASK) != 1:
        raise StepError(f"The text has {text.count(MASK)} times {MASK}.", f"Put {MASK} once, where the word shall be.")
    model, loaded = AutoModelForMaskedLM.from_pretrained(encoder, output_loading_info=True)
    if any("predictions" in name for name in loaded["missing_keys"]):
        return None
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    inputs = tokenizer(text.replace(MASK, tokenizer.mask_token), return_tensors="pt", truncation=True)
    places = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero()
    if not len(places):
        raise StepError(f"{MASK} is beyond what the encoder reads.", "Shorten the text.")
    with torch.inference_mode():
        probabilities = model.eval()(**inputs).logits[0, places[0, 0]].softmax(0)
    best = probabilities.topk(min(top, len(probabilities)))
    words = tokenizer.convert_ids_to_tokens(best.indices.tolist())
    return list(zip(words, best.values.tolist(), strict=True))
