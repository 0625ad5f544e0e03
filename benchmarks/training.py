"""Measure how fast this project's config trains, beside spaCy's own and Hugging Face's; or train in full, and score."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import tqdm
import typer
from wasabi import msg

from benchmarks.harness import (
    PIPELINE,
    Worker,
    add_rates,
    choose,
    compete,
    machine,
    make_job,
    print_rates,
    worker_commands,
)
from benchmarks.worker import TRAINING
from common.corpora import read_docs, split_sentences
from common.errors import main
from common.records import record_inputs, write_json, writes


@writes("metrics", "training.json", "training-full.json")
def training(
    config: Annotated[Path, typer.Argument(help="Training config", exists=True)],
    corpus: Annotated[Path, typer.Argument(help="Folder with train.spacy, dev.spacy", exists=True)],
    encoder: Annotated[Path, typer.Argument(help="Folder of the encoder", exists=True)],
    metrics: Annotated[Path, typer.Argument(help="Folder for training.json, or training-full.json")],
    documents: Annotated[int, typer.Option(help="How many to train on, from the first; 0 for all", min=0)] = 100,
    repetitions: Annotated[int, typer.Option(help="Of each contender", min=1)] = 3,
    epochs: Annotated[int, typer.Option(help="Train on all, from scratch, for so many, and score", min=0)] = 0,
    only: Annotated[str, typer.Option(help="Some contenders, with commas between")] = "",
) -> None:
    """Measure how fast this project's config trains, beside spaCy's own and Hugging Face's."""
    names = choose(TRAINING, only)
    path = metrics / ("training-full.json" if epochs else "training.json")
    train, dev = corpus / "train.spacy", corpus / "dev.spacy"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        job = make_job(train, 0 if epochs else documents, folder, encoder, sentence_docs=True)
        job.config, job.corpus, job.epochs = str(config.resolve()), str(corpus.resolve()), epochs
        if epochs:
            job.dev_sentences = split_sentences(read_docs(dev))
        record = {
            "documents": "all" if epochs or not documents else documents,
            "words": job.words,
            "sentences": len(job.sentences),
            "epochs": epochs,
            "reference": names[0],
            "machine": machine(),
            "inputs": record_inputs(
                config=config, train=train, dev=dev, encoder=encoder, code=Path(__file__), pipeline=PIPELINE
            ),
        }
        commands = worker_commands(names, job, folder, {})
        contenders: dict[str, dict[str, Any]] = {}
        # A full training may take hours, so that results are written after each
        for group in [[name] for name in names] if epochs else [names]:
            chosen = {name: commands[name] for name in group}
            contenders |= train_in_full(chosen, folder) if epochs else compete(chosen, repetitions, folder)
            add_rates(contenders, names[0])
            write_json(path, record | {"contenders": contenders})
    print_rates(contenders, names[0])
    msg.good(f"Wrote {path}")


def train_in_full(commands: dict[str, list[str]], target: Path) -> dict[str, dict[str, Any]]:
    """Let contenders train for all epochs, one after the other.

    commands (dict[str, list[str]]): The command line of each contender's process, by name.
    target (Path): Folder with the installed wheel.
    RETURNS (dict[str, dict[str, Any]]): As `compete` returns it, with a single repetition for each.
    """
    results = {}
    for name, command in commands.items():
        with Worker(name, command, target) as worker, tqdm.tqdm(total=100, desc=name, unit="%", disable=None) as bar:
            worker.answer()
            repetition = worker.repeat(lambda done, bar=bar: bar.update(int(100 * done) - bar.n))  # type: ignore[misc]
            bar.set_description(f"{name}: scoring")
            results[name] = {"repetitions": [repetition], **worker.finish()}
    return results


if __name__ == "__main__":
    main(training)
