"""The published metrics of runs, and which of them were measured with other code than the present one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import bert_ner
from common.errors import StepError
from common.records import digest, read_json, record_inputs, sha256
from common.training import identify_recipe

DAGGER = "†"  # of a figure that was measured with other code
NEEDED = ("test", "evaluation", "package", "concepts")
OPTIONAL = ("ablation", "curve", "effort", "corrupt", "synthetic", "continuing")
TIMED = ("speed", "service", "training", "training-full", "corpora")  # in a folder for each kind of processor
PROCESSORS = ("bfloat16", "vnni", "avx2", "none")  # the best first, whose figures README.md shows


@dataclass
class Present:
    """The code of today, as the inputs of metrics and of models would name it.

    steps (dict[str, set[str]]): By the name of a JSON file, the digests of the modules that write it.
    inputs (dict[str, str]): Other inputs of metrics, by name.
    model (dict[str, str]): Inputs of a model, by name.
    """

    steps: dict[str, set[str]]
    inputs: dict[str, str]
    model: dict[str, str]


@dataclass
class Run:
    """The published metrics of a run.

    name (str): Its name.
    records (dict[str, dict[str, Any]]): The JSON files that it has, by name.
    stale (set[str]): The names of those that were measured with other code than the present one.
    """

    name: str
    records: dict[str, dict[str, Any]]
    stale: set[str]

    def mark(self, record: str, figure: str, older: bool = False) -> str:
        """A figure from a record, with a dagger if the record, or just this figure of it, is of other code."""
        return figure + DAGGER * ((older or record in self.stale) and figure != "–")


def find_present(project: Path, config: Path) -> Present:
    """Identify the code of today: of the steps that write metrics, of the pipeline, and of training.

    project (Path): project.yml, which says what step writes which file.
    config (Path): The training config.
    RETURNS (Present): Their digests.
    """
    commands = yaml.safe_load(project.read_text("utf8"))["commands"]
    modules = {command["name"]: _find_modules(project.parent, command["script"]) for command in commands}
    steps: dict[str, set[str]] = {}
    for command in commands:
        names = {Path(path).stem for path in command.get("outputs", []) if re.fullmatch(r"metrics/.*\.json", path)}
        if names & {*NEEDED, *OPTIONAL, *TIMED}:
            codes = {record_inputs(code=path)["code"] for path in modules[command["name"]]}
            for name in names:
                steps.setdefault(name, set()).update(codes)
    (service,) = modules["serve"]
    inputs = record_inputs(pipeline=Path(bert_ner.__file__), service=service) | {"config": sha256(config)}
    return Present(steps, inputs, identify_recipe(config))


def _find_modules(folder: Path, script: Iterable[str]) -> list[Path]:
    """The project's own files that the lines of a command run by `python -m`."""
    names = re.findall(r"^python -m ([\w.]+)", "\n".join(script), re.M)
    paths = (folder / f"{name.replace('.', '/')}.py" for name in names)
    return [path for path in paths if path.exists()]


def read_metrics(folder: Path, present: Present, processor: str = "") -> Run:
    """Read the published metrics of a run.

    folder (Path): Folder with the files of NEEDED, and perhaps those of OPTIONAL, and folders with those of TIMED.
    present (Present): The code of today.
    processor (str): The kind of processor, one of PROCESSORS; otherwise the best one that there is.
    RETURNS (Run): The run.
    RAISES (StepError): If a file of NEEDED is missing.
    """
    processor = processor or next((name for name in PROCESSORS if (folder / name).exists()), "none")
    paths = {name: folder / f"{name}.json" for name in NEEDED + OPTIONAL}
    paths |= {name: folder / processor / f"{name}.json" for name in TIMED}
    records = {name: record for name, path in paths.items() if (record := read_json(path))}
    lacking = ", ".join(f"{name}.json" for name in NEEDED if name not in records)
    if lacking:
        raise StepError(f"{folder} lacks {lacking}.", "Run all for this run, and then reference.")
    return Run(folder.name, records, find_stale(records, present))


def find_stale(records: dict[str, dict[str, Any]], present: Present) -> set[str]:
    """Find out which metrics were measured with other code than the present one. What does not say so counts too.

    spaCy writes test.json, without inputs. The step that calls it writes evaluation.json too, whose inputs stand for
    both as long as both have the same F1.

    records (dict[str, dict[str, Any]]): Metrics of a run by the name of the file, evaluation among them.
    present (Present): The code of today.
    RETURNS (set[str]): Names of files.
    """
    trained = records["evaluation"].get("training", {}).get("inputs", {})
    model = digest(trained) if all(trained.get(name) == value for name, value in present.model.items()) else None

    def is_fresh(name: str) -> bool:
        inputs = records[name].get("inputs", {})
        of_today = [inputs[key] == value for key, value in present.inputs.items() if key in inputs]
        if "model" in inputs:
            of_today.append(inputs["model"] == model)
        return inputs.get("code") in present.steps.get(name, ()) and bool(of_today) and all(of_today)

    stale = {name for name in records if name != "test" and not is_fresh(name)}
    if "evaluation" in stale or _f1(records["test"]) != _f1(records["evaluation"]["test"]["predicted_sentences"]):
        stale.add("test")
    return stale


def _f1(scores: dict[str, Any]) -> float | None:
    return None if scores["ents_f"] is None else round(scores["ents_f"], 6)
