from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import spacy
from spacy.tokens import Doc
from spacy.training import Corpus
from thinc.api import Config

import bert_ner  # noqa: F401 (registers what the pipelines name)
from common.records import read_json, sha256
from scripts.assemble import assemble, extend
from tests.conftest import ROOT, STEPS, Project, new_python

CONFIG = ROOT / "configs/assemble.cfg"
SKIPPED = "Skipping '{}': nothing changed"


def entities_of(doc: Doc) -> list[tuple[int, int, str, float]]:
    return [(ent.start, ent.end, ent.label_, round(ent._.score, 5)) for ent in doc.ents]


def test_the_assembled_pipeline_gives_the_entities_and_scores_of_the_trained_one(project: Project) -> None:
    trained, assembled = (
        spacy.load(project.folder / path) for path in ("training/tiny/model-best", "packages/tiny/assembled")
    )
    assert "concepts" not in trained.pipe_names
    assert trained.pipe_names[-2:] == ["chunker", "doc_cleaner"] and assembled.disabled == ["chunker"]
    assert assembled.pipe_names == [*trained.pipe_names[:-2], "concepts", "doc_cleaner"]
    test = project.folder / "corpus/tiny/test.spacy"
    texts = [example.reference.text for example in Corpus(test)(trained)]
    pairs = list(zip(trained.pipe(texts), assembled.pipe(texts), strict=True))
    assert sum(len(doc.ents) for doc, _ in pairs) > 0
    for one, other in pairs:
        assert [token.text for token in one] == [token.text for token in other], "the tokenizer is the trained one"
        assert entities_of(one) == entities_of(other)
        assert [token.tag_ for token in one] == [token.tag_ for token in other]
        assert "chunks" in one.spans and "chunks" not in other.spans
    assembled.enable_pipe("chunker")
    for one, other in zip(trained.pipe(texts), assembled.pipe(texts), strict=True):
        assert [(c.start, c.end, c.label) for c in one.spans["chunks"]] == [
            (c.start, c.end, c.label) for c in other.spans["chunks"]
        ]
    scores: list[dict[str, Any]] = [nlp.evaluate(list(Corpus(test)(nlp))) for nlp in (trained, assembled)]
    for name in ("ents_p", "ents_r", "ents_f", "ents_per_type", "sents_f", "tag_acc", "spans_chunks_f"):
        assert scores[0][name] == scores[1][name], name
    provenance = [read_json(Path(str(nlp.path)) / "provenance.json") for nlp in (trained, assembled)]
    assert provenance[0] == provenance[1]


def test_the_assembled_pipeline_finds_concepts_by_rules_that_it_carries(project: Project, ruled: Path) -> None:
    paths = (project.folder / "packages/tiny/assembled", ruled / "packages/ruled/assembled")
    rules, others = (cast(Any, spacy.load(path).get_pipe("concepts")) for path in paths)
    assert rules.patterns and len(rules.patterns) == len(others.patterns)
    words, tags = ["She", "promised", "cleaner", "rivers", "."], ["PRP", "VBD", "JJR", "NNS", "."]
    doc = rules(Doc(rules.nlp.vocab, words=words, tags=tags))
    assert [(span.text, span.label_) for span in doc.spans["concepts"]] == [
        ("promised", "mechanism"),
        ("cleaner", "factor"),
        ("rivers", "actor"),
    ]


def test_a_pipeline_of_two_columns_is_assembled_too(project: Project, tmp_path: Path) -> None:
    """Without parts of speech and chunks: there are no concepts then, and entities all the same."""
    nlp = spacy.load(project.folder / "training/tiny/model-best")
    nlp.remove_pipe("tagger")
    nlp.remove_pipe("chunker")
    model = tmp_path / "model"
    nlp.to_disk(model)
    (model / "provenance.json").write_text("{}")
    assemble(CONFIG, model, tmp_path / "packages")
    assembled = spacy.load(tmp_path / "packages/assembled")
    assert assembled.pipe_names == ["transformer", "tok2vec", "senter", "ner", "concepts", "doc_cleaner"]
    assert not assembled.disabled
    text = "Mira Solberg left Turku for Oslo on Monday , and Kenya beat Peru ."
    assert entities_of(assembled(text)) == entities_of(nlp(text))
    assert not [path.name for path in (tmp_path / "packages/assembled").iterdir() if path.name == "assemble.cfg"]


def test_what_the_config_adds_comes_last_and_what_was_trained_is_sourced(project: Project) -> None:
    model = project.folder / "training/tiny/model-best"
    config = extend(Config().from_disk(CONFIG, interpolate=False), model)
    assert config["nlp"]["pipeline"][-2:] == ["concepts", "doc_cleaner"]
    assert all(config["components"][name] == {"source": str(model)} for name in config["nlp"]["pipeline"][:-2])
    trained = Config().from_disk(model / "config.cfg", interpolate=False)
    assert config["nlp"]["tokenizer"] == trained["nlp"]["tokenizer"]
    assembled = Config().from_disk(project.folder / "packages/tiny/assembled/config.cfg", interpolate=False)
    assert assembled["training"]["batcher"] == trained["training"]["batcher"], "it says how it was trained"


@pytest.mark.slow
def test_a_new_word_in_a_rule_reruns_what_uses_the_rules_and_trains_nothing(changeable: Project) -> None:
    path = changeable.folder / "bert_ner/concepts.py"
    text = path.read_text("utf8")
    assert text.count("degree = (") == 1
    path.write_text(text.replace("degree = (", 'degree = "hugely " + ('), "utf8")
    before = sha256(changeable.folder / "training")
    done = changeable.run("all", start=new_python)  # a forked process would have the rules as they were
    assert done.returncode == 0, done.stdout + done.stderr
    ran = [step for step in STEPS if SKIPPED.format(step) not in done.stdout]
    assert ran == ["assemble", "concepts", "package", "verify"]
    assert sha256(changeable.folder / "training") == before
    rules: Any = spacy.load(changeable.folder / "packages/tiny/assembled").get_pipe("concepts")
    assert "hugely" in str(rules.patterns)
