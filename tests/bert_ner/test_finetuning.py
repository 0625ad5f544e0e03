from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from catalogue import REGISTRY  # type: ignore[import-untyped,unused-ignore]
from hypothesis import given
from hypothesis import strategies as st
from spacy.language import Language
from transformers import BertConfig, BertModel

from bert_ner import finetuning
from tests.bert_ner.conftest import ENGLISH, load_as


def without_dropout(model: Any) -> Any:
    for module in model.transformer.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


@pytest.mark.parametrize(
    "way", ["own", "of transformers, as for other architectures", "of transformers, as in a wheel"]
)
def test_gradients_are_those_of_the_encoder(pipeline: Language, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if they are accumulated, for windows of unequal length."""
    model = without_dropout(load_as(pipeline, "float32"))
    if way == "of transformers, as for other architectures":
        monkeypatch.setattr(type(model.inference), "is_bert", staticmethod(lambda encoder: False))
    if way == "of transformers, as in a wheel":
        monkeypatch.setattr("catalogue.REGISTRY", REGISTRY.copy())
        monkeypatch.delitem(REGISTRY, ("spacy", "misc", "bert_ner.FineTuning.v1"))
    reference = copy.deepcopy(model.transformer)
    docs = [pipeline.make_doc(" ".join(ENGLISH.split()[:n])) for n in (17, 3, 1, 9, 16)]
    slope = torch.linspace(-1, 1, 32)
    for _ in range(2):
        batch, backprop = model.begin_update(docs)
        mask = torch.from_numpy(batch.wordpieces.attention_mask)
        batch.model_output = {"output_0": slope * mask.unsqueeze(-1)}
        backprop(batch)
    types = torch.from_numpy(batch.wordpieces.token_type_ids)
    assert set(types.flatten().tolist()) == {0, 1}
    inputs = {"input_ids": torch.from_numpy(batch.wordpieces.input_ids), "attention_mask": mask}
    output = reference(**inputs, token_type_ids=types).last_hidden_state
    (2 * slope * output)[mask.bool()].sum().backward()
    for (name, ours), theirs in zip(model.transformer.named_parameters(), reference.parameters(), strict=True):
        if "pooler" not in name:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


@given(st.lists(st.integers(1, 170), max_size=30))
def test_groups_hold_each_window_and_little_padding(lengths: list[int]) -> None:
    array = np.array(lengths, dtype=int)
    groups = finetuning.group_windows(array)
    assert sorted(i for group in groups for i in group.tolist()) == list(range(len(lengths)))
    assert all((array[group].max() - array[group]).sum() <= finetuning.PADDING for group in groups)


def test_bfloat16_is_near_float32() -> None:
    """In training too, and the gradient as well."""
    torch.manual_seed(0)
    config = BertConfig(64, 64, 2, 4, 128, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = BertModel(config).train()
    mask = (torch.arange(60) < torch.tensor([[60], [58], [31], [7]])).long()
    vectors, slope = torch.randn(4, 60, 64), torch.randn(4, 60, 64) * mask[..., None]
    hidden, gradients = [], []
    for dtype in (torch.float32, torch.bfloat16):
        inputs = vectors.clone().requires_grad_()
        computed = finetuning._compute_bert(model, inputs, mask, dtype)
        torch.autograd.backward(computed, slope)
        assert inputs.grad is not None
        hidden.append(computed.detach()[mask.bool()])
        gradients.append(inputs.grad[mask.bool()])
    for exact, rounded in (hidden, gradients):
        assert (exact - rounded).norm() < 0.02 * exact.norm()


def test_dropout_drops_the_share_it_should_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer = finetuning._Dropout(0.1)
    ones = torch.ones(1001, 99, requires_grad=True)
    dropped = layer(ones)
    dropped.sum().backward()
    assert 0.095 < (dropped == 0).float().mean().item() < 0.107
    assert dropped.mean().item() == pytest.approx(1, abs=0.005) and ones.grad is not None and ones.grad.equal(dropped)
    assert not layer(ones).equal(dropped)
    assert layer.eval()(ones) is ones
