from __future__ import annotations

import optuna

from common.study import ENOUGH, find_importance


def test_the_importance_of_few_trials_is_not_told() -> None:
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    for number in range(ENOUGH):
        trial = study.ask()
        decides, _ = trial.suggest_float("decides", 0, 1), trial.suggest_float("other", 0, 1)
        if number % 3:
            study.tell(trial, decides)
        else:
            trial.report(decides / 2, 50)
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        if number == ENOUGH - 2:
            assert find_importance(study.get_trials()) is None
    importance = find_importance(study.get_trials())
    assert importance and importance["decides"] > 2 * importance["other"]
