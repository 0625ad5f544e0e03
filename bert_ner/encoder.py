"""The windows and the transformer of the pipeline, in every dtype that its processor computes in fast.

spaCy's registry gets the windows `bert_ner.EqualSpans.v1` and the architectures `bert_ner.TransformerModel.v3` and
`bert_ner.Tok2VecTransformer.v1`. A wheel of the pipeline has a copy of this file.
"""

from __future__ import annotations

import importlib
import itertools
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from spacy.tokens import Doc, Span
from spacy.util import registry
from spacy_transformers import registry as transformers_registry
from spacy_transformers.align import get_alignment_via_offset_mapping
from spacy_transformers.data_classes import FullTransformerBatch, HFObjects, WordpieceBatch
from spacy_transformers.layers import split_trf_batch, trfs2arrays
from spacy_transformers.layers.transformer_model import (
    TransformerModel,
    huggingface_tokenize,
    set_pytorch_transformer,
)
from spacy_transformers.truncate import truncate_oversize_splits
from spacy_transformers.util import maybe_flush_pytorch_cache
from thinc.api import Model, chain, get_torch_default_device
from thinc.types import Floats2d, Ragged
from transformers import AutoModel
from transformers.modeling_outputs import BaseModelOutput

# Private parts of other libraries
#
# This was checked with spacy 3.8.18, spacy-transformers 1.4.0, transformers 4.53.2, thinc 8.3.14 and torch 2.13.0.
# - The parts of spacy-transformers' own forward pass (`huggingface_tokenize`, `get_alignment_via_offset_mapping`,
#   `truncate_oversize_splits`, `maybe_flush_pytorch_cache`) and `set_pytorch_transformer` have public names, but no
#   documentation. Where one of them is gone, the import above fails and names it.
# - `no_init_weights` of transformers has moved between versions. Without it, a pipeline loads more slowly.
# - `torch.ops.onednn` promises no signature. Where its operators refuse or compute wrong numbers, `resolve_dtype` warns
#   and the pipeline computes in float32.


def _without_initialisation() -> AbstractContextManager[Any]:
    """Give a context in which transformers draws no random weights, or one that does nothing where that is gone."""
    for place in ("transformers.modeling_utils", "transformers.initialization"):
        try:
            context: AbstractContextManager[Any] = importlib.import_module(place).no_init_weights()
        except (ImportError, AttributeError):
            continue
        return context
    return nullcontext()


class _Int8Linear(torch.nn.Module):
    """A linear layer that multiplies 8 bit integers: its weights have a scale for each output.

    The inputs have a range for each token, as in ZeroQuant (Yao et al. 2022, https://arxiv.org/abs/2206.01861), which
    loses little. PyTorch's own dynamic quantisation has one range for the batch, which a single outlying token spoils.
    """

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.scale = (weight.abs().amax(1) / 127).clamp_(min=1e-12)
        rounded = (weight / self.scale[:, None]).round_()
        self.sums = rounded.sum(1) * self.scale
        self.zeros = torch.zeros(len(weight), dtype=torch.int32)
        self.packed = torch.ops.onednn.qlinear_prepack(rounded.to(torch.int8), None)
        self.bias = torch.zeros(len(weight)) if linear.bias is None else linear.bias.detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (torch.Tensor): Shape (..., inputs), float32. RETURNS (torch.Tensor): Shape (..., outputs), float32."""
        rows = x.reshape(-1, x.shape[-1])
        lowest = rows.amin(1, keepdim=True)
        step = (rows.amax(1, keepdim=True) - lowest).div_(255).clamp_(min=1e-12)
        rounded = torch.sub(rows, lowest).div_(step).round_().to(torch.uint8)
        products = torch.ops.onednn.qlinear_pointwise(
            rounded, 1.0, 0, self.packed, self.scale, self.zeros, None, 1.0, 0, torch.float32, "none", [], "none"
        )
        # x·W + b, where x = step · rounded + lowest
        return torch.addcmul(torch.addcmul(self.bias, lowest, self.sums), products, step).view(*x.shape[:-1], -1)


# Windows


@transformers_registry.span_getters("bert_ner.EqualSpans.v1")  # type: ignore[untyped-decorator,unused-ignore]
def create_equal_spans(size: int, overlap: int) -> Callable[[list[Doc]], list[list[Span]]]:
    """Cut each document into the fewest windows of at most `size` tokens, whose lengths differ by at most one token.

    Equal windows leave no short rest without context, and they need less padding.

    size (int): The most tokens in a window.
    overlap (int): The number of tokens that a window shares with the next, below `size`. The vectors of such a token
        are averaged.
    RETURNS (Callable[[list[Doc]], list[list[Span]]]): Gives the windows of each document. An empty one has none.
    RAISES (ValueError): If the overlap is not between 0 and `size`.
    """
    if not 0 <= overlap < size:
        raise ValueError(f"The overlap of windows of {size} tokens is {overlap}: choose one from 0 to {size - 1}.")

    def get_windows(docs: list[Doc]) -> list[list[Span]]:
        windows = []
        for doc in docs:
            number = max(1, -(-(len(doc) - overlap) // (size - overlap))) if len(doc) else 0
            starts = [(len(doc) - overlap) * i // number for i in range(number + 1)] if number else []
            windows.append([doc[start : end + overlap] for start, end in itertools.pairwise(starts)])
        return windows

    return get_windows


def _fit_windows(get_spans: Any, tokenizer: Any, docs: list[Doc]) -> list[list[Span]]:
    """Make the windows, and halve those with more wordpieces than the encoder takes, which would lose the last ones.

    A single token may still have too many wordpieces. It loses only its own.
    """
    windows = [list(spans) for spans in get_spans(docs)]
    limit = tokenizer.model_max_length - tokenizer.num_special_tokens_to_add()
    # A wordpiece has at least a byte, but not always a character: BERT decomposes the syllables of Hangul.
    suspects = [(spans, s) for spans in windows for s in spans if len(s) > 1 and len(s.text.encode()) >= limit]
    while suspects:
        texts = [span.text for _, span in suspects]
        # The tokenizer of the library below is faster, since it makes no lists for Python.
        encodings = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
        halves = []
        for (spans, span), wordpieces in zip(suspects, encodings, strict=True):
            if sum(wordpieces.attention_mask) > limit:
                i, middle = spans.index(span), len(span) // 2
                spans[i : i + 1] = [span[:middle], span[middle:]]
                halves += [(spans, half) for half in spans[i : i + 2] if len(half) > 1]
        suspects = halves
    return windows


# The transformer

DTYPES = ("auto", "float32", "bfloat16", "int8")
DTYPE_VARIABLE = "BERT_NER_DTYPE"


@registry.architectures("bert_ner.TransformerModel.v3")  # type: ignore[untyped-decorator,unused-ignore]
def create_transformer_model(
    name: str,
    get_spans: Callable[[list[Doc]], list[list[Span]]],
    get_spans_in_training: Callable[[list[Doc]], list[list[Span]]],
    dtype: str,
) -> Model[list[Doc], FullTransformerBatch]:
    """`spacy-transformers.TransformerModel.v3`, as fast as the device allows in training and in use.

    The dtype is that of the matrix products. `auto` is the fastest one that costs no accuracy. On a CPU that is
    bfloat16 where the processor has instructions for it, else int8 where it has instructions for that, else float32. On
    a GPU it is mixed float16 and float32, with scaled gradients. Where a small product turns out wrong, the model
    computes in float32, and a warning says so. `int8` is for use only: its training is in float32. Weights are kept and
    saved in float32. The environment variable BERT_NER_DTYPE replaces the argument.

    Training does without dropout of attention weights, and it computes attention step by step (`eager`), since
    PyTorch's fused attention has a slow backward pass on CPUs.

    name (str): Folder of the encoder. It is read when a model is initialised, not when a trained one is loaded.
    get_spans (Callable[[list[Doc]], list[list[Span]]]): Gives the windows of each document in use.
    get_spans_in_training (Callable[[list[Doc]], list[list[Span]]]): Gives them in training.
    dtype (str): One of DTYPES.
    RETURNS (Model[list[Doc], FullTransformerBatch]): The model, which has the width of the encoder.
    RAISES (ValueError): If there is no such dtype, or this machine has no instructions for it.
    """
    on_gpu = get_torch_default_device().type == "cuda"
    return _Transformer(
        name, get_spans, get_spans_in_training, resolve_dtype(os.environ.get(DTYPE_VARIABLE) or dtype, on_gpu)
    )


@registry.architectures("bert_ner.Tok2VecTransformer.v1")  # type: ignore[untyped-decorator,unused-ignore]
def create_tok2vec_transformer(
    name: str,
    get_spans: Callable[[list[Doc]], list[list[Span]]],
    get_spans_in_training: Callable[[list[Doc]], list[list[Span]]],
    dtype: str,
    pooling: Model[Ragged, Floats2d],
    grad_factor: float,
) -> Model[list[Doc], list[Floats2d]]:
    """A transformer that one component has for itself: what `nlp.replace_listeners` puts in the place of a listener.

    name, get_spans, get_spans_in_training, dtype: As for `bert_ner.TransformerModel.v3`.
    pooling (Model[Ragged, Floats2d]): Reduces the vectors of the wordpieces of a token to one.
    grad_factor (float): The share of the gradient that the transformer gets.
    RETURNS (Model[list[Doc], list[Floats2d]]): Gives for each document the vectors of its tokens, (tokens, width).
    RAISES (ValueError): As for `bert_ner.TransformerModel.v3`.
    """
    transformer = create_transformer_model(name, get_spans, get_spans_in_training, dtype)
    # The layers have to be nested as `replace_listeners` nests them: stored weights are assigned to them by number.
    return chain(chain(transformer, split_trf_batch()), trfs2arrays(pooling, grad_factor))


def _replace_listener_config(transformer: dict[str, Any], listener: dict[str, Any]) -> dict[str, Any]:
    """Make the config of the transformer that replaces a listener from the configs of both."""
    own = {key: listener[key] for key in ("pooling", "grad_factor")}
    return {**transformer, **own, "@architectures": "bert_ner.Tok2VecTransformer.v1"}


class _Transformer(TransformerModel):  # type: ignore[misc,unused-ignore]
    """spacy-transformers' TransformerModel with another forward pass, which its copies have too.

    name, get_spans, get_spans_in_training: As for `create_transformer_model`.
    dtype (str): As `resolve_dtype` returns it.
    """

    def __init__(self, name: str, get_spans: Any, get_spans_in_training: Any, dtype: str) -> None:
        super().__init__(
            name,
            get_spans,
            tokenizer_config={"use_fast": True},
            transformer_config={"attention_probs_dropout_prob": 0.0, "attn_implementation": "eager"},
            mixed_precision=dtype == "mixed",
            grad_scaler_config={"init_scale": 2.0**16},
        )
        self.dtype = dtype
        self.get_spans_in_training = get_spans_in_training
        self.attrs.update(set_transformer=_set_transformer, replace_listener_cfg=_replace_listener_config)
        self.replace_callbacks(_Forward(get_spans, get_spans_in_training, dtype), init=self.init)
        self.layers[0].shims[0].model_cls = _UninitializedModel

    def copy(self) -> _Transformer:
        """Copy the model with its weights. What the base class makes would have the forward pass of the base class."""
        copied = _Transformer("", self.attrs["get_spans"], self.get_spans_in_training, self.dtype)
        plain = Model.copy(self)
        copied.layers[:] = plain.layers
        copied.attrs.update(plain.attrs)
        if plain.has_dim("nO"):
            copied.set_dim("nO", plain.get_dim("nO"))
        return copied


def _set_transformer(model: Model[Any, Any], encoder: HFObjects) -> None:
    """Take a pretrained encoder, and clear the path of its folder, which would be saved with the pipeline."""
    set_pytorch_transformer(model, encoder)
    model.attrs["name"] = encoder.transformer.config.name_or_path = ""


class _UninitializedModel(AutoModel):  # type: ignore[misc,unused-ignore]
    """Makes encoders whose weights are loaded next: drawing random ones before would take most of the time."""

    @classmethod
    def from_config(cls, config: Any, **settings: Any) -> Any:
        with _without_initialisation():
            return AutoModel.from_config(config, **settings)


class _Forward:
    """The forward pass: as spacy-transformers', but with other windows in training, and computed in a lower dtype.

    In use, the windows are sorted by their number of wordpieces and go through a copy of the encoder in sub-batches of
    about equal ones, which need little padding. That copy is in the dtype wanted, and has PyTorch's fused attention
    where the architecture knows it.

    It holds nothing that belongs to one call, so that several threads can use one model.

    get_spans, get_spans_in_training: As for `create_transformer_model`.
    dtype (str): As `resolve_dtype` returns it.
    """

    def __init__(self, get_spans: Any, get_spans_in_training: Any, dtype: str) -> None:
        self.get_spans = get_spans
        self.get_spans_in_training = get_spans_in_training
        self.dtype = dtype
        # The copies by the encoder that they are made of: this object is the forward pass of all copies of a model.
        self.copies: WeakKeyDictionary[torch.nn.Module, Any] = WeakKeyDictionary()
        self.process = os.getpid()

    def __call__(
        self, model: Model, docs: list[Doc], is_train: bool
    ) -> tuple[FullTransformerBatch, Callable[[FullTransformerBatch], list[Doc]]]:
        # A copy of a larger model has a plain Model in the place of this one, which lacks these properties.
        tokenizer, encoder = (part.fget(model) for part in (TransformerModel.tokenizer, TransformerModel.transformer))
        windows = _fit_windows(self.get_spans_in_training if is_train else self.get_spans, tokenizer, docs)
        flat = [span for spans in windows for span in spans]
        maybe_flush_pytorch_cache(chance=model.attrs["flush_cache_chance"])  # draws a random number in any case
        encoding = huggingface_tokenize(tokenizer, [span.text for span in flat])
        wordpieces, align = truncate_oversize_splits(
            WordpieceBatch.from_batch_encoding(encoding),
            get_alignment_via_offset_mapping(flat, encoding["offset_mapping"]),
            tokenizer.model_max_length,
        )
        output, backprop_output = (
            self.train(model, encoder, wordpieces) if is_train else self.predict(encoder, wordpieces)
        )

        def backprop(d_batch: FullTransformerBatch) -> list[Doc]:
            backprop_output(d_batch.model_output)
            return docs

        return FullTransformerBatch(spans=windows, wordpieces=wordpieces, model_output=output, align=align), backprop

    def train(self, model: Model, encoder: Any, wordpieces: WordpieceBatch) -> tuple[Any, Callable[..., Any]]:
        self.copies.pop(encoder, None)  # its weights are about to change
        if encoder.device.type == "cpu":
            return self.train_on_cpu(encoder, wordpieces)
        with torch.autocast("cuda", torch.bfloat16, enabled=self.dtype == "bfloat16"):
            result: tuple[Any, Callable[..., Any]] = model.layers[0](wordpieces, True)
            return result

    def train_on_cpu(self, encoder: Any, wordpieces: WordpieceBatch) -> tuple[Any, Callable[..., Any]]:
        _replace_dropout(encoder)
        encoder.train()
        ids, mask = (torch.from_numpy(array).long() for array in (wordpieces.input_ids, wordpieces.attention_mask))
        table = encoder.get_input_embeddings().weight
        vectors = table.detach()[ids].requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == "bfloat16"):
            hidden = encoder(inputs_embeds=vectors, attention_mask=mask).last_hidden_state.float()

        def backprop(d_output: Any) -> list[Any]:
            torch.autograd.backward([hidden], list(d_output.values()))
            # PyTorch's gradient of a lookup is a new table each time, and clearing its pages costs a tenth of training.
            table.grad = torch.zeros_like(table) if table.grad is None else table.grad
            table.grad.index_add_(0, ids.flatten(), vectors.grad.flatten(0, 1))
            return []

        return BaseModelOutput(last_hidden_state=hidden), backprop

    @torch.inference_mode()
    def predict(self, encoder: Any, wordpieces: WordpieceBatch) -> tuple[Any, Callable[..., Any]]:
        if self.process != os.getpid():
            torch.set_num_threads(1)  # the other threads did not survive the fork, and waiting for them never ends
            self.process = os.getpid()
        copied = self.copies.get(encoder)
        if copied is None:
            copied = self.copies[encoder] = copy_encoder(encoder, self.dtype)
        device = encoder.device
        hidden = torch.zeros(*wordpieces.input_ids.shape, encoder.config.hidden_size, device=device)
        with torch.autocast(device.type, torch.float16, enabled=self.dtype == "mixed"):
            for rows, ids, mask in _sub_batches(wordpieces, device):
                output = copied(input_ids=ids, attention_mask=mask).last_hidden_state
                hidden[rows, : ids.shape[1]] = output.float()
        return BaseModelOutput(last_hidden_state=hidden), lambda _: []


# Computing

CPU_WORDPIECES = 512  # a batch, for each thread: then what a layer computes stays in the caches of a core
GPU_WORDPIECES = 16384


def _sub_batches(wordpieces: WordpieceBatch, device: torch.device) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield the indices of some windows, (n,), and their wordpieces and attention mask, (n, longest of them), int64."""
    lengths = wordpieces.attention_mask.sum(axis=1).astype(int)
    budget = CPU_WORDPIECES * torch.get_num_threads() if device.type == "cpu" else GPU_WORDPIECES
    for rows in sub_batches(lengths, budget):
        longest = lengths[rows[-1]]
        arrays = (rows, wordpieces.input_ids[rows, :longest], wordpieces.attention_mask[rows, :longest])
        yield tuple(torch.from_numpy(array).to(device, torch.long) for array in arrays)


def sub_batches(lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Sort sequences by length, and cut them into batches of at most `budget` with padding, or of one sequence.

    lengths (np.ndarray): The lengths of the sequences, (n,), int.
    budget (int): The largest size of a batch, in the unit of the lengths.
    YIELDS (np.ndarray): Indices into `lengths`, int. The last one is that of the longest sequence of the batch.
    """
    order = np.argsort(lengths, kind="stable")
    start = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or (end - start + 1) * lengths[order[end]] > budget:
            yield order[start:end]
            start = end


def copy_encoder(encoder: Any, dtype: str) -> Any:
    """Copy an encoder to predict with. The copy shares those weights that are in the dtype wanted already.

    encoder (transformers.PreTrainedModel): The encoder, in float32.
    dtype (str): As `resolve_dtype` returns it.
    RETURNS (transformers.PreTrainedModel): The copy, in evaluation mode, with PyTorch's fused attention where
        transformers has it for this architecture, else with attention computed step by step.
    """
    # A config as it is stored says nothing of attention, and then transformers takes the fused one wherever it has it.
    config = type(encoder.config).from_dict(encoder.config.to_dict())
    copied = _UninitializedModel.from_config(config).eval()
    copied.load_state_dict(encoder.state_dict(), assign=True)
    if dtype == "bfloat16":
        copied.bfloat16()
    if dtype == "int8":
        for module in list(copied.modules()):
            for name, child in module.named_children():
                if isinstance(child, torch.nn.Linear):
                    setattr(module, name, _Int8Linear(child))
    return copied


def _replace_dropout(encoder: Any) -> None:
    """Put this project's layers in the place of PyTorch's dropout."""
    for module in list(encoder.modules()):
        for name, child in module.named_children():
            if type(child) is torch.nn.Dropout:
                setattr(module, name, _Dropout(child.p))


class _Dropout(torch.nn.Dropout):
    """Dropout by one random byte for each number. On CPUs PyTorch's own takes a sixth of the time of training.

    p (float): The probability, which is rounded to a multiple of 1/256.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dropped = round(256 * self.p)
        if not self.training or not dropped:
            return x
        words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= dropped
        return torch.where(kept, x * (256 / (256 - dropped)), 0)


# The choice of the dtype


def resolve_dtype(asked: str, on_gpu: bool) -> str:
    """Choose the dtype to compute in.

    asked (str): One of DTYPES.
    on_gpu (bool): Whether the model computes on a GPU.
    RETURNS (str): float32, bfloat16 or int8. On a GPU it can be mixed, but not int8.
    RAISES (ValueError): If there is no such dtype, or this machine has no instructions for it.
    """
    if on_gpu:
        able = ["mixed", "float32", *(["bfloat16"] if torch.cuda.is_bf16_supported(including_emulation=False) else [])]
    else:
        fast = _fast_dtypes()
        able = [*(dtype for dtype in fast if _is_right(dtype)), "float32"]
        if asked == "auto" and fast[:1] != able[:1] and fast:
            warnings.warn(
                f"This processor has instructions for {fast[0]}, but products in it fail or are wrong here: "
                "the pipeline computes in float32.",
                stacklevel=2,
            )
            return "float32"
    if asked == "auto":
        return able[0]
    if asked not in able:
        why = "this machine cannot do that" if asked in DTYPES else "there is no such dtype"
        choices = ", ".join(["auto", *(name for name in able if name != "mixed")])
        raise ValueError(
            f"Dtype {asked!r}: {why}. Choose among {choices}, in the config of the transformer's model or by the "
            f"environment variable {DTYPE_VARIABLE}."
        )
    return asked


# The dtypes that oneDNN has left under each value of the variables that limit it. Any other value limits nothing here.
_LIMITS = {
    **dict.fromkeys(("SSE41", "AVX", "AVX2", "AVX512_CORE"), ()),
    **dict.fromkeys(("AVX2_VNNI", "AVX512_CORE_VNNI"), ("int8",)),
}


def _fast_dtypes() -> list[str]:
    """List the dtypes that the processor has instructions for, the best first."""
    ask = getattr(torch.cpu, "get_capabilities", dict)  # an earlier PyTorch does not have it
    capabilities: dict[str, bool] = ask()
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call,unused-ignore]
        return []
    named = {
        "bfloat16": ("avx512_bf16", "amx_bf16"),
        "int8": ("avx512_vnni", "avx_vnni", "amx_int8"),
    }
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    allowed = _LIMITS.get(limit, tuple(named))
    return [name for name, flags in named.items() if name in allowed and any(map(capabilities.get, flags))]


@cache
def _is_right(dtype: str) -> bool:
    """Compute a small product in this dtype, and tell whether it is right on this processor.

    The factors are the largest that occur, because without the right instructions the sums of integers saturate.
    """
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(64, 32)
    linear.weight = torch.nn.Parameter(0.5 + 0.5 * torch.rand(32, 64, generator=generator))
    inputs = torch.rand(4, 64, generator=generator)
    with torch.inference_mode():
        expected = linear(inputs)
        try:
            if dtype == "int8":
                product = _Int8Linear(linear)(inputs)
            else:
                product = torch.nn.functional.linear(
                    inputs.bfloat16(), linear.weight.bfloat16(), linear.bias.bfloat16()
                )
        except (RuntimeError, AttributeError, TypeError):  # the operator is missing, refuses, or has other arguments
            return False
        return bool((product.float() - expected).norm() < 0.02 * expected.norm())
