"""Install the wheel as a stranger would, predict test with it once, and compare that with what evaluate kept."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tempfile
import zipfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from spacy.vocab import Vocab
from wasabi import msg

from common.errors import StepError, main
from common.formatting import score_rows
from common.predictions import read_predictions
from common.records import PACKAGES, installed, read_json, record_inputs, write_json, writes
from common.wheels import Weights, install, newest_wheel, python_elsewhere

TEXT = "My name is Wolfgang and I live in Berlin."  # README shows what the wheel finds in it
ROUNDING = 0.0005  # so much may F1 change if weights are saved in half precision, or if other versions compute
# Runs where the wheel is installed, with spaCy alone. The examples that `nlp.evaluate` predicts are copies of its own,
# which only its scorer sees.
USE = """import sys, time
from importlib.metadata import version
package, test, gpu_id, output, text, *names = sys.argv[1:]
began = time.perf_counter()
import spacy
imported = time.perf_counter()
if int(gpu_id) >= 0:
    spacy.require_gpu(int(gpu_id))
started = time.perf_counter()
nlp = spacy.load(package)
loaded = time.perf_counter()
for name in nlp.disabled:
    nlp.enable_pipe(name)
import srsly
from spacy.scorer import Scorer
from spacy.training import Corpus

class Keep(Scorer):
    def score(self, examples, **options):
        self.entities = [[[e.start, e.end, e.label_] for e in example.predicted.ents] for example in examples]
        return super().score(examples, **options)

scorer = Keep(nlp)
result = {
    "scores": nlp.evaluate(Corpus(test)(nlp), scorer=scorer),
    "entities": scorer.entities,
    "example": {"text": text, "entities": [[ent.text, ent.label_] for ent in nlp(text).ents]},
    "import_seconds": imported - began,
    "load_seconds": loaded - started,
    "versions": {name: version(name).partition("+")[0] for name in names},
}
srsly.write_json(output, result)
"""


class Environment(StrEnum):
    """Where the wheel is installed: in a new virtual environment, or beside the packages that are present here."""

    new = "new"
    present = "present"


@writes("metrics", "package.json")
def verify(
    dist: Annotated[Path, typer.Argument(help="Folder with the wheel", exists=True)],
    model: Annotated[Path, typer.Argument(help="The pipeline it was made from; it is not loaded", exists=True)],
    test: Annotated[Path, typer.Argument(help="The test set, as a .spacy file", exists=True)],
    metrics: Annotated[
        Path, typer.Argument(help="Folder with test.json and predictions, for package.json", exists=True)
    ],
    environment: Annotated[Environment, typer.Option(help="Where it is installed: a new environment is the proof")],
    weights: Annotated[Weights, typer.Option(help="How the encoder's weights were saved")] = Weights.float32,
    gpu_id: Annotated[int, typer.Option(help="GPU, or -1 for the CPU")] = -1,
) -> None:
    """Check that the wheel gives elsewhere, offline, the entities and scores that the trained pipeline gives here.

    In a new environment pip installs the wheel and nothing but what its metadata asks for, from the index that the
    user has set. Without an index, or when told so, the wheel is installed beside the packages that are present here.
    That proves nothing about its requirements, and the record and the last lines say so.
    """
    wheel = newest_wheel(dist)
    paths = find_paths(wheel, Path.cwd())
    if paths:
        raise StepError(f"{wheel.name} holds the path of this project, in {', '.join(paths)}.", "Please report this.")
    here = read_json(metrics / "test.json")
    examples, *_ = read_predictions(metrics / "predictions", "test", model, test, Vocab())
    doubt = "--vars.environment is present" if environment is Environment.present else find_doubt()
    with tempfile.TemporaryDirectory() as elsewhere:
        target, output = Path(elsewhere) / "target", Path(elsewhere) / "result.json"
        if doubt:
            msg.info(f"Installing {wheel.name} in an empty folder, loading it, and scoring it on the test set")
            package, python = install(wheel, target), sys.executable
        else:
            msg.info(f"Installing {wheel.name} in a new environment, with what it asks for: this takes minutes")
            package, python = create_environment(wheel, target)
        arguments = [package, str(test.resolve()), str(gpu_id), str(output), TEXT, *PACKAGES]
        python_elsewhere(["-c", USE, *arguments], target, python)
        there = read_json(output)
    exact = weights is Weights.float32 and there["versions"] == installed()
    if exact or abs(there["scores"]["ents_f"] - here["ents_f"]) > ROUNDING:
        compare("scores", there["scores"], here, wheel)
    if exact:  # otherwise rounding may decide a close call in another way, as it may change the scores a little
        kept = {
            f"document {number}": [[ent.start, ent.end, ent.label_] for ent in example.predicted.ents]
            for number, example in enumerate(examples)
        }
        compare("entities", dict(zip(kept, there["entities"], strict=True)), kept, wheel)
    record = {
        "inputs": record_inputs(
            model=model, code=Path(__file__), test=test, predictions=metrics / "predictions", wheel=wheel
        ),
        "wheel": wheel.name,
        "bytes": wheel.stat().st_size,
        **{name: there[name] for name in ("example", "import_seconds", "load_seconds", "versions")},
        "clean_environment": not doubt,
        "why_not": doubt,
    }
    write_json(metrics / "package.json", record)
    tell(wheel, package, here, doubt)


def find_doubt() -> str:
    """Find out why a new environment cannot be made here.

    RETURNS (str): The reason, or nothing if pip, with the user's settings, finds an index that has spaCy.
    """
    command = [sys.executable, "-m", "pip", "index", "versions", "spacy", "--retries", "1", "--timeout", "15"]
    asked = subprocess.run(command, capture_output=True, text=True)
    return "pip reaches no index that has spaCy" if asked.returncode else ""


def create_environment(wheel: Path, folder: Path) -> tuple[str, str]:
    """Make a new virtual environment, and let pip install a wheel there with what its metadata asks for.

    wheel (Path): The wheel.
    folder (Path): Where the environment is made.
    RETURNS (tuple[str, str]): The name of its package, and the environment's Python.
    RAISES (StepError): If pip cannot install it.
    """
    python_elsewhere(["-m", "venv", "--without-pip", str(folder)])
    python = str(folder / "bin/python")
    python_elsewhere(["-m", "pip", "--python", python, "install", "--quiet", str(wheel.resolve())])
    return wheel.name.split("-")[0], python


def find_paths(wheel: Path, path: Path) -> list[str]:
    """List the files in a wheel that contain a path of this machine.

    wheel (Path): The wheel.
    path (Path): The path, which is made absolute.
    RETURNS (list[str]): Names in the wheel.
    """
    plain = str(path.resolve())
    ways = "|".join(re.escape(way) for way in (plain, json.dumps(plain)[1:-1]))  # a config escapes what is not ASCII
    # A short path, such as that of a project in /ner, is part of addresses, and by chance of weights
    inside = re.compile(rf"(?<![\w.-])(?:{ways})(?:/\w|[\"'])".encode())
    with zipfile.ZipFile(wheel) as files:
        return [name for name in files.namelist() if inside.search(files.read(name))]


def compare(what: str, there: dict[str, Any], here: dict[str, Any], wheel: Path) -> None:
    """Make sure that an installed wheel gives what the trained pipeline gives, speed aside.

    what (str): What is compared, for the message.
    there, here (dict[str, Any]): What the wheel gives, and what the pipeline gives. Only keys of `here` are compared.
    wheel (Path): The wheel.
    RAISES (StepError): If they differ, naming the first difference.
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
    package (str): The name of its package.
    test (dict[str, Any]): As `spacy evaluate` writes it.
    doubt (str): Why the wheel was not installed in a new environment; nothing if it was.
    """
    msg.table(score_rows(test), header=("test", "precision", "recall", "F1"), divider=True, aligns=("l", "r", "r", "r"))
    where = "another folder" if doubt else "a new environment"
    msg.good(f"{wheel.name} ({wheel.stat().st_size / 1e6:.1f} MB) gives the same in {where}, offline.")
    if doubt:
        msg.warn(f"That its own requirements suffice was not proven: {doubt}.")
    python = Path(sys.executable)
    python = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python
    print("To use it:")
    print(f"    {shlex.join([str(python), '-m', 'pip', 'install', str(wheel)])}")
    example = f'[(ent.text, ent.label_) for ent in spacy.load("{package}")("{TEXT}").ents]'
    print(f"    {shlex.join([str(python), '-c', f'import spacy; print({example})'])}")


if __name__ == "__main__":
    main(verify)
