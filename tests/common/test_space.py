from __future__ import annotations

from pathlib import Path

import optuna
import pytest
import yaml

from common.errors import StepError
from common.settings import find_settings, read_overrides
from common.space import OPTIONS, SHARE, limit, multiply, propose, read_space
from common.training import derive
from tests.conftest import ROOT

SETTINGS: dict[str, bool | int | float] = {
    "training.dropout": 0.1,
    "training.patience": 3,
    "model.case": True,
    SHARE: 0.0,
}


def write(folder: Path, text: str) -> Path:
    path = folder / "space.yml"
    path.write_text(text, "utf8")
    return path


def test_the_file_beside_the_config_can_be_trained_at_both_ends(tiny_corpus: Path, tiny_encoder: Path) -> None:
    config = ROOT / "configs/bert.cfg"
    settings = find_settings(config, derive(config, tiny_corpus / "train.spacy", tiny_encoder, "auto", "auto", "auto"))
    parameters = read_space(ROOT / "configs/search.yml", settings | {SHARE: 0.0})
    assert parameters[SHARE].optional, "not every run has synthetic texts"
    assert {*OPTIONS, "training.dropout", "training.batcher.replace_names"} < set(parameters)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(5):
        proposed = propose(study.ask(), parameters, {})
        assert 0 <= float(proposed.pop(SHARE)) <= 0.5
        overrides = ",".join(f"{name}={value}" for name, value in proposed.items() if name not in OPTIONS)
        assert read_overrides(overrides, settings)
        assert all(proposed[name].startswith("auto*") for name in OPTIONS)
    assert all(len(parameter.explain.split()) > 10 for parameter in parameters.values())


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("- learn_rate", "names no settings"),
        ("learn_rate: [", "no.* valid YAML"),
        ("training.depth: {between: [0, 1], explain: x}", "training.depth, which is no setting"),
        ("learn_rate: {times: [0.5, 2]}", "a line `explain`"),
        ("learn_rate: {times: [0.5, 2], one_of: [1], explain: x}", "one of times, between, one_of"),
        ("learn_rate: {times: [2, 0.5], explain: x}", "empty"),
        ("learn_rate: {times: [1], explain: x}", "empty"),
        ("learn_rate: {times: [0, 2], explain: x}", "begin above 0"),
        ("learn_rate: {times: [2, 4], explain: x}", "the default, 1, is not between"),
        ("learn_rate: {times: 2, explain: x}", "not a list"),
        ("learn_rate: {times: [a, b], explain: x}", "not all numbers"),
        ("learn_rate: {between: [0.1, 0.2], explain: x}", "multiples"),
        ("training.dropout: {between: [0.2, 0.4], explain: x}", "the default, 0.1, is not between"),
        ("training.dropout: {one_of: [0.2, 0.4], explain: x}", "the default, 0.1, is not among"),
        ("training.patience: {between: [0.5, 4], explain: x}", "whole numbers"),
        ("model.case: {between: [0, 1], explain: x}", "a switch"),
        ("model.case: {times: [0.5, 2], explain: x}", "a switch"),
        ("model.case: {one_of: [1, 3], explain: x}", "a switch"),
        ("training.patience: {one_of: [3, 4.5], explain: x}", "whole numbers"),
        ("training.dropout: {one_of: [0.1, true], explain: x}", "not all numbers"),
        ("model.case: {one_of: [true, false], explain: x, optional: true}", "a line `explain`"),
        ("synthetic_share: {between: [0, 1], explain: x}", "the highest below 1"),
        ("synthetic_share: {between: [-0.1, 0.5], explain: x}", "parts of 1"),
        ("synthetic_share: {between: [0.1, 0.5], explain: x}", "the default, 0, is not between"),
        ("synthetic_share: {one_of: [0, 0.2], explain: x}", "takes a range"),
        ("synthetic_share: {times: [0.5, 2], explain: x}", "takes a range"),
        ("synthetic_share: {between: [0, 0.5], explain: x, optional: perhaps}", "optional is 'perhaps'"),
        ("synthetic_share: 0.3", "a line `explain`"),
    ],
)
def test_what_cannot_be_searched_is_named(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(StepError, match=problem) as caught:
        read_space(write(tmp_path, text), SETTINGS)
    assert "space.yml" in caught.value.problem


def test_what_is_proposed_is_in_its_range_and_of_its_kind(tmp_path: Path) -> None:
    text = """
learn_rate: {times: [0.5, 2], explain: x}
model.steps: {times: [0.1, 5], explain: x}
training.dropout: {between: [0.0, 0.4], explain: x}
training.patience: {between: [1, 5], explain: x}
model.case: {one_of: [true, false], explain: x}
"""
    parameters = read_space(write(tmp_path, text), SETTINGS | {"model.steps": 30})
    assert [parameter.default for parameter in parameters.values()] == [1.0, 1.0, 0.1, 3, True]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        found = propose(study.ask(), parameters, {"learn_rate": "auto*2", "model.steps": "30"})
        assert 1 <= float(found["learn_rate"].removeprefix("auto*")) <= 4, "multiples of what the run has"
        assert 3 <= int(found["model.steps"]) <= 150, "multiples of a whole number are whole"
        assert 0 <= float(found["training.dropout"]) <= 0.4 and 1 <= int(found["training.patience"]) <= 5
        assert found["model.case"] in ("true", "false")
        assert yaml.safe_load(found["model.case"]) in (True, False)


def test_the_share_is_limited_to_what_can_be_reached_and_keeps_its_default(tmp_path: Path) -> None:
    path = write(tmp_path, "synthetic_share: {between: [0, 0.5], explain: x}")
    for own, highest, tried in ((0.0, 0.9, 0.5), (0.0, 0.2, 0.2), (0.3, 0.2, 0.3)):
        parameter = limit(read_space(path, {SHARE: own})[SHARE], highest)
        assert parameter.distribution == optuna.distributions.FloatDistribution(0.0, tried)
        assert parameter.default == own and not parameter.optional


def test_multiples_of_numbers_of_auto_and_of_multiples() -> None:
    assert [multiply(given, 0.51234) for given in ("auto", "auto*2", "0.001")] == [
        "auto*0.512",
        "auto*1.02",
        "0.000512",
    ]
