from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.annotations import Annotation, Change, Document, Named, Span, Task
from common.errors import StepError
from common.reviews import FINDINGS, LabelError, effective, is_settled, judge, read_label_errors

TEXT = "Mira Solberg left Turku."
PERSON, PLACE, FIRST_NAME = (0, 12, "PER"), (18, 23, "LOC"), (0, 4, "PER")
Key = tuple[int, int, str]


def named(key: Key | None) -> Named | None:
    return key and Named(start=key[0], end=key[1], label=key[2], text=TEXT[key[0] : key[1]])


def finding(kind: str, annotated: Key | None, predicted: Key | None, document: str = "d1") -> LabelError:
    fields = {"document": document, "kind": kind, "score": 0.9, "context": TEXT}
    return LabelError.model_validate(fields | {"annotated": named(annotated), "predicted": named(predicted)})


def task(*keys: Key, text: str = TEXT, status: str = "annotated") -> Task:
    spans = [Span(start=start, end=end, label=label) for start, end, label in keys]
    fields = {"document": "d1", "annotator": "ada", "status": status, "spans": spans}
    return Task(document=Document(id="d1", text=text), annotations=[Annotation.model_validate(fields)])


def change(one: LabelError, decision: str, after: list[Key], number: int = 1, **others: Any) -> Change:
    start, end = one.place
    fields = {"document": one.document, "person": "bo", "finding": one.id, "kind": one.kind, "start": start, "end": end}
    spans = {"before": [], "after": [named(key) for key in after]}
    return Change.model_validate(fields | spans | {"decision": decision, "number": number} | others)


TYPE = finding("type", PERSON, (0, 12, "ORG"))
BOUNDARY = finding("boundary", FIRST_NAME, PERSON)
MISSED = finding("missed", None, PLACE)
SPURIOUS = finding("spurious", PLACE, None)


@pytest.mark.parametrize(
    ("one", "keys"), [(TYPE, [PERSON]), (BOUNDARY, [FIRST_NAME]), (MISSED, [PERSON]), (SPURIOUS, [PERSON, PLACE])]
)
def test_a_finding_is_open_while_the_annotation_says_what_it_doubts(one: LabelError, keys: list[Key]) -> None:
    assert judge(one, task(*keys), []).state == "open"


@pytest.mark.parametrize(
    ("one", "there", "reason"),
    [
        (TYPE, None, "no such document"),
        (TYPE, task(PERSON, text="Mila Solberg left Turku."), "the text is another one"),
        (TYPE, task(PERSON, text=TEXT[:8]), "the text is another one"),
        (TYPE, task((0, 12, "ORG")), "the annotation has changed"),
        (BOUNDARY, task(PERSON), "the annotation has changed"),
        (MISSED, task(PLACE), "the annotation has changed"),
        (MISSED, task((20, 24, "ORG")), "the annotation has changed"),
        (SPURIOUS, task(), "the annotation has changed"),
        (SPURIOUS, task(PLACE, status="draft"), "no final annotation"),
    ],
)
def test_a_finding_that_no_longer_fits_is_outdated(one: LabelError, there: Task | None, reason: str) -> None:
    verdict = judge(one, there, [])
    assert verdict.state == "outdated" and reason in verdict.reason


def test_a_span_that_cuts_a_token_is_seen_as_audit_sees_it() -> None:
    assert judge(finding("type", PERSON, (0, 12, "ORG")), task((1, 11, "PER")), []).state == "open"


def test_what_was_decided_is_told_from_what_is_outdated() -> None:
    assert judge(TYPE, task((0, 12, "ORG")), [change(TYPE, "accepted", [(0, 12, "ORG")])]).state == "accepted"
    assert judge(TYPE, task(FIRST_NAME), [change(TYPE, "edited", [FIRST_NAME])]).state == "edited"
    assert judge(TYPE, task(PERSON), [change(TYPE, "kept", [PERSON])]).state == "kept"
    kept_and_changed = judge(TYPE, task(FIRST_NAME), [change(TYPE, "kept", [PERSON])])
    assert kept_and_changed.state == "outdated"


def test_what_is_kept_does_not_come_back_for_another_reason() -> None:
    kept = [change(TYPE, "kept", [PERSON])]
    assert is_settled(finding("boundary", PERSON, FIRST_NAME), kept)
    assert not is_settled(finding("spurious", (0, 12, "ORG"), None), kept), "another label was put there since"
    assert not is_settled(finding("type", PERSON, (0, 12, "ORG"), "d2"), kept)
    nothing = [change(MISSED, "kept", [])]
    assert is_settled(finding("missed", None, (18, 23, "ORG")), nothing)
    assert not is_settled(finding("missed", None, (13, 23, "ORG")), nothing), "more than what was looked at"
    assert is_settled(BOUNDARY, [change(BOUNDARY, "kept", [(1, 4, "PER")])]), "kept as it is, though it cuts a token"


def test_what_was_taken_back_does_not_hold() -> None:
    lines = [
        change(TYPE, "kept", [PERSON], 1),
        change(TYPE, "undone", [PERSON], 2, undoes=1),
        change(TYPE, "edited", [FIRST_NAME], 3),
    ]
    assert effective(lines) == lines[2:]


def write(folder: Path, record: Any) -> Path:
    (folder / FINDINGS).write_text(json.dumps(record), "utf8")
    return folder


def test_findings_are_read_once_each(tmp_path: Path) -> None:
    assert read_label_errors(tmp_path) == ("", [])
    both = [one.model_dump() for one in (TYPE, MISSED, TYPE)]
    assert read_label_errors(write(tmp_path, {"source": "x", "findings": both})) == ("x", [TYPE, MISSED])


@pytest.mark.parametrize(
    "record",
    [
        {"source": "x"},
        {"source": "x", "findings": [{"document": "d1"}]},
        {"source": "x", "findings": [MISSED.model_dump() | {"predicted": None}]},
        {"source": "x", "findings": [MISSED.model_dump() | {"score": "high"}]},
    ],
)
def test_a_damaged_file_of_findings_is_refused(record: Any, tmp_path: Path) -> None:
    with pytest.raises(StepError, match="not as audit writes it"):
        read_label_errors(write(tmp_path, record))
