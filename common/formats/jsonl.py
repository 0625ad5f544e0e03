"""jsonl of this project, which loses nothing: `{"id": …, "text": …, "status": "annotated", "spans": […]}`.

A row has the fields of a `Document`, its `suggestions`, and either those of its one `Annotation`, or a list
`annotations`, or nothing of that if nobody has annotated it. What is at its default may be missing. A row with spans
alone was annotated. A span may have its `text`, which is checked then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from common.annotations import Annotation, Document, Span, Task
from common.errors import StepError
from common.formats import (
    ALL,
    Entry,
    Finding,
    Format,
    Mark,
    Options,
    annotation_of,
    check_marks,
    document_of,
    name_annotator,
    read_jsonl,
    text_of,
    write_jsonl,
)

OF_DOCUMENT = frozenset(Document.model_fields)
OF_ANNOTATION = frozenset(Annotation.model_fields) - {"document"}
OF_TASK = {"suggestions", "annotations"}


def _write(folder: Path, tasks: list[Task], options: Options) -> list[Finding]:
    write_jsonl(folder / FORMAT.file, map(_make_row, tasks))
    return []


def _make_row(task: Task) -> dict[str, Any]:
    row = task.document.model_dump(exclude_defaults=True)
    if task.suggestions:
        row["suggestions"] = list(map(_make_span, task.suggestions))
    annotations = [
        annotation.model_dump(exclude={"document", "spans"}, exclude_defaults=True)
        | {"spans": list(map(_make_span, annotation.spans))}
        for annotation in task.annotations
    ]
    return row | (annotations[0] if len(annotations) == 1 else {"annotations": annotations} if annotations else {})


def _make_span(span: Span) -> dict[str, Any]:
    return span.model_dump(exclude_defaults=True)


def _read(path: Path, known: Mapping[str, Task], options: Options) -> Iterator[Entry]:
    for place, row in read_jsonl(path):
        document = document_of(row.get("id"), text_of(row, place))
        one = set() if "annotations" in row else OF_ANNOTATION
        unknown = ", ".join(sorted(row.keys() - OF_DOCUMENT - OF_TASK - one))
        findings = [f"Keys of the row that mean nothing there: {unknown}."] if unknown else []
        try:
            fields = {key: row[key] for key in OF_DOCUMENT & row.keys()}
            task = Task(document=Document(**fields | {"id": document.id}))
            marks = _make_marks(row.get("suggestions", []))
            task.suggestions, found = check_marks(document.text, marks)
            findings += found
            for given in row.get("annotations", [row] if row.keys() & one else []):
                marks = _make_marks(given.get("spans", []))
                fields = {key: given[key] for key in OF_ANNOTATION & given.keys() - {"annotator", "spans", "status"}}
                annotator = name_annotator(options, given.get("annotator"), place)
                annotation, found = annotation_of(task, annotator, given.get("status", "annotated"), marks, **fields)
                task.annotations.append(annotation)
                findings += found
        except (ValidationError, TypeError, AttributeError) as error:
            raise StepError(f"{place}: {' '.join(str(error).split())}", "Mend the row, or export again.") from error
        yield Entry(place, task, findings)


def _make_marks(spans: list[dict[str, Any]]) -> list[Mark]:
    return [Mark(**{"start": None, "end": None, "label": None} | span) for span in spans]


FORMAT = Format("jsonl", "tasks.jsonl", ALL, _write, _read)
