from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import spacy
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.tokens import Doc, Span
from spacy.training import Example

from common.corpora import read_docs
from common.errors import StepError
from common.figures import save_figures
from common.predictions import write_predictions
from common.records import read_json, record_inputs, write_json
from common.statistics import calibration_curve, match_entities
from scripts.analyze import (
    FIGURES,
    analyze,
    compare_with_seqeval,
    confuse_entities,
    confuse_tokens,
    draw_curves,
    find_errors,
    score_labels,
    slice_up,
)
from scripts.convert import convert
from tests.conftest import Project, new_python, words, write_corpus

nlp = spacy.blank("en")
if not Span.has_extension("score"):  # the entity recogniser sets it
    Span.set_extension("score", default=None)
TAGS = st.lists(st.sampled_from(["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]), min_size=1, max_size=10)


def make(tags: list[str]) -> Doc:
    legal = [tag if tag[0] != "I" or (i and tags[i - 1][1:] == tag[1:]) else "O" for i, tag in enumerate(tags)]
    legal = [tag if tag[0] != "I" or legal[i - 1] != "O" else "O" for i, tag in enumerate(legal)]
    doc = Doc(nlp.vocab, words=[f"w{i}" for i in range(len(tags))], ents=legal)
    doc[0].is_sent_start = True
    for token in doc[1:]:
        token.is_sent_start = token.i % 4 == 0
    for ent in doc.ents:
        ent._.score = 0.5 + ent.start / 40
    return doc


def example(predicted: list[str], reference: list[str]) -> Example:
    return Example(make(predicted), make(reference))


@settings(max_examples=25)
@given(st.lists(st.tuples(TAGS, TAGS), min_size=1, max_size=4))
def test_every_count_agrees_with_the_others(pairs: list[tuple[list[str], list[str]]]) -> None:
    examples = [example(*(tags[: min(map(len, pair))] for tags in pair)) for pair in pairs]
    gold = sum(len(e.reference.ents) for e in examples)
    predicted = sum(len(e.predicted.ents) for e in examples)
    both = compare_with_seqeval(examples)
    assert both["f1"] == pytest.approx(both["seqeval_strict_f1"]) or not gold + predicted
    labels = score_labels(examples)
    assert labels["overall"]["f1"] == pytest.approx(both["f1"])
    low, high = labels["overall"]["interval"]
    assert 0 <= low <= high <= 1
    correct = round(labels["overall"]["recall"] * gold)
    errors, quotes = find_errors(examples)
    wrong = sum(errors[kind]["overall"] for kind in ("type", "boundary", "both", "missed"))
    assert correct + wrong == gold
    assert {kind: len(quoted) for kind, quoted in quotes.items()} == {kind: n["overall"] for kind, n in errors.items()}
    confusion = confuse_entities(examples)
    assert sum(sum(inner.values()) for inner in confusion.values()) == gold
    assert sum(inner.get(label, 0) for label, inner in confusion.items()) == correct
    assert sum(sum(inner.values()) for inner in confuse_tokens(examples).values()) == sum(len(e.x) for e in examples)
    for parts in slice_up(examples, [make(["B-LOC", "O", "B-PER"])]).values():
        assert sum(part["entities"] for part in parts.values()) == gold
        assert round(sum(part["entities"] * part["recall"] for part in parts.values())) == correct
    scores, correct_ones, _ = match_entities(examples, set())
    assert sum(part["entities"] for part in calibration_curve(scores, correct_ones)) == predicted
    assert correct_ones.sum() == correct


def test_errors_are_told_apart() -> None:
    corpus = ["B-LOC", "O", "B-LOC", "I-LOC", "O", "B-PER", "I-PER", "O", "B-PER", "O"]
    pipeline = ["B-PER", "O", "B-LOC", "O", "O", "O", "B-LOC", "O", "O", "B-LOC"]
    errors, quotes = find_errors([example(pipeline, corpus)])
    assert {kind: numbers["overall"] for kind, numbers in errors.items()} == dict.fromkeys(errors, 1)
    assert errors["type"]["LOC"] == errors["both"]["PER"] == errors["missed"]["PER"] == errors["spurious"]["LOC"] == 1
    (quote,) = quotes["boundary"]
    cut = [(quote["text"][span["start"] : span["end"]], span["label"]) for span in (quote["corpus"], quote["pipeline"])]
    assert cut == [("w2 w3", "LOC"), ("w2", "LOC")]
    assert quotes["missed"][0]["pipeline"] is None and quotes["spurious"][0]["corpus"] is None


def test_slices_know_what_training_had() -> None:
    slices = slice_up([example(["B-LOC", "O", "O"], ["B-LOC", "O", "B-LOC"])], [make(["B-LOC"]), make(["B-PER"])])
    assert slices["in train"]["2 to 9 times"]["f1"] == 1 and slices["in train"]["never"]["recall"] == 0
    assert slices["labels of the name in train"]["several"]["entities"] == 1


def test_the_analysis_of_the_run_is_there(project: Project) -> None:
    result = read_json(project.folder / "metrics/tiny/analysis.json")
    test = read_json(project.folder / "metrics/tiny/test.json")
    assert result["agreement"]["f1"] == pytest.approx(test["ents_f"] or 0)
    assert result["agreement"]["seqeval_strict_f1"] == pytest.approx(test["ents_f"] or 0)
    for scores in result["tokens"].values():
        assert scores["loss"] > 0 and 0 <= scores["accuracy"] <= 1
    steps = [row["step"] for row in result["curves"]]
    assert steps == sorted(set(steps)) and len(steps) >= 2
    for name in FIGURES:
        ElementTree.parse(project.folder / f"metrics/tiny/figures/analysis/{name}.svg")
    assert "kind of error" in words(project.output)


def test_a_model_without_curves_has_a_figure() -> None:
    assert draw_curves({"curves": []})


@pytest.mark.parametrize("labels", [["LOC"], [f"L{i}" for i in range(200)], ["<script>", "$x_", "地名"]])
@pytest.mark.parametrize("correct", [True, False])
def test_any_result_has_figures(labels: list[str], correct: bool, tmp_path: Path) -> None:
    corpus = [f"B-{label}" for label in labels]
    examples = [example(corpus if correct else ["O"] * len(corpus), corpus)]
    errors, _ = find_errors(examples)
    assert sum(numbers["overall"] for numbers in errors.values()) == (0 if correct else len(labels))
    result = {
        "labels": score_labels(examples),
        "confusion_of_tokens": confuse_tokens(examples),
        "confusion_of_entities": confuse_entities(examples),
        "errors": errors,
        "slices": slice_up(examples, []),
        "calibration": calibration_curve(*match_entities(examples, set())[:2]),
        "curves": [],
    }
    captions = save_figures(FIGURES, result, tmp_path)
    assert list(captions) == list(FIGURES) and all(caption.endswith(".") for caption in captions.values())
    for name in FIGURES:
        ElementTree.parse(tmp_path / f"{name}.svg")


def test_a_test_set_without_entities_is_refused(project: Project, tmp_path: Path) -> None:
    """The predictions for dev stand for those for a test set of which the corpus marks nothing."""
    assets, model = write_corpus(tmp_path / "assets"), project.folder / "training/tiny/model-best"
    (assets / "dev.conll").write_text("nothing O\n")
    (assets / "test.conll").write_text("nothing O\n")
    convert(assets, tmp_path / "corpus")
    predictions = tmp_path / "metrics/predictions"
    predictions.mkdir(parents=True)
    splits = {split: tmp_path / f"corpus/{split}.spacy" for split in ("dev", "test")}
    for split, path in splits.items():
        (doc,) = read_docs(path)
        write_predictions(predictions, split, [doc], [np.ones((1, 5)) / 5], ["O", "B-LOC", "I-LOC", "L-LOC", "U-LOC"])
    write_json(predictions / "provenance.json", {"inputs": record_inputs(model=model, **splits)})
    with pytest.raises(StepError, match="nothing to compare"):
        analyze(model, tmp_path / "corpus", tmp_path / "metrics")


def test_analysing_and_reporting_need_neither_the_model_nor_its_libraries(project: Project) -> None:
    """spaCy itself may import PyTorch."""
    code = """
import sys
from scripts import analyze, package, report, verify
print(sorted({"bert_ner", "spacy_transformers", "transformers"} & set(sys.modules)))
"""
    done = new_python("-c", code, cwd=project.folder)
    assert done.returncode == 0 and done.stdout.strip() == "[]", done.stdout + done.stderr
