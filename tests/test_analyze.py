from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
import spacy
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.tokens import Doc, Span
from spacy.training import Example

from scripts.analyze import (
    FIGURES,
    compare_with_seqeval,
    confuse_entities,
    confuse_tokens,
    draw_curves,
    find_errors,
    judge_scores,
    score_labels,
    slice_up,
)
from scripts.explore import save_figures
from scripts.steps import StepError, read_json
from tests.conftest import Project, words

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


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(TAGS, TAGS), min_size=1, max_size=4))
def test_every_count_agrees_with_the_others(pairs: list[tuple[list[str], list[str]]]) -> None:
    examples = [example(*(tags[: min(map(len, pair))] for tags in pair)) for pair in pairs]
    gold = sum(len(e.reference.ents) for e in examples)
    found = sum(len(e.predicted.ents) for e in examples)
    both = compare_with_seqeval(examples)
    assert both["f"] == pytest.approx(both["seqeval_strict_f"]) or not gold + found
    labels = score_labels(examples)
    assert labels["in all"]["f"] == pytest.approx(both["f"])
    low, high = labels["in all"]["interval"]
    assert 0 <= low <= high <= 1
    right = round(labels["in all"]["recall"] * gold)
    errors, worst = find_errors(examples)
    wrong = sum(errors[kind]["in all"] for kind in ("type", "boundary", "both", "missed"))
    assert right + wrong == gold
    assert {kind: len(quotes) for kind, quotes in worst.items()} == {kind: n["in all"] for kind, n in errors.items()}
    confusion = confuse_entities(examples)
    assert sum(sum(inner.values()) for inner in confusion.values()) == gold
    assert sum(inner.get(label, 0) for label, inner in confusion.items()) == right
    assert sum(sum(inner.values()) for inner in confuse_tokens(examples).values()) == sum(len(e.x) for e in examples)
    for parts in slice_up(examples, [make(["B-LOC", "O", "B-PER"])]).values():
        assert sum(part["entities"] for part in parts.values()) == gold
        assert round(sum(part["entities"] * part["recall"] for part in parts.values())) == right
    assert sum(part["entities"] for part in judge_scores(examples)) == found


def test_errors_are_told_apart() -> None:
    corpus = ["B-LOC", "O", "B-LOC", "I-LOC", "O", "B-PER", "I-PER", "O", "B-PER", "O"]
    pipeline = ["B-PER", "O", "B-LOC", "O", "O", "O", "B-LOC", "O", "O", "B-LOC"]
    errors, worst = find_errors([example(pipeline, corpus)])
    assert {kind: found["in all"] for kind, found in errors.items()} == dict.fromkeys(errors, 1)
    assert errors["type"]["LOC"] == errors["both"]["PER"] == errors["missed"]["PER"] == errors["spurious"]["LOC"] == 1
    (quote,) = worst["boundary"]
    cut = [(quote["text"][span["start"] : span["end"]], span["label"]) for span in (quote["corpus"], quote["pipeline"])]
    assert cut == [("w2 w3", "LOC"), ("w2", "LOC")]
    assert worst["missed"][0]["pipeline"] is None and worst["spurious"][0]["corpus"] is None


def test_slices_know_what_training_had() -> None:
    found = slice_up([example(["B-LOC", "O", "O"], ["B-LOC", "O", "B-LOC"])], [make(["B-LOC"]), make(["B-PER"])])
    assert found["in train"]["2 to 9 times"]["f"] == 1 and found["in train"]["never"]["recall"] == 0
    assert found["labels of the name in train"]["several"]["entities"] == 1


def test_the_analysis_of_the_run_is_there(project: Project) -> None:
    result = read_json(project.folder / "metrics/tiny/analysis.json")
    test = read_json(project.folder / "metrics/tiny/test.json")
    assert result["agreement"]["f"] == pytest.approx(test["ents_f"] or 0)
    assert result["agreement"]["seqeval_strict_f"] == pytest.approx(test["ents_f"] or 0)
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
@pytest.mark.parametrize("right", [True, False])
def test_any_result_has_figures(labels: list[str], right: bool, tmp_path: Path) -> None:
    corpus = [f"B-{label}" for label in labels]
    examples = [example(corpus if right else ["O"] * len(corpus), corpus)]
    errors, _ = find_errors(examples)
    assert sum(found["in all"] for found in errors.values()) == (0 if right else len(labels))
    result = {
        "labels": score_labels(examples),
        "confusion_of_tokens": confuse_tokens(examples),
        "confusion_of_entities": confuse_entities(examples),
        "errors": errors,
        "slices": slice_up(examples, []),
        "calibration": judge_scores(examples),
        "curves": [],
    }
    save_figures(FIGURES, result, tmp_path)
    for name in FIGURES:
        ElementTree.parse(tmp_path / f"{name}.svg")


def test_a_test_set_without_entities_is_refused(project: Project, tmp_path: Path) -> None:
    from scripts.analyze import analyze
    from scripts.convert import convert
    from tests.conftest import ROOT, write_corpus

    assets = write_corpus(tmp_path / "assets")
    (assets / "test.conll").write_text("nothing O\n")
    convert(assets, tmp_path / "corpus")
    with pytest.raises(StepError, match="nothing to compare"):
        analyze(
            project.folder / "training/tiny/model-best", tmp_path / "corpus", tmp_path, ROOT / "scripts/functions.py"
        )
