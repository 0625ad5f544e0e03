"""Label Studio: its JSON, and the configuration of a project that shows it.

An export of JSON_MIN or CONLL2003 cannot be read, since it has tasks that nobody annotated as if they had no entities.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from common.annotations import Annotation, Span, Task
from common.errors import StepError
from common.formats import (
    Entry,
    Finding,
    Format,
    Mark,
    Options,
    annotation_of,
    by_source,
    check_marks,
    document_of,
    labels_of,
    lowest_score,
    name_annotator,
    read_json_list,
    text_of,
    write_json,
)

PREDICTED = "prediction"  # the source of a span that was suggested, where nothing says by whom


def _write(folder: Path, tasks: list[Task], options: Options) -> list[Finding]:
    write_json(folder / FORMAT.file, [_make_row(task) for task in tasks])
    view = ElementTree.Element("View")
    labels = ElementTree.SubElement(view, "Labels", name="label", toName="text")
    for label in labels_of(tasks, options):
        ElementTree.SubElement(labels, "Label", value=label)
    ElementTree.SubElement(view, "Text", name="text", value="$text", granularity="word")
    ElementTree.indent(view)
    (folder / "labels.xml").write_text(ElementTree.tostring(view, encoding="unicode") + "\n", "utf8")
    return []


def _make_row(task: Task) -> dict[str, Any]:
    text = task.document.text
    return {
        "data": {"id": task.document.id, "text": text},
        "predictions": [
            {
                "model_version": source,
                "score": lowest_score(spans),
                "result": [_make_region(text, number, span) for number, span in enumerate(spans)],
            }
            for source, spans in by_source(task.suggestions).items()
        ],
        "annotations": [
            {
                # Not completed_by: the server refuses whom it does not know.
                "annotator": annotation.annotator,
                "was_cancelled": annotation.status == "skipped",
                "ground_truth": annotation.ground_truth,
                "lead_time": annotation.seconds,
                "result": [
                    _make_region(text, number, span)
                    | ({"origin": "manual"} if _is_made(span) else {"origin": "prediction", "source": span.source})
                    for number, span in enumerate(annotation.spans)
                ],
            }
            for annotation in task.annotations
            if annotation.status != "draft"
        ],
    }


def _is_made(span: Span) -> bool:
    return not span.source and span.score is None


def _make_region(text: str, number: int, span: Span) -> dict[str, Any]:
    value = {"start": span.start, "end": span.end, "text": text[span.start : span.end], "labels": [span.label]}
    region = {"id": str(number), "from_name": "label", "to_name": "text", "type": "labels", "value": value}
    return region if span.score is None else region | {"score": span.score}


def _read(path: Path, known: Mapping[str, Task], options: Options) -> Iterator[Entry]:
    for place, row in read_json_list(path):
        if "data" not in row:
            raise StepError(
                f"{place}: there is no data of a task in it.",
                "Export as JSON; JSON_MIN does not tell which tasks nobody has annotated.",
            )
        data = row["data"]
        text = text_of(data, place)
        task = Task(document=document_of(data.get("id"), text))
        findings = ["A draft was not submitted, and is left out."] if row.get("drafts") else []
        for prediction in _dicts(row.get("predictions")):  # an export has mere numbers instead
            marks, found = _read_result(prediction, str(prediction.get("model_version") or PREDICTED))
            spans, wrong = check_marks(text, marks)
            task.suggestions.extend(spans)
            findings += found + wrong
        suggested = task.suggestions + (known[task.document.id].suggestions if task.document.id in known else [])
        for row_of_one in _dicts(row.get("annotations")):
            marks, found = _read_result(row_of_one, None)
            seconds = row_of_one.get("lead_time")
            annotation, wrong = annotation_of(
                task,
                name_annotator(options, _find_annotator(row_of_one), place),
                "skipped" if row_of_one.get("was_cancelled") else "annotated",
                marks,
                seconds=seconds if isinstance(seconds, int | float) and seconds > 0 else 0,
                ground_truth=bool(row_of_one.get("ground_truth")),
            )
            task.annotations.append(_name_sources(annotation, suggested))
            findings += found + wrong
        yield Entry(place, task, findings)


def _dicts(rows: Any) -> list[dict[str, Any]]:
    return [row for row in rows or [] if isinstance(row, dict)]


def _read_result(row: dict[str, Any], source: str | None) -> tuple[list[Mark], list[str]]:
    """The spans of a prediction, which is of one source, or of an annotation, whose spans have an origin (None)."""
    marks, findings = [], []
    for region in _dicts(row.get("result")):
        value = region.get("value")
        if region.get("type") != "labels" or not isinstance(value, dict) or not isinstance(value.get("labels"), list):
            findings.append(f"What is no span with a label is left out: {region.get('type')}.")
            continue
        suggested_by, score = source, region.get("score")
        if source is None:
            # A span that an annotator changed is the annotator's, so that a score would say nothing of it.
            predicted = region.get("origin") == "prediction"
            suggested_by = str(region.get("source", PREDICTED)) if predicted else ""
            score = score if predicted else None
        for label in value["labels"]:
            marks.append(
                Mark(value.get("start"), value.get("end"), label, value.get("text"), score, suggested_by or "")
            )
    return marks, findings


def _find_annotator(row: dict[str, Any]) -> object:
    by = row.get("annotator") or row.get("completed_by")
    return by.get("email") or by.get("id") if isinstance(by, dict) else by


def _name_sources(annotation: Annotation, suggested: Iterable[Span]) -> Annotation:
    """Say who suggested the spans that were accepted: an export need not have more of that than a number."""
    places = {(span.start, span.end, span.label): span for span in suggested}
    spans = [
        places.get((span.start, span.end, span.label), span) if span.source == PREDICTED else span
        for span in annotation.spans
    ]
    return annotation.model_copy(update={"spans": spans})


FORMAT = Format(
    "label-studio",
    "tasks.json",
    frozenset(
        {
            "suggestions",
            "suggestions beside decisions",
            "scores",
            "sources",
            "skipped",
            "overlaps",
            "annotators",
            "seconds",
            "ground truth",
        }
    ),
    _write,
    _read,
)
