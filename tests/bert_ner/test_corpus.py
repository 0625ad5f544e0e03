from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
from hypothesis import given
from hypothesis import strategies as st
from spacy.tokens import Doc, DocBin, Span
from spacy.training import Example
from spacy.util import registry

from bert_ner import corpus
from scripts.convert import convert
from tests.bert_ner.conftest import nlp
from tests.conftest import write_corpus


def test_the_corpus_gives_sentence_starts_to_the_predicted_docs(tmp_path: Path) -> None:
    convert(write_corpus(tmp_path / "assets"), tmp_path / "corpus")
    for example in corpus.create_corpus(tmp_path / "corpus" / "train.spacy", True)(nlp):
        starts = [token.is_sent_start for token in example.reference]
        assert [token.is_sent_start for token in example.predicted] == starts and any(starts) and not all(starts)
        assert not example.predicted.ents
    for example in corpus.create_corpus(tmp_path / "corpus" / "train.spacy", False)(nlp):
        assert not example.predicted.has_annotation("SENT_START")


def test_sentence_starts_that_are_not_known_stay_unknown(tmp_path: Path) -> None:
    starts: list[bool | int | None] = [True, None, False]
    DocBin(docs=[Doc(nlp.vocab, words=["Turku", "sleeps", "."], sent_starts=starts)]).to_disk(tmp_path / "some.spacy")
    (example,) = corpus.create_corpus(tmp_path / "some.spacy", True)(nlp)
    assert [token.is_sent_start for token in example.predicted] == starts


def test_the_corpus_leaves_docs_without_sentences_alone(tmp_path: Path) -> None:
    DocBin(docs=[Doc(nlp.vocab, words=["Turku", "sleeps"], ents=["B-LOC", "O"])]).to_disk(tmp_path / "some.spacy")
    (example,) = corpus.create_corpus(tmp_path / "some.spacy", True)(nlp)
    assert not example.predicted.has_annotation("SENT_START")


@given(st.lists(st.text(min_size=1).filter(lambda text: not text.isspace()), min_size=1, max_size=6))
def test_recasing_keeps_the_tokens_and_their_annotation(words_: list[str]) -> None:
    starts: list[bool | int | None] = [i % 2 == 0 for i in range(len(words_))]
    doc = Doc(nlp.vocab, words=words_, tags=["NN"] * len(words_), sent_starts=starts, ents=["B-PER"] * len(words_))
    for case in (str.lower, str.upper):
        copied = corpus.recase(doc, case)
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
        renamed = corpus.rename(Example(plain, doc), corpus.collect_names([doc, OTHERS]))
    assert annotation(renamed.reference) == annotation(doc)
    assert annotation(renamed.predicted) == annotation(plain)


@given(documents_with_names(), st.sampled_from([0.0, None]))
def test_renaming_keeps_all_but_the_names(doc: Doc, chance: float | None) -> None:
    names = corpus.collect_names([doc, OTHERS])
    with pytest.MonkeyPatch.context() as patched:
        if chance is not None:  # all are chosen
            patched.setattr(random, "random", lambda: chance)
        after = corpus.rename(Example(Doc(doc.vocab, words=[t.text for t in doc]), doc), names).reference
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
    names = corpus.collect_names([Doc(nlp.vocab, words=words_, ents=["B-LOC"] * 4 + ["B-ORG"])])
    assert [ent.text for ent in names["LOC", False]] == ["Oslo", "TURKU"]
    assert [ent.text for ent in names["LOC", True]] == ["Oslo"]
    assert [ent.text for ent in names["ORG", False]] == ["NATO"] and not names["ORG", True]


@given(documents_with_names(), st.integers(1, 5))
def test_long_documents_are_cut_outside_of_entities_and_lose_nothing(doc: Doc, size: int) -> None:
    pieces = corpus.find_pieces(doc, size)
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
    batches = list(corpus.create_augmenting_batcher(plain, replace_names=0, lowercase=0, uppercase=0)([example]))
    pieces = sorted((piece for batch in batches for piece in batch), key=len)
    assert sum(map(len, pieces)) == 8000 and max(map(len, pieces)) <= corpus.LONGEST_DOCUMENT
    for piece in pieces:
        assert annotation(piece.reference) == annotation(doc)[: len(piece)]
        assert [t.is_sent_start for t in piece.predicted] == [t.is_sent_start for t in piece.reference]


def test_batches_rename_a_share() -> None:
    def make(i: int) -> Example:
        doc = Doc(nlp.vocab, words=[f"Name{i}", "left"], ents=["B-PER", "O"])
        return Example(Doc(nlp.vocab, words=[f"Name{i}", "left"]), doc)

    plain = registry.batchers.get("spacy.batch_by_padded.v1")(size=30, buffer=256, discard_oversize=False)
    batches = corpus.create_augmenting_batcher(plain, replace_names=0.5, lowercase=0, uppercase=0)(
        [make(i) for i in range(300)]
    )
    names = [example.reference[0].text for batch in batches for example in batch]
    assert 300 - len(set(names)) > 25 and len(names) == 300 and set(names) <= {f"Name{i}" for i in range(300)}


def test_batches_hold_each_example_once_and_the_shares_in_other_case() -> None:
    examples = [Example(doc, doc.copy()) for doc in nlp.pipe(f"Mira No{i} left" for i in range(400))]
    plain = registry.batchers.get("spacy.batch_by_padded.v1")(size=30, buffer=256, discard_oversize=False)
    batches = list(corpus.create_augmenting_batcher(plain, replace_names=0, lowercase=0.25, uppercase=0.25)(examples))
    texts = [example.reference.text for batch in batches for example in batch]
    assert sorted(text.lower() for text in texts) == sorted(example.reference.text.lower() for example in examples)
    for case in (str.lower, str.upper):
        assert 60 < sum(text == case(text) for text in texts) < 140
    assert all(example.predicted.text == example.reference.text for batch in batches for example in batch)


def test_batches_come_in_another_order_in_each_epoch() -> None:
    examples = [Example(doc, doc.copy()) for doc in nlp.pipe(f"Mira No{i} left" for i in range(100))]
    plain = registry.batchers.get("spacy.batch_by_padded.v1")(size=30, buffer=256, discard_oversize=False)
    batch = corpus.create_augmenting_batcher(plain, replace_names=0, lowercase=0, uppercase=0)
    one, other = ([[example.reference.text for example in found] for found in batch(examples)] for _ in range(2))
    assert one != other and sorted(one) == sorted(other)


def with_targets(doc: Doc) -> Doc:
    """Give each token a row of its own number, which is never 0."""
    doc.user_data["tag_targets"] = np.repeat(np.arange(1.0, len(doc) + 1)[:, None], 3, axis=1)
    return doc


@given(documents_with_names(), st.sampled_from([0.0, 0.999, None]))
def test_kept_tokens_keep_their_targets_and_new_names_have_none(doc: Doc, chance: float | None) -> None:
    names = corpus.collect_names([doc, OTHERS])
    example = Example(Doc(doc.vocab, words=[token.text for token in doc]), with_targets(doc))
    with pytest.MonkeyPatch.context() as patched:
        if chance is not None:
            patched.setattr(random, "random", lambda: chance)
        after = corpus.rename(example, names).reference
    rows = after.user_data["tag_targets"][:, 0].tolist()
    assert len(rows) == len(after)
    outside = [[token.i for token in part if not token.ent_type_] for part in (doc, after)]
    assert [rows[i] for i in outside[1]] == [i + 1 for i in outside[0]]
    for old, new in zip(doc.ents, after.ents, strict=True):
        kept = [float(token.i + 1) for token in old]
        assert rows[new.start : new.end] in (kept, [0.0] * len(new))
        assert old.text.lower() == new.text.lower() or not any(rows[new.start : new.end])
    assert corpus.recase(after, str.upper).user_data["tag_targets"].tolist() == after.user_data["tag_targets"].tolist()


def test_a_cut_document_keeps_the_targets_of_each_piece() -> None:
    doc = with_targets(Doc(nlp.vocab, words=["Turku"] * 3200, ents=["B-LOC"] * 3200))
    pieces = corpus.cut_example(Example(Doc(nlp.vocab, words=["Turku"] * 3200), doc))
    assert [len(piece.reference) for piece in pieces] == [1500, 1500, 200]
    assert all(len(piece.reference.user_data["tag_targets"]) == len(piece.reference) for piece in pieces)
    rows = np.concatenate([piece.reference.user_data["tag_targets"] for piece in pieces])
    assert rows[:, 0].tolist() == list(range(1, 3201))


def with_chunks(doc: Doc, *chunks: tuple[int, int, str]) -> Doc:
    doc.spans["chunks"] = [Span(doc, *chunk) for chunk in chunks]
    return doc


def chunks_of(doc: Doc) -> list[tuple[str, str]]:
    return [(chunk.text, chunk.label_) for chunk in doc.spans["chunks"]]


def rename_all(doc: Doc, others: Doc) -> Doc:
    """With the first name of the same label in the other document in the place of each name."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(random, "random", lambda: 0.0)
        patched.setattr(random, "choice", lambda names: names[0])
        return corpus.rename(
            Example(Doc(doc.vocab, words=[t.text for t in doc]), doc), corpus.collect_names([others])
        ).reference


def test_a_chunk_holds_what_stands_in_the_place_of_its_name() -> None:
    doc = with_chunks(
        Doc(
            nlp.vocab,
            words=["Old", "Mira", "left", "Upper", "Turku", "today"],
            ents=["O", "B-PER", "O", "B-LOC", "I-LOC", "O"],
        ),
        (0, 2, "NP"),
        (2, 3, "VP"),
        (3, 5, "NP"),
        (5, 6, "NP"),
    )
    others = with_chunks(
        Doc(nlp.vocab, words=["Ada", "von", "Vik", "saw", "Oslo"], ents=["B-PER", "I-PER", "I-PER", "O", "B-LOC"]),
        (0, 3, "NP"),
        (3, 4, "VP"),
        (4, 5, "NP"),
    )
    after = rename_all(doc, others)
    assert after.text == "Old Ada von Vik left Oslo today "
    assert chunks_of(after) == [("Old Ada von Vik", "NP"), ("left", "VP"), ("Oslo", "NP"), ("today", "NP")]
    assert chunks_of(corpus.recase(after, str.upper))[0] == ("OLD ADA VON VIK", "NP")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ([(0, 1, "NP"), (1, 2, "PP"), (2, 3, "NP")], [(0, 1, "NP")]),  # the replaced name has several chunks
        ([(0, 3, "NP")], []),  # the other one is in no chunk
        ([(1, 3, "NP")], [(0, 1, "NP")]),  # a chunk begins within the replaced name
        ([], [(0, 1, "NP")]),
    ],
)
def test_where_a_name_is_more_or_less_than_a_part_of_a_chunk_the_chunks_are_unknown(
    old: list[tuple[int, int, str]], new: list[tuple[int, int, str]]
) -> None:
    words = ["Bank", "of", "Turku", "closed", "early"]
    chunks = [*old, (3, 4, "VP"), (4, 5, "ADVP")]
    doc = with_chunks(Doc(nlp.vocab, words=words, ents=["B-ORG", "I-ORG", "I-ORG", "O", "O"]), *chunks)
    after = rename_all(doc, with_chunks(Doc(nlp.vocab, words=["Norrvik"], ents=["B-ORG"]), *new))
    assert chunks_of(after) == [("Norrvik", ""), ("closed", "VP"), ("early", "ADVP")]


def test_the_rest_of_an_unknown_chunk_is_unknown_too() -> None:
    doc = Doc(
        nlp.vocab,
        words=["the", "old", "Bank", "of", "Turku", "closed"],
        ents=["O", "O", "B-ORG", "I-ORG", "I-ORG", "O"],
    )
    with_chunks(doc, (0, 3, "NP"), (3, 4, "PP"), (4, 5, "NP"), (5, 6, "VP"))
    after = rename_all(doc, with_chunks(Doc(nlp.vocab, words=["Norrvik"], ents=["B-ORG"]), (0, 1, "NP")))
    assert chunks_of(after) == [("the old Norrvik", ""), ("closed", "VP")]


@given(documents_with_names(), st.data(), st.sampled_from([0.0, 0.999, None]))
def test_renaming_and_recasing_keep_the_chunks_around_names(
    doc: Doc, data: st.DataObject, chance: float | None
) -> None:
    """Chunks never overlap, and those without a new name hold the same words as before."""
    edges = sorted(data.draw(st.sets(st.integers(0, len(doc)), min_size=2)))
    with_chunks(doc, *((a, b, data.draw(st.sampled_from(["NP", "VP"]))) for a, b in pairwise(edges)))
    with pytest.MonkeyPatch.context() as patched:
        if chance is not None:
            patched.setattr(random, "random", lambda: chance)
        after = corpus.rename(
            Example(Doc(doc.vocab, words=[t.text for t in doc]), doc), corpus.collect_names([doc, OTHERS])
        ).reference
    found = list(after.spans["chunks"])
    assert all(one.end <= other.start for one, other in pairwise(found))
    if chance == 0.999:
        assert chunks_of(after) == chunks_of(doc)
    plain = [
        [(c.text.strip(), c.label_) for c in part.spans["chunks"] if not any(token.ent_type_ for token in c)]
        for part in (doc, after)
    ]
    assert plain[1] == plain[0]
    recased = corpus.recase(after, str.lower)
    assert [(c.start, c.end, c.label) for c in recased.spans["chunks"]] == [(c.start, c.end, c.label) for c in found]


def test_a_cut_document_keeps_the_chunks_of_each_piece() -> None:
    words = ["Mira", "Solberg", "left", "."] * 800
    doc = Doc(nlp.vocab, words=words, sent_starts=[True, False, False, False] * 800)
    with_chunks(doc, *((i, i + 2, "NP") for i in range(0, len(doc), 4)))
    pieces = corpus.cut_example(Example(Doc(nlp.vocab, words=words), doc))
    assert len(pieces) > 1
    assert [chunk for piece in pieces for chunk in chunks_of(piece.reference)] == chunks_of(doc)


def test_documents_without_chunks_get_none() -> None:
    doc = Doc(nlp.vocab, words=["Turku"], ents=["B-LOC"])
    for after in (rename_all(doc, doc), corpus.recase(doc, str.upper)):
        assert "chunks" not in after.spans
    assert "chunks" in corpus.recase(with_chunks(doc), str.upper).spans, "to have none is something to learn"


@pytest.mark.parametrize("tags", [True, False])
@pytest.mark.parametrize("chunks", [True, False])
def test_components_that_the_corpus_has_nothing_for_are_removed(tmp_path: Path, tags: bool, chunks: bool) -> None:
    docs = [Doc(nlp.vocab, words=["Turku", "sleeps"], tags=["NNP", "VBZ"] if tags and i else None) for i in range(3)]
    with_chunks(docs[0])  # which says that it has none
    if chunks:
        with_chunks(docs[2], (0, 1, "NP"))
    DocBin(docs=docs).to_disk(tmp_path / "some.spacy")
    whole = spacy.blank("en")
    for name in ("senter", "tagger", "chunker"):
        whole.add_pipe("sentencizer", name=name)
    left = corpus.create_remover(tmp_path / "some.spacy")(whole).pipe_names
    assert left == ["senter", *["tagger"] * tags, *["chunker"] * chunks]


def test_a_document_without_targets_gets_none() -> None:
    doc = Doc(nlp.vocab, words=["Turku"], ents=["B-LOC"])
    after = corpus.rename(Example(doc.copy(), doc), corpus.collect_names([doc])).reference
    assert not after.user_data and not corpus.recase(after, str.lower).user_data


@pytest.mark.parametrize("spaces", [None, [True, False, False]])
def test_spaces_that_are_unknown_stay_unknown(spaces: list[bool] | None, tmp_path: Path) -> None:
    """What is stored with known ones is tokenised anew when it is read, and its words are then others."""
    doc = Doc(nlp.vocab, words=["Mira", "Turku-Oslo/x", "."], spaces=spaces, ents=["B-PER", "B-LOC", "O"])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(random, "random", lambda: 0.0)
        renamed = corpus.rename(Example(doc.copy(), doc), corpus.collect_names([doc]))
    changed = [corpus.recase(doc, str.lower), renamed.reference, renamed.predicted]
    assert [after.has_unknown_spaces for after in changed] == [spaces is None] * 3
    DocBin(docs=changed).to_disk(tmp_path / "some.spacy")
    read = [[token.text for token in example.predicted] for example in corpus.create_corpus(tmp_path, False)(nlp)]
    assert (read == [[token.text for token in after] for after in changed]) == (spaces is None)
