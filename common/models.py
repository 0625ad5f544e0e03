"""The models of a run: what they learn from is found, they are found by it, trained aside, and loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import spacy
from spacy.language import Language

import bert_ner  # noqa: F401 (registers what a trained pipeline names)
from common.errors import StepError
from common.records import digest, read_json, record_inputs, sha256

BEST, LAST = "model-best", "model-last"  # the names that spaCy gives
TAUGHT = "taught"  # train.spacy with what teachers say of it, and texts of which only they say something
TAUGHT_DEV = "taught-dev"  # dev.spacy with what the pipeline that a training goes on from says of other labels
MIXED = "mixed"  # train.spacy and synthetic texts
DIVERGED = "The training diverged"  # how the error begins that train gives then


def find_taught(corpus: Path, train_on: str, start: Path | None = None) -> dict[str, Any]:
    """Find what a training learns from beside the corpus: whose probabilities of tags, or what synthetic texts.

    corpus (Path): Folder with train.spacy and, if teachers have annotated it, taught.spacy and taught.json.
    train_on, start: As the command `train` takes them. A pipeline to go on from is the only teacher.
    RETURNS (dict[str, Any]): Nothing for "train". For "taught", `taught`: a digest of each of the `teachers` and a hash
        of each of the `texts`, as `teach` recorded them. For "mixed" what `find_mixed` returns.
    RAISES (StepError): If `train_on` is neither, or if the teachers have not annotated the present corpus.
    """
    if train_on == "train":
        return {}
    if train_on == MIXED:
        return find_mixed(corpus)
    if train_on != TAUGHT:
        raise StepError(
            f"train_on is {train_on!r}.",
            f"It is train, {TAUGHT} for a run with teachers, or {MIXED} for one with synthetic texts.",
        )
    inputs = read_json(corpus / f"{TAUGHT}.json").get("inputs", {})
    present: dict[str, Any] = {"train": sha256(corpus / "train.spacy")}
    if start:
        present |= {"dev": sha256(corpus / "dev.spacy"), "teachers": [record_inputs(teacher=start)["teacher"]]}
    made = {name: inputs.get(name) for name in present} == present and ("dev" in inputs) == bool(start)
    if not made or not (corpus / f"{TAUGHT}.spacy").exists():
        raise StepError(
            f"{corpus} has no {TAUGHT}.spacy that was made from its present train.spacy.",
            "Run teach first; make distill RUN=<run>, or make continue for a run with a start, runs it and all that "
            "follows.",
        )
    return {TAUGHT: {name: inputs[name] for name in ("teachers", "texts")}}


def find_mixed(corpus: Path) -> dict[str, Any]:
    """Find what synthetic texts a training learns from.

    corpus (Path): Folder with train.spacy, mixed.spacy and mixed.json.
    RETURNS (dict[str, Any]): `mixed`: how they were made, and their share, as `synthesize` recorded it.
    RAISES (StepError): If no synthetic texts were mixed into the present train.spacy.
    """
    record = read_json(corpus / f"{MIXED}.json")
    if not (corpus / f"{MIXED}.spacy").exists() or record.get("train") != sha256(corpus / "train.spacy"):
        raise StepError(
            f"{corpus} has no {MIXED}.spacy that was made from its present train.spacy.",
            "Run synthesize first, with a synthetic_share above 0: make synthesize RUN=<run>",
        )
    return {MIXED: record["inputs"]}


def find_trained(folder: Path, inputs: dict[str, Any]) -> Path | None:
    """Find the finished model with these inputs among the models of a run.

    folder (Path): The folder of the run.
    inputs (dict[str, Any]): As `prepare` gives them.
    RETURNS (Path | None): The model's folder, or None if there is none.
    """
    name = digest(inputs)
    models = (folder / BEST, folder / f"{BEST}-{name}", folder / f"unfinished-{name}" / BEST)
    return next((model for model in models if read_json(model / "provenance.json").get("inputs") == inputs), None)


def train_aside(
    inputs: dict[str, Any], config: Path, folder: Path, corpus: Path, encoder: Path, **options: Any
) -> Path:
    """Find a trained model, or train it in a process of its own, beside the folder's model-best, which stays.

    inputs (dict[str, Any]): Those of the model's provenance, as `prepare` gives them.
    config (Path): The training config.
    folder (Path): The folder of the run.
    corpus (Path): Folder with train.spacy and dev.spacy.
    encoder (Path): Folder of the encoder.
    **options (Any): Other options of the command `train`.
    RETURNS (Path): The model.
    RAISES (StepError): If the training fails.
    """
    if model := find_trained(folder, inputs):
        return model
    command = [sys.executable, "-m", "scripts.train", str(config), str(folder), "--aside"]
    for name, value in {"corpus": corpus, "encoder": encoder, **options}.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    failed = subprocess.run(command).returncode
    model = find_trained(folder, inputs)
    if failed or not model:
        raise StepError(f"The training of {config} failed.", "See above. What is done is kept: run the same again.")
    return model


def load_trained(folder: Path) -> Language:
    """Load a trained pipeline of this project.

    folder (Path): The pipeline.
    RETURNS (Language): The pipeline, whose component `ner` has tags and a head that can be enlarged.
    RAISES (StepError): If it cannot be loaded, or lacks a component that a pipeline of this project has.
    """
    try:
        nlp = spacy.load(folder)
        recognizer: Any = nlp.get_pipe("ner")
        if recognizer.model.get_ref("softmax").get_dim("nO") != len(recognizer.tags):
            raise ValueError("its entity recogniser has other tags than outputs")
        for name in ("transformer", "tok2vec", "senter"):
            nlp.get_pipe(name)
    except Exception as error:  # of a kind for each way in which a folder is no such pipeline
        reason = (str(error) or repr(error)).splitlines()[0]
        raise StepError(
            f"{folder} is no pipeline of this project that can be loaded: {reason}",
            "Name a trained pipeline, such as training/<run>/model-best.",
        ) from error
    return nlp
