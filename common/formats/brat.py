"""brat standoff: of each document a file .txt, which never changes, and a file .ann, beside an annotation.conf.

A line of .ann cannot hold a line break, so that brat has a span over several lines in fragments, as it has spans with
something between their parts. The notes of a span are its score, or else a comment. Nothing tells a document that has
no spans from one that nobody has looked at, nor a span that an annotator made from one that was suggested: documents
that nobody has decided get the suggestions as spans to start from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
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
    document_of,
    labels_of,
    name_annotator,
    utf16_offsets,
)
from common.formats.texts import check_approved, check_labels, id_of, path_of, read_text, spans_to_show

RESERVED = " ,:;|<>[]!#"  # in labels, which stand in annotation.conf too
FRAGMENT = re.compile(r"[^\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]+")  # what a line of .ann can hold
BOUND = re.compile(r"(T\S+)\t(\S+) (\d+ \d+(?:;\d+ \d+)*)\t(.*)")
NOTE = re.compile(r"#\S*\t\S+ (\S+)\t(.*)")
OTHER = re.compile(r"[REAMN*]\S*\t.+")  # relations, events, attributes, normalizations, equivalences
CONF = """[entities]
{labels}

[relations]
# Spans may overlap.
<OVERLAP> Arg1:<ENTITY>, Arg2:<ENTITY>, <OVL-TYPE>:<ANY>

[events]

[attributes]
"""


def _write(folder: Path, tasks: list[Task], options: Options) -> list[Finding]:
    labels = labels_of(tasks, options)
    check_labels(labels, "brat", RESERVED)
    (folder / "annotation.conf").write_text(CONF.format(labels="\n".join(labels)), "utf8")
    findings = []
    for task in tasks:
        document = task.document
        spans = spans_to_show(task)
        if spans is None:
            findings.append(Finding(document.id, "brat cannot tell that a document was skipped: it is left out."))
            continue
        lines = []
        for number, span in enumerate(spans, start=1):
            fragments = _split(document.text, span)
            if not fragments or (fragments[0][0], fragments[-1][1]) != (span.start, span.end):
                written = f"{fragments[0][0]}–{fragments[-1][1]} is written" if fragments else "it is left out"
                what = f"The span {span.label} {span.start}–{span.end} begins or ends with a line break or a tab"
                findings.append(Finding(document.id, f"{what}, which brat cannot hold: {written}."))
            if fragments:
                places = ";".join(f"{start} {end}" for start, end in fragments)
                lines.append(f"T{number}\t{span.label} {places}\t{_quote(document.text, fragments)}\n")
                if span.score is not None:
                    lines.append(f"#{number}\tAnnotatorNotes T{number}\t{span.score}\n")
        path_of(folder, document, ".txt").write_bytes(document.text.encode())
        path_of(folder, document, ".ann").write_bytes("".join(lines).encode())
    return findings


def _split(text: str, span: Span) -> list[tuple[int, int]]:
    """The parts of a span between line breaks and tabs, without those that are white space only."""
    parts = FRAGMENT.finditer(text[span.start : span.end])
    return [(span.start + part.start(), span.start + part.end()) for part in parts if not part[0].isspace()]


def _quote(text: str, fragments: list[tuple[int, int]]) -> str:
    return " ".join(text[start:end] for start, end in fragments)


def _read(folder: Path, known: Mapping[str, Task], options: Options) -> Iterator[Entry]:
    check_approved(folder, options)
    paths = sorted(folder.rglob("*.ann"))
    if not paths:
        raise StepError(f"{folder} has no .ann file.", "Name the folder of brat's collection.")
    for path in paths:
        name, beside = id_of(path), path.with_suffix(".txt")
        if not beside.exists() and name not in known:
            raise StepError(f"{path} has no {beside.name} beside it.", "Copy both files of each document.")
        text = read_text(beside) if beside.exists() else known[name].document.text
        yield _read_document(path, Task(document=document_of(name, text)), options)


def _read_document(path: Path, task: Task, options: Options) -> Entry:
    bounds: list[tuple[str, str, list[tuple[int, int]], str]] = []
    scores: dict[str, float] = {}
    comments, others = [], 0
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        line = line.removesuffix("\r")
        if found := BOUND.fullmatch(line):
            pairs = [pair.split() for pair in found[3].split(";")]
            bounds.append((found[1], found[2], [(int(start), int(end)) for start, end in pairs], found[4]))
        elif found := NOTE.fullmatch(line):
            if (score := _parse_score(found[2])) is None:
                comments.append(found[2])
            else:
                scores[found[1]] = score
        elif OTHER.fullmatch(line):
            others += 1
        elif line.strip():
            raise StepError(
                f"{path}, line {number}: this is no line of brat's: {line[:80]!r}.",
                "A span is written as T1, a tab, label, start and end with spaces between, a tab, and its text.",
            )
    text = task.document.text
    places = {unit: place for place, unit in enumerate(utf16_offsets(text))}
    marks, torn = [], []
    for name, label, written, quoted in bounds:
        converted = [(places.get(start, 0), places.get(end, 0)) for start, end in written]
        fragments = next((pairs for pairs in (written, converted) if _quote(text, pairs) == quoted), [])
        start, end = (fragments or written)[0][0], (fragments or written)[-1][1]
        if any(text[one[1] : other[0]].strip() for one, other in pairwise(fragments)):
            torn.append(
                f"The span {label} {start}–{end} ({quoted!r}) has something between its parts, which is taken as well."
            )
        marks.append(Mark(start, end, label, None if fragments else quoted, scores.get(name)))
    said: dict[str, Any] = {"comment": "\n".join([*comments, *torn])} if comments or torn else {}
    if torn:
        said["flagged"] = True
    annotator = name_annotator(options, "", str(path))
    annotation, found_too = annotation_of(task, annotator, "draft" if torn else "annotated", marks, **said)
    task.annotations.append(annotation)
    ignored = [f"{others} lines of relations, events, attributes or the like are left out."] * bool(others)
    return Entry(str(path), task, [*ignored, *torn, *found_too])


def _parse_score(note: str) -> float | None:
    try:
        score = float(note)
    except ValueError:
        return None
    return score if 0 <= score <= 1 else None


FORMAT = Format("brat", "", frozenset({"scores", "overlaps"}), _write, _read)
