"""What a file format of annotations is. Each stands in a file of this folder; `known.py` has them by name.

Everywhere offsets are of code points, as Python counts characters. `Task.annotations` are decisions (or drafts),
`Task.suggestions` are suggestions: no format takes one for the other. A document without an annotation is unannotated,
one whose annotation has no spans is empty, and one may be skipped: these are three things.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from common.annotations import Annotation, Document, Span, Task, checksum_of
from common.errors import StepError

if TYPE_CHECKING:
    from spacy.tokens import Doc

# What a format may hold beside texts, ids, and the spans of one annotation that somebody has finished.
Aspect = Literal[
    "suggestions",  # of documents without a decision, told from decisions
    "suggestions beside decisions",
    "scores",
    "sources",
    "skipped",
    "overlaps",  # spans that share characters, in one annotation
    "annotators",  # several annotations of one document, with the names of those who made them
    "drafts",
    "flags",  # flagged and comment
    "seconds",
    "actions",
    "ground truth",
]
ALL: frozenset[Aspect] = frozenset(get_args(Aspect))


class Finding(NamedTuple):
    """Something that a user has to know of a document.

    document (str): Its id.
    message (str): What it is, as a sentence with the offsets concerned.
    """

    document: str
    message: str


@dataclass(frozen=True)
class Options:
    """What a user may say of a file. Each format takes what concerns it.

    annotator (str): When reading: who annotated, whatever the file says of it.
    labels (tuple[str, ...]): When writing: labels to choose from beside those that occur.
    offsets: What the file counts, where the format does not tell; empty if the user has not said.
    scheme: Of tags in columns, when writing.
    approved (bool): When reading: that the file has only documents that somebody has finished.
    """

    annotator: str = ""
    labels: tuple[str, ...] = ()
    offsets: Literal["", "code-points", "utf-16"] = ""
    scheme: Literal["IOB1", "IOB2", "BIOES", "BILUO"] = "IOB2"
    approved: bool = False


class Entry(NamedTuple):
    """A document as a file has it.

    place (str): Where it stands, for messages: `tasks.jsonl, line 3`.
    task (Task): The document with its id and text, suggestions, which name their source, and annotations. A document
        of which the file has no id gets `checksum_of` its text.
    findings (list[str]): What the reader found about it.
    """

    place: str
    task: Task
    findings: list[str] = []  # noqa: RUF012 (never changed: a reader that finds something gives a list of its own)


@dataclass(frozen=True)
class Format:
    """A file format of annotations.

    name (str): What users call it, such as label-studio.
    file (str): The name of the file that `write` makes and `read` takes; empty if that is the whole folder.
    holds (frozenset[Aspect]): What it holds. `find_losses` tells users about the rest, so `write` need not.
    write: Writes tasks into an empty folder, with these options. It returns what is peculiar to a text or a span and
        cannot be held. Overlaps that are not held go by `without_overlaps`, and of several annotations that are not
        held `decision_of` chooses.
    read: Reads a file, or the folder if the format is one, given the tasks of the store by id and the options. The
        tasks of the store decide where the file has no text. It raises a StepError, with file and line, only if the
        file is unreadable. All else is a finding.
    """

    name: str
    file: str
    holds: frozenset[Aspect]
    write: Callable[[Path, list[Task], Options], list[Finding]]
    read: Callable[[Path, Mapping[str, Task], Options], Iterator[Entry]]


# For writers


def decision_of(task: Task) -> Annotation | None:
    """What formats with one annotation of a document write, or None if nobody has finished it.

    As in a corpus, the word of ADJUDICATED comes first, and those who skipped the document do not count beside others.
    """
    from common.agreement import ADJUDICATED  # which loads what readers do not need

    decided = (annotation for annotation in task.annotations if annotation.status != "draft")
    return min(decided, key=lambda one: (one.annotator != ADJUDICATED, one.status == "skipped"), default=None)


def without_overlaps(spans: Iterable[Span]) -> list[Span]:
    """Spans of which no two share a character: of those that do, the longest stays, else the first. In their order."""
    kept: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.start - span.end, span.start)):
        if all(span.end <= other.start or other.end <= span.start for other in kept):
            kept.append(span)
    return sorted(kept, key=lambda span: span.start)


def lowest_score(spans: Iterable[Span]) -> float | None:
    """The score of the span that is the least sure, by which tools sort; None if no span has one."""
    return min((span.score for span in spans if span.score is not None), default=None)


def by_source(spans: Iterable[Span]) -> dict[str, list[Span]]:
    """Spans by who suggested them, in their order."""
    found: dict[str, list[Span]] = {}
    for span in spans:
        found.setdefault(span.source, []).append(span)
    return found


def labels_of(tasks: Iterable[Task], options: Options) -> list[str]:
    """All labels: those that the user named in their order, then those that occur beside them, sorted."""
    found = {
        span.label
        for task in tasks
        for span in (*task.suggestions, *(span for annotation in task.annotations for span in annotation.spans))
    }
    return [*dict.fromkeys(options.labels), *sorted(found - set(options.labels))]


def find_losses(format: Format, tasks: Iterable[Task]) -> Iterator[Finding]:
    """What a format cannot hold of tasks.

    format (Format): The format.
    tasks (Iterable[Task]): The tasks.
    YIELDS (Finding): For each document and aspect that would be lost.
    """
    for task in tasks:
        lost: dict[Aspect, str] = {}
        decided = [annotation for annotation in task.annotations if annotation.status != "draft"]
        first = decision_of(task)
        spans = [*task.suggestions, *(span for annotation in task.annotations for span in annotation.spans)]
        if task.suggestions:
            lost["suggestions beside decisions" if decided else "suggestions"] = "suggestions"
        if any(span.score is not None for span in spans):
            lost["scores"] = "scores"
        if any(span.source for span in spans):
            lost["sources"] = "who suggested a span"
        if any(annotation.status == "skipped" for annotation in decided):
            lost["skipped"] = "that it was skipped"
        if any(len(without_overlaps(annotation.spans)) < len(annotation.spans) for annotation in decided):
            lost["overlaps"] = "spans that overlap; the longest are kept"
        if first and len(decided) > 1:
            lost["annotators"] = f"annotations by several; that of {first.annotator} is kept"
        if len(decided) < len(task.annotations):
            lost["drafts"] = "drafts"
        if any(annotation.flagged or annotation.comment for annotation in task.annotations):
            lost["flags"] = "flags and comments"
        if any(annotation.ground_truth for annotation in decided):
            lost["ground truth"] = "that it is the ground truth"
        if any(annotation.seconds for annotation in task.annotations):
            lost["seconds"] = "how long it took"
        if any(annotation.actions for annotation in task.annotations):
            lost["actions"] = "how many actions it took"
        for aspect, what in lost.items():
            if aspect not in format.holds:
                yield Finding(task.document.id, f"{format.name} cannot hold {what}.")


def write_json(path: Path, data: Any) -> None:
    """Write JSON with all digits of a float, of which srsly keeps ten."""
    path.write_text(json.dumps(data, indent=2) + "\n", "ascii")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON objects, one on each line. All is ASCII, so that a character such as U+2028 ends no line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "ascii")


# For readers


class Mark(NamedTuple):
    """A span as a file has it, which nobody has checked yet.

    start, end (Any): The offsets, of code points or of what the text of the span shows them to be.
    label (Any): The label.
    text (Any): What the span covers, by the file; None if the file does not have it.
    score (Any): The probability of a suggestion, or None.
    source (str): Who suggested it; empty if an annotator made it.
    utf16 (bool): Whether the offsets count UTF-16 code units for sure.
    """

    start: Any
    end: Any
    label: Any
    text: Any = None
    score: Any = None
    source: str = ""
    utf16: bool = False


def utf16_offsets(text: str) -> list[int]:
    """For each offset of a text in code points, its end included, the same place in UTF-16 code units.

    JavaScript and Java count these: a character beyond U+FFFF, such as an emoji, is two.
    """
    return [0, *accumulate(1 + (character > "\uffff") for character in text)]


def counts_utf16(tool: str, text: str, place: str, options: Options) -> bool:
    """Whether the offsets of a tool, which does not tell what they count, count UTF-16 code units.

    tool (str): How messages call the tool.
    text (str): The text of the document.
    place (str): Where, for the message.
    options (Options): What the user has said.
    RAISES (StepError): If that makes a difference in this text, and the user has not said it.
    """
    if not options.offsets and any(character > "\uffff" for character in text):
        raise StepError(
            f"{place}: the text has characters beyond U+FFFF, such as emoji, where {tool}'s offsets are ambiguous.",
            f"Say what they count: --vars.offsets utf-16 for {tool}'s page, code-points for its HTTP interface.",
        )
    return options.offsets == "utf-16"


def check_marks(text: str, marks: Iterable[Mark]) -> tuple[list[Span], list[str]]:
    """Make spans of what a file has. The text of a span decides where an offset is ambiguous.

    text (str): The text of the document.
    marks (Iterable[Mark]): The spans of the file.
    RETURNS (tuple[list[Span], list[str]]): Those that are spans of this text, and a finding for each other one.
    """
    spans, findings = [], []
    places = {unit: place for place, unit in enumerate(utf16_offsets(text))}
    for mark in marks:
        try:
            spans.append(_check_mark(text, places, mark))
        except ValueError as error:
            findings.append(str(error))
    return spans, findings


def _check_mark(text: str, places: dict[int, int], mark: Mark) -> Span:
    """places (dict[int, int]): The offset of code points for each one of UTF-16."""
    start, end, label, score = mark.start, mark.end, mark.label, mark.score
    described = f"{label} {start}–{end}" + (f" ({mark.text!r})" if mark.text is not None else "")
    if type(start) is not int or type(end) is not int or not 0 <= start < end:
        raise ValueError(f"The span {described} has no start before its end.")
    if not isinstance(label, str) or not label:
        raise ValueError(f"The span {described} has no label.")
    if score is not None and (isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1):
        raise ValueError(f"The score of the span {described} is {score!r}, which is no probability.")
    if mark.utf16 or (mark.text is not None and not _stands_at(text, start, end, mark.text)):
        if start in places and end in places:
            start, end = places[start], places[end]
        elif mark.utf16:
            raise ValueError(f"The span {described} is outside the text, or begins or ends inside a character.")
    if end > len(text):
        raise ValueError(f"The span {described} ends after the text, which has {len(text)} characters.")
    if mark.text is not None and not _stands_at(text, start, end, mark.text):
        raise ValueError(f"The span {described} is not what stands there: {text[mark.start : mark.end]!r}.")
    return Span(start=start, end=end, label=label, score=score, source=mark.source)


def _stands_at(text: str, start: int, end: int, quoted: str) -> bool:
    return end <= len(text) and text[start:end] == quoted


def annotation_of(
    task: Task,
    annotator: str,
    status: Literal["draft", "annotated", "skipped"],
    marks: Iterable[Mark],
    **fields: Any,
) -> tuple[Annotation, list[str]]:
    """Make an annotation of what a file has.

    If one of its spans is none of this text, the others are not all that there are: then it is a draft, flagged for
    somebody to look at, and its comment has the findings.

    task (Task): Its document counts.
    annotator (str): Who annotated, from `name_annotator`.
    status: What the file says.
    marks (Iterable[Mark]): Its spans.
    **fields (Any): More of an Annotation.
    RETURNS (tuple[Annotation, list[str]]): The annotation and what was found.
    """
    spans, findings = check_marks(task.document.text, marks)
    annotation = Annotation(document=task.document.id, annotator=annotator, status=status, spans=spans, **fields)
    if findings:
        comment = "\n".join(filter(None, [annotation.comment, *findings]))
        annotation = annotation.model_copy(update={"status": "draft", "flagged": True, "comment": comment})
    return annotation, findings


def document_of(name: object, text: str) -> Document:
    """A document of a file: by the id that the file has of it, or by `checksum_of` its text if the file has none."""
    named = isinstance(name, str | int) and not isinstance(name, bool) and name != ""
    return Document(id=str(name) if named else checksum_of(text), text=text)


def name_annotator(options: Options, found: object, place: str) -> str:
    """Who annotated: whom the user named, else whom the file names.

    found (object): What the file says; empty or None if it says nothing.
    place (str): Where, for the message.
    RAISES (StepError): If neither says anything.
    """
    name = options.annotator or ("" if found is None else str(found))
    if not name:
        raise StepError(f"{place} does not say who annotated.", "Name the annotator: --vars.annotated_by ada")
    return name


@cache
def make_tokenizer() -> Callable[[str], Doc]:
    """The tokenizer of the project, which decides where tokens begin and end."""
    from common.alignment import create_tokenizer

    return create_tokenizer().make_doc


def read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read JSON objects, one on each line that is not empty.

    path (Path): The file, in UTF-8.
    YIELDS (tuple[str, dict[str, Any]]): The place of an object, for messages, and the object.
    RAISES (StepError): If a line is something else.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path}, line {number}"
            try:
                row = json.loads(line.decode("utf-8-sig")) if line.strip() else None
            except ValueError as error:  # of UTF-8 too
                raise StepError(f"{place}: this is not JSON ({error}).", "Mend the line, or export again.") from error
            if row is None and not line.strip():
                continue
            if not isinstance(row, dict):
                raise StepError(f"{place}: this is no object of JSON.", "Mend the line, or export again.")
            yield place, row


def read_json_list(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read a list of JSON objects.

    path (Path): The file, in UTF-8.
    YIELDS (tuple[str, dict[str, Any]]): The place of an object, for messages, and the object.
    RAISES (StepError): If the file is something else.
    """
    content = path.read_bytes()
    try:
        rows = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise StepError(f"{path}, line {line}: this is not UTF-8.", "Save the file in UTF-8.") from error
    except ValueError as error:
        raise StepError(f"{path} is not JSON: {error}.", "Mend this place, or export again.") from error
    if not isinstance(rows, list):
        raise StepError(f"{path} is no list of JSON.", "Export again, as JSON.")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise StepError(f"{path}, entry {number}: this is no object of JSON.", "Mend it, or export again.")
        yield f"{path}, entry {number}", row


def text_of(row: Any, place: str, key: str = "text") -> str:
    """The text of a row.

    RAISES (StepError): If there is none, or if half a character is in it, which no file can hold.
    """
    text = row.get(key) if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise StepError(f"{place}: there is no text in it.", f'A row has its text as a string by the name of "{key}".')
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise StepError(f"{place}: the text has half a character in it, a lone surrogate.", "Mend the text there.")
    return text
