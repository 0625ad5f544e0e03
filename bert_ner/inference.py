"""The encoder in use, in the fastest dtype that the processor computes in exactly enough.

spaCy's registry gets `bert_ner.Inference.v2`, which the transformer of encoder.py looks up there, and the component
`bert_ner_cleaner_v1`, the last one in use. A wheel of the pipeline has a copy of this file. Nothing here decides the
weights of a model, so that a change retrains nothing.
"""

from __future__ import annotations

import importlib
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from spacy.language import Language
from spacy.tokens import Doc
from spacy.util import registry
from spacy_transformers.data_classes import WordpieceBatch
from torch.nn import functional
from transformers import MODEL_MAPPING

if hasattr(os, "register_at_fork"):  # the other threads do not survive a fork, and waiting for them never ends
    os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))

DTYPES = ("auto", "float32", "bfloat16", "int8")
DTYPE_VARIABLE = "BERT_NER_DTYPE"
CPU_WORDPIECES = 512  # a sub-batch: what a layer computes stays in the caches of a core
GPU_WORDPIECES = 16384
SHIFT = 60  # what is subtracted from logits: the exponential function of -60 is well above the smallest number

# Private parts of other libraries
#
# This was checked with spacy 3.8.18, spacy-transformers 1.4.0, transformers 4.53.2, thinc 8.3.14 and torch 2.13.0.
# - `no_init_weights` of transformers has moved between versions. Without it, a pipeline loads more slowly.
# - `torch.ops.onednn` promises no signature. Where its operators refuse or compute wrong numbers, `resolve_dtype` warns
#   and the pipeline computes in float32.
# - `torch.ops.mkldnn` promises none either. Where it is gone or wrong, PyTorch's public operators do the same, more
#   slowly.
# - `_BertLayers` names the modules of transformers' BertModel. For other classes, and where a module is missing, the
#   model of transformers computes itself.


def _without_initialisation() -> AbstractContextManager[Any]:
    """Give a context in which transformers draws no random weights, or one that does nothing where that is gone."""
    for place in ("transformers.modeling_utils", "transformers.initialization"):
        try:
            context: AbstractContextManager[Any] = importlib.import_module(place).no_init_weights()
        except (ImportError, AttributeError):
            continue
        return context
    return nullcontext()


@registry.misc("bert_ner.Inference.v2")  # type: ignore[untyped-decorator,unused-ignore]
class Inference:
    """The forward pass in use, on a copy of the encoder that is in the dtype wanted.

    Windows are sorted by their number of wordpieces, and need little padding in sub-batches of about equal ones. On a
    CPU, sub-batches are computed side by side, each by one thread, since then no thread waits for another within a
    layer. Where there are too few of them, all threads share the work of each.

    It holds nothing that belongs to one call, so that several threads can use one model.

    dtype (str): One of DTYPES.
    on_gpu (bool): Whether the model computes on a GPU.
    RAISES (ValueError): If there is no such dtype, or this machine has no instructions for it.
    """

    def __init__(self, dtype: str, on_gpu: bool) -> None:
        self.dtype = resolve_dtype(os.environ.get(DTYPE_VARIABLE) or dtype, on_gpu)
        self.__setstate__({"dtype": self.dtype})

    def __getstate__(self) -> dict[str, Any]:
        return {"dtype": self.dtype}  # a process that gets the model makes its own copies and threads

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.dtype = state["dtype"]
        # By the encoder that they are made of: this object belongs to all copies of a model.
        self.copies: WeakKeyDictionary[torch.nn.Module, Callable[..., torch.Tensor]] = WeakKeyDictionary()
        self.process = os.getpid()
        self.pools: dict[int, ThreadPoolExecutor] = {}  # by the number of threads

    def forget(self, encoder: torch.nn.Module) -> None:
        """Forget the copy of an encoder whose weights are about to change."""
        self.copies.pop(encoder, None)

    def compute(self, encoder: Any, wordpieces: WordpieceBatch) -> torch.Tensor:
        """Compute the last hidden states of windows.

        encoder (transformers.PreTrainedModel): The encoder, in float32.
        wordpieces (WordpieceBatch): The wordpieces of the windows.
        RETURNS (torch.Tensor): Shape (windows, longest window, width), float32. What stands behind a shorter window
            means nothing.
        """
        if self.process != os.getpid():
            self.process, self.pools = os.getpid(), {}  # its threads did not survive the fork
        copied = self.copies.get(encoder)
        if copied is None:
            copied = self.copies[encoder] = copy_encoder(encoder, self.dtype)
        device = encoder.device
        inputs = {"input_ids": wordpieces.input_ids, "attention_mask": wordpieces.attention_mask}
        if wordpieces.token_type_ids is not None:
            inputs["token_type_ids"] = wordpieces.token_type_ids
        lengths = wordpieces.attention_mask.sum(axis=1).astype(int)
        hidden = torch.empty(*wordpieces.input_ids.shape, encoder.config.hidden_size, device=device)

        @torch.inference_mode()
        def work(rows: np.ndarray) -> None:
            longest = lengths[rows[-1]]
            arrays = {name: array[rows, :longest] for name, array in inputs.items()}
            tensors = {name: torch.from_numpy(array).to(device, torch.long) for name, array in arrays.items()}
            with torch.autocast(device.type, torch.float16, enabled=self.dtype == "mixed"):
                vectors = copied(**tensors)
            places = torch.from_numpy(rows).to(device)
            hidden[places, :longest] = vectors.float()
            hidden[places, longest:] = 0

        threads, pool = torch.get_num_threads(), None
        if device.type != "cpu":
            budget = GPU_WORDPIECES
        elif threads > 1 and lengths.sum() >= threads * CPU_WORDPIECES:
            pool = self.pools.get(threads) or self.pools.setdefault(threads, _create_pool(threads))
            budget = CPU_WORDPIECES
        else:
            budget = threads * CPU_WORDPIECES
        batches = [*sub_batches(lengths, budget)][::-1]  # the longest first, so that threads end at about one time
        for _ in pool.map(work, batches) if pool else map(work, batches):
            pass
        return hidden

    @staticmethod
    def is_bert(encoder: Any) -> bool:
        """Tell whether an encoder has exactly the layers of BERT, which this project computes itself.

        encoder (transformers.PreTrainedModel): The encoder.
        RETURNS (bool): Whether it has.
        """
        config = encoder.config
        return (
            type(encoder).__name__ == "BertModel"
            and (config.hidden_act, config.position_embedding_type) == ("gelu", "absolute")
            and not (config.is_decoder or config.add_cross_attention)
        )

    @staticmethod
    def create_encoder(config: Any) -> Any:
        """Make an encoder whose weights are loaded next: drawing random ones before would take most of the time.

        The class is looked up by its config, since AutoModel would import every architecture of transformers first.

        config (transformers.PretrainedConfig): Its config.
        RETURNS (transformers.PreTrainedModel): The encoder.
        """
        with _without_initialisation():
            return MODEL_MAPPING[type(config)](config)


def _create_pool(threads: int) -> ThreadPoolExecutor:
    """Create threads each of which does all of its work in PyTorch alone."""
    pool = ThreadPoolExecutor(threads, "bert_ner", initializer=torch.set_num_threads, initargs=(1,))
    everyone_there = threading.Barrier(threads)
    for ready in [pool.submit(everyone_there.wait) for _ in range(threads)]:
        ready.result()
    # What PyTorch is told in a thread holds for that thread, and for those which ask it for the first time later on.
    torch.set_num_threads(threads)
    return pool


# Computing


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


def copy_encoder(encoder: Any, dtype: str) -> Callable[..., torch.Tensor]:
    """Copy an encoder to predict with. The copy shares those weights that are in the dtype wanted already.

    encoder (transformers.PreTrainedModel): The encoder, in float32.
    dtype (str): As `resolve_dtype` returns it.
    RETURNS (Callable[..., torch.Tensor]): Gives the last hidden states, (windows, wordpieces, width). It takes the
        encoder's own `input_ids`, `attention_mask` and, if they are not all 0, `token_type_ids`: (windows, wordpieces),
        int64.
    """
    if encoder.device.type == "cpu" and Inference.is_bert(encoder):
        return _BertLayers(encoder, dtype)
    # A config as it is stored says nothing of attention, and then transformers takes the fused one wherever it has it.
    config = type(encoder.config).from_dict(encoder.config.to_dict())
    copied = Inference.create_encoder(config).eval()
    copied.load_state_dict(encoder.state_dict(), assign=True)
    copied.to(encoder.device)  # the numbers of positions, which are not stored
    if dtype == "bfloat16":
        copied.bfloat16()
    if dtype == "int8":
        for module in list(copied.modules()):
            for name, child in module.named_children():
                if isinstance(child, torch.nn.Linear):
                    setattr(module, name, _Int8Linear(child.weight, child.bias))
    return lambda *inputs, **named: copied(*inputs, **named).last_hidden_state


class _BertLayers:
    """The layers of BERT on a CPU: fewer and larger products than transformers', and attention that is fast there.

    encoder (transformers.BertModel): The encoder, in float32.
    dtype (str): The dtype of the matrix products.
    """

    def __init__(self, encoder: Any, dtype: str) -> None:
        config, embeddings = encoder.config, encoder.embeddings
        self.heads, self.eps = config.num_attention_heads, config.layer_norm_eps
        self.dtype = torch.bfloat16 if dtype == "bfloat16" else torch.float32
        self.fast_attention = dtype == "bfloat16" or (dtype == "int8" and _is_able("bfloat16"))
        # PyTorch's products in float32 are MKL's, which leave half of the width of AVX-512 unused on processors of AMD.
        packed = dtype == "float32" and "avx512" in _instructions() and _is_right("float32")
        linear = _Int8Linear if dtype == "int8" else _PackedLinear if packed else _Linear
        self.words = embeddings.word_embeddings.weight.detach()
        self.places = embeddings.position_embeddings.weight.detach()
        self.types = embeddings.token_type_embeddings.weight.detach()
        self.norm = self._norm(embeddings.LayerNorm, torch.float32)
        self.layers = []
        for layer in encoder.encoder.layer:
            attention, output = layer.attention.self, layer.attention.output
            three = (attention.query, attention.key, attention.value)
            weights = [torch.cat([part.weight for part in three]), torch.cat([part.bias for part in three])]
            rest = [[part.weight, part.bias] for part in (output.dense, layer.intermediate.dense, layer.output.dense)]
            self.layers.append(
                (
                    [linear(*(tensor.detach().to(self.dtype) for tensor in pair)) for pair in (weights, *rest)],
                    self._norm(output.LayerNorm, self.dtype),
                    self._norm(layer.output.LayerNorm, self.dtype),
                )
            )

    def _norm(self, norm: torch.nn.LayerNorm, dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
        weight, bias = norm.weight.detach().to(dtype), norm.bias.detach().to(dtype)
        return lambda x: functional.layer_norm(x, weight.shape, weight, bias, self.eps)

    def __call__(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        types = self.types[0 if token_type_ids is None else token_type_ids]
        vectors = self.norm(self.words[input_ids] + types + self.places[: input_ids.shape[1]]).to(self.dtype)
        hidden = self._compute(vectors, attention_mask, _attend_by_products if self.fast_attention else _attend)
        if self.fast_attention and not hidden.isfinite().all():  # a number was too large for the exponential function
            hidden = self._compute(vectors, attention_mask, _attend)
        return hidden

    def _compute(self, vectors: torch.Tensor, mask: torch.Tensor, attend: Callable[..., torch.Tensor]) -> torch.Tensor:
        count, longest = mask.shape
        x = vectors.view(count * longest, -1)
        for (project, output, rise, fall), norm_attention, norm_output in self.layers:
            projected = project(x).view(count, longest, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            attended = attend(*projected, mask).transpose(1, 2).reshape(count * longest, -1)
            x = norm_attention(output(attended) + x)
            x = norm_output(fall(functional.gelu(rise(x))) + x)
        return x.view(count, longest, -1)


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Attention by PyTorch's own function.

    query, key, value (torch.Tensor): Shape (windows, heads, wordpieces, width of a head).
    mask (torch.Tensor): Shape (windows, wordpieces), 0 for padding.
    RETURNS (torch.Tensor): As `value`.
    """
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None].bool())


def _attend_by_products(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Attention whose softmax is divided by its sum after the product with the values, not before.

    In bfloat16, products are so fast that a softmax takes most of the time of PyTorch's attention. Here a column of
    ones beside the values makes the sum a part of the product, and only the exponential function is left.

    No maximum is subtracted before, but the mean of all keys, so that the largest logit of a query is not below zero,
    and then SHIFT. Where a logit is still above 88, the result is not finite, which the caller has to notice.

    query, key, value, mask: As for `_attend`.
    RETURNS (torch.Tensor): As `value`.
    """
    count, heads, longest, width = value.shape
    dtype = value.dtype
    query, key, value = query.bfloat16(), key.bfloat16(), value.bfloat16()
    kept = mask.to(value.dtype)[:, None, :, None].expand(-1, heads, -1, 1)
    values = torch.cat((value * kept, kept), 3).view(count * heads, longest, width + 1)
    centred = (key - (key * kept).sum(2, keepdim=True) / kept.sum(2, keepdim=True)) * width**-0.5
    query, key = (x.reshape(count * heads, longest, width) for x in (query, centred))
    logits = torch.baddbmm(query.new_full((1, 1, 1), -SHIFT), query, key.transpose(1, 2))
    sums = torch.bmm(logits.exp_(), values).view(count, heads, longest, width + 1)
    return (sums[..., :width] / sums[..., width:]).to(dtype)


class _Linear:
    """A linear layer.

    weight (torch.Tensor): Shape (outputs, inputs).
    bias (torch.Tensor): Shape (outputs,).
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.weight, self.bias)


class _PackedLinear:
    """A linear layer whose weights are laid out beforehand as oneDNN wants them.

    weight, bias: As for `_Linear`.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        self.weight, self.bias = torch.ops.mkldnn._reorder_linear_weight(weight, CPU_WORDPIECES), bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return product


class _Int8Linear(torch.nn.Module):
    """A linear layer that multiplies 8 bit integers: its weights have a scale for each output.

    The inputs have a range for each token, as in ZeroQuant (Yao et al. 2022, https://arxiv.org/abs/2206.01861), which
    loses little. PyTorch's own dynamic quantisation has one range for the batch, which a single outlying token spoils.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        weight = weight.detach()
        self.scale = (weight.abs().amax(1) / (127 if "vnni" in _instructions() else 63)).clamp_(min=1e-12)
        rounded = (weight / self.scale[:, None]).round_()
        self.sums = rounded.sum(1) * self.scale
        self.zeros = torch.zeros(len(weight), dtype=torch.int32)
        self.packed = torch.ops.onednn.qlinear_prepack(rounded.to(torch.int8), None)
        self.bias = torch.zeros(len(weight)) if bias is None else bias.detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (torch.Tensor): Shape (..., inputs), float32. RETURNS (torch.Tensor): Shape (..., outputs), float32."""
        rows = x.reshape(-1, x.shape[-1])
        lowest = rows.amin(1, keepdim=True)  # `aminmax` of rows is many times as slow as these two
        step = (rows.amax(1, keepdim=True) - lowest).div_(255).clamp_(min=1e-12)
        # The conversion cuts fractions off, so that a half is added.
        rounded = torch.mul(rows, 1 / step).add_(0.5 - lowest / step).to(torch.uint8)
        products = torch.ops.onednn.qlinear_pointwise(
            rounded, 1.0, 0, self.packed, self.scale, self.zeros, None, 1.0, 0, torch.float32, "none", [], "none"
        )
        # x·W + b, where x = step · rounded + lowest
        return torch.addcmul(torch.addcmul(self.bias, lowest, self.sums), products, step).view(*x.shape[:-1], -1)


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


# The instructions that oneDNN has left under each value of the variables that limit it. Others limit nothing here.
_LIMITS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("SSE41", "AVX"), ()),
    "AVX2": ("avx2",),
    "AVX2_VNNI": ("avx2", "vnni"),
    "AVX512_CORE": ("avx2", "avx512"),
    "AVX512_CORE_VNNI": ("avx2", "avx512", "vnni"),
}


def _instructions() -> tuple[str, ...]:
    """List those instructions of the processor that matter here."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call,unused-ignore]
        return ()
    ask = getattr(torch.cpu, "get_capabilities", dict)  # an earlier PyTorch does not have it
    capabilities: dict[str, bool] = ask()
    named = {
        "avx2": ("avx2",),
        "avx512": ("avx512_f",),
        "vnni": ("avx512_vnni", "avx_vnni", "amx_int8"),
        "bfloat16": ("avx512_bf16", "amx_bf16"),
    }
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    allowed = _LIMITS.get(limit, tuple(named))
    return tuple(name for name, flags in named.items() if name in allowed and any(map(capabilities.get, flags)))


def name_instructions() -> str:
    """Name the most useful instructions of the processor for the products of an encoder.

    RETURNS (str): "bfloat16", "vnni" (for integers), "avx2", or "none" of these.
    """
    return next((name for name in ("bfloat16", "vnni", "avx2") if name in _instructions()), "none")


def _fast_dtypes() -> list[str]:
    """List the dtypes that the processor computes faster in than in float32, the best first."""
    needed = {"bfloat16": "bfloat16", "int8": "avx2"}
    return [dtype for dtype, name in needed.items() if name in _instructions()]


def _is_able(dtype: str) -> bool:
    """Tell whether the processor is fast in a dtype, and right."""
    return dtype in _fast_dtypes() and _is_right(dtype)


@cache
def _is_right(dtype: str) -> bool:
    """Compute a small product in this dtype, and tell whether it is right on this processor.

    The factors are the largest that occur, because without the right instructions the sums of integers saturate.
    """
    generator = torch.Generator().manual_seed(0)
    weight, inputs = (torch.rand(*shape, generator=generator) for shape in ((32, 64), (4, 64)))
    weight, bias = 0.5 + 0.5 * weight, torch.ones(32)
    layer: Callable[..., Any] = {"float32": _PackedLinear, "int8": _Int8Linear}.get(dtype, _Linear)
    used = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    with torch.inference_mode():
        expected = functional.linear(inputs, weight, bias)
        try:
            product = layer(weight.to(used), bias.to(used))(inputs.to(used))
        except (RuntimeError, AttributeError, TypeError):  # the operator is missing, refuses, or has other arguments
            return False
        return bool((product.float() - expected).norm() < 0.02 * expected.norm())


# Cleaning


def clean(doc: Doc) -> Doc:
    """Drop the tensors of a document, which would fill the memory of who keeps documents.

    spaCy's `doc_cleaner` can only put None in the place of `doc.tensor`, and then `doc.has_vector`, `span.as_doc()` and
    all else that asks for vectors raises an AttributeError.

    doc (Doc): The document, which is changed.
    RETURNS (Doc): The document.
    """
    doc.tensor = np.zeros(0, dtype="float32")
    if Doc.has_extension("trf_data"):
        doc._.trf_data = None
    return doc


if not Language.has_factory("bert_ner_cleaner_v1"):
    Language.component("bert_ner_cleaner_v1", func=clean)
