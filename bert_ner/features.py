"""The layers between the encoder and the components: features of the context of a word, and the heads.

spaCy's registry gets the architectures `bert_ner.ContextFeatures.v1` and `bert_ner.SoftmaxHead.v1`. A wheel of the
pipeline has a copy of this file. What a model keeps are functions of this module, since a process that is not forked
gets the model by pickle.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from spacy.ml.featureextractor import FeatureExtractor
from spacy.tokens import Doc
from spacy.util import minibatch, registry
from thinc.api import (
    HashEmbed,
    Maxout,
    Model,
    NumpyOps,
    Softmax_v2,
    chain,
    concatenate,
    list2ragged,
    ragged2list,
    with_array,
)
from thinc.types import Floats2d


@registry.architectures("bert_ner.ContextFeatures.v1")  # type: ignore[untyped-decorator,unused-ignore]
def create_context_features(
    tok2vec: Model[list[Doc], list[Floats2d]],
    attrs: list[str],
    rows: list[int],
    embed_width: int,
    pool_over_document: bool,
    width: int,
) -> Model[list[Doc], list[Floats2d]]:
    """Append to the vectors of an encoder what it does not see, and mix all of it by a maxout layer.

    An uncased encoder does not see capital letters, which tell most about English names. Hash embeddings of the shape,
    the first letter and the ending of a word give them back, as in the networks before BERT (Collobert et al. 2011,
    https://arxiv.org/abs/1103.0398).

    An encoder sees a window, not the document. The mean of the vectors of a word wherever it occurs in the document
    lets a clear mention help an unclear one. (Akbik et al. 2019, https://aclanthology.org/N19-1078, pool over a corpus,
    and do not learn through the mean.)

    tok2vec (Model[list[Doc], list[Floats2d]]): Gives for each document the vectors of its tokens from the encoder,
        (tokens, encoder's width). It has the name under which `nlp.replace_listeners` looks for a listener.
    attrs (list[str]): The attributes of tokens to embed, or an empty list for no embeddings.
    rows (list[int]): The number of rows of the hash table of each attribute.
    embed_width (int): The width of each hash embedding.
    pool_over_document (bool): Whether to append the means over the document.
    width (int): The width of the result.
    RETURNS (Model[list[Doc], list[Floats2d]]): Gives for each document the vectors of its tokens, (tokens, width).
    """
    parts = [_with_word_means(tok2vec) if pool_over_document else tok2vec]
    if attrs:
        tables = [HashEmbed(embed_width, n, column=column, seed=column) for column, n in enumerate(rows)]
        embed = with_array(concatenate(*tables) if len(tables) > 1 else tables[0])
        parts.append(chain(FeatureExtractor(attrs), list2ragged(), embed, ragged2list()))
    mix = with_array(Maxout(width, nP=3, init_W=_init_uniform, normalize=True, dropout=0.0))
    _use_threads(mix)
    model = _few_at_a_time(chain(concatenate(*parts) if attrs else parts[0], mix))
    model.set_dim("nO", width)
    return model


def _few_at_a_time(layer: Model[list[Doc], list[Floats2d]]) -> Model[list[Doc], list[Floats2d]]:
    """Run a layer on 8 documents at a time in use: fresh memory for large arrays costs more than the arithmetic."""
    return Model("few_at_a_time", _forward_some, init=_initialize_inner, layers=[layer], dims={"nO": None})


def _forward_some(
    model: Model[list[Doc], list[Floats2d]], docs: list[Doc], is_train: bool
) -> tuple[list[Floats2d], Callable[..., Any]]:
    (layer,) = model.layers
    if is_train:
        result: tuple[list[Floats2d], Callable[..., Any]] = layer(docs, is_train)
        return result
    # Without the empty ones, since the layer refuses documents none of which has a token.
    pieces = minibatch([doc for doc in docs if len(doc)], 8)  # type: ignore[no-untyped-call,unused-ignore]
    found = (vectors for piece in pieces for vectors in layer.predict(piece))
    return [next(found) if len(doc) else model.ops.alloc2f(0, model.get_dim("nO")) for doc in docs], lambda _: []


def _initialize_inner(model: Model[Any, Any], X: Any = None, Y: Any = None) -> None:
    model.layers[0].initialize(X=X, Y=Y)


def _use_threads(model: Model[Any, Any]) -> None:
    # thinc's `use_ops` only knows operations by their name in its registry, where these would be an option for all.
    if isinstance(model.ops, NumpyOps):
        ops = _ThreadedOps()
        for node in model.walk():
            node.ops = ops


class _ThreadedOps(NumpyOps):  # type: ignore[misc,unused-ignore]
    """thinc's operations on CPUs, with PyTorch's matrix products, which use all threads where thinc's use one."""

    def gemm(self, x: Any, y: Any, out: Any = None, trans1: bool = False, trans2: bool = False) -> Any:
        left, right = torch.from_numpy(x), torch.from_numpy(y)
        product = torch.mm(left.T if trans1 else left, right.T if trans2 else right).numpy()
        if out is None:
            return product
        out[:] = product
        return out


@registry.architectures("bert_ner.SoftmaxHead.v1")  # type: ignore[untyped-decorator,unused-ignore]
def create_softmax_head(
    tok2vec: Model[list[Doc], list[Floats2d]], grad_factor: float
) -> Model[list[Doc], list[Floats2d]]:
    """`spacy.Tagger.v2` that starts from random weights, and gives probabilities instead of logits.

    spaCy's head starts from zeros, through which no gradient reaches the encoder at first: after 60 steps the loss was
    twice as high.

    tok2vec (Model[list[Doc], list[Floats2d]]): Gives for each document the vectors of its tokens, (tokens, width).
    grad_factor (float): The share of the gradient that `tok2vec` gets, below 1 for a task that must not hurt others.
    RETURNS (Model[list[Doc], list[Floats2d]]): Gives for each document the probabilities of the tags, (tokens, tags).
    """
    softmax = Softmax_v2(nI=tok2vec.get_dim("nO"), init_W=_init_uniform)
    model: Model[list[Doc], list[Floats2d]] = chain(tok2vec, _scale_gradient(grad_factor), with_array(softmax))
    model.set_ref("softmax", softmax)
    _use_threads(model)
    return model


def _scale_gradient(factor: float) -> Model[list[Floats2d], list[Floats2d]]:
    return Model("scale_gradient", partial(_forward_unchanged, factor=factor))


def _forward_unchanged(
    model: Model[Any, Any], X: list[Floats2d], is_train: bool, factor: float
) -> tuple[list[Floats2d], Callable[..., Any]]:
    return X, lambda d_output: [factor * gradient for gradient in d_output]


def _init_uniform(ops: Any, shape: tuple[int, ...]) -> Any:
    """Draw PyTorch's initial weights of a linear layer. thinc's of a maxout layer are four times as large."""
    bound = shape[-1] ** -0.5
    return ops.asarray_f(np.random.uniform(-bound, bound, shape))


def _with_word_means(encoder: Model[list[Doc], list[Floats2d]]) -> Model[list[Doc], list[Floats2d]]:
    """Append to the vector of each token the mean over the tokens of its document that are the same but for case."""

    return Model("with_word_means", _forward_means, init=_initialize_inner, layers=[encoder])


def _forward_means(
    model: Model[list[Doc], list[Floats2d]], docs: list[Doc], is_train: bool
) -> tuple[list[Floats2d], Callable[..., Any]]:
    ops = model.ops
    vectors, backprop = model.layers[0](docs, is_train)
    lengths = [len(doc) for doc in docs]
    # Of each document the number of the word of each token, and how often each word occurs.
    words = [np.unique(doc.to_array("LOWER"), return_inverse=True, return_counts=True)[1:] for doc in docs]
    firsts = np.cumsum([0, *(len(counts) for _, counts in words)])  # number of the first word of each document
    word = np.concatenate([first + numbers for first, (numbers, _) in zip(firsts[:-1], words, strict=True)])
    order, word = ops.asarray1i(np.argsort(word, kind="stable")), ops.asarray1i(word)
    counts = ops.asarray1i(np.concatenate([counts for _, counts in words]))
    flat = ops.flatten(vectors)
    means = ops.reduce_mean(flat[order], counts)[word]

    def backprop_means(d_output: list[Floats2d]) -> Any:
        d_flat = ops.flatten(d_output)
        width = d_flat.shape[1] // 2
        d_means = ops.reduce_sum(ops.as_contig(d_flat[order, width:]), counts)
        d_vectors = ops.as_contig(d_flat[:, :width])
        d_vectors[order] += ops.backprop_reduce_mean(d_means, counts)
        return backprop(ops.unflatten(d_vectors, lengths))

    return ops.unflatten(ops.xp.hstack((flat, means)), lengths), backprop_means
