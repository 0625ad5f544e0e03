"""Many trainings of one run that differ in their settings, each in a process of its own, none of them done twice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import srsly
from filelock import FileLock, Timeout

from common.models import BEST, find_trained
from common.records import CURVES, digest, locked, made, read_json, replace, write_json
from common.space import OPTIONS
from common.training import prepare

STORE = "search"  # in the folder of a run


class TrainingFailed(Exception):
    """A training that ended without a model, and why."""


class Recipe(NamedTuple):
    """A training: its settings beside those of the run, its seed, the `inputs` of its provenance, and its last step."""

    settings: dict[str, str]
    seed: int
    inputs: dict[str, Any]
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
    given: dict[str, str]  # what the run sets itself

    @property
    def store(self) -> Path:
        """Folder with the study, the results by provenance, locks, and what failed trainings printed."""
        return self.folder / STORE

    def find_options(self, settings: dict[str, str], seed: int) -> dict[str, Any]:
        """The options of `train` and of `prepare` for these settings and what the run sets itself."""
        own = self.given | settings
        overrides = ",".join(f"{name}={value}" for name, value in own.items() if name not in OPTIONS)
        return {name: own[name] for name in OPTIONS} | {"seed": seed, "train_on": self.train_on, "overrides": overrides}

    def plan(self, settings: dict[str, str], seed: int) -> Recipe:
        """Settle from what a model with these settings and this seed would be trained."""
        inputs, values = prepare(self.config, self.corpus, self.encoder, **self.find_options(settings, seed))
        return Recipe(settings, seed, inputs, values["training.max_steps"])

    def find_place(self, recipe: Recipe) -> Path:
        """The folder of one training. It is a run's folder of its own, since `train` works alone in one."""
        return self.folder.with_name(f"{self.folder.name}-{digest(recipe.inputs)}")

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Hold a lock, which other processes wait for. It vanishes with the process, however that ends."""
        with FileLock(self.store / f"{name}.lock"):
            yield

    def is_held(self, name: str) -> bool:
        """Whether a process holds this lock, or may hold it on another disk, since there is none on this one."""
        path = self.store / f"{name}.lock"
        if path.exists():
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
        name, place = digest(recipe.inputs), self.find_place(recipe)
        record = self.store / f"{name}.json"
        with self.hold(name):
            try:
                known = read_json(record)
                if known.get("inputs") == recipe.inputs:
                    result = Result(*(known[field] for field in Result._fields))
                else:
                    if not (model := self.find_model(recipe)):
                        curves = place / f"unfinished-{name}" / CURVES

                        def look() -> None:
                            for evaluation in read_evaluations(curves, recipe.last):
                                follow(*evaluation)

                        run_training(self.create_command(recipe), record.with_suffix(".log"), look)
                        model = place / BEST
                    result = read_result(model, recipe.last)
                    write_json(record, {"inputs": recipe.inputs, **result._asdict()})
                yield result
            finally:
                shutil.rmtree(place, ignore_errors=True)

    def find_model(self, recipe: Recipe) -> Path | None:
        """Find a trained model: of the run, of the run with the best settings, or of a process that was killed.

        What a killed training has left is removed: if it went on from there, it would get more training than others.
        """
        place = self.find_place(recipe)
        with locked(place):  # a training may outlive the process that began it
            found = (find_trained(folder, recipe.inputs) for folder in (self.folder, self.target, place))
            model = next(filter(None, found), None)
            for path in place.glob("unfinished-*") if not model else ():
                shutil.rmtree(path)
        return model

    def create_command(self, recipe: Recipe) -> list[str]:
        """The command line of `train`."""
        command = [sys.executable, "-m", "scripts.train", str(self.config), str(self.find_place(recipe))]
        paths = {"corpus": self.corpus, "encoder": self.encoder, "gpu_id": self.gpu_id}
        for name, value in (paths | self.find_options(recipe.settings, recipe.seed)).items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        return command

    def keep(self, recipe: Recipe, home: Path, instead: Iterable[str] = ()) -> None:
        """Keep the model of a training beside the model-best of a run, where `train` finds it.

        recipe (Recipe): The training, which this process has just done.
        home (Path): The folder of the run.
        instead (Iterable[str]): Digests of models that need not be kept there any longer.
        """
        name, model = digest(recipe.inputs), self.find_place(recipe) / BEST
        if model.exists():
            with locked(home):
                made(home, f"{BEST}-{name}")
                replace(model, home / f"{BEST}-{name}")
                for other in {*instead} - {name}:
                    shutil.rmtree(home / f"{BEST}-{other}", ignore_errors=True)


def run_training(command: list[str], log: Path, follow: Callable[[], object]) -> None:
    """Run a training in a process of its own.

    command (list[str]): Its command line.
    log (Path): Where to write what it prints; only that of a training that fails is kept.
    follow (Callable[[], object]): Called every second, and once more at the end. What it raises ends the training.
    RAISES (TrainingFailed): If the training failed, and why.
    """
    environment = os.environ | {"ANSI_COLORS_DISABLED": "1", "PYTHONUTF8": "1"}
    with (
        log.open("w") as output,
        subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment) as process,
    ):
        try:
            while process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(1)
                follow()
        except BaseException:
            process.kill()
            log.unlink()
            raise
    if process.returncode:
        text = log.read_text("utf8", errors="replace")
        told = text.rpartition("✘ ")[2] if "✘ " in text else text.strip().rpartition("\n")[2]
        how = (
            f"killed by {signal.Signals(-process.returncode).name}"
            if process.returncode < 0
            else " ".join(told.split())
        )
        raise TrainingFailed(f"{how} (see {log})")
    log.unlink()


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
