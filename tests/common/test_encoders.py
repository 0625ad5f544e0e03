from __future__ import annotations

import json
import math
import os
import shutil
import string
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import spacy
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from spacy.util import load_config, load_model_from_config
from thinc.api import Adam

from bert_ner import corpus
from common.encoders import TESTED, check_encoder, copy_encoder, keep_layers, parse_layers
from common.errors import StepError
from common.records import read_json
from common.training import derive
from scripts.convert import convert
from tests.conftest import ROOT, name_as_on_the_hub, write_corpus

CONFIG = ROOT / "configs" / "bert.cfg"


def take(source: Path, folder: Path) -> Path:
    """Copy an encoder, as `download` does, and check it there."""
    copy_encoder(source, folder, shutil.copyfile)
    check_encoder(folder, source.name)
    return folder


def save_encoder(folder: Path, kind: str, layers: int = 2) -> Path:
    """A tiny random encoder of an architecture, with the head that it was pretrained with and its tokenizer."""
    import torch
    import transformers
    from tokenizers import ByteLevelBPETokenizer  # type: ignore[import-untyped,unused-ignore]

    folder.mkdir(parents=True)
    if kind == "roberta":
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        bpe = ByteLevelBPETokenizer()
        bpe.train_from_iterator(["Mira Solberg left Turku"], vocab_size=300, min_frequency=1, special_tokens=special)
        bpe.save_model(str(folder))
        files = [str(folder / "vocab.json"), str(folder / "merges.txt")]
        tokenizer = transformers.RobertaTokenizerFast(*files, model_max_length=512)
    else:
        letters = string.ascii_letters + string.digits + string.punctuation
        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
        (folder / "vocab.txt").write_text("\n".join(pieces))
        tokenizers = {
            "bert": transformers.BertTokenizerFast,
            "distilbert": transformers.DistilBertTokenizerFast,
            "electra": transformers.ElectraTokenizerFast,
        }
        cased = {"do_lower_case": False, "model_max_length": 512}
        tokenizer = tokenizers[kind](str(folder / "vocab.txt"), **cased)
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 64}
    config, model = {
        "bert": (transformers.BertConfig(**sizes), transformers.BertForMaskedLM),
        "distilbert": (
            transformers.DistilBertConfig(dim=32, n_layers=layers, n_heads=2, hidden_dim=64),
            transformers.DistilBertForMaskedLM,
        ),
        "electra": (transformers.ElectraConfig(embedding_size=16, **sizes), transformers.ElectraForPreTraining),
        "roberta": (
            transformers.RobertaConfig(max_position_embeddings=514, pad_token_id=1, **sizes),
            transformers.RobertaForMaskedLM,
        ),
    }[kind]
    config.vocab_size = len(tokenizer)
    torch.manual_seed(0)
    model(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    convert(write_corpus(folder / "assets"), folder / "corpus")
    return folder / "corpus" / "train.spacy"


@pytest.mark.parametrize("kind", TESTED)
def test_the_architectures_that_pass_can_be_trained_used_and_stored(kind: str, tmp_path: Path, train: Path) -> None:
    import torch

    encoder = take(save_encoder(tmp_path / kind, kind), tmp_path / "encoder")
    overrides = {"paths.encoder": str(encoder), "paths.train": str(train), "paths.dev": "x"}
    overrides["components.transformer.model.dtype"] = "float32"
    assert derive(CONFIG, train, encoder, "auto", "auto", "auto")
    config = load_config(CONFIG, overrides=overrides, interpolate=True)
    nlp = load_model_from_config(config, auto_fill=True)
    examples = list(corpus.create_corpus(train, True)(nlp))
    nlp.initialize(lambda: examples)
    optimizer = Adam(0.003)
    transformer: Any = nlp.get_pipe("transformer")
    bare = transformer.model.transformer
    before = {name: weight.clone() for name, weight in bare.state_dict().items()}
    losses = [nlp.update(examples, sgd=optimizer)["ner"] for _ in range(8)]
    assert losses[-1] < losses[0]
    kept = {name for name, weight in bare.state_dict().items() if torch.equal(weight, before[name])}
    assert not {name for name in kept if "pooler" not in name and "token_type" not in name}, "all of it is trained"
    docs = list(nlp.pipe(["Mira Solberg left Turku.", "Oslo " * 200]))
    nlp.to_disk(tmp_path / "model")
    for doc, again in zip(docs, spacy.load(tmp_path / "model").pipe([doc.text for doc in docs]), strict=True):
        assert [token.ent_type_ for token in again] == [token.ent_type_ for token in doc]


@pytest.mark.parametrize("kind", ["albert", "gpt2", "t5", "unheard-of"])
def test_other_architectures_are_refused(kind: str, tmp_path: Path, tiny_encoder: Path) -> None:
    source = shutil.copytree(tiny_encoder, tmp_path / kind)
    (source / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(StepError, match=r"never tested|config\.json is missing or not understood"):
        take(source, tmp_path / "encoder")


def test_names_as_on_the_hub_pass(tmp_path: Path, tiny_encoder: Path) -> None:
    """bert-base-uncased there: all below `bert.`, gamma and beta for LayerNorm's weights, heads, no pooler."""
    take(name_as_on_the_hub(shutil.copytree(tiny_encoder, tmp_path / "source")), tmp_path / "encoder")


@pytest.mark.parametrize("kind", TESTED)
def test_some_layers_of_an_encoder_are_kept(kind: str, tmp_path: Path) -> None:
    """What it computes is what the whole one does when it passes over the others."""
    import torch
    from transformers import AutoModel

    source = save_encoder(tmp_path / kind, kind, layers=4)
    encoder = take(source, tmp_path / "encoder")
    keep_layers(encoder, kind, parse_layers("3, 0,3"))
    check_encoder(encoder, kind)
    whole, some = (AutoModel.from_pretrained(folder).eval() for folder in (source, encoder))
    stack = next(part for part in whole.modules() if isinstance(part, torch.nn.ModuleList) and len(part) == 4)
    del stack[1:3]
    assert some.config.num_hidden_layers == 2
    ids = torch.tensor([[0, 7, 8, 9, 2]])
    with torch.inference_mode():
        assert torch.equal(whole(ids).last_hidden_state, some(ids).last_hidden_state)


@pytest.mark.parametrize("layers", ["", "-1", "first"])
def test_layers_are_numbers(layers: str) -> None:
    with pytest.raises(StepError, match=f"layers is '{layers}', neither all nor numbers"):
        parse_layers(layers)


def test_layers_that_an_encoder_has_not_are_refused(tmp_path: Path, tiny_encoder: Path) -> None:
    with pytest.raises(StepError, match="tiny has no layer 1, only 1"):
        keep_layers(take(tiny_encoder, tmp_path / "encoder"), "tiny", [0, 1])


def remove(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).unlink()


def shrink_table(folder: Path) -> None:
    damage_config(folder, vocab_size=9)
    damage_weights(folder, lambda w: [w.update({k: w[k][:9].clone()}) for k in w if "word_embeddings" in k])


def damage_weights(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def damage_config(folder: Path, **values: object) -> None:
    (folder / "config.json").write_text(json.dumps(read_json(folder / "config.json") | values))


def split_weights(folder: Path) -> None:
    from transformers import BertForMaskedLM

    model = BertForMaskedLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    sorted(folder.glob("model-*.safetensors"))[-1].unlink()


QUERY = "bert.encoder.layer.0.attention.self.query.weight"
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no tokenizer": (
        lambda folder: remove(folder, "vocab.txt", "tokenizer.json", "tokenizer_config.json"),
        "has no tokenizer",
    ),
    "no config": (lambda folder: remove(folder, "config.json"), "config.json is missing"),
    "config is a list": (lambda folder: (folder / "config.json").write_text("[]"), "config.json is missing or not"),
    "config is no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json is missing or not"),
    "width in words": (lambda folder: damage_config(folder, hidden_size="x"), "cannot be loaded|not understood"),
    "another width": (lambda folder: damage_config(folder, hidden_size=64), "have other shapes than by config.json"),
    "layers missing": (lambda folder: damage_config(folder, num_hidden_layers=4), "lacks 48 of its 69 weights"),
    "layers left over": (lambda folder: damage_config(folder, num_hidden_layers=0), "have no place in the model"),
    "pickle only": (lambda folder: remove(folder, "model.safetensors"), "no weights in safetensors; pickled"),
    "cut off": (lambda folder: os.truncate(folder / "model.safetensors", 5000), "model.safetensors is damaged"),
    "empty file": (lambda folder: os.truncate(folder / "model.safetensors", 0), "model.safetensors is damaged"),
    "no weights": (lambda folder: damage_weights(folder, dict.clear), "lacks 21 of its 21 weights"),
    "foreign names": (
        lambda folder: damage_weights(folder, lambda w: [w.update({f"x.{k}": w.pop(k)}) for k in list(w)]),
        "lacks 21 of its 21 weights",
    ),
    "one missing": (
        lambda folder: damage_weights(folder, lambda w: w.pop(QUERY)),
        "lacks 1 of its 21 weights, encoder.layer.0.attention.self.query.weight",
    ),
    "not a number": (
        lambda folder: damage_weights(folder, lambda w: w[QUERY].fill_(math.nan)),
        "encoder.layer.0.attention.self.query.weight holds numbers that are not finite",
    ),
    "shard missing": (split_weights, "its weights cannot be loaded"),
    "tokenizer {}": (lambda folder: (folder / "tokenizer.json").write_text("{}"), "its tokenizer cannot be loaded"),
    "tokenizer no JSON": (lambda folder: (folder / "tokenizer.json").write_text("x"), "its tokenizer cannot be loaded"),
    "no limit": (
        lambda folder: (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizerFast"}'),
        "reads 512 wordpieces at most, but its tokenizer does not say so",
    ),
    "small table": (shrink_table, "they do not belong together"),
    "dangling link": (
        lambda folder: (folder / "merges.txt").symlink_to("nowhere"),
        "merges.txt is no file, but a folder or a link to nothing",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_encoder_that_lacks_something_is_refused(tmp_path: Path, tiny_encoder: Path, damage: str) -> None:
    broken = shutil.copytree(tiny_encoder, tmp_path / "broken")
    (broken / "pytorch_model.bin").write_bytes(b"pickle")
    change, said = DAMAGES[damage]
    change(broken)
    with pytest.raises(StepError, match=said):
        take(broken, tmp_path / "encoder")


VALUES = st.none() | st.booleans() | st.integers(-2, 70) | st.floats(width=16) | st.text(max_size=4) | st.just([1])
SETTINGS = [
    *("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("vocab_size", "pad_token_id", "max_position_embeddings", "type_vocab_size", "layer_norm_eps"),
    *("hidden_dropout_prob", "torch_dtype", "quantization_config"),
]


@settings(max_examples=40)
@given(st.dictionaries(st.sampled_from(SETTINGS), VALUES, min_size=1, max_size=3))
def test_no_config_ends_in_a_traceback(tiny_encoder: Path, values: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder, suppress(StepError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = shutil.copytree(tiny_encoder, Path(folder) / "source")
        damage_config(source, **values)
        check_encoder(source, "odd")
