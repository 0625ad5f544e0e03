"""What a pipeline predicted for a corpus, kept by one step so that no other has to predict it again."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from spacy.tokens import Doc, DocBin, Span
from spacy.training import Example
from spacy.vocab import Vocab

from common.corpora import read_docs
from common.errors import StepError
from common.records import read_json, record_inputs


def write_predictions(
    folder: Path, split: str, docs: Iterable[Doc], posteriors: list[np.ndarray], tags: list[str]
) -> None:
    """Write the predictions for a split. They quote the corpus.

    folder (Path): The folder, which exists.
    split (str): The name of the files in it.
    docs (Iterable[Doc]): The annotated documents; the scores of their entities are kept too.
    posteriors (list[np.ndarray]): For each document the posterior probabilities of the tags, (tokens, tags), float32.
    tags (list[str]): The BILUO tags, in the order of the columns.
    """
    DocBin(store_user_data=True, docs=docs).to_disk(folder / f"{split}.spacy")
    np.savez(folder / f"{split}.npz", posteriors=np.concatenate(posteriors), tags=np.array(tags))


def read_predictions(
    folder: Path, split: str, model: Path, corpus: Path, vocab: Vocab
) -> tuple[list[Example], list[np.ndarray], list[str]]:
    """Read the predictions for a split, beside the corpus.

    folder (Path): What `write_predictions` wrote, and a provenance.json with the `inputs` of that step.
    split (str): The split.
    model (Path): The pipeline, of which only the provenance is read.
    corpus (Path): The .spacy file of the split.
    vocab (Vocab): The vocabulary that all documents shall share.
    RETURNS (tuple[list[Example], list[np.ndarray], list[str]]): Predicted documents with their references; for each
        the posterior probabilities of the tags, (tokens, tags); and the tags.
    RAISES (StepError): If there are no predictions, or if they were made with another model or for another corpus.
    """
    inputs = read_json(folder / "provenance.json").get("inputs", {})
    if not record_inputs(model=model, **{split: corpus}).items() <= inputs.items():
        raise StepError(f"{folder} holds no predictions of {model} for {corpus}, as they are now.", "Run evaluate.")
    if not Span.has_extension("score"):  # otherwise the entity recogniser registers it, which is not imported here
        Span.set_extension("score", default=None)
    docs = read_docs(folder / f"{split}.spacy", vocab)
    with np.load(folder / f"{split}.npz") as kept:
        ends = np.cumsum([len(doc) for doc in docs])
        return (
            [Example(*pair) for pair in zip(docs, read_docs(corpus, vocab), strict=True)],
            np.split(kept["posteriors"], ends[:-1]),
            kept["tags"].tolist(),
        )
