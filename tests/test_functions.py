from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.language import Language
from spacy.tokens import Doc, DocBin
from spacy.training import Example
from spacy.util import import_file, load_config, load_model_from_config, registry
from thinc.api import Adam

from scripts import functions
from scripts.convert import convert
from tests.conftest import ROOT, write_corpus

nlp = spacy.blank("en")


@settings(deadline=None)
@given(st.lists(st.integers(0, 700), max_size=4), st.integers(1, 200), st.integers(0, 199))
def test_windows_hold_each_token_and_are_equally_long(lengths: list[int], size: int, overlap: int) -> None:
    overlap = min(overlap, size - 1)
    docs = [Doc(nlp.vocab, words=["a"] * length) for length in lengths]
    for doc, windows in zip(docs, functions.create_windows(size, overlap)(docs), strict=True):
        assert {token.i for window in windows for token in window} == set(range(len(doc)))
        assert sum(map(len, windows)) == len(doc) + overlap * max(0, len(windows) - 1)
        assert all(1 <= len(window) <= size for window in windows)
        assert len(windows) <= 1 or len(windows) == -(-(len(doc) - overlap) // (size - overlap))
        assert not windows or max(map(len, windows)) - min(map(len, windows)) <= 1


def test_windows_that_never_end_are_refused() -> None:
    with pytest.raises(ValueError, match="choose one from 0 to 9"):
        functions.create_windows(10, 10)


def test_windows_overlap_in_use_only(pipeline: Language) -> None:
    model = pipeline.get_pipe("transformer").model  # type: ignore[attr-defined]
    doc = pipeline.make_doc("Mira left Turku . " * 50)
    (in_use,), (in_training,) = model.predict([doc]).spans, model.begin_update([doc])[0].spans
    assert sum(map(len, in_training)) == len(doc) < sum(map(len, in_use))


def test_the_corpus_gives_sentence_starts_to_the_predicted_docs(tmp_path: Path) -> None:
    convert(write_corpus(tmp_path / "assets"), tmp_path / "corpus")
    for example in functions.create_corpus(tmp_path / "corpus" / "train.spacy", True)(nlp):
        starts = [token.is_sent_start for token in example.reference]
        assert [token.is_sent_start for token in example.predicted] == starts and any(starts) and not all(starts)
        assert not example.predicted.ents
    for example in functions.create_corpus(tmp_path / "corpus" / "train.spacy", False)(nlp):
        assert not example.predicted.has_annotation("SENT_START")


def test_the_corpus_leaves_docs_without_sentences_alone(tmp_path: Path) -> None:
    DocBin(docs=[Doc(nlp.vocab, words=["Turku", "sleeps"], ents=["B-LOC", "O"])]).to_disk(tmp_path / "some.spacy")
    (example,) = functions.create_corpus(tmp_path / "some.spacy", True)(nlp)
    assert not example.predicted.has_annotation("SENT_START")


def test_registering_again_is_harmless() -> None:
    for name in ("first", "second"):
        import_file(name, ROOT / "scripts" / "functions.py")
    assert registry.readers.get("bert_ner.Corpus.v1")


@pytest.fixture(scope="module")
def pipeline(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Language:
    folder = tmp_path_factory.mktemp("functions")
    convert(write_corpus(folder / "assets"), folder / "corpus")
    train = folder / "corpus" / "train.spacy"
    overrides = {"paths.encoder": str(tiny_encoder), "paths.train": str(train), "paths.dev": "x"}
    config = load_config(ROOT / "configs" / "bert.cfg", overrides=overrides, interpolate=True)
    made = load_model_from_config(config, auto_fill=True)
    made.initialize(lambda: list(functions.create_corpus(train, True)(made)))
    return made


@pytest.mark.parametrize("text", ["", "Turku", "  \n ", "Mira left Turku. " * 300])
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


def test_known_sentence_starts_are_kept_and_no_entity_crosses_them(pipeline: Language) -> None:
    words = ["Mira", "Solberg", "Turku", "Oslo"] * 10
    doc = pipeline(Doc(pipeline.vocab, words=words, sent_starts=[i % 2 == 0 for i in range(len(words))]))
    assert [sent.start for sent in doc.sents] == list(range(0, len(words), 2))
    assert all(len(ent) <= 2 and ent.start // 2 == (ent.end - 1) // 2 for ent in doc.ents)


ENGLISH = "Mira Solberg left Turku for Oslo on Monday , and Kenya beat Peru twice in Malta ."


def capabilities(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(names, True))


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
def test_the_precision_follows_the_processor(
    monkeypatch: pytest.MonkeyPatch, instructions: list[str], best: str
) -> None:
    capabilities(monkeypatch, *instructions)
    assert functions.resolve_precision("auto", False) == best
    assert functions.resolve_precision("float32", False) == "float32"


def test_a_precision_that_cannot_be_is_refused_with_the_choices(
    monkeypatch: pytest.MonkeyPatch, pipeline: Language
) -> None:
    capabilities(monkeypatch, "avx512_vnni")
    with pytest.raises(ValueError, match=r"'bfloat16': this machine cannot.*auto, int8, float32"):
        functions.resolve_precision("bfloat16", False)
    with pytest.raises(ValueError, match=r"'fast': there is no such.*auto, int8, float32.*BERT_NER_PRECISION"):
        functions.resolve_precision("fast", False)
    monkeypatch.setenv("BERT_NER_PRECISION", "half")
    with pytest.raises(ValueError, match="'half'"):
        load_model_from_config(pipeline.config)


@given(st.lists(st.integers(1, 512), max_size=40), st.integers(1, 2000))
def test_sub_batches_hold_each_sequence_once_and_keep_to_the_budget(lengths: list[int], budget: int) -> None:
    batches = list(functions.sub_batches(np.array(lengths, dtype=int), budget))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert [lengths[i] for batch in batches for i in batch] == sorted(lengths)
    assert all(len(batch) == 1 or len(batch) * lengths[batch[-1]] <= budget for batch in batches)


def load_as(pipeline: Language, precision: str) -> Any:
    """The transformer's model of a copy of a pipeline, in another precision."""
    config = pipeline.config.copy()
    config["components"]["transformer"]["model"]["precision"] = precision
    return load_model_from_config(config).from_bytes(pipeline.to_bytes()).get_pipe("transformer").model  # type: ignore[attr-defined]


def needs(precision: str) -> None:
    try:
        functions.resolve_precision(precision, False)
    except ValueError:
        pytest.skip(f"this processor has no instructions for {precision}")


@pytest.mark.parametrize(("precision", "error"), [("float32", 1e-5), ("bfloat16", 0.02), ("int8", 0.04)])
def test_every_precision_gives_what_the_encoder_gives(pipeline: Language, precision: str, error: float) -> None:
    needs(precision)
    docs = [pipeline.make_doc(" ".join(ENGLISH.split()[:n])) for n in (17, 3, 1, 9)]
    model = load_as(pipeline, precision)
    batch = model.predict(docs)
    encoder = pipeline.get_pipe("transformer").model.transformer.eval()  # type: ignore[attr-defined]
    ids, mask = torch.from_numpy(batch.wordpieces.input_ids), torch.from_numpy(batch.wordpieces.attention_mask)
    with torch.no_grad():
        expected = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    found = batch.model_output.last_hidden_state
    assert found.dtype == torch.float32 and found.shape == expected.shape
    assert ((found - expected)[mask.bool()].norm() / expected[mask.bool()].norm()).item() < error


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_an_entity_hardly_depends_on_what_else_is_in_the_batch(pipeline: Language, precision: str) -> None:
    needs(precision)
    words = ENGLISH.split()
    docs = [pipeline.make_doc(" ".join(words[i % 17 :] + words * (i % 5))) for i in range(40)]
    model = load_as(pipeline, precision)
    together = model.predict(docs).doc_data
    for doc, data in zip(docs, together, strict=True):
        (alone,) = model.predict([doc]).doc_data
        for wordpieces, length in enumerate(data.wordpieces.attention_mask.sum(1).astype(int)):
            there, here = (d.model_output.last_hidden_state[wordpieces, :length] for d in (data, alone))
            assert np.abs(there - here).max() < (1e-5 if precision == "float32" else 0.05)


def test_integers_lose_little_even_beside_outliers() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(384, 512)
    rows = torch.randn(3, 40, 384)
    rows[0, 0, 5] = 1000.0  # as the first token of a sequence has them
    rows[1, 1] = 3.0  # a row without any range
    with torch.no_grad():
        found, expected = functions._Int8Linear(linear)(rows), linear(rows)
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
    layer = functions._Dropout(0.1)
    ones = torch.ones(1001, 99, requires_grad=True)
    dropped = layer(ones)
    dropped.sum().backward()
    assert 0.095 < (dropped == 0).float().mean().item() < 0.107
    assert dropped.mean().item() == pytest.approx(1, abs=0.005) and ones.grad is not None and ones.grad.equal(dropped)
    assert not layer(ones).equal(dropped)
    assert layer.eval()(ones) is ones


@pytest.mark.parametrize("size", [(50, 40), (7,), (0, 3)])
def test_the_optimizer_does_what_thinc_does(size: tuple[int, ...]) -> None:
    settings_ = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "grad_clip": 1.0}
    theirs = Adam(1e-3, L2=0.01, L2_is_weight_decay=True, use_averages=False, **settings_)
    ours = functions.create_optimizer(1e-3, weight_decay=0.01, **settings_)
    random = np.random.default_rng(0)
    start = random.normal(size=size).astype("float32")
    here, there = start.copy(), start.copy()
    for step in range(20):
        slope = (random.normal(size=size) * 10.0 ** -(step % 4)).astype("float32")
        there, _ = theirs((1, "W"), there, slope.copy())
        here, cleared = ours((1, "W"), here, slope)
        assert not cleared.any()
    np.testing.assert_allclose(here - start, there - start, rtol=0.02, atol=1e-5)


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


def test_several_processes_work(pipeline: Language, tmp_path: Path) -> None:
    """Also after the pipeline was used in the parent, whose threads a fork does not copy."""
    pipeline.to_disk(tmp_path / "pipeline")
    code = f"""
import spacy
from spacy.util import import_file
import_file("functions", {str(Path(functions.__file__))!r})
nlp = spacy.load({str(tmp_path / "pipeline")!r})
texts = [{ENGLISH!r} * n for n in range(1, 9)]
alone = [[(ent.text, ent.label_) for ent in doc.ents] for doc in nlp.pipe(texts)]
assert [[(ent.text, ent.label_) for ent in doc.ents] for doc in nlp.pipe(texts, n_process=2, batch_size=2)] == alone
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
