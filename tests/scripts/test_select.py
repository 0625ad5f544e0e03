from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
from spacy.language import Language
from spacy.tokens import Doc

from common.annotations import Annotation, Document, Span, Task
from common.errors import StepError
from common.store import STORE, Store, is_shared
from scripts import select as step
from scripts.select import measure_suggestions, measure_tags, select
from tests.conftest import words

SUBJECTS = [f"{first}{second}" for first in ("tur", "os", "mal", "per", "ken") for second in ("ku", "lo", "ta", "unia")]


class FakeRecognizer:
    """Gives probabilities of tags as the project's recogniser does: it is unsure of long words."""

    tags = ("O", "U-LOC")

    def predict(self, docs: list[Doc]) -> list[np.ndarray]:
        rows = [[[0.5, 0.5] if len(token) > 5 else [1.0, 0.0] for token in doc] for doc in docs]
        return [np.array(row, dtype="float32").reshape(-1, 2) for row in rows]

    def find_posteriors(self, docs: list[Doc], scores: list[np.ndarray]) -> list[np.ndarray]:
        return scores

    def pipe(self, stream: Iterator[Doc], *, batch_size: int = 128) -> Iterator[Doc]:
        for doc in stream:
            self.predict([doc])
            yield doc

    def __call__(self, doc: Doc) -> Doc:
        return doc

    def to_disk(self, path: Path, exclude: tuple[str, ...] = ()) -> None:
        pass

    def from_disk(self, path: Path, exclude: tuple[str, ...] = ()) -> FakeRecognizer:
        return self


@Language.factory("fake_recognizer")
def create_fake(nlp: Language, name: str) -> FakeRecognizer:
    return FakeRecognizer()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twenty texts; the pipeline is the less sure of one, the later it comes. The first two are in test."""
    monkeypatch.chdir(tmp_path)
    folder = Path("annotate/mine")
    folder.mkdir(parents=True)
    store = Store(folder / STORE)
    store.add_documents(
        Document(
            id=subject,
            text=f"{subject} asked {subject * 2}, and {subject.upper()} said {subject * 3}.",
            split="test" if place < 2 else None,
        )
        for place, subject in enumerate(SUBJECTS)
    )
    for place, subject in enumerate(SUBJECTS[2:]):
        span = Span(start=0, end=len(subject), label="LOC", score=1 - place / 20, source="demo")
        store.suggest("demo", {subject: [span]})
    return folder


def order(folder: Path) -> list[tuple[str, str]]:
    return [(task.document.id, task.document.reason) for task in Store(folder / STORE).tasks()]


def test_test_comes_first_then_batches_of_the_uncertain_and_some_at_random(folder: Path) -> None:
    select(folder, batch=9)
    found = order(folder)
    assert {found[0], found[1]} == {(SUBJECTS[0], "test"), (SUBJECTS[1], "test")}
    batch = found[2:11]
    (drawn,) = [name for name, reason in batch if reason == "random"]
    uncertain = {name for name, reason in batch if reason == "uncertain"}
    assert uncertain == set([name for name in SUBJECTS if name != drawn][-8:])
    assert len(found) == 20 and len({name for name, _ in found}) == 20


def test_what_is_begun_keeps_its_place_and_the_rest_is_arranged_anew(folder: Path) -> None:
    select(folder, batch=5)
    store = Store(folder / STORE)
    first = store.tasks()
    for task, status in zip(first[:4], ("annotated", "annotated", "skipped", "draft"), strict=True):
        store.save(Annotation.model_validate({"document": task.document.id, "annotator": "ada", "status": status}))
    store.suggest("demo", {name: [] for name in SUBJECTS})
    select(folder, batch=5, seed=1)
    second = store.tasks()
    assert [task.document for task in second[:4]] == [task.document for task in first[:4]]
    assert order(folder)[4:] != [(task.document.id, task.document.reason) for task in first[4:]]


def test_what_somebody_begins_meanwhile_keeps_its_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    select(folder, batch=5)
    store = Store(folder / STORE)
    begun = store.tasks()[-1]

    def measure(tasks: list[Task]) -> np.ndarray:
        store.save(Annotation(document=begun.document.id, annotator="ada", status="draft"))
        return np.ones(len(tasks))

    monkeypatch.setattr(step, "measure_suggestions", measure)
    select(folder, batch=5, seed=1)
    assert store.tasks([begun.document.id])[0].document == begun.document


def test_without_scores_the_order_is_random_and_that_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Store(folder / STORE).suggest("demo", {name: [Span(start=0, end=2, label="LOC")] for name in SUBJECTS})
    select(folder)
    said = words(capsys.readouterr().out)
    assert "they come at random" in said and "--vars.chooser" in said, "a list of terms never has scores"
    assert {reason for _, reason in order(folder)} == {"test", "random"}
    select(Path("annotate/mine"))
    for task in (store := Store(folder / STORE)).tasks():
        store.save(Annotation(document=task.document.id, annotator="ada", status="annotated"))
    select(folder)
    assert "Arranged 0 documents" in words(capsys.readouterr().out)


def test_uncertainty_is_counted_for_each_token(folder: Path) -> None:
    store = Store(folder / STORE)
    store.add_documents(
        [Document(id="long", text="turku " * 100), Document(id="none", text=""), Document(id="丁", text="丁" * 50)]
    )
    spans = [Span(start=0, end=2, label="LOC", score=0.5), Span(start=3, end=4, label="LOC", score=0.7)]
    store.suggest("demo", {"long": spans, "丁": spans})
    assert measure_suggestions(store.tasks(["long", "none", "丁"])) == pytest.approx([0.008, 0, 0.8])


def test_a_pipeline_of_this_project_is_asked_for_its_tags(folder: Path) -> None:
    nlp = spacy.blank("en")
    nlp.add_pipe("fake_recognizer", name="ner")
    nlp.to_disk("pipeline")
    store = Store(folder / STORE)
    store.add_documents(
        [Document(id="short", text="a b"), Document(id="mixed", text="a bbbbbb"), Document(id="none", text="")]
    )
    doubts = measure_tags("pipeline", store.tasks(["mixed", "none", "short"]))
    assert doubts == pytest.approx([np.log(2) / 2, 0, 0], abs=1e-5)
    select(folder, "pipeline", batch=2)
    waiting = [task for task in store.tasks() if task.document.split != "test"]
    known = dict(zip((task.document.id for task in waiting), measure_tags("pipeline", waiting), strict=True))
    (drawn,) = [name for name, reason in order(folder)[2:4] if reason == "random"]
    (chosen,) = [name for name, reason in order(folder)[2:4] if reason == "uncertain"]
    assert known[chosen] == max(doubt for name, doubt in known.items() if name != drawn)


def test_the_share_for_everybody_is_kept_and_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    select(folder, overlap=0.3)
    shared = [name for name in SUBJECTS if is_shared(name, 0.3)]
    said = f"Every annotator gets {len(shared)} of the 20 documents; each other one is given to one of them"
    assert 0 < len(shared) < 20 and said in words(capsys.readouterr().out)
    store = Store(folder / STORE)
    for name in SUBJECTS:
        store.save(Annotation(document=name, annotator="ada", status="annotated"))
    assert [name for name, one in store.progress("bo").items() if not one.taken] == [
        name for name, _ in order(folder) if name in shared
    ]


def test_another_pipeline_and_a_run_without_texts_are_refused(folder: Path) -> None:
    nlp: Any = spacy.blank("en")
    nlp.add_pipe("ner")
    nlp.initialize()
    nlp.to_disk("other")
    before = order(folder)
    with pytest.raises(StepError, match="gives no probabilities of tags"):
        select(folder, "other")
    assert order(folder) == before
    with pytest.raises(StepError, match="There is no annotate/other"):
        select(Path("annotate/other"))
