"""A share of synthetic texts in what a training learns from: `mixed.spacy`, which `synthesize` and `search` write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from spacy.tokens import Doc, DocBin

from common.corpora import read_docs
from common.errors import StepError
from common.models import MIXED
from common.records import read_json, sha256, write_json

SYNTHETIC = "synthetic"  # the texts of a corpus, and beside them what became of each, and what they were made from


class Texts(NamedTuple):
    """The documents of train, the synthetic texts that were made from them, and how, as `synthesize` recorded it."""

    train: list[Doc]
    made: list[Doc]
    inputs: dict[str, Any]


def check_share(share: float, train_on: str) -> None:
    """Make sure that the run trains on the synthetic texts if it wants some. RAISES (StepError): If not."""
    if not 0 <= share < 1:
        raise StepError(f"synthetic_share is {share}.", "It is a part of 1, such as 0.3, and 0 for none.")
    if bool(share) != (train_on == MIXED):
        raise StepError(
            f"The run trains on {train_on}, and its synthetic_share is {share}.",
            f"Put both lines into the run's file: train_on: {MIXED} and synthetic_share: 0.3; or neither.",
        )


def check_mixed(corpus: Path, share: float, train_on: str) -> None:
    """Make sure that the synthetic texts in mixed.spacy are the share that the run wants now.

    corpus (Path): Folder of the corpus. That mixed.spacy is there at all is looked at elsewhere.
    share, train_on: As `check_share` takes them.
    RAISES (StepError): If they are another share, or as `check_share`.
    """
    check_share(share, train_on)
    record = read_json(corpus / f"{MIXED}.json")
    if share and record and f"{record.get('share', 0):g}" != f"{share:g}":
        raise StepError(
            f"{corpus / MIXED}.spacy was mixed for another synthetic_share than {share:g}.",
            f"Mix it again, for which no language model is asked again: make synthesize RUN={corpus.name}",
        )


def read_texts(corpus: Path) -> Texts:
    """Read the synthetic texts of a corpus.

    corpus (Path): Folder with train.spacy, synthetic.spacy and synthetic.json.
    RETURNS (Texts): The texts.
    RAISES (StepError): If no texts were made from the present train.spacy.
    """
    inputs = read_json(corpus / f"{SYNTHETIC}.json").get("inputs", {})
    if not (corpus / f"{SYNTHETIC}.spacy").exists() or inputs.get("train") != sha256(corpus / "train.spacy"):
        raise StepError(
            f"{corpus} has no {SYNTHETIC}.spacy that was made from its present train.spacy.",
            f"Run synthesize first: make synthesize RUN={corpus.name}",
        )
    train, made = (read_docs(corpus / f"{name}.spacy") for name in ("train", SYNTHETIC))
    return Texts(train, made, inputs)


def find_highest_share(corpus: Path) -> float:
    """The share that all synthetic texts of a corpus are together. RAISES (StepError): As `read_texts`."""
    texts = read_texts(corpus)
    return 1 - sum(map(len, texts.train)) / sum(map(len, [*texts.train, *texts.made]))


def write_mixed(corpus: Path, share: float, folder: Path) -> float:
    """Mix the first of the synthetic texts into train. The same texts and share give the same bytes.

    corpus (Path): Folder with the texts, as `read_texts` takes it.
    share (float): What part of the tokens shall be synthetic, from 0 to below 1.
    folder (Path): Where to write mixed.spacy and mixed.json, from which `train` knows what it learns from.
    RETURNS (float): The part that it is: less if there are too few texts.
    RAISES (StepError): As `read_texts`.
    """
    texts = read_texts(corpus)
    mixed = mix(texts.train, texts.made, share)
    reached = 1 - sum(map(len, texts.train)) / sum(map(len, mixed))
    DocBin(docs=mixed, store_user_data=True).to_disk(folder / f"{MIXED}.spacy")
    record = {"train": texts.inputs["train"], "share": share, "inputs": {"share": reached, **texts.inputs}}
    write_json(folder / f"{MIXED}.json", record)
    return reached


def mix(train: Sequence[Doc], synthetic: Iterable[Doc], share: float) -> list[Doc]:
    """Add synthetic texts to the documents of train.

    train (Sequence[Doc]): The documents.
    synthetic (Iterable[Doc]): The texts, of which the first are taken; it may be endless.
    share (float): What part of the tokens shall be synthetic, from 0 to below 1.
    RETURNS (list[Doc]): The documents, then the texts: all of them if there are too few.
    """
    wanted = share / (1 - share) * sum(map(len, train))
    added: list[Doc] = []
    texts: Iterator[Doc] = iter(synthetic)
    while wanted > 0 and (doc := next(texts, None)) is not None:
        added.append(doc)
        wanted -= len(doc)
    return [*train, *added]
