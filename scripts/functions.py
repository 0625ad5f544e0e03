"""What spaCy's registry must know, in training and inside the packaged pipeline.

`spacy package --code` copies this file into the wheel, so it imports nothing of the project. Several wheels may be
loaded in one process, each with its copy, and of one name the registry keeps one function: so whatever behaves in
another way than before gets a name with a higher version.
"""

from __future__ import annotations

import itertools
import math
import os
import random
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from spacy.lang.char_classes import ALPHA, ALPHA_LOWER, ALPHA_UPPER, CONCAT_QUOTES, LIST_ELLIPSES, LIST_ICONS
from spacy.language import Language
from spacy.ml.featureextractor import FeatureExtractor
from spacy.pipeline import TrainablePipe
from spacy.pipeline.span_ruler import SpanRuler
from spacy.tokenizer import Tokenizer  # type: ignore[import-not-found,unused-ignore]
from spacy.tokens import Doc, Span, Token
from spacy.training import Corpus, Example, validate_examples, validate_get_examples
from spacy.util import compile_infix_regex, minibatch, registry
from spacy.vocab import Vocab
from spacy_transformers import registry as transformers_registry
from spacy_transformers.data_classes import FullTransformerBatch, HFObjects, WordpieceBatch
from spacy_transformers.layers.transformer_model import TransformerModel, set_pytorch_transformer
from spacy_transformers.layers.transformer_model import forward as forward_transformer
from thinc.api import (
    HashEmbed,
    Maxout,
    Model,
    NumpyOps,
    Optimizer,
    Softmax_v2,
    chain,
    concatenate,
    get_torch_default_device,
    list2ragged,
    ragged2list,
    with_array,
)
from thinc.layers.pytorchwrapper import forward
from thinc.types import Floats2d
from torch.optim.adamw import adamw
from transformers import AutoModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import no_init_weights


@registry.readers("bert_ner.Corpus.v2")  # type: ignore[untyped-decorator,unused-ignore]
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
                for token, start in zip(example.predicted, example.get_aligned("SENT_START"), strict=True):
                    token.is_sent_start = None if not start else start == 1  # of 0 and None nothing is known
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


@registry.tokenizers("bert_ner.Tokenizer.v2")  # type: ignore[untyped-decorator,unused-ignore]
def create_tokenizer() -> Callable[[Language], Tokenizer]:
    """The language's own tokenizer, but what hyphens, slashes, colons or digits join stays one token.

    So do newswire corpora: Italian-owned, 8-6, 1996-08-22, 10:30. Nor are there emoticons, which take the bracket off
    `(12-8)`. And no text, whatever its punctuation, takes more than time in proportion to its length.

    RETURNS (Callable[[Language], Tokenizer]): What makes the tokenizer of a pipeline.
    """
    infixes = [
        *LIST_ELLIPSES,
        *LIST_ICONS,
        rf"(?<=[{ALPHA_LOWER}{CONCAT_QUOTES}])\.(?=[{ALPHA_UPPER}{CONCAT_QUOTES}])",
        rf"(?<=[{ALPHA}]),(?=[{ALPHA}])",
        r"--+",
    ]

    def create(nlp: Language) -> Tokenizer:
        plain = registry.tokenizers.get("spacy.Tokenizer.v1")()(nlp)
        tokenizer = _LinearTokenizer(
            nlp.vocab, plain.rules, plain.prefix_search, plain.suffix_search, None, plain.token_match, plain.url_match
        )
        tokenizer.bound_affixes()
        tokenizer.infix_finditer = compile_infix_regex(infixes).finditer
        tokenizer.rules = {
            text: parts
            for text, parts in tokenizer.rules.items()
            if any(character.isalpha() or character.isspace() or character in "'\u2019" for character in text)
        }
        return tokenizer

    return create


LONGEST_CHUNK = 1000  # characters without white space that are tokenised at once; no word and hardly a URL is longer
LONGEST_SUFFIX = 32  # characters


class _LinearTokenizer(Tokenizer):  # type: ignore[misc,unused-ignore]
    """spaCy's tokenizer, in time proportional to the length of the text.

    spaCy strips affixes one by one, and for each searches all that is left of the chunk: 12,000 equals signs take a
    minute. Here a search looks no further than an affix can reach, and chunks of more than LONGEST_CHUNK characters are
    cut. What has no such chunk gets the same tokens.
    """

    def __call__(self, text: str) -> Doc:
        if not re.search(rf"\S{{{LONGEST_CHUNK + 1}}}", text):
            doc: Doc = super().__call__(text)
            return doc
        cuts = [0]
        for chunk in re.finditer(rf"\S{{{LONGEST_CHUNK + 1},}}", text):
            cuts += range(chunk.start() + LONGEST_CHUNK, chunk.end(), LONGEST_CHUNK)
        docs = [super(_LinearTokenizer, self).__call__(text[a:b]) for a, b in itertools.pairwise([*cuts, len(text)])]
        words = [token.text for doc in docs for token in doc]
        return Doc(self.vocab, words=words, spaces=[bool(token.whitespace_) for doc in docs for token in doc])

    def pipe(self, texts: Iterable[str], batch_size: int = 1000) -> Iterator[Doc]:
        """Tokenise texts, one after the other."""
        yield from map(self, texts)

    def bound_affixes(self) -> None:
        """Look for prefixes at the start of a chunk only, and for suffixes near its end only."""
        prefixes, suffixes = getattr(self, "prefix_search"), getattr(self, "suffix_search")  # noqa: B009 (for mypy)
        if prefixes is not None:
            self.prefix_search = prefixes.__self__.match  # whose patterns all begin with ^
        if suffixes is not None:
            self.suffix_search = _SuffixSearch(suffixes.__self__.pattern).search

    def from_bytes(self, data: bytes, *, exclude: Iterable[str] = ()) -> _LinearTokenizer:
        """Load the tokenizer. spaCy takes the patterns alone from the data.

        data (bytes): From `to_bytes`.
        exclude (Iterable[str]): Names of fields to leave out.
        RETURNS (_LinearTokenizer): Itself.
        """
        super().from_bytes(data, exclude=exclude)
        self.bound_affixes()
        return self


class _SuffixSearch:
    """The search of a compiled pattern for suffixes, in the last characters of a string."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern  # which the tokenizer saves
        self.compiled = re.compile(pattern)

    def search(self, text: str) -> re.Match[str] | None:
        return self.compiled.search(text[-LONGEST_SUFFIX:])


@registry.batchers("bert_ner.batches.v2")  # type: ignore[untyped-decorator,unused-ignore]
def create_batcher(
    batcher: Callable[[Iterable[Example]], Iterable[list[Example]]], renamed: float, lower: float, upper: float
) -> Callable[[Iterable[Example]], Iterator[list[Example]]]:
    """Batch the training examples of an epoch, some of them changed, others each time, and shuffle the batches.

    What learns names by heart is too sure of them, and at a loss with others: in some documents, names are replaced by
    others of the corpus with the same label (Dai and Adel 2020, https://aclanthology.org/2020.coling-main.343). What
    learns from case must not depend on it: some are put in lower or upper case. Tokens stay what they are, while
    spaCy's own augmenters tokenise again.

    spaCy's batchers of equal lengths give one length after the other, and documents of one length are often alike:
    tables, or news in brief. Hence the shuffling. Documents of more than LONGEST_DOCUMENT tokens are cut, so that
    memory does not grow with them.

    batcher (Callable[[Iterable[Example]], Iterable[list[Example]]]): What makes the batches.
    renamed, lower, upper (float): The shares of the examples to change, from 0 to 1.
    RETURNS (Callable[[Iterable[Example]], Iterator[list[Example]]]): The batcher.
    """

    def change(example: Example, names: Names) -> Example:
        if random.random() < renamed:
            example = rename(example, names)
        draw = random.random()
        if draw >= lower + upper:
            return example
        case = str.lower if draw < lower else str.upper
        return Example(*(recase(doc, case) for doc in (example.predicted, example.reference)))

    def batch(examples: Iterable[Example]) -> Iterator[list[Example]]:
        examples = [piece for example in examples for piece in cut_example(example)]
        names = collect_names(example.reference for example in examples)
        batches = list(batcher([change(example, names) for example in examples]))
        random.shuffle(batches)
        return iter(batches)

    return batch


LONGEST_DOCUMENT = 1500  # tokens that are trained on at once, about as many as a batch has


def find_pieces(doc: Doc, size: int = LONGEST_DOCUMENT) -> list[tuple[int, int]]:
    """Where to cut a document for training: before a sentence, or where none starts before a token outside of entities.

    doc (Doc): With sentence starts and entities, where they are known.
    size (int): The most tokens of a piece; a longer entity stays whole.
    RETURNS (list[tuple[int, int]]): First token and token after the last of each piece; none for an empty document.
    """
    pieces = []
    start = 0
    while len(doc) - start > size:
        ends = range(start + size, start, -1)
        free = [end for end in ends if doc[end].ent_iob_ != "I"]
        end = next((end for end in free if doc[end].is_sent_start), free[0] if free else start + size)
        while end < len(doc) and doc[end].ent_iob_ == "I":
            end += 1
        pieces.append((start, end))
        start = end
    return [*pieces, (start, len(doc))] if start < len(doc) else pieces


def cut_example(example: Example) -> list[Example]:
    """The pieces of an example, as `find_pieces` cuts its reference; itself if it is short."""
    pieces = find_pieces(example.reference)
    if len(pieces) < 2 or len(example.predicted) != len(example.reference):
        return [example]
    return [Example(*(doc[a:b].as_doc() for doc in (example.predicted, example.reference))) for a, b in pieces]


Names = dict[tuple[str, bool], list[Span]]


def collect_names(docs: Iterable[Doc]) -> Names:
    """The names of a corpus, each in one spelling, so that one that headlines repeat in capitals is not more likely.

    docs (Iterable[Doc]): The documents, with entities.
    RETURNS (Names): By label, and whether only those that have small letters are wanted, the names.
    """
    spellings: dict[str, dict[str, Span]] = {}
    for ent in (ent for doc in docs for ent in doc.ents):
        known = spellings.setdefault(ent.label_, {}).setdefault(ent.text.lower(), ent)
        if known.text.isupper() and not ent.text.isupper():
            spellings[ent.label_][ent.text.lower()] = ent
    return {
        (label, small): [ent for ent in ents.values() if not (small and ent.text.isupper())]
        for label, ents in spellings.items()
        for small in (False, True)
    }


def rename(example: Example, names: Names) -> Example:
    """A copy with other names in place of about a third, the same wherever one occurs in the document.

    A name is in capitals where the one that it replaces is, and nowhere else.

    example (Example): The example.
    names (Names): Those to choose from, at least those of the example.
    RETURNS (Example): The copy, with tags, sentence starts and entities.
    """
    doc = example.reference
    keys = [(ent.label_, ent.text.lower()) for ent in doc.ents]
    small = {key for key, ent in zip(keys, doc.ents, strict=True) if not ent.text.isupper()}
    chosen = {
        key: random.choice(names[key[0], key in small]) if random.random() < 1 / 3 else None
        for key in dict.fromkeys(keys)
    }
    tokens: list[tuple[str, bool, str, bool | None, str | None]] = []  # word, space, tag, sentence start, entity

    def keep(token: Token) -> None:
        iob = {"": None, "O": "O"}.get(token.ent_iob_, f"{token.ent_iob_}-{token.ent_type_}")
        tokens.append((token.text, bool(token.whitespace_), token.tag_, token.is_sent_start, iob))

    end = 0
    for key, ent in zip(keys, doc.ents, strict=True):
        for token in doc[end : ent.start]:
            keep(token)
        end = ent.end
        name = chosen[key]
        for i, token in enumerate(ent if name is None else name):
            if name is None:
                keep(token)
                continue
            word = token.text.upper() if ent.text.isupper() else token.text
            space = bool((ent[-1] if i + 1 == len(name) else token).whitespace_)
            tokens.append(
                (word, space, token.tag_, False if i else ent[0].is_sent_start, f"{'I' if i else 'B'}-{key[0]}")
            )
    for token in doc[end:]:
        keep(token)
    columns: list[list[Any]] = [list(column) for column in zip(*tokens, strict=True)] or [[]] * 5
    words, spaces, tags, starts, ents = columns
    given = starts if example.predicted.has_annotation("SENT_START") else None
    return Example(
        Doc(doc.vocab, words=words, spaces=spaces, sent_starts=given),
        Doc(doc.vocab, words=words, spaces=spaces, sent_starts=starts, tags=tags, ents=ents),
    )


def recase(doc: Doc, case: Callable[[str], str]) -> Doc:
    """A copy of a document with other words in place of its own, and the same annotation of tokens and entities.

    doc (Doc): The document.
    case (Callable[[str], str]): What gives for a word the other one.
    RETURNS (Doc): The copy.
    """
    words, spaces = [case(token.text) for token in doc], [bool(token.whitespace_) for token in doc]
    attributes: list[int | str] = ["TAG", "POS", "SENT_START", "ENT_IOB", "ENT_TYPE"]
    return Doc(doc.vocab, words=words, spaces=spaces).from_array(attributes, doc.to_array(attributes))


@transformers_registry.span_getters("bert_ner.windows.v1")  # type: ignore[untyped-decorator,unused-ignore]
def create_windows(size: int, overlap: int) -> Callable[[list[Doc]], list[list[Span]]]:
    """Cut each document into the fewest windows of at most `size` tokens, all as long as each other but for one token.

    Equal windows leave no short rest without context, and need less padding.

    size (int): The most tokens in a window.
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
    learn_rate: Any,
    head_factor: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    grad_clip: float,
) -> Optimizer:
    """thinc's `Adam.v1` with decoupled weight decay, computed on CPUs by PyTorch's fused kernel.

    It is the same update up to rounding, in one pass over the memory by all threads instead of five by one. Layers that
    start from random weights learn faster than the encoder, which is to keep most of what it knows.

    learn_rate (float or an iterator of floats): Learning rate of the encoder, or its schedule.
    head_factor (float): By how much that of all other layers is higher.
    beta1, beta2, eps, weight_decay (float): See Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101.
    grad_clip (float): The largest norm of the gradient of a parameter, above 0.
    RETURNS (Optimizer): The optimizer.
    """
    optimizer = _FusedAdam(
        learn_rate, L2=weight_decay, beta1=beta1, beta2=beta2, eps=eps, grad_clip=grad_clip, use_averages=False
    )
    optimizer.head_factor = head_factor
    return optimizer


class _FusedAdam(Optimizer):  # type: ignore[misc,unused-ignore]
    __slots__ = ("head_factor",)

    def __call__(self, key: tuple[int, str], weights: Any, gradient: Any, *, lr_scale: float = 1.0) -> tuple[Any, Any]:
        if "." not in key[1]:  # thinc names a parameter by a letter, PyTorch by the path of its module
            lr_scale *= self.head_factor
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


@registry.architectures("bert_ner.CaseAndDocument.v1")  # type: ignore[untyped-decorator,unused-ignore]
def create_case_and_document(
    encoder: Model[list[Doc], list[Floats2d]],
    attrs: list[str],
    rows: list[int],
    embed_width: int,
    document: bool,
    width: int,
) -> Model[list[Doc], list[Floats2d]]:
    """Put beside the vectors of an encoder what it does not see, and mix all by a maxout layer.

    Case: an uncased encoder knows no capitals, which English names are made of. Embeddings of the shape, the first
    letter and the ending of a word give them back, as in the networks before BERT (Collobert et al. 2011,
    https://arxiv.org/abs/1103.0398).

    Document: the mean of the vectors of a word wherever it occurs in the document, so that a clear mention helps an
    unclear one (Akbik et al. 2019, https://aclanthology.org/N19-1078, pool over a corpus, and do not learn through it).

    encoder (Model[list[Doc], list[Floats2d]]): For each document the vectors of its tokens, (tokens, encoder's width).
    attrs (list[str]): The attributes of tokens to embed, or none to do without.
    rows (list[int]): For each the rows of its hash table.
    embed_width (int): Of each embedding.
    document (bool): Whether to use the document.
    width (int): Of the result, (tokens, width).
    RETURNS (Model[list[Doc], list[Floats2d]]): The model.
    """
    parts = [_with_word_means(encoder) if document else encoder]
    if attrs:
        tables = [HashEmbed(embed_width, n, column=column, seed=column) for column, n in enumerate(rows)]
        embed = with_array(concatenate(*tables) if len(tables) > 1 else tables[0])
        parts.append(chain(FeatureExtractor(attrs), list2ragged(), embed, ragged2list()))
    mix = with_array(Maxout(width, nP=3, init_W=_init_uniform, normalize=True, dropout=0.0))
    if isinstance(mix.ops, NumpyOps):
        mix._to_ops(_ThreadedOps())
    model = _few_at_a_time(chain(concatenate(*parts) if attrs else parts[0], mix))
    model.set_dim("nO", width)
    return model


def _few_at_a_time(layer: Model[list[Doc], list[Floats2d]]) -> Model[list[Doc], list[Floats2d]]:
    """In use, few documents after others: fresh memory for large arrays costs more than what is computed in them."""

    def forward_some(model: Model, docs: list[Doc], is_train: bool) -> tuple[list[Floats2d], Callable[..., Any]]:
        if is_train:
            result: tuple[list[Floats2d], Callable[..., Any]] = layer(docs, is_train)
            return result
        pieces = minibatch(docs, 8)  # type: ignore[no-untyped-call,unused-ignore]
        return [vectors for piece in pieces for vectors in layer.predict(piece)], lambda _: []

    def initialize(model: Model, X: Any = None, Y: Any = None) -> None:
        layer.initialize(X=X, Y=Y)

    return Model("few_at_a_time", forward_some, init=initialize, layers=[layer], dims={"nO": None})


class _ThreadedOps(NumpyOps):  # type: ignore[misc,unused-ignore]
    """thinc's operations on CPUs, with matrix products by PyTorch: in all threads, where thinc uses one."""

    def gemm(self, x: Any, y: Any, out: Any = None, trans1: bool = False, trans2: bool = False) -> Any:
        left, right = torch.from_numpy(x), torch.from_numpy(y)
        product = torch.mm(left.T if trans1 else left, right.T if trans2 else right).numpy()
        if out is None:
            return product
        out[:] = product
        return out


@registry.architectures("bert_ner.Tagger.v1")  # type: ignore[untyped-decorator,unused-ignore]
def create_tagger(tok2vec: Model[list[Doc], list[Floats2d]], grad_factor: float) -> Model[list[Doc], list[Floats2d]]:
    """`spacy.Tagger.v2` from random weights, and with probabilities.

    From zero weights, as there, no gradient reaches the encoder at first: after 60 steps the loss was twice as high.

    tok2vec (Model[list[Doc], list[Floats2d]]): For each document the vectors of its tokens, (tokens, width).
    grad_factor (float): What share of the gradient goes on to `tok2vec`, for a task that others shall not suffer from.
    RETURNS (Model[list[Doc], list[Floats2d]]): For each document the probabilities of the tags, (tokens, tags).
    """
    softmax = Softmax_v2(nI=tok2vec.get_dim("nO"), init_W=_init_uniform)
    model: Model[list[Doc], list[Floats2d]] = chain(tok2vec, _scale_gradient(grad_factor), with_array(softmax))
    model.set_ref("softmax", softmax)
    return model


def _scale_gradient(factor: float) -> Model[list[Floats2d], list[Floats2d]]:
    def forward_unchanged(model: Model, X: list[Floats2d], is_train: bool) -> tuple[list[Floats2d], Callable[..., Any]]:
        return X, lambda d_output: [factor * gradient for gradient in d_output]

    return Model("scale_gradient", forward_unchanged)


def _init_uniform(ops: Any, shape: tuple[int, ...]) -> Any:
    """PyTorch's weights for a linear layer. thinc's for a maxout layer are four times as large."""
    bound = shape[-1] ** -0.5
    return ops.asarray_f(np.random.uniform(-bound, bound, shape))


def _with_word_means(encoder: Model[list[Doc], list[Floats2d]]) -> Model[list[Doc], list[Floats2d]]:
    """Append to the vector of each token the mean over the tokens of its document that are the same but for case."""

    def forward_means(model: Model, docs: list[Doc], is_train: bool) -> tuple[list[Floats2d], Callable[..., Any]]:
        ops = model.ops
        vectors, backprop = model.layers[0](docs, is_train)
        lengths = [len(doc) for doc in docs]
        found = [np.unique(doc.to_array("LOWER"), return_inverse=True, return_counts=True)[1:] for doc in docs]
        firsts = np.cumsum([0, *(len(counts) for _, counts in found)])  # number of the first word of each document
        word = np.concatenate([first + numbers for first, (numbers, _) in zip(firsts[:-1], found, strict=True)])
        order, word = ops.asarray1i(np.argsort(word, kind="stable")), ops.asarray1i(word)
        counts = ops.asarray1i(np.concatenate([counts for _, counts in found]))
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

    def initialize(model: Model, X: Any = None, Y: Any = None) -> Model:
        model.layers[0].initialize(X=X)
        return model

    return Model("with_word_means", forward_means, init=initialize, layers=[encoder])


def _register_factory(function: Callable[..., Any]) -> Callable[..., Any]:
    """Unlike other registries, spaCy's of factories refuses a second wheel with the same function."""
    if Language.has_factory("bert_ner_v2"):
        return function
    return Language.factory(
        "bert_ner_v2",
        assigns=["doc.ents", "token.ent_iob", "token.ent_type", "span._.score"],
        default_config={"scorer": {"@scorers": "spacy.ner_scorer.v1"}},
        default_score_weights={"ents_f": 1.0, "ents_p": 0.0, "ents_r": 0.0, "ents_per_type": None},
        func=function,
    )


@_register_factory
def create_entity_recognizer(
    nlp: Language, name: str, model: Model[list[Doc], list[Floats2d]], scorer: Callable[..., Any] | None
) -> EntityRecognizer:
    """An EntityRecognizer.

    model (Model[list[Doc], list[Floats2d]]): As `bert_ner.Tagger.v1`.
    scorer (Callable | None): How to score, by default as spaCy's `ner`.
    """
    return EntityRecognizer(nlp.vocab, model, name, scorer)


class EntityRecognizer(TrainablePipe):  # type: ignore[misc,unused-ignore]
    """Named entities from the probabilities of BILUO tags, each with a score: `ent._.score`.

    Among the sequences of tags that are legal, it takes the most probable one (Viterbi). The score of an entity is its
    posterior: of the probability of all legal sequences, the share of those with exactly this span and label
    (forward-backward, Rabiner 1989). `calibrate` makes it mean how often that is right.

    vocab (Vocab): The vocabulary.
    model (Model[list[Doc], list[Floats2d]]): Gives (tokens, tags), float32, each row with the sum 1.
    name (str): Of the component.
    scorer (Callable | None): How to score.
    """

    def __init__(
        self, vocab: Vocab, model: Model[list[Doc], list[Floats2d]], name: str, scorer: Callable[..., Any] | None
    ) -> None:
        self.vocab = vocab
        self.model = model
        self.name = name
        self.scorer = scorer
        self.cfg: dict[str, Any] = {"labels": []}
        if not Span.has_extension("score"):
            Span.set_extension("score", default=None)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of entities, sorted."""
        return tuple(self.cfg["labels"])

    @property
    def label_data(self) -> list[str]:
        """The same, as `initialize` takes them."""
        return list(self.labels)

    @property
    def tags(self) -> list[str]:
        """O, and four for each label, in the order of the model's output."""
        return ["O", *(f"{kind}-{label}" for label in self.labels for kind in "BILU")]

    def initialize(
        self,
        get_examples: Callable[[], Iterable[Example]],
        *,
        nlp: Language | None = None,
        labels: Iterable[str] | None = None,
    ) -> None:
        """Take the labels, and make the model fit.

        get_examples (Callable[[], Iterable[Example]]): Gives some examples.
        labels (Iterable[str] | None): All labels, or None for those of the examples.
        RAISES (ValueError): If there is no label.
        """
        validate_get_examples(get_examples, "EntityRecognizer.initialize")
        examples = list(get_examples())
        if labels is None:
            labels = {ent.label_ for example in examples for ent in example.reference.ents}
        self.cfg["labels"] = sorted(labels)
        if not self.labels:
            raise ValueError(f"The corpus has no entity to train {self.name!r} on.")
        docs = [example.x for example in examples[:10]]
        tags = [self.model.ops.alloc2f(len(doc), len(self.tags)) for doc in docs]
        self.model.initialize(X=docs, Y=tags)

    def predict(self, docs: Iterable[Doc]) -> list[np.ndarray]:
        """The probabilities of the tags.

        docs (Iterable[Doc]): The documents.
        RETURNS (list[np.ndarray]): For each (tokens, tags), float32.
        """
        docs = list(docs)
        if not any(map(len, docs)):
            return [np.zeros((0, len(self.tags)), dtype="float32") for _ in docs]
        return [self.model.ops.to_numpy(probabilities) for probabilities in self.model.predict(docs)]

    def set_annotations(self, docs: Iterable[Doc], scores: list[np.ndarray]) -> None:
        """Set the entities and their scores. No entity crosses the start of a sentence.

        Entities that a component before has set, and tokens that it has blocked, stay as they are, as with spaCy's ner.

        docs (Iterable[Doc]): The documents.
        scores (list[np.ndarray]): What `predict` gave for them.
        """
        docs = list(docs)
        for doc, found in zip(docs, find_entities_of(docs, scores), strict=True):
            ents = [Span(doc, start, end, self.labels[label]) for start, end, label, _ in found]
            for ent, (*_, score) in zip(ents, found, strict=True):
                ent._.score = score
            if not _is_taken(doc).any():
                doc.set_ents(ents)
                continue
            doc.set_ents(ents, default="unmodified")
            doc.set_ents(
                [], outside=[doc[token.i : token.i + 1] for token in doc if not token.ent_iob], default="unmodified"
            )

    def get_loss(self, examples: Iterable[Example], scores: list[Floats2d]) -> tuple[float, list[Floats2d]]:
        """Cross entropy of the tags, in natural logarithms, summed over the tokens whose tag is known.

        examples (Iterable[Example]): The examples.
        scores (list[Floats2d]): The model's output for them.
        RETURNS (tuple[float, list[Floats2d]]): The loss, and its gradient by the logits.
        """
        examples = list(examples)
        validate_examples(examples, "EntityRecognizer.get_loss")
        numbers = {tag: number for number, tag in enumerate(self.tags)}
        loss, gradients, ops = 0.0, [], self.model.ops
        for example, probabilities in zip(examples, scores, strict=True):
            found = np.array([numbers.get(tag or "-", -1) for tag in example.get_aligned_ner()], dtype="int32")
            known, gold = ops.asarray1i(np.flatnonzero(found >= 0)), ops.asarray1i(found[found >= 0])
            gradient = ops.xp.zeros_like(probabilities)
            gradient[known] = probabilities[known]
            gradient[known, gold] -= 1
            gradients.append(gradient)
            loss -= float(ops.xp.log(probabilities[known, gold] + 1e-10).sum())
        return loss, gradients

    def calibrate(
        self, docs: list[Doc], probabilities: list[np.ndarray], gold: list[set[tuple[int, int, str]]], known: set[str]
    ) -> float:
        """Choose the temperature of the softmax by which scores say best which entities are right.

        One number, that of the lowest cross entropy (Guo et al. 2017, https://arxiv.org/abs/1706.04599). It changes no
        entity. Those that training had and those it had not count the same: later texts have more new names.

        docs (list[Doc]): Documents that were not trained on, as the pipeline gives them to this component.
        probabilities (list[np.ndarray]): What `predict` gives for them at the present temperature.
        gold (list[set[tuple[int, int, str]]]): Their entities: first token, token after the last, label.
        known (set[str]): The entities of training, as text in lower case.
        RETURNS (float): The temperature.
        """
        softmax = self.model.get_ref("softmax")
        logs = [np.log(np.maximum(array, 1e-30)) * softmax.attrs["softmax_temperature"] for array in probabilities]

        def cost(temperature: float) -> float:
            arrays = [_softmax(array / temperature) for array in logs]
            costs: dict[bool, list[float]] = {True: [], False: []}
            for doc, found, right in zip(docs, find_entities_of(docs, arrays), gold, strict=True):
                for start, end, label, score in found:
                    share = score if (start, end, self.labels[label]) in right else 1 - score
                    costs[doc[start:end].text.lower() in known].append(-math.log(max(share, 1e-6)))
            return sum(float(np.mean(part)) for part in costs.values() if part)

        temperature = min(np.geomspace(0.5, 4, 25).tolist(), key=cost)
        softmax.attrs["softmax_temperature"] = temperature
        return float(temperature)


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponentials: np.ndarray = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(1, keepdims=True))


def _is_taken(doc: Doc) -> np.ndarray:
    """Whether each token is in an entity already, or blocked: (tokens,), bool."""
    return np.isin(doc.to_array("ENT_IOB"), (1, 3))


def find_entities_of(docs: list[Doc], probabilities: list[np.ndarray]) -> list[list[tuple[int, int, int, float]]]:
    """`find_entities` of documents: between sentences no entity goes on, and white space is passed over.

    Of a token of white space the encoder sees nothing; an entity can have one inside, but not at its ends. Nor does an
    entity overlap one that the document has already, or enclose it.
    """
    taken = [_is_taken(doc) for doc in docs]
    words = [(doc.to_array("IS_SPACE") == 0) & ~found for doc, found in zip(docs, taken, strict=True)]
    starts = [(doc.to_array("SENT_START") == 1) | found for doc, found in zip(docs, taken, strict=True)]
    for start, word in zip(starts, words, strict=True):
        for i in np.flatnonzero(start & ~word):  # the first word after it starts the sentence, or follows the entity
            start[i + 1 : i + 2] = True
    found = find_entities(
        *([array[word] for array, word in zip(arrays, words, strict=True)] for arrays in (probabilities, starts))
    )
    places = [np.flatnonzero(word).tolist() for word in words]
    return [
        [(place[start], place[end - 1] + 1, label, score) for start, end, label, score in entities]
        for place, entities in zip(places, found, strict=True)
    ]


def find_entities(probabilities: list[np.ndarray], starts: list[np.ndarray]) -> list[list[tuple[int, int, int, float]]]:
    """The entities of the most probable legal sequence of BILUO tags of each document, and their posteriors.

    Where it is certain to one in a million that no entity goes on, the sequences are cut too, and the pieces of all
    documents are computed together, token by token.

    probabilities (list[np.ndarray]): For each document (tokens, 1 + 4 · labels), float: O, then B, I, L, U of each
        label.
    starts (list[np.ndarray]): For each document (tokens,), bool: where no entity goes on from the token before.
    RETURNS (list[list[tuple[int, int, int, float]]]): First token, token after the last, number of the label, score
        above 0, at most 1.
    """
    found: list[list[tuple[int, int, int, float]]] = [[] for _ in probabilities]
    lengths = [len(array) for array in probabilities]
    if not sum(lengths):
        return found
    owner, offsets = np.repeat(np.arange(len(lengths)), lengths), np.cumsum([0, *lengths])
    logs = np.log(np.maximum(np.concatenate(probabilities).astype("float64"), 1e-30))
    begin, inside, last, unit = (logs[:, kind::4] for kind in (1, 2, 3, 4))
    alone = np.concatenate((logs[:, :1], unit), axis=1)  # tags of a token that no entity joins to another
    shut = np.exp(alone).sum(1) > 1 - 1e-6
    cut = np.concatenate(starts)
    cut[offsets[:-1][np.array(lengths) > 0]] = True
    cut |= shut
    cut[1:] |= shut[:-1]
    pieces = np.flatnonzero(cut)
    sizes = np.diff([*pieces, len(logs)])
    certain = shut[pieces] & (alone[pieces].argmax(1) == 0)  # surely O: nothing to find
    pieces, sizes = pieces[~certain], sizes[~certain]
    order = np.argsort(-sizes, kind="stable")
    pieces, sizes = pieces[order], sizes[order]

    # Outside of entities, and in an open entity of each label: the sum over all sequences so far, and the best
    count, labels = len(pieces), unit.shape[1]
    closed, opened = np.zeros((2, count)), np.full((2, count, labels), -np.inf)
    before = np.zeros(len(logs))
    from_closed, from_open = np.zeros(len(logs), dtype=int), np.zeros((len(logs), labels), dtype=bool)
    for step in range(sizes.max(initial=0)):
        n = int((sizes > step).sum())
        rows = pieces[:n] + step
        before[rows] = closed[0, :n]
        ending = np.concatenate((closed[:, :n, None] + alone[rows], opened[:, :n] + last[rows]), axis=2)
        going = np.stack((closed[:, :n, None] + begin[rows], opened[:, :n] + inside[rows]), axis=3)
        from_closed[rows], from_open[rows] = ending[1].argmax(1), going[1].argmax(2)
        closed[:, :n] = np.logaddexp.reduce(ending[0], axis=1), ending[1].max(1)
        opened[:, :n] = np.logaddexp.reduce(going[0], axis=2), going[1].max(2)
    total = closed[0]

    after, shutting, opening = np.zeros(len(logs)), np.zeros(count), np.full((count, labels), -np.inf)
    for step in reversed(range(sizes.max(initial=0))):
        n = int((sizes > step).sum())
        rows = pieces[:n] + step
        after[rows] = shutting[:n]
        ending = np.concatenate((shutting[:n, None] + alone[rows], opening[:n] + begin[rows]), axis=1)
        opening[:n] = np.logaddexp(shutting[:n, None] + last[rows], opening[:n] + inside[rows])
        shutting[:n] = np.logaddexp.reduce(ending, axis=1)

    for piece, (start, size) in enumerate(zip(pieces, sizes, strict=True)):
        end = start + size
        while end > start:
            row = end - 1
            choice = from_closed[row]
            if choice:
                label = (choice - 1) % labels
                weight = unit[row, label]
                if choice > labels:
                    weight = last[row, label]
                    row -= 1
                    while from_open[row, label]:
                        weight += inside[row, label]
                        row -= 1
                    weight += begin[row, label]
                score = min(1.0, float(np.exp(before[row] + weight + after[end - 1] - total[piece])))
                offset = offsets[owner[row]]
                found[owner[row]].append((int(row - offset), int(end - offset), int(label), score))
            end = row
    return [sorted(entities) for entities in found]


_COARSE = {
    tag: coarse
    for coarse, tags in {
        "ADJ": "JJ JJR JJS",
        "ADP": "IN RP",
        "ADV": "RB RBR RBS WRB",
        "AUX": "MD",
        "CCONJ": "CC",
        "DET": "DT PDT",
        "INTJ": "UH",
        "NOUN": "NN NNS",
        "NUM": "CD",
        "PART": "POS TO",
        "PRON": "EX PRP PRP$ WDT WP WP$",
        "PROPN": "NNP NNPS",
        "PUNCT": ": . , \" `` '' ( ) -LRB- -RRB- HYPH NFP",
        "SYM": "$ # SYM",
        "VERB": "VB VBD VBG VBN VBP VBZ",
    }.items()
    for tag in tags.split()
}
_BE, _HAVE, _DO, _NEGATIONS = (
    frozenset(words.split())
    for words in (
        "be am is are was were been being 's 'm 're \u2019s \u2019m \u2019re",
        "have has had having 've 'd \u2019ve \u2019d",
        "do does did doing",
        "not n't n\u2019t never no neither nor",
    )
)
_WORD = re.compile(r"[^\W\d_]{2}")


def set_coarse_tags(doc: Doc) -> None:
    """Set `token.pos_`, as in Universal Dependencies, from the tags of the Penn Treebank and their neighbours.

    Forms of `be`, and of `have` and `do` before another verb, are auxiliaries; participles that stand before a noun as
    adjectives do are adjectives. A result or a date is a number, whatever the tag.

    doc (Doc): The document, which is changed.
    """
    pairs = [(token.lower_, token.tag_) for token in doc]
    words, tags = [word for word, _ in pairs], [tag for _, tag in pairs]
    coarse = [_COARSE.get(tag, "X") for tag in tags]
    # The nearest tag after a token, and before it, that is not of an adverb
    followers, follower = [""] * len(doc), ""
    for i in reversed(range(len(doc))):
        followers[i] = follower
        follower = follower if coarse[i] == "ADV" else tags[i]
    leader = ""
    for i, (word, tag) in enumerate(zip(words, tags, strict=True)):
        if coarse[i] in ("ADJ", "NOUN", "PROPN", "VERB") and not _WORD.search(word) and word[:1] not in "'\u2019":
            coarse[i] = "NUM" if any(map(str.isdigit, word)) else "X"
        elif coarse[i] == "VERB":
            after = followers[i]
            if word in _BE or (word in _HAVE and after in ("VBN", "VBD")) or (word in _DO and after in ("VB", "VBP")):
                coarse[i] = "AUX"
            elif _COARSE.get(after) in ("ADJ", "NOUN", "PROPN") and (
                (tag in ("VBN", "VBG") and leader in ("DT", "PRP$", "POS", "CD", "JJ"))
                or (tag == "VBN" and leader == "IN")
            ):
                coarse[i] = "ADJ"
        leader = leader if coarse[i] == "ADV" else tag
    doc.from_array(["POS"], np.array([doc.vocab.strings.as_int(name) for name in coarse], dtype="uint64"))


@registry.misc("bert_ner.concept_rules.v1")  # type: ignore[untyped-decorator,unused-ignore]
def create_concept_rules() -> list[dict[str, Any]]:
    """Rules for actors, factors and mechanisms: names and nouns in a row, adjectives, verbs.

    RETURNS (list[dict[str, Any]]): As for spaCy's `span_ruler`: label, id, which names the rule, and pattern.
    """
    degree = (
        "very too so quite rather extremely highly fairly pretty slightly increasingly particularly especially deeply "
        "relatively far much even more most less least"
    )
    number_or_order = (
        "many much several few fewer fewest more most less least other such same own last next previous following due "
        "first second third fourth fifth sixth seventh eighth ninth tenth able"
    )
    time_or_none = (
        "monday tuesday wednesday thursday friday saturday sunday january february march april may june july august "
        "september october november december percent one none nobody anyone someone everyone anybody somebody "
        "everybody anything something everything nothing"
    )
    adverb: dict[str, Any] = {"LOWER": {"IN": degree.split()}, "OP": "?"}
    noun: dict[str, Any] = {"POS": {"IN": ["NOUN", "PROPN"]}, "LOWER": {"NOT_IN": time_or_none.split()}, "OP": "{1,8}"}
    rules: list[tuple[str, str, list[dict[str, Any]]]] = [
        *(
            ("actor", "entity", [{"ENT_TYPE": label, "ENT_IOB": 3}, {"ENT_TYPE": label, "ENT_IOB": 1, "OP": "*"}])
            for label in ("PER", "PERSON", "LOC", "GPE", "ORG")  # of CoNLL-2003 and OntoNotes
        ),
        ("factor", "nationality", [{"ENT_TYPE": "MISC", "OP": "{0,2}"}, {"ENT_TYPE": "MISC", "TAG": "JJ"}]),
        *(("factor", "participle", [adverb, {"POS": "ADJ", "TAG": tag}]) for tag in ("VBN", "VBG")),
        ("factor", "adjective", [adverb, {"POS": "ADJ", "LOWER": {"NOT_IN": number_or_order.split()}}]),
        ("mechanism", "verb", [{"POS": "VERB"}, {"TAG": "RP", "OP": "?"}]),
        ("actor", "noun", [noun]),
    ]
    return [{"label": label, "id": rule, "pattern": pattern} for label, rule, pattern in rules]


def create_concept_ruler(nlp: Language, name: str) -> ConceptRuler:
    """A ConceptRuler. Its rules are the `patterns` of its initialisation."""
    return ConceptRuler(nlp, name)


class ConceptRuler(SpanRuler):
    """Actors, factors and mechanisms in `doc.spans["concepts"]`, by rules over parts of speech and entities.

    spaCy's SpanRuler, for spans without overlaps: an earlier rule comes before a later one, and of one rule the longest
    span. `span.label_` is the kind, `span.id_` the rule, `span._.entity` the label of the entity that the span is, if
    it is one, then with `span._.score`; `span._.negated` says whether `not`, `no` or the like belongs to it.
    `doc._.triples` relates them. For the rules, it sets `token.pos_` before. Without tags there are only names.

    nlp (Language): The pipeline.
    name (str): Of the component.
    """

    def __init__(self, nlp: Language, name: str) -> None:
        super().__init__(nlp, name, spans_key="concepts", spans_filter=self._without_overlaps, scorer=None)
        getters: list[tuple[Any, str, Callable[[Any], Any]]] = [
            (Span, "entity", find_entity_label),
            (Span, "negated", is_negated),
            (Doc, "triples", find_triples),
        ]
        for owner, extension, getter in getters:
            if not owner.has_extension(extension):
                owner.set_extension(extension, getter=getter)

    def initialize(
        self,
        get_examples: Callable[[], Iterable[Example]],
        *,
        nlp: Language | None = None,
        patterns: Any = (),  # SpanRuler wants a sequence, and the reader of JSONL gives none
    ) -> None:
        """Take the rules.

        get_examples (Callable[[], Iterable[Example]]): Not used.
        patterns (Iterable[dict[str, Any]]): The rules, as `create_concept_rules` gives them.
        """
        super().initialize(get_examples, nlp=nlp, patterns=list(patterns))

    def match(self, doc: Doc) -> list[Span]:
        """All spans that fit a rule, with overlaps; without tags those that need none.

        doc (Doc): The document, which gets `token.pos_`.
        """
        if doc.has_annotation("TAG"):
            set_coarse_tags(doc)
        rules = self._match_label_id_map
        found = [*self.matcher(doc, allow_missing=True), *self.phrase_matcher(doc)]
        spans = {
            Span(doc, start, end, label=rules[key]["label"], span_id=rules[key]["id"]) for key, start, end in found
        }
        return sorted(spans)

    def _without_overlaps(self, _: Iterable[Span], spans: Iterable[Span]) -> list[Span]:
        order = {rule: place for place, rule in enumerate(dict.fromkeys(row.get("id", "") for row in self.patterns))}
        taken: set[int] = set()
        kept = []
        for span in sorted(spans, key=lambda span: (order[span.id_], span.start - span.end, span.start)):
            if taken.isdisjoint(range(span.start, span.end)):
                taken.update(range(span.start, span.end))
                kept.append(span)
        return sorted(kept)


if not Language.has_factory("bert_ner_concepts_v2"):
    Language.factory(
        "bert_ner_concepts_v2",
        assigns=["doc.spans", "token.pos", "doc._.triples", "span._.entity", "span._.negated"],
        requires=["token.tag", "token.ent_iob", "token.ent_type"],
        func=create_concept_ruler,
    )


def find_entity_label(span: Span) -> str:
    """The label of the entity with exactly the tokens of a span, or none."""
    going = [token.ent_iob_ == "I" for token in span.doc[span.start + 1 : span.end + 1]]
    exact = span[0].ent_iob_ == "B" and all(going[: len(span) - 1]) and not any(going[len(span) - 1 :])
    return str(span[0].ent_type_) if exact else ""


def is_negated(span: Span) -> bool:
    """Whether a negation stands before a span, with nothing between but adverbs, adjectives, auxiliaries or `to`."""
    for token in _before(span):
        if token.lower_ in _NEGATIONS:
            return True
        if token.pos_ not in ("ADV", "ADJ", "AUX") and token.tag_ != "TO":
            return False
    return False


FARTHEST = 20  # tokens before a concept that may bear on it: without a bound, lists of adjectives take quadratic time


def _before(span: Span) -> Iterator[Token]:
    """The tokens of the sentence before a span, the last one first, at most FARTHEST."""
    doc, i = span.doc, span.start
    while i > max(0, span.start - FARTHEST) and not doc[i].is_sent_start:
        i -= 1
        yield doc[i]


def find_triples(doc: Doc) -> list[tuple[Span | None, Span | None, Span | None]]:
    """Relate the concepts of a document by their positions: a heuristic, as there is no parser.

    A sentence is cut at quotes, colons and dashes. There, the subject of a mechanism is the first actor since the
    mechanism before that follows no preposition; for an infinitive or a participle, or after a comma or `and`, it is
    that of the mechanism before; a pronoun is none. The object is the next actor or factor before another mechanism,
    but after a quotation (`," said the mayor`) that is the subject. A factor before an actor, with only factors,
    adverbs, commas and `and` between, is related to it without a mechanism.

    doc (Doc): The document.
    RETURNS (list[tuple[Span | None, Span | None, Span | None]]): Actor, mechanism, actor or factor, in the order of the
        text; at least two are there.
    """
    part = np.cumsum([bool(token.is_sent_start) or token.tag_ in (*_QUOTES, ":") for token in doc])
    triples: list[tuple[Span | None, Span | None, Span | None]] = []
    for _, group in itertools.groupby(doc.spans.get("concepts", []), key=lambda span: part[span.start]):
        concepts = list(group)
        described: dict[int, Span] = {}  # by the first token of a factor the actor after it
        for factor, span in reversed(list(itertools.pairwise(concepts))):
            between = doc[factor.end : span.start]
            if factor.label_ == "factor" and all(
                token.pos_ in ("ADV", "CCONJ") or token.text == "," for token in between
            ):
                actor = described.get(span.start) if span.label_ == "factor" else span
                if actor is not None and actor.label_ == "actor":
                    described[factor.start] = actor
                    triples.append((actor, None, factor))
        # Of "Senator Kiplagat", the name
        titles = {
            a.start for a, b in itertools.pairwise(concepts) if a.label_ == b.label_ == "actor" and a.end == b.start
        }
        concepts = [span for span in concepts if span.start not in titles]
        places = [place for place, span in enumerate(concepts) if span.label_ == "mechanism"]
        subject: Span | None = None
        last = -1
        for place, following in itertools.pairwise([*places, len(concepts)]):
            actors = [span for span in concepts[last + 1 : place] if span.label_ == "actor" and _may_be_subject(span)]
            finite, before = _what_is_before(concepts[place])
            if before is not None and before.tag_ == "PRP":
                subject = None
            elif last < 0 or (actors and finite and not (before and (before.tag_ == "CC" or before.text == ","))):
                subject = actors[0] if actors else None
            after = concepts[place + 1 : following]
            found = described.get(after[0].start, after[0]) if after else None
            quoted = before is not None and before.tag_ in _QUOTES and before.whitespace_
            if quoted and found is not None and found.label_ == "actor":
                subject, found = found, None
            if subject is not None or found is not None:
                triples.append((subject, concepts[place], found))
            last = place
    return sorted(triples, key=lambda triple: min(span.start for span in triple if span is not None))


_QUOTES = ('"', "``", "''")


def _may_be_subject(actor: Span) -> bool:
    for token in _before(actor):
        if token.pos_ not in ("ADV", "ADJ", "DET", "NUM") and token.tag_ not in ("PRP$", "POS"):
            return token.pos_ != "ADP" and token.tag_ != "TO"
    return True


def _what_is_before(mechanism: Span) -> tuple[bool, Token | None]:
    """Whether a mechanism is finite, and the token before it and its auxiliaries and adverbs."""
    finite = mechanism[0].tag_ in ("VBD", "VBZ", "VBP")
    for token in _before(mechanism):
        finite = finite or token.pos_ == "AUX"
        if token.pos_ not in ("ADV", "AUX"):
            return finite, token
    return finite, None


PRECISIONS = ("auto", "float32", "bfloat16", "int8")
PRECISION_VARIABLE = "BERT_NER_PRECISION"
CPU_WORDPIECES = 512  # for each thread: then what a layer computes stays in the caches of a core
GPU_WORDPIECES = 16384


@registry.architectures("bert_ner.TransformerModel.v2")  # type: ignore[untyped-decorator,unused-ignore]
def create_transformer_model(
    name: str,
    get_spans: Callable[[list[Doc]], list[list[Span]]],
    get_spans_in_training: Callable[[list[Doc]], list[list[Span]]],
    precision: str,
) -> Model[list[Doc], FullTransformerBatch]:
    """`spacy-transformers.TransformerModel.v3` as fast as the device allows, in training and in use.

    The precision is that of matrix products. `auto` is the best that costs no accuracy: on a CPU bfloat16 if it has
    instructions for that, else int8 if it has instructions for that, else float32; on a GPU mixed precision, with
    gradients scaled. Where a product in it turns out wrong it is float32, and a warning says so. `int8` is for use; its
    training is in float32. Weights are kept and saved in float32. The environment variable BERT_NER_PRECISION, if it is
    set, replaces the argument.

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
    model.attrs["get_spans"] = partial(_fit_windows, get_spans_in_training if is_train else get_spans, model.tokenizer)
    result: tuple[FullTransformerBatch, Callable[..., Any]] = forward_transformer(model, docs, is_train)
    return result


def _fit_windows(get_spans: Any, tokenizer: Any, docs: list[Doc]) -> list[list[Span]]:
    """Windows, halved until the encoder takes all their wordpieces: it would lose the last ones.

    A token alone may still have too many, and loses its own.
    """
    windows = [list(spans) for spans in get_spans(docs)]
    limit = tokenizer.model_max_length - tokenizer.num_special_tokens_to_add()
    # A wordpiece has at least a byte, but not always a character: BERT decomposes the syllables of Hangul
    suspects = [(spans, s) for spans in windows for s in spans if len(s) > 1 and len(s.text.encode()) >= limit]
    while suspects:
        texts = [span.text for _, span in suspects]
        found = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)  # without lists for Python
        halves = []
        for (spans, span), wordpieces in zip(suspects, found, strict=True):
            if sum(wordpieces.attention_mask) > limit:
                i, middle = spans.index(span), len(span) // 2
                spans[i : i + 1] = [span[:middle], span[middle:]]
                halves += [(spans, half) for half in spans[i : i + 2] if len(half) > 1]
        suspects = halves
    return windows


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
        fast = _fast_precisions()
        able = [*(precision for precision in fast if _is_right(precision)), "float32"]
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
        why = "this machine cannot do that" if asked in PRECISIONS else "there is no such precision"
        choices = ", ".join(["auto", *(name for name in able if name != "mixed")])
        raise ValueError(
            f"Precision {asked!r}: {why}. Choose among {choices}, in the config of the transformer's model or by the "
            f"environment variable {PRECISION_VARIABLE}."
        )
    return asked


# What oneDNN may use at most, by the variables that limit it; with none of these, all that the processor has
_LIMITS = {
    **dict.fromkeys(("SSE41", "AVX", "AVX2", "AVX512_CORE"), ()),
    **dict.fromkeys(("AVX2_VNNI", "AVX512_CORE_VNNI"), ("int8",)),
}


def _fast_precisions() -> list[str]:
    """The precisions that the processor has instructions for, the best first."""
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
def _is_right(precision: str) -> bool:
    """Whether a small product in this precision is right on this processor.

    Its numbers are as large as they get: without the right instructions, the sums of integers saturate.
    """
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(64, 32)
    linear.weight = torch.nn.Parameter(0.5 + 0.5 * torch.rand(32, 64, generator=generator))
    inputs = torch.rand(4, 64, generator=generator)
    with torch.inference_mode():
        right = linear(inputs)
        try:
            if precision == "int8":
                found = _Int8Linear(linear)(inputs)
            else:
                found = torch.nn.functional.linear(inputs.bfloat16(), linear.weight.bfloat16(), linear.bias.bfloat16())
        except (RuntimeError, AttributeError, TypeError):  # the operator is missing, refuses, or has other arguments
            return False
        return bool((found.float() - right).norm() < 0.02 * right.norm())


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
