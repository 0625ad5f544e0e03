from __future__ import annotations

import functools
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from common.agreement import ADJUDICATED
from common.alignment import align, create_reader
from common.annotations import Annotation, Document, Span
from common.conll import Token, read_conll
from common.corpora import read_docs
from common.errors import StepError
from common.records import SPLITS, made, read_json
from common.store import STORE, Store
from common.suggestions import Word
from scripts.convert import convert
from scripts.download import get_corpus
from scripts.split import create_rows, split
from tests.conftest import words

NAMES = ("Mira Solberg", "Turku", "Norrvik Steel")
LABELS = dict(zip(NAMES, ("PER", "LOC", "ORG"), strict=True))


def write_store(folder: Path, number: int = 40, start: int = 0, **fields: Any) -> Store:
    """A store to which so many documents of two sentences are added, all annotated."""
    folder.mkdir(exist_ok=True)
    if not start and not fields:
        (folder / STORE).write_bytes(make_store(number))
        return Store(folder / STORE)
    store = Store(folder / STORE)
    for i in range(start, start + number):
        name, other = NAMES[i % 3], NAMES[(i + 1) % 3]
        text = f"{name} waited at gate {i}.\n\nThen {other} left 🚢 early."
        add(store, Document(id=f"d{i}", text=text, **fields), [mark(text, name), mark(text, other)])
    return store


@functools.cache
def make_store(number: int) -> bytes:
    """The file of such a store: every save is written to the disk, which takes most of the time of these tests."""
    with tempfile.TemporaryDirectory() as folder:
        return write_store(Path(folder), number, meta={}).path.read_bytes()


def mark(text: str, part: str, label: str = "") -> Span:
    return Span(start=text.index(part), end=text.index(part) + len(part), label=label or LABELS[part])


def add(store: Store, document: Document, spans: list[Span], status: str = "annotated", **fields: Any) -> None:
    store.add_documents([document])
    store.save(
        Annotation.model_validate(
            {"document": document.id, "annotator": "ada", "status": status, "spans": spans, **fields}
        )
    )


def splits_of(store: Store) -> dict[str, str | None]:
    return {task.document.id: task.document.split for task in store.tasks()}


def test_tags_and_chunks_fill_the_columns_of_the_corpus(tmp_path: Path) -> None:
    """But where the tokens are others, and in test, they have no value; and no chunk begins in the sentence before."""
    nlp = create_reader()
    text = "Mira left. Turku slept well."
    words_: list[Word] = [
        (0, 4, "NNP", "B-NP"),
        (5, 9, "VBD", "B-VP"),
        (9, 10, ".", "B-NP"),
        (11, 16, "NNP", "I-NP"),
        (17, 27, "XX", "B-VP"),
    ]
    rows = create_rows(align(nlp, text, [mark(text, "Turku")]).doc, words_)
    assert rows == [
        [Token("Mira", "O", "NNP", "B-NP"), Token("left", "O", "VBD", "B-VP"), Token(".", "O", ".", "B-NP")],
        [Token("Turku", "B-LOC", "NNP", "B-NP"), Token("slept", "O"), Token("well", "O"), Token(".", "O")],
    ]
    folder = tmp_path / "mine"
    store = write_store(folder)
    found: dict[str, dict[str, Any]] = {
        task.document.id: {
            "words": [(t.idx, t.idx + len(t), "X", "B-NP") for t in nlp(task.document.text) if not t.is_space]
        }
        for task in store.tasks()
    }
    store.describe(found)
    split(folder)
    for name in SPLITS:
        documents = read_conll(folder / f"corpus/{name}.conll").documents
        tokens = [token for document in documents for sentence in document for token in sentence]
        assert {(token.pos, token.chunk) for token in tokens} == ({("", "")} if name == "test" else {("X", "B-NP")})
        assert {token.entity for token in tokens} > {"O"}


def test_a_run_takes_the_corpus_as_its_source(tmp_path: Path) -> None:
    """From the store to what train reads: the same words and entities, each document in one split."""
    folder = tmp_path / "mine"
    store = write_store(folder)
    split(folder)
    get_corpus(tmp_path / "assets/mine", str(folder / "corpus"), "mine", [], {}, tmp_path)
    convert(tmp_path / "assets/mine", tmp_path / "corpus/mine")
    found = []
    for name in SPLITS:
        for doc in read_docs(tmp_path / f"corpus/mine/{name}.spacy"):
            assert [sent.text.split()[-1] for sent in doc.sents] == [".", "."]
            found.append((doc.text.replace(" .", ".").strip(), [(ent.text, ent.label_) for ent in doc.ents]))
    wanted = [
        (task.document.text.replace("\n\n", " "), [(task.document.text[s.start : s.end], s.label) for s in spans])
        for task in store.tasks()
        for spans in [task.annotations[0].spans]
    ]
    assert sorted(found) == sorted(wanted)
    counts = Counter(splits_of(store).values())
    assert counts["train"] == pytest.approx(28, abs=1) and min(counts["dev"], counts["test"]) >= 5


def test_the_record_says_which_document_is_where(tmp_path: Path) -> None:
    store = write_store(tmp_path / "mine")
    split(tmp_path / "mine")
    record = read_json(tmp_path / "mine/corpus/split.json")
    assert {name: split for split, names in record["documents"].items() for name in names} == splits_of(store)
    for name in SPLITS:
        documents = read_conll(tmp_path / f"mine/corpus/{name}.conll").documents
        assert len(documents) == len(record["documents"][name])
        entities = Counter(t.entity[2:] for d in documents for s in d for t in s if t.entity.startswith("B-"))
        assert entities == record["labels"][name] and {*entities} == {*LABELS.values()}
    assert made(tmp_path / "mine") == {"corpus"}, "clean must not remove the annotations"


def test_the_same_seed_gives_the_same_corpus(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_store(tmp_path / name)
        split(tmp_path / name, seed=seed)
    a, b, c = ((tmp_path / f"{name}/corpus/dev.conll").read_bytes() for name in "abc")
    assert a == b != c


def test_documents_keep_their_split_when_others_come(tmp_path: Path) -> None:
    store = write_store(tmp_path / "mine", 40)
    split(tmp_path / "mine")
    before = splits_of(store)
    write_store(tmp_path / "mine", 40, start=40)
    split(tmp_path / "mine", seed=7)
    after = splits_of(store)
    assert before.items() <= after.items()
    old, new = (Counter(found.values()) for found in (before, after))
    assert new["test"] == old["test"], "a test set that was chosen before gets nothing that was chosen to learn from"
    assert new["dev"] == pytest.approx((80 - old["test"]) * 0.15 / 0.85, abs=1)


def test_what_was_chosen_to_learn_from_does_not_take_the_place_of_test(tmp_path: Path) -> None:
    store = write_store(tmp_path / "mine")
    store.add_documents([Document(id="held out", text="Fog.", split="test")])
    refuse(tmp_path / "mine", "No document of test")
    assert set(splits_of(store).values()) == {None, "test"}
    store.save(Annotation(document="held out", annotator="ada", status="annotated"))
    split(tmp_path / "mine")
    assert [name for name, part in splits_of(store).items() if part == "test"] == ["held out"]


def test_near_duplicates_share_a_split_test_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mine"
    store = write_store(folder)
    for i in range(4):
        add(store, Document(id=f"g{i}", text=f"Fog {i}.", split="train" if i else "test", meta={"group": "fog"}), [])
    for i in range(4):
        add(store, Document(id=f"h{i}", text=f"Rain {i}.", meta={"group": 3}), [])
    split(folder)
    found = splits_of(store)
    assert {found[f"g{i}"] for i in range(4)} == {"test"}
    assert len({found[f"h{i}"] for i in range(4)}) == 1
    assert read_json(folder / "corpus/split.json")["moved_to_their_group"] == ["g1", "g2", "g3"]
    assert "Moved to the split of a near-duplicate: g1, g2, g3" in words(capsys.readouterr().out)


def test_what_has_no_final_annotation_is_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine"
    store = write_store(folder)
    add(store, Document(id="skipped", text="Fog.", split="test"), [], "skipped")
    add(store, Document(id="draft", text="Fog."), [], "draft")
    add(store, Document(id="blank", text=" \n\n "), [])
    add(store, Document(id="flagged", text="Fog."), [], flagged=True)
    store.add_documents([Document(id="new", text="Fog.")])
    store.save(Annotation(document="d3", annotator="bo", status="annotated"))
    store.save(Annotation(document="d4", annotator="bo", status="annotated"))
    store.save(Annotation(document="d4", annotator=ADJUDICATED, status="annotated"))
    split(folder)
    record = read_json(folder / "corpus/split.json")
    assert record["left_out"] == {"skipped": 1, "unannotated": 2, "without a word": 1, "open": 1}
    placed = {name for names in record["documents"].values() for name in names}
    assert len(placed) == 40 and "d4" in placed and placed.isdisjoint({"skipped", "draft", "blank", "new", "d3"})
    assert record["flagged"] == ["flagged"] and "1 open" in words(capsys.readouterr().out)
    assert splits_of(store)["new"] is None


def test_what_does_not_fit_is_reported_with_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mine"
    store = write_store(folder)
    text = "Old Norrvik Steel sank off Turku."
    spans = [mark(text, "orrvik Steel", "ORG"), mark(text, "Steel", "ORG"), mark(text, "Turku", "big place")]
    add(store, Document(id="odd", text=text), spans)
    split(folder)
    record = read_json(folder / "corpus/split.json")
    place = {"document": "odd", "start": 5, "end": 17, "label": "ORG", "text": "orrvik Steel"}
    assert record["cut"] == [place | {"instead": "Norrvik Steel"}]
    assert [(span["text"], span["label"]) for span in record["overlapping"]] == [("Steel", "ORG")]
    assert record["renamed"] == {"big place": "big_place"}
    output = words(capsys.readouterr().out)
    assert "odd, characters 5 to 17: 'orrvik Steel' (ORG)" in output and "'Norrvik Steel' instead" in output
    rows = [row for name in SPLITS for row in (folder / f"corpus/{name}.conll").read_text("utf8").splitlines()]
    start = rows.index("Old O")
    assert rows[start + 1 : start + 3] == ["Norrvik B-ORG", "Steel I-ORG"] and rows[start + 5] == "Turku B-big_place"


def refuse(folder: Path, match: str) -> str:
    """Make sure that the step refuses, and leaves corpus and splits as they were. RETURNS (str): The remedy."""
    store = Store(folder / STORE)
    before = splits_of(store)
    with pytest.raises(StepError, match=match) as error:
        split(folder)
    assert not (folder / "corpus").exists() and splits_of(store) == before
    return error.value.remedy


def test_offsets_of_another_kind_are_refused(tmp_path: Path) -> None:
    store = write_store(tmp_path / "mine", 30)
    for i in range(10):
        add(store, Document(id=f"shifted{i}", text="Yes, Turku sleeps."), [Span(start=6, end=11, label="LOC")])
    assert "UTF-16" in refuse(tmp_path / "mine", "10 spans .* cut a token, more than 5%")


def test_too_few_documents_are_refused_and_few_are_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_store(tmp_path / "mine", 19)
    assert "none" in refuse(tmp_path / "mine", "has 19 documents")
    write_store(tmp_path / "mine", 20)
    split(tmp_path / "mine")
    assert "make audit RUN=mine VARS='--vars.folds 5'" in words(capsys.readouterr().out)
    assert [len(v) for v in read_json(tmp_path / "mine/corpus/split.json")["documents"].values()] == [14, 3, 3]


def test_one_group_of_near_duplicates_is_no_corpus(tmp_path: Path) -> None:
    write_store(tmp_path / "mine", meta={"group": "all"})
    refuse(tmp_path / "mine", "No document is left for dev and test")


def test_two_labels_of_one_name_are_refused(tmp_path: Path) -> None:
    store = write_store(tmp_path / "mine")
    for name, label in (("x", "big place"), ("y", "big_place")):
        add(store, Document(id=name, text="Turku."), [mark("Turku.", "Turku", label)])
    refuse(tmp_path / "mine", "one name")


@pytest.mark.parametrize(
    ("text", "label"), [("-DOCSTART- came.", "PER"), ("Turku \ufeff", "LOC"), ("Turku", "L" * 201)]
)
def test_what_columns_cannot_hold_is_refused_by_name(tmp_path: Path, text: str, label: str) -> None:
    store = write_store(tmp_path / "mine")
    spans = [] if label == "PER" else [Span(start=0, end=5, label=label)]
    add(store, Document(id="odd", text=text), spans)
    assert "Skip it" in refuse(tmp_path / "mine", "document odd has")


def test_files_of_another_origin_are_left_alone(tmp_path: Path) -> None:
    write_store(tmp_path / "mine")
    (tmp_path / "mine/corpus").mkdir()
    (tmp_path / "mine/corpus/train.conll").write_text("Fog O")
    with pytest.raises(StepError, match="another origin"):
        split(tmp_path / "mine")
    assert not made(tmp_path / "mine"), "clean must not remove them either"
    shutil.rmtree(tmp_path / "mine/corpus")
    split(tmp_path / "mine")
    split(tmp_path / "mine")
