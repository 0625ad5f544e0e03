"""Documents that people annotate: what is suggested, what each annotator says, and what is decided about errors."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Span(BaseModel):
    """A stretch of a text with a label.

    start, end (int): The first character and the one after the last, as Python counts them (code points).
    label (str): What it is, such as PER.
    score (float | None): The probability that it is right, where a pipeline gave one.
    source (str): Who suggested it: the name and version of a pipeline, or the name of a list of terms; empty for a
        span that an annotator made.
    """

    model_config = ConfigDict(frozen=True)

    start: int = Field(ge=0)
    end: int
    label: str = Field(min_length=1)
    score: float | None = Field(default=None, ge=0, le=1)
    source: str = ""

    @model_validator(mode="after")
    def _check_end(self) -> Span:
        if self.end <= self.start:
            raise ValueError(f"the end, {self.end}, is not after the start, {self.start}")
        return self


class Named(Span):
    """A span with its words.

    text (str): The words.
    """

    text: str


class Document(BaseModel):
    """A text to annotate.

    id (str): Names it for good, also in other tools.
    text (str): The text, which never changes.
    split (str | None): train, dev or test, or None while it has none.
    meta (dict[str, Any]): What else came with it: its file, its row, other columns.
    rank (float | None): Its place in the order of work, the smallest first; None if nothing has chosen it yet.
    reason (str): Why it has that place.
    """

    id: str = Field(min_length=1)
    text: str
    split: Literal["train", "dev", "test"] | None = None
    meta: dict[str, Any] = {}
    rank: float | None = None
    reason: str = ""


class Annotation(BaseModel):
    """What an annotator says of a document.

    document (str): The id of the document.
    annotator (str): Who it was.
    status: "draft" while the annotator works on it; "annotated" if the spans are all that there are, none included;
        "skipped" if the annotator did not want to decide.
    spans (list[Span]): The spans. One that was suggested and accepted keeps its score and its source.
    rejected (list[Span]): The suggestions that the annotator said no to.
    flagged (bool): Whether somebody should look at it again.
    comment (str): Why.
    actions (int): How many keys and clicks it took so far.
    seconds (float): How long it took so far.
    ground_truth (bool): Whether somebody has declared it to be the right one.
    revision (int): How often it was saved; 0 for a new one.
    """

    document: str
    annotator: str = Field(min_length=1)
    status: Literal["draft", "annotated", "skipped"]
    spans: list[Span] = []
    rejected: list[Span] = []
    flagged: bool = False
    comment: str = ""
    actions: int = Field(default=0, ge=0)
    seconds: float = Field(default=0, ge=0)
    ground_truth: bool = False
    revision: int = 0


class Task(BaseModel):
    """A document with all that is known about it: what tools of annotation show and give back."""

    document: Document
    suggestions: list[Span] = []
    annotations: list[Annotation] = []


Ruling = Literal["accepted", "kept", "edited", "undone"]


class Change(BaseModel):
    """What a person decided about a label that is probably wrong: a line of the log.

    document (str): The id of the document.
    person (str): Who it was.
    finding (str): The id of the finding, as `LabelError` gives it.
    kind (str): What the finding says is wrong.
    decision: "accepted" if the proposal was taken, "kept" if the label stays as it is, "edited" if something was
        changed by hand, "undone" if an earlier line was taken back.
    start, end (int): The place in the text.
    before, after (list[Named]): The spans there.
    undoes (int | None): The number of the line that was taken back.
    number (int): Its place in the log, which the store gives.
    time (str): When it was decided, in UTC, which the store gives.
    """

    document: str
    person: str = Field(min_length=1)
    finding: str
    kind: str
    decision: Ruling
    start: int
    end: int
    before: list[Named]
    after: list[Named]
    undoes: int | None = None
    number: int = 0
    time: str = ""


def checksum_of(text: str) -> str:
    """The SHA-256 of a text in UTF-8, as hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()
