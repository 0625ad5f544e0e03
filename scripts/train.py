"""Train a pipeline by `spacy train`, so that no finished model is lost, trained again or left half written."""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Annotated, Any

import spacy
import srsly
import torch
import typer
from spacy.cli.train import train as spacy_train
from spacy.language import Language
from spacy.util import registry
from thinc.api import Config
from wasabi import msg

from common.errors import StepError, main
from common.forgetting import choose_rate
from common.gpu import use_gpu
from common.mixing import check_mixed
from common.models import BEST, DIVERGED, LAST, find_trained
from common.records import CURVES, claim, digest, installed, made, read_json, replace, write_json, writes
from common.scoring import record_tags
from common.settings import split_overrides
from common.statistics import number_tags, score_tags
from common.training import calibrate, enlarge, prepare, without_pooler_warning

CURVE_DOCS = 100  # at least so many documents of train are scored at each evaluation


@writes("folder")
def train(
    config: Annotated[Path, typer.Argument(help="Training config", exists=True)],
    folder: Annotated[Path, typer.Argument(help="Folder of the run; its model-best is made")],
    corpus: Annotated[Path, typer.Option(help="Folder with train.spacy, dev.spacy, provenance.json", exists=True)],
    encoder: Annotated[Path, typer.Option(help="Folder of the encoder", exists=True)],
    epochs: Annotated[str, typer.Option(help="Passes over the corpus, or auto; half of that: auto*0.5")] = "auto",
    learn_rate: Annotated[str, typer.Option(help="Highest learning rate, or auto: from the encoder's width")] = "auto",
    batch_words: Annotated[str, typer.Option(help="Words in a batch, or auto: fewer for a small corpus")] = "auto",
    seed: Annotated[int, typer.Option(help="For weights, order and dropout")] = 0,
    train_on: Annotated[str, typer.Option(help="train, or taught: what `teach` made of it")] = "train",
    share: Annotated[float | None, typer.Option(help="As synthesize's, to be compared with what was mixed")] = None,
    start: Annotated[Path | None, typer.Option(help="Folder with the pipeline to go on from, if there is one")] = None,
    overrides: Annotated[str, typer.Option(help="Settings of the config: training.dropout=0.2,…")] = "",
    aside: Annotated[bool, typer.Option("--aside", help="Keep the model beside model-best, which stays")] = False,
    gpu_id: Annotated[int, typer.Option(help="GPU, or -1 for the CPU")] = -1,
) -> None:
    """Train a pipeline, unless there is one from the same inputs."""
    use_gpu(gpu_id)
    if share is not None:
        check_mixed(corpus, share, train_on)
    start = start if start and start.exists() else None
    if start and (fixed := [name for name in split_overrides(overrides) if name.startswith("components.")]):
        raise StepError(
            f"The components come from the pipeline to go on from, so that nothing can set {', '.join(fixed)}.",
            "Leave that out of overrides.",
        )
    rate = choose_rate(learn_rate, start)
    inputs, settings = prepare(config, corpus, encoder, epochs, rate, batch_words, seed, train_on, start, overrides)
    place = folder / (f"{BEST}-{digest(inputs)}" if aside else BEST)
    made(folder, place.name, f"unfinished-{digest(inputs)}")
    if not restore_trained(folder, inputs, place):
        train_anew(config, folder, corpus, inputs, settings, place, start, gpu_id)


def restore_trained(folder: Path, inputs: dict[str, Any], place: Path) -> bool:
    """Look for a finished model with these inputs, and make it model-best if that is what was asked for.

    folder (Path): The folder of the run.
    inputs (dict[str, Any]): As `prepare` gives them.
    place (Path): Where the model shall stand: model-best, or a folder beside it. Beside it a model may have any name.
    RETURNS (bool): Whether there is one.
    RAISES (StepError): If something stands at `place` that no step has made.
    """
    trained = find_trained(folder, inputs)
    if trained == place or (trained and place.name != BEST):
        msg.good(f"{trained} is trained already, from the same config, corpus, encoder and code.")
        return True
    claim(place, "provenance.json")
    if trained:
        move_into_place(trained, place)
    return bool(trained)


def move_into_place(model: Path, place: Path) -> None:
    """Move a finished model to `place`. A model that stands there is kept, under a name with its digest."""
    if earlier := read_json(place / "provenance.json").get("inputs"):
        kept = place.with_name(f"{BEST}-{digest(earlier)}")
        made(place.parent, kept.name)
        replace(place, kept)
        msg.info(f"The model of other settings that stood there is now {kept}")
    replace(model, place)  # where an empty folder may stand
    if model.parent != place.parent:
        shutil.rmtree(model.parent)
    msg.good(f"The trained pipeline is {place}")


def train_anew(
    config: Path,
    folder: Path,
    corpus: Path,
    inputs: dict[str, Any],
    overrides: dict[str, Any],
    place: Path,
    start: Path | None,
    gpu_id: int,
) -> None:
    """Train in a folder that belongs to these inputs, and go on from what an interrupted training left there.

    config, folder, corpus, start, gpu_id: As `train` takes them.
    inputs, overrides (dict[str, Any]): As `prepare` gives them.
    place (Path): Where the finished model shall stand.
    """
    unfinished = folder / f"unfinished-{digest(inputs)}"
    unfinished.mkdir(exist_ok=True)
    checkpoint, enlarged = unfinished / "checkpoint", unfinished / "enlarged"
    whole = find_whole(unfinished)
    if whole:
        replace(whole, checkpoint)
    interrupted = checkpoint.exists()
    if interrupted:
        msg.warn(
            f"A training with these settings was interrupted: going on from its best weights, {checkpoint}.",
            "The optimizer and the schedule of the learning rate start afresh.",
        )
    elif start:
        msg.info(f"Going on from {start}")
        enlarge(start, Path(overrides["paths.train"]), overrides["system.seed"], enlarged)
    if interrupted or start:
        config = resume_config(config, checkpoint if interrupted else enlarged, unfinished / "config.cfg")
        overrides = {key: value for key, value in overrides.items() if not key.startswith("components.")}
    msg.info(
        f"Training in {unfinished}. If it is interrupted, the best weights so far stay there, "
        "and the same command goes on from them."
    )
    curves = {"@loggers": "bert_ner.Curves.v1", "path": str(unfinished / CURVES)}
    curves |= {split: overrides[f"paths.{split}"] for split in ("train", "dev")}
    logger = {f"training.logger.{name}": value for name, value in curves.items()}
    began = time.monotonic()
    with without_pooler_warning():
        spacy_train(config, unfinished, use_gpu=gpu_id, overrides=overrides | logger)
    temperature = calibrate(unfinished / BEST, corpus / "train.spacy", Path(overrides["paths.dev"]))
    record = {
        "inputs": inputs,
        "resumed": interrupted,
        "temperature": temperature,
        "device": torch.cuda.get_device_name(gpu_id) if gpu_id >= 0 else "CPU",
        "seconds": round(time.monotonic() - began),
        "versions": installed(),
    }
    trained = Config().from_disk(unfinished / BEST / "config.cfg", interpolate=False)
    trained["training"]["logger"] = Config().from_disk(config, interpolate=False)["training"]["logger"]
    trained.to_disk(unfinished / BEST / "config.cfg")
    os.replace(unfinished / CURVES, unfinished / BEST / CURVES)
    write_json(unfinished / BEST / "provenance.json", record)
    move_into_place(unfinished / BEST, place)


@registry.loggers("bert_ner.Curves.v1")  # type: ignore[untyped-decorator,unused-ignore]
def create_logger(train: str, dev: str, path: str, progress_bar: bool) -> Callable[..., Any]:
    """Log to the console as spaCy does, and write the learning curves: a line of JSON for each evaluation.

    spaCy's own logger writes such lines too, but neither the loss and accuracy of tags nor the learning rate, and not
    to a file that an interrupted training has begun. This logger is registered here and not in bert_ner/, because
    nobody needs it who uses the pipeline.

    train, dev (str): The .spacy files. Of train always the same part is scored. Dev is not predicted again: spaCy has
        just done so for its own scores.
    path (str): The file; lines are added to it.
    progress_bar (bool): As the console logger takes it.
    RETURNS (Callable): The logger.
    """

    def setup(nlp: Language, stdout: IO[str] = sys.stdout, stderr: IO[str] = sys.stderr) -> tuple[Any, Any]:
        log, finish = registry.loggers.get("spacy.ConsoleLogger.v2")(progress_bar)(nlp, stdout, stderr)
        rates = registry.resolve({"rate": nlp.config.interpolate()["training"]["optimizer"]["learn_rate"]})["rate"]
        step, rate = -1, rates
        read, tags = registry.readers.get("bert_ner.Corpus.v2"), nlp.get_pipe("ner").tags  # type: ignore[attr-defined]
        sample = list(read(train, sentence_starts=False)(nlp))
        sample = sample[:: max(1, len(sample) // CURVE_DOCS)]
        gold = {"train": number_tags(sample, tags), "dev": number_tags(read(dev, sentence_starts=False)(nlp), tags)}
        recording = ExitStack()
        recorded = recording.enter_context(record_tags(nlp))

        def score(split: str) -> dict[str, float]:
            scores = score_tags(gold[split], recorded.posteriors)
            recorded.probabilities.clear()
            recorded.posteriors.clear()
            return scores

        def log_step(info: dict[str, Any] | None) -> None:
            nonlocal step, rate
            log(info)
            if info is None:
                return
            if broken := [name for name, loss in info["losses"].items() if not math.isfinite(loss)]:
                raise StepError(
                    f"{DIVERGED}: the loss of {', '.join(broken)} is no number at step {info['step']}.",
                    "Choose a lower learn_rate, or a longer warm-up.",
                )
            if isinstance(rates, Iterator):
                for step, rate in zip(range(step + 1, info["step"] + 1), rates):  # noqa: B007, B020, B905
                    pass
            on_dev = score("dev")
            for _ in nlp.pipe(example.predicted.copy() for example in sample):
                pass
            row: dict[str, Any] = {
                "step": info["step"],
                "epoch": info["epoch"],
                "learn_rate": float(rate),
                "losses": {name: float(loss) for name, loss in info["losses"].items()},
                "train": score("train"),
                "dev": on_dev | info["other_scores"],
                "seconds": info["seconds"],
                "words": info["words"],
            }
            losses = row["losses"] | {split: row[split]["loss"] for split in ("train", "dev")}
            if broken := [name for name, loss in losses.items() if not math.isfinite(loss)]:
                raise StepError(
                    f"{DIVERGED}: the loss of {', '.join(broken)} is no number at step {row['step']}.",
                    "Choose a lower learn_rate, or a longer warm-up.",
                )
            with open(path, "a", encoding="utf8") as file:
                file.write(srsly.json_dumps(row) + "\n")

        def close() -> None:
            recording.close()
            finish()

        return log_step, close

    return setup


def find_whole(folder: Path) -> Path | None:
    """Find the best checkpoint that `spacy train` left whole when it was killed.

    spaCy writes model-last in place. Then, if that is the best so far, it removes model-best and copies model-last
    there, file by file, with their times. So one of the two is always whole. If model-best was being removed or
    copied, it lacks files of model-last, or has one that is newer there, and then model-last is whole.

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
    """Try to load the very first checkpoint, which may be half written while there is no other to compare it with."""
    try:
        spacy.load(model)
    except Exception:  # any part of it can be missing
        return None
    return model


def resume_config(config: Path, start: Path, path: Path) -> Path:
    """Write a config that takes all components that there are, with their weights, from the pipeline `start`.

    config (Path): The training config.
    start (Path): The pipeline, which may have no tagger.
    path (Path): Where to write the new config.
    RETURNS (Path): The same.
    """
    resumed = Config().from_disk(config, interpolate=False)
    own, known = resumed["components"], Config().from_disk(start / "config.cfg", interpolate=False)["components"]
    # A component that `start` lacks refers to settings of others, such as the width of their vectors.
    filled = Config(resumed | {"components": own | known}).interpolate()["components"]
    resumed["components"] = {name: {"source": str(start)} if (start / name).exists() else filled[name] for name in own}
    resumed.to_disk(path)
    return path


if __name__ == "__main__":
    main(train)
