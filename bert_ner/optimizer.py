"""The optimizer of the training. spaCy's registry gets `bert_ner.Adam.v1`. A wheel does without this file."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from spacy.util import registry
from thinc.api import Optimizer
from torch.optim.adamw import adamw


@registry.optimizers("bert_ner.Adam.v1")  # type: ignore[untyped-decorator,unused-ignore]
def create_optimizer(
    learn_rate: Any,
    head_lr_multiplier: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    grad_clip: float,
) -> Optimizer:
    """thinc's `Adam.v1` with decoupled weight decay, computed on CPUs by PyTorch's fused kernel.

    The update is the same up to rounding, but it is one multi-threaded pass over the memory instead of five
    single-threaded ones. Layers that start from random weights have a higher learning rate than the encoder, which must
    keep most of what it knows.

    learn_rate (float or an iterator of floats): The learning rate of the encoder, or its schedule.
    head_lr_multiplier (float): The learning rate of all other layers, and of the encoder's token types, which have to
        learn the case of words, as a multiple of the encoder's.
    beta1, beta2, eps, weight_decay (float): See Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101.
    grad_clip (float): The largest norm of the gradient of a parameter, above 0.
    RETURNS (Optimizer): The optimizer.
    """
    optimizer = _FusedAdam(
        learn_rate, L2=weight_decay, beta1=beta1, beta2=beta2, eps=eps, grad_clip=grad_clip, use_averages=False
    )
    optimizer.head_lr_multiplier = head_lr_multiplier
    return optimizer


# Private parts of other libraries
#
# This was checked with thinc 8.3.14 and torch 2.13.0.
# - thinc does not document the fields of its optimizer (`mom1`, `mom2`, `nr_update`, `b1`, `b2`, `L2`). Where one of
#   them is gone, the first step of a training raises an AttributeError that names it.
# - thinc does not document the names of parameters either: its own have a letter, PyTorch's the path of their module,
#   which has a dot. With other names, the tests of this file and those of the training fail.
# - PyTorch does not document the functional `adamw`. Where it is gone, the import above fails and names it.


class _FusedAdam(Optimizer):  # type: ignore[misc,unused-ignore]
    __slots__ = ("head_lr_multiplier",)

    def __call__(self, key: tuple[int, str], weights: Any, gradient: Any, *, lr_scale: float = 1.0) -> tuple[Any, Any]:
        if "." not in key[1] or "token_type" in key[1]:  # a parameter of thinc's, or the types, which start alike
            lr_scale *= self.head_lr_multiplier
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
            [torch.tensor(float(self.nr_update[key]))],  # the kernel increases this copy
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
