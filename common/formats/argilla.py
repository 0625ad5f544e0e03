"""Argilla: records for `dataset.records.from_json`, settings for `Settings.from_json`, and what `to_json` gives back.

Argilla knows its users by UUIDs, so that the name of an annotator is found again only if the store has it. Its export
has the status of a record but not of a response: what was discarded looks like what nobody has seen. Its page counts
UTF-16 code units, and its server, which gets them, takes them for code points: users have to say which they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_DNS, UUID, uuid5

from common.annotations import Span, Task
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
    counts_utf16,
    document_of,
    labels_of,
    name_annotator,
    read_json_list,
    text_of,
    utf16_offsets,
    without_overlaps,
    write_json,
)

FIELD, QUESTION = "text", "spans"
MOST = 10_000  # spans of a response or suggestion


def _write(folder: Path, tasks: list[Task], options: Options) -> list[Finding]:
    findings: list[Finding] = []
    write_json(folder / FORMAT.file, [_make_row(task, options, findings) for task in tasks])
    annotations = [annotation for task in tasks for annotation in task.annotations]
    together = [task.suggestions for task in tasks] + [annotation.spans for annotation in annotations]
    question = {
        "type": "span",
        "field": FIELD,
        "options": [{"value": label, "text": label} for label in labels_of(tasks, options)],
        "allow_overlapping": any(len(without_overlaps(spans)) < len(spans) for spans in together),
    }
    settings = {
        "fields": [{"name": FIELD, "title": FIELD, "required": True, "settings": {"type": "text"}}],
        "questions": [{"name": QUESTION, "title": QUESTION, "required": True, "settings": question}],
    }
    write_json(folder / "settings.json", settings)
    return findings


def _make_row(task: Task, options: Options, findings: list[Finding]) -> dict[str, Any]:
    name, text = task.document.id, task.document.text
    units = utf16_offsets(text) if counts_utf16(FORMAT.name, text, name, options) else range(len(text) + 1)
    decided = [annotation for annotation in task.annotations if annotation.status == "annotated"]
    if any(len(spans) > MOST for spans in (task.suggestions, *(annotation.spans for annotation in decided))):
        findings.append(Finding(name, f"argilla refuses more than {MOST:,} spans."))
    if any(span.source or span.score is not None for annotation in decided for span in annotation.spans):
        findings.append(
            Finding(name, "argilla cannot hold who suggested a span of an annotation, and with what score.")
        )
    suggestions = {}
    if task.suggestions:
        sources = list(by_source(task.suggestions))
        scores = [span.score for span in task.suggestions]
        if len(sources) > 1:
            findings.append(Finding(name, f"argilla holds suggestions as of one, {', '.join(sources)}."))
        if None in scores and set(scores) != {None}:
            findings.append(Finding(name, "argilla holds scores of all suggestions or of none: here of none."))
        suggestions[QUESTION] = {
            "value": _make_value(task.suggestions, units),
            "score": None if None in scores else scores,
            "agent": ", ".join(sources),
        }
    responses = [
        {"value": _make_value(annotation.spans, units), "user_id": str(_user_of(annotation.annotator))}
        for annotation in decided
    ]
    return {
        "id": name,
        "fields": {FIELD: text},
        "metadata": {},
        "suggestions": suggestions,
        "responses": {QUESTION: responses} if responses else {},
        "vectors": {},
        "status": "completed" if decided else "pending",
    }


def _make_value(spans: list[Span], units: Sequence[int]) -> list[dict[str, Any]]:
    return [{"start": units[span.start], "end": units[span.end], "label": span.label} for span in spans]


def _user_of(annotator: str) -> UUID:
    """The UUID that an annotator has or gets."""
    try:
        return UUID(annotator)
    except ValueError:
        return uuid5(NAMESPACE_DNS, annotator)


def _read(path: Path, known: Mapping[str, Task], options: Options) -> Iterator[Entry]:
    names = {
        str(_user_of(annotation.annotator)): annotation.annotator
        for task in known.values()
        for annotation in task.annotations
    }
    for place, row in read_json_list(path):
        text = text_of(row.get("fields"), place, FIELD)
        task = Task(document=document_of(row.get("id"), text))
        utf16 = counts_utf16(FORMAT.name, text, place, options)
        findings: list[str] = []
        suggestion = _answer_of(row.get("suggestions"), place)
        if suggestion:
            spans = _spans_of(suggestion, place)
            scores = suggestion.get("score")
            scores = scores if isinstance(scores, list) and len(scores) == len(spans) else [None] * len(spans)
            source = str(suggestion.get("agent") or FORMAT.name)
            marks = _marks(spans, utf16)
            marks = [mark._replace(score=score, source=source) for mark, score in zip(marks, scores, strict=True)]
            task.suggestions, findings = check_marks(text, marks)
        for response in _answer_of(row.get("responses"), place) or []:
            user = response.get("user_id")
            done = row.get("status") == "completed"
            annotation, wrong = annotation_of(
                task,
                name_annotator(options, names.get(str(user), user), place),
                "annotated" if done else "draft",
                _marks(_spans_of(response, place), utf16),
            )
            task.annotations.append(annotation)
            if not done:
                findings.append("The record is not completed, so that its response is taken for a draft.")
            findings += wrong
        yield Entry(place, task, findings)


def _answer_of(answers: Any, place: str) -> Any:
    """What stands under the question about spans: that of our settings, else the only one."""
    if not answers:
        return None
    if isinstance(answers, dict) and (QUESTION in answers or len(answers) == 1):
        return answers[QUESTION if QUESTION in answers else next(iter(answers))]
    raise StepError(
        f"{place}: it is not clear which question is about spans.",
        f"Name that question {QUESTION!r}, and export again.",
    )


def _spans_of(answer: Any, place: str) -> list[dict[str, Any]]:
    spans = answer.get("value") if isinstance(answer, dict) else None
    if not isinstance(spans, list) or not all(isinstance(span, dict) for span in spans):
        raise StepError(f"{place}: an answer is no list of spans.", "Export the records again, by records.to_json.")
    return spans


def _marks(spans: list[dict[str, Any]], utf16: bool) -> list[Mark]:
    return [Mark(span.get("start"), span.get("end"), span.get("label"), utf16=utf16) for span in spans]


FORMAT = Format(
    "argilla",
    "records.json",
    frozenset({"suggestions", "suggestions beside decisions", "scores", "sources", "overlaps", "annotators"}),
    _write,
    _read,
)
