"""Write documents for an annotation tool, with what is suggested and decided of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from wasabi import msg

from common.annotations import Task
from common.errors import StepError, main
from common.formats import Finding, Options, find_losses
from common.formats.known import FORMATS, find_format
from common.records import staged, writes
from common.store import STORE, Store

SHOWN = 3  # so many documents are named of those that lose something


@writes("folder")
def export_tasks(
    folder: Annotated[Path, typer.Argument(help=f"Folder with {STORE}; one by the name of the tool is made there")],
    tool: Annotated[str, typer.Option(help=f"One of {', '.join(FORMATS)}")],
    documents: Annotated[Literal["all", "open"], typer.Option(help="open: those that nobody has finished")] = "all",
    annotator: Annotated[str, typer.Option(help="Only what this annotator has said of the documents")] = "",
    tool_labels: Annotated[str, typer.Option(help="Labels to choose from beside those that occur, by commas")] = "",
    offsets: Annotated[
        Literal["", "code-points", "utf-16"], typer.Option(help="What offsets count, where the tool does not fix it")
    ] = "",
    scheme: Annotated[Literal["IOB1", "IOB2", "BIOES", "BILUO"], typer.Option(help="Of tags in columns")] = "IOB2",
) -> None:
    """Write documents for an annotation tool. What it cannot hold is said; what is there is never written over."""
    format = find_format(tool)
    if not (folder / STORE).exists():
        raise StepError(f"There is no {folder / STORE}.", "Gather texts first: make gather RUN=<run>")
    target = folder / tool
    if target.exists():
        raise StepError(f"{target} is there already.", "Somebody may work with it: move it away, or delete it.")
    tasks = choose(Store(folder / STORE).tasks(), documents, annotator)
    if not tasks:
        raise StepError(
            f"{folder / STORE} has no such document.", "Take all: --vars.documents all; or gather more texts."
        )
    options = Options(labels=split_labels(tool_labels), offsets=offsets, scheme=scheme)
    with staged(target) as new:
        findings = [*find_losses(format, tasks), *format.write(new, tasks, options)]
    for message, names in group(findings).items():
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        msg.warn(message, f"Documents: {', '.join(names[:SHOWN])}{more}")
    msg.good(f"Wrote {target / format.file}, with {len(tasks):,} documents")


def choose(tasks: list[Task], documents: str, annotator: str) -> list[Task]:
    """Choose what is exported.

    tasks (list[Task]): All tasks.
    documents (str): all, or open, those without an annotation that is no draft.
    annotator (str): Whose annotations count, the others being left out; empty for all.
    RETURNS (list[Task]): The tasks, in their order.
    """
    chosen = []
    for task in tasks:
        annotations = [one for one in task.annotations if annotator in ("", one.annotator)]
        if documents == "all" or all(annotation.status == "draft" for annotation in annotations):
            chosen.append(task.model_copy(update={"annotations": annotations}))
    return chosen


def split_labels(labels: str) -> tuple[str, ...]:
    """Labels with commas between them."""
    return tuple(filter(None, map(str.strip, labels.split(","))))


def group(findings: list[Finding]) -> dict[str, list[str]]:
    """The documents of each message."""
    names: dict[str, list[str]] = {}
    for finding in findings:
        names.setdefault(finding.message, []).append(finding.document)
    return names


if __name__ == "__main__":
    main(export_tasks)
