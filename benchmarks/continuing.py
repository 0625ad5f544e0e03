"""Measure what a pipeline learns and forgets when it goes on with a few documents.

A base pipeline is trained without one of the labels. It goes on with documents that are annotated for this label alone,
and with documents of its own labels in lower case, a domain of another kind: without a teacher, with itself as the
teacher, and with texts without labels too. All of these are documents that it has not seen. Dev and test stay whole.
Trained models are found again by their provenance, and results by their inputs, so that after an interruption the same
command goes on where it was.
"""

from __future__ import annotations

import functools
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import spacy
import typer
from spacy.tokens import Doc, DocBin
from wasabi import msg

import bert_ner  # noqa: F401 (registers what a trained pipeline names)
from benchmarks.harness import PIPELINE, machine
from bert_ner.corpus import recase
from common.corpora import read_docs
from common.errors import StepError, main
from common.forgetting import ALL, choose_rate, compare_labels, count_entities
from common.formatting import describe_whole, tabulate_continuing
from common.models import TAUGHT, train_aside
from common.records import SPLITS, read_json, record_inputs, write_json, writes
from common.scoring import create_examples, predict
from common.statistics import f_score
from common.training import prepare

NEW_LABEL, LOWER_CASE = "a new label", "lower case"
ALONE, TAUGHT_BY_ITSELF, WITH_TEXTS = "without a teacher", "rehearsal", "rehearsal with texts"
WAYS = (ALONE, TAUGHT_BY_ITSELF, WITH_TEXTS)
POOL = 250  # documents that the base does not see, at most half of all: those to go on with, and texts without labels
CODE = Path(__file__).parent.parent / "scripts"


@writes("metrics", "continuing.json")
def continuing(
    config: Annotated[Path, typer.Argument(help="Training config", exists=True)],
    folder: Annotated[Path, typer.Argument(help="Folder of the run, where train keeps its models")],
    corpus: Annotated[Path, typer.Argument(help="Folder with train.spacy, dev.spacy, test.spacy", exists=True)],
    encoder: Annotated[Path, typer.Argument(help="Folder of the encoder", exists=True)],
    metrics: Annotated[Path, typer.Argument(help="Folder for continuing.json")],
    label: Annotated[str, typer.Option(help="The label that is new")] = "MISC",
    sizes: Annotated[str, typer.Option(help="Numbers of documents, with commas between")] = "10,25,50",
    draws: Annotated[int, typer.Option(help="How many, from 0; a draw is the seed of its trainings too", min=1)] = 1,
    epochs: Annotated[str, typer.Option(help="As train's")] = "auto",
    learn_rate: Annotated[
        str, typer.Option(help="As train's, of what goes on; the others are trained by auto")
    ] = "auto",
    batch_words: Annotated[str, typer.Option(help="As train's")] = "auto",
    gpu_id: Annotated[int, typer.Option(help="GPU, or -1 for the CPU")] = -1,
) -> None:
    """Train a pipeline without a label, go on from it in several ways, and score what it has learnt and forgotten."""
    docs = {split: read_docs(corpus / f"{split}.spacy") for split in SPLITS}
    old = sorted({ent.label_ for doc in docs["train"] for ent in doc.ents} - {label})
    if not old or not all(any(ent.label_ == label for doc in part for ent in doc.ents) for part in docs.values()):
        raise StepError(f"{corpus} has not {label} and another label in each split.", "Choose another: --label")
    order = np.random.default_rng(0).permutation(len(docs["train"]))
    pool, seen = np.split(order, [min(POOL, len(order) // 2)])
    numbers = choose_sizes(sizes, len(pool))
    folder.mkdir(parents=True, exist_ok=True)
    path = metrics / "continuing.json"
    options: dict[str, Any] = {"epochs": epochs, "batch_words": batch_words}
    inputs = record_inputs(
        config=config,
        encoder=encoder,
        code=Path(__file__),
        pipeline=PIPELINE,
        train_step=CODE / "train.py",
        teach=CODE / "teach.py",
        **{split: corpus / f"{split}.spacy" for split in SPLITS},
    )
    runs = read_json(path).get("runs", {})
    with tempfile.TemporaryDirectory() as temporary:

        def train(place: Path, **more: Any) -> Path:
            settings = options | more
            rate = choose_rate(settings.get("learn_rate", "auto"), settings.get("start"))  # as train does
            provenance, _ = prepare(config, place, encoder, **settings | {"learn_rate": rate})
            return train_aside(provenance, config, folder, place, encoder, gpu_id=gpu_id, **settings)

        @functools.cache
        def find_base() -> tuple[Path, Path]:
            """The base pipeline, and the corpus without the label that it was trained on."""
            parts = docs | {"train": [docs["train"][i] for i in sorted(seen)]}
            kept = {split: keep_labels(part, old) for split, part in parts.items()}
            place = write_corpus(Path(temporary, "base"), kept)
            return train(place), place

        @functools.cache
        def count(model: Path, test: Path) -> np.ndarray:
            return count_entities(annotate(model, test), [*old, label])

        def score(kind: str, documents: int, draw: int, way: str) -> dict[str, Any]:
            base, plain = find_base()
            place = Path(temporary, f"{kind}-{documents}-{draw}-{way}".replace(" ", "-"))
            drawn = np.random.default_rng(draw).permutation(pool)
            chosen = [docs["train"][i] for i in sorted(drawn[:documents])]
            parts = docs | {"train": keep_labels(chosen, [label])}
            if kind == LOWER_CASE:
                parts = {
                    split: [recase(doc, str.lower) for doc in keep_labels(part, old)]
                    for split, part in (docs | {"train": chosen}).items()
                }
            write_corpus(place, parts)
            more: dict[str, Any] = {"start": base, "seed": draw, "learn_rate": learn_rate}
            if way != ALONE:
                texts = Path(temporary, f"texts-{kind}-{documents}-{draw}.spacy".replace(" ", "-"))
                others = [docs["train"][i] for i in drawn[documents:]]
                if kind == LOWER_CASE:
                    others = [recase(doc, str.lower) for doc in others]
                DocBin(docs=others).to_disk(texts)
                teach(place, base, [texts] if way == WITH_TEXTS else [], gpu_id)
                more["train_on"] = TAUGHT
            model = train(place, **more)
            tests = {"test": place / "test.spacy"} | ({"before": plain / "test.spacy"} if kind == LOWER_CASE else {})
            result: dict[str, Any] = {
                name: compare_labels(count(base, test)[: len(old)], count(model, test)[: len(old)], old)
                for name, test in tests.items()
            }
            if kind == NEW_LABEL:
                result["new"] = float(f_score(count(model, place / "test.spacy")[-1].sum(0)))
            return result | {"seconds": read_json(model / "provenance.json")["seconds"]}

        done = []
        for kind, documents, draw, way in itertools.product((NEW_LABEL, LOWER_CASE), numbers, range(draws), WAYS):
            key = f"{kind}, {documents} documents, draw {draw}, {way}"
            msg.divider(key)
            decisive = inputs | options | {"learn_rate": learn_rate, "label": label}
            if runs.get(key, {}).get("inputs") != decisive:
                where = {"kind": kind, "documents": documents, "draw": draw, "way": way}
                runs[key] = where | {"inputs": decisive} | score(kind, documents, draw, way)
                write_json(path, {"machine": machine(), "inputs": inputs, "runs": runs})
            else:
                msg.good("measured already")
            done.append(runs[key])
        msg.divider("from the encoder, on all documents")
        whole = f_score(count(train(corpus), corpus / "test.spacy").sum(1))
    record = {
        "machine": machine(),
        "inputs": inputs,
        "label": label,
        "runs": runs,
        "whole": dict(zip([*old, label], map(float, whole), strict=True)),
        "summary": summarize(done),
    }
    write_json(path, record)
    header, rows = tabulate_continuing(record)
    msg.table(rows, header=header, divider=True)
    msg.text(describe_whole(record))
    msg.good(f"Wrote {path}")


def choose_sizes(sizes: str, total: int) -> list[int]:
    """Read numbers of documents with commas between them.

    RAISES (StepError): If something else stands there, or if there are not so many documents.
    """
    parts = [part.strip() for part in sizes.split(",")]
    if not all(part.isdecimal() and 0 < int(part) <= total for part in parts):
        raise StepError(f"{sizes!r} are no numbers of documents up to {total}.", "For example: --sizes 10,25,50")
    return sorted({*map(int, parts)})


def keep_labels(docs: Iterable[Doc], labels: Iterable[str]) -> list[Doc]:
    """Copy documents as if people had been asked for some labels only: all else is O."""
    copies = []
    for doc in docs:
        copies.append(copied := doc.copy())
        copied.set_ents([ent for ent in copied.ents if ent.label_ in labels])
    return copies


def write_corpus(folder: Path, docs: dict[str, list[Doc]]) -> Path:
    """Write the splits of a corpus. RETURNS (Path): The folder, which is made."""
    folder.mkdir()
    for split, part in docs.items():
        DocBin(docs=part, store_user_data=True).to_disk(folder / f"{split}.spacy")
    return folder


def teach(corpus: Path, start: Path, texts: list[Path], gpu_id: int) -> None:
    """Let a pipeline annotate a corpus for the one that goes on from it, in a process of its own.

    RAISES (StepError): If that fails.
    """
    command = [sys.executable, "-m", "scripts.teach", str(corpus), "--start", str(start)]
    command += ["--texts", ",".join(map(str, texts)), "--gpu-id", str(gpu_id)]
    if subprocess.run(command).returncode:
        raise StepError(f"{start} could not annotate {corpus}.", "See above. What is done is kept: run the same again.")


def annotate(model: Path, path: Path) -> list[Any]:
    """The examples of a .spacy file, as a pipeline annotates them as shipped."""
    nlp = spacy.load(model)
    examples = list(create_examples(nlp, path, "predicted_sentences"))
    predict(nlp, examples)
    return examples


def summarize(runs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compute means over the draws.

    runs (Iterable[dict[str, Any]]): As `continuing` writes them.
    RETURNS (list[dict[str, Any]]): For each kind, number of documents and way: these, the number of `draws`, and F1 of
        all old labels together on the test of what it went on with, `before` and `after`; for a new label, `new`; for
        another domain, `plain_before` and `plain_after`, on the test of the base.
    """
    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["kind"], run["documents"], run["way"]), []).append(run)
    rows = []
    for (kind, documents, way), group in groups.items():
        figures: dict[str, Callable[[dict[str, Any]], float]] = {
            "before": lambda run: run["test"][ALL]["before"],
            "after": lambda run: run["test"][ALL]["after"],
        }
        if kind == NEW_LABEL:
            figures["new"] = lambda run: run["new"]
        else:
            figures["plain_before"] = lambda run: run["before"][ALL]["before"]
            figures["plain_after"] = lambda run: run["before"][ALL]["after"]
        means = {name: float(np.mean([figure(run) for run in group])) for name, figure in figures.items()}
        rows.append({"kind": kind, "documents": documents, "way": way, "draws": len(group), **means})
    return rows


if __name__ == "__main__":
    main(continuing)
