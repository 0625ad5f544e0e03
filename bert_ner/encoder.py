"""The transformer of the pipeline.

spaCy's registry gets the architectures `bert_ner.TransformerModel.v4` and `bert_ner.Tok2VecTransformer.v2`. What reads
texts is in wordpieces.py, what computes in use in inference.py, and what trains the encoder on CPUs in finetuning.py. A
wheel of the pipeline has a copy of this file.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from spacy.tokens import Doc, Span
from spacy.util import registry
from spacy_transformers.data_classes import FullTransformerBatch, HFObjects, TransformerData, WordpieceBatch
from spacy_transformers.layers import split_trf_batch, trfs2arrays
from spacy_transformers.layers.transformer_model import TransformerModel, set_pytorch_transformer
from spacy_transformers.util import maybe_flush_pytorch_cache
from thinc.api import Model, chain, get_torch_default_device, torch2xp
from thinc.types import Floats2d, Ragged
from transformers import AutoModel
from transformers.modeling_outputs import BaseModelOutput

# Private parts of other libraries
#
# This was checked with spacy 3.8.18, spacy-transformers 1.4.0, transformers 4.53.2, thinc 8.3.14 and torch 2.13.0.
# - `maybe_flush_pytorch_cache` and `set_pytorch_transformer` of spacy-transformers have public names, but no
#   documentation. Where one of them is gone, the import above fails and names it.
# - `layers[0].shims[0].model_cls` of spacy-transformers' TransformerModel has no documentation. Without it, a pipeline
#   draws random weights before it loads its own, more slowly.


@registry.architectures("bert_ner.TransformerModel.v4")  # type: ignore[untyped-decorator,unused-ignore]
def create_transformer_model(
    name: str,
    get_spans: Callable[[list[Doc]], list[list[Span]]],
    get_spans_in_training: Callable[[list[Doc]], list[list[Span]]],
    case: bool,
    dtype: str,
) -> Model[list[Doc], FullTransformerBatch]:
    """`spacy-transformers.TransformerModel.v3`, as fast as the device allows in training and in use.

    The dtype is that of the matrix products. `auto` is the fastest one that costs no accuracy. On a CPU that is
    bfloat16 where the processor has instructions for it, else int8 from AVX2 on, else float32. On a GPU it is mixed
    float16 and float32, with scaled gradients. Where a small product turns out wrong, the model computes in float32,
    and a warning says so. `int8` is for use only: its training is in float32. Weights are kept and saved in float32.
    The environment variable BERT_NER_DTYPE replaces the argument.

    Training does without dropout of attention weights. Where transformers' own code trains the encoder, it computes
    attention step by step (`eager`), since PyTorch's fused attention has a slow backward pass on CPUs.

    name (str): Folder of the encoder. It is read when a model is initialised, not when a trained one is loaded.
    get_spans (Callable[[list[Doc]], list[list[Span]]]): Gives the windows of each document in use.
    get_spans_in_training (Callable[[list[Doc]], list[list[Span]]]): Gives them in training.
    case (bool): Whether an encoder with an embedding of token types is told the case of words by it. Other encoders
        are not told.
    dtype (str): auto, float32, bfloat16 or int8.
    RETURNS (Model[list[Doc], FullTransformerBatch]): The model, which has the width of the encoder.
    RAISES (ValueError): If there is no such dtype, or this machine has no instructions for it.
    """
    on_gpu = get_torch_default_device().type == "cuda"
    inference = registry.misc.get("bert_ner.Inference.v2")(dtype, on_gpu)
    reader = registry.misc.get("bert_ner.WordpieceReader.v1")()
    return _Transformer(name, get_spans, get_spans_in_training, case, reader, inference)


@registry.architectures("bert_ner.Tok2VecTransformer.v2")  # type: ignore[untyped-decorator,unused-ignore]
def create_tok2vec_transformer(
    name: str,
    get_spans: Callable[[list[Doc]], list[list[Span]]],
    get_spans_in_training: Callable[[list[Doc]], list[list[Span]]],
    case: bool,
    dtype: str,
    pooling: Model[Ragged, Floats2d],
    grad_factor: float,
) -> Model[list[Doc], list[Floats2d]]:
    """A transformer that one component has for itself: what `nlp.replace_listeners` puts in the place of a listener.

    name, get_spans, get_spans_in_training, case, dtype: As for `bert_ner.TransformerModel.v4`.
    pooling (Model[Ragged, Floats2d]): Reduces the vectors of the wordpieces of a token to one.
    grad_factor (float): The share of the gradient that the transformer gets.
    RETURNS (Model[list[Doc], list[Floats2d]]): Gives for each document the vectors of its tokens, (tokens, width).
    RAISES (ValueError): As for `bert_ner.TransformerModel.v4`.
    """
    transformer = create_transformer_model(name, get_spans, get_spans_in_training, case, dtype)
    # The layers have to be nested as `replace_listeners` nests them: stored weights are assigned to them by number.
    return chain(chain(transformer, split_trf_batch()), trfs2arrays(pooling, grad_factor))


def _replace_listener_config(transformer: dict[str, Any], listener: dict[str, Any]) -> dict[str, Any]:
    """Make the config of the transformer that replaces a listener from the configs of both."""
    own = {key: listener[key] for key in ("pooling", "grad_factor")}
    return {**transformer, **own, "@architectures": "bert_ner.Tok2VecTransformer.v2"}


class _Transformer(TransformerModel):  # type: ignore[misc,unused-ignore]
    """spacy-transformers' TransformerModel with another forward pass, which its copies have too.

    name, get_spans, get_spans_in_training, case: As for `create_transformer_model`.
    reader (Any): What reads windows, `bert_ner.WordpieceReader.v1`.
    inference (Any): What computes in use, `bert_ner.Inference.v2`.
    """

    def __init__(
        self, name: str, get_spans: Any, get_spans_in_training: Any, case: bool, reader: Any, inference: Any
    ) -> None:
        super().__init__(
            name,
            get_spans,
            tokenizer_config={"use_fast": True},
            transformer_config={"attention_probs_dropout_prob": 0.0, "attn_implementation": "eager"},
            # of autocast on GPUs, in float16 or bfloat16; only float16 needs scaled gradients
            mixed_precision=inference.dtype in ("mixed", "bfloat16") and get_torch_default_device().type == "cuda",
            grad_scaler_config={"enabled": inference.dtype == "mixed", "init_scale": 2.0**16},
        )
        self.get_spans_in_training = get_spans_in_training
        self.reader = reader
        self.inference = inference
        set_transformer = partial(_set_transformer, cases=reader.CASES if case else 0)
        self.attrs.update(set_transformer=set_transformer, replace_listener_cfg=_replace_listener_config)
        self.replace_callbacks(_Forward(get_spans, get_spans_in_training, reader, inference), init=self.init)
        self.layers[0].shims[0].model_cls = _UninitializedModel

    def copy(self) -> _Transformer:
        """Copy the model with its weights. What the base class makes would have the forward pass of the base class."""
        get_spans, get_spans_in_training = self.attrs["get_spans"], self.get_spans_in_training
        copied = _Transformer("", get_spans, get_spans_in_training, False, self.reader, self.inference)
        plain = Model.copy(self)
        copied.layers[:] = plain.layers
        copied.attrs.update(plain.attrs)
        if plain.has_dim("nO"):
            copied.set_dim("nO", plain.get_dim("nO"))
        return copied


def _set_transformer(model: Model[Any, Any], encoder: HFObjects, cases: int) -> None:
    """Take a pretrained encoder, and clear the path of its folder, which would be saved with the pipeline.

    BERT has an embedding of token types, which tells the first sentence of a pair from the second. Here there are no
    pairs, and the types tell the case of words instead. At first all of them are the type of the first sentence.

    model (Model[Any, Any]): The model.
    encoder (HFObjects): The encoder and its tokenizer.
    cases (int): How many cases the encoder is told; 0 if it is told none.
    """
    types = getattr(getattr(encoder.transformer, "embeddings", None), "token_type_embeddings", None)
    if cases and isinstance(types, torch.nn.Embedding) and types.num_embeddings == 2:
        first = types.weight.detach()[:1]
        types = torch.nn.Embedding(cases, first.shape[1], _weight=first.repeat(cases, 1))
        encoder.transformer.embeddings.token_type_embeddings = types
        encoder.transformer.config.type_vocab_size = cases
    set_pytorch_transformer(model, encoder)
    model.attrs["name"] = encoder.transformer.config.name_or_path = ""


class _UninitializedModel(AutoModel):  # type: ignore[misc,unused-ignore]
    """Makes encoders whose weights are loaded next: drawing random ones before would take most of the time."""

    @classmethod
    def from_config(cls, config: Any) -> Any:
        return registry.misc.get("bert_ner.Inference.v2").create_encoder(config)


class _Forward:
    """The forward pass: as spacy-transformers', but with other windows in training, and computed in a lower dtype.

    It holds nothing that belongs to one call, so that several threads can use one model.

    get_spans, get_spans_in_training: As for `create_transformer_model`.
    reader, inference: As for `_Transformer`.
    """

    def __init__(self, get_spans: Any, get_spans_in_training: Any, reader: Any, inference: Any) -> None:
        self.get_spans = get_spans
        self.get_spans_in_training = get_spans_in_training
        self.reader = reader
        self.inference = inference

    def __call__(
        self, model: Model, docs: list[Doc], is_train: bool
    ) -> tuple[FullTransformerBatch, Callable[[FullTransformerBatch], list[Doc]]]:
        # A copy of a larger model has a plain Model in the place of this one, which lacks these properties.
        tokenizer, encoder = (part.fget(model) for part in (TransformerModel.tokenizer, TransformerModel.transformer))
        maybe_flush_pytorch_cache(chance=model.attrs["flush_cache_chance"])  # draws a random number in any case
        windows = (self.get_spans_in_training if is_train else self.get_spans)(docs)
        windows, wordpieces, align = self.reader.read(tokenizer, docs, windows)
        if getattr(encoder.config, "type_vocab_size", 0) == self.reader.CASES:
            wordpieces.token_type_ids = self.reader.find_cases(docs, wordpieces, align)
        if is_train:
            self.inference.forget(encoder)  # its weights are about to change
            if encoder.device.type == "cpu" and registry.has("misc", "bert_ner.FineTuning.v1"):
                dtype = torch.bfloat16 if self.inference.dtype == "bfloat16" else torch.float32
                train = registry.misc.get("bert_ner.FineTuning.v1")
                hidden, backprop_hidden = train(encoder, wordpieces, dtype, self.inference.is_bert(encoder))
            else:
                hidden, backprop_hidden = self.train_by_libraries(model, encoder, wordpieces)
        else:
            hidden, backprop_hidden = self.inference.compute(encoder, wordpieces), lambda _: []

        def backprop(d_batch: FullTransformerBatch) -> list[Doc]:
            backprop_hidden(d_batch.model_output)
            return docs

        return _split(windows, wordpieces, align, hidden), backprop

    def train_by_libraries(
        self, model: Model, encoder: Any, wordpieces: WordpieceBatch
    ) -> tuple[torch.Tensor, Callable[..., Any]]:
        # thinc switches autocast on or off itself, and takes over the dtype that is set here
        lower = torch.bfloat16 if self.inference.dtype == "bfloat16" else torch.float16
        with torch.autocast(encoder.device.type, lower, enabled=False):
            output, backprop = model.layers[0](wordpieces, True)
        return output.last_hidden_state, backprop


def _split(
    windows: list[list[Span]], wordpieces: WordpieceBatch, align: Ragged, hidden: torch.Tensor
) -> FullTransformerBatch:
    """Split a batch by document, as spacy-transformers does, but without its look at each token.

    windows (list[list[Span]]): The windows of each document. They cover all its tokens.
    wordpieces (WordpieceBatch): Their wordpieces.
    align (Ragged): The wordpieces of each token, as indices into the wordpieces of the batch.
    hidden (torch.Tensor): The last hidden states, (windows, longest window, width).
    RETURNS (FullTransformerBatch): The batch.
    """
    arrays = torch2xp(hidden)
    firsts = np.cumsum([0, *align.lengths])  # of the wordpieces of each token
    data, window, token = [], 0, 0
    for spans in windows:
        if not spans:
            data.append(TransformerData.empty())
            continue
        rows, tokens = slice(window, window + len(spans)), slice(token, token + len(spans[0].doc))
        own = align.dataXd[firsts[tokens.start] : firsts[tokens.stop]] - window * hidden.shape[1]
        data.append(
            TransformerData(
                wordpieces=wordpieces[rows],
                model_output=BaseModelOutput(last_hidden_state=arrays[rows]),
                align=Ragged(own, align.lengths[tokens]),
            )
        )
        window, token = rows.stop, tokens.stop
    return FullTransformerBatch(windows, wordpieces, BaseModelOutput(last_hidden_state=hidden), align, data)
