from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from scripts.steps import StepError, claim, read_json, replace, run, sha256, staged, write_json


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


def test_replace_survives_an_earlier_kill(tmp_path: Path) -> None:
    for name in ("new", "old", ".old.replaced"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    replace(tmp_path / "new", tmp_path / "old")
    assert os.listdir(tmp_path) == ["old"] and (tmp_path / "old" / "file").read_text() == "new"


def test_checksums_of_folders_know_names_and_contents(tmp_path: Path) -> None:
    digests = set()
    for i, (name, text) in enumerate([("a", "x"), ("b", "x"), ("a", "y"), ("sub/a", "x")]):
        path = tmp_path / str(i) / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
        digests.add(sha256(tmp_path / str(i)))
    assert len(digests) == 4


def test_claim_takes_only_what_a_step_made(tmp_path: Path) -> None:
    claim(tmp_path / "nowhere", "origin.json")
    claim(tmp_path, "origin.json")
    (tmp_path / ".lock").touch()
    claim(tmp_path, "origin.json")
    (tmp_path / "mine").touch()
    with pytest.raises(StepError, match="another origin"):
        claim(tmp_path, "origin.json")
    write_json(tmp_path / "origin.json", {})
    claim(tmp_path, "origin.json")


def test_json_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    assert read_json(path) == {}
    for text in ("{", "[]"):
        path.write_text(text)
        with pytest.raises(StepError, match=r"some\.json"):
            read_json(path)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (StepError("train.conll, line 3: odd", "Mend it."), ["line 3: odd", "Mend it."]),
        (OSError(errno.ENOSPC, "No space left on device", "model"), ["No space left on device: model", "Free some"]),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "model"), ["model", "Check the path"]),
    ],
)
def test_errors_become_one_message(
    error: Exception, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["step"])

    def command() -> None:
        raise error

    with pytest.raises(SystemExit) as exit:
        run(command)
    assert exit.value.code == 1
    output = capsys.readouterr().out
    assert all(word in output for word in words) and "Traceback" not in output


def test_errors_of_the_program_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["step"])

    def command() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(command)
