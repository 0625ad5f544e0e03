from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import spacy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from spacy.util import load_model_from_config
from spacy_transformers.data_classes import FullTransformerBatch, HFObjects
from thinc.api import Adam
from transformers import MODEL_MAPPING, BertModel, BertTokenizerFast
from transformers.modeling_outputs import BaseModelOutput

from bert_ner import encoder
from bert_ner.wordpieces import WordpieceReader, create_equal_spans
from tests.bert_ner.conftest import DOCUMENTS, ENGLISH, copy_with, load_as
from tests.conftest import ROOT, guard


def test_windows_overlap_in_use_only(pipeline: Language) -> None:
    model = pipeline.get_pipe("transformer").model  # type: ignore[attr-defined]
    doc = pipeline.make_doc("Mira left Turku . " * 100)
    (in_use,), (in_training,) = model.predict([doc]).spans, model.begin_update([doc])[0].spans
    assert sum(map(len, in_training)) == len(doc) < sum(map(len, in_use))


@pytest.mark.parametrize("blob", ["a" * 5000, "-" * 5000, "\n" * 1000, "q9+/" * 500, "1 2. " * 300, "Mira " * 3])
def test_a_long_token_does_not_corrupt_its_neighbours(pipeline: Language, blob: str) -> None:
    """spaCy issue 12622: all that follows in a window was lost."""
    words_ = ["Mira", "left", "Turku", blob, "and", "Oslo", "slept", "."]
    doc = Doc(pipeline.vocab, words=words_)
    model = pipeline.get_pipe("transformer").model  # type: ignore[attr-defined]
    for data in (model.predict([doc]).doc_data[0], model.begin_update([doc])[0].doc_data[0]):
        assert [bool(length) for length in data.align.lengths] == [not word.isspace() for word in words_]
    assert pipeline("Mira left Turku " + blob + " and Oslo slept.").has_annotation("ENT_IOB")


@settings(max_examples=30)
@given(DOCUMENTS, st.integers(1, 12))
def test_a_batch_is_split_as_spacy_transformers_splits_it(tiny_encoder: Path, docs: list[Doc], size: int) -> None:
    tokenizer = BertTokenizerFast.from_pretrained(tiny_encoder)
    windows = create_equal_spans(size, min(2, size - 1))(docs)
    windows, wordpieces, align = WordpieceReader().read(tokenizer, docs, windows)
    hidden = torch.randn(*wordpieces.input_ids.shape, 4)
    expected = FullTransformerBatch(windows, wordpieces, BaseModelOutput(last_hidden_state=hidden), align).doc_data
    for ours, theirs in zip(encoder._split(windows, wordpieces, align, hidden).doc_data, expected, strict=True):
        assert ours.to_bytes() == theirs.to_bytes()


@pytest.mark.parametrize("text", ["", "Turku", "  \n ", "Mira left Turku. " * 2500])
def test_texts_of_any_length_pass(pipeline: Language, text: str) -> None:
    doc = pipeline(text)
    assert doc.text == text
    assert doc._.trf_data is None  # tensors would fill the memory of who keeps Docs


@pytest.mark.parametrize("texts", [[ENGLISH] * 8 + [""], [""] * 8 + [ENGLISH], ["", ""]])
def test_empty_texts_may_stand_anywhere(pipeline: Language, texts: list[str]) -> None:
    """Also where they fill a piece of the batch, and in whatever component listens."""
    assert [doc.text for doc in pipeline.pipe(texts)] == texts


def test_bytes_and_disk_give_the_same_pipeline(pipeline: Language, tmp_path: Path) -> None:
    text = "Mira Solberg left Turku for Oslo and beat Kenya twice in Malta ."
    pipeline.to_disk(tmp_path / "pipeline")
    again = spacy.load(tmp_path / "pipeline")
    copied = load_model_from_config(pipeline.config).from_bytes(pipeline.to_bytes())
    for other in (again, copied):
        assert isinstance(other, Language) and other(text).to_bytes() == pipeline(text).to_bytes()
        ours, theirs = (nlp.get_pipe("transformer").model.transformer.state_dict() for nlp in (pipeline, other))  # type: ignore[attr-defined]
        assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)


def test_predictions_follow_the_training(pipeline: Language) -> None:
    """The copy of the encoder that predicts is made anew."""
    nlp = load_model_from_config(pipeline.config).from_bytes(pipeline.to_bytes())
    model = nlp.get_pipe("transformer").model  # type: ignore[attr-defined]
    doc = nlp.make_doc(ENGLISH)
    example = Example.from_dict(doc, {"entities": ["B-PER", "L-PER", *["O"] * 15]})

    def vectors() -> Any:
        return model.predict([nlp.make_doc(ENGLISH)]).model_output.last_hidden_state.clone()

    before = vectors()
    for _ in range(3):  # the first update moves the heads alone, which start at zero
        nlp.update([example], sgd=Adam(0.01))
    after = vectors()
    assert not torch.allclose(before, after)
    again = load_model_from_config(nlp.config).from_bytes(nlp.to_bytes()).get_pipe("transformer").model  # type: ignore[attr-defined]
    assert again.predict([nlp.make_doc(ENGLISH)]).model_output.last_hidden_state.equal(after)


# Case


def test_the_encoder_learns_of_case_what_its_types_learn(pipeline: Language, tmp_path: Path) -> None:
    """At first it is the pretrained encoder, to which all words are in lower case. Storing keeps what was learnt."""
    model = load_as(pipeline, "float32")
    docs = [Doc(pipeline.vocab, words=words) for words in (["Mira", "LEFT", "Turku"], ["mira", "left", "turku"])]

    def differ(predicted: Any) -> bool:
        first, second = predicted.predict([doc.copy() for doc in docs]).model_output.last_hidden_state
        return not torch.allclose(first, second)

    assert not differ(model)
    types = model.transformer.embeddings.token_type_embeddings
    assert model.transformer.config.type_vocab_size == types.num_embeddings == WordpieceReader.CASES
    model.inference.forget(model.transformer)
    types.weight.data[1] += 1
    assert differ(model)
    model.to_disk(tmp_path / "model")
    assert differ(load_as(pipeline, "float32").from_disk(tmp_path / "model"))


@pytest.mark.parametrize("case", [True, False])
def test_types_that_tell_case_already_are_kept(pipeline: Language, case: bool) -> None:
    """A student may start from the encoder of a trained pipeline."""
    model = load_as(pipeline, "float32")
    weight = model.transformer.embeddings.token_type_embeddings.weight
    weight.data[1] += 1
    taken = HFObjects(model.tokenizer, model.transformer, {}, {})
    fresh = encoder.create_transformer_model("", lambda _: [], lambda _: [], case, "float32")
    fresh.attrs["set_transformer"](fresh, taken)
    assert fresh.transformer.embeddings.token_type_embeddings.weight is weight


# Copies


LONG = ENGLISH * 20  # more than one window


def find_transformer(model: Any) -> Any:
    """The transformer's layer in a model."""
    (found,) = (node for node in model.walk() if node.name == "transformer")
    return found


def in_use(nlp_: Language, model: Any) -> Any:
    return model.predict([nlp_.make_doc(LONG)]).model_output.last_hidden_state.clone()


def check_forward(nlp_: Language, model: Any) -> None:
    """Only the project's own forward pass has other windows in training than in use."""
    doc = nlp_.make_doc(LONG)
    (used,), (trained,) = model.predict([doc]).spans, model.begin_update([doc])[0].spans
    assert sum(map(len, trained)) == len(doc) < sum(map(len, used))


def train_it(nlp_: Language) -> None:
    tags = ["B-PER", "L-PER", *["U-LOC", "O", "U-LOC"] * 5]
    for _ in range(3):
        nlp_.update([Example.from_dict(nlp_.make_doc(ENGLISH), {"entities": tags})], sgd=Adam(0.01))


def entities(nlp_: Language) -> list[tuple[Any, ...]]:
    docs = nlp_.pipe([LONG, ENGLISH, "Turku sleeps ."])
    found = [(ent.start, ent.end, ent.label_, ent._.score) for doc in docs for ent in doc.ents]
    assert found
    return found


def test_a_copy_has_the_forward_pass_and_weights_of_its_own(pipeline: Language) -> None:
    model = load_as(pipeline, "float32")
    copied = model.copy()
    assert type(copied) is type(model) and copied.get_dim("nO") == 32
    before = in_use(pipeline, model)
    assert in_use(pipeline, copied).equal(before)
    check_forward(pipeline, copied)
    batch, backprop = copied.begin_update([pipeline.make_doc(LONG)])
    batch.model_output = {"output_0": torch.randn_like(batch.model_output.last_hidden_state)}
    backprop(batch)
    copied.finish_update(Adam(0.01))
    assert not torch.allclose(in_use(pipeline, copied), before)
    assert in_use(pipeline, model).equal(before)
    assert in_use(pipeline, copied.from_bytes(model.to_bytes())).equal(before)


def test_sourced_components_give_the_same_entities(pipeline: Language, tmp_path: Path) -> None:
    trained = copy_with(pipeline, "float32")
    train_it(trained)
    trained.to_disk(tmp_path / "trained")
    config = {
        "nlp": {"lang": "en", "pipeline": list(trained.pipe_names), "tokenizer": trained.config["nlp"]["tokenizer"]},
        "components": {name: {"source": str(tmp_path / "trained")} for name in trained.pipe_names},
    }
    other = load_model_from_config(config, auto_fill=True)
    assert entities(other) == entities(trained)
    check_forward(other, other.get_pipe("transformer").model)  # type: ignore[attr-defined]
    other.to_disk(tmp_path / "other")
    assert entities(spacy.load(tmp_path / "other")) == entities(trained)


def test_a_transformer_in_the_place_of_a_listener_gives_the_same_entities(pipeline: Language, tmp_path: Path) -> None:
    nlp_ = copy_with(pipeline, "float32")
    train_it(nlp_)
    before = entities(nlp_)
    nlp_.replace_listeners("transformer", "tok2vec", ["model.tok2vec"])
    nlp_.remove_pipe("transformer")
    nlp_.to_disk(tmp_path / "own")
    for other in (nlp_, spacy.load(tmp_path / "own")):
        assert entities(other) == before
        model = other.get_pipe("tok2vec").model  # type: ignore[attr-defined]
        check_forward(other, find_transformer(model))
        check_forward(other, find_transformer(model.copy()))  # a plain model of thinc's
        train_it(other)
        assert entities(other) != before


def test_threads_share_a_model(pipeline: Language) -> None:
    """Each call has its own windows: once, those of a training were left over for the next prediction."""
    model = load_as(pipeline, "float32")
    expected, attrs = in_use(pipeline, model), dict(model.attrs)
    docs = [pipeline.make_doc(LONG) for _ in range(24)]
    with ThreadPoolExecutor(4) as pool:
        for i, batch in enumerate(pool.map(lambda i: model([docs[i]], is_train=i % 3 == 0)[0], range(24))):
            assert (sum(map(len, batch.spans[0])) == len(docs[i])) == (i % 3 == 0)
            assert i % 3 == 0 or batch.model_output.last_hidden_state.equal(expected)
    assert dict(model.attrs) == attrs


def test_a_pipeline_loads_without_the_private_parts_of_transformers(
    pipeline: Language, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then random weights are drawn first, which takes longer."""
    expected = in_use(pipeline, load_as(pipeline, "float32"))
    monkeypatch.delattr("transformers.modeling_utils.no_init_weights")
    assert in_use(pipeline, load_as(pipeline, "float32")).equal(expected)


def test_a_pipeline_loads_without_an_import_of_every_architecture(
    pipeline: Language, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AutoModel.from_config lists the configs of all architectures, which took a third of a load."""
    everything = Mock(side_effect=AssertionError("all architectures are imported"))
    monkeypatch.setattr(type(MODEL_MAPPING), "keys", everything)
    loaded = load_as(pipeline, "float32")
    doc = pipeline.make_doc(ENGLISH)
    assert type(loaded.transformer) is BertModel and len(loaded.predict([doc]).doc_data[0].align.lengths) == len(doc)


@pytest.mark.slow
def test_several_processes_work(pipeline: Language, tmp_path: Path) -> None:
    """Also after the pipeline was used in the parent, whose threads a fork does not copy."""
    pipeline.to_disk(tmp_path / "pipeline")
    code = f"""
import spacy
import srsly
import bert_ner
nlp = spacy.load({str(tmp_path / "pipeline")!r})
texts = [{ENGLISH!r} * n for n in range(1, 9)]
alone = [[(ent.text, ent.label_) for ent in doc.ents] for doc in nlp.pipe(texts)]
assert [[(ent.text, ent.label_) for ent in doc.ents] for doc in nlp.pipe(texts, n_process=2, batch_size=2)] == alone
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=guard(120))
    assert done.returncode == 0, done.stderr
