from __future__ import annotations

from pathlib import Path

import pytest
import spacy
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.language import Language
from spacy.tokens import Doc, DocBin
from spacy.util import import_file, load_config, load_model_from_config, registry

from scripts import functions
from scripts.convert import convert
from tests.conftest import ROOT, write_corpus

nlp = spacy.blank("en")


@settings(deadline=None)
@given(st.lists(st.integers(0, 700), max_size=4), st.integers(1, 200))
def test_windows_hold_each_token_once_and_are_equally_long(lengths: list[int], size: int) -> None:
    docs = [Doc(nlp.vocab, words=["a"] * length) for length in lengths]
    for doc, windows in zip(docs, functions.create_windows(size)(docs), strict=True):
        assert [token.i for window in windows for token in window] == list(range(len(doc)))
        assert all(1 <= len(window) <= size for window in windows)
        assert len(windows) == -(-len(doc) // size)
        assert not windows or max(map(len, windows)) - min(map(len, windows)) <= 1


def test_the_corpus_gives_sentence_starts_to_the_predicted_docs(tmp_path: Path) -> None:
    convert(write_corpus(tmp_path / "assets"), tmp_path / "corpus")
    for example in functions.create_corpus(tmp_path / "corpus" / "train.spacy", True)(nlp):
        starts = [token.is_sent_start for token in example.reference]
        assert [token.is_sent_start for token in example.predicted] == starts and any(starts) and not all(starts)
        assert not example.predicted.ents
    for example in functions.create_corpus(tmp_path / "corpus" / "train.spacy", False)(nlp):
        assert not example.predicted.has_annotation("SENT_START")


def test_the_corpus_leaves_docs_without_sentences_alone(tmp_path: Path) -> None:
    DocBin(docs=[Doc(nlp.vocab, words=["Turku", "sleeps"], ents=["B-LOC", "O"])]).to_disk(tmp_path / "some.spacy")
    (example,) = functions.create_corpus(tmp_path / "some.spacy", True)(nlp)
    assert not example.predicted.has_annotation("SENT_START")


def test_registering_again_is_harmless() -> None:
    for name in ("first", "second"):
        import_file(name, ROOT / "scripts" / "functions.py")
    assert registry.readers.get("bert_ner.Corpus.v1")


@pytest.fixture(scope="module")
def pipeline(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Language:
    folder = tmp_path_factory.mktemp("functions")
    convert(write_corpus(folder / "assets"), folder / "corpus")
    train = folder / "corpus" / "train.spacy"
    overrides = {"paths.encoder": str(tiny_encoder), "paths.train": str(train), "paths.dev": "x"}
    config = load_config(ROOT / "configs" / "bert.cfg", overrides=overrides, interpolate=True)
    made = load_model_from_config(config, auto_fill=True)
    made.initialize(lambda: list(functions.create_corpus(train, True)(made)))
    return made


@pytest.mark.parametrize("text", ["", "Turku", "  \n ", "Mira left Turku. " * 300])
def test_texts_of_any_length_pass(pipeline: Language, text: str) -> None:
    doc = pipeline(text)
    assert doc.text == text
    assert doc._.trf_data is None  # tensors would fill the memory of who keeps Docs


def test_bytes_and_disk_give_the_same_pipeline(pipeline: Language, tmp_path: Path) -> None:
    text = "Mira Solberg left Turku for Oslo and beat Kenya twice in Malta ."
    pipeline.to_disk(tmp_path / "pipeline")
    again = spacy.load(tmp_path / "pipeline")
    copied = load_model_from_config(pipeline.config).from_bytes(pipeline.to_bytes())
    for other in (again, copied):
        assert isinstance(other, Language) and other(text).to_bytes() == pipeline(text).to_bytes()
        ours, theirs = (nlp.get_pipe("transformer").model.transformer.state_dict() for nlp in (pipeline, other))  # type: ignore[attr-defined]
        assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)


def test_known_sentence_starts_are_kept_and_no_entity_crosses_them(pipeline: Language) -> None:
    words = ["Mira", "Solberg", "Turku", "Oslo"] * 10
    doc = pipeline(Doc(pipeline.vocab, words=words, sent_starts=[i % 2 == 0 for i in range(len(words))]))
    assert [sent.start for sent in doc.sents] == list(range(0, len(words), 2))
    assert all(len(ent) <= 2 and ent.start // 2 == (ent.end - 1) // 2 for ent in doc.ents)
