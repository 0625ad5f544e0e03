"""What tests of several parts share: documents, and a small pipeline with random weights of the project's config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import spacy
from hypothesis import strategies as st
from spacy.language import Language
from spacy.tokens import Doc
from spacy.util import load_config, load_model_from_config
from thinc.api import fix_random_seed

from bert_ner.corpus import create_corpus
from scripts.convert import convert
from tests.conftest import ROOT, write_corpus

ENGLISH = "Mira Solberg left Turku for Oslo on Monday , and Kenya beat Peru twice in Malta ."

nlp = spacy.blank("en")

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
DOCUMENTS = st.lists(st.tuples(WORDS, st.randoms(use_true_random=False)), min_size=1, max_size=3).map(
    lambda texts: [Doc(nlp.vocab, words=words, spaces=[r.random() < 0.6 for _ in words]) for words, r in texts]
)


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


def read_tags(tags: tuple[str, ...], starts: list[bool]) -> list[tuple[int, int, int]] | None:
    """The entities of a sequence of tags, or None if it is not legal."""
    found, begun = [], None
    for i, (tag, start) in enumerate(zip(tags, starts, strict=True)):
        kind, label = tag[0], tag[1:]
        if (begun is None) == (kind in "IL") or (begun and (start or label != begun[1])):
            return None
        if kind == "B":
            begun = (i, label)
        elif kind == "U":
            found.append((i, i + 1, int(label)))
        elif kind == "L" and begun:
            found.append((begun[0], i + 1, int(label)))
            begun = None
    return None if begun else found
