"""Encoders in folders, as transformers saves them: their files, whether they can be trained, some of their layers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, cast

from common.errors import StepError
from common.hub import first_line

TESTED = ("bert", "distilbert", "electra", "roberta")  # the architectures (model_type) that docs/encoders.md names
ENCODER_FILES = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)


def is_encoder_file(name: str) -> bool:
    """Tell whether a file with this name is part of an encoder."""
    return any(fnmatch(name, pattern) for pattern in ENCODER_FILES)


def list_encoder_files(folder: Path) -> list[str]:
    """List the files of an encoder in a folder.

    folder (Path): The folder, which may hold other things too.
    RETURNS (list[str]): Their names, in order.
    RAISES (StepError): If what has such a name is no file.
    """
    names = sorted(path.name for path in folder.iterdir() if is_encoder_file(path.name))
    for name in names:
        if not (folder / name).is_file():
            problem = f"{folder / name} is no file, but a folder or a link to nothing."
            raise StepError(problem, "Put the file there, or remove the name.")
    return names


def copy_encoder(source: Path, target: Path, copy: Callable[[Path, Path], Any]) -> None:
    """Copy the files of an encoder to a new folder.

    source, target (Path): The folders.
    copy (Callable[[Path, Path], Any]): Copies a file, or links it.
    RAISES (StepError): As `list_encoder_files` does.
    """
    target.mkdir()
    for name in list_encoder_files(source):
        copy(source / name, target / name)


def extract_encoder(pipeline: Path, folder: Path) -> None:
    """Save the fine-tuned encoder of a trained pipeline, with its tokenizer, as transformers saves one.

    pipeline (Path): The pipeline.
    folder (Path): The new folder.
    RAISES (StepError): If the pipeline cannot be loaded, or has no such encoder.
    """
    import spacy

    import bert_ner  # noqa: F401 (registers what the pipeline names)

    remedy = "Name a trained one, such as training/<run>/model-best."
    with _loading(f"{pipeline} is no pipeline of this project that can be loaded", remedy):
        model = cast(Any, spacy.load(pipeline).get_pipe("transformer")).model
        encoder, tokenizer = model.transformer.float(), model.tokenizer
    _save_weights(encoder, folder)
    tokenizer.save_pretrained(folder)


def _save_weights(model: Any, folder: Path) -> None:
    """Save a model without the weights of its pooler, which may be random numbers: nothing uses it."""
    weights = {name: weight for name, weight in model.state_dict().items() if not name.startswith("pooler.")}
    model.save_pretrained(folder, state_dict=weights, safe_serialization=True)


def parse_layers(layers: str) -> list[int]:
    """Read numbers with commas between them.

    layers (str): Such as 0,2,4.
    RETURNS (list[int]): The numbers, each once, in order.
    RAISES (StepError): If it is something else.
    """
    if not re.fullmatch(r"\d+(\s*,\s*\d+)*", layers, re.ASCII):
        raise StepError(f"layers is {layers!r}, neither all nor numbers.", "For example: --vars.layers 0,2,4")
    return sorted({int(number) for number in layers.split(",")})


def keep_layers(folder: Path, name: str, layers: list[int]) -> None:
    """Keep some of the layers of an encoder.

    folder (Path): The encoder, which `check_encoder` has passed. Its files are replaced.
    name (str): For messages.
    layers (list[int]): The layers to keep, which are numbered from 0, in order.
    RAISES (StepError): If it has no such layer, or if it is not clear what its layers are.
    """
    from torch.nn import ModuleList

    model, _ = _load_model(folder)
    number = model.config.num_hidden_layers
    stacks = [part for part in model.modules() if isinstance(part, ModuleList) and len(part) == number]
    if len(stacks) != 1:
        raise StepError(f"{name}: its {number} layers are not one list of modules.", "Use all of them: layers all.")
    if layers[-1] >= number:
        raise StepError(f"{name} has no layer {layers[-1]}, only {number}, from 0.", "Choose others: --vars.layers 0,2")
    for place, layer in enumerate([stacks[0][i] for i in layers]):
        stacks[0][place] = layer
    del stacks[0][len(layers) :]
    model.config.num_hidden_layers = len(layers)
    for path in (*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")):
        path.unlink()
    _save_weights(model, folder)


def check_encoder(folder: Path, name: str) -> None:
    """Make sure that a folder holds an encoder that can be trained, by loading it as training will.

    Training would begin, without a word, with random numbers for a weight that is missing.

    folder (Path): With config.json, tokenizer files and weights in safetensors.
    name (str): For messages.
    RAISES (StepError): If something is missing, damaged or of another shape, or if the architecture was never tested.
        Pickled weights are never loaded, nor code that comes with an encoder.
    """
    from safetensors import SafetensorError, safe_open
    from transformers import AutoConfig, AutoTokenizer

    again = f"Save the encoder again with save_pretrained into a new folder, model and tokenizer; this was {name}."
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise StepError(
            f"{name} has no weights in safetensors; pickled weights (pytorch_model.bin) are not loaded, being code.",
            "Convert them once: AutoModel.from_pretrained(...).save_pretrained(..., safe_serialization=True)",
        )
    for path in weights:
        try:
            with safe_open(path, "pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise StepError(f"{name}: {path.name} is damaged ({error}).", again) from error
    with _loading(f"{name}: config.json is missing or not understood", again):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if config.model_type not in TESTED:
        raise StepError(
            f"{name} is of the architecture {config.model_type}, with which training was never tested.",
            f"Choose an encoder of the architecture {', '.join(TESTED[:-1])} or {TESTED[-1]}: see docs/encoders.md.",
        )
    _check_weights(folder, name, again)
    if not any((folder / file).exists() for file in ("tokenizer.json", "vocab.txt", "vocab.json")):
        raise StepError(f"{name} has no tokenizer: none of tokenizer.json, vocab.txt, vocab.json.", again)
    with _loading(f"{name}: its tokenizer cannot be loaded", again):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if not tokenizer.is_fast or tokenizer.pad_token is None:
        raise StepError(f"{name}: its tokenizer is not a fast one, or has no wordpiece for padding.", again)
    if len(tokenizer) > config.vocab_size:
        raise StepError(
            f"{name}: the tokenizer has {len(tokenizer)} pieces, the model {config.vocab_size}: they do not belong "
            "together.",
            again,
        )
    positions = config.max_position_embeddings
    if config.model_type == "roberta":
        positions -= config.pad_token_id + 1  # the first position follows that of padding
    if tokenizer.model_max_length > positions:
        raise StepError(
            f"{name} reads {positions} wordpieces at most, but its tokenizer does not say so.",
            f"AutoTokenizer.from_pretrained(folder, model_max_length={positions}).save_pretrained(folder)",
        )


@contextmanager
def _loading(problem: str, remedy: str) -> Iterator[None]:
    """Errors in loading, of which there is a kind for each way in which a file can be wrong, as one with a remedy."""
    try:
        yield
    except Exception as error:
        raise StepError(f"{problem} ({first_line(error)}).", remedy) from error


def _load_model(folder: Path) -> tuple[Any, dict[str, Any]]:
    """Load a model, and list the weights that are missing, left over or of another shape.

    transformers would warn of them, and of heads, which nobody needs.
    """
    from transformers import AutoModel
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model, found = AutoModel.from_pretrained(
            folder,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # then they are listed, instead of an error that names none
            output_loading_info=True,
        )
    finally:
        logging.set_verbosity(verbosity)
    return model, found


def _check_weights(folder: Path, name: str, remedy: str) -> None:
    import torch

    with _loading(f"{name}: its weights cannot be loaded", remedy):
        model, found = _load_model(folder)
    if others := found["mismatched_keys"]:
        problem = f"{name}: {len(others)} of its weights, {min(others)} for one, have other shapes than by config.json."
        raise StepError(problem, remedy)
    needed = {key: weight for key, weight in model.state_dict().items() if not key.startswith("pooler.")}
    if missing := sorted(needed.keys() & set(found["missing_keys"])):
        raise StepError(
            f"{name} lacks {len(missing)} of its {len(needed)} weights, {missing[0]} for one: training would replace "
            "them by random numbers.",
            remedy,
        )
    parts = tuple(f"{part}." for part, _ in model.named_children() if part != "pooler")
    kept = (key.removeprefix(f"{model.base_model_prefix}.") for key in found["unexpected_keys"])
    if left := sorted(key for key in kept if key.startswith(parts) and not key.endswith("position_ids")):
        problem = f"{name}: {len(left)} of its weights, {left[0]} for one, have no place in the model of config.json."
        raise StepError(problem, remedy)
    for key, weight in needed.items():
        if not torch.isfinite(weight).all():
            raise StepError(f"{name}: {key} holds numbers that are not finite.", remedy)
