"""What the steps share: errors written for people, checksums, outputs that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
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


def run(*commands: Callable[..., None], hidden: Callable[..., None] | None = None) -> None:
    """Run a function as a command line, or several as its subcommands; errors as one message and a non-zero exit code.

    *commands (Callable[..., None]): Functions with typer annotations.
    hidden (Callable[..., None] | None): A subcommand that the help does not mention.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    for command in commands:
        app.command()(command)
    if hidden:
        app.command(hidden=True)(hidden)
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


def find_entity_texts(path: Path) -> set[str]:
    """The entities of a .spacy file, as text in lower case."""
    from spacy.tokens import DocBin  # environments of other libraries have no spaCy
    from spacy.vocab import Vocab

    docs = DocBin().from_disk(path).get_docs(Vocab())
    return {ent.text.lower() for doc in docs for ent in doc.ents}


def newest_wheel(dist: Path) -> Path:
    """The wheel in a folder that was made last.

    RAISES (StepError): If there is none.
    """
    wheel = max(dist.glob("*.whl"), key=lambda path: path.stat().st_mtime, default=None)
    if wheel is None:
        raise StepError(f"{dist} holds no wheel.", "Run the step package again: python -m spacy project run package")
    return wheel


def install(wheel: Path, target: Path) -> str:
    """Install a wheel, without what it depends on, in a folder.

    RETURNS (str): The name of its package.
    """
    options = ["--no-deps", "--no-index", "--quiet", "--target", str(target)]
    python_elsewhere(["-m", "pip", "install", *options, str(wheel.resolve())])
    return wheel.name.split("-")[0]


def python_elsewhere(arguments: list[str], target: Path | None = None) -> str:
    """The output of another Python, in another folder, that finds packages in `target` and nothing on the hub.

    RAISES (StepError): If it fails, with the end of what it wrote.
    """
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "PYTHONPATH": str(target or ""),
    }
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-P", "-s", "-W", "ignore", *arguments]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise StepError(f"The wheel does not work elsewhere: {' '.join(arguments[:3])} failed.", last)
    return done.stdout


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
