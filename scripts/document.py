"""Write the results in README.md from the reference runs in metrics/, so that no figure there is typed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from wasabi import msg

from scripts.package import percent, score_rows
from scripts.steps import StepError, read_json, run

START, END = "<!-- RESULTS START: written by `document` -->", "<!-- RESULTS END -->"


def document(
    readme: Annotated[Path, typer.Argument(help="File to write into", exists=True)],
    runs: Annotated[list[Path], typer.Argument(help="Folders of metrics, one a run, in the order of the table")],
) -> None:
    """Write the table of results into a README."""
    readme.write_text(insert(readme.read_text("utf8"), results(runs)), encoding="utf8")
    msg.good(f"Wrote the results of {', '.join(path.name for path in runs)} into {readme}")


def results(runs: list[Path]) -> str:
    """A table in Markdown with a row for each run, then one for each label.

    runs (list[Path]): Folders with test.json, evaluation.json and package.json.
    RAISES (StepError): If one has no results.
    """
    rows = []
    labels = []
    for path in runs:
        test, evaluation, package = (read_json(path / f"{name}.json") for name in ("test", "evaluation", "package"))
        if not (test and evaluation and package):
            raise StepError(f"{path} lacks test.json, evaluation.json or package.json.", "Run all for it first.")
        dev, training = evaluation["dev"], evaluation["training"]
        figures = [
            percent(dev["predicted_sentences"]["ents_f"]),
            percent(dev["gold_sentences"]["ents_f"]),
            percent(test["ents_f"]),
            percent(evaluation["test"]["gold_sentences"]["ents_f"]),
            percent(test.get("sents_f")),
            percent(test.get("tag_acc")),
        ]
        made = f"{training['seconds'] / 60:.0f} min on {training['device']}, {package['bytes'] / 1e6:.0f} MB"
        rows.append(
            f"| `{path.name}` | {evaluation['corpus']} | {evaluation['encoder']} | {' | '.join(figures)} | {made} |"
        )
        scores = ", ".join(f"{label} {' / '.join(figures)}" for label, *figures in score_rows(test)[:-1])
        labels.append(f"- `{path.name}`, test, precision / recall / F by label: {scores}.")
    return "\n".join(
        [
            "| run | corpus | encoder | dev F | dev F, gold sentences | test F | test F, gold sentences | sentences F "
            "| part of speech | training, wheel |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            *labels,
        ]
    )


def insert(text: str, results: str) -> str:
    """Replace what stands between the marks.

    RAISES (StepError): If the marks are not there.
    """
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise StepError(f"There is no place for the results: {START} … {END}", "Put these two lines into the file.")
    return f"{before}{start}\n\n{results}\n\n{end}{after}"


if __name__ == "__main__":
    run(document)
