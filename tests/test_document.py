from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from scripts.document import END, START, insert, results
from scripts.steps import StepError, read_json
from tests.conftest import ROOT, Project, copy_project, python

README = (ROOT / "README.md").read_text("utf8")


def reference_runs() -> list[Path]:
    commands = yaml.safe_load((ROOT / "project.yml").read_text("utf8"))["commands"]
    line = next(command["script"][0] for command in commands if command["name"] == "document")
    return [ROOT / path for path in shlex.split(line) if path.startswith("metrics/")]


def test_the_results_in_the_readme_are_those_in_metrics() -> None:
    assert insert(README, results(reference_runs())) == README, "stale: python -m spacy project run document"


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
    assert table.count("\n|") == 2 and "| `tiny` | sample | tiny |" in table


def test_a_run_without_results_and_a_file_without_marks_are_refused(tmp_path: Path) -> None:
    shutil.copytree(reference_runs()[0], tmp_path / "some")
    (tmp_path / "some" / "test.json").unlink()
    with pytest.raises(StepError, match=r"lacks test\.json"):
        results([tmp_path / "some"])
    with pytest.raises(StepError, match="no place for the results"):
        insert(f"{END} {START}", "")
