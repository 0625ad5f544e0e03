from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from common.errors import StepError, main


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (StepError("train.conll, line 3: odd", "Mend it."), ["line 3: odd", "Mend it."]),
        (OSError(errno.ENOSPC, "No space left on device", "model"), ["No space left on device: model", "Free some"]),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "model/x"), ["model/x", "Check the path"]),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b"), ["Not a directory: a/b", "Check the path"]),
        (OSError(errno.EFBIG, "File too large"), ["File too large: while writing", "ulimit"]),
        (
            shutil.Error([("a/b", "c/b", "[Errno 2] No such file")]),
            ["[Errno 2] No such file: a/b", "Look at this file"],
        ),
    ],
)
def test_errors_become_one_message(
    error: Exception, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["step", "model", "--option=a/b/c"])

    def command(model: Path, option: Path = Path()) -> None:
        raise error

    with pytest.raises(SystemExit) as exit:
        main(command)
    assert exit.value.code == 1
    output = capsys.readouterr().out
    assert all(word in output for word in words) and "Traceback" not in output


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError(),
        FileNotFoundError(errno.ENOENT, "No such file", "/other/place"),
        shutil.Error("odd"),
        OSError(),
    ],
)
def test_errors_of_the_program_keep_their_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["step", "model"])

    def command(model: Path) -> None:
        raise error

    with pytest.raises(type(error)):
        main(command)
