"""What the steps share: errors written for people, checksums, outputs that appear whole or not at all."""

from __future__ import annotations

import errno
import functools
import hashlib
import inspect
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

import srsly
import typer
from filelock import FileLock, Timeout
from wasabi import msg

if TYPE_CHECKING:
    from spacy.tokens import Doc
    from spacy.vocab import Vocab

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")

SPLITS = ("train", "dev", "test")
AREAS = ("assets", "corpus", "training", "metrics", "packages")
RUN = re.compile(r"(?=.{1,100}$)(?!.*\.$)[A-Za-z0-9_-][A-Za-z0-9._-]*", re.ASCII)
RESERVED = re.compile(
    "sample|reference|encoders|readme.*"  # which belong to the project
    r"|(con|prn|aux|nul|com\d|lpt\d)(\..*)?",  # which no file of Windows may have
    re.IGNORECASE,
)
LOCK, RECORD = ".lock", ".made.json"
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
    except shutil.Error as error:
        if not isinstance(error.args[0], list):
            raise
        source, _, reason = error.args[0][0]  # what copytree could not copy, the first of all
        _give_up(
            f"{reason}: {source}", "Look at this file and at the space on the disk, and run the same command again."
        )
    except OSError as error:
        path = _path_of(error)
        remedies = {
            errno.ENOSPC: "Free some space on this disk and run the same command again: what stood there is untouched.",
            errno.EDQUOT: "Free some of your quota and run the same command again: what stood there is untouched.",
            errno.EFBIG: "Files here have a limit (see ulimit -f, or the file system's): raise it, or work elsewhere.",
            errno.EACCES: "Make this path readable and writable for you, or work in another folder.",
            errno.EROFS: "The file system is read-only: work in another folder.",
        }
        if path and _is_named(path):
            remedies[errno.ENOENT] = "Check the path; an earlier step may have to run first."
            remedies |= dict.fromkeys(
                (errno.ENOTDIR, errno.EISDIR, errno.EEXIST), "Check the path: a file stands where a folder has to be."
            )
        if error.errno not in remedies:
            raise
        _give_up(f"{error.strerror}: {path or 'while writing'}", remedies[error.errno])


def _path_of(error: OSError) -> str:
    return "" if error.filename is None else os.fsdecode(error.filename)


def _is_named(path: str) -> bool:
    """Whether a path is one of the arguments of this command, or below or above one: then the user can mend it."""
    named = [Path(argument.rpartition("=")[2]).absolute() for argument in sys.argv[1:]]
    absolute = Path(path).absolute()
    return any(absolute.is_relative_to(one) or one.is_relative_to(absolute) for one in named)


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


def read_docs(path: Path, vocab: Vocab | None = None) -> list[Doc]:
    """The documents of a .spacy file.

    path (Path): The file.
    vocab (Vocab | None): What they shall share, or a new one.
    RAISES (StepError): If the file was damaged, or is none of spaCy's.
    """
    from spacy.tokens import DocBin  # environments of other libraries have no spaCy
    from spacy.vocab import Vocab

    try:
        return list(DocBin().from_disk(path).get_docs(vocab or Vocab()))
    except (OSError, MemoryError):
        raise
    except Exception as error:  # zlib, msgpack, NumPy and spaCy have one of their own for each kind of damage
        raise StepError(
            f"{path} is damaged, or no file of spaCy's: {str(error).splitlines()[0] if str(error) else error!r}",
            "Delete it and run convert again: python -m spacy project run convert . --vars.run <run>",
        ) from error


def find_entity_texts(path: Path) -> set[str]:
    """The entities of a .spacy file, as text in lower case."""
    return {ent.text.lower() for doc in read_docs(path) for ent in doc.ents}


def newest_wheel(folder: Path) -> Path:
    """The wheel in a folder, or in folders below it, that was made last.

    RAISES (StepError): If there is none.
    """
    wheel = max(folder.rglob("*.whl"), key=lambda path: path.stat().st_mtime, default=None)
    if wheel is None:
        raise StepError(f"{folder} holds no wheel.", "Run the step package again: python -m spacy project run package")
    return wheel


def install(wheel: Path, target: Path) -> str:
    """Install a wheel, without what it depends on, in a folder.

    RETURNS (str): The name of its package.
    """
    options = ["--no-deps", "--no-index", "--quiet", "--target", str(target)]
    python_elsewhere(["-m", "pip", "install", *options, str(wheel.resolve())])
    return wheel.name.split("-")[0]


def python_elsewhere(arguments: list[str], target: Path | None = None, python: str = sys.executable) -> str:
    """The output of another Python, in another folder, that finds packages in `target` and nothing on the hub.

    arguments (list[str]): Of Python.
    target (Path | None): A folder with packages, beside those that Python has.
    python (str): The interpreter: this environment's, or that of another.
    RETURNS (str): What it wrote to standard output.
    RAISES (StepError): If it fails, with the end of what it wrote.
    """
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "PYTHONPATH": str(target or ""),
    }
    with tempfile.TemporaryDirectory() as folder:
        command = [python, "-P", "-s", "-W", "ignore", *arguments]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        what = arguments[1] if arguments[0] == "-m" else "a script"
        raise StepError(f"The wheel does not work elsewhere: {what} failed.", last)
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


def check_run(folder: Path) -> None:
    """Make sure that a step may write to this folder, which is that of a run: `<area>/<run>`.

    folder (Path): The folder. One that does not lie below the current directory is checked by its name only.
    RAISES (StepError): If it is another place, or if a run must not have this name.
    """
    problem = ""
    here = Path.cwd()
    absolute = Path(os.path.abspath(folder))
    if ".." in folder.parts:
        problem = "its path goes up by .."
    elif absolute.is_relative_to(here):
        parts = absolute.relative_to(here).parts
        if len(parts) != 2 or parts[0] not in AREAS:
            problem = f"it is not a folder directly in {', '.join(AREAS[:-1])} or {AREAS[-1]}"
    if not problem and RESERVED.fullmatch(absolute.name):
        problem = f"the name {absolute.name} is reserved"
    if not problem and not RUN.fullmatch(absolute.name):
        problem = f"{absolute.name!r} is no name for a run"
    if problem:
        raise StepError(
            f"{folder} cannot be the folder of a run: {problem}.",
            "Name a run with at most 100 letters, digits, dots, _ and -, no dot first or last: --vars.run mine",
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time work in a folder; the next one waits and says so. Within a process it can be nested.

    What killed processes left half written in the folder and beside it is removed.

    folder (Path): The folder, which is made.
    """
    lock = FileLock(folder / LOCK, is_singleton=True)
    nested = lock.is_locked
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=1)
        except Timeout:
            msg.info(f"Another process works in {folder}: waiting for it. Ctrl-C ends this one.")
            lock.acquire()
        if (folder / LOCK).exists():  # not so where the other process has removed the folder, with the lock
            break
        lock.release()
    try:
        if not nested:
            for path in (*folder.rglob(".*.partial-????????"), *folder.parent.glob(f".{folder.name}.partial-????????")):
                shutil.rmtree(path, ignore_errors=True)
        yield
    finally:
        lock.release()


def writes(parameter: str, *names: str) -> Callable[[Callable[Parameters, Returned]], Callable[Parameters, Returned]]:
    """Decorate the function of a step, which then runs only in the folder of a run, and alone there.

    parameter (str): The function's parameter with that folder.
    *names (str): What the step makes there, as `made` takes it.
    """

    def decorate(function: Callable[Parameters, Returned]) -> Callable[Parameters, Returned]:
        @functools.wraps(function)
        def step(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Returned:
            folder = inspect.signature(function).bind(*args, **kwargs).arguments[parameter]
            check_run(folder)
            with locked(folder):
                made(folder, *names)
                try:
                    return function(*args, **kwargs)
                finally:
                    drop_if_empty(folder)

        return step

    return decorate


def drop_if_empty(folder: Path) -> None:
    """Remove the folder of a run, which this process has locked, if nothing but lock and record is in it."""
    if not {path.name for path in folder.iterdir()} - {LOCK, RECORD}:
        shutil.rmtree(folder)


def made(folder: Path, *names: str) -> set[str]:
    """Record what steps make in the folder of a run: `clean` removes only that. Call it before something is made.

    folder (Path): The folder of the run.
    *names (str): Files and folders in it, with / between the parts.
    RETURNS (set[str]): All that is recorded.
    RAISES (StepError): If the record is not readable.
    """
    record = folder / RECORD
    if not names and not record.exists():
        return set()
    with locked(folder):
        known = read_json(record).get("made", [])
        if not isinstance(known, list) or not all(isinstance(name, str) for name in known):
            raise StepError(f"{record} is no record of what was made.", "Delete it; clean will then leave this folder.")
        if set(names) - set(known):
            write_json(record, {"made": sorted({*known, *names})})
    return {*known, *names}


def claim(folder: Path, record: str) -> None:
    """Refuse to write over files that no step of this project made.

    folder (Path): The folder that a step is going to write.
    record (str): The file in it that says where its contents come from.
    RAISES (StepError): If the folder has contents that no step recorded, and no such file.
    """
    if not folder.exists() or (folder / record).exists():
        return
    if any(not path.name.startswith(".") for path in folder.iterdir() if path.name not in made(folder)):
        raise StepError(
            f"{folder} holds files of another origin: there is no {record} that says how they were made.",
            "Move them elsewhere, or choose another name for this run with --vars.run.",
        )


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a JSON object so that the file is always whole: beside its place first, then renamed."""
    with _beside(path) as folder:
        srsly.write_json(folder / path.name, data, indent=2)
        os.replace(folder / path.name, path)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A folder of this process alone, on the disk of `path`, that vanishes; `locked` knows its name."""
    options = {"dir": path.parent, "prefix": f".{path.name}.partial-"}
    with tempfile.TemporaryDirectory(**options, ignore_cleanup_errors=True) as folder:  # type: ignore[call-overload]
        yield Path(folder)


def replace(new: Path, old: Path) -> None:
    """Put a file or folder in the place of another, which is removed only once `new` stands there."""
    if new.is_file() and not old.is_dir():
        os.replace(new, old)
        return
    with _beside(old) as aside:
        if not old.exists():
            os.replace(new, old)
            return
        os.replace(old, aside / old.name)
        try:
            os.replace(new, old)
        except BaseException:
            os.replace(aside / old.name, old)
            raise


@contextmanager
def staged(folder: Path, *names: str) -> Iterator[Path]:
    """A new folder whose contents take their places when the block ends well, and vanish when it fails.

    folder (Path): Where the results shall stand.
    *names (str): Those that are replaced, the last one last, and recorded as made; all else in `folder` stays. Without
        any, the new folder takes the place of `folder`, with all that is in it: lock the folder above it.
    YIELDS (Path): The empty folder to write them to, beside the final one.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder) if names else nullcontext(), _beside(folder) as temporary:
        new = temporary / "new"  # the temporary one is for its owner's eyes only, this one for all that umask allows
        new.mkdir()
        yield new
        if not names:
            replace(new, folder)
            return
        made(folder, *names)
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            replace(new / name, folder / name)
