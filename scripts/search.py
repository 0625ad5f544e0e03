"""Search for better settings of the training on the corpus of a run. Dev decides; test is never looked at.

Optuna proposes the settings of a trial from what the trials before gave, and ends those early that look poor. A trial
is a training by the command `train`, in a process of its own. Its result is kept by its provenance, so that no settings
are trained twice, and Optuna keeps the study, so that the same command goes on after an interruption. Several processes
may work on one study; with several devices the command starts one for each.
"""

from __future__ import annotations

import math
import shutil
import sys
import textwrap
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import matplotlib.pyplot as plt
import numpy as np
import optuna
import tqdm
import typer
import yaml
from optuna.trial import Trial, TrialState
from scipy.stats import ttest_ind  # type: ignore[import-untyped]
from wasabi import msg

from common.devices import TrainingFailed, choose_devices, run_all
from common.errors import StepError, main
from common.figures import Figures, save_figures, scale_log
from common.formatting import describe_search, percent, shorten_name, tabulate_trials
from common.mixing import SYNTHETIC, check_mixed, find_highest_share
from common.models import DIVERGED, MIXED, TAUGHT
from common.records import check_run, locked, made, record_inputs, sha256, staged, write_json
from common.settings import find_settings, split_overrides
from common.space import OPTIONS, SHARE, Parameter, describe_parameter, limit, propose, read_space
from common.study import DEFAULT, count_trials, open_study, queue_again, queue_default, queue_killed, summarize
from common.trainings import Trainings

FAILURES = 3  # in a row, after which something else than the settings must be wrong
HEADER = "# Written by search"


def search(
    config: Annotated[Path, typer.Argument(help="Training config", exists=True)],
    space: Annotated[Path, typer.Argument(help="File with the settings to search, and their ranges", exists=True)],
    folder: Annotated[Path, typer.Argument(help="Folder of the run, where train keeps its models")],
    corpus: Annotated[Path, typer.Argument(help="Folder with train.spacy and dev.spacy", exists=True)],
    encoder: Annotated[Path, typer.Argument(help="Folder of the encoder", exists=True)],
    metrics: Annotated[Path, typer.Argument(help="Folder for search.json and search.svg")],
    runs: Annotated[Path, typer.Argument(help="Folder of the runs' files, where the best settings become one")],
    best: Annotated[str, typer.Option(help="Name of that run; nothing for <run>-best")] = "",
    trials: Annotated[int, typer.Option(help="How many there shall be in the study", min=1)] = 50,
    minutes: Annotated[float, typer.Option(help="After how many no trial begins; 0: no limit", min=0)] = 0,
    confirm: Annotated[int, typer.Option(help="With how many other seeds the best is trained again", min=0)] = 3,
    storage: Annotated[str, typer.Option(help="Of the study: a server's URL, or a journal file")] = "",
    epochs: Annotated[str, typer.Option(help="As train's; the default of the search")] = "auto",
    learn_rate: Annotated[str, typer.Option(help="As train's; the default of the search")] = "auto",
    batch_words: Annotated[str, typer.Option(help="As train's; the default of the search")] = "auto",
    seed: Annotated[int, typer.Option(help="Of each trial, and of what is proposed")] = 0,
    train_on: Annotated[str, typer.Option(help="As train's")] = "train",
    share: Annotated[float, typer.Option(help="As synthesize's; the default of the search")] = 0,
    start: Annotated[Path | None, typer.Option(help="As train's, but there must be none")] = None,
    overrides: Annotated[str, typer.Option(help="As train's; the default of the search")] = "",
    gpu_id: Annotated[int, typer.Option(help="GPU, or -1 for the CPU")] = -1,
    gpus: Annotated[str, typer.Option(help="Several GPUs, with a training on each at a time: 0,1")] = "",
    processes: Annotated[int, typer.Option(help="How many trainings share the cores at a time", min=1)] = 1,
) -> None:
    """Search for the settings with the highest F1 on dev, and write them as a run."""
    target = folder.parent / (best or f"{folder.name}-best")
    for path in (folder, metrics, target, corpus.with_name(target.name)):
        check_run(path)
    if start and start.exists():
        raise StepError(
            "The run goes on from a trained pipeline, and a search trains from the encoder alone.",
            "Search in a run without a start. What it finds may not suit one with a start.",
        )
    check_mixed(corpus, share, train_on)
    if confirm == 1:
        raise StepError(
            "With one other seed, nobody can tell what is noise.", "Take --vars.confirm 3, or 0 to leave it out."
        )
    devices = choose_devices(gpu_id, gpus, processes)
    own = {"epochs": epochs, "learn_rate": learn_rate, "batch_words": batch_words, SHARE: f"{share:g}"}
    given = own | split_overrides(overrides)
    trainings = Trainings(config, folder, target, corpus, encoder, train_on, devices[0], given)
    default = trainings.plan({}, seed).training
    check_run(default.place)
    file = runs / f"{target.name}.yml"
    if file.exists() and not file.read_text("utf8").startswith(HEADER):
        raise StepError(
            f"{file} was not written by search.", "Choose another name for the best settings: --vars.best mine"
        )
    parameters = read_space(space, find_settings(config, default.inputs["settings"]) | {SHARE: float(share)})
    texts = {SYNTHETIC: corpus / f"{SYNTHETIC}.spacy"} if settle_share(parameters, corpus, train_on) else {}
    about = default.inputs | {f"{name} texts": sha256(path) for name, path in texts.items()}
    study = open_study(storage, trainings.store, about, parameters)
    record = {
        "inputs": record_inputs(
            config=config,
            space=space,
            encoder=encoder,
            code=Path(__file__),
            **{split: corpus / f"{split}.spacy" for split in ("train", "dev")},
            **texts,
        ),
        "parameters": {name: describe_parameter(parameter) for name, parameter in parameters.items()},
    }

    def write(confirmed: dict[str, Any] | None = None) -> dict[str, Any]:
        found = record | summarize(study) | {"confirmed": confirmed}
        with locked(metrics):
            made(metrics, "search.json", "search.svg")
            found["captions"] = save_figures(FIGURES, found, metrics)
            write_json(metrics / "search.json", found)
        return found

    try:
        if len(devices) > 1:
            queue_killed(study, trainings)  # once, before all workers look at the same time
            queue_default(study, parameters)
            workers = create_workers(trainings.store, devices, "--confirm", "0")
            with tqdm.tqdm(total=trials, desc="trials", unit="trial", disable=None) as bar:
                run_all(workers, devices, lambda _: bar.update(count_trials(study)[0] - bar.n))
        else:
            run_trials(study, trainings, parameters, seed, trials, minutes, write)
        found = write()
        better = found["default"] is not None and found["best"] != found["default"]
        if better:
            chosen = found["trials"][found["best"]]["settings"]
            if confirm:
                if len(devices) > 1:  # there is a trial, so that they begin no more
                    run_all(create_workers(trainings.store, devices, "--trials", "1"), devices, lambda _: None)
                found = write(repeat(trainings, chosen, range(seed + 1, seed + 1 + confirm)))
            settings = given | chosen
            write_run(runs / f"{folder.name}.yml", file, settings, seed, describe_search(found))
            if float(settings[SHARE]):
                pass_texts(trainings, chosen)
    except KeyboardInterrupt:
        msg.warn("Interrupted. All trials that have ended are kept, and the same command goes on.")
        raise
    except optuna.exceptions.StorageInternalError as error:
        raise StepError(
            f"The study cannot be written: {error.__cause__ or error}",
            "Look at the space on the disk, or at the server, and run the same command again: nothing is lost.",
        ) from error
    header, rows = tabulate_trials(found)
    msg.table(rows, header=header, divider=True, max_col=200, aligns=("r", "l", "r", "r", "l"))
    msg.text(describe_search(found))
    msg.good(f"Wrote {metrics / 'search.json'} and search.svg")
    if others := found["counts"].get("at work"):
        msg.info(f"Other processes are at work on {others} trials: the last one of them sees all.")
    if better:
        command = "distill" if train_on == TAUGHT else "all"
        msg.good(f"Wrote {file}, the run with the best settings: make {command} RUN={file.stem}")


def settle_share(parameters: dict[str, Parameter], corpus: Path, train_on: str) -> bool:
    """Settle whether the share of synthetic texts is searched: up to what the texts give, and not at all without any.

    parameters (dict[str, Parameter]): What is to be searched, which is changed.
    corpus, train_on: As `search` takes them.
    RETURNS (bool): Whether it is searched.
    RAISES (StepError): If it is not optional, and the run cannot have such texts.
    """
    if not (parameter := parameters.get(SHARE)):
        return False
    try:
        if train_on == TAUGHT:
            raise StepError("a run with teachers takes no synthetic texts.", "Search it in a run without teachers.")
        highest = find_highest_share(corpus)
    except StepError as error:
        if not parameter.optional or len(parameters) == 1:
            raise StepError(f"{SHARE} cannot be searched: {error.problem}", error.remedy) from error
        del parameters[SHARE]
        msg.info(f"{SHARE} is left out of the search: {error.problem} {error.remedy}")
        return False
    parameters[SHARE] = limit(parameter, highest)
    if parameters[SHARE] != parameter:
        msg.info(
            f"The synthetic texts are enough for a share of {highest:.1%}, and none above is tried. More of them: "
            f'make synthesize RUN={corpus.name} VARS="--vars.sentences 2000"'
        )
    return True


# Several devices


@dataclass(frozen=True)
class Worker:
    """A process that searches on one device: this command itself, with other options.

    log (Path): Where it prints.
    options (tuple[str, ...]): The options, which come before those of this command.
    """

    log: Path
    options: tuple[str, ...]

    def begin(self, gpu_id: int) -> list[str]:
        """The command line for a GPU, or -1 for the CPU. Of an option that stands there twice, the last one counts."""
        alone = ("--gpus", "", "--processes", "1", "--gpu-id", str(gpu_id))
        return [sys.executable, *sys.orig_argv[1:], *self.options, *alone]

    def end(self) -> None:
        """Nothing is left of it."""


def create_workers(store: Path, devices: list[int], *options: str) -> dict[str, Worker]:
    """Create a worker for each device.

    store (Path): Folder for what they print.
    devices (list[int]): As `choose_devices` gives them.
    *options (str): Other options of the workers.
    RETURNS (dict[str, Worker]): The workers, by name.
    """
    return {f"worker {n}": Worker(store / f"worker-{n}.log", options) for n in range(len(devices))}


# Trials


def run_trials(
    study: optuna.Study,
    trainings: Trainings,
    parameters: dict[str, Parameter],
    seed: int,
    trials: int,
    minutes: float,
    write: Callable[[], object],
) -> None:
    """Run trials until there are enough of them.

    study (optuna.Study): The study. Its first trial has the default settings.
    trainings (Trainings): Trains.
    parameters (dict[str, Parameter]): What is searched.
    seed (int): Of each training.
    trials (int): How many there shall be, those at work in other processes included.
    minutes (float): After how many no trial begins; 0 for no limit.
    write (Callable[[], object]): Called after each trial.
    RAISES (StepError): If the default settings, or several trials in a row, cannot be trained.
    """
    end = time.monotonic() + (60 * minutes or math.inf)
    failures: list[str] = []

    def run(trial: Trial) -> float:
        with trainings.hold(f"trial-{trial.number}"):
            try:
                score = run_trial(study, trial, trainings, parameters, seed)
            except KeyboardInterrupt:
                queue_again(study, trial)
                raise
            except TrainingFailed as error:
                trial.set_user_attr("problem", str(error))
                if DEFAULT in trial.user_attrs:
                    raise StepError(f"The default settings cannot be trained: {error}", "Mend that first.") from error
                if DIVERGED in str(error):  # so that Optuna learns to avoid such settings
                    raise optuna.TrialPruned from error
                failures.append(str(error))
                raise
            failures.clear()
            return score

    with tqdm.tqdm(total=trials, desc="trials", unit="trial", disable=None) as bar:
        while time.monotonic() < end:
            queue_killed(study, trainings)
            ended, running = count_trials(study)
            bar.update(ended - bar.n)
            if ended + running >= trials:
                return
            queue_default(study, parameters)
            study.optimize(run, n_trials=1, catch=(TrainingFailed,))
            write()
            if len(failures) == FAILURES:
                raise StepError(
                    f"{FAILURES} trials in a row have failed, the last one because: {failures[-1]}",
                    "Mend that, and run the same command again: all trials that have ended are kept.",
                )


def run_trial(
    study: optuna.Study, trial: Trial, trainings: Trainings, parameters: dict[str, Parameter], seed: int
) -> float:
    """Run one trial, and keep its model if no other was better.

    study (optuna.Study): The study.
    trial (Trial): The trial, which gets the attributes `settings`, `seconds` and `digest`.
    trainings (Trainings): Trains.
    parameters (dict[str, Parameter]): What is searched.
    seed (int): Of the training.
    RETURNS (float): F1 on dev.
    RAISES (TrainingFailed): If the training failed.
    """
    # By its number, so that a process that goes on, or works beside others, does not propose the same again.
    study.sampler = optuna.samplers.TPESampler(seed=seed + trial.number)
    proposed = propose(trial, parameters, trainings.given)
    default = DEFAULT in trial.user_attrs
    recipe = trainings.plan({} if default else proposed, seed)
    trial.set_user_attr("settings", recipe.settings)
    reported: set[int] = set()

    def report(percent_: int, score: float) -> bool:
        new = percent_ not in reported
        reported.add(percent_)
        if new:
            trial.report(score, percent_)
        return new

    def follow(percent_: int, score: float) -> None:
        if report(percent_, score) and not default and trial.should_prune():
            raise optuna.TrialPruned

    with trainings.train(recipe, follow) as result:
        for evaluation in result.evaluations:
            report(*evaluation)
        others = study.get_trials(deepcopy=False)
        if default:
            recipe.training.keep(trainings.folder)
        elif all(result.ents_f > (other.value or 0) for other in others if other.state == TrialState.COMPLETE):
            recipe.training.keep(trainings.target, (other.user_attrs.get("digest", "") for other in others))
        trial.set_user_attr("digest", recipe.training.name)
        trial.set_user_attr("seconds", result.seconds)
    msg.info(f"Trial {trial.number}: F1 {percent(result.ents_f)} on dev")
    return result.ents_f


def repeat(trainings: Trainings, best: dict[str, str], seeds: range) -> dict[str, Any]:
    """Train the best and the default settings again with other seeds, of which none decided what is best.

    trainings (Trainings): Trains.
    best (dict[str, str]): The best settings.
    seeds (range): The seeds.
    RETURNS (dict[str, Any]): `seeds`: how many; `default` and `best`: F1 on dev for each, 0 of a training that
        diverged; `difference` of their means, and its `interval` of 95% by Welch's t-test.
    RAISES (StepError): If a training fails otherwise.
    """
    waiting = {
        (name, seed): trainings.plan(settings, seed)
        for seed in seeds
        for name, settings in (("default", {}), ("best", best))
    }
    found: dict[tuple[str, int], float] = {}
    with tqdm.tqdm(total=len(waiting), desc="other seeds", unit="training", disable=None) as bar:
        while waiting:
            # What another process trains comes last, so that several share the work.
            free = (key for key, recipe in waiting.items() if not trainings.is_held(recipe.training.name))
            name, seed = key = next(free, next(iter(waiting)))
            try:
                with trainings.train(waiting.pop(key), lambda *_: None) as result:
                    found[key] = result.ents_f
            except TrainingFailed as error:
                if DIVERGED in str(error):  # which nobody can mend, and which it would do again
                    found[key] = 0.0
                    bar.update()
                    continue
                raise StepError(
                    f"The {name} settings cannot be trained with seed {seed}: {error}",
                    "Mend that, and run the same command again: all trainings that have ended are kept.",
                ) from error
            bar.update()
    scores = {name: [found[name, seed] for seed in seeds] for name in ("default", "best")}
    difference = float(np.mean(scores["best"]) - np.mean(scores["default"]))
    interval = [difference, difference]
    if any(np.ptp(values) for values in scores.values()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of one side that has no spread
            welch = ttest_ind(scores["best"], scores["default"], equal_var=False)
        interval = [float(end) for end in welch.confidence_interval()]
    return {"seeds": len(seeds), **scores, "difference": difference, "interval": interval}


# What it gave


def write_run(source: Path, path: Path, settings: dict[str, str], seed: int, summary: str) -> None:
    """Write the run that has the best settings.

    source (Path): The file of the run that was searched, whose other variables are taken. It may be missing, the
        variables having come from the command line.
    path (Path): The new file.
    settings (dict[str, str]): The settings, those of the run included.
    seed (int): With which they were tried.
    summary (str): What is to be said of them.
    """
    # As they are written: 1.10 is no number here
    variables = yaml.load(source.read_text("utf8"), yaml.BaseLoader) or {} if source.exists() else {}
    own = {name: settings[name] for name in OPTIONS} | {"seed": str(seed)}
    defaults = dict.fromkeys(OPTIONS, "auto") | {"seed": "0"}
    variables |= {name: value for name, value in own.items() if value != variables.get(name, defaults[name])}
    others = {name: value for name, value in settings.items() if name not in (*OPTIONS, SHARE)}
    variables["overrides"] = ",".join(f"{name}={value}" for name, value in others.items())
    share = float(settings[SHARE])
    if share or variables.get("train_on") == MIXED:
        variables |= {"train_on": MIXED if share else "train", SHARE: share}
    comment = f"{HEADER} from the run {source.stem}. {summary}"
    lines = textwrap.wrap(comment, 120, subsequent_indent="# ")
    text = "\n".join(lines) + "\n" + yaml.safe_dump(variables, sort_keys=False, allow_unicode=True, width=10_000)
    path.write_text(text, encoding="utf8")


def pass_texts(trainings: Trainings, best: dict[str, str]) -> None:
    """Put the synthetic texts, and train with the best share of them, where the run with the best settings looks.

    So `all` needs no other command between, and no language model is asked for the same again.

    trainings (Trainings): Knows the corpus of the run that was searched.
    best (dict[str, str]): The best settings.
    """
    corpus = trainings.corpus
    texts = [corpus / name for name in (SYNTHETIC, *(f"{SYNTHETIC}.{kind}" for kind in ("jsonl", "json", "spacy")))]
    with trainings.find_corpus(best) as place:
        paths = [path for path in (*texts, place / f"{MIXED}.spacy", place / f"{MIXED}.json") if path.exists()]
        with staged(corpus.with_name(trainings.target.name), *(path.name for path in paths)) as new:
            for path in paths:
                (shutil.copytree if path.is_dir() else shutil.copy)(path, new / path.name)


def draw_search(record: dict[str, Any]) -> Any:
    """Draw F1 of all trials over each parameter.

    record (dict[str, Any]): As `search` writes it.
    RETURNS (Any): The figure.
    """
    parameters, trials = record["parameters"], record["trials"]
    columns = min(3, len(parameters))
    rows = -(-len(parameters) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(4 * columns, 3 * rows), sharey=True, squeeze=False)
    for axes in grid.flat[len(parameters) :]:
        axes.set_visible(False)
    for axes, (name, parameter) in zip(grid.flat, parameters.items(), strict=False):
        for state, marker in (("finished", "o"), ("ended early", "x")):
            points = [
                (trial["params"][name], 100 * trial["ents_f"])
                for trial in trials
                if trial["state"] == state and trial["ents_f"] is not None and name in trial["params"]
            ]
            axes.plot(*zip(*points, strict=True) if points else ([], []), marker, label=state, alpha=0.7)
        if record["default"] is not None:
            default = trials[record["default"]]
            axes.plot(default["params"][name], 100 * default["ents_f"], "*", markersize=12, label="default")
        if "times" in parameter["range"]:
            scale_log(axes)
        axes.set_xlabel(shorten_name(name))
    for axes in grid[:, 0]:
        axes.set_ylabel("F1 on dev, %")
    grid[0, 0].legend()
    return figure


FIGURES: Figures = {
    "search": (
        draw_search,
        "F1 of each trial on dev over the value of each setting: multiples of the default on logarithmic axes.",
    )
}

if __name__ == "__main__":
    main(search)
