from __future__ import annotations

import spacy
from spacy.language import Language
from spacy.tokens import Doc, DocBin

from scripts import functions  # noqa: F401 (registers the reader)
from scripts.evaluate import score
from scripts.steps import read_json
from tests.conftest import Project


def test_gold_sentences_are_given_and_predicted_ones_are_not(project: Project) -> None:
    evaluation = read_json(project.folder / "metrics/tiny/evaluation.json")
    for split in ("dev", "test"):
        assert evaluation[split]["gold_sentences"]["sents_f"] == 1.0
    assert evaluation["dev"]["predicted_sentences"]["sents_f"] < 1.0


def test_the_documents_stay_whole(project: Project) -> None:
    """`spacy evaluate --gold-preproc` would score sentences without their context."""
    nlp = spacy.blank("en")
    lengths: list[int] = []

    @Language.component("measure")
    def measure(doc: Doc) -> Doc:
        lengths.append(len(doc))
        return doc

    nlp.add_pipe("measure")
    path = project.folder / "corpus/tiny/dev.spacy"
    docs = list(DocBin().from_disk(path).get_docs(nlp.vocab))
    score(nlp, path, gold_sentences=True)
    assert sorted(lengths) == sorted(map(len, docs))
