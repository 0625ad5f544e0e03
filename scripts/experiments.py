"""List the trained models, best first, and what differs between them. Each keeps its own record; there is no server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from wasabi import msg

from common.errors import StepError, main
from common.formatting import describe_search, percent, tabulate_trials
from common.records import read_json


def experiments(
    training: Annotated[Path, typer.Argument(help="Folder with a folder for each run", exists=True, file_okay=False)],
    runs: Annotated[Path, typer.Argument(help="Folder with the runs' files", exists=True, file_okay=False)],
    metrics: Annotated[Path, typer.Argument(help="Folder with the metrics of each run", exists=True, file_okay=False)],
    run: Annotated[str, typer.Option(help="That run alone")] = "",
) -> None:
    """Compare all finished models by F1 on dev, show the files of their runs, and the trials of searches."""
    models = [model for model in find_models(training) if run in ("", model["run"])]
    if not models:
        raise StepError(f"{training} has no finished model{f' of {run}' * bool(run)}.", "Run train first.")
    models.sort(key=lambda model: -(model["dev"].get("ents_f") or 0))
    rows = [
        (
            model["run"],
            model["model"],
            *(percent(model["dev"].get(name)) for name in ("ents_f", "ents_p", "ents_r", "tag_acc")),
            f"{model['seconds'] / 60:.1f}",
            model["device"],
            ", ".join(f"{name} {value}" for name, value in differences.items()),
        )
        for model, differences in zip(models, differ([model["inputs"] for model in models]), strict=True)
    ]
    header = ("run", "model", "dev F1", "P", "R", "tags", "minutes", "device", "what differs")
    msg.table(rows, header=header, divider=True, max_col=200, aligns=(*"ll", *"rrrrr", *"ll"))
    files = [(name, read_settings(runs / f"{name}.yml")) for name in dict.fromkeys(model["run"] for model in models)]
    msg.table(files, header=("run", "what its file sets"), divider=True, max_col=200)
    for path in sorted(metrics.glob(f"{run or '*'}/search.json")):
        search = read_json(path)
        columns, trials = tabulate_trials(search)
        msg.divider(f"Search of {path.parent.name}")
        msg.table(trials, header=columns, divider=True, max_col=200, aligns=(*"rl", *"rr", "l"))
        msg.text(describe_search(search))


def read_settings(path: Path) -> str:
    """What the file of a run sets, on one line. A run may have none, its variables coming from the command line."""
    if not path.exists():
        return f"there is no {path}: its variables came from the command line"
    try:
        settings = yaml.load(path.read_text("utf8"), yaml.BaseLoader) or {}
        return ", ".join(f"{name} {value}" for name, value in settings.items())
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError):  # somebody edits it, perhaps
        return f"{path} is not valid YAML with variables"


def find_models(training: Path) -> Iterator[dict[str, Any]]:
    """The finished models below a folder, with their provenance and scores.

    YIELDS (dict[str, Any]): `run`, `model`: names of folders; `dev`: its scores; `seconds`, `device`,
        `inputs`: as train recorded them.
    """
    for path in sorted(training.glob("*/model-*/provenance.json")):
        provenance = read_json(path)
        yield {
            "run": path.parent.parent.name,
            "model": path.parent.name,
            "dev": read_json(path.parent / "meta.json").get("performance", {}),
            "seconds": provenance.get("seconds", 0),
            "device": provenance.get("device", ""),
            "inputs": provenance.get("inputs", {}),
        }


def differ(provenances: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Of the inputs of each model what is not the same in all: values of settings, the first digits of checksums."""
    flat = [dict(_flatten(provenance)) for provenance in provenances]
    names = sorted({name for provenance in flat for name in provenance})
    various = [name for name in names if len({provenance.get(name) for provenance in flat}) > 1]
    return [{name: provenance.get(name, "–") for name in various} for provenance in flat]


def _flatten(provenance: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in provenance.items():
        if isinstance(value, dict):
            yield from _flatten(value, "" if name == "settings" else f"{prefix}{name}.")
        else:
            text = f"{value:g}" if isinstance(value, float) else str(value)
            yield prefix + name, text[:8] if len(text) == 64 else text


if __name__ == "__main__":
    main(experiments)
