from __future__ import annotations

import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import StepError
from scripts.run import read_run, run
from tests.conftest import ROOT, Project, words


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "project.yml", tmp_path)
    shutil.copytree(ROOT / "runs", tmp_path / "runs")
    return tmp_path


def test_a_file_gives_the_variables_of_a_run(folder: Path) -> None:
    path = folder / "runs/mine.yml"
    path.write_text("# My texts\nsource: my texts/2031\ncorpus: mine\nseed: 3\n", "utf8")
    assert read_run(path, folder) == {"source": "my texts/2031", "corpus": "mine", "seed": "3", "run": "mine"}
    path.write_text("version: 1.10\nlearn_rate: 0.00003\npush: yes\ntexts: ''\n", "utf8")
    assert read_run(path, folder) == {
        "version": "1.10",
        "learn_rate": "0.00003",
        "push": "yes",
        "texts": "",
        "run": "mine",
    }, "a value is what is written, not what YAML would make of it"
    path.write_text("", "utf8")
    assert read_run(path, folder) == {"run": "mine"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("encodr: minilm", "sets encodr, which is no variable"),
        ("run: other", "sets run, which is no variable"),
        ("encoder: [minilm]", r"sets encoder to \['minilm'\]"),
        ("encoder:", "sets encoder to ''"),
        ("start: null", "sets start to 'null'"),
        ("source: 'a\"b'", "sets source to"),
        ("- minilm", "holds no variables"),
        ("encoder: 'minilm", "is not valid YAML"),
        (b"\xff\xfe", "is not valid YAML"),
    ],
)
def test_what_is_no_file_of_a_run_is_refused(text: str | bytes, said: str, folder: Path) -> None:
    path = folder / "runs/mine.yml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(StepError, match=rf"runs/mine\.yml {said}") as error:
        read_run(path, folder)
    assert error.value.remedy


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=30))
def test_any_text_gives_variables_or_a_clear_error(folder: Path, text: str) -> None:
    (folder / "runs/any.yml").write_bytes(text.encode("utf8", "surrogatepass"))
    try:
        found = read_run(folder / "runs/any.yml", folder)
    except StepError as error:
        assert "any.yml" in error.problem
    else:
        assert found["run"] == "any"


def test_a_run_without_a_file_is_told_which_there_are(folder: Path) -> None:
    with pytest.raises(StepError, match=r"no .*nothing\.yml") as error:
        read_run(folder / "runs/nothing.yml", folder)
    assert "quickstart" in error.value.remedy
    with pytest.raises(StepError, match="reserved"):
        read_run(folder / "runs/reference.yml", folder)


def test_what_is_added_is_taken_as_it_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: dict[str, str] = {}
    monkeypatch.chdir(folder)
    monkeypatch.setattr("scripts.run.project_run", lambda *_, overrides: taken.update(overrides))
    added = {
        "version": "1.10",
        "synthetic_share": "0.3",
        "gpu_id": "-1",
        "best": "",
        "source": "my--folder",
        "texts": 'a "b"/ü.txt',
        "push": "yes",
    }
    pairs = [(f"--vars.{name}", value) for name, value in added.items()]
    for arguments in ([part for pair in pairs for part in pair], ["=".join(pair) for pair in pairs]):
        taken.clear()
        run(Mock(args=arguments), "train", "quickstart")
        assert added.items() <= {name.removeprefix("vars."): value for name, value in taken.items()}.items()


def test_a_step_of_a_run_takes_its_variables_and_what_is_added(changeable: Project) -> None:
    (changeable.folder / "runs/tiny.yml").write_text(
        f"source: sample\nencoder: {changeable.encoder}\nepochs: 1\n", "utf8"
    )
    done = changeable.start("-m", "scripts.run", "convert", "tiny")
    assert done.returncode == 0 and "Skipping 'convert': nothing changed" in words(done.stdout)
    done = changeable.start("-m", "scripts.run", "package", "tiny", "--vars.version", "../x")
    assert done.returncode == 1 and "A package cannot have the version" in words(done.stdout)
    done = changeable.start("-m", "scripts.run", "convert", "tiny", "--vars.lern_rate", "1e-4")
    assert done.returncode == 1 and "no variable for --vars.lern_rate" in words(done.stdout)
    assert "--vars.learn_rate" in done.stdout
    done = changeable.start("-m", "scripts.run", "convert", "other")
    assert done.returncode == 1 and "There is no runs/other.yml" in words(done.stdout)
