from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from spacy.tokens import DocBin
from thinc.api import Config

from bert_ner.inference import resolve_dtype
from common.corpora import read_docs
from common.errors import StepError
from common.records import digest, read_json, sha256
from scripts.verify import Environment, compare, create_environment, find_doubt, find_paths, tell, verify
from tests.conftest import BASE, Project, python, words
from tests.scripts.test_package import WHEEL

MODEL = "packages/tiny/assembled"


def test_what_was_verified_is_on_record(project: Project) -> None:
    record = read_json(project.folder / "metrics/tiny/package.json")
    assert record["wheel"] == Path(WHEEL).name and record["bytes"] == (project.folder / WHEEL).stat().st_size
    assert record["load_seconds"] > 0 and record["import_seconds"] > 0
    assert record["inputs"]["wheel"] == sha256(project.folder / WHEEL)
    assert record["inputs"]["model"] == digest(read_json(project.folder / MODEL / "provenance.json")["inputs"])
    assert record["versions"]["torch"] == version("torch").partition("+")[0]
    assert record["clean_environment"] is False and record["why_not"] == "pip reaches no index that has spaCy"
    assert "requirements suffice was not proven: pip reaches no index that has spaCy" in words(project.output)


@pytest.mark.slow
def test_the_wheel_brings_what_it_needs_to_a_new_environment(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it is for a stranger: from the index, with the wheel's own metadata and nothing else."""
    monkeypatch.delenv("PIP_NO_INDEX", raising=False)
    if why := find_doubt():
        pytest.skip(why)
    # PyTorch's newest build may be for GPUs, some gigabytes: this is what a user sets who has little room
    (tmp_path / "constraints.txt").write_text(f"torch=={version('torch').partition('+')[0]}", "utf8")
    monkeypatch.setenv("PIP_CONSTRAINT", str(tmp_path / "constraints.txt"))
    shutil.copytree(project.folder / "metrics/tiny", tmp_path / "metrics")
    verify(
        (project.folder / WHEEL).parent,
        project.folder / MODEL,
        project.folder / "corpus/tiny/test.spacy",
        tmp_path / "metrics",
        Environment.new,
    )
    record = read_json(tmp_path / "metrics/package.json")
    assert record["clean_environment"] is True and record["why_not"] == ""
    assert "gives the same in a new environment" in words(capsys.readouterr().out)


def test_a_wheel_whose_requirements_nobody_has_is_refused(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(StepError, match="does not work elsewhere") as error:
        create_environment(project.folder / WHEEL, tmp_path / "new")
    assert "No matching distribution found for spacy-transformers" in words(error.value.remedy)


def test_the_last_lines_work_when_pasted_and_warn_of_nothing(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the interpreter that ran, although no environment is active, and in a folder whose name has a space."""
    home = tmp_path / "my project"
    (home / ".venv/bin").mkdir(parents=True)
    interpreter = home / ".venv/bin/python"
    interpreter.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', "utf8")
    interpreter.chmod(0o755)
    wheel = Path(shutil.copy(project.folder / WHEEL, home))
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    tell(wheel, "en_bert_ner", read_json(project.folder / "metrics/tiny/test.json"), "")
    install, use = (line.strip() for line in capsys.readouterr().out.splitlines()[-2:])
    assert shlex.split(install)[0] == shlex.split(use)[0] == ".venv/bin/python"
    environment = os.environ | BASE | {"PIP_NO_DEPS": "1", "PIP_TARGET": str(tmp_path / "target"), "PATH": "/bin"}
    environment["PYTHONPATH"] = str(tmp_path / "target")
    for line, warnings in ((install, "default"), (use, "error")):
        settings = environment | {"PYTHONWARNINGS": warnings}
        done = subprocess.run(["/bin/sh", "-c", line], env=settings, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[") and not done.stderr, done.stderr


@pytest.mark.slow
def test_two_wheels_and_the_source_tree_load_in_one_process(changeable: Project, tmp_path: Path) -> None:
    """A wheel of another name, and the assembled pipeline with the project's own code, offline, from another folder."""
    done = changeable.run("package", name="other")
    assert done.returncode == 0, done.stdout + done.stderr
    other = "packages/tiny/en_other-1.0.0/dist/en_other-1.0.0-py3-none-any.whl"
    for wheel in (WHEEL, other):
        options = ["--no-deps", "--no-index", "--target", str(tmp_path)]
        assert python("-m", "pip", "install", *options, str(changeable.folder / wheel), cwd=tmp_path).returncode == 0
    code = f"""
import json, spacy, sys
one = spacy.load("en_bert_ner")
sys.path.insert(0, {str(changeable.folder)!r})
import bert_ner
two = spacy.load({str(changeable.folder / MODEL)!r})
three = spacy.load("en_other")
text = "Mira Solberg left Turku for Oslo on Monday, and Kenya beat Peru."
docs = [nlp(text) for nlp in (one, two, three, one)]
print(json.dumps([[doc.to_json(), [(ent.text, ent.label_) for ent in doc.ents]] for doc in docs]))
"""
    done = python("-P", "-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    docs = json.loads(done.stdout)
    assert docs[0] == docs[1] == docs[2] == docs[3]


@pytest.mark.slow
def test_the_dtype_is_chosen_at_load(project: Project, tmp_path: Path) -> None:
    """On the installed wheel, by config or environment, and saving keeps it."""
    options = ["--no-deps", "--no-index", "--target", str(tmp_path)]
    assert python("-m", "pip", "install", *options, str(project.folder / WHEEL), cwd=tmp_path).returncode == 0
    code = """
import json, spacy, sys
def dtype(nlp): return nlp.get_pipe("transformer").model.inference.dtype
one = spacy.load("en_bert_ner", config=json.loads(sys.argv[1]))
one.to_disk("saved")
print(dtype(one), dtype(spacy.load("saved")), len(one("Kenya beat Peru.")))
"""

    def load(config: dict[str, str], **environment: str) -> str:
        done = python("-P", "-c", code, json.dumps(config), cwd=tmp_path, PYTHONPATH=str(tmp_path), **environment)
        return done.stdout.strip() or done.stderr

    key = "components.transformer.model.dtype"
    best = resolve_dtype("auto", on_gpu=False)
    assert load({}) == f"{best} {best} 4"
    assert load({key: "float32"}) == "float32 float32 4"
    assert load({key: best}, BERT_NER_DTYPE="float32") == "float32 float32 4"
    refused = load({key: "float99"})
    assert "ValueError: Dtype 'float99'" in refused and f"Choose among auto, {best}" in refused


@pytest.mark.slow
def test_half_precision_halves_the_wheel_and_hardly_changes_scores(changeable: Project) -> None:
    whole = (changeable.folder / WHEEL).stat().st_size
    done = changeable.run("package", weights="float16")
    assert done.returncode == 0, done.stdout + done.stderr
    done = changeable.run("verify", weights="float16")
    if done.returncode:  # entities of a random encoder are close calls: rounding may move some, of hundreds
        changed = re.findall(r"_(?:[prf]|acc): ([\d.]+) instead of ([\d.]+)\.", words(done.stdout))
        assert changed and all(abs(float(new) - float(old)) < 0.02 for new, old in changed), done.stdout + done.stderr
    assert (changeable.folder / WHEEL).stat().st_size < whole
    with zipfile.ZipFile(changeable.folder / WHEEL) as wheel:
        data = wheel.read("en_bert_ner/en_bert_ner-1.0.0/transformer/model")
    kept = changeable.folder / MODEL / "transformer/model"
    assert len(kept.read_bytes()) - len(data) > 2 * 20_000  # of some 20,000 weights two bytes each
    done = changeable.run("package", weights="float8")
    assert done.returncode == 2 and "float16" in done.stderr


def verify_present(project: Project, metrics: Path) -> None:
    test = project.folder / "corpus/tiny/test.spacy"
    verify((project.folder / WHEEL).parent, project.folder / MODEL, test, metrics, Environment.present)


@pytest.mark.slow
def test_a_wheel_that_gives_other_scores_is_refused(project: Project, tmp_path: Path) -> None:
    shutil.copytree(project.folder / "metrics/tiny", tmp_path / "metrics")
    test = read_json(tmp_path / "metrics/test.json")
    (tmp_path / "metrics/test.json").write_text(json.dumps(test | {"ents_f": 0.123, "speed": 1}))
    with pytest.raises(StepError, match="gives other scores: ents_f"):
        verify_present(project, tmp_path / "metrics")


@pytest.mark.slow
def test_a_wheel_that_gives_other_entities_is_refused(project: Project, tmp_path: Path) -> None:
    """Even if the scores are the same: here one document of those that evaluate kept has lost its entities."""
    shutil.copytree(project.folder / "metrics/tiny", tmp_path / "metrics")
    path = tmp_path / "metrics/predictions/test.spacy"
    docs = read_docs(path)
    number = next(number for number, doc in enumerate(docs) if doc.ents)
    docs[number].ents = []
    DocBin(docs=docs).to_disk(path)
    with pytest.raises(StepError, match=f"gives other entities: document {number}: "):
        verify_present(project, tmp_path / "metrics")


def test_a_wheel_that_does_not_load_is_refused_with_the_reason(project: Project, tmp_path: Path) -> None:
    with zipfile.ZipFile(project.folder / WHEEL) as wheel:
        wheel.extractall(tmp_path / "unpacked")
    (tmp_path / "dist").mkdir()
    with zipfile.ZipFile(tmp_path / "dist" / Path(WHEEL).name, "w") as wheel:
        for path in sorted((tmp_path / "unpacked").rglob("*")):
            if path.is_file() and path.name != "encoder.py":
                wheel.write(path, path.relative_to(tmp_path / "unpacked"))
    with pytest.raises(StepError, match="does not work elsewhere") as error:
        verify(
            tmp_path / "dist",
            project.folder / MODEL,
            project.folder / "corpus/tiny/test.spacy",
            project.folder / "metrics/tiny",
            Environment.present,
        )
    assert "encoder" in error.value.remedy
    (tmp_path / "empty").mkdir()
    with pytest.raises(StepError, match="holds no wheel"):
        verify(tmp_path / "empty", tmp_path, tmp_path, tmp_path, Environment.present)


def test_paths_of_the_project_are_found(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("some", b"\x00" + str(tmp_path.resolve()).encode() + b"/x")
        wheel.writestr("other", b"nothing")
    assert find_paths(tmp_path / "a.whl", tmp_path) == ["some"]


def test_a_short_path_is_not_seen_in_addresses_and_weights(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("meta.json", '"https://www.clips.uantwerpen.be/conll2003/ner/"')
        wheel.writestr("model", b"\x00/ner\x01")
        wheel.writestr("config.cfg", 'path = "/ner/assets/encoder"')
    assert find_paths(tmp_path / "a.whl", Path("/ner")) == ["config.cfg"]


def test_a_path_is_found_though_a_config_escapes_its_letters(tmp_path: Path) -> None:
    place = tmp_path / "Åsa's ner"
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("config.cfg", Config({"paths": {"encoder": f"{place}/assets"}}).to_str())
    assert find_paths(tmp_path / "a.whl", place) == ["config.cfg"]


def test_speeds_may_differ() -> None:
    compare("scores", {"f1": 1, "speed": 3}, {"f1": 1, "speed": 4}, Path("a.whl"))
