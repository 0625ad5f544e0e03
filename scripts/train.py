"""Train a pipeline by `spacy train`, so that no finished model is lost, retrained in vain or left half written."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import Annotated, Any

import spacy
import torch
import typer
from filelock import FileLock, Timeout
from spacy.cli._util import import_code
from spacy.cli.train import train as spacy_train
from spacy.tokens import DocBin
from spacy.util import minibatch, registry
from thinc.api import Config
from wasabi import msg

from scripts.steps import StepError, claim, find_entity_texts, installed, read_json, replace, run, sha256, write_json

BEST, LAST = "model-best", "model-last"  # the names that spaCy gives
EPOCHS = 4
HEAD_RATE = 1e-3  # of layers that start from random weights, whatever the encoder
FEWEST_STEPS = 400  # below which a small corpus has more epochs
EVALUATIONS = 8


def train(
    config: Annotated[Path, typer.Argument(help="Training config", exists=True)],
    folder: Annotated[Path, typer.Argument(help="Folder of the run; its model-best is made")],
    corpus: Annotated[Path, typer.Option(help="Folder with train.spacy, dev.spacy, origin.json", exists=True)],
    encoder: Annotated[Path, typer.Option(help="Folder of the encoder", exists=True)],
    code: Annotated[Path, typer.Option(help="Python file with registered functions", exists=True)],
    epochs: Annotated[str, typer.Option(help="Passes over the corpus, or auto")] = "auto",
    learn_rate: Annotated[str, typer.Option(help="Highest learning rate, or auto: from the encoder's width")] = "auto",
    batch_words: Annotated[str, typer.Option(help="Words in a batch, or auto: fewer for a small corpus")] = "auto",
    seed: Annotated[int, typer.Option(help="For weights, order and dropout")] = 0,
    aside: Annotated[bool, typer.Option("--aside", help="Keep it beside model-best, which stays")] = False,
    gpu_id: Annotated[int, typer.Option(help="GPU, or -1 for the CPU")] = -1,
) -> None:
    """Train a pipeline unless it is there."""
    check_gpu(gpu_id)
    import_code(code)
    made_from, overrides = prepare(config, corpus, encoder, code, epochs, learn_rate, batch_words, seed)
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / (f"{BEST}-{digest(made_from)}" if aside else BEST)
    try:
        with FileLock(folder / ".lock", timeout=0):
            if not recall(folder, made_from, place):
                train_anew(config, folder, made_from, overrides, place, gpu_id)
    except Timeout as error:
        raise StepError(f"Another training is writing {folder}.", "Wait for it, or stop it first.") from error


def prepare(
    config: Path,
    corpus: Path,
    encoder: Path,
    code: Path,
    epochs: str = "auto",
    learn_rate: str = "auto",
    batch_words: str = "auto",
    seed: int = 0,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a model is made from, which is its origin, and the overrides of the config for it.

    The arguments are those of `train`.
    """
    overrides = derive(config, corpus / "train.spacy", encoder, epochs, learn_rate, batch_words)
    overrides |= {"system.seed": seed, "paths.dev": str(corpus / "dev.spacy")}
    made_from = {
        "config": sha256(config),
        "code": sha256(code),
        "encoder": sha256(encoder),
        "corpus": {split: sha256(corpus / f"{split}.spacy") for split in ("train", "dev")},
        "settings": {key: value for key, value in overrides.items() if not key.startswith("paths.")},
    }
    return made_from, overrides


def check_gpu(gpu_id: int) -> None:
    """Make sure that the GPU asked for can be used.

    RAISES (StepError): If not, saying what is missing.
    """
    if gpu_id < 0:
        return
    on_cpu = "or train on the CPU: --vars.gpu_id -1"
    if torch.version.cuda is None and torch.version.hip is None:
        raise StepError(
            f"GPU {gpu_id} was asked for, but this PyTorch is built for the CPU.", f"Install one for your GPU, {on_cpu}"
        )
    if not torch.cuda.is_available():
        raise StepError(f"GPU {gpu_id} was asked for, but PyTorch finds no usable driver.", f"See nvidia-smi, {on_cpu}")
    if gpu_id >= torch.cuda.device_count():
        raise StepError(
            f"GPU {gpu_id} was asked for; there are {torch.cuda.device_count()}, from 0.", f"Choose, {on_cpu}"
        )
    try:
        import cupy  # noqa: F401
    except ImportError as error:
        major = (torch.version.cuda or "12").partition(".")[0]
        raise StepError(f"CuPy is missing: {error}", f"pip install cupy-cuda{major}x, {on_cpu}") from error


def derive(config: Path, train: Path, encoder: Path, epochs: str, learn_rate: str, batch_words: str) -> dict[str, Any]:
    """What depends on encoder and corpus, as overrides of the config.

    - Learning rate: 5e-5 for the width of BERT-base, 768 (Devlin et al. 2019 recommend 2e-5 to 5e-5); by the inverse
      square of the width for others, which gives 2e-4 for 384; at most 5e-4.
    - By how much the rate of other layers is higher: so that it is HEAD_RATE.
    - Words in a batch: 1,500, and for a small corpus fewer, so that an epoch has 25 steps, but at least 300.
    - Epochs: EPOCHS, and for a small corpus more, until there are FEWEST_STEPS.

    config (Path): The training config; its batcher counts the steps.
    train (Path): The training corpus.
    encoder (Path): Folder with a config.json.
    epochs, learn_rate, batch_words (str): Numbers, or "auto".
    RETURNS (dict[str, Any]): Overrides by dotted name.
    RAISES (StepError): If something is neither a number above 0 nor "auto".
    """
    docs = list(DocBin().from_disk(train).get_docs(spacy.blank("en").vocab))
    words = sum(map(len, docs))
    width = read_json(encoder / "config.json")["hidden_size"]
    size = int(_number("batch_words", batch_words, min(1500, max(300, words // 25))))
    batcher = Config().from_disk(config)["training"]["batcher"]["batcher"] | {"size": size}
    steps = sum(1 for _ in registry.resolve({"batcher": batcher})["batcher"](docs))
    passes = _number("epochs", epochs, max(EPOCHS, math.ceil(FEWEST_STEPS / steps)))
    evaluations = min(EVALUATIONS, math.ceil(passes))
    every = math.ceil(passes * steps / evaluations)
    total = every * evaluations  # spaCy evaluates at multiples of `every`: the last step shall be one
    rate = _number("learn_rate", learn_rate, min(5e-4, 5e-5 * (768 / width) ** 2))
    return {
        "paths.train": str(train),
        "paths.encoder": str(encoder),
        "training.max_steps": total,
        "training.eval_frequency": every,
        "training.batcher.batcher.size": size,
        "training.optimizer.head_factor": HEAD_RATE / rate,
        "training.optimizer.learn_rate.initial_rate": rate,
        "training.optimizer.learn_rate.warmup_steps": total // 10,
        "training.optimizer.learn_rate.total_steps": total,  # spaCy interpolates nothing here
    }


def _number(name: str, value: str, auto: float) -> float:
    try:
        number = auto if value == "auto" else float(value)
    except ValueError:
        number = 0
    if not 0 < number < math.inf:
        raise StepError(f"{name} is {value!r}, neither auto nor a number above 0.", f"For example: --vars.{name} auto")
    return number


def recall(folder: Path, made_from: dict[str, Any], place: Path) -> bool:
    """Put the finished model of this origin at `place`, if there is one; if that is not model-best, leave it."""
    found = find_trained(folder, made_from)
    if found == place or (found and place.name != BEST):
        msg.good(f"{found} is trained already, from the same config, corpus, encoder and code.")
        return True
    claim(place, "origin.json")
    if found:
        publish(found, place)
    return bool(found)


def find_trained(folder: Path, made_from: dict[str, Any]) -> Path | None:
    """The finished model of this origin among those of a run."""
    name = digest(made_from)
    models = (folder / BEST, folder / f"{BEST}-{name}", folder / f"unfinished-{name}" / BEST)
    return next((model for model in models if read_json(model / "origin.json").get("made_from") == made_from), None)


def digest(made_from: dict[str, Any]) -> str:
    """Eight hexadecimal digits for an origin."""
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:8]


def publish(model: Path, place: Path) -> None:
    """Move a finished model to `place`. The one that stands there is kept under a name of its origin."""
    if place.exists():
        kept = place.with_name(f"{BEST}-{digest(read_json(place / 'origin.json')['made_from'])}")
        replace(place, kept)
        msg.info(f"The model of other settings that stood there is now {kept}")
    os.replace(model, place)
    if model.parent != place.parent:
        shutil.rmtree(model.parent)
    msg.good(f"The trained pipeline is {place}")


def train_anew(
    config: Path, folder: Path, made_from: dict[str, Any], overrides: dict[str, Any], place: Path, gpu_id: int
) -> None:
    """Train in a folder for this origin, from the best weights that an interrupted training left there, if any."""
    unfinished = folder / f"unfinished-{digest(made_from)}"
    unfinished.mkdir(exist_ok=True)
    start = unfinished / "start"
    whole = find_whole(unfinished)
    if whole:
        replace(whole, start)
    if start.exists():
        msg.warn(
            f"A training with these settings was interrupted: going on from its best weights, {start}.",
            "The optimizer and the schedule of the learning rate start afresh.",
        )
        config = resume_config(config, start, unfinished / "config.cfg")
    msg.info(
        f"Training in {unfinished}. If it is interrupted, the best weights so far stay there, "
        "and the same command goes on from them."
    )
    began = time.monotonic()
    spacy_train(config, unfinished, use_gpu=gpu_id, overrides=overrides)
    temperature = calibrate(unfinished / BEST, Path(overrides["paths.train"]), Path(overrides["paths.dev"]))
    record = {
        "made_from": made_from,
        "resumed": start.exists(),
        "temperature": temperature,
        "device": torch.cuda.get_device_name(gpu_id) if gpu_id >= 0 else "CPU",
        "seconds": round(time.monotonic() - began),
        "versions": installed(),
    }
    write_json(unfinished / BEST / "origin.json", record)
    publish(unfinished / BEST, place)


def calibrate(model: Path, train: Path, dev: Path) -> float:
    """Make the scores of entities mean how often they are right, by the dev corpus.

    model (Path): The trained pipeline, with a component `ner`. That is changed.
    train, dev (Path): The .spacy files.
    RETURNS (float): The temperature chosen.
    """
    nlp = spacy.load(model)
    recognizer: Any = nlp.get_pipe("ner")
    before: list[Any] = [pipe for name, pipe in nlp.pipeline[: nlp.pipe_names.index("ner")]]
    docs, probabilities, gold = [], [], []
    reader = registry.readers.get("bert_ner.Corpus.v1")(dev, sentence_starts=False)
    for examples in minibatch(reader(nlp), 32):  # type: ignore[no-untyped-call,unused-ignore]
        batch = [example.x for example in examples]
        for pipe in before:
            batch = list(pipe.pipe(batch))
        docs += batch
        probabilities += recognizer.predict(batch)
        gold += [{(e.start, e.end, e.label_) for e in eg.get_aligned_ents_and_ner()[0]} for eg in examples]
        for doc in batch:
            doc._.trf_data = None  # which is large
    temperature: float = recognizer.calibrate(docs, probabilities, gold, find_entity_texts(train))
    recognizer.to_disk(model / "ner", exclude=["vocab"])
    return temperature


def find_whole(folder: Path) -> Path | None:
    """The best checkpoint that `spacy train` left whole when it was killed.

    It writes model-last, in place; then, if it is the best so far, it removes model-best and copies model-last there,
    file by file with their times. So one of the two is always whole. A model-best that was being removed or copied
    lacks files of model-last, or has one that is newer there; and model-last is whole then.

    folder (Path): The output folder of `spacy train`.
    RETURNS (Path | None): The checkpoint, or None if there was no evaluation yet.
    """
    times = {
        name: {f.relative_to(folder / name): f.stat().st_mtime_ns for f in (folder / name).rglob("*") if f.is_file()}
        for name in (BEST, LAST)
    }
    if not times[BEST]:
        return None if not times[LAST] else _if_loadable(folder / LAST)
    torn = any(name not in times[BEST] or times[BEST][name] > when for name, when in times[LAST].items())
    return folder / (LAST if torn else BEST)


def _if_loadable(model: Path) -> Path | None:
    """The very first checkpoint may be half written, with nothing to compare it with."""
    try:
        spacy.load(model)
    except Exception:  # anything can be missing
        return None
    return model


def resume_config(config: Path, start: Path, path: Path) -> Path:
    """Write the config that takes every component, with its weights, from the pipeline `start`."""
    resumed = Config().from_disk(config, interpolate=False)
    for name in resumed["nlp"]["pipeline"]:
        if name in resumed["components"] and (start / name).exists():
            resumed["components"][name] = {"source": str(start)}
    resumed.to_disk(path)
    return path


if __name__ == "__main__":
    run(train)
