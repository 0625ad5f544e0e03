from __future__ import annotations

from pathlib import Path

import pytest

from common.agreement import ADJUDICATED, decide
from common.annotations import Annotation, Change, Document, Span
from common.errors import StepError
from common.records import made, read_json
from common.store import STORE, Store
from scripts.adjudicate import adjudicate
from tests.conftest import words

TEXT = "Mira Solberg left Turku."
PERSON, PLACE = Span(start=0, end=12, label="PER"), Span(start=18, end=23, label="LOC")


def say(store: Store, document: str, annotator: str, spans: list[Span], status: str = "annotated") -> Annotation:
    return store.save(
        Annotation.model_validate({"document": document, "annotator": annotator, "status": status, "spans": spans})
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Four documents: one on which ada and bo agree, two on which they do not, one that ada has skipped."""
    folder = tmp_path / "mine"
    folder.mkdir()
    store = Store(folder / STORE)
    store.add_documents([Document(id=name, text=TEXT) for name in ("same", "other", "third", "skipped")])
    for annotator in ("ada", "bo"):
        say(store, "same", annotator, [PERSON, PLACE])
    say(store, "other", "ada", [PERSON])
    say(store, "other", "bo", [PLACE])
    say(store, "third", "ada", [])
    say(store, "third", "bo", [PLACE])
    say(store, "skipped", "ada", [], "skipped")
    return store


def final_of(store: Store, document: str) -> list[Span] | None:
    annotation = decide(store.tasks([document])[0]).annotation
    return None if annotation is None else annotation.spans


def test_agreement_and_conflicts_are_told_and_written(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    folder = store.path.parent
    before = store.path.read_bytes()
    adjudicate(folder)
    record = read_json(folder / "conflicts.json")
    assert record["documents"] == {"annotated": 1, "open": 2, "skipped": 1}
    assert [conflict["document"] for conflict in record["conflicts"]] == ["other", "third"]
    (pair,) = record["agreement"]
    assert pair["documents"] == 3 and pair["labels"]["overall"]["spans"] == [3, 4]
    output = words(capsys.readouterr().out)
    assert "'Turku' LOC (bo)" in output and "2 documents wait for a decision" in output
    assert store.path.read_bytes() == before, "who only looks changes nothing"
    assert made(folder) == {"conflicts.json", "decisions.jsonl"}, "clean must not remove the annotations"


def test_the_log_of_decisions_is_written(store: Store) -> None:
    line = Change(
        document="same",
        person="bo",
        finding="f",
        kind="spurious",
        decision="kept",
        start=18,
        end=23,
        before=[],
        after=[],
    )
    store.log(line, {"ada": 1, "bo": 1})
    adjudicate(store.path.parent)
    (written,) = (store.path.parent / "decisions.jsonl").read_text("utf8").splitlines()
    assert [Change.model_validate_json(written)] == store.changes()


def test_one_annotator_s_word_decides_what_is_open_and_the_history_keeps_all(store: Store) -> None:
    folder = store.path.parent
    adjudicate(folder, accept="bo")
    assert final_of(store, "other") == final_of(store, "third") == [PLACE]
    assert final_of(store, "same") == [PERSON, PLACE] and final_of(store, "skipped") is None
    assert [(a.annotator, a.spans) for _, a in store.history("other")] == [
        ("ada", [PERSON]),
        ("bo", [PLACE]),
        (ADJUDICATED, [PLACE]),
    ]
    assert read_json(folder / "conflicts.json")["conflicts"] == []
    assert not store.history("same")[2:], "what all agree on needs no word"


def test_what_is_decided_or_under_way_stays(store: Store) -> None:
    say(store, "other", ADJUDICATED, [PERSON])
    say(store, "third", ADJUDICATED, [PERSON, PLACE], "draft")
    adjudicate(store.path.parent, accept="bo")
    assert final_of(store, "other") == [PERSON]
    assert final_of(store, "third") is None


def test_a_document_that_the_annotator_has_not_finished_stays_open(store: Store) -> None:
    store.add_documents([Document(id="fifth", text=TEXT)])
    for annotator, spans in (("ada", [PERSON]), ("cy", [PLACE])):
        say(store, "fifth", annotator, spans)
    adjudicate(store.path.parent, accept="bo")
    assert final_of(store, "fifth") is None and final_of(store, "other") == [PLACE]


@pytest.mark.parametrize("name", ["eve", ADJUDICATED])
def test_a_name_that_has_annotated_nothing_is_refused(store: Store, name: str) -> None:
    with pytest.raises(StepError, match=f"{name} has annotated no document") as error:
        adjudicate(store.path.parent, accept=name)
    assert "ada, bo" in error.value.remedy


def test_a_folder_without_annotations_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(StepError, match=r"There is no .*annotations\.db"):
        adjudicate(tmp_path / "mine")
