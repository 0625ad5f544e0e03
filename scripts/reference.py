"""Publish the metrics of a run: copy them to where git keeps them, without anything that quotes the corpus."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer
from wasabi import msg

from common.errors import StepError, main
from common.quotes import check_quotes
from common.records import check_run, digest, read_json

NEEDED = ("corpus.json", "test.json", "evaluation.json", "analysis.json", "concepts.json", "package.json")
OPTIONAL = (
    "ablation.json",
    "curve.json",
    "curve.svg",
    "effort.json",
    "effort.svg",
    "corrupt.json",
    "synthetic.json",
    "continuing.json",
)
# What depends on the processor, which is published in a folder for each kind of processor
TIMED = ("speed.json", "service.json", "training.json", "training-full.json", "corpora.json")


def reference(
    metrics: Annotated[Path, typer.Argument(help="Folder of the run's metrics", exists=True, file_okay=False)],
    corpus: Annotated[Path, typer.Argument(help="Folder of the run's corpus, which must not be quoted", exists=True)],
    published: Annotated[Path, typer.Argument(help="Folder for the copies", file_okay=False)],
) -> None:
    """Copy the figures of a run. Benchmarks that the run does not have stay as they were published."""
    check_run(metrics)
    lacking = [name for name in NEEDED if not (metrics / name).exists()]
    if lacking:
        raise StepError(f"{metrics} lacks {', '.join(lacking)}.", f"Run all for it first: make all RUN={metrics.name}")
    copies = {name: name for name in NEEDED + OPTIONAL}
    for name in TIMED:
        folder = read_json(metrics / name).get("machine", {}).get("instructions", "none")
        copies |= {name: f"{folder}/{name}", Path(name).stem + ".svg": f"{folder}/{Path(name).stem}.svg"}
    copies = {name: copy for name, copy in copies.items() if (metrics / name).exists()}
    check_model(metrics)
    check_quotes([metrics / name for name in copies], corpus)
    for name, copy in copies.items():
        (published / copy).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(metrics / name, published / copy)
    msg.good(f"Copied to {published}: {', '.join(copies)}")
    msg.info("Now write the tables: make document")


def check_model(metrics: Path) -> None:
    """Make sure that the scores and the wheel are of the same model.

    metrics (Path): Folder with evaluation.json and package.json.
    RAISES (StepError): If they are not, or do not say so.
    """
    evaluated = digest(read_json(metrics / "evaluation.json").get("training", {}).get("inputs", {}))
    packaged = read_json(metrics / "package.json").get("inputs", {}).get("model")
    if packaged != evaluated:
        raise StepError(
            f"{metrics} has scores of the model {evaluated}, but a wheel of {packaged or 'an unknown one'}.",
            f"Run package and verify again: make all RUN={metrics.name}",
        )


if __name__ == "__main__":
    main(reference)
