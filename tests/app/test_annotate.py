from __future__ import annotations

import json
import os
import pickle
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import spacy
from hypothesis import given
from hypothesis import strategies as st

from app import annotate
from app.annotate import LAYERS, Analysis, Annotator, Layer, find_newest, find_pipelines, load_pipeline, split_text
from common.errors import StepError
from tests.conftest import TEXT, Project

# Pipelines


def test_packaged_assembled_and_installed_pipelines_are_found_and_load(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(annotate, "get_installed_models", lambda: ["en_other"])
    found = find_pipelines(project.folder)
    first, *_, last = found
    assert first.startswith("packages/tiny/en_bert_ner-1.0.0/") and last == "en_other"
    assert "packages/tiny/assembled" in found and not any(name.startswith("training") for name in found)
    for place in list(found.values())[:2]:
        analysis = load_pipeline(place).annotate(["Mira left Turku."])[0]
        assert [token.text for token in analysis.tokens] == ["Mira", "left", "Turku", "."]
        assert analysis.tokens[0].wordpieces == ["m", "##i", "##r", "##a"]
        assert all(0 < (ent.score or 0) <= 1 for ent in analysis.entities)


def test_what_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="en_nothing"):
        load_pipeline("en_nothing")
    (tmp_path / "config.cfg").write_text("[nlp]")
    with pytest.raises(StepError, match="cannot be loaded"):
        load_pipeline(str(tmp_path))


def make_pipeline(folder: Path, made: int) -> None:
    """Make the file by which a pipeline is found, with its time."""
    folder.mkdir(parents=True)
    (folder / "config.cfg").touch()
    os.utime(folder / "config.cfg", (made, made))


def test_without_a_name_the_newest_pipeline_meant_for_use_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(annotate, "get_installed_models", lambda: [])
    make_pipeline(tmp_path / "training/some/model-best", 9)
    with pytest.raises(StepError, match="no pipeline yet"):
        find_newest(tmp_path)
    monkeypatch.setattr(annotate, "get_installed_models", lambda: ["en_other"])
    assert find_newest(tmp_path) == "en_other"
    for name, made in (("some", 3), ("other", 4)):
        make_pipeline(tmp_path / f"packages/{name}/assembled", made)
        assert find_newest(tmp_path) == str(tmp_path / f"packages/{name}/assembled")
    for name, made in (("some", 2), ("other", 1)):
        make_pipeline(tmp_path / f"packages/{name}/en_x-1.0.0/en_x/en_x-1.0.0", made)
        assert find_newest(tmp_path) == str(tmp_path / "packages/some/en_x-1.0.0/en_x/en_x-1.0.0")


@pytest.mark.parametrize("damage", ["no cfg", "other cfg", "pickle", "no vocab", "no weights", "meta"])
def test_a_damaged_pipeline_is_named(damage: str, project: Project, tmp_path: Path) -> None:
    model = shutil.copytree(project.folder / "packages/tiny/assembled", tmp_path / "model")
    if damage == "no cfg":
        (model / "ner/cfg").unlink()
    elif damage == "other cfg":
        (model / "ner/cfg").write_text(json.dumps({"labels": ["PERSON"]}))
    elif damage == "pickle":
        weights = max((file for file in model.rglob("model") if file.is_file()), key=lambda file: file.stat().st_size)
        weights.write_bytes(pickle.dumps(Path))
    elif damage == "no vocab":
        shutil.rmtree(model / "vocab")
    elif damage == "no weights":
        shutil.rmtree(model / "transformer")
    else:
        (model / "meta.json").write_text("{")
    with pytest.raises(StepError, match="model cannot be loaded") as problem:
        load_pipeline(str(model))
    assert "damaged" in problem.value.remedy


# Analyses


def test_an_analysis_has_everything_with_offsets(analyses: list[Analysis]) -> None:
    first = analyses[0]
    for kind in (first.entities, first.concepts, first.sentences, first.tokens):
        assert kind and all(TEXT[span.start : span.end] == span.text for span in kind)
    assert [(ent.text, ent.label) for ent in first.entities] == [
        ("Mira Solberg", "PER"),
        ("Turku", "LOC"),
        ("Norrvik Steel", "ORG"),
        ("Norrvik Steel", "ORG"),
    ]
    told = [
        [
            None if place is None else first.concepts[place].text
            for place in (t.subject_index, t.predicate_index, t.object_index)
        ]
        for t in first.triples
    ]
    assert ["Mira Solberg", "launched", "party"] in told and ["party", None, "small"] in told
    assert ["Norrvik Steel", "called", "party"] in told
    negated = [concept for concept in first.concepts if concept.negated]
    assert [concept.text for concept in negated] == ["attack"]
    assert next(c for c in first.concepts if c.text == "Turku").entity_label == "LOC"


@pytest.mark.parametrize("wanted", LAYERS)
def test_a_layer_is_made_only_where_it_is_wanted(annotator: Annotator, analyses: list[Analysis], wanted: Layer) -> None:
    analysis = annotator.annotate([TEXT], {wanted})[0].model_dump()
    everything = analyses[0].model_dump()
    made = {"text", wanted} | ({"triples"} if wanted == "concepts" else set())
    assert {name for name, found in analysis.items() if found} == made
    assert all(analysis[name] == everything[name] for name in made), "it is what it is beside the others"


def test_the_rules_of_concepts_run_only_where_they_are_needed(
    annotator: Annotator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(doc: Any) -> Any:
        raise RuntimeError("the rules run")

    monkeypatch.setattr(annotator.nlp.get_pipe("concepts"), "match", fail)
    assert len(annotator.annotate([TEXT], {"entities", "sentences"})[0].entities) == 4
    for wanted in ("concepts", "tokens"):
        with pytest.raises(RuntimeError, match="the rules run"):
            annotator.annotate([TEXT], {wanted})
    assert "concepts" in annotator.nlp.pipe_names


@given(st.text(max_size=300), st.integers(1, 40))
def test_parts_of_a_text_are_the_text(text: str, size: int) -> None:
    parts = list(split_text(text, size))
    assert "".join(part for _, part in parts) == text
    assert all(0 < len(part) <= size and text[start:].startswith(part) for start, part in parts)


def test_a_text_is_cut_between_paragraphs_if_it_can() -> None:
    text = "one two\n\nthree four. five six"
    assert [part for _, part in split_text(text, 12)] == ["one two\n\n", "three four. ", "five six"]


def test_a_long_text_gives_what_its_parts_give(annotator: Annotator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over nlp.max_length, 1,000,000 characters unless it is lowered, spaCy raises E088."""
    monkeypatch.setattr(annotator.nlp, "max_length", 100_000)
    times = 210_000 // len(TEXT) + 1
    seen: list[int] = []
    long = (TEXT + "\n\n") * times
    analysis = annotator.annotate([long], advance=lambda done, total: seen.append(done))[0]
    assert len(long) > 200_000 and seen == sorted(seen) and len(seen) > 4 and seen[-1] == len(long)
    assert len(analysis.entities) == 4 * times
    assert all(long[ent.start : ent.end] == ent.text for ent in analysis.entities)
    assert max(triple.subject_index or 0 for triple in analysis.triples) > len(analysis.concepts) - 20


def test_the_vocabulary_does_not_grow(annotator: Annotator) -> None:
    annotator.annotate(["word"])
    vocab = annotator.nlp.vocab
    before = len(list(vocab)), len(vocab.strings)
    for number in range(200):
        annotator.annotate([f"Mira Solberg met person{number} in place{number} ."])
    assert (len(list(vocab)), len(vocab.strings)) == before


def test_threads_take_turns(annotator: Annotator) -> None:
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.append(len(annotator.annotate([TEXT])[0].entities))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [4] * 8


@pytest.mark.parametrize("text", ["", " \n ", "\U0001f600 Turku"])
def test_texts_of_any_kind_pass(annotator: Annotator, text: str) -> None:
    analysis = annotator.annotate([text])[0]
    assert [text[ent.start : ent.end] for ent in analysis.entities] == ["Turku"] * ("Turku" in text)


def test_a_pipeline_of_another_make_works_too() -> None:
    nlp = spacy.blank("xx")
    nlp.add_pipe("span_ruler", config={"spans_key": "concepts"}).add_patterns([{"label": "actor", "pattern": "Mira"}])  # type: ignore[attr-defined]
    analysis = Annotator(nlp).annotate(["Mira left"])[0]
    assert [token.text for token in analysis.tokens] == ["Mira", "left"] and len(analysis.sentences) == 1
