"""Conflicts and probable label errors, decided a key at a time: without the page."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from app.marking import Action, Desk
from app.reviewing import ConflictDesk, FindingDesk, list_conflicts
from common.agreement import ADJUDICATED, decide
from common.annotations import Annotation, Document, Named, Span
from common.reviews import LabelError
from common.store import Store

TEXT = "Mira Solberg left Turku with Norrvik."
PERSON, PLACE, COMPANY = (0, 12, "PER"), (18, 23, "LOC"), (29, 36, "ORG")
FIRST_NAME, LAST_NAME = (0, 4, "PER"), (5, 12, "PER")
Key = tuple[int, int, str]


def say(store: Store, document: str, annotator: str, *keys: Key, status: str = "annotated") -> None:
    saved = next((one for one in store.tasks([document])[0].annotations if one.annotator == annotator), None)
    spans = [Span(start=start, end=end, label=label, score=0.8, source="demo") for start, end, label in keys]
    fields = {"document": document, "annotator": annotator, "status": status, "spans": spans}
    store.save(Annotation.model_validate(fields | {"revision": saved.revision if saved else 0}))


numbers = itertools.count()


def press(desk: Desk, kind: str, start: int = 0, end: int = 0, label: str = "", **others: Any) -> Action:
    """Do something with what the desk shows."""
    shown = desk.view([], 0, desk.document.text)
    seen = {name: shown[name] for name in ("document", "finding", "revision")}
    stretch = {"start": start, "end": end, "label": label}
    action = Action.model_validate({"id": str(next(numbers)), "kind": kind, **seen, **stretch, **others})
    desk.act(action)
    return action


def keys_of(spans: list[Span]) -> list[Key]:
    return [(span.start, span.end, span.label) for span in spans]


def final(store: Store, document: str) -> list[Key] | None:
    annotation = decide(store.tasks([document])[0]).annotation
    return None if annotation is None else keys_of(annotation.spans)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three documents: on d1 and d3 ada, bo and cy do not agree, on d2 they do."""
    store = Store(tmp_path / "annotations.db")
    store.add_documents([Document(id=name, text=TEXT) for name in ("d1", "d2", "d3")])
    for document in ("d1", "d3"):
        say(store, document, "ada", PERSON, PLACE, COMPANY)
        say(store, document, "bo", FIRST_NAME, LAST_NAME, PLACE, (29, 36, "LOC"))
    say(store, "d1", "cy", PERSON, PLACE)
    say(store, "d2", "ada", PERSON)
    say(store, "d2", "bo", PERSON)
    return store


# Conflicts


def deciding(store: Store, person: str = "di") -> ConflictDesk:
    return ConflictDesk(store, person, list_conflicts(store))


def test_a_conflict_says_who_says_what(store: Store) -> None:
    desk = deciding(store)
    assert list(desk.progress()) == ["d1", "d3"]
    view = desk.view([], 0, TEXT)
    assert [(one["start"], one["end"], one["name"]) for one in view["choices"]] == [
        (0, 12, "ada, cy: “Mira Solberg” PER"),
        (0, 12, "bo: “Mira” PER, “Solberg” PER"),
        (29, 36, "ada: “Norrvik” ORG"),
        (29, 36, "bo: “Norrvik” LOC"),
        (29, 36, "cy: nothing"),
    ]
    marks = {(one["start"], one["end"]): one["name"] for one in view["marks"]}
    assert marks[0, 12] == "PER?, say ada, cy" and marks[18, 23] == "LOC", "on that all agree"


def test_one_key_takes_what_somebody_says_and_the_document_is_decided(store: Store) -> None:
    desk = deciding(store)
    press(desk, "finish")
    assert "undecided" in desk.notice and len(store.history("d1")) == 3
    press(desk, "choose", 0, 12, choice=1)
    press(desk, "choose", 29, 36, choice=2)
    assert final(store, "d1") is None, "a draft"
    press(desk, "finish")
    assert final(store, "d1") == [FIRST_NAME, LAST_NAME, PLACE] and desk.annotation.document == "d3"
    assert desk.summary().startswith("1 of 2 done")
    saved = [one for _, one in store.history("d1")][-1]
    assert (saved.annotator, saved.comment) == (ADJUDICATED, "decided by di")
    assert saved.spans[0].source == "demo", "what a pipeline suggested says so still"
    assert [one.annotator for _, one in store.history("d1")][:3] == ["ada", "bo", "cy"]


def test_a_choice_can_be_changed_and_undone_also_after_a_restart(store: Store) -> None:
    desk = deciding(store)
    for choice in (2, 0, 1):
        press(desk, "choose", 29, 36, choice=choice)
    assert keys_of(desk.annotation.spans) == [PLACE, (29, 36, "LOC")]
    again = deciding(store, "eve")
    press(again, "undo")
    assert keys_of(again.annotation.spans) == [PLACE, COMPANY]
    press(again, "undo")
    press(again, "undo")
    assert again.annotation.rejected == [] and keys_of(again.annotation.spans) == [PLACE]


def test_a_place_can_be_marked_by_hand(store: Store) -> None:
    desk = deciding(store)
    press(desk, "mark", 0, 17, "ORG")
    press(desk, "remove", *COMPANY)
    press(desk, "remove", 29, 36, "LOC")
    press(desk, "finish")
    assert final(store, "d1") == [(0, 17, "ORG"), PLACE]


def test_a_document_can_be_left_out_and_is_listed_still(store: Store) -> None:
    press(deciding(store), "skip")
    assert final(store, "d1") is None and decide(store.tasks(["d1"])[0]).state == "skipped"
    assert deciding(store).annotation.document == "d3" and list_conflicts(store) == ["d1", "d3"]


def test_a_choice_that_is_not_offered_is_refused(store: Store) -> None:
    desk = deciding(store)
    press(desk, "choose", 18, 23)
    assert "nothing to choose" in desk.notice
    press(desk, "choose", 0, 12, choice=2)
    assert "nothing to choose" in desk.notice and desk.annotation.revision == 0


def test_two_who_decide_do_not_overwrite_each_other(store: Store) -> None:
    one, other = deciding(store, "di"), deciding(store, "eve")
    press(one, "choose", 0, 12, choice=0)
    press(other, "choose", 0, 12, choice=1)
    assert other.conflict and "Somebody has changed" in other.notice
    press(other, "reload")
    assert keys_of(other.annotation.spans) == [PERSON, PLACE]


def test_nobody_decides_over_an_annotation_that_changes_meanwhile(store: Store) -> None:
    desk = deciding(store)
    say(store, "d1", "bo", PERSON, PLACE)
    press(desk, "choose", 0, 12, choice=1)
    assert desk.conflict and len(store.tasks(["d1"])[0].annotations) == 3
    press(desk, "reload")
    assert {one["start"] for one in desk.view([], 0, TEXT)["choices"]} == {29}


# Probable label errors


def finding(document: str, kind: str, score: float, annotated: Key | None, predicted: Key | None) -> LabelError:
    sides = [
        key and Named(start=key[0], end=key[1], label=key[2], text=TEXT[key[0] : key[1]])
        for key in (annotated, predicted)
    ]
    return LabelError.model_validate(
        {
            "document": document,
            "kind": kind,
            "score": score,
            "annotated": sides[0],
            "predicted": sides[1],
            "context": "",
        }
    )


TYPE = finding("e1", "type", 0.9, COMPANY, (29, 36, "LOC"))
MISSED = finding("e2", "missed", 0.8, None, PLACE)
BOUNDARY = finding("e1", "boundary", 0.7, FIRST_NAME, PERSON)
SPURIOUS = finding("e2", "spurious", 0.6, COMPANY, None)


@pytest.fixture
def audited(tmp_path: Path) -> Store:
    store = Store(tmp_path / "annotations.db")
    store.add_documents([Document(id=name, text=TEXT) for name in ("e1", "e2")])
    say(store, "e1", "ada", FIRST_NAME, COMPANY)
    say(store, "e2", "ada", PERSON, COMPANY)
    return store


def going(store: Store, person: str = "di", *others: LabelError) -> FindingDesk:
    return FindingDesk(store, person, [TYPE, MISSED, BOUNDARY, SPURIOUS, *others])


def take(desk: FindingDesk, choice: int) -> Action:
    """Take the proposal (0), or keep the label as it is (1)."""
    return press(desk, "choose", *desk.finding.place, choice=choice)


def test_a_finding_says_what_both_sides_say_and_where(audited: Store) -> None:
    view = going(audited).view([], 20, TEXT[20:])
    assert view["focus"] == {"start": 9, "end": 16} and view["title"] == "1. e1: type, score 0.90, to decide"
    assert [one["name"] for one in view["choices"]] == [
        "the pipelines say: “Norrvik” LOC",
        "keep what is annotated: “Norrvik” ORG",
    ]


def test_findings_are_accepted_and_kept_and_each_is_in_the_log(audited: Store) -> None:
    desk = going(audited)
    for choice in (0, 0, 1, 0):
        take(desk, choice)
    assert final(audited, "e1") == [FIRST_NAME, (29, 36, "LOC")] and final(audited, "e2") == [PERSON, PLACE]
    assert desk.notice == "That was the last finding."
    assert desk.summary() == "4 of 4 findings decided, 3 accepted, 1 kept"
    log = audited.changes()
    assert [(one.person, one.document, one.kind, one.decision) for one in log] == [
        ("di", "e1", "type", "accepted"),
        ("di", "e2", "missed", "accepted"),
        ("di", "e1", "boundary", "kept"),
        ("di", "e2", "spurious", "accepted"),
    ]
    assert [(one.text, one.label) for one in [*log[0].before, *log[0].after]] == [
        ("Norrvik", "ORG"),
        ("Norrvik", "LOC"),
    ]
    assert log[1].before == [] and log[2].before == log[2].after and log[3].after == [] and log[0].time
    assert [one.annotator for _, one in audited.history("e1")] == ["ada", ADJUDICATED], "keeping changes nothing"


def test_a_decision_stands_in_the_next_session_and_after_another_audit(audited: Store) -> None:
    desk = going(audited)
    take(desk, 1)
    take(desk, 0)
    again = FindingDesk(audited, "eve", [finding("e1", "spurious", 0.99, COMPANY, None), BOUNDARY, MISSED])
    assert again.finding == BOUNDARY and again.summary() == "2 of 3 findings decided, 1 accepted, 1 kept"


def test_a_finding_is_corrected_by_hand(audited: Store) -> None:
    desk = going(audited)
    press(desk, "finish")
    assert "Choose first" in desk.notice and not audited.changes()
    press(desk, "mark", 24, 36, "ORG")
    press(desk, "mark", 24, 36, "ORG")
    assert final(audited, "e1") == [FIRST_NAME, (24, 36, "ORG")], "finished all the time"
    press(desk, "finish")
    assert desk.finding == MISSED
    (line,) = audited.changes()
    assert (line.decision, line.start, line.end) == ("edited", 24, 36)
    assert [one.text for one in line.before] == ["Norrvik"] and [one.text for one in line.after] == ["with Norrvik"]


def test_undo_goes_back_through_the_log_also_after_a_restart(audited: Store) -> None:
    desk = going(audited)
    take(desk, 0)
    take(desk, 1)
    press(desk, "mark", *PERSON)
    restarted = going(audited)
    press(restarted, "undo")
    assert restarted.finding == BOUNDARY and final(audited, "e1") == [FIRST_NAME, (29, 36, "LOC")]
    press(restarted, "undo")
    assert restarted.finding == MISSED and restarted.verdicts[MISSED.id].state == "open"
    press(restarted, "undo")
    assert restarted.finding == TYPE and final(audited, "e1") == [FIRST_NAME, COMPANY]
    press(restarted, "undo")
    assert restarted.notice == "There is nothing to undo."
    assert [one.undoes for one in audited.changes()] == [None, None, None, 3, 2, 1]
    assert decide(audited.tasks(["e1"])[0]).annotation == restarted.annotation
    assert restarted.annotation.spans[0].source == "demo" == restarted.annotation.spans[1].source


def test_what_has_changed_since_is_not_undone(audited: Store) -> None:
    desk = going(audited)
    take(desk, 0)
    say(audited, "e1", ADJUDICATED, PERSON)
    press(desk, "undo")
    assert "nothing is undone" in desk.notice and final(audited, "e1") == [PERSON]


def test_what_no_longer_fits_is_shown_and_never_applied(audited: Store) -> None:
    gone = finding("e9", "missed", 1, None, PLACE)
    say(audited, "e1", "ada", PERSON)
    desk = FindingDesk(audited, "di", [gone, TYPE, MISSED])
    assert desk.finding == MISSED and desk.summary() == "0 of 1 findings decided · 2 no longer fit"
    press(desk, "previous")
    assert desk.view([], 0, TEXT)["choices"] == [] and "no longer fits" in desk.view([], 0, TEXT)["title"]
    take(desk, 0)
    assert "nothing to choose" in desk.notice and final(audited, "e1") == [PERSON]
    press(desk, "previous")
    assert "no such document" in desk.view([], 0, "")["title"] and desk.view([], 0, "")["focus"] is None
    press(desk, "mark", *FIRST_NAME)
    assert "nothing is changed" in desk.notice and not audited.changes()


def test_an_annotation_that_changes_meanwhile_is_not_overwritten(audited: Store) -> None:
    desk = going(audited)
    say(audited, "e1", "ada", PERSON)
    for choice in (0, 1):
        take(desk, choice)
        assert desk.conflict and not audited.changes() and final(audited, "e1") == [PERSON]
    press(desk, "reload")
    assert desk.verdicts[TYPE.id].state == desk.verdicts[BOUNDARY.id].state == "outdated"


@pytest.mark.parametrize("first", [0, 1])
def test_two_who_go_through_findings_do_not_overwrite_each_other(audited: Store, first: int) -> None:
    one, other = going(audited, "di"), going(audited, "eve")
    take(one, first)
    take(other, 1 - first)
    assert other.conflict and [line.person for line in audited.changes()] == ["di"]
    press(other, "reload")
    take(other, 1 - first)
    assert "nothing to choose" in other.notice and len(audited.changes()) == 1


def test_a_key_that_is_sent_twice_counts_once(audited: Store) -> None:
    desk = going(audited)
    kept = take(desk, 1)
    desk.act(kept)
    restarted = going(audited)
    restarted.act(kept)
    undone = press(restarted, "undo")
    restarted.act(undone)
    going(audited).act(undone)
    assert [line.decision for line in audited.changes()] == ["kept", "undone"]


def test_findings_of_an_earlier_audit_are_refused(audited: Store) -> None:
    old = going(audited)
    action = take(old, 0)
    new = FindingDesk(audited, "di", [MISSED])
    new.act(action)
    assert "another audit" in new.notice and new.finding == MISSED
