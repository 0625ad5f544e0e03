from __future__ import annotations

from collections import Counter
from typing import Any, cast

import numpy as np
import pytest
import spacy
from hypothesis import given
from hypothesis import strategies as st
from spacy.language import Language
from spacy.tokens import Doc, DocBin, Span
from spacy.training import Corpus, Example

import bert_ner  # noqa: F401 (registers the reader)
from common.scoring import (
    CONDITIONS,
    create_examples,
    create_raw_doc,
    measure,
    record_tags,
    score,
    score_text,
)
from tests.conftest import Project

nlp = spacy.blank("en")


def test_the_documents_stay_whole(project: Project) -> None:
    """`spacy evaluate --gold-preproc` would score sentences without their context."""
    pipe = spacy.blank("en")
    lengths: list[int] = []

    @Language.component("measure")
    def count(doc: Doc) -> Doc:
        lengths.append(len(doc))
        return doc

    pipe.add_pipe("measure")
    path = project.folder / "corpus/tiny/dev.spacy"
    docs = list(DocBin().from_disk(path).get_docs(pipe.vocab))
    score(pipe, list(create_examples(pipe, path, "gold_sentences")))
    assert sorted(lengths) == sorted(map(len, docs))


def test_each_text_is_predicted_once(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = spacy.load(project.folder / "training/tiny/model-best")
    kind: Any = type(pipe.get_pipe("ner"))
    predict, predicted = kind.predict, Counter[str]()

    def count(recognizer: Any, docs: list[Doc]) -> Any:
        predicted[recognizer.name] += len(docs)
        return predict(recognizer, docs)

    monkeypatch.setattr(kind, "predict", count)
    kept: dict[tuple[str, str], tuple[list[Example], list[np.ndarray]]] = {}

    def keep(split: str, condition: str, examples: list[Example], probabilities: list[np.ndarray]) -> None:
        kept[split, condition] = examples, probabilities

    scores = measure(pipe, project.folder / "corpus/tiny", keep)
    assert set(kept) == {(split, condition) for split in ("dev", "test") for condition in CONDITIONS}
    texts = [examples for (_, condition), (examples, _) in kept.items() if condition != "gold_sentences"]
    number = sum(map(len, texts))
    assert predicted == {"ner": number, "chunker": number}, (
        "given sentences change neither the text nor the probabilities"
    )
    for examples, probabilities in kept.values():
        assert [len(example.predicted) for example in examples] == [len(array) for array in probabilities]
    for split in ("dev", "test"):
        examples = list(create_examples(pipe, project.folder / f"corpus/tiny/{split}.spacy", "gold_sentences"))
        assert score(pipe, examples) == scores[split]["gold_sentences"]
        for again, example in zip(kept[split, "gold_sentences"][0], examples, strict=True):
            assert again.predicted.to_json() == example.predicted.to_json()


def test_a_document_as_shipped_is_what_spacy_evaluate_reads(project: Project) -> None:
    path = project.folder / "corpus/tiny/dev.spacy"
    for example, other in zip(create_examples(nlp, path, "predicted_sentences"), Corpus(path)(nlp), strict=True):
        assert example.predicted.to_json() == other.predicted.to_json()
        assert [token.is_sent_start for token in example.predicted] == [t.is_sent_start for t in other.predicted]
        assert example.reference.to_json() == other.reference.to_json()


def test_what_is_recorded_is_what_the_component_predicts(project: Project) -> None:
    pipe = spacy.load(project.folder / "training/tiny/model-best")
    recognizer: Any = pipe.get_pipe("ner")
    texts = ["Mira Solberg left Turku .", "", "Kenya beat Peru ."]
    with record_tags(pipe) as recorded:
        docs = list(pipe.pipe(texts))
    for arrays in (recorded.probabilities, recorded.posteriors):
        assert [array.shape for array in arrays] == [(len(doc), len(recognizer.tags)) for doc in docs]
    fresh = [pipe.make_doc(text) for text in texts]
    for name in pipe.pipe_names[: pipe.pipe_names.index("ner")]:
        fresh = list(cast(Any, pipe.get_pipe(name)).pipe(fresh))
    predicted = recognizer.predict(fresh)
    for one, other in zip(recorded.probabilities, predicted, strict=True):
        assert np.allclose(one, other, atol=1e-6)
    for one, other in zip(recorded.posteriors, recognizer.find_posteriors(fresh, predicted), strict=True):
        assert np.allclose(one, other, atol=1e-6)
    assert len(recorded.probabilities) == 3 and "predict" not in vars(recognizer), "recording has ended"


def make_doc() -> Doc:
    sentences = [
        "TENNIS - VIK WINS .",
        "Oslo 2031-02-07",
        '" We left the Turku ( Finland ) office , " Mira Lie \'s lawyer said .',
        "It was n't a very cold day .",
        "1. Mira Vik ( Norway ) 6-4",
    ]
    words = [word for sentence in sentences for word in sentence.split()]
    starts: list[bool | int | None] = [i == 0 for sentence in sentences for i, _ in enumerate(sentence.split())]
    doc = Doc(nlp.vocab, words=words, sent_starts=starts)
    doc.ents = [Span(doc, words.index("Turku"), words.index("Turku") + 1, "LOC")]
    return doc


def test_raw_text_looks_written() -> None:
    raw = create_raw_doc(make_doc())
    assert raw.text.splitlines() == [
        "TENNIS - VIK WINS.",
        "Oslo 2031-02-07",
        "\"We left the Turku (Finland) office,\" Mira Lie's lawyer said. It wasn't a very cold day.",
        "1. Mira Vik (Norway) 6-4",
    ]
    assert [(ent.text, ent.label_) for ent in raw.ents] == [("Turku", "LOC")]


@given(st.lists(st.text(min_size=1).filter(lambda text: not any(map(str.isspace, text))), min_size=1, max_size=8))
def test_raw_text_has_the_tokens_of_the_corpus_whatever_they_are(words: list[str]) -> None:
    raw = create_raw_doc(Doc(nlp.vocab, words=words, sent_starts=[i % 3 == 0 for i in range(len(words))]))
    assert [token.text for token in raw if not token.is_space] == words


def test_offsets_count_in_raw_text_not_whole_tokens() -> None:
    """spaCy's scorer takes half a token for the whole one."""
    pipe = spacy.blank("en")
    pipe.add_pipe("entity_ruler").add_patterns([{"label": "LOC", "pattern": "Oslo"}])  # type: ignore[attr-defined]
    reference = Doc(nlp.vocab, words=["Oslo-based", "firm", "in", "Oslo"], ents=["B-LOC", "O", "O", "B-LOC"])
    scores = score_text(pipe, [Example(pipe.make_doc(reference.text), reference)])
    assert (scores["ents_p"], scores["ents_r"], scores["token_f1"]) == (0.5, 0.5, pytest.approx(0.6))
