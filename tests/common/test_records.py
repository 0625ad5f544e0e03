from __future__ import annotations

import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import pytest
import typer
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from common.errors import StepError
from common.records import (
    AREAS,
    check_run,
    claim,
    code_digest,
    digest,
    locked,
    made,
    read_json,
    record_inputs,
    replace,
    sha256,
    staged,
    write_json,
    writes,
)
from tests.conftest import ROOT, guard, words

# The folder of a run


@pytest.mark.parametrize("name", ["mine", "conll2003", "a-b_c.d", "-x", "_", "0", "x" * 100, "samples", "console"])
def test_names_of_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for area in AREAS:
        check_run(Path(area, name))
        check_run(Path(area, name).absolute())
        check_run(Path("/elsewhere") / area / name)


FORBIDDEN = [
    *(
        "",
        ".",
        "..",
        "../other",
        "../../important",
        "../scripts",
        "a/b",
        "/",
        "a b",
        "x /somewhere",
        "a\n",
        "é",
    ),
    *(".hidden", "end.", "x" * 101, "it's", 'a"b', "a;b", "$(x)", "*", "~", "a\\b", "C:", "\0"),
    *("sample", "SAMPLE", "reference", "encoders", "README.md", "readme", "con", "NUL", "aux.txt", "Com1", "lpt9.x"),
]


@pytest.mark.parametrize("name", FORBIDDEN)
def test_names_that_no_run_has(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StepError) as error:
        check_run(Path(f"corpus/{name}"))
    assert "--vars.run" in error.value.remedy


@given(st.text(max_size=8) | st.lists(st.sampled_from(["..", ".", "/", "a", " ", "corpus", "sample"])).map("".join))
def test_what_is_allowed_is_a_folder_directly_in_an_area(name: str) -> None:
    try:
        check_run(Path(f"corpus/{name}"))
    except StepError:
        assert not re.fullmatch("[abc]+", name)
    else:
        assert Path(os.path.abspath(Path(f"corpus/{name}"))).parent == Path.cwd() / "corpus"
        assert re.fullmatch(r"[\w.-]+", Path(f"corpus/{name}").name, re.ASCII)


@pytest.mark.parametrize("folder", ["mine", "scripts/mine", "corpus", "corpus/mine/deep", "metrics/reference/mine"])
def test_other_places_of_the_project_are_no_folders_of_runs(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for path in (Path(folder), Path(folder).absolute()):
        with pytest.raises(StepError, match="cannot be the folder of a run"):
            check_run(path)


def start(function: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def test_the_second_process_waits_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where the first one removes the folder in the end, as one does that has made nothing."""
    done = []
    folder = tmp_path / "run"

    @writes("folder", "result")
    def step(folder: Path) -> None:
        done.append((folder / ".lock").exists())

    folder.mkdir()
    output = ""
    with FileLock(folder / ".lock"):  # a thread is to the lock what a process is
        second = start(lambda: step(folder=folder))
        deadline = time.monotonic() + guard(10)
        while "waiting" not in words(output) and time.monotonic() < deadline:
            output += capsys.readouterr().out
            time.sleep(0.01)
        assert "Another process works in" in words(output) and "Ctrl-C" in words(output)
        assert not done
        shutil.rmtree(folder)
    second.join(guard(10))
    assert done == [True], "a third one would wait too"


def test_a_step_is_alone_and_can_use_its_own_folder_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    inside: list[str] = []

    @writes("folder", "result.json")
    def step(name: str, folder: Path) -> None:
        inside.append(name)
        with locked(folder), staged(folder, "result.json") as new:
            write_json(new / "result.json", {"name": name})
        made(folder, "other")
        assert inside == [name]
        inside.remove(name)

    threads = [start(lambda name=name: step(name, folder)) for name in "abcdef"]  # type: ignore[misc]
    for thread in threads:
        thread.join(guard(10))
    assert not inside and read_json(folder / "result.json")["name"] in "abcdef"
    assert sorted(os.listdir(folder)) == [".lock", ".made.json", "result.json"]
    assert made(folder) == {"result.json", "other"} and os.listdir(tmp_path) == ["run"]


def test_a_step_that_made_nothing_leaves_nothing(tmp_path: Path) -> None:
    @writes("folder", "result")
    def step(folder: Path) -> None:
        raise StepError("No.", "No.")

    for folder in (tmp_path / "run", tmp_path / "..", tmp_path / ".hidden"):
        with pytest.raises(StepError):
            step(folder)
    assert not os.listdir(tmp_path)


def test_a_command_keeps_its_parameters(tmp_path: Path) -> None:
    @writes("folder")
    def step(
        folder: Annotated[Path, typer.Argument()], number: Annotated[int, typer.Option(help="How many")] = 1
    ) -> None:
        (folder / "result").write_text(str(number + 1))

    app = typer.Typer()
    app.command()(step)
    done = CliRunner().invoke(app, [str(tmp_path / "run"), "--number", "2"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "run/result").read_text() == "3"


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    left = [tmp_path / ".run.partial-abcd_123", folder / ".a.json.partial-abcd_123", folder / "b/.c.partial-abcd_123"]
    kept = [tmp_path / ".run2.partial-abcd_123", tmp_path / ".run.partial-mine", folder / "a", folder / ".partial-mine"]
    for path in (*left, *kept):
        path.mkdir(parents=True)
    with locked(folder):
        assert not [path for path in left if path.exists()]
    assert all(path.exists() for path in kept)


def test_a_record_that_is_none_is_named(tmp_path: Path) -> None:
    for text in ('{"made": "x"}', '{"made": [1]}', "[]", "{"):
        (tmp_path / ".made.json").write_text(text)
        with pytest.raises(StepError, match=r"\.made\.json"):
            made(tmp_path)


# Files


def test_staged_results_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    with staged(folder) as new:
        (new / "file").write_text("first")
        assert not folder.exists()
    with pytest.raises(KeyboardInterrupt), staged(folder) as new:
        (new / "file").write_text("second")
        raise KeyboardInterrupt
    assert (folder / "file").read_text() == "first"
    assert os.listdir(tmp_path) == ["results"]
    with staged(folder) as new:
        (new / "other").write_text("third")
    assert os.listdir(folder) == ["other"] and os.listdir(tmp_path) == ["results"]


def test_staged_names_are_replaced_and_all_else_stays(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for text in ("first", "second"):
        with staged(folder, "figures/own", "result") as new:
            (new / "figures/own").mkdir(parents=True)
            (new / "figures/own/file").write_text(text)
            (new / "result").write_text(text)
        (folder / "figures/other").write_text("kept")
    assert (folder / "figures/own/file").read_text() == (folder / "result").read_text() == "second"
    assert (folder / "figures/other").read_text() == "kept" and made(folder) == {"figures/own", "result"}
    assert os.listdir(tmp_path) == ["run"]
    mode = (folder / "figures/own").stat().st_mode
    assert mode == (folder / "figures").stat().st_mode, "others may read it, as umask says"


@pytest.mark.parametrize("kinds", [("file", "file"), ("file", "folder"), ("folder", "file"), ("folder", "folder")])
def test_replace_takes_files_and_folders(kinds: tuple[str, str], tmp_path: Path) -> None:
    for name, kind in zip(("new", "old"), kinds, strict=True):
        path = tmp_path / name if kind == "file" else tmp_path / name / "file"
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    replace(tmp_path / "new", tmp_path / "old")
    path = tmp_path / "old" if kinds[0] == "file" else tmp_path / "old/file"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["old"]


def test_replace_keeps_the_old_one_if_the_new_one_cannot_take_its_place(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old/file").write_text("old")
    with pytest.raises(FileNotFoundError):
        replace(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old/file").read_text() == "old" and os.listdir(tmp_path) == ["old"]


def test_claim_takes_only_what_a_step_made(tmp_path: Path) -> None:
    claim(tmp_path / "nowhere", "provenance.json")
    claim(tmp_path, "provenance.json")
    (tmp_path / ".lock").touch()
    claim(tmp_path, "provenance.json")
    (tmp_path / "mine").touch()
    with pytest.raises(StepError, match="another origin"):
        claim(tmp_path, "provenance.json")
    write_json(tmp_path / "provenance.json", {})
    claim(tmp_path, "provenance.json")


def test_json_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    assert read_json(path) == {}
    for text in ("{", "[]"):
        path.write_text(text)
        with pytest.raises(StepError, match=r"some\.json"):
            read_json(path)


def test_a_digest_of_code_is_that_of_what_it_computes(tmp_path: Path) -> None:
    path = tmp_path / "code.py"
    path.write_text('''"""Text."""
RATE = 3


def double(x):
    """Twice."""
    return 2 * x
''')
    before = code_digest(path)
    path.write_text('''"""Another text."""

RATE = (3)  # why


def double(x):
    """Two times as
    much."""

    return 2*x
''')
    assert code_digest(path) == before
    for old, new in (("RATE = (3)", "RATE = 4"), ("2*x", "x*2"), ("def double", "def twice")):
        changed = tmp_path / "changed" / "code.py"
        changed.parent.mkdir(exist_ok=True)
        changed.write_text(path.read_text().replace(old, new))
        assert code_digest(changed) != before
    assert code_digest(path, path) != before


def test_checksums_of_folders_know_names_and_contents(tmp_path: Path) -> None:
    digests = set()
    for i, (name, text) in enumerate([("a", "x"), ("b", "x"), ("a", "y"), ("sub/a", "x")]):
        path = tmp_path / str(i) / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
        digests.add(sha256(tmp_path / str(i)))
    assert len(digests) == 4


def test_what_a_result_was_measured_from_is_identified(tmp_path: Path) -> None:
    """By code with what it imports from the project, by the provenance of a model, and by contents."""
    step = tmp_path / "step.py"
    step.write_text("from common.statistics import f_score\n\nNUMBER = 1\n")
    model = tmp_path / "model"
    model.mkdir()
    write_json(model / "provenance.json", {"inputs": {"config": "a"}, "seconds": 1})
    (tmp_path / "some.txt").write_text("some")

    def identify() -> dict[str, str]:
        return record_inputs(code=step, model=model, corpus=tmp_path / "some.txt")

    before = identify()
    imported = [ROOT / "common" / f"{name}.py" for name in ("errors", "statistics")]
    assert before["code"] == code_digest(*imported, step)
    assert before["model"] == digest({"config": "a"}) and before["corpus"] == sha256(tmp_path / "some.txt")
    write_json(model / "provenance.json", {"inputs": {"config": "a"}, "seconds": 2})
    (model / "weights").write_text("calibrated")
    step.write_text("from common.statistics import f_score  # exact\n\nNUMBER = 1\n")
    assert identify() == before
    step.write_text("from common.statistics import f_score\n\nNUMBER = 2\n")
    write_json(model / "provenance.json", {"inputs": {"config": "b"}, "seconds": 1})
    (tmp_path / "some.txt").write_text("other")
    after = identify()
    assert set(after) == set(before) and not set(after.values()) & set(before.values())
