"""Where annotators of the same documents do not agree: how far, on what, and whose word counts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from wasabi import msg

from common.agreement import ADJUDICATED, decide, find_conflicts, measure_agreement
from common.annotations import Annotation
from common.errors import StepError, main
from common.records import staged, write_json, writes
from common.store import ConflictError, Store, open_store

CONFLICTS, DECISIONS = "conflicts.json", "decisions.jsonl"
SHOWN = 10  # so many conflicts are printed; the file has all


@writes("folder")
def adjudicate(
    folder: Annotated[Path, typer.Argument(help="Folder with annotations.db, for what is found", exists=True)],
    accept: Annotated[str, typer.Option(help="Whose annotations are final where annotators do not agree")] = "",
) -> None:
    """Measure how far annotators agree, list where they do not, and write the log of decisions on label errors."""
    store = open_store(folder)
    if accept:
        accepted = accept_annotator(store, accept)
        msg.good(f"{accepted} documents are decided as {accept} has them; the history keeps what the others said")
    tasks = store.tasks()
    agreement, conflicts = measure_agreement(tasks), find_conflicts(tasks)
    states = Counter(decide(task).state for task in tasks)
    with staged(folder, DECISIONS, CONFLICTS) as new:
        lines = (change.model_dump_json() + "\n" for change in store.changes())
        (new / DECISIONS).write_text("".join(lines), "utf8", newline="")
        write_json(new / CONFLICTS, {"documents": dict(states), "agreement": agreement, "conflicts": conflicts})
    show(agreement, conflicts)
    msg.info(
        f"{states['annotated']} documents are annotated, {states['open']} open, {states['skipped']} skipped, "
        f"{states['unannotated']} not annotated."
    )
    if conflicts:
        msg.warn(
            f"{len(conflicts)} documents wait for a decision: {folder / CONFLICTS}",
            "Decide each on the page, tab Annotate, or take one annotator's word: --vars.accept <name>",
        )
    msg.good(f"Wrote {folder / CONFLICTS}")


def accept_annotator(store: Store, name: str) -> int:
    """Make one annotator's word final in the documents where annotators do not agree.

    It is saved as that of ADJUDICATED. A document that the annotator has not finished, or that somebody is at work to
    decide, stays open.

    store (Store): The store, which is changed.
    name (str): The annotator.
    RETURNS (int): How many documents are decided by that.
    RAISES (StepError): If the annotator has finished no document.
    """
    tasks = store.tasks()
    finished = {a.annotator for task in tasks for a in task.annotations if a.status == "annotated"} - {ADJUDICATED}
    if name not in finished:
        known = ", ".join(sorted(finished)) or "nobody"
        raise StepError(f"{name} has annotated no document in {store.path}.", f"Who has: {known}.")
    accepted = 0
    for task in tasks:
        by_name = {annotation.annotator: annotation for annotation in task.annotations}
        theirs = by_name.get(name)
        if decide(task).state != "open" or ADJUDICATED in by_name or not theirs or theirs.status != "annotated":
            continue
        try:
            store.save(
                Annotation(
                    document=task.document.id,
                    annotator=ADJUDICATED,
                    status="annotated",
                    spans=theirs.spans,
                    comment=f"as {name} has it, revision {theirs.revision}",
                ),
                basis={one.annotator: one.revision for one in task.annotations},
            )
        except ConflictError:  # somebody has changed it since it was read
            continue
        accepted += 1
    return accepted


def show(agreement: list[dict[str, Any]], conflicts: list[dict[str, Any]]) -> None:
    """Print the agreement, and the first conflicts.

    agreement, conflicts (list[dict[str, Any]]): As `measure_agreement` and `find_conflicts` return them.
    """
    rows = [
        (
            " and ".join(pair["annotators"]),
            pair["documents"],
            label,
            *row["spans"],
            *map(_format, (row["f1"], row["kappa"])),
        )
        for pair in agreement
        for label, row in pair["labels"].items()
    ]
    if rows:
        header = ("annotators", "documents", "label", "spans", "spans", "F1", "kappa")
        msg.table(rows, header=header, divider=True, aligns=("l", "r", "l", "r", "r", "r", "r"))
    else:
        msg.info("No two annotators have finished the same document, so there is no agreement to measure.")
    for conflict in conflicts[:SHOWN]:
        spans = [f"{span['text']!r} {span['label']} ({', '.join(span['annotators'])})" for span in conflict["spans"]]
        msg.text(f"{conflict['document']}: {'; '.join(spans)}")
    if len(conflicts) > SHOWN:
        msg.text(f"and {len(conflicts) - SHOWN} more")


def _format(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


if __name__ == "__main__":
    main(adjudicate)
