from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import spacy
from spacy.language import Language
from spacy.tokens import Doc
from spacy.tokens import Span as Entity

from common.annotations import Annotation, Document, Span
from common.errors import StepError
from common.store import STORE, Store
from common.suggestions import Found
from scripts import prelabel as step
from scripts.prelabel import Precedence, prelabel
from tests.conftest import words

TEXTS = {
    "d1": "Mira Solberg left Turku.",
    "d2": "\N{SHIP} Norrvik Steel of Turku.",
    "d3": "Rain fell.",
    "t1": "Mira Solberg is in Turku.",
}


@Language.component("score_all")
def score_all(doc: Doc) -> Doc:
    if not Entity.has_extension("score"):
        Entity.set_extension("score", default=None)
    for ent in doc.ents:
        ent._.score = 0.75
    return doc


def save_pipeline(folder: str, version: str = "1.0.0", **names: str) -> str:
    """A pipeline that finds names by label, as sure as 0.75 each."""
    nlp = spacy.blank("en", meta={"name": "demo", "version": version})
    ruler: Any = nlp.add_pipe("entity_ruler")
    ruler.add_patterns([{"label": label, "pattern": name} for label, name in names.items()])
    nlp.add_pipe("score_all")
    nlp.to_disk(folder)
    return folder


def save_patterns(path: str, **names: str) -> str:
    Path(path).write_text("".join(json.dumps({"label": k, "pattern": v}) + "\n" for k, v in names.items()), "utf8")
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = Path("annotate/mine")
    folder.mkdir(parents=True)
    store = Store(folder / STORE)
    store.add_documents(
        Document(id=name, text=text, split="test" if name == "t1" else None) for name, text in TEXTS.items()
    )
    return folder


def suggestions(folder: Path) -> dict[str, list[tuple[str, str, str, float | None]]]:
    """By document text, label, source and score of what is suggested."""
    return {
        task.document.id: sorted(
            (task.document.text[span.start : span.end], span.label, span.source, span.score)
            for span in task.suggestions
        )
        for task in Store(folder / STORE).tasks()
    }


def test_a_pipeline_suggests_with_source_and_score_and_not_for_test(folder: Path) -> None:
    prelabel(folder, save_pipeline("pipeline", PER="Mira Solberg", LOC="Turku"))
    assert suggestions(folder) == {
        "d1": [("Mira Solberg", "PER", "en_demo-1.0.0", 0.75), ("Turku", "LOC", "en_demo-1.0.0", 0.75)],
        "d2": [("Turku", "LOC", "en_demo-1.0.0", 0.75)],
        "d3": [],
        "t1": [],
    }
    prelabel(folder, "pipeline", test=True)
    assert len(suggestions(folder)["t1"]) == 2


@Language.component("tag_and_chunk")
def tag_and_chunk(doc: Doc) -> Doc:
    for token in doc:
        token.tag_ = "NNP" if token.is_title else "X"
    doc.spans["chunks"] = [Entity(doc, 0, 2, "NP"), Entity(doc, 2, 3, "VP")]
    return doc


def test_tags_and_chunks_come_along_and_go_with_the_pipeline(folder: Path) -> None:
    nlp = spacy.blank("en", meta={"name": "demo"})
    nlp.add_pipe("tag_and_chunk", name="chunker")
    nlp.disable_pipe("chunker")
    nlp.to_disk("chunking")
    store = Store(folder / STORE)
    store.describe({"d1": {"file": "one.txt"}})
    prelabel(folder, "chunking", save_patterns("terms.jsonl", LOC="Turku"))
    metas = {task.document.id: task.document.meta for task in store.tasks()}
    assert metas["d1"] == {
        "file": "one.txt",
        "words": [
            [0, 4, "NNP", "B-NP"],
            [5, 12, "NNP", "I-NP"],
            [13, 17, "X", "B-VP"],
            [18, 23, "NNP", "O"],
            [23, 24, "X", "O"],
        ],
    }
    assert metas["d3"]["words"] and metas["t1"] == {}
    assert suggestions(folder)["d1"] == [("Turku", "LOC", "terms", None)], "nobody decides on chunks"
    prelabel(folder, save_pipeline("other", LOC="Turku"))
    assert not store.tasks(["d1"])[0].document.meta["words"]


def test_patterns_suggest_without_a_score(folder: Path) -> None:
    prelabel(folder, patterns=save_patterns("terms.jsonl", ORG="Norrvik Steel"))
    assert suggestions(folder)["d2"] == [("Norrvik Steel", "ORG", "terms", None)]


@pytest.mark.parametrize(
    ("precedence", "found"),
    [
        (Precedence.PATTERNS, ("Norrvik", "LOC", "terms", None)),
        (Precedence.PIPELINE, ("Norrvik Steel", "ORG", "en_demo-1.0.0", 0.75)),
    ],
)
def test_of_both_the_one_that_comes_first_keeps_what_overlaps(
    folder: Path, precedence: Precedence, found: tuple[Any, ...]
) -> None:
    pipeline = save_pipeline("pipeline", ORG="Norrvik Steel", LOC="Turku")
    prelabel(folder, pipeline, save_patterns("terms.jsonl", LOC="Norrvik"), precedence)
    assert suggestions(folder)["d2"] == [found, ("Turku", "LOC", "en_demo-1.0.0", 0.75)]


def test_labels_are_chosen_and_renamed_and_one_that_is_never_found_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prelabel(folder, save_pipeline("pipeline", PERSON="Mira Solberg", GPE="Turku"), labels="PERSON=a person,WORK")
    assert suggestions(folder)["d1"] == [("Mira Solberg", "a person", "en_demo-1.0.0", 0.75)]
    said = words(capsys.readouterr().out)
    assert "Nothing was found as WORK." in said and "Suggested 1 spans for 3 documents" in said


def test_what_was_suggested_before_goes_and_what_people_have_begun_keeps_it(folder: Path) -> None:
    prelabel(folder, save_pipeline("old", LOC="Turku"), save_patterns("terms.jsonl", PER="Mira"))
    store = Store(folder / STORE)
    store.save(Annotation(document="d2", annotator="ada", status="skipped"))
    before = store.tasks(["d2"])
    prelabel(folder, save_pipeline("new", version="2.0.0", LOC="Turku"))
    assert suggestions(folder)["d1"] == [("Turku", "LOC", "en_demo-2.0.0", 0.75)]
    assert store.tasks(["d2"]) == before and before[0].suggestions


def test_what_somebody_begins_meanwhile_keeps_what_was_seen(folder: Path) -> None:
    store = Store(folder / STORE)
    seen = {name: [Span(start=0, end=4, label="LOC", source="old")] for name in ("d1", "d2")}
    store.suggest("old", seen)

    def find(texts: list[str]) -> Iterator[Found]:
        store.save(Annotation(document="d1", annotator="ada", status="draft"))
        return (Found([], ((0, 4, "NNP", ""),)) for _ in texts)

    assert step.suggest(store, store.tasks(["d1", "d2"]), {"new": find}, {}) == []
    first, second = store.tasks(["d1", "d2"])
    assert first.suggestions == seen["d1"] and "words" not in first.document.meta
    assert second.suggestions == [] and second.document.meta["words"]


def test_huge_texts_are_left_out_and_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(step, "LONGEST", 24)
    prelabel(folder, patterns=save_patterns("terms.jsonl", LOC="Turku"))
    assert not suggestions(folder)["d2"] and suggestions(folder)["d1"]
    assert "Left out 1 documents of more than 24 characters: d2" in words(capsys.readouterr().out)


def test_without_suggestions_to_make_or_texts_it_is_said_what_to_do(folder: Path) -> None:
    with pytest.raises(StepError, match="nothing that could suggest"):
        prelabel(folder)
    with pytest.raises(StepError, match=r"no pipeline that can be loaded"):
        prelabel(folder, "nowhere")
    with pytest.raises(StepError, match="There is no annotate/other") as error:
        prelabel(Path("annotate/other"), "nowhere")
    assert "make gather RUN=other" in error.value.remedy and not Path("annotate/other").exists()
