"""The encoder in training on a CPU. A wheel does without this file, and then transformers' own code trains the encoder.

spaCy's registry gets `bert_ner.FineTuning.v1`, which the transformer of encoder.py looks up there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from spacy.util import registry
from spacy_transformers.data_classes import WordpieceBatch
from torch.nn import functional

PADDING = 40  # wordpieces in a group of windows. With less there are more groups, whose products are small and slow.

# Private parts of other libraries
#
# This was checked with transformers 4.53.2 and torch 2.13.0.
# - `_compute_bert` names the modules of transformers' BertModel, as `_BertLayers` of inference.py does.
# - `torch._softmax_backward_data` has no documentation. Where it is gone, the first step of a training fails.


@registry.misc("bert_ner.FineTuning.v1")  # type: ignore[untyped-decorator,unused-ignore]
def train_encoder(
    encoder: Any, wordpieces: WordpieceBatch, dtype: torch.dtype, is_bert: bool
) -> tuple[torch.Tensor, Callable[[Any], list[Any]]]:
    """Compute the last hidden states of windows in training, without dropout of attention weights.

    encoder (transformers.PreTrainedModel): The encoder, in float32.
    wordpieces (WordpieceBatch): The wordpieces of the windows.
    dtype (torch.dtype): The dtype of the matrix products: float32 or bfloat16.
    is_bert (bool): Whether the encoder has exactly the layers of BERT. Others are computed by transformers' own code.
    RETURNS (tuple[torch.Tensor, Callable[[Any], list[Any]]]): The hidden states, (windows, longest window, width),
        float32. What stands behind a shorter window means nothing. Then what adds to the gradients of the encoder,
        given a BaseModelOutput that holds the gradient of the hidden states.
    """
    _replace_dropout(encoder)
    encoder.train()
    ids, mask = (torch.from_numpy(array).long() for array in (wordpieces.input_ids, wordpieces.attention_mask))
    types = {} if wordpieces.token_type_ids is None else {"token_type_ids": torch.from_numpy(wordpieces.token_type_ids)}
    table = encoder.get_input_embeddings().weight
    vectors = table.detach()[ids].requires_grad_()
    if is_bert:
        hidden = _compute_bert(encoder, vectors, mask, dtype, **types)
    else:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            hidden = encoder(inputs_embeds=vectors, attention_mask=mask, **types).last_hidden_state.float()

    def backprop(d_output: Any) -> list[Any]:
        torch.autograd.backward([hidden], list(d_output.values()))
        # PyTorch's gradient of a lookup is a new table each time, and clearing its pages costs a tenth of training.
        table.grad = torch.zeros_like(table) if table.grad is None else table.grad
        table.grad.index_add_(0, ids.flatten(), vectors.grad.flatten(0, 1))
        return []

    return hidden, backprop


def _compute_bert(
    encoder: Any,
    vectors: torch.Tensor,
    mask: torch.Tensor,
    dtype: torch.dtype,
    token_type_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute the layers of BERT on the wordpieces of all windows, one after the other, with hardly any padding.

    Only attention looks at windows. Padded to the longest one, a batch of CoNLL-2003 would grow by a fifth.

    encoder (transformers.BertModel): The encoder.
    vectors (torch.Tensor): The vectors of the wordpieces, (windows, longest window, width).
    mask (torch.Tensor): Shape (windows, longest window), 0 for padding.
    dtype (torch.dtype): The dtype of the matrix products.
    token_type_ids (torch.Tensor | None): The token types, of the shape of the mask, or None if all are 0.
    RETURNS (torch.Tensor): The last hidden states, of the same shape as `vectors`, float32.
    """

    def multiply(x: torch.Tensor, *layers: Any) -> torch.Tensor:
        weight, bias = (torch.cat([getattr(part, name) for part in layers]) for name in ("weight", "bias"))
        return functional.linear(x.to(dtype), weight.to(dtype), bias.to(dtype))

    embeddings, lengths = encoder.embeddings, mask.sum(1)
    rows = [torch.from_numpy(group) for group in group_windows(lengths.numpy())]
    groups = [mask[group, : lengths[group].max()].bool() for group in rows]
    types = embeddings.token_type_embeddings.weight[0 if token_type_ids is None else token_type_ids]
    summed = vectors + types + embeddings.position_embeddings.weight[: mask.shape[1]]
    embedded = [summed[group, : part.shape[1]].flatten(0, 1) for group, part in zip(rows, groups, strict=True)]
    x = embeddings.dropout(embeddings.LayerNorm(torch.cat(embedded)))
    for layer in encoder.encoder.layer:
        attention, output = layer.attention.self, layer.attention.output
        projected = multiply(x, attention.query, attention.key, attention.value)
        attended = _Attention.apply(  # type: ignore[no-untyped-call,unused-ignore]
            projected, encoder.config.num_attention_heads, groups
        )
        x = output.LayerNorm(output.dropout(multiply(attended, output.dense)) + x)
        risen = functional.gelu(multiply(x, layer.intermediate.dense))
        x = layer.output.LayerNorm(layer.output.dropout(multiply(risen, layer.output.dense)) + x)
    hidden = torch.zeros_like(vectors)
    for group, part, computed in zip(rows, groups, torch.split(x, [part.numel() for part in groups]), strict=True):
        hidden[group, : part.shape[1]] = computed.view(*part.shape, -1)
    return hidden


def group_windows(lengths: np.ndarray) -> list[np.ndarray]:
    """Group windows of about equal length, so that padding adds at most PADDING wordpieces to a group.

    lengths (np.ndarray): The number of wordpieces of each window, (windows,), int.
    RETURNS (list[np.ndarray]): Indices into `lengths`, int, sorted by length.
    """
    order = np.argsort(lengths, kind="stable")
    groups, start, padding = [], 0, 0
    for end in range(1, len(order) + 1):
        if end < len(order):
            padding += (end - start) * (lengths[order[end]] - lengths[order[end - 1]])
        if end == len(order) or padding > PADDING:
            groups.append(order[start:end])
            start, padding = end, 0
    return groups


class _Attention(torch.autograd.Function):
    """Attention within windows. PyTorch's fused one has a slow backward pass on CPUs."""

    @staticmethod
    def forward(ctx: Any, projected: torch.Tensor, heads: int, groups: list[torch.Tensor]) -> torch.Tensor:
        """Compute attention.

        projected (torch.Tensor): Queries, keys and values of all wordpieces, (wordpieces, 3 · width).
        heads (int): The number of heads.
        groups (list[torch.Tensor]): For each group of windows (windows, longest window), bool, False for padding. Their
            wordpieces stand in `projected` one group after the other.
        RETURNS (torch.Tensor): Shape (wordpieces, width).
        """
        parts, saved = [], []
        for rows, kept in zip(torch.split(projected, [part.numel() for part in groups]), groups, strict=True):
            count, longest = kept.shape
            split = rows.view(count, longest, 3, heads, -1).permute(2, 0, 3, 1, 4)
            query, key, value = split.reshape(3, count * heads, longest, -1).unbind()
            logits = torch.bmm(query, key.transpose(1, 2)).mul_(query.shape[2] ** -0.5)
            if not kept.all():
                logits.view(count, heads, longest, longest).masked_fill_(~kept[:, None, None], -torch.inf)
            shares = torch.softmax(logits, 2)
            attended = torch.bmm(shares, value).view(count, heads, longest, -1)
            parts.append(attended.transpose(1, 2).reshape(count * longest, -1))
            saved += [query, key, value, shares]
        ctx.save_for_backward(*saved)
        ctx.groups = groups
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, d_attended: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Compute the gradient of `projected` from that of what `forward` returns."""
        gradients, saved = [], iter(ctx.saved_tensors)
        for rows, kept in zip(torch.split(d_attended, [part.numel() for part in ctx.groups]), ctx.groups, strict=True):
            query, key, value, shares = (next(saved) for _ in range(4))
            count, longest = kept.shape
            d_parts = rows.view(count, longest, -1, query.shape[2]).transpose(1, 2).reshape(query.shape)
            d_shares = torch.bmm(d_parts, value.transpose(1, 2))
            d_logits = torch._softmax_backward_data(d_shares, shares, 2, shares.dtype).mul_(query.shape[2] ** -0.5)
            d_query, d_key = torch.bmm(d_logits, key), torch.bmm(d_logits.transpose(1, 2), query)
            three = torch.stack((d_query, d_key, torch.bmm(shares.transpose(1, 2), d_parts)))
            split = three.view(3, count, -1, longest, query.shape[2])
            gradients.append(split.permute(1, 3, 0, 2, 4).reshape(count * longest, -1))
        return torch.cat(gradients), None, None


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
