from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import spacy
from hypothesis import given
from hypothesis import strategies as st
from spacy.language import Language
from spacy.tokens import DocBin
from thinc.api import Model

from bert_ner.features import create_softmax_head
from bert_ner.wordpieces import WordpieceReader
from common import training
from common.corpora import read_docs
from common.errors import StepError
from common.models import find_trained, load_trained
from common.records import write_json
from common.settings import find_settings, read_overrides
from common.training import derive, enlarge, enlarge_head, prepare
from scripts.convert import convert
from tests.conftest import ROOT, copy_project, python, save_tiny_encoder, write_corpus

CONFIG = ROOT / "configs" / "bert.cfg"


@pytest.mark.parametrize(("width", "rate"), [(768, 5e-5), (384, 2e-4), (32, 5e-4)])
def test_learning_rate_and_steps_follow_encoder_and_corpus(
    tmp_path: Path, tiny_corpus: Path, width: int, rate: float
) -> None:
    encoder = save_tiny_encoder(tmp_path, width)
    settings = derive(CONFIG, tiny_corpus / "train.spacy", encoder, "auto", "auto", "auto")
    assert settings["training.optimizer.learn_rate.initial_rate"] == pytest.approx(rate)
    assert settings["training.max_steps"] >= 400  # one step an epoch
    assert settings["training.max_steps"] % settings["training.eval_frequency"] == 0  # the last step is evaluated
    assert derive(CONFIG, tiny_corpus / "train.spacy", encoder, "3", "0.1", "7")["training.batcher.batcher.size"] == 7


@pytest.mark.parametrize(
    ("types", "case", "beside"),
    [(0, True, True), (1, True, True), (2, True, False), (WordpieceReader.CASES, True, False), (2, False, True)],
)
def test_where_the_encoder_is_not_told_the_case_it_stands_beside_its_vectors(
    tmp_path: Path, tiny_corpus: Path, types: int, case: bool, beside: bool
) -> None:
    encoder = save_tiny_encoder(tmp_path)
    description = json.loads((encoder / "config.json").read_text("utf8"))
    (encoder / "config.json").write_text(json.dumps(description | {"type_vocab_size": types}), encoding="utf8")
    config = tmp_path / "bert.cfg"
    config.write_text(CONFIG.read_text("utf8").replace("case = true", f"case = {json.dumps(case)}"), encoding="utf8")
    settings = derive(config, tiny_corpus / "train.spacy", encoder, "auto", "auto", "auto")
    assert settings.get("components.tok2vec.model.attrs", ["SHAPE"]) == (["SHAPE"] if beside else [])


def test_a_batch_has_at_least_one_word(tiny_corpus: Path, tiny_encoder: Path) -> None:
    settings = derive(CONFIG, tiny_corpus / "train.spacy", tiny_encoder, "1", "auto", "0.5")
    assert settings["training.batcher.batcher.size"] == 1


def test_the_steps_of_long_documents_are_those_of_their_pieces(tmp_path: Path, tiny_encoder: Path) -> None:
    text = "\n".join(["Mira B-PER\nleft O\nTurku B-LOC\n. O\n"] * 2000)
    marks = "-DOCSTART- O\n\n"
    convert(write_corpus(tmp_path / "assets", f"{marks}{text}\n{marks}Turku B-LOC\n"), tmp_path / "corpus")
    settings = derive(CONFIG, tmp_path / "corpus/train.spacy", tiny_encoder, "1", "auto", "1500")
    assert settings["training.max_steps"] == 6  # of 8,001 words in documents of at most 1,500


def test_a_multiple_of_what_is_derived(tiny_corpus: Path, tiny_encoder: Path) -> None:
    auto, more = (
        derive(CONFIG, tiny_corpus / "train.spacy", tiny_encoder, *values)
        for values in (("auto", "auto", "auto"), ("auto*1.5", "auto*0.5", "auto*0.1"))
    )
    rate, size = "training.optimizer.learn_rate.initial_rate", "training.batcher.batcher.size"
    assert more[rate] == auto[rate] / 2 and more[size] == 30 and auto[size] == 300
    assert more["training.max_steps"] > 1.4 * auto["training.max_steps"]


def test_what_a_run_sets_in_the_config_is_part_of_its_provenance(tiny_corpus: Path, tiny_encoder: Path) -> None:
    text = "training.dropout=0.25, training.optimizer.learn_rate.warmup_steps=auto*0.5,training.batcher.lowercase=0.1"
    plain, settings = prepare(CONFIG, tiny_corpus, tiny_encoder)
    inputs, overrides = prepare(CONFIG, tiny_corpus, tiny_encoder, overrides=text)
    warmup = "training.optimizer.learn_rate.warmup_steps"
    assert overrides["training.dropout"] == 0.25 and overrides[warmup] == settings[warmup] // 2
    assert inputs["settings"] == plain["settings"] | {"training.dropout": 0.25, warmup: overrides[warmup]}
    assert prepare(CONFIG, tiny_corpus, tiny_encoder, overrides="training.dropout=0.1")[0] == plain, "it is so already"


def test_a_model_with_a_learning_rate_of_many_digits_is_found_again(
    tmp_path: Path, tiny_corpus: Path, tiny_encoder: Path
) -> None:
    inputs, _ = prepare(CONFIG, tiny_corpus, tiny_encoder, learn_rate="0.0000123456789")
    (tmp_path / "model-best").mkdir()
    write_json(tmp_path / "model-best/provenance.json", {"inputs": inputs})
    assert find_trained(tmp_path, inputs) == tmp_path / "model-best"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("training.dropout", "no setting with its value"),
        ("training.dropout=", "no setting with its value"),
        ("training.droput=0.2", "training.droput, which is no number"),
        ("training.dropout=much", "not to a number"),
        ("training.dropout=nan", "not to a number"),
        ("training.dropout=inf", "not to a number"),
        ("training.dropout=auto*x", "not to a number"),
        ("training.patience=1.5", "not to a whole number"),
        ("components.transformer.model.case=1", "not to true or false"),
        ("training.max_steps=3", "may be set"),
        ("system.seed=3", "may be set"),
        ("paths.train=elsewhere.spacy", "may be set"),
        ("corpora.train.path=elsewhere.spacy", "may be set"),
        ("training.logger.progress_bar.x=1", "may be set"),
    ],
)
def test_what_a_run_cannot_set_is_named(tiny_corpus: Path, tiny_encoder: Path, text: str, problem: str) -> None:
    derived = derive(CONFIG, tiny_corpus / "train.spacy", tiny_encoder, "auto", "auto", "auto")
    with pytest.raises(StepError, match=problem) as caught:
        read_overrides(text, find_settings(CONFIG, derived))
    if "droput" in text:
        assert "training.dropout" in caught.value.remedy


@pytest.mark.parametrize("value", ["", "-1", "0", "many", "nan", "inf", "auto*", "auto*0", "auto2", "2*auto", "autos"])
def test_a_setting_that_is_no_number_is_refused(tiny_corpus: Path, tiny_encoder: Path, value: str) -> None:
    with pytest.raises(StepError, match="neither auto nor a number above 0"):
        derive(CONFIG, tiny_corpus / "train.spacy", tiny_encoder, value, "auto", "auto")


def test_code_that_makes_the_same_models_has_the_name_of_the_other_in_their_provenance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SAME_MODELS", tmp_path / "same-models.json")
    code = training.identify_recipe(CONFIG)["code"]
    write_json(tmp_path / "same-models.json", {code: "earlier", "earlier": "no further"})
    assert training.identify_recipe(CONFIG)["code"] == "earlier"


def test_what_decides_weights_is_part_of_a_models_provenance_and_nothing_else(
    tmp_path: Path, tiny_corpus: Path, tiny_encoder: Path
) -> None:
    """Each change is made, and taken back, in the files of a copied project."""
    project = copy_project(tmp_path / "project")
    changes = {
        "a word in a rule of concepts": ("bert_ner/concepts.py", "degree = (", 'degree = "hugely " + ('),
        "a docstring": ("common/training.py", '"""Calibrate', '"""Somehow calibrate'),
        "a comment": ("bert_ner/corpus.py", "LONGEST_DOCUMENT = 1500", "LONGEST_DOCUMENT = 1500  # of many"),
        "a step": ("scripts/train.py", "CURVE_DOCS = 100", "CURVE_DOCS = 101"),
        "a statistic": ("common/statistics.py", "BINS = 10", "BINS = 11"),
        "a number in the corpus reader": ("bert_ner/corpus.py", "LONGEST_DOCUMENT = 1500", "LONGEST_DOCUMENT = 1501"),
        "a number in calibrate": ("common/training.py", "(nlp), 32)", "(nlp), 33)"),
    }
    code = """
import json, sys
from pathlib import Path
from common.training import prepare
config, corpus, encoder, changes = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4])
before, _ = prepare(config, corpus, encoder)
changed = {}
for name, (file, old, new) in changes.items():
    path = Path(file)
    text = path.read_text("utf8")
    assert text.count(old) == 1, (file, old)
    path.write_text(text.replace(old, new), "utf8")
    after, _ = prepare(config, corpus, encoder)
    changed[name] = [key for key in before if before[key] != after[key]]
    path.write_text(text, "utf8")
print(json.dumps(changed))
"""
    (project / "probe.py").write_text(code, "utf8")
    done = python("-m", "probe", str(CONFIG), str(tiny_corpus), str(tiny_encoder), json.dumps(changes), cwd=project)
    assert done.returncode == 0, done.stderr
    changed = json.loads(done.stdout)
    decide = {"a number in the corpus reader", "a number in calibrate"}
    assert changed == {name: ["code"] if name in decide else [] for name in changes}


# Going on from a trained pipeline

TAGS = st.lists(st.sampled_from(["O", *(f"{kind}-{label}" for label in "ABC" for kind in "BILU")]), unique=True)


@given(TAGS.filter(bool), TAGS, st.randoms(use_true_random=False), st.floats(0.5, 4))
def test_old_tags_keep_their_probabilities_in_relation_to_each_other(
    old: list[str], others: list[str], shuffler: random.Random, temperature: float
) -> None:
    new = [*dict.fromkeys([*old, *others])]
    shuffler.shuffle(new)
    head = create_softmax_head(Model("tok2vec", lambda model, X, is_train: (X, lambda d: d), dims={"nO": 8}), 1.0)
    vectors = [np.random.default_rng(0).normal(size=(5, 8)).astype("float32")]
    head.initialize(X=vectors, Y=[np.zeros((5, len(old)), dtype="float32")])
    head.get_ref("softmax").attrs["softmax_temperature"] = temperature
    before = head.predict(vectors)[0]
    enlarge_head(head, old, new, np.random.default_rng(0))
    after = head.predict(vectors)[0]
    assert after.shape == (5, len(new)) and head.get_ref("softmax").attrs["softmax_temperature"] == 1
    kept = after[:, [new.index(tag) for tag in old]]
    np.testing.assert_allclose(kept / kept.sum(1, keepdims=True), before, rtol=1e-3, atol=1e-6)


def find_probabilities(nlp: Language) -> np.ndarray:
    """The probabilities of the tags of a text, (tokens, tags)."""
    doc, recognizer = nlp.make_doc("Mira left Turku ."), cast(Any, nlp.get_pipe("ner"))
    for name in ("transformer", "tok2vec"):
        doc = nlp.get_pipe(name)(doc)
    return cast(np.ndarray, recognizer.predict([doc])[0])


def test_a_pipeline_gets_labels_and_parts_of_speech_and_keeps_all_else(
    tmp_path: Path, trained: Path, new_corpus: Path
) -> None:
    docs = read_docs(new_corpus / "train.spacy")
    for doc in docs:
        for token in doc:
            token.tag_ = "FW"
    DocBin(docs=docs).to_disk(tmp_path / "train.spacy")
    for name in ("one", "two"):
        enlarge(trained, tmp_path / "train.spacy", 0, tmp_path / name)
    old, new, again = (spacy.load(path) for path in (trained, tmp_path / "one", tmp_path / "two"))
    recognizers: list[Any] = [nlp.get_pipe("ner") for nlp in (old, new, again)]
    assert recognizers[1].labels == ("EVENT", "LOC", "PER") and recognizers[0].labels == ("LOC", "PER")
    assert {*new.get_pipe("tagger").labels} == {*old.get_pipe("tagger").labels, "FW"}  # type: ignore[attr-defined]
    probabilities = [find_probabilities(nlp) for nlp in (old, new, again)]
    np.testing.assert_array_equal(probabilities[1], probabilities[2])
    kept = probabilities[1][:, np.isin(recognizers[1].tags, recognizers[0].tags)]
    np.testing.assert_allclose(kept / kept.sum(1, keepdims=True), probabilities[0], rtol=1e-3)


def test_what_is_no_pipeline_of_this_project_is_refused(tmp_path: Path) -> None:
    spacy.blank("en").to_disk(tmp_path / "blank")
    other = spacy.blank("en")
    other.add_pipe("ner").add_label("LOC")  # type: ignore[attr-defined]
    other.initialize()
    other.to_disk(tmp_path / "other")
    for name in ("blank", "other", "nothing"):
        with pytest.raises(StepError, match=f"{name} is no pipeline of this project"):
            load_trained(tmp_path / name)
