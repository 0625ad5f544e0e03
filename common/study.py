"""The study of a search, which Optuna keeps: what has become of its trials, and which trials come next.

Several processes may work on a study, and what one of them leaves undone is done again by another.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import distribution_to_json
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from common.errors import StepError
from common.records import locked, made
from common.space import Parameter
from common.trainings import Trainings

STARTUP = 5  # trials that end by themselves before one is ended early
WARMUP = 25  # percent of a training in which it is not ended early
ENOUGH = 50  # trials for which the importance of settings is more than noise
DEFAULT = "default"  # an attribute of the trials that have the default settings


def open_study(storage: str, store: Path, inputs: dict[str, Any], parameters: dict[str, Parameter]) -> optuna.Study:
    """Open the study of a run, or create it.

    storage (str): A server's URL, a journal file, or nothing for a file of SQLite in `store`.
    store (Path): The folder for it, which is made.
    inputs (dict[str, Any]): Of the provenance of the default settings, which say what the study is about.
    parameters (dict[str, Parameter]): What is searched.
    RETURNS (optuna.Study): The study.
    RAISES (StepError): If it cannot be opened, or is about something else.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    server = "://" in storage
    where = "on the server" if server else f"in {storage or store / 'study.db'}"  # a URL may have a password
    try:
        with locked(store.parent):  # or two processes create the same tables
            made(store.parent, store.name)
            store.mkdir(exist_ok=True)
            if storage and not server:
                backend: Any = optuna.storages.JournalStorage(JournalFileBackend(storage))
            else:
                # A process waits for another that writes, which SQLite would do for 5 seconds only.
                waits = {} if server else {"connect_args": {"timeout": 60}}
                url = storage or f"sqlite:///{store / 'study.db'}"
                backend = optuna.storages.RDBStorage(url, engine_kwargs=waits)
            study = optuna.create_study(
                study_name=store.parent.name,
                storage=backend,
                direction="maximize",
                load_if_exists=True,
                pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=WARMUP),
            )
            known = study.user_attrs.get("about")
    except OSError:
        raise
    except Exception as error:  # of a kind for each database and its driver
        raise StepError(
            f"The study {where} cannot be opened: {error}", "Look at the file, or at the server and its URL."
        ) from error
    about = {"space": {name: distribution_to_json(found.distribution) for name, found in parameters.items()}} | inputs
    if known is None:
        study.set_user_attr("about", about)
    elif differing := sorted(name for name in known.keys() | about.keys() if known.get(name) != about.get(name)):
        raise StepError(
            f"The study {study.study_name} {where} was begun with another {', '.join(differing)}.",
            "Its trials say nothing about this one. Remove it to begin a new one, or go back to what it was for.",
        )
    return study


def count_trials(study: optuna.Study) -> tuple[int, int]:
    """Count the trials that have ended without failing, and those at work."""
    states = Counter(trial.state for trial in study.get_trials(deepcopy=False))
    return states[TrialState.COMPLETE] + states[TrialState.PRUNED], states[TrialState.RUNNING]


def queue_default(study: optuna.Study, parameters: dict[str, Parameter]) -> None:
    """Let the next trial have the default settings, unless there is such a trial that has not failed."""
    trials = study.get_trials(deepcopy=False)
    if not any(DEFAULT in trial.user_attrs and trial.state != TrialState.FAIL for trial in trials):
        study.enqueue_trial({name: parameter.default for name, parameter in parameters.items()}, {DEFAULT: True})


def queue_killed(study: optuna.Study, trainings: Trainings) -> None:
    """Let the next trials do again what processes began that were killed."""
    for trial in study.get_trials(deepcopy=False):
        if trial.state == TrialState.RUNNING and trainings.is_held(f"trial-{trial.number}") is False:
            with suppress(ValueError, optuna.exceptions.UpdateFinishedTrialError):  # another process was faster
                study.tell(trial.number, state=TrialState.FAIL)
                queue_again(study, trial)


def queue_again(study: optuna.Study, trial: Trial | FrozenTrial) -> None:
    """Let another trial have the parameters of this one, and be the default if this one is."""
    study.enqueue_trial(trial.params, {DEFAULT: True} if DEFAULT in trial.user_attrs else None)


def summarize(study: optuna.Study) -> dict[str, Any]:
    """Summarize a study.

    study (optuna.Study): The study.
    RETURNS (dict[str, Any]): `trials`: for each, by its number, `state`, `ents_f` on dev, perhaps the last one
        before it was ended, `seconds`, `settings`, `params` as Optuna has them, and `problem`; `counts` of
        their states; the numbers of the trials that are `default` and `best`, None if there is none; `importance` of
        each parameter, None if there are not `enough` trials.
    """
    frozen = study.get_trials(deepcopy=False)
    trials = [
        {
            "state": name_state(trial),
            "ents_f": find_score(trial),
            "seconds": trial.user_attrs.get("seconds", trial.duration.total_seconds() if trial.duration else None),
            "settings": trial.user_attrs.get("settings", {}),
            "params": trial.params,
            "problem": trial.user_attrs.get("problem", ""),
        }
        for trial in frozen
    ]
    finished = [trial for trial in frozen if trial.state == TrialState.COMPLETE]
    return {
        "trials": trials,
        "counts": dict(Counter(trial["state"] for trial in trials)),
        "default": next((trial.number for trial in finished if DEFAULT in trial.user_attrs), None),
        "best": max(finished, key=lambda trial: trial.value or 0).number if finished else None,
        "importance": find_importance(frozen),
        "enough": ENOUGH,
    }


def name_state(trial: FrozenTrial) -> str:
    """What became of a trial."""
    problem = trial.user_attrs.get("problem", "")
    names = {
        TrialState.COMPLETE: "finished",
        TrialState.PRUNED: "diverged" if problem else "ended early",
        TrialState.FAIL: "failed" if problem else "interrupted",
        TrialState.RUNNING: "at work",
        TrialState.WAITING: "to come",
    }
    return names[trial.state]


def find_score(trial: FrozenTrial) -> float | None:
    """F1 of a trial on dev: the best one, or the last one before it was ended."""
    if trial.state == TrialState.COMPLETE:
        return trial.value
    return trial.intermediate_values[max(trial.intermediate_values)] if trial.intermediate_values else None


def find_importance(trials: list[FrozenTrial]) -> dict[str, float] | None:
    """Find which parameters decide whether a trial is among the best tenth, by PED-ANOVA.

    Only the order of the trials counts. So those that were ended early, being worse than half of the others, count too,
    with what they had reached.

    trials (list[FrozenTrial]): The trials of a study.
    RETURNS (dict[str, float] | None): Shares that sum to 1, the highest first. None if there are too few trials.
    """
    ended = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    if len(ended) < ENOUGH:
        return None
    study = optuna.create_study(direction="maximize")
    study.add_trials(
        optuna.create_trial(params=trial.params, distributions=trial.distributions, value=find_score(trial) or 0.0)
        for trial in ended
    )
    return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
