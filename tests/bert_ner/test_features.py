from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from thinc.api import Model

from bert_ner import features
from tests.bert_ner.conftest import nlp


def test_the_vectors_of_a_word_are_averaged_over_its_document() -> None:
    docs = [nlp.make_doc("the cat The dog cat"), nlp.make_doc(""), nlp.make_doc("The fox")]
    random = np.random.default_rng(0)
    vectors = [random.normal(size=(len(doc), 3)).astype("float32") for doc in docs]
    caught: list[Any] = []
    model = features._with_word_means(Model("encoder", lambda model, docs, is_train: (vectors, caught.append)))
    output, backprop = model(docs, is_train=True)
    the, cat = (vectors[0][0] + vectors[0][2]) / 2, (vectors[0][1] + vectors[0][4]) / 2
    np.testing.assert_allclose(output[0][:, 3:], [the, cat, the, vectors[0][3], cat], rtol=1e-6)
    np.testing.assert_allclose(output[2], np.hstack((vectors[2], vectors[2])))
    slopes = [random.normal(size=array.shape).astype("float32") for array in output]
    backprop([slope.copy() for slope in slopes])

    def total() -> float:
        return sum(float((a * b).sum()) for a, b in zip(model.predict(docs), slopes, strict=True))

    for vector, gradient in zip(vectors, caught[0], strict=True):
        for place in np.ndindex(vector.shape):
            vector[place] += 0.5
            above = total()
            vector[place] -= 1
            assert above - total() == pytest.approx(gradient[place], abs=1e-4)
            vector[place] += 0.5
