"""What the steps share: errors written for people, checksums, outputs that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

import srsly
import typer
from wasabi import msg

SPLITS = ("train", "dev", "test")
PACKAGES = ("spacy", "spacy-transformers", "transformers", "torch", "thinc", "numpy")


class StepError(Exception):
    """A problem that the user can solve.

    problem (str): What is wrong, naming the file and line, or the id.
    remedy (str): What to do about it.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy


def run(command: Callable[..., None]) -> None:
    """Run a function as a command line, its errors as one message each and a non-zero exit code.

    command (Callable[..., None]): A function with typer annotations.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    try:
        app()
    except StepError as error:
        _give_up(error.problem, error.remedy)
    except OSError as error:
        remedies = {
            errno.ENOSPC: "Free some space on this disk and run the same command again: earlier outputs are untouched.",
            errno.EDQUOT: "Free some of your quota and run the same command again: earlier outputs are untouched.",
            errno.ENOENT: "Check the path; an earlier step may have to run first.",
            errno.EACCES: "Make this path readable and writable for you, or work in another folder.",
            errno.EROFS: "The file system is read-only: work in another folder.",
        }
        if error.errno not in remedies:
            raise
        _give_up(f"{error.strerror}: {error.filename or 'while writing'}", remedies[error.errno])


def _give_up(problem: str, remedy: str) -> NoReturn:
    msg.fail(problem)
    print(remedy)  # as it is: wasabi would break the lines of a command
    sys.exit(1)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, or of a folder's files with their relative names, as hexadecimal digits."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for file_path in sorted(child for child in path.rglob("*") if child.is_file()):
        digest.update(f"{file_path.relative_to(path).as_posix()}\n{sha256(file_path)}\n".encode())
    return digest.hexdigest()


def installed() -> dict[str, str]:
    """The versions of the packages that can change a result, without local suffixes; a missing package is left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, empty where there is no such file.

    RAISES (StepError): If the file is not a JSON object.
    """
    if not path.exists():
        return {}
    try:
        data = srsly.read_json(path)
    except ValueError as error:
        raise StepError(f"{path} is not valid JSON: {error}", "Delete it and run the command again.") from error
    if not isinstance(data, dict):
        raise StepError(f"{path} holds no JSON object.", "Delete it and run the command again.")
    return data


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a JSON object so that the file is always whole: into a neighbour first, then renamed."""
    partial = path.with_name(f".{path.name}.partial")
    srsly.write_json(partial, data, indent=2)
    os.replace(partial, path)


def claim(folder: Path, record: str) -> None:
    """Refuse to write over files that no step of this project made.

    folder (Path): The folder that a step is going to write.
    record (str): The file in it that says where its contents come from.
    RAISES (StepError): If the folder has contents but no such file.
    """
    if folder.exists() and not (folder / record).exists() and any(not f.name.startswith(".") for f in folder.iterdir()):
        raise StepError(
            f"{folder} holds files of another origin: there is no {record} that says how they were made.",
            "Move them elsewhere, or choose another name for this run with --vars.run.",
        )


def replace(new: Path, old: Path) -> None:
    """Put the folder `new` in the place of the folder `old`, which is removed only once `new` stands there."""
    aside = old.with_name(f".{old.name}.replaced")
    shutil.rmtree(aside, ignore_errors=True)
    if old.exists():
        os.replace(old, aside)
    os.replace(new, old)
    shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder` when the block ends well, and vanishes when it fails.

    folder (Path): Where the results shall stand.
    YIELDS (Path): The empty folder to write them to, beside the final one.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    replace(partial, folder)
