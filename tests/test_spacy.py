"""What people who use spaCy do with an installed wheel: those rows of docs/spacy.md that no other test has."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import spacy
from catalogue import REGISTRY  # type: ignore[import-untyped,unused-ignore]
from spacy.language import Language
from spacy.tokens import Doc, DocBin, Span
from spacy.util import load_model_from_config

import bert_ner  # noqa: F401 (registers its functions for all tests, before those of the wheel take their place)
from tests.conftest import ROOT, Project, new_python, once, python, words
from tests.scripts.test_package import WHEEL

TEXTS = ["Senator Mira Solberg left Turku for Oslo on Monday . She slept .", "Kenya beat Peru twice in Malta ."]
TEXT = " ".join(TEXTS * 3)


@pytest.fixture(scope="module")
def installed(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to which pip has installed the wheel of a tiny run. Python finds nothing else of the project there."""

    def make(folder: Path) -> None:
        folder.mkdir()
        options = ["--no-deps", "--no-index", "--target", str(folder)]
        assert python("-m", "pip", "install", *options, str(project.folder / WHEEL), cwd=folder).returncode == 0
        shutil.copy(project.folder / "corpus/tiny/dev.spacy", folder)
        lines = [json.dumps({"text": text}) for text in TEXTS * 3]
        (folder / "texts.jsonl").write_text("\n".join(lines), "utf8")

    return once(tmp_path_factory, "installed", make)


@pytest.fixture(scope="module")
def nlp(installed: Path) -> Iterator[Language]:
    """The pipeline of the wheel, by its name. No test may change it for longer than its own time.

    The registry has the functions of the wheel instead of the project's for as long, since it keeps one of a name.
    """
    others = {key: value for key, value in REGISTRY.items() if not value.__module__.startswith("bert_ner.")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("catalogue.REGISTRY", others)
        patch.syspath_prepend(str(installed))
        for name in [name for name in sys.modules if name.partition(".")[0] == "en_bert_ner"]:
            patch.delitem(sys.modules, name)
        nlp = spacy.load("en_bert_ner")
        assert type(nlp.get_pipe("ner")).__module__ == "en_bert_ner.recognizer"
        yield nlp


@pytest.fixture
def own(nlp: Language) -> Language:
    """A pipeline of the same components, to which a test may add some and take some away, for nothing is copied."""
    shared = type(nlp)(vocab=nlp.vocab)
    shared.tokenizer = nlp.tokenizer
    for name in nlp.pipe_names:
        shared.add_pipe(name, source=nlp)
    return shared


def annotate(nlp: Language) -> Doc:
    doc = nlp(TEXT)
    assert doc.ents and concepts(doc), "else there is nothing to compare"
    return doc


class Score(float):
    """A score, whose last digits depend on the number of threads and on where the weights lie in memory."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, float) and abs(self - other) < 1e-6

    __hash__ = None  # type: ignore[assignment]


def score_of(span: Span) -> Score | None:
    return None if span._.score is None else Score(span._.score)


def entities(doc: Doc) -> list[tuple[int, int, str, Score | None]]:
    return [(ent.start, ent.end, ent.label_, score_of(ent)) for ent in doc.ents]


def concepts(doc: Doc) -> list[tuple[Any, ...]]:
    spans = doc.spans["concepts"]
    return [(span.text, span.label_, span._.entity, span._.negated, score_of(span)) for span in spans]


def triples(doc: Doc) -> list[str]:
    return [str(triple) for triple in doc._.triples]


# Documents


def by_docbin(doc: Doc, user_data: bool = True) -> Doc:
    stored = DocBin(store_user_data=user_data, docs=[doc]).to_bytes()
    (again,) = DocBin().from_bytes(stored).get_docs(spacy.blank("en").vocab)
    return again


def by_json(doc: Doc) -> Doc:
    stored = json.dumps(doc.to_json(underscore=["score"]))
    return Doc(spacy.blank("en").vocab).from_json(json.loads(stored), validate=True)


def by_pickle(doc: Doc) -> Doc:
    again: Doc = pickle.loads(pickle.dumps(doc))
    return again


@pytest.mark.parametrize("keep", [by_docbin, by_json, by_pickle])
def test_a_document_comes_back_with_scores_and_triples(nlp: Language, keep: Callable[[Doc], Doc]) -> None:
    """Also with a vocabulary that has never seen it."""
    doc = annotate(nlp)
    again = keep(doc)
    assert entities(again) == entities(doc) and all(score for *_, score in entities(again))
    assert concepts(again) == concepts(doc) and triples(again) == triples(doc)
    assert [sent.start for sent in again.sents] == [sent.start for sent in doc.sents]


def test_a_docbin_without_user_data_loses_the_scores_alone(nlp: Language) -> None:
    doc = annotate(nlp)
    again = by_docbin(doc, user_data=False)
    assert entities(again) == [(*place, None) for *place, _ in entities(doc)]


def test_vectors_are_there_without_the_doc_cleaner(nlp: Language, own: Language) -> None:
    """With it there are none, and what asks for them (`similarity`, `as_doc`) works all the same."""
    doc = annotate(nlp)
    assert not doc.has_vector and not doc.vector.any() and doc._.trf_data is None
    part = doc[doc.ents[0].start :].as_doc(copy_user_data=True)
    assert entities(part)[0][3] == doc.ents[0]._.score
    own.remove_pipe("doc_cleaner")
    doc = annotate(own)
    assert doc.vector.shape == (256,) and doc.similarity(doc) == pytest.approx(1)


# Pipelines


def test_names_alone_are_the_same_names(nlp: Language) -> None:
    expected, before = entities(annotate(nlp)), list(nlp.pipe_names)
    with nlp.select_pipes(enable=["transformer", "tok2vec", "senter", "ner"]):
        doc = nlp(TEXT)
        assert entities(doc) == expected and not doc.spans and not doc.has_annotation("TAG")
    assert nlp.pipe_names == before


def test_another_component_may_stand_in_the_place_of_ner(nlp: Language, own: Language) -> None:
    """Concepts follow what it finds, and the pipeline that the others are from is as it was."""
    expected = entities(annotate(nlp))
    assert entities(own(TEXT)) == expected and concepts(own(TEXT)) == concepts(nlp(TEXT))
    rules: Any = own.replace_pipe("ner", "entity_ruler")
    rules.add_patterns([{"label": "LOC", "pattern": "Turku"}])
    doc = own(TEXT)
    assert [(ent.text, ent.label_, ent._.score) for ent in doc.ents] == [("Turku", "LOC", None)] * 3
    assert [text for text, _, label, *_ in concepts(doc) if label == "LOC"] == ["Turku"] * 3
    assert entities(nlp(TEXT)) == expected


def test_components_before_and_after_have_their_say(nlp: Language, own: Language) -> None:
    """Entities and sentences that were set before are kept, and the tokens may be merged after."""
    expected = annotate(nlp)
    rules: Any = own.add_pipe("entity_ruler", before="ner")
    rules.add_patterns([{"label": "EVENT", "pattern": "Turku"}])
    own.add_pipe("sentencizer", first=True)
    own.add_pipe("merge_entities", last=True)
    doc = own(TEXT)
    assert [(ent.text, ent._.score) for ent in doc.ents if ent.label_ == "EVENT"] == [("Turku", None)] * 3
    assert len(list(doc.sents)) == 9 and all(len(ent) == 1 for ent in doc.ents)
    assert doc.spans["concepts"] and doc.text == expected.text


def test_an_entity_that_is_renamed_afterwards_keeps_the_score_of_its_place(own: Language) -> None:
    before = annotate(own).ents[0]
    rules: Any = own.add_pipe("entity_ruler", after="ner", config={"overwrite_ents": True})
    rules.add_patterns([{"label": "EVENT", "pattern": before.text}])
    renamed = own(TEXT).ents[0]
    assert renamed.text == before.text and renamed.label_ == "EVENT" and renamed._.score == before._.score


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda nlp: pickle.loads(pickle.dumps(nlp))], ids=["copy", "pickle"])
def test_a_pipeline_can_be_copied(nlp: Language, copied: Callable[[Language], Language]) -> None:
    """Also after it was used: what it keeps of its use, such as threads, is no part of a copy."""
    doc = annotate(nlp)
    again = copied(nlp)(TEXT)
    assert entities(again) == entities(doc) and concepts(again) == concepts(doc) and triples(again) == triples(doc)


@pytest.mark.slow
def test_a_forked_process_uses_the_pipeline_or_loads_one(installed: Path) -> None:
    """After it was used in the parent, whose threads a fork does not copy. What uses them does not return."""
    code = f"""
import multiprocessing, spacy, torch
torch.set_num_threads(2)
text = {TEXT!r} * 100
nlp = spacy.load("en_bert_ner")
expected = [(ent.start, ent.end, ent.label_) for ent in nlp(text).ents]
def find(load):
    doc = (spacy.load("en_bert_ner") if load else nlp)(text)
    assert expected and [(ent.start, ent.end, ent.label_) for ent in doc.ents] == expected
for load in (False, True):
    process = multiprocessing.get_context("fork").Process(target=find, args=(load,))
    process.start()
    process.join()
    assert process.exitcode == 0
"""
    done = new_python("-c", code, cwd=installed)
    assert done.returncode == 0, done.stdout + done.stderr


def other_pipeline(nlp: Language) -> Language:
    """A pipeline with a tok2vec and a tagger of its own, and our tokenizer."""
    other = spacy.blank("en")
    other.tokenizer = nlp.tokenizer
    other.add_pipe("tok2vec")
    listener = {"@architectures": "spacy.Tok2VecListener.v1", "width": 96}
    tagger: Any = other.add_pipe("tagger", config={"model": {"tok2vec": listener}})
    for label in "ABC":
        tagger.add_label(label)
    other.initialize()
    softmax = tagger.model.get_ref("softmax")  # which starts with zeros: all tags would be the same
    softmax.set_param("W", tagger.model.ops.xp.random.default_rng(0).normal(size=(3, 96)).astype("float32"))
    return other


def test_ner_works_in_a_pipeline_with_a_tok2vec_of_its_own(nlp: Language) -> None:
    """A listener hears what stands before it: theirs hears theirs, and ours ours."""
    other, doc = other_pipeline(nlp), annotate(nlp)
    tags = [token.tag_ for token in other(TEXT)]
    assert len(set(tags)) > 1
    for name in ("transformer", "tok2vec", "senter", "ner"):
        other.add_pipe(name, name=f"bert_{name}", source=nlp)
    again = other(TEXT)
    assert entities(again) == entities(doc) and [token.tag_ for token in again] == tags


@pytest.mark.slow
def test_one_component_can_hold_all_that_ner_needs(nlp: Language, tmp_path: Path) -> None:
    """From the encoder up, and then it can stand wherever it wants: also before the tok2vec of the others."""
    copied: Any = load_model_from_config(nlp.config).from_bytes(nlp.to_bytes())
    doc, other = annotate(nlp), other_pipeline(nlp)
    assert entities(copied(TEXT)) == entities(doc) and concepts(copied(TEXT)) == concepts(doc)
    tags = [token.tag_ for token in other(TEXT)]
    copied.replace_listeners("transformer", "tok2vec", ["model.tok2vec"])
    copied.replace_listeners("tok2vec", "ner", ["model.tok2vec"])
    starts: Any = other.add_pipe("sentencizer", first=True)
    other.add_pipe("ner", name="names", source=copied, after=starts.name)
    other.to_disk(tmp_path / "other")
    with nlp.select_pipes(enable=["transformer", "tok2vec", "ner"]):
        expected = entities(nlp(starts(nlp.make_doc(TEXT))))
    for pipeline in (other, spacy.load(tmp_path / "other")):
        again = pipeline(TEXT)
        assert entities(again) == expected and [token.tag_ for token in again] == tags
    assert expected


# The commands of spaCy


def command(folder: Path, *arguments: str) -> str:
    done = python("-m", "spacy", *arguments, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return words(done.stdout)


@pytest.mark.slow
def test_the_wheel_finds_the_same_in_processes_that_are_spawned(installed: Path, project: Project) -> None:
    """As on macOS and Windows, where CI runs this script too."""
    arguments = ("-P", str(ROOT / "tests/installed.py"), str(project.folder / "metrics/tiny/package.json"))
    done = new_python(*arguments, cwd=installed, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_info_knows_the_wheel(installed: Path) -> None:
    meta = json.loads((installed / "en_bert_ner/meta.json").read_text("utf8"))
    said = command(installed, "info", "en_bert_ner")
    assert meta["description"] in said and "version 1.0.0" in said and "disabled ['chunker']" in said


@pytest.mark.slow
def test_apply_annotates_texts_in_one_process_and_in_two(installed: Path, nlp: Language) -> None:
    expected = [entities(doc) for doc in nlp.pipe(TEXTS * 3)]
    assert any(expected)
    arguments = ("apply", "en_bert_ner", "texts.jsonl")
    command(installed, *arguments, "one.spacy")
    # In a new Python, whose processes are forked, unlike those that the tests have at hand
    done = new_python("-m", "spacy", *arguments, "two.spacy", "--n-process", "2", cwd=installed)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("one.spacy", "two.spacy"):
        docs = list(DocBin().from_disk(installed / name).get_docs(nlp.vocab))
        assert [entities(doc) for doc in docs] == expected and all("concepts" in doc.spans for doc in docs)


@pytest.mark.slow
def test_benchmark_measures_speed_and_accuracy(installed: Path) -> None:
    options = ["--batches", "30", "--batch-size", "1", "--warmup", "0"]
    assert "words/s" in command(installed, "benchmark", "speed", "en_bert_ner", "dev.spacy", *options)
    command(installed, "evaluate", "en_bert_ner", "dev.spacy", "--output", "one.json")
    command(installed, "benchmark", "accuracy", "en_bert_ner", "dev.spacy", "--output", "two.json")
    one, two = (json.loads((installed / name).read_text("utf8")) for name in ("one.json", "two.json"))
    assert one["ents_f"] == two["ents_f"] and one["ents_per_type"]


@pytest.mark.slow
def test_find_threshold_says_that_ner_has_none(installed: Path) -> None:
    done = python(
        "-m", "spacy", "find-threshold", "en_bert_ner", "dev.spacy", "ner", "threshold", "ents_f", cwd=installed
    )
    assert done.returncode == 1 and "sub-key ['threshold'] not found" in words(done.stdout + done.stderr)
