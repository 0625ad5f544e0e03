"""What the contenders share that are pipelines of spaCy: annotating, and training by spaCy's own loop."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Contender, Job, emit
from common.corpora import read_docs

if TYPE_CHECKING:  # environments of other libraries have no spaCy
    from spacy.language import Language
    from spacy.tokens import Doc
    from spacy.training import Example
    from thinc.api import Config


def annotate(nlp: Language, path: Path) -> Contender:
    """Annotate the tokens of documents.

    nlp (Language): The pipeline.
    path (Path): .spacy file with the documents. Their entities are what the contender is scored by.
    RETURNS (Contender): The contender.
    """
    from spacy.scorer import Scorer
    from spacy.training import Example

    golds = read_docs(path, nlp.vocab)

    def score(docs: list[Doc]) -> float:
        return float(Scorer(nlp).score([Example(*pair) for pair in zip(docs, golds, strict=True)])["ents_f"])

    return Contender(lambda: [copy_tokens(gold) for gold in golds], lambda docs: list(nlp.pipe(docs)), score)


def train(config: Config, job: Job, by_sentence: bool = False) -> Contender:
    """Train by spaCy's own loop, for one pass or the epochs of the job. It evaluates only at the end.

    config (Config): Training config.
    job (Job): What to train on.
    by_sentence (bool): Whether to evaluate sentence by sentence too, and take the better score. A pipeline that was
        trained on sentences may be better at them than at documents.
    RETURNS (Contender): The contender.
    """
    from spacy.schemas import ConfigSchemaTraining
    from spacy.training import Example
    from spacy.training.initialize import init_nlp
    from spacy.training.loop import train_while_improving
    from spacy.util import registry, resolve_dot_names
    from thinc.api import fix_random_seed

    nlp = init_nlp(config)
    fix_random_seed(0)
    config = nlp.config.interpolate()
    training = registry.resolve(config["training"], schema=ConfigSchemaTraining)
    read, read_dev = resolve_dot_names(config, [training["train_corpus"], training["dev_corpus"]])
    optimizer = training["optimizer"]
    epochs = max(1, job.epochs)

    def batches(examples: list[Example]) -> Iterator[tuple[int, Any]]:
        words = sum(map(len, examples)) * epochs
        done = 0
        for epoch in range(epochs):
            random.shuffle(examples)
            for batch in training["batcher"](examples):
                yield epoch, batch
                done += sum(map(len, batch))
                emit(progress=done / words)

    def work(examples: list[Example]) -> None:
        for _ in train_while_improving(
            nlp,
            optimizer,
            batches(examples),
            lambda: (0.0, {}),
            dropout=training["dropout"],
            eval_frequency=sys.maxsize,
            accumulate_gradient=training["accumulate_gradient"],
            patience=0,
            max_steps=0,
            exclude=[],
            annotating_components=[],
            before_update=None,
        ):
            pass

    def score(_: None) -> float | None:
        if not job.epochs:
            return None
        evaluations = [list(read_dev(nlp))]
        if by_sentence:
            docs = read_docs(Path(job.corpus, "dev.spacy"), nlp.vocab)
            golds = [sent.as_doc() for doc in docs for sent in doc.sents]
            evaluations.append([Example(copy_tokens(gold), gold) for gold in golds])
        with nlp.use_params(optimizer.averages or {}):
            return float(max(nlp.evaluate(examples)["ents_f"] for examples in evaluations))

    return Contender(lambda: list(read(nlp)), work, score)


def copy_tokens(doc: Doc) -> Doc:
    """Copy the tokens of a document, without annotation."""
    from spacy.tokens import Doc

    return Doc(doc.vocab, words=[token.text for token in doc], spaces=[bool(token.whitespace_) for token in doc])


def default_transformer(encoder: str) -> dict[str, Any]:
    """The model of a transformer component, as the documentation and the templates of spacy-transformers have it.

    encoder (str): Folder of the encoder, or nothing if the component is loaded from disk.
    RETURNS (dict[str, Any]): Its section of a config.
    """
    return {
        "@architectures": "spacy-transformers.TransformerModel.v3",
        "name": encoder,
        "tokenizer_config": {"use_fast": True},
        "mixed_precision": False,
        "get_spans": {"@span_getters": "spacy-transformers.strided_spans.v1", "window": 128, "stride": 96},
    }
