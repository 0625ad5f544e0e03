from __future__ import annotations

import ast
import functools
import hashlib
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from thinc.api import Config
from weasel.cli.run import check_rerun
from weasel.util import load_project_config, split_command

from common.records import SPLITS, read_json, sha256
from scripts.package import PYTHON
from scripts.run import read_run
from tests.conftest import PROJECT, ROOT, STEPS, Project, copy_project, new_python, words

COMMANDS = PROJECT["commands"]
FOLDERS = ("bert_ner", "common", "scripts", "app", "benchmarks")
CI = (ROOT / ".ci/run").read_text("utf8")
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


# project.yml


@functools.cache
def imported_by(path: str) -> set[str]:
    """The files of the project that a file of Python imports, wherever in it, as paths."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_bytes())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            place = name.replace(".", "/")
            if name.partition(".")[0] in FOLDERS:
                found |= {file for file in (f"{place}.py", f"{place}/__init__.py") if (ROOT / file).exists()}
    return {file for file in found if (ROOT / file).stat().st_size}


@functools.cache
def started_by(path: str, name: str = "") -> set[str]:
    """The files of the project that a file of Python, or its function or class of this name, starts by `python -m`."""
    parts = [node for node in ast.parse((ROOT / path).read_bytes()).body if name in ("", getattr(node, "name", ""))]
    texts = {str(node.value) for part in parts for node in ast.walk(part) if isinstance(node, ast.Constant)}
    modules = {text for text in texts if re.fullmatch(rf"({'|'.join(FOLDERS)})(\.\w+)+", text)}
    return {file for module in modules if (ROOT / (file := f"{module.replace('.', '/')}.py")).exists()}


@functools.cache
def read_by(path: str) -> set[str]:
    """What else a file of Python reads of the project: files that what it imports starts, and data beside it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_bytes())):
        if isinstance(node, ast.ImportFrom):
            file = f"{(node.module or '').replace('.', '/')}.py"
            if file in imported_by(path):
                found = found.union(*(started_by(file, alias.name) for alias in node.names))
        elif isinstance(node, ast.Constant) and re.fullmatch(r"[\w-]+\.[a-z]+", str(node.value)):
            found.add(f"{Path(path).parent}/{node.value!s}")
    return {file for file in found if (ROOT / file).exists()}


def closure(paths: Iterable[str]) -> set[str]:
    """Files of the project, and all that these import or read, directly or not."""
    found: set[str] = set()
    waiting = list(paths)
    while waiting:
        if (path := waiting.pop()) not in found:
            found.add(path)
            waiting += imported_by(path) | read_by(path) if path.endswith(".py") else ()
    return found


def test_no_import_is_overlooked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
import spacy, scripts.train
from common import records as kept, errors
from app.files import (
    read_csv,
    read_txt,
)
def late():
    import bert_ner.encoder
    from benchmarks.contenders import spacy
"""
    for name in ("scripts/train.py", "common/records.py", "common/errors.py", "app/files.py", "bert_ner/encoder.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x = 1")
    (tmp_path / "source.py").write_text(source)
    monkeypatch.setattr("tests.test_project.ROOT", tmp_path)
    found = {"scripts/train.py", "common/records.py", "common/errors.py", "app/files.py", "bert_ner/encoder.py"}
    assert imported_by("source.py") == found


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command["name"])
def test_a_command_names_what_it_depends_on_and_what_it_writes(command: dict[str, Any]) -> None:
    """Every file of the project that a step reads, imports and what it starts included, is in its deps.

    Two are left out: what it reads in the folders of a run, for which there are the tests of staleness below; and the
    rules of concepts, which `import bert_ner` registers in every step, though they concern only those that work on the
    assembled pipeline.
    """
    text = "\n".join(command["script"])
    for line in command["script"]:
        assert not re.search(r"[*?<>|;]|&&|`", line), "weasel has no shell"
        assert line.startswith("python "), "weasel replaces only a leading python"
    used = set(re.findall(rf"(?:{'|'.join(FOLDERS)}|configs)/[\w.]+", text))
    modules = re.findall(rf"-m ((?:{'|'.join(FOLDERS)})\.[\w.]+)", text)
    for path in [f"{module.replace('.', '/')}.py" for module in modules]:
        used |= {path} | started_by(path)
    used |= {path for path in command.get("deps", []) if path.endswith(".py")}
    needed = closure(used)
    if "/assembled" not in text and command["name"] not in ("app", "serve"):
        needed -= {"bert_ner/concepts.py"}
    assert all((ROOT / path).exists() for path in needed)
    assert needed <= set(command.get("deps", []))
    if command["name"] not in (
        "quickstart",
        "gather",
        "prelabel",
        "select",
        "download",
        "debug",
        "synthesize",
        "teach",
        "audit",
        "search",
        "annotate-corpus",
        "corpus-view",
        "publish",
        "experiments",
        "clean",
        "app",
        "serve",
        "document",
        "export-tasks",
        "import-annotations",
    ):
        assert command["outputs"]
    assert command["help"][0].isupper() and not command["help"].endswith(".")


def test_imports_go_one_way() -> None:
    """bert_ner ◀ common ◀ scripts, app, and app ◀ benchmarks; no file of bert_ner and no script imports another."""
    allowed = {
        "bert_ner": set(),
        "common": {"bert_ner", "common"},
        "scripts": {"bert_ner", "common"},
        "app": {"bert_ner", "common", "app"},
        "benchmarks": {"bert_ner", "common", "app", "benchmarks"},
    }
    for folder, others in allowed.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path.name != "__init__.py":
                name = str(path.relative_to(ROOT))
                assert {Path(file).parts[0] for file in imported_by(name)} <= others, name


def test_the_wheel_has_no_training_code() -> None:
    (line,) = [line for c in COMMANDS for line in c["script"] if c["name"] == "package" and "-m spacy package" in line]
    files = re.findall(r"bert_ner/(\w+)\.py", line)
    assert files == [
        "concepts",
        "encoder",
        "features",
        "inference",
        "recognizer",
        "sequences",
        "tokenizer",
        "wordpieces",
    ]


def test_a_name_with_spaces_stays_one_argument() -> None:
    """Weasel splits commands at spaces; the step then refuses the name, before anything is touched."""
    for command in COMMANDS:
        for line in command["script"]:
            plain, spaced = (split_command(line.replace("${vars.run}", name)) for name in ("mine", "x /somewhere"))
            assert [part.replace("mine", "x /somewhere") for part in plain] == spaced


def test_every_script_is_a_command() -> None:
    names = {path.stem for path in (ROOT / "scripts").glob("*.py")} - {"__init__", "run"}
    assert names <= {command["name"].replace("-", "_") for command in COMMANDS}


# What no file of tests imports
TESTED_THROUGH_OTHERS = {
    "benchmarks/contenders/flair.py",  # by no test: it needs an environment of its own, where benchmarks.speed runs it
    "benchmarks/contenders/span_marker.py",  # test_curve.py, in that environment
    "common/formats/argilla.py",  # test_tools.py, as are the next three
    "common/formats/doccano.py",
    "common/formats/label_studio.py",
    "common/formats/prodigy.py",
    "common/scaling.py",  # test_corpus.py of benchmarks
    "common/tables.py",  # test_exports.py
}


def test_every_file_has_its_tests() -> None:
    """A script a file of tests of its own name; any other file such a one, or tests that import it."""
    imported: set[str] = set()
    for path in (ROOT / "tests").rglob("*.py"):
        imported |= imported_by(str(path.relative_to(ROOT)))
    for folder in FOLDERS:
        tests = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / folder).glob("test_*.py")}
        files = {path.stem for path in (ROOT / folder).glob("*.py")} - {"__init__"}
        assert tests <= files, folder
        if folder == "scripts":
            assert files <= tests
    files = {str(path.relative_to(ROOT)) for f in FOLDERS for path in (ROOT / f).rglob("*.py") if path.stat().st_size}
    named = {name for name in files if (ROOT / "tests" / Path(name).with_name(f"test_{Path(name).name}")).exists()}
    assert files - named - imported == TESTED_THROUGH_OTHERS


# The whole workflow


def test_all_leaves_everything_in_its_place(project: Project) -> None:
    for path in (
        *(f"assets/tiny/{split}.conll" for split in ("train", "dev", "test")),
        "assets/tiny/encoder/model.safetensors",
        *(f"corpus/tiny/{split}.spacy" for split in ("train", "dev", "test")),
        "training/tiny/model-best/provenance.json",
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
    """But for the report, which comes out as it was."""
    report = changeable.folder / "metrics/tiny/report.html"
    page = report.read_bytes()
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
        after[path] == when
        for path, when in before.items()
        if path.is_file() and path != report and "__pycache__" not in str(path)
    )
    assert report.read_bytes() == page


@pytest.fixture(scope="module")
def copied(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy of the run for this process alone, whose files may change for a moment."""
    folder = tmp_path_factory.mktemp("copied") / "project"
    return Project(shutil.copytree(project.folder, folder), project.encoder)


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
        ("scripts/explore.py", ["explore"]),
        ("configs/bert.cfg", ["train"]),
        ("scripts/train.py", ["train"]),
        ("scripts/evaluate.py", ["evaluate"]),
        ("scripts/verify.py", ["verify"]),
        ("bert_ner/concepts.py", ["assemble", "concepts", "package"]),
        ("configs/assemble.cfg", ["assemble"]),
        ("bert_ner/optimizer.py", ["train", "assemble", "evaluate", "concepts", "package"]),
        ("assets/tiny/test.conll", ["convert"]),
        ("corpus/tiny/train.spacy", ["convert", "explore", "train", "evaluate", "analyze"]),
        ("corpus/tiny/test.spacy", ["convert", "explore", "evaluate", "analyze", "verify"]),
        ("corpus/tiny/provenance.json", ["convert", "explore", "evaluate"]),
        ("assets/tiny/encoder/vocab.txt", ["explore", "train"]),
        ("training/tiny/model-best/meta.json", ["train", "assemble", "evaluate", "analyze"]),
        ("packages/tiny/assembled/meta.json", ["assemble", "concepts", "package", "verify"]),
        ("metrics/tiny/predictions/test.npz", ["evaluate", "analyze", "verify"]),
        ("assets/sample/concepts.jsonl", ["concepts"]),
        ("README.md", []),
    ],
)
def test_a_change_runs_again_what_depends_on_it(copied: Project, path: str, steps: list[str]) -> None:
    """Directly: what these steps then write differently makes those after them stale in turn."""
    assert stale(copied) == []
    file = copied.folder / path
    original = file.read_bytes()
    file.write_bytes(original + b"\n")
    try:
        assert stale(copied) == steps
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
    config = Config().from_disk(project.folder / "configs/bert.cfg", interpolate=False)
    assert training["inputs"]["config"] == hashlib.sha256(config.to_bytes()).hexdigest()
    assert training["versions"]["spacy"].startswith("3.8") and training["device"] == "CPU"
    assert training["inputs"]["settings"]["system.seed"] == 0


def scripts(**variables: str) -> dict[str, list[str]]:
    """The lines of each command with these variables."""
    config = load_project_config(ROOT, overrides={f"vars.{key}": value for key, value in variables.items()})
    return {command["name"]: command["script"] for command in config["commands"]}


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "runs").glob("*.yml")))
def test_a_run_s_file_sets_variables_that_exist(name: str) -> None:
    found = read_run(ROOT / "runs" / f"{name}.yml", ROOT)
    assert found["run"] == name and set(found) <= set(PROJECT["vars"])
    (download,) = scripts(**found)["download"]
    assert f'--encoder "{found["encoder"]}"' in download


def test_the_defaults_are_a_run_too() -> None:
    assert read_run(ROOT / "runs/conll2003.yml", ROOT).items() <= PROJECT["vars"].items()


def test_quickstart_needs_no_hub() -> None:
    assert scripts()["quickstart"] == ["python -m scripts.run all quickstart"]
    found = read_run(ROOT / "runs/quickstart.yml", ROOT)
    assert found["source"] == "sample" and found["encoder"] == "minilm" and found["environment"] == "present"


# The repository


def test_nothing_generated_is_in_git() -> None:
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for folder in ("annotate", "corpus", "training", "packages"):
        assert [name for name in listed if name.startswith(f"{folder}/")] == [f"{folder}/README.md"]
    written = ("assets/sample/", "assets/conservation/")
    assert not [name for name in listed if name.startswith("assets/") and not name.startswith(written)]
    metrics = [name for name in listed if name.startswith("metrics/") and not name.startswith("metrics/reference/")]
    assert metrics == ["metrics/README.md"]
    assert not [name for name in listed if name.endswith(("-examples.json", "report.html")) and "metrics" in name], (
        "they quote"
    )
    assert max((ROOT / name).stat().st_size for name in listed) < 1_000_000


def test_requirements_and_constraints_agree() -> None:
    """As the Makefile takes them together."""
    pairs = re.findall(r"--requirement (\S+) --constraint (\S+)", (ROOT / "Makefile").read_text("utf8"))
    assert len(pairs) == 7
    for requirements, constraints in pairs:
        pinned = {}
        for line in (ROOT / constraints).read_text("utf8").splitlines():
            if line and not line.startswith("#"):
                name, version = line.split("==")
                pinned[name.lower().replace("_", "-")] = version
                assert "+" not in version, "a local suffix would ask for one build of PyTorch"
        for line in (ROOT / requirements).read_text("utf8").splitlines():
            if line and not line.startswith("#"):
                needed = Requirement(line)
                assert re.search("<|==", line), f"{line}: bounded"
                assert pinned[needed.name.lower()] in needed.specifier, f"{line}: what was tested"


def test_what_people_use_needs_nothing_of_what_only_tests_need() -> None:
    names = re.findall(r"^([\w-]+)[><=]", (ROOT / "requirements-dev.txt").read_text("utf8"), re.M)
    modules = {name.lower().replace("-", "_") for name in names if not name.startswith("types-")}
    assert len(modules) > 5
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            found = set(re.findall(r"^\s*(?:import|from) (\w+)", path.read_text("utf8"), re.M))
            assert not found & modules, path


def test_each_variable_is_used_and_each_that_is_used_exists() -> None:
    used = re.findall(r"\$\{vars\.(\w+)\}", (ROOT / "project.yml").read_text("utf8"))
    assert set(used) == set(PROJECT["vars"])


def test_documents_and_messages_name_variables_that_exist() -> None:
    paths = [*DOCUMENTS, ROOT / "Makefile", *(ROOT / "runs").glob("*.yml")]
    paths += [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    for path in paths:
        assert set(re.findall(r"--vars\.(\w+)", path.read_text("utf8"))) <= set(PROJECT["vars"]), path


def test_the_makefile_calls_commands_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf8")
    (steps,) = re.findall(r"^STEPS := (.+)", makefile, re.M)
    called = [*steps.split(), *re.findall(r"\$\(STEP\) ([\w-]+)", makefile)]
    assert set(called) <= {command["name"] for command in COMMANDS} | {"all"}
    for workflow in PROJECT["workflows"].values():
        assert set(workflow) <= set(called)
    targets = {
        name
        for line in re.findall(r"^([\w$() -]+):", makefile.replace("$(STEPS)", steps), re.M)
        for name in line.split()
    }
    for text in (CI, *(path.read_text("utf8") for path in DOCUMENTS)):
        for target in re.findall(r"^make ([\w-]+)", text, re.M):
            assert target in targets, target


def test_the_workflow_of_github_runs_what_ci_runs_and_uses_the_wheel() -> None:
    """In the versions of Python that the wheel allows, from the first one on; the wheel on three systems."""
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text("utf8"))["jobs"]
    lines = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    assert lines["ci"] == ["bash .ci/run"] and lines["wheel"] == ["make quickstart"]
    assert lines["use"][-1] == "python -P tests/installed.py metrics/quickstart/package.json"
    ci, use = (jobs[name]["strategy"]["matrix"] for name in ("ci", "use"))
    assert f">={ci['python'][0]}" == PYTHON and use["python"] == ci["python"]
    assert use["system"] == [*ci["system"], "windows-latest"]


def test_what_uses_the_wheel_elsewhere_needs_nothing_of_the_project() -> None:
    assert not imported_by("tests/installed.py")


def test_ci_checks_and_runs_the_fast_tests_and_the_slow_ones() -> None:
    """With the README's command; the slow tests are those that it leaves out."""
    assert re.findall(r"^make ([\w-]+)$", CI, re.M) == ["check", "test", "test-slow"]
    chosen = re.findall(r"\$\(PYTEST\) -m (.+)", (ROOT / "Makefile").read_text("utf8"))
    assert chosen == ['"not slow and not live"', "slow"]
