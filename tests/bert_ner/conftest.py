"""A small pipeline with random weights, made from the project's own config, that the tests of its parts share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import spacy
from spacy.language import Language
from spacy.util import load_config, load_model_from_config
from thinc.api import fix_random_seed

from bert_ner.corpus import create_corpus
from scripts.convert import convert
from tests.conftest import ROOT, write_corpus

ENGLISH = "Mira Solberg left Turku for Oslo on Monday , and Kenya beat Peru twice in Malta ."

nlp = spacy.blank("en")


@pytest.fixture(scope="session")
def pipeline(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Language:
    """The whole pipeline on the tiny encoder, initialised and not trained. No test may change it."""
    folder = tmp_path_factory.mktemp("bert_ner")
    convert(write_corpus(folder / "assets"), folder / "corpus")
    train = folder / "corpus" / "train.spacy"
    overrides = {"paths.encoder": str(tiny_encoder), "paths.train": str(train), "paths.dev": "x"}
    config = load_config(ROOT / "configs" / "bert.cfg", overrides=overrides, interpolate=True)
    fix_random_seed(0)
    made = load_model_from_config(config, auto_fill=True)
    made.initialize(lambda: list(create_corpus(train, True)(made)))
    return made


def copy_with(pipeline: Language, dtype: str) -> Language:
    """A copy of a pipeline that computes in another dtype."""
    config = pipeline.config.copy()
    config["components"]["transformer"]["model"]["dtype"] = dtype
    return load_model_from_config(config).from_bytes(pipeline.to_bytes())


def load_as(pipeline: Language, dtype: str) -> Any:
    """The transformer's model of such a copy."""
    return copy_with(pipeline, dtype).get_pipe("transformer").model  # type: ignore[attr-defined]
