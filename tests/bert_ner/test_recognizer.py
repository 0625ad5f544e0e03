from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from catalogue import REGISTRY  # type: ignore[import-untyped,unused-ignore]
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy import load
from spacy.language import Language
from spacy.tokens import Doc, Span
from spacy.training import Example
from spacy.util import import_file, load_model_from_config, registry
from thinc.api import Adam

from bert_ner import recognizer
from tests.bert_ner.conftest import ENGLISH, copy_with, nlp, read_tags
from tests.conftest import ROOT


def test_another_wheel_of_the_same_code_changes_nothing(pipeline: Language, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second wheel registers its own copies of the same files under the same names."""
    text = "Mira Solberg left Turku for Oslo."
    before = pipeline(text).to_json()
    monkeypatch.setattr("catalogue.REGISTRY", REGISTRY.copy())
    for path in (ROOT / "bert_ner").glob("[!_]*.py"):
        import_file(f"another_{path.stem}", path)
    assert registry.architectures.get("bert_ner.TransformerModel.v4").__module__ == "another_encoder"
    assert pipeline(text).to_json() == before
    assert load_model_from_config(pipeline.config).from_bytes(pipeline.to_bytes())(text).to_json() == before


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


def test_every_entity_has_a_score_that_does_not_depend_on_the_batch(pipeline: Language) -> None:
    copied = copy_with(pipeline, "float32")
    texts = [" ".join(ENGLISH.split()[i % 17 :] * (1 + i % 3)) for i in range(20)]
    together = list(copied.pipe(texts))
    assert sum(len(doc.ents) for doc in together) > 20
    for text, doc in zip(texts, together, strict=True):
        alone = copied(text)
        assert [(ent.start, ent.end, ent.label_) for ent in alone.ents] == [
            (ent.start, ent.end, ent.label_) for ent in doc.ents
        ]
        for here, there in zip(alone.ents, doc.ents, strict=True):
            assert 0 < here._.score <= 1 and here._.score == pytest.approx(there._.score, abs=1e-3)


SPACE = st.sampled_from(["\n", "  ", "\n\n"])


@settings(max_examples=30)
@given(st.lists(st.one_of(st.just(["left"]), st.lists(SPACE, max_size=2))))
def test_entities_neither_begin_nor_end_with_white_space_and_pass_over_it(
    pipeline: Language, parts: list[list[str]]
) -> None:
    """A list of white space only stands between the two words of a name."""
    ner = pipeline.get_pipe("ner")
    assert isinstance(ner, recognizer.BiluoEntityRecognizer)
    names = [part for part in parts if part != ["left"]]
    words_ = [word for part in parts for word in (part if part == ["left"] else ["Mira", *part, "Turku"])]
    doc = Doc(pipeline.vocab, words=words_)
    tags = {"left": "O", "Mira": "B-PER", "Turku": "L-PER"}
    sure = np.full((len(doc), len(ner.tags)), 1e-9, dtype="float32")
    for row, token in zip(sure, doc, strict=True):
        row[ner.tags.index(tags.get(token.text, "U-LOC"))] = 1
    ner.set_annotations([doc], [sure])
    assert [[token.text for token in ent] for ent in doc.ents] == [["Mira", *part, "Turku"] for part in names]


def test_white_space_opens_no_way_over_an_entity_already_set_or_a_sentence_start(pipeline: Language) -> None:
    """An entity ruler finds Lund at the end of a line, or a sentence starts with an empty line in two tokens."""
    ner = pipeline.get_pipe("ner")
    assert isinstance(ner, recognizer.BiluoEntityRecognizer)
    sure = np.full((4, len(ner.tags)), 1e-9, dtype="float32")
    sure[range(4), [ner.tags.index(tag) for tag in ("B-PER", "O", "O", "L-PER")]] = 1
    doc = Doc(pipeline.vocab, words=["Mira", "Lund", "\n", "Turku"])
    doc.set_ents([Span(doc, 1, 2, "EVENT")])
    ner.set_annotations([doc], [sure])
    assert (1, 2, "EVENT") in [(ent.start, ent.end, ent.label_) for ent in doc.ents]
    assert all(len(ent) == 1 for ent in doc.ents)
    doc = Doc(pipeline.vocab, words=["Mira", "\n", "\n", "Turku"], sent_starts=[True, True, False, False])
    ner.set_annotations([doc], [sure])
    assert all(len(ent) == 1 for ent in doc.ents)


def test_calibration_finds_the_temperature_that_was_lost(pipeline: Language) -> None:
    ner = copy_with(pipeline, "float32").get_pipe("ner")
    assert isinstance(ner, recognizer.BiluoEntityRecognizer)
    random = np.random.default_rng(0)
    logits = random.normal(size=(40, 100, len(ner.tags))) * 2  # documents of equal length are decoded together
    logits[:, :, [i for i, tag in enumerate(ner.tags) if tag[0] in "BIL"]] = -50  # entities of one token
    gold = []
    for array in logits:
        tags = [ner.tags[random.choice(len(row), p=row)] for row in recognizer._softmax(array)]
        gold.append({(i, i + 1, tag[2:]) for i, tag in enumerate(tags) if tag != "O"})
    docs = [Doc(nlp.vocab, words=["a"] * len(array)) for array in logits]
    probabilities = [recognizer._softmax(array * 2) for array in logits]
    for seen in (set(), {"a"}):
        ner.model.get_ref("softmax").attrs["softmax_temperature"] = 1.0
        assert ner.calibrate(docs, probabilities, gold, seen) == pytest.approx(2, rel=0.15)


def test_calibration_without_an_entity_changes_nothing(pipeline: Language) -> None:
    ner = copy_with(pipeline, "float32").get_pipe("ner")
    assert isinstance(ner, recognizer.BiluoEntityRecognizer)
    doc = Doc(nlp.vocab, words=["a", "b"])
    outside = np.full((2, len(ner.tags)), 1e-9, dtype="float32")
    outside[:, 0] = 1
    assert ner.calibrate([doc], [outside], [set()], set()) == pytest.approx(1)


def test_calibration_heeds_unseen_names_as_much_as_seen_ones(pipeline: Language) -> None:
    ner = copy_with(pipeline, "float32").get_pipe("ner")
    assert isinstance(ner, recognizer.BiluoEntityRecognizer)
    label, size = ner.labels[0], 100
    logits = np.full((size, len(ner.tags)), -50.0)
    logits[:, 0], logits[:, ner.tags.index(f"U-{label}")] = 0, 3  # all are predicted, with a score of 0.95
    docs = [Doc(nlp.vocab, words=[word] * size) for word in ["old"] * 9 + ["new"]]
    correct = [{(i, i + 1, label) for i in range(size)}] * 9 + [{(i, i + 1, label) for i in range(size // 2)}]
    temperatures = []
    for seen in (set(), {"old"}):
        ner.model.get_ref("softmax").attrs["softmax_temperature"] = 1.0
        temperatures.append(ner.calibrate(docs, [recognizer._softmax(logits)] * len(docs), correct, seen))
    assert temperatures[0] == pytest.approx(1, rel=0.1) and temperatures[1] > 2


def test_a_corpus_without_entities_is_refused(pipeline: Language) -> None:
    ner = copy_with(pipeline, "float32").get_pipe("ner")
    with pytest.raises(ValueError, match="nothing to train 'ner' on"):
        ner.initialize(lambda: [Example.from_dict(nlp.make_doc("Turku sleeps"), {})])  # type: ignore[attr-defined]


def test_tokens_whose_tag_is_not_known_are_not_learnt_from(pipeline: Language) -> None:
    ner = copy_with(pipeline, "float32").get_pipe("ner")
    assert isinstance(ner, recognizer.BiluoEntityRecognizer)
    doc = nlp.make_doc("Mira left Turku")
    example = Example.from_dict(doc, {"entities": ["U-PER", "-", "O"]})
    probabilities = np.full((3, len(ner.tags)), 1 / len(ner.tags), dtype="float32")
    _, (gradient,) = ner.get_loss([example], [probabilities])
    assert not gradient[1].any() and gradient[0, ner.tags.index("U-PER")] < 0 and gradient[2, 0] < 0


@settings(max_examples=30, deadline=None)
@given(st.data(), st.integers(0, 2**32 - 1))
def test_the_loss_is_that_of_the_gold_sequence_among_the_legal_ones(
    pipeline: Language, data: st.DataObject, seed: int
) -> None:
    """Against all sequences, one by one; and the gradient against small steps."""
    ner = pipeline.get_pipe("ner")
    assert isinstance(ner, recognizer.BiluoEntityRecognizer)
    random = np.random.default_rng(seed)
    tags = ner.tags
    gold = data.draw(st.lists(st.sampled_from(["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]), min_size=1, max_size=3))
    ents = [
        f"B-{tag[2:]}" if tag[0] == "I" and (not i or gold[i - 1][2:] != tag[2:]) else tag for i, tag in enumerate(gold)
    ]
    starts: list[bool | int | None] = [True, *(data.draw(st.booleans()) for _ in ents[1:])]
    words = ["Mira"] * len(ents)
    reference = Doc(nlp.vocab, words=words, ents=ents)
    example = Example(Doc(nlp.vocab, words=words, sent_starts=starts), reference)
    logits = random.normal(size=(len(ents), len(tags))) * 2
    numbers = tuple(tags.index(tag) for tag in example.get_aligned_ner())
    inner = [bool(start) and ent[0] != "I" for start, ent in zip(starts, ents, strict=True)]

    def compute(logits: np.ndarray) -> float:
        probabilities = recognizer._softmax(logits)
        legal = 0.0
        for sequence in itertools.product(range(len(tags)), repeat=len(ents)):
            kinds = tuple(tags[tag][0] + str((tag - 1) // 4) for tag in sequence)
            if read_tags(kinds, [False, *inner[1:]]) is not None:
                legal += float(np.prod(probabilities[np.arange(len(ents)), sequence]))
        return float(np.log(legal) - np.log(probabilities[np.arange(len(ents)), numbers]).sum())

    loss, (gradient,) = ner.get_loss([example], [recognizer._softmax(logits)])
    assert loss == pytest.approx(compute(logits), abs=1e-4)
    i, tag = int(random.integers(len(ents))), int(random.integers(len(tags)))
    step = np.zeros_like(logits)
    step[i, tag] = 1e-4
    assert gradient[i, tag] == pytest.approx((compute(logits + step) - compute(logits - step)) / 2e-4, abs=1e-4)


def test_white_space_is_not_learnt(pipeline: Language) -> None:
    """As it gets no tag in use, an entity may have it inside."""
    ner = pipeline.get_pipe("ner")
    assert isinstance(ner, recognizer.BiluoEntityRecognizer)
    reference = Doc(nlp.vocab, words=["Mira", "\n", "Solberg", "left"], ents=["B-PER", "I-PER", "I-PER", "O"])
    sure = np.full((4, len(ner.tags)), 1e-9, dtype="float32")
    sure[range(4), [ner.tags.index(tag) for tag in ("B-PER", "O", "L-PER", "O")]] = 1
    loss, (gradient,) = ner.get_loss([Example(Doc(nlp.vocab, words=[t.text for t in reference]), reference)], [sure])
    assert loss == pytest.approx(0, abs=1e-4) and not gradient[1].any() and np.abs(gradient).max() < 1e-4
    (posterior,) = ner.find_posteriors([reference], [sure])
    assert posterior.argmax(1).tolist() == sure.argmax(1).tolist()


@given(st.data())
def test_gold_tags_are_those_of_spacy(data: st.DataObject) -> None:
    """With the same tokens in both documents, whose tags are found without an alignment, and with others."""
    words = data.draw(st.lists(st.sampled_from(["Mira", "left", "Turku", "."]), max_size=8))
    iob = data.draw(st.lists(st.sampled_from([None, "O", "B-PER", "I-PER", "B-LOC", "I-LOC"]), min_size=8, max_size=8))
    ents = [
        f"B-{tag[2:]}" if tag and tag[0] == "I" and (not i or (iob[i - 1] or "")[2:] != tag[2:]) else tag
        for i, tag in enumerate(iob[: len(words)])
    ]
    labels = data.draw(st.permutations(["LOC", "MISC", "PER"]))[: data.draw(st.integers(1, 3))]
    tags = ["O", *(f"{kind}-{label}" for label in labels for kind in "BILU")]
    reference = Doc(nlp.vocab, words=words, ents=ents)  # type: ignore[arg-type,unused-ignore]
    other = Doc(nlp.vocab, words=["".join(words[:2]), *words[2:]] if words else [])
    for predicted in (Doc(nlp.vocab, words=words), other):
        example = Example(predicted, reference)
        expected = [tags.index(tag) if tag in tags else -1 for tag in example.get_aligned_ner()]
        assert recognizer._number_tags(example, labels).tolist() == expected


def chunker_of(pipeline: Language) -> recognizer.BiluoChunker:
    chunker = pipeline.get_pipe("chunker")
    assert isinstance(chunker, recognizer.BiluoChunker)
    return chunker


def chunks_of(doc: Doc) -> list[tuple[int, int, str]]:
    return [(chunk.start, chunk.end, chunk.label_) for chunk in doc.spans["chunks"]]


def with_chunks(doc: Doc, *chunks: tuple[int, int, str]) -> Doc:
    doc.spans["chunks"] = [Span(doc, *chunk) for chunk in chunks]
    return doc


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4), st.sampled_from(["NP", "VP", "ADVP"])), max_size=6))
def test_chunks_come_back_from_their_gold_tags(pipeline: Language, parts: list[tuple[int, int, str]]) -> None:
    """Each part is a gap and a chunk after it. What is learnt of a document is what is read from it when it is sure."""
    chunker = chunker_of(pipeline)
    end, chunks = 0, []
    for gap, size, label in parts:
        chunks.append((end + gap, end + gap + size, label))
        end += gap + size
    words = ["Mira"] * (end + 1)
    reference = with_chunks(Doc(nlp.vocab, words=words), *chunks)
    numbers, soft, _ = chunker.read_gold(Example(Doc(nlp.vocab, words=words), reference))
    assert len(numbers) == len(words) and not len(soft)
    doc = Doc(pipeline.vocab, words=words, ents=["B-PER"] * len(words))  # entities are in nobody's way
    sure = np.full((len(words), len(chunker.tags)), 1e-9, dtype="float32")
    sure[np.arange(len(words)), numbers] = 1
    chunker.set_annotations([doc], [sure])
    assert chunks_of(doc) == chunks and len(doc.ents) == len(words)


def test_gold_chunks_are_unknown_where_they_do_not_fit_the_predicted_tokens(pipeline: Language) -> None:
    chunker = chunker_of(pipeline)
    reference = with_chunks(
        Doc(nlp.vocab, words=["Mira", "Solberg", "did", "n't", "leave", "Turku", "."]),
        (0, 2, "NP"),
        (2, 3, "VP"),
        (4, 5, "VP"),
        (5, 6, "NP"),
    )
    for words, tags in (
        (["Mira", "Solberg", "didn't", "leave", "Turku", "."], ["B-NP", "L-NP", "-", "U-VP", "U-NP", "O"]),
        (["Mira", "Sol", "berg", "did", "n't", "leave", "Turku."], ["B-NP", "I-NP", "L-NP", "U-VP", "O", "U-VP", "-"]),
    ):
        numbers, *_ = chunker.read_gold(Example(Doc(nlp.vocab, words=words), reference))
        assert [chunker.tags[number] if number >= 0 else "-" for number in numbers] == tags


def test_unknown_chunks_are_not_learnt_from(pipeline: Language) -> None:
    """In a document without chunks, in a span without a label, and of a label that nobody has."""
    chunker = chunker_of(pipeline)
    words = ["Mira", "left", "Turku", "."]
    uniform = np.full((4, len(chunker.tags)), 1 / len(chunker.tags), dtype="float32")
    plain = Doc(nlp.vocab, words=words, ents=["B-PER", "O", "B-LOC", "O"])
    partly = with_chunks(plain.copy(), (0, 1, "NP"), (1, 2, ""), (2, 3, "XP"))
    none = with_chunks(plain.copy())
    _, gradients = chunker.get_loss(
        [Example(Doc(nlp.vocab, words=words), doc) for doc in (plain, partly, none)], [uniform] * 3
    )
    assert [gradient.any(1).tolist() for gradient in gradients] == [
        [False] * 4,
        [True, False, False, True],
        [True] * 4,
    ]
    assert gradients[1][0, chunker.tags.index("U-NP")] < 0 and (gradients[2][:, 0] < 0).all()


def test_no_chunk_crosses_a_sentence_start(pipeline: Language) -> None:
    words = ["Mira", "Solberg", "Turku", "Oslo"] * 10
    doc = pipeline(Doc(pipeline.vocab, words=words, sent_starts=[i % 2 == 0 for i in range(len(words))]))
    found = chunks_of(doc)
    assert found and all(start // 2 == (end - 1) // 2 for start, end, _ in found)


def test_a_few_steps_teach_chunks(pipeline: Language) -> None:
    copied = copy_with(pipeline, "float32")
    words = ["Mira", "Solberg", "left", "Turku", "."]
    reference = with_chunks(
        Doc(
            copied.vocab,
            words=words,
            tags=["NNP", "NNP", "VBD", "NNP", "."],
            sent_starts=[True, *[False] * 4],
            ents=["B-PER", "I-PER", "O", "B-LOC", "O"],
        ),
        (0, 2, "NP"),
        (2, 3, "VP"),
        (3, 4, "NP"),
    )
    optimizer = Adam(0.01)
    for _ in range(30):
        copied.update([Example(Doc(copied.vocab, words=words), reference)], sgd=optimizer)
    scores = copied.evaluate([Example(Doc(copied.vocab, words=words), reference)])
    assert scores["spans_chunks_f"] == 1.0 and set(scores["spans_chunks_per_type"]) == {"NP", "VP"}


def test_a_disabled_chunker_is_saved_and_can_be_enabled(pipeline: Language, tmp_path: Path) -> None:
    text = "Mira Solberg left Turku for Oslo ."
    copied = copy_with(pipeline, "float32")
    expected = copied(text)
    copied.disable_pipe("chunker")
    copied.to_disk(tmp_path)
    again = load(tmp_path)
    assert again.disabled == ["chunker"] and "chunks" not in again(text).spans
    assert again(text).to_json()["ents"] == expected.to_json()["ents"]
    again.enable_pipe("chunker")
    assert chunks_of(again(text)) == chunks_of(expected) != []


@settings(max_examples=30)
@given(st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_targets_are_learnt_where_there_are_some_and_else_the_tags(pipeline: Language, size: int, seed: int) -> None:
    ner = pipeline.get_pipe("ner")
    assert isinstance(ner, recognizer.BiluoEntityRecognizer)
    random = np.random.default_rng(seed)
    probabilities, targets = random.dirichlet(np.ones(len(ner.tags)), (2, size)).astype("float32")
    targets[random.random(size) < 0.3] = 0
    gold = random.choice(["U-PER", "U-LOC", "O", "-"], size).tolist()
    words = ["Mira"] * size
    example = Example.from_dict(Doc(nlp.vocab, words=words), {"words": words, "entities": gold})
    example.reference.user_data["tag_targets"] = targets
    _, (gradient,) = ner.get_loss([example], [probabilities])
    (posterior,) = ner.find_posteriors([example.predicted], [probabilities])
    for i, tag in enumerate(gold):
        row = targets[i] if targets[i].any() else np.eye(len(ner.tags))[ner.tags.index(tag)] if tag != "-" else None
        np.testing.assert_allclose(gradient[i], 0 if row is None else posterior[i] - row, atol=1e-6)


def test_a_token_that_the_reference_cuts_otherwise_is_learnt_from_its_tag(pipeline: Language) -> None:
    ner = pipeline.get_pipe("ner")
    assert isinstance(ner, recognizer.BiluoEntityRecognizer)
    spaces = [False, False, True, True, False]
    reference = Doc(nlp.vocab, words=["9", "-", "1", "Turku", "."], spaces=spaces, ents=["O", "O", "O", "B-LOC", "O"])
    reference.user_data["tag_targets"] = targets = np.full((5, len(ner.tags)), 1 / len(ner.tags), dtype="float32")
    predicted = Doc(nlp.vocab, words=["9-1", "Turku", "."], spaces=[True, False, False])
    sure = np.zeros((3, len(ner.tags)), dtype="float32")
    sure[:, 0] = 1
    _, (gradient,) = ner.get_loss([Example(predicted, reference)], [sure])
    np.testing.assert_allclose(gradient, [np.zeros(len(ner.tags)), *(sure[1:] - targets[3:])], atol=1e-6)
