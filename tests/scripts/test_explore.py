from __future__ import annotations

import errno
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import spacy
from hypothesis import given
from hypothesis import strategies as st
from spacy.tokens import Doc

from common.corpora import kind_of
from common.errors import StepError
from common.records import read_json, sha256
from scripts.convert import convert
from scripts.explore import FIGURES, compare, count_near_duplicates, divergence, explore, find_oddities
from tests.conftest import Project, words, write_corpus

nlp = spacy.blank("en")
COUNTS = st.dictionaries(st.sampled_from("abcd"), st.integers(1, 9)).map(Counter)


def make(text: str, ents: dict[str, str] | None = None) -> Doc:
    """A document of one sentence for each line, with a label for each of these words."""
    lines = [line.split() for line in text.split("\n")]
    tokens = [word for line in lines for word in line]
    starts: list[bool | int | None] = [i == 0 for line in lines for i in range(len(line))]
    tags = [f"B-{(ents or {})[word]}" if word in (ents or {}) else "O" for word in tokens]
    return Doc(nlp.vocab, words=tokens, sent_starts=starts, ents=tags)


def test_the_sample_is_described(project: Project) -> None:
    result = read_json(project.folder / "metrics/tiny/corpus.json")
    counts = read_json(project.folder / "corpus/tiny/provenance.json")["counts"]
    for split, described in result["splits"].items():
        for name in ("documents", "sentences", "tokens", "entities"):
            assert described[name] == counts[split][name]
        assert sum(described["token_classes"].values()) == sum(described["tags"].values()) == described["tokens"]
        for name in ("tags_of_entities", "chunks_of_entities", "entities_by_length"):
            by_label = {label: sum(inner.values()) for label, inner in described[name].items()}
            assert by_label == described["entities"]
        for lengths in described["lengths"].values():
            assert lengths["median"] <= lengths["p95"] <= lengths["max"]
        assert sum(described["lengths"]["tokens of a document"]["histogram"].values()) == described["documents"]
        assert sum(described["kinds_of_sentences"].values()) == described["sentences"]
        assert described["wordpieces_per_token"] >= 1 and 0 < described["entity_token_share"] < 1
    assert result["against_train"]["test"]["same_documents"] == 0
    assert "entities not in train" in words(project.output)
    for name in FIGURES:
        ElementTree.parse(project.folder / f"metrics/tiny/figures/corpus/{name}.svg")


def test_what_is_the_same_is_counted() -> None:
    long = " ".join(f"w{i}" for i in range(40))
    train = [make("Mira left Turku on Monday .\nShe slept .", {"Mira": "PER"}), make(long)]
    other = [
        make("MIRA left Turku on Monday .\nNobody slept .", {"MIRA": "PER", "Turku": "LOC"}),
        make("She slept ."),
        make(long),
        make(long.replace("w39", "other")),
    ]
    found = compare(train, other)
    assert (found["same_documents"], found["near_duplicates"], found["same_sentences"]) == (1, 2, 2)
    assert found["unseen"] == {"LOC": 1, "PER": 0} and found["unseen_overall"] == 0.5
    assert found["unknown_words"] == pytest.approx(2 / (9 + 3 + 80))
    assert found["divergence"]["tags"] is None and 0 < found["divergence"]["labels"] < 1


@given(st.lists(st.lists(st.sampled_from(["a", "b", "c"]), max_size=12), max_size=5))
def test_each_document_is_its_own_duplicate(texts: list[list[str]]) -> None:
    docs = [Doc(nlp.vocab, words=text) for text in texts]
    assert count_near_duplicates(docs, docs) == len(docs)
    assert count_near_duplicates(docs, [Doc(nlp.vocab, words=["x"] * 9)]) == 0


@given(COUNTS, COUNTS)
def test_divergence_is_a_measure_of_difference(one: Counter[str], other: Counter[str]) -> None:
    if not one or not other:
        assert divergence(one, other) is None
        return
    found = divergence(one, other)
    assert found is not None and -1e-9 <= found <= 1 + 1e-9
    assert divergence(one, one) == pytest.approx(0, abs=1e-9) and divergence(other, one) == pytest.approx(found)
    assert divergence(one, Counter({"other": 1})) == pytest.approx(1)


def test_odd_labels_are_found() -> None:
    usual = [make("Turku sleeps", {"Turku": "LOC"}) for _ in range(9)]
    odd = make("Turku won\nTurku saw Mira\nSolberg at turku", {"Turku": "ORG", "Mira": "PER", "Solberg": "PER"})
    figures, examples = find_oddities({"train": [*usual, make("near Turku")], "dev": [odd], "test": []})
    assert figures["names_with_several_labels"] == 1 and figures["pairs_of_labels"] == {"LOC and ORG": 1}
    assert figures["splits"]["dev"] == {
        "ambiguous": 2,
        "unmarked_elsewhere": 2,
        "rare_label": 0,  # two of eleven are not rare enough
        "next_to_its_like": 1,
        "cut_by_a_sentence_start": 1,
    }
    assert examples["unmarked_elsewhere"] == [{"text": "Turku", "times": 1}]
    assert examples["cut_by_a_sentence_start"][0]["text"] == "Mira | Solberg"
    figures, examples = find_oddities({"train": usual, "dev": [make("Turku won", {"Turku": "ORG"})]})
    assert figures["splits"]["dev"]["rare_label"] == 1 and examples["rare_label"][0]["usual"] == "LOC"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Mira left Turku on Monday , as nobody had expected .", "prose"),
        ("MALTA BEATS Kenya", "headline"),
        ("Turku 3 Oslo 1", "row"),
        ("TURKU 2031-02-07", "row"),
        ("7 . 8 9", "row"),
        ("東京 の 天気 は 晴れ です", "prose"),
    ],
)
def test_kinds_of_sentences(text: str, kind: str) -> None:
    assert kind_of(make(text)[:]) == kind


@pytest.mark.parametrize(
    "text",
    [
        "Turku B-LOC\n",
        "".join(f"n{i} B-L{i}\n" for i in range(200)),
        "מירה B-PER\nנסעה O\nלטורקו B-LOC\n\n東京 B-LOC\nの O\n",  # noqa: RUF001
        "<script>alert(1)</script> B-<b>$x_\n& B-$$\n& O\n",
    ],
    ids=["one entity", "200 labels", "other scripts", "markup"],
)
def test_any_corpus_is_described(text: str, tmp_path: Path, tiny_encoder: Path) -> None:
    convert(write_corpus(tmp_path / "assets", text), tmp_path / "corpus")
    explore(tmp_path / "corpus", tiny_encoder, tmp_path / "metrics")
    result: dict[str, Any] = read_json(tmp_path / "metrics/corpus.json")
    assert result["against_train"]["dev"]["same_documents"] == result["splits"]["train"]["documents"]
    for name in FIGURES:
        ElementTree.parse(tmp_path / f"metrics/figures/corpus/{name}.svg")


def test_logarithmic_axes_have_plain_numbers(tmp_path: Path, tiny_encoder: Path) -> None:
    text = "Turku B-LOC\n" + "is O\n" * 2000 + "\nOslo B-LOC\n"
    convert(write_corpus(tmp_path / "assets", text), tmp_path / "corpus")
    explore(tmp_path / "corpus", tiny_encoder, tmp_path / "metrics")
    for name in FIGURES:
        drawn = (tmp_path / f"metrics/figures/corpus/{name}.svg").read_text("utf8")
        assert "$" not in drawn and "mathdefault" not in drawn
    assert ">1,000</text>" in (tmp_path / "metrics/figures/corpus/classes.svg").read_text("utf8")


def test_a_full_disk_leaves_the_earlier_outputs(
    tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(write_corpus(tmp_path / "assets"), tmp_path / "corpus")
    explore(tmp_path / "corpus", tiny_encoder, tmp_path / "metrics")
    before = sha256(tmp_path / "metrics")
    convert(write_corpus(tmp_path / "assets", "Turku B-LOC\n"), tmp_path / "corpus")

    def fill(path: Path, data: dict[str, Any]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patched:
        patched.setattr("scripts.explore.write_json", fill)
        with pytest.raises(OSError, match="No space left"):
            explore(tmp_path / "corpus", tiny_encoder, tmp_path / "metrics")
    assert sha256(tmp_path / "metrics") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["assets", "corpus", "metrics"]


def test_a_damaged_corpus_is_named(tmp_path: Path, tiny_encoder: Path) -> None:
    convert(write_corpus(tmp_path / "assets"), tmp_path / "corpus")
    (tmp_path / "corpus/dev.spacy").write_bytes(b"none of spaCy's")
    with pytest.raises(StepError, match=r"dev\.spacy is damaged"):
        explore(tmp_path / "corpus", tiny_encoder, tmp_path / "metrics")


def test_a_corpus_that_is_not_there_is_named(tmp_path: Path, tiny_encoder: Path) -> None:
    convert(write_corpus(tmp_path / "assets"), tmp_path / "corpus")
    (tmp_path / "corpus/train.spacy").rename(tmp_path / "corpus/dev.spacy")
    with pytest.raises(FileNotFoundError, match=r"train\.spacy"):
        explore(tmp_path / "corpus", tiny_encoder, tmp_path / "metrics")
