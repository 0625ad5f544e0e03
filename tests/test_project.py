from __future__ import annotations

import ast
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from weasel.cli.run import check_rerun
from weasel.util import load_project_config, split_command

from scripts.steps import SPLITS, read_json, sha256
from tests.conftest import ROOT, Project, copy_project, new_python, words

STEPS = [
    "convert",
    "explore",
    "train",
    "evaluate",
    "analyze",
    "concepts",
    "package",
    "verify",
    "report",
]  # that write what weasel watches
PROJECT = yaml.safe_load((ROOT / "project.yml").read_text("utf8"))
COMMANDS = PROJECT["commands"]
CI = (ROOT / ".ci/run").read_text("utf8")


# project.yml


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command["name"])
def test_a_command_names_what_it_depends_on_and_what_it_writes(command: dict[str, Any]) -> None:
    for line in command["script"]:
        assert not re.search(r"[*?<>|;]|&&|`", line), "weasel has no shell"
        assert line.startswith("python "), "weasel replaces only a leading python"
        used = re.findall(r"(?:scripts|configs)/[\w.]+", line)
        used += [f"scripts/{module}.py" for module in re.findall(r"-m scripts\.(\w+)", line)]
        for path in used:
            assert path in command["deps"] and (ROOT / path).exists()
        for dependency in _imported(used):
            assert dependency in command["deps"], f"{line} imports it"
    if command["name"] not in ("quickstart", "download", "debug", "experiments", "clean", "app", "serve"):
        assert command["outputs"]
    assert command["help"][0].isupper() and not command["help"].endswith(".")


def _imports(source: str) -> Iterator[tuple[str, str]]:
    """Each script of the project that Python code imports, wherever it does so, and what it takes from it, if named."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[1], "") for alias in node.names if alias.name.startswith("scripts."))
        elif isinstance(node, ast.ImportFrom) and node.module == "scripts":
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("scripts."):
            yield from (((node.module or "").split(".")[1], alias.name) for alias in node.names)


def test_a_name_with_spaces_stays_one_argument() -> None:
    """Weasel splits commands at spaces; the step then refuses the name, before anything is touched."""
    for command in COMMANDS:
        for line in command["script"]:
            plain, spaced = (split_command(line.replace("${vars.run}", name)) for name in ("mine", "x /somewhere"))
            assert [part.replace("mine", "x /somewhere") for part in plain] == spaced


def _imported(paths: list[str]) -> set[str]:
    """The project's scripts that these import, directly or not."""
    found: set[str] = set()
    waiting = [path for path in paths if path.endswith(".py")]
    while waiting:
        for name, _ in _imports((ROOT / waiting.pop()).read_text("utf8")):
            if (path := f"scripts/{name}.py") not in found:
                found.add(path)
                waiting.append(path)
    return found


def test_no_import_is_overlooked() -> None:
    source = """
import spacy, scripts.train
from scripts import functions as code, steps
from scripts.convert import (
    convert,
    read_conll,
)
def late():
    from scripts.serve import serve
"""
    assert sorted(_imports(source)) == [
        ("convert", "convert"),
        ("convert", "read_conll"),
        ("functions", ""),
        ("serve", "serve"),
        ("steps", ""),
        ("train", ""),
    ]


def test_every_script_is_a_command_and_has_its_tests() -> None:
    names = {path.stem for path in (ROOT / "scripts").glob("*.py")} - {"__init__"}
    tests = {path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")}
    assert names <= tests
    shared = {"functions", "steps", "application", "files"}
    assert names - shared <= {command["name"] for command in COMMANDS}


def test_no_script_imports_the_command_of_another() -> None:
    for path in (ROOT / "scripts").glob("*.py"):
        for module, name in _imports(path.read_text("utf8")):
            assert module != name, path


# The whole workflow


def test_all_leaves_everything_in_its_place(project: Project) -> None:
    for path in (
        *(f"assets/tiny/{split}.conll" for split in ("train", "dev", "test")),
        "assets/tiny/encoder/model.safetensors",
        *(f"corpus/tiny/{split}.spacy" for split in ("train", "dev", "test")),
        "training/tiny/model-best/origin.json",
        "metrics/tiny/corpus.json",
        "metrics/tiny/figures/corpus/entities.svg",
        "metrics/tiny/test.json",
        "metrics/tiny/evaluation.json",
        "metrics/tiny/analysis.json",
        "metrics/tiny/concepts.json",
        "metrics/tiny/package.json",
        "metrics/tiny/report.html",
        "packages/tiny/en_bert_ner-1.0.0/dist/en_bert_ner-1.0.0-py3-none-any.whl",
    ):
        assert (project.folder / path).exists(), path
    hidden = [path for path in project.folder.rglob(".*") if path.name not in (".lock", ".made.json", ".gitignore")]
    assert not hidden, "left over"
    assert "pip install packages/tiny/" in project.output and 'spacy.load("en_bert_ner")' in project.output
    assert "Wrote metrics/tiny/report.html" in words(project.output)


def test_the_second_time_nothing_is_done_again(changeable: Project) -> None:
    watched = [path for path in changeable.folder.rglob("*") if path.name not in ("project.lock", ".lock")]
    before = {path: path.stat().st_mtime_ns for path in watched}
    done = changeable.run("all")
    assert done.returncode == 0
    for step in STEPS:
        assert f"Skipping '{step}': nothing changed" in done.stdout
    assert "the corpus is there" in words(done.stdout) and "the encoder is there" in words(done.stdout)
    after = {
        path: path.stat().st_mtime_ns
        for path in changeable.folder.rglob("*")
        if path.name not in ("project.lock", ".lock")
    }
    assert {path for path in before if path.is_file()} == {path for path in after if path.is_file()}
    assert all(
        after[path] == when for path, when in before.items() if path.is_file() and "__pycache__" not in str(path)
    )


def stale(project: Project, **variables: str) -> list[str]:
    """The steps that weasel would run, their inputs being as they are."""
    settings = {"run": "tiny", "source": "sample", "encoder": str(project.encoder), "epochs": "1"} | variables
    config = load_project_config(project.folder, overrides={f"vars.{key}": value for key, value in settings.items()})
    commands = {command["name"]: command for command in config["commands"]}
    return [step for step in STEPS if check_rerun(project.folder, commands[step])]


@pytest.mark.parametrize(
    ("path", "steps"),
    [
        ("scripts/convert.py", ["convert"]),
        ("scripts/explore.py", ["explore", "analyze", "report"]),
        ("configs/bert.cfg", ["train"]),
        ("scripts/train.py", ["train", "analyze", "report"]),
        ("scripts/evaluate.py", ["evaluate", "analyze", "report"]),
        ("scripts/verify.py", ["verify"]),
        ("scripts/report.html", ["report"]),
        ("scripts/functions.py", ["train", "evaluate", "analyze", "concepts", "package", "verify", "report"]),
        ("assets/tiny/test.conll", ["convert"]),
        ("corpus/tiny/train.spacy", ["convert", "explore", "train", "evaluate", "analyze"]),
        ("corpus/tiny/test.spacy", ["convert", "explore", "evaluate", "analyze", "verify"]),
        ("assets/tiny/encoder/vocab.txt", ["explore", "train"]),
        ("training/tiny/model-best/meta.json", ["train", "evaluate", "analyze", "concepts", "package", "verify"]),
        ("assets/sample/concepts.jsonl", ["concepts"]),
        ("README.md", []),
    ],
)
def test_a_change_runs_again_what_depends_on_it(project: Project, path: str, steps: list[str]) -> None:
    """Directly: what these steps then write differently makes those after them stale in turn."""
    assert stale(project) == []
    file = project.folder / path
    original = file.read_bytes()
    file.write_bytes(original + b"\n")
    try:
        assert stale(project) == steps
    finally:
        file.write_bytes(original)


@pytest.mark.parametrize(
    ("variables", "steps"),
    [
        ({"epochs": "2"}, ["train"]),
        ({"seed": "1"}, ["train"]),
        ({"version": "1.0.1"}, ["package", "verify"]),
        ({"name": "other"}, ["package", "verify"]),
        ({"run": "other"}, STEPS),
        ({"source": "elsewhere"}, []),
    ],
)
def test_a_variable_runs_again_what_depends_on_it(
    project: Project, variables: dict[str, str], steps: list[str]
) -> None:
    assert stale(project, **variables) == steps


@pytest.mark.slow
def test_a_corpus_of_ones_own_makes_another_run_and_going_back_retrains_nothing(
    project: Project, tmp_path: Path
) -> None:
    """In new processes, as a user runs it. Two columns, tabs, own labels, no documents; without tags no tagger."""
    own = Project(copy_project(tmp_path / "own"), project.encoder)
    source = own.folder / "source"
    source.mkdir()
    for split in SPLITS:
        rows = (ROOT / f"assets/sample/{split}.conll").read_text("utf8").splitlines()
        pairs = [row.split() for row in rows if not row.startswith("-DOCSTART-")]
        text = "\n".join(f"{row[0]}\t{row[3].replace('PER', 'person')}" if row else "" for row in pairs)
        (source / f"{split}.txt").write_text(text, "utf8")
    variables = {"source": str(source), "corpus": "mine", "name": "other"}
    done = own.run("all", run="other", start=new_python, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    meta = read_json(own.folder / "packages/other/en_other-1.0.0/meta.json")
    assert meta["labels"]["ner"] == ["LOC", "MISC", "ORG", "person"] and "tagger" not in meta["pipeline"]
    assert read_json(own.folder / "metrics/other/evaluation.json")["corpus"] == "mine"
    assert read_json(own.folder / "metrics/other/concepts.json")["labels"]["test"]["mechanism"]["recall"] == 0
    for name in ("assets", "corpus", "training"):
        shutil.copytree(project.folder / name / "tiny", own.folder / name / "tiny")
    model = own.folder / "training/tiny/model-best"
    before = sha256(model)
    done = own.run("train", start=new_python)
    assert "is trained already" in words(done.stdout) and "Training in" not in done.stdout
    assert sha256(model) == before
    done = own.run("clean", run="other", start=new_python)
    assert done.returncode == 0 and not list(own.folder.glob("*/other"))


def test_clean_refuses_the_sample_corpus(changeable: Project) -> None:
    done = changeable.run("clean", run="sample")
    assert done.returncode == 1 and (changeable.folder / "assets/sample/train.conll").exists()


def test_results_say_where_they_come_from(project: Project) -> None:
    evaluation = read_json(project.folder / "metrics/tiny/evaluation.json")
    assert evaluation["corpus"] == "sample" and evaluation["encoder"] == "tiny"
    assert evaluation["counts"]["train"]["documents"] == 110
    training = evaluation["training"]
    assert training["made_from"]["config"] == sha256(project.folder / "configs/bert.cfg")
    assert training["versions"]["spacy"].startswith("3.8") and training["device"] == "CPU"
    assert training["made_from"]["settings"]["system.seed"] == 0


def scripts(**variables: str) -> dict[str, list[str]]:
    """The lines of each command with these variables."""
    config = load_project_config(ROOT, overrides={f"vars.{key}": value for key, value in variables.items()})
    return {command["name"]: command["script"] for command in config["commands"]}


def test_quickstart_needs_no_hub_and_what_it_made_can_be_benchmarked() -> None:
    """`make BENCH_RUN=quickstart bench` gives no variable but the run: package and version are found by themselves."""
    (line,) = scripts()["quickstart"]
    assert line.startswith("python -m spacy project run all . --vars.")
    variables = dict(re.findall(r"--vars\.(\S+) (\S+)", line))
    assert set(variables) <= set(PROJECT["vars"]), "weasel says nothing of a variable that does not exist"
    (download,) = scripts(**variables)["download"]
    assert "--source sample" in download and "--encoder minilm" in download
    for name in ("benchmark", "benchmark-full"):
        assert scripts(run=variables["run"])[name] == scripts(**variables)[name]


# The repository


def test_nothing_generated_is_in_git() -> None:
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for folder in ("corpus", "training", "packages"):
        assert [name for name in listed if name.startswith(f"{folder}/")] == [f"{folder}/README.md"]
    assert not [name for name in listed if name.startswith("assets/") and not name.startswith("assets/sample/")]
    metrics = [name for name in listed if name.startswith("metrics/") and not name.startswith("metrics/reference/")]
    assert metrics == ["metrics/README.md"]
    assert not [name for name in listed if name.endswith(("-examples.json", "report.html")) and "metrics" in name], (
        "they quote"
    )
    assert max((ROOT / name).stat().st_size for name in listed) < 1_000_000


def test_requirements_and_constraints_agree() -> None:
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text("utf8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pinned[name.lower().replace("_", "-")] = version
            assert "+" not in version, "a local suffix would ask for one build of PyTorch"
    for line in (ROOT / "requirements.txt").read_text("utf8").splitlines():
        if line and not line.startswith("#"):
            name = re.split(r"[<>=~!\[ ]", line)[0].lower()
            assert name in pinned and "<" in line, f"{line}: bounded, and part of what was tested"


def test_each_variable_is_used_and_each_that_is_used_exists() -> None:
    used = re.findall(r"\$\{vars\.(\w+)\}", (ROOT / "project.yml").read_text("utf8"))
    assert set(used) == set(PROJECT["vars"])


def test_the_makefile_calls_commands_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf8")
    called = re.findall(r"^\t\$\(RUN\) ([\w-]+)", makefile, re.M)
    assert called and set(called) <= {command["name"] for command in COMMANDS}
    for target in re.findall(r"^make ([\w-]+)", (ROOT / "README.md").read_text("utf8") + CI, re.M):
        assert re.search(rf"^([\w -]+ )?{target}( [\w -]+)?:", makefile, re.M), target


def test_ci_checks_and_runs_the_fast_tests_and_the_slow_ones() -> None:
    """With the README's command; the slow tests are those that it leaves out."""
    assert re.findall(r"^make ([\w-]+)$", CI, re.M) == ["check", "test", "test-slow"]
    chosen = re.findall(r"-m pytest -m (.+)", (ROOT / "Makefile").read_text("utf8"))
    assert chosen == ['"not slow"', "slow"]
