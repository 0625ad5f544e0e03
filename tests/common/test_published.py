from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from common.errors import StepError
from common.published import NEEDED, Present, find_present, find_stale, read_metrics
from common.records import digest, record_inputs, sha256, write_json
from tests.conftest import ROOT, copy_project


def record_present(project: Path) -> tuple[Present, dict[str, dict[str, Any]]]:
    """The code of a project, and metrics that say that they were measured with it."""
    present = find_present(project / "project.yml", project / "configs/bert.cfg")
    trained = present.model | {"corpus": {"train": "0"}}
    model = digest(trained)
    records: dict[str, dict[str, Any]] = {
        name: {"inputs": {"model": model, "code": record_inputs(code=project / path)["code"]}}
        for name, path in {
            "evaluation": "scripts/evaluate.py",
            "package": "scripts/verify.py",
            "concepts": "scripts/concepts.py",
            "speed": "benchmarks/speed.py",
            "service": "benchmarks/service.py",
        }.items()
    }
    records["evaluation"] |= {"training": {"inputs": trained}, "test": {"predicted_sentences": {"ents_f": 0.5}}}
    records["test"] = {"ents_f": 0.5}
    records["service"]["inputs"] |= record_inputs(service=project / "app/service.py")
    code = record_inputs(code=project / "benchmarks/training.py", pipeline=ROOT / "bert_ner/__init__.py")
    records["training"] = {"inputs": code | {"config": sha256(project / "configs/bert.cfg")}}
    return present, records


Measured = tuple[Path, Present, dict[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """A copy of the project, its code, and metrics that were measured with it."""
    folder = copy_project(tmp_path_factory.mktemp("copied") / "project")
    return folder, *record_present(folder)


@pytest.fixture
def records(measured: Measured) -> dict[str, dict[str, Any]]:
    return deepcopy(measured[2])


@pytest.fixture
def present(measured: Measured) -> Present:
    return deepcopy(measured[1])


@pytest.mark.parametrize(
    ("path", "change", "stale"),
    [
        ("scripts/evaluate.py", "# a comment", set()),
        ("scripts/evaluate.py", "CHANGED = True", {"evaluation", "test"}),
        ("scripts/verify.py", "CHANGED = True", {"package"}),
        ("benchmarks/speed.py", "CHANGED = True", {"speed"}),
        ("app/service.py", "CHANGED = True", {"service"}),
        (
            "configs/bert.cfg",
            "\n[changed]\nx = 1",
            {"evaluation", "test", "package", "concepts", "speed", "service", "training"},
        ),
    ],
)
def test_a_change_of_code_makes_the_figures_of_its_step_stale(
    measured: Measured, path: str, change: str, stale: set[str]
) -> None:
    folder, present, records = measured
    assert find_stale(records, present) == set()
    file = folder / path
    before = file.read_text("utf8")
    file.write_text(f"{before}\n{change}\n", "utf8")
    try:
        assert find_stale(records, find_present(folder / "project.yml", folder / "configs/bert.cfg")) == stale
    finally:
        file.write_text(before, "utf8")


def test_other_training_code_makes_all_figures_of_the_model_stale(
    present: Present, records: dict[str, dict[str, Any]]
) -> None:
    present.model["code"] = "other"
    assert find_stale(records, present) == {"evaluation", "test", "package", "concepts", "speed", "service"}


def test_figures_of_another_model_or_another_pipeline_s_code_are_stale(
    present: Present, records: dict[str, dict[str, Any]]
) -> None:
    records["speed"]["inputs"]["model"] = "other"
    present.inputs["pipeline"] = "other"
    assert find_stale(records, present) == {"speed", "training"}


def test_figures_that_do_not_say_what_they_were_measured_with_are_stale(
    present: Present, records: dict[str, dict[str, Any]]
) -> None:
    for name in ("evaluation", "package", "concepts", "speed", "service", "training"):
        known = records[name]["inputs"]
        others = {key: value for key, value in known.items() if key != "code"}
        for lacking in ({}, others, {"code": known["code"]}, known | {"code": "other"}):
            records[name]["inputs"] = lacking
            assert name in find_stale(records, present)
        records[name]["inputs"] = known
    assert find_stale(records, present) == set()


def test_scores_of_spacy_that_evaluate_does_not_confirm_are_stale(
    present: Present, records: dict[str, dict[str, Any]]
) -> None:
    records["test"]["ents_f"] = 0.51
    assert find_stale(records, present) == {"test"}


def test_a_run_without_results_is_refused(tmp_path: Path) -> None:
    for name in NEEDED[1:]:
        write_json(tmp_path / f"{name}.json", {"some": 1})
    with pytest.raises(StepError, match=r"lacks test\.json"):
        read_metrics(tmp_path, Present({}, {}, {}))
