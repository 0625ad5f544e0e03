from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import spacy
from spacy.tokens import Span
from spacy.vocab import Vocab

import bert_ner  # noqa: F401 (registers what the pipeline names)
from common.errors import StepError
from common.predictions import read_predictions
from common.records import read_json, write_json
from tests.conftest import Project


def test_what_was_kept_is_what_the_pipeline_predicts(project: Project) -> None:
    """Entities with their scores, and the probabilities of tags, as a pass of one's own gives them."""
    model = project.folder / "training/tiny/model-best"
    test = project.folder / "corpus/tiny/test.spacy"
    nlp = spacy.load(model)
    examples, probabilities, tags = read_predictions(
        project.folder / "metrics/tiny/predictions", "test", model, test, Vocab()
    )
    assert tags == nlp.get_pipe("ner").tags  # type: ignore[attr-defined]
    assert sum(len(example.predicted.ents) for example in examples) > 10
    words = [[token.text for token in example.reference] for example in examples]
    for example, doc, array in zip(
        examples, nlp.pipe(spacy.tokens.Doc(nlp.vocab, words=row) for row in words), probabilities, strict=True
    ):
        assert [token.text for token in example.predicted] == [token.text for token in doc]
        assert array.shape == (len(doc), len(tags)) and np.allclose(array.sum(1), 1, atol=1e-4)
        assert [(ent.start, ent.end, ent.label_) for ent in example.predicted.ents] == [
            (ent.start, ent.end, ent.label_) for ent in doc.ents
        ]
        kept, now = ([ent._.score for ent in one.ents] for one in (example.predicted, doc))
        assert kept == pytest.approx(now, abs=1e-4)
    assert Span.has_extension("score")


def test_predictions_of_another_model_or_corpus_are_refused(project: Project, tmp_path: Path) -> None:
    model = Path(shutil.copytree(project.folder / "training/tiny/model-best", tmp_path / "model"))
    kept, corpus = project.folder / "metrics/tiny/predictions", project.folder / "corpus/tiny"
    read_predictions(kept, "test", model, corpus / "test.spacy", Vocab())
    with pytest.raises(StepError, match=r"holds no predictions") as error:
        read_predictions(kept, "test", model, corpus / "train.spacy", Vocab())
    assert "Run evaluate" in error.value.remedy
    with pytest.raises(StepError, match="holds no predictions"):
        read_predictions(tmp_path, "test", model, corpus / "test.spacy", Vocab())
    provenance = read_json(model / "provenance.json")
    provenance["inputs"]["settings"]["system.seed"] = 7
    write_json(model / "provenance.json", provenance)
    with pytest.raises(StepError, match="holds no predictions"):
        read_predictions(kept, "test", model, corpus / "test.spacy", Vocab())
