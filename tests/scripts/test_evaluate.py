from __future__ import annotations

from common.records import read_json, record_inputs
from tests.conftest import Project, rounded


def test_every_condition_is_measured(project: Project) -> None:
    evaluation = read_json(project.folder / "metrics/tiny/evaluation.json")
    for split in ("dev", "test"):
        for condition in ("predicted_sentences", "gold_sentences", "lower", "upper", "raw"):
            assert 0 <= evaluation[split][condition]["ents_f"] <= 1
        assert evaluation[split]["gold_sentences"]["sents_f"] == 1.0
        assert evaluation[split]["predicted_sentences"]["sents_f"] < 1.0
        assert all(evaluation[split][name]["spans_chunks_f"] > 0 for name in ("predicted_sentences", "gold_sentences"))
        assert 0.5 < evaluation[split]["raw"]["token_f1"] <= 1
        assert 0 <= evaluation[split]["calibration"]["expected_calibration_error"] <= 1
        assert evaluation[split]["calibration"]["min_precision"] == 0.97
    assert evaluation["dev"]["calibration"]["threshold"] == evaluation["test"]["calibration"]["threshold"]


def test_the_scores_as_shipped_are_those_of_spacy_evaluate(project: Project) -> None:
    evaluation = read_json(project.folder / "metrics/tiny/evaluation.json")
    test = read_json(project.folder / "metrics/tiny/test.json")
    shipped = evaluation["test"]["predicted_sentences"]
    assert rounded(shipped) == rounded({name: test[name] for name in shipped}) and shipped["ents_f"] > 0


def test_figures_and_predictions_say_what_they_were_measured_from(project: Project) -> None:
    metrics, corpus = project.folder / "metrics/tiny", project.folder / "corpus/tiny"
    inputs = read_json(metrics / "evaluation.json")["inputs"]
    assert inputs == record_inputs(
        model=project.folder / "training/tiny/model-best",
        code=project.folder / "scripts/evaluate.py",
        **{split: corpus / f"{split}.spacy" for split in ("train", "dev", "test")},
    )
    assert read_json(metrics / "predictions/provenance.json")["inputs"] == inputs
    analysis, concepts, package = (
        read_json(metrics / f"{name}.json")["inputs"] for name in ("analysis", "concepts", "package")
    )
    assert inputs["model"] == analysis["model"] == concepts["model"] == package["model"]
    assert analysis["predictions"] == package["predictions"]
    corpus_inputs = read_json(metrics / "corpus.json")["inputs"]
    for split in ("train", "dev", "test"):
        assert inputs[split] == analysis[split] == corpus_inputs[split]
    assert len({one["code"] for one in (inputs, analysis, concepts, package, corpus_inputs)}) == 5
