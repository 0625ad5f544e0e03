from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import StepError
from common.records import AREAS, made, staged, write_json
from scripts.clean import clean
from scripts.convert import convert
from tests.common.test_records import FORBIDDEN
from tests.conftest import words, write_corpus


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project beside something important, with files of its own, a run of somebody's, and one of the steps."""
    folder = tmp_path / "project"
    for name in ("important/file", *(f"project/{path}" for path in ("scripts/x.py", "metrics/reference/a/b.json"))):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("mine")
    for area in AREAS:
        (folder / area / "theirs").mkdir(parents=True)
        (folder / area / "theirs/file").write_text("theirs")
        (folder / area / "README.md").write_text("of the project")
    write_corpus(folder / "assets/sample")
    monkeypatch.chdir(folder)
    convert(write_corpus(folder / "assets/mine"), Path("corpus/mine"))
    with staged(Path("metrics/mine"), "figures/corpus", "result.json") as new:
        (new / "figures/corpus").mkdir(parents=True)
        (new / "result.json").touch()
    made(Path("training/mine"), "model-best", "never-made")
    (folder / "training/mine/model-best").mkdir()
    return folder


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.name != ".lock"}


def test_clean_removes_what_the_steps_made_and_nothing_else(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(project.parent)
    clean("mine")
    gone = before - files(project.parent)
    spacy_files = {f"corpus/mine/{split}.spacy" for split in ("train", "dev", "test")}
    assert gone == {
        *(f"project/{path}" for path in spacy_files),
        *(f"project/corpus/mine{path}" for path in ("", "/provenance.json", "/.made.json")),
        *(f"project/metrics/mine{path}" for path in ("", "/.made.json", "/result.json", "/figures", "/figures/corpus")),
        *(f"project/training/mine{path}" for path in ("", "/.made.json", "/model-best")),
    }
    output = words(capsys.readouterr().out)
    assert "Removed corpus/mine" in output and "Left assets/mine alone: no .made.json" in output
    clean("mine")  # there is nothing more to do
    clean("theirs")
    assert files(project.parent) == before - gone


def test_what_is_not_of_the_steps_stays_and_is_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in ("corpus/mine/notes.txt", "metrics/mine/figures/own.svg"):
        (project / path).write_text("mine")
    clean("mine")
    assert "what no step made: notes.txt" in words(capsys.readouterr().out)
    assert files(project / "corpus/mine") == {"notes.txt"}
    assert files(project / "metrics/mine") == {"figures", "figures/own.svg"}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_clean_refuses_what_is_no_run(name: str, project: Path) -> None:
    before = files(project.parent)
    with pytest.raises(StepError, match="cannot be the folder of a run"):
        clean(name)
    assert files(project.parent) == before


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    st.lists(
        st.text(min_size=1, max_size=5)
        | st.sampled_from(["", ".", "..", "../theirs", "../../scripts", "a/../../theirs/file", "/", "//", "link/file"])
        | st.just("{important}")
    )
)
def test_no_record_reaches_out_of_its_folder(project: Path, names: list[str]) -> None:
    important = project.parent / "important"
    folder = project / "packages/mine"
    folder.mkdir(exist_ok=True)
    if not (folder / "link").is_symlink():
        (folder / "link").symlink_to(important)
    before = files(project.parent) - {f"project/packages/mine/{name}" for name in files(folder)}
    write_json(folder / ".made.json", {"made": [name.replace("{important}", str(important)) for name in names]})
    clean("mine")
    first = {name for name in before if "/mine" in name}  # what the first example removes rightly
    assert before - first <= files(project.parent) and (important / "file").exists()


def test_a_link_is_removed_and_not_what_it_points_to(project: Path) -> None:
    made(Path("training/mine"), "link")
    (project / "training/mine/link").symlink_to(project.parent / "important")
    clean("mine")
    assert not (project / "training/mine").exists() and (project.parent / "important/file").exists()


def test_a_file_in_the_place_of_a_folder_is_left(project: Path) -> None:
    (project / "packages/odd").write_text("mine")
    clean("odd")
    assert (project / "packages/odd").read_text() == "mine"
