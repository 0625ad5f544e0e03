"""doccano: JSONL of a project of sequence labeling.

doccano's export says neither which examples somebody has finished nor what its offsets count: users have to. The page
of doccano counts UTF-16 code units, what came over its HTTP interface may count code points.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from common.annotations import Span, Task
from common.errors import StepError
from common.formats import (
    Entry,
    Finding,
    Format,
    Mark,
    Options,
    annotation_of,
    check_marks,
    counts_utf16,
    decision_of,
    document_of,
    name_annotator,
    read_jsonl,
    text_of,
    utf16_offsets,
    without_overlaps,
    write_jsonl,
)

OPEN = "open"  # the status of a document that nobody has decided, whose labels are suggestions
SHARED = "all"  # the file of a project in which all users share their annotations


def _write(folder: Path, tasks: list[Task], options: Options) -> list[Finding]:
    rows, findings = [], []
    for task in tasks:
        utf16 = counts_utf16(FORMAT.name, task.document.text, task.document.id, options)
        decision = decision_of(task)
        spans = decision.spans if decision else task.suggestions
        kept = without_overlaps(spans)  # doccano itself would drop others without a word
        if not decision and len(kept) < len(spans):
            findings.append(Finding(task.document.id, "doccano cannot hold suggestions that overlap."))
        rows.append(
            {
                "text": task.document.text,
                "label": _make_labels(task.document.text, kept, utf16),
                # The same keys in each row, else the whole import fails. "id" is doccano's own.
                "document": task.document.id,
                "status": decision.status if decision else OPEN,
                "annotator": decision.annotator if decision else "",
            }
        )
    write_jsonl(folder / FORMAT.file, rows)
    return findings


def _make_labels(text: str, spans: list[Span], utf16: bool) -> list[list[Any]]:
    units = utf16_offsets(text) if utf16 else range(len(text) + 1)
    return [[units[span.start], units[span.end], span.label] for span in spans]


def _read(path: Path, known: Mapping[str, Task], options: Options) -> Iterator[Entry]:
    for place, row in read_jsonl(path):
        text = text_of(row, place)
        labels = row.get("label")
        if not isinstance(labels, list):
            raise StepError(f"{place}: there is no list of labels in it.", "Export as JSONL, without relations.")
        task = Task(document=document_of(row.get("document"), text))
        utf16 = counts_utf16(FORMAT.name, text, place, options)
        marks = [
            Mark(label[0], label[1], label[2], utf16=utf16)
            if isinstance(label, list) and len(label) == 3
            else Mark(None, None, str(label))
            for label in labels
        ]
        findings: list[str] = []
        comments = row.get("Comments")
        said = {"comment": "\n".join(map(str, comments))} if comments and isinstance(comments, list) else {}
        if "id" in row:  # only doccano's own export has it
            if not options.approved:
                raise StepError(
                    f"{path} does not say which examples somebody has finished.",
                    "Export only approved documents, which doccano offers, and say so: --vars.approved yes",
                )
            annotator = name_annotator(options, path.stem if path.stem != SHARED else "", place)
            annotation, findings = annotation_of(task, annotator, "annotated", marks, **said)
            task.annotations.append(annotation)
        elif row.get("status") in ("annotated", "skipped"):
            annotator = name_annotator(options, row.get("annotator"), place)
            annotation, findings = annotation_of(task, annotator, row["status"], marks)
            task.annotations.append(annotation)
        else:
            marks = [mark._replace(source=FORMAT.name) for mark in marks]
            task.suggestions, findings = check_marks(text, marks)
        yield Entry(place, task, findings)


FORMAT = Format("doccano", "tasks.jsonl", frozenset({"suggestions", "skipped"}), _write, _read)
