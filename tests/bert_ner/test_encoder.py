from __future__ import annotations

import copy
import os
import subprocess
import sys
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

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
from thinc.api import Adam
from transformers import BertTokenizerFast

from bert_ner import encoder
from tests.bert_ner.conftest import ENGLISH, copy_with, nlp
from tests.conftest import PROCESSORS, ROOT, guard


@settings(deadline=None)
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
    doc = pipeline.make_doc("Mira left Turku . " * 50)
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
    (windows,) = encoder._fit_windows(encoder.create_equal_spans(128, 32), tokenizer, [doc])
    assert {token.i for window in windows for token in window} == set(range(100))
    assert all(len(tokenizer(window.text)["input_ids"]) <= 512 for window in windows)


@pytest.mark.parametrize("text", ["", "Turku", "  \n ", "Mira left Turku. " * 2500])
def test_texts_of_any_length_pass(pipeline: Language, text: str) -> None:
    doc = pipeline(text)
    assert doc.text == text
    assert doc._.trf_data is None  # tensors would fill the memory of who keeps Docs


def test_bytes_and_disk_give_the_same_pipeline(pipeline: Language, tmp_path: Path) -> None:
    text = "Mira Solberg left Turku for Oslo and beat Kenya twice in Malta ."
    pipeline.to_disk(tmp_path / "pipeline")
    again = spacy.load(tmp_path / "pipeline")
    copied = load_model_from_config(pipeline.config).from_bytes(pipeline.to_bytes())
    for other in (again, copied):
        assert isinstance(other, Language) and other(text).to_bytes() == pipeline(text).to_bytes()
        ours, theirs = (nlp.get_pipe("transformer").model.transformer.state_dict() for nlp in (pipeline, other))  # type: ignore[attr-defined]
        assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)


def capabilities(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """A processor with these instructions, whose products are right."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(names, True))
    monkeypatch.setattr(encoder, "_is_right", lambda dtype: True)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)


@pytest.mark.parametrize(
    ("instructions", "best"),
    [
        (["avx2"], "float32"),
        (["avx2", "avx_vnni"], "int8"),
        (["avx512_f", "avx512_vnni"], "int8"),
        (["avx512_vnni", "avx512_bf16"], "bfloat16"),
        (["amx_int8", "amx_bf16"], "bfloat16"),
        ([], "float32"),
    ],
)
def test_the_dtype_follows_the_processor(monkeypatch: pytest.MonkeyPatch, instructions: list[str], best: str) -> None:
    capabilities(monkeypatch, *instructions)
    assert encoder.resolve_dtype("auto", False) == best
    assert encoder.resolve_dtype("float32", False) == "float32"


@pytest.mark.parametrize("broken", [RuntimeError("no such operator"), 1.1])
def test_a_dtype_that_computes_wrong_numbers_is_left(monkeypatch: pytest.MonkeyPatch, broken: Any) -> None:
    """Without VNNI the sums of products of bytes saturate; and an operator may be gone."""

    class Broken(encoder._Int8Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if isinstance(broken, Exception):
                raise broken
            return torch.full((*x.shape[:-1], 32), float(broken))

    encoder._is_right.cache_clear()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_vnni": True})
    monkeypatch.setattr(encoder, "_Int8Linear", Broken)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    try:
        with pytest.warns(UserWarning, match="instructions for int8, but products in it fail or are wrong") as warned:
            assert encoder.resolve_dtype("auto", False) == "float32"
        assert len(warned) == 1
        with pytest.raises(ValueError, match="'int8': this machine cannot do that"):
            encoder.resolve_dtype("int8", False)
    finally:
        encoder._is_right.cache_clear()


@pytest.mark.parametrize(("limit", "best"), [("AVX2", "float32"), ("AVX512_CORE_VNNI", "int8"), ("ALL", "bfloat16")])
def test_the_dtype_heeds_what_is_hidden_from_the_libraries(
    monkeypatch: pytest.MonkeyPatch, limit: str, best: str
) -> None:
    capabilities(monkeypatch, "avx512_vnni", "avx512_bf16")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert encoder.resolve_dtype("auto", False) == best


@pytest.mark.slow
@pytest.mark.parametrize("processor", ["avx2", "vnni"])
def test_the_tests_of_this_folder_pass_on_other_processors(processor: str) -> None:
    """What this processor has more than another is hidden from PyTorch's libraries."""
    options = ["-q", "-p", "no:cacheprovider", "-m", "not slow", str(Path(__file__).parent)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=ROOT,
        env=os.environ | PROCESSORS[processor],
        capture_output=True,
        text=True,
        timeout=guard(600),
    )
    assert done.returncode == 0, done.stdout[-3000:]


def test_a_dtype_that_cannot_be_is_refused_with_the_choices(
    monkeypatch: pytest.MonkeyPatch, pipeline: Language
) -> None:
    capabilities(monkeypatch, "avx512_vnni")
    with pytest.raises(ValueError, match=r"'bfloat16': this machine cannot.*auto, int8, float32"):
        encoder.resolve_dtype("bfloat16", False)
    with pytest.raises(ValueError, match=r"'fast': there is no such.*auto, int8, float32.*BERT_NER_DTYPE"):
        encoder.resolve_dtype("fast", False)
    monkeypatch.setenv("BERT_NER_DTYPE", "half")
    with pytest.raises(ValueError, match="'half'"):
        load_model_from_config(pipeline.config)


@given(st.lists(st.integers(1, 512), max_size=40), st.integers(1, 2000))
def test_sub_batches_hold_each_sequence_once_and_keep_to_the_budget(lengths: list[int], budget: int) -> None:
    batches = list(encoder.sub_batches(np.array(lengths, dtype=int), budget))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert [lengths[i] for batch in batches for i in batch] == sorted(lengths)
    assert all(len(batch) == 1 or len(batch) * lengths[batch[-1]] <= budget for batch in batches)


def load_as(pipeline: Language, dtype: str) -> Any:
    """The transformer's model of such a copy."""
    return copy_with(pipeline, dtype).get_pipe("transformer").model  # type: ignore[attr-defined]


def needs(dtype: str) -> None:
    try:
        encoder.resolve_dtype(dtype, False)
    except ValueError:
        pytest.skip(f"this processor has no instructions for {dtype}")


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-5), ("bfloat16", 0.02), ("int8", 0.04)])
def test_every_dtype_gives_what_the_encoder_gives(pipeline: Language, dtype: str, error: float) -> None:
    needs(dtype)
    docs = [pipeline.make_doc(" ".join(ENGLISH.split()[:n])) for n in (17, 3, 1, 9)]
    model = load_as(pipeline, dtype)
    batch = model.predict(docs)
    transformer = pipeline.get_pipe("transformer").model.transformer.eval()  # type: ignore[attr-defined]
    ids, mask = torch.from_numpy(batch.wordpieces.input_ids), torch.from_numpy(batch.wordpieces.attention_mask)
    with torch.no_grad():
        expected = transformer(input_ids=ids, attention_mask=mask).last_hidden_state
    found = batch.model_output.last_hidden_state
    assert found.dtype == torch.float32 and found.shape == expected.shape
    assert ((found - expected)[mask.bool()].norm() / expected[mask.bool()].norm()).item() < error


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_an_entity_hardly_depends_on_what_else_is_in_the_batch(pipeline: Language, dtype: str) -> None:
    needs(dtype)
    words = ENGLISH.split()
    docs = [pipeline.make_doc(" ".join(words[i % 17 :] + words * (i % 5))) for i in range(40)]
    model = load_as(pipeline, dtype)
    together = model.predict(docs).doc_data
    for doc, data in zip(docs, together, strict=True):
        (alone,) = model.predict([doc]).doc_data
        for wordpieces, length in enumerate(data.wordpieces.attention_mask.sum(1).astype(int)):
            there, here = (d.model_output.last_hidden_state[wordpieces, :length] for d in (data, alone))
            assert np.abs(there - here).max() < (1e-5 if dtype == "float32" else 0.05)


def test_integers_lose_little_even_beside_outliers() -> None:
    needs("int8")
    torch.manual_seed(0)
    linear = torch.nn.Linear(384, 512)
    rows = torch.randn(3, 40, 384)
    rows[0, 0, 5] = 1000.0  # as the first token of a sequence has them
    rows[1, 1] = 3.0  # a row without any range
    with torch.no_grad():
        found, expected = encoder._Int8Linear(linear)(rows), linear(rows)
    others = torch.ones(3, 40, dtype=torch.bool)
    others[0, 0] = False
    assert found.shape == expected.shape
    assert ((found - expected)[others].norm() / expected[others].norm()).item() < 0.01
    assert ((found - expected)[0, 0].norm() / expected[0, 0].norm()).item() < 0.05


def test_gradients_are_those_of_the_encoder(pipeline: Language) -> None:
    """Also if they are accumulated."""
    model = load_as(pipeline, "float32")
    for module in model.transformer.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    reference = copy.deepcopy(model.transformer)
    docs = [pipeline.make_doc(" ".join(ENGLISH.split()[:n])) for n in (17, 3, 1, 9)]
    slope = torch.linspace(-1, 1, 32)
    for _ in range(2):
        batch, backprop = model.begin_update(docs)
        mask = torch.from_numpy(batch.wordpieces.attention_mask)
        batch.model_output = {"output_0": slope * mask.unsqueeze(-1)}
        backprop(batch)
    output = reference(input_ids=torch.from_numpy(batch.wordpieces.input_ids), attention_mask=mask).last_hidden_state
    (2 * slope * output)[mask.bool()].sum().backward()
    for (name, ours), theirs in zip(model.transformer.named_parameters(), reference.parameters(), strict=True):
        if "pooler" not in name:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


def test_dropout_drops_the_share_it_should_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer = encoder._Dropout(0.1)
    ones = torch.ones(1001, 99, requires_grad=True)
    dropped = layer(ones)
    dropped.sum().backward()
    assert 0.095 < (dropped == 0).float().mean().item() < 0.107
    assert dropped.mean().item() == pytest.approx(1, abs=0.005) and ones.grad is not None and ones.grad.equal(dropped)
    assert not layer(ones).equal(dropped)
    assert layer.eval()(ones) is ones


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
