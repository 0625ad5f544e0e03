"""What spaCy's registry must know, in training and inside the packaged pipeline.

`spacy package --code` copies this file into the wheel, so it imports nothing of the project. Registering it again, from
the project or from another wheel, is harmless.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from spacy.language import Language
from spacy.tokens import Doc, Span
from spacy.training import Corpus, Example
from spacy.util import registry
from spacy_transformers import registry as transformers_registry
from spacy_transformers.data_classes import FullTransformerBatch, HFObjects, WordpieceBatch
from spacy_transformers.layers.transformer_model import TransformerModel, set_pytorch_transformer
from spacy_transformers.layers.transformer_model import forward as forward_transformer
from thinc.api import Model, Optimizer, get_torch_default_device
from thinc.layers.pytorchwrapper import forward
from torch.optim.adamw import adamw
from transformers import AutoModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import no_init_weights


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
def create_windows(size: int, overlap: int) -> Callable[[list[Doc]], list[list[Span]]]:
    """Cut each document into the fewest windows of at most `size` tokens, all as long as each other but for one token.

    Equal windows leave no short rest without context, and need less padding.

    size (int): The most tokens in a window. The encoder takes 512 wordpieces; what exceeds them is lost.
    overlap (int): How many tokens a window shares with the next, below `size`; their vectors are averaged.
    RETURNS (Callable[[list[Doc]], list[list[Span]]]): For each document its windows, none for an empty one.
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


@registry.optimizers("bert_ner.Adam.v1")  # type: ignore[untyped-decorator,unused-ignore]
def create_optimizer(
    learn_rate: Any, beta1: float, beta2: float, eps: float, weight_decay: float, grad_clip: float
) -> Optimizer:
    """thinc's `Adam.v1` with decoupled weight decay, computed on CPUs by PyTorch's fused kernel.

    It is the same update up to rounding, in one pass over the memory by all threads instead of five by one.

    learn_rate (float or an iterator of floats): Learning rate, or its schedule.
    beta1, beta2, eps, weight_decay (float): See Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101.
    grad_clip (float): The largest norm of the gradient of a parameter, above 0.
    RETURNS (Optimizer): The optimizer.
    """
    return _FusedAdam(
        learn_rate, L2=weight_decay, beta1=beta1, beta2=beta2, eps=eps, grad_clip=grad_clip, use_averages=False
    )


class _FusedAdam(Optimizer):  # type: ignore[misc,unused-ignore]
    __slots__ = ()

    def __call__(self, key: tuple[int, str], weights: Any, gradient: Any, *, lr_scale: float = 1.0) -> tuple[Any, Any]:
        if not isinstance(weights, np.ndarray) or not weights.size:
            updated: tuple[Any, Any] = super().__call__(key, weights, gradient, lr_scale=lr_scale)
            return updated
        if key not in self.mom1:
            self.mom1[key], self.mom2[key] = np.zeros_like(weights), np.zeros_like(weights)
        parameter, slope, mean, variance = map(torch.from_numpy, (weights, gradient, self.mom1[key], self.mom2[key]))
        norm = torch.linalg.vector_norm(slope)
        if norm > self.grad_clip:
            slope.mul_(self.grad_clip / norm)
        adamw(
            [parameter],
            [slope],
            [mean],
            [variance],
            [],
            [torch.tensor(float(self.nr_update[key]))],  # which the kernel increases
            fused=True,
            amsgrad=False,
            beta1=self.b1,
            beta2=self.b2,
            lr=self.learn_rate * lr_scale,
            weight_decay=self.L2,
            eps=self.eps,
            maximize=False,
        )
        self.nr_update[key] += 1
        slope.zero_()
        return weights, gradient


PRECISIONS = ("auto", "float32", "bfloat16", "int8")
PRECISION_VARIABLE = "BERT_NER_PRECISION"
CPU_WORDPIECES = 512  # for each thread: then what a layer computes stays in the caches of a core
GPU_WORDPIECES = 16384


@registry.architectures("bert_ner.TransformerModel.v1")  # type: ignore[untyped-decorator,unused-ignore]
def create_transformer_model(
    name: str,
    get_spans: Callable[[list[Doc]], list[list[Span]]],
    get_spans_in_training: Callable[[list[Doc]], list[list[Span]]],
    precision: str,
) -> Model[list[Doc], FullTransformerBatch]:
    """`spacy-transformers.TransformerModel.v3` as fast as the device allows, in training and in use.

    The precision is that of matrix products. `auto` is the best that costs no accuracy: on a CPU bfloat16 if it has
    instructions for that, else int8 if it has instructions for that, else float32; on a GPU mixed precision, with
    gradients scaled. `int8` is for use; its training is in float32. Weights are kept and saved in float32. The
    environment variable BERT_NER_PRECISION, if it is set, replaces the argument.

    In training, no dropout of attention weights, and attention written out: on CPUs PyTorch's fused attention has a
    slow backward pass.

    name (str): Folder of the encoder. Read when a model is initialised, not when a trained one is loaded.
    get_spans (Callable[[list[Doc]], list[list[Span]]]): The windows of each document, in use.
    get_spans_in_training (Callable[[list[Doc]], list[list[Span]]]): The same in training.
    precision (str): One of PRECISIONS.
    RETURNS (Model[list[Doc], FullTransformerBatch]): The model, of the encoder's width.
    RAISES (ValueError): If there is no such precision, or this machine has no instructions for it.
    """
    on_gpu = get_torch_default_device().type == "cuda"
    precision = resolve_precision(os.environ.get(PRECISION_VARIABLE) or precision, on_gpu)
    model = TransformerModel(
        name,
        get_spans,
        tokenizer_config={"use_fast": True},
        transformer_config={"attention_probs_dropout_prob": 0.0, "attn_implementation": "eager"},
        mixed_precision=precision == "mixed",
        grad_scaler_config={"init_scale": 2.0**16},
    )
    model.attrs["set_transformer"] = _set_transformer
    model._func = partial(_forward_windows, get_spans, get_spans_in_training)
    model.layers[0]._func = _Forward(precision)
    model.layers[0].shims[0].model_cls = _UninitializedModel
    return model


def _forward_windows(
    get_spans: Any, get_spans_in_training: Any, model: Model, docs: list[Doc], is_train: bool
) -> tuple[FullTransformerBatch, Callable[..., Any]]:
    """The forward pass of spacy-transformers' TransformerModel, which takes the windows from model.attrs."""
    model.attrs["get_spans"] = get_spans_in_training if is_train else get_spans
    result: tuple[FullTransformerBatch, Callable[..., Any]] = forward_transformer(model, docs, is_train)
    return result


def resolve_precision(asked: str, on_gpu: bool) -> str:
    """The precision to compute in.

    asked (str): One of PRECISIONS.
    on_gpu (bool): Whether that is to be on a GPU.
    RETURNS (str): float32, bfloat16, int8, or, on a GPU, mixed.
    RAISES (ValueError): If there is no such precision, or this machine has no instructions for it.
    """
    if on_gpu:
        able = ["mixed", "float32", *(["bfloat16"] if torch.cuda.is_bf16_supported(including_emulation=False) else [])]
    else:
        has = torch.cpu.get_capabilities().get
        able = ["float32"]
        if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call,unused-ignore]
            if has("avx512_vnni") or has("avx_vnni") or has("amx_int8"):
                able.insert(0, "int8")
            if has("avx512_bf16") or has("amx_bf16"):
                able.insert(0, "bfloat16")
    if asked == "auto":
        return able[0]
    if asked not in able:
        why = "this machine cannot do that" if asked in PRECISIONS else "there is no such precision"
        choices = ", ".join(["auto", *(name for name in able if name != "mixed")])
        raise ValueError(
            f"Precision {asked!r}: {why}. Choose among {choices}, in the config of the transformer's model or by the "
            f"environment variable {PRECISION_VARIABLE}."
        )
    return asked


def _set_transformer(model: Model[Any, Any], encoder: HFObjects) -> None:
    """Take a pretrained encoder, and forget the folder it was read from, which nobody has who gets the pipeline."""
    set_pytorch_transformer(model, encoder)
    model.attrs["name"] = encoder.transformer.config.name_or_path = ""


class _UninitializedModel(AutoModel):  # type: ignore[misc,unused-ignore]
    """An encoder whose weights are about to be loaded: drawing random ones first would take most of the time."""

    @classmethod
    def from_config(cls, config: Any, **settings: Any) -> Any:
        with no_init_weights():
            return AutoModel.from_config(config, **settings)


class _Forward:
    """The forward pass of spacy-transformers' HFWrapper, in lower precision and, in use, with little padding.

    In use, the windows are sorted by their number of wordpieces and go through a copy of the encoder in sub-batches of
    about equal ones. That copy is in the precision wanted, and its attention is PyTorch's fused one.

    precision (str): As resolve_precision returns it.
    """

    def __init__(self, precision: str) -> None:
        self.precision = precision
        self.source: Any = None
        self.encoder: Any = None
        self.process = os.getpid()

    def __call__(self, model: Model, wordpieces: WordpieceBatch, is_train: bool) -> tuple[Any, Callable[..., Any]]:
        encoder = model.shims[0]._hfmodel.transformer
        if is_train:
            self.encoder = None  # its weights are about to change
            if encoder.device.type == "cpu":
                return self.train(encoder, wordpieces)
            with torch.autocast("cuda", torch.bfloat16, enabled=self.precision == "bfloat16"):
                result: tuple[Any, Callable[..., Any]] = forward(model, wordpieces, is_train)
                return result
        if self.process != os.getpid():
            torch.set_num_threads(1)  # the other threads did not survive the fork, and waiting for them never ends
            self.process = os.getpid()
        if self.encoder is None or self.source is not encoder:
            self.source, self.encoder = encoder, _copy_encoder(encoder, self.precision)
        return BaseModelOutput(last_hidden_state=self.predict(wordpieces)), lambda _: []

    def train(self, encoder: Any, wordpieces: WordpieceBatch) -> tuple[Any, Callable[..., Any]]:
        _replace_dropout(encoder)
        encoder.train()
        ids, mask = (torch.from_numpy(array).long() for array in (wordpieces.input_ids, wordpieces.attention_mask))
        table = encoder.get_input_embeddings().weight
        vectors = table.detach()[ids].requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bfloat16"):
            hidden = encoder(inputs_embeds=vectors, attention_mask=mask).last_hidden_state.float()

        def backprop(d_output: Any) -> list[Any]:
            torch.autograd.backward([hidden], list(d_output.values()))
            # PyTorch's gradient of a lookup is a new table each time, and clearing its pages costs a tenth of training
            table.grad = torch.zeros_like(table) if table.grad is None else table.grad
            table.grad.index_add_(0, ids.flatten(), vectors.grad.flatten(0, 1))
            return []

        return BaseModelOutput(last_hidden_state=hidden), backprop

    @torch.inference_mode()
    def predict(self, wordpieces: WordpieceBatch) -> torch.Tensor:
        device = self.source.device
        hidden = torch.zeros(*wordpieces.input_ids.shape, self.source.config.hidden_size, device=device)
        with torch.autocast(device.type, torch.float16, enabled=self.precision == "mixed"):
            for rows, ids, mask in _sub_batches(wordpieces, device):
                output = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
                hidden[rows, : ids.shape[1]] = output.float()
        return hidden


def _sub_batches(wordpieces: WordpieceBatch, device: torch.device) -> Iterator[tuple[torch.Tensor, ...]]:
    """Indices of windows, shape (n,), their wordpieces and attention mask, both (n, the longest of them), as int64."""
    lengths = wordpieces.attention_mask.sum(axis=1).astype(int)
    budget = CPU_WORDPIECES * torch.get_num_threads() if device.type == "cpu" else GPU_WORDPIECES
    for rows in sub_batches(lengths, budget):
        longest = lengths[rows[-1]]
        arrays = (rows, wordpieces.input_ids[rows, :longest], wordpieces.attention_mask[rows, :longest])
        yield tuple(torch.from_numpy(array).to(device, torch.long) for array in arrays)


def sub_batches(lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Sort sequences by length, and cut them into batches of at most `budget` with padding, or of one sequence.

    lengths (np.ndarray): Of the sequences, shape (n,), int.
    budget (int): In the unit of the lengths.
    YIELDS (np.ndarray): Indices into `lengths`, int; the last is that of the longest sequence of the batch.
    """
    order = np.argsort(lengths, kind="stable")
    start = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or (end - start + 1) * lengths[order[end]] > budget:
            yield order[start:end]
            start = end


def _copy_encoder(encoder: Any, precision: str) -> Any:
    """A copy to predict with. It shares the weights that are in the precision wanted already."""
    copied = _UninitializedModel.from_config(encoder.config, attn_implementation="sdpa").eval()
    copied.load_state_dict(encoder.state_dict(), assign=True)
    if precision == "bfloat16":
        copied.bfloat16()
    if precision == "int8":
        for module in list(copied.modules()):
            for name, child in module.named_children():
                if isinstance(child, torch.nn.Linear):
                    setattr(module, name, _Int8Linear(child))
    return copied


def _replace_dropout(encoder: Any) -> None:
    for module in list(encoder.modules()):
        for name, child in module.named_children():
            if type(child) is torch.nn.Dropout:
                setattr(module, name, _Dropout(child.p))


class _Dropout(torch.nn.Dropout):
    """Dropout to the next 1/256, by a random byte for each number: on CPUs PyTorch's own is a sixth of training."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dropped = round(256 * self.p)
        if not self.training or not dropped:
            return x
        words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= dropped
        return torch.where(kept, x * (256 / (256 - dropped)), 0)


class _Int8Linear(torch.nn.Module):
    """A linear layer in 8 bit integers: weights with a scale for each output, inputs with a range for each token.

    Ranges for each token, as in ZeroQuant (Yao et al. 2022, https://arxiv.org/abs/2206.01861), lose little: PyTorch's
    own dynamic quantisation has one range for the batch, which a single outlying token spoils.
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
