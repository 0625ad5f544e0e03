from __future__ import annotations

import pytest
import spacy
from hypothesis import given
from hypothesis import strategies as st
from spacy.tokens import DocBin

from common.corpora import find_entity_texts, read_docs
from common.errors import StepError


@given(st.data())
def test_a_damaged_corpus_is_named_or_read(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    nlp = spacy.blank("en")
    path = tmp_path_factory.getbasetemp() / "some.spacy"
    whole = DocBin(docs=[nlp("Mira left Turku"), nlp("She slept")]).to_bytes()
    kind = data.draw(st.sampled_from(["whole", "cut", "changed", "other"]))
    if kind == "cut":
        contents = whole[: data.draw(st.integers(0, len(whole) - 1))]
    elif kind == "changed":
        place = data.draw(st.integers(0, len(whole) - 1))
        contents = whole[:place] + data.draw(st.binary(min_size=1, max_size=3)) + whole[place + 1 :]
    else:
        contents = whole if kind == "whole" else data.draw(st.binary(max_size=50))
    path.write_bytes(contents)
    try:
        assert len(read_docs(path)) == 2
        assert find_entity_texts(path) == set()
    except StepError as error:
        assert "some.spacy is damaged" in error.problem and kind != "whole"
