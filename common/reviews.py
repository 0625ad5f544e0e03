"""Labels that are probably wrong, as people go through them: what still fits, and what has been decided."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, Field

from common.agreement import decide, keys
from common.alignment import align, create_reader
from common.annotations import Annotation, Change, Named, Span, Task
from common.errors import StepError
from common.records import read_json

FINDINGS = "label-errors.json"  # in the folder annotate/<run>


class LabelError(BaseModel):
    """A finding of `audit`: a place where the final annotation of a document is probably wrong.

    document (str): The id of the document.
    kind: What is wrong: "type", the label; "boundary", the span, and perhaps the label; "missed", something is not
        marked; "spurious", something is marked that is none.
    score (float): How improbable the annotation is.
    annotated (Named | None): What is annotated.
    predicted (Named | None): What the pipelines say.
    context (str): Some words around it.
    """

    document: str
    kind: Literal["type", "boundary", "missed", "spurious"]
    score: float = Field(ge=0, le=1)
    annotated: Named | None
    predicted: Named | None
    context: str

    @property
    def id(self) -> str:
        """What is the same in another audit."""
        sides = [side and [side.start, side.end, side.label] for side in (self.annotated, self.predicted)]
        return json.dumps([self.document, *sides], ensure_ascii=False)

    @property
    def place(self) -> tuple[int, int]:
        """The stretch of the text that it is about."""
        sides = [side for side in (self.annotated, self.predicted) if side]
        return min(side.start for side in sides), max(side.end for side in sides)


class Verdict(NamedTuple):
    """How it stands with a finding.

    state: "open" if it waits for a decision; "accepted", "edited" or "kept" if somebody has decided it; "outdated" if
        it does not fit any more.
    reason (str): Why it does not fit.
    """

    state: Literal["open", "accepted", "edited", "kept", "outdated"]
    reason: str = ""


def read_label_errors(folder: Path) -> tuple[str, list[LabelError]]:
    """Read what `audit` has found.

    folder (Path): The folder annotate/<run>.
    RETURNS (tuple[str, list[LabelError]]): The file that it has judged, and the findings, the most probable errors
        first, each once; nothing if there was no audit.
    RAISES (StepError): If the file is damaged.
    """
    path = folder / FINDINGS
    if not path.exists():
        return "", []
    record = read_json(path)
    try:
        findings = [LabelError.model_validate(finding) for finding in record["findings"]]
        if any(not (finding.annotated or finding.predicted) for finding in findings):
            raise ValueError("a finding says nothing")
        return str(record["source"]), list({finding.id: finding for finding in findings}.values())
    except (KeyError, TypeError, ValueError) as error:
        raise StepError(f"{path} is not as audit writes it.", f"Run it again: make audit RUN={folder.name}") from error


def effective(changes: Iterable[Change]) -> list[Change]:
    """The lines of the log that hold: all but those that were taken back."""
    changes = list(changes)
    undone = {change.undoes for change in changes}
    return [change for change in changes if change.decision != "undone" and change.number not in undone]


def is_settled(finding: LabelError, changes: Iterable[Change]) -> bool:
    """Tell whether somebody has already decided that the annotation is right where a finding doubts it.

    It need not have been this finding: another audit doubts the same label for another reason.

    finding (LabelError): The finding, which fits to the annotation.
    changes (Iterable[Change]): The lines of the log that hold.
    RETURNS (bool): Whether one of them has kept it, or has left there what is annotated now.
    """
    for change in changes:
        if change.document != finding.document:
            continue
        if change.decision == "kept" and change.finding == finding.id:
            return True
        if finding.annotated and _key(finding.annotated) in map(_key, change.after):
            return True
        if not finding.annotated and finding.predicted:
            start, end = finding.predicted.start, finding.predicted.end
            inside = change.start <= start and end <= change.end
            if inside and not any(span.start < end and start < span.end for span in change.after):
                return True
    return False


def judge(finding: LabelError, task: Task | None, changes: Sequence[Change]) -> Verdict:
    """Find how it stands with a finding.

    finding (LabelError): The finding.
    task (Task | None): Its document, None if the store has no such one.
    changes (Sequence[Change]): The lines of the log that hold.
    RETURNS (Verdict): What it is.
    """
    if task is None:
        return Verdict("outdated", "this run has no such document")
    text = task.document.text
    if any(side and text[side.start : side.end] != side.text for side in (finding.annotated, finding.predicted)):
        return Verdict("outdated", "the text is another one")
    annotation = decide(task).annotation
    if annotation and _fits(finding, text, annotation):
        return Verdict("kept" if is_settled(finding, changes) else "open")
    mine = [change for change in changes if change.finding == finding.id]
    if mine and mine[-1].decision != "kept":
        return Verdict(mine[-1].decision)  # type: ignore[arg-type]  # none that holds is "undone"
    reason = "the annotation has changed since" if annotation else "the document has no final annotation now"
    return Verdict("outdated", reason)


def _fits(finding: LabelError, text: str, annotation: Annotation) -> bool:
    """Tell whether an annotation says what it said when a finding was made."""
    if finding.annotated is None:
        start, end = finding.place
        return not any(span.start < end and start < span.end for span in annotation.spans)
    key = _key(finding.annotated)
    if key in keys(annotation):
        return True
    doc = align(_reader(), text, annotation.spans).doc  # audit sees spans that cut a token so
    return key in {(ent.start_char, ent.end_char, ent.label_) for ent in doc.ents}


def _key(span: Span) -> tuple[int, int, str]:
    return span.start, span.end, span.label


_reader = cache(create_reader)
