"""The named entity recogniser and the chunker: what they predict, what they learn, and which tokens get a tag.

spaCy's registry gets the factories `bert_ner_v2` and `bert_ner_chunker_v1`. What decodes sequences of tags is in
sequences.py. A wheel of the pipeline has a copy of this file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, cast

import numpy as np
from spacy.language import Language
from spacy.pipeline import TrainablePipe
from spacy.tokens import Doc, Span
from spacy.training import Example, validate_examples, validate_get_examples
from spacy.util import registry
from spacy.vocab import Vocab
from thinc.api import Model
from thinc.types import Floats2d

CHUNKS = "chunks"  # where chunks stand in `doc.spans`


def _register_factory(name: str, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a factory, unless a wheel with the same file has: spaCy refuses a second factory of one name."""
    if Language.has_factory(name):
        return lambda function: function
    register: Callable[[Callable[..., Any]], Callable[..., Any]] = Language.factory(name, **options)
    return register


@_register_factory(
    "bert_ner_v2",
    assigns=["doc.ents", "token.ent_iob", "token.ent_type", "span._.score"],
    default_config={"scorer": {"@scorers": "spacy.ner_scorer.v1"}},
    default_score_weights={"ents_f": 1.0, "ents_p": 0.0, "ents_r": 0.0, "ents_per_type": None},
)
def create_entity_recognizer(
    nlp: Language, name: str, model: Model[list[Doc], list[Floats2d]], scorer: Callable[..., Any] | None
) -> BiluoEntityRecognizer:
    """Make a BiluoEntityRecognizer.

    nlp (Language): The pipeline.
    name (str): The name of the component.
    model (Model[list[Doc], list[Floats2d]]): A model such as `bert_ner.SoftmaxHead.v1`.
    scorer (Callable | None): Computes the scores of the component, by default as for spaCy's `ner`.
    RETURNS (BiluoEntityRecognizer): The component.
    """
    return BiluoEntityRecognizer(nlp.vocab, model, name, scorer)


@_register_factory(
    "bert_ner_chunker_v1",
    assigns=["doc.spans"],
    default_config={"scorer": {"@scorers": "spacy.spancat_scorer.v1"}},
    default_score_weights={
        f"spans_{CHUNKS}_f": 1.0,
        f"spans_{CHUNKS}_p": 0.0,
        f"spans_{CHUNKS}_r": 0.0,
        f"spans_{CHUNKS}_per_type": None,
    },
)
def create_chunker(
    nlp: Language, name: str, model: Model[list[Doc], list[Floats2d]], scorer: Callable[..., Any] | None
) -> BiluoChunker:
    """Make a BiluoChunker.

    nlp (Language): The pipeline.
    name (str): The name of the component.
    model (Model[list[Doc], list[Floats2d]]): A model such as `bert_ner.SoftmaxHead.v1`.
    scorer (Callable | None): Computes the scores of the component, by default as for spaCy's `spancat`.
    RETURNS (BiluoChunker): The component.
    """
    return BiluoChunker(nlp.vocab, model, name, scorer)


class BiluoEntityRecognizer(TrainablePipe):  # type: ignore[misc,unused-ignore]
    """Predicts named entities from the probabilities of BILUO tags, each with a score: `ent._.score`.

    It takes the most probable one of the legal sequences of tags (the Viterbi algorithm). The score of an entity is its
    posterior probability: the share that the sequences with exactly this span and label have in the probability of all
    legal sequences (the forward-backward algorithm; both as in Rabiner 1989, https://doi.org/10.1109/5.18626). After
    `calibrate`, a score says how often such an entity is correct. It is trained on this probability, too: that of the
    gold sequence among all legal ones, as a conditional random field is (Lafferty et al. 2001,
    https://repository.upenn.edu/handle/20.500.14332/6188) whose transitions are fixed: legal or not.

    vocab (Vocab): The vocabulary.
    model (Model[list[Doc], list[Floats2d]]): Gives the probabilities of the tags of each document, (tokens, tags),
        float32. Each row has the sum 1. They know nothing of what is legal beside the tags of the neighbours.
    name (str): The name of the component.
    scorer (Callable | None): Computes the scores of the component.
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
        """The labels of spans, sorted."""
        return tuple(self.cfg["labels"])

    @property
    def label_data(self) -> list[str]:
        """The labels, in the form that `initialize` takes."""
        return list(self.labels)

    @property
    def tags(self) -> list[str]:
        """The tag O and four tags for each label, in the order of the model's output."""
        return ["O", *(f"{kind}-{label}" for label in self.labels for kind in "BILU")]

    def initialize(
        self,
        get_examples: Callable[[], Iterable[Example]],
        *,
        nlp: Language | None = None,
        labels: Iterable[str] | None = None,
    ) -> None:
        """Set the labels, and initialise the model with as many outputs as there are tags.

        get_examples (Callable[[], Iterable[Example]]): Gives some examples.
        nlp (Language | None): The pipeline, which is not used.
        labels (Iterable[str] | None): All labels, or None for those of the examples.
        RAISES (ValueError): If there is no label.
        """
        validate_get_examples(get_examples, f"{type(self).__name__}.initialize")
        examples = list(get_examples())
        if labels is None:
            labels = {span.label_ for example in examples for span in self.read_spans(example.reference)}
        self.cfg["labels"] = sorted(labels)
        if not self.labels:
            raise ValueError(f"The corpus has nothing to train {self.name!r} on.")
        docs = [example.x for example in examples[:10]]
        tags = [self.model.ops.alloc2f(len(doc), len(self.tags)) for doc in docs]
        self.model.initialize(X=docs, Y=tags)

    def predict(self, docs: Iterable[Doc]) -> list[np.ndarray]:
        """Predict the probabilities of the tags.

        docs (Iterable[Doc]): The documents.
        RETURNS (list[np.ndarray]): The probabilities of each document, (tokens, tags), float32.
        """
        docs = list(docs)
        if not any(map(len, docs)):
            return [np.zeros((0, len(self.tags)), dtype="float32") for _ in docs]
        return [self.model.ops.to_numpy(probabilities) for probabilities in self.model.predict(docs)]

    def read_spans(self, doc: Doc) -> Iterable[Span]:
        """Read what the component learns from an annotated document: its entities."""
        return cast(Iterable[Span], doc.ents)

    def read_gold(self, example: Example) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Read what is to be learnt of the predicted tokens of an example.

        example (Example): The example.
        RETURNS (tuple[np.ndarray, np.ndarray, np.ndarray]): The numbers of the gold tags, (tokens,), int, with -1 where
            there is none. Then the tokens that learn probabilities instead, (n,), int, and these, (n, tags), float.
        """
        return _number_tags(example, self.labels), *_align_targets(example)

    def set_annotations(self, docs: Iterable[Doc], scores: list[np.ndarray]) -> None:
        """Set the entities and their scores. No entity crosses the start of a sentence.

        Entities that an earlier component has set, and tokens that it has blocked, stay as they are, as with spaCy's
        `ner`.

        docs (Iterable[Doc]): The documents.
        scores (list[np.ndarray]): The probabilities that `predict` gave for them.
        """
        docs = list(docs)
        for doc, predicted in zip(docs, find_entities_of(docs, scores), strict=True):
            ents = [Span(doc, start, end, self.labels[label]) for start, end, label, _ in predicted]
            for ent, (*_, score) in zip(ents, predicted, strict=True):
                ent._.score = score
            if not _is_taken(doc).any():
                doc.set_ents(ents)
                continue
            doc.set_ents(ents, default="unmodified")
            doc.set_ents(
                [], outside=[doc[token.i : token.i + 1] for token in doc if not token.ent_iob], default="unmodified"
            )

    def find_posteriors(self, docs: Iterable[Doc], scores: list[np.ndarray]) -> list[np.ndarray]:
        """Find the posterior probabilities of the tags: the share that the sequences with a tag have of all legal ones.

        docs (Iterable[Doc]): The documents, with sentence starts. Entities that they have do not count.
        scores (list[np.ndarray]): The probabilities that `predict` gave for them.
        RETURNS (list[np.ndarray]): For each document (tokens, tags), float32. White space has the tag O.
        """
        posteriors = []
        words, starts = _find_sequences(list(docs))
        sequences = _sum_sequences(scores, words, starts)
        for array, word, posterior in zip(scores, words, sequences.find_posteriors(), strict=True):
            posteriors.append(np.eye(1, array.shape[1], dtype="float32").repeat(len(array), 0))
            posteriors[-1][word] = posterior
        return posteriors

    def get_loss(self, examples: Iterable[Example], scores: list[Floats2d]) -> tuple[float, list[Floats2d]]:
        """Compute how improbable the gold sequences are among all legal ones: the sum of -log of their probabilities.

        A token without annotation may have any tag: its posterior stands in the place of its gold tag. White space is
        left out. A sentence starts nowhere inside a gold span.

        Where a reference has probabilities of tags for a token, as `teach` gives them, these are learnt instead of the
        annotated tag: `user_data["tag_targets"]`, (tokens, tags), in which a row of zeros says that there are none. To
        learn the teachers' posteriors of tags is posterior distillation (Wang et al. 2020,
        https://aclanthology.org/2020.acl-main.304).

        examples (Iterable[Example]): The examples.
        scores (list[Floats2d]): The probabilities that the model gave for them.
        RETURNS (tuple[float, list[Floats2d]]): The loss in nats, and for each document its gradient with respect to the
            logits, (tokens, tags).
        """
        examples = list(examples)
        validate_examples(examples, f"{type(self).__name__}.get_loss")
        docs = [example.predicted for example in examples]
        probabilities = [self.model.ops.to_numpy(array) for array in scores]
        words, starts = _find_sequences(docs)
        gold = [self.read_gold(example) for example in examples]
        for (numbers, *_), word, start in zip(gold, words, starts, strict=True):
            start[(numbers[word] > 0) & np.isin(numbers[word] % 4, (2, 3))] = False
        sequences = _sum_sequences(probabilities, words, starts)
        loss, posteriors, gradients = sequences.log_legal, sequences.find_posteriors(), []
        for array, (numbers, soft, rows), word, posterior in zip(probabilities, gold, words, posteriors, strict=True):
            found = np.zeros_like(array)
            found[word] = posterior
            targets = found.copy()
            annotated = np.flatnonzero((numbers >= 0) & word)
            targets[annotated] = np.eye(array.shape[1], dtype="float32")[numbers[annotated]]
            if len(soft):
                targets[soft] = rows
            targets[~word] = 0
            gradients.append(self.model.ops.asarray2f(found - targets))
            loss -= float((targets * sequences.take_logs(array)).sum())
        return loss, gradients

    def calibrate(
        self, docs: list[Doc], probabilities: list[np.ndarray], gold: list[set[tuple[int, int, str]]], seen: set[str]
    ) -> float:
        """Choose the temperature of the softmax with which the scores tell best how often entities are correct.

        The temperature is the one number with the lowest cross entropy of the scores (Guo et al. 2017,
        https://arxiv.org/abs/1706.04599). Entities that were seen in training and others have the same weight, because
        later texts have more new names than the documents of one corpus.

        docs (list[Doc]): Documents that were not trained on, as the pipeline gives them to this component.
        probabilities (list[np.ndarray]): What `predict` gives for them at the present temperature.
        gold (list[set[tuple[int, int, str]]]): Their entities: first token, token after the last, label.
        seen (set[str]): The texts of the entities of the training corpus, in lower case.
        RETURNS (float): The temperature, which the model has from now on.
        """
        softmax = self.model.get_ref("softmax")
        take_logs = _get_legal_sequences().take_logs
        logits = [take_logs(array) * softmax.attrs["softmax_temperature"] for array in probabilities]

        def cross_entropy(temperature: float) -> float:
            arrays = [_softmax(array / temperature) for array in logits]
            costs: dict[bool, list[float]] = {True: [], False: []}
            for doc, predicted, correct in zip(docs, find_entities_of(docs, arrays), gold, strict=True):
                for start, end, label, score in predicted:
                    share = score if (start, end, self.labels[label]) in correct else 1 - score
                    costs[doc[start:end].text.lower() in seen].append(-math.log(max(share, 1e-6)))
            return sum(float(np.mean(part)) for part in costs.values() if part)

        # Of equally good ones that nearest to 1 is taken: where no entity is predicted, all are.
        choices = sorted(np.geomspace(0.5, 4, 25).tolist(), key=lambda temperature: abs(math.log(temperature)))
        temperature = min(choices, key=cross_entropy)
        softmax.attrs["softmax_temperature"] = temperature
        return float(temperature)


class BiluoChunker(BiluoEntityRecognizer):
    """Predicts chunks, `doc.spans["chunks"]`: phrases that hold no other phrase, none of which overlaps another one.

    They are found, and learnt, as entities are. They have no score, because spaCy keeps the attributes of spans by
    their places, and an entity may stand in the place of a chunk. In a document without `doc.spans["chunks"]`, nobody
    knows the chunks; nor of those tokens that are in a span of this group without a label.

    vocab, model, name, scorer: As for `BiluoEntityRecognizer`.
    """

    def __init__(
        self, vocab: Vocab, model: Model[list[Doc], list[Floats2d]], name: str, scorer: Callable[..., Any] | None
    ) -> None:
        super().__init__(vocab, model, name, scorer)
        self.cfg["spans_key"] = CHUNKS  # for the scorer

    def read_spans(self, doc: Doc) -> Iterable[Span]:
        """Read what the component learns from an annotated document: its chunks."""
        return cast(Iterable[Span], doc.spans.get(CHUNKS, []))

    def read_gold(self, example: Example) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Read what is to be learnt of the predicted tokens of an example, as `BiluoEntityRecognizer.read_gold`."""
        return _number_chunk_tags(example, self.labels), *_NO_TARGETS

    def set_annotations(self, docs: Iterable[Doc], scores: list[np.ndarray]) -> None:
        """Set the chunks. No chunk crosses the start of a sentence.

        docs (Iterable[Doc]): The documents.
        scores (list[np.ndarray]): The probabilities that `predict` gave for them.
        """
        docs = list(docs)
        for doc, predicted in zip(docs, find_spans_of(docs, scores), strict=True):
            doc.spans[CHUNKS] = [Span(doc, start, end, self.labels[label]) for start, end, label, _ in predicted]


_NO_TARGETS = np.zeros(0, dtype=int), np.zeros((0, 0), dtype="float32")


def _align_targets(example: Example) -> tuple[np.ndarray, np.ndarray]:
    """Find the targets of tokens. A token that the reference splits, or has as a part of another one, gets none.

    RETURNS (tuple[np.ndarray, np.ndarray]): The numbers of tokens of the predicted document, (n,), int, and the
        probabilities of their tags, (n, tags), float.
    """
    targets = example.reference.user_data.get("tag_targets")
    if targets is None:
        return _NO_TARGETS
    there, back = example.alignment.x2y, example.alignment.y2x
    alone = np.flatnonzero(there.lengths == 1)
    same = there.data[(np.cumsum(there.lengths) - 1)[alone]]
    kept = (back.lengths[same] == 1) & targets[same].any(1)
    return alone[kept], targets[same[kept]]


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponentials: np.ndarray = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(1, keepdims=True))


def _number_tags(example: Example, labels: Sequence[str]) -> np.ndarray:
    """Number the gold tags of the predicted tokens.

    example (Example): The example. Where both of its documents have the same tokens, no alignment is computed, which
        would take a twentieth of the time of training.
    labels (Sequence[str]): The labels of entities, in the order of `BiluoEntityRecognizer.tags`.
    RETURNS (np.ndarray): Shape (tokens,), int32: 0 for O, then 1 to 4 for B, I, L and U of the first label, and so on;
        -1 where there is no gold tag, or an unknown label.
    """
    doc = example.reference
    if not np.array_equal(doc.to_array("ORTH"), example.predicted.to_array("ORTH")):
        numbers = {f"{kind}-{label}": 4 * i + j for i, label in enumerate(labels) for j, kind in enumerate("BILU", 1)}
        numbers["O"] = 0
        return np.array([numbers.get(tag or "-", -1) for tag in example.get_aligned_ner()], dtype="int32")
    iob, types = doc.to_array(["ENT_IOB", "ENT_TYPE"]).T.reshape(2, -1)
    goes_on = np.append(iob[1:] == 1, False)[: len(iob)]
    kinds = np.where(iob == 3, np.where(goes_on, 1, 4), np.where(goes_on, 2, 3))
    first = {doc.vocab.strings[label]: 4 * i for i, label in enumerate(labels)}  # the number before that of its B
    known, where = np.unique(types, return_inverse=True)
    before = np.array([first.get(label, -5) for label in known.tolist()], dtype="int32")[where]
    numbered = np.where(np.isin(iob, (1, 3)), np.maximum(before + kinds, -1), np.where(iob == 2, 0, -1))
    return numbered.astype("int32")


def _number_chunk_tags(example: Example, labels: Sequence[str]) -> np.ndarray:
    """Number the gold tags of the predicted tokens by the chunks of the reference, as `_number_tags` by its entities.

    There is no gold tag where the chunks are unknown, where a chunk has an unknown label, and where a chunk does not
    begin and end with tokens of the predicted document.
    """
    doc, predicted = example.reference, example.predicted
    if CHUNKS not in doc.spans:
        return np.full(len(predicted), -1, dtype="int32")
    chunks = list(doc.spans[CHUNKS])
    numbers = np.zeros(len(predicted), dtype="int32")
    if not np.array_equal(doc.to_array("ORTH"), predicted.to_array("ORTH")):
        for chunk in chunks:
            numbers[example.alignment.y2x[chunk.start : chunk.end]] = -1
        chunks = example.get_aligned_spans_y2x(chunks, allow_overlap=False)
    first = {label: 4 * i + 1 for i, label in enumerate(labels)}  # the number of its B
    for chunk in chunks:
        begin = first.get(chunk.label_)
        if begin is None:
            numbers[chunk.start : chunk.end] = -1
        elif len(chunk) == 1:
            numbers[chunk.start] = begin + 3
        else:
            numbers[chunk.start : chunk.end] = begin + 1
            numbers[chunk.start], numbers[chunk.end - 1] = begin, begin + 2
    return numbers


def _is_taken(doc: Doc) -> np.ndarray:
    """Tell for each token whether it is in an entity already or blocked: (tokens,), bool."""
    return np.isin(doc.to_array("ENT_IOB"), (1, 3))


Entity = tuple[int, int, int, float]  # first token, token after the last, number of the label, score in (0, 1]


def find_entities_of(docs: list[Doc], probabilities: list[np.ndarray]) -> list[list[Entity]]:
    """Find the entities of documents, as `find_spans_of` does, where the entities that they have leave room."""
    return find_spans_of(docs, probabilities, [_is_taken(doc) for doc in docs])


def find_spans_of(
    docs: list[Doc], probabilities: list[np.ndarray], taken: list[np.ndarray] | None = None
) -> list[list[Entity]]:
    """Find the entities or the chunks of documents, none of which crosses the start of a sentence.

    White space is left out of the sequences, since the encoder sees nothing of it: an entity may have such a token
    inside, but not at its ends. Tokens that are taken are left out too, and no entity overlaps or encloses them.

    docs (list[Doc]): The documents, with sentence starts.
    probabilities (list[np.ndarray]): The probabilities of the tags of each document, (tokens, tags), float.
    taken (list[np.ndarray] | None): For each document (tokens,), bool: the tokens that are taken; None if none is.
    RETURNS (list[list[Entity]]): The entities of each document, in order.
    """
    words, starts = _find_sequences(docs, taken)
    sequences = _sum_sequences(probabilities, words, starts)
    places = [np.flatnonzero(word).tolist() for word in words]
    return [
        [(place[start], place[end - 1] + 1, label, score) for start, end, label, score in entities]
        for place, entities in zip(places, sequences.find_entities(), strict=True)
    ]


def _find_sequences(
    docs: list[Doc], taken: list[np.ndarray] | None = None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Find the tokens that get a tag, and those among them to which no entity goes on.

    docs (list[Doc]): The documents, with sentence starts.
    taken (list[np.ndarray] | None): For each document (tokens,), bool: the tokens that get none, besides white space;
        None if all others get one.
    RETURNS (tuple[list[np.ndarray], list[np.ndarray]]): For each document (tokens,), bool, which tokens get a tag; and
        of these (tagged tokens,), bool, which ones start a sentence or follow a token that is taken.
    """
    taken = taken or [np.zeros(len(doc), dtype=bool) for doc in docs]
    words = [(doc.to_array("IS_SPACE") == 0) & ~mask for doc, mask in zip(docs, taken, strict=True)]
    starts = [(doc.to_array("SENT_START") == 1) | mask for doc, mask in zip(docs, taken, strict=True)]
    for start, word in zip(starts, words, strict=True):
        for i in np.flatnonzero(~word):  # the first word after it starts the sentence, or follows the entity
            start[i + 1 : i + 2] |= start[i]
    return words, [start[word] for start, word in zip(starts, words, strict=True)]


def _sum_sequences(probabilities: list[np.ndarray], words: list[np.ndarray], starts: list[np.ndarray]) -> Any:
    """Sum over the legal sequences of the tokens that get a tag.

    probabilities (list[np.ndarray]): The probabilities of the tags of each document, (tokens, tags), float.
    words, starts (list[np.ndarray]): As `_find_sequences` returns them.
    RETURNS (Any): The `bert_ner.LegalSequences.v1` of sequences.py.
    """
    return _get_legal_sequences()([array[word] for array, word in zip(probabilities, words, strict=True)], starts)


@cache
def _get_legal_sequences() -> Any:
    """Get the class of sequences.py when it is first used, since a wheel may import that file after this one."""
    return registry.misc.get("bert_ner.LegalSequences.v1")
