"""Let trained pipelines, the teachers, annotate what another pipeline, the student, is trained on.

A student that goes on from a trained pipeline has this one as its teacher, and may have new labels. How to learn them
and not to forget the old ones is known as learning without forgetting (Li and Hoiem 2016,
https://arxiv.org/abs/1606.09282); for named entities see Monaikul et al. 2021,
https://doi.org/10.1609/aaai.v35i15.17600.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tqdm
import typer
from spacy.language import Language
from spacy.tokens import Doc, DocBin, Span
from spacy.training import Example
from spacy.vocab import Vocab
from wasabi import msg

import bert_ner  # noqa: F401 (registers what a trained pipeline names)
from bert_ner.corpus import find_pieces
from bert_ner.recognizer import CHUNKS, find_entities_of
from common.alignment import create_tokenizer
from common.corpora import read_docs
from common.errors import StepError, main
from common.gpu import use_gpu
from common.models import TAUGHT, TAUGHT_DEV, load_trained
from common.records import code_digest, read_json, record_inputs, sha256, staged, write_json, writes
from common.scoring import record_tags
from common.statistics import SMALLEST, number_tags
from common.texts import READERS, Source, check_encoding, find_files, find_paths, read_documents

GOLD_WEIGHT = 0.5  # of the corpus's tag in a target; the rest is that of the teachers' probabilities
SURE = 0.9  # from this probability on, a pipeline is believed about texts in which new labels may occur


@writes("corpus")
def teach(
    corpus: Annotated[Path, typer.Argument(help="Folder with train.spacy; taught.spacy is made there", exists=True)],
    teachers: Annotated[str, typer.Option(help="Folders of trained pipelines or patterns, with commas between")] = "",
    texts: Annotated[str, typer.Option(help=f"Files ({', '.join(READERS)}), folders or patterns")] = "",
    train_on: Annotated[str, typer.Option(help="What the run trains on, which has to be taught")] = TAUGHT,
    start: Annotated[Path | None, typer.Option(help="Folder with the pipeline to go on from, if there is one")] = None,
    gpu_id: Annotated[int, typer.Option(help="GPU, or -1 for the CPU")] = -1,
) -> None:
    """Write what the student learns, unless it is there: corpus and texts, with the teachers' probabilities of tags."""
    if train_on != TAUGHT:
        raise StepError(
            f"The run trains on {train_on}, from which it would learn nothing of its teachers.",
            f"Put this line into the run's file: train_on: {TAUGHT}",
        )
    start = start if start and start.exists() else None
    if start and teachers:
        raise StepError(
            "The run has teachers, and a pipeline to go on from, which is its teacher.",
            "Leave one of the lines teachers and start out of the run's file.",
        )
    use_gpu(gpu_id)
    # By what they were trained from, since the name of a model changes when the run trains another one.
    paths = [start] if start else find_paths(teachers)
    folders = {record_inputs(teacher=folder)["teacher"]: folder for folder in paths}
    if not folders:
        raise StepError("The run has no teachers.", "For example: --vars.teachers training/<run>/model-best")
    places = find_paths(texts)
    inputs = {
        "teachers": sorted(folders),
        "texts": sorted(map(sha256, places)),
        "train": sha256(corpus / "train.spacy"),
        "code": code_digest(Path(__file__)),
        **({"dev": sha256(corpus / "dev.spacy")} if start else {}),
    }
    if (corpus / f"{TAUGHT}.spacy").exists() and read_json(corpus / f"{TAUGHT}.json").get("inputs") == inputs:
        msg.good(f"{corpus}: what the teachers say is there")
        return
    nlp = create_tokenizer()
    labelled = read_docs(corpus / "train.spacy", nlp.vocab)
    unlabelled = list(cut_texts(places, nlp))
    dev = read_docs(corpus / "dev.spacy", nlp.vocab) if start else []
    if start:
        rehearse(start, labelled, unlabelled, dev)
    else:
        annotate([folders[name] for name in inputs["teachers"]], labelled, unlabelled)
    counts = {
        kind: {"documents": len(docs), "tokens": sum(map(len, docs)), "entities": sum(len(doc.ents) for doc in docs)}
        for kind, docs in (("labelled", labelled), ("unlabelled", unlabelled))
    }
    files = {f"{TAUGHT}.spacy": [*labelled, *unlabelled]} | ({f"{TAUGHT_DEV}.spacy": dev} if start else {})
    with staged(corpus, *files, f"{TAUGHT}.json") as folder:
        for name, docs in files.items():
            DocBin(store_user_data=True, docs=docs).to_disk(folder / name)
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
    labels = find_labels(labelled)
    docs = [*labelled, *unlabelled]
    means = [np.zeros((len(doc), 1 + 4 * len(labels)), dtype="float32") for doc in docs]
    predicted: list[Doc] = []
    tags: list[str] = []
    for folder in teachers:
        nlp, tags = load_teacher(folder, labels)
        found, posteriors = predict(nlp, docs, str(folder))
        predicted = predicted or found
        for mean, array in zip(means, posteriors, strict=True):
            mean += array / len(teachers)
    known = np.ones(len(tags), dtype=bool)
    for doc, mean, numbers in zip(labelled, means, number_gold(labelled, tags), strict=False):
        doc.user_data["tag_targets"] = mix(mean, find_allowed(numbers, tags, labels), known)
    rest = slice(len(labelled), None)
    for doc, mean, other in zip(unlabelled, means[rest], predicted[rest], strict=True):
        copy_starts(other, doc)
        doc.set_ents([span for span, _ in decode(doc, mean, labels)])
        doc.user_data["tag_targets"] = mean


def rehearse(start: Path, labelled: list[Doc], unlabelled: list[Doc], dev: list[Doc]) -> None:
    """Give documents the targets from which a pipeline learns new labels and keeps those that it has.

    People may have been asked for the new labels only. Therefore a document's O means nothing but that there is no
    entity of the labels that occur in its corpus; what else is there, the pipeline says. Where it finds an entity of
    another label that no annotated one overlaps, the document gets it. Documents without parts of speech or chunks get
    those of the pipeline, so that it keeps them.

    In texts without labels, the pipeline says O of a name of a new label. Where there are new labels, these texts have
    targets only where the pipeline is sure of an entity, and where it is sure of O for a word that the corpus has, and
    never in a name of a new label. All other tokens are missing, and may have any tag.

    start (Path): The pipeline to go on from.
    labelled, unlabelled, dev (list[Doc]): The documents, of one vocabulary, which are changed; dev gets no targets.
    RAISES (StepError): If the pipeline cannot be loaded.
    """
    nlp = load_trained(start)
    if "chunker" in nlp.component_names:
        nlp.enable_pipe("chunker")
    recognizer: Any = nlp.get_pipe("ner")
    asked = find_labels(labelled)
    labels = sorted({*recognizer.labels, *asked})
    new = {*labels} - {*recognizer.labels}
    tags = ["O", *(f"{kind}-{label}" for label in labels for kind in "BILU")]
    known = np.isin(tags, recognizer.tags)
    docs = [*labelled, *unlabelled, *dev]
    predicted, posteriors = predict(nlp, docs, str(start))
    means = [np.zeros((len(doc), len(tags)), dtype="float32") for doc in docs]
    for doc, other, mean, array in zip(docs, predicted, means, posteriors, strict=True):
        mean[:, known] = array
        if not doc.has_annotation("TAG"):
            for token, annotated in zip(doc, other, strict=True):
                token.tag_ = annotated.tag_
        if CHUNKS in other.spans and CHUNKS not in doc.spans:
            doc.spans[CHUNKS] = [Span(doc, chunk.start, chunk.end, chunk.label_) for chunk in other.spans[CHUNKS]]
    for doc, mean, gold in zip(labelled, means, number_gold(labelled, tags), strict=False):
        targets = mix(mean, find_allowed(gold, tags, asked), known)
        if new:
            targets[gold < 0] = 0
        doc.user_data["tag_targets"] = targets
    outside = find_outside(labelled, new)
    rest = slice(len(labelled), len(labelled) + len(unlabelled))
    for doc, mean, other in zip(unlabelled, means[rest], predicted[rest], strict=True):
        copy_starts(other, doc)
        spans = decode(doc, mean, labels)
        if not new:
            doc.set_ents([span for span, _ in spans])
            doc.user_data["tag_targets"] = mean
            continue
        sure = [span for span, score in spans if score >= SURE]
        taken = {i for span in sure for i in range(span.start, span.end)}
        free = [t.i for t in doc if t.i not in taken and t.text in outside and mean[t.i, 0] >= SURE]
        doc.set_ents(sure, outside=[doc[i : i + 1] for i in free], default="missing")
        kept = np.zeros((len(doc), 1), dtype=bool)
        kept[[*taken, *free]] = True
        doc.user_data["tag_targets"] = np.where(kept, mean, 0).astype("float32")
    complete(labelled, means[: len(labelled)], labels, asked)
    complete(dev, means[rest.stop :], labels, find_labels(dev))
    if others := [label for label in labels if label not in asked]:
        msg.info(f"The corpus has {', '.join(asked)}; where {', '.join(others)} are, the pipeline says")


def load_teacher(folder: Path, labels: list[str]) -> tuple[Language, list[str]]:
    """Load a trained pipeline as a teacher.

    folder (Path): The pipeline.
    labels (list[str]): The labels that it must have, sorted.
    RETURNS (tuple[Language, list[str]]): The pipeline, and the tags of which it gives probabilities.
    RAISES (StepError): If it cannot be loaded, has no entity recogniser of this project, or has other labels.
    """
    nlp = load_trained(folder)
    recognizer: Any = nlp.get_pipe("ner")
    if (found := list(recognizer.labels)) != labels:
        raise StepError(
            f"{folder} has the labels {', '.join(found)}, and the corpus {', '.join(labels)}.",
            "Teachers need the labels of the student's corpus: train them on one with the same labels. To add labels "
            "to a pipeline, go on from it: --vars.start",
        )
    return nlp, recognizer.tags


def predict(nlp: Language, docs: list[Doc], name: str) -> tuple[list[Doc], list[np.ndarray]]:
    """Let a pipeline annotate the words of documents.

    nlp (Language): The pipeline.
    docs (list[Doc]): The documents.
    name (str): For the progress bar.
    RETURNS (tuple[list[Doc], list[np.ndarray]]): Annotated copies, and for each document the posterior probabilities of
        the tags, (tokens, tags), float32.
    """
    with record_tags(nlp) as recorded:
        annotated = nlp.pipe(copy_words(doc[:], nlp.vocab) for doc in docs)
        return list(tqdm.tqdm(annotated, name, len(docs), unit="doc", disable=None)), recorded.posteriors


# Targets


def find_labels(docs: Iterable[Doc]) -> list[str]:
    """The labels of the entities of documents, sorted."""
    return sorted({ent.label_ for doc in docs for ent in doc.ents})


def number_gold(docs: list[Doc], tags: list[str]) -> list[np.ndarray]:
    """The numbers of the annotated tags of documents, as `number_tags` gives them."""
    return number_tags((Example(copy_words(doc[:], doc.vocab), doc) for doc in docs), tags)


def find_allowed(gold: np.ndarray, tags: Sequence[str], asked: Iterable[str]) -> np.ndarray:
    """Find which tags a token may have by the annotation of somebody who was asked for some labels.

    gold (np.ndarray): The numbers of the annotated tags, (tokens,), int, or -1 where there is none.
    tags (Sequence[str]): The tags, of which O is the first.
    asked (Iterable[str]): The labels.
    RETURNS (np.ndarray): Shape (tokens, tags), bool: the annotated tag; with O, all tags of other labels too; without
        an annotation all tags.
    """
    allowed: np.ndarray = np.eye(len(tags), dtype=bool)[gold]
    allowed[gold == 0] = [tag == "O" or tag[2:] not in {*asked} for tag in tags]
    allowed[gold < 0] = True
    return allowed


def mix(predicted: np.ndarray, allowed: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Mix the teachers' probabilities with what the corpus allows.

    The corpus's share goes to the tags that it allows for a token, by the teachers' probabilities. Where it allows only
    tags that they do not know, they have no say.

    predicted (np.ndarray): The probabilities of the tags, (tokens, tags), float32. Each row has the sum 1.
    allowed (np.ndarray): Which tags a token may have by the corpus, (tokens, tags), bool, at least one.
    known (np.ndarray): Which tags the teachers know, (tags,), bool.
    RETURNS (np.ndarray): What the student learns, (tokens, tags), float32. Each row has the sum 1.
    """
    fitting = np.where(allowed, np.maximum(predicted, SMALLEST), 0)  # so that a tag is chosen that they hold impossible
    fitting /= fitting.sum(1, keepdims=True)
    weight = np.where((allowed & known).any(1, keepdims=True), GOLD_WEIGHT, 1)
    return np.asarray(weight * fitting + (1 - weight) * predicted, dtype="float32")


def find_outside(docs: Iterable[Doc], new: set[str]) -> set[str]:
    """Find the words that documents have, and nowhere in an entity of a new label or where nothing is annotated."""
    tokens = [token for doc in docs for token in doc]
    within = {token.text for token in tokens if token.ent_type_ in new or not token.ent_iob}
    return {token.text for token in tokens} - within


def decode(doc: Doc, probabilities: np.ndarray, labels: list[str]) -> list[tuple[Span, float]]:
    """The entities of a document by the probabilities of tags, with their scores; none overlaps one that it has."""
    (entities,) = find_entities_of([doc], [probabilities])
    return [(Span(doc, start, end, labels[label]), score) for start, end, label, score in entities]


def complete(docs: list[Doc], means: list[np.ndarray], labels: list[str], asked: list[str]) -> None:
    """Add entities of the labels for which nobody was asked, where a document has no annotated ones.

    docs (list[Doc]): The documents, which are changed.
    means (list[np.ndarray]): The probabilities of the tags of each, (tokens, tags).
    labels (list[str]): The labels, in the order of the tags.
    asked (list[str]): Those for which somebody was asked.
    """
    for doc, mean in zip(docs, means, strict=True):
        found = [span for span, _ in decode(doc, mean, labels) if span.label_ not in asked]
        doc.set_ents(found, default="unmodified")


def copy_starts(predicted: Doc, doc: Doc) -> None:
    """Give a document the sentence starts that were predicted for the same words."""
    for token, other in zip(doc, predicted, strict=True):
        token.is_sent_start = bool(other.is_sent_start)


def copy_words(span: Span, vocab: Vocab) -> Doc:
    """Copy the words of a span, and its sentence starts where they are known, as a document."""
    spaces = None if span.doc.has_unknown_spaces else [bool(token.whitespace_) for token in span]
    starts: Any = [token.is_sent_start for token in span] if span.doc.has_annotation("SENT_START") else None
    return Doc(vocab, words=[token.text for token in span], spaces=spaces, sent_starts=starts)


if __name__ == "__main__":
    main(teach)
