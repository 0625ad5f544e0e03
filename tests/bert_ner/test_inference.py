from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spacy.language import Language
from spacy.util import load_model_from_config
from transformers import AutoModel

from bert_ner import inference
from tests.bert_ner.conftest import ENGLISH, load_as
from tests.conftest import PROCESSORS, ROOT, guard


def capabilities(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """A processor with these instructions, whose products are right."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(names, True))
    monkeypatch.setattr(inference, "_is_right", lambda dtype: True)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)


@pytest.mark.parametrize(
    ("instructions", "best"),
    [
        (["avx2"], "int8"),
        (["avx2", "avx_vnni"], "int8"),
        (["avx2", "avx512_f", "avx512_vnni"], "int8"),
        (["avx2", "avx512_vnni", "avx512_bf16"], "bfloat16"),
        (["amx_int8", "amx_bf16"], "bfloat16"),
        ([], "float32"),
    ],
)
def test_the_dtype_follows_the_processor(monkeypatch: pytest.MonkeyPatch, instructions: list[str], best: str) -> None:
    capabilities(monkeypatch, *instructions)
    assert inference.resolve_dtype("auto", False) == best
    assert inference.resolve_dtype("float32", False) == "float32"


@pytest.mark.parametrize("broken", [RuntimeError("no such operator"), 1.1])
def test_a_dtype_that_computes_wrong_numbers_is_left(monkeypatch: pytest.MonkeyPatch, broken: Any) -> None:
    """Without VNNI the sums of products of bytes saturate; and an operator may be gone."""

    class Broken(inference._Int8Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if isinstance(broken, Exception):
                raise broken
            return torch.full((*x.shape[:-1], 32), float(broken))

    inference._is_right.cache_clear()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_vnni": True})
    monkeypatch.setattr(inference, "_Int8Linear", Broken)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    try:
        with pytest.warns(UserWarning, match="instructions for int8, but products in it fail or are wrong") as warned:
            assert inference.resolve_dtype("auto", False) == "float32"
        assert len(warned) == 1
        with pytest.raises(ValueError, match="'int8': this machine cannot do that"):
            inference.resolve_dtype("int8", False)
    finally:
        inference._is_right.cache_clear()


@pytest.mark.parametrize(
    ("limit", "best"), [("AVX", "float32"), ("AVX2", "int8"), ("AVX512_CORE_VNNI", "int8"), ("ALL", "bfloat16")]
)
def test_the_dtype_heeds_what_is_hidden_from_the_libraries(
    monkeypatch: pytest.MonkeyPatch, limit: str, best: str
) -> None:
    capabilities(monkeypatch, "avx2", "avx512_vnni", "avx512_bf16")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert inference.resolve_dtype("auto", False) == best


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
    capabilities(monkeypatch, "avx2", "avx512_vnni")
    with pytest.raises(ValueError, match=r"'bfloat16': this machine cannot.*auto, int8, float32"):
        inference.resolve_dtype("bfloat16", False)
    with pytest.raises(ValueError, match=r"'fast': there is no such.*auto, int8, float32.*BERT_NER_DTYPE"):
        inference.resolve_dtype("fast", False)
    monkeypatch.setenv("BERT_NER_DTYPE", "half")
    with pytest.raises(ValueError, match="'half'"):
        load_model_from_config(pipeline.config)


@given(st.lists(st.integers(1, 512), max_size=40), st.integers(1, 2000))
def test_sub_batches_hold_each_sequence_once_and_keep_to_the_budget(lengths: list[int], budget: int) -> None:
    batches = list(inference.sub_batches(np.array(lengths, dtype=int), budget))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert [lengths[i] for batch in batches for i in batch] == sorted(lengths)
    assert all(len(batch) == 1 or len(batch) * lengths[batch[-1]] <= budget for batch in batches)


def needs(dtype: str) -> None:
    try:
        inference.resolve_dtype(dtype, False)
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
        found, expected = inference._Int8Linear(linear.weight, linear.bias)(rows), linear(rows)
    others = torch.ones(3, 40, dtype=torch.bool)
    others[0, 0] = False
    assert found.shape == expected.shape
    assert ((found - expected)[others].norm() / expected[others].norm()).item() < 0.015
    assert ((found - expected)[0, 0].norm() / expected[0, 0].norm()).item() < 0.05


def test_large_logits_are_computed_again_the_safe_way(tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exponential function of a bfloat16 is infinite above 88."""
    needs("bfloat16")
    safe: list[bool] = []
    attend = inference._attend
    monkeypatch.setattr(inference, "_attend", lambda *arguments: safe.append(True) or attend(*arguments))  # type: ignore[func-returns-value]
    original = AutoModel.from_pretrained(tiny_encoder).eval()
    for layer in original.encoder.layer:
        layer.attention.self.query.weight.data *= 3000
        layer.attention.self.key.weight.data *= 300
    ids = torch.randint(5, 50, (3, 40), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, 40, dtype=torch.long)
    mask[1, 20:] = 0
    with torch.inference_mode():
        expected = original(input_ids=ids, attention_mask=mask).last_hidden_state
        found = inference.copy_encoder(original, "bfloat16")(ids, mask)
    assert safe and found.isfinite().all()
    assert torch.nn.functional.cosine_similarity(found.float(), expected, dim=2)[mask.bool()].median() > 0.9


@pytest.mark.parametrize("own", [True, False])
def test_token_types_count(tiny_encoder: Path, own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    original = AutoModel.from_pretrained(tiny_encoder).eval()
    original.embeddings.token_type_embeddings.weight.data[1] += 1
    monkeypatch.setattr(inference.Inference, "is_bert", staticmethod(lambda encoder: own))
    ids = torch.arange(5, 25).view(2, 10)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": ids % 2}
    copied = inference.copy_encoder(original, "float32")
    with torch.inference_mode():
        torch.testing.assert_close(copied(**inputs), original(**inputs).last_hidden_state, rtol=1e-4, atol=1e-5)
        del inputs["token_type_ids"]
        torch.testing.assert_close(copied(**inputs), original(**inputs).last_hidden_state, rtol=1e-4, atol=1e-5)


def test_a_copy_to_predict_with_is_whole_on_the_device_of_the_encoder(
    tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers of positions, which are not stored, once stayed on the CPU."""
    made: list[Any] = []
    create = inference.Inference.create_encoder
    keep = staticmethod(lambda config: made.append(create(config)) or made[0])  # type: ignore[func-returns-value]
    monkeypatch.setattr(inference.Inference, "create_encoder", keep)
    original = AutoModel.from_pretrained(tiny_encoder).to("meta")  # the one device beside the CPU that any machine has
    inference.copy_encoder(original, "float32")
    assert {tensor.device for tensor in (*made[0].parameters(), *made[0].buffers())} == {original.device}


def test_threads_side_by_side_compute_the_same(pipeline: Language, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = [pipeline.make_doc(" ".join(ENGLISH.split()[i % 9 :])) for i in range(40)]
    expected = load_as(pipeline, "float32").predict(docs).model_output.last_hidden_state
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        monkeypatch.setattr(inference, "CPU_WORDPIECES", 32)
        model = load_as(pipeline, "float32")
        batch = model.predict(docs)
        assert torch.get_num_threads() == 3 and set(model.inference.pools) == {3}
    finally:
        torch.set_num_threads(threads)
    mask = torch.from_numpy(batch.wordpieces.attention_mask).bool()
    torch.testing.assert_close(batch.model_output.last_hidden_state[mask], expected[mask], rtol=1e-4, atol=1e-5)
