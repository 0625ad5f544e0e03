from __future__ import annotations

import numpy as np
import pytest
import spacy
from hypothesis import given
from hypothesis import strategies as st
from spacy.language import Language
from spacy.tokens import Doc, DocBin, Span
from spacy.training import Example

from scripts import functions  # noqa: F401 (registers the reader)
from scripts.evaluate import (
    calibration_error,
    create_examples,
    create_raw_doc,
    find_threshold,
    judge,
    score,
    score_text,
)
from scripts.steps import StepError, read_json
from tests.conftest import Project

nlp = spacy.blank("en")


def test_every_condition_is_measured(project: Project) -> None:
    evaluation = read_json(project.folder / "metrics/tiny/evaluation.json")
    for split in ("dev", "test"):
        for condition in ("predicted_sentences", "gold_sentences", "lower", "upper", "raw"):
            assert 0 <= evaluation[split][condition]["ents_f"] <= 1
        assert evaluation[split]["gold_sentences"]["sents_f"] == 1.0
        assert evaluation[split]["predicted_sentences"]["sents_f"] < 1.0
        assert 0.5 < evaluation[split]["raw"]["token_f"] <= 1
        assert 0 <= evaluation[split]["calibration"]["expected_calibration_error"] <= 1
    assert evaluation["dev"]["calibration"]["threshold"] == evaluation["test"]["calibration"]["threshold"]


def test_the_documents_stay_whole(project: Project) -> None:
    """`spacy evaluate --gold-preproc` would score sentences without their context."""
    pipe = spacy.blank("en")
    lengths: list[int] = []

    @Language.component("measure")
    def measure(doc: Doc) -> Doc:
        lengths.append(len(doc))
        return doc

    pipe.add_pipe("measure")
    path = project.folder / "corpus/tiny/dev.spacy"
    docs = list(DocBin().from_disk(path).get_docs(pipe.vocab))
    score(pipe, list(create_examples(pipe, path, "gold_sentences")))
    assert sorted(lengths) == sorted(map(len, docs))


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


def test_offsets_count_in_raw_text_not_whole_tokens(tmp_path: object) -> None:
    """spaCy's scorer takes half a token for the whole one."""
    pipe = spacy.blank("en")
    pipe.add_pipe("entity_ruler").add_patterns([{"label": "LOC", "pattern": "Oslo"}])  # type: ignore[attr-defined]
    reference = Doc(nlp.vocab, words=["Oslo-based", "firm", "in", "Oslo"], ents=["B-LOC", "O", "O", "B-LOC"])
    scores = score_text(pipe, [spacy.training.Example(pipe.make_doc(reference.text), reference)])
    assert (scores["ents_p"], scores["ents_r"], scores["token_f"]) == (0.5, 0.5, pytest.approx(0.6))


def test_the_calibration_error_is_the_distance_of_score_and_share() -> None:
    random = np.random.default_rng(0)
    scores = random.uniform(0.2, 0.8, 20000)
    right = random.random(20000) < scores
    assert calibration_error(scores, right) < 0.015
    assert calibration_error(scores + 0.2, right) == pytest.approx(0.2, abs=0.01)
    assert calibration_error(np.array([]), np.array([], dtype=bool)) == 0


@pytest.mark.parametrize("new", [0.2, 0.5])
def test_the_threshold_holds_for_texts_with_more_new_names(new: float) -> None:
    random = np.random.default_rng(0)

    def draw(new: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        scores, old = random.random(20000), random.random(20000) >= new
        return scores, random.random(20000) < np.where(old, 0.5 + scores / 2, scores), old

    threshold = find_threshold(*draw(new), 0.9)
    scores, right, _ = draw(0.5)
    assert right[scores >= threshold].mean() == pytest.approx(0.91, abs=0.01)


def test_a_threshold_needs_evidence() -> None:
    scores, old = np.linspace(1, 0.01, 100), np.ones(100, dtype=bool)
    right = np.arange(100) < 50
    assert find_threshold(scores, right, old, 0.5) == pytest.approx(scores[84], abs=0.03)
    assert find_threshold(scores[:5], right[:5], old[:5], 0.97) == 1.0
    assert find_threshold(scores[:0], right[:0], old[:0], 0.97) == 1.0


def test_a_pipeline_without_scores_is_told() -> None:
    doc = Doc(spacy.blank("en").vocab, words=["Turku"], ents=["B-LOC"])
    with pytest.raises(StepError, match="without a score"):
        judge([Example(doc, doc)], set())
