"""Prodigy: JSONL for its recipe ner.manual, and what `db-out` gives back.

A row without an answer has suggestions. Prodigy makes its own hashes. Answers about single spans, of ner.teach and its
like, are no whole annotation, as a span that is not there means nothing: they are counted and left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import tqdm
from spacy.tokens import Doc

from common.annotations import Span, Task
from common.formats import (
    Entry,
    Finding,
    Format,
    Mark,
    Options,
    annotation_of,
    check_marks,
    document_of,
    lowest_score,
    make_tokenizer,
    name_annotator,
    read_jsonl,
    text_of,
    write_jsonl,
)

SUGGESTED = "prodigy"  # the source of a suggestion that names none
WHOLE = ("ner_manual", "spans_manual", "blocks")  # views in which all spans are marked
ANSWERS: dict[str, Literal["annotated", "skipped"]] = {"accept": "annotated", "ignore": "skipped"}


def _write(folder: Path, tasks: list[Task], options: Options) -> list[Finding]:
    tokenizer = make_tokenizer()
    rows = []
    for task in tqdm.tqdm(tasks, "finding tokens", unit="doc", disable=None):
        doc = tokenizer(task.document.text)
        meta: dict[str, Any] = {"id": task.document.id}
        decided = [annotation for annotation in task.annotations if annotation.status != "draft"]
        if not decided:
            score = lowest_score(task.suggestions)
            rows.append(_make_row(doc, task.suggestions, meta if score is None else meta | {"score": score}))
        for annotation in decided:
            answer = "accept" if annotation.status == "annotated" else "ignore"
            more = {"answer": answer, "_view_id": "ner_manual", "_annotator_id": annotation.annotator}
            rows.append(_make_row(doc, annotation.spans, meta) | more)
    write_jsonl(folder / FORMAT.file, rows)
    return []


def _make_row(doc: Doc, spans: Iterable[Span], meta: dict[str, Any]) -> dict[str, Any]:
    tokens = [
        {
            "text": token.text,
            "start": token.idx,
            "end": token.idx + len(token),
            "id": token.i,
            "ws": bool(token.whitespace_),
        }
        for token in doc
    ]
    starts = {token["start"]: token["id"] for token in tokens}
    ends = {token["end"]: token["id"] for token in tokens}
    rows = []
    for span in spans:
        row = span.model_dump(include={"start", "end", "label"})
        if span.start in starts and span.end in ends:  # else Prodigy shows which tokens do not fit
            row |= {"token_start": starts[span.start], "token_end": ends[span.end]}  # the last token of the span
        if span.score is not None:
            row["score"] = span.score
        if span.source:
            row["source"] = span.source
        rows.append(row)
    return {"text": doc.text, "meta": meta, "tokens": tokens, "spans": rows}


def _read(path: Path, known: Mapping[str, Task], options: Options) -> Iterator[Entry]:
    single: dict[str, tuple[str, Task, int]] = {}
    for place, row in read_jsonl(path):
        text = text_of(row, place)
        meta = row.get("meta")
        task = Task(document=document_of(meta.get("id") if isinstance(meta, dict) else None, text))
        name = task.document.id
        answer = row.get("answer")
        spans = [span for span in row.get("spans") or [] if isinstance(span, dict)]
        if answer is None:
            task.suggestions, findings = check_marks(text, [_make_mark(span, SUGGESTED) for span in spans])
        elif row.get("_view_id", WHOLE[0]) not in WHOLE:
            first, _, number = single.get(name, (place, task, 0))
            single[name] = (first, task, number + 1)
            continue
        elif answer in ANSWERS:
            annotator = name_annotator(options, row.get("_annotator_id") or row.get("_session_id"), place)
            marks = [_make_mark(span, "") for span in spans]
            annotation, findings = annotation_of(task, annotator, ANSWERS[answer], marks)
            task.annotations.append(annotation)
        else:
            findings = [f"The answer {answer!r} says nothing of what is right, and is left out."]
        yield Entry(place, task, findings)
    for place, task, number in single.values():
        finding = f"{number} answers about single spans are no whole annotation, and are left out."
        yield Entry(place, task, [finding])


def _make_mark(span: dict[str, Any], source: str) -> Mark:
    return Mark(
        span.get("start"),
        span.get("end"),
        span.get("label"),
        span.get("text"),
        span.get("score"),
        str(span.get("source") or source),
    )


FORMAT = Format(
    "prodigy",
    "tasks.jsonl",
    frozenset({"suggestions", "scores", "sources", "skipped", "overlaps", "annotators"}),
    _write,
    _read,
)
