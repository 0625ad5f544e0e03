from __future__ import annotations

import gc
import itertools
import json
import os
import pickle
import shutil
import threading
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import spacy
from hypothesis import given
from hypothesis import strategies as st
from spacy.language import Language
from spacy.tokens import Doc, Span

from app import annotate
from app.annotate import (
    LAYERS,
    Analysis,
    Annotator,
    Layer,
    find_newest,
    find_pipelines,
    find_unneeded,
    load_pipeline,
    split_text,
)
from common.errors import StepError
from tests.app.conftest import until
from tests.conftest import TEXT, Project, guard

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


def test_components_run_only_where_they_are_needed(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    annotator = load_pipeline(str(project.folder / "packages/tiny/assembled"))
    everything = annotator.annotate([TEXT])[0]

    def fail(*_: Any) -> Any:
        raise RuntimeError("it runs")

    monkeypatch.setattr(annotator.nlp.get_pipe("tagger"), "predict", fail)
    monkeypatch.setattr(annotator.nlp.get_pipe("concepts"), "match", fail)
    few = annotator.annotate([TEXT], {"entities", "sentences"})[0]
    assert few.sentences == everything.sentences
    assert [(e.start, e.label) for e in few.entities] == [(e.start, e.label) for e in everything.entities]
    assert find_unneeded(annotator.nlp, {"sentences"}) == ["concepts", "ner", "tagger"]
    for wanted in ("concepts", "tokens"):
        with pytest.raises(RuntimeError, match="it runs"):
            annotator.annotate([TEXT], {wanted})
    assert {"concepts", "tagger"} <= set(annotator.nlp.pipe_names)


def test_a_component_of_another_make_and_all_before_it_run(project: Project) -> None:
    nlp = load_pipeline(str(project.folder / "packages/tiny/assembled")).nlp
    nlp.add_pipe("entity_ruler", before="concepts")  # its rules may ask for tags, and it does not say so
    assert find_unneeded(nlp, {"entities"}) == ["concepts"]
    nlp.add_pipe("merge_entities", last=True)
    assert find_unneeded(nlp, {"entities"}) == []


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


# Several callers


class Recorder:
    """A pipeline that stands still until it is let go, records its batches, and refuses a text with `bad`.

    The first word of a text is an entity.
    """

    def __init__(self) -> None:
        self.open = threading.Event()
        self.batches: list[list[str]] = []
        nlp = spacy.blank("xx")
        name = f"recorder_{id(self)}"  # spaCy keeps the first function of a name
        Language.factory(name, func=lambda nlp, name: self)
        nlp.add_pipe(name)
        self.annotator = Annotator(nlp)

    def __call__(self, doc: Doc) -> Doc:
        raise AssertionError("texts go through the pipeline in batches")

    def pipe(self, docs: Iterable[Doc], batch_size: int) -> Iterator[Doc]:
        docs = iter(docs)
        while batch := list(itertools.islice(docs, batch_size)):
            self.batches.append([doc.text for doc in batch])
            assert self.open.wait(guard(20))
            for doc in batch:
                if "bad" in doc.text:
                    raise ValueError("a bad text")
                doc.set_ents([Span(doc, 0, 1, "FIRST")] if len(doc) else [])
                yield doc


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    recorder = Recorder()
    yield recorder
    recorder.open.set()


def test_what_waits_is_annotated_together(recorder: Recorder) -> None:
    first = recorder.annotator.submit(["first"])
    until(lambda: recorder.batches == [["first"]])  # nothing waits for more to come
    others = [recorder.annotator.submit([f"text{n}", f"more{n}"]) for n in range(5)]
    recorder.open.set()
    for n, other in enumerate(others):
        assert [a.entities[0].text for a in other.result(guard(20))] == [f"text{n}", f"more{n}"]
    assert first.done() and sorted(map(len, recorder.batches)) == [1, 10]


def test_a_batch_is_no_longer_than_a_part_of_a_text(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotate, "PART_LENGTH", 20)
    monkeypatch.setattr(annotate, "BATCH", 4)
    recorder.open.set()
    for texts, sizes in ((["t" * 9] * 5, [2, 2, 1]), (["t"] * 9, [4, 4, 1]), (["t" * 50, "t"], [1, 1])):
        recorder.batches.clear()
        recorder.annotator.annotate(texts)
        assert [len(batch) for batch in recorder.batches] == sizes


def test_a_short_text_waits_for_a_part_of_a_long_one_and_not_for_its_end(recorder: Recorder) -> None:
    long = recorder.annotator.submit(["word " * 50_000, "word " * 50_000])
    until(lambda: len(recorder.batches) == 1)
    ended: list[str] = []
    long.add_done_callback(lambda _: ended.append("long"))
    for name in ("short", "other"):
        recorder.annotator.submit([name]).add_done_callback(lambda future: ended.append(future.result()[0].text))
    recorder.open.set()
    assert len(long.result(guard(20))) == 2
    until(lambda: len(ended) == 3)
    assert ended == ["short", "other", "long"] and recorder.batches[1] == ["short", "other"]


def test_of_long_texts_the_first_ends_first_while_short_ones_come(recorder: Recorder) -> None:
    ended: list[str] = []
    texts = {"first": "first " * 20_000, "second": "second " * 20_000, "short": "short"}

    def submit(name: str) -> None:
        recorder.annotator.submit([texts[name]]).add_done_callback(lambda _: end(name))

    def end(name: str) -> None:
        ended.append(name)
        if name == "short" and len(ended) < 100:
            submit("short")  # in the pipeline's thread: there is always a short text that waits

    submit("first")
    until(lambda: len(recorder.batches) == 1)
    submit("second")
    submit("short")
    recorder.open.set()
    until(lambda: len(ended) > 100 or {"first", "second"} <= set(ended))
    longs = [name for name in ended if name != "short"]
    assert longs == ["first", "second"], "short texts do not keep a long one from its end for ever"
    assert ended.index("first") > 3 and "short" in ended[: ended.index("first")]


def test_callers_who_want_the_same_are_served_together(annotator: Annotator, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[tuple[int, tuple[str, ...]]] = []
    pipe: Any = annotator.nlp.pipe

    def record(texts: Any, *, as_tuples: bool = False, disable: Any, **settings: Any) -> Any:
        if as_tuples:  # spaCy calls itself again without
            texts = list(texts)
            batches.append((len(texts), tuple(disable)))
        return pipe(texts, as_tuples=as_tuples, disable=disable, **settings)

    monkeypatch.setattr(annotator.nlp, "pipe", record)
    gate = threading.Event()
    annotator.thread.submit(gate.wait, guard(20))
    wants: list[set[Layer]] = [{"entities"}, {"concepts"}] * 3
    futures = [annotator.submit([TEXT], want) for want in wants]
    gate.set()
    for future, want in zip(futures, wants, strict=True):
        (analysis,) = future.result(guard(20))
        assert bool(analysis.entities) == ("entities" in want) and bool(analysis.concepts) == ("concepts" in want)
    assert sorted(batches) == [(3, ()), (3, ("concepts",))]


def test_a_text_that_fails_costs_nobody_else_anything(recorder: Recorder) -> None:
    first = recorder.annotator.submit(["first"])
    until(lambda: recorder.batches == [["first"]])
    good, bad, other = (recorder.annotator.submit(texts) for texts in (["one", "two"], ["fine", "bad"], ["three"]))
    recorder.open.set()
    with pytest.raises(ValueError, match="a bad text"):
        bad.result(guard(20))
    for future, texts in ((first, ["first"]), (good, ["one", "two"]), (other, ["three"])):
        found = [[ent.text for ent in analysis.entities] for analysis in future.result(guard(20))]
        assert found == [[text] for text in texts]


def test_what_nobody_waits_for_is_not_annotated(recorder: Recorder) -> None:
    recorder.annotator.submit(["first"])
    until(lambda: recorder.batches == [["first"]])
    given_up, kept = recorder.annotator.submit(["given up"]), recorder.annotator.submit(["kept"])
    assert given_up.cancel()
    recorder.open.set()
    assert kept.result(guard(20))[0].text == "kept" and recorder.batches == [["first"], ["kept"]]


def test_progress_is_told_to_the_caller_who_may_stop(recorder: Recorder) -> None:
    recorder.open.set()
    told: list[tuple[int, int, threading.Thread]] = []

    def advance(done: int, total: int) -> None:
        told.append((done, total, threading.current_thread()))
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recorder.annotator.annotate(["word " * 100_000], advance=advance)
    assert [row[1:] for row in told] == [(500_000, threading.current_thread())] * 2
    recorder.annotator.annotate(["after"])
    assert recorder.batches[-1] == ["after"] and not recorder.annotator.jobs


@given(st.lists(st.lists(st.text(max_size=30), max_size=4), max_size=8), st.integers(1, 40))
def test_an_analysis_does_not_depend_on_what_is_asked_along_with_it(jobs: list[list[str]], length: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(annotate, "PART_LENGTH", length)
        recorder = Recorder()
        futures = [recorder.annotator.submit(texts) for texts in jobs]
        recorder.open.set()
        together = [future.result(guard(20)) for future in futures]
        assert together == [recorder.annotator.annotate(texts) for texts in jobs]
        assert [[analysis.text for analysis in found] for found in together] == jobs


def test_the_thread_of_a_pipeline_ends_with_it(recorder: Recorder) -> None:
    recorder.open.set()
    annotator = Annotator(recorder.annotator.nlp)
    annotator.annotate(["text"])
    (thread,) = annotator.thread._threads
    gone = weakref.ref(annotator)
    del annotator
    gc.collect()
    until(lambda: gone() is None and not thread.is_alive())
