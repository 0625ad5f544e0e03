from __future__ import annotations

import copy
import itertools
import os
import random
import re
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
import srsly
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.language import Language
from spacy.tokenizer import Tokenizer  # type: ignore[import-not-found,unused-ignore]
from spacy.tokens import Doc, DocBin, Span
from spacy.training import Example
from spacy.util import import_file, load_config, load_model_from_config, registry
from thinc.api import Adam, Model
from transformers import BertTokenizerFast

from scripts import functions
from scripts.convert import convert
from tests.conftest import ROOT, guard, write_corpus

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


def test_sentence_starts_that_are_not_known_stay_unknown(tmp_path: Path) -> None:
    starts: list[bool | int | None] = [True, None, False]
    DocBin(docs=[Doc(nlp.vocab, words=["Turku", "sleeps", "."], sent_starts=starts)]).to_disk(tmp_path / "some.spacy")
    (example,) = functions.create_corpus(tmp_path / "some.spacy", True)(nlp)
    assert [token.is_sent_start for token in example.predicted] == starts


def test_the_corpus_leaves_docs_without_sentences_alone(tmp_path: Path) -> None:
    DocBin(docs=[Doc(nlp.vocab, words=["Turku", "sleeps"], ents=["B-LOC", "O"])]).to_disk(tmp_path / "some.spacy")
    (example,) = functions.create_corpus(tmp_path / "some.spacy", True)(nlp)
    assert not example.predicted.has_annotation("SENT_START")


def test_another_wheel_of_the_same_code_changes_nothing(pipeline: Language) -> None:
    text = "Mira Solberg left Turku for Oslo."
    before = pipeline(text).to_json()
    import_file("another", ROOT / "scripts" / "functions.py")
    assert pipeline(text).to_json() == before
    assert load_model_from_config(pipeline.config).from_bytes(pipeline.to_bytes())(text).to_json() == before


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
    (windows,) = functions._fit_windows(functions.create_windows(128, 32), tokenizer, [doc])
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


def test_known_sentence_starts_are_kept_and_no_entity_crosses_them(pipeline: Language) -> None:
    words = ["Mira", "Solberg", "Turku", "Oslo"] * 10
    doc = pipeline(Doc(pipeline.vocab, words=words, sent_starts=[i % 2 == 0 for i in range(len(words))]))
    assert [sent.start for sent in doc.sents] == list(range(0, len(words), 2))
    assert all(len(ent) <= 2 and ent.start // 2 == (ent.end - 1) // 2 for ent in doc.ents)


def test_entities_already_set_are_kept(pipeline: Language) -> None:
    """As with spaCy's ner: an entity ruler before it has the last word, and blocked tokens get no entity."""
    words = ["Mira", "Solberg", "left", "Turku", "for", "Oslo", "."] * 6
    found = pipeline(Doc(pipeline.vocab, words=words)).ents
    first = next(ent for ent in found if ent.start > 0)
    doc = Doc(pipeline.vocab, words=words)
    doc.set_ents([Span(doc, first.start - 1, first.start + 1, "PRODUCT")], blocked=[doc[20:22]])
    after = pipeline(doc)
    kept = [ent for ent in after.ents if ent.label_ == "PRODUCT"]
    assert [(ent.start, ent.end, ent._.score) for ent in kept] == [(first.start - 1, first.start + 1, None)]
    assert not {20, 21} & {token.i for ent in after.ents for token in ent}
    assert all(ent._.score is not None for ent in after.ents if ent.label_ != "PRODUCT")
    assert not [token for token in after if not token.ent_iob]  # nothing is left unknown


KINDS = ["O", *(f"{kind}{label}" for label in range(2) for kind in "BILU")]


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


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 4), min_size=1, max_size=4), st.sampled_from([1, 3, 8]))
def test_entities_are_those_of_the_best_legal_sequence_and_scores_are_posteriors(
    seed: int, lengths: list[int], sharpness: int
) -> None:
    """Against all sequences, one by one."""
    random = np.random.default_rng(seed)
    logits = [random.normal(size=(length, len(KINDS))) * sharpness for length in lengths]
    probabilities = [functions._softmax(array).astype("float32") if len(array) else array for array in logits]
    starts = [random.random(length) < 0.2 for length in lengths]
    for array, cuts, entities in zip(
        probabilities, starts, functions.find_entities(probabilities, starts), strict=True
    ):
        best: tuple[float, list[tuple[int, int, int]]] = (-1.0, [])
        total, mass = 0.0, dict[tuple[int, ...], float]()
        inner = [False, *map(bool, cuts[1:])][: len(cuts)]
        for tags in itertools.product(range(len(KINDS)), repeat=len(array)):
            found = read_tags(tuple(KINDS[tag] for tag in tags), inner)
            if found is not None:
                weight = float(np.prod([array[i, tag] for i, tag in enumerate(tags)]))
                best = max(best, (weight, found))
                total += weight
                for entity in found:
                    mass[entity] = mass.get(entity, 0) + weight
        if total < 0.01:
            continue  # among so improbable ones, what is cut off as one in a million may count
        assert [entity[:3] for entity in entities] == best[1]
        for *span, score in entities:
            assert score == pytest.approx(mass[tuple(span)] / total, abs=1e-3) and 0 < score <= 1


def test_every_entity_has_a_score_that_does_not_depend_on_the_batch(pipeline: Language) -> None:
    nlp = copy_with(pipeline, "float32")
    texts = [" ".join(ENGLISH.split()[i % 17 :] * (1 + i % 3)) for i in range(20)]
    together = list(nlp.pipe(texts))
    assert sum(len(doc.ents) for doc in together) > 20
    for text, doc in zip(texts, together, strict=True):
        alone = nlp(text)
        assert [(ent.start, ent.end, ent.label_) for ent in alone.ents] == [
            (ent.start, ent.end, ent.label_) for ent in doc.ents
        ]
        for here, there in zip(alone.ents, doc.ents, strict=True):
            assert 0 < here._.score <= 1 and here._.score == pytest.approx(there._.score, abs=1e-3)


SPACE = st.sampled_from(["\n", "  ", "\n\n"])


@settings(deadline=None, max_examples=30)
@given(st.lists(st.one_of(st.just(["left"]), st.lists(SPACE, max_size=2))))
def test_entities_neither_begin_nor_end_with_white_space_and_pass_over_it(
    pipeline: Language, parts: list[list[str]]
) -> None:
    """A list of white space only stands between the two words of a name."""
    recognizer = pipeline.get_pipe("ner")
    assert isinstance(recognizer, functions.EntityRecognizer)
    names = [part for part in parts if part != ["left"]]
    words_ = [word for part in parts for word in (part if part == ["left"] else ["Mira", *part, "Turku"])]
    doc = Doc(pipeline.vocab, words=words_)
    tags = {"left": "O", "Mira": "B-PER", "Turku": "L-PER"}
    sure = np.full((len(doc), len(recognizer.tags)), 1e-9, dtype="float32")
    for row, token in zip(sure, doc, strict=True):
        row[recognizer.tags.index(tags.get(token.text, "U-LOC"))] = 1
    recognizer.set_annotations([doc], [sure])
    assert [[token.text for token in ent] for ent in doc.ents] == [["Mira", *part, "Turku"] for part in names]


def test_calibration_finds_the_temperature_that_was_lost(pipeline: Language) -> None:
    recognizer = copy_with(pipeline, "float32").get_pipe("ner")
    assert isinstance(recognizer, functions.EntityRecognizer)
    random = np.random.default_rng(0)
    logits = random.normal(size=(4000, len(recognizer.tags))) * 2
    logits[:, [i for i, tag in enumerate(recognizer.tags) if tag[0] in "BIL"]] = -50  # entities of one token
    truth = functions._softmax(logits)
    tags = [recognizer.tags[random.choice(len(row), p=row)] for row in truth]
    gold = [{(i, i + 1, tag[2:]) for i, tag in enumerate(tags) if tag != "O"}]
    doc = Doc(nlp.vocab, words=["a"] * len(tags))
    probabilities = [functions._softmax(logits * 2)]
    for known in (set(), {"a"}):
        recognizer.model.get_ref("softmax").attrs["softmax_temperature"] = 1.0
        assert recognizer.calibrate([doc], probabilities, gold, known) == pytest.approx(2, rel=0.15)


def test_calibration_heeds_new_names_as_much_as_known_ones(pipeline: Language) -> None:
    recognizer = copy_with(pipeline, "float32").get_pipe("ner")
    assert isinstance(recognizer, functions.EntityRecognizer)
    label, size = recognizer.labels[0], 1000
    logits = np.full((size, len(recognizer.tags)), -50.0)
    logits[:, 0], logits[:, recognizer.tags.index(f"U-{label}")] = 0, 3  # all are found, with a score of 0.95
    doc = Doc(nlp.vocab, words=["old"] * (size - 100) + ["new"] * 100)
    gold = [{(i, i + 1, label) for i in range(size - 50)}]  # half of the new ones are wrong
    temperatures = []
    for known in (set(), {"old"}):
        recognizer.model.get_ref("softmax").attrs["softmax_temperature"] = 1.0
        temperatures.append(recognizer.calibrate([doc], [functions._softmax(logits)], gold, known))
    assert temperatures[0] == pytest.approx(1, rel=0.1) and temperatures[1] > 2


def test_a_corpus_without_entities_is_refused(pipeline: Language) -> None:
    recognizer = copy_with(pipeline, "float32").get_pipe("ner")
    with pytest.raises(ValueError, match="no entity to train 'ner' on"):
        recognizer.initialize(lambda: [Example.from_dict(nlp.make_doc("Turku sleeps"), {})])  # type: ignore[attr-defined]


def test_tokens_whose_tag_is_not_known_are_not_learnt_from(pipeline: Language) -> None:
    recognizer = copy_with(pipeline, "float32").get_pipe("ner")
    assert isinstance(recognizer, functions.EntityRecognizer)
    doc = nlp.make_doc("Mira left Turku")
    example = Example.from_dict(doc, {"entities": ["U-PER", "-", "O"]})
    probabilities = np.full((3, len(recognizer.tags)), 1 / len(recognizer.tags), dtype="float32")
    loss, (gradient,) = recognizer.get_loss([example], [probabilities])
    assert loss == pytest.approx(2 * np.log(len(recognizer.tags)), rel=1e-4)
    assert not gradient[1].any() and gradient[0, recognizer.tags.index("U-PER")] < 0 and gradient[2, 0] < 0


def test_the_vectors_of_a_word_are_averaged_over_its_document() -> None:
    docs = [nlp.make_doc("the cat The dog cat"), nlp.make_doc(""), nlp.make_doc("The fox")]
    random = np.random.default_rng(0)
    vectors = [random.normal(size=(len(doc), 3)).astype("float32") for doc in docs]
    caught: list[Any] = []
    model = functions._with_word_means(Model("encoder", lambda model, docs, is_train: (vectors, caught.append)))
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


def test_what_newswire_writes_as_one_word_is_one_token(tmp_path: Path) -> None:
    made = spacy.blank("en", config={"nlp": {"tokenizer": {"@tokenizers": "bert_ner.Tokenizer.v2"}}})
    text = "(12-8) 1996-08-22 Mira 's Oslo-based St. Vik-Rud/Lie lost 6-4 7:30 in the U.S. , didn't she... ok"
    expected = "( 12-8 ) 1996-08-22 Mira 's Oslo-based St. Vik-Rud/Lie lost 6-4 7:30 in the U.S. , did n't she ... ok"
    made.to_disk(tmp_path / "made")
    for pipe in (made, spacy.load(tmp_path / "made")):
        assert [token.text for token in pipe(text)] == expected.split()


@pytest.fixture(scope="module")
def tokenizers() -> tuple[Language, Language]:
    """The project's, and the same without its bounds."""
    config = {"nlp": {"tokenizer": {"@tokenizers": "bert_ner.Tokenizer.v2"}}}
    ours, plain = spacy.blank("en", config=config), spacy.blank("en", config=config)
    tokenizer: Any = ours.tokenizer
    plain.tokenizer = Tokenizer(
        plain.vocab,
        tokenizer.rules,
        tokenizer.prefix_search.__self__.search,
        re.compile(tokenizer.suffix_search.__self__.pattern).search,
        tokenizer.infix_finditer,
        tokenizer.token_match,
        tokenizer.url_match,
    )
    return ours, plain


PIECES = [
    "Mira",
    "can't",
    "U.S.",
    "(12-8)",
    "...",
    "'s",
    "n't",
    "10km",
    "$5",
    "http://a.eu/b?c=d",
    "\u201cso\u201d",
    "8-6",
    "\U0001f600",
]


@settings(deadline=None)
@given(st.lists(st.one_of(st.sampled_from([*PIECES, " ", "\n"]), st.text(max_size=5)), max_size=20).map("".join))
def test_bounds_change_no_token_of_ordinary_text(tokenizers: tuple[Language, Language], text: str) -> None:
    ours, plain = (nlp.make_doc(text) for nlp in tokenizers)
    assert [(t.text, t.whitespace_) for t in ours] == [(t.text, t.whitespace_) for t in plain]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.text(min_size=1, max_size=3), st.integers(1, 1500)), max_size=4))
def test_long_chunks_are_cut_and_lose_nothing(
    tokenizers: tuple[Language, Language], parts: list[tuple[str, int]]
) -> None:
    text = " ".join(part * number for part, number in parts)
    doc = tokenizers[0].make_doc(text)
    assert doc.text == text and all(len(token) <= functions.LONGEST_CHUNK or token.is_space for token in doc)


def test_affixes_take_time_in_proportion_to_the_text(tokenizers: tuple[Language, Language], tmp_path: Path) -> None:
    """12,000 equals signs once took a minute. What the searches look at is counted, before and after a load."""
    tokenizers[0].to_disk(tmp_path / "saved")
    for nlp_ in (tokenizers[0], spacy.load(tmp_path / "saved")):
        tokenizer: Any = nlp_.tokenizer
        longest, seen = 0, 0
        suffixes = tokenizer.suffix_search.__self__

        def search(text: str, inner: Any = suffixes.search) -> Any:
            nonlocal longest, seen
            longest, seen = max(longest, len(text)), seen + 1
            return inner(text)

        tokenizer.suffix_search = search
        assert len(nlp_.make_doc("=(" * 6000)) == 12000
        assert longest <= functions.LONGEST_CHUNK and seen <= 13000
        assert tokenizer.prefix_search.__name__ == "match" and hasattr(suffixes, "compiled")


@given(st.lists(st.text(min_size=1).filter(lambda text: not text.isspace()), min_size=1, max_size=6))
def test_recasing_keeps_the_tokens_and_their_annotation(words_: list[str]) -> None:
    starts: list[bool | int | None] = [i % 2 == 0 for i in range(len(words_))]
    doc = Doc(nlp.vocab, words=words_, tags=["NN"] * len(words_), sent_starts=starts, ents=["B-PER"] * len(words_))
    for case in (str.lower, str.upper):
        copied = functions.recase(doc, case)
        assert [token.text for token in copied] == [case(word) for word in words_]
        for before, after in zip(doc, copied, strict=True):
            assert (after.tag_, after.ent_iob_, after.ent_type_) == (before.tag_, before.ent_iob_, before.ent_type_)
            assert after.is_sent_start == before.is_sent_start


SPELLINGS = {"PER": ["Mira", "MIRA"], "LOC": ["Turku", "TURKU", "turku"]}


@st.composite
def documents_with_names(draw: st.DrawFn) -> Doc:
    """Names of one to three tokens in several spellings, words around them, and tokens of which nothing is known."""
    ents: list[Any] = []
    words_: list[str] = []
    starts: list[Any] = []
    for _ in range(draw(st.integers(1, 8))):
        label = draw(st.sampled_from(["PER", "LOC", "", "?"]))
        if label in SPELLINGS:
            case = draw(st.sampled_from([str.upper, str.title, str.lower]))
            size = draw(st.integers(1, 3))
            words_ += [case(draw(st.sampled_from(SPELLINGS[label]))) for _ in range(size)]
            ents += [f"B-{label}", *[f"I-{label}"] * (size - 1)]
            starts += [draw(st.booleans()), *[False] * (size - 1)]
        else:
            words_.append(draw(st.sampled_from(["left", "Left", "LEFT"])))
            ents.append("O" if label else None)
            starts.append(draw(st.booleans()))
    starts[0] = True
    return Doc(nlp.vocab, words=words_, tags=["NN"] * len(ents), sent_starts=starts, ents=ents)


OTHERS = Doc(
    nlp.vocab,
    words=["Ada", "Vik", "NATO", "Oslo", "OSLO", "Å", "Bergen"],
    ents=["B-PER", "I-PER", "B-PER", "B-LOC", "B-LOC", "B-LOC", "I-LOC"],
)


def annotation(doc: Doc) -> list[tuple[Any, ...]]:
    return [(t.text, t.whitespace_, t.tag_, t.is_sent_start, t.ent_iob_, t.ent_type_) for t in doc]


@given(documents_with_names(), st.booleans())
def test_renaming_nothing_changes_nothing(doc: Doc, given_starts: bool) -> None:
    """A name in a headline once put all its mentions in capitals."""
    starts: list[Any] | None = [token.is_sent_start for token in doc] if given_starts else None
    plain = Doc(doc.vocab, words=[token.text for token in doc], sent_starts=starts)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(random, "random", lambda: 0.999)
        renamed = functions.rename(Example(plain, doc), functions.collect_names([doc, OTHERS]))
    assert annotation(renamed.reference) == annotation(doc)
    assert annotation(renamed.predicted) == annotation(plain)


@given(documents_with_names(), st.sampled_from([0.0, None]))
def test_renaming_keeps_all_but_the_names(doc: Doc, chance: float | None) -> None:
    names = functions.collect_names([doc, OTHERS])
    with pytest.MonkeyPatch.context() as patched:
        if chance is not None:  # all are chosen
            patched.setattr(random, "random", lambda: chance)
        after = functions.rename(Example(Doc(doc.vocab, words=[t.text for t in doc]), doc), names).reference
    assert [ent.label_ for ent in after.ents] == [ent.label_ for ent in doc.ents]
    assert [ent.text.isupper() for ent in after.ents] == [ent.text.isupper() for ent in doc.ents]
    outside = [[row for row in annotation(part) if not row[5]] for part in (doc, after)]
    assert [row[2:] for row in outside[0]] == [row[2:] for row in outside[1]]
    assert len(list(after.sents)) == len(list(doc.sents))
    assert {(ent.text.lower(), ent.label_) for ent in after.ents} <= {
        (ent.text.lower(), ent.label_) for ent in [*doc.ents, *OTHERS.ents]
    }
    for label in SPELLINGS:  # what is one name before is one after
        for name in {ent.text.lower() for ent in doc.ents if ent.label_ == label}:
            places = [i for i, ent in enumerate(doc.ents) if (ent.text.lower(), ent.label_) == (name, label)]
            assert len({after.ents[i].text.lower() for i in places}) == 1


def test_names_have_one_spelling_each() -> None:
    words_ = ["OSLO", "Oslo", "OSLO", "TURKU", "NATO"]
    names = functions.collect_names([Doc(nlp.vocab, words=words_, ents=["B-LOC"] * 4 + ["B-ORG"])])
    assert [ent.text for ent in names["LOC", False]] == ["Oslo", "TURKU"]
    assert [ent.text for ent in names["LOC", True]] == ["Oslo"]
    assert [ent.text for ent in names["ORG", False]] == ["NATO"] and not names["ORG", True]


@given(documents_with_names(), st.integers(1, 5))
def test_long_documents_are_cut_outside_of_entities_and_lose_nothing(doc: Doc, size: int) -> None:
    pieces = functions.find_pieces(doc, size)
    assert [i for a, b in pieces for i in range(a, b)] == list(range(len(doc)))
    longest = max([1, *map(len, doc.ents)])
    assert all(0 < b - a <= max(size, longest) and doc[a].ent_iob_ != "I" for a, b in pieces)
    if len(pieces) == 1:
        assert len(doc) <= size or longest > size or not any(token.ent_iob_ != "I" for token in doc[1 : size + 1])


def test_training_cuts_long_documents_and_keeps_their_annotation() -> None:
    """Three contracts of 8,000 tokens are a corpus: a step's memory must not grow with them."""
    sentence = ["Mira", "Solberg", "left", "Turku", "."]
    doc = Doc(
        nlp.vocab,
        words=sentence * 1600,
        tags=["NNP", "NNP", "VBD", "NNP", "."] * 1600,
        sent_starts=[True, False, False, False, False] * 1600,
        ents=["B-PER", "I-PER", "O", "B-LOC", "O"] * 1600,
    )
    example = Example(Doc(nlp.vocab, words=sentence * 1600, sent_starts=[t.is_sent_start for t in doc]), doc)
    plain = registry.batchers.get("spacy.batch_by_padded.v1")(size=1500, buffer=256, discard_oversize=False)
    batches = list(functions.create_batcher(plain, renamed=0, lower=0, upper=0)([example]))
    pieces = sorted((piece for batch in batches for piece in batch), key=len)
    assert sum(map(len, pieces)) == 8000 and max(map(len, pieces)) <= functions.LONGEST_DOCUMENT
    for piece in pieces:
        assert annotation(piece.reference) == annotation(doc)[: len(piece)]
        assert [t.is_sent_start for t in piece.predicted] == [t.is_sent_start for t in piece.reference]


def test_batches_rename_a_share() -> None:
    def make(i: int) -> Example:
        doc = Doc(nlp.vocab, words=[f"Name{i}", "left"], ents=["B-PER", "O"])
        return Example(Doc(nlp.vocab, words=[f"Name{i}", "left"]), doc)

    plain = registry.batchers.get("spacy.batch_by_padded.v1")(size=30, buffer=256, discard_oversize=False)
    batches = functions.create_batcher(plain, renamed=0.5, lower=0, upper=0)([make(i) for i in range(300)])
    names = [example.reference[0].text for batch in batches for example in batch]
    assert 300 - len(set(names)) > 25 and len(names) == 300 and set(names) <= {f"Name{i}" for i in range(300)}


def test_batches_hold_each_example_once_and_the_shares_in_other_case() -> None:
    examples = [Example(doc, doc.copy()) for doc in nlp.pipe(f"Mira No{i} left" for i in range(400))]
    plain = registry.batchers.get("spacy.batch_by_padded.v1")(size=30, buffer=256, discard_oversize=False)
    batches = list(functions.create_batcher(plain, renamed=0, lower=0.25, upper=0.25)(examples))
    texts = [example.reference.text for batch in batches for example in batch]
    assert sorted(text.lower() for text in texts) == sorted(example.reference.text.lower() for example in examples)
    for case in (str.lower, str.upper):
        assert 60 < sum(text == case(text) for text in texts) < 140
    assert [text.lower() for text in texts] != [example.reference.text.lower() for example in examples]
    assert all(example.predicted.text == example.reference.text for batch in batches for example in batch)


ENGLISH = "Mira Solberg left Turku for Oslo on Monday , and Kenya beat Peru twice in Malta ."


def capabilities(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """A processor with these instructions, whose products are right."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(names, True))
    monkeypatch.setattr(functions, "_is_right", lambda precision: True)
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
def test_the_precision_follows_the_processor(
    monkeypatch: pytest.MonkeyPatch, instructions: list[str], best: str
) -> None:
    capabilities(monkeypatch, *instructions)
    assert functions.resolve_precision("auto", False) == best
    assert functions.resolve_precision("float32", False) == "float32"


@pytest.mark.parametrize("broken", [RuntimeError("no such operator"), 1.1])
def test_a_precision_that_computes_wrong_numbers_is_left(monkeypatch: pytest.MonkeyPatch, broken: Any) -> None:
    """Without VNNI the sums of products of bytes saturate; and an operator may be gone."""

    class Broken(functions._Int8Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if isinstance(broken, Exception):
                raise broken
            return torch.full((*x.shape[:-1], 32), float(broken))

    functions._is_right.cache_clear()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_vnni": True})
    monkeypatch.setattr(functions, "_Int8Linear", Broken)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    try:
        with pytest.warns(UserWarning, match="instructions for int8, but products in it fail or are wrong") as warned:
            assert functions.resolve_precision("auto", False) == "float32"
        assert len(warned) == 1
        with pytest.raises(ValueError, match="'int8': this machine cannot do that"):
            functions.resolve_precision("int8", False)
    finally:
        functions._is_right.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("isa", "precisions"), [("AVX2", []), ("AVX512_CORE_VNNI", ["int8"]), ("ALL", ["bfloat16", "int8"])]
)
def test_the_tests_of_the_encoder_pass_on_other_processors(isa: str, precisions: list[str]) -> None:
    """What this processor has more than another is hidden from PyTorch's libraries."""
    simulated = {"ONEDNN_MAX_CPU_ISA": isa} | ({"ATEN_CPU_CAPABILITY": "avx2"} if isa == "AVX2" else {})
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", __file__],
        cwd=ROOT,
        env=os.environ | simulated,
        capture_output=True,
        text=True,
        timeout=guard(600),
    )
    assert done.returncode == 0, done.stdout[-3000:]
    code = "from scripts.functions import _fast_precisions; print(*_fast_precisions())"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | simulated, capture_output=True)
    assert set(found.stdout.decode().split()) <= set(precisions), found.stderr.decode()


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


def copy_with(pipeline: Language, precision: str) -> Language:
    """A copy of a pipeline in another precision."""
    config = pipeline.config.copy()
    config["components"]["transformer"]["model"]["precision"] = precision
    return load_model_from_config(config).from_bytes(pipeline.to_bytes())


def load_as(pipeline: Language, precision: str) -> Any:
    """The transformer's model of such a copy."""
    return copy_with(pipeline, precision).get_pipe("transformer").model  # type: ignore[attr-defined]


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
    needs("int8")
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
    ours = functions.create_optimizer(1e-4, head_factor=10.0, weight_decay=0.01, **settings_)
    encoder = functions.create_optimizer(1e-3, head_factor=10.0, weight_decay=0.01, **settings_)
    random = np.random.default_rng(0)
    start = random.normal(size=size).astype("float32")
    here, there, inside = start.copy(), start.copy(), start.copy()
    for step in range(20):
        slope = (random.normal(size=size) * 10.0 ** -(step % 4)).astype("float32")
        there, _ = theirs((1, "W"), there, slope.copy())
        inside, _ = encoder((1, "encoder.layer.0.weight"), inside, slope.copy())
        here, cleared = ours((1, "W"), here, slope)
        assert not cleared.any()
    np.testing.assert_array_equal(here, inside)
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
import srsly
from spacy.util import import_file
import_file("functions", {str(Path(functions.__file__))!r})
nlp = spacy.load({str(tmp_path / "pipeline")!r})
texts = [{ENGLISH!r} * n for n in range(1, 9)]
alone = [[(ent.text, ent.label_) for ent in doc.ents] for doc in nlp.pipe(texts)]
assert [[(ent.text, ent.label_) for ent in doc.ents] for doc in nlp.pipe(texts, n_process=2, batch_size=2)] == alone
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# Concepts


def read_tagged(text: str) -> Doc:
    """A document from words with tags and IOB tags: Mira/NNP/B-PER left/VBD ./."""
    parts = [word.rsplit("/") for word in text.split()]
    ents = [part[2] if len(part) > 2 else "O" for part in parts]
    starts = [i == 0 or parts[i - 1][1] == "." for i in range(len(parts))]
    words_, tags = [part[0] for part in parts], [part[1] for part in parts]
    return Doc(nlp.vocab, words=words_, tags=tags, ents=ents, sent_starts=list(starts))


def find_concepts(doc: Doc) -> Doc:
    ruler = functions.ConceptRuler(nlp, "concepts")
    ruler.add_patterns(functions.create_concept_rules())
    return ruler(doc)


@pytest.mark.parametrize(
    ("text", "concepts"),
    [
        ("Mira/NNP/B-PER left/VBD Turku/NNP/B-LOC", "Mira=actor left=mechanism Turku=actor"),
        ("the/DT old/JJ ice/NN hockey/NN club/NN", "old=factor ice+hockey+club=actor"),
        ("the/DT firm/NN Lahti/NNP/B-ORG", "firm=actor Lahti=actor"),
        ("she/PRP had/VBD not/RB been/VBN seen/VBN", "seen=mechanism"),
        ("they/PRP had/VBD two/CD boats/NNS", "had=mechanism boats=actor"),
        ("he/PRP does/VBZ n't/RB do/VB it/PRP", "do=mechanism"),
        ("it/PRP will/MD be/VB cold/JJ", "cold=factor"),
        ("the/DT broken/VBN mast/NN fell/VBD down/RP", "broken=factor mast=actor fell+down=mechanism"),
        (
            "goals/NNS scored/VBN by/IN rapidly/RB growing/VBG clubs/NNS",
            "goals=actor scored=mechanism growing=mechanism clubs=actor",
        ),
        ("a/DT rapidly/RB growing/VBG club/NN", "growing=factor club=actor"),
        ("a/DT more/RBR careful/JJ plan/NN", "more+careful=factor plan=actor"),
        ("the/DT first/JJ two/CD days/NNS of/IN May/NNP", "days=actor"),
        ("a/DT South/NNP/B-MISC African/JJ/I-MISC sailor/NN", "South+African=factor sailor=actor"),
        ("won/VBD 6-4/JJ 7-6/NN on/IN Monday/NNP", "won=mechanism"),
        ("somebody/NN 's/POS 20/CD percent/NN", ""),
        ("I/PRP 've/VBP a/DT boat/NN", "'ve=mechanism boat=actor"),
    ],
)
def test_concepts_are_found_by_tags_and_entities(text: str, concepts: str) -> None:
    doc = find_concepts(read_tagged(text))
    assert {f"{'+'.join(t.text for t in span)}={span.label_}" for span in doc.spans["concepts"]} == set(
        concepts.split()
    )


def test_concepts_have_their_rule_and_the_entity_and_its_score() -> None:
    doc = read_tagged("Mira/NNP/B-PER met/VBD the/DT crew/NN")
    Span.set_extension("score", default=None, force=True)
    doc.ents[0]._.score = 0.75
    actor, mechanism, noun = find_concepts(doc).spans["concepts"]
    assert (actor.id_, actor._.entity, actor._.score) == ("entity", "PER", 0.75)
    assert (mechanism.id_, mechanism._.entity, mechanism._.score) == ("verb", "", None)
    assert (noun.id_, noun._.entity) == ("noun", "")
    assert [token.pos_ for token in doc] == ["PROPN", "VERB", "DET", "NOUN"]


@pytest.mark.parametrize(
    ("text", "negated"),
    [
        ("she/PRP did/VBD not/RB really/RB leave/VB", {"leave"}),
        ("it/PRP is/VBZ n't/RB cold/JJ but/CC warm/JJ", {"cold"}),
        ("no/DT small/JJ boat/NN came/VBD", {"small", "boat"}),
        ("never/RB ./. they/PRP came/VBD", set()),
    ],
)
def test_negation_is_kept(text: str, negated: set[str]) -> None:
    doc = find_concepts(read_tagged(text))
    assert {span.text for span in doc.spans["concepts"] if span._.negated} == negated


@pytest.mark.parametrize(
    ("text", "triples"),
    [
        ("Mira/NNP/B-PER left/VBD Turku/NNP/B-LOC", ["Mira left Turku"]),
        ("Mira/NNP/B-PER from/IN Oslo/NNP/B-LOC met/VBD old/JJ friends/NNS", ["Mira met friends", "friends - old"]),
        ("Mira/NNP/B-PER came/VBD and/CC saw/VBD ./. She/PRP won/VBD it/PRP", ["Mira came -", "Mira saw -"]),
        ("Senator/NNP Mira/NNP/B-PER wants/VBZ to/TO help/VB Oslo/NNP/B-LOC", ["Mira wants -", "Mira help Oslo"]),
        ('Yes/UH ,/, "/" said/VBD the/DT mayor/NN', ["mayor said -"]),
        ("OSLO/NNP/B-LOC -/: Nurses/NNS struck/VBD", ["Nurses struck -"]),
        ("cold/JJ and/CC wet/JJ days/NNS", ["days - cold", "days - wet"]),
        ("days/NNS without/IN rain/NN", []),
    ],
)
def test_triples_relate_concepts_by_position(text: str, triples: list[str]) -> None:
    doc = find_concepts(read_tagged(text))
    assert [" ".join(span.text if span else "-" for span in triple) for triple in doc._.triples] == triples


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["be", "had", "not", "no", "one", "6-4", "a", "more", "Oslo", "very", "two"]),
            st.sampled_from([*functions._COARSE, ""]),
            st.sampled_from(["O", "B-PER", "I-PER", "B-MISC", "I-MISC"]),
            st.booleans(),
        ),
        max_size=20,
    )
)
def test_concepts_never_overlap_and_leave_the_entities_alone(rows: list[tuple[str, str, str, bool]]) -> None:
    words_, tags, ents, starts = map(list, zip(*rows, strict=True)) if rows else ([], [], [], [])
    for i, ent in enumerate(ents):
        if ent[0] == "I" and (i == 0 or starts[i] or ents[i - 1][2:] != ent[2:]):
            ents[i] = "O"
    doc = Doc(nlp.vocab, words=words_, tags=tags, ents=ents, sent_starts=starts)
    before = [(ent.start, ent.end, ent.label_) for ent in doc.ents]
    find_concepts(doc)
    spans = list(doc.spans["concepts"])
    assert before == [(ent.start, ent.end, ent.label_) for ent in doc.ents]
    assert all(a.end <= b.start for a, b in itertools.pairwise(spans))
    named = {(span.start, span.end) for span in spans if span._.entity}
    assert {(start, end) for start, end, label in before if label == "PER"} <= named
    for triple in doc._.triples:
        present = [span for span in triple if span is not None]
        assert len(present) >= 2 and all(span in spans for span in present)
        assert len({span.sent.start for span in present}) == 1


def test_without_tags_there_are_only_names() -> None:
    doc = find_concepts(Doc(nlp.vocab, words=["Mira", "left", "old", "Turku"], ents=["B-PER", "O", "O", "B-LOC"]))
    assert [span.text for span in doc.spans["concepts"]] == ["Mira", "Turku"]
    assert not doc.has_annotation("POS") and doc._.triples == []


def test_rules_can_be_replaced_and_an_earlier_one_comes_first(tmp_path: Path) -> None:
    rules = [
        {"label": "factor", "id": "first", "pattern": [{"LOWER": "old"}, {"LOWER": "town"}]},
        {"label": "actor", "id": "second", "pattern": [{"TAG": "NN", "OP": "+"}]},
    ]
    srsly.write_jsonl(tmp_path / "rules.jsonl", rules)
    pipe = spacy.blank("en")
    ruler = pipe.add_pipe("bert_ner_concepts_v2", name="concepts")
    pipe.config["initialize"]["components"]["concepts"] = {
        "patterns": {"@readers": "srsly.read_jsonl.v1", "path": str(tmp_path / "rules.jsonl")}
    }
    pipe.initialize()
    doc = ruler(Doc(pipe.vocab, words=["old", "town", "hall"], tags=["NN", "NN", "NN"]))
    assert [(span.text, span.id_) for span in doc.spans["concepts"]] == [("old town", "first"), ("hall", "second")]
    pipe.to_disk(tmp_path / "pipe")
    assert spacy.load(tmp_path / "pipe").get_pipe("concepts").patterns == rules  # type: ignore[attr-defined]
