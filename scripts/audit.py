"""Labels that are probably wrong: each document is compared with a pipeline that was trained on the others.

The same pipelines tell how good one is that is trained on the documents: F1 of all of them, each scored by one that has
not seen it. With few documents that says more than a small dev set.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from spacy.tokens import Doc, DocBin
from wasabi import msg

from common.agreement import decide
from common.alignment import align, create_reader
from common.corpora import read_docs
from common.errors import StepError, main
from common.formatting import percent
from common.gpu import use_gpu
from common.label_errors import count_entities, decode, describe, predict, rank_label_errors
from common.models import train_aside
from common.records import check_run, staged, write_json
from common.reviews import FINDINGS, LabelError, effective, is_settled
from common.splits import DOCUMENTS, stratify
from common.statistics import bootstrap, f_score, interval
from common.store import STORE, open_store
from common.training import prepare

DEV = 0.1  # of the documents to learn from; they choose the best weights and calibrate the scores
SHOWN = 10  # so many findings are printed; the file has all


class Labelled(NamedTuple):
    """An annotated document.

    id (str): Its id in the store, or its number in train.spacy, from 0.
    group (str): Near-duplicates have the same.
    doc (Doc): With entities and sentence starts.
    """

    id: str
    group: str
    doc: Doc


def audit(
    config: Annotated[Path, typer.Argument(help="Training config", exists=True)],
    folder: Annotated[Path, typer.Argument(help="Folder for label-errors.json; its annotations.db comes first")],
    corpus: Annotated[Path, typer.Argument(help="Folder with train.spacy, which is read if there is no store")],
    encoder: Annotated[Path, typer.Argument(help="Folder of the encoder", exists=True)],
    training: Annotated[Path, typer.Argument(help="Folder of the run, where train keeps its models")],
    folds: Annotated[int, typer.Option(help="Into how many parts the documents are divided", min=2)] = 3,
    epochs: Annotated[str, typer.Option(help="As train's")] = "auto",
    learn_rate: Annotated[str, typer.Option(help="As train's")] = "auto",
    batch_words: Annotated[str, typer.Option(help="As train's")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the parts, and of the trainings")] = 0,
    gpu_id: Annotated[int, typer.Option(help="GPU, or -1 for the CPU")] = -1,
) -> None:
    """Rank the labels that are probably wrong, by pipelines that were trained on other documents."""
    check_run(folder)  # not locked while folds are trained, so that people can go on annotating
    use_gpu(gpu_id)
    documents, where = read_labelled(folder, corpus)
    parts = divide(documents, [1 / folds] * folds, seed)
    if len({*parts}) < folds:
        raise StepError(f"{where} has too few documents for {folds} folds.", "Choose fewer folds: --vars.folds 2")
    options: dict[str, Any] = {"epochs": epochs, "learn_rate": learn_rate, "batch_words": batch_words, "seed": seed}
    findings: list[dict[str, Any]] = []
    unknown: Counter[str] = Counter()
    counts: list[np.ndarray] = []
    for fold in range(folds):
        msg.divider(f"fold {fold + 1} of {folds}")
        held = [one for one, part in zip(documents, parts, strict=True) if part == fold]
        others = [one for one, part in zip(documents, parts, strict=True) if part != fold]
        model = train_on(others, config, training, encoder, gpu_id, options)
        docs = [one.doc for one in held]
        probabilities, labels = predict(model, docs)
        counts.append(count_entities(docs, decode(docs, probabilities, labels)))
        unknown += Counter(ent.label_ for one in held for ent in one.doc.ents if ent.label_ not in labels)
        for finding in rank_label_errors(docs, probabilities, labels):
            document = held[finding.document]
            findings.append({"document": document.id, **describe(finding, document.doc)})
    findings.sort(key=lambda finding: -float(finding["score"]))
    found = len(findings)
    if where.name == STORE:  # read after the trainings, during which people go on
        changes = effective(open_store(folder).changes())
        findings = [one for one in findings if not is_settled(LabelError.model_validate(one), changes)]
    scored = np.concatenate(counts)
    f1, spread = float(f_score(scored.sum(0))), interval(bootstrap(scored[None]))
    with staged(folder, FINDINGS) as new:
        record = {"source": str(where), "folds": folds, "documents": len(documents), "f1": f1, "interval": spread}
        write_json(new / FINDINGS, record | {"not_judged": dict(unknown), "findings": findings})
    show(findings, unknown)
    if found > len(findings):
        msg.info(f"Left out, because people have decided that the label is right: {found - len(findings)}")
    low, high = map(percent, spread)
    msg.text(
        f"F1 of the {len(documents):,} documents, each scored by a pipeline that was trained on others: {percent(f1)} "
        f"(95% interval {low} to {high})"
    )
    msg.good(f"Wrote {folder / FINDINGS}: {len(findings)} places to look at, the most probable errors first")


def read_labelled(folder: Path, corpus: Path) -> tuple[list[Labelled], Path]:
    """Read the annotated documents: those of the store that have a final annotation, or else the training corpus.

    folder (Path): The folder annotate/<run>.
    corpus (Path): The folder corpus/<run>.
    RETURNS (tuple[list[Labelled], Path]): The documents, and the file that they are from.
    RAISES (StepError): If there is neither, or if nothing is marked in them.
    """
    store, train = folder / STORE, corpus / "train.spacy"
    documents = []
    if store.exists():
        nlp = create_reader()
        for task in open_store(folder).tasks():
            if annotation := decide(task).annotation:
                doc = align(nlp, task.document.text, annotation.spans).doc
                group = task.document.meta.get("group")
                key = f"document {task.document.id}" if group is None else f"group {group}"
                documents.append(Labelled(task.document.id, key, doc))
    elif train.exists():
        documents = [Labelled(str(number), str(number), doc) for number, doc in enumerate(read_docs(train))]
    else:
        raise StepError(f"There is neither {store} nor {train}.", "Annotate texts, or convert a corpus first.")
    source = store if store.exists() else train
    documents = [one for one in documents if any(not token.is_space for token in one.doc)]
    if not any(one.doc.ents for one in documents):
        raise StepError(f"{source} has no document in which something is marked for good.", "Annotate some.")
    return documents, source


def divide(documents: list[Labelled], shares: list[float], seed: int) -> list[int]:
    """Divide documents, near-duplicates together, so that each part has its share of every label.

    documents (list[Labelled]): The documents.
    shares (list[float]): The share of each part.
    seed (int): Of the order in which they are divided.
    RETURNS (list[int]): The part of each document.
    """
    counts: dict[str, Counter[str]] = {}
    for one in documents:
        counts.setdefault(one.group, Counter()).update({DOCUMENTS, *(ent.label_ for ent in one.doc.ents)})
    parts = dict(zip(counts, stratify([*counts.values()], shares, seed), strict=True))
    return [parts[one.group] for one in documents]


def train_on(
    documents: list[Labelled], config: Path, training: Path, encoder: Path, gpu_id: int, options: dict[str, Any]
) -> Path:
    """Train a pipeline in a process of its own, or find it, beside the model-best of the run, which stays.

    documents (list[Labelled]): What to learn from; a part of them is dev.
    config, training, encoder, gpu_id: As `audit` takes them.
    options (dict[str, Any]): The settings that `prepare` takes, by name.
    RETURNS (Path): The model.
    RAISES (StepError): If the training fails, or if there are too few documents.
    """
    parts = divide(documents, [1 - DEV, DEV], options["seed"])
    if len({*parts}) < 2:
        raise StepError("There are too few documents to train on.", "Annotate more of them.")
    with tempfile.TemporaryDirectory() as corpus:
        for number, split in enumerate(("train", "dev")):
            docs = (one.doc for one, part in zip(documents, parts, strict=True) if part == number)
            DocBin(store_user_data=True, docs=docs).to_disk(Path(corpus, f"{split}.spacy"))
        inputs, _ = prepare(config, Path(corpus), encoder, **options)
        return train_aside(inputs, config, training, Path(corpus), encoder, gpu_id=gpu_id, **options)


def show(findings: list[dict[str, Any]], unknown: Counter[str]) -> None:
    """Print how many findings there are of each kind, and the first of them.

    findings (list[dict[str, Any]]): As `describe` returns them.
    unknown (Counter[str]): How many entities were not judged, by label.
    """
    kinds = Counter(finding["kind"] for finding in findings)
    msg.table(kinds.most_common(), header=("kind", "findings"), divider=True, aligns=("l", "r"))
    for finding in findings[:SHOWN]:
        sides = [
            f"{name} {side['text']!r} {side['label']}" if (side := finding[name]) else f"{name} nothing"
            for name in ("annotated", "predicted")
        ]
        msg.text(f"{finding['score']:.2f} {finding['document']}: {', '.join(sides)}")
    if unknown:
        labels = ", ".join(f"{label} ({number})" for label, number in unknown.items())
        msg.warn(f"Not judged, since only one fold has the label: {labels}")


if __name__ == "__main__":
    main(audit)
