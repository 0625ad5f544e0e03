"""Many trainings of one run that differ in their settings, each in a process of its own, none of them done twice."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import srsly
from filelock import FileLock, Timeout

from common.devices import Training, run_training
from common.mixing import write_mixed
from common.models import BEST, MIXED
from common.records import CURVES, read_json, write_json
from common.space import OPTIONS, SHARE
from common.training import prepare

STORE = "search"  # in the folder of a run


class Recipe(NamedTuple):
    """A training, its settings beside those of the run, and its last step."""

    training: Training
    settings: dict[str, str]
    last: int


class Result(NamedTuple):
    """What a training gave: F1 on dev, its seconds, and F1 at each evaluation, with the percent of the training."""

    ents_f: float
    seconds: float
    evaluations: list[tuple[int, float]]


@dataclass
class Trainings:
    """Trains the run with some settings, or finds what a training of the same provenance gave."""

    config: Path
    folder: Path  # of the run
    target: Path  # of the run with the best settings
    corpus: Path
    encoder: Path
    train_on: str
    gpu_id: int
    given: dict[str, str]  # what the run sets itself, and its share of synthetic texts

    @property
    def store(self) -> Path:
        """Folder with the study, the results by provenance, locks, and what failed trainings printed."""
        return self.folder / STORE

    def find_options(self, settings: dict[str, str], seed: int) -> dict[str, Any]:
        """The options of `train` and of `prepare` for these settings and what the run sets itself."""
        own = self.given | settings
        overrides = ",".join(f"{name}={value}" for name, value in own.items() if name not in (*OPTIONS, SHARE))
        train_on = self.train_on if self.has_own_share(settings) else MIXED if float(own[SHARE]) else "train"
        return {name: own[name] for name in OPTIONS} | {"seed": seed, "train_on": train_on, "overrides": overrides}

    def has_own_share(self, settings: dict[str, str]) -> bool:
        """Whether these settings have the run's own share of synthetic texts, which its corpus has already."""
        return float(settings.get(SHARE, self.given[SHARE])) == float(self.given[SHARE])

    @contextmanager
    def find_corpus(self, settings: dict[str, str]) -> Iterator[Path]:
        """Find the corpus for these settings. With another share of synthetic texts it is there until the block ends.

        settings (dict[str, str]): The settings of a training beside those of the run.
        YIELDS (Path): Folder with train.spacy, dev.spacy, and mixed.spacy where there is a share.
        RAISES (StepError): If the corpus has no synthetic texts.
        """
        if self.has_own_share(settings) or not float(settings[SHARE]):
            yield self.corpus
            return
        with tempfile.TemporaryDirectory(prefix="corpus-", dir=self.store) as folder:
            for split in ("train", "dev"):
                shutil.copy(self.corpus / f"{split}.spacy", folder)
            write_mixed(self.corpus, float(settings[SHARE]), Path(folder))
            yield Path(folder)

    def plan(self, settings: dict[str, str], seed: int) -> Recipe:
        """Settle from what a model with these settings and this seed would be trained."""
        options = self.find_options(settings, seed)
        with self.find_corpus(settings) as corpus:
            inputs, values = prepare(self.config, corpus, self.encoder, **options)
        training = Training(inputs, self.config, self.folder, self.corpus, self.encoder, options)
        return Recipe(training, settings, values["training.max_steps"])

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Hold a lock, which other processes wait for. It vanishes with the process, however that ends."""
        with FileLock(self.store / f"{name}.lock"):
            yield

    def is_held(self, name: str) -> bool | None:
        """Whether a process holds this lock. None if nobody has taken it here: a process may on another disk."""
        path = self.store / f"{name}.lock"
        if not path.exists():
            return None
        with suppress(Timeout), FileLock(path, timeout=0):
            return False
        return True

    @contextmanager
    def train(self, recipe: Recipe, follow: Callable[[int, float], None]) -> Iterator[Result]:
        """Train, or find what such a training gave. A new model is there until the block ends, unless it is kept.

        recipe (Recipe): The training.
        follow (Callable[[int, float], None]): Called again and again while it trains with each evaluation so far, the
            percent of the training and F1. What it raises ends the training.
        YIELDS (Result): What the training gave.
        RAISES (TrainingFailed): If it failed, and why.
        """
        training = recipe.training
        record = self.store / f"{training.name}.json"
        with self.hold(training.name):
            try:
                known = read_json(record)
                if known.get("inputs") == training.inputs:
                    result = Result(*(known[field] for field in Result._fields))
                else:
                    if not (model := training.find_model(self.target)):
                        curves = training.place / f"unfinished-{training.name}" / CURVES

                        def look() -> None:
                            for evaluation in read_evaluations(curves, recipe.last):
                                follow(*evaluation)

                        with self.find_corpus(recipe.settings) as corpus:
                            command = dataclasses.replace(training, corpus=corpus).create_command(self.gpu_id)
                            run_training(command, record.with_suffix(".log"), look)
                        model = training.place / BEST
                    result = read_result(model, recipe.last)
                    write_json(record, {"inputs": training.inputs, **result._asdict()})
                yield result
            finally:
                shutil.rmtree(training.place, ignore_errors=True)


def read_evaluations(curves: Path, last: int) -> list[tuple[int, float]]:
    """Read the evaluations of a training, at work or finished, but the one before its first step.

    curves (Path): The file with a line for each, whose last line may not be whole yet.
    last (int): The last step of the training.
    RETURNS (list[tuple[int, float]]): Percent of the training, and F1 on dev.
    """
    if not curves.exists():
        return []
    lines = curves.read_text("utf8").split("\n")[:-1]
    rows = [srsly.json_loads(line) for line in lines]
    return [(round(100 * row["step"] / last), row["dev"].get("ents_f") or 0.0) for row in rows if row["step"]]


def read_result(model: Path, last: int) -> Result:
    """Read what a training gave.

    model (Path): The trained pipeline.
    last (int): The last step of the training.
    RETURNS (Result): What it gave.
    """
    f1 = read_json(model / "meta.json").get("performance", {}).get("ents_f") or 0.0
    return Result(f1, read_json(model / "provenance.json")["seconds"], read_evaluations(model / CURVES, last))
