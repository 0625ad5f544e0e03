"""What keys do to an annotation, and an annotator's place in the work."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.marking import (
    PALETTE,
    Action,
    Desk,
    accept_all,
    color_labels,
    finish,
    flag,
    mark,
    remove,
    skip,
    summarize,
    undecided,
    undo,
    words_of,
)
from common.agreement import find_conflicts, measure_agreement
from common.annotations import Annotation, Document, Span
from common.errors import StepError
from common.formatting import COLORS
from common.store import Standing, Store, is_shared

LENGTH = 12
NEW = Annotation(document="d1", annotator="ada", status="draft")
TEXTS = ["Mira Solberg left Turku 🚢.", "Rain fell on Tarn.", "Norrvik hired Mira."]
PERSON = Span(start=0, end=12, label="PER", score=0.9, source="en_demo-1.0.0")
PLACE = Span(start=18, end=23, label="LOC", source="terms")


@st.composite
def stretches(draw: st.DrawFn) -> tuple[int, int, str]:
    start = draw(st.integers(0, LENGTH - 1))
    return start, draw(st.integers(start + 1, LENGTH)), draw(st.sampled_from(["PER", "LOC"]))


@st.composite
def suggestion_lists(draw: st.DrawFn) -> list[Span]:
    scores = st.none() | st.floats(0, 1)
    return [
        Span(start=start, end=end, label=label, score=draw(scores), source=draw(st.sampled_from(["terms", "model"])))
        for start, end, label in draw(st.lists(stretches(), max_size=6))
    ]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Annotation, list[Span]]:
    """An annotation after any number of actions, and the suggestions for its document."""
    suggestions = draw(suggestion_lists())
    annotation = NEW
    for kind, stretch in draw(st.lists(st.tuples(st.sampled_from([mark, remove]), stretches()), max_size=6)):
        annotation = kind(annotation, suggestions, *stretch)
    return annotation, suggestions


def overlaps(spans: list[Span]) -> bool:
    return any(a.start < b.end and b.start < a.end for a, b in itertools.combinations(spans, 2))


def stretches_of(spans: list[Span]) -> list[tuple[int, int, str]]:
    return [(span.start, span.end, span.label) for span in spans]


@given(cases())
def test_decisions_and_what_is_open_never_overlap(case: tuple[Annotation, list[Span]]) -> None:
    annotation, suggestions = case
    open_ = undecided(annotation, suggestions)
    assert not overlaps([*annotation.spans, *open_])
    assert all(span in suggestions and span not in annotation.rejected for span in open_)
    assert annotation.spans == sorted(annotation.spans, key=lambda span: span.start)


@given(cases())
def test_each_suggestion_is_open_decided_or_in_the_way_of_another(case: tuple[Annotation, list[Span]]) -> None:
    annotation, suggestions = case
    shown = [*annotation.spans, *undecided(annotation, suggestions)]
    rejected = stretches_of(annotation.rejected)
    for span in suggestions:
        assert span in shown or (span.start, span.end, span.label) in rejected or overlaps_any(span, shown)


def overlaps_any(span: Span, others: list[Span]) -> bool:
    return any(span.start < other.end and other.start < span.end for other in others)


@given(cases(), stretches())
def test_a_mark_is_there_and_nothing_else_is_on_it(
    case: tuple[Annotation, list[Span]], stretch: tuple[int, int, str]
) -> None:
    annotation, suggestions = case
    start, end, label = stretch
    marked = mark(annotation, suggestions, *stretch)
    assert stretches_of([span for span in marked.spans if span.start < end and start < span.end]) == [stretch]
    beside = [span for span in annotation.spans if span.end <= start or end <= span.start]
    assert all(span in marked.spans for span in beside) and marked.status == "draft"
    (made,) = [span for span in marked.spans if (span.start, span.end, span.label) == stretch]
    assert made in suggestions or made == Span(start=start, end=end, label=label)
    relabelled = mark(marked, suggestions, start, end, "ORG")
    assert len(relabelled.spans) == len(marked.spans) and (start, end, "ORG") in stretches_of(relabelled.spans)


@given(cases(), stretches())
def test_what_is_removed_is_neither_decided_nor_open(
    case: tuple[Annotation, list[Span]], stretch: tuple[int, int, str]
) -> None:
    annotation, suggestions = case
    removed = remove(annotation, suggestions, *stretch)
    assert stretch not in stretches_of([*removed.spans, *undecided(removed, suggestions)])
    others = [span for span in annotation.spans if (span.start, span.end, span.label) != stretch]
    assert removed.spans == others and removed.status == "draft"
    again = mark(removed, suggestions, *stretch)
    assert stretch in stretches_of(again.spans) and stretch not in stretches_of(again.rejected)


@given(cases())
def test_accepting_all_leaves_nothing_open_and_keeps_decisions(case: tuple[Annotation, list[Span]]) -> None:
    annotation, suggestions = case
    accepted = accept_all(annotation, suggestions)
    assert not undecided(accepted, suggestions) and not overlaps(accepted.spans)
    assert [span for span in accepted.spans if span not in undecided(annotation, suggestions)] == annotation.spans
    assert finish(accepted, suggestions).status == "annotated"


@given(cases())
def test_nothing_is_finished_while_something_is_open(case: tuple[Annotation, list[Span]]) -> None:
    annotation, suggestions = case
    if undecided(annotation, suggestions):
        with pytest.raises(ValueError, match="undecided"):
            finish(annotation, suggestions)
    else:
        assert finish(annotation, suggestions) == annotation.model_copy(update={"status": "annotated"})


@given(cases(), stretches())
def test_undo_brings_back_everything_but_the_effort(
    case: tuple[Annotation, list[Span]], stretch: tuple[int, int, str]
) -> None:
    before, suggestions = case
    for after in (
        mark(before, suggestions, *stretch),
        remove(before, suggestions, *stretch),
        accept_all(before, suggestions),
        flag(before),
        skip(before),
    ):
        after = after.model_copy(update={"actions": 3, "seconds": 2.5, "revision": 1})
        assert undo(after, before) == before.model_copy(update={"actions": 3, "seconds": 2.5, "revision": 1})


@given(cases())
def test_a_flag_and_a_skip_leave_the_marks(case: tuple[Annotation, list[Span]]) -> None:
    annotation, _ = case
    assert flag(flag(annotation)) == annotation and flag(annotation).flagged
    assert skip(annotation) == annotation.model_copy(update={"status": "skipped"})


def test_of_suggestions_that_overlap_the_surest_comes_and_then_the_others() -> None:
    sure, unsure, term = (
        Span(start=0, end=4, label="PER", score=0.9, source="model"),
        Span(start=2, end=8, label="ORG", score=0.4, source="model"),
        Span(start=6, end=8, label="LOC", source="terms"),
    )
    assert undecided(NEW, [unsure, sure, term]) == [sure, term]
    without = remove(remove(NEW, [unsure, sure, term], 0, 4, "PER"), [unsure, sure, term], 6, 8, "LOC")
    assert undecided(without, [unsure, sure, term]) == [unsure]


def test_an_accepted_suggestion_keeps_its_score_and_a_changed_one_does_not() -> None:
    assert mark(NEW, [PERSON], 0, 12, "PER").spans == [PERSON]
    assert mark(NEW, [PERSON], 0, 12, "ORG").spans == [Span(start=0, end=12, label="ORG")]
    assert mark(NEW, [PERSON], 0, 4, "PER").spans == [Span(start=0, end=4, label="PER")]


# The desk


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "annotations.db")
    store.add_documents([Document(id=f"d{number}", text=text) for number, text in enumerate(TEXTS, 1)])
    store.suggest("en_demo-1.0.0", {"d1": [PERSON]})
    store.suggest("terms", {"d1": [PLACE]})
    return store


numbers = itertools.count()


def press(desk: Desk, kind: str, start: int = 0, end: int = 0, label: str = "", **others: Any) -> Action:
    """Do something with what the desk shows."""
    seen = {"id": str(next(numbers)), "document": desk.annotation.document, "revision": desk.annotation.revision}
    stretch = {"start": start, "end": end, "label": label}
    action = Action.model_validate({"kind": kind, **seen, **stretch, **others})
    desk.act(action)
    return action


def saved(store: Store, document: str, annotator: str = "ada") -> Annotation:
    return next(one for one in store.tasks([document])[0].annotations if one.annotator == annotator)


def test_each_action_is_saved_with_its_effort(store: Store) -> None:
    desk = Desk(store, "ada")
    press(desk, "mark", *(0, 12, "PER"), keys=2, seconds=1.5)
    assert saved(store, "d1").spans == [PERSON] and saved(store, "d1").status == "draft"
    press(desk, "remove", *(18, 23, "LOC"), seconds=0.5)
    press(desk, "finish")
    done = saved(store, "d1")
    assert (done.status, done.spans, done.rejected) == ("annotated", [PERSON], [PLACE])
    assert (done.actions, done.seconds, done.revision) == (4, 2.0, 3)
    assert desk.annotation.document == "d2" and desk.annotation.revision == 0


def test_a_document_with_open_suggestions_is_not_finished(store: Store) -> None:
    desk = Desk(store, "ada")
    press(desk, "finish")
    assert "2 suggested marks are undecided" in desk.notice and desk.annotation.document == "d1"
    assert not store.tasks(["d1"])[0].annotations
    press(desk, "accept_all")
    press(desk, "finish")
    assert not desk.notice and saved(store, "d1").spans == [PERSON, PLACE]


def test_work_goes_on_where_it_ended(store: Store) -> None:
    desk = Desk(store, "ada")
    press(desk, "skip")
    press(desk, "mark", *(13, 17, "LOC"))
    again = Desk(store, "ada")
    assert again.annotation == saved(store, "d2")
    press(again, "undo")
    assert again.annotation.spans == [], "undo reaches back beyond the start of the page"
    press(again, "finish")
    press(again, "finish")
    assert again.notice == "That was the last document." and again.annotation.document == "d3"
    assert Desk(store, "ada").annotation.document == "d1", "a skipped one is shown when there is nothing else"
    store.divide(1)
    assert Desk(store, "bo").annotation.document == "d1"


def test_undo_goes_back_step_by_step_also_to_the_document_before(store: Store) -> None:
    desk = Desk(store, "ada")
    states = [desk.annotation]
    for kind in ("mark", "accept_all", "flag", "finish"):
        press(desk, kind, *(0, 4, "PER"))
        states.append(saved(store, "d1"))
    assert desk.annotation.document == "d2"
    for state in reversed(states[:-1]):
        press(desk, "undo")
        same = {"actions": desk.annotation.actions, "seconds": desk.annotation.seconds}
        assert saved(store, "d1") == desk.annotation
        assert desk.annotation == state.model_copy(update={**same, "revision": desk.annotation.revision})
    press(desk, "undo")
    assert desk.notice == "There is nothing to undo."
    assert len(store.history("d1")) == 8


def test_what_was_undone_before_a_restart_does_not_come_back(store: Store) -> None:
    desk = Desk(store, "ada")
    press(desk, "mark", *(0, 4, "PER"))
    press(desk, "mark", *(5, 12, "PER"))
    press(desk, "undo")
    again = Desk(store, "ada")
    press(again, "undo")
    assert saved(store, "d1").spans == []
    press(Desk(store, "ada"), "undo")
    assert saved(store, "d1").revision == 4, "there is nothing to undo"


def test_an_action_that_is_sent_twice_counts_once(store: Store) -> None:
    desk = Desk(store, "ada")
    action = press(desk, "flag")
    desk.act(action)
    assert saved(store, "d1").flagged and saved(store, "d1").revision == 1
    restarted = Desk(store, "ada")
    restarted.act(action)
    assert saved(store, "d1").flagged and saved(store, "d1").revision == 1
    assert "saved elsewhere" in restarted.notice


def test_an_action_from_before_a_restart_reaches_its_document(store: Store) -> None:
    desk = Desk(store, "ada")
    press(desk, "next")
    waiting = Action(id="w", document="d2", revision=0, kind="mark", start=13, end=17, label="LOC")
    restarted = Desk(store, "ada")
    assert restarted.annotation.document == "d1"
    restarted.act(waiting)
    assert stretches_of(saved(store, "d2").spans) == [(13, 17, "LOC")]


def test_two_windows_of_one_annotator_do_not_overwrite_each_other(store: Store) -> None:
    first, second = Desk(store, "ada"), Desk(store, "ada")
    press(first, "mark", *(0, 4, "PER"))
    press(second, "skip")
    assert second.conflict and "saved elsewhere" in second.notice
    press(second, "flag")
    assert second.conflict and saved(store, "d1").status == "draft" and not saved(store, "d1").flagged
    press(second, "reload")
    assert not second.conflict and second.annotation == saved(store, "d1")
    press(second, "flag")
    assert saved(store, "d1").flagged and stretches_of(saved(store, "d1").spans) == [(0, 4, "PER")]


def test_undo_goes_one_state_back_also_if_another_window_made_it(store: Store) -> None:
    first, second = Desk(store, "ada"), Desk(store, "ada")
    press(first, "mark", *(0, 4, "PER"))
    press(first, "next")
    press(second, "reload")
    press(second, "mark", *(5, 12, "PER"))
    press(first, "undo")
    assert stretches_of(saved(store, "d1").spans) == [(0, 4, "PER")]


def test_two_annotators_of_one_document_do_not_meet(store: Store) -> None:
    store.divide(1)
    ada, bo = Desk(store, "ada"), Desk(store, "bo")
    press(ada, "accept_all")
    press(bo, "skip")
    assert (saved(store, "d1").status, saved(store, "d1", "bo").status) == ("draft", "skipped")


def test_nobody_gets_what_another_one_has(store: Store) -> None:
    store.divide(0)
    ada, bo = Desk(store, "ada"), Desk(store, "bo")
    assert (ada.item, bo.item) == ("d1", "d2")
    press(ada, "next")
    assert ada.item == "d3", "bo has the second one open"
    press(bo, "previous")
    assert bo.item == "d1", "ada has left it without a decision"
    press(bo, "accept_all")
    press(bo, "finish")
    assert bo.item == "d2" and bo.summary().startswith("1 of 2 done · 1 of 3 by all together")
    assert ada.summary().startswith("0 of 1 done · 1 of 3 by all together")
    press(ada, "previous")
    assert ada.item == "d3", "there is nothing else for ada"
    press(ada, "finish")
    assert ada.notice == ada.last
    press(bo, "finish")
    with pytest.raises(StepError, match="nothing left for you"):
        Desk(store, "cy")


def test_a_key_after_a_long_absence_takes_nothing_from_another_one(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.divide(0)
    ada = Desk(store, "ada")
    press(ada, "mark", *(0, 4, "PER"))
    with monkeypatch.context() as patch:
        patch.setattr("common.store.ABSENCE", -1)  # as if time had passed
        bo = Desk(store, "bo")
    assert bo.item == "d1"
    press(ada, "accept_all")
    assert "Somebody else has this document" in ada.notice
    assert stretches_of(saved(store, "d1").spans) == [(0, 4, "PER")], "what ada did before is kept"
    press(bo, "accept_all")
    press(bo, "finish")
    press(ada, "next")
    assert ada.item == "d3" and saved(store, "d1", "bo").status == "annotated"


def test_the_overlap_is_what_agreement_is_measured_on(tmp_path: Path) -> None:
    store = Store(tmp_path / "annotations.db")
    names = [f"d{number}" for number in range(6)]
    store.add_documents(Document(id=name, text="Mira left Turku.") for name in names)
    store.divide(0.4)
    desks = {"PER": Desk(store, "ada"), "ORG": Desk(store, "bo")}
    while working := {label: desk for label, desk in desks.items() if desk.notice != desk.last}:
        for label, desk in working.items():
            press(desk, "mark", *(0, 4, label))
            press(desk, "finish")
    tasks, shared = store.tasks(), [name for name in names if is_shared(name, 0.4)]
    assert 0 < len(shared) < 6 and {len(task.annotations) for task in tasks} == {1, 2}
    assert [conflict["document"] for conflict in find_conflicts(tasks)] == shared
    assert measure_agreement(tasks)[0]["documents"] == len(shared)


@settings(max_examples=15)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["ada", "bo", "cy"]),
            st.sampled_from(["start", "next", "previous", "mark", "finish", "skip", "undo"]),
        ),
        max_size=25,
    )
)
def test_whatever_three_people_do_one_decides_each_document(keys: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder, "annotations.db"))
        store.add_documents(Document(id=f"d{number}", text="Mira left Turku.") for number in range(5))
        store.divide(0.3)
        desks: dict[str, Desk] = {}
        for name, kind in keys:
            if name not in desks or kind == "start":
                desks[name] = Desk(store, name)
            else:
                press(desks[name], kind, 0, 4, "PER")
        alone = [task for task in store.tasks() if not is_shared(task.document.id, 0.3)]
        assert 0 < len(alone) < 5 and all(len(task.annotations) <= 1 for task in alone)
        seen = [desk.item for desk in desks.values() if not is_shared(desk.item, 0.3)]
        assert len({*seen}) == len(seen)


def test_one_goes_to_other_documents_without_deciding(store: Store) -> None:
    desk = Desk(store, "ada")
    places = []
    for kind in ("previous", "next", "next", "next", "previous"):
        press(desk, kind)
        places.append(desk.annotation.document)
    assert places == ["d1", "d2", "d3", "d3", "d2"]
    assert not any(task.annotations for task in store.tasks())


def test_a_test_document_shows_no_suggestions(store: Store) -> None:
    store.split({"d1": "test"})
    desk = Desk(store, "ada")
    assert desk.view([], 0, TEXTS[0])["marks"] == []
    press(desk, "finish")
    assert saved(store, "d1").spans == []


def test_a_full_disk_is_told_and_the_work_goes_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(store, "ada")
    with monkeypatch.context() as patch:
        patch.setattr("common.store.PATIENCE", 0)
        with store._open("IMMEDIATE"):
            press(desk, "flag")
    assert "locked" in desk.notice and not desk.annotation.flagged
    press(desk, "flag")
    assert not desk.notice and saved(store, "d1").flagged


def test_a_stretch_outside_the_text_is_refused(store: Store) -> None:
    desk = Desk(store, "ada")
    press(desk, "mark", *(20, 900, "PER"))
    assert "26 characters" in desk.notice
    press(desk, "mark", *(4, 4, "PER"))
    assert desk.notice and not store.tasks(["d1"])[0].annotations


def test_a_part_is_shown_in_its_own_positions(store: Store) -> None:
    view = Desk(store, "ada").view(["METHOD"], 18, TEXTS[0][18:])
    assert view["words"] == [(0, 5), (6, 7), (7, 8)], "an emoji is one character"
    assert [(one["start"], one["end"], one["suggested"]) for one in view["marks"]] == [(0, 5, True)]
    assert [label["name"] for label in view["labels"]] == ["LOC", "PER", "METHOD"]


def test_a_new_label_keeps_its_key_when_it_is_used(store: Store) -> None:
    press(Desk(store, "ada"), "mark", *(0, 4, "ACTOR"))
    names = [label["name"] for label in Desk(store, "ada").view(["ACTOR"], 0, TEXTS[0])["labels"]]
    assert names == ["LOC", "PER", "ACTOR"]


def test_labels_have_colours_that_differ() -> None:
    colors = color_labels(["PER", "METHOD", "DISEASE", "LOC"])
    assert len(set(colors.values())) == 4 and colors["PER"] == COLORS["PER"]
    assert len(color_labels(map(str, range(200)))) == 200 > len(PALETTE)


def test_progress_says_how_far_how_fast_and_how_long() -> None:
    new, done = Standing(None), Standing("annotated", 30, annotated=True)
    assert summarize({"a": new, "b": Standing("draft", 9)}) == "0 of 2 done"
    some = {"a": done, "b": done._replace(seconds=50), "c": Standing("skipped", 500), "d": new}
    assert summarize(some) == "2 of 4 done, 1 skipped · 90 documents an hour · about 1 min left"
    others = {"e": Standing(None, annotated=True, taken=True), "f": Standing(None, taken=True)}
    assert summarize(some | others) == (
        "2 of 4 done, 1 skipped · 3 of 6 by all together · 90 documents an hour · about 1 min left"
    )
    many = {str(number): new for number in range(200)} | {"a": done._replace(seconds=60)}
    assert summarize(many).endswith("about 3.3 hours left")


def test_white_space_is_no_word() -> None:
    assert words_of(" A\r\n\n b\u0301\u00a0c ") == [(1, 2), (6, 8), (9, 10)] and words_of("") == []
