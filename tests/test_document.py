from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from scripts.document import END, START, insert, report, results, speeds
from scripts.package import worth_of_scores
from scripts.steps import StepError, read_json, write_json
from tests.conftest import ROOT, Project, copy_project, python

README = (ROOT / "README.md").read_text("utf8")


def reference_runs() -> list[Path]:
    commands = yaml.safe_load((ROOT / "project.yml").read_text("utf8"))["commands"]
    line = next(command["script"][0] for command in commands if command["name"] == "document")
    return [ROOT / path for path in shlex.split(line) if path.startswith("metrics/")]


def test_the_results_in_the_readme_are_those_in_metrics() -> None:
    assert insert(README, report(reference_runs())) == README, "stale: python -m spacy project run document"


def test_the_snippet_in_the_readme_shows_what_the_verified_wheel_gave() -> None:
    package = read_json(ROOT / "metrics" / "reference" / "conll2003-minilm" / "package.json")
    assert f'doc = nlp("{package["texts"][0]}")' in README
    assert f"# {[tuple(entity) for entity in package['entities'][0]]}" in README


def test_the_table_of_commands_in_the_readme_is_that_of_the_project(tmp_path: Path) -> None:
    copy_project(tmp_path)
    done = python("-m", "spacy", "project", "document", ".", "--output", "README.md", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "README.md").read_text("utf8") == README, "stale: python -m spacy project run document"


def test_results_of_a_new_run(project: Project) -> None:
    table = results([project.folder / "metrics" / "tiny"])
    folder = project.folder / "metrics" / "tiny"
    test, evaluation, package = (read_json(folder / f"{name}.json") for name in ("test", "evaluation", "package"))
    shipped, conditions = (row.split(" | ") for row in table.splitlines() if row.startswith("| `tiny` |"))
    assert shipped[:3] == ["| `tiny`", "sample", "tiny"] and shipped[5] == f"{100 * (test['ents_f'] or 0):.1f}"
    assert shipped[-1].endswith(f"{package['bytes'] / 1e6:.0f} MB |")
    assert [float(cell) for cell in conditions[1:5]] == [
        pytest.approx(100 * evaluation["test"][name]["ents_f"], abs=0.05)
        for name in ("gold_sentences", "lower", "upper", "raw")
    ]
    assert "concepts in 30 sentences" in table and "threshold for 97% on dev" in table


def test_what_was_asked_of_the_scores_and_how_much_was_marked_are_read_from_the_records(tmp_path: Path) -> None:
    run = Path(shutil.copytree(reference_runs()[0], tmp_path / "some"))
    evaluation, marked = read_json(run / "evaluation.json"), read_json(run / "concepts.json")
    evaluation["test"]["calibration"]["wanted"] = 0.955
    write_json(run / "evaluation.json", evaluation)
    write_json(run / "concepts.json", marked | {"sentences": {"dev": 3, "test": 4}})
    table = results([run])
    assert "threshold for 95.5% on dev" in table and "concepts in 4 sentences" in table
    assert "a precision of 95.5%" in worth_of_scores(evaluation["test"]["calibration"])


def test_a_benchmark_becomes_tables(tmp_path: Path) -> None:
    def result(words_per_second: float, **more: object) -> dict[str, object]:
        rates = {"median": words_per_second, "min": words_per_second - 10, "max": words_per_second + 1000}
        return {"repetitions": [{}, {}], "words_per_second": rates, "f": None, "peak_rss_mb": 900, **more}

    speed = {
        "machine": {"cpus": 2, "cpu": "Some"},
        "words": 2000,
        "reference": "other",
        "default_precision": "int8",
        "contenders": {
            "other": result(1000, ratio_to_other=1.0, f=0.5),
            "default": result(2500, ratio_to_other=2.5, share_of_bare_encoder=0.7),
            "bfloat16": {"unavailable": "Precision"},
        },
        "starts": {
            "medians": {"load_after_imports": 0.61, "process_to_first_entity": 4},
            "sentence": {"p50": 0.004, "p99": 0.009},
        },
        "memory": [{"megabytes": 1.0, "peak_rss_mb": 1200.4}],
    }
    write_json(tmp_path / "speed.json", speed)
    with pytest.raises(StepError, match=r"training\.json"):
        speeds(tmp_path)
    write_json(
        tmp_path / "training.json",
        {"machine": {"cpu": "Other"}, "contenders": {"ours": result(4000), "other": result(1000)}},
    )
    service = {"clients": 50, "seconds": 60, "answers_per_second": 80.2, "seconds_p50": 0.1, "seconds_p95": 0.25}
    statuses = {"200": 4000, "429": 1200, "500": 1}
    write_json(tmp_path / "service.json", service | {"statuses": statuses, "rss_mb": {"before": 900, "after": 905}})
    write_json(tmp_path / "training-full.json", {"epochs": 3, "contenders": {"ours": {"f": 0.912}}})
    tables = speeds(tmp_path)
    assert "| default | 2,500 (2,490 to 3,500) | 2.50 | 0.70 | – |" in tables and "| 1.00 | – | 50.0 |" in tables
    assert "| bfloat16 | this machine cannot | – |" in tables and "p50 4.0 ms and p99 9.0 ms" in tables
    assert "2 cores of Some" in tables and "| training, Other |" in tables
    assert "1,200 MB for 1 MB" in tables and "| other | 1,000 (990 to 2,000) | 0.25 | 900 MB |" in tables
    assert "80 answers a second, p50 100 ms, p95 250 ms; 1,200 told to come again (429), 1 errors;" in tables
    assert "memory 900 MB before and 905 MB after" in tables
    assert "Dev F after 3 epochs of the whole corpus: ours 91.2." in tables


def test_a_run_without_results_and_a_file_without_marks_are_refused(tmp_path: Path) -> None:
    shutil.copytree(reference_runs()[0], tmp_path / "some")
    (tmp_path / "some" / "test.json").unlink()
    with pytest.raises(StepError, match=r"lacks test\.json"):
        results([tmp_path / "some"])
    with pytest.raises(StepError, match="no place for the results"):
        insert(f"{END} {START}", "")
