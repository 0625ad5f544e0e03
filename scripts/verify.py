"""Install the wheel as a stranger would, load it offline as an application would, and compare it with the pipeline."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
import zipfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import spacy
import typer
from spacy.cli._util import import_code, setup_gpu
from wasabi import msg

from scripts.package import Weights, score_rows
from scripts.steps import (
    PACKAGES,
    StepError,
    install,
    installed,
    newest_wheel,
    python_elsewhere,
    read_json,
    run,
    sha256,
    write_json,
    writes,
)

TEXTS = [
    "My name is Wolfgang and I live in Berlin.",
    "Angela Merkel met Emmanuel Macron in Paris on Monday.\n\nThe European Union was not represented.",
    "",
]
ROUNDING = 0.0005  # what F may change by if weights are saved in half precision, or other versions compute
LOAD = """import json, sys, time
from importlib.metadata import version
began = time.perf_counter()
import spacy
imported = time.perf_counter()
nlp = spacy.load(sys.argv[1])
loaded = time.perf_counter()
entities = [[[ent.text, ent.label_] for ent in doc.ents] for doc in nlp.pipe(json.loads(sys.argv[2]))]
versions = {name: version(name).partition("+")[0] for name in sys.argv[3:]}
seconds = {"import_seconds": imported - began, "load_seconds": loaded - imported}
print(json.dumps({"entities": entities, **seconds, "versions": versions}))
"""


class Environment(StrEnum):
    """Where the wheel is installed: in a new virtual environment, or beside the packages that are present here."""

    new = "new"
    present = "present"


@writes("metrics", "package.json")
def verify(
    dist: Annotated[Path, typer.Argument(help="Folder with the wheel", exists=True)],
    model: Annotated[Path, typer.Argument(help="The pipeline it was made from", exists=True)],
    test: Annotated[Path, typer.Argument(help="The test set, as a .spacy file", exists=True)],
    metrics: Annotated[Path, typer.Argument(help="Folder with test.json, for package.json", exists=True)],
    code: Annotated[Path, typer.Option(help="Python file with registered functions", exists=True)],
    environment: Annotated[Environment, typer.Option(help="Where it is installed: a new environment is the proof")],
    weights: Annotated[Weights, typer.Option(help="How the encoder's weights were saved")] = Weights.float32,
    gpu_id: Annotated[int, typer.Option(help="GPU, or -1 for the CPU")] = -1,
) -> None:
    """Check that a wheel gives elsewhere, offline, the entities and scores that the trained pipeline gives here.

    In a new environment pip installs the wheel with nothing but what its metadata asks for, from the index that the
    user has set. Without an index, or when told so, the wheel is installed beside the packages that are present here,
    which proves nothing about its requirements: the record and the last lines say so.
    """
    wheel = newest_wheel(dist)
    paths = find_paths(wheel, Path.cwd())
    if paths:
        raise StepError(f"{wheel.name} holds the path of this project, in {', '.join(paths)}.", "Please report this.")
    doubt = "--vars.environment is present" if environment is Environment.present else find_doubt()
    with tempfile.TemporaryDirectory() as elsewhere:
        target = Path(elsewhere) / "target"
        if doubt:
            msg.info(f"Installing {wheel.name} in an empty folder, loading it, and scoring it on the test set")
            package, python = install(wheel, target), sys.executable
        else:
            msg.info(f"Installing {wheel.name} in a new environment, with what it asks for: this takes minutes")
            package, python = create_environment(wheel, target)
        loaded = json.loads(python_elsewhere(["-c", LOAD, package, json.dumps(TEXTS), *PACKAGES], target, python))
        scores = Path(elsewhere) / "scores.json"
        options = ["--output", str(scores), "--gpu-id", str(gpu_id)]
        python_elsewhere(["-m", "spacy", "evaluate", package, str(test.resolve()), *options], target, python)
        there, here = read_json(scores), read_json(metrics / "test.json")
    exact = weights is Weights.float32 and loaded["versions"] == installed()
    if exact or abs(there["ents_f"] - here["ents_f"]) > ROUNDING:
        compare("scores", there, here, wheel)
    setup_gpu(gpu_id, silent=True)
    import_code(code)
    nlp = spacy.load(model)
    entities = [[[ent.text, ent.label_] for ent in doc.ents] for doc in nlp.pipe(TEXTS)]
    if exact:  # else rounding may move a close call, as the scores above may move a little
        there, here = (dict(zip(TEXTS, found, strict=True)) for found in (loaded["entities"], entities))
        compare("entities", there, here, wheel)
    record = {
        "wheel": wheel.name,
        "bytes": wheel.stat().st_size,
        "sha256": sha256(wheel),
        **loaded,
        "texts": TEXTS,
        "clean_environment": not doubt,
        "why_not": doubt,
    }
    write_json(metrics / "package.json", record)
    tell(wheel, package, read_json(metrics / "test.json"), doubt)


def find_doubt() -> str:
    """Why a new environment cannot be made here, or nothing if pip finds spaCy where the user's settings tell it to."""
    command = [sys.executable, "-m", "pip", "index", "versions", "spacy", "--retries", "1", "--timeout", "15"]
    asked = subprocess.run(command, capture_output=True, text=True)
    return "pip reaches no index that has spaCy" if asked.returncode else ""


def create_environment(wheel: Path, folder: Path) -> tuple[str, str]:
    """Make a new virtual environment, and let pip install a wheel there with what its metadata asks for.

    RETURNS (tuple[str, str]): The name of its package, and the environment's Python.
    RAISES (StepError): If pip cannot.
    """
    python_elsewhere(["-m", "venv", "--without-pip", str(folder)])
    python = str(folder / "bin/python")
    python_elsewhere(["-m", "pip", "--python", python, "install", "--quiet", str(wheel.resolve())])
    return wheel.name.split("-")[0], python


def find_paths(wheel: Path, path: Path) -> list[str]:
    """The files in a wheel that contain a path."""
    with zipfile.ZipFile(wheel) as files:
        return [name for name in files.namelist() if str(path.resolve()).encode() in files.read(name)]


def compare(what: str, there: dict[str, Any], here: dict[str, Any], wheel: Path) -> None:
    """Make sure that an installed wheel gives what the trained pipeline gives; speeds apart.

    RAISES (StepError): If not, naming what differs.
    """
    differing = [key for key in here if key != "speed" and there.get(key) != here[key]]
    if differing:
        key = differing[0]
        raise StepError(
            f"{wheel.name}, installed, gives other {what}: {key}: {there.get(key)} instead of {here[key]}.",
            "Run package and verify again; if it stays so, the wheel lacks a part of the pipeline.",
        )


def tell(wheel: Path, package: str, test: dict[str, Any], doubt: str) -> None:
    """Show the scores, what was proven, and how to use the wheel, as lines that work when pasted here.

    wheel (Path): The wheel.
    package (str): Its package.
    test (dict[str, Any]): As `spacy evaluate` writes it.
    doubt (str): Why it was not installed in a new environment; nothing if it was.
    """
    msg.table(score_rows(test), header=("test", "precision", "recall", "F"), divider=True, aligns=("l", "r", "r", "r"))
    where = "another folder" if doubt else "a new environment"
    msg.good(f"{wheel.name} ({wheel.stat().st_size / 1e6:.1f} MB) gives the same in {where}, offline.")
    if doubt:
        msg.warn(f"That its own requirements suffice was not proven: {doubt}.")
    python = Path(sys.executable)
    python = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python
    print("To use it:")
    print(f"    {shlex.join([str(python), '-m', 'pip', 'install', str(wheel)])}")
    example = f'[(ent.text, ent.label_) for ent in spacy.load("{package}")("{TEXTS[0]}").ents]'
    print(f"    {shlex.join([str(python), '-c', f'import spacy; print({example})'])}")


if __name__ == "__main__":
    run(verify)
