"""What is written and what is recorded of it: checksums, versions, whole files, one process at a time in a folder."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from filelock import FileLock, Timeout
from wasabi import msg

from common.errors import StepError

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")
SPLITS = ("train", "dev", "test")
AREAS = ("assets", "annotate", "corpus", "training", "metrics", "packages")
RUN = re.compile(r"(?=.{1,100}$)(?!.*\.$)[A-Za-z0-9_-][A-Za-z0-9._-]*", re.ASCII)
RESERVED = re.compile(
    "sample|reference|encoders|readme.*"  # which belong to the project
    r"|(con|prn|aux|nul|com\d|lpt\d)(\..*)?",  # which no file of Windows may have
    re.IGNORECASE,
)
LOCK, RECORD = ".lock", ".made.json"
CURVES = "curves.jsonl"  # in the folder of a model: a line for each evaluation of its training
PACKAGES = ("spacy", "spacy-transformers", "transformers", "torch", "thinc", "numpy")


def sha256(path: Path) -> str:
    """The SHA-256 of a file, or of a folder's files with their relative names, as hexadecimal digits."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for file_path in sorted(child for child in path.rglob("*") if child.is_file()):
        digest.update(f"{file_path.relative_to(path).as_posix()}\n{sha256(file_path)}\n".encode())
    return digest.hexdigest()


def code_digest(*paths: Path) -> str:
    """A SHA-256, as hexadecimal digits, of what Python files compute: comments, docstrings and layout do not count.

    Python's own description of the syntax tree may differ from one minor version to the next.
    """
    digest = hashlib.sha256()
    for path in paths:
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if (
                isinstance(body, list)
                and body
                and isinstance(body[0], ast.Expr)
                and isinstance(body[0].value, ast.Constant)
            ):
                body[:1] = [ast.Pass()]
        digest.update(f"{path.name}\n{ast.dump(tree)}\n".encode())
    return digest.hexdigest()


def digest(inputs: dict[str, Any]) -> str:
    """Eight hexadecimal digits that stand for the `inputs` of a model's provenance; folders of models carry them."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:8]


def record_inputs(**paths: Path) -> dict[str, str]:
    """Identify what a result was measured from, so that nobody takes it for a result of later code or data.

    Every file in metrics/ has this as `inputs`. Usual names are model, code, config, corpus and encoder.

    **paths (Path): A file of Python, which stands for itself and the project's files that it imports; the folder of a
        trained pipeline, which stands for its provenance; or another file or folder.
    RETURNS (dict[str, str]): By name: `code_digest` of the Python files, `digest` of the provenance, or `sha256`.
    """
    return {name: _identify(path) for name, path in paths.items()}


def _identify(path: Path) -> str:
    if path.suffix == ".py":
        return code_digest(*_find_imports(path.resolve()))
    inputs = read_json(path / "provenance.json").get("inputs")
    return digest(inputs) if inputs else sha256(path)


def _find_imports(path: Path) -> list[Path]:
    """A file of Python, and those of the project that it imports, directly or not.

    What `import bert_ner` registers is left out: those files are part of a model's provenance.
    """
    root = Path(__file__).parent.parent
    found: set[Path] = set()
    waiting = [path]
    while waiting:
        if (file := waiting.pop()) in found:
            continue
        found.add(file)
        for node in ast.walk(ast.parse(file.read_bytes())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            files = (root / f"{name.replace('.', '/')}.py" for name in names)
            waiting += [file for file in files if file.exists()]
    return sorted(found, key=lambda file: file.parts[-2:])  # the same order wherever the project stands


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
        data = json.loads(path.read_text("utf8"))
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
    """Write a JSON object so that the file is always whole: beside its place first, then renamed.

    Numbers come back as they were, which provenance needs. srsly, whose layout this is, keeps ten decimals of them.
    """
    text = json.dumps(data, indent=2, separators=(",", ":"), allow_nan=False)
    with _beside(path) as folder:
        (folder / path.name).write_text(text, encoding="utf8")
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
