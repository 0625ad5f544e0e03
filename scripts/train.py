"""Train a pipeline by `spacy train`, so that no finished model is lost, retrained in vain or left half written."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from inspect import getsource
from pathlib import Path
from typing import IO, Annotated, Any

import numpy as np
import spacy
import srsly
import torch
import typer
from spacy.cli._util import import_code
from spacy.cli.train import train as spacy_train
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from spacy.util import minibatch, registry
from thinc.api import Config
from transformers import AutoConfig
from wasabi import msg

from scripts.functions import find_pieces
from scripts.steps import (
    StepError,
    claim,
    find_entity_texts,
    installed,
    made,
    read_docs,
    read_json,
    replace,
    run,
    sha256,
    write_json,
    writes,
)

BEST, LAST = "model-best", "model-last"  # the names that spaCy gives
EPOCHS = 4
HEAD_RATE = 1e-3  # of layers that start from random weights, whatever the encoder
FEWEST_STEPS = 400  # below which a small corpus has more epochs
EVALUATIONS = 8
CURVES = "curves.jsonl"
CURVE_DOCS = 100  # of train, at least, whose tags are scored at each evaluation


@writes("folder")
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
    place = folder / (f"{BEST}-{digest(made_from)}" if aside else BEST)
    made(folder, place.name, f"unfinished-{digest(made_from)}")
    if not recall(folder, made_from, place):
        train_anew(config, folder, made_from, overrides, place, gpu_id)


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
        "calibration": hashlib.sha256(f"{getsource(calibrate)}{getsource(predict_tags)}".encode()).hexdigest(),
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
    docs = [doc[a:b] for doc in read_docs(train, spacy.blank("en").vocab) for a, b in find_pieces(doc)]
    words = sum(map(len, docs))
    width = AutoConfig.from_pretrained(encoder).hidden_size  # whatever it is called in the encoder's config.json
    size = max(1, int(_number("batch_words", batch_words, min(1500, max(300, words // 25)))))
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
        made(place.parent, kept.name)
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
    curves = {"@loggers": "bert_ner.Curves.v1", "path": str(unfinished / CURVES)}
    curves |= {split: overrides[f"paths.{split}"] for split in ("train", "dev")}
    logger = {f"training.logger.{name}": value for name, value in curves.items()}
    began = time.monotonic()
    spacy_train(config, unfinished, use_gpu=gpu_id, overrides=overrides | logger)
    temperature = calibrate(unfinished / BEST, Path(overrides["paths.train"]), Path(overrides["paths.dev"]))
    record = {
        "made_from": made_from,
        "resumed": start.exists(),
        "temperature": temperature,
        "device": torch.cuda.get_device_name(gpu_id) if gpu_id >= 0 else "CPU",
        "seconds": round(time.monotonic() - began),
        "versions": installed(),
    }
    trained = Config().from_disk(unfinished / BEST / "config.cfg", interpolate=False)
    trained["training"]["logger"] = Config().from_disk(config, interpolate=False)["training"]["logger"]
    trained.to_disk(unfinished / BEST / "config.cfg")
    os.replace(unfinished / CURVES, unfinished / BEST / CURVES)
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
    reader = registry.readers.get("bert_ner.Corpus.v2")(dev, sentence_starts=False)
    examples, docs, probabilities = zip(*predict_tags(nlp, reader(nlp)), strict=True)
    gold = [{(e.start, e.end, e.label_) for e in example.get_aligned_ents_and_ner()[0]} for example in examples]
    temperature: float = recognizer.calibrate(list(docs), list(probabilities), gold, find_entity_texts(train))
    recognizer.to_disk(model / "ner", exclude=["vocab"])
    return temperature


def predict_tags(nlp: Language, examples: Iterable[Example]) -> Iterator[tuple[Example, Doc, np.ndarray]]:
    """What the entity recogniser computes.

    nlp (Language): With a component `ner`.
    examples (Iterable[Example]): Their predicted docs are annotated by the components before it.
    YIELDS (tuple[Example, Doc, np.ndarray]): The example, the doc, and the probabilities of the tags, (tokens, tags).
    """
    recognizer: Any = nlp.get_pipe("ner")
    before: list[Any] = [pipe for _, pipe in nlp.pipeline[: nlp.pipe_names.index("ner")]]
    for batch in minibatch(examples, 32):  # type: ignore[no-untyped-call,unused-ignore]
        docs = [example.x for example in batch]
        for pipe in before:
            docs = list(pipe.pipe(docs))
        yield from zip(batch, docs, recognizer.predict(docs), strict=True)
        for doc in docs:
            doc._.trf_data = None  # which is large


def score_tags(nlp: Language, examples: Iterable[Example]) -> dict[str, float]:
    """Loss and accuracy of the BILUO tags of the tokens, before any search for a legal sequence.

    nlp (Language): With a component `ner`.
    examples (Iterable[Example]): As `predict_tags` takes them.
    RETURNS (dict[str, float]): `loss`: cross entropy for each token, in natural logarithms; `accuracy`: the share of
        tokens whose most probable tag is right. Tokens whose tag is not known are left out.
    """
    recognizer: Any = nlp.get_pipe("ner")
    numbers = {tag: number for number, tag in enumerate(recognizer.tags)}
    losses: list[np.ndarray] = []
    right: list[np.ndarray] = []
    for example, _, probabilities in predict_tags(nlp, examples):
        gold = np.array([numbers.get(tag or "-", -1) for tag in example.get_aligned_ner()], dtype=int)
        known = np.flatnonzero(gold >= 0)
        losses.append(-np.log(np.maximum(probabilities[known, gold[known]], 1e-10)))
        right.append(probabilities[known].argmax(1) == gold[known])
    count = max(1, sum(map(len, right)))
    return {name: float(sum(p.sum() for p in parts) / count) for name, parts in (("loss", losses), ("accuracy", right))}


@registry.loggers("bert_ner.Curves.v1")  # type: ignore[untyped-decorator,unused-ignore]
def create_logger(train: str, dev: str, path: str, progress_bar: bool) -> Callable[..., Any]:
    """spaCy's console logger, and beside it a row for each evaluation in a file of lines of JSON.

    It is here and not with the other registered functions because nobody who uses the pipeline needs it.

    train, dev (str): The .spacy files. Tags of some documents of train are scored, always the same, and of all of dev.
    path (str): The file, which is added to.
    progress_bar (bool): As the console logger's.
    RETURNS (Callable): The logger.
    """

    def setup(nlp: Language, stdout: IO[str] = sys.stdout, stderr: IO[str] = sys.stderr) -> tuple[Any, Any]:
        log, finish = registry.loggers.get("spacy.ConsoleLogger.v2")(progress_bar)(nlp, stdout, stderr)
        rates = registry.resolve({"rate": nlp.config.interpolate()["training"]["optimizer"]["learn_rate"]})["rate"]
        step, rate = -1, rates

        def log_step(info: dict[str, Any] | None) -> None:
            nonlocal step, rate
            log(info)
            if info is None:
                return
            if isinstance(rates, Iterator):
                for step, rate in zip(range(step + 1, info["step"] + 1), rates):  # noqa: B007, B020, B905
                    pass
            read = registry.readers.get("bert_ner.Corpus.v2")
            examples = list(read(train, sentence_starts=False)(nlp))
            row = {
                "step": info["step"],
                "epoch": info["epoch"],
                "learn_rate": float(rate),
                "losses": {name: float(loss) for name, loss in info["losses"].items()},
                "train": score_tags(nlp, examples[:: max(1, len(examples) // CURVE_DOCS)]),
                "dev": score_tags(nlp, read(dev, sentence_starts=False)(nlp)) | info["other_scores"],
                "seconds": info["seconds"],
                "words": info["words"],
            }
            with open(path, "a", encoding="utf8") as file:
                file.write(srsly.json_dumps(row) + "\n")

        return log_step, finish

    return setup


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
