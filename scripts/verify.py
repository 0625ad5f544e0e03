"""Install the wheel in an empty folder, load it as an application would, and compare it with the trained pipeline."""

from __future__ import annotations

import json
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Annotated, Any

import spacy
import typer
from spacy.cli._util import import_code, setup_gpu
from wasabi import msg

from scripts.package import Weights, score_rows
from scripts.steps import (
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
FLOAT16_LOSS = 0.0005  # what F may change by if weights are saved in half precision
LOAD = """import json, sys, time
began = time.perf_counter()
import spacy
imported = time.perf_counter()
nlp = spacy.load(sys.argv[1])
loaded = time.perf_counter()
entities = [[[ent.text, ent.label_] for ent in doc.ents] for doc in nlp.pipe(json.loads(sys.argv[2]))]
print(json.dumps({"entities": entities, "import_seconds": imported - began, "load_seconds": loaded - imported}))
"""


@writes("metrics", "package.json")
def verify(
    dist: Annotated[Path, typer.Argument(help="Folder with the wheel", exists=True)],
    model: Annotated[Path, typer.Argument(help="The pipeline it was made from", exists=True)],
    test: Annotated[Path, typer.Argument(help="The test set, as a .spacy file", exists=True)],
    metrics: Annotated[Path, typer.Argument(help="Folder with test.json, for package.json", exists=True)],
    code: Annotated[Path, typer.Option(help="Python file with registered functions", exists=True)],
    weights: Annotated[Weights, typer.Option(help="How the encoder's weights were saved")] = Weights.float32,
    gpu_id: Annotated[int, typer.Option(help="GPU, or -1 for the CPU")] = -1,
) -> None:
    """Check that a wheel gives elsewhere, offline, the entities and scores that the trained pipeline gives here."""
    wheel = newest_wheel(dist)
    paths = find_paths(wheel, Path.cwd())
    if paths:
        raise StepError(f"{wheel.name} holds the path of this project, in {', '.join(paths)}.", "Please report this.")
    msg.info(f"Installing {wheel.name} in an empty folder, loading it, and scoring it on the test set")
    with tempfile.TemporaryDirectory() as elsewhere:
        target = Path(elsewhere) / "target"
        package = install(wheel, target)
        loaded = json.loads(python_elsewhere(["-c", LOAD, package, json.dumps(TEXTS)], target))
        scores = Path(elsewhere) / "scores.json"
        options = ["--output", str(scores), "--gpu-id", str(gpu_id)]
        python_elsewhere(["-m", "spacy", "evaluate", package, str(test.resolve()), *options], target)
        there, here = read_json(scores), read_json(metrics / "test.json")
        if weights is Weights.float32 or abs(there["ents_f"] - here["ents_f"]) > FLOAT16_LOSS:
            compare("scores", there, here, wheel)
    setup_gpu(gpu_id, silent=True)
    import_code(code)
    nlp = spacy.load(model)
    entities = [[[ent.text, ent.label_] for ent in doc.ents] for doc in nlp.pipe(TEXTS)]
    if weights is Weights.float32:  # else rounding may move a close call, as the scores above may move a little
        there, here = (dict(zip(TEXTS, found, strict=True)) for found in (loaded["entities"], entities))
        compare("entities", there, here, wheel)
    record = {
        "wheel": wheel.name,
        "bytes": wheel.stat().st_size,
        "sha256": sha256(wheel),
        **loaded,
        "texts": TEXTS,
        "versions": installed(),
    }
    write_json(metrics / "package.json", record)
    tell(wheel, package, read_json(metrics / "test.json"))


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


def tell(wheel: Path, package: str, test: dict[str, Any]) -> None:
    """Show the scores, and how to use the wheel."""
    msg.table(score_rows(test), header=("test", "precision", "recall", "F"), divider=True, aligns=("l", "r", "r", "r"))
    python = Path(sys.executable)
    python = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python
    msg.good(f"{wheel.name} ({wheel.stat().st_size / 1e6:.1f} MB) gives the same in another folder, offline.")
    msg.info("It was installed beside what this environment has: that its own requirements suffice was not tried.")
    print(f"To use it:\n    {python} -m pip install {wheel}")
    example = f'[(ent.text, ent.label_) for ent in spacy.load("{package}")("{TEXTS[0]}").ents]'
    print(f"    {python} -c 'import spacy; print({example})'")


if __name__ == "__main__":
    run(verify)
