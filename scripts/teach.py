"""Let trained pipelines, the teachers, annotate what another pipeline, the student, is trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import spacy
import tqdm
import typer
from spacy.language import Language
from spacy.tokens import Doc, DocBin, Span
from spacy.training import Example
from spacy.vocab import Vocab
from wasabi import msg

import bert_ner  # noqa: F401 (registers what a trained pipeline names)
from bert_ner.corpus import find_pieces
from bert_ner.recognizer import find_entities_of
from common.alignment import create_tokenizer
from common.corpora import read_docs
from common.errors import StepError, main
from common.gpu import use_gpu
from common.records import code_digest, read_json, record_inputs, sha256, staged, write_json, writes
from common.scoring import record_tags
from common.statistics import number_tags
from common.texts import READERS, Source, check_encoding, find_files, find_paths, read_documents
from common.training import TAUGHT

GOLD_WEIGHT = 0.5  # of the corpus's tag in a target; the rest is that of the teachers' probabilities


@writes("corpus")
def teach(
    corpus: Annotated[Path, typer.Argument(help="Folder with train.spacy; taught.spacy is made there", exists=True)],
    teachers: Annotated[str, typer.Option(help="Folders of trained pipelines or patterns, with commas between")],
    texts: Annotated[str, typer.Option(help=f"Files ({', '.join(READERS)}), folders or patterns")] = "",
    train_on: Annotated[str, typer.Option(help="What the run trains on, which has to be taught")] = TAUGHT,
    gpu_id: Annotated[int, typer.Option(help="GPU, or -1 for the CPU")] = -1,
) -> None:
    """Write what the student learns, unless it is there: corpus and texts, with the teachers' probabilities of tags."""
    if train_on != TAUGHT:
        raise StepError(
            f"The run trains on {train_on}, from which it would learn nothing of its teachers.",
            f"Put this line into the run's file: train_on: {TAUGHT}",
        )
    use_gpu(gpu_id)
    # By what they were trained from, since the name of a model changes when the run trains another one.
    folders = {record_inputs(teacher=folder)["teacher"]: folder for folder in find_paths(teachers)}
    if not folders:
        raise StepError("The run has no teachers.", "For example: --vars.teachers training/<run>/model-best")
    places = find_paths(texts)
    inputs = {
        "teachers": sorted(folders),
        "texts": sorted(map(sha256, places)),
        "train": sha256(corpus / "train.spacy"),
        "code": code_digest(Path(__file__)),
    }
    if (corpus / f"{TAUGHT}.spacy").exists() and read_json(corpus / f"{TAUGHT}.json").get("inputs") == inputs:
        msg.good(f"{corpus}: what the teachers say is there")
        return
    nlp = create_tokenizer()
    labelled = read_docs(corpus / "train.spacy", nlp.vocab)
    unlabelled = list(cut_texts(places, nlp))
    annotate([folders[name] for name in inputs["teachers"]], labelled, unlabelled)
    counts = {
        kind: {"documents": len(docs), "tokens": sum(map(len, docs)), "entities": sum(len(doc.ents) for doc in docs)}
        for kind, docs in (("labelled", labelled), ("unlabelled", unlabelled))
    }
    with staged(corpus, f"{TAUGHT}.spacy", f"{TAUGHT}.json") as folder:
        DocBin(store_user_data=True, docs=[*labelled, *unlabelled]).to_disk(folder / f"{TAUGHT}.spacy")
        write_json(folder / f"{TAUGHT}.json", {"inputs": inputs, "counts": counts})
    rows = [(kind, *(f"{number:,}" for number in row.values())) for kind, row in counts.items()]
    msg.table(rows, header=("text", *counts["labelled"]), divider=True, aligns=("l", "r", "r", "r"))
    msg.good(f"Wrote {corpus / TAUGHT}.spacy, with the probabilities of {len(folders)} teachers")


# Texts


def cut_texts(places: Iterable[Path], nlp: Language) -> Iterator[Doc]:
    """Read documents without labels, and cut them as training cuts documents. Those without a token are left out.

    places (Iterable[Path]): As `read_texts` takes them.
    nlp (Language): Its tokenizer and its vocabulary are used.
    YIELDS (Doc): The documents, with their words, and sentence starts where they are known.
    """
    empty = 0
    docs = (doc for place in places for doc in read_texts(place, nlp))
    for doc in tqdm.tqdm(docs, "reading", unit="doc", disable=None):
        empty += not len(doc)
        for start, end in find_pieces(doc):
            yield copy_words(doc[start:end], nlp.vocab)
    if empty:
        msg.warn(f"Left out {empty} documents without a word")


def read_texts(path: Path, nlp: Language) -> Iterator[Doc]:
    """Read documents without labels.

    path (Path): A file of a kind that `read_documents` knows, or a folder with such files, wherever in it. The
        documents of a .spacy file keep their tokens.
    nlp (Language): Its tokenizer and its vocabulary are used.
    YIELDS (Doc): The documents.
    RAISES (StepError): If a file is of another kind or damaged, with its line or row; if it is in an encoding that can
        only be guessed; or if a folder has no such file.
    """
    for file in find_files(path):
        if doubt := check_encoding(file):  # nobody looks at what is trained on
            raise doubt
        if file.suffix.lower() == ".spacy":
            yield from read_docs(file, nlp.vocab)
            continue
        for document in read_documents(Source(file, file.name)):
            if isinstance(document, StepError):
                raise document
            yield nlp.tokenizer(document.text)


# Teachers


def annotate(teachers: list[Path], labelled: list[Doc], unlabelled: list[Doc]) -> None:
    """Give documents the targets that the student learns, from the mean of the teachers' probabilities of tags.

    Labelled documents keep their annotation. The others get the entities of the mean, with which the augmentation
    works, and the sentence starts of the first teacher, since spaCy's sentence recogniser takes unknown ones for none.

    teachers (list[Path]): Trained pipelines, which are loaded one after the other.
    labelled, unlabelled (list[Doc]): The documents, of one vocabulary, which are changed.
    RAISES (StepError): If a teacher cannot be loaded, or has other labels than the labelled documents.
    """
    labels = sorted({ent.label_ for doc in labelled for ent in doc.ents})
    docs = [*labelled, *unlabelled]
    means = [np.zeros((len(doc), 1 + 4 * len(labels)), dtype="float32") for doc in docs]
    starts: list[list[bool]] = []
    tags: list[str] = []
    for folder in teachers:
        nlp, tags = load_teacher(folder, labels)
        with record_tags(nlp) as recorded:
            predicted = nlp.pipe(copy_words(doc[:], nlp.vocab) for doc in docs)
            bar = tqdm.tqdm(predicted, str(folder), len(docs), unit="doc", disable=None)
            found = [[bool(token.is_sent_start) for token in doc] for doc in bar]
        starts = starts or found
        for mean, array in zip(means, recorded.posteriors, strict=True):
            mean += array / len(teachers)
    gold = number_tags((Example(copy_words(doc[:], doc.vocab), doc) for doc in labelled), tags)
    for doc, mean, numbers in zip(labelled, means, gold, strict=False):
        doc.user_data["tag_targets"] = mix(mean, numbers)
    rest = slice(len(labelled), None)
    for doc, mean, begins in zip(unlabelled, means[rest], starts[rest], strict=True):
        for token, begin in zip(doc, begins, strict=True):
            token.is_sent_start = begin
        (entities,) = find_entities_of([doc], [mean])
        doc.set_ents([Span(doc, start, end, labels[label]) for start, end, label, _ in entities])
        doc.user_data["tag_targets"] = mean


def load_teacher(folder: Path, labels: list[str]) -> tuple[Language, list[str]]:
    """Load a trained pipeline.

    folder (Path): The pipeline.
    labels (list[str]): The labels that it must have, sorted.
    RETURNS (tuple[Language, list[str]]): The pipeline, and the tags of which it gives probabilities.
    RAISES (StepError): If it cannot be loaded, has no entity recogniser of this project, or has other labels.
    """
    try:
        nlp = spacy.load(folder)
        recognizer: Any = nlp.get_pipe("ner")
        found, tags = list(recognizer.labels), list(recognizer.tags)
    except Exception as error:  # of a kind for each way in which a folder is no such pipeline
        reason = (str(error) or repr(error)).splitlines()[0]
        raise StepError(
            f"{folder} is no pipeline of this project that can be loaded: {reason}",
            "A teacher is a trained pipeline, such as training/<run>/model-best.",
        ) from error
    if found != labels:
        raise StepError(
            f"{folder} has the labels {', '.join(found)}, and the corpus {', '.join(labels)}.",
            "Teachers need the labels of the student's corpus: train them on one with the same labels.",
        )
    return nlp, tags


def mix(predicted: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Mix the teachers' probabilities with the tags of the corpus.

    predicted (np.ndarray): The probabilities of the tags, (tokens, tags), float32.
    gold (np.ndarray): The numbers of the tags of the corpus, (tokens,), int, or -1 where it has none.
    RETURNS (np.ndarray): What the student learns, (tokens, tags), float32. Each row has the sum 1.
    """
    targets = predicted.copy()
    known = np.flatnonzero(gold >= 0)
    targets[known] *= 1 - GOLD_WEIGHT
    targets[known, gold[known]] += GOLD_WEIGHT
    return targets


def copy_words(span: Span, vocab: Vocab) -> Doc:
    """Copy the words of a span, and its sentence starts where they are known, as a document."""
    spaces = None if span.doc.has_unknown_spaces else [bool(token.whitespace_) for token in span]
    starts: Any = [token.is_sent_start for token in span] if span.doc.has_annotation("SENT_START") else None
    return Doc(vocab, words=[token.text for token in span], spaces=spaces, sent_starts=starts)


if __name__ == "__main__":
    main(teach)
