"""What spaCy's registry must know, in training and inside the packaged pipeline.

`spacy package --code` copies this file into the wheel, so it imports nothing of the project. Registering it again, from
the project or from another wheel, is harmless.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from spacy.language import Language
from spacy.tokens import Doc, Span
from spacy.training import Corpus, Example
from spacy.util import registry
from spacy_transformers import registry as transformers_registry
from spacy_transformers.data_classes import FullTransformerBatch, HFObjects
from spacy_transformers.layers.transformer_model import TransformerModel, set_pytorch_transformer
from thinc.api import Model, get_torch_default_device
from thinc.layers.pytorchwrapper import forward


@registry.readers("bert_ner.Corpus.v1")  # type: ignore[untyped-decorator,unused-ignore]
def create_corpus(path: Path, sentence_starts: bool) -> Callable[[Language], Iterator[Example]]:
    """`spacy.Corpus.v1`, which can give the sentence starts of the corpus to the predicted Docs too.

    The entity recogniser never predicts across a known sentence start, and in training should learn only what it may
    predict. In use the pipeline has to find the starts itself, and so it does in evaluation if they are not given.

    path (Path): A .spacy file or a folder of them.
    sentence_starts (bool): Whether to give them.
    RETURNS (Callable[[Language], Iterator[Example]]): The reader.
    """
    read = Corpus(path)
    if not sentence_starts:
        return read

    def read_with_sentence_starts(nlp: Language) -> Iterator[Example]:
        for example in read(nlp):
            if example.reference.has_annotation("SENT_START"):
                starts = example.get_aligned("SENT_START")
                for token, start in zip(example.predicted, starts, strict=True):
                    token.is_sent_start = None if start is None else start == 1
            yield example

    return read_with_sentence_starts


@registry.callbacks("bert_ner.remove_tagger_without_tags.v1")  # type: ignore[untyped-decorator,unused-ignore]
def create_tagger_remover(path: Path) -> Callable[[Language], Language]:
    """Remove the tagger before a pipeline is initialised, if the corpus has no parts of speech to train it on.

    path (Path): A .spacy file or a folder of them.
    RETURNS (Callable[[Language], Language]): The callback.
    """

    def remove_tagger(nlp: Language) -> Language:
        examples = Corpus(path)(nlp)
        if "tagger" in nlp.pipe_names and not any(example.reference.has_annotation("TAG") for example in examples):
            nlp.remove_pipe("tagger")
        return nlp

    return remove_tagger


@transformers_registry.span_getters("bert_ner.windows.v1")  # type: ignore[untyped-decorator,unused-ignore]
def create_windows(size: int) -> Callable[[list[Doc]], list[list[Span]]]:
    """Cut each document into the fewest windows of at most `size` tokens, all as long as each other but for one token.

    Every token is seen once: overlapping windows (`spacy-transformers.strided_spans.v1`, 128 by 96) cost a third more
    for a document of any length. Equal windows leave no short rest without context, and need less padding.

    size (int): The most tokens in a window. The encoder takes 512 wordpieces; what exceeds them is lost.
    RETURNS (Callable[[list[Doc]], list[list[Span]]]): For each document its windows, none for an empty one.
    """

    def get_windows(docs: list[Doc]) -> list[list[Span]]:
        windows = []
        for doc in docs:
            number = -(-len(doc) // size)
            edges = [len(doc) * i // number for i in range(number + 1)] if number else []
            windows.append([doc[start:end] for start, end in itertools.pairwise(edges)])
        return windows

    return get_windows


@registry.architectures("bert_ner.TransformerModel.v1")  # type: ignore[untyped-decorator,unused-ignore]
def create_transformer_model(
    name: str, get_spans: Callable[[list[Doc]], list[list[Span]]]
) -> Model[list[Doc], FullTransformerBatch]:
    """`spacy-transformers.TransformerModel.v3` with the settings that the device wants.

    On a GPU: mixed precision, with gradients scaled. On a CPU: float32, and in training bfloat16 for matrix products if
    the processor has instructions for it. No dropout of attention weights, and attention written out: PyTorch's fused
    one is slow on CPUs, with dropout or in bfloat16.

    name (str): Folder of the encoder. Read when a model is initialised, not when a trained one is loaded.
    get_spans (Callable[[list[Doc]], list[list[Span]]]): The windows of each document.
    RETURNS (Model[list[Doc], FullTransformerBatch]): The model, of the encoder's width.
    """
    on_gpu = get_torch_default_device().type == "cuda"
    model = TransformerModel(
        name,
        get_spans,
        tokenizer_config={"use_fast": True},
        transformer_config={"attention_probs_dropout_prob": 0.0, "attn_implementation": "eager"},
        mixed_precision=on_gpu,
        grad_scaler_config={"init_scale": 2.0**16},
    )
    model.attrs["set_transformer"] = _set_transformer
    if not on_gpu and _has_bfloat16():
        model.layers[0]._func = _forward_bfloat16
    return model


def _set_transformer(model: Model[Any, Any], encoder: HFObjects) -> None:
    """Take a pretrained encoder, and forget the folder it was read from, which nobody has who gets the pipeline."""
    set_pytorch_transformer(model, encoder)
    model.attrs["name"] = encoder.transformer.config.name_or_path = ""


def _has_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def _forward_bfloat16(model: Model, inputs: Any, is_train: bool) -> tuple[Any, Callable[..., Any]]:
    """The forward pass of thinc's PyTorchWrapper, which knows autocast on GPUs only."""
    with torch.autocast("cpu", torch.bfloat16, enabled=is_train):
        output, backprop = forward(model, inputs, is_train)
    for name, tensor in output.items():  # NumPy has no bfloat16
        output[name] = tensor.float()
    return output, backprop
