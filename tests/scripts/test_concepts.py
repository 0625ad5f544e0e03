from __future__ import annotations

from typing import Any

import pytest
import spacy
import srsly

from common.conll import read_conll
from common.errors import StepError
from common.records import read_json, record_inputs
from scripts.concepts import score_concepts
from tests.conftest import ROOT, Project


def test_the_scores_of_a_run_are_those_of_the_marked_sentences(project: Project) -> None:
    record = read_json(project.folder / "metrics/tiny/concepts.json")
    rows = list(srsly.read_jsonl(ROOT / "assets/sample/concepts.jsonl"))
    for split in ("dev", "test"):
        for label in ("actor", "factor", "mechanism"):
            marked = [span for row in rows if row["split"] == split for span in row["spans"] if span["label"] == label]
            assert record["sentences"][split] == sum(row["split"] == split for row in rows)
            assert record["labels"][split][label]["spans"] == len(marked)
            assert 0 <= record["labels"][split][label]["f1"] <= 1
    model = project.folder / "training/tiny/model-best"
    assert record["inputs"] == record_inputs(
        model=model,
        code=project.folder / "scripts/concepts.py",
        corpus=ROOT / "assets/sample/concepts.jsonl",
    )


def test_exact_spans_and_labels_count() -> None:
    nlp = spacy.blank("en")
    pattern = {"label": "actor", "pattern": "town hall"}
    nlp.add_pipe("span_ruler", name="concepts", config={"spans_key": "concepts"}).add_patterns([pattern])  # type: ignore[attr-defined]
    text = "The town hall , a town hall"

    def mark(start: int, end: int, label: str) -> dict[str, object]:
        return {"start": start, "end": end, "label": label}

    marks = [mark(4, 13, "actor"), mark(22, 27, "actor"), mark(0, 3, "factor")]
    rows: list[dict[str, Any]] = [
        {"split": "dev", "text": text, "spans": marks},
        {"split": "test", "text": "Nothing", "spans": []},
    ]
    scores = score_concepts(nlp, rows)
    assert scores["dev"]["actor"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "spans": 2}
    assert scores["dev"]["factor"]["recall"] == 0 and "test" not in scores


def test_a_pipeline_without_concepts_is_told() -> None:
    with pytest.raises(StepError, match="no component concepts"):
        score_concepts(spacy.blank("en"), [])


def test_the_marked_sentences_are_of_the_sample_and_do_not_overlap() -> None:
    rows = list(srsly.read_jsonl(ROOT / "assets/sample/concepts.jsonl"))
    for split in ("dev", "test"):
        documents = read_conll(ROOT / f"assets/sample/{split}.conll").documents
        sentences = {"".join(token.text for token in sentence) for document in documents for sentence in document}
        texts = [row["text"].replace(" ", "") for row in rows if row["split"] == split]
        assert len(set(texts)) == 30 and set(texts) <= sentences
    for row in rows:
        ends = [0, *(span["end"] for span in row["spans"])]
        for before, span in zip(ends, row["spans"], strict=False):
            assert before <= span["start"] < span["end"] <= len(row["text"])
            assert span["label"] in ("actor", "factor", "mechanism")
            assert row["text"][span["start"] : span["end"]].strip() == row["text"][span["start"] : span["end"]]
