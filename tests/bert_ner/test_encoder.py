from __future__ import annotations

import subprocess
import sys
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
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
from tests.bert_ner.conftest import ENGLISH, copy_with, load_as, nlp
from tests.conftest import ROOT, guard


@given(st.lists(st.integers(0, 700), max_size=4), st.integers(1, 200), st.integers(0, 199))
def test_windows_hold_each_token_and_are_equally_long(lengths: list[int], size: int, overlap: int) -> None:
    overlap = min(overlap, size - 1)
    docs = [Doc(nlp.vocab, words=["a"] * length) for length in lengths]
    for doc, windows in zip(docs, encoder.create_equal_spans(size, overlap)(docs), strict=True):
        assert {token.i for window in windows for token in window} == set(range(len(doc)))
        assert sum(map(len, windows)) == len(doc) + overlap * max(0, len(windows) - 1)
        assert all(1 <= len(window) <= size for window in windows)
        assert len(windows) <= 1 or len(windows) == -(-(len(doc) - overlap) // (size - overlap))
        assert not windows or max(map(len, windows)) - min(map(len, windows)) <= 1


def test_windows_that_never_end_are_refused() -> None:
    with pytest.raises(ValueError, match="choose one from 0 to 9"):
        encoder.create_equal_spans(10, 10)


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


def test_scripts_that_the_encoder_decomposes_lose_nothing(tmp_path: Path) -> None:
    """BERT makes up to three wordpieces of a syllable of Hangul: half of the tokens once had none."""
    letters = sorted(set(unicodedata.normalize("NFD", "한국어를")))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces), encoding="utf8")
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"), model_max_length=512)
    doc = Doc(nlp.vocab, words=["한국어를"] * 100)
    assert len(tokenizer(doc.text)["input_ids"]) > 512
    for windows in (
        encoder._WordpieceCache(tokenizer).read([doc], encoder.create_equal_spans(128, 32)([doc]))[0][0],
        encoder._read(tokenizer, encoder.create_equal_spans(128, 32)([doc]))[0][0],
    ):
        assert {token.i for window in windows for token in window} == set(range(100))
        assert all(len(tokenizer(window.text)["input_ids"]) <= 512 for window in windows)


WORDS = st.lists(
    st.one_of(
        st.sampled_from(
            [
                "Mira",
                "Turku",
                "n't",
                ",",
                "\n",
                "  ",
                "\u00a0",
                "[MASK]",
                "[SEP]",
                "İstanbul",
                "한국어",
                "👩‍🚀",
                "e\u0301",
                "東京",
                "a" * 700,
            ]
        ),
        st.text(min_size=1, max_size=6).filter(lambda word: word.encode(errors="ignore").decode() == word),
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=60)
@given(st.lists(st.tuples(WORDS, st.randoms(use_true_random=False)), min_size=1, max_size=3), st.integers(1, 12))
def test_cached_wordpieces_are_those_of_the_tokenizer(
    tiny_encoder: Path, texts: list[tuple[list[str], Any]], size: int
) -> None:
    tokenizer = BertTokenizerFast.from_pretrained(tiny_encoder)
    docs = [Doc(nlp.vocab, words=words, spaces=[r.random() < 0.6 for _ in words]) for words, r in texts]
    get_windows = encoder.create_equal_spans(size, min(2, size - 1))
    windows, wordpieces, align = encoder._read(tokenizer, get_windows(docs))
    cache = encoder._WordpieceCache(tokenizer)
    for _ in range(2):  # the second time they come from the cache
        windows_, wordpieces_, align_ = cache.read(docs, get_windows(docs))
        assert [[(s.start, s.end) for s in spans] for spans in windows_] == [
            [(s.start, s.end) for s in spans] for spans in windows
        ]
        assert wordpieces_.input_ids.tolist() == wordpieces.input_ids.tolist()
        assert wordpieces_.attention_mask.tolist() == wordpieces.attention_mask.tolist()
        assert wordpieces_.strings == wordpieces.strings and wordpieces_.lengths == wordpieces.lengths
        assert align_.lengths.tolist() == align.lengths.tolist() and align_.dataXd.tolist() == align.dataXd.tolist()
    hidden = torch.randn(*wordpieces.input_ids.shape, 4)
    expected = FullTransformerBatch(windows, wordpieces, BaseModelOutput(last_hidden_state=hidden), align).doc_data
    for ours, theirs in zip(encoder._split(windows, wordpieces, align, hidden).doc_data, expected, strict=True):
        assert ours.to_bytes() == theirs.to_bytes()


def test_the_cache_of_wordpieces_has_a_bound(tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "CACHED_RUNS", 100)
    cache = encoder._WordpieceCache(BertTokenizerFast.from_pretrained(tiny_encoder))
    for i in range(30):
        doc = Doc(nlp.vocab, words=[f"w{i}x{j}" for j in range(20)])
        cache.read([doc], [[doc[:]]])
        assert len(cache.numbers) <= 120


def test_tokenizers_that_look_beyond_spaces_are_not_cached(tiny_encoder: Path) -> None:
    assert encoder._cuts_at_spaces(BertTokenizerFast.from_pretrained(tiny_encoder))
    with_phrase = BertTokenizerFast.from_pretrained(tiny_encoder)
    with_phrase.add_tokens(["New York"])
    assert not encoder._cuts_at_spaces(with_phrase)


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


def test_each_wordpiece_has_the_case_of_its_token(pipeline: Language) -> None:
    """In every window, also beside white space and padding."""
    cases = {
        "Turku": 1,
        "FINLAND": 2,
        "I": 3,
        "McKay": 4,
        "iPhone": 4,
        "slept": 0,
        ".": 0,
        "12": 0,
        "\n": 0,
        "U.S.": 2,
        "한": 0,
    }
    doc, short = Doc(pipeline.vocab, words=[*cases] * 30), Doc(pipeline.vocab, words=["Oslo"])
    batch = pipeline.get_pipe("transformer").model.predict([doc, Doc(pipeline.vocab), short])  # type: ignore[attr-defined]
    wordpieces, align = batch.wordpieces, batch.align
    found = np.split(wordpieces.token_type_ids.flatten()[align.dataXd.flatten()], np.cumsum(align.lengths)[:-1])
    expected = [*cases.values()] * 30 + [1]
    assert [set(array.tolist()) for array in found] == [
        {case} if length else set() for case, length in zip(expected, align.lengths, strict=True)
    ]
    rest = np.ones(wordpieces.input_ids.size, dtype=bool)
    rest[align.dataXd.flatten()] = False
    assert len(batch.spans[0]) > 1 and not wordpieces.token_type_ids.flatten()[rest].any()


def test_the_encoder_learns_of_case_what_its_types_learn(pipeline: Language, tmp_path: Path) -> None:
    """At first it is the pretrained encoder, to which all words are in lower case. Storing keeps what was learnt."""
    model = load_as(pipeline, "float32")
    docs = [Doc(pipeline.vocab, words=words) for words in (["Mira", "LEFT", "Turku"], ["mira", "left", "turku"])]

    def differ(predicted: Any) -> bool:
        first, second = predicted.predict([doc.copy() for doc in docs]).model_output.last_hidden_state
        return not torch.allclose(first, second)

    assert not differ(model)
    types = model.transformer.embeddings.token_type_embeddings
    assert model.transformer.config.type_vocab_size == types.num_embeddings == encoder.CASES
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
    encoder._set_transformer(fresh, taken, case)
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
